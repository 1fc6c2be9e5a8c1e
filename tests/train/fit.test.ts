/** fit, evaluate and predict: what they compute, when they stop, and that a resumed run has the same bits as one never stopped. */
import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { findCompiler } from "../../src/backends/cpu/toolchain.ts";
import { ArrayDataset, type Batch, DataLoader, hostArray } from "../../src/data/loader.ts";
import { setDevice } from "../../src/execution/index.ts";
import { load } from "../../src/formats/index.ts";
import { GPT2 } from "../../src/models/index.ts";
import * as nn from "../../src/nn/index.ts";
import * as optim from "../../src/optim/index.ts";
import { fromRaw, manualSeed, type Tensor, tensor } from "../../src/tensor/index.ts";
import {
  accuracyMetric,
  type Callback,
  checkpointToResume,
  earlyStopping,
  evaluate,
  type FitOptions,
  fit,
  logMetrics,
  predict,
  readRunLog,
  type StepRecord,
  saveCheckpoints,
} from "../../src/train/index.ts";

setDevice("reference");
const compiler = findCompiler() !== null;
const rooms: string[] = [];
const room = (): string => {
  const path = mkdtempSync(join(tmpdir(), "nabla-fit-"));
  rooms.push(path);
  return path;
};
after(() => {
  for (const path of rooms) rmSync(path, { recursive: true, force: true });
});

class Net extends nn.Module {
  fc1 = new nn.Linear(2, 8);
  norm = new nn.BatchNorm1d(8);
  dropout = new nn.Dropout(0.2);
  fc2 = new nn.Linear(8, 3);
  forward(x: Tensor): Tensor {
    return this.fc2.forward(this.dropout.forward(this.norm.forward(this.fc1.forward(x)).relu()));
  }
}

/** Three noisy clusters in the plane. */
function clusters(count: number): { points: Float32Array; labels: Int32Array } {
  const points = new Float32Array(2 * count);
  const labels = new Int32Array(count);
  for (let i = 0; i < count; i++) {
    labels[i] = i % 3;
    const angle = (2 * Math.PI * labels[i]) / 3;
    points[2 * i] = 2 * Math.cos(angle) + Math.sin(i * 12.9898);
    points[2 * i + 1] = 2 * Math.sin(angle) + Math.cos(i * 78.233);
  }
  return { points, labels };
}

const wrap = (batch: Batch): [Tensor, Tensor] =>
  batch.map(({ data, dtype, shape }) => fromRaw(data, dtype, shape)) as [Tensor, Tensor];

function loader(count = 60, shuffle = true): DataLoader<Batch, [Tensor, Tensor]> {
  const { points, labels } = clusters(count);
  const data = new ArrayDataset(hostArray(points, [count, 2]), hostArray(labels));
  return new DataLoader(data, { batchSize: 16, shuffle, seed: 3, wrap });
}

interface Setup {
  readonly model: Net;
  readonly options: FitOptions<Net, [Tensor, Tensor]>;
}

function setup(more: Partial<FitOptions<Net, [Tensor, Tensor]>> = {}): Setup {
  manualSeed(1);
  const model = new Net();
  const optimizer = new optim.AdamW(model.parameters(), { lr: 0.01 });
  const scheduler = new optim.CosineAnnealingLR(optimizer, { tMax: 20 });
  return {
    model,
    options: {
      train: loader(),
      validation: loader(30, false),
      loss: nn.functional.crossEntropy,
      optimizer,
      scheduler,
      epochs: 5,
      seed: 7,
      metrics: { accuracy: accuracyMetric },
      ...more,
    },
  };
}

const weights = async (model: nn.Module): Promise<Record<string, number[]>> => {
  const out: Record<string, number[]> = {};
  for (const [key, x] of Object.entries(model.stateDict())) out[key] = Array.from(await x.data());
  return out;
};

/** Ends a run at a step as a kill would, so far as this process can. */
const killAt = (step: number): Callback => ({
  name: "kill",
  wants: (s) => s === step,
  onStep(_, record) {
    if (record.step === step) throw new Error("killed");
  },
});

test("it learns, validates at each epoch's end, and says what happened", async () => {
  const { model, options } = setup({ epochs: 12 });
  const result = await fit(model, options);
  assert.equal(result.ended, "finished");
  assert.equal(result.step, 12 * 4);
  assert.deepEqual(
    result.history.map(({ step }) => step),
    Array.from({ length: 48 }, (_, i) => i + 1),
  );
  const validated = result.history.filter((r) => r["validationLoss"] !== undefined);
  assert.deepEqual(
    validated.map(({ step }) => step),
    Array.from({ length: 12 }, (_, i) => 4 * (i + 1)),
  );
  assert.ok(validated.at(-1)!["validationAccuracy"] > 0.9, JSON.stringify(validated.at(-1)));
  assert.ok(result.history.at(-1)!.loss < result.history[0].loss / 2);
});

test("evaluate weighs batches by their size and leaves the model's mode alone", async () => {
  const { model, options } = setup();
  model.train();
  const result = await evaluate(model, options.validation!, { loss: options.loss, metrics: options.metrics });
  assert.equal(model.training, true);
  const { points, labels } = clusters(30);
  const outputs = await predict(model, tensor(points, { shape: [30, 2] }), { batchSize: 7 });
  assert.deepEqual(outputs.shape, [30, 3]);
  const whole = nn.functional.crossEntropy(outputs, tensor(labels, { dtype: "int32" }));
  assert.ok(Math.abs((await whole.item()) - result.loss) < 1e-6);
});

for (const [stop, device] of [
  [1, "reference"],
  [4, "reference"],
  [6, "reference"],
  [8, "reference"],
  [13, "reference"],
  [7, "cpu"],
] as const)
  test(`a run ended at step ${stop} on ${device} and resumed has the bits of one never stopped`, {
    skip: device === "cpu" && !compiler && "no C compiler here",
  }, async (t) => {
    setDevice(device);
    t.after(() => setDevice("reference"));
    const whole = setup();
    const wholeDir = room();
    await fit(whole.model, { ...whole.options, callbacks: [logMetrics({ dir: wholeDir })] });

    const dir = room();
    const first = setup();
    const callbacks = () => [logMetrics({ dir }), saveCheckpoints({ every: 3, dir }), earlyStopping({ patience: 9 })];
    await assert.rejects(fit(first.model, { ...first.options, callbacks: [...callbacks(), killAt(stop)] }), /killed/);
    const second = setup();
    const resume = await checkpointToResume(dir);
    manualSeed(99);
    const result = await fit(second.model, {
      ...second.options,
      callbacks: [
        logMetrics({ dir, resume: true }),
        saveCheckpoints({ every: 3, dir }),
        earlyStopping({ patience: 9, restoreBest: false }),
      ],
      ...(resume === undefined ? {} : { resume }),
    });
    assert.equal(result.step, 20);
    assert.deepEqual(await weights(second.model), await weights(whole.model));
    assert.deepEqual(await readRunLog(dir), await readRunLog(wholeDir));
  });

test("a run that ended with its best weights goes on from its last ones, with the bits of one never stopped", async () => {
  const whole = setup();
  await fit(whole.model, whole.options);
  const dir = room();
  const first = setup();
  // the largest loss of all is the first: its weights are put back
  const best = () => earlyStopping({ patience: 99, mode: "max" });
  const ended = await fit(first.model, {
    ...first.options,
    epochs: 3,
    callbacks: [best(), saveCheckpoints({ every: 5, dir })],
  });
  assert.equal(ended.step, 12);
  const put = await weights(first.model);
  const shown = await load(join(dir, "model.safetensors"));
  for (const [key, values] of Object.entries(put)) assert.deepEqual(Array.from(await shown[key].data()), values);
  const second = setup();
  const resume = await checkpointToResume(dir);
  assert.match(resume as string, /checkpoint-12$/);
  const result = await fit(second.model, {
    ...second.options,
    callbacks: [earlyStopping({ patience: 99, mode: "max", restoreBest: false })],
    resume,
  } as FitOptions<Net, [Tensor, Tensor]>);
  assert.equal(result.step, 20);
  assert.deepEqual(await weights(second.model), await weights(whole.model));
  assert.notDeepEqual(put, await weights(whole.model));
});

test("checkpoints of a part of the model hold that part, and are for no other", async () => {
  const part = (model: Net) => ({ "fc2.weight": model.fc2.weight, "fc2.bias": model.fc2.bias as Tensor });
  const dir = room();
  const { model, options } = setup({ weights: part });
  await fit(model, { ...options, epochs: 1, callbacks: [saveCheckpoints({ every: 2, dir })] });
  assert.deepEqual(Object.keys(await load(join(dir, "model.safetensors"))).sort(), ["fc2.bias", "fc2.weight"]);
  const resume = (await checkpointToResume(dir)) as string;
  const other = setup({ weights: (of) => ({ "fc1.weight": of.fc1.weight, "fc2.bias": of.fc2.bias as Tensor }) });
  await assert.rejects(
    fit(other.model, { ...other.options, resume }),
    /another part of the model: 1 tensors are not in it \(fc1.weight\), 1 are not learnt now \(fc2.weight\)/,
  );
});

test("accumulation over batches of equal size gives the step of the batch they make together", async () => {
  const make = () => {
    manualSeed(5);
    const model = new nn.Linear(2, 3);
    return { model, optimizer: new optim.SGD(model.parameters(), { lr: 0.1 }) };
  };
  const { points, labels } = clusters(24);
  const batches = (size: number): [Tensor, Tensor][] =>
    Array.from({ length: 24 / size }, (_, k) => [
      tensor(points.slice(2 * size * k, 2 * size * (k + 1)), { shape: [size, 2] }),
      tensor(labels.slice(size * k, size * (k + 1)), { dtype: "int32" }),
    ]);
  const a = make();
  const b = make();
  await fit(a.model, { ...a, train: batches(12), loss: nn.functional.crossEntropy, epochs: 2 });
  const result = await fit(b.model, {
    ...b,
    train: batches(4),
    accumulate: 3,
    loss: nn.functional.crossEntropy,
    epochs: 2,
  });
  assert.equal(result.step, 4);
  const [wa, wb] = [await weights(a.model), await weights(b.model)];
  for (const key of Object.keys(wa))
    assert.ok(
      wa[key].every((x, i) => Math.abs(x - wb[key][i]) < 1e-6),
      key,
    );
});

test("early stopping ends the run and puts the best weights back", async () => {
  const { model, options } = setup({ epochs: 50 });
  // The learning rate grows until training falls apart, so that there is a best epoch to go back to.
  const optimizer = new optim.SGD(model.parameters(), { lr: 0.05 });
  const worsen: Callback = {
    name: "worsen",
    onStep(_, record: StepRecord) {
      if (record.step > 16) optimizer.paramGroups[0].lr = 3;
    },
  };
  const result = await fit(model, {
    ...options,
    optimizer,
    scheduler: undefined,
    callbacks: [earlyStopping({ patience: 3 }), worsen],
  });
  assert.equal(result.ended, "stopped");
  assert.match(result.reason!, /has not improved for 3 validations/);
  const best = Math.min(...result.history.flatMap((r) => r["validationLoss"] ?? []));
  const now = await evaluate(model, options.validation!, { loss: options.loss });
  assert.ok(Math.abs(now.loss - best) < 1e-6);
});

test("a loss that is not finite stops the run, says so, and leaves earlier checkpoints", async () => {
  const dir = room();
  const { model, options } = setup();
  const blowUp: Callback = {
    name: "blowUp",
    onStep(run, { step }) {
      if (step === 5) run.optimizer.paramGroups[0].lr = Number.NaN;
    },
  };
  await assert.rejects(
    fit(model, { ...options, scheduler: undefined, callbacks: [saveCheckpoints({ every: 2, dir }), blowUp] }),
    (error: Error) => error.name === "DivergedError" && /step \d+: the loss is NaN/.test(error.message),
  );
  assert.match((await checkpointToResume(dir))!, /checkpoint-[46]$/);
});

test("accumulation on a device that runs beside us can be repeated: what is recorded meanwhile is not lost", {
  skip: compiler ? false : "no C compiler",
}, async () => {
  setDevice("cpu");
  try {
    const losses: number[] = [];
    const ids = Int32Array.from({ length: 5 * 128 }, (_, i) => (7 * i) % 11);
    const batches = Array.from({ length: 5 }, (_, b) => {
      const part = tensor(ids.slice(128 * b, 128 * (b + 1)), { shape: [8, 16] });
      return [part, part] as const;
    });
    // the second run finds its programs, so that a gradient is still being computed when the optimiser makes its state
    for (let run = 0; run < 2; run++) {
      manualSeed(2);
      const model = new GPT2({ vocabSize: 11, contextLength: 16, numLayers: 1, numHeads: 2, hiddenSize: 24 });
      const { history } = await fit(model, {
        train: batches,
        batchLoss: (net: GPT2, [x, y]: readonly [Tensor, Tensor]) => net.forward(x, y),
        optimizer: new optim.AdamW(model.parameters(), { lr: 0.01 }),
        accumulate: 2,
        epochs: 2,
      });
      losses.push(history.at(-1)!.loss);
    }
    assert.equal(losses[1], losses[0]);
  } finally {
    setDevice("reference");
  }
});

test("batches of unlike weight count as much as they say, in a step and in its loss", async () => {
  const x = tensor([[1], [2], [4]]);
  const parts = [x.narrow(0, 0, 1), x.narrow(0, 1, 2)];
  const step = async (train: readonly (readonly [Tensor, Tensor])[], accumulate: number) => {
    const model = new nn.Linear(1, 1, { bias: false });
    nn.init.ones_(model.weight);
    const optimizer = new optim.SGD(model.parameters(), { lr: 0.1 });
    const loss = (y: Tensor) => y.square().mean();
    const { history } = await fit(model, { train, loss, optimizer, accumulate, steps: 1 });
    return [history[0].loss, await model.weight.item()];
  };
  const pair = (inputs: Tensor) => [inputs, inputs] as const;
  const weighed = parts.map((part) => Object.assign([part, part] as const, { weight: part.size }));
  const together = await step([pair(x)], 1);
  const apart = await step(weighed, 2);
  apart.forEach((value, i) => {
    assert.ok(Math.abs(value - together[i]) < 1e-5, `${apart} ≠ ${together}`);
  });
});

test("a label out of range is an error, and the model is as it was", async () => {
  const { model } = setup();
  const optimizer = new optim.SGD(model.parameters(), { lr: 0.1 });
  const before = await weights(model);
  const bad: [Tensor, Tensor][] = [
    [
      tensor([
        [1, 2],
        [3, 4],
      ]),
      tensor([0, 3], { dtype: "int32" }),
    ],
  ];
  await assert.rejects(
    fit(model, { train: bad, optimizer, loss: nn.functional.crossEntropy, steps: 3 }),
    (error: Error) => error.name === "IndexError",
  );
  assert.deepEqual(await weights(model), before);
});

test("options that make no sense are named", async () => {
  const { model, options } = setup();
  await assert.rejects(fit(model, { ...options, epochs: undefined }), /give epochs, steps, or both/);
  await assert.rejects(fit(model, { ...options, loss: undefined }), /give either loss/);
  await assert.rejects(fit(model, { ...options, accumulate: 0 }), /accumulate must be a whole number/);
  await assert.rejects(fit(model, { ...options, train: [] }), /gives no batches/);
  await assert.rejects(
    fit(model, { ...options, callbacks: [earlyStopping({ patience: 1 }), earlyStopping({ patience: 2 })] }),
    /two callbacks are called "earlyStopping"/,
  );
});

test("an abort ends the run after the step at hand, with a checkpoint to go on from", async () => {
  const dir = room();
  const { model, options } = setup();
  const controller = new AbortController();
  const abort: Callback = {
    name: "abort",
    onStep: (_, { step }) => {
      if (step === 6) controller.abort();
    },
  };
  const result = await fit(model, {
    ...options,
    signal: controller.signal,
    callbacks: [saveCheckpoints({ every: 1000, dir }), abort],
  });
  assert.equal(result.ended, "aborted");
  assert.ok(result.step <= 8);
  assert.match((await checkpointToResume(dir))!, new RegExp(`checkpoint-${result.step}$`));
  assert.ok(readdirSync(dir).includes("model.safetensors"));
  assert.ok(readFileSync(join(dir, "model.safetensors")).length > 100);
});
