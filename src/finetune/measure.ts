/**
 * Measuring a model example by example, and comparing two measurements of the same examples: the difference with a paired 95 %
 * interval, which says whether "better" is more than luck in the choice of examples.
 */
import { Rng } from "../core/rng.ts";
import { inEvaluation, type Module } from "../nn/module.ts";
import { noGrad, realize } from "../tensor/index.ts";
import { FinetuneError } from "./errors.ts";
import type { Task } from "./tasks.ts";

/** How a model does on a set of examples. */
export interface Measurement {
  /** Mean loss in nats over all targets that count. */
  readonly loss: number;
  /** exp(loss). */
  readonly perplexity: number;
  /** Share of the targets that are the model's likeliest. */
  readonly accuracy: number;
  /** Targets that count. */
  readonly targets: number;
  /** Sums by example, in the order of the examples; one without a target that counts has 0 everywhere. */
  readonly examples: {
    readonly loss: Float64Array;
    readonly correct: Float64Array;
    readonly count: Float64Array;
  };
}

/** Measures a model, in evaluation mode and without gradients. Each batch is one program and one read. */
export async function measure<M extends Module, E, B>(
  model: M,
  task: Task<M, E, B>,
  examples: readonly E[],
  options: { readonly batch?: number } = {},
): Promise<Measurement> {
  const { batch: rows = 8 } = options;
  const [loss, correct, count] = Array.from({ length: 3 }, () => new Float64Array(examples.length));
  await inEvaluation(model, async () => {
    for (const { batch, examples: numbers } of task.evaluation(model, examples, rows)) {
      const scores = noGrad(() => task.scores(model, batch));
      await realize(scores.loss, scores.correct, scores.count);
      const [l, c, n] = [await scores.loss.data(), await scores.correct.data(), await scores.count.data()];
      numbers.forEach((example, row) => {
        loss[example] = l[row];
        correct[example] = c[row];
        count[example] = n[row];
      });
    }
  });
  return summary({ loss, correct, count });
}

const sum = (values: Float64Array): number => values.reduce((a, b) => a + b, 0);

function summary(examples: Measurement["examples"]): Measurement {
  const targets = sum(examples.count);
  const loss = sum(examples.loss) / targets;
  return { loss, perplexity: Math.exp(loss), accuracy: sum(examples.correct) / targets, targets, examples };
}

/** after − before, and the interval in which 95 % of the bootstrap's differences lie. */
export interface Difference {
  readonly value: number;
  /** Null where a single example leaves nothing to resample. */
  readonly interval: readonly [low: number, high: number] | null;
}

export interface Comparison {
  /** Nats; below 0 is better. */
  readonly loss: Difference;
  /** A share of 1; above 0 is better. */
  readonly accuracy: Difference;
  /** Examples that were compared. */
  readonly examples: number;
}

const resamples = 10_000;

/**
 * Compares two measurements of the same examples by a paired bootstrap over examples (Efron & Tibshirani 1993, "An Introduction to the Bootstrap",
 * chapter 13, percentile interval): examples are drawn with replacement 10,000 times, each with both of its losses, and the mean over targets of
 * after − before is taken. The same seed gives the same interval. Throws FinetuneError where the examples differ.
 */
export function compare(before: Measurement, after: Measurement, options: { readonly seed?: number } = {}): Comparison {
  const { count } = before.examples;
  if (count.length !== after.examples.count.length || count.some((n, i) => n !== after.examples.count[i]))
    throw new FinetuneError(
      `compare: the measurements are of different examples (${count.length} and ${after.examples.count.length}, or other targets); measure both on the same`,
    );
  const used = Array.from(count.keys()).filter((i) => count[i] > 0);
  const differences = (key: "loss" | "correct") =>
    Float64Array.from(used, (i) => after.examples[key][i] - before.examples[key][i]);
  const weights = Float64Array.from(used, (i) => count[i]);
  const columns = [differences("loss"), differences("correct")];
  const [loss, accuracy] = bootstrap(columns, weights, options.seed ?? 0);
  return { loss, accuracy, examples: used.length };
}

/** Σ column / Σ weights with its interval, for each column; all are resampled together. */
function bootstrap(columns: readonly Float64Array[], weights: Float64Array, seed: number): Difference[] {
  const n = weights.length;
  const values = columns.map((column) => sum(column) / sum(weights));
  if (n < 2) return values.map((value) => ({ value, interval: null }));
  const rng = new Rng(seed);
  const drawn = columns.map(() => new Float64Array(resamples));
  const sums = new Float64Array(columns.length);
  for (let s = 0; s < resamples; s++) {
    sums.fill(0);
    let weight = 0;
    for (let k = 0; k < n; k++) {
      const i = Math.floor(rng.uniform() * n);
      weight += weights[i];
      for (let c = 0; c < columns.length; c++) sums[c] += columns[c][i];
    }
    for (let c = 0; c < columns.length; c++) drawn[c][s] = sums[c] / weight;
  }
  return values.map((value, c) => {
    const sorted = drawn[c].sort();
    const at = (share: number) => sorted[Math.min(resamples - 1, Math.floor(share * resamples))];
    return { value, interval: [at(0.025), at(0.975)] };
  });
}
