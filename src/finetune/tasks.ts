/**
 * What fine-tuning can be for: the next token of text, or a class. A task says how examples become batches, what the loss is,
 * and how each example of a batch did.
 */

import { ArrayDataset, type Batch, DataLoader, hostArray } from "../data/index.ts";
import { logitPieces } from "../models/logits.ts";
import * as F from "../nn/functional.ts";
import type { Module } from "../nn/index.ts";
import { cat, type Tensor, tensor } from "../tensor/index.ts";
import type { Batches } from "../train/evaluate.ts";
import { FinetuneError } from "./errors.ts";
import { countCut, rowLength } from "./row-length.ts";
import { ignored, type TokenBatch, TokenBatches, type TokenExample } from "./token-batches.ts";

/** How each row of a batch did: sums over what counts in it, [batch] each. */
export interface Scores {
  readonly loss: Tensor;
  /** Not where nothing is right or wrong: in regression. */
  readonly correct?: Tensor;
  readonly count: Tensor;
  /** The class or the value that a row was given, and the right one. */
  readonly predicted?: Tensor;
  readonly target?: Tensor;
}

/** A batch with the numbers of the examples in its rows; more rows than numbers are filling. */
export interface MeasuredBatch<B> {
  readonly batch: B;
  readonly examples: readonly number[];
}

/** A kind of fine-tuning: examples of type E, batches of type B. */
export interface Task<M extends Module, E, B> {
  readonly name: string;
  /** Batches to train on, in an order of its own each epoch, and how many examples are in none because nothing is to be learnt of them. */
  readonly training: (
    model: M,
    examples: readonly E[],
    options: { readonly batch: number; readonly seed: number },
  ) => Batches<B> & { readonly length: number; readonly dropped?: number };
  /** Every example once. */
  readonly evaluation: (model: M, examples: readonly E[], batch: number) => Iterable<MeasuredBatch<B>>;
  /** How many examples are longer than the model is shown, so that they are cut. Default: none. */
  readonly truncated?: (model: M, examples: readonly E[]) => number;
  /** The mean loss over what counts. */
  readonly loss: (model: M, batch: B) => Tensor;
  readonly scores: (model: M, batch: B) => Scores;
  /** A text that is equal for equal examples, by which one that is in both sets is found. */
  readonly identity: (example: E) => string;
}

/** A language model: ids [batch, time] to logits [batch, time, vocabulary], or with targets to the mean loss. */
export interface TrainableLanguageModel extends Module {
  readonly contextLength: number;
  /** Whether forward takes a third argument, { segments, positions }. */
  readonly supportsPacking?: boolean;
  forward(ids: Tensor, targets?: Tensor, packing?: { readonly segments: Tensor; readonly positions: Tensor }): Tensor;
  /** The two halves of forward, where logits need not exist as a whole: ids to states [batch, time, width], states [rows, width] to logits. */
  hiddenStates?(ids: Tensor): Tensor;
  logitsOf?(hidden: Tensor): Tensor;
  /** Of the logits, where they are made by halves. */
  readonly vocabSize?: number;
}

/** Logits of 16 bits as float32: their loss, rounded as they are, would hide what an evaluation gains by less than a hundredth. */
export const wide = (logits: Tensor): Tensor => logits.to("float32");

/** Pieces of the logits [rows, vocabulary] of ids [batch, time], and the rows that each begins at. */
function* logitsInPieces(model: TrainableLanguageModel, ids: Tensor): Generator<{ logits: Tensor; start: number }> {
  const { vocabSize } = model;
  const pieces = vocabSize === undefined ? 1 : logitPieces(ids.size, vocabSize);
  if (pieces === 1 || !model.hiddenStates || !model.logitsOf) {
    yield { logits: model.forward(ids).flatten(0, 1), start: 0 };
    return;
  }
  const hidden = model.hiddenStates(ids).flatten(0, 1);
  const each = Math.ceil(ids.size / pieces);
  for (let start = 0; start < ids.size; start += each)
    yield { logits: model.logitsOf(hidden.narrow(0, start, Math.min(each, ids.size - start))), start };
}

export interface LanguageTaskOptions {
  /** Tokens of a row; the model's context by default. */
  readonly maxLength?: number;
  /** Several examples in a row when training. Default: false. */
  readonly packing?: boolean;
}

/** The next token, of the tokens whose label is not −100. Accuracy is the share of them that is the model's likeliest. */
export function languageTask(
  options: LanguageTaskOptions = {},
): Task<TrainableLanguageModel, TokenExample, TokenBatch> {
  const { packing = false } = options;
  const lengthFor = (model: TrainableLanguageModel): number => rowLength(model, options.maxLength);
  return {
    name: "language",
    training(model, examples, { batch, seed }) {
      if (packing && model.supportsPacking !== true)
        throw new FinetuneError(
          `packing: ${model.constructor.name} does not say supportsPacking, so that examples in one row would see each other; leave packing off`,
        );
      return new TokenBatches(examples, { batch, maxLength: lengthFor(model), packing, shuffle: true, seed });
    },
    evaluation: (model, examples, batch) =>
      new TokenBatches(examples, { batch, maxLength: lengthFor(model) }).measured(),
    truncated: (model, examples) => countCut(examples, lengthFor(model), "language"),
    loss: (model, [ids, targets, segments, positions]) =>
      segments && positions ? model.forward(ids, targets, { segments, positions }) : model.forward(ids, targets),
    scores(model, [ids, targets]) {
      const all = targets.flatten();
      const losses: Tensor[] = [];
      const right: Tensor[] = [];
      for (const { logits, start } of logitsInPieces(model, ids)) {
        const labels = all.narrow(0, start, logits.shape[0]);
        losses.push(F.crossEntropy(wide(logits), labels, { reduction: "none", ignoreIndex: ignored }));
        right.push(logits.argmax({ dim: -1 }).eq(labels));
      }
      const counts = all.ne(ignored);
      const perRow = (x: Tensor): Tensor => x.to("float32").reshape(ids.shape).sum({ dim: 1 });
      return { loss: perRow(cat(losses)), correct: perRow(cat(right).logicalAnd(counts)), count: perRow(counts) };
    },
    identity: ({ ids }) => Array.prototype.join.call(ids, " "),
  };
}

/** An example with a class: numbers of the task's shape, or token ids. */
export interface ClassExample {
  readonly input: Float32Array | Int32Array;
  readonly label: number;
}

export interface ClassTaskOptions {
  /** The shape of an input: [784], [3, 32, 32], [tokens]. */
  readonly shape: readonly number[];
  /** Number of classes, against which labels are checked. */
  readonly classes: number;
}

interface Classifier extends Module {
  forward(inputs: Tensor): Tensor;
}

/** A batch for a classifier: inputs [batch, …shape], labels [batch] (−100: filling). */
export type ClassBatch = readonly [inputs: Tensor, labels: Tensor] & { readonly weight: number };

/** One class of several, by cross-entropy. Accuracy is the share of examples whose class is the likeliest. */
export function classTask(options: ClassTaskOptions): Task<Classifier, ClassExample, ClassBatch> {
  const { shape, classes } = options;
  const size = shape.reduce((a, b) => a * b, 1);
  const check = (examples: readonly ClassExample[]) => {
    if (examples.length === 0) throw new FinetuneError("there are no examples");
    examples.forEach(({ input, label }, i) => {
      if (input.length !== size)
        throw new FinetuneError(`example ${i}: ${input.length} numbers are no input of shape [${shape.join(", ")}]`);
      if (!Number.isInteger(label) || label < 0 || label >= classes)
        throw new FinetuneError(`example ${i}: the label ${label} is none of the classes 0 … ${classes - 1}`);
    });
  };
  /** Rows up to `batch`; those that are missing do not count. */
  const make = (examples: readonly ClassExample[], batch: number): ClassBatch => {
    const kind = examples[0].input instanceof Int32Array ? Int32Array : Float32Array;
    const inputs = new kind(batch * size);
    const labels = new Int32Array(batch).fill(ignored);
    examples.forEach(({ input, label }, i) => {
      inputs.set(input, i * size);
      labels[i] = label;
    });
    const tensors = [tensor(inputs, { shape: [batch, ...shape] }), tensor(labels)];
    return Object.assign(tensors, { weight: examples.length }) as unknown as ClassBatch;
  };
  return {
    name: "class",
    training(_, examples, { batch, seed }) {
      check(examples);
      const indices = new ArrayDataset(hostArray(Int32Array.from(examples, (_, i) => i)));
      return new DataLoader(indices, {
        batchSize: batch,
        shuffle: true,
        seed,
        wrap: ([{ data }]: Batch) =>
          make(
            Array.from(data as Int32Array, (i) => examples[i]),
            batch,
          ),
      });
    },
    *evaluation(_, examples, batch) {
      check(examples);
      for (let at = 0; at < examples.length; at += batch) {
        const numbers = Array.from({ length: Math.min(batch, examples.length - at) }, (_, i) => at + i);
        yield {
          batch: make(
            numbers.map((i) => examples[i]),
            batch,
          ),
          examples: numbers,
        };
      }
    },
    loss: (model, [inputs, labels]) => F.crossEntropy(wide(model.forward(inputs)), labels, { ignoreIndex: ignored }),
    scores(model, [inputs, labels]) {
      const logits = model.forward(inputs);
      const predicted = logits.argmax({ dim: -1 });
      return {
        loss: F.crossEntropy(wide(logits), labels, { reduction: "none", ignoreIndex: ignored }),
        correct: predicted.eq(labels).to("float32"),
        count: labels.ne(ignored).to("float32"),
        predicted,
        target: labels,
      };
    },
    identity: ({ input }) => input.join(" "),
  };
}
