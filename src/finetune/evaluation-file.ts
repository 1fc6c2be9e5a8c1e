/**
 * Evaluations in files: how a model did on each example, as JSON in the folder of a run, from which any two runs can be compared later.
 * `finetune` writes one with `before` and `after`; an evaluation alone has `after` only.
 */
import { extname, join } from "../data/path.ts";
import { readBytes } from "../data/source.ts";
import { writeFileAtomic } from "../formats/atomic.ts";
import { FinetuneError } from "./errors.ts";
import { compareColumns, type Difference } from "./measure.ts";
import { type Columns, metricsOf } from "./metrics.ts";

/** What a file holds. */
export interface Evaluation {
  /** Before a fine-tuning; null where there was none. */
  readonly before: Columns | null;
  readonly after: Columns;
  /** A print of the examples, equal for equal ones; null where the file has none. */
  readonly print: string | null;
}

export const evaluationFile = "evaluation.json";

/** Columns as JSON has them. */
export const plainColumns = (columns: Columns): Record<string, number[]> =>
  Object.fromEntries(Object.entries(columns).map(([name, values]) => [name, Array.from(values)]));

/** The text of a file: the metrics, and every column. */
export function formatEvaluation({ before, after, print }: Evaluation): string {
  const part = (columns: Columns) => ({ metrics: metricsOf(columns), examples: plainColumns(columns) });
  const content = { ...(before && { before: part(before) }), after: part(after), ...(print && { print }) };
  return `${JSON.stringify(content)}\n`;
}

/** A print of examples by their identities: a polynomial hash of their texts in two halves of 32 bits. */
export function examplesPrint(identities: Iterable<string>): string {
  let [a, b] = [0x811c9dc5, 0x1b873593];
  const add = (code: number): void => {
    a = Math.imul(a ^ code, 0x01000193) >>> 0;
    b = (Math.imul(b, 31) + code) >>> 0;
  };
  for (const text of identities) {
    for (let i = 0; i < text.length; i++) add(text.charCodeAt(i));
    add(0x10ffff); // between examples
  }
  return [a, b].map((half) => half.toString(16).padStart(8, "0")).join("");
}

const pathOf = (run: string): string => (extname(run) === ".json" ? run : join(run, evaluationFile));

/** Writes an evaluation into the folder of a run, or to a path that ends in .json. Throws FileError. */
export async function writeEvaluation(run: string, evaluation: Evaluation): Promise<void> {
  await writeFileAtomic(pathOf(run), formatEvaluation(evaluation));
}

function columnsOf(value: unknown, place: string): Columns {
  const { examples } = (typeof value === "object" && value !== null ? value : {}) as { examples?: unknown };
  if (typeof examples !== "object" || examples === null)
    throw new FinetuneError(`${place} holds no "examples"; the file is damaged, or of another kind`);
  const entries = Object.entries(examples);
  const length = (entries[0]?.[1] as { length?: unknown } | undefined)?.length;
  return Object.fromEntries(
    entries.map(([name, values]): [string, Float64Array] => {
      if (!Array.isArray(values) || values.length !== length || !values.every((x) => typeof x === "number"))
        throw new FinetuneError(
          `${place}: "examples" → "${name}" must be ${String(length)} numbers, as the others are`,
        );
      return [name, Float64Array.from(values)];
    }),
  );
}

/** Reads an evaluation of a run's folder, or of a path that ends in .json. Throws FileError, and FinetuneError naming what is damaged. */
export async function readEvaluation(run: string): Promise<Evaluation> {
  const path = pathOf(run);
  let file: Record<string, unknown>;
  try {
    file = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(await readBytes(path)));
  } catch (error) {
    if (!(error instanceof SyntaxError || error instanceof TypeError)) throw error;
    throw new FinetuneError(`${path}: this is not valid JSON (${error.message})`, { cause: error });
  }
  if (typeof file !== "object" || file === null || !("after" in file))
    throw new FinetuneError(`${path}: "after" is missing; the file is damaged, or of another kind`);
  const { before, after, print } = file;
  return {
    before: before === undefined ? null : columnsOf(before, `${path}: "before"`),
    after: columnsOf(after, `${path}: "after"`),
    print: typeof print === "string" ? print : null,
  };
}

export interface CompareRunsOptions {
  /** Of the bootstrap. Default: 0. */
  readonly seed?: number;
}

/** Two runs on the same examples: the metrics of both, and by name the second minus the first with its paired interval. */
export interface RunComparison {
  readonly runs: readonly [first: string, second: string];
  readonly metrics: readonly [first: Record<string, number>, second: Record<string, number>];
  readonly differences: Readonly<Record<string, Difference>>;
}

/**
 * Compares runs by how they did after all, example by example: each against the first. Paths are folders of runs, or of evaluations. Throws FinetuneError
 * where two have measured other examples, naming both.
 */
export async function compareRuns(
  paths: readonly string[],
  options: CompareRunsOptions = {},
): Promise<readonly RunComparison[]> {
  if (paths.length < 2) throw new FinetuneError(`compareRuns: name two runs or more, got ${paths.length}`);
  const read: Evaluation[] = [];
  for (const path of paths) read.push(await readEvaluation(path));
  const [first, ...others] = read;
  return others.map((other, i): RunComparison => {
    const runs = [paths[0], paths[i + 1]] as const;
    if (first.print !== null && other.print !== null && first.print !== other.print)
      throw new FinetuneError(`${runs.join(" and ")} have measured different examples; measure both on the same`);
    let differences: Record<string, Difference>;
    try {
      differences = compareColumns(first.after, other.after, options);
    } catch (error) {
      throw new FinetuneError(`${runs.join(" and ")}: ${(error as Error).message}`, { cause: error });
    }
    return { runs, metrics: [metricsOf(first.after), metricsOf(other.after)], differences };
  });
}
