/** Neural-network building blocks (torch.nn): Module, layers, losses, and the namespaces `functional` and `init`. */
export * as functional from "./functional.ts";
export * as init from "./init.ts";
export * from "./layers/activation.ts";
export * from "./layers/attention.ts";
export * from "./layers/containers.ts";
export * from "./layers/conv.ts";
export {
  Embedding,
  type EmbeddingOptions,
  type FactoryOptions,
  Flatten,
  Identity,
  Linear,
  type LinearOptions,
  Unflatten,
} from "./layers/linear.ts";
export * from "./layers/loss.ts";
export * from "./layers/norm.ts";
export * from "./layers/recurrent.ts";
export { type Destination, type LoadOptions, type LoadResult, Module, type StateDict } from "./module.ts";
export { Buffer, deferInit, Parameter, withDeferredInit } from "./parameter.ts";
