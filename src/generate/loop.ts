/**
 * The loop of generation: logits, a token, the next logits. A model that can keep keys and values reads the prompt in pieces of one length
 * and then computes one position a token; another computes its whole window again. Sizes are fixed and positions are
 * runtime numbers either way, so the number of programs does not grow with the text.
 */
import { NablaError } from "../core/errors.ts";
import { Rng } from "../core/rng.ts";
import type { Module } from "../nn/index.ts";
import { cacheReader, hasCache, type LanguageModel, windowReader } from "./readers.ts";
import { checkSampling, type GenerateOptions, penalizeRepetition, sampleLogits } from "./sample.ts";

/** Runs steps with the model in evaluation mode. Between them each module is in the mode that it was in, whatever becomes of the loop. */
export function evaluationSteps(model: Module): <T>(step: () => Promise<T>) => Promise<T> {
  const modules = model.modules();
  return async (step) => {
    const modes = modules.map(({ training }) => training);
    for (const module of modules) module.training = false;
    try {
      return await step();
    } finally {
      modules.forEach((module, i) => {
        module.training = modes[i];
      });
    }
  };
}

export function checkGeneration(name: string, { maxNewTokens, ...options }: Omit<GenerateOptions, "onToken">): void {
  checkSampling(options);
  if (!(Number.isInteger(maxNewTokens) && maxNewTokens >= 0))
    throw new NablaError(`${name}: maxNewTokens must be a whole number ≥ 0, got ${maxNewTokens}`);
}

/** The new tokens one by one. Leaving the loop lets go of all that it holds. Throws the signal's reason. */
export async function* newTokens(
  model: LanguageModel,
  ids: readonly number[] | Int32Array,
  options: GenerateOptions,
): AsyncGenerator<number, void, undefined> {
  const { maxNewTokens, seed = 0, stopTokens = [], repetitionPenalty = 1, onToken, signal } = options;
  checkGeneration("generate", options);
  if (ids.length === 0) throw new NablaError("generate: the prompt is empty; give at least one token");
  const rng = new Rng(seed);
  const text = Array.from(ids);
  const inEvaluation = evaluationSteps(model);
  const read = hasCache(model) ? cacheReader(model, text.length + maxNewTokens) : windowReader(model);
  for (let count = 0; count < maxNewTokens; count++) {
    signal?.throwIfAborted();
    const logits = await inEvaluation(async () => (await read(text)).data());
    const token = sampleLogits(penalizeRepetition(logits, text, repetitionPenalty), rng, options);
    text.push(token);
    const goesOn = onToken?.(token) !== false;
    yield token;
    if (!goesOn || stopTokens.includes(token)) return;
  }
}
