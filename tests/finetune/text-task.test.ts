/** Classes and values of texts: padding changes nothing, batches have few shapes, and models learn from examples. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { Rng } from "../../src/core/rng.ts";
import { setDevice } from "../../src/execution/index.ts";
import {
  finetune,
  formatResult,
  measure,
  metricsOf,
  type TextBatch,
  type TextTarget,
  type TextTaskOptions,
  textTask,
} from "../../src/finetune/index.ts";
import { bertConfigOf } from "../../src/models/bert.ts";
import { ConfigReader } from "../../src/models/config.ts";
import { decoders } from "../../src/models/decoder-config.ts";
import {
  BertForSequenceClassification,
  CausalLMForSequenceClassification,
  embed,
  RobertaForSequenceClassification,
} from "../../src/models/index.ts";
import { manualSeed, noGrad } from "../../src/tensor/index.ts";
import { assertClose } from "../support/fixtures.ts";

setDevice("wasm"); // its kernels are ready sooner than a C compiler's
const size = { vocab_size: 30, hidden_size: 24, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32 };
const raw = { ...size, max_position_embeddings: 64, hidden_dropout_prob: 0, attention_probs_dropout_prob: 0 };
const encoderConfig = (padding = false) => bertConfigOf(new ConfigReader(raw), { padding });

function bert(numLabels: number): BertForSequenceClassification {
  manualSeed(4);
  return new BertForSequenceClassification(encoderConfig(), numLabels);
}

/** Texts of random tokens; which of two tokens there are more of says the class, by how many more the value. */
function texts(count: number, seed: number, regression: boolean): TextTarget[] {
  const rng = new Rng(seed);
  return Array.from({ length: count }, () => {
    const ids = Array.from({ length: 3 + Math.floor(rng.uniform() * 15) }, () => 5 + Math.floor(rng.uniform() * 4));
    const more = ids.reduce((n, id) => n + (id === 5 ? 1 : id === 6 ? -1 : 0), 0);
    return { ids: [1, ...ids, 2], target: regression ? more / ids.length : Number(more > 0) };
  });
}

const batchesOf = (
  model: BertForSequenceClassification,
  examples: readonly TextTarget[],
  batch: number,
  options: TextTaskOptions = {},
): TextBatch[] => [...(textTask(options).training(model, examples, { batch, seed: 0 }) as Iterable<TextBatch>)];

describe("texts in batches", () => {
  test("padding, missing rows and neighbours change nothing, for encoders and decoders", async () => {
    manualSeed(5);
    const llama = decoders["llama"](new ConfigReader({ ...raw, rms_norm_eps: 1e-6 }));
    const examples = texts(5, 1, false);
    for (const model of [
      bert(2),
      new RobertaForSequenceClassification(encoderConfig(true), 2),
      new CausalLMForSequenceClassification(llama, 2),
    ]) {
      const task = textTask();
      const together = await measure(model, task, examples, { batch: 8 });
      const losses: number[] = [];
      for (const example of examples) losses.push((await measure(model, task, [example], { batch: 1 })).loss);
      assertClose(model.constructor.name, together.examples.loss, losses, { rtol: 1e-5, atol: 1e-6 });
    }
  });

  test("vectors of texts are the same in any company, in the order of the texts", async () => {
    const { bert: encoder } = bert(2);
    const words: Readonly<Record<string, readonly number[]>> = {
      a: [1, 5, 2],
      bb: [1, ...Array.from({ length: 30 }, (_, i) => 3 + (i % 20)), 2],
      c: [1, 9, 8, 7, 2],
      dd: [1, ...Array.from({ length: 17 }, (_, i) => 20 - i), 2],
    };
    const tokenizer = { encode: (text: string) => words[text] };
    for (const pooling of ["cls", "mean", "max", "meanSqrtLen", "last"] as const) {
      const settings = { tokenizer, pooling: [pooling], normalize: true };
      const all = (await (await embed(encoder, Object.keys(words), { ...settings, batch: 3 })).tolist()) as number[][];
      for (const [i, text] of Object.keys(words).entries()) {
        const [alone] = (await (await embed(encoder, [text], { ...settings, batch: 1 })).tolist()) as number[][];
        assertClose(`${pooling} of ${text}`, all[i], alone, { rtol: 1e-4, atol: 1e-6 });
        assertClose("length", [Math.hypot(...alone)], [1], { rtol: 1e-5, atol: 0 });
      }
    }
    await assert.rejects(embed(encoder, [], { tokenizer }), /there are no texts/);
  });

  test("a text that is too long keeps its beginning and its end", async () => {
    const ids = [1, ...Array.from({ length: 30 }, (_, i) => 3 + (i % 9)), 2];
    const [[tokens, mask]] = batchesOf(bert(2), [{ ids, target: 0 }], 1, { maxLength: 20 });
    assert.deepEqual(tokens.shape, [1, 20]);
    assert.deepEqual([...(await tokens.data())], [...ids.slice(0, 19), 2]);
    assert.equal((await mask.data()).indexOf(0), -1);
    const whole = texts(3, 2, false);
    assert.equal(textTask({ maxLength: 20 }).truncated?.(bert(2), [{ ids, target: 0 }, ...whole]), 1);
    assert.equal(textTask({ maxLength: 32 }).truncated?.(bert(2), [{ ids, target: 0 }, ...whole]), 0); // all of it fits
  });

  test("batches are of few shapes, and each example is in one", () => {
    const many = texts(90, 3, false);
    const batches = batchesOf(bert(2), many, 8);
    assert.deepEqual(new Set(batches.map(([ids]) => ids.shape.join("x"))), new Set(["8x16", "8x24"]));
    assert.equal(
      batches.reduce((n, { weight }) => n + weight, 0),
      90,
    );
  });

  for (const [what, labels, examples, options, message] of [
    ["a class that is not there", 2, [{ ids: [1], target: 2 }], {}, /example 0: the class 2 is none of 0 … 1/],
    [
      "a value that is no number",
      1,
      [{ ids: [1], target: Number.NaN }],
      {},
      /example 0: the value NaN is not a finite/,
    ],
    ["a text without tokens", 2, [{ ids: [], target: 0 }], {}, /example 0: there are no tokens in it/],
    ["no examples", 2, [], {}, /there are no examples/],
    [
      "more tokens than the model sees",
      2,
      texts(1, 1, false),
      { maxLength: 65 },
      /from 1 to the 64 tokens that the model sees, got 65/,
    ],
    [
      "values of a classifier",
      2,
      texts(1, 1, false),
      { problemType: "regression" },
      /the model gives 2 numbers a text/,
    ],
    [
      "classes of one number",
      1,
      texts(1, 1, false),
      { problemType: "single_label_classification" },
      /one number a text/,
    ],
  ] as const)
    test(`refuses ${what}`, () => {
      assert.throws(() => batchesOf(bert(labels), examples, 1, options), { name: "FinetuneError", message });
    });
});

describe("models that learn from texts", () => {
  test("a class", async () => {
    const result = await finetune(bert(2), {
      data: texts(160, 7, false),
      evaluation: texts(60, 8, false),
      task: textTask(),
      epochs: 12,
      lr: 5e-3,
      batch: 16,
    });
    const { before, after } = result;
    assert.ok(after.accuracy > 0.9 && after.accuracy > before.accuracy + 0.2, `${before.accuracy} → ${after.accuracy}`);
    const numbers = metricsOf(after.examples);
    assert.equal(numbers["accuracy"], after.accuracy);
    assert.ok(numbers["macro-F1"] > 0.85 && numbers["balanced accuracy"] > 0.85);
    assert.match(formatResult(result), /macro-F1 +\d+\.\d % +→ +\d+\.\d % +\+/);
  });

  test("a value, by the mean squared error", async () => {
    const model = bert(1);
    const examples = texts(160, 9, true);
    const batch = batchesOf(model, examples.slice(0, 3), 4)[0];
    const values = await noGrad(() => model.forward(batch[0], { attentionMask: batch[1] })).data();
    const targets = await batch[2].data();
    const expected = [0, 1, 2].reduce((sum, i) => sum + (values[i] - targets[i]) ** 2 / 3, 0);
    assertClose("loss", [await textTask().loss(model, batch).item()], [expected], { rtol: 1e-5, atol: 0 });
    const result = await finetune(model, {
      data: examples,
      evaluation: texts(60, 10, true),
      task: textTask(),
      epochs: 20,
      lr: 5e-3,
      batch: 16,
    });
    assert.ok(metricsOf(result.after.examples)["R²"] > 0.8, formatResult(result));
    assert.match(formatResult(result), /absolute error/);
    assert.doesNotMatch(formatResult(result), /accuracy|perplexity/);
  });
});
