/**
 * Decoders as GGUF: the way back from `gguf.ts`. A `config.json` becomes metadata and transformers' names become GGUF's; Llama's heads are
 * interleaved again, and Gemma's norms get their 1 back. The tokenizer's metadata are the caller's; the file's bytes are `formats/gguf-write.ts`.
 */
import type { GgufTensorInput, GgufType, GgufValue } from "../formats/index.ts";
import type { StateDict } from "../nn/index.ts";
import { realize, type Tensor } from "../tensor/index.ts";
import { architectures } from "./architectures.ts";
import { ConfigReader, PretrainedError, type RawConfig } from "./config.ts";
import type { DecoderConfig } from "./decoder.ts";
import { decoders } from "./decoder-config.ts";
import { blockNames, type GgufRow, ggufRows } from "./gguf.ts";
import { expectReadAlike } from "./gguf-check.ts";

/** By transformers' `model_type`: the row, and what GGUF calls it. Mistral is "llama" there, as far as it has no window. */
function rowOf(config: ConfigReader): { readonly architecture: string; readonly row: GgufRow } {
  const type = config.text("model_type");
  const found = Object.entries(ggufRows).find(([, { modelType }]) => modelType === type);
  if (found) return { architecture: found[0], row: found[1] };
  if (type === "mistral") return { architecture: "llama", row: ggufRows["llama"] };
  throw new PretrainedError(
    `${config.source}: the architecture "${type}" can't be written as GGUF; known are ${Object.values(ggufRows)
      .map(({ modelType }) => modelType)
      .join(", ")}`,
  );
}

const u32 = (value: number): GgufValue => ({ type: "uint32", value });
const f32 = (value: number): GgufValue => ({ type: "float32", value: Math.fround(value) });
const text = (value: string): GgufValue => ({ type: "string", value });

/** The factors by which a scaled rope's frequencies are divided, where it is one set for all lengths; null where none is scaled. */
function ropeFactors(config: ConfigReader, { layers, contextLength }: DecoderConfig): Float32Array | null {
  for (const { rotary } of layers) {
    if (rotary === null) throw new PretrainedError(`${config.source}: layers without rope can't be written as GGUF`);
    const { width, theta, scaling } = rotary;
    const { values, attentionFactor } = scaling.frequencies(width, theta, contextLength);
    const shorter = scaling.frequencies(width, theta, 1);
    const factors = Float32Array.from(values, (f, i) => theta ** ((-2 * i) / width) / f);
    if (factors.every((factor) => Math.abs(factor - 1) < 1e-5)) continue;
    if (attentionFactor !== 1 || shorter.values.some((f, i) => f !== values[i]))
      throw new PretrainedError(`${config.source}: this kind of rope scaling can't be written as GGUF`);
    if (layers.some((layer) => layer.rotary?.theta !== theta || layer.rotary.scaling !== scaling))
      throw new PretrainedError(
        `${config.source}: ropes that differ between layers and are scaled can't be written as GGUF`,
      );
    return factors;
  }
  return null;
}

/** The metadata of the model itself, without its tokenizer's. */
function metadataOf(
  config: ConfigReader,
  decoder: DecoderConfig,
  architecture: string,
  name: string,
): Map<string, GgufValue> {
  const { layers, headDim, attentionSoftcap, logitSoftcap } = decoder;
  const own = new Map<string, GgufValue>([
    ["context_length", u32(decoder.contextLength)],
    ["embedding_length", u32(decoder.hiddenSize)],
    ["block_count", u32(layers.length)],
    ["feed_forward_length", u32(decoder.intermediateSize)],
    ["attention.head_count", u32(decoder.numHeads)],
    ["attention.head_count_kv", u32(decoder.numKeyValueHeads)],
    ["attention.layer_norm_rms_epsilon", f32(decoder.normEps)],
    ["attention.key_length", u32(headDim)],
    ["attention.value_length", u32(headDim)],
    ["vocab_size", u32(decoder.vocabSize)],
  ]);
  const full = layers.find(({ window }) => window === null) ?? layers[0];
  const sliding = layers.find(({ window }) => window !== null);
  if (full.rotary !== null) {
    own.set("rope.freq_base", f32(full.rotary.theta));
    own.set("rope.dimension_count", u32(full.rotary.width));
  }
  if (sliding?.window) {
    if (architecture === "llama" || architecture.startsWith("qwen"))
      throw new PretrainedError(
        `${config.source}: GGUF's "${architecture}" has no sliding window, which this model has`,
      );
    own.set("attention.sliding_window", u32(sliding.window));
    if (sliding.rotary !== null && sliding.rotary.theta !== full.rotary?.theta)
      own.set("rope.freq_base_swa", f32(sliding.rotary.theta));
  }
  if (attentionSoftcap !== null) own.set("attn_logit_softcapping", f32(attentionSoftcap));
  if (logitSoftcap !== null) own.set("final_logit_softcapping", f32(logitSoftcap));
  return new Map([
    ["general.architecture", text(architecture)],
    ["general.name", text(name)],
    ...[...own].map(([key, value]) => [`${architecture}.${key}`, value] as const),
  ]);
}

/** Halves (x₀, x₂ …), (x₁, x₃ …) of each head [heads · width, …] as neighbours (x₀, x₁), (x₂, x₃) … */
function asNeighbours(x: Tensor, heads: number): Tensor {
  const [rowCount, ...rest] = x.shape;
  return x
    .reshape(heads, 2, rowCount / heads / 2, ...rest)
    .transpose(1, 2)
    .reshape(rowCount, ...rest);
}

/** GGUF's name of a tensor; null where it belongs to no part that is known. */
function nameOf(key: string, names: Readonly<Record<string, string>>): string | null {
  if (key === "model.embed_tokens.weight") return "token_embd.weight";
  if (key === "model.norm.weight") return "output_norm.weight";
  if (key === "lm_head.weight") return "output.weight";
  const [, layer, part, kind] = /^model\.layers\.(\d+)\.(.+)\.(weight|bias)$/.exec(key) ?? [];
  const found = Object.entries(names).find(([, theirs]) => theirs === part);
  return found ? `blk.${layer}.${found[0]}.${kind}` : null;
}

/** The type that a tensor is written in: vectors stay exact, rows that do not fill blocks become half precision. */
export function ggufTypeFor(shape: readonly number[], wanted: GgufType): GgufType {
  if (shape.length < 2) return "f32";
  const blocks = wanted === "q8_0" || wanted === "q4_0";
  return blocks && (shape.at(-1) ?? 0) % 32 !== 0 ? "f16" : wanted;
}

export interface GgufModel {
  readonly metadata: Map<string, GgufValue>;
  readonly tensors: Map<string, GgufTensorInput>;
}

/**
 * A decoder as what `writeGguf` writes: matrices in `type`, vectors in f32. `tensors` are under transformers' names. Throws
 * PretrainedError for an architecture, or a part of one, that GGUF does not know, and where a reader would take it for another model.
 */
export async function ggufModelOf(
  raw: ConfigReader | RawConfig,
  tensors: Readonly<StateDict>,
  options: { readonly type: GgufType; readonly name: string },
): Promise<GgufModel> {
  const config = raw instanceof ConfigReader ? raw : new ConfigReader(raw);
  const { architecture, row } = rowOf(config);
  const decoder = decoders[config.text("model_type")](config);
  if (row.layersOf27B !== undefined && decoder.layers.length !== row.layersOf27B)
    if (Math.abs(decoder.attentionScale - decoder.headDim ** -0.5) > 1e-6)
      throw new PretrainedError(`${config.source}: "query_pre_attn_scalar" can't be written as GGUF`);
  const factors = ropeFactors(config, decoder);
  const names = { ...blockNames, ...row.names };
  const out = new Map<string, GgufTensorInput>();
  if (factors !== null) out.set("rope_freqs.weight", { type: "f32", shape: [factors.length], data: factors });
  const own = architectures().generation[config.text("model_type") as "llama"].adapt(tensors, config);
  for (const [key, stored] of Object.entries(own)) {
    const name = nameOf(key, names);
    if (name === null) throw new PretrainedError(`${config.source}: the tensor "${key}" has no place in a GGUF file`);
    const heads = name.includes(".attn_q.")
      ? decoder.numHeads
      : name.includes(".attn_k.")
        ? decoder.numKeyValueHeads
        : 0;
    let x = stored.to("float32");
    if (row.interleaved && heads > 0) x = asNeighbours(x, heads);
    if (row.shiftedNorms && /norm\.weight$/.test(name)) x = x.add(1);
    await realize(x);
    out.set(name, { type: ggufTypeFor(x.shape, options.type), shape: x.shape, data: (await x.data()) as Float32Array });
  }
  const model = { metadata: metadataOf(config, decoder, architecture, options.name), tensors: out };
  await expectReadAlike(config, decoder, model);
  return model;
}
