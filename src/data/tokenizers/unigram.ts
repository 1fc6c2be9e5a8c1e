/** The Unigram model (Kudo 2018): of all ways to cut a text into tokens the one whose logarithmic probabilities sum highest. */
import { TokenizerError } from "../errors.ts";
import type { Fields } from "./fields.ts";
import { mostPieces } from "./limits.ts";
import { byteIds, mostTokens, type TokenModel } from "./vocabulary.ts";

/** How much less likely than the unlikeliest token an unknown character is (SentencePiece's kUnkPenalty). */
const unknownPenalty = 10;

/** Tokens by their characters: each node's children by node and character, and the id of the token that ends in it. */
class Trie {
  readonly #children = new Map<number, number>();
  readonly #ids: number[] = [-1];

  add(token: string, id: number): void {
    let node = 0;
    for (const character of token) {
      const key = node * 0x110000 + (character.codePointAt(0) as number);
      let child = this.#children.get(key);
      if (child === undefined) {
        child = this.#ids.push(-1) - 1;
        this.#children.set(key, child);
      }
      node = child;
    }
    this.#ids[node] = id;
  }

  /** Calls with the length and id of each token that the characters from `start` on begin with, the shortest first. */
  prefixes(codes: readonly number[], start: number, found: (length: number, id: number) => void): void {
    let node = 0;
    for (let i = start; i < codes.length; i++) {
      const child = this.#children.get(node * 0x110000 + codes[i]);
      if (child === undefined) return;
      node = child;
      if (this.#ids[node] >= 0) found(i - start + 1, this.#ids[node]);
    }
  }
}

function readPieces(fields: Fields): { tokens: string[]; scores: Float64Array } {
  const list = fields.list("vocab");
  if (list.length === 0 || list.length >= mostTokens) throw fields.wrong("vocab", `1 … ${mostTokens - 1} tokens`);
  const scores = new Float64Array(list.length);
  let characters = 0;
  const tokens = list.map((pair, i) => {
    const [token, score] = Array.isArray(pair) ? (pair as unknown[]) : [];
    if (typeof token !== "string" || typeof score !== "number")
      throw new TokenizerError(
        `${fields.place}.vocab[${i}] must be a token and its score, got ${JSON.stringify(pair)}`,
      );
    scores[i] = score;
    characters += token.length;
    if (characters > mostPieces)
      throw new TokenizerError(
        `${fields.place}.vocab[${i}]: ${characters} characters up to here; at most ${mostPieces} in all are read`,
      );
    return token;
  });
  return { tokens, scores };
}

export function unigram(fields: Fields): TokenModel {
  const { tokens, scores } = readPieces(fields);
  const unknown = fields.has("unk_id") ? fields.whole("unk_id") : null;
  if (unknown !== null && unknown >= tokens.length) throw fields.wrong("unk_id", `below ${tokens.length}`);
  const fallback = fields.flag("byte_fallback", false);
  const ids = new Map(tokens.map((token, id) => [token, id]));
  const trie = new Trie();
  for (const [token, id] of ids) if (token !== "") trie.add(token, id);
  const unknownScore = scores.reduce((a, b) => Math.min(a, b), Number.POSITIVE_INFINITY) - unknownPenalty;

  /** The best cut by Viterbi's algorithm: where the token that ends before each position begins, and its id. */
  const bestCut = (codes: readonly number[]): { begins: Int32Array; ends: Int32Array } => {
    const n = codes.length;
    const best = new Float64Array(n + 1);
    const begins = new Int32Array(n + 1).fill(-1);
    const ends = new Int32Array(n + 1);
    const offer = (from: number, to: number, score: number, id: number) => {
      if (begins[to] >= 0 && !(score > best[to])) return;
      [best[to], begins[to], ends[to]] = [score, from, id];
    };
    for (let at = 0; at < n; at++) {
      let hasSingle = false;
      trie.prefixes(codes, at, (length, id) => {
        offer(at, at + length, scores[id] + best[at], id);
        hasSingle ||= length === 1;
      });
      if (hasSingle) continue;
      if (unknown === null)
        throw new TokenizerError(
          `${fields.place}: ${JSON.stringify(String.fromCodePoint(codes[at]))} is not in the vocabulary, and there is no unknown token`,
        );
      offer(at, at + 1, unknownScore + best[at], unknown);
    }
    return { begins, ends };
  };

  return {
    ids,
    encode(word, out) {
      const characters = Array.from(word);
      const { begins, ends } = bestCut(characters.map((character) => character.codePointAt(0) as number));
      const pieces: { from: number; to: number; id: number }[] = [];
      for (let to = characters.length; to > 0; to = begins[to]) {
        const last = pieces.at(-1);
        // unknown characters in a row are one piece
        if (ends[to] === unknown && last?.id === unknown) last.from = begins[to];
        else pieces.push({ from: begins[to], to, id: ends[to] });
      }
      for (const { from, to, id } of pieces.reverse()) {
        if (id !== unknown) {
          out.push(id);
          continue;
        }
        const text = characters.slice(from, to).join("");
        const known = ids.get(text); // several unknown characters may be a token together
        const bytes = known === undefined && fallback ? byteIds(text, ids) : null;
        if (bytes) for (const byte of bytes) out.push(byte);
        else out.push(known ?? id);
      }
    },
  };
}
