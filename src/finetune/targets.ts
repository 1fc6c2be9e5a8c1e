/** Which modules and parameters of a model are meant: by all-linear, a pattern, or the ends of their names, as PEFT reads them. */
import type { Module } from "../nn/index.ts";
import { FinetuneError } from "./errors.ts";
import { linearKind } from "./lora.ts";

/**
 * "all-linear": every linear layer but the output head; a regular expression, or a string read as one, that the whole path must match; or
 * names, each a path or its end ("c_attn", "attn.c_attn").
 */
export type Target = "all-linear" | RegExp | (string & {}) | readonly string[];

/** Output heads: what PEFT leaves out of all-linear, by their names in Hugging Face's models. */
const heads = new Set(["lm_head", "embed_out", "output_projection", "score", "classifier"]);

/** A module as a child of another, under one of its paths. */
export interface Place {
  readonly parent: Module;
  readonly name: string;
  readonly path: string;
  readonly module: Module;
}

/** Every place of a module below `root`; one that is shared has several. */
export function* places(root: Module, prefix = ""): Generator<Place> {
  for (const [name, module] of root.namedChildren()) {
    const path = prefix === "" ? name : `${prefix}.${name}`;
    yield { parent: root, name, path, module };
    yield* places(module, path);
  }
}

/** Whether a path is one of the names or ends in one, at a dot. */
export const endsIn = (path: string, names: readonly string[]): boolean =>
  names.some((name) => path === name || path.endsWith(`.${name}`));

/** A test of paths. Throws FinetuneError where a pattern is not valid; `option` is what messages call it. */
export function pathTest(target: RegExp | string | readonly string[], option: string): (path: string) => boolean {
  if (typeof target !== "string" && !(target instanceof RegExp)) return (path) => endsIn(path, target);
  let whole: RegExp;
  try {
    const [source, flags] =
      target instanceof RegExp ? [target.source, target.flags.replace(/[gy]/g, "")] : [target, ""];
    whole = new RegExp(`^(?:${source})$`, flags);
  } catch (error) {
    throw new FinetuneError(`${option}: ${String(target)} is no regular expression: ${(error as Error).message}`);
  }
  return (path) => whole.test(path);
}

/** Which of the layers that a list of names targets are meant: those of these numbers (PEFT's layers_to_transform and layers_pattern). */
export interface LayerChoice {
  readonly numbers: readonly number[];
  /** What stands before a number in a path, as "h"; none: anything. */
  readonly patterns: readonly string[];
}

/** Whether a path is in one of the layers. A path's first number counts, in PEFT's way. */
export function inLayers(path: string, { numbers, patterns }: LayerChoice): boolean {
  const found =
    patterns.length === 0
      ? /^.*?\.[^.]*\.(\d+)\./.exec(path)
      : patterns.map((pattern) => new RegExp(`^(?:.*?\\.)?(?:${pattern})\\.(\\d+)\\.`).exec(path)).find(Boolean);
  return found != null && numbers.includes(Number(found[1]));
}

/** The number that the first pattern gives that a path, or its end behind a dot, matches (PEFT's rank_pattern and alpha_pattern); else `otherwise`. */
export function numberFor(path: string, patterns: Readonly<Record<string, number>>, otherwise: number): number {
  const key = Object.keys(patterns).find((pattern) => new RegExp(`^(?:.*\\.)?(?:${pattern})$`).test(path));
  return key === undefined ? otherwise : patterns[key];
}

/** The test that a target of applyLora stands for. */
export function targetTest(target: Target): (path: string, module: Module) => boolean {
  if (target === "all-linear") return (path, module) => linearKind(module) !== undefined && !heads.has(path);
  const test = pathTest(target, "applyLora: target");
  return (path) => test(path);
}
