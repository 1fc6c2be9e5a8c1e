/** What `fromPretrained` takes and what it refuses, and with which words. Numbers are in tests/parity/pretrained.test.ts. */
import assert from "node:assert/strict";
import { cp, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { type TestContext, test } from "node:test";
import { fileURLToPath } from "node:url";
import { setDevice } from "../../src/execution/index.ts";
import { load, save } from "../../src/formats/index.ts";
import { formatConfig, fromConfig, fromPretrained, PretrainedError, readConfig } from "../../src/models/index.ts";
import type { Module, StateDict } from "../../src/nn/index.ts";
import { manualSeed, zeros } from "../../src/tensor/index.ts";

const fixtures = join(dirname(dirname(fileURLToPath(import.meta.url))), "parity", "fixtures", "pretrained");
setDevice("reference");

for (const name of ["llama", "gpt2", "bert", "phi3"])
  test(`${name} read tensor by tensor is the model that is read as a whole`, async () => {
    const folder = join(fixtures, name);
    const task = name === "bert" ? "features" : "generation";
    const whole = await fromPretrained(folder, { task });
    const asked: string[] = [];
    const progress: (number | null)[][] = [];
    const parts = await fromPretrained(folder, {
      task,
      replace: async (layer, path) => {
        asked.push(path);
        for (const parameter of layer.parameters()) assert.ok((await parameter.data()).every(Number.isFinite), path);
        return null;
      },
      onProgress: (done, total) => void progress.push([done, total]),
    });
    assert.deepEqual(
      asked.sort(),
      [...whole.namedModules()]
        .map(([path]) => path)
        .filter(Boolean)
        .sort(),
    );
    const [a, b] = [whole.stateDict(), parts.stateDict()];
    assert.deepEqual(Object.keys(b), Object.keys(a));
    for (const key of Object.keys(a)) {
      assert.equal(b[key].dtype, a[key].dtype);
      assert.deepEqual(await b[key].data(), await a[key].data(), key);
    }
    assert.ok(parts.parameters().every((parameter) => parameter.requiresGrad) && !parts.training);
    assert.equal(progress.at(-1)?.[0], progress.at(-1)?.[1]);
  });

test("read tensor by tensor what does not fit is refused with the same words, before anything is read", async (t) => {
  const folder = await copyOf("llama", t);
  await changeTensors(folder, (tensors) => {
    delete tensors["model.norm.weight"];
    tensors["model.extra.weight"] = zeros([1]);
  });
  const replace = async (): Promise<null> => assert.fail("a layer was read");
  await refused(folder, /the checkpoint lacks "model.norm.weight"; the model has no "model.extra.weight"/, { replace });
});

/** A copy of a checkpoint, for a test to spoil. */
async function copyOf(name: string, t: TestContext): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "nabla-pretrained-"));
  t.after(() => rm(folder, { recursive: true }));
  await cp(join(fixtures, name), folder, { recursive: true });
  return folder;
}

async function changeConfig(folder: string, fields: object): Promise<void> {
  const path = join(folder, "config.json");
  await writeFile(path, JSON.stringify({ ...JSON.parse(await readFile(path, "utf8")), ...fields }));
}

async function changeTensors(folder: string, change: (tensors: StateDict) => void): Promise<void> {
  const path = join(folder, "model.safetensors");
  const tensors = await load(path);
  change(tensors);
  await save(tensors, path);
}

/** Loading throws PretrainedError with these words. */
async function refused(folder: string, words: RegExp, options: object = {}): Promise<void> {
  await assert.rejects(fromPretrained(folder, options), (error: Error) => {
    assert.ok(error instanceof PretrainedError, `${error.name}: ${error.message}`);
    assert.match(error.message, words);
    return true;
  });
}

test("the parameters have the checkpoint's keys, and its dtype unless another is asked for", async () => {
  const folder = join(fixtures, "llama");
  const model = await fromPretrained(folder);
  assert.deepEqual(
    Object.keys(model.stateDict()).sort(),
    Object.keys(await load(join(folder, "model.safetensors"))).sort(),
  );
  assert.equal(model.training, false);
  assert.ok(model.parameters().every((p) => p.requiresGrad && p.dtype === "float32"));
  const stored = await fromPretrained(join(fixtures, "qwen3"));
  assert.ok(stored.parameters().every((p) => p.dtype === "bfloat16"));
  const half = await fromPretrained(join(fixtures, "qwen3"), { dtype: "float16" });
  assert.ok(half.parameters().every((p) => p.dtype === "float16"));
});

test("an unknown architecture is named, with those that are known", async (t) => {
  const folder = await copyOf("llama", t);
  await changeConfig(folder, { model_type: "mamba" });
  await refused(folder, /unknown architecture "mamba"; known for "generation" are gpt2, llama, mistral/);
});

test("missing and surplus tensors are named together", async (t) => {
  const folder = await copyOf("llama", t);
  await changeTensors(folder, (tensors) => {
    delete tensors["model.layers.1.mlp.up_proj.weight"];
    tensors["model.layers.2.extra"] = zeros([1]);
  });
  await refused(folder, /lacks "model\.layers\.1\.mlp\.up_proj\.weight"; the model has no "model\.layers\.2\.extra"/);
});

test("a tensor of another shape than the configuration says is named with both", async (t) => {
  const folder = await copyOf("llama", t);
  await changeConfig(folder, { intermediate_size: 41 });
  await refused(folder, /"model\.layers\.0\.mlp\.gate_proj\.weight" has shape \[40, 24\], the model's is \[41, 24\]/);
});

test("fields of a configuration that are missing, of a wrong kind or not known are named", async (t) => {
  const folder = await copyOf("llama", t);
  await changeConfig(folder, { hidden_size: undefined });
  await refused(folder, /config\.json: "hidden_size" is missing; it must be a whole number ≥ 1/);
  await changeConfig(folder, { hidden_size: "24" });
  await refused(folder, /"hidden_size" must be a whole number ≥ 1, got "24"/);
  await changeConfig(folder, { hidden_size: 24, hidden_act: "mish" });
  await refused(folder, /"hidden_act" is "mish"; known are relu, silu/);
  await changeConfig(folder, { hidden_act: "silu", rope_scaling: { rope_type: "spiral" } });
  await refused(folder, /"rope_type" is "spiral"; known are default, linear, dynamic, llama3, yarn, longrope/);
  await changeConfig(folder, { rope_scaling: null, num_key_value_heads: 3 });
  await refused(folder, /4 attention heads can't share 3 key-value heads evenly/);
  await changeConfig(folder, { num_key_value_heads: 2, quantization_config: { quant_method: "gptq", bits: 4 } });
  await refused(folder, /"quantization_config" says that the weights are quantised \(gptq\), which can't be read here/);
  const joined = await copyOf("phi3", t);
  await changeConfig(joined, { resid_pdrop: 0.1 });
  await refused(joined, /"resid_pdrop" is 0\.1; nothing but attention weights is dropped/);
  await writeFile(join(folder, "config.json"), "{");
  await refused(folder, /config\.json: this is not valid JSON/);
  await writeFile(join(folder, "config.json"), "[]");
  await refused(folder, /config\.json: must be a JSON object/);
  await refused(join(fixtures, "llama"), /dtype must be floating, not int32/, { dtype: "int32" });
});

test("old buffers and a tied head that is stored again are left out", async (t) => {
  const folder = await copyOf("qwen3", t);
  await changeTensors(folder, (tensors) => {
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = zeros([4]);
    tensors["lm_head.weight"] = zeros([48, 24]);
  });
  assert.equal((await fromPretrained(folder)).stateDict()["lm_head.weight"], undefined);
});

test("shards are checked against their index", async (t) => {
  const folder = await copyOf("mistral", t);
  const path = join(folder, "model.safetensors.index.json");
  const index = JSON.parse(await readFile(path, "utf8")) as { weight_map: Record<string, string> };
  const write = (map: object): Promise<void> => writeFile(path, JSON.stringify({ weight_map: map }));
  await write({ ...index.weight_map, "model.ghost": "model-00001-of-00002.safetensors" });
  await refused(folder, /model-00001-of-00002\.safetensors: the index places "model\.ghost" here, but it is not there/);
  const { "model.norm.weight": _, ...rest } = index.weight_map;
  await write(rest);
  await refused(folder, /holds "model\.norm\.weight", which the index does not place here/);
  await write({ ...index.weight_map, "model.norm.weight": "../model.safetensors" });
  await refused(folder, /"\.\.\/model\.safetensors" must be a file beside the index/);
  await write(
    Object.fromEntries(
      Object.entries(index.weight_map).map(([name, file]) => [name, file.replace("00002-of", "00003-of")]),
    ),
  );
  await assert.rejects(fromPretrained(folder), {
    name: "FileError",
    message: /model-00003-of-00002\.safetensors: there is no such file/,
  });
  await write(index.weight_map);
  const shard = join(folder, "model-00002-of-00002.safetensors");
  await writeFile(shard, (await readFile(shard)).subarray(0, -10));
  await assert.rejects(fromPretrained(folder), {
    name: "SafetensorsError",
    message: /model-00002-of-00002\.safetensors.*the file is truncated/,
  });
  await writeFile(path, "{}");
  await refused(folder, /"weight_map" must say the file of each tensor/);
  await rm(path);
  await refused(
    folder,
    /there are no weights; expected model\.safetensors \(or model\.safetensors\.index\.json\), or pytorch_model\.bin/,
  );
});

test("a folder that is not there says so", async () => {
  await assert.rejects(fromPretrained(join(fixtures, "nowhere")), /can't read .*config\.json: there is no such file/);
});

test("a task that an architecture does not have is refused with those that it has", async () => {
  await refused(
    join(fixtures, "bert"),
    /"bert" is not for the task "generation"; load it with \{ task: "features" \} or "classification"/,
  );
  await refused(join(fixtures, "vit"), /load it with \{ task: "image-classification" \}$/, { task: "features" });
  await refused(join(fixtures, "vit"), /there is no task "dance"; known are generation, features/, { task: "dance" });
});

test("a head for other classes, or one that is not there, starts anew where it is asked for", async (t) => {
  const folder = await copyOf("distilbert", t);
  const task = "classification";
  const stored = await fromPretrained(folder, { task });
  assert.equal(stored.numLabels, 3);
  const other = await fromPretrained(folder, { task, numLabels: 5 });
  assert.deepEqual(other.stateDict()["classifier.weight"].shape, [5, 24]);
  const keyOf = "distilbert.transformer.layer.1.ffn.lin1.weight";
  assert.deepEqual(await other.stateDict()[keyOf].tolist(), await stored.stateDict()[keyOf].tolist());
  const bias = "pre_classifier.bias";
  assert.notDeepEqual(await other.stateDict()[bias].tolist(), await stored.stateDict()[bias].tolist());
  assert.deepEqual(await other.stateDict()[bias].tolist(), new Array(24).fill(0));

  await changeTensors(folder, (tensors) => {
    for (const key of Object.keys(tensors)) if (/classifier/.test(key)) delete tensors[key];
  });
  await refused(folder, /lacks .*"classifier\.weight".*, the head of this task; \{ numLabels \} makes a new one/, {
    task,
  });
  assert.equal((await fromPretrained(folder, { task, numLabels: 2 })).numLabels, 2);
});

test("a bare encoder has no prefix, a classifier has one; TensorFlow's names of norms are known", async (t) => {
  const folder = await copyOf("bert", t);
  await changeTensors(folder, (tensors) => {
    for (const [key, x] of Object.entries(tensors)) {
      delete tensors[key];
      if (key.startsWith("classifier")) continue;
      const old = key
        .replace("bert.", "")
        .replace("LayerNorm.weight", "LayerNorm.gamma")
        .replace("LayerNorm.bias", "LayerNorm.beta");
      tensors[old] = x;
    }
    tensors["embeddings.position_ids"] = zeros([1, 40], { dtype: "int32" });
    tensors["cls.predictions.bias"] = zeros([48]);
  });
  const encoder = await fromPretrained(folder, { task: "features" });
  assert.ok("embeddings.LayerNorm.weight" in encoder.stateDict() && "pooler.dense.weight" in encoder.stateDict());
  const classifier = await fromPretrained(folder, { task: "classification", numLabels: 2 });
  assert.ok("bert.pooler.dense.weight" in classifier.stateDict());
});

test("a configuration alone gives a model that starts anew, of the checkpoint's shapes", async () => {
  for (const [name, task] of [
    ["bert", "classification"],
    ["llama", "generation"],
    ["gpt2", "classification"],
    ["resnet", "image-classification"],
  ] as const) {
    const folder = join(fixtures, name);
    const config = await readConfig(folder);
    const make = (): Module => {
      manualSeed(4);
      return fromConfig(config, { task, numLabels: 3 });
    };
    const [one, same] = [make(), make()];
    const stored: Module = await fromPretrained(folder, { task, numLabels: 3, dtype: "float32" });
    const shapes = (model: Module) => Object.entries(model.stateDict()).map(([key, x]) => [key, x.shape]);
    assert.deepEqual(shapes(one), shapes(stored));
    assert.equal(one.training, false);
    const key = Object.keys(one.stateDict()).find((each) => one.stateDict()[each].ndim >= 2) as string;
    const values = (model: Module) => model.stateDict()[key].tolist();
    assert.deepEqual(await values(one), await values(same));
    assert.notDeepEqual(await values(one), await values(stored));
  }
  assert.throws(() => fromConfig({ model_type: "abacus" }), {
    name: "PretrainedError",
    message: /unknown architecture/,
  });
});

test("a configuration is written with the floating numbers that transformers insists on", () => {
  const config = {
    model_type: "gemma2",
    final_logit_softcapping: 30,
    rms_norm_eps: 1e-6,
    hidden_size: 30,
    initializer_range: 1,
  };
  assert.equal(
    formatConfig(config),
    `{
  "model_type": "gemma2",
  "final_logit_softcapping": 30.0,
  "rms_norm_eps": 0.000001,
  "hidden_size": 30,
  "initializer_range": 1.0
}
`,
  );
});
