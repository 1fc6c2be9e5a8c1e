/** The table of a fine-tuning, `before → after`, as text. */
import type { FinetuneResult, Sample } from "./finetune.ts";
import type { Comparison, Difference, Measurement } from "./measure.ts";

/** A row: how a number is written, and which way is good. */
interface Row {
  readonly name: string;
  readonly write: (x: number) => string;
  readonly value: (m: Measurement) => number;
  readonly difference: (c: Comparison) => Difference | null;
}

const percent = (x: number): string => `${(100 * x).toFixed(1)} %`;
const fixed = (x: number): string => x.toFixed(4);

const rows: readonly Row[] = [
  { name: "loss", write: fixed, value: (m) => m.loss, difference: (c) => c.loss },
  { name: "perplexity", write: (x) => x.toPrecision(4), value: (m) => m.perplexity, difference: () => null },
  { name: "accuracy", write: percent, value: (m) => m.accuracy, difference: (c) => c.accuracy },
];

const signed = (x: number, write: (x: number) => string): string => `${x < 0 ? "−" : "+"}${write(Math.abs(x))}`;

function describe(difference: Difference | null, write: (x: number) => string): string {
  if (difference === null) return "";
  const { value, interval } = difference;
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

/** before → after for each number, with the difference and its paired 95 % interval. */
export function formatComparison(before: Measurement, after: Measurement, difference: Comparison): string {
  const lines = rows.map(({ name, write, value, difference: of }) => [
    name,
    write(value(before)),
    "→",
    write(value(after)),
    describe(of(difference), write),
  ]);
  const head = ["", "before", " ", "after", "difference  [paired 95 % interval]"];
  return `${table([head, ...lines])}\n${difference.examples} examples, ${before.targets} targets`;
}

const indent = (text: string): string => text.replaceAll("\n", "\n    ");

const formatSample = ({ prompt, before, after }: Sample): string =>
  `${JSON.stringify(prompt)}\n  before  ${indent(before)}\n  after   ${indent(after)}`;

/** The whole outcome: the table, what to know of the data, and samples side by side. */
export function formatResult(result: FinetuneResult): string {
  const { before, after, difference, overlap, truncated, dropped, samples } = result;
  const notes = [
    overlap > 0 && `${overlap} of the evaluation's examples are in the training data too: they prove nothing`,
    truncated > 0 && `${truncated} training examples were longer than a row and were cut off`,
    dropped > 0 && `${dropped} training examples had nothing to learn in them and were left out`,
    result.training.reason !== null && `training ended early: ${result.training.reason}`,
  ].filter((note) => typeof note === "string");
  return [formatComparison(before, after, difference), ...notes, ...samples.map(formatSample)].join("\n\n");
}
