/** Random tensors: the same seed gives the same numbers, the counter is the state, and the distributions are right. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { setDevice } from "../../src/execution/index.ts";
import {
  bernoulli,
  dropout,
  full,
  Generator,
  getRngState,
  manualSeed,
  multinomial,
  normal,
  ones,
  rand,
  randint,
  randn,
  randperm,
  setRngState,
  type Tensor,
  tensor,
  zeros,
} from "../../src/tensor/index.ts";

setDevice("reference");
const list = async (x: Tensor): Promise<number[]> => Array.from(await x.data());
const mean = (v: number[]): number => v.reduce((a, b) => a + b, 0) / v.length;

describe("generators", () => {
  it("a seed gives its numbers, another seed others, and no two operations the same", async () => {
    manualSeed(1);
    const [a, b] = [await list(randn([8])), await list(randn([8]))];
    manualSeed(1);
    assert.deepEqual([await list(randn([8])), await list(randn([8]))], [a, b]);
    assert.notDeepEqual(a, b);
    manualSeed(2);
    assert.notDeepEqual(await list(randn([8])), a);
    const high = new Generator(2n ** 40n + 1n);
    assert.notDeepEqual(await list(randn([8], { generator: high })), a);
  });
  it("the order of computing does not matter, only that of recording", async () => {
    manualSeed(1);
    const first = randn([4]);
    const second = randn([4]);
    const late = await list(second);
    manualSeed(1);
    const again = [await list(randn([4])), await list(randn([4]))];
    assert.deepEqual([await list(first), late], again);
  });
  it("the state can be saved and restored", async () => {
    manualSeed(7);
    await list(rand([3]));
    const state = getRngState();
    const next = await list(rand([3]));
    setRngState(JSON.parse(JSON.stringify(state)));
    assert.deepEqual(await list(rand([3])), next);
    assert.throws(() => setRngState({ seed: [1, -1], counter: 0 }), /not a generator's state/);
    assert.throws(() => manualSeed(0.5), /expected a whole number/);
  });
  it("Threefry's first numbers are the published ones", async () => {
    // Random123's known answers for threefry2x32-20: key (0, 0), counter (0, 0) gives 6b200159 99ba4efe
    const generator = new Generator(0);
    const word = 0x6b200159;
    const [u] = await list(rand([1], { generator }));
    assert.equal(u, Math.fround((word >>> 8) * 2 ** -24));
  });
});

describe("distributions", () => {
  const n = 20_000;
  it("rand is uniform in [0, 1), randn standard normal", async () => {
    manualSeed(3);
    const u = await list(rand([n]));
    assert.ok(u.every((v) => v >= 0 && v < 1));
    assert.ok(Math.abs(mean(u) - 0.5) < 0.01 && Math.abs(mean(u.map((v) => (v - 0.5) ** 2)) - 1 / 12) < 0.003);
    const z = await list(randn([n]));
    assert.ok(Math.abs(mean(z)) < 0.03 && Math.abs(mean(z.map((v) => v * v)) - 1) < 0.04);
    assert.ok(Math.abs(mean(z.map((v) => v ** 4)) - 3) < 0.3);
    const d = await list(rand([n], { dtype: "float64" }));
    assert.ok(d.some((v) => v !== Math.fround(v)) && Math.abs(mean(d) - 0.5) < 0.01);
  });
  it("randint covers its range, randperm is a permutation", async () => {
    manualSeed(4);
    const counts = new Map<number, number>();
    for (const v of await list(randint(-2, 3, [n]))) counts.set(v, (counts.get(v) ?? 0) + 1);
    assert.deepEqual(
      [...counts.keys()].sort((a, b) => a - b),
      [-2, -1, 0, 1, 2],
    );
    assert.ok([...counts.values()].every((c) => Math.abs(c / n - 0.2) < 0.02));
    const p = await list(randperm(50));
    assert.deepEqual(
      [...p].sort((a, b) => a - b),
      [...Array(50).keys()],
    );
    assert.notDeepEqual(p, [...Array(50).keys()]);
  });
  it("normal, bernoulli and multinomial follow their parameters", async () => {
    manualSeed(5);
    const z = await list(normal(3, 2, [n]));
    assert.ok(Math.abs(mean(z) - 3) < 0.06 && Math.abs(mean(z.map((v) => (v - 3) ** 2)) - 4) < 0.2);
    assert.ok(Math.abs(mean(await list(bernoulli(full([n], 0.3)))) - 0.3) < 0.02);
    const weights = tensor([1, 0, 3]);
    const drawn = await list(multinomial(weights, n, { replacement: true }));
    assert.ok(Math.abs(mean(drawn.map((v) => (v === 2 ? 1 : 0))) - 0.75) < 0.02 && !drawn.includes(1));
    const order = (await multinomial(ones([40, 5]), 5).tolist()) as number[][];
    for (const row of order) assert.deepEqual([...row].sort(), [0, 1, 2, 3, 4]);
    assert.throws(() => multinomial(weights, 4), /can't draw 4 of 3 without replacement/);
  });
  it("dropout keeps the mean, and its gradient uses the same mask", async () => {
    manualSeed(6);
    const x = ones([n], { requiresGrad: true });
    const y = dropout(x, 0.25);
    y.sum().backward();
    const [values, gradient] = [await list(y), await list(x.grad as Tensor)];
    assert.deepEqual(gradient, values);
    assert.ok(Math.abs(mean(values) - 1) < 0.02);
    assert.ok(values.every((v) => v === 0 || Math.abs(v - 4 / 3) < 1e-6));
    assert.deepEqual(await list(dropout(ones([3]), 1)), [0, 0, 0]);
  });
  it("fills in place", async () => {
    const x = zeros([n]).uniform_(-1, 3);
    const v = await list(x);
    assert.ok(Math.abs(mean(v) - 1) < 0.04 && v.every((u) => u >= -1 && u < 3));
  });
});
