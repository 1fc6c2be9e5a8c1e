/**
 * eval --compare: what several runs have measured, side by side. Of runs that measured the same examples also the differences, paired,
 * with their 95 % intervals: two numbers beside each other do not say whether the better one was lucky.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { evaluationFile } from "../finetune/evaluation-file.ts";
import {
  compareColumns,
  type Evaluation,
  FinetuneError,
  formatColumns,
  metrics,
  metricsOf,
  readEvaluation,
} from "../finetune/index.ts";
import { exitCodes, UsageError } from "./exit.ts";
import type { Outcome } from "./main.ts";
import { RunError } from "./run-folder.ts";

type Measured = Evaluation & { readonly name: string };

export async function compareRuns(names: readonly string[], { json }: { readonly json: boolean }): Outcome {
  const runs: Measured[] = [];
  for (const name of names) runs.push(await readRun(name));
  const pairs = runs.slice(1).map((run) => ({ from: runs[0], to: run, differences: differencesOf(runs[0], run) }));
  if (json) {
    console.log(
      JSON.stringify({
        runs: runs.map(({ name, before, after }) => ({
          run: name,
          before: before && metricsOf(before),
          after: metricsOf(after),
          ...(before === null ? {} : { difference: compareColumns(before, after) }),
        })),
        differences: pairs.map(({ from, to, differences }) => ({
          from: from.name,
          to: to.name,
          difference: differences,
        })),
      }),
    );
    return exitCodes.ok;
  }
  if (runs.length === 1 && runs[0].before === null)
    throw new UsageError(`${runs[0].name} holds one measurement; name another run to compare it with`);
  console.log(sideBySide(runs));
  for (const { name, before, after } of runs)
    if (before !== null) console.log(`\n${name}\n${formatColumns(before, after, compareColumns(before, after))}`);
  for (const { from, to, differences } of pairs) {
    console.log(`\n${from.name} → ${to.name}`);
    if (differences === null)
      console.log("they were measured on different examples, so that there is no paired difference");
    else console.log(formatColumns(from.after, to.after, differences, ["the first", "the second"]));
  }
  return exitCodes.ok;
}

function differencesOf(from: Measured, to: Measured): ReturnType<typeof compareColumns> | null {
  if (from.print !== null && to.print !== null && from.print !== to.print) return null;
  try {
    return compareColumns(from.after, to.after);
  } catch (error) {
    if (error instanceof FinetuneError) return null;
    throw error;
  }
}

/** A row a measurement, a column a metric. */
function sideBySide(runs: readonly Measured[]): string {
  const rows = runs.flatMap(({ name, before, after }) => [
    ...(before === null ? [] : [{ name: `${name}, before`, numbers: metricsOf(before) }]),
    { name: before === null ? name : `${name}, after`, numbers: metricsOf(after) },
  ]);
  const columns = metrics.filter((metric) => rows.some(({ numbers }) => metric.name in numbers));
  const lines = [
    ["", ...columns.map(({ name }) => name)],
    ...rows.map(({ name, numbers }) => [
      name,
      ...columns.map((metric) => (metric.name in numbers ? metric.write(numbers[metric.name]) : "")),
    ]),
  ];
  const widths = lines[0].map((_, c) => Math.max(...lines.map((line) => line[c].length)));
  return lines
    .map((line) =>
      line
        .map((cell, c) => (c === 0 ? cell.padEnd(widths[c]) : cell.padStart(widths[c])))
        .join("  ")
        .trimEnd(),
    )
    .join("\n");
}

async function readRun(name: string): Promise<Measured> {
  if (!existsSync(name))
    throw new RunError(`there is no folder ${name}; --compare takes folders of finetune, or of eval --out`);
  if (!existsSync(join(name, evaluationFile)))
    throw new RunError(
      `${name} holds no measurement: it has no ${evaluationFile}; a run of finetune has one when it is finished`,
    );
  return { name, ...(await readEvaluation(name)) };
}
