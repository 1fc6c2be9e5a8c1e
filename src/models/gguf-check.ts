/**
 * Whether a decoder comes back from GGUF as it went there. A GGUF file says less than a `config.json`: llama.cpp knows each architecture's
 * activation and the pattern of its windows by heart. What is written is therefore read again, as metadata, before it becomes a file.
 */
import type { GgufFile, GgufTensorInput, GgufValue } from "../formats/index.ts";
import { ConfigReader, PretrainedError } from "./config.ts";
import type { DecoderConfig, LayerConfig } from "./decoder.ts";
import { decoders } from "./decoder-config.ts";
import { ggufConfigOf } from "./gguf.ts";

/** What changes numbers, by its name in `config.json`. */
const fields: Readonly<Partial<Record<keyof DecoderConfig, string>>> = {
  activation: "hidden_act",
  normEps: "rms_norm_eps",
  bias: "attention_bias",
  embeddingScale: "hidden_size",
  attentionScale: "query_pre_attn_scalar",
  attentionSoftcap: "attn_logit_softcapping",
  logitSoftcap: "final_logit_softcapping",
  tieEmbeddings: "tie_word_embeddings",
};

const near = (a: number, b: number): boolean => Math.abs(a - b) <= 1e-5 * Math.abs(b);
const same = (a: unknown, b: unknown): boolean =>
  typeof a === "number" && typeof b === "number" ? near(a, b) : JSON.stringify(a) === JSON.stringify(b);

function sameRope({ rotary: a }: LayerConfig, { rotary: b }: LayerConfig, length: number): boolean {
  if (a === null || b === null) return a === b;
  if (a.width !== b.width) return false;
  return [1, length].every((n) => {
    const [x, y] = [a, b].map(({ scaling, width, theta }) => scaling.frequencies(width, theta, n));
    return near(x.attentionFactor, y.attentionFactor) && x.values.every((f, i) => near(f, y.values[i]));
  });
}

/** Throws PretrainedError, naming the field, where a reader of these metadata and tensors would compute otherwise than `decoder`. */
export async function expectReadAlike(
  config: ConfigReader,
  decoder: DecoderConfig,
  { metadata, tensors }: { metadata: Map<string, GgufValue>; tensors: Map<string, GgufTensorInput> },
): Promise<void> {
  const stored = new Map([...tensors].map(([name, x]) => [name, { ...x, float32: async () => x.data }]));
  const raw = await ggufConfigOf({ metadata, tensors: stored } as unknown as GgufFile, config.source);
  const read = decoders[String(raw["model_type"])](new ConfigReader(raw, config.source));
  const refuse = (name: string, ours: unknown, theirs: unknown): never => {
    throw new PretrainedError(
      `${config.source}: "${name}" can't be written as GGUF: it is ${JSON.stringify(ours)}, and a reader takes it to be ${JSON.stringify(theirs)}`,
    );
  };
  for (const [key, name] of Object.entries(fields) as [keyof DecoderConfig, string][])
    if (!same(decoder[key], read[key])) refuse(name, decoder[key], read[key]);
  const [ours, theirs] = [decoder, read].map(({ layers }) => layers.map(({ window }) => window));
  if (!same(ours, theirs)) refuse("layer_types", ours, theirs);
  const turned = decoder.layers.findIndex((layer, i) => !sameRope(layer, read.layers[i], decoder.contextLength));
  if (turned >= 0)
    throw new PretrainedError(
      `${config.source}: the rope of layer ${turned} can't be written as GGUF: it is read as another one`,
    );
}
