/**
 * A user's files as examples for a task: read, tokenised, held out in part, with prompts for samples. One function for language, one for
 * classes and numbers; both are used by finetune and by eval.
 */
import { extname } from "node:path";
import { Rng } from "../core/rng.ts";
import {
  classesOf,
  FinetuneError,
  readExamples,
  readLabelled,
  type TextTarget,
  type TextualExample,
  type TokenExample,
  tokenizeExamples,
  tokenizeLabelled,
} from "../finetune/index.ts";
import type { ModelTokenizer } from "./model-tokenizer.ts";

/** Most tokens of an example where nobody says otherwise: attention over more costs more than most data need. */
export const usualLength = 512;

/** The most tokens of a row that --max-length, or nobody, asks for. */
export const lengthOfRows = (model: { readonly contextLength: number }, asked?: number | null): number =>
  asked ?? Math.min(model.contextLength, usualLength);

export interface ReadingOptions {
  /** The column, or field, of the text. */
  readonly text: string;
  readonly turns: "all" | "last";
  /** Texts of more tokens are cut into several examples. */
  readonly maxLength: number;
}

/** Examples of a language model, with the text that each is of. */
export interface LanguageExamples {
  readonly tokens: readonly TokenExample[];
  readonly textual: readonly TextualExample[];
  /** Which text an example is of. */
  readonly textOf: ReadonlyMap<TokenExample, TextualExample>;
  /** Whether all of it is running text, whose end is to be held out and not some of its pieces. */
  readonly running: boolean;
  /** Whether there are conversations in it. */
  readonly spoken: boolean;
}

/** A text to continue. What a chat template has written begins as it stands, without the tokenizer's own tokens. */
export interface SamplePrompt {
  readonly text: string;
  readonly rendered: boolean;
}

/** Reads files for a language model. Throws FinetuneError naming file and line, FileError, TextError, TokenizerError. */
export async function readLanguage(
  paths: readonly string[],
  tokenizer: ModelTokenizer,
  { text, turns, maxLength }: ReadingOptions,
): Promise<LanguageExamples> {
  const textual: TextualExample[] = [];
  for (const path of paths) textual.push(...(await readExamples(path, { text })));
  const spoken = textual.some((example) => "messages" in example);
  const template = spoken ? await tokenizer.template() : undefined;
  const { bosId, eosId } = tokenizer;
  const options = {
    ...(bosId === undefined ? {} : { bosId }),
    ...(eosId === undefined ? {} : { eosId }),
    ...(template === undefined ? {} : { template }),
    turns,
    windows: maxLength,
  };
  const textOf = new Map<TokenExample, TextualExample>();
  for (const example of textual)
    for (const tokens of tokenizeExamples([example], tokenizer.tokenizer, options)) textOf.set(tokens, example);
  const tokens = [...textOf.keys()];
  const running = paths.every((path) => [".txt", ".md"].includes(extname(path)));
  return { tokens, textual, textOf, running, spoken };
}

/** Texts to continue, from examples: their prompts, or the first words of texts. */
export async function promptsOf(
  { tokens, textual, running }: LanguageExamples,
  tokenizer: ModelTokenizer,
  count: number,
): Promise<SamplePrompt[]> {
  const beginning = ({ ids }: TokenExample): string => {
    const part = Array.from(ids).slice(0, Math.min(24, Math.max(6, ids.length >> 2)));
    return tokenizer
      .decode(part)
      .trim()
      .replace(/\s+\S*$/, "");
  };
  if (count === 0) return [];
  const plain = (text: string): SamplePrompt => ({ text, rendered: false });
  if (running) return usable(spread(tokens, count).map((example) => plain(beginning(example))));
  const prompts: SamplePrompt[] = [];
  for (const example of spread(textual, count)) {
    if ("prompt" in example) prompts.push(plain(example.prompt));
    else if ("messages" in example) {
      const last = example.messages.map(({ role }) => role).lastIndexOf("assistant");
      const template = await tokenizer.template();
      const { where, tools } = example;
      const options = { addGenerationPrompt: true, where, ...(tools && { variables: { tools } }) };
      prompts.push({ text: template.render(example.messages.slice(0, last), options), rendered: true });
    } else prompts.push(plain(beginning({ ids: tokenizer.tokenizer.encode(example.text) })));
  }
  return usable(prompts);
}

/** Each once, without empty ones. */
const usable = (prompts: readonly SamplePrompt[]): SamplePrompt[] =>
  [...new Map(prompts.map((prompt) => [prompt.text, prompt])).values()].filter(({ text }) => text !== "");

/** `count` of a list, from all over it. */
const spread = <T>(list: readonly T[], count: number): T[] =>
  Array.from({ length: Math.min(count, list.length) }, (_, i) => list[Math.floor((i * list.length) / count)]);

export interface HoldOutOptions<T> {
  /** Whether the list is a running text, whose end is held out; else the seed chooses. */
  readonly running: boolean;
  readonly seed: number;
  /** The class of an example: the share is then held out of each, so that rare ones are measured too. */
  readonly classOf?: ((example: T) => number) | null;
}

/** Parts a list in two, neither of which is empty. */
export function holdOut<T>(
  list: readonly T[],
  share: number,
  { running, seed, classOf }: HoldOutOptions<T>,
): { readonly kept: T[]; readonly held: T[] } {
  if (list.length < 2)
    throw new FinetuneError(
      "there is one example only, so that none can be held out to measure on; give more, or others by --eval",
    );
  const order = list.map((_, i) => i);
  if (!running) {
    const rng = new Rng(seed, 3);
    for (let i = order.length - 1; i > 0; i--) {
      const j = Math.floor(rng.uniform() * (i + 1));
      [order[i], order[j]] = [order[j], order[i]];
    }
  }
  const groups = new Map<number, number[]>();
  for (const i of order) {
    const group = classOf?.(list[i]) ?? 0;
    const members = groups.get(group);
    if (members === undefined) groups.set(group, [i]);
    else members.push(i);
  }
  const heldOf = (group: readonly number[]): number[] => group.slice(group.length - heldCount(group.length, share));
  const held = new Set([...groups.values()].flatMap(heldOf));
  // of classes of one example each nothing is held out
  if (held.size === 0) held.add(order[order.length - 1]);
  return { kept: list.filter((_, i) => !held.has(i)), held: list.filter((_, i) => held.has(i)) };
}

/** One at least, and not all. */
const heldCount = (length: number, share: number): number =>
  Math.min(length - 1, Math.max(1, Math.round(share * length)));

export interface LabelledOptions {
  readonly text: string;
  readonly label: string;
  /** Whether labels are numbers to be predicted. */
  readonly regress: boolean;
  /** The classes that were learnt; by default those of the files. */
  readonly labels?: readonly string[] | null;
}

/** Reads files of texts with classes or numbers. Throws FinetuneError naming file and line, for a class that was not learnt too. */
export async function readTargets(
  paths: readonly string[],
  tokenizer: ModelTokenizer,
  options: LabelledOptions,
): Promise<{ readonly examples: TextTarget[]; readonly labels: readonly string[]; readonly texts: readonly string[] }> {
  const { text, label, regress } = options;
  const read = [];
  for (const path of paths) read.push(...(await readLabelled(path, { text, label })));
  const texts = read.map((example) => example.text);
  if (regress)
    return { examples: tokenizeLabelled(read, tokenizer.tokenizer, { regression: true }), labels: [], texts };
  const labels = options.labels ?? classesOf(read);
  if (labels.length < 2)
    throw new FinetuneError(
      `${paths.join(", ")}: all examples are of the class ${JSON.stringify(labels[0])}; there is nothing to tell apart`,
    );
  return { examples: tokenizeLabelled(read, tokenizer.tokenizer, { classes: labels }), labels, texts };
}
