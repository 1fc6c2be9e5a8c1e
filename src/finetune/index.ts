/** nabla/finetune: adapting a trained model to a little data, and measuring that it has become better. */
export { type Adapted, adapterOf, applyLora, LoraAdapter, type LoraOptions, loadAdapter } from "./adapter.ts";
export { type ChatPart, ChatTemplate, type ChatTemplateOptions } from "./chat.ts";
export { FinetuneError } from "./errors.ts";
export {
  classesOf,
  type LabelledExample,
  labelNumbers,
  type Message,
  type ReadExamplesOptions,
  type ReadLabelledOptions,
  readExamples,
  readLabelled,
  type TextualExample,
} from "./examples.ts";
export {
  type FinetuneOptions,
  type FinetuneResult,
  finetune,
  type Sample,
  type SampleOptions,
  type Schedule,
} from "./finetune.ts";
export { type FreezeOptions, freeze } from "./freeze.ts";
export { LoraEmbedding, type LoraLayer, LoraLinear, type LoraSettings } from "./lora.ts";
export { type Comparison, compare, type Difference, type Measurement, measure } from "./measure.ts";
export {
  type BlockScales,
  dequantizeInt8,
  dequantizeNF4,
  type Int8Weights,
  type NF4Weights,
  nf4Code,
  quantizeInt8,
  quantizeNF4,
} from "./nf4.ts";
export { type AdapterConfig, formatAdapterConfig, type LoraBias, parseAdapterConfig } from "./peft.ts";
export { quantizeModel, quantizer } from "./quantize-model.ts";
export { type Quantization, QuantizedLinear, type QuantizeOptions, quantizeLinear } from "./quantized-linear.ts";
export { formatComparison, formatResult } from "./report.ts";
export { type TextEncoder, type TokenizeOptions, tokenizeExamples } from "./supervised.ts";
export type { Target } from "./targets.ts";
export {
  type ClassExample,
  type ClassTaskOptions,
  classTask,
  type LanguageTaskOptions,
  languageTask,
  type Scores,
  type Task,
  type TrainableLanguageModel,
} from "./tasks.ts";
export {
  ignored,
  type TokenBatch,
  TokenBatches,
  type TokenBatchesOptions,
  type TokenExample,
} from "./token-batches.ts";
