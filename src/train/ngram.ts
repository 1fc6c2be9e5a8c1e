/**
 * An interpolated trigram model of tokens: what a language model has to beat. Maximum-likelihood estimates of three
 * orders are mixed (Jelinek and Mercer 1980), the weights depending on how often the context was seen, and fitted by
 * expectation-maximisation on a slice held out of the training part; the validation part is never looked at.
 */
import { NablaError } from "../core/errors.ts";

/** Too few tokens, or tokens outside the vocabulary. */
export class NgramError extends NablaError {
  override name = "NgramError";
}

/** Counts by a pair of whole numbers ≥ 0: open addressing over typed arrays. Entries have ids 0, 1, … in order of arrival. */
export class PairCounts {
  #slots = new Int32Array(1 << 12).fill(-1);
  #first = new Int32Array(1 << 11);
  #second = new Int32Array(1 << 11);
  #counts = new Int32Array(1 << 11);
  #size = 0;

  get size(): number {
    return this.#size;
  }

  #slot(a: number, b: number): number {
    const mask = this.#slots.length - 1;
    let h = Math.imul(a, 0x9e3779b1) ^ Math.imul(b, 0x85ebca77);
    h = Math.imul(h ^ (h >>> 15), 0x2c1b3c6d);
    for (let s = (h ^ (h >>> 13)) & mask; ; s = (s + 1) & mask) {
      const id = this.#slots[s];
      if (id < 0 || (this.#first[id] === a && this.#second[id] === b)) return s;
    }
  }

  /** The id of the pair; −1 if it was never added. */
  find(a: number, b: number): number {
    return this.#slots[this.#slot(a, b)];
  }

  /** The count of an id. */
  count(id: number): number {
    return id < 0 ? 0 : this.#counts[id];
  }

  /** Counts the pair once more, and gives its id. */
  add(a: number, b: number): number {
    const slot = this.#slot(a, b);
    let id = this.#slots[slot];
    if (id < 0) {
      id = this.#size++;
      this.#slots[slot] = id;
      this.#first[id] = a;
      this.#second[id] = b;
      if (this.#size === this.#first.length) this.#grow();
    }
    this.#counts[id]++;
    return id;
  }

  #grow(): void {
    const twice = (old: Int32Array) => {
      const larger = new Int32Array(2 * old.length);
      larger.set(old);
      return larger;
    };
    this.#first = twice(this.#first);
    this.#second = twice(this.#second);
    this.#counts = twice(this.#counts);
    this.#slots = new Int32Array(2 * this.#slots.length).fill(-1);
    for (let id = 0; id < this.#size; id++) this.#slots[this.#slot(this.#first[id], this.#second[id])] = id;
  }
}

/** Contexts are grouped by how often they were seen: once, 2–3, 4–7, …; each group has its own weight. */
const bucket = (count: number) => 31 - Math.clz32(count);
const buckets = 32;

export interface TrigramOptions {
  /** Share of the training tokens, at their end, on which the weights are fitted; 0.1 by default. */
  readonly heldOut?: number;
  /** Steps of expectation-maximisation; 30 by default. */
  readonly iterations?: number;
}

export class TrigramModel {
  readonly vocab: number;
  #tokens = 0;
  #unigrams: Int32Array;
  #followed: Int32Array; // occurrences of a token that have a successor
  #bigrams = new PairCounts();
  #bigramFollowed = new Int32Array(1 << 11); // occurrences of a bigram that have a successor, by its id
  #trigrams = new PairCounts(); // (id of the bigram, token)
  // p(w) = λ·ML(w) + (1 − λ)/V, p(w|v) = λ·ML(w|v) + (1 − λ)·p(w), p(w|uv) = λ·ML(w|uv) + (1 − λ)·p(w|v)
  #lambda1 = 0.5;
  #lambda2 = new Float64Array(buckets).fill(0.5);
  #lambda3 = new Float64Array(buckets).fill(0.5);

  private constructor(vocab: number) {
    this.vocab = vocab;
    this.#unigrams = new Int32Array(vocab);
    this.#followed = new Int32Array(vocab);
  }

  /** Fits the weights on a held-out slice, then counts all of `tokens`. Throws NgramError. */
  static fit(tokens: Int32Array, vocab: number, options: TrigramOptions = {}): TrigramModel {
    const { heldOut = 0.1, iterations = 30 } = options;
    checkTokens("training", tokens, vocab, 20);
    const cut = tokens.length - Math.max(3, Math.floor(tokens.length * heldOut));
    const model = new TrigramModel(vocab);
    model.#count(tokens.subarray(0, cut));
    model.#fitWeights(tokens.subarray(cut), iterations);
    model.#clear();
    model.#count(tokens);
    return model;
  }

  #clear(): void {
    this.#tokens = 0;
    this.#unigrams.fill(0);
    this.#followed.fill(0);
    this.#bigrams = new PairCounts();
    this.#bigramFollowed.fill(0);
    this.#trigrams = new PairCounts();
  }

  #count(tokens: Int32Array): void {
    this.#tokens += tokens.length;
    let previous = -1; // the id of the bigram that ends one token before
    for (let i = 0; i < tokens.length; i++) {
      const w = tokens[i];
      this.#unigrams[w]++;
      if (previous >= 0) {
        this.#trigrams.add(previous, w);
        this.#bigramFollowed[previous]++;
      }
      if (i === 0) continue;
      const v = tokens[i - 1];
      this.#followed[v]++;
      previous = this.#bigrams.add(v, w);
      if (previous >= this.#bigramFollowed.length) {
        const larger = new Int32Array(2 * this.#bigramFollowed.length);
        larger.set(this.#bigramFollowed);
        this.#bigramFollowed = larger;
      }
    }
  }

  /** Expectation-maximisation: each held-out token is shared out among the orders that may have made it. */
  #fitWeights(tokens: Int32Array, iterations: number): void {
    const n = tokens.length - 2;
    const ml = new Float64Array(3 * n); // the three estimates of each token
    const contexts = new Int8Array(2 * n).fill(-1); // the buckets of its two contexts; −1: context never seen
    for (let i = 0; i < n; i++) {
      const [u, v, w] = [tokens[i], tokens[i + 1], tokens[i + 2]];
      ml[3 * i] = this.#unigrams[w] / this.#tokens;
      const seen = this.#followed[v];
      if (seen > 0) {
        ml[3 * i + 1] = this.#bigrams.count(this.#bigrams.find(v, w)) / seen;
        contexts[2 * i] = bucket(seen);
      }
      const id = this.#bigrams.find(u, v);
      const seenPair = id < 0 ? 0 : this.#bigramFollowed[id];
      if (seenPair > 0) {
        ml[3 * i + 2] = this.#trigrams.count(this.#trigrams.find(id, w)) / seenPair;
        contexts[2 * i + 1] = bucket(seenPair);
      }
    }
    const hits2 = new Float64Array(buckets);
    const hits3 = new Float64Array(buckets);
    const all2 = new Float64Array(buckets);
    const all3 = new Float64Array(buckets);
    for (let iteration = 0; iteration < iterations; iteration++) {
      let hits1 = 0;
      let all1 = 0;
      for (const sums of [hits2, hits3, all2, all3]) sums.fill(0);
      for (let i = 0; i < n; i++) {
        const b2 = contexts[2 * i];
        const b3 = contexts[2 * i + 1];
        const l2 = b2 < 0 ? 0 : this.#lambda2[b2];
        const l3 = b3 < 0 ? 0 : this.#lambda3[b3];
        const p1 = this.#lambda1 * ml[3 * i] + (1 - this.#lambda1) / this.vocab;
        const p2 = l2 * ml[3 * i + 1] + (1 - l2) * p1;
        const p3 = l3 * ml[3 * i + 2] + (1 - l3) * p2;
        let share = 1; // of this token that reaches the order below
        if (b3 >= 0) {
          const own = (l3 * ml[3 * i + 2]) / p3;
          hits3[b3] += own;
          all3[b3]++;
          share -= own;
        }
        if (b2 >= 0) {
          const own = (l2 * ml[3 * i + 1]) / p2;
          hits2[b2] += share * own;
          all2[b2] += share;
          share *= 1 - own;
        }
        hits1 += (share * this.#lambda1 * ml[3 * i]) / p1;
        all1 += share;
      }
      // Two imaginary tokens, one for each side, keep a weight off 0 and 1 where a group is small.
      this.#lambda1 = (hits1 + 1) / (all1 + 2);
      for (let b = 0; b < buckets; b++) {
        this.#lambda2[b] = (hits2[b] + 1) / (all2[b] + 2);
        this.#lambda3[b] = (hits3[b] + 1) / (all3[b] + 2);
      }
    }
  }

  /** p(w | u, v); for u = −1 only v is known, for v = −1 nothing is. Sums to one over w. */
  probability(u: number, v: number, w: number): number {
    let p = (this.#lambda1 * this.#unigrams[w]) / this.#tokens + (1 - this.#lambda1) / this.vocab;
    if (v < 0) return p;
    const seen = this.#followed[v];
    if (seen > 0) {
      const lambda = this.#lambda2[bucket(seen)];
      p = (lambda * this.#bigrams.count(this.#bigrams.find(v, w))) / seen + (1 - lambda) * p;
    }
    if (u < 0) return p;
    const id = this.#bigrams.find(u, v);
    const seenPair = id < 0 ? 0 : this.#bigramFollowed[id];
    if (seenPair > 0) {
      const lambda = this.#lambda3[bucket(seenPair)];
      p = (lambda * this.#trigrams.count(this.#trigrams.find(id, w))) / seenPair + (1 - lambda) * p;
    }
    return p;
  }

  /** Nats a token over all tokens but the first, each predicted from the (at most two) before it. Throws NgramError. */
  loss(tokens: Int32Array): number {
    checkTokens("validation", tokens, this.vocab, 2);
    let sum = 0;
    for (let i = 1; i < tokens.length; i++)
      sum -= Math.log(this.probability(i > 1 ? tokens[i - 2] : -1, tokens[i - 1], tokens[i]));
    return sum / (tokens.length - 1);
  }
}

function checkTokens(part: string, tokens: Int32Array, vocab: number, least: number): void {
  if (tokens.length < least)
    throw new NgramError(
      `${tokens.length} ${part} tokens are too few for a trigram model (at least ${least}); use more text`,
    );
  for (let i = 0; i < tokens.length; i++)
    if (!(tokens[i] >= 0 && tokens[i] < vocab))
      throw new NgramError(`${part} token ${tokens[i]} at position ${i} is outside the vocabulary (0 … ${vocab - 1})`);
}

/** The loss on `validation` of the trigram model of `train`, in nats a token: what a language model has to beat. */
export function trigramLoss(train: Int32Array, validation: Int32Array, vocab: number): number {
  return TrigramModel.fit(train, vocab).loss(validation);
}
