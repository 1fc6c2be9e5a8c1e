/**
 * The tokenizer of a pretrained model as the commands use it: texts to ids and back, what begins and ends a text, and the chat template. It
 * is read from `tokenizer.json`, `tokenizer_config.json`, `generation_config.json` and `config.json`, or from what a GGUF file holds.
 */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { TokenizerError } from "../data/errors.ts";
import { type Tokenizer, tokenizerFromJSON } from "../data/tokenizer.ts";
import type { ChatTemplate } from "../finetune/chat.ts";
import { tokenizerFilesOfGguf } from "./gguf-tokenizer.ts";
import type { ModelPlace } from "./model-argument.ts";
import { readJson } from "./run-folder.ts";

export interface ModelTokenizer {
  readonly kind: Tokenizer["kind"];
  readonly vocabSize: number;
  /** The ids of a piece of text, nothing added. */
  encode(text: string): number[];
  /** The ids of a whole text, with what the model expects around it ([CLS] … [SEP]). */
  encodeWhole(text: string): number[];
  /** The ids that a text to be continued begins with. */
  encodePrompt(text: string): number[];
  /** The text of ids, without special tokens. */
  decode(ids: ArrayLike<number>): string;
  /** What is put before every text; undefined where nothing is. */
  readonly bosId: number | undefined;
  /** What the model ends a text with; undefined where nothing does. */
  readonly eosId: number | undefined;
  /** All ids after which the model has nothing to say. */
  readonly endIds: readonly number[];
  /** What rows are filled up with. */
  readonly padId: number;
  /** The text of the chat template; null where the model has none. */
  readonly templateText: string | null;
  /** Throws FinetuneError where the model has none, or it is not valid. */
  template(): Promise<ChatTemplate>;
}

/** The files of a tokenizer, as they lie in a model's folder. */
export interface TokenizerFiles {
  readonly tokenizer: object;
  readonly config: Readonly<Record<string, unknown>>;
  /** Of config.json or generation_config.json: a number, or several. */
  readonly eosTokenId?: unknown;
  readonly source: string;
}

const optional = (path: string): Record<string, unknown> =>
  existsSync(path) ? (readJson(path) as Record<string, unknown>) : {};

/** The tokenizer's files of a model. Throws TokenizerError where there are none. */
export async function tokenizerFiles(place: ModelPlace): Promise<TokenizerFiles> {
  if (place.kind === "gguf") return tokenizerFilesOfGguf(place.path);
  const file = join(place.path, "tokenizer.json");
  if (!existsSync(file))
    throw new TokenizerError(
      `${place.path} has no tokenizer.json, so that texts can't be read; it lies beside the weights of the same model`,
    );
  const own = optional(join(place.path, "tokenizer_config.json"));
  const jinja = join(place.path, "chat_template.jinja");
  const config = existsSync(jinja) ? { ...own, chat_template: readFileSync(jinja, "utf8") } : own;
  const eosTokenId =
    optional(join(place.path, "generation_config.json"))["eos_token_id"] ??
    optional(join(place.path, "config.json"))["eos_token_id"];
  return { tokenizer: readJson(file) as object, config, eosTokenId, source: file };
}

export const openTokenizer = async (place: ModelPlace): Promise<ModelTokenizer> =>
  makeTokenizer(await tokenizerFiles(place));

/** What tokenizer_config.json calls a token: a text, or an object with it. */
function tokenText(config: TokenizerFiles["config"], name: string): string | undefined {
  const value = config[name];
  if (typeof value === "string") return value;
  const { content } = (typeof value === "object" && value !== null ? value : {}) as { content?: unknown };
  return typeof content === "string" ? content : undefined;
}

/** The default template of tokenizer_config.json, which may be a list of several by name. */
function templateOf(config: TokenizerFiles["config"]): string | null {
  const value = config["chat_template"];
  if (typeof value === "string") return value;
  if (!Array.isArray(value)) return null;
  const list = value as { readonly name?: unknown; readonly template?: unknown }[];
  const chosen = list.find(({ name }) => name === "default") ?? list[0];
  return typeof chosen?.template === "string" ? chosen.template : null;
}

function makeTokenizer(files: TokenizerFiles): ModelTokenizer {
  const { config, eosTokenId } = files;
  // Padding and truncation are the caller's affair: a file may ask for rows of 128
  const coder = tokenizerFromJSON({ ...files.tokenizer, padding: null, truncation: null }, files.source);
  const named = (name: string): number | undefined => {
    const text = tokenText(config, name);
    return text === undefined ? undefined : coder.tokenId(text);
  };
  const listed = (Array.isArray(eosTokenId) ? eosTokenId : [eosTokenId]).filter((id) => Number.isInteger(id));
  const eosId = named("eos_token") ?? (listed[0] as number | undefined);
  const endIds = [...new Set([...(eosId === undefined ? [] : [eosId]), ...(listed as number[])])];
  const around = coder.encode("");
  const bosId = around[0] === undefined || endIds.includes(around[0]) ? undefined : around[0];
  const templateText = templateOf(config);
  const bare = (text: string): number[] => Array.from(coder.encode(text, { addSpecialTokens: false }));
  return {
    kind: coder.kind,
    vocabSize: coder.vocabSize,
    encode: bare,
    encodeWhole: (text) => Array.from(coder.encode(text)),
    encodePrompt: (text) => [...(bosId === undefined ? [] : [bosId]), ...bare(text)],
    decode: (ids) => coder.decode(ids, { skipSpecialTokens: true }),
    bosId,
    eosId,
    endIds,
    padId: named("pad_token") ?? eosId ?? 0,
    templateText,
    async template() {
      const { ChatTemplate } = await import("../finetune/chat.ts");
      const { FinetuneError } = await import("../finetune/errors.ts");
      if (templateText === null)
        throw new FinetuneError(
          "this model has no chat template (chat_template in tokenizer_config.json), so that it can't be spoken with; use --prompt, or data of prompt and completion",
        );
      const [bosToken, eosToken] = [tokenText(config, "bos_token"), tokenText(config, "eos_token")];
      return ChatTemplate.create(templateText, {
        ...(bosToken === undefined ? {} : { bosToken }),
        ...(eosToken === undefined ? {} : { eosToken }),
      });
    },
  };
}
