/**
 * Initialisers (torch.nn.init): they give a tensor new contents and return it. On a parameter they replace the value that it
 * was made with; numbers come from the default generator unless another is given.
 */

import { allocateRaw, encode } from "../core/dtype.ts";
import { NablaError, ShapeError } from "../core/errors.ts";
import { Rng } from "../core/rng.ts";
import { type Shape, showShape, sizeOf } from "../core/shape.ts";
import { type Node, setGradEnabled } from "../graph/node.ts";
import * as ops from "../graph/ops.ts";
import { eye, fromRaw, full, ones, zeros } from "../tensor/create.ts";
import { nodeOf } from "../tensor/operand.ts";
import { defaultGenerator, type Generator, type RandomOptions, rand, randn } from "../tensor/random.ts";
import { setData, Tensor } from "../tensor/tensor.ts";

export interface InitOptions {
  readonly generator?: Generator;
}

export type Nonlinearity = "linear" | "sigmoid" | "tanh" | "relu" | "leakyRelu" | "selu";
export type FanMode = "fanIn" | "fanOut";

/** Where and of which dtype a fresh value for x is made. */
const like = (x: Tensor, options: InitOptions): RandomOptions => ({
  dtype: x.dtype,
  ...(x.node.device === "" ? {} : { device: x.node.device }),
  ...options,
});

function unrecorded<T>(record: () => T): T {
  const before = setGradEnabled(false);
  try {
    return record();
  } finally {
    setGradEnabled(before);
  }
}

function give<T extends Tensor>(x: T, value: () => Tensor): T {
  setData(x, unrecorded(value));
  return x;
}

/** Uniform between `a` and `b`, of any shape, as a new tensor. */
export const uniformLike = (shape: Shape, a: number, b: number, options: RandomOptions = {}): Tensor =>
  unrecorded(() =>
    rand(shape, options)
      .mul(b - a)
      .add(a),
  );

/** Uniform between `a` and `b`. */
export const uniform_ = <T extends Tensor>(x: T, a = 0, b = 1, options: InitOptions = {}): T =>
  give(x, () => uniformLike(x.shape, a, b, like(x, options)));
/** Normal. */
export const normal_ = <T extends Tensor>(x: T, mean = 0, std = 1, options: InitOptions = {}): T =>
  give(x, () => randn(x.shape, like(x, options)).mul(std).add(mean));
export const constant_ = <T extends Tensor>(x: T, value: number): T => give(x, () => full(x.shape, value, like(x, {})));
export const ones_ = <T extends Tensor>(x: T): T => give(x, () => ones(x.shape, like(x, {})));
export const zeros_ = <T extends Tensor>(x: T): T => give(x, () => zeros(x.shape, like(x, {})));
/** The identity matrix; x has two axes. */
export function eye_<T extends Tensor>(x: T): T {
  if (x.ndim !== 2) throw new ShapeError(`eye_: needs a matrix, got ${showShape(x.shape)}`);
  return give(x, () => eye(x.shape[0], x.shape[1], like(x, {})));
}

/**
 * erf⁻¹ in float64 precision: Winitzki's approximation (2008), refined by three steps of Newton's method.
 */
function inverseErf(y: Node): Node {
  const a = 0.147;
  const log = ops.log(ops.mul(ops.sub(1, y), ops.add(1, y)));
  const mid = ops.add(ops.mul(log, 0.5), 2 / (Math.PI * a));
  let x = ops.mul(ops.sign(y), ops.sqrt(ops.sub(ops.sqrt(ops.sub(ops.mul(mid, mid), ops.div(log, a))), mid)));
  for (let i = 0; i < 3; i++) {
    const slope = ops.mul(ops.exp(ops.neg(ops.mul(x, x))), 2 / Math.sqrt(Math.PI));
    x = ops.sub(x, ops.div(ops.sub(ops.erf(x), y), slope));
  }
  return x;
}

/** Normal, cut off at `a` and `b` (absolute values, not standard deviations), by inverting the distribution function. */
export function truncNormal_<T extends Tensor>(x: T, mean = 0, std = 1, a = -2, b = 2, options: InitOptions = {}): T {
  if (!(a < b && std > 0))
    throw new NablaError(`truncNormal_: needs a < b and std > 0, got a ${a}, b ${b}, std ${std}`);
  const cdf = (z: number): number => (1 + erf(z / Math.SQRT2)) / 2;
  const [low, high] = [cdf((a - mean) / std), cdf((b - mean) / std)];
  return give(x, () => {
    const u = rand(x.shape, { ...like(x, options), dtype: "float64" }).node;
    const number = (value: number): Node => nodeOf("truncNormal_", value, u);
    const y = ops.add(ops.mul(u, number(2 * (high - low))), number(2 * low - 1));
    const z = ops.add(ops.mul(inverseErf(y), number(std * Math.SQRT2)), number(mean));
    return new Tensor(ops.cast(ops.maximum(ops.minimum(z, number(b)), number(a)), x.dtype));
  });
}

/** erf by its series near 0 and by a continued fraction beyond (Abramowitz & Stegun 7.1.6, 7.1.14). */
function erf(x: number): number {
  const t = Math.abs(x);
  if (t > 6) return Math.sign(x);
  if (t < 2.5) {
    let term = t;
    let sum = t;
    for (let n = 1; Math.abs(term) > 1e-17 * sum; n++) {
      term *= (2 * t * t) / (2 * n + 1);
      sum += term;
    }
    return (Math.sign(x) * 2 * sum * Math.exp(-t * t)) / Math.sqrt(Math.PI);
  }
  let fraction = 0;
  for (let k = 80; k > 0; k--) fraction = k / 2 / (t + fraction);
  return Math.sign(x) * (1 - Math.exp(-t * t) / Math.sqrt(Math.PI) / (t + fraction));
}

/** Numbers of inputs and of outputs of a unit, for a weight [out, in, kernel…] (torch's _calculate_fan_in_and_fan_out). */
export function fans(shape: Shape): { fanIn: number; fanOut: number } {
  if (shape.length < 2)
    throw new ShapeError(
      `initialisers by fan need a weight of at least two axes [out, in, kernel…], got ${showShape(shape)}`,
    );
  const field = sizeOf(shape.slice(2));
  return { fanIn: shape[1] * field, fanOut: shape[0] * field };
}

/** The factor that keeps the variance through an activation (torch.nn.init.calculate_gain). */
export function calculateGain(nonlinearity: Nonlinearity, negativeSlope = 0.01): number {
  const table: Record<Nonlinearity, number> = {
    linear: 1,
    sigmoid: 1,
    tanh: 5 / 3,
    relu: Math.SQRT2,
    leakyRelu: Math.sqrt(2 / (1 + negativeSlope ** 2)),
    selu: 3 / 4,
  };
  const gain = table[nonlinearity];
  if (gain === undefined)
    throw new NablaError(
      `calculateGain: unknown nonlinearity ${JSON.stringify(nonlinearity)}; known are ${Object.keys(table).join(", ")}`,
    );
  return gain;
}

/** √(2 / (in + out)) · gain is the standard deviation (Glorot & Bengio 2010). */
export function xavierUniform_<T extends Tensor>(x: T, gain = 1, options: InitOptions = {}): T {
  const { fanIn, fanOut } = fans(x.shape);
  const bound = gain * Math.sqrt(6 / (fanIn + fanOut));
  return uniform_(x, -bound, bound, options);
}
export function xavierNormal_<T extends Tensor>(x: T, gain = 1, options: InitOptions = {}): T {
  const { fanIn, fanOut } = fans(x.shape);
  return normal_(x, 0, gain * Math.sqrt(2 / (fanIn + fanOut)), options);
}

export interface KaimingOptions extends InitOptions {
  /** Slope of the leaky ReLU that follows. Default: 0. */
  readonly a?: number;
  readonly mode?: FanMode;
  readonly nonlinearity?: Nonlinearity;
}
const kaimingStd = (x: Tensor, { a = 0, mode = "fanIn", nonlinearity = "leakyRelu" }: KaimingOptions): number =>
  calculateGain(nonlinearity, a) / Math.sqrt(fans(x.shape)[mode]);
const generatorOf = ({ generator }: InitOptions): InitOptions => (generator ? { generator } : {});

/** gain / √fan is the standard deviation (He et al. 2015). */
export function kaimingUniform_<T extends Tensor>(x: T, options: KaimingOptions = {}): T {
  const bound = Math.sqrt(3) * kaimingStd(x, options);
  return uniform_(x, -bound, bound, generatorOf(options));
}
export const kaimingNormal_ = <T extends Tensor>(x: T, options: KaimingOptions = {}): T =>
  normal_(x, 0, kaimingStd(x, options), generatorOf(options));

/**
 * A (semi-)orthogonal matrix times `gain`, x's later axes taken as one (Saxe et al. 2014). Drawn on the host, by Gram and
 * Schmidt's procedure, twice for accuracy.
 */
export function orthogonal_<T extends Tensor>(x: T, gain = 1, options: InitOptions = {}): T {
  if (x.ndim < 2) throw new ShapeError(`orthogonal_: needs at least two axes, got ${showShape(x.shape)}`);
  const rows = x.shape[0];
  const columns = x.size / rows;
  const [count, length] = rows < columns ? [rows, columns] : [columns, rows];
  const [seed, stream] = (options.generator ?? defaultGenerator).nextKey();
  const rng = new Rng(seed.value, stream.value);
  const vectors: Float64Array[] = [];
  while (vectors.length < count) {
    const v = Float64Array.from({ length }, () => rng.normal());
    for (let pass = 0; pass < 2; pass++)
      for (const u of vectors) {
        let along = 0;
        for (let i = 0; i < length; i++) along += u[i] * v[i];
        for (let i = 0; i < length; i++) v[i] -= along * u[i];
      }
    const norm = Math.sqrt(v.reduce((s, e) => s + e * e, 0));
    vectors.push(v.map((e) => e / norm));
  }
  const values = new Float64Array(x.size);
  for (let r = 0; r < rows; r++)
    for (let c = 0; c < columns; c++) values[r * columns + c] = gain * (rows < columns ? vectors[r][c] : vectors[c][r]);
  const raw = allocateRaw(x.dtype, x.size);
  encode(x.dtype, values, raw);
  return give(x, () => fromRaw(raw, x.dtype, x.shape, { owned: true, device: x.device }));
}
