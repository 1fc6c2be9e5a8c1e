/**
 * Convolution and pooling with PyTorch's layouts: batch, channels, then space; the batch may be left out. The composites
 * work with channels last; the permutations here are views.
 */
import { ShapeError } from "../../core/errors.ts";
import { showShape } from "../../core/shape.ts";
import { lowered } from "../../graph/autocast.ts";
import * as composites from "../../graph/composites/index.ts";
import type { Node } from "../../graph/node.ts";
import * as ops from "../../graph/ops.ts";
import { Tensor } from "../../tensor/tensor.ts";

/** One number for every spatial axis, or one for each. */
export type Sizes = number | readonly number[];

export interface ConvOptions {
  readonly stride?: Sizes;
  /** Zeros added on both sides; "same" keeps the size (stride 1 only), "valid" adds none. */
  readonly padding?: Sizes | "same" | "valid";
  readonly dilation?: Sizes;
  readonly groups?: number;
}
export interface ConvTransposeOptions {
  readonly stride?: Sizes;
  readonly padding?: Sizes;
  /** Added to one side of the output's size, to choose among those that the stride would merge. */
  readonly outputPadding?: Sizes;
  readonly dilation?: Sizes;
  readonly groups?: number;
}
export interface PoolOptions {
  /** Default: the kernel's size. */
  readonly stride?: Sizes;
  readonly padding?: Sizes;
  /** Keep a last window that overhangs. */
  readonly ceilMode?: boolean;
}
export interface MaxPoolOptions extends PoolOptions {
  readonly dilation?: Sizes;
}
export interface AvgPoolOptions extends PoolOptions {
  /** Whether padding counts in the mean. Default: true. */
  readonly countIncludePad?: boolean;
  /** What the sums are divided by, instead of the number of positions. */
  readonly divisorOverride?: number;
}

function sizesOf(name: string, what: string, sizes: Sizes, rank: number): readonly number[] {
  const list = typeof sizes === "number" ? new Array<number>(rank).fill(sizes) : sizes;
  if (list.length !== rank || !list.every((n) => Number.isInteger(n)))
    throw new ShapeError(`${name}: ${what} must be a whole number or ${rank} of them, got ${JSON.stringify(sizes)}`);
  return list;
}

const axesOf = (rank: number): number[] => Array.from({ length: rank }, (_, i) => i);
/** [N, C, space…] → [N, space…, C], and back. */
const toLast = (x: Node, rank: number): Node => ops.permute(x, [0, ...axesOf(rank).map((i) => i + 2), 1]);
const toFirst = (x: Node, rank: number): Node => ops.permute(x, [0, rank + 1, ...axesOf(rank).map((i) => i + 1)]);

/** Runs `f` on the batch with channels last; an input without a batch axis gets one for the time. */
function spatially(name: string, { node }: Tensor, rank: number, f: (x: Node) => Node): Tensor {
  const batched = node.shape.length === rank + 2;
  if (!batched && node.shape.length !== rank + 1)
    throw new ShapeError(
      `${name}: the input must be [batch, channels, ${["length", "height, width", "depth, height, width"][rank - 1]}] (or without batch), got ${showShape(node.shape)}`,
    );
  const y = toFirst(f(toLast(batched ? node : ops.unsqueeze(node, 0), rank)), rank);
  return new Tensor(batched ? y : ops.squeeze(y, 0));
}

function withBias(name: string, y: Node, bias: Tensor | null | undefined): Node {
  if (!bias) return y;
  const channels = y.shape[y.shape.length - 1];
  if (bias.node.shape.length !== 1 || bias.node.shape[0] !== channels)
    throw new ShapeError(
      `${name}: the bias ${showShape(bias.shape)} must be [${channels}], one a channel that comes out`,
    );
  return ops.add(y, lowered(bias.node));
}

function convolve(
  name: string,
  rank: number,
  x: Tensor,
  weight: Tensor,
  bias: Tensor | null | undefined,
  o: ConvOptions,
): Tensor {
  const w = weight.node;
  if (w.shape.length !== rank + 2)
    throw new ShapeError(
      `${name}: the weight must be [channels out, channels in / groups, ${rank} kernel sizes], got ${showShape(w.shape)}`,
    );
  const stride = sizesOf(name, "stride", o.stride ?? 1, rank);
  const dilation = sizesOf(name, "dilation", o.dilation ?? 1, rank);
  const reach = dilation.map((d, i) => d * (w.shape[i + 2] - 1));
  let low: readonly number[];
  let high: readonly number[];
  if (o.padding === "same") {
    if (stride.some((s) => s !== 1))
      throw new ShapeError(
        `${name}: padding "same" needs stride 1, got ${JSON.stringify(o.stride)}; give the padding in numbers`,
      );
    low = reach.map((n) => Math.floor(n / 2));
    high = reach.map((n, i) => n - low[i]);
  } else low = high = sizesOf(name, "padding", o.padding === "valid" ? 0 : (o.padding ?? 0), rank);
  const attrs = { stride, low, high, dilation, groups: o.groups ?? 1 };
  return spatially(name, x, rank, (y) => withBias(name, composites.conv(lowered(y), lowered(w), attrs), bias));
}

/** x [N, Cin, L] with weight [Cout, Cin / groups, K] → [N, Cout, Lout] (torch.nn.functional.conv1d). */
export const conv1d = (x: Tensor, weight: Tensor, bias?: Tensor | null, options: ConvOptions = {}): Tensor =>
  convolve("conv1d", 1, x, weight, bias, options);
/** x [N, Cin, H, W] with weight [Cout, Cin / groups, KH, KW] → [N, Cout, Hout, Wout] (torch.nn.functional.conv2d). */
export const conv2d = (x: Tensor, weight: Tensor, bias?: Tensor | null, options: ConvOptions = {}): Tensor =>
  convolve("conv2d", 2, x, weight, bias, options);
/** As conv2d with one more spatial axis (torch.nn.functional.conv3d). */
export const conv3d = (x: Tensor, weight: Tensor, bias?: Tensor | null, options: ConvOptions = {}): Tensor =>
  convolve("conv3d", 3, x, weight, bias, options);

function convolveTransposed(
  name: string,
  rank: number,
  x: Tensor,
  weight: Tensor,
  bias: Tensor | null | undefined,
  o: ConvTransposeOptions,
): Tensor {
  const w = weight.node;
  if (w.shape.length !== rank + 2)
    throw new ShapeError(
      `${name}: the weight must be [channels in, channels out / groups, ${rank} kernel sizes], got ${showShape(w.shape)}`,
    );
  const stride = sizesOf(name, "stride", o.stride ?? 1, rank);
  const padding = sizesOf(name, "padding", o.padding ?? 0, rank);
  const dilation = sizesOf(name, "dilation", o.dilation ?? 1, rank);
  const extra = sizesOf(name, "outputPadding", o.outputPadding ?? 0, rank);
  if (extra.some((e, i) => e < 0 || e >= Math.max(stride[i], dilation[i])))
    throw new ShapeError(
      `${name}: outputPadding ${showShape(extra)} must be below the stride ${showShape(stride)} or the dilation`,
    );
  return spatially(name, x, rank, (y) => {
    const size = stride.map(
      (s, i) => (y.shape[i + 1] - 1) * s - 2 * padding[i] + dilation[i] * (w.shape[i + 2] - 1) + extra[i] + 1,
    );
    const attrs = { stride, low: padding, high: padding, dilation, groups: o.groups ?? 1, size };
    return withBias(name, composites.convInputGradient(lowered(y), lowered(w), attrs), bias);
  });
}

/** x [N, Cin, H, W] with weight [Cin, Cout / groups, KH, KW] → the adjoint of conv2d (torch.nn.functional.conv_transpose2d). */
export const convTranspose2d = (
  x: Tensor,
  weight: Tensor,
  bias?: Tensor | null,
  options: ConvTransposeOptions = {},
): Tensor => convolveTransposed("convTranspose2d", 2, x, weight, bias, options);
/** The adjoint of conv1d (torch.nn.functional.conv_transpose1d). */
export const convTranspose1d = (
  x: Tensor,
  weight: Tensor,
  bias?: Tensor | null,
  options: ConvTransposeOptions = {},
): Tensor => convolveTransposed("convTranspose1d", 1, x, weight, bias, options);

// ---- pooling ----------------------------------------------------------------------------------------------------------

/** The composites pool over height and width; one spatial axis gets a height of 1. */
function pooled(name: string, rank: 1 | 2, x: Tensor, f: (x: Node) => Node): Tensor {
  return spatially(name, x, rank, (y) => (rank === 2 ? f(y) : ops.squeeze(f(ops.unsqueeze(y, 1)), 1)));
}
const lifted = (rank: 1 | 2, sizes: readonly number[], one: number): readonly number[] =>
  rank === 2 ? sizes : [one, ...sizes];

function maxPool(name: string, rank: 1 | 2, x: Tensor, kernelSize: Sizes, o: MaxPoolOptions): Tensor {
  const padding = lifted(rank, sizesOf(name, "padding", o.padding ?? 0, rank), 0);
  const attrs = {
    kernel: lifted(rank, sizesOf(name, "kernelSize", kernelSize, rank), 1),
    stride: lifted(rank, sizesOf(name, "stride", o.stride ?? kernelSize, rank), 1),
    low: padding,
    high: padding,
    dilation: lifted(rank, sizesOf(name, "dilation", o.dilation ?? 1, rank), 1),
    ceilMode: o.ceilMode ?? false,
  };
  return pooled(name, rank, x, (y) => composites.maxPool2d(y, attrs));
}
/** The maximum of each window of x [N, C, H, W] (torch.nn.functional.max_pool2d). */
export const maxPool2d = (x: Tensor, kernelSize: Sizes, options: MaxPoolOptions = {}): Tensor =>
  maxPool("maxPool2d", 2, x, kernelSize, options);
/** The maximum of each window of x [N, C, L] (torch.nn.functional.max_pool1d). */
export const maxPool1d = (x: Tensor, kernelSize: Sizes, options: MaxPoolOptions = {}): Tensor =>
  maxPool("maxPool1d", 1, x, kernelSize, options);

function avgPool(name: string, rank: 1 | 2, x: Tensor, kernelSize: Sizes, o: AvgPoolOptions): Tensor {
  const padding = lifted(rank, sizesOf(name, "padding", o.padding ?? 0, rank), 0);
  if (o.divisorOverride === 0) throw new ShapeError(`${name}: divisorOverride must not be 0`);
  const attrs = {
    kernel: lifted(rank, sizesOf(name, "kernelSize", kernelSize, rank), 1),
    stride: lifted(rank, sizesOf(name, "stride", o.stride ?? kernelSize, rank), 1),
    low: padding,
    high: padding,
    ceilMode: o.ceilMode ?? false,
    countIncludePad: o.countIncludePad ?? true,
    divisor: o.divisorOverride ?? 0,
  };
  return pooled(name, rank, x, (y) => composites.avgPool2d(y, attrs));
}
/** The mean of each window of x [N, C, H, W] (torch.nn.functional.avg_pool2d). */
export const avgPool2d = (x: Tensor, kernelSize: Sizes, options: AvgPoolOptions = {}): Tensor =>
  avgPool("avgPool2d", 2, x, kernelSize, options);
/** The mean of each window of x [N, C, L] (torch.nn.functional.avg_pool1d). */
export const avgPool1d = (x: Tensor, kernelSize: Sizes, options: AvgPoolOptions = {}): Tensor =>
  avgPool("avgPool1d", 1, x, kernelSize, options);

/** The mean of `count` stretches of one axis, as equal as whole numbers allow; stretches may overlap by one. */
function averages(x: Node, axis: number, count: number): Node {
  const n = x.shape[axis];
  if (count === n) return x;
  const parts = Array.from({ length: count }, (_, i) => {
    const start = Math.floor((i * n) / count);
    return ops.mean(ops.narrow(x, axis, start, Math.ceil(((i + 1) * n) / count) - start), axis, { keepdim: true });
  });
  return ops.concat(parts, axis);
}
/** Means over a grid of `outputSize` cells, whatever the size of x [N, C, H, W] (torch.nn.functional.adaptive_avg_pool2d). */
export function adaptiveAvgPool2d({ node: x }: Tensor, outputSize: Sizes): Tensor {
  const [height, width] = sizesOf("adaptiveAvgPool2d", "outputSize", outputSize, 2);
  const n = x.shape.length;
  if (n !== 3 && n !== 4)
    throw new ShapeError(
      `adaptiveAvgPool2d: the input must be [batch, channels, height, width], got ${showShape(x.shape)}`,
    );
  if (height === 1 && width === 1) return new Tensor(ops.mean(x, [n - 2, n - 1], { keepdim: true }));
  return new Tensor(averages(averages(x, n - 2, height), n - 1, width));
}
