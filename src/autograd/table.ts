/**
 * The table of gradient rules and the type of its entries. The entries are in `rules/`, one file a group; the walk that
 * applies them is in `backward.ts`.
 */
import { AutogradError } from "../core/errors.ts";
import type { Node, Operation } from "../graph/node.ts";

/**
 * From a node and the gradients of its outputs (one each; null: nothing flows in) to the gradients of its inputs (one
 * each; null, or left out at the end: nothing flows out). Called only where an input requires a gradient, and records ordinary nodes.
 */
export type Rule = (node: Node, gradients: readonly (Node | null)[]) => readonly (Node | null)[];

const table = new Map<string, Rule | null>();
/** The same by the row's code, as far as asked for: a walk asks for every node. */
const byCode: (Rule | null | undefined)[] = [];
const keepsNothing = new Set<string>();

/** A rule per row of both tables; null where a row has no gradient. */
export const gradients: ReadonlyMap<string, Rule | null> = table;

/** Adds the rule of a row; null says that the row has none. */
export function setGradient(name: string, rule: Rule | null): void {
  if (table.has(name)) throw new AutogradError(`the gradient of "${name}" is already defined`);
  table.set(name, rule);
}

/** The rule of a row; undefined where none was given. */
export function ruleOf(operation: Operation): Rule | null | undefined {
  const known = byCode[operation.code];
  if (known !== undefined) return known;
  const rule = table.get(operation.name);
  while (byCode.length < operation.code) byCode.push(undefined);
  byCode[operation.code] = rule;
  return rule;
}

export function setGradients(rules: Readonly<Record<string, Rule | null>>): void {
  for (const [name, rule] of Object.entries(rules)) setGradient(name, rule);
}

const none: readonly null[] = [];

/** A rule for rows with one output: the gradient itself instead of a list. */
export const single =
  (rule: (node: Node, gradient: Node) => readonly (Node | null)[]): Rule =>
  (node, gradients) => {
    const gradient = gradients[0];
    return gradient ? rule(node, gradient) : none;
  };

/**
 * Says that the rules of these rows read neither inputs nor outputs, only their shapes: a freed graph can be walked
 * through them once more, as PyTorch allows where nothing was saved.
 */
export function declareKeepsNothing(names: readonly string[]): void {
  for (const name of names) keepsNothing.add(name);
}
export const savesValues = (node: Node): boolean => !keepsNothing.has(node.operation.name);

/** Whether a gradient for this input is of use. */
export const needs = (node: Node, input: number): boolean => node.inputs[input].requiresGrad;
