/**
 * Models of `tokenizer.json`: how one word becomes ids. BPE (with byte fallback, prefixes and suffixes), WordPiece, Unigram and whole words.
 * A table by `type`; each row makes a vocabulary and a function.
 */
import { pairKey } from "../bpe-train.ts";
import { TokenizerError } from "../errors.ts";
import type { Fields } from "./fields.ts";
import { type Merges, mergePairs } from "./merge.ts";
import { unigram } from "./unigram.ts";
import { byteIds, mostTokens, type TokenModel } from "./vocabulary.ts";

export type { TokenModel } from "./vocabulary.ts";

/** model.vocab as an object from token to id. */
function vocabulary(fields: Fields): Map<string, number> {
  const out = new Map<string, number>();
  for (const [token, id] of Object.entries(fields.part("vocab").raw)) {
    if (!Number.isInteger(id) || (id as number) < 0 || (id as number) >= mostTokens)
      throw new TokenizerError(
        `${fields.place}.vocab: the id of ${JSON.stringify(token)} must be a whole number below ${mostTokens}, got ${JSON.stringify(id)}`,
      );
    out.set(token, id as number);
  }
  return out;
}

const noWay = (fields: Fields, word: string): TokenizerError =>
  new TokenizerError(
    `${fields.place}: ${JSON.stringify(word.slice(0, 60))} is not in the vocabulary, and there is no unknown token`,
  );

/** The two tokens of each merge, and their union. A word that goes on begins with `prefix`, which the union loses. */
function mergesOf(fields: Fields, ids: ReadonlyMap<string, number>, prefix: string): Merges {
  const list = fields.list("merges");
  const ranks = new Map<number, number>();
  const results = Int32Array.from(list, (merge, rank) => {
    const pair = typeof merge === "string" ? merge.split(" ") : (merge as unknown[]);
    const [left, right] = Array.isArray(pair) && pair.length === 2 ? pair : [];
    const a = ids.get(left as string);
    const b = ids.get(right as string);
    const union = a === undefined || b === undefined ? undefined : ids.get(`${left}${`${right}`.slice(prefix.length)}`);
    if (a === undefined || b === undefined || union === undefined)
      throw new TokenizerError(
        `${fields.place}: merge ${rank}, ${JSON.stringify(merge)}, is not a pair of tokens whose union is in the vocabulary`,
      );
    ranks.set(pairKey(a, b), rank);
    return union;
  });
  return { ranks, results };
}

const maxCachedWords = 1 << 17;
/** Longer words are not worth remembering. */
const longestCached = 64;

function bpe(fields: Fields): TokenModel {
  const ids = vocabulary(fields);
  const [prefix, suffix] = [fields.text("continuing_subword_prefix", ""), fields.text("end_of_word_suffix", "")];
  const merges = mergesOf(fields, ids, prefix);
  const ignoresMerges = fields.flag("ignore_merges", false);
  const [fallback, fuses] = [fields.flag("byte_fallback", false), fields.flag("fuse_unk", false)];
  if (fields.number("dropout", 0) !== 0)
    throw fields.wrong("dropout", "absent or 0; encoding has to be the same each time");
  const unknown = fields.has("unk_token") ? fields.text("unk_token") : null;
  const unknownId = unknown === null ? undefined : ids.get(unknown);

  /** Ids of the characters; those that are unknown become one unknown token each, or one together. */
  const symbols = (word: string): number[] => {
    const out: number[] = [];
    let pending = false;
    let at = 0;
    for (const character of word) {
      let symbol = at > 0 ? prefix + character : character;
      at += character.length;
      if (at === word.length) symbol += suffix;
      const id = ids.get(symbol);
      const bytes = id === undefined && fallback ? byteIds(symbol, ids) : null;
      if (bytes) for (const byte of bytes) out.push(byte);
      else if (id !== undefined) {
        if (pending) out.push(unknownId as number);
        pending = false;
        out.push(id);
      } else if (unknown !== null) {
        if (unknownId === undefined) throw fields.wrong("unk_token", "a token of the vocabulary");
        if (pending && !fuses) out.push(unknownId);
        pending = true;
      }
    }
    if (pending) out.push(unknownId as number);
    return out;
  };
  const cache = new Map<string, Int32Array>();
  const tokens = (word: string): Int32Array => {
    const known = cache.get(word);
    if (known) return known;
    const list = Int32Array.from(symbols(word));
    const out = list.slice(0, mergePairs(list, merges));
    if (word.length > longestCached) return out;
    if (cache.size >= maxCachedWords) cache.clear();
    cache.set(word, out);
    return out;
  };
  return {
    ids,
    encode(word, out) {
      const whole = ignoresMerges ? ids.get(word) : undefined;
      if (whole !== undefined) out.push(whole);
      else for (const id of tokens(word)) out.push(id);
    },
  };
}

/** BERT's: the longest piece that fits, again and again (Wu et al. 2016). */
function wordPiece(fields: Fields): TokenModel {
  const ids = vocabulary(fields);
  const unknown = fields.text("unk_token", "[UNK]");
  const prefix = fields.text("continuing_subword_prefix", "##");
  const longest = fields.whole("max_input_chars_per_word", 100);
  const longestToken = [...ids.keys()].reduce((most, token) => Math.max(most, token.length), 0);
  /** Null where some of the word is not expressible. */
  const pieces = (word: string): number[] | null => {
    const out: number[] = [];
    for (let at = 0; at < word.length; ) {
      const beginning = at > 0 ? prefix : "";
      let end = Math.min(word.length, at + longestToken);
      let id: number | undefined;
      while (end > at && (id = ids.get(beginning + word.slice(at, end))) === undefined) end--;
      if (id === undefined) return null;
      out.push(id);
      at = end;
    }
    return out;
  };
  return {
    ids,
    encode(word, out) {
      const found = [...word].length > longest ? null : pieces(word);
      if (found) out.push(...found);
      else {
        const id = ids.get(unknown);
        if (id === undefined) throw noWay(fields, word);
        out.push(id);
      }
    },
  };
}

function wordLevel(fields: Fields): TokenModel {
  const ids = vocabulary(fields);
  const unknown = fields.text("unk_token", "<unk>");
  return {
    ids,
    encode(word, out) {
      const id = ids.get(word) ?? ids.get(unknown);
      if (id === undefined) throw noWay(fields, word);
      out.push(id);
    },
  };
}

const kinds: Readonly<Record<string, (fields: Fields) => TokenModel>> = {
  BPE: bpe,
  WordPiece: wordPiece,
  WordLevel: wordLevel,
  Unigram: unigram,
};

/** The older files do not say which model they hold; their fields do. */
function typeOf(fields: Fields): string {
  if (Array.isArray(fields.raw["vocab"])) return "Unigram";
  if (fields.has("merges")) return "BPE";
  return fields.has("continuing_subword_prefix") || fields.has("max_input_chars_per_word") ? "WordPiece" : "WordLevel";
}

/** The model of a `tokenizer.json`. Throws TokenizerError for one that is not known or damaged. */
export const modelOf = (fields: Fields): TokenModel =>
  fields.has("type") ? fields.kind(kinds)(fields) : kinds[typeOf(fields)](fields);
