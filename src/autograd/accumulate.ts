/**
 * The sum of the gradients that meet at a node. Pieces that tile an axis (the gradients of a split) are joined into
 * one concat rather than added as padded copies.
 */
import type { Node } from "../graph/node.ts";
import { add, concat } from "../graph/ops.ts";
import { primitives as p } from "../graph/primitives.ts";

interface Piece {
  readonly axis: number;
  readonly start: number;
  readonly node: Node;
}

const ints = (node: Node, name: string): readonly number[] => node.attrs[name] as readonly number[];

/** The piece that a gradient is, where it is zeros around one stretch of one axis. */
function pieceOf(gradient: Node): Piece | null {
  if (gradient.operation !== p.pad || gradient.storage || gradient.attrs["value"] !== 0) return null;
  const [low, high, interior] = [ints(gradient, "low"), ints(gradient, "high"), ints(gradient, "interior")];
  if (interior.some((n) => n !== 0)) return null;
  const padded = low.flatMap((n, i) => (n + high[i] > 0 ? [i] : []));
  if (padded.length !== 1) return null;
  return { axis: padded[0], start: low[padded[0]], node: gradient.inputs[0] };
}

/** One concat for the pieces if they cover their axis without gap or overlap. */
function joined(pieces: readonly Piece[], length: number): Node | null {
  const sorted = pieces.slice().sort((a, b) => a.start - b.start);
  const { axis } = sorted[0];
  let end = 0;
  for (const piece of sorted) {
    if (piece.axis !== axis || piece.start !== end) return null;
    end += piece.node.shape[axis];
  }
  if (end !== length) return null;
  return concat(
    sorted.map((piece) => piece.node),
    axis,
  );
}

/** The sum of `parts` (at least one), in the order given; pieces of an axis count as one part, at the first one's place. */
export function total(parts: readonly Node[]): Node {
  if (parts.length === 1) return parts[0];
  if (parts.every((part) => part.operation !== p.pad)) {
    let sum = parts[0];
    for (let i = 1; i < parts.length; i++) sum = add(sum, parts[i]);
    return sum;
  }
  const pieces = parts.map(pieceOf);
  const first = pieces.findIndex((piece) => piece !== null);
  let rest: readonly Node[] = parts;
  if (first >= 0) {
    const { axis } = pieces[first] as Piece;
    const tiles = pieces.filter((piece): piece is Piece => piece?.axis === axis);
    const whole = tiles.length > 1 ? joined(tiles, parts[first].shape[axis]) : null;
    if (whole) rest = parts.flatMap((part, i) => (i === first ? [whole] : pieces[i]?.axis === axis ? [] : [part]));
  }
  return rest.reduce((sum, part) => add(sum, part));
}
