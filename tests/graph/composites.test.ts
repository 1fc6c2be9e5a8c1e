/**
 * The composites as a graph: what their shape rules refuse, what their decompositions are made of, and promises that
 * values alone don't show. Values are compared with PyTorch's in tests/parity.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { gradientsOf } from "../../src/autograd/index.ts";
import { DTypeError, IndexError, ShapeError } from "../../src/core/errors.ts";
import { type Shape, sizeOf } from "../../src/core/shape.ts";
import * as c from "../../src/graph/composites/index.ts";
import { type Node, topologicalOrder } from "../../src/graph/node.ts";
import * as o from "../../src/graph/ops.ts";
import { evaluate } from "../support/evaluate.ts";
import { constants, exact, given, integers, parameter, sample } from "../support/gradients.ts";

const f = (shape: Shape): Node => constants(sample(shape));
const i = (n: number): Node => integers(Array<number>(n).fill(0));

const square = { stride: [1, 1], low: [0, 0], high: [0, 0], dilation: [1, 1], groups: 1 };
const pool = { kernel: [2, 2], stride: [2, 2], low: [0, 0], high: [0, 0], dilation: [1, 1], ceilMode: false };
const q = f([1, 4, 3, 8]);

const refusals: readonly [what: string, record: () => unknown, message: RegExp][] = [
  ["softmax along an axis that is not there", () => c.softmax(f([2, 3]), 2), /softmax: axis 2 is outside/],
  ["layerNorm's weight", () => c.layerNorm(f([2, 3]), 1, f([2]), null), /layerNorm: weight must be \[3\].*got \[2\]/],
  ["layerNorm over too many axes", () => c.layerNorm(f([3]), 2, null, null), /layerNorm: can't normalise.*\[3\]/],
  ["batchNorm of one value a channel", () => c.batchNorm(f([1, 3]), null, null, 1), /more than one value a channel/],
  [
    "batchNormEval's statistics",
    () => c.batchNormEval(f([2, 3]), f([2]), f([3]), null, null, 1),
    /running mean must be \[3\].*got \[2\]/,
  ],
  ["conv's channels", () => c.conv(f([1, 4, 4, 3]), f([2, 2, 1, 1]), square), /takes 2 channels a group.*3 \/ 1/],
  ["conv's groups", () => c.conv(f([1, 4, 4, 3]), f([2, 3, 1, 1]), { ...square, groups: 2 }), /divisible by 2 groups/],
  ["conv's kernel", () => c.conv(f([1, 2, 4, 3]), f([2, 3, 3, 1]), square), /kernel of 3 .* does not fit 2 positions/],
  ["conv's axes", () => c.conv(f([1, 4, 3]), f([2, 3, 1, 1]), square), /conv: weight .* must have 3 axes/],
  [
    "conv's attributes",
    () => c.conv(f([1, 4, 4, 3]), f([2, 3, 1, 1]), { ...square, stride: [1] }),
    /stride has 1 entr/,
  ],
  [
    "a transposed convolution's size",
    () => c.convInputGradient(f([1, 2, 2, 2]), f([2, 3, 1, 1]), { ...square, size: [3, 2] }),
    /output gradient must be \[1, 3, 2, 2\], got \[1, 2, 2, 2\]/,
  ],
  ["pooling's padding", () => c.maxPool2d(f([1, 4, 4, 1]), { ...pool, low: [2, 0] }), /more than half the kernel's 2/],
  ["pooling's axes", () => c.maxPool2d(f([4, 4, 1]), pool), /maxPool2d: the input must have 4 axes/],
  [
    "attention's heads",
    () => c.attention(q, f([1, 3, 3, 8]), f([1, 3, 3, 8])),
    /4 query heads can't be shared among 3/,
  ],
  [
    "attention's widths",
    () => c.attention(q, f([1, 4, 3, 4]), f([1, 4, 3, 4])),
    /agree in batch .* and width \(8, 4\)/,
  ],
  ["attention's mask", () => c.attention(q, q, q, { mask: f([2, 3]) }), /attention: \[2, 3\] and|does not grow to/],
  ["crossEntropy's targets", () => c.crossEntropy(f([2, 3]), i(3)), /targets must be \[2\] .* got \[3\]/],
  ["crossEntropy's axes", () => c.crossEntropy(f([2, 3, 1]), i(2)), /logits must have 2 axes \[rows, classes\]/],
  ["crossEntropy's weights", () => c.crossEntropy(f([2, 3]), i(2), { weight: f([2]) }), /class weights must be \[3\]/],
  ["label smoothing", () => c.crossEntropy(f([2, 3]), i(2), { labelSmoothing: 2 }), /labelSmoothing must lie in 0 … 1/],
  ["mseLoss's shapes", () => c.mseLoss(f([2]), f([3])), /mseLoss: \[2\] and \[3\] do not broadcast/],
  [
    "the binary cross-entropy's target",
    () => c.binaryCrossEntropyWithLogits(f([2]), f([3])),
    /target .* must be \[2\].*got \[3\]/,
  ],
  ["linearCrossEntropy's widths", () => c.linearCrossEntropy(f([2, 3]), f([5, 4]), i(2)), /differ in width: 3 ≠ 4/],
];
for (const [what, record, message] of refusals)
  test(`${what}: a misfit is refused when it is recorded`, () => {
    assert.throws(record, (error: Error) => {
      assert.ok(error instanceof ShapeError, `${error.name}: ${error.message}`);
      assert.match(error.message, message);
      return true;
    });
  });

test("dtypes that do not fit are refused when they are recorded", () => {
  assert.throws(() => c.crossEntropy(f([2, 3]), f([2])), DTypeError);
  assert.throws(() => c.conv(f([1, 4, 4, 3]), o.cast(f([2, 3, 1, 1]), "float32"), square), DTypeError);
  assert.throws(() => c.attention(q, q, o.cast(q, "float32")), DTypeError);
  assert.throws(() => c.gelu(f([2]), "sigmoid" as "none"), /approximate must be "none" or "tanh"/);
  assert.throws(() => c.mseLoss(f([2]), f([2]), "max" as "sum"), /reduction must be "none", "mean" or "sum"/);
});

/** Every node of the decompositions below `root`, down to primitives. */
function primitivesOf(root: Node): Node[] {
  const out: Node[] = [];
  const todo = [root];
  const seen = new Set<Node>();
  for (let node = todo.pop(); node; node = todo.pop()) {
    if (seen.has(node)) continue;
    seen.add(node);
    const { decompose } = node.operation;
    if (decompose) todo.push(...decompose(node.inputs, node.attrs));
    else {
      out.push(node);
      todo.push(...node.inputs);
    }
  }
  return out;
}

const rowWise = new Set(
  "buffer const iota cast reshape expand slice where not eq add sub mul div exp log sqrt sum reduceMax gather".split(
    " ",
  ),
);
const rows: readonly [string, (x: Node) => Node][] = [
  ["softmax", (x) => c.softmax(x, 1)],
  ["logSoftmax", (x) => c.logSoftmax(x, 1)],
  ["layerNorm", (x) => c.layerNorm(x, 1, f([3]), f([3]))],
  ["rmsNorm", (x) => c.rmsNorm(x, 1, f([3]))],
  ["crossEntropy", (x) => c.crossEntropy(x, i(4))],
];
for (const [name, build] of rows)
  test(`${name} and its gradient are straight primitives over rows`, () => {
    const x = parameter(sample([4, 3]));
    const y = build(x);
    const [gradient] = gradientsOf([o.sum(o.mul(y, y))], [null], [x]);
    for (const node of [...primitivesOf(y), ...primitivesOf(gradient as Node)])
      assert.ok(rowWise.has(node.operation.name), `${node} is no row-wise primitive`);
  });

test("16-bit floats are summed and multiplied in float32", () => {
  for (const dtype of ["float16", "bfloat16"] as const) {
    const half = (shape: Shape): Node => {
      const x = o.cast(f(shape), dtype);
      x.requiresGrad = true;
      x.owner = {};
      return x;
    };
    const x = half([4, 3]);
    const heads = half([1, 1, 4, 3]);
    const images = half([2, 2, 2, 1]);
    const weights = [half([3]), half([3])];
    const made: readonly [Node, Node][] = [
      [c.softmax(x, 1), x],
      [c.layerNorm(x, 1, weights[0], weights[1]), x],
      [c.rmsNorm(x, 1, weights[0]), x],
      [c.batchNorm(x, null, null, 1).y, x],
      [c.crossEntropy(x, i(4)), x],
      [c.attention(heads, heads, heads).out, heads],
      [c.avgPool2d(images, { ...pool, countIncludePad: true, divisor: 0 }), images],
    ];
    for (const [y, input] of made) {
      assert.equal(y.dtype, dtype);
      const [gradient] = gradientsOf([y], [o.onesLike(y)], [input]);
      const sums = [y, gradient as Node]
        .flatMap(primitivesOf)
        .filter(({ operation: { name } }) => name === "sum" || name === "contract" || name === "exp");
      assert.ok(sums.length > 0);
      for (const node of sums) assert.equal(node.dtype, "float32", `${y.operation.name}: ${node}`);
    }
  }
});

test("a target out of range is an IndexError in the loss and in the gradient alone", async () => {
  const x = parameter(sample([2, 3]));
  const w = parameter(sample([3, 3]));
  const weight = f([3]);
  for (const bad of [3, -1]) {
    const targets = integers([0, bad]);
    const losses = [
      c.crossEntropy(x, targets),
      c.crossEntropy(x, targets, { weight, labelSmoothing: 0.1 }),
      c.nllLoss(x, targets),
      c.nllLoss(x, targets, { weight }),
      c.linearCrossEntropy(x, w, targets),
    ];
    for (const loss of losses) {
      await assert.rejects(evaluate(exact, [loss]), IndexError, `${loss.operation.name} of target ${bad}`);
      const [gradient] = gradientsOf([loss], [null], [x]);
      await assert.rejects(evaluate(exact, [gradient as Node]), IndexError, `${loss.operation.name}'s gradient`);
    }
  }
});

test("rows that are ignored count neither in the loss nor in its mean", async () => {
  const x = parameter(sample([3, 4]));
  const kept = o.narrow(x, 0, 0, 2);
  const [a, b] = await evaluate(exact, [
    c.crossEntropy(x, integers([1, 3, 9]), { ignoreIndex: 9 }),
    c.crossEntropy(kept, integers([1, 3])),
  ]);
  assert.ok(Math.abs(a[0] - b[0]) < 1e-12);
});

test("linearCrossEntropy equals the head and the loss apart, and never holds all logits", async () => {
  const [rowsCount, width, classes, chunk] = [10, 2, 7, 4];
  const [h, w] = [parameter(sample([rowsCount, width])), parameter(sample([classes, width]))];
  const targets = integers([0, 1, 2, 3, 4, 5, 6, -100, 1, 2]);
  for (const reduction of ["mean", "sum"] as const) {
    const joint = c.linearCrossEntropy(h, w, targets, { reduction, chunk });
    const apart = c.crossEntropy(o.matmul(h, o.transpose(w, 0, 1)), targets, { reduction });
    const slopes = (loss: Node): Node[] => gradientsOf([loss], [null], [h, w]) as Node[];
    const got = await evaluate(exact, [joint, ...slopes(joint)]);
    const expected = await evaluate(exact, [apart, ...slopes(apart)]);
    for (const [k, values] of expected.entries())
      for (const [n, value] of values.entries()) assert.ok(Math.abs(got[k][n] - value) < 1e-12);
    for (const node of [joint, ...slopes(joint)].flatMap(primitivesOf))
      assert.ok(sizeOf(node.shape) <= chunk * classes, `${node} holds more than a chunk's logits`);
  }
});

test("attention with a length sees what a shorter cache would, and the last query is at its end", async () => {
  const [queries, keys, vals] = [f([1, 2, 2, 4]), f([1, 2, 6, 4]), constants(sample([1, 2, 6, 4], -1, 1, 9))];
  const length = o.scalar(5, "int32");
  const cut = (x: Node): Node => o.narrow(x, 2, 0, 5);
  // the two queries are positions 3 and 4 of 5
  const mask = o.lt(o.full([2, 5], 0, "int32"), integers([1, 1, 1, 1, 0, 1, 1, 1, 1, 1], [2, 5]));
  const pairs: readonly [c.AttentionOptions, c.AttentionOptions][] = [
    [{ length }, {}],
    [{ length, causal: true }, { mask }],
  ];
  for (const [withLength, without] of pairs) {
    const a = c.attention(queries, keys, vals, withLength);
    const b = c.attention(queries, cut(keys), cut(vals), without);
    const [x, y, u, v] = await evaluate(exact, [a.out, b.out, a.lse, b.lse]);
    for (const [n, value] of y.entries()) assert.ok(Math.abs(x[n] - value) < 1e-12);
    for (const [n, value] of v.entries()) assert.ok(Math.abs(u[n] - value) < 1e-12);
  }
});

test("a query that sees nothing gives zeros and zero gradients", async () => {
  const x = parameter(given([1, 1, 1, 2], [1, 2]));
  const { out, lse } = c.attention(x, x, x, { length: o.scalar(0, "int32") });
  const [gradient] = gradientsOf([o.sum(out)], [null], [x]);
  const [values, slope, total] = await evaluate(exact, [out, gradient as Node, lse]);
  assert.deepEqual([...values, ...slope, ...total], [0, 0, 0, 0, Number.NEGATIVE_INFINITY]);
});

test("attention's output joins its heads by a view", () => {
  const { out } = c.attention(q, q, q);
  assert.deepEqual(out.shape, [1, 3, 4, 8]);
  const joined = o.reshape(out, [1, 3, 32]);
  assert.deepEqual(
    topologicalOrder([joined], () => false).map((n) => n.operation.name),
    ["buffer", "attention", "reshape"],
  );
});

test("softmax and the losses stay finite where the exponential does not", async () => {
  const x = constants(given([2, 3], [1000, -1000, 999, -1e4, -1e4, -1e4]));
  const nodes = [
    c.softmax(x, 1),
    c.logSoftmax(x, 1),
    c.crossEntropy(x, integers([1, 2]), { reduction: "none" }),
    c.binaryCrossEntropyWithLogits(x, o.zerosLike(x), { reduction: "none" }),
    c.sigmoid(x),
  ];
  for (const [k, values] of (await evaluate(exact, nodes)).entries())
    assert.ok(Array.from(values).every(Number.isFinite), `${nodes[k]} is not finite: ${values}`);
});
