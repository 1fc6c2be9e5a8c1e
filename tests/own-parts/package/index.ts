/** A package as somebody else would write it: operations, layers and an optimiser on Nabla's public exports alone. */
export { RowNorm, SquaredReLU } from "./layers.ts";
export { ranKernel, rootMeanSquare, squaredRelu } from "./operations.ts";
export { Lion } from "./optimizers.ts";
