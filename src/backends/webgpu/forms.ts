/**
 * How a kernel's rows and columns are spread over invocations: which axis a workgroup's lanes walk along, how many rows
 * share a workgroup, and in how many blocks a reduction over rows leaves its parts. Fixed by the kernel's shape alone, so
 * that sums have the same bits on every GPU; where a subgroup is a processor's vector (Device.lanes), workgroups that have
 * sums to share are one subgroup, as barriers cost much there. No text here: render.ts.
 *
 *   flat     nothing is reduced: one invocation an element (or a word of narrow elements);
 *   columns  a row to `lanes` invocations side by side along c; short rows share a workgroup;
 *   rows     the same with neighbouring invocations on neighbouring rows, where memory is contiguous along r;
 *   sums     only reductions over r: the roles of r and c are exchanged, each block of rows has its own workgroups.
 */

import { affine, type Index, stepAlong } from "../../compiler/index-expr.ts";
import { type Kernel, runtimeValues, type Store, type Value } from "../../compiler/kernel.ts";
import type { DType } from "../../core/dtype.ts";
import { perWord } from "./layout.ts";

export type Form = "flat" | "columns" | "rows" | "sums";
export type Axis = "r" | "c";

export interface Plan {
  readonly form: Form;
  /** The axis of the parallel work and the one that lanes walk along; of a flat kernel `inner` is the fastest. */
  readonly outer: Axis;
  readonly inner: Axis;
  /** Invocations that share one position of `outer`, and such positions in a workgroup; both powers of two. */
  readonly lanes: number;
  readonly slots: number;
  /** Consecutive elements that one invocation makes, so that narrow stores are whole words. */
  readonly granule: number;
  /** Blocks of rows, each leaving one part of every reduction over r. */
  readonly blocks: number;
  readonly rowsPerBlock: number;
}

const WORKGROUP = 64;
/** WebGPU's least limit of invocations a workgroup. */
const LARGEST_WORKGROUP = 256;
/** Invocations that keep a GPU busy. */
const ENOUGH = 1 << 16;
/** Workgroups that keep a processor's cores busy. */
const ENOUGH_VECTORS = 32;
/** WebGPU's least limit of workgroups along one axis; what lies beyond is reached by strides. */
export const MAX_GROUPS = 65535;

/** The least power of two that is at least n. */
const powerAbove = (n: number): number => 2 ** Math.ceil(Math.log2(Math.max(1, n)));
const within = (n: number, least: number, most: number): number => Math.max(least, Math.min(most, n));

/** The kernel's values, each once. */
export function valuesOf(k: Kernel): Set<Value> {
  const seen = new Set<Value>();
  const stack: Value[] = k.stages.flatMap((s) =>
    [...s.stores, ...s.reductions, ...s.columns, ...s.rowStores].map((x) => x.value),
  );
  while (stack.length) {
    const v = stack.pop() as Value;
    if (seen.has(v)) continue;
    seen.add(v);
    stack.push(...v.args, ...runtimeValues(v.index, v.valid));
  }
  return seen;
}

/** Whether memory is walked more simply along r than along c. */
function contiguousAlongRows(k: Kernel): boolean {
  let alongC = 0;
  let alongR = 0;
  const weigh = (index: Index): void => {
    const [c, r] = [stepAlong(index, "c"), stepAlong(index, "r")];
    if (c !== 0 && c !== 1) alongC++;
    if (r !== 0 && r !== 1) alongR++;
  };
  for (const v of valuesOf(k)) if (v.kind === "load" && v.varies("c")) weigh(v.index as Index);
  for (const s of k.stages) for (const x of s.stores) weigh(x.index);
  return alongR < alongC;
}

const split = (rows: number, blocks: number): { blocks: number; rowsPerBlock: number } => {
  const rowsPerBlock = Math.ceil(rows / Math.max(1, blocks));
  return { blocks: Math.max(1, Math.ceil(rows / Math.max(1, rowsPerBlock))), rowsPerBlock };
};

/** `isNarrow` tells which dtypes share words with their neighbours; `vector` is Device.lanes. */
export function planKernel(
  k: Kernel,
  isNarrow: (dtype: DType) => boolean = (dtype) => perWord(dtype) > 1,
  vector = 0,
): Plan {
  const { rows, columns } = k;
  const reduces = k.stages.some((s) => s.reductions.length > 0 || s.rowStores.length > 0);
  const partial = k.stages.some((s) => s.columns.length > 0);
  const whole = { blocks: 1, rowsPerBlock: rows };
  if (!reduces && !partial) {
    const inner = rows > 1 && columns > 1 && contiguousAlongRows(k) ? "r" : "c";
    const outer = inner === "c" ? "r" : "c";
    const granule = granuleOf(k, isNarrow, (index) => offsetAlong(index, k, inner));
    return { form: "flat", outer, inner, lanes: WORKGROUP, slots: 1, granule, ...whole };
  }
  if (!import.meta.forGpus && vector > 0) return planVectors(k, isNarrow, vector);
  if (!reduces) {
    const slots = within(powerAbove(columns), 1, WORKGROUP);
    const lanes = within(powerAbove(rows / 8), 1, LARGEST_WORKGROUP / slots);
    const tiles = Math.ceil(columns / slots) * slots * lanes;
    const blocks = within(Math.ceil(ENOUGH / tiles), 1, Math.ceil(rows / (8 * lanes)));
    return { form: "sums", outer: "c", inner: "r", lanes, slots, granule: 1, ...split(rows, blocks) };
  }
  if (!partial && rows >= 4 && contiguousAlongRows(k)) {
    const slots = within(powerAbove(rows), 4, WORKGROUP);
    const wanted = rows * columns > ENOUGH ? powerAbove(ENOUGH / rows) : 1;
    const lanes = within(wanted, 1, Math.min(LARGEST_WORKGROUP / slots, powerAbove(columns / 4)));
    return { form: "rows", outer: "r", inner: "c", lanes, slots, granule: 1, ...whole };
  }
  const granule = partial ? 1 : granuleOf(k, isNarrow, (index) => rowAligned(index, columns));
  // few enough lanes that most of a row's sum is one invocation's, and trees are short
  const each = rows * columns >= ENOUGH ? 8 : rows * columns >= ENOUGH / 16 ? 4 : 1;
  const lanes = within(powerAbove(columns / Math.max(each, granule)), 1, LARGEST_WORKGROUP);
  const slots = Math.max(1, within(WORKGROUP / lanes, 1, powerAbove(rows)));
  const blocks = partial ? split(rows, within(Math.ceil(rows / (4 * slots)), 1, 256)) : whole;
  return { form: "columns", outer: "r", inner: "c", lanes, slots, granule, ...blocks };
}

/** A kernel that reduces, for workgroups of one subgroup: lanes beside one another, few blocks. */
function planVectors(k: Kernel, isNarrow: (dtype: DType) => boolean, vector: number): Plan {
  const { rows, columns } = k;
  const partial = k.stages.some((s) => s.columns.length > 0);
  const blocksOf = (least: number, others: number) =>
    split(rows, within(Math.ceil(ENOUGH_VECTORS / others), 1, Math.ceil(rows / least)));
  if (!k.stages.some((s) => s.reductions.length > 0 || s.rowStores.length > 0)) {
    const slots = within(powerAbove(columns), 1, vector);
    const lanes = vector / slots;
    const blocks = blocksOf(8 * lanes, Math.ceil(columns / slots));
    return { form: "sums", outer: "c", inner: "r", lanes, slots, granule: 1, ...blocks };
  }
  const whole = { blocks: 1, rowsPerBlock: rows };
  if (!partial && rows >= vector && contiguousAlongRows(k))
    return { form: "rows", outer: "r", inner: "c", lanes: 1, slots: vector, granule: 1, ...whole };
  const granule = partial ? 1 : granuleOf(k, isNarrow, (index) => rowAligned(index, columns));
  const lanes = within(powerAbove(columns / granule), 1, vector);
  const slots = within(vector / lanes, 1, powerAbove(rows));
  const blocks = partial ? blocksOf(4 * slots, 1) : whole;
  return { form: "columns", outer: "r", inner: "c", lanes, slots, granule, ...blocks };
}

/** What an index is beyond the element's own number in the order of a flat kernel; null if it is not that plus a constant. */
export function offsetAlong(index: Index, k: Kernel, inner: Axis): number | null {
  const a = affine(index);
  if (!a) return null;
  const length = inner === "c" ? k.columns : k.rows;
  const outer = inner === "c" ? "r" : "c";
  const count = inner === "c" ? k.rows : k.columns;
  if (length > 1 && a.coefficients.get(inner) !== 1) return null;
  if (count > 1 && a.coefficients.get(outer) !== length) return null;
  return a.constant;
}

/** Where rows begin, up to whole words, if columns lie one after the other and every row fills whole words. */
function rowAligned(index: Index, columns: number): number | null {
  const a = affine(index);
  if (!a || columns % 4 !== 0 || a.coefficients.get("c") !== 1 || (a.coefficients.get("r") ?? 0) % 4 !== 0) return null;
  return a.constant;
}

/**
 * Consecutive elements an invocation has to make so that every narrow element stored is in a word of its own: 1 where
 * nothing narrow is stored, or where its positions do not allow words (the stores are then atomics).
 */
function granuleOf(k: Kernel, isNarrow: (d: DType) => boolean, offsetOf: (i: Index) => number | null): number {
  const narrow = k.stages.flatMap((s) => s.stores).filter((st) => isNarrow(dtypeOf(k, st)));
  if (!narrow.length) return 1;
  const granule = Math.max(...narrow.map((st) => perWord(dtypeOf(k, st))));
  return narrow.every((st) => {
    const offset = offsetOf(st.index);
    return offset !== null && offset % granule === 0;
  })
    ? granule
    : 1;
}

const dtypeOf = (k: Kernel, st: Store): DType => k.buffers[st.buffer].dtype;
