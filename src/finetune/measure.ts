/**
 * Measuring a model example by example, and comparing two measurements of the same examples: the difference with a paired 95 %
 * interval, which says whether "better" is more than luck in the choice of examples.
 */
import { Rng } from "../core/rng.ts";
import { inEvaluation, type Module } from "../nn/module.ts";
import { noGrad, realize, type Tensor } from "../tensor/index.ts";
import { FinetuneError } from "./errors.ts";
import { type Columns, countedRows, type Metric, metricsFor } from "./metrics.ts";
import type { Task } from "./tasks.ts";

/** How a model does on a set of examples. */
export interface Measurement {
  /** Mean loss over all targets that count: in nats, or of squares in regression. */
  readonly loss: number;
  /** exp(loss). */
  readonly perplexity: number;
  /** Share of the targets that are the model's likeliest; NaN in regression. */
  readonly accuracy: number;
  /** Targets that count. */
  readonly targets: number;
  /** Sums by example, in the order of the examples; one without a target that counts has 0 everywhere. */
  readonly examples: Columns & { readonly loss: Float64Array; readonly count: Float64Array };
}

/** Measures a model, in evaluation mode and without gradients. Each batch is one program and one read. */
export async function measure<M extends Module, E, B>(
  model: M,
  task: Task<M, E, B>,
  examples: readonly E[],
  options: { readonly batch?: number } = {},
): Promise<Measurement> {
  const { batch: rows = 8 } = options;
  const column = (): Float64Array => new Float64Array(examples.length);
  const columns = { loss: column(), count: column() } as Record<string, Float64Array> & Measurement["examples"];
  await inEvaluation(model, async () => {
    for (const { batch, examples: numbers } of task.evaluation(model, examples, rows)) {
      const scores = Object.entries(noGrad(() => task.scores(model, batch)) as unknown as Record<string, Tensor>);
      await realize(...scores.map(([, values]) => values));
      for (const [name, tensor] of scores) {
        const values = await tensor.data();
        const into = (columns[name] ??= column());
        for (let row = 0; row < numbers.length; row++) into[numbers[row]] = Number(values[row]);
      }
    }
  });
  return summary(columns);
}

const sum = (values: Float64Array): number => values.reduce((a, b) => a + b, 0);

/** The measurement of these columns. */
export function summary(examples: Measurement["examples"]): Measurement {
  const targets = sum(examples.count);
  const loss = sum(examples.loss) / targets;
  const accuracy = examples["correct"] ? sum(examples["correct"]) / targets : Number.NaN;
  return { loss, perplexity: Math.exp(loss), accuracy, targets, examples };
}

/** after − before, and the interval in which 95 % of the bootstrap's differences lie. */
export interface Difference {
  readonly value: number;
  /** Null where a single example leaves nothing to resample. */
  readonly interval: readonly [low: number, high: number] | null;
}

export interface Comparison {
  /** Nats (squares in regression); below 0 is better. */
  readonly loss: Difference;
  /** A share of 1; above 0 is better. Of value NaN in regression. */
  readonly accuracy: Difference;
  /** Every metric of the table `metrics` that both measurements suffice for, by name. */
  readonly metrics: Readonly<Record<string, Difference>>;
  /** Examples that were compared. */
  readonly examples: number;
}

const resamples = 10_000;

/** Compares two measurements of the same examples; see compareColumns. */
export function compare(before: Measurement, after: Measurement, options: { readonly seed?: number } = {}): Comparison {
  const differences = compareColumns(before.examples, after.examples, options);
  const none: Difference = { value: Number.NaN, interval: null };
  return {
    loss: differences["loss"],
    accuracy: differences["accuracy"] ?? none,
    metrics: differences,
    examples: countedRows(before.examples).length,
  };
}

/**
 * Each metric of `after` minus that of `before`, on the same examples, by a paired bootstrap over examples (Efron & Tibshirani 1993, "An
 * Introduction to the Bootstrap", chapter 13, percentile interval): examples are drawn with replacement 10,000 times, each with both of its
 * outcomes. The same seed gives the same intervals. Throws FinetuneError where the examples differ.
 */
export function compareColumns(
  before: Columns,
  after: Columns,
  options: { readonly seed?: number } = {},
): Record<string, Difference> {
  checkSame(before, after);
  const rows = countedRows(before);
  const both = metricsFor(before).filter((metric) => metricsFor(after).includes(metric));
  const of = ({ value }: Metric, drawn: Int32Array): number => value(after, drawn) - value(before, drawn);
  const values = both.map((metric) => of(metric, rows));
  const n = rows.length;
  const outcomes = both.map(() => new Float64Array(n < 2 ? 0 : resamples));
  const rng = new Rng(options.seed ?? 0);
  const drawn = new Int32Array(n);
  for (let s = 0; s < (n < 2 ? 0 : resamples); s++) {
    for (let k = 0; k < n; k++) drawn[k] = rows[Math.floor(rng.uniform() * n)];
    for (let m = 0; m < both.length; m++) outcomes[m][s] = of(both[m], drawn);
  }
  return Object.fromEntries(
    both.map(({ name }, m) => [name, { value: values[m], interval: n < 2 ? null : middle(outcomes[m]) }]),
  );
}

/** Throws where two measurements are not of the same examples, as far as their columns tell. */
function checkSame(before: Columns, after: Columns): void {
  const lengths = [before, after].map((columns) => Object.values(columns)[0]?.length ?? 0);
  const differ = (name: string): boolean => {
    const [a, b] = [before[name], after[name]];
    return a !== undefined && b !== undefined && a.some((value, i) => value !== b[i]);
  };
  if (lengths[0] !== lengths[1] || differ("count") || differ("target"))
    throw new FinetuneError(
      `compare: the measurements are of different examples (${lengths.join(" and ")}, or other targets); measure both on the same`,
    );
}

/** Where the middle 95 % of the values begin and end, of those that are defined; null where none is. */
function middle(values: Float64Array): [low: number, high: number] | null {
  const sorted = values.filter((value) => !Number.isNaN(value)).sort();
  if (sorted.length === 0) return null;
  const at = (share: number) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
  return [at(0.025), at(0.975)];
}
