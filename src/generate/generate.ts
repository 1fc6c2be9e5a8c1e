/** generate: tokens for tokens, text for text, an answer for a conversation. */
import type { Message, Tokenizer } from "../data/index.ts";
import { newTokens } from "./loop.ts";
import type { LanguageModel } from "./readers.ts";
import type { GenerateOptions } from "./sample.ts";
import { type ChatOptions, type TextModel, type TextOptions, TextStream } from "./text.ts";

const isTokens = (
  prompt: readonly number[] | Int32Array | readonly Message[],
): prompt is readonly number[] | Int32Array => prompt.length === 0 || typeof prompt[0] === "number";

/**
 * Continues token ids by up to `maxNewTokens` tokens and gives the new ones. When the text outgrows the model's context, its last
 * `contextLength` tokens are what the model sees. The model is in evaluation mode meanwhile.
 */
export function generate(
  model: LanguageModel,
  ids: readonly number[] | Int32Array,
  options: GenerateOptions,
): Promise<number[]>;
/**
 * Continues a text, or answers in a conversation through the model's chat template, with a model that knows its tokenizer: pieces of text
 * as they come, `for await (const piece of generate(model, "Once", { maxNewTokens: 50 }))`. Nothing is computed before they are
 * asked for; leaving the loop ends the generation. The tokens are those that `generate` gives for the ids of the prompt.
 */
export function generate(model: TextModel, prompt: string, options: TextOptions): TextStream;
export function generate(model: TextModel, messages: readonly Message[], options: ChatOptions): TextStream;
/** With a model that does not know its tokenizer, as one that was made here. */
export function generate(
  model: LanguageModel,
  prompt: string | readonly Message[],
  options: ChatOptions & { readonly tokenizer: Tokenizer },
): TextStream;
export function generate(
  model: LanguageModel,
  prompt: string | readonly number[] | Int32Array | readonly Message[],
  options: ChatOptions,
): Promise<number[]> | TextStream {
  if (typeof prompt === "string" || !isTokens(prompt)) return new TextStream(model, prompt, options);
  return tokens(model, prompt, options);
}

async function tokens(model: LanguageModel, ids: readonly number[] | Int32Array, options: GenerateOptions) {
  const fresh: number[] = [];
  for await (const token of newTokens(model, ids, options)) fresh.push(token);
  return fresh;
}
