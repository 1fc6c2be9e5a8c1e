/** What `import "nabla/data"` gives: data sets and their loader, text and tokenizers, IDX files, pictures and recordings. */
export { formatWav, type Recording, readWav, resample } from "./audio.ts";
export {
  type ChatPart,
  ChatTemplate,
  type ChatTemplateOptions,
  type Message,
  type RenderOptions,
} from "./chat-template.ts";
export {
  ArrayDataset,
  type Batch,
  type Dataset,
  type HostArray,
  hostArray,
  LoaderError,
  stackSamples,
} from "./dataset.ts";
export { AudioError, ChatTemplateError, FileError, ImageError } from "./errors.ts";
export {
  formatIdx,
  type IdxArray,
  type IdxClassification,
  IdxError,
  type LabelledImages,
  loadIdxClassification,
  parseIdx,
  readIdx,
} from "./idx.ts";
export {
  decodeImage,
  ImageFolder,
  type ImageMode,
  type ImageOptions,
  type ImageSample,
  imageFolder,
} from "./images.ts";
export { DataLoader, type LoaderOptions, type LoaderState } from "./loader.ts";
export { type ReadOptions, readBytes, type Source } from "./source.ts";
export { readTextCorpus, splitText, type TextCorpus, type TextCorpusOptions, TextError } from "./text.ts";
export {
  evaluationBatches,
  type TextBatch,
  TextBatches,
  type TextBatchesOptions,
  textBatches,
} from "./text-batches.ts";
export { encodeText, type TokenizerKind, trainTokenizer } from "./tokenize.ts";
export {
  type BpeTrainingOptions,
  ByteLevelBpe,
  CharTokenizer,
  type DecodeOptions,
  type DecodeStream,
  type EncodeBatchOptions,
  type EncodeOptions,
  type Encoding,
  loadTokenizer,
  type Padding,
  PipelineTokenizer,
  type Tokenizer,
  TokenizerError,
  type Truncation,
  tokenizerFromJSON,
} from "./tokenizer.ts";
