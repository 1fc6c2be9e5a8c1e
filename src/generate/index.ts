/** Generation: sampling from language models. */
export {
  type CachedLanguageModel,
  type GenerateOptions,
  generate,
  type LanguageModel,
  penalizeRepetition,
  type SamplingOptions,
  sampleLogits,
  type TokenCache,
} from "./sample.ts";
