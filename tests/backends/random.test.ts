/**
 * Random numbers are a function of seed and counter, not of the backend: random bits and uniform numbers are equal bit for
 * bit on every backend present, normal ones to 10⁻⁶ (a logarithm and a cosine may differ in their last bit).
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { backendOf } from "../../src/execution/index.ts";
import * as o from "../../src/graph/ops.ts";
import { Generator, rand, randint, randn, randperm, type Tensor } from "../../src/tensor/index.ts";
import { backendsUnderTest } from "../support/backends.ts";
import { evaluate, nodeFrom } from "../support/evaluate.ts";

const reference = await backendOf("reference");
const others = (await backendsUnderTest()).filter(({ name }) => name !== "reference");
const lengths = [1, 2, 1023, 70_001];

for (const backend of others)
  describe(`random numbers on ${backend.name} are the reference's`, () => {
    for (const length of lengths)
      test(`${length} of uint32, bit for bit`, async () => {
        const [expected, got] = await Promise.all(
          [reference, backend].map((b) => {
            const [low, high] = [17, 4294967295].map((k) => nodeFrom(b, [k], [], "uint32"));
            return evaluate(b, [o.random([length], low, high)]);
          }),
        );
        assert.deepEqual(got, expected);
      });

    /** The same draw on both devices. */
    const drawn = (draw: (device: string, generator: Generator) => Tensor): Promise<ArrayLike<number>[]> =>
      Promise.all(
        ["reference", backend.name].map(
          async (device) => (await draw(device, new Generator(2n ** 40n + 3n)).data()) as Float32Array,
        ),
      );

    for (const length of lengths) {
      test(`${length} uniform, bit for bit`, async () => {
        const [expected, got] = await drawn((device, generator) => rand([length], { device, generator }));
        assert.deepEqual(got, expected);
      });
      test(`${length} normal, to 1e-6`, async () => {
        const [expected, got] = await drawn((device, generator) => randn([length], { device, generator }));
        for (let i = 0; i < length; i++)
          assert.ok(Math.abs(got[i] - expected[i]) <= 1e-6, `number ${i}: ${got[i]}, expected ${expected[i]}`);
      });
    }

    test("integers and permutations", async () => {
      for (const draw of [
        (device: string, generator: Generator) => randint(-5, 1000, [4097], { device, generator }),
        (device: string, generator: Generator) => randperm(333, { device, generator }),
      ]) {
        const [expected, got] = await drawn(draw);
        assert.deepEqual(got, expected);
      }
    });
  });
