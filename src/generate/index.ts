/** Generation: sampling from language models. */
export {
  type CachedLanguageModel,
  type GenerateOptions,
  generate,
  type LanguageModel,
  type SamplingOptions,
  sampleLogits,
  type TokenCache,
} from "./sample.ts";
