/**
 * Examples for fine-tuning from files: JSON or Parquet of {"text"}, {"prompt", "completion"} or {"messages"}, tables with columns for
 * text and label, plain text. What does not fit is told with file, line and field. Tokens are made in `supervised.ts`.
 */
import type { Message } from "../data/chat-template.ts";
import { extname } from "../data/path.ts";
import { type ReadOptions, readBytes, type Source, sourceName } from "../data/source.ts";
import { decodeText } from "../data/text.ts";
import { besides, conversationOf, conversations } from "./conversations.ts";
import { readColumns, readTable } from "./csv.ts";
import { FinetuneError } from "./errors.ts";
import { show, stringField } from "./fields.ts";
import { readParquet } from "./parquet.ts";

export type { Message } from "../data/chat-template.ts";

/** An example as it is written; `where` is the file and line that messages name. */
export type TextualExample = { readonly where: string } & (
  | { readonly text: string }
  | { readonly prompt: string; readonly completion: string }
  | { readonly messages: readonly Message[]; readonly tools?: readonly unknown[] }
);

export interface LabelledExample {
  readonly where: string;
  readonly text: string;
  readonly label: string;
}

export interface ReadExamplesOptions extends ReadOptions {
  /** The column, or JSON field, of the text. Default: "text". */
  readonly text?: string;
}

/** The values of a file of JSON lines, with where they stand; empty lines are skipped. Throws FinetuneError. */
function parseJsonLines(text: string, file: string): { readonly where: string; readonly value: object }[] {
  const out: { where: string; value: object }[] = [];
  text.split("\n").forEach((line, i) => {
    if (line.trim() === "") return;
    const where = `${file}, line ${i + 1}`;
    let value: unknown;
    try {
      value = JSON.parse(line);
    } catch (error) {
      throw new FinetuneError(`${where}: not valid JSON (${(error as Error).message}); each line holds one object`);
    }
    if (typeof value !== "object" || value === null || Array.isArray(value))
      throw new FinetuneError(`${where}: expected an object, got ${show(value)}`);
    out.push({ where, value });
  });
  return out;
}

/** The objects of .json: a list as a whole, or lines after all. Throws FinetuneError. */
function parseObjects(text: string, file: string): { readonly where: string; readonly value: object }[] {
  if (!text.trimStart().startsWith("[")) return parseJsonLines(text, file);
  let list: unknown[];
  try {
    list = JSON.parse(text);
  } catch (error) {
    throw new FinetuneError(`${file}: not valid JSON (${(error as Error).message}); expected a list of objects`);
  }
  return list.map((value, i) => {
    const where = `${file}, item ${i + 1}`;
    if (typeof value !== "object" || value === null || Array.isArray(value))
      throw new FinetuneError(`${where}: expected an object, got ${show(value)}`);
    return { where, value };
  });
}

/** An example of an object with the fields of one; `where` is what errors call it. Throws FinetuneError naming the field. */
export function exampleOf(value: object, where: string, textField = "text"): TextualExample {
  // a text that stands beside an instruction is the whole of it, written out
  const spoken = textField in value && !("messages" in value) ? null : conversationOf(value, where);
  if (spoken !== null) return { where, ...spoken };
  if ("choices" in value && !("completion" in value))
    throw new FinetuneError(
      `${where}: a line of "choices" is a question of multiple choice, which can be measured only (readChoices and multipleChoice; nabla eval --metrics multiple-choice)`,
    );
  if ("prompt" in value || "completion" in value) {
    const [prompt, completion] = ["prompt", "completion"].map((field) => stringField(value, field, where));
    if (completion === "") throw new FinetuneError(`${where}: "completion" is empty; there is nothing to learn in it`);
    return { where, prompt, completion };
  }
  if (textField in value) return { where, text: stringField(value, textField, where) };
  const fields = Object.keys(value).map((field) => `"${field}"`);
  throw new FinetuneError(
    `${where}: expected "${textField}", or "prompt" and "completion", or "messages" ("conversations"; "instruction" and "output"); ${fields.length === 0 ? "no field has a value" : `the fields are ${fields.join(", ")}`}`,
  );
}

const pair = ["prompt", "completion"];

const textOf = async (source: Source, options: ReadOptions): Promise<string> =>
  decodeText(await readBytes(source, options), sourceName(source));

/** What a file of objects holds, JSON lines or Parquet, with where each stands; null for other files. `fields` are those that are looked at. */
async function readObjects(
  source: Source,
  options: ReadOptions,
  fields: readonly string[],
  others: readonly string[] = [],
): Promise<{ readonly where: string; readonly value: object }[] | null> {
  const file = sourceName(source);
  switch (extname(file)) {
    case ".jsonl":
    case ".ndjson":
      return parseJsonLines(await textOf(source, options), file);
    case ".json":
      return parseObjects(await textOf(source, options), file);
    case ".parquet":
      return readParquet(source, fields, others);
    default:
      return null;
  }
}

/** A file whose name does not say what is in it. */
const unknownKind = (file: string, expected: string): FinetuneError =>
  new FinetuneError(`${file}: its ending is not one of ${expected}; rename it to what it is`);

/**
 * Examples for a language model: of .json, .jsonl and .parquet, of the column `text` (or prompt and completion) of .csv and .tsv, or one of a whole .txt or .md. Throws FinetuneError
 * naming file, line (or row) and field; FileError; TextError where it is not UTF-8.
 */
export async function readExamples(source: Source, options: ReadExamplesOptions = {}): Promise<TextualExample[]> {
  const { text: field = "text" } = options;
  const file = sourceName(source);
  const objects = await readObjects(source, options, [field, ...pair, ...conversations], besides);
  const examples = objects
    ? objects.map(({ where, value }) => exampleOf(value, where, field))
    : parsedExamples(await textOf(source, options), file, field);
  if (examples.length === 0) throw new FinetuneError(`${file}: there are no examples in it`);
  return examples;
}

/** Of a table the column of the text; where there is none, the fields of pairs as lines of JSON have them. */
function tableExamples(text: string, file: string, field: string): TextualExample[] {
  const table = readTable(text, file);
  const { fields: names } = table.head;
  const paired = [pair, ["instruction", "output"]].some((each) => each.every((name) => names.includes(name)));
  if (!paired || names.includes(field))
    return readColumns(table, file, { text: field }).map((row) => ({
      where: `${file}, line ${row.line}`,
      text: row.text,
    }));
  return table.records.map(({ fields, line }) =>
    exampleOf(Object.fromEntries(names.map((name, i) => [name, fields[i]])), `${file}, line ${line}`, field),
  );
}

function parsedExamples(text: string, file: string, field: string): TextualExample[] {
  switch (extname(file)) {
    case ".csv":
    case ".tsv":
      return tableExamples(text, file, field);
    case ".txt":
    case ".md":
      return text === "" ? [] : [{ where: file, text }];
    default:
      throw unknownKind(file, ".json, .jsonl, .parquet, .csv, .tsv, .txt, .md");
  }
}

export interface ReadLabelledOptions extends ReadExamplesOptions {
  /** The column, or JSON field, of the class. Default: "label". */
  readonly label?: string;
}

/**
 * Texts with labels: of .csv and .tsv by their columns, of .json, .jsonl and .parquet by their fields (a label may be a number there). Throws as
 * readExamples.
 */
export async function readLabelled(source: Source, options: ReadLabelledOptions = {}): Promise<LabelledExample[]> {
  const { text: textField = "text", label: labelField = "label" } = options;
  const file = sourceName(source);
  const objects = await readObjects(source, options, [textField, labelField]);
  let examples: LabelledExample[];
  if (objects)
    examples = objects.map(({ where, value }) => {
      const label = (value as Record<string, unknown>)[labelField];
      return {
        where,
        text: stringField(value, textField, where),
        label:
          typeof label === "number" || typeof label === "boolean"
            ? String(label)
            : stringField(value, labelField, where),
      };
    });
  else if ([".csv", ".tsv"].includes(extname(file)))
    examples = readColumns(readTable(await textOf(source, options), file), file, {
      text: textField,
      label: labelField,
    }).map(({ line, ...row }) => ({
      where: `${file}, line ${line}`,
      ...row,
    }));
  else throw unknownKind(file, ".json, .jsonl, .parquet, .csv, .tsv");
  if (examples.length === 0) throw new FinetuneError(`${file}: there are no examples in it`);
  const empty = examples.find(({ label }) => label.trim() === "");
  if (empty) throw new FinetuneError(`${empty.where}: "${labelField}" is empty; every example needs a class`);
  return examples;
}

/** A question with answers to choose from. */
export interface ChoiceExample {
  readonly where: string;
  readonly prompt: string;
  readonly choices: readonly string[];
  /** The number of the right one, from 0. */
  readonly answer: number;
}

function choicesOf(value: object, where: string): ChoiceExample {
  const { choices, answer } = value as { choices: unknown; answer: unknown };
  const prompt = stringField(value, "prompt", where);
  if (!Array.isArray(choices) || choices.length < 2)
    throw new FinetuneError(
      `${where}: "choices" must be a list of two texts or more, got ${choices === undefined ? "nothing" : show(choices)}`,
    );
  choices.forEach((choice: unknown, i) => {
    if (typeof choice !== "string" || choice === "")
      throw new FinetuneError(`${where}: "choices"[${i}] must be a text that is not empty, got ${show(choice)}`);
  });
  const place = typeof answer === "string" ? choices.indexOf(answer) : answer;
  if (!Number.isInteger(place) || (place as number) < 0 || (place as number) >= choices.length)
    throw new FinetuneError(
      `${where}: "answer" must be one of the choices, or its number from 0 to ${choices.length - 1}, got ${show(answer)}`,
    );
  return { where, prompt, choices, answer: place as number };
}

/**
 * Questions with choices of .json, .jsonl and .parquet: {"prompt", "choices": […], "answer"}, the answer by its number from 0 or as it stands among the
 * choices. Throws as readExamples.
 */
export async function readChoices(source: Source, options: ReadOptions = {}): Promise<ChoiceExample[]> {
  const file = sourceName(source);
  const objects = await readObjects(source, options, ["prompt", "choices", "answer"]);
  if (!objects) throw unknownKind(file, ".json, .jsonl, .parquet");
  const examples = objects.map(({ where, value }) => choicesOf(value, where));
  if (examples.length === 0) throw new FinetuneError(`${file}: there are no examples in it`);
  return examples;
}

/** The classes of a training set: their names in order, numbers by their value. */
export function classesOf(examples: readonly LabelledExample[]): string[] {
  const names = [...new Set(examples.map(({ label }) => label))];
  const numeric = names.every((name) => name.trim() !== "" && Number.isFinite(Number(name)));
  return names.sort((a, b) => (numeric ? Number(a) - Number(b) : a < b ? -1 : 1));
}

/** The number of each example's class. Throws FinetuneError naming file, line and the class that is not among those learnt. */
export function labelNumbers(examples: readonly LabelledExample[], classes: readonly string[]): Int32Array {
  const numbers = new Map(classes.map((name, i) => [name, i]));
  return Int32Array.from(examples, ({ label, where }) => {
    const number = numbers.get(label);
    if (number === undefined)
      throw new FinetuneError(
        `${where}: the class ${JSON.stringify(label)} is not one that was learnt; those are ${classes.slice(0, 20).map(show).join(", ")}`,
      );
    return number;
  });
}
