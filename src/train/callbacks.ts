/**
 * The callbacks of fit: stopping early, saving checkpoints, the log of metrics, the live line. Each is a plain object; a user's
 * own is one too. None of them changes what is computed.
 */
import { NablaError } from "../core/errors.ts";
import { ensureFolder } from "../formats/atomic.ts";
import { noGrad } from "../tensor/backward.ts";
import { realize, type Tensor } from "../tensor/tensor.ts";
import { resumeRunFolder, writeCheckpoint } from "./checkpoint-folder.ts";
import type { Callback, StepRecord, TrainingRun } from "./fit.ts";
import { RunLog } from "./run-log.ts";
import { LiveLine, type LiveLineOptions } from "./terminal.ts";

/** Options of a callback that can't be followed. */
export class CallbackError extends NablaError {
  override name = "CallbackError";
}

export interface EarlyStoppingOptions {
  /** Validations without improvement after which training ends. */
  readonly patience: number;
  /** What counts as an improvement; 0 by default: any. */
  readonly minDelta?: number;
  /** Puts the best weights back at the end; true by default. */
  readonly restoreBest?: boolean;
  /** Which number of a validation is watched; "validationLoss" by default. */
  readonly monitor?: string;
  /** Whether small is good ("min", the default) or large. */
  readonly mode?: "min" | "max";
}

async function copyOf(weights: Readonly<Record<string, Tensor>>): Promise<Record<string, Tensor>> {
  const copy = noGrad(() => Object.fromEntries(Object.entries(weights).map(([key, x]) => [key, x.detach().clone()])));
  await realize(...Object.values(copy));
  return copy;
}

/** Ends training when validation has not become better for `patience` validations (Keras' EarlyStopping). */
export function earlyStopping(options: EarlyStoppingOptions): Callback {
  const { patience, minDelta = 0, restoreBest = true, monitor = "validationLoss", mode = "min" } = options;
  if (!Number.isInteger(patience) || patience < 1)
    throw new CallbackError(`earlyStopping: patience must be a whole number ≥ 1, got ${patience}`);
  if (!(minDelta >= 0)) throw new CallbackError(`earlyStopping: minDelta must be ≥ 0, got ${minDelta}`);
  const sign = mode === "min" ? 1 : -1;
  let best = Number.POSITIVE_INFINITY; // of sign · value
  let bestStep = 0;
  let waited = 0;
  let weights: Record<string, Tensor> | null = null;
  return {
    name: "earlyStopping",
    async onStep(run, record) {
      const value = record[monitor];
      if (value === undefined) {
        if (record["validationLoss"] === undefined) return;
        const known = Object.keys(record).filter((key) => key.startsWith("validation"));
        throw new CallbackError(
          `earlyStopping: there is no "${monitor}" to watch; a validation gives ${known.join(", ")}`,
        );
      }
      if (sign * value < best - minDelta) {
        best = sign * value;
        bestStep = record.step;
        waited = 0;
        if (restoreBest) {
          weights = await copyOf(run.weights());
        }
      } else if (++waited >= patience)
        run.stop(
          `${monitor} has not improved for ${patience} validations; the best was ${sign * best} at step ${bestStep}`,
        );
    },
    async onEnd(run) {
      if (!restoreBest || weights === null || bestStep === run.step) return;
      // a run that goes on from here goes on from the last weights
      const last = await copyOf(run.weights());
      run.model.loadStateDict(weights, { strict: false });
      run.modelChanged(last);
    },
    state: () => ({ best, bestStep, waited, weights }),
    load(state: { best: number; bestStep: number; waited: number; weights: Record<string, Tensor> | null }) {
      ({ best, bestStep, waited, weights } = state);
    },
  };
}

export interface SaveCheckpointsOptions {
  /** Steps between checkpoints. One more is written at the end, also when training is stopped. */
  readonly every: number;
  /** The run's folder; "checkpoints" by default. It is made if need be. */
  readonly dir?: string;
  /** How many to keep, the newest; 2 by default. */
  readonly keep?: number;
  /** Told after each, with its step and folder. */
  readonly onSaved?: (step: number, path: string) => void;
}

/**
 * Saves all that is needed to go on exactly: folders checkpoint-STEP in `dir`, written so that a kill at any moment leaves the
 * earlier ones whole; `dir`/model.safetensors is the latest weights. `fit`'s `resume` takes such a folder
 * (`checkpointToResume` finds the newest).
 */
export function saveCheckpoints(options: SaveCheckpointsOptions): Callback {
  const { every, dir = "checkpoints", keep = 2, onSaved } = options;
  if (!Number.isInteger(every) || every < 1)
    throw new CallbackError(`saveCheckpoints: every must be a whole number ≥ 1, got ${every}`);
  let saved = -1;
  let changes = 0;
  const save = async (run: TrainingRun): Promise<void> => {
    const { path } = await writeCheckpoint(dir, run.step, await run.checkpoint(), { keep });
    saved = run.step;
    changes = run.changes;
    onSaved?.(run.step, path);
  };
  return {
    name: "saveCheckpoints",
    async onStart(run) {
      saved = run.step;
      changes = run.changes;
      await ensureFolder(dir);
    },
    wants: (step) => step % every === 0,
    async onStep(run, record) {
      if (record.step % every === 0) await save(run);
    },
    async onEnd(run) {
      if (run.step > saved || run.changes > changes) await save(run);
    },
  };
}

/** Writes every step to `dir`/metrics.jsonl, each once, however often the run is killed and resumed. */
export function logMetrics(options: {
  readonly dir: string;
  /** Whether a log that is there already is gone on with, from the step that fit resumes at; else it is an error. */
  readonly resume?: boolean;
  /** More to write in a step's line. */
  readonly extra?: (record: StepRecord) => Record<string, number>;
}): Callback {
  let log: RunLog | null = null;
  const close = async (): Promise<void> => {
    const closing = log;
    log = null;
    await closing?.close();
  };
  return {
    name: "logMetrics",
    async onStart(run) {
      await ensureFolder(options.dir);
      log =
        options.resume || run.step > 0 ? await RunLog.resume(options.dir, run.step) : await RunLog.create(options.dir);
    },
    onStep(_, record) {
      log?.append({ ...record, ...options.extra?.(record) });
    },
    onEnd: close,
    // the error that the run has failed with is the one to tell
    onFail: () => void close().catch(() => {}),
  };
}

export interface ProgressOptions extends Omit<LiveLineOptions, "steps"> {
  /** How much of `unit` a step takes: tokens, samples; 1 step by default. */
  readonly perStep?: number;
}

/** Shows a live line on a terminal, a line now and then in a pipe. `line` is there for printing above it. */
export function progress(options: ProgressOptions = {}): Callback & { readonly line: LiveLine | null } {
  const { perStep = 1, unit = perStep === 1 ? "steps" : "tok" } = options;
  let line: LiveLine | null = null;
  let began = 0;
  let first = -1;
  let speed: number | undefined;
  const callback: Callback & { line: LiveLine | null } = {
    name: "progress",
    line,
    onStart(run) {
      callback.line = line = new LiveLine({
        ...options,
        unit,
        ...(run.totalSteps === null ? {} : { steps: run.totalSteps }),
      });
      first = -1;
    },
    onStep(_, record) {
      const now = performance.now();
      // The first step compiles; the pace is of those after it.
      if (first < 0) {
        began = now;
        first = record.step;
      } else speed = ((record.step - first) * perStep * 1000) / (now - began);
      line?.update({
        step: record.step,
        loss: record.loss,
        ...(record["validationLoss"] === undefined ? {} : { validationLoss: record["validationLoss"] }),
        ...(speed === undefined ? {} : { perSecond: speed }),
      });
    },
    onEnd: () => line?.end(),
    onFail: () => line?.end(),
  };
  return callback;
}

/**
 * The newest whole checkpoint in a folder, as `fit`'s `resume` takes it; undefined if there is none yet. What a killed run left half
 * written is removed. Throws CheckpointError where all are damaged.
 */
export async function checkpointToResume(dir: string): Promise<string | undefined> {
  return (await resumeRunFolder(dir))?.path;
}
