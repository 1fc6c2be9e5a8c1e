/** Encoders of texts and images: pooling, what fills up a text, what does not fit. Numbers against transformers are in tests/parity. */
import assert from "node:assert/strict";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { setDevice } from "../../src/execution/index.ts";
import { fromPretrained, pool } from "../../src/models/index.ts";
import { functional as F } from "../../src/nn/index.ts";
import { AdamW } from "../../src/optim/index.ts";
import { noGrad, tensor, zeros } from "../../src/tensor/index.ts";
import { nativeDevice } from "../support/cpu.ts";
import { assertClose } from "../support/fixtures.ts";

const fixtures = join(dirname(dirname(fileURLToPath(import.meta.url))), "parity", "fixtures", "pretrained");
const dtype = "float32";

test("pooling takes the first token, or the mean or maximum of those that the mask counts", async () => {
  setDevice("reference");
  const hidden = tensor([
    [
      [1, -2],
      [3, -4],
      [100, 100],
    ],
  ]);
  const mask = tensor([[1, 1, 0]], { dtype: "int32" });
  assert.deepEqual(await pool(hidden, "cls", mask).tolist(), [[1, -2]]);
  assert.deepEqual(await pool(hidden, "mean", mask).tolist(), [[2, -3]]);
  assert.deepEqual(await pool(hidden, "max", mask).tolist(), [[3, -2]]);
  assert.deepEqual(await pool(hidden, "max").tolist(), [[100, 100]]);
  assert.deepEqual((await pool(hidden, "mean").data()).map(Math.round), Float32Array.of(35, 31));
});

test("what fills up a text changes nothing in its tokens", async () => {
  setDevice(nativeDevice());
  for (const [name, padding] of [
    ["bert", 0],
    ["roberta", 1],
    ["distilbert", 0],
  ] as const) {
    const model = await fromPretrained(join(fixtures, name), { task: "features", dtype });
    const text = [7, 30, 12, 9];
    const alone = await noGrad(() => model.forward(tensor([text], { dtype: "int32" }))).data();
    const filled = tensor([[...text, padding, padding]], { dtype: "int32" });
    const attentionMask = tensor([[1, 1, 1, 1, 0, 0]], { dtype: "int32" });
    const masked = await noGrad(() => model.forward(filled, { attentionMask }).narrow(1, 0, 4)).data();
    assertClose(name, masked, alone, { rtol: 1e-5, atol: 1e-5 });
  }
});

test("inputs that do not fit are named", async () => {
  setDevice("reference");
  const bert = await fromPretrained(join(fixtures, "bert"), { task: "features", dtype });
  const ids = (...shape: number[]) => zeros(shape, { dtype: "int32" });
  assert.throws(() => bert.forward(ids(1, 41)), /with 1 … 40 tokens, got \[1, 41\]/);
  assert.throws(
    () => bert.forward(ids(2, 3), { attentionMask: ids(2, 4) }),
    /attentionMask \[2, 4\] must have the shape/,
  );
  const roberta = await fromPretrained(join(fixtures, "roberta"), { task: "features", dtype });
  assert.equal(roberta.contextLength, 38); // two of the forty positions stand for no token
  const distilbert = await fromPretrained(join(fixtures, "distilbert"), { task: "features", dtype });
  assert.throws(() => distilbert.forward(ids(1, 3), { tokenTypeIds: ids(1, 3) }), /there are no token types/);
  const images = { task: "image-classification", dtype } as const;
  const vit = await fromPretrained(join(fixtures, "vit"), images);
  assert.throws(() => vit.forward(zeros([1, 3, 12, 8])), /must be \[batch, 3, 8, 12\], got \[1, 3, 12, 8\]/);
  const resnet = await fromPretrained(join(fixtures, "resnet"), images);
  assert.throws(() => resnet.forward(zeros([1, 1, 12, 8])), /must be \[batch, 3, height, width\], got \[1, 1, 12, 8\]/);
});

test("classifiers learn from where they are", async () => {
  setDevice(nativeDevice());
  const ids = tensor(
    [
      [7, 8, 9, 10],
      [20, 21, 22, 23],
      [31, 5, 32, 6],
    ],
    { dtype: "int32" },
  );
  const labels = tensor([0, 1, 0], { dtype: "int32" });
  for (const name of ["bert", "roberta", "distilbert"]) {
    const model = await fromPretrained(join(fixtures, name), { task: "classification", dtype, numLabels: 2 });
    model.train();
    const optimizer = new AdamW(model.parameters(), { lr: 5e-3 });
    let [first, last] = [0, 0];
    for (let step = 0; step < 25; step++) {
      const loss = F.crossEntropy(model.forward(ids), labels);
      loss.backward();
      await optimizer.step();
      optimizer.zeroGrad();
      last = await loss.item();
      if (step === 0) first = last;
    }
    assert.ok(last < first / 2, `${name}: from ${first} to ${last}`);
  }
});
