/**
 * The byte-level BPE of GPT-2 (Radford et al. 2019): any text is expressible, since the base vocabulary is the 256
 * bytes. It splits, encodes, trains, reads and writes exactly as Hugging Face's `tokenizers` does with its ByteLevel
 * pre-tokenizer; what else a tokenizer.json may hold is read by `tokenizers/pipeline.ts`.
 */
import { learnMerges, pairKey } from "./bpe-train.ts";
import {
  type AddedToken,
  type DecodeOptions,
  type DecodeStream,
  saveTokenizer,
  type Tokenizer,
  TokenizerError,
  type TokenizerJson,
  tokenizerJson,
  tokensById,
  vocabEntries,
} from "./tokenizer-json.ts";
import { mergePairs } from "./tokenizers/merge.ts";
import { byteCharacters, characterBytes, utf8 } from "./tokenizers/unicode.ts";

// Unicode's White_Space, which is what \s means in the regular expressions of Python and Rust (JavaScript's lacks
// U+0085 and has U+FEFF).
const gpt2Pattern = (): RegExp => {
  const space = "\\t-\\r\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
  return new RegExp(
    `'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^${space}\\p{L}\\p{N}]+|[${space}]+(?![^${space}])|[${space}]+`,
    "gu",
  );
};

export interface BpeTrainingOptions {
  /** Tokens in all: 256 bytes, the special tokens, and one a merge. Fewer if the text has no more pairs to merge. */
  readonly vocabSize: number;
  /** A pair that occurs less often is not merged; 2 by default. */
  readonly minFrequency?: number;
  /** Tokens that are never split or made by merging, e.g. "<|endoftext|>"; they get the first ids. */
  readonly specialTokens?: readonly string[];
}

interface BpeParts {
  /** By id, in the byte characters' spelling; special tokens as they are. */
  readonly tokens: readonly string[];
  readonly merges: readonly (readonly [number, number])[];
  readonly added: readonly AddedToken[];
  readonly addPrefixSpace: boolean;
}

/** What a tokenizer is made of, in a few flat pieces: so it travels between threads, and is put together without being checked again. */
export interface BpePieces {
  /** The tokens by id, one after the other, and the length of each. */
  readonly text: string;
  readonly lengths: Int32Array;
  /** The two ids of each merge, by rank, and that of their union. */
  readonly merges: Int32Array;
  readonly results: Int32Array;
  readonly added: readonly AddedToken[];
  readonly addPrefixSpace: boolean;
}

const maxCachedWords = 1 << 18;

/** The two sides of a text's only space (split is slower, and there may be 100,000 merges). */
function halves(text: string): readonly string[] {
  const at = text.indexOf(" ");
  return at < 0 || text.includes(" ", at + 1) ? [] : [text.slice(0, at), text.slice(at + 1)];
}

export class ByteLevelBpe implements Tokenizer {
  readonly kind = "byte-level-bpe";
  readonly #parts: BpeParts;
  readonly #ids: Map<string, number>;
  readonly #byteIds = new Int32Array(256);
  readonly #bytes: readonly Uint8Array[]; // what each id decodes to
  readonly #ranks = new Map<number, number>(); // pair → rank
  readonly #results: Int32Array; // rank → id of the union
  readonly #cache = new Map<string, Int32Array>();
  readonly #pattern = gpt2Pattern(); // its lastIndex is set before each use
  readonly #special: RegExp | null;
  readonly #specialIds: ReadonlySet<number>;

  /** `results`: the ids of the merges' unions, by rank, where they are known. */
  private constructor(parts: BpeParts, file: string, results?: Int32Array) {
    const { tokens, merges, added } = parts;
    this.#parts = parts;
    this.#ids = new Map(tokens.map((token, id) => [token, id]));
    const special = new Set(added.map(({ content }) => content));
    this.#specialIds = new Set(added.filter((token) => token.special).map(({ id }) => id));
    for (let b = 0; b < 256; b++) {
      const id = this.#ids.get(byteCharacters[b]);
      if (id === undefined)
        throw new TokenizerError(
          `${file}: the vocabulary lacks byte ${b} (${byteCharacters[b]}); it is not a whole byte-level BPE`,
        );
      this.#byteIds[b] = id;
    }
    this.#bytes = tokens.map((token) => {
      if (special.has(token)) return utf8.encode(token);
      const bytes = new Uint8Array(token.length);
      for (let i = 0; i < token.length; i++) {
        const b = characterBytes[token.charCodeAt(i)] ?? -1;
        if (b < 0) throw new TokenizerError(`${file}: token ${JSON.stringify(token)} is not in byte-level spelling`);
        bytes[i] = b;
      }
      return bytes;
    });
    this.#results = results ?? this.#unions(file);
    merges.forEach(([a, b], rank) => {
      this.#ranks.set(pairKey(a, b), rank);
    });
    // The longest first: of two special tokens at one place the longer wins.
    const escaped = [...special]
      .sort((a, b) => b.length - a.length)
      .map((t) => t.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&"));
    this.#special = escaped.length === 0 ? null : new RegExp(escaped.join("|"), "gu");
  }

  #unions(file: string): Int32Array {
    const { tokens, merges } = this.#parts;
    return Int32Array.from(merges, ([a, b], rank) => {
      const id = this.#ids.get(tokens[a] + tokens[b]);
      if (id === undefined)
        throw new TokenizerError(
          `${file}: merge ${rank} makes ${JSON.stringify(tokens[a] + tokens[b])}, which is not in the vocabulary`,
        );
      return id;
    });
  }

  /** For another thread, whose `fromPieces` gives this tokenizer again. */
  pieces(): BpePieces {
    const { tokens, merges, added, addPrefixSpace } = this.#parts;
    const lengths = Int32Array.from(tokens, (token) => token.length);
    const pairs = new Int32Array(2 * merges.length);
    merges.forEach((pair, rank) => {
      pairs.set(pair, 2 * rank);
    });
    return { text: tokens.join(""), lengths, merges: pairs, results: this.#results.slice(), added, addPrefixSpace };
  }

  static fromPieces({ text, lengths, merges: pairs, results, added, addPrefixSpace }: BpePieces): ByteLevelBpe {
    const tokens: string[] = [];
    let at = 0;
    for (const length of lengths) {
      tokens.push(text.slice(at, at + length));
      at += length;
    }
    const merges = Array.from(results, (_, rank): [number, number] => [pairs[2 * rank], pairs[2 * rank + 1]]);
    return new ByteLevelBpe({ tokens, merges, added, addPrefixSpace }, "tokenizer", results);
  }

  /** Trains on texts. Ties are broken by id, so that the same texts give the same tokenizer. Throws TokenizerError. */
  static train(texts: string | Iterable<string>, options: BpeTrainingOptions): ByteLevelBpe {
    const { vocabSize, minFrequency = 2, specialTokens = [] } = options;
    const least = 256 + specialTokens.length;
    if (!Number.isInteger(vocabSize) || vocabSize < least || vocabSize >= 1 << 21)
      throw new TokenizerError(
        `vocabSize must be a whole number from ${least} (the bytes and special tokens) to ${1 << 21}, got ${vocabSize}`,
      );
    const tokens: string[] = [...specialTokens, ...[...byteCharacters].sort()]; // the order of Hugging Face's trainer
    const ids = new Map(tokens.map((token, id) => [token, id]));
    if (ids.size !== tokens.length || ids.has(""))
      throw new TokenizerError(
        "special tokens must differ from each other and from single characters, and not be empty",
      );

    const counts = new Map<string, number>();
    const pattern = gpt2Pattern();
    for (const text of typeof texts === "string" ? [texts] : texts)
      for (const word of text.match(pattern) ?? []) counts.set(word, (counts.get(word) ?? 0) + 1);
    const words = [...counts.keys()].map((word) => Array.from(utf8.encode(word), (b) => ids.get(byteCharacters[b])!));
    const merged = (a: number, b: number): number => {
      const token = tokens[a] + tokens[b];
      let id = ids.get(token);
      if (id === undefined) {
        id = tokens.push(token) - 1;
        ids.set(token, id);
      }
      return id;
    };
    const merges = learnMerges(words, [...counts.values()], merged, () => tokens.length >= vocabSize, minFrequency);
    const added = specialTokens.map((content, id) => ({
      id,
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    }));
    return new ByteLevelBpe({ tokens, merges, added, addPrefixSpace: false }, "trained tokenizer");
  }

  /**
   * Whether a tokenizer.json is of this kind: BPE after a ByteLevel pre-tokenizer that splits as GPT-2 does, and nothing more. Others are
   * a matter of `tokenizers/pipeline.ts`.
   */
  static recognises(json: TokenizerJson): boolean {
    const { model } = json;
    const typeOf = (part: unknown) => (part as { type?: unknown } | null | undefined)?.type;
    const splits = (json.pre_tokenizer as { use_regex?: boolean } | null)?.use_regex !== false;
    const extras = [json.normalizer, json.truncation, json.padding, model.dropout, model.continuing_subword_prefix];
    const others = [model.end_of_word_suffix, model.ignore_merges, model.byte_fallback];
    const post = [undefined, "ByteLevel"].includes(typeOf(json.post_processor) as undefined | "ByteLevel");
    const plain = (json.added_tokens ?? []).every((t) => !t.lstrip && !t.rstrip && !t.single_word && t.content !== "");
    const isByteLevel = typeOf(json.pre_tokenizer) === "ByteLevel" && typeOf(json.decoder) === "ByteLevel";
    return model.type === "BPE" && isByteLevel && splits && post && plain && ![...extras, ...others].some(Boolean);
  }

  /** Throws TokenizerError if `json` (of a kind that `recognises` accepts) is damaged. */
  static fromJSON(json: TokenizerJson, file = "tokenizer.json"): ByteLevelBpe {
    const { model } = json;
    const entries = vocabEntries(model.vocab, file);
    const ids = new Map(entries);
    for (const { content, id } of json.added_tokens ?? []) {
      const known = ids.get(content);
      if (known !== undefined && known !== id)
        throw new TokenizerError(`${file}: the added token ${JSON.stringify(content)} has two ids, ${known} and ${id}`);
      if (known === undefined) entries.push([content, id]);
      ids.set(content, id);
    }
    const tokens = tokensById(entries, file);
    const merges = (model.merges ?? []).map((merge, rank): [number, number] => {
      const pair = typeof merge === "string" ? halves(merge) : merge;
      const a = ids.get(pair[0]);
      const b = ids.get(pair[1]);
      if (pair.length !== 2 || a === undefined || b === undefined)
        throw new TokenizerError(
          `${file}: merge ${rank}, ${JSON.stringify(merge)}, is not a pair of tokens of the vocabulary`,
        );
      return [a, b];
    });
    const addPrefixSpace = (json.pre_tokenizer as { add_prefix_space?: boolean }).add_prefix_space ?? true;
    return new ByteLevelBpe({ tokens, merges, added: json.added_tokens ?? [], addPrefixSpace }, file);
  }

  get vocabSize(): number {
    return this.#parts.tokens.length;
  }

  /** The special token of that text, or the token that decodes to it. */
  tokenId(token: string): number | undefined {
    return this.#ids.get(token) ?? this.#ids.get(Array.from(utf8.encode(token), (b) => byteCharacters[b]).join(""));
  }

  /** Special tokens in the text become their ids, as in Hugging Face's. Half a surrogate pair is read as U+FFFD. */
  encode(text: string): Int32Array {
    let out = new Int32Array(Math.max(16, text.length >> 1));
    let n = 0;
    const push = (ids: Int32Array) => {
      if (n + ids.length > out.length) {
        const larger = new Int32Array(Math.max(2 * out.length, n + ids.length));
        larger.set(out);
        out = larger;
      }
      for (let i = 0; i < ids.length; i++) out[n++] = ids[i];
    };
    const pushText = (part: string) => {
      if (this.#parts.addPrefixSpace && !part.startsWith(" ")) part = ` ${part}`;
      this.#pattern.lastIndex = 0;
      for (let match = this.#pattern.exec(part); match !== null; match = this.#pattern.exec(part))
        push(this.#word(match[0]));
    };
    let at = 0;
    if (this.#special !== null)
      for (const match of text.matchAll(this.#special)) {
        if (match.index > at) pushText(text.slice(at, match.index));
        push(Int32Array.of(this.#ids.get(match[0])!));
        at = match.index + match[0].length;
      }
    if (at < text.length) pushText(at === 0 ? text : text.slice(at));
    return out.slice(0, n);
  }

  #word(word: string): Int32Array {
    const known = this.#cache.get(word);
    if (known !== undefined) return known;
    const ids = this.#merge(utf8.encode(word));
    if (this.#cache.size >= maxCachedWords) this.#cache.clear();
    this.#cache.set(word, ids);
    return ids;
  }

  #merge(bytes: Uint8Array): Int32Array {
    const ids = Int32Array.from(bytes, (b) => this.#byteIds[b]);
    return ids.slice(0, mergePairs(ids, { ranks: this.#ranks, results: this.#results }));
  }

  #bytesOf(id: number, position: number): Uint8Array {
    const bytes = this.#bytes[id];
    if (bytes === undefined)
      throw new TokenizerError(`id ${id} at position ${position} is not in the vocabulary (0 … ${this.vocabSize - 1})`);
    return bytes;
  }

  /** Bytes that are not UTF-8 (a character cut in two) become U+FFFD. */
  decode(ids: ArrayLike<number>, { skipSpecialTokens = false }: DecodeOptions = {}): string {
    const parts: Uint8Array[] = [];
    let length = 0;
    for (let i = 0; i < ids.length; i++) {
      if (skipSpecialTokens && this.#specialIds.has(ids[i])) continue;
      const bytes = this.#bytesOf(ids[i], i);
      parts.push(bytes);
      length += bytes.length;
    }
    const out = new Uint8Array(length);
    let at = 0;
    for (const bytes of parts) {
      out.set(bytes, at);
      at += bytes.length;
    }
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(out);
  }

  decodeStream({ skipSpecialTokens = false }: DecodeOptions = {}): DecodeStream {
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    let position = 0;
    return {
      push: (id) => {
        const bytes = this.#bytesOf(id, position++);
        return skipSpecialTokens && this.#specialIds.has(id) ? "" : decoder.decode(bytes, { stream: true });
      },
      end: () => decoder.decode(),
    };
  }

  toJSON(): TokenizerJson {
    const { tokens, merges, added, addPrefixSpace } = this.#parts;
    const byteLevel = { type: "ByteLevel", add_prefix_space: addPrefixSpace, trim_offsets: true, use_regex: true };
    return tokenizerJson({
      tokens,
      merges: merges.map(([a, b]) => `${tokens[a]} ${tokens[b]}`),
      added,
      preTokenizer: byteLevel,
      decoder: byteLevel,
    });
  }

  save(folder: string): Promise<void> {
    return saveTokenizer(this, folder);
  }
}
