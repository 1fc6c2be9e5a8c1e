/**
 * A run's folder as the commands keep it: training.json (what the run was asked to do; it is there before anything else, so that
 * a run killed at any moment can be resumed), config.json (the model), the tokenizer, the log, checkpoints. The training
 * itself is not here.
 */
import { createHash } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { rm, rmdir } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { ensureFolder, fileError, writeFileAtomic } from "../formats/atomic.ts";
import { lockRun, RunError, unlockRun } from "./run-lock.ts";

export { RunError };

export const settingsName = "training.json";

/** What every kind of run has in its training.json; each kind adds its own. */
export interface RunSettings {
  readonly format: 1;
  readonly kind: "gpt" | "classifier" | "finetune";
  readonly device: string;
  readonly seed: number;
  /** Absolute paths. */
  readonly data: readonly string[];
  readonly checkpointEvery: number;
  /** What products are computed in; f32 where a run of an older version does not say. */
  readonly precision?: "f32" | "bf16";
}

/** A run's precision as fit and finetune take it. */
export const precisionOf = ({ precision }: RunSettings): { readonly precision?: "bfloat16" } =>
  precision === "bf16" ? { precision: "bfloat16" } : {};

async function writeJson(path: string, value: unknown): Promise<void> {
  await writeFileAtomic(path, `${JSON.stringify(value, null, 2)}\n`);
}

/** The command that a run of this kind is made with. */
const commandOf = (kind: RunSettings["kind"]): string => (kind === "finetune" ? "finetune" : `train ${kind}`);

export const resumeCommand = (kind: RunSettings["kind"], folder: string): string =>
  `npx nabla ${commandOf(kind)} --resume ${folder}`;

/**
 * Starts a run's folder, and locks it. If `prepare` fails (the data can't be read, say), the folder is left as it was found.
 * Throws RunError if it already holds a run, or another process trains there.
 */
export async function startRun<S extends RunSettings, T>(
  folder: string,
  settings: S,
  prepare: () => Promise<T>,
): Promise<T> {
  const path = join(folder, settingsName);
  const refuse = (): void => {
    if (!existsSync(path)) return;
    throw new RunError(
      `${folder} already holds a run; go on with it (${resumeCommand(settings.kind, folder)}), choose another --out, or remove the folder`,
    );
  };
  refuse();
  const made = missingFolders(folder);
  await ensureFolder(folder);
  lockRun(folder);
  try {
    refuse(); // another process may have begun one meanwhile, and ended
    await writeJson(path, settings);
    try {
      return await prepare();
    } catch (error) {
      await (made.length > 0 ? rm(folder, { recursive: true, force: true }) : rm(path)).catch(() => {});
      for (const parent of made.slice(1)) await rmdir(parent).catch(() => {}); // one that somebody else uses by now stays
      throw error;
    }
  } catch (error) {
    unlockRun(folder);
    throw error;
  }
}

/** The folder and those around it, from the inside out, that are not there. */
function missingFolders(folder: string): string[] {
  const place = resolve(folder);
  return existsSync(place) ? [] : [place, ...missingFolders(dirname(place))];
}

/** The settings of a run. Throws RunError where there is no run of this kind. */
export function readSettings<S extends RunSettings>(folder: string, kind?: S["kind"]): S {
  const path = join(folder, settingsName);
  if (!existsSync(folder)) throw new RunError(`there is no folder ${folder}; a run's folder is what --out named`);
  if (!existsSync(path))
    throw new RunError(`${folder} holds no run: it has no ${settingsName}; a run's folder is what --out named`);
  const settings = readJson(path) as S;
  if (settings.format !== 1) throw new RunError(`${path} is of format ${settings.format}, this version reads format 1`);
  if (kind !== undefined && settings.kind !== kind)
    throw new RunError(
      `${folder} is a run of kind "${settings.kind}", not "${kind}"; use nabla ${commandOf(settings.kind)}`,
    );
  return settings;
}

/** Whether a folder is a run of `train`: a GPT or a classifier that began here. */
export function isOwnRun(folder: string): boolean {
  const path = join(folder, settingsName);
  if (!existsSync(path)) return false;
  return (readJson(path) as { kind?: unknown }).kind !== "finetune";
}

export function readJson(path: string): unknown {
  try {
    return JSON.parse(readFileSync(path, "utf8"));
  } catch (error) {
    if (error instanceof SyntaxError)
      throw new RunError(`${path}: not valid JSON (${error.message}); the file is damaged`);
    throw fileError("read", path, error);
  }
}

export { writeJson };

/** A short fingerprint of data, by which a resumed run knows that its data is still the same. */
export function fingerprint(...arrays: readonly (string | ArrayBufferView)[]): string {
  const hash = createHash("sha256");
  for (const a of arrays)
    if (typeof a === "string") hash.update(a);
    else hash.update(new Uint8Array(a.buffer, a.byteOffset, a.byteLength));
  return hash.digest("hex").slice(0, 16);
}

/** Records the fingerprint of a run's data when it starts, and compares it when it goes on. Throws RunError. */
export async function checkData(folder: string, print: string): Promise<void> {
  const path = join(folder, "data.json");
  if (!existsSync(path)) return writeJson(path, { fingerprint: print });
  const { fingerprint: before } = readJson(path) as { fingerprint?: string };
  if (before !== print)
    throw new RunError(
      `${folder}: the data is not what it was when the run began (fingerprint ${print}, then ${before}); a resumed run needs the same files`,
    );
}
