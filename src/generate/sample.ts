/** Sampling: which token comes next, from the logits of all. */
import { NablaError } from "../core/errors.ts";
import type { Rng } from "../core/rng.ts";
import { Ranking } from "./ranking.ts";

export interface SamplingOptions {
  /** Below 1 the likely become likelier; 0 takes the likeliest. Default: 1. */
  readonly temperature?: number;
  /** Only the k likeliest can be drawn. Default: all. */
  readonly topK?: number;
  /** Only the likeliest that together have this probability can be drawn (Holtzman et al. 2020). Default: 1. */
  readonly topP?: number;
  /** Only what is at least this often as probable as the likeliest can be drawn (Nguyen et al. 2024, min-p). Default: 0. */
  readonly minP?: number;
}

export interface GenerateOptions extends SamplingOptions {
  readonly maxNewTokens: number;
  /** Above 1, tokens that the text already holds become less likely, prompt included (Keskar et al. 2019, CTRL). Default: 1. */
  readonly repetitionPenalty?: number;
  /** The same seed gives the same text. Default: 0. */
  readonly seed?: number;
  /** Generation ends after one of these; it is the last token given. */
  readonly stopTokens?: readonly number[];
  /** Called with each new token as it comes; false ends the generation. */
  readonly onToken?: (token: number) => unknown;
  /** Ends the generation before the next token; its reason is thrown. */
  readonly signal?: AbortSignal;
}

export function checkSampling({ temperature = 1, topK, topP = 1, minP = 0 }: SamplingOptions): void {
  if (!(temperature >= 0)) throw new NablaError(`generate: temperature must not be negative, got ${temperature}`);
  if (topK !== undefined && !(Number.isInteger(topK) && topK >= 1))
    throw new NablaError(`generate: topK must be a whole number ≥ 1, got ${topK}`);
  if (!(topP > 0 && topP <= 1)) throw new NablaError(`generate: topP must be above 0 and at most 1, got ${topP}`);
  if (!(minP >= 0 && minP <= 1)) throw new NablaError(`generate: minP must be between 0 and 1, got ${minP}`);
}

/** Logits in which those of `seen` tokens are divided by the penalty where they are positive, else multiplied. */
export function penalizeRepetition(
  logits: ArrayLike<number>,
  seen: Iterable<number>,
  penalty: number,
): ArrayLike<number> {
  if (!(penalty > 0)) throw new NablaError(`generate: repetitionPenalty must be above 0, got ${penalty}`);
  if (penalty === 1) return logits;
  const out = new Float64Array(logits);
  for (const token of new Set(seen)) out[token] = out[token] > 0 ? out[token] / penalty : out[token] * penalty;
  return out;
}

/** Memory that draws share: a vocabulary's worth of fresh pages costs more than the draw. */
const shared = { values: new Float64Array(0), weights: new Float64Array(0) };

function room(name: keyof typeof shared, length: number): Float64Array {
  if (shared[name].length < length) shared[name] = new Float64Array(length);
  return shared[name].subarray(0, length);
}

/** The logits in one type, so that loops over them are compiled for it; valid until the next call. */
function doubles(logits: ArrayLike<number>): Float64Array {
  if (logits instanceof Float64Array) return logits;
  const values = room("values", logits.length);
  values.set(logits);
  return values;
}

/** Draws a class from logits. Of equal logits the earlier one counts as likelier. */
export function sampleLogits(logits: ArrayLike<number>, rng: Rng, options: SamplingOptions = {}): number {
  checkSampling(options);
  const { temperature = 1, topK = logits.length, topP = 1, minP = 0 } = options;
  const values = doubles(logits);
  const likeliest = argmax(values);
  if (temperature === 0) return likeliest;
  const top = values[likeliest];
  if (topK >= values.length && topP === 1 && minP === 0) return drawOfAll(values, top, temperature, rng);
  const ranking = new Ranking(values);
  const weight = (token: number): number => Math.exp((values[token] - top) / temperature);
  /** The weights of the `count` likeliest, all together. */
  const sum = (count: number): number => {
    if (count === values.length) return weighAll(values, top, temperature);
    let total = 0;
    for (let k = 0; k < count; k++) total += weight(ranking.at(k));
    return total;
  };
  let count = Math.min(topK, values.length);
  let total = topP < 1 || minP === 0 ? sum(count) : 0;
  if (topP < 1) {
    let [seen, kept] = [0, 0];
    while (kept < count && seen < topP * total) seen += weight(ranking.at(kept++));
    [count, total] = [kept, seen];
  }
  if (minP > 0) {
    let kept = 0;
    while (kept < count && weight(ranking.at(kept)) >= minP) kept++;
    [count, total] = [kept, sum(kept)];
  }
  let at = rng.uniform() * total;
  for (let k = 0; k < count; k++) if ((at -= weight(ranking.at(k))) < 0) return ranking.at(k);
  return ranking.at(count - 1);
}

/** exp((x − top) / temperature) of each logit, kept until the next call; gives their sum. */
function weighAll(values: Float64Array, top: number, temperature: number): number {
  const weights = room("weights", values.length);
  let total = 0;
  for (let i = 0; i < values.length; i++) {
    const weight = Math.exp((values[i] - top) / temperature);
    weights[i] = weight;
    total += weight;
  }
  return total;
}

/** A draw where nothing is left out needs no order. */
function drawOfAll(values: Float64Array, top: number, temperature: number, rng: Rng): number {
  let at = rng.uniform() * weighAll(values, top, temperature);
  const weights = room("weights", values.length);
  let last = 0;
  for (let i = 0; i < weights.length; i++) {
    if (weights[i] === 0) continue;
    last = i;
    if ((at -= weights[i]) < 0) return i;
  }
  return last; // what rounding left of the sum
}

/** The first of the largest. Throws NablaError where one is NaN. */
function argmax(values: Float64Array): number {
  let best = 0;
  for (let i = 0; i < values.length; i++) {
    const x = values[i];
    if (Number.isNaN(x))
      throw new NablaError(`generate: the model gave NaN for token ${i}; its weights are damaged or diverged`);
    if (x > values[best]) best = i;
  }
  return best;
}
