/**
 * Numbers that say how well a classifier does, over plain arrays: accuracy, confusion matrix, precision, recall, F1, and
 * means that grow batch by batch. No tensors here.
 */
import { IndexError, ShapeError } from "../core/errors.ts";

function checkPair(operation: string, predictions: ArrayLike<number>, labels: ArrayLike<number>): void {
  if (predictions.length !== labels.length)
    throw new ShapeError(`${operation}: ${predictions.length} predictions for ${labels.length} labels`);
}

/** The index of the largest of each row of [rows, columns]; the first of equals, and a NaN counts as the largest. */
export function argmaxRows(scores: ArrayLike<number>, columns: number): Int32Array {
  if (!Number.isInteger(columns) || columns < 1 || scores.length % columns !== 0)
    throw new ShapeError(`argmaxRows: ${scores.length} scores are not rows of ${columns}`);
  const out = new Int32Array(scores.length / columns);
  for (let row = 0; row < out.length; row++) {
    const start = row * columns;
    let best = 0;
    for (let c = 1; c < columns && !Number.isNaN(scores[start + best]); c++)
      if (!(scores[start + c] <= scores[start + best])) best = c;
    out[row] = best;
  }
  return out;
}

/** The share of predictions that equal their label; NaN for none. */
export function accuracy(predictions: ArrayLike<number>, labels: ArrayLike<number>): number {
  checkPair("accuracy", predictions, labels);
  let right = 0;
  for (let i = 0; i < labels.length; i++) if (predictions[i] === labels[i]) right++;
  return right / labels.length;
}

/** The share of rows of [rows, columns] scores whose label is among the `k` largest; ties count against the label. */
export function topKAccuracy(scores: ArrayLike<number>, columns: number, labels: ArrayLike<number>, k: number): number {
  if (scores.length !== columns * labels.length)
    throw new ShapeError(`topKAccuracy: ${scores.length} scores are not ${labels.length} rows of ${columns}`);
  let right = 0;
  for (let row = 0; row < labels.length; row++) {
    const label = labels[row];
    checkClass("topKAccuracy", "label", label, row, columns);
    const own = scores[row * columns + label];
    let above = 0;
    for (let c = 0; c < columns; c++) if (c !== label && !(scores[row * columns + c] < own)) above++;
    if (above < k) right++;
  }
  return right / labels.length;
}

function checkClass(operation: string, what: string, value: number, position: number, classes: number): void {
  if (!Number.isInteger(value) || value < 0 || value >= classes)
    throw new IndexError(`${operation}: ${what} ${value} at position ${position} is outside 0 … ${classes - 1}`);
}

/** counts[label * classes + prediction], as scikit-learn's confusion_matrix: rows are the truth. Throws IndexError. */
export interface ConfusionMatrix {
  readonly classes: number;
  readonly counts: Float64Array;
}

/** Counts pairs of label and prediction, into `into` if given (batch by batch). */
export function confusionMatrix(
  predictions: ArrayLike<number>,
  labels: ArrayLike<number>,
  classes: number,
  into: ConfusionMatrix = { classes, counts: new Float64Array(classes * classes) },
): ConfusionMatrix {
  checkPair("confusionMatrix", predictions, labels);
  if (into.classes !== classes)
    throw new ShapeError(`confusionMatrix: the matrix to add to has ${into.classes} classes, not ${classes}`);
  for (let i = 0; i < labels.length; i++) {
    checkClass("confusionMatrix", "label", labels[i], i, classes);
    checkClass("confusionMatrix", "prediction", predictions[i], i, classes);
  }
  for (let i = 0; i < labels.length; i++) into.counts[labels[i] * classes + predictions[i]]++;
  return into;
}

export interface ClassScores {
  readonly precision: number;
  readonly recall: number;
  readonly f1: number;
  /** How many samples have this label. */
  readonly support: number;
}

export interface ClassificationReport {
  readonly accuracy: number;
  readonly perClass: readonly ClassScores[];
  /** The plain mean over classes. */
  readonly macro: ClassScores;
  /** The mean weighted by support. */
  readonly weighted: ClassScores;
}

/** Precision, recall and F1 (0 where they would be 0/0, as scikit-learn's zero_division=0). */
export function classificationReport({ classes, counts }: ConfusionMatrix): ClassificationReport {
  let total = 0;
  let right = 0;
  const perClass = Array.from({ length: classes }, (_, c): ClassScores => {
    let support = 0;
    let predicted = 0;
    for (let k = 0; k < classes; k++) {
      support += counts[c * classes + k];
      predicted += counts[k * classes + c];
    }
    const hits = counts[c * classes + c];
    total += support;
    right += hits;
    const ratio = (a: number, b: number) => (b === 0 ? 0 : a / b);
    return {
      precision: ratio(hits, predicted),
      recall: ratio(hits, support),
      f1: ratio(2 * hits, predicted + support),
      support,
    };
  });
  const mean = (weight: (s: ClassScores) => number): ClassScores => {
    const sum = perClass.reduce((n, s) => n + weight(s), 0);
    const of = (key: "precision" | "recall" | "f1") => perClass.reduce((n, s) => n + weight(s) * s[key], 0) / sum;
    return { precision: of("precision"), recall: of("recall"), f1: of("f1"), support: total };
  };
  return { accuracy: right / total, perClass, macro: mean(() => 1), weighted: mean((s) => s.support) };
}

/** A mean over batches of different sizes: `add(mean of a batch, its size)`. */
export class RunningMean {
  #sum = 0;
  #lost = 0; // Kahan's compensation: a million small losses add up exactly enough
  #count = 0;

  add(value: number, count = 1): void {
    const y = value * count - this.#lost;
    const t = this.#sum + y;
    this.#lost = Number.isFinite(t) ? t - this.#sum - y : 0;
    this.#sum = t;
    this.#count += count;
  }

  /** NaN before the first value. */
  get mean(): number {
    return this.#sum / this.#count;
  }

  get count(): number {
    return this.#count;
  }

  reset(): void {
    this.#sum = this.#lost = this.#count = 0;
  }
}

/** An exponentially weighted mean without a bias at its start (Adam's correction), for lines that should not jump. */
export class SmoothedMean {
  readonly #decay: number;
  #sum = 0;
  #weight = 0;

  /** `decay` in [0, 1): 0.9 averages over about ten values. */
  constructor(decay = 0.9) {
    this.#decay = decay;
  }

  add(value: number): number {
    this.#sum = this.#decay * this.#sum + (1 - this.#decay) * value;
    this.#weight = this.#decay * this.#weight + (1 - this.#decay);
    return this.value;
  }

  get value(): number {
    return this.#sum / this.#weight;
  }
}
