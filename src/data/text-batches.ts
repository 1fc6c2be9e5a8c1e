/**
 * Windows of a long list of tokens for a language model: random ones to train on, and all of them in order to evaluate
 * on. Targets are the inputs moved one token on. Plain arrays; the tensor layer wraps them.
 */
import { Rng, type RngState } from "../core/rng.ts";
import { LoaderError } from "./dataset.ts";

export interface TextBatch {
  /** [batch, context] */
  readonly inputs: Int32Array;
  /** [batch, context]; targets[b, t] is the token after inputs[b, t]. */
  readonly targets: Int32Array;
  readonly batch: number;
  readonly context: number;
}

export interface TextBatchesOptions {
  /** Windows in a batch. */
  readonly batch: number;
  /** Tokens in a window. */
  readonly context: number;
  /** 0 by default. */
  readonly seed?: number;
}

function check(tokens: Int32Array, batch: number, context: number, least: number): void {
  for (const [name, value] of [
    ["batch", batch],
    ["context", context],
  ] as const)
    if (!Number.isInteger(value) || value < 1)
      throw new LoaderError(`${name} must be a whole number ≥ 1, got ${value}`);
  if (tokens.length < least)
    throw new LoaderError(
      `${tokens.length} tokens are too few for a context of ${context}: at least ${least} are needed; use more text or a shorter context`,
    );
}

function windows(tokens: Int32Array, starts: ArrayLike<number>, context: number): TextBatch {
  const batch = starts.length;
  const inputs = new Int32Array(batch * context);
  const targets = new Int32Array(batch * context);
  for (let b = 0; b < batch; b++) {
    inputs.set(tokens.subarray(starts[b], starts[b] + context), b * context);
    targets.set(tokens.subarray(starts[b] + 1, starts[b] + 1 + context), b * context);
  }
  return { inputs, targets, batch, context };
}

/** An endless supply of batches of random windows, as nanoGPT's get_batch; `state` and `load` make it resumable. */
export class TextBatches implements Iterable<TextBatch> {
  readonly #tokens: Int32Array;
  readonly #batch: number;
  readonly #context: number;
  readonly #rng: Rng;

  /** Throws LoaderError if there are fewer than context + 1 tokens. */
  constructor(tokens: Int32Array, { batch, context, seed = 0 }: TextBatchesOptions) {
    check(tokens, batch, context, context + 1);
    this.#tokens = tokens;
    this.#batch = batch;
    this.#context = context;
    this.#rng = new Rng(seed);
  }

  next(): TextBatch {
    const count = this.#tokens.length - this.#context; // of possible starts
    const starts = Array.from({ length: this.#batch }, () => this.#rng.below(count));
    return windows(this.#tokens, starts, this.#context);
  }

  *[Symbol.iterator](): Generator<TextBatch, never, undefined> {
    for (;;) yield this.next();
  }

  /** What to save to go on with the very next batch. */
  state(): RngState {
    return this.#rng.state();
  }

  load(state: RngState): void {
    this.#rng.load(state);
  }
}

/** `new TextBatches(tokens, options)`. */
export function textBatches(tokens: Int32Array, options: TextBatchesOptions): TextBatches {
  return new TextBatches(tokens, options);
}

/**
 * Every token but the first as a target exactly once: consecutive windows, `batch` at a time; then a smaller batch, then
 * one shorter window, where the tokens do not divide. At most three shapes. Throws LoaderError for fewer than 2 tokens.
 */
export function* evaluationBatches(
  tokens: Int32Array,
  options: { readonly batch: number; readonly context: number },
): Generator<TextBatch> {
  const { batch, context } = options;
  check(tokens, batch, context, 2);
  const whole = Math.floor((tokens.length - 1) / context);
  for (let w = 0; w < whole; w += batch) {
    const starts = Array.from({ length: Math.min(batch, whole - w) }, (_, b) => (w + b) * context);
    yield windows(tokens, starts, context);
  }
  const rest = tokens.length - 1 - whole * context;
  if (rest > 0) yield windows(tokens, [whole * context], rest);
}
