/** The sentences of both lessons: where they lie, how they are labelled, and how they are divided. No network here. */
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { Rng } from "../../src/core/rng.ts";
import { loadTokenizer } from "../../src/data/index.ts";
import type { TextTarget } from "../../src/finetune/index.ts";

export const dataFolder =
  process.env["NABLA_TEST_DATA"] ?? fileURLToPath(new URL("../../../shared/data", import.meta.url));

interface Sentence {
  readonly text: string;
  readonly label: string;
}

const linesOf = (path: string): string[] =>
  readFileSync(`${dataFolder}/${path}`, "utf8")
    .split(/\r?\n/)
    .filter((line) => line.trim() !== "");

/** By the name of the data. */
const sources: Readonly<Record<string, () => Sentence[]>> = {
  "movie-reviews": () =>
    ["neg", "pos"].flatMap((label) => linesOf(`movie-reviews/rt-polarity.${label}`).map((text) => ({ text, label }))),
  "financial-phrasebank": () =>
    linesOf("financial-phrasebank/Sentences_AllAgree.txt").map((line) => {
      const at = line.lastIndexOf("@");
      return { text: line.slice(0, at), label: line.slice(at + 1).trim() };
    }),
};
export const dataNames: readonly string[] = Object.keys(sources);

export interface Labelled {
  readonly classes: readonly string[];
  readonly examples: readonly TextTarget[];
}

/** All sentences of a data set in the tokens of the model in `folder`, with the numbers of their classes. */
export async function readSentences(name: string, folder: string): Promise<Labelled> {
  const sentences = sources[name]();
  const tokenizer = await loadTokenizer(folder);
  const classes = [...new Set(sentences.map(({ label }) => label))].sort();
  const examples = sentences.map(({ text, label }) => ({
    ids: tokenizer.encode(text),
    target: classes.indexOf(label),
  }));
  return { classes, examples };
}

/** A copy in an order that the seed says (Fisher and Yates). */
export function shuffled<T>(items: readonly T[], seed: number): T[] {
  const rng = new Rng(seed);
  const out = [...items];
  for (let i = out.length - 1; i > 0; i--) {
    const j = Math.floor(rng.uniform() * (i + 1));
    [out[i], out[j]] = [out[j], out[i]];
  }
  return out;
}

/** The first `counts[0]` of each class, the next `counts[1]` of each, and so on; at last what is left. */
export function split(examples: readonly TextTarget[], counts: readonly number[]): TextTarget[][] {
  const parts: TextTarget[][] = [...counts.map(() => []), []];
  const seen = new Map<number, number>();
  for (const example of examples) {
    const at = seen.get(example.target) ?? 0;
    seen.set(example.target, at + 1);
    let [part, end] = [0, 0];
    while (part < counts.length && at >= (end += counts[part])) part++;
    parts[part].push(example);
  }
  return parts;
}

/** The folder of all-MiniLM-L6-v2. */
export function minilmFolder(): string {
  const folder = process.env["NABLA_TEST_MINILM"];
  if (!folder)
    throw new Error("set NABLA_TEST_MINILM to the folder of all-MiniLM-L6-v2; the README says where it comes from");
  return folder;
}
