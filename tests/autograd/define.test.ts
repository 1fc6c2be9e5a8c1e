/** Operations of a user's own are composites like ours: rows, rules, decompositions. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { defineOperation, gradientsOf } from "../../src/autograd/index.ts";
import { AutogradError, BackendError } from "../../src/core/errors.ts";
import type { Node, Spec } from "../../src/graph/node.ts";
import * as o from "../../src/graph/ops.ts";
import { evaluate } from "../support/evaluate.ts";
import { checkGradient, constants, exact, parameter, sample } from "../support/gradients.ts";

const like = ([x]: readonly Node[]): Spec => ({ shape: x.shape, dtype: x.dtype });
const x = parameter(sample([2, 3]));

test("an operation with a decomposition has its value and its gradients, to the second order", async () => {
  const cubed = defineOperation<{ scale: number }>({
    name: "test.cubed",
    infer: like,
    decompose: ([a], { scale }) => [o.mul(o.mul(o.mul(a, a), a), scale)],
  });
  await checkGradient("test.cubed", [sample([2, 3])], ([a]) => cubed([a], { scale: 2 }), { row: "test.cubed" });
  const two = constants({ shape: [1], values: [2] });
  assert.deepEqual(Array.from((await evaluate(exact, cubed([two], { scale: 3 })))[0]), [24]);
});

test("an operation's own gradient is used, with its outputs and attributes", async () => {
  const pair = defineOperation<{ slope: number }>({
    name: "test.pair",
    infer: ([a, b]) => [like([a]), like([b])],
    decompose: ([a, b]) => [o.exp(a), o.mul(a, b)],
    // deliberately not the true gradient
    gradient: ({ inputs, outputs, attrs }, [g0, g1]) => {
      assert.equal(inputs.length, 2);
      return [g0 && o.mul(o.mul(g0, outputs[0]), attrs.slope), g1];
    },
  });
  const y = parameter(sample([2, 3], -1, 1, 3));
  const [first, second] = pair([x, y], { slope: 10 });
  const found = gradientsOf([o.sum(o.add(first, second))], [null], [x, y]) as Node[];
  const [dx, dy, e] = await evaluate(exact, [...found, o.exp(x)]);
  assert.deepEqual(
    Array.from(dx),
    Array.from(e, (v) => v * 10),
  );
  assert.deepEqual(Array.from(dy), [1, 1, 1, 1, 1, 1]);
});

test("null instead of a gradient stops it", () => {
  const stop = defineOperation({ name: "test.stop", infer: like, decompose: ([a]) => [o.neg(a)], gradient: null });
  assert.deepEqual(gradientsOf([o.sum(stop([x])[0])], [null], [x], { allowUnused: true }), [null]);
});

test("mistakes are named", () => {
  defineOperation({ name: "test.once", infer: like });
  assert.throws(() => defineOperation({ name: "test.once", infer: like }), BackendError);

  const bare = defineOperation({ name: "test.bare", infer: like });
  assert.throws(() => gradientsOf([o.sum(bare([x])[0])], [null], [x]), /neither a gradient nor a decomposition/);

  const short = defineOperation({ name: "test.short", infer: like, gradient: () => [] });
  assert.throws(() => gradientsOf([o.sum(short([x])[0])], [null], [x]), /gave 0 values for 1 inputs/);

  const broken = defineOperation({ name: "test.broken", infer: like, decompose: ([a]) => [o.sum(a)] });
  assert.throws(
    () => gradientsOf([o.sum(broken([x])[0])], [null], [x]),
    /test.broken: the decomposition gives float64\[\], infer promised float64\[2, 3\]/,
  );

  const wrong = defineOperation({ name: "test.wrong", infer: like, gradient: (_, [g]) => [g && o.sum(g)] });
  assert.throws(() => gradientsOf([o.sum(wrong([x])[0])], [null], [x]), AutogradError);
});
