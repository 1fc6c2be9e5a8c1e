/**
 * Convolution over channels-last tensors, and its two gradients as composites of their own so that a backend can have
 * a template for each. Any number of spatial axes. NCHW is the API's affair: it permutes (a view).
 * The three are adjoint to each other, so every derivative of one is another of the three.
 */
import { DTypeError, ShapeError } from "../../core/errors.ts";
import { type Shape, showShape, sizeOf } from "../../core/shape.ts";
import { type Attrs, make, type Node, registerOperation } from "../node.ts";
import { cast, contract, expandTo, flip, fold, mul, narrow, pad, permute, reshape, sum, window } from "../ops.ts";
import { windowCount } from "../primitives.ts";
import { attrsOf, expectFloat, wide } from "./check.ts";

/** One entry a spatial axis; `low`, `high` are the zeros added before and behind. */
export type ConvAttrs = {
  readonly stride: readonly number[];
  readonly low: readonly number[];
  readonly high: readonly number[];
  readonly dilation: readonly number[];
  readonly groups: number;
};
export type ConvInputGradientAttrs = ConvAttrs & { readonly size: readonly number[] };
export type ConvWeightGradientAttrs = ConvAttrs & { readonly kernel: readonly number[] };

/** The sizes that a convolution is made of, gathered once. */
interface Geometry {
  readonly batch: number;
  /** Spatial sizes of the input, of the kernel and of the output. */
  readonly size: readonly number[];
  readonly kernel: readonly number[];
  readonly out: readonly number[];
  readonly groups: number;
  /** Channels in and out, per group. */
  readonly inner: number;
  readonly outer: number;
  readonly attrs: ConvAttrs;
}

const range = (from: number, to: number): number[] => Array.from({ length: to - from }, (_, i) => from + i);
const product = (sizes: readonly number[]): number => sizeOf(sizes);

/** Checks the attributes against `rank` spatial axes and gives the output sizes. */
export function spatialOutput(
  name: string,
  size: readonly number[],
  kernel: readonly number[],
  a: Omit<ConvAttrs, "groups">,
): number[] {
  const rank = size.length;
  for (const what of ["stride", "low", "high", "dilation"] as const)
    if (a[what].length !== rank)
      throw new ShapeError(
        `${name}: ${what} has ${a[what].length} entries, expected ${rank} (one a spatial axis of ${showShape(size)})`,
      );
  return size.map((n, i) => {
    if (a.stride[i] < 1 || a.dilation[i] < 1 || a.low[i] < 0 || a.high[i] < 0 || kernel[i] < 1)
      throw new ShapeError(
        `${name}: kernel ${kernel[i]}, stride ${a.stride[i]}, dilation ${a.dilation[i]} must be ≥ 1 and padding ${a.low[i]}, ${a.high[i]} ≥ 0 (spatial axis ${i})`,
      );
    const padded = a.low[i] + n + a.high[i];
    const count = windowCount(padded, kernel[i], a.stride[i], a.dilation[i]);
    if (count < 1)
      throw new ShapeError(
        `${name}: a kernel of ${kernel[i]} (dilation ${a.dilation[i]}) does not fit ${n} positions padded to ${padded} (spatial axis ${i})`,
      );
    return count;
  });
}

function checkOperands(name: string, a: Node, b: Node, groups: number): void {
  expectFloat(name, "the input", a);
  if (a.dtype !== b.dtype)
    throw new DTypeError(`${name}: operands differ in dtype: ${a.dtype} and ${b.dtype}; cast one with .to(dtype)`);
  if (!Number.isInteger(groups) || groups < 1)
    throw new ShapeError(`${name}: groups must be a whole number ≥ 1, got ${groups}`);
}

function expectSpatial(name: string, what: string, x: Node, rank: number): void {
  if (rank < 1 || x.shape.length !== rank + 2)
    throw new ShapeError(
      `${name}: ${what} ${showShape(x.shape)} must have ${Math.max(rank, 1) + 2} axes [batch, spatial…, channels]`,
    );
}

function geometryOf(name: string, x: Shape, weight: Shape, attrs: ConvAttrs): Geometry {
  const rank = x.length - 2;
  const size = x.slice(1, rank + 1);
  const kernel = weight.slice(2);
  const [channels, outer, inner] = [x[rank + 1], weight[0], weight[1]];
  const { groups } = attrs;
  if (channels % groups !== 0 || outer % groups !== 0)
    throw new ShapeError(
      `${name}: ${channels} channels in and ${outer} out must both be divisible by ${groups} groups`,
    );
  if (inner !== channels / groups)
    throw new ShapeError(
      `${name}: weight ${showShape(weight)} takes ${inner} channels a group, the input ${showShape(x)} has ${channels} / ${groups} groups = ${channels / groups}`,
    );
  const out = spatialOutput(name, size, kernel, attrs);
  return { batch: x[0], size, kernel, out, groups, inner, outer: outer / groups, attrs };
}

function expectWeight(name: string, weight: Node, rank: number): void {
  if (weight.shape.length !== rank + 2)
    throw new ShapeError(
      `${name}: weight ${showShape(weight.shape)} must have ${rank + 2} axes [channels out, channels in / groups, kernel…]`,
    );
}

function expectGradient(name: string, gradient: Node, g: Geometry): void {
  const shape = [g.batch, ...g.out, g.groups * g.outer];
  if (showShape(gradient.shape) !== showShape(shape))
    throw new ShapeError(`${name}: the output gradient must be ${showShape(shape)}, got ${showShape(gradient.shape)}`);
}

// ---- operands as matrices -------------------------------------------------------------------------------------------

/** [batch, out…, groups, inner, kernel…]: every window of the padded input, as a view. */
function windows(x: Node, g: Geometry): Node {
  const { stride, low, high, dilation } = g.attrs;
  const padded = pad(x, [0, ...low, 0], [0, ...high, 0]);
  const w = window(padded, range(1, g.size.length + 1), g.kernel, stride, dilation);
  return reshape(w, [g.batch, ...g.out, g.groups, g.inner, ...g.kernel]);
}

/** [groups, positions, kernel… · inner]: the channels stay innermost, as they lie in memory. */
function columns(x: Node, g: Geometry): Node {
  const r = g.size.length;
  const order = [r + 1, ...range(0, r + 1), ...range(r + 3, 2 * r + 3), r + 2];
  return reshape(permute(windows(x, g), order), [g.groups, g.batch * product(g.out), product(g.kernel) * g.inner]);
}

/** [groups, kernel… · inner, outer]. */
function weightMatrix(weight: Node, g: Geometry): Node {
  const r = g.size.length;
  const w = reshape(weight, [g.groups, g.outer, g.inner, ...g.kernel]);
  return reshape(permute(w, [0, ...range(3, r + 3), 2, 1]), [g.groups, product(g.kernel) * g.inner, g.outer]);
}

/** [groups, positions, outer]. */
function gradientMatrix(gradient: Node, g: Geometry): Node {
  const r = g.size.length;
  const split = reshape(gradient, [g.batch, ...g.out, g.groups, g.outer]);
  return reshape(permute(split, [r + 1, ...range(0, r + 1), r + 2]), [g.groups, g.batch * product(g.out), g.outer]);
}

/** A batch of one group is a plain product. */
function product3(a: Node, b: Node): Node {
  if (a.shape[0] !== 1) return contract(a, b);
  return reshape(contract(reshape(a, a.shape.slice(1)), reshape(b, b.shape.slice(1))), [1, a.shape[1], b.shape[2]]);
}

/** One filter a channel: a sum of products along the channels' axis, no matrix in it. */
const isDepthwise = (g: Geometry): boolean => g.groups > 1 && g.inner === 1 && g.outer === 1;

// ---- the rows ---------------------------------------------------------------------------------------------------------

const convGeometry = (name: string, x: Node, weight: Node, attrs: Attrs): Geometry =>
  geometryOf(name, x.shape, weight.shape, attrsOf<ConvAttrs>(attrs));

const convRow = registerOperation({
  group: "composite",
  name: "conv",
  infer: ([x, weight], attrs) => {
    checkOperands("conv", x, weight, attrsOf<ConvAttrs>(attrs).groups);
    expectSpatial("conv", "the input", x, x.shape.length - 2);
    expectWeight("conv", weight, x.shape.length - 2);
    const g = convGeometry("conv", x, weight, attrs);
    return { shape: [g.batch, ...g.out, g.groups * g.outer], dtype: x.dtype };
  },
  decompose: ([x, weight], attrs) => {
    const g = convGeometry("conv", x, weight, attrs);
    const r = g.size.length;
    if (isDepthwise(g)) {
      const taps = reshape(windows(x, g), [g.batch, ...g.out, g.groups, ...g.kernel]);
      const filter = expandTo(reshape(weight, [g.groups, ...g.kernel]), taps.shape);
      return [cast(sum(mul(wide(taps), wide(filter)), range(r + 2, 2 * r + 2)), x.dtype)];
    }
    const y = product3(columns(x, g), weightMatrix(weight, g));
    const split = reshape(y, [g.groups, g.batch, ...g.out, g.outer]);
    return [reshape(permute(split, [...range(1, r + 2), 0, r + 2]), [g.batch, ...g.out, g.groups * g.outer])];
  },
});

function inputGradientGeometry(gradient: Node, weight: Node, attrs: Attrs): Geometry {
  const a = attrsOf<ConvInputGradientAttrs>(attrs);
  const shape = [gradient.shape[0], ...a.size, weight.shape[1] * a.groups];
  return geometryOf("convInputGradient", shape, weight.shape, a);
}

const inputGradientRow = registerOperation({
  group: "composite",
  name: "convInputGradient",
  infer: ([gradient, weight], attrs) => {
    const a = attrsOf<ConvInputGradientAttrs>(attrs);
    checkOperands("convInputGradient", gradient, weight, a.groups);
    expectSpatial("convInputGradient", "the output gradient", gradient, a.size.length);
    expectWeight("convInputGradient", weight, a.size.length);
    const g = inputGradientGeometry(gradient, weight, attrs);
    expectGradient("convInputGradient", gradient, g);
    return { shape: [g.batch, ...g.size, g.groups * g.inner], dtype: gradient.dtype };
  },
  decompose: ([gradient, weight], attrs) => {
    const g = inputGradientGeometry(gradient, weight, attrs);
    return [g.attrs.stride.every((s) => s === 1) ? flipped(gradient, weight, g) : folded(gradient, weight, g)];
  },
});

/** Stride 1: the convolution of the padded gradient with the turned kernel, channels in and out exchanged. */
function flipped(gradient: Node, weight: Node, g: Geometry): Node {
  const r = g.size.length;
  const reach = g.kernel.map((k, i) => g.attrs.dilation[i] * (k - 1));
  const split = reshape(weight, [g.groups, g.outer, g.inner, ...g.kernel]);
  const exchanged = reshape(permute(split, [0, 2, 1, ...range(3, r + 3)]), [g.groups * g.inner, g.outer, ...g.kernel]);
  let x = gradient;
  const low = reach.map((n, i) => n - g.attrs.low[i]);
  const high = reach.map((n, i) => n - g.attrs.high[i]);
  for (let i = 0; i < r; i++) {
    // padding beyond the kernel's reach: outputs that saw zeros only
    const [before, after] = [Math.max(0, -low[i]), Math.max(0, -high[i])];
    x = narrow(x, i + 1, before, x.shape[i + 1] - before - after);
  }
  return make(convRow, [x, flip(exchanged, range(2, r + 2))], {
    stride: g.attrs.stride,
    low: low.map((n) => Math.max(0, n)),
    high: high.map((n) => Math.max(0, n)),
    dilation: g.attrs.dilation,
    groups: g.groups,
  });
}

/** Larger strides: every output's gradient times the kernel, added where windows overlap (no multiplied zeros). */
function folded(gradient: Node, weight: Node, g: Geometry): Node {
  const r = g.size.length;
  const { stride, low, high, dilation } = g.attrs;
  const spread = product3(gradientMatrix(gradient, g), permute(weightMatrix(weight, g), [0, 2, 1]));
  const split = reshape(spread, [g.groups, g.batch, ...g.out, ...g.kernel, g.inner]);
  const order = [...range(1, r + 2), 0, 2 * r + 2, ...range(r + 2, 2 * r + 2)];
  const taps = reshape(permute(split, order), [g.batch, ...g.out, g.groups * g.inner, ...g.kernel]);
  const length = g.size.map((n, i) => low[i] + n + high[i]);
  let x = fold(taps, range(1, r + 1), g.kernel, stride, dilation, length);
  for (let i = 0; i < r; i++) x = narrow(x, i + 1, low[i], g.size[i]);
  return x;
}

function weightGradientGeometry(x: Node, gradient: Node, attrs: Attrs): Geometry {
  const a = attrsOf<ConvWeightGradientAttrs>(attrs);
  const [channels, outer] = [x.shape[x.shape.length - 1], gradient.shape[gradient.shape.length - 1]];
  return geometryOf("convWeightGradient", x.shape, [outer, Math.floor(channels / a.groups), ...a.kernel], a);
}

const weightGradientRow = registerOperation({
  group: "composite",
  name: "convWeightGradient",
  infer: ([x, gradient], attrs) => {
    const a = attrsOf<ConvWeightGradientAttrs>(attrs);
    checkOperands("convWeightGradient", x, gradient, a.groups);
    expectSpatial("convWeightGradient", "the input", x, a.kernel.length);
    expectSpatial("convWeightGradient", "the output gradient", gradient, a.kernel.length);
    const g = weightGradientGeometry(x, gradient, attrs);
    expectGradient("convWeightGradient", gradient, g);
    return { shape: [g.groups * g.outer, g.inner, ...g.kernel], dtype: x.dtype };
  },
  decompose: ([x, gradient], attrs) => {
    const g = weightGradientGeometry(x, gradient, attrs);
    const r = g.size.length;
    const shape = [g.groups * g.outer, g.inner, ...g.kernel];
    if (isDepthwise(g)) {
      const taps = reshape(windows(x, g), [g.batch, ...g.out, g.groups, ...g.kernel]);
      const spread = expandTo(reshape(gradient, [...gradient.shape, ...g.kernel.map(() => 1)]), taps.shape);
      return [reshape(cast(sum(mul(wide(taps), wide(spread)), range(0, r + 1)), x.dtype), shape)];
    }
    const w = product3(permute(columns(x, g), [0, 2, 1]), gradientMatrix(gradient, g));
    const split = reshape(w, [g.groups, ...g.kernel, g.inner, g.outer]);
    return [reshape(permute(split, [0, r + 2, r + 1, ...range(1, r + 1)]), shape)];
  },
});

// ---- builders -----------------------------------------------------------------------------------------------------------

const plain = ({ stride, low, high, dilation, groups }: ConvAttrs): ConvAttrs => ({
  stride,
  low,
  high,
  dilation,
  groups,
});

/**
 * x [N, spatial…, Cin] with weight [Cout, Cin / groups, kernel…] → [N, out…, Cout]
 * (torch.nn.functional.conv1d, conv2d over channels-last).
 */
export const conv = (x: Node, weight: Node, attrs: ConvAttrs): Node => make(convRow, [x, weight], plain(attrs));

/**
 * The gradient of `conv` with respect to its input of spatial `size`; as a forward operation, the transposed
 * convolution (torch.nn.functional.conv_transpose2d).
 */
export const convInputGradient = (
  gradient: Node,
  weight: Node,
  attrs: ConvAttrs & { readonly size: readonly number[] },
): Node => make(inputGradientRow, [gradient, weight], { ...plain(attrs), size: attrs.size });

/** The gradient of `conv` with respect to its weight of spatial size `kernel`. */
export const convWeightGradient = (
  x: Node,
  gradient: Node,
  attrs: ConvAttrs & { readonly kernel: readonly number[] },
): Node => make(weightGradientRow, [x, gradient], { ...plain(attrs), kernel: attrs.kernel });
