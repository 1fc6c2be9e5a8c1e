/**
 * Pooling over channels-last images [N, H, W, C]: maxPool2d, its gradient, avgPool2d.
 * One-dimensional pooling is the API's affair: it gives the image a height of 1.
 */
import { dtypes, isFloat } from "../../core/dtype.ts";
import { DTypeError, ShapeError } from "../../core/errors.ts";
import { showShape } from "../../core/shape.ts";
import { type Attrs, make, type Node, registerOperation } from "../node.ts";
import {
  argmax,
  cast,
  div,
  eq,
  expandTo,
  fold,
  iota,
  maximum,
  minimum,
  mul,
  narrow,
  pad,
  reduceMax,
  reshape,
  sub,
  sum,
  toFloat,
  unsqueeze,
  where,
  window,
} from "../ops.ts";
import { attrsOf, expectFloat, expectRank, expectShape, wide } from "./check.ts";
import { spatialOutput } from "./conv.ts";

/** One entry for height and one for width. */
export type PoolAttrs = {
  readonly kernel: readonly number[];
  readonly stride: readonly number[];
  readonly low: readonly number[];
  readonly high: readonly number[];
  readonly dilation: readonly number[];
  /** Whether a last window that overhangs is kept (torch's ceil_mode). */
  readonly ceilMode: boolean;
};
export type AvgPoolAttrs = Omit<PoolAttrs, "dilation"> & {
  readonly countIncludePad: boolean;
  /** 0: the number of positions in the window. */
  readonly divisor: number;
};

/** Positions added behind, with what `ceilMode` adds: a last window must begin inside the input or the padding before it. */
function highWithCeil(size: readonly number[], a: PoolAttrs): number[] {
  return size.map((n, i) => {
    if (!a.ceilMode) return a.high[i];
    const reach = a.dilation[i] * (a.kernel[i] - 1) + 1;
    const [stride, padded] = [a.stride[i], a.low[i] + n + a.high[i]];
    let count = Math.ceil((padded - reach) / stride) + 1;
    if ((count - 1) * stride >= n + a.low[i]) count--;
    return Math.max(a.high[i], (count - 1) * stride + reach - a.low[i] - n);
  });
}

interface Pool {
  readonly kernel: readonly number[];
  readonly stride: readonly number[];
  readonly low: readonly number[];
  readonly high: readonly number[];
  readonly dilation: readonly number[];
  readonly out: readonly number[];
}

function poolOf(name: string, x: Node, a: PoolAttrs): Pool {
  expectRank(name, "the input", x, 4, "[batch, height, width, channels]");
  const size = x.shape.slice(1, 3);
  if (a.kernel.length !== 2)
    throw new ShapeError(`${name}: the kernel must have 2 entries (height, width), got ${showShape(a.kernel)}`);
  a.kernel.forEach((k, i) => {
    if (a.low[i] * 2 > k || a.high[i] * 2 > k)
      throw new ShapeError(
        `${name}: padding ${a.low[i]}, ${a.high[i]} is more than half the kernel's ${k} positions (spatial axis ${i})`,
      );
  });
  const high = highWithCeil(size, a);
  const out = spatialOutput(name, size, a.kernel, { ...a, high });
  return { kernel: a.kernel, stride: a.stride, low: a.low, high, dilation: a.dilation, out };
}

/** [N, OH, OW, C, kh · kw]: the windows of the image padded with `value`. */
function windows(x: Node, p: Pool, value: number): Node {
  const padded = pad(x, [0, ...p.low, 0], [0, ...p.high, 0], value);
  const w = window(padded, [1, 2], p.kernel, p.stride, p.dilation);
  return reshape(w, [...w.shape.slice(0, 4), p.kernel[0] * p.kernel[1]]);
}

const lowest = (x: Node): number =>
  isFloat(x.dtype) ? Number.NEGATIVE_INFINITY : (dtypes[x.dtype].range as readonly [number, number])[0];

const outputShape = (x: Node, p: Pool): number[] => [x.shape[0], ...p.out, x.shape[3]];

const maxPoolRow = registerOperation({
  group: "composite",
  name: "maxPool2d",
  infer: ([x], attrs) => {
    if (x.dtype === "bool") throw new DTypeError('maxPool2d: does not take bool; cast it with .to("float32")');
    return { shape: outputShape(x, poolOf("maxPool2d", x, attrsOf<PoolAttrs>(attrs))), dtype: x.dtype };
  },
  decompose: ([x], attrs) => {
    const p = poolOf("maxPool2d", x, attrsOf<PoolAttrs>(attrs));
    return [reduceMax(windows(x, p, lowest(x)), 4)];
  },
});

const maxPoolGradientRow = registerOperation({
  group: "composite",
  name: "maxPool2dGradient",
  infer: ([x, gradient], attrs) => {
    const p = poolOf("maxPool2dGradient", x, attrsOf<PoolAttrs>(attrs));
    expectFloat("maxPool2dGradient", "the input", x);
    expectShape("maxPool2dGradient", "the output gradient", gradient, outputShape(x, p), "what the pooling gives");
    return { shape: x.shape, dtype: gradient.dtype };
  },
  decompose: ([x, gradient], attrs) => {
    const p = poolOf("maxPool2dGradient", x, attrsOf<PoolAttrs>(attrs));
    const w = windows(x, p, lowest(x));
    const first = expandTo(argmax(w, 4, true), w.shape);
    const spread = where(eq(iota(w.shape, 4), first), expandTo(unsqueeze(gradient, 4), w.shape), 0);
    return [unwindow(spread, x, p)];
  },
});

/** Adds windows [N, OH, OW, C, kh · kw] where they overlap and drops the padding. */
function unwindow(w: Node, x: Node, p: Pool): Node {
  const taps = reshape(w, [...w.shape.slice(0, 4), ...p.kernel]);
  const length = [0, 1].map((i) => p.low[i] + x.shape[i + 1] + p.high[i]);
  const padded = fold(taps, [1, 2], p.kernel, p.stride, p.dilation, length);
  return narrow(narrow(padded, 1, p.low[0], x.shape[1]), 2, p.low[1], x.shape[2]);
}

const asPool = (a: AvgPoolAttrs): PoolAttrs => ({ ...a, dilation: [1, 1] });

/** How many positions of each window count, [1, OH, OW, 1]; a number where all windows agree. */
function counts(x: Node, a: AvgPoolAttrs, p: Pool): Node | number {
  if (a.divisor !== 0) return a.divisor;
  const padded = [0, 1].some((i) => p.low[i] > 0 || p.high[i] > 0);
  const overhangs = [0, 1].some((i) => p.high[i] > a.high[i]);
  if (!padded || (a.countIncludePad && !overhangs)) return p.kernel[0] * p.kernel[1];
  const shape = [1, ...p.out, 1];
  const along = (axis: 0 | 1): Node => {
    const n = x.shape[axis + 1];
    // window positions in input coordinates; what ceilMode overhangs never counts
    const start = sub(mul(iota(shape, axis + 1), p.stride[axis]), p.low[axis]);
    const end = minimum(sub(start, -p.kernel[axis]), n + (a.countIncludePad ? a.high[axis] : 0));
    return sub(end, a.countIncludePad ? start : maximum(start, 0));
  };
  return mul(along(0), along(1));
}

const avgPoolRow = registerOperation({
  group: "composite",
  name: "avgPool2d",
  infer: ([x], attrs) => {
    expectFloat("avgPool2d", "the input", x);
    return { shape: outputShape(x, poolOf("avgPool2d", x, asPool(attrsOf<AvgPoolAttrs>(attrs)))), dtype: x.dtype };
  },
  decompose: ([x], attrs) => {
    const a = attrsOf<AvgPoolAttrs>(attrs);
    const p = poolOf("avgPool2d", x, asPool(a));
    const total = sum(windows(wide(x), p, 0), 4);
    const count = counts(x, a, p);
    return [cast(div(total, typeof count === "number" ? count : cast(count, total.dtype)), x.dtype)];
  },
});

const poolAttrs = (a: PoolAttrs): Attrs => ({
  kernel: a.kernel,
  stride: a.stride,
  low: a.low,
  high: a.high,
  dilation: a.dilation,
  ceilMode: a.ceilMode,
});

/** The maximum of each window of x [N, H, W, C] (torch.nn.functional.max_pool2d); padding never wins. */
export const maxPool2d = (x: Node, attrs: PoolAttrs): Node => make(maxPoolRow, [x], poolAttrs(attrs));

/** Each output's gradient at the first maximum of its window, as torch sends it. */
export const maxPool2dGradient = (x: Node, gradient: Node, attrs: PoolAttrs): Node =>
  make(maxPoolGradientRow, [x, gradient], poolAttrs(attrs));

/** The mean of each window of x [N, H, W, C] (torch.nn.functional.avg_pool2d). */
export const avgPool2d = (x: Node, attrs: AvgPoolAttrs): Node => {
  const { kernel, stride, low, high, ceilMode, countIncludePad, divisor } = attrs;
  return make(avgPoolRow, [toFloat(x)], { kernel, stride, low, high, ceilMode, countIncludePad, divisor });
};
