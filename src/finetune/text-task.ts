/**
 * Tasks on whole texts for models with a head: one class of several, or a number (regression). Texts are tokens here, padded to
 * few lengths, with a mask that says which tokens count. The losses are those of transformers' `problem_type`.
 */
import { paddedLength } from "../data/padding.ts";
import * as F from "../nn/functional.ts";
import type { Module } from "../nn/index.ts";
import { type Tensor, tensor } from "../tensor/index.ts";
import { FinetuneError } from "./errors.ts";
import { LengthBatches } from "./length-batches.ts";
import { countCut, rowLength, rowTokens } from "./row-length.ts";
import { type Task, wide } from "./tasks.ts";
import { ignored } from "./token-batches.ts";

/** A text in tokens, with those that the model expects around it, and its class's number or its value. */
export interface TextTarget {
  readonly ids: ArrayLike<number>;
  readonly target: number;
}

/** A model with a head: ids [batch, time] → logits [batch, numLabels]. */
export interface TextHead extends Module {
  readonly contextLength: number;
  readonly numLabels: number;
  /** What rows are filled up with, where the model wants a certain token there. Default: 0. */
  readonly padTokenId?: number;
  forward(ids: Tensor, input?: { readonly attentionMask?: Tensor | null }): Tensor;
}

/**
 * ids and mask [batch, time], targets [batch] (classes int32, −100: filling; values float32), and which rows count, float32 [batch].
 * `weight` is how many do.
 */
export type TextBatch = readonly [ids: Tensor, mask: Tensor, targets: Tensor, counts: Tensor] & {
  readonly weight: number;
};

/** transformers' names: cross-entropy over classes, or the mean squared error of one number. */
export type ProblemType = "single_label_classification" | "regression";

export interface TextTaskOptions {
  /** Default: "regression" where the model has one label, else "single_label_classification", as transformers decides. */
  readonly problemType?: ProblemType;
  /** The most tokens of a text; the last one, which closes it, stays. Default: the model's context. */
  readonly maxLength?: number;
}

const problemOf = (model: TextHead, { problemType }: TextTaskOptions): ProblemType => {
  const problem = problemType ?? (model.numLabels === 1 ? "regression" : "single_label_classification");
  if (problem === "regression" && model.numLabels !== 1)
    throw new FinetuneError(
      `regression: the model gives ${model.numLabels} numbers a text; load it with numLabels 1, or leave problemType out`,
    );
  if (problem === "single_label_classification" && model.numLabels < 2)
    throw new FinetuneError(
      "classification: the model gives one number a text; load it with numLabels for two classes or more",
    );
  return problem;
};

/** The first tokens of what is too long, and its last: encoders close a text with a token of their own. */
function shortened(ids: ArrayLike<number>, longest: number): Int32Array {
  const kept = Int32Array.from({ length: rowTokens({ ids }, longest, "text") }, (_, t) => ids[t]);
  if (ids.length > longest && longest > 1) kept[longest - 1] = ids[ids.length - 1];
  return kept;
}

class TextBatches extends LengthBatches<TextBatch> {
  constructor(
    model: TextHead,
    examples: readonly TextTarget[],
    options: TextTaskOptions,
    order: { readonly batch: number; readonly shuffle?: boolean; readonly seed?: number },
  ) {
    const longest = rowLength(model, options.maxLength);
    const problem = problemOf(model, options);
    checkTargets(examples, problem, model.numLabels);
    const rows = examples.map(({ ids }) => shortened(ids, longest));
    const { batch } = order;
    super(
      rows.map((ids) => ids.length),
      order,
      (numbers) => {
        const time = paddedLength(Math.max(...numbers.map((i) => rows[i].length)), longest);
        const shape = [batch, time];
        const ids = new Int32Array(batch * time).fill(model.padTokenId ?? 0);
        const mask = new Int32Array(batch * time);
        const targets = problem === "regression" ? new Float32Array(batch) : new Int32Array(batch).fill(ignored);
        const counts = new Float32Array(batch);
        // rows that are missing see one token: a softmax over nothing would be NaN
        for (let r = 0; r < batch; r++) mask[r * time] = 1;
        numbers.forEach((i, r) => {
          ids.set(rows[i], r * time);
          mask.fill(1, r * time, r * time + rows[i].length);
          targets[r] = examples[i].target;
          counts[r] = 1;
        });
        const tensors = [tensor(ids, { shape }), tensor(mask, { shape }), tensor(targets), tensor(counts)];
        return Object.assign(tensors, { weight: numbers.length }) as unknown as TextBatch;
      },
    );
  }
}

function checkTargets(examples: readonly TextTarget[], problem: ProblemType, numLabels: number): void {
  if (examples.length === 0) throw new FinetuneError("there are no examples");
  examples.forEach(({ ids, target }, i) => {
    if (ids.length === 0) throw new FinetuneError(`example ${i}: there are no tokens in it`);
    if (
      problem === "regression" ? Number.isFinite(target) : Number.isInteger(target) && target >= 0 && target < numLabels
    )
      return;
    throw new FinetuneError(
      problem === "regression"
        ? `example ${i}: the value ${target} is not a finite number`
        : `example ${i}: the class ${target} is none of 0 … ${numLabels - 1}`,
    );
  });
}

/**
 * One class of several by cross-entropy, or one number by the mean squared error, of texts. What is measured of classes: loss, accuracy,
 * macro-F1, balanced accuracy; of numbers: the error. Throws FinetuneError for examples and models that do not fit.
 */
export function textTask(options: TextTaskOptions = {}): Task<TextHead, TextTarget, TextBatch> {
  const logitsOf = (model: TextHead, [ids, attentionMask]: TextBatch): Tensor => model.forward(ids, { attentionMask });
  const squares = (logits: Tensor, [, , targets, counts]: TextBatch): Tensor =>
    logits.flatten().to("float32").sub(targets).square().mul(counts);
  return {
    name: "text",
    training: (model, examples, { batch, seed }) =>
      new TextBatches(model, examples, options, { batch, shuffle: true, seed }),
    *evaluation(model, examples, batch) {
      for (const measured of new TextBatches(model, examples, options, { batch }).measured())
        yield { batch: measured.batch, examples: measured.rows };
    },
    truncated: (model, examples) => countCut(examples, rowLength(model, options.maxLength), "text"),
    loss(model, batch) {
      const logits = logitsOf(model, batch);
      if (problemOf(model, options) === "regression") return squares(logits, batch).sum().div(batch[3].sum());
      return F.crossEntropy(wide(logits), batch[2], { ignoreIndex: ignored });
    },
    scores(model, batch) {
      const [, , targets, count] = batch;
      const logits = logitsOf(model, batch);
      if (problemOf(model, options) === "regression")
        return { loss: squares(logits, batch), count, predicted: logits.flatten(), target: targets };
      const predicted = logits.argmax({ dim: -1 });
      return {
        loss: F.crossEntropy(wide(logits), targets, { reduction: "none", ignoreIndex: ignored }),
        correct: predicted.eq(targets).to("float32"),
        count,
        predicted,
        target: targets,
      };
    },
    identity: ({ ids }) => Array.prototype.join.call(ids, " "),
  };
}
