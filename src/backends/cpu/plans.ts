/**
 * The commands of the runtime's other kernels: attention, scatter, sort, prefix sums, fill, copy. Pure arithmetic on
 * shapes, like contract.ts; the parameters' meaning is in runtime/attention.c, runtime/indexed.c and (transpose) conv.c.
 */
import type { DType } from "../../core/dtype.ts";
import { dtypes } from "../../core/dtype.ts";
import { DTypeError, ShapeError } from "../../core/errors.ts";
import { contiguousStrides } from "../../core/shape.ts";
import type { CommandDesc } from "./contract.ts";
import type { KernelShape } from "./native.ts";

export interface Plan<Buffer extends string> {
  readonly main: CommandDesc<Buffer>;
  readonly scratchBytes: number;
}

export const roundUp = (a: number, b: number): number => Math.ceil(a / b) * b;

// ---- attention -------------------------------------------------------------------------------------------------------

/** Element strides (batch, head, time); the head's own axis D is contiguous. */
export type HeadStrides = readonly [batch: number, head: number, time: number];

export interface AttentionSizes {
  readonly B: number;
  readonly H: number;
  /** Heads of k and v; query head h reads key head floor(h / (H / Hkv)). */
  readonly Hkv: number;
  readonly Tq: number;
  readonly Tk: number;
  readonly D: number;
  readonly causal: boolean;
}

export interface AttentionDesc extends AttentionSizes {
  /** The command's second scalar is the number of valid keys. */
  readonly hasLength?: boolean;
  /** The command's last scalar is the position of query 0; query i sees keys up to offset + i when causal. */
  readonly hasOffset?: boolean;
  /** The queries are the last of the valid positions. */
  readonly isLast?: boolean;
  /** Forward: types of k and v, float32 by default. */
  readonly kDType?: DType;
  readonly vDType?: DType;
  /** Forward: strides (batch, head, query, key) of the mask, bytes, where there is one. */
  readonly mask?: readonly number[];
  readonly q: HeadStrides;
  readonly k: HeadStrides;
  readonly v: HeadStrides;
  readonly o: HeadStrides;
  /** Backward: strides of the output's gradient and of the three results. */
  readonly dO?: HeadStrides;
  readonly dq?: HeadStrides;
  readonly dk?: HeadStrides;
  readonly dv?: HeadStrides;
}

export function checkHeads({ H, Hkv }: AttentionSizes): void {
  if (!import.meta.forBrowsers && (Hkv < 1 || H % Hkv !== 0))
    throw new ShapeError(`attention: ${H} query heads are not a multiple of ${Hkv} key heads`);
}

/** Heads that read keys and values together (HEADS in attention.c). */
const HEADS_AT_ONCE = 8;
/** One query, and heads that share keys: attention.c reads them once for all of these. */
const isGrouped = ({ Tq, H, Hkv, kDType = "float32", vDType = "float32" }: AttentionDesc): boolean =>
  Tq === 1 && H > Hkv && kDType === vDType;

function attentionParams(desc: AttentionDesc, queries: number): number[] {
  const { B, H, Hkv, Tq, Tk, D, q, k, v, o } = desc;
  checkHeads(desc);
  const none: HeadStrides = [0, 0, 0];
  const flags =
    (desc.causal ? 1 : 0) |
    (desc.hasLength ? 2 : 0) |
    (desc.hasOffset ? 4 : 0) |
    (desc.isLast ? 8 : 0) |
    (desc.mask ? 16 : 0) |
    (queries > 0 && isGrouped(desc) ? 32 : 0);
  return [
    B,
    H,
    Hkv,
    Tq,
    Tk,
    D,
    flags,
    queries,
    dtypes[desc.kDType ?? "float32"].code,
    dtypes[desc.vDType ?? "float32"].code,
    ...q,
    ...k,
    ...v,
    ...o,
    ...(desc.dO ?? none),
    ...(desc.dq ?? none),
    ...(desc.dk ?? none),
    ...(desc.dv ?? none),
    ...(desc.mask ?? [0, 0, 0, 0]),
  ];
}

/**
 * Attention forward, writing o and the log-sum-exp of each row, lse [B, H, Tq]. Scalars of the command: scale, length
 * and offset where declared. A query that sees no key gets zeros.
 */
export function planAttention(shape: KernelShape, desc: AttentionDesc): Plan<"q" | "k" | "v" | "o" | "lse" | "mask"> {
  const { B, H, Hkv, Tq, D } = desc;
  const { mr, nr } = shape;
  const part = roundUp(72, mr);
  let queries = 3 * part;
  while (queries > part && B * H * Math.ceil(Tq / queries) < 16) queries -= part;
  queries = Math.min(queries, Math.max(Tq, 1));
  const DP = roundUp(D, nr);
  const floats = D * 256 + 256 * DP + part * 272 + queries * DP + 3 * roundUp(queries, 16) + queries * (D + 16) + 256;
  const widened = desc.kDType || desc.vDType ? 256 * D : 0;
  return {
    main: {
      fn: "attention_fwd",
      rows: isGrouped(desc) ? B * Hkv * Math.ceil(H / Hkv / HEADS_AT_ONCE) : B * H * Math.ceil(Tq / queries),
      grain: 1,
      buffers: desc.mask ? ["q", "k", "v", "o", "lse", "mask"] : ["q", "k", "v", "o", "lse"],
      params: attentionParams(desc, queries),
    },
    scratchBytes: 4 * (floats + widened),
  };
}

/** Attention backward from o, lse and dO: writes (never adds to) dq, dk and dv. The scalars are the forward's. */
export function planAttentionBackward(
  shape: KernelShape,
  desc: AttentionDesc,
): Plan<"q" | "k" | "v" | "o" | "lse" | "dO" | "dq" | "dk" | "dv"> {
  const { B, Hkv, D } = desc;
  const { mr, nr } = shape;
  const keys = roundUp(72, mr);
  const DP = roundUp(D, nr);
  const floats = 2 * D * 256 + 3 * 256 * DP + 2 * keys * 272 + keys * DP + mr * keys + 512 + 2 * keys * (D + 16) + 256;
  return {
    main: {
      fn: "attention_bwd",
      rows: B * Hkv,
      grain: 1,
      buffers: ["q", "k", "v", "o", "lse", "dO", "dq", "dk", "dv"],
      params: attentionParams(desc, 0),
    },
    scratchBytes: 4 * floats,
  };
}

// ---- scatter ---------------------------------------------------------------------------------------------------------

const numeric = (op: string, dtype: DType): number => {
  if (dtype === "float32" || dtype === "float64" || dtype === "int32") return dtypes[dtype].code;
  throw new DTypeError(`${op}: no kernel for ${dtype}; there are float32, float64 and int32`);
};
const COLUMNS = 64;

export interface ScatterDesc {
  /** out is [outer, size, inner], contiguous; index (int32) and src are [outer, count, inner] by element strides. */
  readonly outer: number;
  readonly count: number;
  readonly inner: number;
  readonly size: number;
  readonly dtype: DType;
  readonly reduce: "add" | "set" | "max";
  /** What out holds first: what it holds, zeros, or a copy of "base" (contiguous as out). */
  readonly init: "none" | "zero" | "base";
  /** Strides of index (outer, count, inner); an inner stride of 0 means one index a row, the fast way. */
  readonly indexStrides: readonly [number, number, number];
  readonly srcStrides: readonly [number, number, number];
  /** Operation number reported with an index out of range (with its position in [outer, count, inner]); at least 1. */
  readonly errorOp: number;
}

/** torch.scatter (set), scatter_add, scatter_reduce(amax) along the middle axis; among equal targets the last is set. */
export function planScatter(desc: ScatterDesc): Plan<"out" | "index" | "src" | "base"> {
  const { outer, count, inner, size, indexStrides, srcStrides } = desc;
  const op = { add: 0, set: 1, max: 2 }[desc.reduce];
  const init = { none: 0, zero: 1, base: 2 }[desc.init];
  return {
    main: {
      fn: "scatter",
      rows: outer * Math.ceil(inner / COLUMNS),
      grain: 1,
      buffers: desc.init === "base" ? ["out", "index", "src", "base"] : ["out", "index", "src"],
      params: [
        outer,
        count,
        inner,
        size,
        numeric("scatter", desc.dtype),
        op,
        init,
        desc.errorOp,
        ...indexStrides,
        ...srcStrides,
      ],
    },
    scratchBytes: 0,
  };
}

// ---- lines: sort, prefix sums ----------------------------------------------------------------------------------------

/** A contiguous tensor seen as [outer, n, inner], worked on along n. */
export interface Lines {
  readonly outer: number;
  readonly n: number;
  readonly inner: number;
  readonly dtype: DType;
}

/** Stable argsort (int32 indices) and, where asked, the sorted values: torch.sort(stable), NaN above everything. */
export function planArgsort(
  desc: Lines & { readonly descending?: boolean; readonly values?: boolean },
): Plan<"x" | "indices" | "values"> {
  const { outer, n, inner } = desc;
  return {
    main: {
      fn: "argsort",
      rows: outer * inner,
      grain: Math.max(1, Math.floor(4096 / Math.max(n, 1))),
      buffers: desc.values ? ["x", "indices", "values"] : ["x", "indices"],
      params: [n, inner, numeric("sort", desc.dtype), desc.descending ? 1 : 0, desc.values ? 1 : 0],
    },
    scratchBytes: 32 * n,
  };
}

/** Running add, mul or max along n (torch.cumsum, cumprod, cummax's values), from the end where `reverse`. */
export function planCumulative(
  desc: Lines & { readonly op: "add" | "mul" | "max"; readonly reverse?: boolean },
): Plan<"x" | "y"> {
  const { outer, n, inner } = desc;
  return {
    main: {
      fn: "cumulative",
      rows: outer * Math.ceil(inner / COLUMNS),
      grain: Math.max(1, Math.floor(4096 / Math.max(n * Math.min(inner, COLUMNS), 1))),
      buffers: ["x", "y"],
      params: [n, inner, numeric("cumulative", desc.dtype), { add: 0, mul: 1, max: 2 }[desc.op], desc.reverse ? 1 : 0],
    },
    scratchBytes: 0,
  };
}

// ---- fill, copy ------------------------------------------------------------------------------------------------------

const GRAIN = 1 << 15;

/** Sets `count` elements to a value given by its bits (as an integer of the element's size; 0 is 0 in every type). */
export function planFill(desc: { readonly count: number; readonly dtype: DType; readonly bits: number }): Plan<"x"> {
  return {
    main: { fn: "fill", rows: desc.count, grain: GRAIN, buffers: ["x"], params: [dtypes[desc.dtype].bytes, desc.bits] },
    scratchBytes: 0,
  };
}

/** Axes that both sides of a copy run through alike are one. */
function copyAxes(
  shape: readonly number[],
  from: readonly number[],
  to: readonly number[],
): [number, number, number][] {
  const axes: [number, number, number][] = [];
  shape.forEach((size, i) => {
    if (size === 1) return;
    const [f, t] = [from[i]!, to[i]!];
    const last = axes.at(-1);
    if (last && last[1] === f * size && last[2] === t * size) axes[axes.length - 1] = [last[0] * size, f, t];
    else axes.push([size, f, t]);
  });
  return axes;
}

/** As TQ in conv.c. */
const TRANSPOSE_BLOCK = 16;

/** The copy of 4-byte elements to contiguous memory where another axis than the last is contiguous in `from`; else null. */
export function planTranspose(shape: readonly number[], from: readonly number[]): CommandDesc<"from" | "to"> | null {
  const axes = copyAxes(shape, from, contiguousStrides(shape));
  const last = axes.pop();
  const k = axes.findIndex(([size, f]) => f === 1 && size >= 4);
  if (!last || last[1] <= 1 || k < 0 || axes.some((a) => a[1] <= 0)) return null;
  const [[size, , to]] = axes.splice(k, 1);
  return {
    fn: "transpose",
    rows: axes.reduce((n, a) => n * a[0], 1) * Math.ceil(size / TRANSPOSE_BLOCK),
    grain: Math.max(1, Math.round(4096 / (TRANSPOSE_BLOCK * last[0]))),
    buffers: ["from", "to"],
    params: [axes.length, ...axes.flat(), last[0], last[1], size, to],
  };
}

/** Copies a strided view to a strided view of the same shape (at most 16 axes), element strides. */
export function planCopy(desc: {
  readonly shape: readonly number[];
  readonly dtype: DType;
  readonly from: readonly number[];
  readonly to: readonly number[];
}): Plan<"from" | "to"> {
  const axes = copyAxes(desc.shape, desc.from, desc.to);
  if (axes.length > 16) throw new ShapeError(`copy: ${axes.length} axes; at most 16`);
  const rows = desc.shape.reduce((a, b) => a * b, 1);
  return {
    main: {
      fn: "copy",
      rows,
      grain: GRAIN,
      buffers: ["from", "to"],
      params: [dtypes[desc.dtype].bytes, axes.length, ...axes.flat()],
    },
    scratchBytes: 0,
  };
}

/**
 * Copies an update into `out`, contiguous and of `shape`, at offsets that are the command's scalars, one an axis, held so that it lies
 * inside. The update's last axis is contiguous; at most 8 axes.
 */
export function planUpdate(desc: {
  readonly shape: readonly number[];
  readonly update: readonly number[];
  readonly dtype: DType;
  /** Element strides of the update. */
  readonly strides: readonly number[];
}): CommandDesc<"update" | "out"> {
  const { shape, update, strides } = desc;
  if (shape.length < 1 || shape.length > 8) throw new ShapeError(`update: ${shape.length} axes; from 1 to 8`);
  const to = contiguousStrides(shape);
  const width = update[update.length - 1];
  return {
    fn: "update",
    rows: update.slice(0, -1).reduce((a, b) => a * b, 1),
    grain: Math.max(1, Math.floor(GRAIN / Math.max(width, 1))),
    buffers: ["update", "out"],
    params: [
      dtypes[desc.dtype].bytes,
      shape.length,
      ...shape.flatMap((size, i) => [update[i], strides[i], to[i], size - update[i]]),
    ],
  };
}

/** A thread reads so many bytes of a weight in one stretch: memory gives long streams faster. */
const STREAM = 2 ** 19;

/** Tiles of `bytes` that a thread takes at a time, where all it does is read them. */
export const streamGrain = (bytes: number): number => Math.max(1, Math.floor(STREAM / bytes));

/** As BLOCK and TILE in blocks.c. */
const BLOCK = 32;
const BLOCK_TILE = 64;

/** y [M, N] = x [M, K] · weightᵀ with a weight in blocks of 8 or 4 bits; x becomes integers one phase before. */
export function planBlockLinear(desc: {
  readonly M: number;
  readonly N: number;
  readonly K: number;
  readonly bits: number;
  /** Elements from a row of x to the next. */
  readonly rowStride: number;
}): Plan<"xCodes" | "xScales" | "xOffsets" | "codes" | "scales" | "y"> & {
  readonly quantize: CommandDesc<"x" | "xCodes" | "xScales" | "xOffsets">;
  /** Bytes of x's codes, scales and offsets. */
  readonly temporaries: readonly number[];
} {
  const { M, N, K, bits, rowStride } = desc;
  const blocks = M * (bits === 4 ? roundUp(K / BLOCK, 8) : K / BLOCK);
  const slack = 64; // vectors are read whole
  return {
    quantize: {
      fn: "block_quantize",
      rows: blocks,
      grain: 64,
      buffers: ["x", "xCodes", "xScales", "xOffsets"],
      params: [K, rowStride, bits],
    },
    main: {
      fn: "block_linear",
      rows: Math.ceil(N / BLOCK_TILE),
      grain: streamGrain((BLOCK_TILE * K * bits) / 8),
      buffers: ["xCodes", "xScales", "xOffsets", "codes", "scales", "y"],
      params: [M, N, K, bits],
    },
    temporaries: [2 * BLOCK * blocks, 4 * blocks + slack, bits === 4 ? 4 * blocks : slack],
    scratchBytes: 8 * 4 * (roundUp(K / BLOCK, 16) + 32), // scales of up to eight rows
  };
}
