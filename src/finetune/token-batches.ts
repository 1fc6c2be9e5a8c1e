/**
 * Batches of tokenised examples for a language model: masked targets, padding to a few fixed sizes so that programs do not multiply, or
 * packing several examples into a row with boundaries that attention respects. Text comes to tokens in `supervised.ts`.
 */
import { Rng } from "../core/rng.ts";
import { type Tensor, tensor } from "../tensor/index.ts";
import { FinetuneError } from "./errors.ts";

/** Marks a target that does not count in the loss (PyTorch's ignore_index). */
export const ignored = -100;

/** An example in tokens. */
export interface TokenExample {
  readonly ids: ArrayLike<number>;
  /** As long as ids: the token itself where it is to be learnt, −100 where not (a prompt). Default: all but the first are learnt. */
  readonly labels?: ArrayLike<number>;
}

/**
 * A batch of rows [batch, time]: tokens, and the token after each (−100: does not count); with packing also the number of the
 * example within the row and the position within the example. `weight` is how many targets count.
 */
export type TokenBatch = readonly [inputs: Tensor, targets: Tensor, segments?: Tensor, positions?: Tensor] & {
  readonly weight: number;
};

export interface TokenBatchesOptions {
  /** Rows in a batch. */
  readonly batch: number;
  /** The most tokens of a row that the model sees. What is longer is cut off at its end. */
  readonly maxLength: number;
  /** Several examples in a row, with boundaries; default: one example a row. */
  readonly packing?: boolean;
  /** Whether each epoch has an order of its own. Default: false. */
  readonly shuffle?: boolean;
  /** Default: 0. */
  readonly seed?: number;
}

/** An example as a row's part: input tokens, and the targets after them. */
interface Piece {
  readonly inputs: Int32Array;
  readonly targets: Int32Array;
  /** Targets that count. */
  readonly count: number;
}

/** Examples that are sorted by length together, in batches: equal lengths waste no padding, and the order stays random. */
const sortedTogether = 32;

/** Lengths to which rows are padded: 16, 24, 32, 48, 64, … up to `longest`. A row is at most a third padding beyond 16. */
export function paddedLength(length: number, longest: number): number {
  let size = 16;
  while (size < length) size = Number.isInteger(Math.log2(size)) ? size * 1.5 : (size / 1.5) * 2;
  return Math.min(size, longest);
}

function pieceOf(example: TokenExample, index: number, maxLength: number): Piece | null {
  const { ids, labels = ids } = example;
  if (labels.length !== ids.length)
    throw new FinetuneError(`example ${index}: ${ids.length} ids but ${labels.length} labels; they must be as many`);
  const length = Math.min(ids.length - 1, maxLength);
  if (length < 1) return null;
  const inputs = Int32Array.from({ length }, (_, t) => ids[t]);
  const targets = Int32Array.from({ length }, (_, t) => labels[t + 1]);
  const count = targets.reduce((n, target) => n + (target === ignored ? 0 : 1), 0);
  return count === 0 ? null : { inputs, targets, count };
}

/** Batches for `fit` and for measuring. Each loop over them is an epoch; `state` and `load` make them resumable. */
export class TokenBatches implements Iterable<TokenBatch> {
  /** Examples that were cut at maxLength. */
  readonly truncated: number;
  /** Examples without a target that counts, which are left out. */
  readonly dropped: number;
  readonly #rows: readonly (readonly Piece[])[];
  /** Which example a row is, where rows are single examples. */
  readonly #examples: readonly number[];
  readonly #options: Required<TokenBatchesOptions>;
  #epoch = 0;
  #at = 0;

  /** Throws FinetuneError where there is nothing to learn from. */
  constructor(examples: readonly TokenExample[], options: TokenBatchesOptions) {
    this.#options = { packing: false, shuffle: false, seed: 0, ...options };
    const { batch, maxLength, packing, shuffle, seed } = this.#options;
    for (const [name, value] of Object.entries({ batch, maxLength }))
      if (!Number.isInteger(value) || value < 1)
        throw new FinetuneError(`${name} must be a whole number ≥ 1, got ${value}`);
    const pieces = examples.map((example, i) => pieceOf(example, i, maxLength));
    const kept = pieces.flatMap((piece, i) => (piece ? [i] : []));
    this.truncated = examples.filter(({ ids }) => ids.length - 1 > maxLength).length;
    this.dropped = examples.length - kept.length;
    if (kept.length === 0)
      throw new FinetuneError(
        `none of the ${examples.length} examples has a token to learn within the first ${maxLength}; give longer examples or a larger maxLength`,
      );
    if (packing) {
      const order = shuffle ? shuffled(kept, new Rng(seed, 1)) : kept;
      this.#rows = packed(
        order.map((i) => pieces[i] as Piece),
        maxLength,
      );
      this.#examples = [];
    } else {
      this.#rows = kept.map((i) => [pieces[i] as Piece]);
      this.#examples = kept;
    }
  }

  /** Batches in an epoch. */
  get length(): number {
    return Math.ceil(this.#rows.length / this.#options.batch);
  }
  get epoch(): number {
    return this.#epoch;
  }

  *[Symbol.iterator](): Generator<TokenBatch> {
    const batches = this.#order();
    while (this.#at < batches.length) yield this.#make(batches[this.#at++]);
    this.#epoch++;
    this.#at = 0;
  }

  /** All batches in order, each with the numbers of the examples in its rows. Not for packed rows. */
  *measured(): Generator<{ readonly batch: TokenBatch; readonly examples: readonly number[] }> {
    if (this.#options.packing) throw new FinetuneError("examples that share a row can't be measured one by one");
    for (const rows of this.#byLength(this.#rows.map((_, i) => i)))
      yield { batch: this.#make(rows), examples: rows.map((r) => this.#examples[r]) };
  }

  state(): { readonly epoch: number; readonly at: number } {
    return { epoch: this.#epoch, at: this.#at };
  }
  load({ epoch, at }: { readonly epoch: number; readonly at: number }): void {
    this.#epoch = epoch;
    this.#at = at;
  }

  /** The rows of each batch of this epoch. */
  #order(): number[][] {
    const rows = this.#rows.map((_, i) => i);
    const { batch, shuffle, seed } = this.#options;
    if (!shuffle) return this.#byLength(rows);
    const rng = new Rng(seed, 2 + this.#epoch);
    const order = shuffled(rows, rng);
    const batches: number[][] = [];
    for (let at = 0; at < order.length; at += batch * sortedTogether)
      batches.push(...this.#byLength(order.slice(at, at + batch * sortedTogether)));
    return shuffled(batches, rng);
  }

  /** Rows of like length together, `batch` at a time. */
  #byLength(rows: readonly number[]): number[][] {
    const { batch } = this.#options;
    const sorted = [...rows].sort((a, b) => this.#lengthOf(b) - this.#lengthOf(a) || a - b);
    return Array.from({ length: Math.ceil(sorted.length / batch) }, (_, i) => sorted.slice(i * batch, (i + 1) * batch));
  }

  #lengthOf(row: number): number {
    return this.#rows[row].reduce((n, { inputs }) => n + inputs.length, 0);
  }

  /** Always `batch` rows: those that are missing at the end hold no target that counts. */
  #make(rows: readonly number[]): TokenBatch {
    const { batch, maxLength, packing } = this.#options;
    const time = packing ? maxLength : paddedLength(Math.max(...rows.map((r) => this.#lengthOf(r))), maxLength);
    const shape = [batch, time];
    const [inputs, segments, positions] = Array.from({ length: 3 }, () => new Int32Array(batch * time));
    const targets = new Int32Array(batch * time).fill(ignored);
    segments.fill(-1); // padding sees padding only
    let weight = 0;
    rows.forEach((row, r) => {
      let at = r * time;
      this.#rows[row].forEach((piece, segment) => {
        inputs.set(piece.inputs, at);
        targets.set(piece.targets, at);
        segments.fill(segment, at, at + piece.inputs.length);
        for (let t = 0; t < piece.inputs.length; t++) positions[at + t] = t;
        at += piece.inputs.length;
        weight += piece.count;
      });
    });
    const arrays = packing ? [inputs, targets, segments, positions] : [inputs, targets];
    const tensors = arrays.map((values) => tensor(values, { shape, dtype: "int32" }));
    return Object.assign(tensors, { weight }) as unknown as TokenBatch;
  }
}

function shuffled<T>(items: readonly T[], rng: Rng): T[] {
  const out = [...items];
  for (let i = out.length - 1; i > 0; i--) {
    const j = Math.floor(rng.uniform() * (i + 1));
    [out[i], out[j]] = [out[j], out[i]];
  }
  return out;
}

/** First fit: each example goes to the first of the last rows that has room for it. */
function packed(pieces: readonly Piece[], maxLength: number): Piece[][] {
  const rows: { room: number; readonly pieces: Piece[] }[] = [];
  const window = 64; // rows that are still looked at
  for (const piece of pieces) {
    const need = piece.inputs.length;
    const row = rows.slice(-window).find(({ room }) => room >= need);
    if (row) {
      row.room -= need;
      row.pieces.push(piece);
    } else rows.push({ room: maxLength - need, pieces: [piece] });
  }
  return rows.map((row) => row.pieces);
}
