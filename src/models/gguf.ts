/**
 * Decoders from GGUF files (llama.cpp): the metadata become what a `config.json` says and the tensors get Hugging Face's names, so
 * that the same pages serve both. Reading the file is `formats/gguf.ts`. Two things are stored otherwise than in
 * transformers' checkpoints: Llama's heads turn neighbouring features instead of halves, and Gemma's norms include the 1.
 */
import { basename } from "../data/path.ts";
import { backendOf, defaultDevice } from "../execution/index.ts";
import {
  type FormatSource,
  type GgufFile,
  type GgufTensor,
  loadGguf,
  readGguf,
  splitBlocks,
} from "../formats/index.ts";
import { storedFormats } from "../graph/composites/index.ts";
import type { StateDict } from "../nn/index.ts";
import { fromRaw, type Tensor } from "../tensor/index.ts";
import { type BlockFormat, type BlockWeight, isSplit } from "./blocks.ts";
import { PretrainedError, type RawConfig } from "./config.ts";

/** The parts of a block, by GGUF's names. */
export const blockNames = {
  attn_norm: "input_layernorm",
  attn_q: "self_attn.q_proj",
  attn_k: "self_attn.k_proj",
  attn_v: "self_attn.v_proj",
  attn_output: "self_attn.o_proj",
  attn_q_norm: "self_attn.q_norm",
  attn_k_norm: "self_attn.k_norm",
  ffn_norm: "post_attention_layernorm",
  ffn_gate: "mlp.gate_proj",
  ffn_up: "mlp.up_proj",
  ffn_down: "mlp.down_proj",
} as const;
const sandwichNames = {
  post_attention_norm: "post_attention_layernorm",
  ffn_norm: "pre_feedforward_layernorm",
  post_ffw_norm: "post_feedforward_layernorm",
} as const;

export interface GgufRow {
  /** transformers' name of the architecture. */
  readonly modelType: string;
  /** What differs from `blockNames`. */
  readonly names?: Readonly<Record<string, string>>;
  /** Queries and keys have their features interleaved. */
  readonly interleaved?: boolean;
  /** Weights of norms include the 1 that transformers adds. */
  readonly shiftedNorms?: boolean;
  /** Layers of the one model whose scores are scaled by the width of the model and not of a head (Gemma's 27 B). */
  readonly layersOf27B?: number;
}

/** By `general.architecture`; Mistral and SmolLM 1 and 2 are "llama" here. */
export const ggufRows: Readonly<Record<string, GgufRow>> = {
  llama: { modelType: "llama", interleaved: true },
  qwen2: { modelType: "qwen2" },
  qwen3: { modelType: "qwen3" },
  gemma2: { modelType: "gemma2", names: sandwichNames, shiftedNorms: true, layersOf27B: 46 },
  gemma3: { modelType: "gemma3_text", names: sandwichNames, shiftedNorms: true, layersOf27B: 62 },
  phi3: { modelType: "phi3", names: { attn_qkv: "self_attn.qkv_proj", ffn_up: "mlp.gate_up_proj" } },
};

/** What a file says of the model, by the names without the architecture's. */
class Metadata {
  readonly file: GgufFile;
  readonly source: string;
  readonly architecture: string;
  constructor(file: GgufFile, source: string) {
    this.file = file;
    this.source = source;
    const architecture = file.metadata.get("general.architecture")?.value;
    if (typeof architecture !== "string")
      throw new PretrainedError(
        `${source}: "general.architecture" is missing; the file does not say which model it is`,
      );
    this.architecture = architecture;
  }
  /** A value as JSON has it, undefined where there is none. Single precision's 1e-5 is read as 1e-5. */
  get(name: string): number | string | boolean | undefined {
    const found = this.file.metadata.get(`${this.architecture}.${name}`);
    if (found === undefined) return undefined;
    if (found.type === "array")
      throw new PretrainedError(
        `${this.source}: "${this.architecture}.${name}" differs between layers, which no model here does`,
      );
    if (found.type === "float32") return Number(found.value.toPrecision(7));
    return typeof found.value === "bigint" ? Number(found.value) : found.value;
  }
  has(tensor: string): boolean {
    return this.file.tensors.has(tensor);
  }
}

const rowOf = ({ architecture, source }: Metadata): GgufRow => {
  if (Object.hasOwn(ggufRows, architecture)) return ggufRows[architecture];
  throw new PretrainedError(
    `${source}: unknown architecture "${architecture}"; known in GGUF files are ${Object.keys(ggufRows).join(", ")}`,
  );
};

/** The stretching of rope: factors a frequency as tensors (Llama 3.1, LongRoPE), or a kind by name. */
async function ropeScaling(metadata: Metadata): Promise<object | null> {
  const factors = async (name: string): Promise<number[] | null> => {
    const tensor = metadata.file.tensors.get(name);
    return tensor ? Array.from(await tensor.float32()) : null;
  };
  const original_max_position_embeddings =
    metadata.get("rope.scaling.original_context_length") ?? metadata.get("context_length");
  const attention = metadata.get("rope.scaling.attn_factor");
  const same = await factors("rope_freqs.weight");
  const [short, long] = [await factors("rope_factors_short.weight"), await factors("rope_factors_long.weight")];
  if (same || (short && long))
    return {
      rope_type: "longrope",
      short_factor: short ?? same,
      long_factor: long ?? same,
      attention_factor: attention ?? 1,
      original_max_position_embeddings,
    };
  const kind = metadata.get("rope.scaling.type");
  if (kind === undefined || kind === "none") return null;
  return { rope_type: kind, factor: metadata.get("rope.scaling.factor"), original_max_position_embeddings };
}

/** What `config.json` would say. */
async function configOf(metadata: Metadata): Promise<RawConfig> {
  const row = rowOf(metadata);
  const [hidden, heads] = [metadata.get("embedding_length"), metadata.get("attention.head_count")];
  const layers = metadata.get("block_count");
  const headDim = metadata.get("attention.key_length") ?? Math.floor(Number(hidden) / Number(heads));
  const ropeWidth = Number(metadata.get("rope.dimension_count") ?? headDim);
  const raw = {
    model_type: row.modelType,
    vocab_size: metadata.file.tensors.get("token_embd.weight")?.shape[0],
    hidden_size: hidden,
    intermediate_size: metadata.get("feed_forward_length"),
    num_hidden_layers: layers,
    num_attention_heads: heads,
    num_key_value_heads: metadata.get("attention.head_count_kv") ?? heads,
    head_dim: headDim,
    partial_rotary_factor: ropeWidth / Number(headDim),
    max_position_embeddings: metadata.get("context_length"),
    rms_norm_eps: metadata.get("attention.layer_norm_rms_epsilon"),
    rope_theta: metadata.get("rope.freq_base") ?? 10000,
    rope_local_base_freq: metadata.get("rope.freq_base_swa"),
    rope_scaling: await ropeScaling(metadata),
    sliding_window: metadata.get("attention.sliding_window") ?? null,
    attention_bias: metadata.has("blk.0.attn_q.bias"),
    mlp_bias: metadata.has("blk.0.ffn_up.bias"),
    attn_logit_softcapping: metadata.get("attn_logit_softcapping"),
    final_logit_softcapping: metadata.get("final_logit_softcapping"),
    query_pre_attn_scalar: layers === row.layersOf27B ? Number(hidden) / Number(heads) : headDim,
    tie_word_embeddings: !metadata.has("output.weight"),
  };
  return Object.fromEntries(Object.entries(raw).filter(([, value]) => value !== undefined));
}

/** What `config.json` would say, of a file's metadata and the shapes of its tensors. */
export const ggufConfigOf = (file: GgufFile, source: string): Promise<RawConfig> =>
  configOf(new Metadata(file, source));

/** The configuration alone, from the metadata. Throws as readGgufModel does. */
export async function readGgufConfig(source: FormatSource): Promise<RawConfig> {
  return configOf(new Metadata(await readGguf(source), typeof source === "string" ? basename(source) : "GGUF file"));
}

/** Rows (x₀, x₁), (x₂, x₃) … of each head [heads · width, …] as halves (x₀, x₂ …), (x₁, x₃ …). */
function asHalves(x: Tensor, heads: number): Tensor {
  const [rowCount, ...rest] = x.shape;
  return x
    .reshape(heads, rowCount / heads / 2, 2, ...rest)
    .transpose(1, 2)
    .reshape(rowCount, ...rest);
}

/** transformers' key of a tensor; its own where it belongs to no part that is known, so that the error names it. */
function keyOf(name: string, names: Readonly<Record<string, string>>): string {
  if (name === "token_embd.weight") return "model.embed_tokens.weight";
  if (name === "output_norm.weight") return "model.norm.weight";
  if (name === "output.weight") return "lm_head.weight";
  const block = name.match(/^blk\.(\d+)\.(\w+)\.(weight|bias)$/);
  return block && Object.hasOwn(names, block[2]) ? `model.layers.${block[1]}.${names[block[2]]}.${block[3]}` : name;
}

/** Matrices whose blocks products read as they are. */
const isKept = ({ type, shape }: GgufTensor): boolean =>
  shape.length === 2 && (isSplit(type) || Object.hasOwn(storedFormats, type));

/** A matrix in blocks that a model may keep. */
export interface StoredMatrix {
  readonly format: BlockFormat;
  /** [rows, width] */
  readonly shape: readonly [number, number];
  /** Of the blocks, in the file and in memory. */
  readonly byteLength: number;
}

/** The matrices that stay as they are stored with `keepQuantized`, by the model's keys; only the header is read. Throws as readGgufModel does. */
export async function readStoredMatrices(source: FormatSource): Promise<ReadonlyMap<string, StoredMatrix>> {
  const file = await readGguf(source);
  const { names = {} } = rowOf(new Metadata(file, typeof source === "string" ? basename(source) : "GGUF file"));
  const out = new Map<string, StoredMatrix>();
  for (const tensor of file.tensors.values()) {
    if (!isKept(tensor)) continue;
    const { name, type, shape, byteLength } = tensor;
    const [rows, width] = shape;
    out.set(keyOf(name, { ...blockNames, ...names }), {
      format: type as BlockFormat,
      shape: [rows, width],
      byteLength,
    });
  }
  return out;
}

/**
 * A stored matrix as it is, mapped where that can be; codes and scales of q8_0 and q4_0 apart, which takes `room`. `owned`: nobody else has
 * the bytes that are read.
 */
async function readBlocks(
  { type, shape: [rows], read, mapped }: GgufTensor,
  room: ArrayBuffer,
  options: { readonly device?: string; readonly owned: boolean },
): Promise<BlockWeight> {
  if (isSplit(type)) {
    const { codes, scales } = splitBlocks(type, await read(), room);
    const given = { ...options, owned: false };
    return {
      format: type,
      codes: fromRaw(codes, "uint8", [rows, codes.length / rows], given),
      scales: fromRaw(scales, "float16", [rows, scales.length / rows], given),
    };
  }
  const blocks = (await mapped()) ?? (await read());
  const codes = fromRaw(blocks, "uint8", [rows, blocks.length / rows], options);
  return { format: type as BlockFormat, codes, scales: null };
}

export interface GgufModelOptions {
  /** Default: the default device. */
  readonly device?: string;
  /** Matrices in quantised types come as `blocks`, as they are stored. Default: false, and `blocks` is empty. */
  readonly keepQuantized?: boolean;
}

/** What a GGUF file holds, under the model's keys. */
export interface LoadedGguf {
  readonly config: RawConfig;
  readonly tensors: StateDict;
  readonly blocks: Readonly<Record<string, BlockWeight>>;
  readonly source: string;
  readonly file: GgufFile;
}

/**
 * The configuration and the tensors of a GGUF file as `modelFrom` takes them; quantised blocks come as float32 unless they are kept. Throws
 * FormatError, FileError, and PretrainedError for an architecture that is not known.
 */
export async function readGgufModel(source: FormatSource, options: GgufModelOptions = {}): Promise<LoadedGguf> {
  const { keepQuantized = false, ...where } = options;
  const name = typeof source === "string" ? basename(source) : "GGUF file";
  const file = await readGguf(source);
  const metadata = new Metadata(file, name);
  const row = rowOf(metadata);
  const config = await configOf(metadata);
  const names = { ...blockNames, ...row.names };
  /** The rows of queries and keys, in the order in which transformers has them. */
  const ordered = (stored: string, x: Tensor): Tensor => {
    if (row.interleaved && /^blk\.\d+\.attn_q\./.test(stored))
      return asHalves(x, Number(config["num_attention_heads"]));
    if (row.interleaved && /^blk\.\d+\.attn_k\./.test(stored))
      return asHalves(x, Number(config["num_key_value_heads"]));
    return x;
  };
  const kept = new Set(keepQuantized ? [...file.tensors.values()].filter(isKept) : []);
  const owned = typeof source === "string" || source instanceof URL; // other sources may be read from memory
  const blocks: Record<string, BlockWeight> = {};
  // opened, so that what is read goes to the device at once and not when it is first used
  if (kept.size > 0) await backendOf(where.device ?? defaultDevice());
  const room = new ArrayBuffer(
    Math.max(0, ...[...kept].map(({ type, byteLength }) => (isSplit(type) ? byteLength : 0))),
  );
  for (const tensor of kept) {
    const { format, codes, scales } = await readBlocks(tensor, room, { ...where, owned });
    blocks[keyOf(tensor.name, names)] = {
      format,
      codes: ordered(tensor.name, codes),
      scales: scales && ordered(tensor.name, scales),
    };
  }
  const select = (stored: string): boolean => !kept.has(file.tensors.get(stored) as GgufTensor);
  const tensors: StateDict = {};
  for (const [stored, x] of Object.entries(await loadGguf(source, { ...where, select }))) {
    if (/^rope_(freqs|factors_\w+)\.weight$/.test(stored)) continue; // part of the configuration
    const y = ordered(stored, x);
    tensors[keyOf(stored, names)] = row.shiftedNorms && /norm\.weight$/.test(stored) ? y.sub(1) : y;
  }
  return { config, tensors, blocks, source: name, file };
}
