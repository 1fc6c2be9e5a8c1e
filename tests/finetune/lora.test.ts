/** LoRA in a model: what is frozen, switching the adapter, merging, saving, freezing, and what is refused. */
import assert from "node:assert/strict";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, test } from "node:test";
import { setDevice } from "../../src/execution/index.ts";
import {
  adapterOf,
  applyLora,
  freeze,
  type LoraLinear,
  type LoraOptions,
  loadAdapter,
  quantizeModel,
} from "../../src/finetune/index.ts";
import { save } from "../../src/formats/index.ts";
import { generate } from "../../src/generate/index.ts";
import { GPT2, MLP } from "../../src/models/index.ts";
import { Embedding, functional as F, Linear, Module, ModuleDict, Sequential, Tanh } from "../../src/nn/index.ts";
import { AdamW } from "../../src/optim/index.ts";
import { manualSeed, randint, randn, type Tensor } from "../../src/tensor/index.ts";
import { assertClose } from "../support/fixtures.ts";

setDevice("reference");
const rooms: string[] = [];
const room = (): string => {
  const path = mkdtempSync(join(tmpdir(), "nabla-lora-"));
  rooms.push(path);
  return path;
};
after(() => {
  for (const path of rooms) rmSync(path, { recursive: true, force: true });
});

const gpt2 = (dropout = 0): GPT2 => {
  manualSeed(3);
  return new GPT2({
    vocabSize: 13,
    contextLength: 8,
    numLayers: 2,
    numHeads: 2,
    hiddenSize: 8,
    dropout,
    dtype: "float64",
  });
};
const ids = (): Tensor => {
  manualSeed(8);
  return randint(0, 13, [2, 8]);
};

/** Some steps, so that the adapter does something. */
async function learn(model: Module & { forward(ids: Tensor, targets: Tensor): Tensor }, steps = 3): Promise<number> {
  const trained = model.parameters().filter((p) => p.requiresGrad);
  const optimizer = new AdamW(trained, { lr: 0.05 });
  let last = 0;
  for (let step = 0; step < steps; step++) {
    const x = ids();
    const loss = model.forward(x.narrow(1, 0, 7), x.narrow(1, 1, 7));
    loss.backward();
    await optimizer.step();
    optimizer.zeroGrad();
    last = await loss.item();
  }
  return last;
}

const tight = { rtol: 1e-9, atol: 1e-12 };

describe("applyLora", () => {
  test("leaves what the model computes as it was, and only the adapter to be trained", async () => {
    const model = gpt2();
    const before = await model.forward(ids()).data();
    const base = model.stateDict();
    const weights = new Map<string, ArrayLike<number>>();
    for (const [key, x] of Object.entries(base)) weights.set(key, await x.data());
    const tuned = applyLora(model, { r: 2, alpha: 4 });
    assert.equal(tuned, model as unknown);
    assertClose("logits", await tuned.forward(ids()).data(), before, tight);
    const trained = [...tuned.namedParameters()].filter(([, p]) => p.requiresGrad).map(([path]) => path);
    assert.equal(trained.length, 2 * 4 * 2);
    assert.ok(trained.every((path) => /\.lora_[AB]\.weight$/.test(path)));
    assert.equal(tuned.parameterCount({ trainable: true }), 2 * 2 * (8 + 24 + 8 + 8 + 8 + 32 + 32 + 8));
    await learn(tuned, 3);
    for (const [key, x] of Object.entries(base)) assert.deepEqual(await x.data(), weights.get(key), key);
  });

  test("starts A within ±1/√in and B at 0; an embedding's A at 0", async () => {
    const tuned = applyLora(gpt2(), { r: 4, target: ["c_fc", "wpe"] });
    const layers = tuned.adapter.layers;
    assert.deepEqual([...layers.keys()], ["transformer.wpe", "transformer.h.0.mlp.c_fc", "transformer.h.1.mlp.c_fc"]);
    const state = tuned.adapterStateDict();
    const a = await state["base_model.model.transformer.h.0.mlp.c_fc.lora_A.weight"].data();
    assert.ok(Math.max(...Array.from(a, Math.abs)) <= 1 / Math.sqrt(8));
    assert.ok(new Set(a).size > 30);
    const b = await state["base_model.model.transformer.h.0.mlp.c_fc.lora_B.weight"].data();
    assert.ok(b.every((x) => x === 0));
    const ea = await state["base_model.model.transformer.wpe.lora_embedding_A"].data();
    assert.ok(ea.every((x) => x === 0));
    const eb = await state["base_model.model.transformer.wpe.lora_embedding_B"].data();
    assert.ok(new Set(eb).size > 30);
  });

  test("scales by alpha / r, and by alpha / √r with rslora", async () => {
    for (const [rslora, scaling] of [
      [false, 2],
      [true, 4],
    ] as const) {
      const tuned = applyLora(gpt2(), { r: 4, alpha: 8, rslora });
      for (const layer of tuned.adapter.layers.values()) assert.equal(layer.settings.scaling, scaling);
    }
  });

  test("drops inputs of the update in training only", async () => {
    const tuned = applyLora(gpt2(), { r: 2, alpha: 8, dropout: 0.5 });
    await learn(tuned);
    const x = ids();
    const first = await tuned.forward(x).data();
    assert.notDeepEqual(await tuned.forward(x).data(), first);
    tuned.eval();
    const calm = await tuned.forward(x).data();
    assert.deepEqual(await tuned.forward(x).data(), calm);
  });

  test("finds layers in Sequential and ModuleDict, and a shared one once", async () => {
    class Net extends Module {
      body = new Sequential({ first: new Linear(4, 4), act: new Tanh(), second: new Linear(4, 4) });
      heads = new ModuleDict({ a: new Linear(4, 2) });
      again = this.body;
      forward(x: Tensor): Tensor {
        return this.heads.get("a").forward(this.again.forward(this.body.forward(x))) as Tensor;
      }
    }
    const net = new Net();
    const tuned = applyLora(net, { r: 2 });
    assert.deepEqual([...tuned.adapter.layers.keys()], ["body.first", "body.second", "heads.a"]);
    assert.equal((net.body as unknown as { first: unknown }).first, tuned.adapter.layers.get("body.first"));
    const x = randn([3, 4]);
    const before = await tuned.forward(x).data();
    const optimizer = new AdamW(
      tuned.parameters().filter((p) => p.requiresGrad),
      { lr: 0.1 },
    );
    tuned.forward(x).square().sum().backward();
    await optimizer.step();
    assert.notDeepEqual(await tuned.forward(x).data(), before);
    tuned.disableAdapter();
    assert.deepEqual(await tuned.forward(x).data(), before);
  });

  test("quantised base: only the adapter learns, merging is refused, the merged weights are floating", async () => {
    const model = gpt2().to("float32");
    const paths = await quantizeModel(model);
    assert.equal(paths.length, 8);
    const tuned = applyLora(model, { r: 2, alpha: 8 });
    const first = await learn(tuned, 1);
    assert.ok((await learn(tuned, 5)) < first);
    assert.throws(() => tuned.merge(), /"transformer\.h\.0\.attn\.c_attn" is quantised/);
    const plain = gpt2().to("float32");
    plain.loadStateDict(tuned.mergedStateDict());
    assertClose("logits", await plain.forward(ids()).data(), await tuned.forward(ids()).data(), {
      rtol: 1e-4,
      atol: 1e-6,
    });
  });
});

describe("an adapter", () => {
  const options: LoraOptions = { r: 2, alpha: 6, bias: "all", modulesToSave: ["ln_f"] };

  test("goes off and on, the parameters that are trained beside it too, also between steps", async () => {
    const model = gpt2();
    const before = await model.forward(ids()).data();
    const tuned = applyLora(model, options);
    await learn(tuned);
    const learnt = await tuned.forward(ids()).data();
    assert.notDeepEqual(learnt, before);
    const off = await tuned.withoutAdapter(async () => await tuned.forward(ids()).data());
    assertClose("off", off, before, tight);
    assert.deepEqual(await tuned.forward(ids()).data(), learnt);
    await assert.rejects(
      tuned.withoutAdapter(() => tuned.saveAdapter(room())),
      /the adapter is off/,
    );
    const loss = await learn(tuned, 1);
    assert.ok((await learn(tuned, 4)) < loss);
  });

  test("merges into the weights and out again", async () => {
    const tuned = applyLora(gpt2(), options);
    await learn(tuned);
    const learnt = await tuned.forward(ids()).data();
    tuned.merge();
    tuned.merge();
    assertClose("merged", await tuned.forward(ids()).data(), learnt, tight);
    assert.throws(() => tuned.disableAdapter(), /merged into the weights; call unmerge\(\)/);
    const merged = gpt2();
    merged.loadStateDict(tuned.mergedStateDict());
    assertClose("merged state dict", await merged.forward(ids()).data(), learnt, tight);
    tuned.unmerge();
    assertClose("unmerged", await tuned.forward(ids()).data(), learnt, tight);
    merged.loadStateDict(tuned.mergedStateDict());
    assertClose("merged state dict", await merged.forward(ids()).data(), learnt, tight);
  });

  test("is taken out by unload, which gives the old model back", async () => {
    const model = gpt2();
    const [shown, before] = [String(model), await model.forward(ids()).data()];
    const tuned = applyLora(model, options);
    await learn(tuned);
    tuned.unload();
    assert.equal(String(model), shown);
    assert.equal(adapterOf(model), undefined);
    assert.equal("saveAdapter" in model, false);
    assertClose("logits", await model.forward(ids()).data(), before, tight);
    assert.ok(model.parameters().every((p) => p.requiresGrad));
    applyLora(model, options);
  });

  test("is saved and loaded, into a new model or one with the same adapter", async () => {
    const tuned = applyLora(gpt2(), { ...options, taskType: "CAUSAL_LM", baseModel: "tiny/gpt2" });
    await learn(tuned);
    tuned.eval();
    const learnt = await tuned.forward(ids()).data();
    const folder = room();
    await tuned.saveAdapter(folder);
    const config = JSON.parse(readFileSync(join(folder, "adapter_config.json"), "utf8"));
    assert.equal(config.peft_type, "LORA");
    assert.equal(config.fan_in_fan_out, true);
    assert.equal(config.base_model_name_or_path, "tiny/gpt2");
    assert.deepEqual(config.modules_to_save, ["ln_f"]);
    const fresh = (await loadAdapter(gpt2(), folder)).eval();
    assert.deepEqual(await fresh.forward(ids()).data(), learnt);
    const other = applyLora(gpt2(), options);
    await other.loadAdapter(folder);
    assert.deepEqual(await other.forward(ids()).data(), learnt);
    await assert.rejects(
      applyLora(gpt2(), { ...options, r: 3 }).loadAdapter(folder),
      /r is 2, the model's adapter has 3/,
    );
    const smaller = new GPT2({ ...gpt2().config, numLayers: 1 });
    await assert.rejects(
      loadAdapter(smaller, folder),
      /the model has no place for "base_model\.model\.transformer\.h\.1\./,
    );
    assert.equal(adapterOf(smaller), undefined);
  });

  test("gives layers ranks and alphas of their own, which are saved and loaded", async () => {
    const patterns = { rankPattern: { "h.1.mlp.c_fc": 3 }, alphaPattern: { ".*\\.0\\..*": 5 } };
    const tuned = applyLora(gpt2(), { r: 2, alpha: 4, target: ["c_fc"], ...patterns });
    const [first, second] = [...tuned.adapter.layers.values()].map(({ settings }) => settings);
    assert.deepEqual([first.r, first.scaling, second.r, second.scaling], [2, 5 / 2, 3, 4 / 3]);
    await learn(tuned);
    const folder = room();
    await tuned.saveAdapter(folder);
    const fresh = await loadAdapter(gpt2(), folder);
    assert.deepEqual(await fresh.forward(ids()).data(), await tuned.forward(ids()).data());
    await assert.rejects(
      applyLora(gpt2(), { r: 2, alpha: 4, target: ["c_fc"] }).loadAdapter(folder),
      /rankPattern is \{"h\.1\.mlp\.c_fc":3\}, the model's adapter has \{\}/,
    );
  });

  test("does not stand in the way of generate", async () => {
    const tuned = applyLora(gpt2(), options);
    await learn(tuned);
    assert.equal((await generate(tuned, [1, 2], { maxNewTokens: 3 })).length, 3);
  });
});

describe("what can't be done is said", () => {
  const cases: [string, LoraOptions, RegExp][] = [
    ["a rank of 0", { r: 0 }, /r must be a whole number ≥ 1, got 0/],
    ["an alpha of 0", { alpha: 0 }, /alpha must be above 0/],
    ["a dropout of 1", { dropout: 1 }, /dropout must be a probability below 1/],
    [
      "a target that matches nothing",
      { target: ["q_proj"] },
      /"q_proj" matches no layer.* there are "wte", .*"c_attn".*, the first as "transformer\.wte"/,
    ],
    [
      "one of several targets that matches nothing",
      { target: ["c_attn", "c_prj"] },
      /the target "c_prj" matches no layer/,
    ],
    ["a target that is no layer for LoRA", { target: ["ln_1"] }, /matches "transformer\.h\.0\.ln_1", a LayerNorm/],
    ["a pattern that is none", { target: "(" }, /\( is no regular expression/],
    ["a module to save that is not there", { modulesToSave: ["score"] }, /modulesToSave names "score"/],
    ["a tied table to save", { modulesToSave: ["wte"] }, /"transformer\.wte", which is also the output head/],
    ["a rank of 0 for some layers", { rankPattern: { c_fc: 0 } }, /rankPattern gives "c_fc" the rank 0/],
    ["an alpha of 0 for some layers", { alphaPattern: { c_fc: 0 } }, /alphaPattern gives "c_fc" 0; it must be above 0/],
    ["an unknown bias", { bias: "some" as "all" }, /bias must be "none", "all" or "lora_only", got "some"/],
  ];
  for (const [what, options, message] of cases)
    test(what, () => {
      const model = gpt2();
      assert.throws(() => applyLora(model, options), { name: "FinetuneError", message });
    });

  test("a second adapter", () => {
    const model = applyLora(gpt2());
    assert.throws(() => applyLora(model), /the model has an adapter; unload\(\)/);
  });

  test("an embedding's table that PEFT has saved beside its update must be the model's", async () => {
    const folder = room();
    const tuned = applyLora(gpt2(), { r: 2, target: ["wpe"] });
    await tuned.saveAdapter(folder);
    // PEFT's lists may name what this model does not have
    const path = join(folder, "adapter_config.json");
    const config = JSON.parse(readFileSync(path, "utf8"));
    writeFileSync(path, JSON.stringify({ ...config, target_modules: ["wpe", "embed_positions"] }));
    const weights = join(folder, "adapter_model.safetensors");
    const key = "base_model.model.transformer.wpe.base_layer.weight";
    const table = tuned.stateDict()["transformer.wpe.base_layer.weight"];
    const own = tuned.adapter.adapterStateDict();
    await save({ ...own, [key]: table }, weights);
    assert.deepEqual([...(await loadAdapter(gpt2(), folder)).adapter.layers.keys()], ["transformer.wpe"]);
    await save({ ...own, [key]: table.add(1) }, weights);
    await assert.rejects(loadAdapter(gpt2(), folder), /wpe\.base_layer\.weight" is not the table .* of this model/);
  });

  test("what is left out by a pattern is left out where the adapter is loaded too", async () => {
    const folder = room();
    const tuned = applyLora(gpt2(), { r: 2, target: ["c_attn", "c_fc"], exclude: /.*\.h\.1\..*/ });
    const paths = ["transformer.h.0.attn.c_attn", "transformer.h.0.mlp.c_fc"];
    assert.deepEqual([...tuned.adapter.layers.keys()], paths);
    await tuned.saveAdapter(folder);
    assert.deepEqual([...(await loadAdapter(gpt2(), folder)).adapter.layers.keys()], paths);
    const path = join(folder, "adapter_config.json");
    const config = JSON.parse(readFileSync(path, "utf8"));
    // as PEFT keeps what it was given
    const given = { target_modules: ["c_attn", "c_fc"], exclude_modules: ".*\\.h\\.1\\..*" };
    writeFileSync(path, JSON.stringify({ ...config, ...given }));
    assert.deepEqual([...(await loadAdapter(gpt2(), folder)).adapter.layers.keys()], paths);
  });

  test("modules to save are those whose paths end so, as PEFT finds them; a head of other models is passed over", async () => {
    const folder = room();
    const tuned = applyLora(gpt2(), { r: 2, target: ["c_attn"], modulesToSave: ["n_1"] });
    await learn(tuned);
    const norms = ["weight", "bias"].flatMap((name) => [0, 1].map((i) => `transformer.h.${i}.ln_1.${name}`));
    const saved = Object.keys(tuned.adapterStateDict()).filter((key) => !key.includes("lora_"));
    assert.deepEqual(saved.sort(), norms.map((path) => `base_model.model.${path}`).sort());
    await tuned.saveAdapter(folder);
    const path = join(folder, "adapter_config.json");
    const config = JSON.parse(readFileSync(path, "utf8"));
    // every classifier's adapter has both names
    writeFileSync(path, JSON.stringify({ ...config, modules_to_save: ["n_1", "classifier", "score"] }));
    const again = await loadAdapter(gpt2(), folder);
    assert.deepEqual(await again.forward(ids()).data(), await tuned.forward(ids()).data());
    assert.deepEqual(again.adapter.config.modulesToSave, ["n_1"]);
  });

  test("a 16-bit weight and its update are rounded once, where they are added", async () => {
    const tuned = applyLora(gpt2().to("bfloat16"), { r: 2, alpha: 3, target: ["c_attn"] });
    await learn(tuned);
    const layer = tuned.adapter.layers.get("transformer.h.0.attn.c_attn") as LoraLinear;
    const expected = await layer.weight.to("float64").add(layer.delta().to("float64")).to("bfloat16").data();
    const [base, merged] = [await layer.weight.data(), tuned.mergedStateDict()["transformer.h.0.attn.c_attn.weight"]];
    assert.deepEqual(await merged.data(), expected);
    assert.notDeepEqual(expected, base);
    tuned.merge();
    assert.deepEqual(await layer.weight.data(), expected);
  });

  test("an adapter's configuration that is not understood", async () => {
    const folder = room();
    await applyLora(gpt2(), { r: 2 }).saveAdapter(folder);
    assert.ok(existsSync(join(folder, "adapter_model.safetensors")));
    const path = join(folder, "adapter_config.json");
    const good = JSON.parse(readFileSync(path, "utf8"));
    for (const [change, message] of [
      [{ use_dora: true }, /"use_dora" is true, which is not supported/],
      [{ init_lora_weights: "pissa_niter_4" }, /"init_lora_weights" is "pissa_niter_4", which changes the model's own/],
      [{ rank_pattern: { c_attn: 0 } }, /"rank_pattern" must be ranks by patterns, got \{"c_attn":0\}/],
      [{ alpha_pattern: { "(": 4 } }, /"alpha_pattern" must be numbers above 0 by patterns/],
      [{ layers_to_transform: ["1"] }, /"layers_to_transform" must be a layer's number or a list/],
      [{ peft_type: "IA3" }, /"peft_type" must be "LORA"/],
      [{ r: "8" }, /"r" must be a whole number ≥ 1, got "8"/],
      [{ target_modules: null }, /"target_modules" must be a pattern or a list of names/],
    ] as const) {
      writeFileSync(path, JSON.stringify({ ...good, ...change }));
      await assert.rejects(loadAdapter(gpt2(), folder), { name: "FinetuneError", message });
    }
    writeFileSync(path, "{");
    await assert.rejects(loadAdapter(gpt2(), folder), /adapter_config\.json: not valid JSON/);
  });
});

test("freeze leaves a part to train, chosen by name", () => {
  const model = gpt2();
  const all = model.parameterCount();
  const last = freeze(model, { train: ["transformer.h.1", "transformer.ln_f"] });
  assert.equal(last, 12 * 64 + 13 * 8 + 16);
  assert.equal(model.parameterCount({ trainable: true }), last);
  assert.equal(freeze(model, { freeze: /transformer\.(wte|wpe)\..*/ }), all - 21 * 8);
  assert.throws(() => freeze(model, { train: ["h.1"] }), /matches no parameter; there are "transformer\.wte\.weight"/);
  assert.throws(() => freeze(model, { train: ["transformer.h.1", "h.0"] }), /"h\.0" matches no parameter/);
  assert.throws(() => freeze(model, { freeze: /.*/ }), /nothing is left to train/);
  assert.throws(() => freeze(model, {}), /give either freeze/);
});

test("LoRA on an MLP with a new head, as a classifier", async () => {
  manualSeed(1);
  const tuned = applyLora(new MLP({ sizes: [6, 16, 3] }), { r: 2, target: "all-linear" });
  const [x, y] = [randn([32, 6]), randint(0, 3, [32])];
  const optimizer = new AdamW(
    tuned.parameters().filter((p) => p.requiresGrad),
    { lr: 0.05 },
  );
  const losses: number[] = [];
  for (let step = 0; step < 30; step++) {
    const loss = F.crossEntropy(tuned.forward(x), y);
    loss.backward();
    await optimizer.step();
    optimizer.zeroGrad();
    losses.push(await loss.item());
  }
  assert.ok(losses[29] < losses[0] - 0.1, String(losses));
});

test("an embedding that pads is adapted but for its padding", async () => {
  class Net extends Module {
    table = new Embedding(5, 3, { paddingIdx: 0 });
    forward(x: Tensor): Tensor {
      return this.table.forward(x);
    }
  }
  const tuned = applyLora(new Net(), { r: 2, target: ["table"] });
  const optimizer = new AdamW(
    tuned.parameters().filter((p) => p.requiresGrad),
    { lr: 0.1 },
  );
  const x = randint(0, 5, [20]);
  tuned.forward(x).sub(1).square().sum().backward();
  await optimizer.step();
  const a = await tuned.adapterStateDict()["base_model.model.table.lora_embedding_A"].data();
  assert.deepEqual([a[0], a[5]], [0, 0]);
  assert.ok(a.some((v) => v !== 0));
});
