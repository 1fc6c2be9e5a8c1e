/**
 * Random programs on every backend present, compared with the reference backend in exact mode: graphs of movements,
 * arithmetic, reductions, products, gathers and composites, with several roots and state writes.
 * NABLA_TEST_SEED chooses other programs, NABLA_TEST_PROGRAMS how many; a failure prints seed and program.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { Backend } from "../../src/backends/backend.ts";
import { referenceBackend } from "../../src/backends/reference/index.ts";
import type { DType } from "../../src/core/dtype.ts";
import { type Shape, sizeOf } from "../../src/core/shape.ts";
import * as composites from "../../src/graph/composites/index.ts";
import { type Node, topologicalOrder } from "../../src/graph/node.ts";
import * as o from "../../src/graph/ops.ts";
import { backendsUnderTest, isBrief } from "../support/backends.ts";
import { type Assign, evaluate, nodeFrom } from "../support/evaluate.ts";
import { firstDifference } from "../support/fixtures.ts";

const firstSeed = Number(process.env["NABLA_TEST_SEED"] ?? 1);
const programs = Number(process.env["NABLA_TEST_PROGRAMS"] ?? 150);

/** Whether an ordinary run does less on this backend because a C compiler makes all that is in a program; tests/backends/cpu has more of its own. */
const isCompiled = ({ name }: Backend): boolean => name === "cpu" && process.env["NABLA_LONG"] !== "1";

/** Mulberry32: small, seeded, good enough to choose with. */
class Dice {
  private state: number;
  constructor(seed: number) {
    this.state = seed >>> 0;
  }
  next(): number {
    this.state = (this.state + 0x6d2b79f5) >>> 0;
    let t = this.state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }
  /** A whole number from 0 to n − 1. */
  below(n: number): number {
    return Math.floor(this.next() * n);
  }
  pick<T>(list: readonly T[]): T {
    return list[this.below(list.length)];
  }
  shuffled<T>(list: readonly T[]): T[] {
    const out = list.slice();
    for (let i = out.length - 1; i > 0; i--) {
      const j = this.below(i + 1);
      [out[i], out[j]] = [out[j], out[i]];
    }
    return out;
  }
}

interface Builder {
  readonly backend: Backend;
  readonly dtype: DType;
  readonly dice: Dice;
  readonly nodes: Node[];
}

const lengths = [1, 2, 3, 5, 8, 17];
const shapeOf = (dice: Dice): number[] => Array.from({ length: dice.below(4) }, () => dice.pick(lengths));

function fresh({ backend, dtype, dice }: Builder, shape: Shape): Node {
  const values = Float64Array.from({ length: sizeOf(shape) }, () => Math.round((dice.next() * 4 - 2) * 64) / 64);
  return nodeFrom(backend, values, shape, dtype);
}

function indices({ backend, dice }: Builder, shape: Shape, below: number): Node {
  const values = Int32Array.from({ length: sizeOf(shape) }, () => dice.below(below));
  return nodeFrom(backend, values, shape, "int32");
}

/** An earlier node, or a new leaf of the shape asked for, or an earlier one that grows to it. */
function operandLike(b: Builder, x: Node): Node {
  const fitting = b.nodes.filter(
    (n) =>
      n.shape.length <= x.shape.length &&
      n.shape.every((s, i) => s === 1 || s === x.shape[i + x.shape.length - n.shape.length]),
  );
  return fitting.length && b.dice.next() < 0.7 ? b.dice.pick(fitting) : fresh(b, x.shape);
}

type Step = (b: Builder, x: Node) => Node | null;

/** Keeps magnitudes near 1, so that deep programs neither overflow nor lose all digits. */
const tame = (x: Node): Node => o.tanh(o.mul(x, 0.25));

const steps: Readonly<Record<string, Step>> = {
  add: (b, x) => o.add(x, operandLike(b, x)),
  sub: (b, x) => o.sub(x, operandLike(b, x)),
  mul: (b, x) => o.mul(x, operandLike(b, x)),
  max: (b, x) => o.maximum(x, operandLike(b, x)),
  divide: (b, x) => o.div(x, o.add(o.abs(operandLike(b, x)), 1)),
  scalar: (b, x) => o.mul(x, o.scalar(Math.fround(b.dice.next()), b.dtype)),
  sin: (_, x) => o.sin(x),
  exp: (_, x) => o.exp(o.minimum(x, 1)),
  erf: (_, x) => o.erf(x),
  sqrt: (_, x) => o.sqrt(o.abs(x)),
  select: (b, x) => o.where(o.lt(o.iota(x.shape.length ? x.shape : [1], 0), 2), x, operandLike(b, x)),
  // where there is no wider type, a node of its own all the same: what is picked later goes by their number
  cast: (b, x) => (b.backend.dtypes.includes("float64") ? o.cast(o.cast(x, "float64"), b.dtype) : o.neg(o.neg(x))),
  reshape: (b, x) => {
    const n = sizeOf(x.shape);
    const divisors = lengths.filter((d) => n % d === 0);
    const d = b.dice.pick(divisors);
    return o.reshape(x, b.dice.next() < 0.5 ? [d, n / d] : [n / d, 1, d]);
  },
  permute: (b, x) => o.permute(x, b.dice.shuffled([...x.shape.keys()])),
  slice: (b, x) =>
    o.slice(
      x,
      x.shape.map((n) => {
        const step = b.dice.pick([1, 1, 2, -1]);
        const start = b.dice.below(n);
        const room = step < 0 ? start + 1 : Math.ceil((n - start) / step);
        return { start, step, size: 1 + b.dice.below(room) };
      }),
    ),
  pad: (b, x) => {
    const amounts = (most: number): number[] => x.shape.map(() => b.dice.below(most + 1));
    return sizeOf(x.shape) > 500 ? null : o.pad(x, amounts(2), amounts(2), 0.5, amounts(1));
  },
  flip: (_, x) => o.flip(x, [x.shape.length - 1]),
  concat: (b, x) => (sizeOf(x.shape) > 500 ? null : o.concat([x, fresh(b, x.shape), x], b.dice.below(x.shape.length))),
  window: (b, x) => {
    const axis = b.dice.below(x.shape.length);
    return x.shape[axis] < 3 || sizeOf(x.shape) > 500 ? null : o.window(x, [axis], [2], [1], [b.dice.pick([1, 2])]);
  },
  sum: (b, x) => o.sum(x, b.dice.below(x.shape.length), { keepdim: b.dice.next() < 0.5 }),
  sumOfTwo: (b, x) => (x.shape.length < 2 ? null : o.sum(x, b.dice.shuffled([...x.shape.keys()]).slice(0, 2))),
  mean: (b, x) => o.sub(x, o.mean(x, b.dice.below(x.shape.length), { keepdim: true })),
  reduceMax: (b, x) => o.reduceMax(x, b.dice.below(x.shape.length)),
  cumsum: (b, x) => o.cumsum(x, b.dice.below(x.shape.length)),
  matmul: (b, x) => o.matmul(x, fresh(b, [x.shape[x.shape.length - 1], b.dice.pick(lengths)])),
  gram: (_, x) => (x.shape.length < 2 ? null : o.matmul(x, o.transpose(x, -1, -2))),
  take: (b, x) => {
    const axis = b.dice.below(x.shape.length);
    return sizeOf(x.shape) > 500 ? null : o.take(x, axis, indices(b, [b.dice.pick(lengths)], x.shape[axis]));
  },
  scatter: (b, x) => {
    const axis = b.dice.below(x.shape.length);
    const shape = x.shape.map((n, i) => (i === axis ? 4 : n));
    return o.scatter(x, axis, indices(b, shape, x.shape[axis]), fresh(b, shape), b.dice.pick(["add", "max"]));
  },
  softmax: (b, x) => composites.softmax(x, b.dice.below(x.shape.length)),
  layerNorm: (b, x) => composites.layerNorm(x, 1, fresh(b, [x.shape[x.shape.length - 1]]), null),
  gelu: (_, x) => composites.gelu(x),
};

/** Steps that need no axis. */
const needsNoAxis = new Set([
  "add",
  "sub",
  "mul",
  "max",
  "divide",
  "scalar",
  "sin",
  "exp",
  "erf",
  "sqrt",
  "cast",
  "reshape",
]);

interface RandomProgram {
  readonly roots: readonly Node[];
  readonly assigns: readonly Assign[];
}

function randomProgram(backend: Backend, dtype: DType, seed: number): RandomProgram {
  const dice = new Dice(seed);
  const b: Builder = { backend, dtype, dice, nodes: [] };
  for (let i = 0; i < 3; i++) b.nodes.push(fresh(b, shapeOf(dice)));
  const leaves = b.nodes.slice();
  const length = 4 + dice.below(14);
  while (b.nodes.length < length + leaves.length) {
    const x = dice.next() < 0.6 ? b.nodes[b.nodes.length - 1] : dice.pick(b.nodes);
    const name = dice.pick(Object.keys(steps));
    if (x.shape.length === 0 && !needsNoAxis.has(name)) continue;
    const y = steps[name](b, x);
    if (y && sizeOf(y.shape) <= 4000 && y.shape.length <= 6) b.nodes.push(dice.next() < 0.3 ? tame(y) : y);
  }
  const computed = b.nodes.filter((node) => !node.storage);
  const last = computed[computed.length - 1];
  const roots = [...new Set([last, dice.pick(computed), dice.pick(computed)])];
  const targets = leaves.filter(() => dice.next() < 0.4);
  const assigns = targets.flatMap((target) => {
    const value = b.nodes.find((node) => node !== target && node.shape.join() === target.shape.join() && !node.storage);
    return value ? [{ target, value }] : [];
  });
  return { roots, assigns };
}

async function resultsOf(backend: Backend, dtype: DType, seed: number): Promise<ArrayLike<number>[]> {
  const { roots, assigns } = randomProgram(backend, dtype, seed);
  const outputs = await evaluate(backend, roots, assigns);
  return [
    ...outputs,
    ...(await evaluate(
      backend,
      assigns.map(({ target }) => target),
    )),
  ];
}

function show({ roots, assigns }: RandomProgram): string {
  const order = topologicalOrder([...roots, ...assigns.map(({ value }) => value)], (node) => node.storage !== null);
  const lines = order.map((node) => `${node} (${node.inputs.map(({ id }) => `%${id}`).join(", ")})`);
  return [...lines, `roots ${roots.map(({ id }) => `%${id}`).join(", ")}`].join("\n");
}

/** Of the largest number in the result: sums cancel, and errors grow along a program. */
const allowed: Readonly<Record<string, number>> = { float64: 1e-11, float32: 1e-4 };

const oracle = referenceBackend({ exact: true });

for (const backend of await backendsUnderTest())
  for (const dtype of (["float64", "float32"] as const).filter((each) => backend.dtypes.includes(each)))
    describe(`random programs on ${backend.name} in ${dtype}`, () => {
      const count = isBrief(backend)
        ? Math.ceil(programs / 15)
        : isCompiled(backend)
          ? Math.ceil(programs / 6)
          : programs;
      test(`seeds ${firstSeed} … ${firstSeed + count - 1} agree with exact arithmetic`, async () => {
        for (let seed = firstSeed; seed < firstSeed + count; seed++) {
          const what = (): string => `seed ${seed}\n${show(randomProgram(backend, dtype, seed))}`;
          const expected = await resultsOf(oracle, dtype, seed);
          const got = await resultsOf(backend, dtype, seed).catch((error: Error) => {
            throw new Error(`${error.message}\n${what()}`, { cause: error });
          });
          expected.forEach((values, i) => {
            let largest = 0;
            for (let k = 0; k < values.length; k++) largest = Math.max(largest, Math.abs(values[k]));
            const difference = firstDifference(got[i], values, {
              rtol: 0,
              atol: allowed[dtype] * Math.max(1, largest),
            });
            if (difference) assert.fail(`result ${i}: ${difference}\n${what()}`);
          });
        }
      });
    });
