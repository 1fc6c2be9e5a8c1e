/** Several texts at once: rows of one batch, whose unlike lengths are filled up in front, so that all go on at one position. */
import { NablaError } from "../core/errors.ts";
import { Rng } from "../core/rng.ts";
import { inEvaluation } from "../nn/module.ts";
import { noGrad, type Tensor, tensor } from "../tensor/index.ts";
import { type CachedLanguageModel, readPieces, sizesFor } from "./readers.ts";
import { checkSampling, type GenerateOptions, penalizeRepetition, sampleLogits } from "./sample.ts";

export interface BatchOptions extends Omit<GenerateOptions, "onToken"> {
  /** Called with each new token as it comes and the row that it is of; false ends that row. */
  readonly onToken?: (token: number, row: number) => unknown;
}

/**
 * Continues each prompt by up to `maxNewTokens` tokens and gives the new ones of each. The tokens are those that `generate` gives for
 * each prompt alone (of row i with stream i of the seed's numbers, of row 0 the same). The longest prompt and what is new must fit
 * into the model's context.
 */
export async function generateBatch(
  model: CachedLanguageModel,
  prompts: readonly (readonly number[] | Int32Array)[],
  options: BatchOptions,
): Promise<number[][]> {
  const { maxNewTokens, seed = 0, stopTokens = [], repetitionPenalty = 1, onToken } = options;
  checkSampling(options);
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
  return inEvaluation(model, async () => {
    const padding = texts.map((text) => longest - text.length);
    const { capacity, pieceLength } = sizesFor(longest + maxNewTokens, contextLength);
    const cache = model.createCache({ batchSize: prompts.length, capacity, padding });
    const rows = texts.map((text, row) => [...new Array<number>(padding[row]).fill(0), ...text]);
    let logits = await readPieces(model, cache, rows, pieceLength);
    for (;;) {
      const next = await draw(logits);
      if (ended.every(Boolean)) return fresh;
      const ids = tensor(next, { shape: [next.length, 1] });
      logits = noGrad(() => model.decode(ids, cache));
    }
  });

  /** The next token of each row; of a row that has ended its last one again, which nobody sees. */
  async function draw(logits: Tensor): Promise<Int32Array> {
    const data = await logits.data();
    const vocabulary = data.length / prompts.length;
    return Int32Array.from(prompts, (_, row) => {
      const text = texts[row];
      if (ended[row]) return text[text.length - 1];
      const own = data.subarray(row * vocabulary, (row + 1) * vocabulary);
      const token = sampleLogits(penalizeRepetition(own, text, repetitionPenalty), rngs[row], options);
      text.push(token);
      fresh[row].push(token);
      const stops = onToken?.(token, row) === false || stopTokens.includes(token);
      ended[row] = stops || fresh[row].length === maxNewTokens;
      return token;
    });
  }
}
