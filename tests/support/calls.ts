/** For fixtures at the level of tensors: stored arguments become tensors, results are read back and compared. */
import assert from "node:assert/strict";
import { type DType, decode, isFloat, type TypedArray } from "../../src/core/dtype.ts";
import type { Module } from "../../src/nn/index.ts";
import { fromRaw, realize, Tensor } from "../../src/tensor/index.ts";
import { encodeAs, firstDifference, rawOf, type Stored, type Tolerance, valuesOf } from "./fixtures.ts";

/** A stored tensor on the default device; floating ones in `dtype`. */
export function load(stored: Stored, dtype: DType, requiresGrad = false): Tensor {
  if (!isFloat(stored.dtype)) return fromRaw(rawOf(stored), stored.dtype, stored.shape);
  const out = fromRaw(encodeAs(dtype, valuesOf(stored)), dtype, stored.shape);
  return requiresGrad ? out.requiresGrad_() : out;
}

/** Results as a list: one tensor, several, or values with indices. */
export function listed(result: unknown): Tensor[] {
  if (result instanceof Tensor) return [result];
  if (Array.isArray(result)) return result.flatMap(listed);
  return Object.values(result as Record<string, unknown>).flatMap(listed);
}

/** Error allowed beside the largest number of a result, for what is summed and cancelled on the way. */
const scaled: Readonly<Record<string, { readonly rtol: number; readonly ofLargest: number }>> = {
  float64: { rtol: 1e-9, ofLargest: 1e-11 },
  float32: { rtol: 2e-5, ofLargest: 4e-6 },
};

export function toleranceFor(dtype: DType, expected: TypedArray): Tolerance {
  const { rtol, ofLargest } = scaled[dtype];
  let largest = 0;
  for (const value of expected) if (Number.isFinite(value)) largest = Math.max(largest, Math.abs(value));
  return { rtol, atol: ofLargest * largest + Number.MIN_VALUE };
}

/** What is wrong with a result, in words; null where it agrees. A float64 result stands for one of `dtype`. */
export async function differenceOf(got: Tensor, expected: Stored, dtype: DType): Promise<string | null> {
  const wanted = expected.dtype === "float64" ? dtype : expected.dtype;
  if (got.dtype !== wanted) return `is ${got.dtype}, expected ${wanted}`;
  if (got.shape.join() !== expected.shape.join()) return `is [${got.shape}], expected [${expected.shape}]`;
  const values = decode(expected.dtype, rawOf(expected));
  const tolerance = isFloat(wanted) ? toleranceFor(wanted, values) : { rtol: 0, atol: 0 };
  return firstDifference(await got.data(), values, tolerance);
}

/** A result, and what it should be. */
export interface Expectation {
  readonly what: string;
  readonly got: Tensor | null | undefined;
  readonly expected: Stored;
}

/** What is wrong with a list of results, which are computed in one program so that a compiler has less to do. */
export async function differencesOf(list: readonly Expectation[], dtype: DType): Promise<string[]> {
  await realize(...list.flatMap(({ got }) => got ?? []));
  const failures: string[] = [];
  for (const { what, got, expected } of list) {
    const difference = got ? await differenceOf(got, expected, dtype) : "is missing";
    if (difference) failures.push(`${what} ${difference}`);
  }
  return failures;
}

/** A layer with weights and inputs, and what torch.nn makes of them. */
export interface LayerCase {
  readonly state: Readonly<Record<string, Stored>>;
  readonly inputs: readonly Stored[];
  readonly outputs: readonly Stored[];
  readonly seeds: readonly Stored[];
  /** By parameter, or "input 0", "input 1" … */
  readonly gradients: Readonly<Record<string, Stored>>;
}

/** Gives a layer the case's weights, runs it forward and backward, and lists what came of it with what it should be. */
export function throughLayer(
  c: LayerCase,
  layer: Module,
  what: string,
  dtype: DType,
  forward: (inputs: readonly Tensor[]) => unknown,
): Expectation[] {
  layer.to(dtype);
  layer.loadStateDict(Object.fromEntries(Object.entries(c.state).map(([key, stored]) => [key, load(stored, dtype)])));
  const inputs = c.inputs.map((stored, i) => load(stored, dtype, `input ${i}` in c.gradients));
  const outputs = listed(forward(inputs));
  assert.ok(outputs.length >= c.outputs.length, `${what} ${outputs.length} outputs`);
  c.seeds
    .map((seed, i) => outputs[i].mul(load(seed, dtype)).sum())
    .reduce((a, b) => a.add(b))
    .backward();
  const parameters = new Map<string, Tensor>(layer.namedParameters());
  const gradientOf = (name: string): Tensor | null | undefined =>
    (name.startsWith("input ") ? inputs[Number(name.slice(6))] : parameters.get(name))?.grad;
  return [
    ...c.outputs.map((expected, i) => ({ what: `${what} output ${i}`, got: outputs[i], expected })),
    ...Object.entries(c.gradients).map(([name, expected]) => ({
      what: `${what} gradient of ${name}`,
      got: gradientOf(name),
      expected,
    })),
  ];
}
