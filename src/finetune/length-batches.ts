/**
 * The order of batches of sequences: examples of like length together, so that little of a batch is padding, in an order that stays
 * random and differs from epoch to epoch. What a batch is made of is the caller's affair.
 */
import { Rng } from "../core/rng.ts";
import { FinetuneError } from "./errors.ts";

export interface LengthBatchesOptions {
  /** Rows in a batch. */
  readonly batch: number;
  /** Whether each epoch has an order of its own. Default: false. */
  readonly shuffle?: boolean;
  /** Default: 0. */
  readonly seed?: number;
}

/** Examples that are sorted by length together, in batches: equal lengths waste no padding, and the order stays random. */
const sortedTogether = 32;

/** A copy in a random order. */
export function shuffled<T>(items: readonly T[], rng: Rng): T[] {
  const out = [...items];
  for (let i = out.length - 1; i > 0; i--) {
    const j = Math.floor(rng.uniform() * (i + 1));
    [out[i], out[j]] = [out[j], out[i]];
  }
  return out;
}

/** Batches of rows 0 … lengths.length − 1. Each loop is an epoch; `state` and `load` make it resumable. */
export class LengthBatches<B> implements Iterable<B> {
  readonly #lengths: readonly number[];
  readonly #options: Required<LengthBatchesOptions>;
  readonly #make: (rows: readonly number[]) => B;
  #epoch = 0;
  #at = 0;

  /** `make` gives the batch of the rows whose numbers it gets, `batch` of them or fewer. Throws FinetuneError for a batch below 1. */
  constructor(lengths: readonly number[], options: LengthBatchesOptions, make: (rows: readonly number[]) => B) {
    this.#options = { shuffle: false, seed: 0, ...options };
    const { batch } = options;
    if (!Number.isInteger(batch) || batch < 1)
      throw new FinetuneError(`batch must be a whole number ≥ 1, got ${batch}`);
    this.#lengths = lengths;
    this.#make = make;
  }

  /** Batches in an epoch. */
  get length(): number {
    return Math.ceil(this.#lengths.length / this.#options.batch);
  }
  get epoch(): number {
    return this.#epoch;
  }

  *[Symbol.iterator](): Generator<B> {
    const batches = this.#order();
    while (this.#at < batches.length) yield this.#make(batches[this.#at++]);
    this.#epoch++;
    this.#at = 0;
  }

  /** Every row once, the longest first, with the rows of each batch. */
  *measured(): Generator<{ readonly batch: B; readonly rows: readonly number[] }> {
    for (const rows of this.#byLength(this.#all())) yield { batch: this.#make(rows), rows };
  }

  state(): { readonly epoch: number; readonly at: number } {
    return { epoch: this.#epoch, at: this.#at };
  }
  load({ epoch, at }: { readonly epoch: number; readonly at: number }): void {
    this.#epoch = epoch;
    this.#at = at;
  }

  #all(): number[] {
    return this.#lengths.map((_, row) => row);
  }

  /** The rows of each batch of this epoch. */
  #order(): number[][] {
    const { batch, shuffle, seed } = this.#options;
    if (!shuffle) return this.#byLength(this.#all());
    const rng = new Rng(seed, 2 + this.#epoch);
    const order = shuffled(this.#all(), rng);
    const batches: number[][] = [];
    for (let at = 0; at < order.length; at += batch * sortedTogether)
      batches.push(...this.#byLength(order.slice(at, at + batch * sortedTogether)));
    return shuffled(batches, rng);
  }

  /** Rows of like length together, `batch` at a time. */
  #byLength(rows: readonly number[]): number[][] {
    const { batch } = this.#options;
    const sorted = [...rows].sort((a, b) => this.#lengths[b] - this.#lengths[a] || a - b);
    return Array.from({ length: Math.ceil(sorted.length / batch) }, (_, i) => sorted.slice(i * batch, (i + 1) * batch));
  }
}
