/**
 * evaluate and predict: a model over data without training it. The loss and the metrics are means over all targets, whatever
 * the sizes of the batches. Modules are put in evaluation mode for the time, and back.
 */
import { NablaError } from "../core/errors.ts";
import { inEvaluation, type Module } from "../nn/module.ts";
import { autocast } from "../tensor/autocast.ts";
import { noGrad } from "../tensor/backward.ts";
import { cat } from "../tensor/movement.ts";
import { realize, type Tensor } from "../tensor/tensor.ts";
import { RunningMean } from "./metrics.ts";

/** A loss of outputs and targets, as nn.functional has them: the mean over the batch. */
export type Loss = (outputs: Tensor, targets: Tensor) => Tensor;
/** A loss of a whole batch, for models that compute it themselves. */
export type BatchLoss<M, B> = (model: M, batch: B) => Tensor;
/** A number that says how good outputs are: the mean over the batch, as a tensor of one element. */
export type Metric = (outputs: Tensor, targets: Tensor) => Tensor;

/** Something whose loops give batches: an array, a DataLoader, an object of one's own. */
export interface Batches<B> {
  [Symbol.asyncIterator]?(): AsyncIterator<B>;
  [Symbol.iterator]?(): Iterator<B>;
  /** Batches in an epoch, where that is known. */
  readonly length?: number;
  state?(): unknown;
  load?(state: never): void;
}

/** Data or options that can't be evaluated on. */
export class EvaluateError extends NablaError {
  override name = "EvaluateError";
}

export function iterate<B>(batches: Batches<B>): AsyncIterator<B> | Iterator<B> {
  const iterator = batches[Symbol.asyncIterator]?.() ?? batches[Symbol.iterator]?.();
  if (iterator === undefined)
    throw new EvaluateError(
      "the data can't be looped over; give an array of batches, a DataLoader, or any (async) iterable",
    );
  return iterator;
}

type Pair = readonly [Tensor, Tensor];

function pairOf(batch: unknown): Pair {
  if (!Array.isArray(batch) || batch.length < 2)
    throw new EvaluateError("a batch must be [inputs, targets]; for other batches give batchLoss instead of loss");
  return batch as unknown as Pair;
}

const call = (model: Module, inputs: Tensor): Tensor =>
  (model as unknown as { forward(x: Tensor): Tensor }).forward(inputs);

/** The loss of a batch by whichever of the two options was given. */
export function lossOfBatch<M extends Module, B>(options: {
  readonly loss?: Loss;
  readonly batchLoss?: BatchLoss<M, B>;
}): BatchLoss<M, B> {
  const { loss, batchLoss } = options;
  if (batchLoss !== undefined) return batchLoss;
  if (loss === undefined)
    throw new EvaluateError("give loss (of outputs and targets) or batchLoss (of the model and a batch)");
  return (model, batch) => {
    const [inputs, targets] = pairOf(batch);
    return loss(call(model, inputs), targets);
  };
}

/** What products are computed in: as they are recorded, or in bfloat16 (autocast). */
export type Precision = "float32" | "bfloat16";

/** Throws where it is no precision: in plain JavaScript, say. */
export function checkPrecision(precision: string | undefined): void {
  if (precision !== undefined && precision !== "float32" && precision !== "bfloat16")
    throw new EvaluateError(
      `precision must be "float32" or "bfloat16", got ${JSON.stringify(precision)}; float16 would need a scaled loss, which is not here`,
    );
}
/** Runs `fn` in a precision. */
export const inPrecision = <T>(precision: Precision | undefined, fn: () => T): T =>
  precision === "bfloat16" ? autocast({}, fn) : fn();

export interface EvaluateOptions<M, B> {
  readonly loss?: Loss;
  readonly batchLoss?: BatchLoss<M, B>;
  readonly metrics?: Readonly<Record<string, Metric>>;
  /** Default: "float32". */
  readonly precision?: Precision;
}

/** How much a batch counts, where it says so itself: one that holds targets that are ignored. */
export const ownWeight = (batch: unknown): number | undefined => {
  const weight = (batch as { readonly weight?: unknown } | null)?.weight;
  return typeof weight === "number" ? weight : undefined;
};

/** How much a batch counts in the mean: what its property `weight` says, or its number of targets. */
const weightOf = (batch: unknown): number =>
  ownWeight(batch) ?? (Array.isArray(batch) && batch.length >= 2 ? (batch[1] as Tensor).size : 1);

/**
 * The mean loss over the data, and the means of `metrics` by their names. Each batch is one program and one read. Throws
 * EvaluateError where there is no batch.
 */
export async function evaluate<M extends Module, B = readonly Tensor[]>(
  model: M,
  data: Batches<B>,
  options: EvaluateOptions<M, B>,
): Promise<{ loss: number; [metric: string]: number }> {
  const { metrics = {}, precision } = options;
  checkPrecision(precision);
  const means = new Map(["loss", ...Object.keys(metrics)].map((name) => [name, new RunningMean()]));
  const lossOf = lossOfBatch(options);
  await inEvaluation(model, async () => {
    const iterator = iterate(data);
    for (let next = await iterator.next(); !next.done; next = await iterator.next()) {
      const batch = next.value;
      const measured = (): [string, Tensor][] => {
        if (Object.keys(metrics).length === 0) return [["loss", lossOf(model, batch)]];
        const [inputs, targets] = pairOf(batch);
        const outputs = call(model, inputs);
        const loss = options.batchLoss ? options.batchLoss(model, batch) : options.loss!(outputs, targets);
        return [
          ["loss", loss],
          ...Object.entries(metrics).map(([name, metric]): [string, Tensor] => [name, metric(outputs, targets)]),
        ];
      };
      const values = noGrad(() => inPrecision(precision, measured));
      await realize(...values.map(([, value]) => value));
      for (const [name, value] of values) means.get(name)!.add(await value.item(), weightOf(batch));
    }
  });
  if (means.get("loss")!.count === 0) throw new EvaluateError("evaluate: the data gives no batches");
  return Object.fromEntries([...means].map(([name, mean]) => [name, mean.mean])) as { loss: number };
}

/**
 * The model's outputs for all inputs, joined along the first axis: for a tensor (taken `batchSize` rows at a time, 256 by
 * default) or batches, whose first part is the inputs. Computed when it returns.
 */
export async function predict(
  model: Module,
  data: Tensor | Batches<Tensor | readonly Tensor[]>,
  options: { readonly batchSize?: number } = {},
): Promise<Tensor> {
  const { batchSize = 256 } = options;
  if (!Number.isInteger(batchSize) || batchSize < 1)
    throw new EvaluateError(`predict: batchSize must be a whole number ≥ 1, got ${batchSize}`);
  const outputs: Tensor[] = [];
  await inEvaluation(model, async () => {
    const iterator = iterate(isTensor(data) ? rowsOf(data, batchSize) : data);
    for (let next = await iterator.next(); !next.done; next = await iterator.next()) {
      const batch = next.value;
      const output = noGrad(() => call(model, isTensor(batch) ? batch : batch[0]));
      await realize(output);
      outputs.push(output);
    }
  });
  if (outputs.length === 0) throw new EvaluateError("predict: the data gives no batches");
  if (outputs.length === 1) return outputs[0];
  const joined = cat(outputs, 0);
  await realize(joined);
  return joined;
}

const isTensor = (x: unknown): x is Tensor => typeof x === "object" && x !== null && "node" in x && "shape" in x;

function* rowsOf(x: Tensor, size: number): Generator<Tensor> {
  const rows = x.shape[0];
  if (rows === undefined) throw new EvaluateError("predict: the inputs need a first axis, of samples");
  for (let at = 0; at < rows; at += size) yield x.narrow(0, at, Math.min(size, rows - at));
}

/** The share of rows whose largest output stands at the target: a metric for classifiers. */
export const accuracyMetric: Metric = (outputs, targets) =>
  outputs.argmax({ dim: -1 }).eq(targets).to("float32").mean();
