/**
 * The loop of generation: logits, a token, the next logits. A model that can keep keys and values reads the prompt in pieces of one length
 * and then computes one position a token; another computes its whole window again. Sizes are fixed and positions are
 * runtime numbers either way, so the number of programs does not grow with the text.
 */
import { NablaError } from "../core/errors.ts";
import { Rng } from "../core/rng.ts";
import type { StepKind } from "../models/index.ts";
import type { Module } from "../nn/index.ts";
import { cacheReader, hasCache, type LanguageModel, stepKind, windowReader } from "./readers.ts";
import { checkSampling, type GenerateOptions, penalizeRepetition, sampleLogits } from "./sample.ts";

/** The models that are in evaluation mode for steps at this moment: how many, and the modes of before. */
const borrowed = new WeakMap<Module, { steps: number; readonly modes: readonly boolean[] }>();

/**
 * Runs steps with the model in evaluation mode. Between them each module is in the mode that it was in, whatever becomes of the loop, and
 * also where several loops go on at once.
 */
export function evaluationSteps(model: Module): <T>(step: () => Promise<T>) => Promise<T> {
  const modules = model.modules();
  return async (step) => {
    const state = borrowed.get(model) ?? { steps: 0, modes: modules.map(({ training }) => training) };
    borrowed.set(model, state);
    state.steps++;
    for (const module of modules) module.training = false;
    try {
      return await step();
    } finally {
      if (--state.steps === 0) {
        borrowed.delete(model);
        modules.forEach((module, i) => {
          module.training = state.modes[i];
        });
      }
    }
  };
}

export function checkGeneration(name: string, { maxNewTokens, ...options }: Omit<GenerateOptions, "onToken">): void {
  checkSampling(options);
  if (!(Number.isInteger(maxNewTokens) && maxNewTokens >= 0))
    throw new NablaError(`${name}: maxNewTokens must be a whole number ≥ 0, got ${maxNewTokens}`);
}

/** The token that follows `text`, of what the step after it gave. */
export function nextToken(
  kind: StepKind,
  result: ArrayLike<number>,
  text: readonly number[],
  rng: Rng,
  options: Omit<GenerateOptions, "onToken">,
): number {
  if (kind === "decode")
    return sampleLogits(penalizeRepetition(result, text, options.repetitionPenalty ?? 1), rng, options);
  if (result[0] >= 0) return result[0];
  throw new NablaError("generate: the model gave NaN; its weights are damaged or diverged");
}

/** The new tokens one by one. Leaving the loop lets go of all that it holds. Throws the signal's reason. */
export async function* newTokens(
  model: LanguageModel,
  ids: readonly number[] | Int32Array,
  options: GenerateOptions,
): AsyncGenerator<number, void, undefined> {
  const { maxNewTokens, seed = 0, stopTokens = [], onToken, signal } = options;
  checkGeneration("generate", options);
  if (ids.length === 0) throw new NablaError("generate: the prompt is empty; give at least one token");
  const rng = new Rng(seed);
  const text = Array.from(ids);
  const inEvaluation = evaluationSteps(model);
  const kind = hasCache(model) ? stepKind(model, options) : "decode";
  const read = hasCache(model) ? cacheReader(model, text.length + maxNewTokens, kind) : windowReader(model);
  for (let count = 0; count < maxNewTokens; count++) {
    signal?.throwIfAborted();
    const result = await inEvaluation(async () => (await read(text)).data());
    const token = nextToken(kind, result, text, rng, options);
    text.push(token);
    const goesOn = onToken?.(token) !== false;
    yield token;
    if (!goesOn || stopTokens.includes(token)) return;
  }
}
