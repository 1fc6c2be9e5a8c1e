/**
 * Textual examples as tokens with what is to be learnt of them: all of a text, the completion of a prompt, the assistant's turns of
 * a conversation. Batches are made of them in `token-batches.ts`.
 */
import type { ChatPart, ChatTemplate } from "../data/chat-template.ts";
import { FinetuneError } from "./errors.ts";
import { type LabelledExample, labelNumbers, type TextualExample } from "./examples.ts";
import type { TextTarget } from "./text-task.ts";
import { ignored, type TokenExample } from "./token-batches.ts";

/** What is needed of a tokenizer. */
export interface TextEncoder {
  /** The ids of a text, with the tokens that the model expects around it unless `addSpecialTokens` is false. */
  encode(text: string, options?: { readonly addSpecialTokens?: boolean }): ArrayLike<number>;
}

export interface TokenizeOptions {
  /** Put before texts and prompts, and not learnt. Conversations begin as their template says. */
  readonly bosId?: number;
  /** Put after texts and completions, so that the model learns to end. Conversations end as their template says. */
  readonly eosId?: number;
  /** For examples with messages. */
  readonly template?: ChatTemplate;
  /** Which of the assistant's turns are learnt. Default: "all". */
  readonly turns?: "all" | "last";
  /** Texts of more tokens than this are cut into several examples, each beginning with the last token of the one before. */
  readonly windows?: number;
}

/** Parts of an example: text, and whether it is learnt. */
function partsOf(example: TextualExample, { template, turns }: TokenizeOptions): readonly ChatPart[] {
  if ("text" in example) return [{ text: example.text, learnt: true }];
  if ("prompt" in example)
    return [
      { text: example.prompt, learnt: false },
      { text: example.completion, learnt: true },
    ];
  if (template === undefined)
    throw new FinetuneError(
      `${example.where}: a conversation needs the model's chat template; give template, or examples of prompt and completion`,
    );
  const { messages, tools, where } = example;
  for (const [field, there] of [
    ["tools", tools !== undefined],
    ["tool_calls", messages.some((message) => message["tool_calls"])],
  ] as const)
    if (there && !template.source.includes(field))
      throw new FinetuneError(
        `${where}: the model's chat template does not write "${field}"; leave them out of the data`,
      );
  return template.parts(messages, { where, ...(tools && { variables: { tools } }), ...(turns && { turns }) });
}

/**
 * Examples as tokens, without special tokens of the tokenizer's own. A prompt has the tokens with which generation will meet it, whatever the
 * completion begins with; what follows has those that it has in the whole text (see encodeAfter). Throws FinetuneError naming the example; errors of
 * the tokenizer are told with the example too.
 */
export function tokenizeExamples(
  examples: readonly TextualExample[],
  tokenizer: TextEncoder,
  options: TokenizeOptions = {},
): TokenExample[] {
  const { bosId, eosId, windows } = options;
  if (windows !== undefined && (!Number.isInteger(windows) || windows < 1))
    throw new FinetuneError(`tokenizeExamples: windows must be a whole number ≥ 1, got ${windows}`);
  return examples.flatMap((example) => {
    const begins = bosId !== undefined && !("messages" in example);
    const ids: number[] = begins ? [bosId] : [];
    const labels: number[] = ids.map(() => ignored);
    let before = "";
    for (const { text, learnt } of partsOf(example, options)) {
      const tokens = encodeAfter(tokenizer, before, text, example.where);
      if (text !== "") before = text;
      for (const token of tokens) {
        ids.push(token);
        labels.push(learnt ? token : ignored);
      }
    }
    if (eosId !== undefined && !("messages" in example)) {
      ids.push(eosId);
      labels.push(eosId);
    }
    return "text" in example && windows !== undefined ? cut(ids, labels, windows) : [{ ids, labels }];
  });
}

/** The ids of a part of an example, with nothing around it. Throws FinetuneError naming the example. */
export const encodePart = (tokenizer: TextEncoder, text: string, where: string): number[] =>
  encoded(tokenizer, text, where, { addSpecialTokens: false });

/**
 * The ids of a text that goes on where another ends: what it adds to that one's ids, as TRL finds where a completion begins. SentencePiece tokenizers
 * put a space before what they take for a text's beginning, which must not come in between. Where one token would reach over the boundary, the
 * text is encoded behind a line's end instead. Throws FinetuneError naming the example.
 */
export function encodeAfter(tokenizer: TextEncoder, before: string, text: string, where: string): number[] {
  for (const anchor of [before, "\n"]) {
    if (anchor === "") break;
    const [head, whole] = [encodePart(tokenizer, anchor, where), encodePart(tokenizer, anchor + text, where)];
    if (head.every((id, i) => whole[i] === id)) return whole.slice(head.length);
  }
  return encodePart(tokenizer, text, where);
}

function encoded(
  tokenizer: TextEncoder,
  text: string,
  where: string,
  options: { readonly addSpecialTokens?: boolean } = {},
): number[] {
  try {
    return Array.from(tokenizer.encode(text, options));
  } catch (error) {
    throw new FinetuneError(`${where}: ${(error as Error).message}`, { cause: error });
  }
}

/** Windows of `length` inputs: each target stands in one of them. */
function cut(ids: readonly number[], labels: readonly number[], length: number): TokenExample[] {
  if (ids.length <= length + 1) return [{ ids, labels }];
  const out: TokenExample[] = [];
  for (let at = 0; at < ids.length - 1; at += length)
    out.push({ ids: ids.slice(at, at + length + 1), labels: labels.slice(at, at + length + 1) });
  return out;
}

/** Which number each label is: that of a class, or its own. */
export type LabelMeaning = { readonly classes: readonly string[] } | { readonly regression: true };

/** The number that each label says. Throws FinetuneError naming file and line. */
export function labelValues(examples: readonly LabelledExample[]): Float64Array {
  return Float64Array.from(examples, ({ label, where }) => {
    const value = label.trim() === "" ? Number.NaN : Number(label);
    if (!Number.isFinite(value))
      throw new FinetuneError(`${where}: the label ${JSON.stringify(label)} is not a number, which regression needs`);
    return value;
  });
}

/**
 * Texts with labels as tokens with numbers, for `textTask`. The tokenizer puts the tokens around a text that the model expects. Throws
 * FinetuneError naming file and line for a class that was not learnt, a value that is no number, and a text without tokens.
 */
export function tokenizeLabelled(
  examples: readonly LabelledExample[],
  tokenizer: TextEncoder,
  meaning: LabelMeaning,
): TextTarget[] {
  const targets = "classes" in meaning ? labelNumbers(examples, meaning.classes) : labelValues(examples);
  return examples.map(({ text, where }, i) => {
    const ids = encoded(tokenizer, text, where);
    if (ids.length === 0) throw new FinetuneError(`${where}: the text has no tokens`);
    return { ids, target: targets[i] };
  });
}
