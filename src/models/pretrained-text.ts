/**
 * What a checkpoint says of text beside its weights: the tokenizer, the chat template, the tokens that end a text, the authors' sampling. A
 * model from `fromPretrained` has it. What is missing or damaged is an error when it is used, so that weights can be had alone.
 */
import { ChatTemplate } from "../data/chat-template.ts";
import { join } from "../data/path.ts";
import { loadTokenizer, readTokenizerJson, type Tokenizer } from "../data/tokenizer.ts";
import type { Module } from "../nn/index.ts";
import { type ConfigReader, PretrainedError } from "./config.ts";
import { type EmbeddingSettings, readEmbeddingSettings } from "./embedding-settings.ts";
import type { TokenizerFiles } from "./gguf-tokenizer-export.ts";
import { optionalBytes, parseJson } from "./json.ts";
import { olderTokenizer } from "./older-tokenizers.ts";

/** `generation_config.json`'s sampling, by our names; what it does not say is absent. */
export interface GenerationConfig {
  readonly temperature?: number;
  readonly topK?: number;
  readonly topP?: number;
  readonly minP?: number;
  readonly repetitionPenalty?: number;
}

/** What a model knows of text. */
export interface TextSide {
  /** What was given to `fromPretrained`; an adapter's configuration names it. */
  readonly nameOrPath: string;
  /** Throws PretrainedError where the checkpoint has none, TokenizerError where it can't be read. */
  readonly tokenizer: Tokenizer;
  /** Null where the checkpoint has none. Throws ChatTemplateError where it can't be read. */
  readonly chatTemplate: ChatTemplate | null;
  /** The tokens after which a text has ended. Throws PretrainedError where the file that says so is damaged. */
  readonly stopTokens: readonly number[];
  /** How the authors sample. Greedily is a temperature of 0. */
  readonly generationConfig: GenerationConfig;
  /** How an encoder's states become one vector; null of a GGUF file. Throws PretrainedError for a step that is not known. */
  readonly embeddingSettings: EmbeddingSettings | null;
}

/** A model that knows its text. */
export type Pretrained<M extends Module> = M & TextSide;

/** A value, or the error that says why there is none. */
type OrError<T> = { readonly value: T } | { readonly error: unknown };

export interface LoadedText {
  readonly nameOrPath: string;
  readonly tokenizer: OrError<Tokenizer>;
  readonly chatTemplate: OrError<ChatTemplate | null>;
  readonly stopTokens: OrError<readonly number[]>;
  readonly generationConfig: OrError<GenerationConfig>;
  readonly embeddingSettings?: OrError<EmbeddingSettings>;
}

export const attempt = async <T>(make: () => T | Promise<T>): Promise<OrError<T>> => {
  try {
    return { value: await make() };
  } catch (error) {
    return { error };
  }
};

function got<T>(found: OrError<T>): T {
  if ("error" in found) throw found.error;
  return found.value;
}

/** Gives a model its side of text. The properties are not those of the module: its parts are found without them. */
export function withText<M extends Module>(model: M, text: LoadedText): Pretrained<M> {
  const property = (get: () => unknown) => ({ get, configurable: true, enumerable: false });
  return Object.defineProperties(model, {
    nameOrPath: property(() => text.nameOrPath),
    tokenizer: property(() => got(text.tokenizer)),
    chatTemplate: property(() => got(text.chatTemplate)),
    stopTokens: property(() => got(text.stopTokens)),
    generationConfig: property(() => got(text.generationConfig)),
    embeddingSettings: property(() => (text.embeddingSettings ? got(text.embeddingSettings) : null)),
  }) as Pretrained<M>;
}

type Json = Readonly<Record<string, unknown>>;
const isObject = (x: unknown): x is Json => typeof x === "object" && x !== null && !Array.isArray(x);

/** A file of the folder as text; null where there is none. */
async function optionalText(folder: string, name: string): Promise<string | null> {
  const bytes = await optionalBytes(join(folder, name));
  return bytes && new TextDecoder("utf-8", { fatal: true }).decode(bytes);
}

/** An object from a JSON file of the folder; empty where there is none. Throws PretrainedError where it is damaged. */
async function optionalJson(folder: string, name: string): Promise<Json> {
  const path = join(folder, name);
  const bytes = await optionalBytes(path);
  if (bytes === null) return {};
  const json = parseJson(bytes, path);
  if (!isObject(json)) throw new PretrainedError(`${path}: must be a JSON object`);
  return json;
}

/** A special token as tokenizer_config.json writes it: its text, or an object with it. */
export const tokenText = (x: unknown): string => {
  const text = isObject(x) ? x["content"] : x;
  return typeof text === "string" ? text : "";
};

const idsOf = (x: unknown): number[] => (Array.isArray(x) ? x : [x]).filter((id) => Number.isInteger(id) && id >= 0);

/** generation_config.json's names, and ours. */
const samplingNames = {
  temperature: "temperature",
  top_k: "topK",
  top_p: "topP",
  min_p: "minP",
  repetition_penalty: "repetitionPenalty",
} as const;

/** What else of it changes which tokens come, with the values that change nothing. */
const notFollowed: Readonly<Record<string, readonly unknown[]>> = {
  bad_words_ids: [],
  begin_suppress_tokens: [],
  epsilon_cutoff: [0],
  eta_cutoff: [0],
  exponential_decay_length_penalty: [],
  forced_bos_token_id: [],
  forced_eos_token_id: [],
  guidance_scale: [1],
  min_length: [0],
  min_new_tokens: [0],
  no_repeat_ngram_size: [0],
  num_beams: [1],
  penalty_alpha: [0],
  sequence_bias: [],
  suppress_tokens: [],
  top_h: [],
  typical_p: [1],
};

/** The sampling that generation_config.json asks for, as transformers follows it. Throws PretrainedError for what `generate` does not follow. */
function samplingOf(json: Json): GenerationConfig {
  for (const [name, harmless] of Object.entries(notFollowed)) {
    const value = json[name] ?? null;
    const isEmpty = value === null || (Array.isArray(value) && value.length === 0);
    if (!isEmpty && !harmless.includes(value))
      throw new PretrainedError(
        `generation_config.json: "${name}" is ${JSON.stringify(value)}, which generate does not follow; leave useGenerationConfig out, and give the sampling`,
      );
  }
  const out: Record<string, number> = json["do_sample"] === true ? { topK: 50 } : {}; // where it says nothing else
  if (json["top_k"] === 0) delete out["topK"];
  for (const [name, own] of Object.entries(samplingNames)) {
    const value = json[name];
    if (typeof value === "number" && !(name === "top_k" && value === 0)) out[own] = value; // 0 is "all" there
  }
  return json["do_sample"] === true ? out : { ...out, temperature: 0 };
}

/** The template in tokenizer_config.json: a text, or several with names, of which "default" is taken. */
export function templateIn(config: Json): string | null {
  const found = config["chat_template"];
  if (typeof found === "string") return found;
  const named = Array.isArray(found) ? found.filter(isObject) : [];
  const chosen = named.find(({ name }) => name === "default") ?? named[0];
  return typeof chosen?.["template"] === "string" ? chosen["template"] : null;
}

async function templateOf(folder: string, config: Json): Promise<string | null> {
  return (
    (await optionalText(folder, "chat_template.jinja")) ??
    templateIn(await optionalJson(folder, "chat_template.json")) ??
    templateIn(config)
  );
}

/** What is said of a tokenizer that `fromPretrained` was told to leave. */
export function unread(nameOrPath: string): never {
  throw new PretrainedError(`${nameOrPath}: loaded with { tokenizer: null }, so that its tokenizer is not there`);
}

/** Reads the text side of a folder, which was asked for as `nameOrPath`. What is missing or damaged is told to whoever uses it. */
export async function readText(
  folder: string,
  nameOrPath: string,
  config: ConfigReader,
  given: Tokenizer | null | undefined,
): Promise<LoadedText> {
  const settings = await attempt(() => optionalJson(folder, "tokenizer_config.json"));
  const sampling = await attempt(() => optionalJson(folder, "generation_config.json"));
  const tokenizer = await attempt(
    () => given ?? (given === null ? unread(nameOrPath) : tokenizerIn(folder, config.raw["model_type"])),
  );
  const chatTemplate = await attempt(async () => {
    const json = got(settings);
    const template = await templateOf(folder, json);
    const tokens = { bosToken: tokenText(json["bos_token"]), eosToken: tokenText(json["eos_token"]) };
    return template === null ? null : ChatTemplate.create(template, tokens);
  });
  const stopTokens = await attempt(() => {
    const fields = [got(sampling)["eos_token_id"], config.raw["eos_token_id"]];
    const named = fields.map(idsOf).find(({ length }) => length > 0);
    if (named) return named;
    const end = tokenText(got(settings)["eos_token"]);
    return end === "" ? [] : idsOf(got(tokenizer).tokenId(end));
  });
  const generationConfig = await attempt(() => samplingOf(got(sampling)));
  const embeddingSettings = await attempt(() => readEmbeddingSettings(folder));
  return { nameOrPath, tokenizer, chatTemplate, stopTokens, generationConfig, embeddingSettings };
}

const tokenizerIn = (folder: string, modelType: unknown): Promise<Tokenizer> =>
  orOlder(folder, modelType, { read: loadTokenizer, of: (older) => older });

/** What `read` makes of tokenizer.json, or `of` of the files that older repositories have in its place. Throws PretrainedError where there are neither. */
async function orOlder<T>(
  folder: string,
  modelType: unknown,
  { read, of }: { readonly read: (path: string) => Promise<T>; readonly of: (older: Tokenizer) => T },
): Promise<T> {
  try {
    return await read(join(folder, "tokenizer.json"));
  } catch (error) {
    const { code } = error as { code?: string };
    if (code !== "ENOENT" && code !== "HTTP404") throw error;
    const settings = await optionalJson(folder, "tokenizer_config.json");
    const older = await olderTokenizer(modelType, { read: (name) => optionalText(folder, name), settings, folder });
    if (older) return of(older);
    throw new PretrainedError(
      `${folder}: there is no tokenizer.json, so that texts can't be read; it lies beside the weights of the same model, or fromPretrained is given one, { tokenizer }`,
    );
  }
}

/** A folder's tokenizer as files, with the chat template among its settings. Throws PretrainedError, TokenizerError. */
export async function readTokenizerFiles(folder: string): Promise<TokenizerFiles> {
  const settings = await optionalJson(folder, "tokenizer_config.json");
  const config = await optionalJson(folder, "config.json");
  const template = await templateOf(folder, settings);
  return {
    tokenizer: await orOlder<object>(folder, config["model_type"], {
      read: async (path) => (await readTokenizerJson(path)).json,
      of: (older) => older.toJSON(),
    }),
    config: template === null ? settings : { ...settings, chat_template: template },
    eosTokenId: (await optionalJson(folder, "generation_config.json"))["eos_token_id"] ?? config["eos_token_id"],
    source: join(folder, "tokenizer.json"),
  };
}
