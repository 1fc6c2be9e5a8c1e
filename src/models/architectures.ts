/**
 * The table of architectures: for each task and each `model_type` of a `config.json`, how the model is built and how a
 * checkpoint's keys become the model's own. A new architecture is a page of its own and a row here.
 */
import type { FactoryOptions, Module, StateDict } from "../nn/index.ts";
import type { ConfigReader } from "./config.ts";
import { CausalLM } from "./decoder.ts";
import { decoders } from "./decoder-config.ts";
import { adaptGPT2StateDict, GPT2, gpt2ConfigOf } from "./gpt2.ts";

export interface BuildOptions {
  /** Of a classification head, where the caller says. */
  readonly numLabels?: number;
  /** Whether the checkpoint, its keys adapted, holds a tensor: for parts that some checkpoints lack. */
  has(key: string): boolean;
}

export interface Architecture<M extends Module> {
  build(config: ConfigReader, where: FactoryOptions, options: BuildOptions): M;
  /** The checkpoint under the model's keys, without what belongs to nothing (old buffers) or to another task's head. */
  adapt(tensors: Readonly<StateDict>, config: ConfigReader): StateDict;
  /** The keys of the task's head, which a checkpoint of the bare model lacks. */
  readonly head?: RegExp;
}

/** Keys that match none of `drop`, with `prefix` before those that `outside` does not match. */
export function renamed(
  tensors: Readonly<StateDict>,
  {
    prefix,
    outside,
    drop = [],
  }: { readonly prefix: string; readonly outside: RegExp; readonly drop?: readonly RegExp[] },
): StateDict {
  const out: StateDict = {};
  for (const [key, x] of Object.entries(tensors)) {
    if (drop.some((pattern) => pattern.test(key))) continue;
    out[key.startsWith(prefix) || outside.test(key) ? key : prefix + key] = x;
  }
  return out;
}

const decoder = (of: (typeof decoders)[string]): Architecture<CausalLM> => ({
  build: (config, where) => new CausalLM(of(config), where),
  adapt: (tensors, config) => {
    // frequencies that old checkpoints hold; a head that is the embedding again
    const drop = [/\.rotary_emb\.inv_freq$/, ...(of(config).tieEmbeddings ? [/^lm_head\.weight$/] : [])];
    return renamed(tensors, { prefix: "model.", outside: /^lm_head\./, drop });
  },
});

const gpt2: Architecture<GPT2> = {
  build: (config, where) => new GPT2({ ...gpt2ConfigOf(config), ...where }),
  adapt: (tensors) => adaptGPT2StateDict(tensors),
};

export const architectures = {
  generation: { gpt2, ...Object.fromEntries(Object.entries(decoders).map(([name, of]) => [name, decoder(of)])) },
} satisfies Record<string, Readonly<Record<string, Architecture<Module>>>> as {
  readonly generation: Readonly<Record<string, Architecture<GPT2 | CausalLM>>>;
};
