/**
 * Gradient checks: what gradientsOf gives against central differences, in float64 on the exact reference backend.
 * The loss is a fixed random combination of all outputs; the second order is checked on a fixed random combination of
 * the first derivatives.
 */
import assert from "node:assert/strict";
import { gradientsOf } from "../../src/autograd/index.ts";
import { referenceBackend } from "../../src/backends/reference/index.ts";
import { isFloat } from "../../src/core/dtype.ts";
import { type Shape, sizeOf } from "../../src/core/shape.ts";
import { type Node, topologicalOrder } from "../../src/graph/node.ts";
import { add, full, mul, sum } from "../../src/graph/ops.ts";
import { compileNodes, nodeFrom } from "./evaluate.ts";

export const exact = referenceBackend({ exact: true });

/** Numbers in [0, 1) from a seed (Park & Miller's generator). */
export function randomNumbers(seed: number): () => number {
  let state = (seed % 2147483646) + 1;
  return () => (state = (state * 48271) % 2147483647) / 2147483647;
}

export interface Sample {
  readonly shape: Shape;
  readonly values: readonly number[];
}

/** Numbers between `low` and `high`. */
export function sample(shape: Shape, low = -1, high = 1, seed = 1): Sample {
  const next = randomNumbers(seed + 31 * shape.length + sizeOf(shape));
  return { shape, values: Array.from({ length: sizeOf(shape) }, () => low + (high - low) * next()) };
}

/** Numbers far enough apart that no small step changes their order, in a random order. */
export function distinct(shape: Shape, step = 0.25, seed = 1): Sample {
  const n = sizeOf(shape);
  const next = randomNumbers(seed + n);
  const values = Array.from({ length: n }, (_, i) => (i - n / 2 + 0.4) * step);
  for (let i = n - 1; i > 0; i--) {
    const j = Math.floor(next() * (i + 1));
    [values[i], values[j]] = [values[j], values[i]];
  }
  return { shape, values };
}

export const given = (shape: Shape, values: readonly number[]): Sample => ({ shape, values });

/** A leaf of float64 that requires a gradient. */
export function parameter({ values, shape }: Sample): Node {
  const node = nodeFrom(exact, values, shape, "float64");
  node.requiresGrad = true;
  return node;
}

/** A leaf of float64 that does not. */
export const constants = ({ values, shape }: Sample): Node => nodeFrom(exact, values, shape, "float64");

/** A leaf of int32. */
export const integers = (values: readonly number[], shape: Shape = [values.length]): Node =>
  nodeFrom(exact, values, shape, "int32");

const fixed = ({ shape }: Node, seed: number): Node => {
  const { values } = sample(shape, -1, 1, seed);
  return nodeFrom(exact, values, shape, "float64");
};

/** Σ weight · node over nodes; null ones count as 0. */
function combination(nodes: readonly (Node | null)[], weights: readonly (Node | null)[]): Node {
  const parts = nodes.flatMap((node, i) => (node ? [sum(mul(node, weights[i] as Node))] : []));
  return parts.length ? parts.reduce((a, b) => add(a, b)) : full([], 0, "float64");
}

/** Derivatives of the scalar `loss` by every element of `inputs`. */
async function differences(loss: Node, inputs: readonly Node[], samples: readonly Sample[]): Promise<number[][]> {
  const h = 1e-5;
  const { run } = await compileNodes(exact, [loss]);
  const out: number[][] = [];
  for (const [k, input] of inputs.entries()) {
    const memory = (input.storage as NonNullable<Node["storage"]>).memory;
    const row: number[] = [];
    for (let i = 0; i < samples[k].values.length; i++) {
      const at = async (x: number): Promise<number> => {
        const moved = Float64Array.from(samples[k].values);
        moved[i] = x;
        exact.write(memory, moved);
        return (await run())[0][0];
      };
      const x = samples[k].values[i];
      row.push(((await at(x + h)) - (await at(x - h))) / (2 * h));
    }
    exact.write(memory, Float64Array.from(samples[k].values));
    out.push(row);
  }
  return out;
}

async function values(nodes: readonly (Node | null)[], samples: readonly Sample[]): Promise<number[][]> {
  const present = nodes.filter((node) => node !== null);
  const results = present.length ? await (await compileNodes(exact, present)).run() : [];
  return nodes.map((node, i) => (node ? Array.from(results[present.indexOf(node)]) : samples[i].values.map(() => 0)));
}

function compare(what: string, got: readonly number[][], expected: readonly number[][], tolerance: number): void {
  expected.forEach((row, k) => {
    row.forEach((e, i) => {
      const scale = Math.max(1, Math.abs(e));
      assert.ok(
        Math.abs(got[k][i] - e) <= tolerance * scale,
        `${what}: by element ${i} of input ${k} the gradient is ${got[k][i]}, central differences give ${e}`,
      );
    });
  });
}

export interface CheckOptions {
  /** Check the derivatives of the derivatives too (default true). */
  readonly second?: boolean;
  /** The row that must be in the graph that is checked. */
  readonly row?: string;
}

/** Checks the first and second derivatives of every floating output of `f` by every element of its inputs. */
export async function checkGradient(
  what: string,
  samples: readonly Sample[],
  f: (inputs: readonly Node[]) => Node | readonly Node[],
  { second = true, row }: CheckOptions = {},
): Promise<void> {
  const inputs = samples.map(parameter);
  const made = f(inputs);
  const outputs = (Array.isArray(made) ? (made as readonly Node[]) : [made as Node]).filter(
    (node) => isFloat(node.dtype) && node.requiresGrad,
  );
  assert.ok(outputs.length > 0, `${what}: no output requires a gradient`);
  if (row) {
    const order = topologicalOrder(outputs, () => false);
    assert.ok(
      order.some((node) => node.operation.name === row && node.inputs.some((x) => x.requiresGrad)),
      `${what}: the graph has no "${row}" that a gradient flows through`,
    );
  }
  const seeds = outputs.map((node, i) => fixed(node, 100 + i));
  const loss = combination(outputs, seeds);
  const first = gradientsOf(outputs, seeds, inputs, { createGraph: true, allowUnused: true });
  compare(`${what}, first order`, await values(first, samples), await differences(loss, inputs, samples), 2e-7);
  const plain = gradientsOf(outputs, seeds, inputs, { allowUnused: true });
  compare(`${what}, without createGraph`, await values(plain, samples), await values(first, samples), 1e-12);
  assert.ok(
    plain.every((node) => !node?.requiresGrad),
    `${what}: a gradient made without createGraph requires a gradient`,
  );
  if (!second) return;
  const weights = first.map((node, i) => node && fixed(node, 200 + i));
  const differentiable = first.flatMap((node, i) => (node?.requiresGrad ? [{ node, weight: weights[i] }] : []));
  const slopes = combination(first, weights);
  const twice = differentiable.length
    ? gradientsOf(
        differentiable.map(({ node }) => node),
        differentiable.map(({ weight }) => weight),
        inputs,
        { allowUnused: true },
      )
    : inputs.map(() => null);
  compare(`${what}, second order`, await values(twice, samples), await differences(slopes, inputs, samples), 1e-6);
}
