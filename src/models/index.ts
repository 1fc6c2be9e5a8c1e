/**
 * Models, each one page: MLP, a small convolutional network, GPT-2, the family of Llama, BERT and its kin, ViT, ResNet, a
 * small ResNet for small pictures, a speech detector, a pitch tracker, a pronouncer; and how pretrained ones are loaded.
 */
export { HubError, type HubErrorCode, type HubOptions, modelFolder } from "../hub/index.ts";
export { type Architecture, architectures, type Task, type Tasks } from "./architectures.ts";
export { Bert, type BertConfig, BertForSequenceClassification, RobertaForSequenceClassification } from "./bert.ts";
export { BlockEmbedding, type BlockFormat, BlockLinear, type BlockWeight } from "./blocks.ts";
export { type CacheOptions, type CreateCacheOptions, KeyValueCache } from "./cache.ts";
export { ConfigReader, formatConfig, PretrainedError, type RawConfig } from "./config.ts";
export { ConvNet, type ConvNetConfig } from "./convnet.ts";
export { Crepe, type CrepeConfig, crepeFrames, crepePitches, loadCrepe, type Pitch } from "./crepe.ts";
export { CausalLM, type DecoderConfig, type LayerConfig } from "./decoder.ts";
export { CausalLMForSequenceClassification, GPT2ForSequenceClassification } from "./decoder-classifier.ts";
export { DistilBert, type DistilBertConfig, DistilBertForSequenceClassification } from "./distilbert.ts";
export { type EmbeddingTokenizer, type EmbedOptions, embed, type SentenceEncoder } from "./embed.ts";
export { type EmbeddingSettings, readEmbeddingSettings } from "./embedding-settings.ts";
export { type Pooling, pool, type TextClassifier, type TextEncoder, type TextInput } from "./encoder.ts";
export type { LayerReplacer } from "./from-parts.ts";
export { G2p, graphemeIds, graphemes, loadG2p, phonemes } from "./g2p.ts";
export {
  type GgufModelOptions,
  type LoadedGguf,
  readGgufConfig,
  readGgufModel,
  readStoredMatrices,
  type StoredMatrix,
} from "./gguf.ts";
export { type GgufModel, ggufModelOf, ggufTypeFor } from "./gguf-export.ts";
export { readGgufText } from "./gguf-tokenizer.ts";
export { ggufTokenizerMetadata, type TokenizerFiles } from "./gguf-tokenizer-export.ts";
export { adaptGPT2StateDict, GPT2, type GPT2Config, gpt2FlopsPerStep, gpt2ParameterCount } from "./gpt2.ts";
export { MLP, type MlpActivation, type MlpConfig } from "./mlp.ts";
export type { Packing } from "./packing.ts";
export {
  fromConfig,
  fromPretrained,
  modelFrom,
  type PretrainedModel,
  type PretrainedOptions,
  readCheckpoint,
  readConfig,
  readWholeConfig,
} from "./pretrained.ts";
export type { GenerationConfig, Pretrained, TextSide } from "./pretrained-text.ts";
export type { StepKind } from "./replay.ts";
export { ResNet, type ResNetConfig, ResNetForImageClassification } from "./resnet.ts";
export { CifarResNet, type CifarResNetConfig, type LoadCifarResNetOptions, loadCifarResNet } from "./resnet-cifar.ts";
export { type SavePretrainedOptions, savePretrained } from "./save-pretrained.ts";
export {
  loadSileroVad,
  type SileroState,
  SileroVad,
  type SpeechOptions,
  type SpeechSegment,
  speechSegments,
} from "./silero-vad.ts";
export { ViT, type ViTConfig, ViTForImageClassification } from "./vit.ts";
