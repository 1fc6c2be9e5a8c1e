/**
 * Products with a weight in few bits (runtime/quantized.c): which contraction takes a `dequantize` node's codes instead of its floats, and the
 * commands of that. Everything depends on shapes alone.
 */
import type { GNode } from "../../compiler/lower.ts";
import type { Strided } from "../../compiler/views.ts";
import { sizeOf } from "../../core/shape.ts";
import { type DequantizeAttrs, isStored, type QuantizedFormat } from "../../graph/composites/dequantize.ts";
import { type StoredFormat, storedFormats } from "../../graph/composites/stored-blocks.ts";
import { type CommandDesc, kBlock } from "./contract.ts";
import type { KernelShape } from "./native.ts";
import { streamGrain } from "./plans.ts";

/** The numbers of the formats in runtime/stored.h. */
const formats: Readonly<Record<QuantizedFormat, number>> = {
  nf4: 0,
  int8: 1,
  q4_1: 2,
  q5_0: 3,
  q5_1: 4,
  q4_k: 5,
  q5_k: 6,
  q6_k: 7,
};

/** Floats of a panel of the weight, which stays near the core. */
const PANEL_FLOATS = 2 ** 17;
/** Rows of the product that one panel serves: making it costs a twentieth of the product then. */
const ROWS = 512;
const WANTED_TILES = 12;
const DOT_COLUMNS = 64;
const ROWS_AT_ONCE = 96;

const attrsOf = (n: GNode): DequantizeAttrs => n.attrs as unknown as DequantizeAttrs;

/** Whether `look` is all of a weight, as it lies or transposed; null where it is neither. */
function layout(n: GNode, { source, offset, strides }: Strided): "plain" | "transposed" | null {
  const { rows, columns } = attrsOf(source);
  const [K, N] = n.inputs[1].shape;
  if (offset !== 0) return null;
  const is = (k: number, kStride: number, m: number, nStride: number): boolean =>
    K === k && N === m && (K === 1 || strides[0] === kStride) && (N === 1 || strides[1] === nStride);
  if (is(columns, 1, rows, columns)) return "transposed";
  return is(rows, columns, columns, 1) ? "plain" : null;
}

/** Whether a contraction can take its right side from the codes of the `dequantize` node that `look` is of. */
export const takesCodes = (n: GNode, operand: number, look: Strided): boolean =>
  n.op === "contract" &&
  operand === 1 &&
  n.shape.length === 2 &&
  n.dtype === "float32" &&
  n.inputs[0].dtype === "float32" &&
  look.source.op === "dequantize" &&
  look.source.dtype === "float32" &&
  sizeOf(n.shape) > 0 &&
  layout(n, look) !== null;

export type QuantizedBuffer = "a" | "codes" | "scales" | "values" | "out";

const roundUp = (a: number, b: number): number => Math.ceil(a / b) * b;

export interface QuantizedProduct {
  readonly M: number;
  readonly N: number;
  readonly K: number;
  readonly format: QuantizedFormat;
  /** Elements from a row of the left side to the next, and from one of its columns to the next. */
  readonly strides: readonly number[];
  /** Whether rows of the weight [N, K] are columns of the right side. */
  readonly transposed: boolean;
}

export interface QuantizedPlan {
  readonly main: CommandDesc<QuantizedBuffer>;
  /** What a worker needs. */
  readonly scratchBytes: number;
}

/** The command of a contraction with codes. */
export function planQuantized(shape: KernelShape, n: GNode, a: Strided, b: Strided): QuantizedPlan {
  const [M, N] = n.shape;
  const { format } = attrsOf(b.source);
  const transposed = layout(n, b) === "transposed";
  return planProduct(shape, { M, N, K: n.inputs[0].shape[1], format, strides: a.strides, transposed });
}

/** Elements that lie in a block together, so that parts of a weight should begin and end with whole ones. */
const blockOf = (format: QuantizedFormat): number => (isStored(format) ? storedFormats[format].elements : 1);

/** The command of a product with codes; the weight's parts are made floating on the way. */
export function planProduct(shape: KernelShape, desc: QuantizedProduct): QuantizedPlan {
  const { M, N, K, format, transposed } = desc;
  const columns = transposed ? K : N;
  // a stride of an axis of length 1 means nothing
  const [am, ak] = [M === 1 ? K : desc.strides[0], K === 1 ? 1 : desc.strides[1]];
  const block = blockOf(format);
  const kb = transposed ? roundUp(kBlock(shape, K), block) : kBlock(shape, K);
  const nr = transposed ? shape.nr : Math.max(shape.nr, block);
  const buffers = ["a", "codes", "scales", "values", "out"] as const;
  const params = (mc: number, nc: number): number[] => [
    ...[M, N, K, am, ak, columns, transposed ? 1 : 0, formats[format]],
    ...[mc, nc, kb],
  ];
  if (transposed && M <= shape.skinnyRows)
    return {
      main: {
        fn: "gemm_quantized_skinny",
        rows: Math.ceil(N / DOT_COLUMNS),
        grain: 1,
        buffers,
        params: params(M, DOT_COLUMNS),
      },
      scratchBytes: 4 * (roundUp(K, 16) + M * K),
    };
  const mc = Math.ceil(M / Math.ceil(M / ROWS));
  const down = Math.ceil(M / mc);
  const widest = Math.floor(PANEL_FLOATS / kb / nr) * nr;
  const nc = Math.min(widest, Math.max(2 * nr, roundUp(Math.ceil((N * down) / WANTED_TILES), nr)));
  const even = roundUp(Math.ceil(N / Math.ceil(N / nc)), nr);
  return {
    main: {
      fn: "gemm_quantized",
      rows: down * Math.ceil(N / even),
      grain: 1,
      buffers,
      params: params(mc, even),
    },
    scratchBytes: 4 * (even * kb + Math.max(shape.nr * kb, 8 * even) + ROWS_AT_ONCE * (kb + 16)),
  };
}

/** The command that makes a weight's floats, where something else than a product reads them. */
export function planDequantize(n: GNode): CommandDesc<Exclude<QuantizedBuffer, "a">> {
  const { format, rows, columns } = attrsOf(n);
  return {
    fn: "dequantize",
    rows,
    grain: Math.max(1, Math.ceil(2 ** 14 / Math.max(1, columns))),
    buffers: ["codes", "scales", "values", "out"],
    params: [rows * columns, columns, formats[format]],
  };
}

/** As in stored.c: rows of the weight that are a row of the command. */
const STORED_TILE = 64;

/** y [M, N] = x [M, K] · weightᵀ for a few rows of x, which become integers one phase before. */
export function planStoredLinear(desc: {
  readonly M: number;
  readonly N: number;
  readonly K: number;
  readonly format: StoredFormat;
  /** Elements from a row of x to the next. */
  readonly rowStride: number;
}) {
  const { M, N, K, format, rowStride } = desc;
  const { elements, bytes } = storedFormats[format];
  const blocks = (M * K) / elements;
  const isK = elements === 256;
  return {
    quantize: {
      fn: "stored_quantize",
      rows: blocks,
      grain: Math.ceil(2048 / elements),
      buffers: ["x", "xCodes", "xScales", "xSums"],
      params: [K, M === 1 ? K : rowStride, elements],
    },
    main: {
      fn: "stored_linear",
      rows: Math.ceil(N / STORED_TILE),
      grain: streamGrain((STORED_TILE * K * bytes) / elements),
      buffers: ["xCodes", "xScales", "xSums", "blocks", "y"],
      params: [M, N, K, formats[format]],
    },
    /** Bytes of x's codes, scales and sums (stored.c tells what they are). */
    temporaries: [2 * M * K, (isK ? 4 : 8) * blocks, isK ? 64 * blocks : 64],
  } as const;
}
