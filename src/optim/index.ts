/** Optimisers, learning-rate schedules and gradient clipping (torch.optim). */
export { Adam, type AdamOptions, AdamW } from "./adam.ts";
export { clipGradNorm_, clipGradValue_ } from "./clip.ts";
export {
  type BaseOptions,
  type Group,
  Optimizer,
  type OptimizerState,
  type ParamGroup,
  type ParamState,
  type Params,
} from "./optimizer.ts";
export { Adagrad, type AdagradOptions, RMSprop, type RMSpropOptions } from "./rmsprop.ts";
export * from "./schedules.ts";
export { SGD, type SGDOptions } from "./sgd.ts";
