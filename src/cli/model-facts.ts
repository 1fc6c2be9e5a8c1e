/** What a model's files say of it, from headers and configurations alone: no weights are read. */
import { existsSync, readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { sizeOf } from "../core/shape.ts";
import { openPath } from "../data/files.ts";
import { type FormatSource, readGguf, readTorch, SafetensorsError } from "../formats/index.ts";
import { architectures, PretrainedError, type RawConfig, type Task } from "../models/index.ts";
import type { ModelPlace } from "./model-argument.ts";
import { ModelError } from "./model-argument.ts";
import { type ModelTokenizer, openTokenizer } from "./model-tokenizer.ts";
import { configOf, labelsOf, taskOf } from "./pretrained-model.ts";

export interface ModelFacts {
  readonly name: string;
  readonly architecture: string;
  /** transformers' class; null where this version does not know the architecture for the task. */
  readonly className: string | null;
  readonly task: Task;
  /** Whether it works on texts. */
  readonly text: boolean;
  readonly parameters: number;
  /** Types of the tensors, by their share of the parameters. */
  readonly types: readonly { readonly type: string; readonly share: number }[];
  readonly bytes: number;
  readonly files: number;
  /** Layers, width, heads in words. */
  readonly shape: string;
  readonly context: number | null;
  readonly tokenizer: string | null;
  /** Its kind and its number of tokens. */
  readonly tokens: { readonly kind: string; readonly size: number } | null;
  readonly chatTemplate: boolean;
  readonly labels: readonly string[] | null;
  readonly config: RawConfig;
}

interface Header {
  readonly type: string;
  readonly elements: number;
}

export async function describeModel(place: ModelPlace): Promise<ModelFacts> {
  const config = await configOf(place);
  const task = taskOf(config, place.name);
  const { headers, files } = place.kind === "gguf" ? await ggufHeaders(place.path) : await folderHeaders(place.path);
  const parameters = headers.reduce((n, { elements }) => n + elements, 0);
  const byType = new Map<string, number>();
  for (const { type, elements } of headers) byType.set(type, (byType.get(type) ?? 0) + elements);
  const types = [...byType]
    .map(([type, elements]) => ({ type, share: elements / parameters }))
    .filter(({ share }) => share >= 0.005) // a table of positions says nothing of the weights
    .sort((a, b) => b.share - a.share);
  const text = task !== "image-classification";
  const tokenizer = text ? await tokenizerOf(place) : null;
  const type = String(config["model_type"]);
  const rows: Readonly<Record<string, { readonly transformers: string }>> = architectures()[task];
  return {
    name: place.name,
    architecture: type,
    className: rows[type]?.transformers ?? null,
    task,
    text,
    parameters,
    types,
    bytes: files.reduce((n, path) => n + statSync(path).size, 0),
    files: files.length,
    shape: shapeOf(config),
    context: contextOf(config),
    tokenizer: tokenizer === null ? null : `${tokenizer.tokenizer.kind}, ${tokenizer.tokenizer.vocabSize} tokens`,
    tokens: tokenizer === null ? null : { kind: tokenizer.tokenizer.kind, size: tokenizer.tokenizer.vocabSize },
    chatTemplate: tokenizer !== null && tokenizer.templateText !== null,
    labels: task.includes("classification") ? labelsOf(config) : null,
    config,
  };
}

/** A folder may lack a tokenizer; then nothing is said of one. */
async function tokenizerOf(place: ModelPlace): Promise<ModelTokenizer | null> {
  const opening = openTokenizer(place);
  if (place.kind === "gguf" || existsSync(join(place.path, "tokenizer.json"))) return opening;
  return opening.catch((error: Error) => {
    if (error instanceof PretrainedError) return null;
    throw error;
  });
}

async function ggufHeaders(path: string): Promise<{ headers: Header[]; files: string[] }> {
  const { tensors } = await readGguf(path);
  const headers = [...tensors.values()].map(({ type, shape }) => ({ type, elements: sizeOf(shape) }));
  return { headers, files: [path] };
}

async function folderHeaders(folder: string): Promise<{ headers: Header[]; files: string[] }> {
  const all = readdirSync(folder).sort();
  const shards = all
    .filter((name) => /^model(-\d+-of-\d+)?\.safetensors$/.test(name))
    .map((name) => join(folder, name));
  if (shards.length > 0) {
    const headers: Header[] = [];
    for (const path of shards) headers.push(...(await safetensorsHeader(path)));
    return { headers, files: shards };
  }
  const old = all.filter((name) => /^pytorch_model(-\d+-of-\d+)?\.bin$/.test(name)).map((name) => join(folder, name));
  if (old.length === 0)
    throw new ModelError(`${folder} has no weights: neither model.safetensors nor pytorch_model.bin`);
  const headers: Header[] = [];
  for (const path of old)
    for (const { dtype, shape } of new Set((await readTorch(path as FormatSource)).tensors.values()))
      headers.push({ type: dtype, elements: sizeOf(shape) });
  return { headers, files: old };
}

const names: Readonly<Record<string, string>> = { F32: "float32", BF16: "bfloat16", F16: "float16", F64: "float64" };

/** The header alone. Throws SafetensorsError where there is none that can be read. */
async function safetensorsHeader(path: string): Promise<Header[]> {
  const reader = await openPath(path);
  try {
    const take = async (bytes: number): Promise<Uint8Array> => {
      const out = new Uint8Array(bytes);
      let at = 0;
      while (at < bytes) {
        const got = await reader.read(out.subarray(at));
        if (got === 0) throw new SafetensorsError(`${path}: the file ends inside of its header; it is truncated`);
        at += got;
      }
      return out;
    };
    const length = Number(new DataView((await take(8)).buffer).getBigUint64(0, true));
    if (length > statSync(path).size)
      throw new SafetensorsError(`${path}: the header claims ${length} bytes; it is damaged`);
    const header = JSON.parse(new TextDecoder().decode(await take(length))) as Record<
      string,
      { dtype: string; shape: number[] }
    >;
    return Object.entries(header)
      .filter(([name]) => name !== "__metadata__")
      .map(([, { dtype, shape }]) => ({ type: names[dtype] ?? dtype, elements: sizeOf(shape) }));
  } catch (error) {
    if (error instanceof SyntaxError) throw new SafetensorsError(`${path}: the header is not JSON; it is damaged`);
    throw error;
  } finally {
    await reader.close();
  }
}

const numberIn = (config: RawConfig, ...fields: readonly string[]): number | null => {
  for (const field of fields) if (typeof config[field] === "number") return config[field];
  return null;
};

function contextOf(config: RawConfig): number | null {
  const positions = numberIn(config, "max_position_embeddings", "n_positions");
  if (positions === null || config["model_type"] !== "roberta") return positions;
  return positions - (numberIn(config, "pad_token_id") ?? 1) - 1; // the first positions stand for no token
}

function shapeOf(config: RawConfig): string {
  const layers = numberIn(config, "num_hidden_layers", "n_layer", "n_layers");
  const width = numberIn(config, "hidden_size", "n_embd", "dim");
  const heads = numberIn(config, "num_attention_heads", "n_head", "n_heads");
  const shared = numberIn(config, "num_key_value_heads");
  const inner = numberIn(config, "intermediate_size", "n_inner", "hidden_dim");
  const vocabulary = numberIn(config, "vocab_size");
  const parts = [
    layers !== null && `${layers} layers`,
    width !== null && `width ${width}`,
    heads !== null && `${heads} heads${shared !== null && shared !== heads ? ` (${shared} for keys and values)` : ""}`,
    inner !== null && `inner width ${inner}`,
    vocabulary !== null && `vocabulary ${vocabulary}`,
  ];
  return parts.filter((part) => typeof part === "string").join(", ");
}
