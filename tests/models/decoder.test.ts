/** Decoders and their caches on every device present. Numbers against transformers are in tests/parity. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { programCounts, setDevice } from "../../src/execution/index.ts";
import { generate, generateBatch } from "../../src/generate/index.ts";
import { CausalLM, type DecoderConfig, GPT2 } from "../../src/models/index.ts";
import { Module } from "../../src/nn/index.ts";
import { AdamW } from "../../src/optim/index.ts";
import { manualSeed, noGrad, type Tensor, tensor, zeros } from "../../src/tensor/index.ts";
import { backendsUnderTest, isBrief } from "../support/backends.ts";
import { nativeDevice } from "../support/cpu.ts";
import { assertClose } from "../support/fixtures.ts";
import { tinyDecoder, tinyRotary } from "../support/tinyDecoder.ts";

const configOf = tinyDecoder;

/** A model with random weights. */
function tinyModel(change: Partial<DecoderConfig> = {}): CausalLM {
  manualSeed(5);
  return new CausalLM({ ...configOf(), ...change });
}

/** A model that can only compute its whole window. */
class WithoutCache extends Module {
  readonly inner: CausalLM | GPT2;
  constructor(inner: CausalLM | GPT2) {
    super();
    this.inner = inner;
  }
  get contextLength(): number {
    return this.inner.contextLength;
  }
  forward(ids: Tensor): Tensor {
    return this.inner.forward(ids);
  }
  logitsAt(ids: Tensor, position: number): Tensor {
    return this.inner.logitsAt(ids, position);
  }
}

for (const backend of (await backendsUnderTest()).filter((b) => !isBrief(b)))
  describe(`decoders on ${backend.name}`, () => {
    test("decoding compiles as many programs for 16 tokens as for 200", async () => {
      setDevice(backend.name);
      const model = tinyModel({ layers: configOf(7).layers });
      const maxNewTokens = backend.name === "reference" ? 40 : 200;
      const counts: number[] = [];
      const onToken = (): unknown => counts.push(programCounts(backend.name).made);
      const long = await generate(model, [1, 2, 3], { maxNewTokens, temperature: 0, onToken });
      assert.equal(counts.length, maxNewTokens);
      assert.equal(counts.at(-1), counts[15]);
      // another text, of another length, in another cache, in several pieces where there is time
      const taken = Math.min(150, maxNewTokens - 25);
      const prompt = [1, 2, 3, ...long.slice(0, taken)];
      const short = await generate(model, prompt, { maxNewTokens: 16, temperature: 0 });
      assert.equal(programCounts(backend.name).made, counts[15]);
      assert.deepEqual(short, long.slice(taken, taken + 16));
    });

    test("a text read in pieces through a cache has the logits of the text read at once", async () => {
      setDevice(backend.name);
      for (const change of [{}, { layers: configOf(3).layers }, { attentionSoftcap: 2 }]) {
        const model = tinyModel(change).eval();
        const text = [4, 9, 2, 2, 17, 5, 11, 3, 20];
        const ids = (part: readonly number[]) => tensor([[...part], [...part].reverse()], { dtype: "int32" });
        const cache = model.createCache({ batchSize: 2, capacity: 16 });
        const padded = [...text.slice(0, 4), 0, 0];
        const whole = await noGrad(() => model.forward(ids(text.slice(0, 4))).select(1, 3)).data();
        // rows of a batch are filled up alike, so only the first row is text here
        const first = await noGrad(() => model.decode(ids(padded), cache, 4)).data();
        assertClose("the first piece", first.slice(0, 23), whole.slice(0, 23), { rtol: 1e-4, atol: 1e-5 });
        await noGrad(() => model.decode(ids(text.slice(4, 8)), cache)).data();
        const got = await noGrad(() => model.decode(ids(text.slice(8)), cache)).data();
        const expected = await noGrad(() => model.forward(ids(text)).select(1, 8)).data();
        assertClose("the end", got.slice(0, 23), expected.slice(0, 23), { rtol: 1e-4, atol: 1e-5 });
        assert.equal(cache.length, 9);
        cache.truncate(4);
        await noGrad(() => model.decode(ids(text.slice(4, 8)), cache)).data();
        const again = await noGrad(() => model.decode(ids(text.slice(8)), cache)).data();
        assertClose("once more", again, got, { rtol: 1e-4, atol: 1e-5 });
        assert.throws(() => model.decode(zeros([2, 8], { dtype: "int32" }), cache), /8 tokens more than the 9/);
        assert.throws(() => model.decode(zeros([1, 1], { dtype: "int32" }), cache), /must be \[2, time\]/);
      }
    });
  });

test("decoding compiles as many programs for 16 tokens as for 2,048", {
  skip: process.env["NABLA_LONG"] !== "1" && "2,048 tokens under NABLA_LONG=1",
}, async () => {
  const device = nativeDevice();
  setDevice(device);
  const sizes = { vocabSize: 23, numLayers: 2, numHeads: 2, hiddenSize: 16, contextLength: 2200 };
  for (const model of [tinyModel({ contextLength: 2200, layers: configOf(7).layers }), new GPT2(sizes)]) {
    const counts: number[] = [];
    const onToken = (): unknown => counts.push(programCounts(device).made);
    await generate(model, [1, 2, 3], { maxNewTokens: 2048, temperature: 0, onToken });
    assert.equal(counts.length, 2048);
    assert.equal(counts.at(-1), counts[15]);
    // several rows, and lengths that begin elsewhere
    const many: number[] = [];
    const prompts = [[4, 5], Array.from({ length: 100 }, (_, i) => i % 23)];
    const onRow = (_: number, row: number): unknown => row === 0 && many.push(programCounts(device).made);
    await generateBatch(model, prompts, { maxNewTokens: 2048, temperature: 0, onToken: onRow });
    assert.equal(many.length, 2048);
    assert.equal(many.at(-1), many[15]);
  }
});

test("beyond the context, tokens through a cache are those of the whole window", async () => {
  setDevice(nativeDevice());
  manualSeed(3);
  const small = { vocabSize: 11, contextLength: 8, numLayers: 2, numHeads: 2, hiddenSize: 16, initializerRange: 0.5 };
  for (const model of [tinyModel({ contextLength: 8 }), new GPT2(small)]) {
    const options = { maxNewTokens: 14, temperature: 0 };
    const expected = await generate(new WithoutCache(model), [1, 2, 3], options);
    assert.deepEqual(await generate(model, [1, 2, 3], options), expected);
  }
});

test("texts generated together are those generated alone", async () => {
  setDevice(nativeDevice());
  manualSeed(8);
  const gpt = new GPT2({
    vocabSize: 23,
    contextLength: 64,
    numLayers: 2,
    numHeads: 2,
    hiddenSize: 16,
    initializerRange: 0.5,
  });
  const prompts = [[5, 1, 7, 2, 9, 11], [3], [8, 8, 20]];
  for (const model of [tinyModel({ layers: configOf(4).layers }), tinyModel({ attentionSoftcap: 2 }), gpt]) {
    const options = { maxNewTokens: 12, temperature: 0 };
    const alone: number[][] = [];
    for (const prompt of prompts) alone.push(await generate(model, prompt, options));
    assert.deepEqual(await generateBatch(model, prompts, options), alone);
    const stopped = await generateBatch(model, prompts, { ...options, stopTokens: [alone[1][2]] });
    assert.deepEqual(stopped[1], alone[1].slice(0, alone[1].indexOf(alone[1][2]) + 1));
    const hot = { maxNewTokens: 6, temperature: 1.3, topK: 8, seed: 4, repetitionPenalty: 1.2 };
    assert.deepEqual((await generateBatch(model, prompts, hot))[0], await generate(model, prompts[0], hot));
    const seen: [number, number][] = [];
    await generateBatch(model, prompts, {
      ...options,
      maxNewTokens: 2,
      onToken: (token, row) => seen.push([row, token]),
    });
    assert.deepEqual(
      seen,
      [0, 1].flatMap((i) => alone.map((tokens, row) => [row, tokens[i]])),
    );
  }
  await assert.rejects(generateBatch(gpt, [[1], []], { maxNewTokens: 1 }), /prompt 1 is empty/);
  await assert.rejects(generateBatch(gpt, [[1]], { maxNewTokens: 64 }), /do not fit into a context of 64/);
  assert.deepEqual(await generateBatch(gpt, [], { maxNewTokens: 3 }), []);
});

test("angles that follow the text's length are those of the text, in pieces, as it grows, and beside others", async () => {
  setDevice("reference"); // every length would be compiled elsewhere
  const scaling = {
    frequencies: (width: number, theta: number, length: number) => {
      const plain = tinyRotary.scaling.frequencies(width, theta);
      return { ...plain, values: plain.values.map((f) => (length > 9 ? f / 3 : f)) };
    },
    key: (length: number) => (length > 9 ? "long" : ""),
    readsAgain: true,
  };
  const rotary = { ...tinyRotary, scaling };
  const model = tinyModel({ initializerRange: 0.5, layers: [0, 1].map(() => ({ window: null, rotary })) }).eval();
  const prompts = [
    [3, 9, 4, 1, 7],
    Array.from({ length: 66 }, (_, i) => (i * 5) % 23), // read in two pieces
  ];
  const maxNewTokens = 7;
  const expected: number[][] = [];
  for (const prompt of prompts) {
    const text = [...prompt];
    while (text.length < prompt.length + maxNewTokens) {
      const ids = tensor(Int32Array.from(text), { shape: [1, text.length] });
      const logits = await noGrad(() => model.forward(ids).select(1, text.length - 1)).data();
      text.push(logits.indexOf(Math.max(...(logits as Float32Array))));
    }
    expected.push(text.slice(prompt.length));
    assert.deepEqual(await generate(model, prompt, { maxNewTokens, temperature: 0 }), text.slice(prompt.length));
  }
  assert.deepEqual(await generateBatch(model, [prompts[0], prompts[0]], { maxNewTokens, temperature: 0 }), [
    expected[0],
    expected[0],
  ]);
});

test("examples packed into a row do not see each other", async () => {
  setDevice(nativeDevice());
  const gpt = new GPT2({ vocabSize: 23, contextLength: 8, numLayers: 2, numHeads: 2, hiddenSize: 16 });
  const changes = [{}, { layers: configOf(2).layers }, { attentionSoftcap: 2 }];
  for (const model of [...changes.map(tinyModel), gpt]) {
    model.eval();
    const [first, second] = [
      [3, 9, 4, 1],
      [7, 2, 8],
    ];
    const row = (numbers: readonly number[]) => tensor([[...numbers]], { dtype: "int32" });
    const packing = { segments: row([1, 1, 1, 1, 2, 2, 2]), positions: row([0, 1, 2, 3, 0, 1, 2]) };
    const both = await noGrad(() => model.forward(row([...first, ...second]), undefined, packing)).data();
    const alone = [first, second].map((ids) => noGrad(() => model.forward(row(ids))).data());
    assertClose("rows", both, [...(await alone[0]), ...(await alone[1])], { rtol: 1e-4, atol: 1e-5 });
  }
});

test("a decoder learns, with dropped attention weights too", async () => {
  setDevice(nativeDevice());
  const model = tinyModel({ attentionDropout: 0.1 });
  const optimizer = new AdamW(model.parameters(), { lr: 1e-2 });
  const ids = tensor([[1, 5, 2, 7, 3, 9, 4, 11]], { dtype: "int32" });
  const losses: number[] = [];
  for (let step = 0; step < 30; step++) {
    const loss = model.forward(ids.narrow(1, 0, 7), ids.narrow(1, 1, 7));
    optimizer.zeroGrad();
    loss.backward();
    await optimizer.step();
    losses.push(await loss.item());
  }
  assert.ok(losses[29] < losses[0] / 2, `from ${losses[0]} to ${losses[29]}`);
});

test("recomputed blocks give the same loss and gradients, dropout included", async () => {
  const device = nativeDevice();
  setDevice(device);
  const base = { vocabSize: 64, contextLength: 128, numLayers: 6, numHeads: 2, hiddenSize: 64, dropout: 0.1 };
  const outcome = async (recompute: boolean): Promise<Float32Array[]> => {
    manualSeed(3);
    const model = new GPT2(base);
    model.recompute = recompute;
    model.train();
    const ids = tensor(
      Int32Array.from({ length: 256 }, (_, i) => (i * 7) % 64),
      { shape: [2, 128] },
    );
    const loss = model.forward(ids, ids);
    loss.backward();
    const out = [await loss.data()];
    for (const parameter of model.parameters()) out.push((await parameter.grad!.data()) as Float32Array);
    return out as Float32Array[];
  };
  const [kept, again] = [await outcome(false), await outcome(true)];
  kept.forEach((values, i) => {
    assertClose(`tensor ${i}`, again[i], values, { rtol: 1e-4, atol: 1e-6 });
  });
});
