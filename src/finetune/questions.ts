/**
 * Asking a language model: which of several answers it finds likeliest, and whether it writes the right one. Both give columns, one number an
 * example, beside which those of `measure` may stand, so that any two models can be compared.
 */
import { type GenerateOptions, generate, type LanguageModel } from "../generate/index.ts";
import { FinetuneError } from "./errors.ts";
import type { ChoiceExample, TextualExample } from "./examples.ts";
import { measure } from "./measure.ts";
import type { Columns } from "./metrics.ts";
import { encodeAfter, encodePart, type TextEncoder } from "./supervised.ts";
import { languageTask, type TrainableLanguageModel } from "./tasks.ts";
import { ignored, type TokenExample } from "./token-batches.ts";

export interface MultipleChoiceOptions {
  readonly tokenizer: TextEncoder;
  /** Put before every question. */
  readonly bosId?: number;
  /** Choices that are weighed at once. Default: 8. */
  readonly batch?: number;
}

/**
 * Which choice a model finds likeliest behind each question, by the sum of its tokens' logarithmic probabilities, and by that sum over the choice's
 * length in characters, which does not favour the short (lm-evaluation-harness's acc and acc_norm). Columns: `choice` and `choiceNormalized`, 1 where
 * it is the right one; `chosen` and `chosenNormalized`, its number. A question that is too long loses its beginning. Throws FinetuneError where a
 * choice alone is longer than the model sees.
 */
export async function multipleChoice(
  model: TrainableLanguageModel,
  examples: readonly ChoiceExample[],
  options: MultipleChoiceOptions,
): Promise<Columns> {
  const { tokenizer, bosId, batch = 8 } = options;
  const rows = examples.flatMap((example) => choiceRows(example, model.contextLength, tokenizer, bosId));
  const { loss } = (await measure(model, languageTask(), rows, { batch })).examples;
  const column = (): Float64Array => new Float64Array(examples.length);
  const [choice, choiceNormalized, chosen, chosenNormalized] = [column(), column(), column(), column()];
  let at = 0;
  examples.forEach(({ choices, answer }, i) => {
    const losses = loss.subarray(at, (at += choices.length));
    chosen[i] = least(losses);
    chosenNormalized[i] = least(losses.map((x, c) => x / [...choices[c]].length));
    choice[i] = Number(chosen[i] === answer);
    choiceNormalized[i] = Number(chosenNormalized[i] === answer);
  });
  return { choice, choiceNormalized, chosen, chosenNormalized };
}

/** The place of the smallest, of equals the first. */
const least = (values: Float64Array): number => values.indexOf(values.reduce((a, b) => Math.min(a, b)));

/** A question with each of its choices; of the tokens only the choice's count. */
function choiceRows(
  { where, prompt, choices }: ChoiceExample,
  contextLength: number,
  tokenizer: TextEncoder,
  bosId: number | undefined,
): TokenExample[] {
  // white space at the question's end belongs to the choice, as lm-evaluation-harness has it: " yes" is one token
  const question = prompt.trimEnd() === "" ? prompt : prompt.trimEnd();
  const space = prompt.slice(question.length);
  const asked = [...(bosId === undefined ? [] : [bosId]), ...encodePart(tokenizer, question, where)];
  if (asked.length === 0)
    throw new FinetuneError(`${where}: "prompt" has no tokens; give a text, or bosId to begin with`);
  return choices.map((choice, c) => {
    const tokens = encodeAfter(tokenizer, question, space + choice, where);
    const room = contextLength + 1 - tokens.length; // the last token is never read, only judged
    if (tokens.length === 0 || room < 1)
      throw new FinetuneError(
        `${where}: "choices"[${c}] has ${tokens.length} tokens; a model that sees ${contextLength} weighs 1 … ${contextLength}`,
      );
    const before = asked.slice(-room);
    return { ids: [...before, ...tokens], labels: [...before.map(() => ignored), ...tokens] };
  });
}

export interface ExactMatchOptions {
  readonly tokenizer: TextEncoder & { decode(ids: ArrayLike<number>): string };
  /** Put before every prompt. */
  readonly bosId?: number;
  /** Tokens after which an answer is over; they are no part of it. */
  readonly stopTokens?: readonly number[];
  /** The most tokens of an answer. Default: 8 more than the expected answer has. */
  readonly maxNewTokens?: number;
  /** What of a text is compared. Default: all but white space around it. */
  readonly normalize?: (text: string) => string;
}

/** The answers that a model writes, and in the column `exact` 1 where one is the expected. */
export interface ExactMatches {
  readonly columns: Columns;
  readonly answers: readonly string[];
}

/**
 * Whether a model's likeliest tokens behind each prompt are the completion. Where no token says that the answer is over, as much of it counts as the
 * completion is long. Throws FinetuneError for examples without prompt and completion.
 */
export async function exactMatch(
  model: LanguageModel,
  examples: readonly TextualExample[],
  options: ExactMatchOptions,
): Promise<ExactMatches> {
  const { tokenizer, bosId, stopTokens = [], normalize = (text) => text.trim() } = options;
  const exact = new Float64Array(examples.length);
  const answers: string[] = [];
  for (const [i, example] of examples.entries()) {
    if (!("prompt" in example))
      throw new FinetuneError(`${example.where}: exact match needs a prompt and a completion`);
    const { where, prompt, completion } = example;
    const ids = [...(bosId === undefined ? [] : [bosId]), ...encodePart(tokenizer, prompt, where)];
    const expected = encodeAfter(tokenizer, prompt, completion, where).length;
    const settings: GenerateOptions = {
      maxNewTokens: options.maxNewTokens ?? (stopTokens.length > 0 ? expected + 8 : expected),
      temperature: 0,
      stopTokens,
    };
    const made = await generate(model, ids, settings);
    const answer = tokenizer.decode(stopTokens.includes(made[made.length - 1]) ? made.slice(0, -1) : made);
    answers.push(answer);
    exact[i] = Number(normalize(answer) === normalize(completion));
  }
  return { columns: { exact }, answers };
}
