/** Checkpoints give the same values and gradients, keep nothing of the first pass, and repeat nothing but the graph. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { checkpointed, gradientsOf, leavesOf } from "../../src/autograd/index.ts";
import * as c from "../../src/graph/composites/index.ts";
import { make, type Node, setGradEnabled, setRegion, topologicalOrder } from "../../src/graph/node.ts";
import * as o from "../../src/graph/ops.ts";
import { primitives as p } from "../../src/graph/primitives.ts";
import { evaluate } from "../support/evaluate.ts";
import { checkGradient, exact, integers, parameter, sample } from "../support/gradients.ts";

type Fn = (inputs: readonly Node[]) => Node[];

const x = parameter(sample([2, 3]));
const w = parameter(sample([3, 3], -1, 1, 5));
const block: Fn = ([a]) => [c.gelu(o.matmul(c.layerNorm(a, 1, null, null), w)), o.sum(o.exp(a))];
const everything = (root: Node): Node[] => topologicalOrder([root], () => false);

async function compare(fn: Fn, inputs: readonly Node[], leaves: readonly Node[]): Promise<void> {
  const outcome = async (values: readonly Node[]): Promise<number[][]> => {
    const loss = values.map((y) => o.sum(o.mul(y, y))).reduce((a, b) => o.add(a, b));
    const found = gradientsOf([loss], [null], leaves) as Node[];
    return (await evaluate(exact, [loss, ...found])).map((v) => Array.from(v));
  };
  assert.deepEqual(await outcome(checkpointed(fn, inputs)), await outcome(fn(inputs)));
}

test("a checkpoint changes neither values nor gradients, those of captured parameters included", () =>
  compare(block, [x], [x, w]));

test("a checkpoint within a checkpoint changes nothing either", () =>
  compare(
    ([a]) => {
      const [inner] = checkpointed(([b]) => [c.silu(o.matmul(b, w))], [a]);
      return checkpointed(([b]) => [o.mul(o.tanh(b), inner)], [o.mul(inner, a)]);
    },
    [x],
    [x, w],
  ));

test("an output that is an input, and one without gradient, are handed through", () =>
  compare(([a]) => [a, o.detach(o.exp(a)), o.mul(a, o.cast(integers([3, 4, 5]), "float64"))], [x], [x]));

test("a checkpoint can be differentiated twice", () =>
  checkGradient(
    "checkpoint",
    [sample([2, 3]), sample([3, 3], -1, 1, 5)],
    ([a, b]) => checkpointed(([y]) => [o.tanh(o.matmul(y, b))], [o.mul(a, a)]),
    { row: "checkpoint" },
  ));

test("the function runs once, and what it draws at random is the same again", async () => {
  let runs = 0;
  const fn: Fn = ([a]) => {
    const bits = o.random([2, 3], o.scalar(7 + runs++, "uint32"), o.scalar(9, "uint32"));
    const keep = o.lt(o.shr(bits, o.full([2, 3], 31, "uint32")), o.full([2, 3], 1, "uint32"));
    return [o.where(keep, o.exp(a), 0)];
  };
  const [y] = checkpointed(fn, [x]);
  const [gradient] = gradientsOf([o.sum(y)], [null], [x]);
  assert.equal(runs, 1);
  const [value, slope] = await evaluate(exact, [y, gradient as Node]);
  assert.deepEqual(Array.from(slope), Array.from(value)); // the derivative of exp, under the same mask
  assert.ok(Array.from(value).includes(0) && Array.from(value).some((v) => v !== 0));
});

test("nothing of the first pass is kept for the gradient, which works in a region of its own", () => {
  const made: Node[] = [];
  const [y] = checkpointed(
    ([a]) => {
      made.push(o.exp(a), o.tanh(a));
      return [o.mul(made[0], made[1])];
    },
    [x],
  );
  assert.ok(made.every((node) => !node.requiresGrad));
  assert.deepEqual(leavesOf([y]), [x]);
  const [gradient] = gradientsOf([o.sum(y)], [null], [x]);
  const used = everything(gradient as Node);
  for (const node of made) assert.ok(!used.includes(node), `${node} is read by the gradient`);
  assert.deepEqual([...new Set(used.filter((n) => n.operation === p.exp).map((n) => n.region))], [1]);
});

test("the same step uses the same region numbers every time", () => {
  const regions = (): number[] => {
    const [y] = checkpointed(block, checkpointed(block, [x]).slice(0, 1));
    return everything(gradientsOf([o.sum(y)], [null], [x])[0] as Node).map((n) => n.region);
  };
  assert.deepEqual(regions(), regions());
  const before = setRegion(0);
  assert.equal(before, 0, "the region was not put back");
});

test("a state that is written inside is written once", () => {
  let written: Node | null = null;
  const state = o.full([2, 3], 0, "float64");
  const [y] = checkpointed(
    ([a]) => {
      const grad = setGradEnabled(false);
      written = make(p.assign, [state, o.mul(o.detach(a), 2)]);
      setGradEnabled(grad);
      return [o.mul(o.exp(a), written)];
    },
    [x],
  );
  const used = everything(gradientsOf([o.sum(y)], [null], [x])[0] as Node);
  assert.deepEqual(
    used.filter((node) => node.operation === p.assign),
    [written],
  );
});

test("without gradients a checkpoint is its function", () => {
  const before = setGradEnabled(false);
  const values = checkpointed(block, [x]);
  setGradEnabled(before);
  assert.ok(values.every((y) => y.operation.name !== "checkpoint"));
  const constant = o.full([2], 1, "float64");
  assert.equal(checkpointed(([a]) => [o.exp(a)], [constant])[0].operation, p.exp);
});
