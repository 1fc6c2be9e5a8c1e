/** The public face of tensors: the class with its methods, and every operation as a function. */
import "./methods.ts";

export { type AutocastOptions, autocast } from "./autocast.ts";
export {
  autograd,
  type BackwardOptions,
  checkpoint,
  enableGrad,
  type GradOptions,
  grad,
  isGradEnabled,
  noGrad,
  valueAndGrad,
} from "./backward.ts";
export {
  arange,
  type DataOptions,
  empty,
  emptyLike,
  eye,
  fromRaw,
  full,
  fullLike,
  linspace,
  logspace,
  meshgrid,
  type NumberArray,
  ones,
  onesLike,
  scalarTensor,
  type TensorOptions,
  tensor,
  to,
  zeros,
  zerosLike,
} from "./create.ts";
export * from "./elementwise.ts";
export * from "./indexed.ts";
export { at, type Index, Slice, setAt, slice, withAt } from "./indexing.ts";
export * from "./inplace.ts";
export * from "./linear.ts";
export { type LoopOptions, type LoopResult, loop, type TensorGroup } from "./loop.ts";
export * from "./movement.ts";
export type { DimOptions, Dims, Operand, ReduceOptions } from "./operand.ts";
export {
  bernoulli,
  bernoulli_,
  defaultGenerator,
  dropout,
  Generator,
  type GeneratorState,
  getRngState,
  manualSeed,
  multinomial,
  normal,
  normal_,
  type RandomOptions,
  rand,
  randint,
  randLike,
  randn,
  randnLike,
  randperm,
  setRngState,
  uniform_,
} from "./random.ts";
export * from "./reduce.ts";
export { asState, type NestedNumbers, realize, setData, Tensor } from "./tensor.ts";
