/** Models, each one page: MLP, a small convolutional network, GPT-2, the family of Llama; and how pretrained ones are loaded. */
export { type CacheOptions, KeyValueCache } from "./cache.ts";
export { ConfigReader, PretrainedError, type RawConfig } from "./config.ts";
export { ConvNet, type ConvNetConfig } from "./convnet.ts";
export { CausalLM, type CreateCacheOptions, type DecoderConfig, type LayerConfig } from "./decoder.ts";
export { adaptGPT2StateDict, GPT2, type GPT2Config, gpt2FlopsPerStep, gpt2ParameterCount } from "./gpt2.ts";
export { MLP, type MlpActivation, type MlpConfig } from "./mlp.ts";
export {
  fromPretrained,
  modelFrom,
  type PretrainedOptions,
  readCheckpoint,
  readConfig,
  type Task,
  type Tasks,
} from "./pretrained.ts";
