/** Generation: tokens and text from language models. */
export { type BatchOptions, generateBatch } from "./batch.ts";
export { generate } from "./generate.ts";
export type { CachedLanguageModel, LanguageModel, TokenCache } from "./readers.ts";
export {
  type GenerateOptions,
  penalizeRepetition,
  type SamplingOptions,
  sampleLogits,
} from "./sample.ts";
export { type ChatOptions, type TextModel, type TextOptions, TextStream } from "./text.ts";
