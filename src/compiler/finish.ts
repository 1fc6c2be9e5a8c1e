/**
 * Small things about kernels that every assembler asks: the kernel that adds the parts of a reduction over rows, where a
 * kernel stores a node, and whether it may store it over memory that it reads. No rendering, no backend.
 */
import { sizeOf } from "../core/shape.ts";
import type { GroupKernel } from "./fuse.ts";
import { add, axis, scale } from "./index-expr.ts";
import { type Kernel, partDType, type Reduction, reachable, Values } from "./kernel.ts";
import type { GNode } from "./lower.ts";

/** The kernel that puts the parts [block, column] of a reduction over rows together. */
export function finishKernel(node: GNode, op: Reduction["op"], blocks: number, columns: number): Kernel {
  const values = new Values();
  const r = axis("r", columns);
  const dtype = partDType(node.dtype);
  const load = values.make({ kind: "load", dtype, slot: 0, index: add(scale(axis("c", blocks), columns), r) });
  const sum = values.reduction(load, dtype);
  const result = dtype === node.dtype ? sum : values.make({ kind: "op", dtype: node.dtype, name: "cast", args: [sum] });
  return {
    rows: columns,
    columns: blocks,
    buffers: [
      { dtype, written: false },
      { dtype: node.dtype, written: true },
    ],
    scalars: [],
    stages: [
      { stores: [], reductions: [{ op, value: load, dtype, slot: 0 }], columns: [], rowStores: [] },
      { stores: [], reductions: [], columns: [], rowStores: [{ buffer: 1, index: r, value: result }] },
    ],
    canFail: false,
    flops: blocks * columns,
  };
}

/** The key of the position at which a kernel stores a node, or null where it stores it in parts or not. */
export function storeOf(made: GroupKernel, node: GNode): string | null {
  const buffer = made.reads.length + made.writes.findIndex((w) => w.node === node);
  for (const s of made.kernel.stages)
    for (const st of [...s.stores, ...s.rowStores]) if (st.buffer === buffer) return st.index.key;
  return null;
}

/**
 * Whether a kernel may store `node`, at the position `key`, over the memory that it reads as `buffer`: it reads it there
 * only, and not after the pass that stores. (Within a pass, everything is read before anything is written.)
 */
export function readsOnlyAt(made: GroupKernel, buffer: number, key: string, node: GNode): boolean {
  const stored = made.reads.length + made.writes.findIndex((w) => w.node === node);
  let written = false;
  for (const s of made.kernel.stages)
    for (const [stores, others] of [
      [s.stores, [...s.reductions, ...s.columns]],
      [s.rowStores, []],
    ] as const) {
      const values = reachable([...stores, ...others].map((x) => x.value));
      const loads = [...values].filter((v) => v.kind === "load" && v.slot === buffer);
      if (loads.some((v) => written || v.index?.key !== key)) return false;
      written ||= stores.some((st) => st.buffer === stored);
    }
  return true;
}

/** The results of a kernel that may be stored over `read`, which it reads: of its size and dtype, whole, and where it reads it. */
export const resultsOver = (made: GroupKernel, read: GNode): GNode[] =>
  made.writes.flatMap(({ node, partial }) => {
    const store = storeOf(made, node);
    const fits = !partial && store !== null && node.dtype === read.dtype && sizeOf(node.shape) === sizeOf(read.shape);
    return fits && readsOnlyAt(made, made.reads.indexOf(read), store, node) ? [node] : [];
  });
