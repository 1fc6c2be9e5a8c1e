/**
 * How a language model reads a text that grows: its whole window again and again, or through a cache of keys and values, in
 * pieces of one length and then a token at a time. Sizes are fixed and positions are runtime numbers.
 */
import type { StepKind } from "../models/index.ts";
import type { Module } from "../nn/index.ts";
import { noGrad, realize, type Tensor, tensor } from "../tensor/index.ts";
import type { GenerateOptions } from "./sample.ts";

/** A model that can be sampled from, as GPT2. */
export interface LanguageModel extends Module {
  readonly contextLength: number;
  /** Logits [batch, vocabulary] after `position` of ids [batch, time]. */
  logitsAt(ids: Tensor, position: number): Tensor;
}

/** What a model keeps of the tokens that it has seen. */
export interface TokenCache {
  readonly capacity: number;
  readonly length: number;
  truncate(length: number): void;
}

/** A language model that decodes through a cache, as CausalLM. */
export interface CachedLanguageModel<C extends TokenCache = TokenCache> extends LanguageModel {
  /** `padding`: how many positions in front of each row hold no token of it. */
  createCache(options: {
    readonly batchSize?: number;
    readonly capacity?: number;
    readonly padding?: readonly number[];
  }): C;
  /** Appends the first `count` of ids [batch, time], part of texts of `textLength`, to the cache; the logits [batch, vocabulary] after them. */
  decode(ids: Tensor, cache: C, count?: number, textLength?: number): Tensor;
  /** As `decode`, but gives the likeliest token of each row, int32 [batch, 1], −1 where a logit is NaN. For greedy texts. */
  decodeGreedy?(ids: Tensor, cache: C, count?: number, textLength?: number): Tensor;
  /** Whether a text that has grown from `from` to `to` tokens has to be read again from its beginning. */
  readsAgain?(from: number, to: number): boolean;
}

/** Tokens of a prompt that are read at once: a long one is read in few pieces (each reads all weights), a short one is not filled up far. */
const lengthsOfPieces = [512, 64];
/** Most tokens of all rows together in a longer piece: what is between the layers is in memory for all of them. */
const mostInPiece = 1024;

const idsTensor = (ids: Int32Array, rows = 1): Tensor =>
  tensor(ids, { shape: [rows, ids.length / rows], dtype: "int32" });

/** Gives the logits after a text that grows from call to call; or the tokens, where they are chosen on the device. */
export type Reader = (text: readonly number[]) => Promise<Tensor>;

/** Whoever has `name`, the object itself or one of its prototypes. */
function holderOf(object: object, name: string): object | null {
  for (let at: object | null = object; at; at = Object.getPrototypeOf(at)) if (Object.hasOwn(at, name)) return at;
  return null;
}

/** How a model is to be read: greedily where only the likeliest token counts, if it can; not past a `decode` that a subclass has changed. */
export function stepKind(
  model: CachedLanguageModel,
  { temperature, repetitionPenalty = 1 }: Pick<GenerateOptions, "temperature" | "repetitionPenalty">,
): StepKind {
  const plain = temperature === 0 && repetitionPenalty === 1 && "decodeGreedy" in model;
  return plain && holderOf(model, "decode") === holderOf(model, "decodeGreedy") ? "decodeGreedy" : "decode";
}

export const stepsOf = <C extends TokenCache>(
  model: CachedLanguageModel<C>,
  kind: StepKind,
): CachedLanguageModel<C>["decode"] => (model[kind] as CachedLanguageModel<C>["decode"]).bind(model);

/** The whole window each time; what follows the text in it is hidden by causality. */
export function windowReader(model: LanguageModel): Reader {
  const { contextLength } = model;
  return async (text) => {
    const seen = text.slice(-contextLength);
    const window = new Int32Array(contextLength);
    window.set(seen);
    return noGrad(() => model.logitsAt(idsTensor(window), seen.length - 1));
  };
}

/**
 * Room for `tokens` in each row, in few different sizes, and for a last piece that is not full; and how long the pieces may be, the longest
 * first.
 */
export function sizesFor(
  tokens: number,
  contextLength: number,
  rows = 1,
): { capacity: number; pieceLengths: readonly number[] } {
  const most = Math.min(tokens, contextLength);
  const longer = lengthsOfPieces.slice(0, -1).filter((length) => length <= most && length * rows <= mostInPiece);
  const last = Math.min(lengthsOfPieces[lengthsOfPieces.length - 1], contextLength);
  let capacity = 256;
  while (capacity < most) capacity *= 2;
  return {
    capacity: Math.min(capacity, Math.ceil(contextLength / last) * last),
    pieceLengths: [...longer, last],
  };
}

/**
 * Appends rows of one length to a cache, in pieces of few lengths; gives what the step after them gives. Each piece is
 * computed before the next is recorded, so that they are one program a length and not one for every number of pieces.
 */
export async function readPieces<C extends TokenCache>(
  model: CachedLanguageModel<C>,
  cache: C,
  rows: readonly (readonly number[])[],
  pieceLengths: readonly number[],
  kind: StepKind,
): Promise<Tensor> {
  let result: Tensor | null = null;
  const step = stepsOf(model, kind);
  const textLength = cache.length + rows[0].length;
  for (let at = 0; at < rows[0].length; ) {
    const left = rows[0].length - at;
    const length = pieceLengths.find((each) => each <= left) ?? pieceLengths[pieceLengths.length - 1];
    const piece = new Int32Array(rows.length * length);
    const count = Math.min(length, left);
    rows.forEach((row, i) => {
      piece.set(row.slice(at, at + count), i * length);
    });
    at += count;
    result = noGrad(() => step(idsTensor(piece, rows.length), cache, count, textLength));
    await realize(result);
  }
  return result as Tensor;
}

/**
 * Only what is new is computed. Beyond the context the positions of all tokens move with each one, so that the window is read
 * again.
 */
export function cacheReader(model: CachedLanguageModel, tokens: number, kind: StepKind): Reader {
  const { contextLength } = model;
  const { capacity, pieceLengths } = sizesFor(tokens, contextLength);
  const cache = model.createCache({ capacity });
  const read = (fresh: readonly number[]): Promise<Tensor> => readPieces(model, cache, [fresh], pieceLengths, kind);
  const step = stepsOf(model, kind);
  return async (text) => {
    const { length } = text;
    if (length > contextLength || (cache.length > 0 && model.readsAgain?.(cache.length, length))) cache.truncate(0);
    if (cache.length === 0) return read(text.slice(-contextLength));
    return noGrad(() => step(idsTensor(Int32Array.from(text.slice(cache.length))), cache));
  };
}

export const hasCache = (model: LanguageModel): model is CachedLanguageModel =>
  "createCache" in model && "decode" in model;
