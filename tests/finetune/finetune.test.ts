/** finetune: a model is measured, trained and measured again; what it keeps, what a resumed run gives, and what is refused. */
import assert from "node:assert/strict";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, test } from "node:test";
import { Rng } from "../../src/core/rng.ts";
import { paddedLength } from "../../src/data/padding.ts";
import { setDevice } from "../../src/execution/index.ts";
import {
  applyLora,
  type ClassExample,
  classTask,
  compare,
  type FinetuneOptions,
  finetune,
  formatResult,
  languageTask,
  loadAdapter,
  type Measurement,
  measure,
  type TokenBatch,
  TokenBatches,
  type TokenExample,
} from "../../src/finetune/index.ts";
import { load } from "../../src/formats/index.ts";
import { GPT2, MLP } from "../../src/models/index.ts";
import * as F from "../../src/nn/functional.ts";
import { inEvaluation } from "../../src/nn/module.ts";
import { AdamW } from "../../src/optim/index.ts";
import { manualSeed, noGrad, type Tensor } from "../../src/tensor/index.ts";
import { fit } from "../../src/train/index.ts";
import { nativeDevice } from "../support/cpu.ts";
import { assertClose } from "../support/fixtures.ts";

setDevice(nativeDevice());
const rooms: string[] = [];
const room = (): string => {
  const path = mkdtempSync(join(tmpdir(), "nabla-finetune-"));
  rooms.push(path);
  return path;
};
after(() => {
  for (const path of rooms) rmSync(path, { recursive: true, force: true });
});

const vocabulary = 11;

/** Numbers that go up by `by` from a random one, each time with a wrong one somewhere. */
function counting(by: number, count: number, seed: number): TokenExample[] {
  const rng = new Rng(seed);
  return Array.from({ length: count }, () => {
    let token = Math.floor(rng.uniform() * vocabulary);
    const length = 6 + Math.floor(rng.uniform() * 9);
    const ids = Array.from({ length }, () => (token = (token + by) % vocabulary));
    ids[Math.floor(rng.uniform() * length)] = Math.floor(rng.uniform() * vocabulary);
    return { ids };
  });
}

/** A model that counts by one. */
async function pretrained(): Promise<GPT2> {
  manualSeed(5);
  const model = new GPT2({ vocabSize: vocabulary, contextLength: 24, numLayers: 1, numHeads: 2, hiddenSize: 24 });
  const task = languageTask();
  await fit<GPT2, TokenBatch>(model, {
    train: task.training(model, counting(1, 64, 1), { batch: 16, seed: 0 }),
    batchLoss: task.loss,
    optimizer: new AdamW(model.parameters(), { lr: 0.01 }),
    epochs: 12,
  });
  return model;
}
const weights = (await pretrained()).stateDict();
function model(): GPT2 {
  const fresh = new GPT2({
    vocabSize: vocabulary,
    contextLength: 24,
    numLayers: 1,
    numHeads: 2,
    hiddenSize: 24,
    dropout: 0.05,
  });
  fresh.loadStateDict(weights);
  manualSeed(7);
  return fresh;
}

const data = counting(2, 96, 2);
const evaluation = counting(2, 40, 3);
const options = { data, evaluation, epochs: 6, lr: 0.02, batch: 16 } satisfies FinetuneOptions<
  GPT2,
  TokenExample,
  TokenBatch
>;

describe("finetune", () => {
  test("makes a language model better at another kind of sequence, shows it, and saves the adapter", async () => {
    const out = room();
    const tuned = applyLora(model(), { r: 4, alpha: 8 });
    const tokenizer = {
      encode: (text: string) => text.split(" ").map(Number),
      decode: (ids: ArrayLike<number>) => Array.from(ids).join(" "),
    };
    const result = await finetune(tuned, {
      ...options,
      out,
      samples: { prompts: ["1 3 5"], maxNewTokens: 3, temperature: 0, tokenizer },
    });
    assert.ok(result.difference.loss.value < -0.3, String(result.difference.loss.value));
    assert.ok((result.difference.loss.interval as [number, number])[1] < 0);
    assert.ok(result.after.accuracy > result.before.accuracy + 0.2);
    assert.equal(
      result.before.targets,
      evaluation.reduce((n, { ids }) => n + ids.length - 1, 0),
    );
    assert.deepEqual(
      result.samples.map(({ after: text }) => text),
      [" 7 9 0"], // goes on with its prompt
    );
    const text = formatResult(result);
    assert.match(text, /loss +\d\.\d{4} +→ +\d\.\d{4} +−\d\.\d{4} {2}\[−\d\.\d{4}, −\d\.\d{4}\]/);
    assert.match(text, /40 examples, \d+ targets/);
    const long = formatResult({ ...result, samples: [{ ...result.samples[0], prompt: `${"🦊".repeat(500)}end` }] });
    assert.match(long, /\n"… (🦊){397}end"\n {2}before/u);
    assert.match(text, /"1 3 5"\n {2}before .*\n {2}after {4}7 9 0/);
    const saved = JSON.parse(readFileSync(join(out, "evaluation.json"), "utf8"));
    assert.equal(saved.after.loss, result.after.loss);
    assert.equal(saved.before.examples.loss.length, 40);
    assert.equal(readFileSync(join(out, "metrics.jsonl"), "utf8").trim().split("\n").length, 36);
    const loaded = await loadAdapter(model(), out);
    const again = await measure(loaded, languageTask(), evaluation);
    assertClose("loss", [again.loss], [result.after.loss], { rtol: 1e-6, atol: 0 });
    // with the adapter off it is the old model
    const off = await tuned.withoutAdapter(() => measure(tuned, languageTask(), evaluation));
    assertClose("loss", [off.loss], [result.before.loss], { rtol: 1e-6, atol: 0 });
  });

  test("says of the evaluation what was cut and what could not be measured, and its interval is that of a later comparison", async () => {
    const [whole, long, late] = [
      [1, 3, 5],
      [1, 3, 5, 7, 9, 0],
      [1, 3, 5, 7, 9, 0],
    ];
    const labels = late.map((id, i) => (i === 5 ? id : -100));
    const task = languageTask({ maxLength: 4 });
    const data = [...counting(2, 8, 2), { ids: long }];
    const trainedOn: number[] = [];
    const result = await finetune(model(), {
      data,
      evaluation: [{ ids: whole }, { ids: long }, { ids: late, labels }],
      task: {
        ...task,
        training: (model, examples, options) => {
          trainedOn.push(examples.length);
          return task.training(model, examples, options);
        },
      },
      steps: 1,
      seed: 3,
    });
    assert.equal(result.evaluationTruncated, 2);
    assert.equal(result.truncated, data.filter(({ ids }) => ids.length > 5).length);
    assert.deepEqual(trainedOn, [data.length]); // nothing is made of the evaluation's only to be counted
    const text = formatResult(result);
    assert.match(
      text,
      /2 examples, 6 targets; 1 more, of which nothing that counts stands within a row, were left out/,
    );
    assert.match(text, /of the evaluation's examples, longer than a row and cut off: 2/);
    const later = compare(result.before, result.after);
    assert.deepEqual(result.difference.loss.interval, later.loss.interval);
  });

  test("goes on after a stop with the bits of a run that was never stopped", async () => {
    const full = room();
    const whole = await finetune(applyLora(model(), { r: 2, dropout: 0.1 }), {
      ...options,
      epochs: 3,
      out: full,
      accumulate: 2,
    });
    const out = room();
    const stop = new AbortController();
    const broken = await finetune(applyLora(model(), { r: 2, dropout: 0.1 }), {
      ...options,
      epochs: 3,
      out,
      accumulate: 2,
      checkpointEvery: 2,
      signal: stop.signal,
      callbacks: [
        { name: "stop", wants: (step) => step === 4, onStep: (run) => void (run.step === 4 && stop.abort()) },
      ],
    });
    assert.equal(broken.training.ended, "aborted");
    const resumed = await finetune(applyLora(model(), { r: 2, dropout: 0.1 }), {
      ...options,
      epochs: 3,
      out,
      accumulate: 2,
      checkpointEvery: 2,
      resume: true,
    });
    assert.equal(resumed.after.loss, whole.after.loss);
    assert.equal(resumed.before.loss, whole.before.loss);
    const file = "adapter_model.safetensors";
    assert.deepEqual(readFileSync(join(out, file)), readFileSync(join(full, file)));
    // checkpoints hold what is learnt, not the frozen model
    const kept = Object.keys(await load(join(out, "checkpoints", "model.safetensors")));
    assert.ok(kept.length > 0 && kept.every((key) => /\.lora_[AB]\.weight$/.test(key)), kept.join());
  });

  test("keeps the weights of the best evaluation, and stops when it gets no better", async () => {
    const few = data.slice(0, 4); // so few that it learns them by heart
    const tuned = applyLora(model(), { r: 8, alpha: 32 });
    const result = await finetune(tuned, {
      ...options,
      data: few,
      epochs: 60,
      lr: 0.05,
      schedule: "constant",
      patience: 4,
      batch: 4,
    });
    assert.equal(result.training.ended, "stopped");
    assert.ok(result.bestStep < result.training.step);
    const curve = result.training.history.flatMap((r) =>
      r["validationLoss"] === undefined ? [] : [r["validationLoss"]],
    );
    assertClose("loss", [result.after.loss], [Math.min(...curve)], { rtol: 1e-5, atol: 0 });
    assert.match(formatResult(result), /training ended early: the evaluation has not improved 4 times/);
  });

  test("trains a whole classifier, and says which examples are in both sets", async () => {
    const rng = new Rng(4);
    const examples = Array.from({ length: 90 }, (_, i): ClassExample => {
      const label = i % 3;
      const angle = (2 * Math.PI * label) / 3;
      return { input: Float32Array.of(Math.cos(angle) + rng.uniform(), Math.sin(angle) + rng.uniform()), label };
    });
    manualSeed(1);
    const task = classTask({ shape: [2], classes: 3 });
    const out = room();
    const result = await finetune(new MLP({ sizes: [2, 16, 3] }), {
      data: examples.slice(0, 60),
      evaluation: examples.slice(58),
      task,
      epochs: 20,
      lr: 0.02,
      out,
    });
    assert.ok(result.after.accuracy > 0.9, String(result.after.accuracy));
    assert.equal(result.overlap, 2);
    assert.match(formatResult(result), /in the training data too: 2;/);
    assert.ok(existsSync(join(out, "model.safetensors")));
    assert.throws(
      () =>
        task.training(new MLP({ sizes: [2, 3] }), [{ input: Float32Array.of(1, 2), label: 3 }], { batch: 1, seed: 0 }),
      /example 0: the label 3 is none of the classes 0 … 2/,
    );
  });

  for (const [what, change, message] of [
    ["no evaluation", { evaluation: [] }, /evaluation holds no examples; hold some back/],
    ["no data", { data: [] }, /data holds no examples/],
    ["an lr of 0", { lr: 0 }, /lr must be above 0, got 0/],
    ["half an epoch", { epochs: 0.5 }, /epochs must be a whole number ≥ 1, got 0.5/],
    ["a resumption without a folder", { resume: true }, /need a folder: give out/],
    ["examples without anything to learn", { data: [{ ids: [1] }] }, /none of the 1 examples has a token to learn/],
    [
      "a row that is longer than the context",
      { task: languageTask({ maxLength: 99 }) },
      /from 1 to the 24 tokens that the model sees, got 99/,
    ],
    [
      "an unknown schedule",
      { schedule: "step" as "linear" },
      /schedule must be one of constant, linear, cosine, got step/,
    ],
  ] as const)
    test(`refuses ${what}`, async () => {
      await assert.rejects(finetune(applyLora(model()), { ...options, ...change } as typeof options), {
        name: "FinetuneError",
        message,
      });
    });

  test("refuses a model of which nothing is trained", async () => {
    await assert.rejects(
      finetune(model().requiresGrad_(false), options),
      /no parameter of the model collects gradients/,
    );
  });
});

describe("batches of tokens", () => {
  test("masked targets do not count, in the loss and in the measurement", async () => {
    const net = model().eval();
    const ids = [1, 2, 3, 4, 5, 6];
    const task = languageTask();
    const masked = await measure(net, task, [{ ids, labels: [-100, -100, -100, 4, 5, 6] }]);
    assert.equal(masked.targets, 3);
    const logits = await net
      .forward(new TokenBatches([{ ids }], { batch: 1, maxLength: 5 })[Symbol.iterator]().next().value![0])
      .data();
    let expected = 0;
    for (const t of [2, 3, 4]) {
      const row = Array.from(logits.slice(t * vocabulary, (t + 1) * vocabulary));
      expected -= row[ids[t + 1]] - Math.log(row.reduce((sum, x) => sum + Math.exp(x), 0));
    }
    assertClose("loss", [masked.loss], [expected / 3], { rtol: 1e-4, atol: 0 });
    const [batch] = new TokenBatches([{ ids, labels: [-100, -100, -100, 4, 5, 6] }], { batch: 2, maxLength: 8 });
    assert.equal(batch.weight, 3);
    assertClose("loss", [await task.loss(net, batch).item()], [expected / 3], { rtol: 1e-4, atol: 0 });
  });

  test("weights of 16 bits have a loss that is not rounded to 16", async () => {
    const halved = model().to("bfloat16");
    const task = languageTask();
    const examples = evaluation.slice(0, 4);
    const [{ batch }] = task.evaluation(halved, examples, 4);
    const [ids, targets] = batch;
    const losses = (): Promise<Tensor[]> => {
      const logits = halved.forward(ids).flatten(0, 1);
      const head = halved.transformer.wte.weight;
      const chunked = F.linearCrossEntropy(halved.hiddenStates(ids), head, targets, { wide: true });
      const exact = F.crossEntropy(logits.to("float32"), targets.flatten());
      return Promise.resolve([exact, task.loss(halved, batch), chunked]);
    };
    const [exact, own, chunked] = await inEvaluation(halved, () => noGrad(losses));
    for (const loss of [own, chunked]) {
      assert.equal(loss.dtype, "float32");
      assertClose("loss", [await loss.item()], [await exact.item()], { rtol: 1e-5, atol: 0 });
    }
    const { loss } = await measure(halved, task, examples, { batch: 4 });
    assertClose("measured", [loss], [await exact.item()], { rtol: 1e-5, atol: 0 });
  });

  test("packed examples do not see each other: the loss is that of rows of their own", async () => {
    const net = model().eval();
    const packing = languageTask({ packing: true });
    const options = { batch: 2, maxLength: 24 };
    const examples = data.slice(0, 9);
    const weigh = async (batches: TokenBatches) => {
      let [sum, weight, rows] = [0, 0, 0];
      for (const batch of batches) {
        sum += (await packing.loss(net, batch).item()) * batch.weight;
        weight += batch.weight;
        rows++;
      }
      return { loss: sum / weight, weight, rows };
    };
    const alone = await weigh(new TokenBatches(examples, options));
    const together = await weigh(new TokenBatches(examples, { ...options, packing: true }));
    assert.equal(together.weight, alone.weight);
    assert.ok(together.rows < alone.rows);
    assertClose("loss", [together.loss], [alone.loss], { rtol: 1e-5, atol: 0 });
  });

  test("packed rows number their examples, count positions from 0 in each, and learn what rows of their own learn", async () => {
    const ids = [
      [1, 2, 3, 4],
      [5, 6, 7],
      [8, 9, 10, 1, 2],
    ];
    const [[inputs, targets, segments, positions]] = new TokenBatches(
      ids.map((each) => ({ ids: each })),
      { batch: 1, maxLength: 12, packing: true },
    ) as Iterable<Required<readonly [Tensor, Tensor, Tensor, Tensor]>>;
    const rows = await Promise.all([inputs, targets, segments, positions].map(async (x) => [...(await x.data())]));
    assert.deepEqual(rows, [
      [1, 2, 3, 5, 6, 8, 9, 10, 1, 0, 0, 0],
      [2, 3, 4, 6, 7, 9, 10, 1, 2, -100, -100, -100],
      [0, 0, 0, 1, 1, 2, 2, 2, 2, -1, -1, -1],
      [0, 1, 2, 0, 1, 0, 1, 2, 3, 0, 0, 0],
    ]);
    // the gradient too is that of rows of their own: nothing of one example reaches another
    const gradientsOf = async (packing: boolean): Promise<ArrayLike<number>[]> => {
      const net = model().eval();
      const task = languageTask({ packing });
      const [batch] = new TokenBatches(data.slice(0, 3), { batch: packing ? 2 : 3, maxLength: 24, packing });
      task.loss(net, batch).backward();
      return Promise.all(net.parameters().map((p) => (p.grad as Tensor).data()));
    };
    const [alone, together] = [await gradientsOf(false), await gradientsOf(true)];
    alone.forEach((expected, i) => {
      assertClose(`gradient ${i}`, together[i], expected, { rtol: 1e-4, atol: 1e-6 });
    });
  });

  test("packing is refused where the model does not know of it", () => {
    const net = Object.assign(model(), { supportsPacking: false });
    assert.throws(
      () => languageTask({ packing: true }).training(net, data, { batch: 2, seed: 0 }),
      /does not say supportsPacking/,
    );
  });

  test("rows are padded to few lengths, always as many in a batch, each example once an epoch in an order of its own", () => {
    const many = counting(1, 50, 9);
    const batches = new TokenBatches(many, { batch: 8, maxLength: 24, shuffle: true, seed: 1 });
    assert.equal(batches.length, 7);
    const shapes = new Set<string>();
    const orders: string[] = [];
    for (let epoch = 0; epoch < 2; epoch++) {
      const all = [...batches];
      assert.equal(all.length, 7);
      for (const [inputs] of all) shapes.add(inputs.shape.join("x"));
      assert.equal(
        all.reduce((n, { weight }) => n + weight, 0),
        many.reduce((n, { ids }) => n + ids.length - 1, 0),
      );
      orders.push(all.map(({ weight }) => weight).join());
    }
    assert.deepEqual([...shapes], ["8x16"]);
    assert.notEqual(orders[0], orders[1]);
    assert.deepEqual(
      [1, 16, 17, 25, 33, 40, 49, 65, 1000].map((n) => paddedLength(n, 1024)),
      [16, 16, 24, 32, 48, 48, 64, 96, 1024],
    );
  });

  test("what is longer than a row is cut, what has no target is left out, and both are counted", () => {
    const batches = new TokenBatches(
      [{ ids: [1, 2, 3, 4, 5, 6] }, { ids: [1, 2, 3, 4, 5], labels: [-100, -100, -100, -100, 5] }, { ids: [1] }],
      { batch: 1, maxLength: 3 },
    );
    assert.deepEqual([batches.truncated, batches.dropped, batches.length], [2, 2, 1]);
    assert.throws(
      () => new TokenBatches([{ ids: [1, 2], labels: [1] }], { batch: 1, maxLength: 3 }),
      /example 0: 2 ids but 1 labels/,
    );
  });
});

describe("compare", () => {
  const of = (losses: readonly number[], counts = losses.map(() => 1)): Measurement => ({
    loss: 0,
    perplexity: 0,
    accuracy: 0,
    targets: 0,
    examples: {
      loss: Float64Array.from(losses),
      correct: Float64Array.from(losses, () => 0),
      count: Float64Array.from(counts),
    },
  });

  test("its interval covers the true difference about 95 times of 100", () => {
    const rng = new Rng(1);
    let covered = 0;
    const trials = 200;
    for (let trial = 0; trial < trials; trial++) {
      const before = Array.from({ length: 60 }, () => 3 + rng.normal());
      const later = before.map((x) => x - 0.5 + 0.4 * rng.normal());
      const { interval } = compare(of(before), of(later), { seed: trial }).loss;
      if (interval![0] <= -0.5 && -0.5 <= interval![1]) covered++;
    }
    assert.ok(covered >= 180 && covered <= 198, String(covered));
  });

  test("weighs examples by their targets, and knows nothing of one", () => {
    const { loss, examples } = compare(of([4, 9, 0], [2, 3, 0]), of([2, 9, 0], [2, 3, 0]));
    assertClose("loss", [loss.value], [-0.4], { rtol: 1e-12, atol: 0 });
    assert.equal(examples, 2);
    assert.equal(compare(of([1]), of([2])).loss.interval, null);
    assert.throws(() => compare(of([1, 2]), of([1])), /different examples \(2 and 1/);
  });
});
