/**
 * What the files of a sentence-transformers folder say of how its states become vectors: `modules.json` lists the steps, `1_Pooling/config.json` how
 * states become one vector, `sentence_bert_config.json` how texts are read, `config_sentence_transformers.json` what is put before them.
 */
import { join } from "../data/path.ts";
import { ConfigReader, PretrainedError, type RawConfig } from "./config.ts";
import type { Pooling } from "./encoder.ts";
import { optionalBytes, parseJson } from "./json.ts";

/** How a text becomes one vector. */
export interface EmbeddingSettings {
  /** Several are put side by side. */
  readonly pooling: readonly Pooling[];
  /** Whether vectors get the length 1. */
  readonly normalize: boolean;
  /** The most tokens of a text, with those around it; null: as many as the model sees. */
  readonly maxLength: number | null;
  /** Put before every text. */
  readonly prompt: string;
  /** What may be put there instead, by names as "query" and "passage". */
  readonly prompts: Readonly<Record<string, string>>;
  /** Whether the tokens of the prompt are pooled too, and the one before it. */
  readonly poolPrompt: boolean;
  /** Whether texts are written in small letters before they are read. */
  readonly lowerCase: boolean;
  /** How many numbers of a vector are kept, from its beginning; null: all. Those are not normalised anew. */
  readonly dimensions: number | null;
}

/** Those of a model that no file says anything of: the mean of all tokens, as sentence-transformers takes it. */
export const plainEmbedding: EmbeddingSettings = {
  pooling: ["mean"],
  normalize: false,
  maxLength: null,
  prompt: "",
  prompts: {},
  poolPrompt: true,
  lowerCase: false,
  dimensions: null,
};

/** sentence-transformers' names of its ways to pool, in the order in which it puts them side by side. */
const poolings: readonly (readonly [field: string, pooling: Pooling])[] = [
  ["pooling_mode_cls_token", "cls"],
  ["pooling_mode_max_tokens", "max"],
  ["pooling_mode_mean_tokens", "mean"],
  ["pooling_mode_mean_sqrt_len_tokens", "meanSqrtLen"],
  ["pooling_mode_lasttoken", "last"],
];

async function jsonAt(path: string): Promise<unknown> {
  const bytes = await optionalBytes(path);
  return bytes && parseJson(bytes, path);
}

async function objectAt(path: string): Promise<ConfigReader | null> {
  const raw = await jsonAt(path);
  if (raw === null) return null;
  if (typeof raw !== "object" || Array.isArray(raw)) throw new PretrainedError(`${path}: must be a JSON object`);
  return new ConfigReader(raw as RawConfig, path);
}

function poolingOf(config: ConfigReader): Pooling[] {
  const named = config.raw["pooling_mode"]; // as newer versions write it
  if (named !== undefined)
    return [named].flat().map((name) => {
      const wanted = name === "lasttoken" ? "last" : name === "mean_sqrt_len_tokens" ? "meanSqrtLen" : name;
      const found = poolings.find(([, pooling]) => pooling === wanted);
      if (found) return found[1];
      throw new PretrainedError(
        `${config.source}: "pooling_mode" is ${JSON.stringify(name)}; known are cls, max, mean, mean_sqrt_len_tokens, lasttoken`,
      );
    });
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

/** The file of how texts are read is called after the model's kind; the first that is there counts. */
const readingFiles = ["bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"];

/** How texts are read: the longest, and whether in small letters. */
async function readingOf(folder: string): Promise<Pick<EmbeddingSettings, "maxLength" | "lowerCase">> {
  let config: ConfigReader | null = null;
  for (const kind of readingFiles) config ??= await objectAt(join(folder, `sentence_${kind}_config.json`));
  const lowerCase = config?.boolean("do_lower_case", false) ?? false;
  if (config?.has("max_seq_length")) return { maxLength: config.count("max_seq_length"), lowerCase };
  const tokenizer = await objectAt(join(folder, "tokenizer_config.json"));
  // 1e30 where nobody has set one
  return { maxLength: tokenizer?.has("model_max_length") ? tokenizer.count("model_max_length") : null, lowerCase };
}

/** What is put before texts, and how much of a vector is kept. */
async function wholeOf(folder: string): Promise<Pick<EmbeddingSettings, "prompt" | "prompts" | "dimensions">> {
  const config = await objectAt(join(folder, "config_sentence_transformers.json"));
  const given = config?.raw["prompts"] ?? {};
  const entries = Object.entries(given as object).map(([name, text]): [string, string] => [name, text ?? ""]);
  if (config && !entries.every(([, text]) => typeof text === "string"))
    throw new PretrainedError(`${config.source}: "prompts" must be texts by their names`);
  const prompts = Object.fromEntries(entries);
  const name = config?.has("default_prompt_name") ? config.text("default_prompt_name") : null;
  if (name !== null && !Object.hasOwn(prompts, name))
    throw new PretrainedError(
      `${config?.source}: "default_prompt_name" is ${JSON.stringify(name)}, which is not among the prompts`,
    );
  const dimensions = config?.has("truncate_dim") ? config.count("truncate_dim") : null;
  return { prompt: name === null ? "" : prompts[name], prompts, dimensions };
}

/**
 * The settings in a sentence-transformers folder; where it has no `modules.json` the mean of all tokens, not normalised, as
 * sentence-transformers takes it. Throws PretrainedError for a step that is not known, naming it.
 */
export async function readEmbeddingSettings(folder: string): Promise<EmbeddingSettings> {
  const path = join(folder, "modules.json");
  const modules = await jsonAt(path);
  const others = { ...plainEmbedding, ...(await readingOf(folder)), ...(await wholeOf(folder)) };
  if (modules === null) return others;
  if (!Array.isArray(modules)) throw new PretrainedError(`${path}: must be a list of modules`);
  let pooling: Pooling[] | null = null;
  let poolPrompt = true;
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
      poolPrompt = config.boolean("include_prompt", true);
    } else if (kind === "Normalize") normalize = true;
    else if (kind !== "Transformer")
      throw new PretrainedError(
        `${path}: module ${i} is of type ${JSON.stringify(module.text("type"))}; known are Transformer, Pooling and Normalize`,
      );
  }
  if (!pooling) throw new PretrainedError(`${path}: there is no Pooling among the modules`);
  return { ...others, pooling, poolPrompt, normalize };
}
