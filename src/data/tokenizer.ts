/**
 * The tokenizers' front door: the character tokenizer, and loading of whichever tokenizer a `tokenizer.json` holds.
 * The byte-level BPE is in `bpe.ts`.
 */
import { type BpePieces, ByteLevelBpe } from "./bpe.ts";
import { elsewhere } from "./elsewhere.ts";
import { isFolder } from "./files.ts";
import { join } from "./path.ts";
import { pathOf, type ReadOptions, readAtMost, type Source, sourceName } from "./source.ts";
import {
  type DecodeStream,
  saveTokenizer,
  type Tokenizer,
  TokenizerError,
  type TokenizerJson,
  tokenizerJson,
  tokensById,
  vocabEntries,
} from "./tokenizer-json.ts";
import { checkAdded, checkStructure, mostBytes, tooLarge } from "./tokenizers/limits.ts";
import { PipelineTokenizer } from "./tokenizers/pipeline.ts";

export { type BpeTrainingOptions, ByteLevelBpe } from "./bpe.ts";
export {
  type DecodeOptions,
  type DecodeStream,
  type EncodeOptions,
  type Tokenizer,
  TokenizerError,
  type TokenizerJson,
} from "./tokenizer-json.ts";
export {
  type EncodeBatchOptions,
  type Encoding,
  type Padding,
  PipelineTokenizer,
  type Truncation,
} from "./tokenizers/pipeline.ts";

const show = (character: string) =>
  `${JSON.stringify(character)} (U+${character.codePointAt(0)!.toString(16).toUpperCase().padStart(4, "0")})`;

/**
 * One id per character (Unicode code point), in code point order, as nanoGPT's. A character that the vocabulary lacks is
 * an error, unless the tokenizer has an unknown token: then it becomes that token, and decodes to that token's text.
 */
export class CharTokenizer implements Tokenizer {
  readonly kind = "characters";
  readonly unk: string | null;
  readonly #tokens: readonly string[];
  readonly #ids: ReadonlyMap<string, number>;
  readonly #table = new Int32Array(0x10000).fill(-1); // the ids of all characters but the astral ones

  /** `tokens` by id: single characters, and `unk`, if given, anywhere among them. Throws TokenizerError. */
  constructor(tokens: readonly string[], unk: string | null = null) {
    this.#tokens = tokens;
    this.unk = unk;
    this.#ids = new Map(tokens.map((token, id) => [token, id]));
    if (this.#ids.size !== tokens.length) throw new TokenizerError("a character tokenizer's tokens must differ");
    if (unk !== null && !this.#ids.has(unk)) throw new TokenizerError(`the unknown token ${show(unk)} is not a token`);
    tokens.forEach((token, id) => {
      const code = token.codePointAt(0);
      if (token !== unk && (code === undefined || token.length !== (code > 0xffff ? 2 : 1)))
        throw new TokenizerError(`a character tokenizer's token must be one character, got ${JSON.stringify(token)}`);
      if (/^\p{Surrogate}$/u.test(token))
        throw new TokenizerError(`half of a surrogate pair is not a character: ${show(token)}`);
      if (token.length === 1) this.#table[token.charCodeAt(0)] = id;
    });
  }

  /** The tokenizer of all characters of a text; with `unk` (e.g. "<unk>") one more id for any other. */
  static fromText(text: string, options: { readonly unk?: string } = {}): CharTokenizer {
    const { unk } = options;
    const tokens = [...new Set(text)].sort((a, b) => a.codePointAt(0)! - b.codePointAt(0)!);
    if (unk !== undefined && (unk.length < 2 || [...unk].length < 2))
      throw new TokenizerError(`the unknown token must be longer than a character, got ${JSON.stringify(unk)}`);
    return new CharTokenizer(unk === undefined ? tokens : [...tokens, unk], unk ?? null);
  }

  /** Whether a tokenizer.json is of this kind: BPE without merges and anything else. */
  static recognises(json: TokenizerJson): boolean {
    const { model } = json;
    const extras = [json.pre_tokenizer, json.normalizer, json.post_processor, json.added_tokens?.length];
    const others = [model.byte_fallback, model.fuse_unk, json.truncation, json.padding];
    const fuses = (json.decoder as { type?: unknown } | null)?.type === "Fuse";
    return model.type === "BPE" && model.merges?.length === 0 && fuses && ![...extras, ...others].some(Boolean);
  }

  /** Throws TokenizerError if `json` (of a kind that `recognises` accepts) is damaged. */
  static fromJSON(json: TokenizerJson, file = "tokenizer.json"): CharTokenizer {
    return new CharTokenizer(tokensById(vocabEntries(json.model.vocab, file), file), json.model.unk_token ?? null);
  }

  get vocabSize(): number {
    return this.#tokens.length;
  }

  tokenId(token: string): number | undefined {
    return this.#ids.get(token);
  }

  encode(text: string): Int32Array {
    const unk = this.unk === null ? -1 : this.#ids.get(this.unk)!;
    const out = new Int32Array(text.length);
    let n = 0;
    for (let i = 0; i < text.length; i++) {
      let id = this.#table[text.charCodeAt(i)];
      if (id < 0) {
        const character = String.fromCodePoint(text.codePointAt(i)!);
        id = this.#ids.get(character) ?? unk;
        if (id < 0)
          throw new TokenizerError(
            `character ${show(character)} at offset ${i} is not among this tokenizer's ${this.vocabSize} characters; ` +
              "remove it from the text, or make the tokenizer from a text that has it",
          );
        if (character.length === 2) i++;
      }
      out[n++] = id;
    }
    return out.slice(0, n);
  }

  decode(ids: ArrayLike<number>): string {
    const parts = new Array<string>(ids.length);
    for (let i = 0; i < ids.length; i++) {
      const token = this.#tokens[ids[i]];
      if (token === undefined)
        throw new TokenizerError(`id ${ids[i]} at position ${i} is not in the vocabulary (0 … ${this.vocabSize - 1})`);
      parts[i] = token;
    }
    return parts.join("");
  }

  decodeStream(): DecodeStream {
    return { push: (id) => this.decode([id]), end: () => "" };
  }

  toJSON(): TokenizerJson {
    // Without a pre-tokenizer the whole text is one word, and a BPE without merges leaves it as characters; the decoder
    // "Fuse" joins them without spaces.
    return tokenizerJson({
      tokens: this.#tokens,
      merges: [],
      unk: this.unk,
      preTokenizer: null,
      decoder: { type: "Fuse" },
    });
  }

  save(folder: string): Promise<void> {
    return saveTokenizer(this, folder);
  }
}

/** The kinds of tokenizer.json that can be read; the first that recognises the file reads it. */
const kinds: readonly {
  recognises(json: TokenizerJson): boolean;
  fromJSON(json: TokenizerJson, file: string): Tokenizer;
}[] = [
  CharTokenizer,
  ByteLevelBpe,
  { recognises: () => true, fromJSON: (json, file) => PipelineTokenizer.fromJSON(json, file) },
];

/** A tokenizer on its way between threads. */
export type SentTokenizer = { readonly pieces: BpePieces } | { readonly json: object };

export const sent = (tokenizer: Tokenizer): SentTokenizer =>
  tokenizer instanceof ByteLevelBpe ? { pieces: tokenizer.pieces() } : { json: tokenizer.toJSON() };

export const received = (from: SentTokenizer): Tokenizer =>
  "pieces" in from ? ByteLevelBpe.fromPieces(from.pieces) : tokenizerFromJSON(from.json);

/**
 * Loads a `tokenizer.json`, given itself or by its folder; on a page a worker reads and checks it. Throws FileError, or TokenizerError if it is damaged or has
 * a part of a kind that is not known.
 */
export async function loadTokenizer(source: Source, options: ReadOptions = {}): Promise<Tokenizer> {
  if (elsewhere) return received(await elsewhere("sentTokenizer", [source], options));
  const { json, file } = await readTokenizerJson(source, options);
  return tokenizerFromJSON(json, file);
}

/** The parsed tokenizer.json that `loadTokenizer` would read, whose size and nesting are within bounds, and what errors call it. */
export async function readTokenizerJson(
  source: Source,
  options: ReadOptions = {},
): Promise<{ readonly json: object; readonly file: string }> {
  const path = pathOf(source);
  const place = path !== null && (await isFolder(path)) ? join(path, "tokenizer.json") : source;
  const file = sourceName(place);
  const bytes = await readAtMost(place, mostBytes, options);
  if (bytes === null) throw tooLarge(file, null);
  checkStructure(bytes, file);
  try {
    return { json: JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes)), file };
  } catch (error) {
    throw new TokenizerError(`${file}: not valid JSON (${(error as Error).message}); the file is damaged`);
  }
}

/** The tokenizer of a parsed tokenizer.json. Throws TokenizerError; `file` is the name that its messages use. */
export function tokenizerFromJSON(from: object, file = "tokenizer.json"): Tokenizer {
  const json = from as TokenizerJson; // what it really is, each kind looks at itself
  if (typeof json !== "object" || json === null || typeof json.model !== "object" || json.model === null)
    throw new TokenizerError(`${file}: not a tokenizer.json: it has no "model"`);
  checkAdded(json.added_tokens, file);
  try {
    const kind = kinds.find((k) => k.recognises(json))!; // the last reads all
    return kind.fromJSON(json, file);
  } catch (error) {
    if (error instanceof TokenizerError) throw error;
    // fields of other types than they should be; parts nested so deeply that the stack ends
    throw new TokenizerError(`${file}: can't be used as a tokenizer: ${(error as Error).message}`, { cause: error });
  }
}
