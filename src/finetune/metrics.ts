/**
 * What can be said of a model from how it did on each example: a table of metrics over columns of numbers, one number an example.
 * All are functions of a choice of examples, so that a bootstrap can draw others. No tensors here.
 */

/**
 * Columns by name, one number an example. `loss`, `correct` and `count` are sums over an example's targets; `predicted` and `target` are
 * classes (where there is `correct`) or values; `exact`, `choice` and `choiceNormalized` are 0 or 1.
 */
export type Columns = Readonly<Record<string, Float64Array>>;

/** A row of the table. */
export interface Metric {
  readonly name: string;
  readonly better: "lower" | "higher";
  /** Columns that it is computed of; it exists where they are. */
  readonly needs: readonly string[];
  /** Columns beside which it says nothing. */
  readonly without?: readonly string[];
  readonly write: (value: number) => string;
  /** Over the examples whose numbers are given, which may repeat. */
  readonly value: (columns: Columns, rows: Int32Array) => number;
}

const percent = (x: number): string => `${(100 * x).toFixed(1)} %`;
/** With the minus that differences have; "–" for what is not defined. */
const fixed = (x: number): string => (Number.isNaN(x) ? "–" : x.toFixed(4).replace("-", "−"));

const total = (column: Float64Array, rows: Int32Array): number => {
  let sum = 0;
  for (let k = 0; k < rows.length; k++) sum += column[rows[k]];
  return sum;
};

/** Σ of one column over Σ of another. */
const ratio =
  (above: string, below: string): Metric["value"] =>
  (columns, rows) =>
    total(columns[above], rows) / total(columns[below], rows);
const mean =
  (name: string): Metric["value"] =>
  (columns, rows) =>
    total(columns[name], rows) / rows.length;
const meanLoss = ratio("loss", "count");

/** How often each class is the truth, is predicted, and both. */
function classCounts({ predicted, target }: Columns, rows: Int32Array) {
  const classes = 1 + Math.max(maximum(predicted), maximum(target));
  const [support, guessed, hits] = Array.from({ length: 3 }, () => new Float64Array(classes));
  for (let k = 0; k < rows.length; k++) {
    const [p, t] = [predicted[rows[k]], target[rows[k]]];
    support[t]++;
    guessed[p]++;
    if (p === t) hits[t]++;
  }
  return { classes, support, guessed, hits };
}

const maxima = new WeakMap<Float64Array, number>();
function maximum(column: Float64Array): number {
  let most = maxima.get(column);
  if (most === undefined) maxima.set(column, (most = column.reduce((a, b) => Math.max(a, b), 0)));
  return most;
}

/** The plain mean over the classes that occur, of `of(class)`. */
function meanOverClasses(classes: number, occurs: (c: number) => boolean, of: (c: number) => number): number {
  let [sum, count] = [0, 0];
  for (let c = 0; c < classes; c++)
    if (occurs(c)) {
      sum += of(c);
      count++;
    }
  return sum / count;
}

/** The mean F1 of the classes that are in the truth or the predictions (scikit-learn's f1_score, average="macro"). */
function macroF1(columns: Columns, rows: Int32Array): number {
  const { classes, support, guessed, hits } = classCounts(columns, rows);
  return meanOverClasses(
    classes,
    (c) => support[c] + guessed[c] > 0,
    (c) => (2 * hits[c]) / (support[c] + guessed[c]),
  );
}

/** The mean recall of the classes that are in the truth (scikit-learn's balanced_accuracy_score). */
function balancedAccuracy(columns: Columns, rows: Int32Array): number {
  const { classes, support, hits } = classCounts(columns, rows);
  return meanOverClasses(
    classes,
    (c) => support[c] > 0,
    (c) => hits[c] / support[c],
  );
}

/** Mean |predicted − target|. */
function absoluteError({ predicted, target }: Columns, rows: Int32Array): number {
  let sum = 0;
  for (const i of rows) sum += Math.abs(predicted[i] - target[i]);
  return sum / rows.length;
}

/** 1 − Σ (target − predicted)² / Σ (target − mean)²; of equal targets 1 where all are met, else 0 (scikit-learn's r2_score). NaN for one example. */
function explained({ predicted, target }: Columns, rows: Int32Array): number {
  const middle = total(target, rows) / rows.length;
  let [left, all] = [0, 0];
  for (const i of rows) {
    left += (target[i] - predicted[i]) ** 2;
    all += (target[i] - middle) ** 2;
  }
  if (rows.length < 2) return Number.NaN;
  return all === 0 ? Number(left === 0) : 1 - left / all;
}

const classes = ["predicted", "target", "correct"];
const values = { needs: ["predicted", "target"], without: ["correct"] };

/** Every metric, in the order in which tables show them. */
export const metrics: readonly Metric[] = [
  { name: "loss", better: "lower", needs: ["loss", "count"], write: fixed, value: meanLoss },
  {
    name: "perplexity",
    better: "lower",
    needs: ["loss", "count"],
    without: ["predicted"],
    write: (x) => x.toPrecision(4),
    value: (columns, rows) => Math.exp(meanLoss(columns, rows)),
  },
  {
    name: "accuracy",
    better: "higher",
    needs: ["correct", "count"],
    write: percent,
    value: ratio("correct", "count"),
  },
  { name: "macro-F1", better: "higher", needs: classes, write: percent, value: macroF1 },
  { name: "balanced accuracy", better: "higher", needs: classes, write: percent, value: balancedAccuracy },
  { name: "absolute error", better: "lower", ...values, write: fixed, value: absoluteError },
  { name: "R²", better: "higher", ...values, write: fixed, value: explained },
  { name: "exact match", better: "higher", needs: ["exact"], write: percent, value: mean("exact") },
  { name: "multiple choice", better: "higher", needs: ["choice"], write: percent, value: mean("choice") },
  {
    name: "multiple choice by length",
    better: "higher",
    needs: ["choiceNormalized"],
    write: percent,
    value: mean("choiceNormalized"),
  },
];

/** The metrics that columns suffice for. */
export const metricsFor = (columns: Columns): readonly Metric[] =>
  metrics.filter(
    ({ needs, without = [] }) => needs.every((name) => columns[name]) && !without.some((name) => columns[name]),
  );

/** The examples that count: those without a target that counts prove nothing. */
export function countedRows(columns: Columns): Int32Array {
  const all = Int32Array.from((Object.values(columns)[0] ?? []).keys());
  const { count } = columns;
  return count ? all.filter((i) => count[i] > 0) : all;
}

/** Every metric that the columns suffice for, by name, over all examples. */
export function metricsOf(columns: Columns): Record<string, number> {
  const rows = countedRows(columns);
  return Object.fromEntries(metricsFor(columns).map(({ name, value }) => [name, value(columns, rows)]));
}
