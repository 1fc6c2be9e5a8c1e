/**
 * Models, each one page: MLP, a small convolutional network, GPT-2, the family of Llama, BERT and its kin, ViT, ResNet; and
 * how pretrained ones are loaded.
 */
export { type Architecture, architectures, type Task, type Tasks } from "./architectures.ts";
export { Bert, type BertConfig, BertForSequenceClassification, RobertaForSequenceClassification } from "./bert.ts";
export { BlockEmbedding, BlockLinear, type BlockWeight } from "./blocks.ts";
export { type CacheOptions, type CreateCacheOptions, KeyValueCache } from "./cache.ts";
export { ConfigReader, PretrainedError, type RawConfig } from "./config.ts";
export { ConvNet, type ConvNetConfig } from "./convnet.ts";
export { CausalLM, type DecoderConfig, type LayerConfig } from "./decoder.ts";
export { DistilBert, type DistilBertConfig, DistilBertForSequenceClassification } from "./distilbert.ts";
export { type Pooling, pool, type TextClassifier, type TextEncoder, type TextInput } from "./encoder.ts";
export { type GgufModel, type GgufModelOptions, readGgufModel } from "./gguf.ts";
export { adaptGPT2StateDict, GPT2, type GPT2Config, gpt2FlopsPerStep, gpt2ParameterCount } from "./gpt2.ts";
export { MLP, type MlpActivation, type MlpConfig } from "./mlp.ts";
export type { Packing } from "./packing.ts";
export {
  fromPretrained,
  modelFrom,
  type PretrainedOptions,
  readCheckpoint,
  readConfig,
} from "./pretrained.ts";
export { ResNet, type ResNetConfig, ResNetForImageClassification } from "./resnet.ts";
export { ViT, type ViTConfig, ViTForImageClassification } from "./vit.ts";
