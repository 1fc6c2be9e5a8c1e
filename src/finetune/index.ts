/** nabla/finetune: adapting a trained model to a little data, and measuring that it has become better. */

export { type ChatPart, ChatTemplate, type ChatTemplateOptions } from "../data/chat-template.ts";
export { type Adapted, adapterOf, applyLora, LoraAdapter, type LoraOptions, loadAdapter } from "./adapter.ts";
export { FinetuneError } from "./errors.ts";
export {
  type CompareRunsOptions,
  compareRuns,
  type Evaluation,
  examplesPrint,
  formatEvaluation,
  type RunComparison,
  readEvaluation,
  writeEvaluation,
} from "./evaluation-file.ts";
export {
  type ChoiceExample,
  classesOf,
  type LabelledExample,
  labelNumbers,
  type Message,
  type ReadExamplesOptions,
  type ReadLabelledOptions,
  readChoices,
  readExamples,
  readLabelled,
  type TextualExample,
} from "./examples.ts";
export type { FinetuneOptions, FinetuneResult, Sample, SampleOptions, Schedule } from "./finetune.ts";
export { finetune, type PlainExample, type TextData, type TextFinetuneOptions } from "./finetune-text.ts";
export { type FreezeOptions, freeze } from "./freeze.ts";
export { LoraEmbedding, type LoraLayer, LoraLinear, type LoraSettings } from "./lora.ts";
export {
  type Comparison,
  compare,
  compareColumns,
  type Difference,
  type Measurement,
  measure,
} from "./measure.ts";
export { type Columns, type Metric, metrics, metricsOf } from "./metrics.ts";
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
export {
  type ExactMatchOptions,
  exactMatch,
  type MultipleChoiceOptions,
  multipleChoice,
} from "./questions.ts";
export { formatColumns, formatComparison, formatResult } from "./report.ts";
export { type ScoredText, type ScoreOptions, scoreTexts, type TextScore } from "./score.ts";
export {
  type LabelMeaning,
  labelValues,
  type TextEncoder,
  type TokenizeOptions,
  tokenizeExamples,
  tokenizeLabelled,
} from "./supervised.ts";
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
  type ProblemType,
  type TextBatch,
  type TextHead,
  type TextTarget,
  type TextTaskOptions,
  textTask,
} from "./text-task.ts";
export {
  ignored,
  type TokenBatch,
  TokenBatches,
  type TokenBatchesOptions,
  type TokenExample,
} from "./token-batches.ts";
