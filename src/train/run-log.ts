/**
 * A run's `metrics.jsonl`: one JSON line a step, each written at once, so that a killed run has lost nothing but what it
 * had not yet done. A run that goes on from a checkpoint cuts the log back to it first: however often a run is killed,
 * its log holds each step once.
 */
import { NablaError } from "../core/errors.ts";
import { fileError, type GrowingFile, isFolder, openGrowing } from "../data/files.ts";
import { join } from "../data/path.ts";
import { readBytes } from "../data/source.ts";

/** A log that is damaged in its middle, or steps that do not rise. */
export class RunLogError extends NablaError {
  override name = "RunLogError";
}

export type MetricValue = number | string | boolean | null;

/** One line. JSON has no NaN and infinities: in the file they are the strings "NaN", "Infinity" and "-Infinity". */
export interface LogEntry {
  readonly step: number;
  readonly [metric: string]: MetricValue;
}

export const runLogName = "metrics.jsonl";

const nonFinite: Readonly<Record<string, number>> = {
  NaN: Number.NaN,
  Infinity: Number.POSITIVE_INFINITY,
  "-Infinity": Number.NEGATIVE_INFINITY,
};

const isStep = (x: unknown): x is number => Number.isSafeInteger(x) && (x as number) >= 0;

function formatLine(entry: LogEntry): string {
  return `${JSON.stringify(entry, (_, value) => (typeof value === "number" && !Number.isFinite(value) ? String(value) : value))}\n`;
}

/** One line's entry; undefined if it is not a whole, valid one. */
function parseLine(line: string): LogEntry | undefined {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch {
    return undefined;
  }
  if (typeof value !== "object" || value === null || !isStep((value as LogEntry).step)) return undefined;
  const entry = value as Record<string, MetricValue>;
  for (const key of Object.keys(entry)) {
    const text = entry[key];
    if (typeof text === "string" && Object.hasOwn(nonFinite, text)) entry[key] = nonFinite[text];
  }
  return entry as LogEntry;
}

interface Line {
  readonly entry: LogEntry;
  /** Offset of the byte after its newline. */
  readonly end: number;
}

/** The lines of a log. What follows the last valid line may be torn; anything else that is invalid is an error. */
function parseLog(bytes: Uint8Array, path: string): Line[] {
  const lines: Line[] = [];
  const decoder = new TextDecoder();
  let torn = -1;
  let number = 0;
  for (let start = 0; start < bytes.length; ) {
    number++;
    const newline = bytes.indexOf(10, start);
    const end = newline < 0 ? bytes.length : newline + 1;
    const entry = newline < 0 ? undefined : parseLine(decoder.decode(bytes.subarray(start, newline)));
    start = end;
    if (entry === undefined) {
      if (torn < 0) torn = number;
      continue;
    }
    if (torn >= 0)
      throw new RunLogError(
        `${path}: line ${torn} is damaged, though later ones are whole; repair or remove that line`,
      );
    const last = lines.at(-1)?.entry.step ?? -1;
    if (entry.step <= last)
      throw new RunLogError(
        `${path}: line ${number} is of step ${entry.step}, but the line before it of step ${last}; steps must rise`,
      );
    lines.push({ entry, end });
  }
  return lines;
}

/** Reads a log (given itself or by its run folder); a torn last line is left out. Throws FileError or RunLogError. */
export async function readRunLog(path: string): Promise<LogEntry[]> {
  const file = (await isFolder(path)) ? join(path, runLogName) : path;
  return parseLog(await readBytes(file), file).map(({ entry }) => entry);
}

export class RunLog {
  readonly path: string;
  readonly #file: GrowingFile;
  #last: number;

  private constructor(path: string, file: GrowingFile, last: number) {
    this.path = path;
    this.#file = file;
    this.#last = last;
  }

  /** The log of a new run. Throws RunLogError if the folder already holds a log with steps, FileError if it can't be made. */
  static create(folder: string): Promise<RunLog> {
    return RunLog.#open(folder, (lines, path) => {
      if (lines.length > 0)
        throw new RunLogError(
          `${path} already holds steps up to ${lines.at(-1)!.entry.step}; resume that run, or choose another folder`,
        );
      return 0;
    });
  }

  /** The log of a run that goes on after `step` (0: from its start): later steps, and a torn last line, are cut off. */
  static async resume(folder: string, step: number): Promise<RunLog> {
    if (!isStep(step)) throw new RunLogError(`a step must be a whole number ≥ 0, got ${step}`);
    return RunLog.#open(folder, (lines) => {
      const after = lines.findIndex(({ entry }) => entry.step > step);
      return after < 0 ? lines.length : after;
    });
  }

  static async #open(folder: string, keep: (lines: readonly Line[], path: string) => number): Promise<RunLog> {
    const path = join(folder, runLogName);
    let file: GrowingFile | undefined;
    try {
      file = await openGrowing(path);
      const lines = parseLog(file.bytes, path);
      const kept = lines[keep(lines, path) - 1];
      await file.truncate(kept?.end ?? 0);
      return new RunLog(path, file, kept?.entry.step ?? -1);
    } catch (error) {
      await file?.close();
      throw fileError("open the log", path, error);
    }
  }

  /** The last step in the log; −1 if there is none. */
  get lastStep(): number {
    return this.#last;
  }

  /**
   * Appends a step. In Node it is with the system when this returns: a kill of this process does not lose it (a power cut may,
   * see `sync`). In a browser it is then on its way, and before a checkpoint of `saveCheckpoints` is written it is there. Throws
   * RunLogError unless the step is larger than the last, FileError if it can't be written; the log is then as before. (In a browser
   * that shows at the next `append`, `sync` or `close`.)
   */
  append(entry: LogEntry): void {
    if (!isStep(entry.step) || entry.step <= this.#last)
      throw new RunLogError(
        `${this.path}: step ${entry.step} can't follow step ${this.#last}; each step is logged once, in order`,
      );
    try {
      this.#file.append(new TextEncoder().encode(formatLine(entry)));
    } catch (error) {
      throw fileError("append to", this.path, error);
    }
    this.#last = entry.step;
  }

  /** Makes the log survive a power cut as well; worth its time beside a checkpoint. Throws FileError. */
  async sync(): Promise<void> {
    await this.#file.sync().catch((error) => {
      throw fileError("write", this.path, error);
    });
  }

  /** Writes what is left to write, and closes. Throws FileError. */
  async close(): Promise<void> {
    await this.#file.close().catch((error) => {
      throw fileError("write", this.path, error);
    });
  }
}
