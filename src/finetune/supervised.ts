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
  /** Put before every example, and not learnt. */
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
  return template.parts(example.messages, { where: example.where, ...(turns && { turns }) });
}

/**
 * Examples as tokens. Parts are encoded one by one, without special tokens of the tokenizer's own, as generation will meet them: a prompt ends where it ends, whatever the completion begins
 * with. Throws FinetuneError naming the example; errors of the tokenizer are told with the example too.
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
    const ids: number[] = bosId === undefined ? [] : [bosId];
    const labels: number[] = bosId === undefined ? [] : [ignored];
    for (const { text, learnt } of partsOf(example, options)) {
      const tokens = encodePart(tokenizer, text, example.where);
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
