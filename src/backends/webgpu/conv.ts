/**
 * Convolutions of two spatial axes and their gradients as products whose operands are read through windows (implicit
 * GEMM; Chetlur et al. 2014, cuDNN), channels last: no matrix of windows lies in memory. Here is what rows, columns and
 * depths of the three products mean; tiles are matmul.ts', the form for software adapters conv-lanes.ts'.
 *
 *   conv                [positions out, channels out]        depth: taps × channels in
 *   convInputGradient   [positions in, channels in]          depth: taps × channels out
 *   convWeightGradient  [channels out, taps × channels in]   depth: positions out
 */
import type { GNode } from "../../compiler/lower.ts";
import type { Strided } from "../../compiler/views.ts";
import type { Node } from "../../graph/node.ts";
import type { Sizes } from "./matmul.ts";

export interface Geometry {
  readonly kind: ConvKind;
  readonly batch: number;
  /** Input [H, W, Cin], output [OH, OW, Cout]. */
  readonly H: number;
  readonly W: number;
  readonly Cin: number;
  readonly OH: number;
  readonly OW: number;
  readonly Cout: number;
  readonly kernel: readonly number[];
  readonly stride: readonly number[];
  readonly low: readonly number[];
  readonly dilation: readonly number[];
}

export type ConvKind = "conv" | "convInputGradient" | "convWeightGradient";
const kinds: readonly string[] = ["conv", "convInputGradient", "convWeightGradient"];
export const isConv = (op: string): op is ConvKind => kinds.includes(op);

/** Two spatial axes, one group, float32. */
export const plainConv = (n: Node): boolean =>
  n.dtype === "float32" && n.inputs[0].shape.length === 4 && n.attrs["groups"] === 1;

export function geometryOf(n: GNode): Geometry {
  const kind = n.op as ConvKind;
  const { stride, low, dilation } = n.attrs as unknown as Record<"stride" | "low" | "dilation", number[]>;
  const [first, second] = n.inputs.map((i) => i.shape);
  const x = kind === "convInputGradient" ? n.shape : first;
  const y = kind === "conv" ? n.shape : kind === "convInputGradient" ? first : second;
  const kernel = (kind === "convWeightGradient" ? n.shape : second).slice(2);
  const [batch, H, W, Cin] = x;
  return { kind, batch, H, W, Cin, OH: y[1], OW: y[2], Cout: y[3], kernel, stride, low, dilation };
}

export function convSizes(g: Geometry): Sizes {
  const taps = g.kernel[0] * g.kernel[1];
  const [inside, outside] = [g.batch * g.H * g.W, g.batch * g.OH * g.OW];
  if (g.kind === "conv") return { batch: [], M: outside, N: g.Cout, K: taps * g.Cin };
  if (g.kind === "convInputGradient") return { batch: [], M: inside, N: g.Cin, K: taps * g.Cout };
  return { batch: [], M: g.Cout, N: taps * g.Cin, K: outside };
}

/** Where the product's element at `row` and `column` is stored. */
export function convStore({ kind, Cin, Cout, kernel }: Geometry): string {
  if (kind === "conv") return `row * ${Cout} + column`;
  if (kind === "convInputGradient") return `row * ${Cin} + column`;
  const taps = kernel[0] * kernel[1];
  return `(row * ${Cin} + column % ${Cin}) * ${taps} + column / ${Cin}`;
}

/** The input's element under tap (ky, kx) of output position p, channel c; 0 in the padding. */
const inputUnder = (
  g: Geometry,
  x: string,
): string => `  let y = p / ${g.OW} % ${g.OH} * ${g.stride[0]} + ky * ${g.dilation[0]} - ${g.low[0]};
  let x = p % ${g.OW} * ${g.stride[1]} + kx * ${g.dilation[1]} - ${g.low[1]};
  if (y < 0 || y >= ${g.H} || x < 0 || x >= ${g.W}) { return 0f; }
  return ${x}[((p / ${g.OH * g.OW} * ${g.H} + y) * ${g.W} + x) * ${g.Cin} + c];`;

/** The output's gradient that tap (ky, kx) brings to input position p, channel c; 0 where it brings none. */
const gradientOver = (
  g: Geometry,
  dy: string,
): string => `  let y = p / ${g.W} % ${g.H} + ${g.low[0]} - ky * ${g.dilation[0]};
  let x = p % ${g.W} + ${g.low[1]} - kx * ${g.dilation[1]};
  if (y < 0 || y % ${g.stride[0]} != 0 || y / ${g.stride[0]} >= ${g.OH}) { return 0f; }
  if (x < 0 || x % ${g.stride[1]} != 0 || x / ${g.stride[1]} >= ${g.OW}) { return 0f; }
  return ${dy}[((p / ${g.H * g.W} * ${g.OH} + y / ${g.stride[0]}) * ${g.OW} + x / ${g.stride[1]}) * ${g.Cout} + c];`;

/** Tap and channel of a number counted over taps × channels. */
const splitTap = (of: string, channels: number, width: number): string =>
  `  let c = ${of} % ${channels}; let kx = ${of} / ${channels} % ${width}; let ky = ${of} / ${channels * width};\n`;

/** The functions that read the product's operands: `read_a(row, k)` and `read_b(column, k)`. */
export function convReads(g: Geometry, a: string, b: string, weight: Strided): readonly string[] {
  const reader = (name: string, p: string, k: string, body: string): string =>
    `fn ${name}(${p}: i32, ${k}: i32) -> f32 {\n${body}\n}`;
  const width = g.kernel[1];
  if (g.kind === "convWeightGradient")
    return [
      reader("read_a", "row", "p", `  return ${a}[p * ${g.Cout} + row];`),
      reader("read_b", "column", "p", splitTap("column", g.Cin, width) + inputUnder(g, b)),
    ];
  const { offset, strides } = weight;
  const channels = g.kind === "conv" ? g.Cin : g.Cout;
  const [out, into] = g.kind === "conv" ? ["column", "c"] : ["c", "column"];
  const w = `  return ${b}[${offset} + ${out} * ${strides[0]} + ${into} * ${strides[1]} + ky * ${strides[2]} + kx * ${strides[3]}];`;
  return [
    reader(
      "read_a",
      "p",
      "k",
      splitTap("k", channels, width) + (g.kind === "conv" ? inputUnder(g, a) : gradientOver(g, a)),
    ),
    reader("read_b", "column", "k", splitTap("k", channels, width) + w),
  ];
}
