/** Several texts at once: rows of one batch, whose unlike lengths are filled up in front, so that all go on at one position. */
import type { TypedArray } from "../core/dtype.ts";
import { NablaError } from "../core/errors.ts";
import { Rng } from "../core/rng.ts";
import { noGrad, type Tensor, tensor } from "../tensor/index.ts";
import { checkGeneration, evaluationSteps, nextToken } from "./loop.ts";
import { type CachedLanguageModel, readPieces, sizesFor, stepKind, stepsOf } from "./readers.ts";
import type { GenerateOptions } from "./sample.ts";
import {
  type ChatOptions,
  goneBefore,
  Pieces,
  type Prompt,
  promptIds,
  type TextModel,
  tokenizerOf,
  withDefaults,
} from "./text.ts";

export interface BatchOptions extends Omit<GenerateOptions, "onToken"> {
  /** Called with each new token as it comes and the row that it is of; false ends that row. */
  readonly onToken?: (token: number, row: number) => unknown;
}

type Ids = readonly number[] | Int32Array;

const isIds = (prompt: Ids | Prompt): prompt is Ids =>
  typeof prompt !== "string" && (prompt.length === 0 || typeof prompt[0] === "number");

/**
 * Continues each prompt by up to `maxNewTokens` tokens and gives what is new of each. The tokens are those that `generate` gives for
 * each prompt alone (of row i with stream i of the seed's numbers, of row 0 the same). The longest prompt and what is new must fit
 * into the model's context. Throws the signal's reason.
 */
export function generateBatch(
  model: CachedLanguageModel,
  prompts: readonly Ids[],
  options: BatchOptions,
): Promise<number[][]>;
/** Texts for texts or conversations, with a model that knows its tokenizer; as `generate` does for each alone. */
export function generateBatch(
  model: CachedLanguageModel & TextModel,
  prompts: readonly Prompt[],
  options: Omit<ChatOptions, "onToken">,
): Promise<string[]>;
export function generateBatch(
  model: CachedLanguageModel,
  prompts: readonly (Ids | Prompt)[],
  options: BatchOptions & Omit<ChatOptions, "onToken">,
): Promise<number[][] | string[]> {
  const ids = prompts.filter(isIds);
  if (ids.length === prompts.length) return tokensOfRows(model, ids, options);
  if (ids.length > 0) throw new NablaError("generateBatch: prompts must be all texts or all token ids");
  return textsOfRows(model as CachedLanguageModel & TextModel, prompts as readonly Prompt[], options);
}

async function textsOfRows(
  model: CachedLanguageModel & TextModel,
  prompts: readonly Prompt[],
  given: Omit<ChatOptions, "onToken">,
): Promise<string[]> {
  const options = withDefaults(model, given);
  const tokenizer = tokenizerOf(model, options);
  const ids = prompts.map((prompt) => promptIds(model, prompt, given));
  const rows = prompts.map((prompt, row) => new Pieces(tokenizer, options, goneBefore(prompt, ids[row])));
  const texts = prompts.map(() => "");
  const onToken = (token: number, row: number): boolean => {
    texts[row] += rows[row].push(token);
    return !rows[row].isDone;
  };
  await tokensOfRows(model, ids, { ...options, onToken });
  return texts.map((text, row) => text + rows[row].end());
}

async function tokensOfRows(
  model: CachedLanguageModel,
  prompts: readonly Ids[],
  options: BatchOptions,
): Promise<number[][]> {
  const { maxNewTokens, seed = 0, stopTokens = [], onToken, signal } = options;
  checkGeneration("generateBatch", options);
  const empty = prompts.findIndex((prompt) => prompt.length === 0);
  if (empty >= 0) throw new NablaError(`generateBatch: prompt ${empty} is empty; give at least one token`);
  const longest = Math.max(0, ...prompts.map((prompt) => prompt.length));
  const { contextLength } = model;
  if (longest + maxNewTokens > contextLength)
    throw new NablaError(
      `generateBatch: ${longest} tokens of the longest prompt and ${maxNewTokens} new ones do not fit into a context of ${contextLength}`,
    );
  const fresh: number[][] = prompts.map(() => []);
  if (prompts.length === 0 || maxNewTokens === 0) return fresh;
  const texts = prompts.map((prompt) => Array.from(prompt));
  const rngs = prompts.map((_, row) => new Rng(seed, row));
  const ended = prompts.map(() => false);
  const inEvaluation = evaluationSteps(model);
  const kind = stepKind(model, options);
  const step = stepsOf(model, kind);
  const padding = texts.map((text) => longest - text.length);
  const { capacity, pieceLengths } = sizesFor(longest + maxNewTokens, contextLength, prompts.length);
  const cache = model.createCache({ batchSize: prompts.length, capacity, padding });
  const readAll = (): Promise<Tensor> => {
    const length = longest + Math.max(...fresh.map((row) => row.length));
    // a row that has ended is filled up behind its text, where nobody looks
    const rows = texts.map((text, row) => [...new Array<number>(padding[row]).fill(0), ...text]);
    for (const row of rows) row.push(...new Array<number>(length - row.length).fill(0));
    return readPieces(model, cache, rows, pieceLengths, kind);
  };
  signal?.throwIfAborted();
  let result = await inEvaluation(readAll);
  for (;;) {
    const next = draw(await result.data());
    if (ended.every(Boolean)) return fresh;
    signal?.throwIfAborted();
    if (model.readsAgain?.(cache.length, cache.length + 1)) {
      cache.truncate(0);
      result = await inEvaluation(readAll);
      continue;
    }
    const ids = tensor(next, { shape: [next.length, 1] });
    result = await inEvaluation(async () => noGrad(() => step(ids, cache)));
  }

  /** The next token of each row, from its logits or as it was chosen; of a row that has ended its last one again, which nobody sees. */
  function draw(data: TypedArray): Int32Array {
    const width = data.length / prompts.length;
    return Int32Array.from(prompts, (_, row) => {
      const text = texts[row];
      if (ended[row]) return text[text.length - 1];
      const own = data.subarray(row * width, (row + 1) * width);
      const token = nextToken(kind, own, text, rngs[row], options);
      text.push(token);
      fresh[row].push(token);
      const stops = onToken?.(token, row) === false || stopTokens.includes(token);
      ended[row] = stops || fresh[row].length === maxNewTokens;
      return token;
    });
  }
}
