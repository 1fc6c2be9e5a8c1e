/**
 * autocast: what computes in bfloat16 and what in float32, on every device; where the mode begins and ends; and that fit trains in it and
 * goes on in it exactly. Its numbers beside PyTorch's are tests/parity/mixed.test.ts.
 */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test } from "node:test";
import { setDevice } from "../../src/execution/index.ts";
import { applyLora, quantizeModel } from "../../src/finetune/index.ts";
import { GPT2 } from "../../src/models/index.ts";
import * as nn from "../../src/nn/index.ts";
import { SGD } from "../../src/optim/index.ts";
import { autocast, einsum, manualSeed, noGrad, rand, randn, type Tensor, tensor } from "../../src/tensor/index.ts";
import { checkpointToResume, EvaluateError, evaluate, fit, saveCheckpoints } from "../../src/train/index.ts";
import { backendsUnderTest } from "../support/backends.ts";

const F = nn.functional;
const numbers = async (x: Tensor): Promise<number[]> => Array.from(await x.to("float32").data(), Number);
const rounded = (x: Tensor): Tensor => x.to("bfloat16").to("float32");

describe("autocast records", () => {
  const [x, w] = [rand([4, 8]), rand([6, 8])];
  const image = rand([1, 3, 6, 6]);
  const heads = rand([1, 2, 4, 8]);
  const products: Readonly<Record<string, () => Tensor>> = {
    matmul: () => x.matmul(w.transpose(0, 1)),
    addmm: () => rand([4, 6]).addmm(x, w.transpose(0, 1)),
    einsum: () => einsum("ij,kj->ik", x, w),
    linear: () => F.linear(x, w, rand([6])),
    conv1D: () => F.conv1D(x, w.transpose(0, 1)),
    conv2d: () => F.conv2d(image, rand([5, 3, 3, 3]), rand([5])),
    convTranspose2d: () => F.convTranspose2d(image, rand([3, 5, 3, 3])),
    scaledDotProductAttention: () => F.scaledDotProductAttention(heads, heads, heads, { isCausal: true }),
    "attention with dropout": () => F.scaledDotProductAttention(heads, heads, heads, { dropoutP: 0.5 }),
  };
  for (const [name, make] of Object.entries(products))
    test(`${name} in bfloat16, from operands of either type`, () => {
      assert.equal(make().dtype, "float32");
      assert.equal(autocast({}, make).dtype, "bfloat16");
      assert.equal(autocast({}, () => F.linear(x.to("bfloat16"), w)).dtype, "bfloat16");
    });

  const half = x.to("bfloat16");
  const full: Readonly<Record<string, () => Tensor>> = {
    softmax: () => F.softmax(half, 1),
    logSoftmax: () => F.logSoftmax(half, 1),
    prod: () => half.prod(),
    crossEntropy: () => F.crossEntropy(half, tensor([1, 2, 3, 0], { dtype: "int32" })),
    nllLoss: () => F.nllLoss(half, tensor([1, 2, 3, 0], { dtype: "int32" })),
    mseLoss: () => F.mseLoss(half, x),
    l1Loss: () => F.l1Loss(half, half),
    huberLoss: () => F.huberLoss(half, x),
    binaryCrossEntropy: () => F.binaryCrossEntropy(half, x),
    binaryCrossEntropyWithLogits: () => F.binaryCrossEntropyWithLogits(half, x),
    linearCrossEntropy: () => F.linearCrossEntropy(x, w, tensor([1, 2, 3, 0], { dtype: "int32" })),
    LSTM: () => new nn.LSTM(8, 3).forward(half.reshape([1, 4, 8]))[0],
  };
  for (const [name, make] of Object.entries(full))
    test(`${name} in float32`, () => {
      assert.equal(autocast({}, make).dtype, "float32");
    });

  test("other operations by their operands", () => {
    const norm = new nn.LayerNorm(8);
    autocast({}, () => {
      assert.equal(norm.forward(x).dtype, "float32");
      assert.equal(norm.forward(half).dtype, "bfloat16");
      assert.equal(F.gelu(half).dtype, "bfloat16");
      assert.equal(half.add(x).dtype, "float32");
      assert.equal(x.to("float64").matmul(w.to("float64").transpose(0, 1)).dtype, "float64");
    });
  });

  test("nothing after it, where it is turned off inside, or after an error; and until a promise settles", async () => {
    const product = (): string => F.linear(x, w).dtype;
    autocast({}, () => {
      assert.equal(autocast({ enabled: false }, product), "float32");
      assert.equal(product(), "bfloat16");
    });
    assert.throws(() => autocast({}, () => assert.fail("inside")), /inside/);
    assert.equal(product(), "float32");
    const later = autocast({}, async () => {
      await Promise.resolve();
      return product();
    });
    assert.equal(await later, "bfloat16");
    assert.equal(product(), "float32");
  });

  test("no float16, which would need a scaled loss", () => {
    assert.throws(() => autocast({ dtype: "float16" as "bfloat16" }, () => 0), /float16 would need a scaled loss/);
  });
});

for (const backend of await backendsUnderTest())
  describe(`autocast on ${backend.name}`, () => {
    test("products are those of the rounded operands", async () => {
      setDevice(backend.name);
      manualSeed(3);
      const [x, w] = [randn([18, 33]), randn([20, 33])];
      const [got, expected] = noGrad(() => [
        autocast({}, () => F.linear(x, w)),
        rounded(x).matmul(rounded(w).transpose(0, 1)),
      ]);
      const values = await numbers(expected);
      for (const [i, value] of (await numbers(got)).entries())
        assert.ok(Math.abs(value - values[i]) <= 2 ** -8 * Math.abs(values[i]) + 1e-5, `${i}: ${value}, ${values[i]}`);
    });

    test("gradients of parameters and inputs are float32, near those without it, and smaller losses follow", async () => {
      setDevice(backend.name);
      manualSeed(4);
      const model = applyLora(
        new GPT2({ vocabSize: 23, contextLength: 8, numLayers: 1, numHeads: 2, hiddenSize: 16 }),
        { r: 2, alpha: 4, target: "all-linear" },
      );
      const ids = tensor([[1, 5, 2, 7, 3, 3, 9, 4]], { dtype: "int32" });
      const parameters = model.parameters().filter((p) => p.requiresGrad);
      const gradients = async (enabled: boolean): Promise<number[]> => {
        autocast({ enabled }, () => model.forward(ids, ids)).backward();
        const all: number[] = [];
        for (const p of parameters) {
          assert.equal((p.grad as Tensor).dtype, "float32");
          all.push(...(await numbers(p.grad as Tensor)));
          p.grad = null;
        }
        return all;
      };
      const [plain, mixed] = [await gradients(false), await gradients(true)];
      const norm = (x: readonly number[]): number => Math.sqrt(x.reduce((sum, v) => sum + v * v, 0));
      const apart = norm(plain.map((v, i) => v - mixed[i])) / norm(plain);
      assert.ok(apart > 0 && apart < 0.03, `${apart} apart`);
    });
  });

test("a quantised base keeps its products in float32, and gives bfloat16", async () => {
  const model = new nn.Sequential(new nn.Linear(64, 8, { bias: false }));
  await quantizeModel(model, { quantization: "nf4" });
  const x = rand([2, 64]);
  const [mixed, plain] = noGrad(() => [autocast({}, () => model.forward(x)), model.forward(x)]);
  assert.equal(mixed.dtype, "bfloat16");
  assert.deepEqual(await numbers(mixed), await numbers(plain.to("bfloat16")));
});

describe("fit in bfloat16", () => {
  const batch = (i: number): Tensor[] => {
    manualSeed(100 + i);
    return [randn([8, 6]), tensor([0, 1, 2, 0, 1, 2, 0, 1], { dtype: "int32" })];
  };
  const make = () => {
    manualSeed(9);
    const model = new nn.Sequential(new nn.Linear(6, 16), new nn.Tanh(), new nn.Linear(16, 3));
    return { model, optimizer: new SGD(model.parameters(), { lr: 0.1, momentum: 0.9 }) };
  };
  const given = () => {
    const data = [0, 1, 2].map(batch);
    return { data, options: { train: data, loss: F.crossEntropy, precision: "bfloat16" as const } };
  };
  const lossesOf = (history: readonly { loss: number }[]): number[] => history.map(({ loss }) => loss);

  test("trains in it, validates in it, and goes on with the same bits", async () => {
    const folder = mkdtempSync(join(tmpdir(), "nabla-mixed-"));
    try {
      const { data, options } = given();
      const whole = make();
      const all = await fit(whole.model, { ...options, ...whole, epochs: 4, validation: data });
      const plain = make();
      const other = await fit(plain.model, { ...options, ...plain, precision: "float32", epochs: 4 });
      assert.notDeepEqual(lossesOf(all.history), lossesOf(other.history));
      assert.ok(all.history[11].loss < all.history[0].loss);
      for (const p of whole.model.parameters()) assert.equal(p.dtype, "float32");
      const twin = make();
      await twin.model.loadStateDict(whole.model.stateDict());
      const measured = await evaluate(twin.model, data, { loss: F.crossEntropy, precision: "bfloat16" });
      assert.equal(measured.loss, all.history[11]["validationLoss"]);

      const first = make();
      const dir = join(folder, "checkpoints");
      await fit(first.model, { ...options, ...first, epochs: 2, callbacks: [saveCheckpoints({ every: 6, dir })] });
      const second = make();
      const rest = await fit(second.model, { ...options, ...second, epochs: 4, resume: await checkpointToResume(dir) });
      assert.deepEqual(lossesOf(rest.history), lossesOf(all.history).slice(6));
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  });

  test("refuses other precisions", async () => {
    const wrong = { ...given().options, ...make(), steps: 1, precision: "float16" as "bfloat16" };
    await assert.rejects(fit(make().model, wrong), EvaluateError);
  });
});
