/** Automatic differentiation over nodes: what `execution/`, `tensor/` and the tests call. */
import "./rules.ts";

export { type GradientOptions, gradientsOf, leavesOf, reachable, releaseGraph, withGrad } from "./backward.ts";
export { checkpointed } from "./checkpoint.ts";
export { type DefinedOperation, defineOperation, type Kernels, type OperationDefinition } from "./define.ts";
export { gradients, type Rule } from "./table.ts";
