/** The table of a fine-tuning, `before → after`, as text. */
import { counted } from "../train/terminal.ts";
import type { FinetuneResult, Sample } from "./finetune.ts";
import type { Comparison, Difference, Measurement } from "./measure.ts";
import { type Columns, countedRows, metrics, metricsOf } from "./metrics.ts";

const signed = (x: number, write: (x: number) => string): string => `${x < 0 ? "−" : "+"}${write(Math.abs(x))}`;

function describe(difference: Difference | undefined, write: (x: number) => string): string {
  if (difference === undefined) return "";
  const { value, interval } = difference;
  if (Number.isNaN(value)) return "";
  const range = interval === null ? "" : `  [${interval.map((x) => signed(x, write)).join(", ")}]`;
  return signed(value, write) + range;
}

/** Lines of equal columns, the first to the left, the others to the right. */
function table(lines: readonly (readonly string[])[]): string {
  const widths = lines[0].map((_, c) => Math.max(...lines.map((line) => line[c].length)));
  return lines
    .map((line) =>
      line.map((cell, c) => (c === 0 || c === line.length - 1 ? cell.padEnd(widths[c]) : cell.padStart(widths[c]))),
    )
    .map((cells) => cells.join("  ").trimEnd())
    .join("\n");
}

/** before → after for each metric that both suffice for, with the difference and its paired 95 % interval. */
export function formatColumns(
  before: Columns,
  after: Columns,
  differences: Readonly<Record<string, Difference>>,
  names: readonly [string, string] = ["before", "after"],
): string {
  const [old, now] = [metricsOf(before), metricsOf(after)];
  const lines = metrics
    .filter(({ name }) => name in old && name in now)
    .map(({ name, write }) => [name, write(old[name]), "→", write(now[name]), describe(differences[name], write)]);
  return table([["", names[0], " ", names[1], "difference  [paired 95 % interval]"], ...lines]);
}

/** Of how many examples nothing was measured, to go on with a line; "" where there are none. */
export function leftOut(columns: Columns): string {
  const counted = countedRows(columns).length;
  const left = (columns["count"]?.length ?? counted) - counted;
  return left === 0 ? "" : `; ${left} more, of which nothing that counts stands within a row, were left out`;
}

/** before → after for each number, with the difference and its paired 95 % interval. */
export function formatComparison(before: Measurement, after: Measurement, difference: Comparison): string {
  const table = formatColumns(before.examples, after.examples, difference.metrics);
  return `${table}\n${counted(difference.examples, "example", String)}, ${counted(before.targets, "target", String)}${leftOut(before.examples)}`;
}

const indent = (text: string): string => text.replaceAll("\n", "\n    ");

/** Of a long prompt the end, which is what was gone on with. */
function ending(prompt: string): string {
  const letters = Array.from(prompt);
  return letters.length > 400 ? `… ${letters.slice(-400).join("")}` : prompt;
}

const formatSample = ({ prompt, before, after }: Sample): string =>
  `${JSON.stringify(ending(prompt))}\n  before  ${indent(before)}\n  after   ${indent(after)}`;

/** The whole outcome: the table, what to know of the data, and samples side by side. */
export function formatResult(result: FinetuneResult): string {
  const { before, after, difference, overlap, truncated, dropped, evaluationTruncated: cut, samples } = result;
  const notes = [
    overlap > 0 && `of the evaluation's examples, in the training data too: ${overlap}; this proves nothing of them`,
    cut > 0 && `of the evaluation's examples, longer than a row and cut off: ${cut}`,
    truncated > 0 && `of the training's examples, longer than a row and cut off: ${truncated}`,
    dropped > 0 && `of the training's examples, left out because nothing in them is to be learnt: ${dropped}`,
    result.training.reason !== null && `training ended early: ${result.training.reason}`,
  ].filter((note) => typeof note === "string");
  return [formatComparison(before, after, difference), ...notes, ...samples.map(formatSample)].join("\n\n");
}
