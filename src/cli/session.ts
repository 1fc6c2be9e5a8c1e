/**
 * What every training at the command line has around it: the log, the checkpoints, the live line, Ctrl-C, the loss curve, and what
 * is said when it ends or fails. What is trained is the caller's.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import type { Module } from "../nn/index.ts";
import { checkpointToResume, logMetrics, progress, saveCheckpoints } from "../train/callbacks.ts";
import { resumeRunFolder } from "../train/checkpoint-folder.ts";
import { type Callback, type FitOptions, type FitResult, fit } from "../train/fit.ts";
import { readRunLog } from "../train/run-log.ts";
import { formatDuration, lossChart, usesColor } from "../train/terminal.ts";
import { exitCodes } from "./exit.ts";
import { takeInterrupts } from "./interrupt.ts";
import { type RunSettings, readJson, resumeCommand, writeJson } from "./run-folder.ts";
import { unlockRun } from "./run-lock.ts";

export interface SessionOptions {
  readonly folder: string;
  readonly kind: RunSettings["kind"];
  readonly resume: boolean;
  readonly checkpointEvery: number;
  readonly detectAnomaly: boolean;
  readonly seed: number;
  /** What a step takes, for the speed that is shown. */
  readonly perStep: number;
  readonly unit: string;
}

export const resultName = "result.json";

/**
 * Runs fit inside a run's folder. `finish` is called with the trained model when the training has come to its end (not when it was
 * interrupted); what it gives is kept in result.json, which marks the run as finished.
 */
export async function runSession<M extends Module, B, R extends object>(
  session: SessionOptions,
  model: M,
  options: Omit<FitOptions<M, B>, "callbacks" | "signal" | "seed" | "resume" | "detectAnomaly"> & {
    readonly callbacks?: readonly Callback[];
  },
  finish: (result: FitResult) => Promise<R>,
): Promise<{ readonly result: FitResult; readonly finished: R | null; readonly seconds: number }> {
  const { folder, kind, resume, detectAnomaly, seed, perStep, unit } = session;
  const checkpoint = resume ? await checkpointToResume(folder) : undefined;
  const live = progress({ perStep, unit });
  const interrupt = takeInterrupts(() => {
    const text = "stopping after this step; once more Ctrl-C stops at once";
    if (live.line === null) console.log(text);
    else live.line.print(text);
  });
  const began = performance.now();
  let clock = began;
  try {
    const result = await fit<M, B>(model, {
      ...options,
      signal: interrupt.signal,
      detectAnomaly,
      ...(checkpoint === undefined ? { seed } : { resume: checkpoint }),
      callbacks: [
        logMetrics({
          dir: folder,
          resume,
          extra: () => {
            const before = clock;
            clock = performance.now();
            return { seconds: Math.round(clock - before) / 1000 };
          },
        }),
        ...(options.callbacks ?? []),
        saveCheckpoints({ every: session.checkpointEvery, dir: folder }),
        live,
      ],
    });
    const seconds = (performance.now() - began) / 1000;
    let finished: R | null = null;
    if (result.ended !== "aborted") {
      finished = await finish(result);
      await writeJson(join(folder, resultName), { step: result.step, epoch: result.epoch, ...finished });
    }
    return { result, finished, seconds };
  } catch (error) {
    const last = await checkpointToResume(folder).catch(() => undefined);
    const where = last === undefined ? "without a checkpoint yet" : `with its last checkpoint in ${last}`;
    if (error instanceof Error)
      Object.assign(error, {
        hint: `the run is in ${folder}, ${where}; once the cause is gone, go on with: ${resumeCommand(kind, folder)}`,
      });
    throw error;
  } finally {
    interrupt.release();
    unlockRun(folder);
  }
}

/** Whether a run has come to its end; then it says so. */
export function isFinished(folder: string): boolean {
  const path = join(folder, resultName);
  if (!existsSync(path)) return false;
  const { step } = readJson(path) as { step: number };
  console.log(`${folder} is finished after ${step} steps; there is nothing to go on with`);
  return true;
}

/** Says after which step a resumed run goes on, and which checkpoints were passed over. */
export async function sayWhereItGoesOn(folder: string): Promise<void> {
  const latest = await resumeRunFolder(folder);
  for (const reason of latest?.damaged ?? []) console.log(`a damaged checkpoint is passed over: ${reason}`);
  console.log(
    latest === null ? "no checkpoint yet: the run starts from its beginning" : `going on after step ${latest.step}`,
  );
}

/** The curve of a run so far, from its log. */
async function runChart(folder: string): Promise<string> {
  const log = await readRunLog(folder);
  const points = (key: string) =>
    log.flatMap((entry) => (typeof entry[key] === "number" ? [[entry.step, entry[key]] as const] : []));
  return lossChart(
    [
      { name: "training loss", points: points("loss") },
      { name: "validation loss", points: points("validationLoss") },
    ],
    { color: usesColor(process.stdout), width: Math.min(process.stdout.columns || 78, 100) },
  );
}

/** Says that a training was interrupted, and how it goes on; gives the exit code. */
export function sayInterrupted({ folder, kind }: SessionOptions, step: number, planned: number): number {
  console.log(
    `stopped at step ${step} of ${planned}; everything is saved in ${folder}\ngo on with: ${resumeCommand(kind, folder)}`,
  );
  return exitCodes.interrupted;
}

/** The last lines of a training: its curve and its figures. */
export async function sayFinished({ folder }: SessionOptions, result: FitResult, seconds: number): Promise<void> {
  console.log(`\n${await runChart(folder)}\n`);
  const here = result.history.length;
  const steps = here === result.step ? `${result.step} steps` : `${result.step} steps, the last ${here}`;
  console.log(`${steps} in ${formatDuration(seconds)}; the run is in ${folder}`);
  if (result.reason !== null) console.log(`stopped early: ${result.reason}`);
}
