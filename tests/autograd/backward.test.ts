/** The walk: what it refuses, what it frees, in which order it adds, and the subgradients where PyTorch chose one. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { gradientsOf, leavesOf, releaseGraph } from "../../src/autograd/index.ts";
import { AutogradError, ShapeError } from "../../src/core/errors.ts";
import * as c from "../../src/graph/composites/index.ts";
import { make, Node, setGradEnabled, topologicalOrder } from "../../src/graph/node.ts";
import * as o from "../../src/graph/ops.ts";
import { primitives as p } from "../../src/graph/primitives.ts";
import { evaluate } from "../support/evaluate.ts";
import { constants, exact, given, integers, parameter, sample } from "../support/gradients.ts";

const vector = (...values: number[]): Node => parameter(given([values.length], values));

async function derivatives(output: Node, ...inputs: Node[]): Promise<number[][]> {
  const found = gradientsOf([o.sum(output)], [null], inputs);
  return (await evaluate(exact, found as Node[])).map((x) => Array.from(x));
}

const names = (roots: readonly Node[]): string[] => topologicalOrder(roots, () => false).map((n) => n.operation.name);

test("an output without a graph is refused", () => {
  const x = vector(1, 2);
  assert.throws(() => gradientsOf([o.sum(o.detach(x))], [null], [x]), /does not require a gradient and has no graph/);
  const before = setGradEnabled(false);
  const hidden = o.sum(o.mul(x, 2));
  setGradEnabled(before);
  assert.throws(() => gradientsOf([hidden], [null], [x]), AutogradError);
});

test("a seed is made up only for an output of one element, and must have the output's shape and dtype", () => {
  const x = vector(1, 2);
  assert.throws(() => gradientsOf([o.mul(x, 2)], [null], [x]), /only for an output of one element, got \[2\]/);
  assert.throws(() => gradientsOf([o.mul(x, 2)], [constants(sample([3]))], [x]), ShapeError);
  assert.throws(() => gradientsOf([o.mul(x, 2)], [o.full([2], 1, "float32")], [x]), /is float32; cast it/);
  assert.equal(gradientsOf([o.reshape(o.sum(x), [1, 1])], [null], [x]).length, 1);
});

test("an unused input is an error, or null if that is allowed", () => {
  const [x, y] = [vector(1), vector(2)];
  assert.throws(() => gradientsOf([o.sum(x)], [null], [y]), /do not depend on it; pass \{ allowUnused: true \}/);
  assert.deepEqual(gradientsOf([o.sum(x)], [null], [y], { allowUnused: true }), [null]);
  assert.throws(() => gradientsOf([o.sum(x)], [null], [constants(sample([1]))]), /set its requiresGrad/);
});

test("a freed graph is refused where values were saved, and walked again where none were", () => {
  const x = vector(1, 2);
  const saved = o.sum(o.mul(x, x));
  gradientsOf([saved], [null], [x]);
  releaseGraph([saved]);
  assert.throws(
    () => gradientsOf([saved], [null], [x]),
    /was freed by an earlier backward pass; pass \{ retainGraph: true \}/,
  );
  const linear = o.sum(o.add(x, 1));
  releaseGraph([linear]);
  assert.equal(gradientsOf([linear], [null], [x]).length, 1);
});

test("a graph that two outputs share is freed with the first", () => {
  const x = vector(1, 2);
  const shared = o.exp(x);
  const [a, b] = [o.sum(shared), o.sum(o.mul(shared, 3))];
  releaseGraph([a]);
  assert.throws(() => gradientsOf([b], [null], [x]), AutogradError);
});

test("freeing a graph touches no work that is still to be computed, and lets go of what is", async () => {
  const x = vector(1, 2);
  const middle = o.exp(x);
  const output = o.sum(o.mul(middle, middle));
  const [gradient] = gradientsOf([output], [null], [x]);
  middle.storage = (constants(given([2], [5, 6])) as Node).storage;
  releaseGraph([output]);
  assert.equal(middle.inputs.length, 0);
  assert.throws(() => leavesOf([output]), AutogradError);
  const [value, slope] = await evaluate(exact, [output, gradient as Node]);
  assert.deepEqual([...value, ...slope], [61, 50, 72]);
});

test("gradients go through values that are already there", async () => {
  const x = vector(1, 2);
  const square = o.mul(x, x);
  const output = o.sum(o.mul(square, square));
  square.storage = (constants(given([2], [1, 4])) as Node).storage;
  const [gradient] = gradientsOf([output], [null], [x]);
  assert.deepEqual(Array.from((await evaluate(exact, [gradient as Node]))[0]), [4, 32]);
});

test("inputs on the way are inputs too: both a view and what it views", async () => {
  const x = parameter(sample([2, 3]));
  const view = o.reshape(o.reshape(x, [3, 2]), [6]);
  const turned = o.permute(o.reshape(view, [1, 6]), [1, 0]);
  const output = o.sum(o.mul(o.permute(turned, [1, 0]), 2));
  const found = gradientsOf([output], [null], [x, view, turned]);
  for (const [i, g] of found.entries()) assert.deepEqual(g?.shape, [x, view, turned][i].shape);
  for (const values of await evaluate(exact, found as Node[])) assert.deepEqual(Array.from(values), Array(6).fill(2));
});

test("an operation that is given one node twice adds both parts once", async () => {
  const x = vector(0.5, -1);
  assert.deepEqual(await derivatives(o.mul(x, x), x), [[1, -2]]);
  assert.deepEqual(await derivatives(c.mseLoss(x, x, "sum"), x), [[0, 0]]);
  const one = parameter(sample([1, 1, 2, 2]));
  const mask = constants(sample([2, 2]));
  const [a, b, d] = [1, 2, 3].map(() => one);
  const found = await derivatives(c.attention(a, b, d, { mask }).out, one);
  const parts = [1, 2, 3].map(() => parameter(sample([1, 1, 2, 2])));
  const apart = await derivatives(c.attention(parts[0], parts[1], parts[2], { mask }).out, ...parts);
  for (let i = 0; i < 4; i++) assert.ok(Math.abs(found[0][i] - apart[0][i] - apart[1][i] - apart[2][i]) < 1e-12);
});

test("a graph of 100,000 operations is walked without recursion", async () => {
  const x = vector(1);
  let y: Node = x;
  for (let i = 0; i < 100_000; i++) y = o.add(y, x);
  const [gradient] = gradientsOf([y], [null], [x]);
  assert.deepEqual(Array.from((await evaluate(exact, [gradient as Node]))[0]), [100_001]);
});

test("what is computed without createGraph can't be differentiated, with createGraph it can", () => {
  const x = vector(1, 2);
  const output = o.sum(o.exp(x));
  assert.equal(gradientsOf([output], [null], [x])[0]?.requiresGrad, false);
  assert.equal(gradientsOf([output], [null], [x], { createGraph: true })[0]?.requiresGrad, true);
});

test("the gradients of a split are joined by one concat, with no padding and no addition", async () => {
  const x = parameter(sample([2, 6]));
  const parts = [0, 1, 2].map((i) => o.narrow(x, 1, 2 * i, 2));
  const output = o.sum(o.mul(o.mul(o.exp(parts[2]), parts[0]), o.exp(parts[1])));
  const [gradient] = gradientsOf([output], [null], [x]);
  assert.equal((gradient as Node).operation, p.concat);
  assert.ok(!names([gradient as Node]).includes("pad"));
  // without one of the pieces there is no tiling
  const [partial] = gradientsOf([o.sum(o.mul(parts[0], parts[2]))], [null], [x]);
  assert.equal((partial as Node).operation, p.add);
});

test("pieces that overlap are added", async () => {
  const x = vector(1, 2, 3);
  const [a, b] = [o.narrow(x, 0, 0, 2), o.narrow(x, 0, 1, 2)];
  assert.deepEqual(await derivatives(o.concat([a, o.mul(b, 10)], 0), x), [[1, 11, 10]]);
});

test("the gradient of a weight that is used transposed is made in the weight's own layout", () => {
  const [x, w] = [parameter(sample([4, 3])), parameter(sample([2, 3]))];
  const [dw] = gradientsOf([o.sum(o.matmul(x, o.transpose(w, 0, 1)))], [null], [w]);
  assert.equal((dw as Node).operation, p.contract);
  assert.deepEqual((dw as Node).shape, [2, 3]);
});

test("a gradient that goes to an operation's later output arrives although a younger node stands in for it", async () => {
  const x = parameter(sample([4, 2]));
  const record = (): { y: Node; mean: Node } => c.batchNorm(x, null, null, 1);
  const expected = await derivatives(o.mul(record().mean, record().mean), x);
  const { y, mean } = record();
  const output = o.mul(mean, mean);
  const twin = new Node(y.operation, y.inputs, y.attrs, y.shape, y.dtype, y.device, true, y.outputs);
  mean.inputs = [twin];
  assert.deepEqual(await derivatives(output, x), expected);
});

test("leaves are data and what was declared a leaf, not what lies behind it", () => {
  const x = vector(1);
  const other = vector(2);
  const declared = o.mul(x, 2);
  declared.owner = {};
  const state = make(p.assign, [declared, o.full([1], 0, "float64")]);
  state.owner = {};
  state.requiresGrad = true;
  const output = o.add(o.add(o.mul(declared, other), state), o.full([1], 1, "float64"));
  assert.deepEqual(
    leavesOf([output]),
    [other, declared, state].sort((a, b) => a.id - b.id),
  );
});

const kinks: readonly { what: string; f: (x: Node) => Node; at: number[]; gradient: number[] }[] = [
  { what: "relu at 0 has gradient 0", f: c.relu, at: [0, -0, 1], gradient: [0, 0, 1] },
  { what: "abs at 0 has gradient 0", f: o.abs, at: [0, -2], gradient: [0, -1] },
  { what: "sign and rounding are flat", f: (x) => o.add(o.sign(x), o.round(x)), at: [0.4, -2], gradient: [0, 0] },
  {
    what: "two equal operands of maximum get half each",
    f: (x) => o.maximum(x, 1),
    at: [1, 2, 0],
    gradient: [0.5, 1, 0],
  },
  {
    what: "two equal operands of minimum get half each",
    f: (x) => o.minimum(x, 1),
    at: [1, 2, 0],
    gradient: [0.5, 0, 1],
  },
  { what: "equal maxima share evenly", f: (x) => o.reduceMax(x), at: [3, 1, 3, 3], gradient: [1 / 3, 0, 1 / 3, 1 / 3] },
  { what: "equal minima share evenly", f: (x) => o.reduceMin(x), at: [1, 1, 3, 2], gradient: [0.5, 0.5, 0, 0] },
  { what: "x⁰ is flat, at 0 too", f: (x) => o.pow(x, o.full([2], 0, "float64")), at: [0, 2], gradient: [0, 0] },
  {
    what: "x^b at x = 0 has the one-sided limit",
    f: (x) => o.pow(x, constants(given([3], [0, 1, 2]))),
    at: [0, 0, 0],
    gradient: [0, 1, 0],
  },
  {
    what: "0^x has gradient 0 for x ≥ 0",
    f: (x) => o.pow(constants(given([3], [0, 0, 2])), x),
    at: [0, 2, 1],
    gradient: [0, 0, 2 * Math.log(2)],
  },
  { what: "one zero factor gets the others' product", f: (x) => o.prod(x), at: [2, 0, 3], gradient: [0, 6, 0] },
  { what: "two zero factors get none", f: (x) => o.prod(x), at: [2, 0, 0], gradient: [0, 0, 0] },
  {
    what: "an earlier equal running maximum gives way to the later",
    f: (x) => o.cummax(x, 0),
    at: [2, 2, 1],
    gradient: [1, 2, 0],
  },
  {
    what: "of several writes to one place the last counts",
    f: (x) => o.scatter(o.full([2], 0, "float64"), 0, integers([0, 0, 1]), x, "set"),
    at: [1, 2, 3],
    gradient: [0, 1, 1],
  },
  {
    what: "equal maxima of a scatter share evenly",
    f: (x) => o.scatter(o.full([2], 5, "float64"), 0, integers([0, 0, 1]), x, "max"),
    at: [5, 5, 3],
    gradient: [1 / 3, 1 / 3, 0],
  },
  {
    what: "an unchosen branch of where gives no gradient, whatever it is",
    f: (x) => o.where(o.lt(x, 1), x, o.mul(x, 3)),
    at: [0, 2],
    gradient: [1, 3],
  },
];
for (const { what, f, at, gradient } of kinks)
  test(what, async () => {
    const x = vector(...at);
    const [slopes] = await derivatives(f(x), x);
    for (const [i, g] of slopes.entries())
      assert.ok(Math.abs(g - gradient[i]) < 1e-12, `${g} at ${at[i]}, expected ${gradient[i]}`);
  });

test("max pooling sends its gradient to the first of equal maxima", async () => {
  const x = parameter(given([1, 2, 2, 1], [1, 3, 3, 3]));
  const pool = { kernel: [2, 2], stride: [2, 2], low: [0, 0], high: [0, 0], dilation: [1, 1], ceilMode: false };
  assert.deepEqual(await derivatives(c.maxPool2d(x, pool), x), [[0, 1, 0, 0]]);
});

test("gradients keep the dtype of what they are gradients of", () => {
  for (const dtype of ["float16", "bfloat16", "float32", "float64"] as const) {
    const x = o.detach(o.full([2, 4], 0.5, dtype));
    x.requiresGrad = true;
    x.owner = {};
    const w = o.detach(o.full([4], 0.5, "float32"));
    w.requiresGrad = true;
    w.owner = {};
    const y = c.softmax(c.gelu(c.layerNorm(x, 1, w, null)), 1);
    const found = gradientsOf([o.sum(o.cast(y, "float32"))], [null], [x, w]);
    assert.deepEqual(
      found.map((g) => g?.dtype),
      [dtype, "float32"],
    );
  }
});
