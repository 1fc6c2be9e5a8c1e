/**
 * Texts as vectors: an encoder's states, pooled and normalised as the folder of a sentence-transformers model says (Reimers & Gurevych
 * 2019, Sentence-BERT). Its `modules.json` lists the steps, `1_Pooling/config.json` how states become one vector.
 */

import { paddedLength } from "../data/padding.ts";
import { join } from "../data/path.ts";
import { readBytes } from "../data/source.ts";
import { inEvaluation } from "../nn/module.ts";
import { cat, noGrad, realize, type Tensor, tensor } from "../tensor/index.ts";
import { ConfigReader, PretrainedError, type RawConfig } from "./config.ts";
import { type Pooling, pool, type TextEncoder } from "./encoder.ts";

/** How states become one vector. */
export interface EmbeddingSettings {
  /** Several are put side by side. */
  readonly pooling: readonly Pooling[];
  /** Whether vectors get the length 1. */
  readonly normalize: boolean;
  /** The most tokens of a text, with those around it; null: as many as the model sees. */
  readonly maxLength: number | null;
}

/** What is needed of a tokenizer: the ids of a text, with the tokens that the model expects around it. */
export interface EmbeddingTokenizer {
  encode(text: string): ArrayLike<number>;
}

export interface EmbedOptions extends Partial<EmbeddingSettings> {
  readonly tokenizer: EmbeddingTokenizer;
  /** Texts that are computed at once. Default: 32. */
  readonly batch?: number;
}

/** sentence-transformers' names of its ways to pool, in the order in which it puts them side by side. */
const poolings: readonly (readonly [field: string, pooling: Pooling])[] = [
  ["pooling_mode_cls_token", "cls"],
  ["pooling_mode_max_tokens", "max"],
  ["pooling_mode_mean_tokens", "mean"],
  ["pooling_mode_mean_sqrt_len_tokens", "meanSqrtLen"],
  ["pooling_mode_lasttoken", "last"],
];

async function jsonAt(path: string): Promise<unknown> {
  let bytes: Uint8Array;
  try {
    bytes = await readBytes(path);
  } catch (error) {
    if ((error as { code?: string }).code === "ENOENT") return null;
    throw error;
  }
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (error) {
    throw new PretrainedError(`${path}: this is not valid JSON (${(error as Error).message})`);
  }
}

async function objectAt(path: string): Promise<ConfigReader | null> {
  const raw = await jsonAt(path);
  if (raw === null) return null;
  if (typeof raw !== "object" || Array.isArray(raw)) throw new PretrainedError(`${path}: must be a JSON object`);
  return new ConfigReader(raw as RawConfig, path);
}

function poolingOf(config: ConfigReader): Pooling[] {
  const named = config.raw["pooling_mode"]; // as newer versions write it
  if (typeof named === "string") {
    const wanted = named === "lasttoken" ? "last" : named === "mean_sqrt_len_tokens" ? "meanSqrtLen" : named;
    const found = poolings.find(([, pooling]) => pooling === wanted);
    if (found) return [found[1]];
    throw new PretrainedError(
      `${config.source}: "pooling_mode" is ${JSON.stringify(named)}; known are cls, max, mean, mean_sqrt_len_tokens, lasttoken`,
    );
  }
  const known = new Set(poolings.map(([field]) => field));
  const unknown = Object.keys(config.raw).find(
    (field) => field.startsWith("pooling_mode_") && !known.has(field) && config.raw[field] === true,
  );
  if (unknown)
    throw new PretrainedError(`${config.source}: "${unknown}" can't be computed; known are ${[...known].join(", ")}`);
  const chosen = poolings.filter(([field]) => config.boolean(field, false)).map(([, pooling]) => pooling);
  if (chosen.length === 0) throw new PretrainedError(`${config.source}: no way of pooling is chosen`);
  return chosen;
}

/**
 * The settings in a sentence-transformers folder; where it has no `modules.json` the mean of all tokens, not normalised, as
 * sentence-transformers takes it. Throws PretrainedError for a step that is not known, naming it.
 */
export async function readEmbeddingSettings(folder: string): Promise<EmbeddingSettings> {
  const path = join(folder, "modules.json");
  const modules = await jsonAt(path);
  const length = await objectAt(join(folder, "sentence_bert_config.json"));
  const maxLength = length?.has("max_seq_length") ? length.count("max_seq_length") : null;
  if (modules === null) return { pooling: ["mean"], normalize: false, maxLength };
  if (!Array.isArray(modules)) throw new PretrainedError(`${path}: must be a list of modules`);
  let pooling: Pooling[] | null = null;
  let normalize = false;
  modules.forEach((_, i) => {
    if (typeof modules[i] !== "object" || modules[i] === null)
      throw new PretrainedError(`${path}: module ${i} must be an object with "type" and "path"`);
  });
  for (const [i, raw] of modules.entries()) {
    const module = new ConfigReader(raw as RawConfig, `${path}: module ${i}`);
    const kind = module.text("type").split(".").at(-1);
    if (kind === "Pooling") {
      const file = join(folder, module.text("path"), "config.json");
      const config = await objectAt(file);
      if (!config) throw new PretrainedError(`${file}: this file is missing; ${path} names it`);
      pooling = poolingOf(config);
    } else if (kind === "Normalize") normalize = true;
    else if (kind !== "Transformer")
      throw new PretrainedError(
        `${path}: module ${i} is of type ${JSON.stringify(module.text("type"))}; known are Transformer, Pooling and Normalize`,
      );
  }
  if (!pooling) throw new PretrainedError(`${path}: there is no Pooling among the modules`);
  return { pooling, normalize, maxLength };
}

/** Rows of tokens, padded to one length: ids and mask, [batch, time] each. */
function padded(rows: readonly ArrayLike<number>[], batch: number, longest: number, pad: number): [Tensor, Tensor] {
  const time = paddedLength(Math.max(...rows.map(({ length }) => length)), longest);
  const shape = [batch, time];
  const ids = new Int32Array(batch * time).fill(pad);
  const mask = new Int32Array(batch * time);
  for (let r = 0; r < batch; r++) mask[r * time] = 1; // a row that is missing: a softmax over nothing would be NaN
  rows.forEach((row, r) => {
    ids.set(row, r * time);
    mask.fill(1, r * time, r * time + row.length);
  });
  return [tensor(ids, { shape }), tensor(mask, { shape })];
}

/**
 * A vector for each text: [texts, width], in float32, on the model's device. What is longer than `maxLength` keeps its beginning and its last token, as
 * sentence-transformers cuts it. Batches hold texts of like length, and padding changes nothing. Throws PretrainedError where a text has no tokens.
 */
export async function embed(model: TextEncoder, texts: readonly string[], options: EmbedOptions): Promise<Tensor> {
  const { tokenizer, pooling = ["mean"], normalize = false, batch = 32 } = options;
  if (texts.length === 0) throw new PretrainedError("embed: there are no texts");
  if (!Number.isInteger(batch) || batch < 1)
    throw new PretrainedError(`embed: batch must be a whole number ≥ 1, got ${batch}`);
  const longest = Math.min(options.maxLength ?? model.contextLength, model.contextLength);
  const rows = texts.map((text, i) => {
    const ids = Int32Array.from(tokenizer.encode(text));
    if (ids.length === 0) throw new PretrainedError(`embed: text ${i} has no tokens`);
    if (ids.length <= longest) return ids;
    const kept = ids.slice(0, longest);
    kept[longest - 1] = ids[ids.length - 1];
    return kept;
  });
  const order = rows.map((_, i) => i).sort((a, b) => rows[b].length - rows[a].length || a - b);
  const parts: Tensor[] = [];
  await inEvaluation(model, async () => {
    for (let at = 0; at < order.length; at += batch) {
      const chosen = order.slice(at, at + batch);
      const vectors = noGrad(() => {
        const [ids, attentionMask] = padded(
          chosen.map((i) => rows[i]),
          batch,
          longest,
          model.padTokenId ?? 0,
        );
        const hidden = model.forward(ids, { attentionMask });
        const pooled = pooling.map((kind) => pool(hidden, kind, attentionMask));
        return unit(cat(pooled, 1).to("float32"), normalize).narrow(0, 0, chosen.length);
      });
      await realize(vectors);
      parts.push(vectors);
    }
  });
  const places = new Int32Array(order.length);
  for (const [place, text] of order.entries()) places[text] = place;
  const vectors = cat(parts, 0).indexSelect(0, tensor(places));
  await realize(vectors);
  return vectors;
}

/** Rows divided by their lengths, as torch.nn.functional.normalize does. */
const unit = (x: Tensor, normalize: boolean): Tensor =>
  normalize ? x.div(x.square().sum({ dim: 1, keepdim: true }).sqrt().clamp(1e-12)) : x;
