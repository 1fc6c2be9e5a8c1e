/**
 * Random tensors. A Generator is a seed of 64 bits and a counter; every random operation takes one value of the counter, and
 * its numbers are Threefry-2x32 (Salmon et al. 2011) of (seed, counter) and the position. The key goes in as two runtime
 * scalars, so that nothing compiles anew, and the same seed gives the same numbers on every device.
 */
import { type DType, isFloat } from "../core/dtype.ts";
import { DTypeError, NablaError, ShapeError } from "../core/errors.ts";
import { checkShape, type Shape, showShape } from "../core/shape.ts";
import { type Node, setGradEnabled } from "../graph/node.ts";
import * as ops from "../graph/ops.ts";
import { finish, type TensorOptions } from "./create.ts";
import { expectWhole, nodeOf, type Operand, scalarNode } from "./operand.ts";
import { Tensor, write } from "./tensor.ts";

export interface GeneratorState {
  readonly seed: readonly [low: number, high: number];
  readonly counter: number;
}

/** MurmurHash3's finaliser: spreads every bit over the word. */
function mix(h: number): number {
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}

/** A source of random numbers with a state that can be saved (torch.Generator). */
export class Generator {
  private low = 0;
  private high = 0;
  private counter = 0;

  constructor(seed: number | bigint = 0) {
    this.manualSeed(seed);
  }

  /** Starts anew from `seed`, a whole number of up to 64 bits. */
  manualSeed(seed: number | bigint): this {
    if (typeof seed === "number" && !Number.isSafeInteger(seed))
      throw new NablaError(`manualSeed: expected a whole number (a bigint for more than 53 bits), got ${seed}`);
    const bits = BigInt.asUintN(64, BigInt(seed));
    this.low = Number(bits & 0xffffffffn);
    this.high = Number(bits >> 32n);
    this.counter = 0;
    return this;
  }

  getState(): GeneratorState {
    return { seed: [this.low, this.high], counter: this.counter };
  }

  setState(state: GeneratorState): this {
    const [low, high] = state.seed;
    if (low >>> 0 !== low || high >>> 0 !== high || !Number.isSafeInteger(state.counter) || state.counter < 0)
      throw new NablaError(`setState: not a generator's state: ${JSON.stringify(state)}`);
    this.low = low;
    this.high = high;
    this.counter = state.counter;
    return this;
  }

  /** The key of the next operation: a word of the seed and of the counter's upper half, and the counter's lower half. */
  nextKey(): [Node, Node] {
    const n = this.counter++;
    const upper = Math.floor(n / 4294967296);
    const key = (this.low ^ mix(this.high) ^ (upper ? mix(upper ^ 0x9e3779b9) : 0)) >>> 0;
    return [ops.scalar(key, "uint32"), ops.scalar(n >>> 0, "uint32")];
  }
}

/** What random operations use that are given no generator. */
export const defaultGenerator = new Generator(0);
/** Seeds the default generator (torch.manual_seed). */
export const manualSeed = (seed: number | bigint): Generator => defaultGenerator.manualSeed(seed);
export const getRngState = (): GeneratorState => defaultGenerator.getState();
export const setRngState = (state: GeneratorState): void => {
  defaultGenerator.setState(state);
};

export interface RandomOptions extends TensorOptions {
  readonly generator?: Generator;
}

function bits(shape: Shape, generator: Generator): Node {
  const [key0, key1] = generator.nextKey();
  return ops.random(shape, key0, key1);
}

/** Uniform in [0, 1): 24 bits for float32 and less, 53 for float64. */
function uniformNode(shape: Shape, dtype: DType, generator: Generator): Node {
  checkShape("rand", shape);
  if (!isFloat(dtype)) throw new DTypeError(`rand: takes a floating dtype, got ${dtype}`);
  if (dtype === "float64") {
    const words = bits([2, ...shape], generator);
    const high = ops.cast(ops.shr(half(words, 0), 5), "float64"); // 27 bits
    const low = ops.cast(ops.shr(half(words, 1), 6), "float64"); // 26 bits
    return ops.mul(ops.add(ops.mul(high, 2 ** 26), low), 2 ** -53);
  }
  return ops.cast(unit(bits(shape, generator)), dtype);
}
const half = (x: Node, i: number): Node => ops.squeeze(ops.narrow(x, 0, i, 1), 0);
/** The top 24 bits as a float32 in [0, 1). */
const unit = (x: Node): Node => ops.mul(ops.cast(ops.shr(x, 8), "float32"), 2 ** -24);

/** Standard normal by Box and Muller (1958): each number from two uniform ones of its own, in float32. */
function normalNode(shape: Shape, dtype: DType, generator: Generator): Node {
  checkShape("randn", shape);
  if (!isFloat(dtype)) throw new DTypeError(`randn: takes a floating dtype, got ${dtype}`);
  const words = bits([2, ...shape], generator);
  const radius = ops.sqrt(ops.mul(ops.log(ops.sub(1, unit(half(words, 0)))), -2));
  return ops.cast(ops.mul(radius, ops.cos(ops.mul(unit(half(words, 1)), 2 * Math.PI))), dtype);
}

const from = (options: RandomOptions): Generator => options.generator ?? defaultGenerator;

/** Records without gradients: what is drawn depends on nothing that has one. */
function drawn(node: () => Node): Node {
  const before = setGradEnabled(false);
  try {
    return node();
  } finally {
    setGradEnabled(before);
  }
}

/** Uniform in [0, 1). */
export const rand = (shape: Shape, options: RandomOptions = {}): Tensor =>
  finish(uniformNode(shape, options.dtype ?? "float32", from(options)), options);
/** Standard normal. */
export const randn = (shape: Shape, options: RandomOptions = {}): Tensor =>
  finish(normalNode(shape, options.dtype ?? "float32", from(options)), options);
const like = (x: Tensor, options: RandomOptions): RandomOptions => ({
  dtype: x.dtype,
  ...(x.node.device === "" ? {} : { device: x.node.device }),
  ...options,
});
export const randLike = (x: Tensor, options: RandomOptions = {}): Tensor => rand(x.shape, like(x, options));
export const randnLike = (x: Tensor, options: RandomOptions = {}): Tensor => randn(x.shape, like(x, options));

/** Whole numbers low ≤ n < high; int32. */
export function randint(low: number, high: number, shape: Shape, options: RandomOptions = {}): Tensor {
  checkShape("randint", shape);
  if (!Number.isInteger(low) || !Number.isInteger(high) || high <= low || high - low > 4294967295)
    throw new ShapeError(`randint: expected whole numbers low < high, got ${low} and ${high}`);
  const range = ops.expandTo(scalarNode("randint", high - low, "uint32"), shape);
  const offset = ops.cast(ops.mod(bits(shape, from(options)), range), "int32");
  const value = ops.add(offset, ops.expandTo(scalarNode("randint", low, "int32"), shape));
  return finish(ops.cast(value, options.dtype ?? "int32"), options);
}

/** A random order of 0 … n − 1; int32. */
export function randperm(n: number, options: RandomOptions = {}): Tensor {
  expectWhole("randperm", "n", n);
  return finish(ops.cast(ops.argsort(bits([n], from(options)), 0), options.dtype ?? "int32"), options);
}

/** Normal with the mean and standard deviation given; of the tensors' shape if one is a tensor. */
export function normal(mean: Operand, std: Operand, shape?: Shape, options: RandomOptions = {}): Tensor {
  const like = mean instanceof Tensor ? mean : std instanceof Tensor ? std : null;
  const size = shape ?? like?.shape;
  if (!size) throw new ShapeError("normal: give a shape, or a tensor as mean or std");
  const z = normalNode(size, options.dtype ?? like?.dtype ?? "float32", from(options));
  const value = drawn(() => ops.add(ops.mul(z, nodeOf("normal", std, z)), nodeOf("normal", mean, z)));
  return finish(value, options);
}

/** 1 with the probability that stands in `p`, else 0; of p's dtype (torch.bernoulli). */
export function bernoulli(p: Tensor, options: RandomOptions = {}): Tensor {
  if (!isFloat(p.dtype)) throw new DTypeError(`bernoulli: probabilities must be floating, got ${p.dtype}`);
  return finish(
    drawn(() => ops.cast(ops.lt(uniformNode(p.shape, p.dtype, from(options)), p.node), options.dtype ?? p.dtype)),
    options,
  );
}

/**
 * Indices drawn from the last axis with probabilities proportional to the weights `p` (torch.multinomial); int32
 * [..., numSamples]. Without replacement by exponential races: the smallest of e/p wins.
 */
export function multinomial(
  p: Tensor,
  numSamples: number,
  options: RandomOptions & { readonly replacement?: boolean } = {},
): Tensor {
  const { replacement = false } = options;
  const { node } = p;
  const classes = node.shape.at(-1);
  if (classes === undefined || classes === 0)
    throw new ShapeError(`multinomial: needs weights along the last axis, got ${showShape(node.shape)}`);
  expectWhole("multinomial", "numSamples", numSamples, 1);
  if (!replacement && numSamples > classes)
    throw new ShapeError(`multinomial: can't draw ${numSamples} of ${classes} without replacement`);
  const race = (weights: Node): Node => {
    const exponential = ops.neg(ops.log(ops.sub(1, uniformNode(weights.shape, "float32", from(options)))));
    return ops.div(weights, ops.maximum(exponential, 2 ** -60));
  };
  const index = drawn(() => {
    const weights = ops.cast(node, "float32");
    const last = node.shape.length - 1;
    if (!replacement) return ops.narrow(ops.argsort(race(weights), last, true), last, 0, numSamples);
    const each = [...node.shape.slice(0, -1), numSamples, classes];
    return ops.argmax(race(ops.expandTo(ops.unsqueeze(weights, last), each)), last + 1);
  });
  return finish(index, options);
}

// ---- in place -----------------------------------------------------------------------------------------------------------------

/** Fills x with uniform numbers between `low` and `high`. */
export function uniform_<T extends Tensor>(
  x: T,
  low = 0,
  high = 1,
  options: { readonly generator?: Generator } = {},
): T {
  const u = uniformNode(x.shape, x.dtype, from(options));
  return write("uniform_", x, ops.add(ops.mul(u, nodeOf("uniform_", high - low, u)), nodeOf("uniform_", low, u)));
}
/** Fills x with normal numbers. */
export function normal_<T extends Tensor>(
  x: T,
  mean = 0,
  std = 1,
  options: { readonly generator?: Generator } = {},
): T {
  const z = normalNode(x.shape, x.dtype, from(options));
  return write("normal_", x, ops.add(ops.mul(z, nodeOf("normal_", std, z)), nodeOf("normal_", mean, z)));
}
/** Fills x with 1 (probability p) and 0. */
export function bernoulli_<T extends Tensor>(x: T, p = 0.5, options: { readonly generator?: Generator } = {}): T {
  const u = uniformNode(x.shape, "float32", from(options));
  return write("bernoulli_", x, ops.cast(ops.lt(u, nodeOf("bernoulli_", p, u)), x.dtype));
}

/**
 * x with elements set to 0 with probability p and the others divided by 1 − p (torch.nn.functional.dropout). The mask is drawn
 * again from its key where the gradient needs it, never stored.
 */
export function dropout(x: Tensor, p: number, options: { readonly generator?: Generator } = {}): Tensor {
  if (!(p >= 0 && p <= 1)) throw new NablaError(`dropout: p must be between 0 and 1, got ${p}`);
  const { node } = x;
  const u = unit(bits(node.shape, from(options)));
  const kept = ops.ge(u, nodeOf("dropout", p, u));
  const scale = nodeOf("dropout", p === 1 ? 0 : 1 / (1 - p), node);
  return new Tensor(ops.where(kept, ops.mul(node, scale), ops.full([], 0, node.dtype)));
}
