/**
 * What every tokenizer is to the rest (the interface), its error, and the frame of Hugging Face's `tokenizer.json` that
 * ours fill. The tokenizers themselves are in `tokenizer.ts` (characters) and `bpe.ts`.
 */
import { TokenizerError } from "./errors.ts";
import { writeFileAtomic } from "./files.ts";
import { join } from "./path.ts";

export { TokenizerError } from "./errors.ts";

export interface EncodeOptions {
  /** Whether the tokens come with those that the file puts around a text, e.g. "<s>" before it. Default: true, as in Hugging Face's. */
  readonly addSpecialTokens?: boolean;
}

export interface DecodeOptions {
  /** Whether special tokens are left out. Default: false. */
  readonly skipSpecialTokens?: boolean;
}

/** Text from ids that come one by one. What `push` and at last `end` give is together what `decode` gives for all of them. */
export interface DecodeStream {
  /** The text that is certain now: never a part of a character. Often "", where more tokens decide. */
  push(id: number): string;
  /** What was held back. */
  end(): string;
}

export interface Tokenizer {
  readonly kind: "characters" | "byte-level-bpe" | "bpe" | "wordpiece" | "wordlevel" | "unigram";
  /** Ids are 0 … vocabSize − 1. */
  readonly vocabSize: number;
  /** The ids of a text. Throws TokenizerError for what the vocabulary can't express. */
  encode(text: string, options?: EncodeOptions): Int32Array;
  /** The text of ids. Throws TokenizerError for what is no id. */
  decode(ids: ArrayLike<number>, options?: DecodeOptions): string;
  decodeStream(options?: DecodeOptions): DecodeStream;
  /** The id of a token by its text, e.g. "<|endoftext|>"; undefined if there is none. */
  tokenId(token: string): number | undefined;
  /** Hugging Face's tokenizer.json. */
  toJSON(): object;
  /** Writes `tokenizer.json` into a folder, atomically. Throws FileError. */
  save(folder: string): Promise<void>;
}

export interface AddedToken {
  readonly id: number;
  readonly content: string;
  readonly single_word: boolean;
  readonly lstrip: boolean;
  readonly rstrip: boolean;
  readonly normalized: boolean;
  readonly special: boolean;
}

/** The parts of tokenizer.json that we write and check when we read. */
export interface TokenizerJson {
  readonly version: "1.0";
  readonly truncation: null;
  readonly padding: null;
  readonly added_tokens: readonly AddedToken[];
  readonly normalizer: null;
  readonly pre_tokenizer: unknown;
  readonly post_processor: unknown;
  readonly decoder: unknown;
  readonly model: {
    readonly type: "BPE";
    readonly dropout: null;
    readonly unk_token: string | null;
    readonly continuing_subword_prefix: null;
    readonly end_of_word_suffix: null;
    readonly fuse_unk: false;
    readonly byte_fallback: false;
    readonly ignore_merges: false;
    readonly vocab: Readonly<Record<string, number>>;
    readonly merges: readonly (string | readonly [string, string])[];
  };
}

/** tokenizer.json of a BPE model (characters are one without merges). `tokens` by id. */
export function tokenizerJson(parts: {
  readonly tokens: readonly string[];
  readonly merges: readonly string[];
  readonly unk?: string | null;
  readonly added?: readonly AddedToken[];
  readonly preTokenizer: unknown;
  readonly decoder: unknown;
}): TokenizerJson {
  const vocab: Record<string, number> = Object.create(null); // "__proto__" may be a token
  parts.tokens.forEach((token, id) => {
    vocab[token] = id;
  });
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: parts.added ?? [],
    normalizer: null,
    pre_tokenizer: parts.preTokenizer,
    post_processor: null,
    decoder: parts.decoder,
    model: {
      type: "BPE",
      dropout: null,
      unk_token: parts.unk ?? null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab,
      merges: parts.merges,
    },
  };
}

/** Tokens and their ids, as the file has them. Throws TokenizerError where there are none. */
export function vocabEntries(vocab: unknown, file: string): [token: string, id: number][] {
  if (typeof vocab !== "object" || vocab === null) throw new TokenizerError(`${file}: model.vocab is missing`);
  return Object.entries(vocab);
}

/** The tokens of a vocabulary by id. Throws TokenizerError unless the ids are 0 … n − 1, each once. */
export function tokensById(entries: readonly (readonly [token: string, id: number])[], file: string): string[] {
  const tokens = new Array<string | undefined>(entries.length);
  for (const [token, id] of entries) {
    if (!Number.isInteger(id) || id < 0 || id >= entries.length || tokens[id] !== undefined)
      throw new TokenizerError(
        `${file}: token ${JSON.stringify(token)} has id ${id}; ids must be 0 … ${entries.length - 1}, each once`,
      );
    tokens[id] = token;
  }
  return tokens as string[];
}

/** Writes tokenizer.json into a folder. */
export async function saveTokenizer(tokenizer: Tokenizer, folder: string): Promise<void> {
  await writeFileAtomic(join(folder, "tokenizer.json"), `${JSON.stringify(tokenizer.toJSON(), null, 2)}\n`);
}
