/**
 * Indexing in one notation: `x.at(0, slice(1, -1), null, "...", index)` and `x.setAt([0, slice(1)], value)`. PyTorch's
 * meaning, and NumPy's negative steps.
 *
 * An index list has one entry an axis, from the first on:
 *   a number      that position; the axis goes away (negative: from the end)
 *   slice(a,b,c)  positions a, a+c, … before b
 *   null          a new axis of size 1
 *   "..."         as many whole axes as are left over; at most one
 *   Tensor, number[]  positions (integers; negative from the end); several are broadcast together, and their axes stand
 *                 where the first stood if they are neighbours, else in front
 * A bool tensor selects a number of elements that depends on values: maskedSelect() does that; setAt takes one.
 *
 * A number or a slice's start on the first axis is a runtime offset (going through rows or batches compiles one program, not one a
 * row) where the other entries take whole axes; anywhere else it is part of the program, as a shape is.
 */
import { isFloat } from "../core/dtype.ts";
import { DTypeError, NablaError, ShapeError } from "../core/errors.ts";
import { broadcastShapes, type Shape, showShape, sizeOf } from "../core/shape.ts";
import { leafFrom } from "../execution/index.ts";
import type { Node } from "../graph/node.ts";
import * as ops from "../graph/ops.ts";
import { nodeOf, type Operand } from "./operand.ts";
import { Tensor, wrap, write } from "./tensor.ts";

/** A range of positions, made by `slice`. */
export class Slice {
  readonly start: number | null;
  readonly stop: number | null;
  readonly step: number;
  constructor(start: number | null, stop: number | null, step: number) {
    this.start = start;
    this.stop = stop;
    this.step = step;
  }
}

/**
 * Python's start:stop:step. `slice()` is everything, `slice(2)` from position 2 on, `slice(null, 2)` the first two, `slice(null,
 * null, -1)` backwards. Throws ShapeError for a step of 0.
 */
export function slice(start: number | null = null, stop: number | null = null, step = 1): Slice {
  for (const n of [start ?? 0, stop ?? 0, step])
    if (!Number.isInteger(n)) throw new ShapeError(`slice: expected whole numbers, got ${n}`);
  if (step === 0) throw new ShapeError("slice: the step can't be 0");
  return new Slice(start, stop, step);
}

export type Index = number | null | "..." | Slice | Tensor | readonly number[];

/** What one axis of x gives, in the order of the result. */
type Part =
  | {
      readonly kind: "range";
      readonly axis: number;
      readonly start: number;
      readonly size: number;
      readonly step: number;
    }
  | { readonly kind: "position"; readonly axis: number; readonly start: number }
  | { readonly kind: "new" }
  | { readonly kind: "index"; readonly axis: number; readonly node: Node };

function rangeOf({ start, stop, step }: Slice, axis: number, n: number): Part {
  const clip = (v: number, low: number, high: number): number => Math.min(Math.max(v < 0 ? v + n : v, low), high);
  if (step > 0) {
    const from = start === null ? 0 : clip(start, 0, n);
    const to = stop === null ? n : clip(stop, 0, n);
    return { kind: "range", axis, start: from, size: Math.max(0, Math.ceil((to - from) / step)), step };
  }
  const from = start === null ? n - 1 : clip(start, -1, n - 1);
  const to = stop === null ? -1 : clip(stop, -1, n - 1);
  return { kind: "range", axis, start: from, size: Math.max(0, Math.ceil((to - from) / step)), step };
}

const isList = (entry: Index): entry is readonly number[] => Array.isArray(entry);

/** The entries as parts, one a result axis (or none, for positions); checks numbers against sizes. */
function parse(operation: string, x: Tensor, entries: readonly Index[]): Part[] {
  const { shape } = x;
  const used = entries.filter((e) => e !== null && e !== "...").length;
  const open = entries.filter((e) => e === "...").length;
  if (open > 1) throw new ShapeError(`${operation}: "..." may stand only once`);
  if (used > shape.length)
    throw new ShapeError(`${operation}: ${used} indices for the ${shape.length} axes of ${showShape(shape)}`);
  const whole = slice();
  const full: Index[] = [];
  for (const entry of open ? entries : [...entries, "..." as const]) {
    if (entry === "...") for (let i = used; i < shape.length; i++) full.push(whole);
    else full.push(entry);
  }
  let axis = 0;
  return full.map((entry): Part => {
    if (entry === null) return { kind: "new" };
    const n = shape[axis];
    if (typeof entry === "number") {
      if (!Number.isInteger(entry) || entry < -n || entry >= n)
        throw new ShapeError(
          `${operation}: index ${entry} is outside of axis ${axis} (size ${n}) of ${showShape(shape)}`,
        );
      return { kind: "position", axis: axis++, start: entry < 0 ? entry + n : entry };
    }
    if (entry instanceof Slice) return rangeOf(entry, axis++, n);
    const node = entry instanceof Tensor ? entry.node : isList(entry) ? listNode(x, entry) : null;
    if (!node)
      throw new NablaError(`${operation}: an index is a number, slice(…), null, "...", a tensor or a list of numbers`);
    if (node.dtype === "bool")
      throw new DTypeError(
        operation === "at"
          ? "at: a bool tensor selects a number of elements that depends on its values; use await maskedSelect(x, mask), or where(mask, x, other)"
          : "setAt: a bool mask must be the only index",
      );
    if (isFloat(node.dtype))
      throw new DTypeError(`${operation}: an index must be an integer tensor, got ${node.dtype}`);
    const index = ops.cast(node, "int32");
    return { kind: "index", axis: axis++, node: ops.where(ops.lt(index, 0), ops.add(index, n), index) };
  });
}

const listNode = (x: Tensor, list: readonly number[]): Node =>
  leafFrom(x.device, "int32", [list.length], Int32Array.from(list), true);

/** The ranges of all axes of x, a position being a range of one. */
const rangesOf = (x: Node, parts: readonly Part[]): { start: number; size: number; step: number }[] =>
  x.shape.map((size, axis) => {
    const part = parts.find((p) => p.kind !== "new" && p.axis === axis);
    if (part?.kind === "range") return { start: part.start, size: part.size, step: part.step };
    if (part?.kind === "position") return { start: part.start, size: 1, step: 1 };
    return { start: 0, size, step: 1 };
  });

/** The offsets of a region whose place may be a runtime value: only the first axis is not taken whole. */
function runtimeOffsets(x: Node, ranges: readonly { start: number; size: number; step: number }[]): Node[] | null {
  const rowsOnly = ranges.every((r, i) => r.step === 1 && (i === 0 || (r.start === 0 && r.size === x.shape[i])));
  if (!rowsOnly || ranges.length === 0 || ranges[0].size === x.shape[0] || sizeOf(ranges.map((r) => r.size)) === 0)
    return null;
  return ranges.map((r) => ops.scalar(r.start, "int32"));
}

/** What basic entries give, with all axes of x still there. */
function region(x: Node, parts: readonly Part[]): Node {
  const ranges = rangesOf(x, parts);
  const offsets = runtimeOffsets(x, ranges);
  if (!offsets) return ops.slice(x, ranges);
  return ops.dynamicSlice(
    x,
    offsets,
    ranges.map((r) => r.size),
  );
}

/** The result's shape after basic entries: positions gone, new axes in. Index parts keep their axis. */
const shapeOf = (x: Node, parts: readonly Part[]): Shape =>
  parts.flatMap((p) =>
    p.kind === "position" ? [] : p.kind === "new" ? [1] : p.kind === "range" ? [p.size] : [x.shape[p.axis]],
  );

/** The part of x that the index list names. The result shares no memory with x that could be written through it. */
export function at(x: Tensor, ...entries: readonly Index[]): Tensor {
  const parts = parse("at", x, entries);
  const basic = ops.reshape(region(x.node, parts), shapeOf(x.node, parts));
  if (!parts.some((p) => p.kind === "index")) return wrap(x, basic);
  const { source, index, place, indexShape } = advanced(basic, parts);
  const picked = ops.take(source, 0, index); // [index…, rest…]
  const k = indexShape.length;
  const rest = source.shape.length - 1;
  // the index axes go to their place among the rest
  const order = [
    ...Array.from({ length: place }, (_, i) => k + i),
    ...Array.from({ length: k }, (_, i) => i),
    ...Array.from({ length: rest - place }, (_, i) => k + place + i),
  ];
  return new Tensor(ops.permute(picked, order));
}

interface Advanced {
  /** x with the indexed axes flattened into one in front: [indexed, rest…]. */
  readonly source: Node;
  /** Positions along it; outside of it where any index was outside of its axis. */
  readonly index: Node;
  readonly indexShape: Shape;
  /** Where the index's axes stand among the rest. */
  readonly place: number;
  /** The axes of the argument in the order of `source`, before flattening. */
  readonly order: readonly number[];
}

function advanced(x: Node, parts: readonly Part[]): Advanced {
  // axes of x as the parts stand (positions are gone)
  const kept = parts.filter((p) => p.kind !== "position");
  const indexed = kept.flatMap((p, i) => (p.kind === "index" ? [i] : []));
  const others = kept.flatMap((p, i) => (p.kind === "index" ? [] : [i]));
  // numbers are taken first, as in PyTorch, so they do not keep index tensors apart
  const neighbours = indexed.every((p, i) => i === 0 || p === indexed[i - 1] + 1);
  const place = neighbours ? indexed[0] : 0;
  const nodes = kept.flatMap((p) => (p.kind === "index" ? [p.node] : []));
  let shape: Shape = nodes[0].shape;
  for (const n of nodes) shape = broadcastShapes("at", shape, n.shape);
  const sizes = indexed.map((i) => x.shape[i]);
  let index = ops.expandTo(nodes[0], shape);
  if (nodes.length > 1) {
    let inside = withinAxis(index, sizes[0]);
    for (let i = 1; i < nodes.length; i++) {
      const next = ops.expandTo(nodes[i], shape);
      inside = ops.and(inside, withinAxis(next, sizes[i]));
      index = ops.add(ops.mul(index, ops.full(shape, sizes[i], "int32")), next);
    }
    index = ops.where(inside, index, ops.full(shape, -1, "int32"));
  }
  const order = [...indexed, ...others];
  const moved = ops.permute(x, order);
  const source = ops.reshape(moved, [sizeOf(sizes), ...others.map((i) => x.shape[i])]);
  return { source, index, indexShape: shape, place, order };
}

const withinAxis = (index: Node, size: number): Node => ops.and(ops.ge(index, 0), ops.lt(index, size));

/** x with `value` (broadcast) at the part that the index list names; the list may be one bool mask over the first axes. */
function replaced(x: Tensor, entries: readonly Index[], value: Operand): Node {
  const { node } = x;
  const given =
    value instanceof Tensor ? value.node : ops.cast(nodeOf("setAt", value, ops.full([], 0, node.dtype)), node.dtype);
  if (given.dtype !== node.dtype && isFloat(given.dtype) && !isFloat(node.dtype))
    throw new DTypeError(
      `setAt: a ${given.dtype} value can't be stored in a ${node.dtype} tensor; cast it with .to("${node.dtype}")`,
    );
  const v = ops.cast(given, node.dtype);
  const [mask] = entries;
  if (entries.length === 1 && mask instanceof Tensor && mask.dtype === "bool") {
    const m = mask.node;
    if (m.shape.length > node.shape.length || m.shape.some((n, i) => n !== node.shape[i]))
      throw new ShapeError(`setAt: mask ${showShape(m.shape)} must equal the first axes of ${showShape(node.shape)}`);
    const wide = ops.reshape(m, [...m.shape, ...node.shape.slice(m.shape.length).map(() => 1)]);
    return ops.where(ops.expandTo(wide, node.shape), ops.expandTo(v, node.shape), node);
  }
  const parts = parse("setAt", x, entries);
  const ranges = rangesOf(node, parts);
  if (!parts.some((p) => p.kind === "index"))
    return placed(
      node,
      ranges,
      fill(
        v,
        shapeOf(node, parts),
        ranges.map((r) => r.size),
      ),
    );
  // write into the flattened part, then put the part back
  const part = region(node, parts);
  const basic = ops.reshape(part, shapeOf(node, parts));
  const { source, index, indexShape, place, order } = advanced(basic, parts);
  const rest = source.shape.slice(1);
  const k = indexShape.length;
  const resultShape = [...rest.slice(0, place), ...indexShape, ...rest.slice(place)];
  const wide = ops.expandTo(trimmed(v, resultShape.length), resultShape);
  const inFront = ops.permute(wide, [
    ...Array.from({ length: k }, (_, i) => place + i),
    ...Array.from({ length: place }, (_, i) => i),
    ...Array.from({ length: rest.length - place }, (_, i) => place + k + i),
  ]);
  const count = sizeOf(indexShape);
  const flat = ops.reshape(inFront, [count, ...rest]);
  const spread = ops.expandTo(ops.reshape(index, [count, ...rest.map(() => 1)]), [count, ...rest]);
  const bytes = node.dtype === "bool";
  const as = (n: Node): Node => (bytes ? ops.cast(n, "uint8") : n);
  const scattered = ops.cast(ops.scatter(as(source), 0, spread, as(flat), "set"), node.dtype);
  const back = ops.permute(
    ops.reshape(
      scattered,
      order.map((i) => basic.shape[i]),
    ),
    order.map((_, i) => order.indexOf(i)),
  );
  return placed(node, ranges, ops.reshape(back, part.shape));
}

/** Without leading axes of size 1 beyond `n`, which assignment ignores as PyTorch does. */
function trimmed(v: Node, n: number): Node {
  let { shape } = v;
  while (shape.length > n && shape[0] === 1) shape = shape.slice(1);
  return ops.reshape(v, shape);
}

const fill = (v: Node, shape: Shape, whole: Shape): Node =>
  ops.reshape(ops.expandTo(trimmed(v, shape.length), shape), whole);

/** x with `part` in the region of the ranges. */
function placed(x: Node, ranges: readonly { start: number; size: number; step: number }[], part: Node): Node {
  if (sizeOf(part.shape) === 0) return x;
  if (ranges.every((r, i) => r.step === 1 && r.size === x.shape[i])) return part;
  const offsets = runtimeOffsets(x, ranges);
  if (offsets) return ops.dynamicUpdate(x, part, offsets);
  // steps backwards are steps forwards of the part reversed
  const reversed = ranges.flatMap((r, i) => (r.step < 0 ? [i] : []));
  const first = ranges.map((r) => (r.step < 0 ? r.start + (r.size - 1) * r.step : r.start));
  const interior = ranges.map((r) => Math.abs(r.step) - 1);
  const high = ranges.map((r, i) => x.shape[i] - first[i] - ((r.size - 1) * Math.abs(r.step) + 1));
  const inside = ops.pad(ops.full(part.shape, 1, "bool"), first, high, 0, interior);
  return ops.where(inside, ops.pad(ops.flip(part, reversed), first, high, 0, interior), x);
}

/**
 * Writes `value` (broadcast) at the part that the index list names: state is assigned, another tensor means the new value from
 * here on; views taken before keep the old one. Returns x.
 */
export function setAt<T extends Tensor>(x: T, entries: readonly Index[], value: Operand): T {
  return write("setAt", x, replaced(x, entries, value));
}

/** As setAt, leaving x as it is. */
export const withAt = (x: Tensor, entries: readonly Index[], value: Operand): Tensor =>
  new Tensor(replaced(x, entries, value));
