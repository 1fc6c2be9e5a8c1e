/**
 * Classifiers and vectors of texts against transformers (fixtures/classification.json and minilm.json, made by
 * generators/classification.py). Where a Python with transformers is (NABLA_PYTHON), it also reads classifiers that are written here.
 */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { after, describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { setDevice } from "../../src/execution/index.ts";
import {
  applyLora,
  finetune,
  type TextBatch,
  type TextHead,
  type TextTarget,
  textTask,
} from "../../src/finetune/index.ts";
import {
  embed,
  fromPretrained,
  modelFrom,
  readCheckpoint,
  readConfig,
  readEmbeddingSettings,
  savePretrained,
} from "../../src/models/index.ts";
import { manualSeed, noGrad, type Tensor, tensor } from "../../src/tensor/index.ts";
import { backendsUnderTest, isBrief } from "../support/backends.ts";
import { nativeDevice } from "../support/cpu.ts";
import { assertClose, readFixture, type Stored, valuesOf } from "../support/fixtures.ts";

const here = dirname(fileURLToPath(import.meta.url));
const root = join(here, "fixtures", "pretrained");
const tolerance = { rtol: 1e-4, atol: 1e-5 };
const task = "classification";
const dtype = "float32";

interface Case {
  readonly name: string;
  readonly score: Stored;
  readonly ids: Stored;
  readonly mask: Stored;
  readonly targets: Stored;
  readonly logits: Stored;
  readonly loss: number;
}
const { cases } = readFixture<{ readonly cases: readonly Case[] }>("classification");

const integers = (stored: Stored): Tensor =>
  tensor(Int32Array.from(valuesOf(stored)), { shape: stored.shape, dtype: "int32" });

/** A fixture's checkpoint with the head that the fixture brings. */
async function classifierOf({ name, score }: Case) {
  const config = { ...(await readConfig(join(root, name))).raw, pad_token_id: 0 };
  const head = tensor(Float32Array.from(valuesOf(score)), { shape: score.shape });
  const tensors = { ...(await readCheckpoint(join(root, name))), "score.weight": head };
  return { config, model: modelFrom(config, tensors, { task, dtype, numLabels: score.shape[0] }) };
}

/** The rows' tokens that count, with their targets. */
function examplesOf({ ids, mask, targets }: Case) {
  const [tokens, counts, values] = [ids, mask, targets].map((stored) => Array.from(valuesOf(stored)));
  const time = ids.shape[1];
  return values.map((target, r) => ({
    ids: tokens.slice(r * time, (r + 1) * time).filter((_, t) => counts[r * time + t] === 1),
    target,
  }));
}

for (const backend of await backendsUnderTest())
  describe(`classifiers on decoders on ${backend.name}`, () => {
    for (const one of cases)
      test(`${one.name} with ${one.score.shape[0]} labels has transformers' logits and loss`, async (t) => {
        if (isBrief(backend)) return t.skip("more under NABLA_LONG=1");
        setDevice(backend.name);
        const { model } = await classifierOf(one);
        const attentionMask = integers(one.mask);
        const logits = await noGrad(() => model.forward(integers(one.ids), { attentionMask })).data();
        assertClose("logits", logits, valuesOf(one.logits), tolerance);
        // the same from examples, in a batch with rows that are missing and padding of another length
        const task = textTask();
        const [batch] = task.training(model, examplesOf(one), { batch: 5, seed: 0 }) as Iterable<never>;
        assertClose("loss", [await noGrad(() => task.loss(model, batch)).item()], [one.loss], tolerance);
      });
  });

const room = mkdtempSync(join(tmpdir(), "nabla-classifier-"));
after(() => rmSync(room, { recursive: true, force: true }));
const python = process.env["NABLA_PYTHON"];
const labels = ["bad", "fine", "good"];

describe("classifiers as transformers writes them", () => {
  const written = new Map<string, ArrayLike<number>>();
  for (const name of ["bert", "roberta", "distilbert", "gpt2", "gemma3"])
    test(`${name} is fine-tuned, written, and read again with its labels`, async () => {
      setDevice("wasm"); // its kernels are ready sooner than a C compiler's
      manualSeed(3);
      const from = join(root, name);
      const config = await readConfig(from);
      const model = await fromPretrained(from, { task, dtype, numLabels: 3 });
      const examples = Array.from({ length: 24 }, (_, i) => ({
        ids: Array.from({ length: 3 + (i % 7) }, (_, t) => 3 + ((5 * i + 7 * t) % 12) + 13 * (i % 3)),
        target: i % 3,
      }));
      const padTokenId = (model as TextHead).padTokenId ?? 0;
      const learnt = { data: examples, evaluation: examples, task: textTask(), epochs: 6, lr: 5e-3 };
      const { before, after: later } = await finetune<TextHead, TextTarget, TextBatch>(model, learnt);
      assert.ok(later.loss < before.loss, `${before.loss} → ${later.loss}`);
      const folder = join(room, name);
      const problemType = "single_label_classification";
      await savePretrained(model, folder, { config, task, labels, problemType, padTokenId, from });
      const read = await readConfig(folder);
      assert.deepEqual(read.labelNames(), labels);
      assert.deepEqual(read.raw["label2id"], { bad: 0, fine: 1, good: 2 });
      const again = await fromPretrained(folder, { task });
      assert.equal(again.numLabels, 3);
      const rows = examples.slice(0, 5);
      const time = Math.max(...rows.map(({ ids }) => ids.length));
      const ids = rows.map((row) => [...row.ids, ...new Array<number>(time - row.ids.length).fill(padTokenId)]);
      const mask = rows.map((row) => Array.from({ length: time }, (_, t) => (t < row.ids.length ? 1 : 0)));
      const logitsOf = (net: TextHead): Promise<ArrayLike<number>> => {
        const attentionMask = tensor(mask, { dtype: "int32" });
        return noGrad(() => net.forward(tensor(ids, { dtype: "int32" }), { attentionMask })).data();
      };
      const logits = await logitsOf(model);
      assert.deepEqual(await logitsOf(again), logits);
      writeFileSync(join(folder, "input.json"), JSON.stringify({ ids, mask }));
      written.set(name, logits);
    });

  const skip = python ? false : "set NABLA_PYTHON to a Python with torch and transformers";
  test("transformers loads them and gives the same logits", { skip }, () => {
    const folders = [...written.keys()].map((name) => join(room, name));
    assert.equal(folders.length, 5);
    const { status, stderr } = spawnSync(python as string, [join(here, "classifier_logits.py"), ...folders], {
      encoding: "utf8",
    });
    assert.equal(status, 0, stderr);
    for (const [name, logits] of written) {
      const theirs = JSON.parse(readFileSync(join(room, name, "logits.json"), "utf8"));
      assert.deepEqual(theirs.labels, labels);
      assert.equal(theirs.problem, "single_label_classification");
      assertClose(name, theirs.logits.flat(), logits, tolerance);
    }
  });

  test("an adapter for a class is merged into what is written", async () => {
    setDevice("wasm");
    manualSeed(8);
    const from = join(root, "bert");
    const config = await readConfig(from);
    const model = await fromPretrained(from, { task, dtype, numLabels: 3 });
    const tuned = applyLora(model, { r: 2, taskType: "SEQ_CLS", target: ["query", "value"] });
    const examples = Array.from({ length: 6 }, (_, i) => ({ ids: [4 + i, 9, 7 + i], target: i % 3 }));
    await finetune<TextHead, TextTarget, TextBatch>(tuned, {
      data: examples,
      evaluation: examples,
      task: textTask(),
      epochs: 2,
      lr: 1e-2,
    });
    const folder = join(room, "merged");
    await savePretrained(model, folder, { config, task, labels, stateDict: tuned.adapter.mergedStateDict() });
    const again = await fromPretrained(folder, { task });
    const ids = tensor([[4, 9, 7]], { dtype: "int32" });
    const logitsOf = (net: TextHead) => noGrad(() => net.forward(ids)).data();
    assertClose("logits", await logitsOf(again), await logitsOf(tuned), { rtol: 1e-5, atol: 1e-6 });
  });

  test("labels that are too many, or twice the same, and other architectures are refused", async () => {
    const { model, config } = await classifierOf(cases[0]);
    const folder = join(room, "refused");
    const refused = (options: object, message: RegExp) =>
      assert.rejects(savePretrained(model, folder, { config, task, ...options }), { name: "PretrainedError", message });
    await refused({ labels: ["a", "b"] }, /2 labels for a model with 3 of them/);
    await refused({ labels: ["a", "b", "a"] }, /labels must differ/);
    await refused({ task: "image-classification" }, /"gpt2" is not for the task "image-classification"/);
    assert.ok(!existsSync(folder));
  });
});

interface Sentence {
  readonly text: string;
  readonly ids: readonly number[];
  readonly vector: Stored;
}

describe("all-MiniLM-L6-v2", () => {
  const folder = process.env["NABLA_TEST_MINILM"];
  const skip = folder ? false : "all-MiniLM-L6-v2 is not here: set NABLA_TEST_MINILM to its folder";

  test("its vectors are transformers', alone and with padding, and have the published similarities", {
    skip,
  }, async () => {
    setDevice(nativeDevice());
    const { sentences } = readFixture<{ readonly sentences: readonly Sentence[] }>("minilm");
    const model = await fromPretrained(folder as string, { task: "features", dtype });
    for (const { text, ids } of sentences)
      if (ids.length < 256) assert.deepEqual([...model.tokenizer.encode(text)], ids, text);
    const { pooling, normalize, maxLength, prompt } = await readEmbeddingSettings(folder as string);
    assert.deepEqual([pooling, normalize, maxLength, prompt], [["mean"], true, 256, ""]);
    const texts = sentences.map(({ text }) => text);
    const vectors = await embed(model, texts, { batch: 4 }); // tokenizer and settings are the model's own
    assert.deepEqual(vectors.shape, [texts.length, 384]);
    const rows = (await vectors.tolist()) as number[][];
    sentences.forEach(({ text, vector }, i) => {
      assertClose(text.slice(0, 40), rows[i].slice(0, 24), valuesOf(vector), { rtol: 0, atol: 1e-4 });
    });
    const [alone] = (await (await embed(model, [texts[2]], { batch: 1 })).tolist()) as number[][];
    assertClose("alone", alone, rows[2], { rtol: 0, atol: 1e-5 });
    const similarity = (a: number, b: number): number => rows[a].reduce((sum, x, i) => sum + x * rows[b][i], 0);
    assertClose("similarities", [similarity(0, 1), similarity(0, 2), similarity(1, 2)], [0.666, 0.1046, 0.1411], {
      rtol: 0,
      atol: 1e-3,
    });
  });
});
