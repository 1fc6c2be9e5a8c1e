/** Generation: sampling from language models. */
export { type GenerateOptions, generate, type LanguageModel, type SamplingOptions, sampleLogits } from "./sample.ts";
