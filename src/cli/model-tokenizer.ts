/**
 * The tokenizer of a pretrained model as the commands use it: texts to ids and back, what begins and ends a text, and the chat template. It
 * is made of what models/pretrained-text.ts reads beside the weights, or of what a GGUF file holds.
 */
import { ChatTemplate } from "../data/chat-template.ts";
import { type Tokenizer, tokenizerFromJSON } from "../data/tokenizer.ts";
import { readGguf } from "../formats/index.ts";
import { readGgufText, type TokenizerFiles } from "../models/index.ts";
import { readTokenizerFiles, templateIn, tokenText } from "../models/pretrained-text.ts";
import type { ModelPlace } from "./model-argument.ts";

export interface ModelTokenizer {
  readonly tokenizer: Tokenizer;
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

/** The tokenizer's files of a model. Throws PretrainedError where there are none, TokenizerError where they are damaged. */
export const tokenizerFiles = (place: ModelPlace): Promise<TokenizerFiles> =>
  place.kind === "gguf" ? filesOfGguf(place.path) : readTokenizerFiles(place.path);

/** What the tokenizer inside of a GGUF file would be as files. */
async function filesOfGguf(path: string): Promise<TokenizerFiles> {
  const { tokenizer, chatTemplate, bosToken, eosToken, stopTokens } = readGgufText(await readGguf(path), path);
  return {
    tokenizer: tokenizer.toJSON(),
    config: {
      ...(bosToken === "" ? {} : { bos_token: bosToken }),
      ...(eosToken === "" ? {} : { eos_token: eosToken }),
      ...(chatTemplate === null ? {} : { chat_template: chatTemplate }),
    },
    eosTokenId: stopTokens.length === 1 ? stopTokens[0] : stopTokens,
    source: path,
  };
}

export const openTokenizer = async (place: ModelPlace): Promise<ModelTokenizer> =>
  makeTokenizer(await tokenizerFiles(place));

function makeTokenizer(files: TokenizerFiles): ModelTokenizer {
  const { config, eosTokenId } = files;
  // Padding and truncation are the caller's affair: a file may ask for rows of 128
  const coder = tokenizerFromJSON({ ...files.tokenizer, padding: null, truncation: null }, files.source);
  const named = (name: string): number | undefined => {
    const text = tokenText(config[name]);
    return text === "" ? undefined : coder.tokenId(text);
  };
  const listed = (Array.isArray(eosTokenId) ? eosTokenId : [eosTokenId]).filter((id) => Number.isInteger(id));
  const eosId = named("eos_token") ?? (listed[0] as number | undefined);
  const endIds = [...new Set([...(eosId === undefined ? [] : [eosId]), ...(listed as number[])])];
  const [first] = coder.encode("");
  const bosId = first === undefined || endIds.includes(first) ? undefined : first;
  const templateText = templateIn(config);
  return {
    tokenizer: coder,
    decode: (ids) => coder.decode(ids, { skipSpecialTokens: true }),
    bosId,
    eosId,
    endIds,
    padId: named("pad_token") ?? eosId ?? 0,
    templateText,
    async template() {
      const { FinetuneError } = await import("../finetune/errors.ts");
      if (templateText === null)
        throw new FinetuneError(
          "this model has no chat template (chat_template in tokenizer_config.json), so that it can't be spoken with; use --prompt, or data of prompt and completion",
        );
      return ChatTemplate.create(templateText, {
        bosToken: tokenText(config["bos_token"]),
        eosToken: tokenText(config["eos_token"]),
      });
    },
  };
}
