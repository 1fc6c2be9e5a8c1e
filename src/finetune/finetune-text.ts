/**
 * finetune for a model that knows its text: the data are files or plain examples, which become tokens by the model's own tokenizer and chat
 * template. The training itself is `finetune.ts`.
 */

import type { Message } from "../data/chat-template.ts";
import type { Source } from "../data/source.ts";
import type { TextModel } from "../generate/index.ts";
import type { Module } from "../nn/index.ts";
import { conversations } from "./conversations.ts";
import { FinetuneError } from "./errors.ts";
import { exampleOf, readExamples, type TextualExample } from "./examples.ts";
import {
  type FinetuneOptions,
  type FinetuneResult,
  finetune as finetuneExamples,
  type SampleOptions,
} from "./finetune.ts";
import { tokenizeExamples } from "./supervised.ts";
import { type LanguageTaskOptions, languageTask, type TrainableLanguageModel } from "./tasks.ts";
import type { TokenBatch, TokenExample } from "./token-batches.ts";

/** An example as JSON lines have it: a text, a prompt with its completion, or a conversation. `where` is what errors call it. */
export type PlainExample = { readonly where?: string } & (
  | { readonly text: string }
  | { readonly prompt: string; readonly completion: string }
  | { readonly messages: readonly Message[]; readonly tools?: readonly unknown[] }
);

/** A file (.json, .jsonl, .parquet, .csv, .tsv, .txt, .md; a path, an address, a Blob), or examples. */
export type TextData = Source | readonly PlainExample[];

export interface TextFinetuneOptions
  extends Omit<FinetuneOptions<Module, TokenExample, TokenBatch>, "data" | "evaluation" | "task" | "samples">,
    LanguageTaskOptions {
  /** What to learn from. */
  readonly data: TextData;
  /** What to measure on, before and after. It should have nothing in common with `data`. */
  readonly evaluation: TextData;
  /** Which of the assistant's turns are learnt. Default: "all". */
  readonly turns?: "all" | "last";
  /** Prompts to continue before and after. */
  readonly samples?: readonly string[] | Omit<SampleOptions, "tokenizer">;
}

async function examplesOf(data: TextData, name: string): Promise<readonly TextualExample[]> {
  if (!Array.isArray(data)) return readExamples(data as Source);
  return (data as readonly PlainExample[]).map((example, i) => exampleOf(example, example.where ?? `${name}[${i}]`));
}

/** The examples in tokens: with the token that the model expects before a text, and the one that ends it behind. */
function tokensOf(
  model: TextModel,
  examples: readonly TextualExample[],
  { maxLength = model.contextLength, turns }: TextFinetuneOptions,
): TokenExample[] {
  const { tokenizer, stopTokens, chatTemplate } = model;
  const first = tokenizer.encode("")[0]; // what stands before even an empty text
  return tokenizeExamples(examples, tokenizer, {
    ...(first !== undefined && !stopTokens.includes(first) && { bosId: first }),
    ...(stopTokens.length > 0 && { eosId: stopTokens[0] }),
    ...(chatTemplate !== null && { template: chatTemplate }),
    ...(turns && { turns }),
    windows: maxLength,
  });
}

const isText = (data: unknown): boolean =>
  !Array.isArray(data) ||
  data.some((example) => ["text", "prompt", ...conversations].some((field) => Object.hasOwn(Object(example), field)));

/**
 * Fine-tunes a language model that knows its tokenizer, as `fromPretrained` gives, on texts, prompts with completions, or
 * conversations; what is learnt of each is as `tokenizeExamples` says. It is trained in place: measured on `evaluation`, trained by AdamW where
 * gradients are collected (an adapter, a part, all), measured again. Throws FinetuneError for options and examples that can't be used,
 * FileError for files, and what fit throws (DivergedError).
 */
export function finetune<M extends TextModel & TrainableLanguageModel>(
  model: M,
  options: TextFinetuneOptions,
): Promise<FinetuneResult>;
/** Fine-tunes any model on examples of its task; without one, a language model on tokens. */
export function finetune<M extends Module, E, B>(model: M, options: FinetuneOptions<M, E, B>): Promise<FinetuneResult>;
export async function finetune(
  model: Module,
  options: TextFinetuneOptions | FinetuneOptions<Module, unknown, unknown>,
): Promise<FinetuneResult> {
  const { data, evaluation } = options;
  if ("task" in options || data === undefined || evaluation === undefined || !(isText(data) || isText(evaluation)))
    return finetuneExamples(model, options as FinetuneOptions<Module, unknown, unknown>);
  const text = model as TextModel & TrainableLanguageModel;
  if (text.tokenizer === undefined)
    throw new FinetuneError(
      `finetune: ${model.constructor.name} does not know its tokenizer, so that texts are nothing to it; load it by fromPretrained, or give examples in tokens (tokenizeExamples)`,
    );
  return finetuneText(text, options as TextFinetuneOptions);
}

async function finetuneText(
  model: TextModel & TrainableLanguageModel,
  options: TextFinetuneOptions,
): Promise<FinetuneResult> {
  const { data, evaluation, turns: _, samples, maxLength, packing, ...rest } = options;
  const [train, test] = [await examplesOf(data, "data"), await examplesOf(evaluation, "evaluation")];
  const task = languageTask({
    ...(maxLength !== undefined && { maxLength }),
    ...(packing !== undefined && { packing }),
  });
  const named = Array.isArray(samples)
    ? { prompts: samples as readonly string[] }
    : (samples as SampleOptions | undefined);
  return finetuneExamples<TextModel & TrainableLanguageModel, TokenExample, TokenBatch>(model, {
    ...rest,
    data: tokensOf(model, train, options),
    evaluation: tokensOf(model, test, options),
    task,
    ...(named && { samples: { stopTokens: model.stopTokens, ...named, tokenizer: model.tokenizer } }),
  });
}
