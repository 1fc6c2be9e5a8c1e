/** Freezing: training a part of a model, chosen by the names of its parameters (method "freeze" of `finetune`). */
import type { Module } from "../nn/index.ts";
import { FinetuneError, listed } from "./errors.ts";
import { pathTest } from "./targets.ts";

export interface FreezeOptions {
  /** What stays as it is: a pattern that the whole path of a parameter matches, or paths and beginnings of paths ("transformer.wte"). */
  readonly freeze?: RegExp | string | readonly string[];
  /** Or, the other way round, what alone is trained. */
  readonly train?: RegExp | string | readonly string[];
}

const begins = (path: string, name: string): boolean => path === name || path.startsWith(`${name}.`);

/**
 * Makes parameters stop to collect gradients, all others collect them; gives the number of elements that are trained. Throws FinetuneError where a
 * pattern or a name matches nothing, or nothing is left to train.
 */
export function freeze(model: Module, options: FreezeOptions): number {
  const { freeze: frozen, train } = options;
  if ((frozen === undefined) === (train === undefined))
    throw new FinetuneError("freeze: give either freeze (what stays as it is) or train (what alone is trained)");
  const given = (frozen ?? train) as RegExp | string | readonly string[];
  const names = typeof given === "string" || given instanceof RegExp ? null : given;
  const test = names ? (path: string) => names.some((name) => begins(path, name)) : pathTest(given, "freeze");
  const named = [...model.namedParameters()];
  const matched = new Set(named.filter(([path]) => test(path)).map(([, parameter]) => parameter));
  // a name that is misspelt among others would be left out unseen
  const missed = (names ?? []).filter((name) => !named.some(([path]) => begins(path, name)));
  if (missed.length > 0 || matched.size === 0)
    throw new FinetuneError(
      `freeze: ${missed.length > 0 ? listed(missed) : String(given)} matches no parameter; there are ${listed(named.map(([path]) => path))}`,
    );
  const isTrained = (parameter: (typeof named)[number][1]) => matched.has(parameter) === (train !== undefined);
  if (!named.some(([, parameter]) => isTrained(parameter)))
    throw new FinetuneError("freeze: this freezes every parameter, so that nothing is left to train");
  for (const [, parameter] of named) parameter.requiresGrad_(isTrained(parameter));
  return model.parameterCount({ trainable: true });
}
