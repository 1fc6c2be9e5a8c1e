/** Layers: how they start, what they refuse, dropout, running statistics; values against PyTorch are in tests/parity. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { flush, programCounts, setDevice } from "../../src/execution/index.ts";
import * as nn from "../../src/nn/index.ts";
import { SGD } from "../../src/optim/index.ts";
import { manualSeed, noGrad, ones, randn, type Tensor, tensor, zeros } from "../../src/tensor/index.ts";

setDevice("reference");
const F = nn.functional;
const int32 = { dtype: "int32" } as const;

async function moments(x: Tensor): Promise<{ mean: number; std: number; low: number; high: number }> {
  const data = Float64Array.from(await x.data());
  const mean = data.reduce((a, b) => a + b, 0) / data.length;
  const std = Math.sqrt(data.reduce((a, b) => a + (b - mean) ** 2, 0) / data.length);
  let [low, high] = [Infinity, -Infinity];
  for (const v of data) {
    low = Math.min(low, v);
    high = Math.max(high, v);
  }
  return { mean, std, low, high };
}

function near(got: number, expected: number, tolerance: number, what: string): void {
  assert.ok(Math.abs(got - expected) <= tolerance, `${what}: ${got}, expected ${expected} ± ${tolerance}`);
}

test("Linear, convolutions and Embedding start distributed as PyTorch's", async () => {
  manualSeed(3);
  const cases: [string, Tensor, number][] = [
    ["Linear.weight", new nn.Linear(100, 200).weight, 1 / 10],
    ["Linear.bias", new nn.Linear(100, 20000).bias as Tensor, 1 / 10],
    ["Conv2d.weight", new nn.Conv2d(16, 64, 5, { groups: 2 }).weight, 1 / Math.sqrt(8 * 25)],
    ["Conv1d.weight", new nn.Conv1d(8, 256, 9).weight, 1 / Math.sqrt(72)],
    ["ConvTranspose2d.weight", new nn.ConvTranspose2d(64, 32, 3).weight, 1 / Math.sqrt(32 * 9)],
  ];
  for (const [what, x, bound] of cases) {
    const { mean, std, low, high } = await moments(x);
    near(mean, 0, bound * 0.03, `${what}, mean`);
    near(std, bound / Math.sqrt(3), bound * 0.02, `${what}, std`);
    assert.ok(low >= -bound && high <= bound && low < -0.98 * bound && high > 0.98 * bound, `${what}, range`);
  }
  const embedding = await moments(new nn.Embedding(200, 100).weight);
  near(embedding.std, 1, 0.02, "Embedding, std");
  const padded = new nn.Embedding(4, 3, { paddingIdx: -2 });
  assert.deepEqual([...(await padded.weight.data())].slice(6, 9), [0, 0, 0]);
});

test("initialisers give what they promise", async () => {
  manualSeed(5);
  const fresh = (): Tensor => new nn.Parameter(zeros([64, 128]));
  const { init } = nn;
  const expected: [string, Tensor, number][] = [
    ["normal_", init.normal_(fresh(), 0, 0.5), 0.5],
    ["xavierNormal_", init.xavierNormal_(fresh()), Math.sqrt(2 / 192)],
    ["xavierUniform_", init.xavierUniform_(fresh(), 2), 2 * Math.sqrt(2 / 192)],
    ["kaimingNormal_", init.kaimingNormal_(fresh(), { nonlinearity: "relu" }), Math.sqrt(2 / 128)],
    ["kaimingUniform_", init.kaimingUniform_(fresh(), { mode: "fanOut", nonlinearity: "linear" }), 1 / 8],
  ];
  for (const [what, x, std] of expected) {
    const m = await moments(x);
    near(m.mean, 0, 0.05 * std, `${what}, mean`);
    near(m.std, std, 0.03 * std, `${what}, std`);
    assert.ok(x.requiresGrad, `${what} keeps the parameter a leaf`);
  }
  // the standard normal between −1 and 1 has standard deviation 0.5396
  const cut = await moments(init.truncNormal_(fresh(), 1, 2, -1, 3));
  near(cut.mean, 1, 0.03, "truncNormal_, mean");
  near(cut.std, 2 * 0.5396, 0.02, "truncNormal_, std");
  assert.ok(cut.low >= -1 && cut.high <= 3);
  // far out in a tail the inverse must still hold
  const tail = await moments(init.truncNormal_(new nn.Parameter(zeros([1000], { dtype: "float64" })), 0, 1, 3, 9));
  assert.ok(tail.low >= 3 && tail.mean > 3.2 && tail.mean < 3.4, `tail mean ${tail.mean}`); // φ(3)/(1−Φ(3)) = 3.283

  for (const shape of [
    [3, 5],
    [5, 3],
    [4, 2, 2],
  ]) {
    const q = init
      .orthogonal_(new nn.Parameter(zeros(shape, { dtype: "float64" })), 2)
      .detach()
      .flatten(1);
    const [rows, columns] = q.shape;
    const product = await (rows < columns ? q.matmul(q.t()) : q.t().matmul(q)).data();
    const n = Math.min(rows, columns);
    product.forEach((v, i) => {
      near(v, i % (n + 1) === 0 ? 4 : 0, 1e-12, `orthogonal_ [${shape}]`);
    });
  }
  assert.deepEqual(await init.eye_(new nn.Parameter(zeros([2, 3]))).tolist(), [
    [1, 0, 0],
    [0, 1, 0],
  ]);
  assert.throws(() => init.kaimingNormal_(new nn.Parameter(zeros([3]))), /at least two axes/);
});

test("the same seed starts the same model", async () => {
  const make = async (): Promise<number[]> => {
    manualSeed(11);
    return [...(await new nn.Linear(3, 2).weight.data())];
  };
  assert.deepEqual(await make(), await make());
});

test("dropout drops the share p, scales the rest, and the gradient has the same mask", async () => {
  manualSeed(1);
  const layer = new nn.Dropout(0.25);
  const x = ones([100, 100], { requiresGrad: true });
  const y = layer.forward(x);
  y.sum().backward();
  const [data, gradient] = [await y.data(), await (x.grad as Tensor).data()];
  assert.deepEqual(gradient, data);
  const kept = data.filter((v) => v !== 0);
  assert.ok(kept.every((v) => Math.abs(v - 4 / 3) < 1e-6));
  near(kept.length / 10000, 0.75, 0.02, "share kept");
  assert.notDeepEqual(await layer.forward(x).data(), data);
  assert.equal(layer.eval().forward(x), x);
  assert.deepEqual(await F.dropout(ones([3]), 1).tolist(), [0, 0, 0]);
  assert.throws(() => new nn.Dropout(1.5), /between 0 and 1/);
});

test("dropout in every step is one program", async () => {
  const model = new nn.Sequential(new nn.Linear(3, 4), new nn.Dropout(0.5), new nn.Linear(4, 1));
  const optimizer = new SGD(model.parameters(), { lr: 0.1 });
  const x = randn([5, 3]);
  let made = 0;
  for (let step = 0; step < 6; step++) {
    model.forward(x).sum().backward();
    await optimizer.step();
    optimizer.zeroGrad();
    if (step === 0) made = programCounts("reference").made;
  }
  assert.equal(programCounts("reference").made, made);
});

test("batch norm's statistics move though nobody reads them, and not in evaluation", async () => {
  const layer = new nn.BatchNorm1d(2, { momentum: 0.5 });
  const x = tensor([
    [1, 0],
    [3, 4],
  ]);
  layer.forward(x);
  await flush("reference");
  assert.deepEqual(await layer.runningMean?.tolist(), [1, 1]);
  assert.deepEqual(await layer.runningVar?.tolist(), [1.5, 4.5]); // unbiased variances 2 and 8
  layer.eval();
  layer.forward(x);
  assert.deepEqual(await layer.runningMean?.tolist(), [1, 1]);
  assert.equal(await layer.numBatchesTracked?.item(), 1);
  const mean = new nn.BatchNorm1d(1, { momentum: null });
  for (const v of [0, 3, 6]) mean.forward(tensor([[v], [v + 2]]));
  near(await (mean.runningMean as Tensor).item(), 4, 1e-5, "cumulative mean");
  await assert.rejects(async () => new nn.BatchNorm1d(2).forward(ones([1, 2])), /more than one value a channel/);
  await assert.rejects(
    async () => new nn.BatchNorm2d(2).forward(ones([1, 3, 2, 2])),
    /BatchNorm2d: expected \[N, 2, H, W\]/,
  );
});

test("embedding's padding row gets no gradient", async () => {
  const layer = new nn.Embedding(3, 2, { paddingIdx: 0 });
  layer
    .forward(tensor([0, 2, 2, 0], int32))
    .sum()
    .backward();
  assert.deepEqual(await layer.weight.grad?.tolist(), [
    [0, 0],
    [0, 0],
    [2, 2],
  ]);
});

test("attention with dropout of nothing equals attention; the layer's halves are the functional one", async () => {
  manualSeed(2);
  const [q, k, v] = [randn([2, 4, 5, 3]), randn([2, 2, 6, 3]), randn([2, 2, 6, 3])];
  const mask = randn([5, 6]);
  for (const options of [{ isCausal: true }, { attnMask: mask }, { attnMask: mask.gt(-2), scale: 0.3 }, {}]) {
    const a = await F.scaledDotProductAttention(q, k, v, { ...options, enableGqa: true }).data();
    const b = await F.scaledDotProductAttention(q, k, v, { ...options, enableGqa: true, dropoutP: 1e-12 }).data();
    a.forEach((value, i) => {
      near(b[i], value, 1e-5, JSON.stringify(Object.keys(options)));
    });
  }
  assert.deepEqual(F.scaledDotProductAttention(randn([5, 3]), randn([6, 3]), randn([6, 4])).shape, [5, 4]);
  assert.deepEqual(F.scaledDotProductAttention(randn([2, 5, 3]), randn([2, 6, 3]), randn([2, 6, 4])).shape, [2, 5, 4]);
  assert.throws(() => F.scaledDotProductAttention(q, k, v), /enableGqa/);
  assert.throws(() => F.scaledDotProductAttention(q, q, q, { isCausal: true, attnMask: mask }), /exclude each other/);

  const layer = new nn.CausalSelfAttention(6, 2);
  const x = randn([2, 4, 6]);
  const heads = layer.c_attn
    .forward(x)
    .chunk(3, -1)
    .map((t) => t.unflatten(2, [2, 3]).transpose(1, 2));
  const mixed = F.scaledDotProductAttention(heads[0], heads[1], heads[2], { isCausal: true });
  const expected = await layer.c_proj.forward(mixed.transpose(1, 2).flatten(2)).data();
  const got = await layer.forward(x).data();
  expected.forEach((value, i) => {
    near(got[i], value, 1e-6, "CausalSelfAttention");
  });
  // what comes later changes nothing earlier
  const cut = await layer.forward(x.narrow(1, 0, 2)).data();
  cut.subarray(0, 12).forEach((value, i) => {
    near(got[i], value, 1e-5, "causality");
  });
  assert.throws(() => new nn.CausalSelfAttention(6, 4), /4 heads do not divide a width of 6/);
});

test("losses: shapes, reductions, the chunked head equals the plain one", async () => {
  const logits = randn([2, 5, 3], { dtype: "float64" });
  const target = tensor(
    [
      [0, 4, 2],
      [1, -100, 3],
    ],
    int32,
  ); // prettier-ignore
  assert.deepEqual(F.crossEntropy(logits, target, { reduction: "none" }).shape, [2, 3]);
  const mean = await F.crossEntropy(logits, target).item();
  const none = Float64Array.from(await F.crossEntropy(logits, target, { reduction: "none" }).data());
  near(mean, none.reduce((a, b) => a + b, 0) / 5, 1e-12, "mean over what counts");
  const probabilities = F.oneHot(target.clamp(0), 5).to("float64").permute(0, 2, 1);
  const soft = await F.crossEntropy(logits, probabilities, { reduction: "none" }).data();
  none.forEach((v, i) => {
    if (i !== 4) near(soft[i], v, 1e-12, "one-hot probabilities");
  });
  const [hidden, weight] = [randn([2, 3, 4]), randn([7, 4])];
  const classes = tensor(
    [
      [0, 6, 3],
      [2, 5, 1],
    ],
    int32,
  ); // prettier-ignore
  const whole = await F.crossEntropy(F.linear(hidden, weight).flatten(0, 1), classes.flatten()).item();
  near(await F.linearCrossEntropy(hidden, weight, classes).item(), whole, 1e-6, "linearCrossEntropy");
  assert.deepEqual(F.linearCrossEntropy(hidden, weight, classes, { reduction: "none" }).shape, [2, 3]);
  assert.throws(
    () => F.crossEntropy(randn([4, 3]), tensor([1, 2], int32)),
    /targets \[2\] do not fit the input \[4, 3\]/,
  );
  assert.throws(() => F.crossEntropy(randn([4, 3]), randn([4])), /class indices are integers/);
  // saturated probabilities stay finite, in the gradient too
  const p = tensor([0, 1, 0, 1], { requiresGrad: true });
  const loss = F.binaryCrossEntropy(p, tensor([0, 1, 1, 0]));
  loss.backward();
  assert.equal(await loss.item(), 50);
  assert.ok((await (p.grad as Tensor).data()).every(Number.isFinite));
});

test("mistakes are named where they are made", () => {
  const x = randn([2, 3]);
  assert.throws(
    () => new nn.Linear(4, 1).forward(x),
    /linear: the input \[2, 3\] has 3 features in its last axis, the weight \[1, 4\] takes 4/,
  );
  assert.throws(() => new nn.Linear(3, 1, { dtype: "float64" }).forward(x), /the input is float32, the weight float64/);
  assert.throws(() => new nn.Linear(0, 1), /inFeatures must be a whole number ≥ 1/);
  assert.throws(() => new nn.Embedding(3, 2).forward(x), /ids must be integers/);
  assert.throws(
    () => new nn.Conv2d(3, 4, 3).forward(x),
    /conv2d: the input must be \[batch, channels, height, width\]/,
  );
  assert.throws(() => new nn.Conv2d(3, 4, 3, { groups: 2 }), /2 groups must divide 3 channels in/);
  assert.throws(() => new nn.LayerNorm(4).forward(x), /layerNorm: the input \[2, 3\] must end in \[4\]/);
  assert.throws(
    () => F.conv2d(randn([1, 1, 4, 4]), randn([1, 1, 3, 3]), null, { padding: "same", stride: 2 }),
    /needs stride 1/,
  );
  assert.throws(() => F.glu(x), /odd size/);
  assert.throws(() => F.gelu(x, { approximate: "tan" as never }), /approximate must be/);
});

test("a batch axis may be left out of convolutions and poolings", async () => {
  const conv = new nn.Conv2d(2, 3, 3, { padding: "same" });
  const x = randn([2, 5, 4]);
  const single = conv.forward(x);
  assert.deepEqual(single.shape, [3, 5, 4]);
  assert.deepEqual(await single.data(), await conv.forward(x.unsqueeze(0)).data());
  assert.deepEqual(new nn.MaxPool2d(2).forward(x).shape, [2, 2, 2]);
  assert.deepEqual(new nn.MaxPool1d(2).forward(randn([3, 7])).shape, [3, 3]);
  assert.deepEqual(new nn.AvgPool1d(3, { stride: 1, padding: 1 }).forward(randn([2, 3, 7])).shape, [2, 3, 7]);
  assert.deepEqual(noGrad(() => new nn.Conv1d(3, 4, 3, { dilation: 2 }).forward(randn([2, 3, 9]))).shape, [2, 4, 5]);
});
