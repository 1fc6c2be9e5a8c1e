/** The lesson recipes/from-scratch keeps what its README promises. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import {
  compare,
  createNetwork,
  crossEntropy,
  forward,
  gradientsByAutograd,
  gradientsByHand,
  main,
  saturation,
  twoMoons,
} from "../../recipes/from-scratch/lesson.ts";
import { setDevice } from "../../src/execution/index.ts";
import { manualSeed, tensor } from "../../src/tensor/index.ts";

setDevice("reference");

test("the gradient by hand and the one by autograd agree to 1e-10 in float64", async () => {
  for (let seed = 1; seed <= 5; seed++) {
    manualSeed(seed);
    const { X, y } = twoMoons(64);
    const network = createNetwork();
    const { difference, size } = await compare(gradientsByHand(network, X, y), gradientsByAutograd(network, X, y));
    assert.ok(difference < 1e-10 && size > 1e-3, `seed ${seed}: difference ${difference}, largest gradient ${size}`);
  }
});

test("the gradient by hand agrees with central differences", async () => {
  manualSeed(6);
  const { X, y } = twoMoons(16);
  const network = createNetwork();
  const byHand = await gradientsByHand(network, X, y).W2.data();
  const start = await network.W2.data();
  const h = 1e-6;
  for (const i of [0, 5, 15]) {
    const lossAt = async (step: number): Promise<number> => {
      const moved = Float64Array.from(start, (w, j) => (j === i ? w + step : w));
      const W2 = tensor(moved, { shape: [4, 4] });
      return crossEntropy(forward({ ...network, W2 }, X).z3, y).item();
    };
    const slope = ((await lossAt(h)) - (await lossAt(-h))) / (2 * h);
    assert.ok(Math.abs(slope - byHand[i]) < 1e-9, `W2[${i}]: ${byHand[i]}, differences give ${slope}`);
  }
});

test("it is right on at least 99 % of the points held out, and prints what it shows", async () => {
  const lines: string[] = [];
  const { heldOut, difference } = await main((line) => lines.push(line));
  assert.ok(heldOut >= 0.99, `right on ${heldOut}`);
  assert.ok(difference < 1e-10);
  const text = lines.join("\n");
  for (const part of ["1. The network", "by hand", "by autograd", "Two moons", "held out", "Saturated", "in layers"])
    assert.ok(text.includes(part), part);
});

test("loss and gradient stay finite at saturated inputs, where the definition does not", async () => {
  for (const z of [-1e6, -800, -40, 0, 40, 800, 1e6])
    for (const label of [0, 1]) {
      const { stable, gradient } = await saturation(z, label);
      const p = 1 / (1 + Math.exp(-z));
      assert.ok(Number.isFinite(stable) && stable >= 0, `loss ${stable} at z = ${z}`);
      assert.ok(Math.abs(gradient - (p - label)) < 1e-12, `gradient ${gradient} at z = ${z}`);
    }
  assert.ok(!Number.isFinite((await saturation(-800, 1)).naive));
});

test("both languages tell the same sections", () => {
  const headings = (name: string): number =>
    readFileSync(new URL(`../../recipes/from-scratch/${name}`, import.meta.url), "utf8").match(/^## /gm)?.length ?? 0;
  assert.equal(headings("README.md"), headings("README.zh.md"));
  assert.ok(headings("README.md") >= 6);
});
