/** Quantised linear layers: the weight that they stand for, gradients through them, sizes that are no whole number of blocks. */
import assert from "node:assert/strict";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { setDevice } from "../../src/execution/index.ts";
import {
  dequantizeInt8,
  dequantizeNF4,
  quantizeInt8,
  quantizeLinear,
  quantizeModel,
  quantizeNF4,
  quantizer,
} from "../../src/finetune/index.ts";
import { fromPretrained, MLP } from "../../src/models/index.ts";
import { Linear } from "../../src/nn/index.ts";
import { manualSeed, randn, tensor } from "../../src/tensor/index.ts";
import { backendsUnderTest } from "../support/backends.ts";
import { assertClose } from "../support/fixtures.ts";

const fixtures = join(dirname(dirname(fileURLToPath(import.meta.url))), "parity", "fixtures", "pretrained");

for (const backend of await backendsUnderTest())
  for (const quantization of ["nf4", "int8"] as const)
    for (const [inputs, outputs] of [
      [64, 6],
      [7, 9],
      [33, 5],
    ] as const)
      test(`${quantization} on ${backend.name}: a layer from ${inputs} to ${outputs} computes with the weight it stands for`, async () => {
        setDevice(backend.name);
        manualSeed(inputs);
        const layer = new Linear(inputs, outputs);
        const weight = await layer.weight.data();
        const quantized = await quantizeLinear(layer, { quantization });
        const expected =
          quantization === "nf4"
            ? dequantizeNF4(quantizeNF4(weight))
            : dequantizeInt8(quantizeInt8(weight, outputs, inputs));
        assertClose("weight", await quantized.dequantize().data(), expected, { rtol: 1e-6, atol: 1e-9 });
        const dense = new Linear(inputs, outputs);
        dense.loadStateDict({ weight: tensor(expected, { shape: [outputs, inputs] }), bias: layer.bias! });
        const x = randn([4, inputs]);
        const [a, b] = [x.clone().requiresGrad_(), x.clone().requiresGrad_()];
        const [y, z] = [quantized.forward(a), dense.forward(b)];
        y.square().sum().backward();
        z.square().sum().backward();
        assertClose("output", await y.data(), await z.data(), { rtol: 1e-5, atol: 1e-6 });
        assertClose("gradient", await a.grad!.data(), await b.grad!.data(), { rtol: 1e-4, atol: 1e-5 });
      });

test("a model that is quantised as it is read is the one that is quantised afterwards", async () => {
  setDevice("reference");
  const folder = join(fixtures, "llama");
  for (const quantization of ["nf4", "int8"] as const) {
    const options = { quantization, doubleQuant: true, target: ["q_proj", "down_proj"] };
    const before = await fromPretrained(folder, { dtype: "float32", replace: quantizer(options) });
    const after = await fromPretrained(folder, { dtype: "float32" });
    await quantizeModel(after, options);
    const [a, b] = [before.stateDict(), after.stateDict()];
    assert.deepEqual(Object.keys(a), Object.keys(b));
    assert.ok(Object.keys(a).some((key) => key.endsWith("q_proj.weight.absmax")));
    for (const key of Object.keys(a)) assert.deepEqual(await a[key].data(), await b[key].data(), key);
    const ids = tensor([[1, 2, 3, 4]], { dtype: "int32" });
    assert.deepEqual(await before.forward(ids).data(), await after.forward(ids).data());
  }
});

test("a weight that is not finite is refused, and what can't be quantised is named", async () => {
  setDevice("reference");
  assert.throws(() => quantizeNF4([1, Number.NaN]), /element 1 is NaN; only finite weights/);
  assert.throws(() => quantizeInt8([1, Number.POSITIVE_INFINITY], 2, 1), /row 1 holds Infinity/);
  assert.throws(() => quantizeNF4([1], { block: 3 }), /block must be an even whole number, got 3/);
  await assert.rejects(quantizeModel(new MLP({ sizes: [2, 3] }), { target: ["nothing"] }), /matches no linear layer/);
  await assert.rejects(
    quantizeLinear(new Linear(2, 2), { quantization: "int3" as "nf4" }),
    /quantization must be "nf4" or "int8", got "int3"/,
  );
});

test("double quantisation changes the scales little, and shrinks them to a byte each", () => {
  const values = Float32Array.from({ length: 64 * 300 }, (_, i) => Math.sin(i * 12.9898) * (1 + (i % 7)));
  const { scales, packed } = quantizeNF4(values, { doubleQuant: true });
  assert.equal(packed.length, 64 * 150);
  assert.ok(scales.kind === "dynamic8" && scales.codes.length === 300 && scales.absmax.length === 2);
  const [once, twice] = [dequantizeNF4(quantizeNF4(values)), dequantizeNF4(quantizeNF4(values, { doubleQuant: true }))];
  const error = (got: Float32Array) => Math.sqrt(got.reduce((sum, x, i) => sum + (x - values[i]) ** 2, 0));
  assert.ok(error(twice) < 1.02 * error(once));
});
