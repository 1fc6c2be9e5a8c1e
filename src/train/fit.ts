/**
 * fit: the training loop. It takes batches, steps the optimiser, validates, and tells callbacks; what those do (stop early,
 * save, show) is in `callbacks.ts`. A run that was saved and is resumed goes on with the same bits as one never stopped:
 * weights, optimiser, schedule, random generator and the data's position are restored together.
 */
import { NablaError } from "../core/errors.ts";
import { setDetectAnomaly } from "../execution/index.ts";
import { scalar } from "../graph/ops.ts";
import type { Module } from "../nn/module.ts";
import { clipGradNorm_ } from "../optim/index.ts";
import { getRngState, manualSeed, setRngState } from "../tensor/random.ts";
import { Tensor } from "../tensor/tensor.ts";
import {
  type Batches,
  type BatchLoss,
  checkPrecision,
  evaluate,
  inPrecision,
  iterate,
  type Loss,
  lossOfBatch,
  type Metric,
  ownWeight,
  type Precision,
} from "./evaluate.ts";
import { type CheckpointFiles, packCheckpoint, readCheckpoint, type SavedState } from "./saved.ts";

/** The loss is NaN or infinite: training has diverged. */
export class DivergedError extends NablaError {
  override name = "DivergedError";
  readonly step: number;
  constructor(message: string, step: number) {
    super(message);
    this.step = step;
  }
}

/** Options or data with which there is nothing to train. */
export class FitError extends NablaError {
  override name = "FitError";
}

/** What fit needs of an optimiser; all of `optim` are ones, and so may a user's own be. */
export interface FitOptimizer {
  readonly paramGroups: readonly { readonly params: readonly Tensor[]; lr: number }[];
  step(): unknown;
  zeroGrad(): void;
  stateDict(): unknown;
  loadStateDict(state: never): void;
}

/** What fit needs of a learning-rate schedule; it is stepped once after each step of the optimiser. */
export interface FitScheduler {
  step(): void;
  stateDict(): unknown;
  loadStateDict(state: never): void;
}

/** One step as callbacks and logs see it. Validation adds `validationLoss` and one `validation<Name>` a metric. */
export interface StepRecord {
  /** Steps of the optimiser so far, from 1. */
  readonly step: number;
  /** The epoch that it belongs to, from 0. */
  readonly epoch: number;
  /** The mean loss of its batch (of its batches, under accumulation), before the step. */
  readonly loss: number;
  readonly lr: number;
  readonly [metric: string]: number;
}

/** What a callback may look at and do. */
export interface TrainingRun {
  readonly model: Module;
  readonly optimizer: FitOptimizer;
  /** Steps done. */
  readonly step: number;
  readonly epoch: number;
  /** Steps planned; null where the data does not say how long an epoch is. */
  readonly totalSteps: number | null;
  /** Whether no further step will follow. */
  readonly stopping: boolean;
  /** Ends the training after this step; the reason is in the result. */
  stop(reason: string): void;
  /** Tells that the weights are no longer those of the last step (the best ones were put back, say); `last` is what they were, by name. */
  modelChanged(last?: Readonly<Record<string, Tensor>>): void;
  /** What of the model a checkpoint holds, by name: all of it, or what is learnt. */
  weights(): Record<string, Tensor>;
  /** Counts the calls of modelChanged, so that a callback can tell. */
  readonly changes: number;
  /** Everything that is needed to go on exactly from here, as files, written before training goes on; valid where `wants` was answered with yes, and at the end. */
  checkpoint(): Promise<CheckpointFiles>;
}

export interface Callback {
  /** The name of its state in checkpoints, unique in a run. */
  readonly name: string;
  onStart?(run: TrainingRun): void | Promise<void>;
  /** Whether onStep must find the model exactly as it is after that step. Else the next step may already be recorded by then. */
  wants?(step: number): boolean;
  onStep?(run: TrainingRun, record: StepRecord): void | Promise<void>;
  onEnd?(run: TrainingRun): void | Promise<void>;
  /** After an error, before it is thrown on. */
  onFail?(run: TrainingRun, error: unknown): void;
  /** What to save of it in a checkpoint: numbers, strings, lists, objects, tensors. */
  state?(): unknown;
  load?(state: never): void;
}

export interface FitOptions<M extends Module, B> {
  /** Batches; each loop over them is an epoch. With `state()` and `load()` (a DataLoader) resuming starts at the position at
   *  once; other iterables are gone through again up to it. */
  readonly train: Batches<B>;
  readonly validation?: Batches<B>;
  /** Of outputs and targets, for batches [inputs, targets]: `nn.functional.crossEntropy`, say. */
  readonly loss?: Loss;
  /** Instead of `loss`: of the model and a batch, for models that compute their loss themselves. */
  readonly batchLoss?: BatchLoss<M, B>;
  readonly optimizer: FitOptimizer;
  /** Passes over the data. */
  readonly epochs?: number;
  /** Steps in all, over as many epochs as it takes; the first of `epochs` and `steps` to be reached ends the training. */
  readonly steps?: number;
  readonly scheduler?: FitScheduler;
  /** Batches whose gradients are averaged into one step, each as much as its property `weight` says; 1 by default. */
  readonly accumulate?: number;
  /** Scales the gradients down to this norm where theirs is larger; logged as gradNorm. */
  readonly clipGradNorm?: number;
  /** Seeds the random generator (dropout) at the start; not when a run is resumed. */
  readonly seed?: number;
  /** Computed in validation, by name. */
  readonly metrics?: Readonly<Record<string, Metric>>;
  /** Steps between validations; by default at the end of each epoch. At the last step in any case. */
  readonly validateEvery?: number;
  readonly callbacks?: readonly Callback[];
  /**
   * What of the model checkpoints hold, by name; default: its state dict. Of a model that is learnt in part, that part: whoever resumes has
   * the rest already.
   */
  readonly weights?: (model: M) => Record<string, Tensor>;
  /** A checkpoint's folder to go on from. */
  readonly resume?: string;
  /**
   * What products are computed in, in training and validation: "bfloat16" is mixed precision (see autocast). Weights and the optimiser's
   * state are not touched by it. Default: "float32".
   */
  readonly precision?: Precision;
  /** Ends the training after the step at hand. */
  readonly signal?: AbortSignal;
  /** Names the operation where a NaN or infinity arises; slow. */
  readonly detectAnomaly?: boolean;
}

export interface FitResult {
  /** Steps in all, those before a resumption included. */
  readonly step: number;
  readonly epoch: number;
  readonly ended: "finished" | "stopped" | "aborted";
  /** Why, where a callback stopped it. */
  readonly reason: string | null;
  /** The records of the steps that were run. */
  readonly history: readonly StepRecord[];
}

const wholeOption = (name: string, value: number | undefined): void => {
  if (value !== undefined && (!Number.isInteger(value) || value < 1))
    throw new FitError(`fit: ${name} must be a whole number ≥ 1, got ${value}`);
};

function check<M extends Module, B>(options: FitOptions<M, B>): void {
  const { epochs, steps, accumulate, validateEvery, clipGradNorm: norm, callbacks = [] } = options;
  for (const [name, value] of Object.entries({ epochs, steps, accumulate, validateEvery })) wholeOption(name, value);
  if (epochs === undefined && steps === undefined) throw new FitError("fit: say how long: give epochs, steps, or both");
  if (norm !== undefined && !(norm > 0)) throw new FitError(`fit: clipGradNorm must be above 0, got ${norm}`);
  if ((options.loss === undefined) === (options.batchLoss === undefined))
    throw new FitError("fit: give either loss (of outputs and targets) or batchLoss (of the model and a batch)");
  checkPrecision(options.precision);
  const names = callbacks.map((c) => c.name);
  const twice = names.find((name, i) => names.indexOf(name) < i);
  if (twice !== undefined) throw new FitError(`fit: two callbacks are called "${twice}"; a run can hold one of each`);
}

/** A step that was sent to the device and whose loss has not been read. */
interface Sent {
  readonly step: number;
  readonly epoch: number;
  readonly lr: number;
  readonly losses: readonly Tensor[];
  /** How much of the mean each loss is. */
  readonly shares: readonly number[];
  readonly norm: Tensor | null;
}

/** How much of a step's mean each of its batches is; equal where they do not say. */
function sharesOf(batches: readonly unknown[]): readonly number[] {
  const weights = batches.map((batch) => ownWeight(batch) ?? 1);
  const total = weights.reduce((a, b) => a + b, 0);
  return weights.map((weight) => weight / total);
}

/** A batch's part in the mean of several; a runtime scalar where the parts differ, so that nothing is compiled anew. */
function partOf(loss: Tensor, i: number, shares: readonly number[]): Tensor {
  if (shares.length === 1) return loss;
  if (shares.every((share) => share === shares[0])) return loss.div(shares.length);
  return loss.mul(new Tensor(scalar(shares[i], loss.dtype)));
}

/**
 * Trains `model` in place. Throws DivergedError where the loss is no longer finite (the checkpoints saved before are untouched),
 * IndexError for a label out of range (the model is then as it was before the step), and what callbacks throw.
 */
export async function fit<M extends Module, B = readonly Tensor[]>(
  model: M,
  options: FitOptions<M, B>,
): Promise<FitResult> {
  check(options);
  const { train, validation, optimizer, scheduler, callbacks = [], accumulate = 1, metrics, signal } = options;
  const { epochs = Number.POSITIVE_INFINITY, steps = Number.POSITIVE_INFINITY, validateEvery } = options;
  const lossOf = lossOfBatch(options);
  if (train.length === 0) throw new FitError("fit: the training data gives no batches");
  const parameters = optimizer.paramGroups.flatMap(({ params }) => params);
  const perEpoch = train.length === undefined ? Number.POSITIVE_INFINITY : Math.ceil(train.length / accumulate);
  const planned = Math.min(steps, epochs * perEpoch);
  const history: StepRecord[] = [];

  let step = 0;
  let epoch = 0;
  let inEpoch = 0; // batches taken in this epoch
  let changes = 0;
  let stopReason: string | null = null;
  let ended: FitResult["ended"] = "finished";
  const weightsOf = options.weights ?? ((of: M) => of.stateDict());
  let last: Readonly<Record<string, Tensor>> | undefined; // weights of the last step, where the model has others
  let position: unknown = null; // of the data, after the batches of the last step
  let random = getRngState();

  const run: TrainingRun = {
    model,
    optimizer,
    get step() {
      return step;
    },
    get epoch() {
      return epoch;
    },
    totalSteps: Number.isFinite(planned) ? planned : null,
    get stopping() {
      return stopReason !== null || step >= planned || (signal?.aborted ?? false);
    },
    stop(reason) {
      stopReason ??= reason;
    },
    modelChanged(before) {
      changes++;
      last = before;
    },
    weights: () => weightsOf(model),
    get changes() {
      return changes;
    },
    checkpoint: () =>
      packCheckpoint(weightsOf(model), {
        ...(last && { weights: last }),
        step,
        epoch,
        inEpoch,
        random,
        data: position,
        optimizer: optimizer.stateDict(),
        scheduler: scheduler?.stateDict() ?? null,
        callbacks: Object.fromEntries(callbacks.flatMap((c) => (c.state ? [[c.name, c.state()]] : []))),
      }),
  };

  const wasTraining = model.training;
  const wasDetecting = options.detectAnomaly === undefined ? null : setDetectAnomaly(options.detectAnomaly);
  try {
    let skip = 0;
    let atEnd = false; // of an epoch: the data's position is behind its last batch
    if (options.resume !== undefined) {
      const saved = await readCheckpoint(options.resume);
      restore(saved, model, options);
      ({ step, epoch, inEpoch, random } = saved.state);
      if (saved.state.data === null) skip = inEpoch;
      position = saved.state.data;
      atEnd = position !== null && inEpoch === 0 && epoch > 0;
      setRngState(random);
    } else if (options.seed !== undefined) {
      manualSeed(options.seed);
      random = getRngState();
    }
    for (const callback of callbacks) await callback.onStart?.(run);
    model.train();

    let sent: Sent | null = null;
    /** Reads a step's loss, validates if that is due, and tells the callbacks. */
    const settle = async (done: Sent, validate: boolean): Promise<void> => {
      let loss = 0;
      for (const [i, x] of done.losses.entries()) loss += (await x.item()) * done.shares[i];
      if (!Number.isFinite(loss))
        throw new DivergedError(
          `step ${done.step}: the loss is ${loss}, so training has stopped; a smaller learning rate (now ${Number(done.lr.toPrecision(4))}) or ` +
            "clipGradNorm may help, and detectAnomaly (nabla train: --detect-anomaly) says which operation gave it first",
          done.step,
        );
      const record: Record<string, number> = { step: done.step, epoch: done.epoch, loss, lr: done.lr };
      if (done.norm !== null) record["gradNorm"] = await done.norm.item();
      if (validate && validation !== undefined) {
        const result = await evaluate<M, B>(model, validation, { ...options, metrics });
        for (const [name, value] of Object.entries(result))
          record[`validation${name[0].toUpperCase()}${name.slice(1)}`] = value;
        setRngState(random); // whatever validation drew, training does not notice
        model.train();
      }
      history.push(record as StepRecord);
      for (const callback of callbacks) await callback.onStep?.(run, record as StepRecord);
    };

    while (epoch < epochs && step < steps && !run.stopping) {
      const iterator = iterate(train);
      /** The batches of the next step: `accumulate`, fewer at the end of an epoch, none after it. */
      const take = async (): Promise<{ batches: B[]; position: unknown }> => {
        const batches: B[] = [];
        let at: unknown = null;
        while (batches.length < accumulate) {
          const next = await iterator.next();
          if (next.done) break;
          if (skip > 0) {
            skip--;
            continue;
          }
          batches.push(next.value);
          at = train.state?.() ?? null;
        }
        return { batches, position: at };
      };
      try {
        let next = await take();
        const rolls = atEnd && next.batches.length === 0;
        atEnd = false;
        if (rolls) continue; // the next pass over the data begins the epoch
        if (next.batches.length === 0 && inEpoch === 0) throw new FitError("fit: the training data gives no batches");
        while (next.batches.length > 0) {
          const { batches } = next;
          const losses: Tensor[] = [];
          const shares = sharesOf(batches);
          for (const [i, batch] of batches.entries()) {
            const loss = inPrecision(options.precision, () => lossOf(model, batch));
            partOf(loss, i, shares).backward();
            losses.push(loss.keep());
          }
          const norm = options.clipGradNorm === undefined ? null : clipGradNorm_(parameters, options.clipGradNorm);
          if (sent !== null) {
            const before: Sent = sent;
            sent = null;
            await settle(before, false);
          }
          const lr = optimizer.paramGroups[0].lr;
          await optimizer.step();
          optimizer.zeroGrad();
          scheduler?.step();
          step++;
          inEpoch += batches.length;
          position = next.position;
          random = getRngState();
          sent = { step, epoch, lr, losses, shares, norm };

          // Looking ahead while the device works: whether an epoch ends shows only then.
          next = step >= steps ? { batches: [], position: null } : await take();
          const epochEnds = next.batches.length === 0;
          const last = epochEnds && (epoch + 1 >= epochs || step >= steps);
          const validate = last || (validateEvery === undefined ? epochEnds : step % validateEvery === 0);
          const now = step;
          if (validate || run.stopping || callbacks.some((c) => c.wants?.(now))) {
            const done: Sent = sent;
            sent = null;
            await settle(done, validate);
          }
          if (run.stopping) break;
        }
        if (run.stopping && next.batches.length > 0) break;
        if (step >= steps) break;
      } finally {
        await iterator.return?.(undefined);
      }
      epoch++;
      inEpoch = 0;
    }
    if (sent !== null) await settle(sent, false);
    if (stopReason !== null) ended = "stopped";
    else if (signal?.aborted && step < planned) ended = "aborted";
    for (const callback of callbacks) await callback.onEnd?.(run);
    return { step, epoch, ended, reason: stopReason, history };
  } catch (error) {
    optimizer.zeroGrad();
    for (const callback of callbacks) callback.onFail?.(run, error);
    throw error;
  } finally {
    model.train(wasTraining);
    if (wasDetecting !== null) setDetectAnomaly(wasDetecting);
  }
}

/** A checkpoint of a part of the model must be of the part that is learnt now. */
function expectSame(own: readonly string[], saved: readonly string[]): void {
  const lacks = own.filter((key) => !saved.includes(key));
  const more = saved.filter((key) => !own.includes(key));
  if (lacks.length + more.length > 0)
    throw new FitError(
      `fit: the checkpoint is of another part of the model: ${lacks.length} tensors are not in it (${lacks[0] ?? "none"}), ` +
        `${more.length} are not learnt now (${more[0] ?? "none"}); resume with the same adapter and the same layers frozen`,
    );
}

/** Puts a checkpoint's state into everything but fit itself. */
function restore<M extends Module, B>(
  { model: weights, state }: { model: Record<string, Tensor>; state: SavedState },
  model: M,
  { optimizer, scheduler, train, callbacks = [], weights: part }: FitOptions<M, B>,
): void {
  if (part !== undefined) expectSame(Object.keys(part(model)), Object.keys(weights));
  model.loadStateDict(state.weights ?? weights, { assign: true, strict: part === undefined });
  optimizer.loadStateDict(state.optimizer as never);
  if ((scheduler === undefined) !== (state.scheduler === null))
    throw new FitError(
      `fit: the checkpoint was made ${state.scheduler === null ? "without" : "with"} a scheduler; resume with the same options`,
    );
  scheduler?.loadStateDict(state.scheduler as never);
  if (state.data !== null) {
    if (train.load === undefined)
      throw new FitError(
        "fit: the checkpoint holds a position in the data, but this data has no load(); give the same kind of loader",
      );
    train.load(state.data as never);
  }
  for (const callback of callbacks)
    if (state.callbacks[callback.name] !== undefined) callback.load?.(state.callbacks[callback.name] as never);
}
