/** Tokens that are chosen on the device: those that the logits say, at every length and in every row. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { setDevice } from "../../src/execution/index.ts";
import { generate, generateBatch } from "../../src/generate/index.ts";
import { cacheReader, sizesFor, windowReader } from "../../src/generate/readers.ts";
import { constant } from "../../src/graph/ops.ts";
import { likeliest } from "../../src/models/greedy.ts";
import { CausalLM, GPT2, type KeyValueCache } from "../../src/models/index.ts";
import { manualSeed, noGrad, realize, type Tensor, tensor } from "../../src/tensor/index.ts";
import { backendsUnderTest, isBrief } from "../support/backends.ts";
import { tinyDecoder } from "../support/tinyDecoder.ts";

const decoder = (): CausalLM => {
  manualSeed(5);
  return new CausalLM(tinyDecoder()).eval() as CausalLM;
};
const gpt2 = (): GPT2 => {
  manualSeed(6);
  const sizes = { vocabSize: 23, contextLength: 64, numLayers: 2, numHeads: 2, hiddenSize: 16, initializerRange: 0.5 };
  return new GPT2({ ...sizes, dropout: 0.2 }).eval() as GPT2;
};

const idsOf = (tokens: ArrayLike<number>): Tensor =>
  tensor(Int32Array.from(tokens), { shape: [tokens.length, 1], dtype: "int32" });

/** The first of the largest of each row. */
function rowsOf(logits: ArrayLike<number>, rows: number): number[] {
  const width = logits.length / rows;
  return Array.from({ length: rows }, (_, row) => {
    const own = Array.from(logits).slice(row * width, (row + 1) * width);
    return own.indexOf(Math.max(...own));
  });
}

for (const backend of await backendsUnderTest())
  describe(`greedy tokens on ${backend.name}`, () => {
    test("the first of the largest of each row; −1 where one is NaN, wherever it stands", async () => {
      setDevice(backend.name);
      const rows = [
        [1, 7, 3, 7],
        [-2, -3, -1, -Infinity],
        [NaN, 9, 1, 2],
        [5, 1, 2, NaN],
        [Infinity, 1, 2, 3],
        [-Infinity, -Infinity, -Infinity, -Infinity],
      ];
      const got = likeliest(tensor(rows));
      assert.deepEqual([got.shape, got.dtype], [[6, 1], "int32"]);
      assert.deepEqual(Array.from(await got.data()), [1, 2, -1, -1, 0, 0]);
      const wide = Float32Array.from({ length: 2 * 40_001 }, (_, i) => Math.sin(i * i) * 3);
      assert.deepEqual(Array.from(await likeliest(tensor(wide, { shape: [2, 40_001] })).data()), rowsOf(wide, 2));
    });

    if (isBrief(backend)) return;

    for (const make of [decoder, gpt2])
      test(`${make().constructor.name}: as by the logits, step by step, in batches and where both kinds take turns`, async () => {
        setDevice(backend.name);
        for (const rows of [1, 3]) {
          const model = make();
          await realize(...model.parameters());
          const caches = [0, 1, 2].map(() => model.createCache({ batchSize: rows, capacity: 40 }));
          const byLogits = async (ids: Tensor, cache: KeyValueCache): Promise<number[]> =>
            rowsOf(await noGrad(() => model.decode(ids, cache)).data(), rows);
          let tokens: ArrayLike<number> = Array.from({ length: rows }, (_, row) => 3 + row);
          const made: number[] = [];
          for (let step = 0; step < 6; step++) {
            const ids = idsOf(tokens);
            const before = constant(0, "float32").id;
            const chosen = noGrad(() => model.decodeGreedy(ids, caches[0]));
            made.push(constant(0, "float32").id - before);
            assert.deepEqual(chosen.shape, [rows, 1]);
            const got = Array.from(await chosen.data());
            assert.deepEqual(got, await byLogits(ids, caches[1]), `step ${step}`);
            const inTurn =
              step % 3 === 0
                ? await byLogits(ids, caches[2])
                : Array.from(await noGrad(() => model.decodeGreedy(ids, caches[2])).data());
            assert.deepEqual(inTurn, got, `step ${step}, in turn`);
            tokens = got;
          }
          if (!backend.name.endsWith("webgpu"))
            assert.ok(
              made.slice(1).every((nodes) => nodes < made[0] / 2),
              `repeated steps record next to nothing: ${made}`,
            );
        }
      });

    test("generate and generateBatch: the tokens that are drawn from logits where only the likeliest is left", async () => {
      setDevice(backend.name);
      for (const model of [decoder(), gpt2()]) {
        // of a temperature that is nearly 0 nothing but the likeliest is left
        const [greedy, drawn] = [0, 1e-6].map((temperature) => ({ maxNewTokens: 12, temperature }));
        assert.deepEqual(await generate(model, [3, 1, 4], greedy), await generate(model, [3, 1, 4], drawn));
        const prompts = [[3, 1, 4], [1], [5, 9, 2, 6]];
        assert.deepEqual(await generateBatch(model, prompts, greedy), await generateBatch(model, prompts, drawn));
      }
    });

    test("a long prompt, read in pieces of both lengths, gives the logits of its whole window", async () => {
      setDevice(backend.name);
      manualSeed(8);
      const model = new CausalLM({ ...tinyDecoder(), contextLength: 640 }).eval() as CausalLM;
      const text = Array.from({ length: 600 }, (_, i) => (i * i + 3) % tinyDecoder().vocabSize);
      const { pieceLengths } = sizesFor(620, 640);
      assert.deepEqual(pieceLengths, [512, 64]);
      assert.deepEqual(
        [sizesFor(500, 640), sizesFor(620, 640, 3)].map((sizes) => sizes.pieceLengths),
        [[64], [64]],
      );
      const [byPieces, whole] = [cacheReader(model, 620, "decode"), windowReader(model)];
      for (let more = 0; more < 2; more++) {
        const [got, expected] = await Promise.all([byPieces, whole].map(async (read) => (await read(text)).data()));
        got.forEach((x, i) => {
          assert.ok(Math.abs(x - expected[i]) < 1e-4 + 1e-4 * Math.abs(expected[i]), `${i}: ${x}, ${expected[i]}`);
        });
        text.push(5);
      }
      const rows = [text.slice(0, 540), text.slice(3, 600)];
      const options = { maxNewTokens: 4, temperature: 0 };
      const alone = [await generate(model, rows[0], options), await generate(model, rows[1], options)];
      assert.deepEqual(await generateBatch(model, rows, options), alone);
    });

    test("a weight that is NaN is told and no token is given", async () => {
      setDevice(backend.name);
      const model = decoder();
      const { weight } = model.model.norm as unknown as { readonly weight: Tensor };
      noGrad(() => weight.fill_(Number.NaN));
      const options = { maxNewTokens: 3, temperature: 0 };
      await assert.rejects(generate(model, [1, 2], options), /the model gave NaN/);
      await assert.rejects(generateBatch(model, [[1, 2], [3]], options), /the model gave NaN/);
    });

    test("a class that changes what decode gives, and an object that does, are obeyed", async () => {
      setDevice(backend.name);
      const only = (token: number) =>
        tensor(Float32Array.from({ length: tinyDecoder().vocabSize }, (_, i) => (i === token ? 1e4 : 0)));
      class Stubborn extends CausalLM {
        override decode(...args: Parameters<CausalLM["decode"]>): Tensor {
          return super.decode(...args).add(only(7));
        }
      }
      const options = { maxNewTokens: 3, temperature: 0 };
      assert.deepEqual(await generate(new Stubborn(tinyDecoder()), [1, 2], options), [7, 7, 7]);
      const model = decoder();
      const { decode } = model;
      model.decode = (...args) => decode.apply(model, args).add(only(9));
      assert.deepEqual(await generate(model, [1, 2], options), [9, 9, 9]);
      assert.deepEqual(await generateBatch(model, [[1], [2, 3]], options), [
        [9, 9, 9],
        [9, 9, 9],
      ]);
    });
  });
