/** The activations that configurations name, by transformers' names. */
import { gelu, relu, silu, tanh } from "../nn/functional.ts";
import type { Tensor } from "../tensor/index.ts";

const geluTanh = (x: Tensor): Tensor => gelu(x, { approximate: "tanh" });

export const activations = {
  relu,
  silu,
  swish: silu,
  tanh,
  gelu: (x: Tensor): Tensor => gelu(x),
  gelu_new: geluTanh,
  gelu_fast: geluTanh,
  gelu_pytorch_tanh: geluTanh,
} as const;

export type ActivationName = keyof typeof activations;

/** The names alone, for ConfigReader.choice. */
export const activationNames = (): readonly ActivationName[] => Object.keys(activations) as ActivationName[];
