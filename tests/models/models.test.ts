/** Models: counts, names, learning on every device present. GPT-2's numbers against PyTorch are in tests/parity. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { Rng } from "../../src/core/rng.ts";
import { programCounts, setDevice } from "../../src/execution/index.ts";
import { generate, penalizeRepetition, sampleLogits } from "../../src/generate/index.ts";
import { Ranking } from "../../src/generate/ranking.ts";
import {
  adaptGPT2StateDict,
  ConvNet,
  GPT2,
  gpt2FlopsPerStep,
  gpt2ParameterCount,
  MLP,
} from "../../src/models/index.ts";
import { functional as F } from "../../src/nn/index.ts";
import { Adam, AdamW, clipGradNorm_, warmupCosine } from "../../src/optim/index.ts";
import { manualSeed, ones, type Tensor, tensor } from "../../src/tensor/index.ts";
import { backendsUnderTest, isBrief } from "../support/backends.ts";

const tiny = { vocabSize: 11, contextLength: 8, numLayers: 2, numHeads: 2, hiddenSize: 16 };

test("GPT-2 small has 124,439,808 parameters, counted and made", () => {
  setDevice("reference");
  assert.equal(
    gpt2ParameterCount({ vocabSize: 50257, contextLength: 1024, numLayers: 12, numHeads: 12, hiddenSize: 768 }),
    124439808,
  );
  for (const bias of [true, false])
    assert.equal(new GPT2({ ...tiny, bias }).parameterCount(), gpt2ParameterCount({ ...tiny, bias }));
  const narrow = { ...tiny, intermediateSize: 24 };
  assert.equal(new GPT2(narrow).parameterCount(), gpt2ParameterCount(narrow));
  // per token: forward 2 (12 L d² + V d) + 4 T d L, thrice that with the backward pass
  assert.equal(gpt2FlopsPerStep(tiny, { batchSize: 3 }), 3 * (2 * (12 * 2 * 256 + 11 * 16) + 4 * 8 * 16 * 2) * 24);
});

test("its parameters have Hugging Face's names, layouts and starting values", async () => {
  setDevice("reference");
  manualSeed(1);
  const model = new GPT2({ ...tiny, hiddenSize: 64 });
  const sd = model.stateDict();
  const block = ["ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight"];
  const more = ["attn.c_proj.bias", "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias"];
  const rest = ["mlp.c_proj.weight", "mlp.c_proj.bias"];
  assert.deepEqual(Object.keys(sd), [
    ...["transformer.wte.weight", "transformer.wpe.weight"],
    ...[0, 1].flatMap((i) => [...block, ...more, ...rest].map((name) => `transformer.h.${i}.${name}`)),
    ...["transformer.ln_f.weight", "transformer.ln_f.bias"],
  ]);
  assert.deepEqual(sd["transformer.h.0.attn.c_attn.weight"].shape, [64, 192]);
  const std = async (name: string): Promise<number> => (await sd[name].std()).item();
  assert.ok(Math.abs((await std("transformer.h.0.mlp.c_fc.weight")) / 0.02 - 1) < 0.03);
  assert.ok(Math.abs((await std("transformer.h.1.mlp.c_proj.weight")) / 0.01 - 1) < 0.03); // 0.02 / √4

  const old: Record<string, Tensor> = { "lm_head.weight": ones([1]), "h.0.attn.bias": ones([1]) };
  for (const [key, x] of Object.entries(sd)) old[key.replace("transformer.", "")] = x;
  assert.deepEqual(Object.keys(adaptGPT2StateDict(old)).sort(), Object.keys(sd).sort());
});

test("mistakes in a configuration or in the ids are named", () => {
  setDevice("reference");
  assert.throws(() => new GPT2({ ...tiny, numHeads: 3 }), /3 heads do not divide a hidden size of 16/);
  assert.throws(() => new GPT2({ ...tiny, numLayers: 0 }), /numLayers must be a whole number ≥ 1/);
  assert.throws(() => new GPT2(tiny).forward(ones([1, 9]).to("int32")), /with 1 … 8 tokens, got \[1, 9\]/);
  assert.throws(() => new MLP({ sizes: [3] }), /at least an input and an output/);
  assert.throws(() => new ConvNet({ imageSize: [3, 28] }), /at least 4×4/);
});

test("dropout acts in training only", async () => {
  setDevice("reference");
  const model = new GPT2({ ...tiny, dropout: 0.5 });
  const ids = tensor([[1, 2, 3]], { dtype: "int32" });
  const [a, b] = [await model.forward(ids).data(), await model.forward(ids).data()];
  assert.notDeepEqual(a, b);
  model.eval();
  assert.deepEqual(await model.forward(ids).data(), await model.forward(ids).data());
});

test("sampling: the likeliest, the k likeliest, the likeliest by mass, the seed", () => {
  const logits = [0, 3, 1, 3, -2];
  assert.equal(sampleLogits(logits, new Rng(1), { temperature: 0 }), 1);
  const draw = (options: object): Set<number> => {
    const rng = new Rng(4);
    return new Set(Array.from({ length: 500 }, () => sampleLogits(logits, rng, options)));
  };
  assert.deepEqual([...draw({ topK: 2 })].sort(), [1, 3]);
  assert.deepEqual([...draw({ topP: 0.5 })].sort(), [1, 3]);
  assert.deepEqual([...draw({ temperature: 3 })].sort(), [0, 1, 2, 3, 4]);
  assert.deepEqual([...draw({ temperature: 3, minP: 0.5 })].sort(), [1, 2, 3]); // e^(−2/3) of the likeliest, and e^(−1)
  assert.deepEqual([...draw({ minP: 1 })].sort(), [1, 3]);
  assert.throws(() => sampleLogits(logits, new Rng(1), { minP: 2 }), /minP/);
  assert.deepEqual(Array.from(penalizeRepetition(logits, [1, 4, 4], 2)), [0, 1.5, 1, 3, -4]);
  assert.throws(() => penalizeRepetition(logits, [], 0), /repetitionPenalty/);
  assert.throws(() => sampleLogits([NaN, 1], new Rng(1)), /the model gave NaN for token 0/);
  assert.throws(() => sampleLogits(logits, new Rng(1), { temperature: -1 }), /temperature/);
  assert.throws(() => sampleLogits(logits, new Rng(1), { topK: 0 }), /topK/);
});

test("each class is drawn as often as its probability says, of logits in any type", () => {
  const logits = [Number.NEGATIVE_INFINITY, 1, 3, 3, 0, -2, Number.NEGATIVE_INFINITY];
  const at = (uniform: number, given: ArrayLike<number>, temperature: number): number =>
    sampleLogits(given, { uniform: () => uniform } as Rng, { temperature });
  for (const temperature of [0.5, 1, 3])
    for (const given of [logits, Float32Array.from(logits), Float64Array.from(logits)]) {
      const weights = logits.map((x) => Math.exp(x / temperature));
      const total = weights.reduce((a, b) => a + b);
      let below = 0;
      weights.forEach((weight, token) => {
        // the classes share the numbers from 0 to 1 in their order
        const [from, to] = [below / total, (below += weight) / total];
        if (weight === 0) return;
        for (const part of [0.01, 0.5, 0.99]) assert.equal(at(from + part * (to - from), given, temperature), token);
      });
      assert.equal(at(0, given, temperature), 1);
      assert.equal(at(1, given, temperature), 5, "what rounding leaves is the last that can be drawn");
    }
});

test("a large vocabulary is ranked as a sort ranks it, whatever is asked for", () => {
  const rng = new Rng(9);
  const logits = Float64Array.from({ length: 5000 }, (_, i) =>
    i % 97 === 0 ? Number.NEGATIVE_INFINITY : Math.round(400 * rng.uniform() ** 3) / 40,
  );
  const sorted = Array.from(logits, (_, i) => i).sort((a, b) => logits[b] - logits[a] || a - b);
  for (const asked of [[0], [63, 64], [700, 3, 4999], [4999, 0]]) {
    const ranking = new Ranking(logits);
    for (const k of asked) assert.equal(ranking.at(k), sorted[k]);
  }
  assert.equal(new Ranking(Float64Array.of(2, 2, 2)).at(1), 1);
  const k = 40;
  const seen = new Set(Array.from({ length: 2000 }, () => sampleLogits(logits, rng, { topK: k, temperature: 50 })));
  assert.deepEqual([...seen].sort(), sorted.slice(0, k).sort());
});

for (const { name: device } of (await backendsUnderTest()).filter((backend) => !isBrief(backend)))
  describe(`on ${device}`, () => {
    test("an MLP learns XOR", async () => {
      setDevice(device);
      manualSeed(3);
      const model = new MLP({ sizes: [2, 8, 1], activation: "tanh" });
      const optimizer = new Adam(model.parameters(), { lr: 0.05 });
      const x = tensor([
        [0, 0],
        [0, 1],
        [1, 0],
        [1, 1],
      ]); // prettier-ignore
      const y = tensor([[0], [1], [1], [0]]);
      for (let step = 0; step < 300; step++) {
        F.binaryCrossEntropyWithLogits(model.forward(x), y).backward();
        await optimizer.step();
        optimizer.zeroGrad();
      }
      const p = await model.forward(x).sigmoid().data();
      assert.deepEqual(Array.from(p, Math.round), [0, 1, 1, 0]);
      assert.ok(p.every((v, i) => Math.abs(v - [0, 1, 1, 0][i]) < 0.1));
    });

    test("a small ConvNet learns which quadrant is bright", async () => {
      setDevice(device);
      manualSeed(4);
      const model = new ConvNet({ imageSize: [8, 8], channels: [4, 8], hiddenSize: 16, numClasses: 4 });
      const optimizer = new Adam(model.parameters(), { lr: 0.01 });
      const labels = Int32Array.from({ length: 32 }, (_, i) => i % 4);
      const pixels = Float32Array.from({ length: 32 * 64 }, (_, i) => {
        const [n, row, column] = [Math.floor(i / 64), Math.floor((i % 64) / 8), i % 8];
        return (row < 4 ? 0 : 2) + (column < 4 ? 0 : 1) === labels[n]
          ? 1 + ((n * 7 + i) % 5) / 10
          : ((n * 3 + i) % 7) / 20;
      });
      const [x, y] = [tensor(pixels, { shape: [32, 1, 8, 8] }), tensor(labels)];
      let logits = model.forward(x);
      for (let step = 0; step < 40; step++) {
        logits = model.forward(x);
        F.crossEntropy(logits, y).backward();
        await optimizer.step();
        optimizer.zeroGrad();
      }
      // read after the step: what the outermost forward gave is kept
      assert.deepEqual([...(await logits.argmax(1).data())], [...labels]);
    });

    test("a tiny GPT-2 learns a sequence that repeats, and goes on with it, all in four programs", async () => {
      setDevice(device);
      manualSeed(5);
      const model = new GPT2(tiny);
      const optimizer = new AdamW(model.parameters(), { lr: 0.01 });
      const schedule = warmupCosine(optimizer, { warmupSteps: 10, totalSteps: 180 });
      const before = programCounts(device).made;
      const at = (i: number): number => (i * i) % 7; // 0 1 4 2 2 4 1: what follows 4 depends on what was before
      let loss = Number.NaN;
      for (let step = 0; step < 180; step++) {
        const ids = Int32Array.from({ length: 4 * 9 }, (_, i) => at(step + Math.floor(i / 9) + (i % 9)));
        const windows = tensor(ids, { shape: [4, 9] });
        const value = model.forward(windows.narrow(1, 0, 8), windows.narrow(1, 1, 8));
        value.backward();
        clipGradNorm_(model.parameters(), 1);
        await optimizer.step();
        optimizer.zeroGrad();
        schedule.step();
        if (step === 179) loss = await value.item();
      }
      assert.ok(loss < 0.5, `loss ${loss}`); // the first tokens of a window can't be known
      const greedy = { maxNewTokens: 20, temperature: 0 };
      const seen: number[] = [];
      const prompt = [0, 1, 4, 2];
      const text = await generate(model, prompt, { ...greedy, onToken: (token) => seen.push(token) });
      assert.deepEqual(
        text,
        Array.from({ length: 20 }, (_, i) => at(4 + i)),
      );
      assert.deepEqual(seen, text);
      assert.equal(programCounts(device).made - before, 4, "starting values, the step, a piece of text, a token");
      assert.deepEqual(await generate(model, prompt, { ...greedy, stopTokens: [2] }), [2]);
      assert.deepEqual(await generate(model, prompt, { ...greedy, onToken: () => false }), [2]);
      const hot = { maxNewTokens: 12, temperature: 1.5, seed: 9 };
      assert.deepEqual(await generate(model, prompt, hot), await generate(model, prompt, hot));
      assert.ok(model.training, "the mode is as it was");
      await assert.rejects(generate(model, [], greedy), /the prompt is empty/);
    });

    test("logits at a position are those of the whole; the loss is that of the logits", async () => {
      setDevice(device);
      manualSeed(6);
      const model = new GPT2(tiny).eval();
      const ids = tensor([[3, 1, 4, 1, 5, 9, 2, 6]], { dtype: "int32" });
      const logits = model.forward(ids);
      const all = await logits.data();
      const one = await model.logitsAt(ids, 4).data();
      one.forEach((v, i) => {
        assert.ok(Math.abs(v - all[4 * 11 + i]) < 1e-5);
      });
      const targets = tensor([[1, 4, 1, 5, 9, 2, 6, 5]], { dtype: "int32" });
      const expected = await F.crossEntropy(logits.flatten(0, 1), targets.flatten()).item();
      assert.ok(Math.abs((await model.forward(ids, targets).item()) - expected) < 1e-5);
    });
  });
