/**
 * Batches of tokenised examples for a language model: masked targets, padding to a few fixed sizes so that programs do not multiply, or
 * packing several examples into a row with boundaries that attention respects. Text comes to tokens in `supervised.ts`.
 */
import { Rng } from "../core/rng.ts";
import { paddedLength } from "../data/padding.ts";
import { type Tensor, tensor } from "../tensor/index.ts";
import { FinetuneError } from "./errors.ts";
import { LengthBatches, type LengthBatchesOptions, shuffled } from "./length-batches.ts";
import { countCut, rowTokens } from "./row-length.ts";

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

export interface TokenBatchesOptions extends LengthBatchesOptions {
  /** The most tokens of a row that the model sees. What is longer is cut off at its end. */
  readonly maxLength: number;
  /** Several examples in a row, with boundaries; default: one example a row. */
  readonly packing?: boolean;
}

/** An example as a row's part: input tokens, and the targets after them. */
interface Piece {
  readonly inputs: Int32Array;
  readonly targets: Int32Array;
  /** Targets that count. */
  readonly count: number;
}

function pieceOf(example: TokenExample, index: number, maxLength: number): Piece | null {
  const { ids, labels = ids } = example;
  if (labels.length !== ids.length)
    throw new FinetuneError(`example ${index}: ${ids.length} ids but ${labels.length} labels; they must be as many`);
  const length = rowTokens(example, maxLength, "language");
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
  readonly #batches: LengthBatches<TokenBatch>;

  /** Throws FinetuneError where there is nothing to learn from. */
  constructor(examples: readonly TokenExample[], options: TokenBatchesOptions) {
    this.#options = { packing: false, shuffle: false, seed: 0, ...options };
    const { batch, maxLength, packing, shuffle, seed } = this.#options;
    if (!Number.isInteger(maxLength) || maxLength < 1)
      throw new FinetuneError(`maxLength must be a whole number ≥ 1, got ${maxLength}`);
    const pieces = examples.map((example, i) => pieceOf(example, i, maxLength));
    const kept = pieces.flatMap((piece, i) => (piece ? [i] : []));
    this.truncated = countCut(examples, maxLength, "language");
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
    const lengths = this.#rows.map((row) => row.reduce((n, { inputs }) => n + inputs.length, 0));
    this.#batches = new LengthBatches(lengths, { batch, shuffle, seed }, (rows) => this.#make(rows, lengths));
  }

  /** Batches in an epoch. */
  get length(): number {
    return this.#batches.length;
  }
  get epoch(): number {
    return this.#batches.epoch;
  }

  [Symbol.iterator](): Iterator<TokenBatch> {
    return this.#batches[Symbol.iterator]();
  }

  /** All batches in order, each with the numbers of the examples in its rows. Not for packed rows. */
  *measured(): Generator<{ readonly batch: TokenBatch; readonly examples: readonly number[] }> {
    if (this.#options.packing) throw new FinetuneError("examples that share a row can't be measured one by one");
    for (const { batch, rows } of this.#batches.measured())
      yield { batch, examples: rows.map((r) => this.#examples[r]) };
  }

  state(): { readonly epoch: number; readonly at: number } {
    return this.#batches.state();
  }
  load(state: { readonly epoch: number; readonly at: number }): void {
    this.#batches.load(state);
  }

  /** Always `batch` rows: those that are missing at the end hold no target that counts. */
  #make(rows: readonly number[], lengths: readonly number[]): TokenBatch {
    const { batch, maxLength, packing } = this.#options;
    const time = packing ? maxLength : paddedLength(Math.max(...rows.map((r) => lengths[r])), maxLength);
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
