/**
 * Checkpoints on disk, whatever is in them. A checkpoint is a folder `checkpoint-STEP` inside the run folder (beside
 * config.json, tokenizer.json, metrics.jsonl and the latest model.safetensors) that appears all at once (`whole-folder.ts`):
 * it is written as `checkpoint-STEP.tmp`, made durable, and renamed. A kill at any moment leaves every older checkpoint as it was.
 * What the files mean (weights, optimiser, random state) is the trainer's affair.
 */
import { NablaError } from "../core/errors.ts";
import { crc32 } from "../data/checksum.ts";
import { type Chunks, cleanStaleTemporaries, FileError, fileError, listFolder } from "../data/files.ts";
import { join } from "../data/path.ts";
import { openSource, readBytes } from "../data/source.ts";
import { discard, exists, isUnfinished, publish as publishFile, remove, writeWholeFolder } from "./whole-folder.ts";

/** Checkpoints of which none is whole. */
export class CheckpointError extends NablaError {
  override name = "CheckpointError";
}

export interface Checkpoint {
  readonly step: number;
  /** Its folder. */
  readonly path: string;
  /** Newer ones that were passed over because they are damaged, with the reason. */
  readonly damaged: readonly string[];
}

export interface CheckpointOptions {
  /** How many checkpoints to keep, the newest; 2 by default. */
  readonly keep?: number;
  /** Files that the run folder itself should show as of the latest checkpoint; ["model.safetensors"] by default. */
  readonly publish?: readonly string[];
}

const manifestName = "checkpoint.json";

interface Manifest {
  readonly step: number;
  readonly files: Readonly<Record<string, { readonly bytes: number; readonly crc32: number }>>;
}

// .old: the previous checkpoint of the same step, in the moment while a new one takes its name.
const folderName = /^checkpoint-(\d+)(\.old)?$/;
const leftover = /^checkpoint-\d+(\.old)?\.tmp$/;

interface Candidate {
  readonly step: number;
  readonly old: boolean;
  readonly name: string;
}

/** The checkpoint folders of a run, newest first. */
async function candidates(folder: string): Promise<Candidate[]> {
  const found: Candidate[] = [];
  for (const name of await listFolder(folder)) {
    const match = folderName.exec(name);
    if (match !== null && !(await isUnfinished(join(folder, name), manifestName)))
      found.push({ step: Number(match[1]), old: match[2] !== undefined, name });
  }
  return found.sort((a, b) => b.step - a.step || Number(a.old) - Number(b.old));
}

/** Whether a name in a run folder is of a checkpoint that a kill left half-written. */
const isLeftover = async (folder: string, name: string): Promise<boolean> =>
  leftover.test(name) || (folderName.test(name) && (await isUnfinished(join(folder, name), manifestName)));

/** The size of a file and its sum. */
async function measure(file: string): Promise<{ readonly size: number; readonly sum: number }> {
  const reader = await openSource(file);
  const piece = new Uint8Array(1 << 20);
  let size = 0;
  let sum = 0;
  try {
    for (;;) {
      const read = await reader.fill(piece);
      sum = crc32(piece.subarray(0, read), sum);
      size += read;
      if (read < piece.length) return { size, sum };
    }
  } finally {
    await reader.close();
  }
}

/** Why a checkpoint's folder is not whole; undefined if it is. Reads every file. */
async function damage(path: string, step: number): Promise<string | undefined> {
  let manifest: Manifest;
  try {
    manifest = JSON.parse(new TextDecoder().decode(await readBytes(join(path, manifestName))));
    if (manifest.step !== step || typeof manifest.files !== "object") return `${manifestName} is of another checkpoint`;
  } catch (error) {
    return `${manifestName} can't be read (${(error as Error).message})`;
  }
  for (const [name, expected] of Object.entries(manifest.files)) {
    const file = join(path, name);
    try {
      const { size, sum } = await measure(file);
      if (size !== expected.bytes) return `${name} has ${size} bytes instead of ${expected.bytes}`;
      if (sum !== expected.crc32) return `${name} has other content than was written (its checksum differs)`;
    } catch (error) {
      return `${name} can't be read (${(error as Error).message})`;
    }
  }
  return undefined;
}

/**
 * The newest checkpoint that is whole (sizes and checksums of all its files); null if the run has none yet. Throws
 * CheckpointError if there are checkpoints and all are damaged, FileError if the run folder can't be read.
 */
export async function latestCheckpoint(runFolder: string): Promise<Checkpoint | null> {
  const damaged: string[] = [];
  for (const { step, name } of await candidates(runFolder)) {
    const path = join(runFolder, name);
    const reason = await damage(path, step);
    if (reason === undefined) return { step, path, damaged };
    damaged.push(`${path}: ${reason}`);
  }
  if (damaged.length === 0) return null;
  throw new CheckpointError(
    `${runFolder}: no checkpoint is whole: ${damaged.join("; ")}; remove these folders to start the run again`,
  );
}

/**
 * Writes a checkpoint of a step, makes it the latest, and removes the oldest beyond `keep` and any of later steps.
 * `files` by their plain names. Throws FileError (a full disk, say): then nothing has changed, and earlier checkpoints are as they were.
 */
export async function writeCheckpoint(
  runFolder: string,
  step: number,
  files: Readonly<Record<string, Chunks>>,
  options: CheckpointOptions = {},
): Promise<Checkpoint> {
  const { keep = 2, publish = ["model.safetensors"] } = options;
  if (!Number.isSafeInteger(step) || step < 0)
    throw new CheckpointError(`a step must be a whole number ≥ 0, got ${step}`);
  if (!Number.isInteger(keep) || keep < 1) throw new CheckpointError(`keep must be a whole number ≥ 1, got ${keep}`);
  for (const name of Object.keys(files))
    if (!/^[\w][\w.-]*$/.test(name) || name === manifestName)
      throw new CheckpointError(
        `a checkpoint's file needs a plain name other than ${manifestName}, got ${JSON.stringify(name)}`,
      );

  const path = join(runFolder, `checkpoint-${step}`);
  try {
    await removeLeftovers(runFolder);
    await writeWholeFolder(runFolder, path, manifestName, async (add) => {
      const manifest: { step: number; files: Record<string, { bytes: number; crc32: number }> } = { step, files: {} };
      for (const [name, chunks] of Object.entries(files)) {
        let sum = 0;
        const bytes = await add(name, chunks, (piece) => {
          sum = crc32(piece, sum);
        });
        manifest.files[name] = { bytes, crc32: sum };
      }
      await add(manifestName, `${JSON.stringify(manifest, null, 2)}\n`);
    });
  } catch (error) {
    const wrapped = fileError(`write the checkpoint of step ${step},`, path, error);
    if (wrapped instanceof FileError)
      throw new FileError(`${wrapped.message}; earlier checkpoints are as they were`, wrapped.code, path, error);
    throw wrapped;
  }
  for (const name of publish) if (files[name] !== undefined) await show(runFolder, path, name);
  // Checkpoints of later steps are of a future that this run has left by going back; they must not be found as the latest.
  const found = await candidates(runFolder);
  const kept = [...new Set(found.map((c) => c.step))].filter((s) => s <= step).slice(0, keep);
  for (const { name, step: s, old } of found)
    if (!kept.includes(s) || (s === step && old)) await discard(join(runFolder, name), manifestName);
  return { step, path, damaged: [] };
}

/**
 * What a run that goes on does first: removes what a kill left half-written in the run folder, finds the latest
 * checkpoint, and shows its files in the run folder (the kill may have come just before that). null if there is no
 * checkpoint yet. Throws as latestCheckpoint does.
 */
export async function resumeRunFolder(
  runFolder: string,
  options: Pick<CheckpointOptions, "publish"> = {},
): Promise<Checkpoint | null> {
  const { publish = ["model.safetensors"] } = options;
  await removeLeftovers(runFolder);
  for (const name of publish) await remove(join(runFolder, `${name}.tmp`));
  await cleanStaleTemporaries(runFolder);
  const latest = await latestCheckpoint(runFolder);
  if (latest !== null)
    for (const name of publish) if (await exists(join(latest.path, name))) await show(runFolder, latest.path, name);
  return latest;
}

async function removeLeftovers(runFolder: string): Promise<void> {
  for (const name of await listFolder(runFolder))
    if (await isLeftover(runFolder, name)) await remove(join(runFolder, name));
}

/** Shows a checkpoint's file in the run folder. */
const show = (runFolder: string, checkpoint: string, name: string): Promise<void> =>
  publishFile(join(checkpoint, name), join(runFolder, name), join(runFolder, `${name}.tmp`));
