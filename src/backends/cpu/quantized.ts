/**
 * Products with a weight in few bits (runtime/quantized.c): which contraction takes a `dequantize` node's codes instead of its floats, and the
 * commands of that. Everything depends on shapes alone.
 */
import type { GNode } from "../../compiler/lower.ts";
import type { Strided } from "../../compiler/views.ts";
import { sizeOf } from "../../core/shape.ts";
import type { DequantizeAttrs, QuantizedFormat } from "../../graph/composites/dequantize.ts";
import { type CommandDesc, kBlock } from "./contract.ts";
import type { KernelShape } from "./native.ts";

/** The numbers of the formats in runtime/quantized.c. */
const formats: Readonly<Record<QuantizedFormat, number>> = { nf4: 0, int8: 1 };

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

/** The command of the product, and the scratch that a worker needs. */
export function planQuantized(
  shape: KernelShape,
  n: GNode,
  a: Strided,
  b: Strided,
): { readonly main: CommandDesc<QuantizedBuffer>; readonly scratchBytes: number } {
  const [M, N] = n.shape;
  const K = n.inputs[0].shape[1];
  const { format, columns } = attrsOf(b.source);
  const transposed = layout(n, b) === "transposed";
  // a stride of an axis of length 1 means nothing
  const [am, ak] = [M === 1 ? K : a.strides[0], K === 1 ? 1 : a.strides[1]];
  const kb = kBlock(shape, K);
  const { nr } = shape;
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
    scratchBytes: 4 * (even * kb + Math.max(nr * kb, 8 * even) + ROWS_AT_ONCE * (kb + 16)),
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
