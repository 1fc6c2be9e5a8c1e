/** Generation: sampling from language models. */
export { type BatchOptions, generateBatch } from "./batch.ts";
export type { CachedLanguageModel, LanguageModel, TokenCache } from "./readers.ts";
export {
  type GenerateOptions,
  generate,
  penalizeRepetition,
  type SamplingOptions,
  sampleLogits,
} from "./sample.ts";
