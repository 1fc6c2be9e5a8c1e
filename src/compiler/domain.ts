/**
 * The loop space of a kernel: how many rows and columns, and where a node's elements are in them. Reductions decide it: what is
 * left are the rows (or the columns), what is added up the other. Which nodes share one is for the fuser to say.
 */
import { sizeOf } from "../core/shape.ts";
import { add, axis, constantIndex, delinearize, type Index, scale } from "./index-expr.ts";
import type { Reduction } from "./kernel.ts";
import type { GNode } from "./lower.ts";

export const reductions: Readonly<Record<string, Reduction["op"]>> = {
  sum: "sum",
  prod: "prod",
  reduceMax: "max",
  reduceMin: "min",
};

/** Up to so many rows, a sum over them reads its terms side by side instead of leaving parts. */
const FEW_ROWS = 48;

/** The loop space of a kernel. `row` reductions are over c, `column` reductions over r. */
export interface Domain {
  readonly rows: number;
  readonly columns: number;
  /** The index vector of a full-size node of this shape, or of the reduction's own input shape. */
  readonly full: (shape: readonly number[]) => Index[];
  readonly key: string;
  /** The shape whose axes are taken apart into rows and columns; every other is cut in row-major order. */
  readonly own?: string;
}

export function flatDomain(rows: number, columns: number): Domain {
  const position = add(scale(axis("r", rows), columns), axis("c", columns));
  return { rows, columns, full: (shape) => delinearize(position, shape), key: `${rows}x${columns}` };
}

export function reductionParts(n: GNode): {
  kept: number[];
  reduced: number[];
  rows: number;
  columns: number;
  kind: "row" | "column" | "mixed";
} {
  const shape = n.inputs[0].shape;
  const axes = n.attrs["axes"] as readonly number[];
  const reduced = axes.filter((a) => shape[a] !== 1);
  const kept = shape.map((_, i) => i).filter((i) => !axes.includes(i) && shape[i] !== 1);
  const size = (list: readonly number[]) => list.reduce((k, a) => k * shape[a], 1);
  const kind =
    kept.length === 0 || reduced.length === 0 || kept[kept.length - 1] < reduced[0]
      ? "row"
      : reduced[reduced.length - 1] < kept[0] && size(reduced) > FEW_ROWS
        ? "column"
        : "mixed";
  return { kept, reduced, rows: size(kept), columns: size(reduced), kind };
}

export function domainOf(n: GNode): Domain {
  const { kept, reduced, rows, columns, kind } = reductionParts(n);
  if (kind === "row") return flatDomain(rows, columns);
  if (kind === "column") return flatDomain(columns, rows);
  const shape = n.inputs[0].shape;
  const outer = delinearize(
    axis("r", rows),
    kept.map((a) => shape[a]),
  );
  const inner = delinearize(
    axis("c", columns),
    reduced.map((a) => shape[a]),
  );
  const own = shape.map((_, i) =>
    kept.includes(i) ? outer[kept.indexOf(i)] : reduced.includes(i) ? inner[reduced.indexOf(i)] : constantIndex(0),
  );
  const flat = flatDomain(rows, columns);
  const same = shape.join(",");
  return {
    rows,
    columns,
    full: (s) => (s.join(",") === same ? own : flat.full(s)),
    key: `${same}:${kept.join(",")}`,
    own: same,
  };
}

/** The loop space that all these nodes can have, or null where there is none. */
export function domainFor(members: readonly GNode[]): Domain | null {
  let domain: Domain | null = null;
  for (const n of members) {
    if (!(n.op in reductions)) continue;
    const d = domainOf(n);
    if (!domain) domain = d;
    else if (domain.key !== d.key) {
      if (domain.rows !== d.rows || domain.columns !== d.columns) return null;
      if (reductionParts(n).kind === "mixed") domain = d;
    }
  }
  if (domain) return domain;
  const size = sizeOf(members[0].shape);
  return members.every((m) => sizeOf(m.shape) === size) ? flatDomain(1, size) : null;
}
