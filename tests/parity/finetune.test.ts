/**
 * LoRA, QLoRA and NF4 against PEFT and bitsandbytes (fixtures/finetune.json): the losses of twenty steps of training from the same
 * adapter on the same batches, adapters that PEFT saved, and codes bit for bit. Where a Python with PEFT is (NABLA_PYTHON), PEFT
 * also reads adapters that are written here.
 */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import type { Backend } from "../../src/backends/backend.ts";
import type { DType } from "../../src/core/dtype.ts";
import { setDevice } from "../../src/execution/index.ts";
import {
  type Adapted,
  applyLora,
  dequantizeInt8,
  dequantizeNF4,
  loadAdapter,
  quantizeInt8,
  quantizeModel,
  quantizeNF4,
} from "../../src/finetune/index.ts";
import { dynamicCode } from "../../src/finetune/nf4.ts";
import { parseSafetensors, save } from "../../src/formats/index.ts";
import { adaptGPT2StateDict, GPT2 } from "../../src/models/index.ts";
import { functional as F, Linear, Module } from "../../src/nn/index.ts";
import { AdamW } from "../../src/optim/index.ts";
import { type Tensor, tensor } from "../../src/tensor/index.ts";
import { backendsUnderTest, floatsOf, isBrief } from "../support/backends.ts";
import { load } from "../support/calls.ts";
import { assertClose, readFixture, type Stored, valuesOf } from "../support/fixtures.ts";

interface SavedAdapter {
  readonly config: string;
  /** base64 of adapter_model.safetensors */
  readonly weights: string;
}

interface Case {
  readonly name: string;
  readonly base: "gpt2" | "plain";
  readonly before: SavedAdapter;
  readonly losses: readonly number[];
  readonly after: SavedAdapter;
  readonly logits: Stored;
}

interface QuantizedBlocks {
  readonly packed: Stored;
  readonly dequantized?: Stored;
}

interface Fixture {
  readonly config: Readonly<Record<"width" | "heads" | "layers" | "vocabulary" | "context", number>>;
  readonly lr: number;
  readonly weights: Readonly<Record<"gpt2" | "plain", Readonly<Record<string, Stored>>>>;
  /** [steps, batch, context] */
  readonly ids: Stored;
  readonly inputs: Stored;
  readonly classes: Stored;
  readonly cases: readonly Case[];
  readonly dynamicCode: Stored;
  readonly nf4: readonly {
    readonly weight: Stored;
    readonly single: QuantizedBlocks & { readonly absmax: Stored };
    readonly double: QuantizedBlocks & {
      readonly scaleCodes: Stored;
      readonly scaleAbsmax: Stored;
      readonly offset: number;
    };
    readonly int8?: { readonly weight: Stored; readonly codes: Stored; readonly absmax: Stored };
  }[];
  /** A GPT-2 of one layer, 64 wide. */
  readonly wide: Readonly<Record<string, Stored>>;
  readonly qlora: readonly {
    readonly doubleQuant: boolean;
    readonly before: SavedAdapter;
    readonly losses: readonly number[];
  }[];
}

const fixture = readFixture<Fixture>("finetune");
const { config } = fixture;

/** How many of the steps a backend takes: slow ones fewer. */
const stepsOn = (backend: Backend, losses: readonly number[]): number =>
  isBrief(backend) ? 2 : backend.name === "reference" ? 3 : losses.length;

class Plain extends Module {
  fc1 = new Linear(6, 16);
  fc2 = new Linear(16, 4);
  forward(x: Tensor): Tensor {
    return this.fc2.forward(this.fc1.forward(x).tanh());
  }
}

const newGpt2 = (dtype: DType, sizes: { readonly numLayers?: number; readonly hiddenSize?: number } = {}): GPT2 =>
  new GPT2({
    vocabSize: config.vocabulary,
    contextLength: config.context,
    numLayers: config.layers,
    numHeads: config.heads,
    hiddenSize: config.width,
    dtype,
    ...sizes,
  });

function baseModel(kind: "gpt2" | "plain", dtype: DType): GPT2 | Plain {
  const model = kind === "gpt2" ? newGpt2(dtype) : new Plain().to(dtype);
  const stored = Object.entries(fixture.weights[kind]).map(([key, x]) => [key, load(x, dtype)] as const);
  const weights = Object.fromEntries(stored);
  model.loadStateDict(kind === "gpt2" ? adaptGPT2StateDict(weights) : weights);
  return model;
}

const part = (stored: Stored, step: number, dtype: DType): Tensor => {
  const shape = stored.shape.slice(1);
  const size = shape.reduce((a, b) => a * b, 1);
  return tensor(valuesOf(stored).slice(step * size, (step + 1) * size), { shape, dtype });
};

function lossOf(model: GPT2 | Plain, step: number, dtype: DType): Tensor {
  if (model instanceof Plain)
    return F.crossEntropy(model.forward(part(fixture.inputs, step, dtype)), part(fixture.classes, step, "int32"));
  const ids = part(fixture.ids, step, "int32");
  const time = config.context - 1;
  return model.forward(ids.narrow(1, 0, time), ids.narrow(1, 1, time));
}

const logitsOf = (model: GPT2 | Plain, dtype: DType): Tensor =>
  model instanceof Plain ? model.forward(part(fixture.inputs, 0, dtype)) : model.forward(part(fixture.ids, 0, "int32"));

async function train(model: GPT2 | Plain, steps: number, dtype: DType): Promise<number[]> {
  const optimizer = new AdamW(
    model.parameters().filter((p) => p.requiresGrad),
    { lr: fixture.lr, weightDecay: 0 },
  );
  const losses: number[] = [];
  for (let step = 0; step < steps; step++) {
    const loss = lossOf(model, step, dtype);
    loss.backward();
    await optimizer.step();
    optimizer.zeroGrad();
    losses.push(await loss.item());
  }
  return losses;
}

/** Puts an adapter's two files into a folder for the time of `fn`. */
async function inFolder<T>(adapter: SavedAdapter | null, fn: (folder: string) => Promise<T>): Promise<T> {
  const folder = mkdtempSync(join(tmpdir(), "nabla-adapter-"));
  try {
    if (adapter) {
      writeFileSync(join(folder, "adapter_config.json"), adapter.config);
      writeFileSync(join(folder, "adapter_model.safetensors"), Buffer.from(adapter.weights, "base64"));
    }
    return await fn(folder);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

const adapted = (model: GPT2 | Plain, adapter: SavedAdapter): Promise<Adapted<GPT2 | Plain>> =>
  inFolder(adapter, (folder) => loadAdapter(model, folder));

const keysOf = (adapter: SavedAdapter): string[] =>
  [...parseSafetensors(Buffer.from(adapter.weights, "base64")).tensors.keys()].filter(
    (key) => !/\.(modules_to_save|original_module)\./.test(key),
  );

for (const backend of await backendsUnderTest())
  for (const dtype of floatsOf(backend))
    describe(`fine-tuning on ${backend.name} in ${dtype}`, () => {
      const close = dtype === "float64" ? { rtol: 1e-6, atol: 1e-8 } : { rtol: 1e-5, atol: 1e-5 };

      for (const each of fixture.cases)
        test(`LoRA learns as PEFT's does: ${each.name}`, async () => {
          setDevice(backend.name);
          const model = await adapted(baseModel(each.base, dtype), each.before);
          const steps = stepsOn(backend, each.losses);
          assertClose("losses", await train(model, steps, dtype), each.losses.slice(0, steps), close);
          if (steps === each.losses.length) {
            model.eval();
            const learnt = { rtol: 1e-3, atol: dtype === "float64" ? 1e-6 : 1e-3 };
            assertClose("logits", await logitsOf(model, dtype).data(), valuesOf(each.logits), learnt);
          }
          assert.deepEqual(Object.keys(model.adapterStateDict()).sort(), keysOf(each.before).sort());
        });

      for (const each of fixture.cases)
        test(`an adapter that PEFT saved gives PEFT's logits: ${each.name}`, async (t) => {
          if (isBrief(backend)) return t.skip("more under NABLA_LONG=1");
          setDevice(backend.name);
          const model = await adapted(baseModel(each.base, dtype), each.after);
          model.eval();
          const tolerance = dtype === "float64" ? { rtol: 1e-5, atol: 1e-6 } : { rtol: 1e-4, atol: 1e-5 };
          const expected = valuesOf(each.logits);
          assertClose("logits", await logitsOf(model, dtype).data(), expected, tolerance);
          if (each.name.includes("embeddings")) {
            assert.throws(() => model.merge(), /"transformer\.wte" is also the output head/);
            return;
          }
          const plain = baseModel(each.base, dtype);
          plain.loadStateDict(model.mergedStateDict());
          assertClose("merged state dict", await logitsOf(plain, dtype).data(), expected, tolerance);
          model.merge();
          assertClose("merged", await logitsOf(model, dtype).data(), expected, tolerance);
          model.mergeAndUnload();
          assert.equal(String(model), String(baseModel(each.base, dtype)));
          assertClose("unloaded", await logitsOf(model, dtype).data(), expected, tolerance);
        });
    });

for (const backend of await backendsUnderTest())
  for (const each of fixture.qlora)
    test(`QLoRA on ${backend.name} learns as PEFT's does over bitsandbytes' NF4, double quantisation ${each.doubleQuant}`, async (t) => {
      if (isBrief(backend) && !each.doubleQuant) return t.skip("more under NABLA_LONG=1");
      setDevice(backend.name);
      const base = newGpt2("float32", { numLayers: 1, hiddenSize: 64 });
      const stored = Object.entries(fixture.wide).map(([key, x]) => [key, load(x, "float32")] as const);
      base.loadStateDict(adaptGPT2StateDict(Object.fromEntries(stored)));
      await quantizeModel(base, { quantization: "nf4", doubleQuant: each.doubleQuant });
      const model = (await adapted(base, each.before)) as Adapted<GPT2>;
      const steps = stepsOn(backend, each.losses);
      const losses = await train(model, steps, "float32");
      assertClose("losses", losses, each.losses.slice(0, steps), { rtol: 1e-4, atol: 0 });
    });

test("NF4 codes and scales are bitsandbytes', with and without double quantisation", () => {
  assert.deepEqual([...dynamicCode()], [...valuesOf(fixture.dynamicCode)]);
  for (const { weight, single, double } of fixture.nf4) {
    const values = valuesOf(weight);
    const plain = quantizeNF4(values);
    assert.deepEqual([...plain.packed], [...valuesOf(single.packed)]);
    assert.ok(plain.scales.kind === "float32");
    assert.deepEqual([...plain.scales.absmax], [...valuesOf(single.absmax)]);
    if (single.dequantized)
      assertClose("dequantised", dequantizeNF4(plain), valuesOf(single.dequantized), { rtol: 0, atol: 0 });
    const twice = quantizeNF4(values, { doubleQuant: true });
    assert.deepEqual([...twice.packed], [...valuesOf(double.packed)]);
    assert.ok(twice.scales.kind === "dynamic8");
    // where all scales are equal, any code times 0 is right
    if (twice.scales.absmax.some((x) => x > 0))
      assert.deepEqual([...twice.scales.codes], [...valuesOf(double.scaleCodes)]);
    assertClose("offset", [twice.scales.offset], [double.offset], { rtol: 1e-6, atol: 0 });
    assertClose("scales", twice.scales.absmax, valuesOf(double.scaleAbsmax), { rtol: 1e-6, atol: 0 });
    if (double.dequantized)
      assertClose("dequantised", dequantizeNF4(twice), valuesOf(double.dequantized), { rtol: 1e-6, atol: 1e-9 });
  }
});

test("8-bit codes and scales are bitsandbytes'", () => {
  let cases = 0;
  for (const { int8 } of fixture.nf4) {
    if (!int8) continue;
    cases++;
    const [rows, columns] = int8.weight.shape;
    const values = valuesOf(int8.weight);
    const got = quantizeInt8(values, rows, columns);
    assert.deepEqual([...got.absmax], [...valuesOf(int8.absmax)]);
    assert.deepEqual(
      Array.from(got.codes, (c) => c - 128),
      [...valuesOf(int8.codes)],
    );
    const back = dequantizeInt8(got);
    for (let i = 0; i < values.length; i++)
      assert.ok(Math.abs(back[i] - values[i]) <= got.absmax[Math.floor(i / columns)] / 253);
  }
  assert.equal(cases, 2);
});

const python = process.env["NABLA_PYTHON"];
const hasPeft =
  python !== undefined && spawnSync(python, ["-c", "import peft, transformers"], { encoding: "utf8" }).status === 0;

test("an adapter that is written here loads in PEFT and gives the same logits", {
  skip: hasPeft ? false : "NABLA_PYTHON names no Python with peft and transformers",
}, async () => {
  const script = fileURLToPath(new URL("peft_logits.py", import.meta.url));
  const targets = [
    { target: "all-linear", r: 4, alpha: 8 },
    { target: /.*\.(c_attn|wte|wpe)/, r: 3, alpha: 6, rslora: true, bias: "all" },
    { target: ["mlp.c_proj"], r: 2, modulesToSave: ["ln_f"], bias: "lora_only" },
    {
      target: ["c_attn", "c_fc"],
      exclude: /.*\.h\.0\.mlp\..*/,
      r: 2,
      rankPattern: { c_fc: 3 },
      alphaPattern: { "h.1.attn.c_attn": 9 },
    },
  ] as const;
  for (const options of targets)
    await inFolder(null, async (folder) => {
      const model = applyLora(baseModel("gpt2", "float32") as GPT2, { ...options, taskType: "CAUSAL_LM" });
      await save(baseModel("gpt2", "float32"), join(folder, "base.safetensors"));
      await train(model, 5, "float32");
      model.eval();
      const ids = part(fixture.ids, 0, "int32");
      const logits = await model.forward(ids).data();
      await model.saveAdapter(folder);
      writeFileSync(join(folder, "input.json"), JSON.stringify({ ids: await ids.tolist(), config }));
      const run = spawnSync(python as string, [script, folder], { encoding: "utf8" });
      assert.equal(run.status, 0, run.stderr);
      const theirs = (JSON.parse(readFileSync(join(folder, "logits.json"), "utf8")) as number[][][]).flat(2);
      assertClose(String(options.target), logits, theirs, { rtol: 1e-4, atol: 1e-5 });
    });
});
