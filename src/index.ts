/** What `import "nabla"` gives: tensors and their operations, gradients, devices, and the errors. */
export type { Kernels } from "./autograd/index.ts";
export { type DType, dtypes, type TypedArray } from "./core/dtype.ts";
export * from "./core/errors.ts";
export type { Shape } from "./core/shape.ts";
export {
  defaultDevice as getDevice,
  deviceNames,
  flush,
  registerBackend,
  setDetectAnomaly,
  setDevice,
  synchronize,
} from "./execution/index.ts";
export type { KernelRecipe, KernelSource, Spec } from "./graph/node.ts";
export * as nn from "./nn/index.ts";
export * as optim from "./optim/index.ts";
export { defineOperation, type TensorOperation } from "./tensor/define.ts";
export * from "./tensor/index.ts";
