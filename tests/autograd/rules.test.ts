/** Every differentiable row agrees with central differences, to the second order; no row is left out. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { gradients } from "../../src/autograd/index.ts";
import { operations } from "../../src/graph/node.ts";
import { gradientCases } from "../support/gradientCases.ts";
import { checkGradient } from "../support/gradients.ts";

/** Checked in checkpoint.test.ts: its graph is made again, so its values are compared with those without it. */
const elsewhere = new Set(["checkpoint"]);

test("every row has a gradient rule or says that it has none", () => {
  for (const name of operations.keys()) assert.ok(gradients.has(name), `"${name}" has no entry in the table of rules`);
  for (const name of gradients.keys())
    assert.ok(operations.has(name), `there is a rule for "${name}", which is no row`);
});

test("every differentiable row has a check here", () => {
  const checked = new Set(gradientCases.map(({ row }) => row));
  for (const [name, rule] of gradients)
    if (rule && !elsewhere.has(name)) assert.ok(checked.has(name), `"${name}" has a rule that nothing checks`);
});

for (const { row, what, inputs, f } of gradientCases)
  test(`the gradient of ${row} equals central differences: ${what}`, () =>
    checkGradient(`${row} (${what})`, inputs, f, { row }));
