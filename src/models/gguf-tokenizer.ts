/**
 * The tokenizer inside a GGUF file, as the `tokenizer.json` that says the same: SentencePiece's BPE ("llama"), whose merges follow from
 * the scores of its tokens, and byte-level BPE ("gpt2"), whose splitting has a name.
 */
import { type Tokenizer, tokenizerFromJSON } from "../data/tokenizer.ts";
import type { GgufFile } from "../formats/index.ts";
import { PretrainedError } from "./config.ts";

/** llama.cpp's kinds of tokens (llama_token_type). */
const kinds = { normal: 1, unknown: 2, control: 3, userDefined: 4 } as const;
/** What stands for an id that there is not. */
const none = 0xffffffff;

class TokenizerMetadata {
  readonly #file: GgufFile;
  readonly source: string;
  constructor(file: GgufFile, source: string) {
    this.#file = file;
    this.source = source;
  }

  #value(name: string): unknown {
    return this.#file.metadata.get(`tokenizer.${name}`)?.value;
  }
  text(name: string): string | undefined {
    const value = this.#value(name);
    return typeof value === "string" ? value : undefined;
  }
  flag(name: string): boolean | undefined {
    const value = this.#value(name);
    return typeof value === "boolean" ? value : undefined;
  }
  id(name: string): number | undefined {
    const value = this.#value(name);
    const id = typeof value === "number" || typeof value === "bigint" ? Number(value) : none;
    return id === none ? undefined : id;
  }
  texts(name: string): readonly string[] {
    const value = this.#value(name);
    if (!Array.isArray(value) || !value.every((each) => typeof each === "string"))
      throw new PretrainedError(`${this.source}: "tokenizer.${name}" must be a list of texts`);
    return value as string[];
  }
  numbers(name: string, length: number): ArrayLike<number> {
    const value = this.#value(name) as ArrayLike<number> | undefined;
    if (!ArrayBuffer.isView(value) || (value as ArrayLike<number>).length !== length)
      throw new PretrainedError(`${this.source}: "tokenizer.${name}" must hold a number for each of ${length} tokens`);
    return value;
  }
}

/**
 * Every way to make a token of two others, the token of the highest score first (as transformers converts SentencePiece's models).
 * SentencePiece joins whatever gives the token of the highest score, which is the same.
 */
function mergesOf(tokens: readonly string[], types: ArrayLike<number>, scores: ArrayLike<number>): [string, string][] {
  const ids = new Map(tokens.map((token, id) => [token, id]));
  const found: { left: string; right: string; score: number; order: number }[] = [];
  tokens.forEach((token, id) => {
    if (types[id] !== kinds.normal && types[id] !== kinds.userDefined) return;
    const characters = [...token];
    const halves = characters
      .slice(1)
      .map((_, i) => [characters.slice(0, i + 1).join(""), characters.slice(i + 1).join("")]);
    const known = halves
      .filter(([left, right]) => ids.has(left) && ids.has(right))
      .sort(([a, x], [b, y]) => ids.get(a)! - ids.get(b)! || ids.get(x)! - ids.get(y)!);
    for (const [left, right] of known) found.push({ left, right, score: scores[id], order: found.length });
  });
  found.sort((a, b) => b.score - a.score || a.order - b.order);
  return found.map(({ left, right }) => [left, right]);
}

interface Parts {
  readonly normalizer: object | null;
  readonly pre_tokenizer: object | null;
  readonly decoder: object;
  readonly model: object;
  /** Whether a text begins with the first token where the file does not say. */
  readonly addsBos: boolean;
}

function sentencePiece(metadata: TokenizerMetadata, tokens: readonly string[], types: ArrayLike<number>): Parts {
  const prefix = metadata.flag("ggml.add_space_prefix") ?? true;
  const space = { type: "Replace", pattern: { String: " " }, content: "▁" };
  const unknown = tokens.find((_, id) => types[id] === kinds.unknown) ?? null;
  return {
    normalizer: { type: "Sequence", normalizers: [...(prefix ? [{ type: "Prepend", prepend: "▁" }] : []), space] },
    pre_tokenizer: null,
    decoder: {
      type: "Sequence",
      decoders: [
        { type: "Replace", pattern: { String: "▁" }, content: " " },
        { type: "ByteFallback" },
        { type: "Fuse" },
        ...(prefix ? [{ type: "Strip", content: " ", start: 1, stop: 0 }] : []),
      ],
    },
    model: {
      type: "BPE",
      unk_token: unknown,
      fuse_unk: true,
      byte_fallback: true,
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      merges: mergesOf(tokens, types, metadata.numbers("ggml.scores", tokens.length)),
    },
    addsBos: true,
  };
}

const words = (digits: string): string =>
  `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|${digits}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`;
const split = (pattern: string): object => ({
  type: "Split",
  pattern: { Regex: pattern },
  behavior: "Isolated",
  invert: false,
});
const bytes = (splits: boolean): object => ({ type: "ByteLevel", add_prefix_space: false, use_regex: splits });
const both = (...pretokenizers: object[]): object => ({ type: "Sequence", pretokenizers });

/** How texts are split, by `tokenizer.ggml.pre`; whether whole words are looked up first, and whether a text begins with a token. */
const splittings: Readonly<Record<string, { readonly pre: object; readonly whole?: true; readonly bos?: true }>> = {
  default: { pre: bytes(true) },
  "gpt-2": { pre: bytes(true) },
  smollm: { pre: both({ type: "Digits", individual_digits: true }, bytes(true)) },
  "llama-bpe": { pre: both(split(words("\\p{N}{1,3}")), bytes(false)), whole: true, bos: true },
  llama3: { pre: both(split(words("\\p{N}{1,3}")), bytes(false)), whole: true, bos: true },
  qwen2: { pre: both(split(words("\\p{N}")), bytes(false)) },
};

function byteLevel(metadata: TokenizerMetadata, tokens: readonly string[]): Parts {
  const name = metadata.text("ggml.pre") ?? "default";
  if (!Object.hasOwn(splittings, name))
    throw new PretrainedError(
      `${metadata.source}: its tokenizer splits texts as "${name}", which is not known; known are ${Object.keys(splittings).join(", ")}. ` +
        "Give the model's tokenizer.json: { tokenizer: await loadTokenizer(…) }",
    );
  const { pre, whole = false, bos = false } = splittings[name];
  return {
    normalizer: name === "qwen2" ? { type: "NFC" } : null,
    pre_tokenizer: pre,
    decoder: bytes(true),
    model: {
      type: "BPE",
      ignore_merges: whole,
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      merges: metadata.texts("ggml.merges"),
    },
    addsBos: bos,
  };
}

/** The tokens around a text, as a post-processor says it. */
function around(tokens: readonly string[], before: number | undefined, after: number | undefined): object | null {
  const special = [before, after].filter((id) => id !== undefined);
  if (special.length === 0) return null;
  const token = (id: number | undefined) =>
    id === undefined ? [] : [{ SpecialToken: { id: tokens[id], type_id: 0 } }];
  const sequence = (id: string) => [...token(before), { Sequence: { id, type_id: 0 } }, ...token(after)];
  return {
    type: "TemplateProcessing",
    single: sequence("A"),
    pair: [...sequence("A"), ...sequence("B")],
    special_tokens: Object.fromEntries(
      special.map((id) => [tokens[id], { id: tokens[id], ids: [id], tokens: [tokens[id]] }]),
    ),
  };
}

/** What a GGUF file says of text. */
export interface GgufText {
  readonly tokenizer: Tokenizer;
  readonly chatTemplate: string | null;
  readonly bosToken: string;
  readonly eosToken: string;
  readonly stopTokens: readonly number[];
}

/** Throws PretrainedError where there is no tokenizer in the file, or one of a kind that is not known; TokenizerError where it is damaged. */
export function readGgufText(file: GgufFile, source: string): GgufText {
  const metadata = new TokenizerMetadata(file, source);
  const kind = metadata.text("ggml.model");
  if (kind !== "llama" && kind !== "gpt2")
    throw new PretrainedError(
      kind === undefined
        ? `${source}: there is no tokenizer in the file`
        : `${source}: its tokenizer is of the kind "${kind}", which is not known; known are llama, gpt2`,
    );
  const tokens = metadata.texts("ggml.tokens");
  const types = metadata.numbers("ggml.token_type", tokens.length);
  const { addsBos, ...parts } = kind === "llama" ? sentencePiece(metadata, tokens, types) : byteLevel(metadata, tokens);
  const inVocabulary = (name: string): number | undefined => {
    const id = metadata.id(name);
    if (id !== undefined && tokens[id] === undefined)
      throw new PretrainedError(`${source}: "tokenizer.${name}" is ${id}, but there are ${tokens.length} tokens`);
    return id;
  };
  const [bos, eos] = [inVocabulary("ggml.bos_token_id"), inVocabulary("ggml.eos_token_id")];
  const turn = inVocabulary("ggml.eot_token_id");
  const added = tokens.flatMap((content, id) => {
    const special = types[id] === kinds.control || types[id] === kinds.unknown;
    if (!special && types[id] !== kinds.userDefined) return [];
    return [{ id, content, special, single_word: false, lstrip: false, rstrip: false, normalized: false }];
  });
  const tokenizer = tokenizerFromJSON(
    {
      version: "1.0",
      truncation: null,
      padding: null,
      added_tokens: added,
      ...parts,
      post_processor: around(
        tokens,
        (metadata.flag("ggml.add_bos_token") ?? addsBos) ? bos : undefined,
        metadata.flag("ggml.add_eos_token") ? eos : undefined,
      ),
    },
    `${source}: tokenizer`,
  );
  return {
    tokenizer,
    chatTemplate: metadata.text("chat_template") ?? null,
    bosToken: bos === undefined ? "" : tokens[bos],
    eosToken: eos === undefined ? "" : tokens[eos],
    stopTokens: [...new Set([eos, turn].filter((id) => id !== undefined))],
  };
}
