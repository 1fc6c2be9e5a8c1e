/** Models, each one page: MLP, a small convolutional network, GPT-2. */
export { ConvNet, type ConvNetConfig } from "./convnet.ts";
export {
  adaptGPT2StateDict,
  GPT2,
  type GPT2Config,
  gpt2FlopsPerStep,
  gpt2ParameterCount,
  type Packing,
} from "./gpt2.ts";
export { MLP, type MlpActivation, type MlpConfig } from "./mlp.ts";
