/** Pretrained models at the command line: what they are, classified, embedded, converted, spoken with. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { before, describe, test } from "node:test";
import { readNpy } from "../../src/formats/index.ts";
import { makeRoom, nabla, root } from "./support.ts";

const room = makeRoom();
const fixtures = join(root, "tests", "parity", "fixtures", "pretrained");
const data = process.env["NABLA_TEST_DATA"] ?? join(root, "..", "shared", "data");
const stories = join(data, "stories260k");
const withStories = { skip: !existsSync(stories) && "no test data here (NABLA_TEST_DATA)" };

const special = (content: string, id: number) => ({
  id,
  content,
  single_word: false,
  lstrip: false,
  rstrip: false,
  normalized: false,
  special: true,
});

/** The checkpoint of BERT with random weights, with a tokenizer of a few words and what sentence-transformers keeps beside one. */
function writeEncoder(folder: string): void {
  cpSync(join(fixtures, "bert"), folder, { recursive: true });
  const words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "the", "a", "fine", "dull", "was", "and"];
  const vocab = Object.fromEntries(
    [...words, ...Array.from({ length: 48 - words.length }, (_, i) => `w${i}`)].map((w, i) => [w, i]),
  );
  const token = (id: number) => ({ SpecialToken: { id: words[id], type_id: 0 } });
  const tokenizer = {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: [0, 1, 2, 3].map((id) => special(words[id], id)),
    normalizer: {
      type: "BertNormalizer",
      clean_text: true,
      handle_chinese_chars: true,
      strip_accents: null,
      lowercase: true,
    },
    pre_tokenizer: { type: "BertPreTokenizer" },
    post_processor: {
      type: "TemplateProcessing",
      single: [token(2), { Sequence: { id: "A", type_id: 0 } }, token(3)],
      pair: [
        token(2),
        { Sequence: { id: "A", type_id: 0 } },
        token(3),
        { Sequence: { id: "B", type_id: 1 } },
        token(3),
      ],
      special_tokens: Object.fromEntries(
        [2, 3].map((id) => [words[id], { id: words[id], ids: [id], tokens: [words[id]] }]),
      ),
    },
    decoder: { type: "WordPiece", prefix: "##", cleanup: true },
    model: {
      type: "WordPiece",
      unk_token: "[UNK]",
      continuing_subword_prefix: "##",
      max_input_chars_per_word: 100,
      vocab,
    },
  };
  const json = (name: string, value: unknown): void => writeFileSync(join(folder, name), JSON.stringify(value));
  json("tokenizer.json", tokenizer);
  json("tokenizer_config.json", { cls_token: "[CLS]", sep_token: "[SEP]", pad_token: "[PAD]", unk_token: "[UNK]" });
  json("modules.json", [
    { idx: 0, name: "0", path: "", type: "sentence_transformers.models.Transformer" },
    { idx: 1, name: "1", path: "1_Pooling", type: "sentence_transformers.models.Pooling" },
    { idx: 2, name: "2", path: "2_Normalize", type: "sentence_transformers.models.Normalize" },
  ]);
  mkdirSync(join(folder, "1_Pooling"));
  json("1_Pooling/config.json", { word_embedding_dimension: 24, pooling_mode_mean_tokens: true });
}

const encoder = join(room, "encoder");
const reviews = join(room, "reviews.csv");

before(() => {
  writeEncoder(encoder);
  const rows = Array.from({ length: 120 }, (_, i) => {
    const [word, label] =
      i % 2 === 0 ? [["good", "fine"][(i / 2) % 2], "pos"] : [["bad", "dull"][((i - 1) / 2) % 2], "neg"];
    return `"the ${word} film, w${(7 * i) % 34} ${word}",${label}`;
  });
  writeFileSync(reviews, `review,verdict\n${rows.join("\n")}\n`);
});

describe("classifying", () => {
  const columns = ["--text", "review", "--label", "verdict"];
  const run = join(room, "classifier");

  test("finetune --task classify learns the classes of a table, and eval measures the adapter", async () => {
    const { code, stdout, stderr } = await nabla([
      ...["finetune", encoder, "--task", "classify", "--data", reviews, ...columns, "--out", run],
      ...["--epochs", "6", "--lr", "0.01", "--rank", "8", "--eval-share", "0.25", "--dtype", "f32"],
    ]);
    assert.equal(code, 0, stderr);
    assert.match(stdout, /lora: rank 8, .* and classifier as a whole/);
    assert.match(stdout, /to learn from: 90 texts; .*: 30; 2 classes: "neg", "pos"/);
    assert.match(stdout, /macro-F1 +\d/);
    const { after } = JSON.parse(readFileSync(join(run, "evaluation.json"), "utf8"));
    assert.ok(after.accuracy > 0.9, stdout);
    const measured = await nabla([
      "eval",
      encoder,
      "--adapter",
      run,
      "--data",
      reviews,
      ...columns,
      "--json",
      "--dtype",
      "f32",
    ]);
    assert.equal(measured.code, 0, measured.stderr);
    assert.ok(JSON.parse(measured.stdout).accuracy > 0.9, measured.stdout);
  });

  test("a class that was not learnt is named with file and line", async () => {
    const strange = join(room, "strange.csv");
    writeFileSync(strange, "review,verdict\ngood film,pos\nbad film,mixed\n");
    const { code, stderr } = await nabla(["eval", encoder, "--adapter", run, "--data", strange, ...columns]);
    assert.equal(code, 65, stderr);
    assert.match(stderr, /strange\.csv, line 3: the class "mixed" is not one that was learnt; those are "neg", "pos"/);
  });

  test("merged it is a classifier that knows its classes", async () => {
    const out = join(room, "merged");
    const { code, stderr } = await nabla(["merge", encoder, "--adapter", run, "--out", out, "--dtype", "f32"]);
    assert.equal(code, 0, stderr);
    const config = JSON.parse(readFileSync(join(out, "config.json"), "utf8"));
    assert.deepEqual(config.id2label, { 0: "neg", 1: "pos" });
    assert.deepEqual(config.architectures, ["BertForSequenceClassification"]);
    const measured = await nabla(["eval", out, "--data", reviews, ...columns, "--json"]);
    assert.equal(measured.code, 0, measured.stderr);
    assert.ok(JSON.parse(measured.stdout).accuracy > 0.9, measured.stdout);
  });
});

describe("embedding", () => {
  test("each line becomes a vector of length 1, the same in JSON lines and in a NumPy array", async () => {
    const lines = join(room, "lines.txt");
    writeFileSync(lines, "the film was good\n\na dull film and a bad film\n");
    const printed = await nabla(["embed", encoder, "--data", lines]);
    assert.equal(printed.code, 0, printed.stderr);
    const rows = printed.stdout
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line) as { text: string; embedding: number[] });
    assert.deepEqual(
      rows.map(({ text }) => text),
      ["the film was good", "a dull film and a bad film"],
    );
    for (const { embedding } of rows) assert.ok(Math.abs(Math.hypot(...embedding) - 1) < 1e-3);
    assert.equal(printed.stderr, "nabla: empty lines, which were left out: 1\n");
    const long = join(room, "long.txt");
    writeFileSync(long, `the film was good\n${"dull ".repeat(200)}\n`);
    const cut = await nabla(["embed", encoder, "--data", long]);
    assert.match(cut.stderr, /^nabla: texts longer than \d+ tokens, which were cut off: 1\n$/);
    const out = join(room, "a new folder", "vectors.npy");
    const kept = await nabla(["embed", encoder, "--data", lines, "--out", out]);
    assert.match(kept.stdout, /2 texts as vectors of 24 \(mean, normalised\)/);
    const array = await readNpy(out);
    assert.deepEqual(array.shape, [2, 24]);
    const bytes = await array.read();
    const values = new Float32Array(bytes.slice().buffer);
    for (const [i, x] of rows.flatMap(({ embedding }) => embedding).entries())
      assert.ok(Math.abs(x - values[i]) < 1e-6);
  });
});

describe("info", () => {
  test("tells what a model is, and the memory of each use", async () => {
    const args = ["info", join(fixtures, "llama"), "--json", "--length", "32", "--target", "q_proj,v_proj"];
    const { code, stdout, stderr } = await nabla([...args, "--quantize", "int8", "--recompute"]);
    assert.equal(code, 0, stderr);
    const facts = JSON.parse(stdout);
    assert.equal(facts.recompute, true);
    const config = JSON.parse(readFileSync(join(fixtures, "llama", "config.json"), "utf8"));
    assert.equal(facts.architecture, "llama");
    assert.equal(facts.className, "LlamaForCausalLM");
    assert.equal(facts.context, config.max_position_embeddings);
    const planned = Object.fromEntries(
      facts.memory.map(({ name, memory }: { name: string; memory: object }) => [name, memory]),
    );
    assert.deepEqual(Object.keys(planned), ["inference", "LoRA", "QLoRA", "full training"]);
    // AdamW's moments of rank 16 on two layers a block
    const { hidden_size: width, num_key_value_heads: keys, num_attention_heads: heads } = config;
    const learnt = 16 * config.num_hidden_layers * (2 * width + width + (width * keys) / heads);
    assert.ok(Math.abs(planned["LoRA"].otherState / (8 * learnt) - 1) < 0.05, JSON.stringify(planned["LoRA"]));
    // AdamW keeps two float32 moments of every parameter that learns
    const full = planned["full training"];
    assert.ok(Math.abs(full.otherState / full.weights - 2) < 0.05, JSON.stringify(full));
    assert.equal(full.weights, 4 * facts.parameters);
  });

  test("RoBERTa's first positions stand for no token, and a folder of GGUF files names them", async () => {
    const { code, stdout, stderr } = await nabla(["info", join(fixtures, "roberta"), "--json"]);
    assert.equal(code, 0, stderr);
    assert.equal(JSON.parse(stdout).context, 38);
    const folder = await nabla(["info", join(fixtures, "gguf")]);
    assert.equal(folder.code, 65);
    assert.match(folder.stderr, /is not a model's folder: .* It has GGUF files, name one: .*llama\.gguf, /);
  });

  test("a classifier of images is described without what only texts have", async () => {
    const { code, stdout, stderr } = await nabla(["info", join(fixtures, "resnet")]);
    assert.equal(code, 0, stderr);
    assert.match(stdout, /architecture +resnet \(ResNetForImageClassification\), for image-classification/);
    assert.doesNotMatch(stdout, /chat template|memory/);
  });
});

describe("converting", () => {
  test("to other numbers, and nothing is left where it fails", async () => {
    const out = join(room, "half");
    const { code, stdout, stderr } = await nabla([
      ...["convert", join(fixtures, "qwen3"), "--to", "safetensors", "--dtype", "f16", "--out", out],
    ]);
    assert.equal(code, 0, stderr);
    assert.match(stdout, /tensors, float16/);
    assert.equal(JSON.parse(readFileSync(join(out, "config.json"), "utf8")).dtype, "float16");
    const twice = await nabla(["convert", join(fixtures, "qwen3"), "--to", "safetensors", "--out", out]);
    assert.equal(twice.code, 65);
    assert.match(twice.stderr, /half exists already/);
    const wrong = await nabla(["convert", out, "--to", "safetensors", "--dtype", "q8_0", "--out", join(room, "q")]);
    assert.equal(wrong.code, 2);
    const damaged = join(room, "damaged");
    cpSync(out, damaged, { recursive: true });
    writeFileSync(join(damaged, "model.safetensors"), readFileSync(join(out, "model.safetensors")).subarray(0, 900));
    const failed = await nabla([
      "convert",
      damaged,
      "--to",
      "safetensors",
      "--dtype",
      "f32",
      "--out",
      join(room, "none"),
    ]);
    assert.equal(failed.code, 65, failed.stderr);
    assert.deepEqual(
      readdirSync(room).filter((name) => /none/.test(name)),
      [],
    );
  });

  test(
    "stories260K from GGUF to safetensors and back writes its 200 greedy tokens, in q8_0 it still tells a story",
    withStories,
    async () => {
      const gguf = join(stories, "stories260K.gguf");
      const [folder, back, small] = ["stories", "back.gguf", "small.gguf"].map((name) => join(room, name));
      for (const args of [
        [gguf, "--to", "safetensors", "--out", folder],
        [folder, "--to", "gguf", "--out", back],
        [folder, "--to", "gguf", "--dtype", "q8_0", "--out", small],
      ]) {
        const { code, stderr } = await nabla(["convert", ...args]);
        assert.equal(code, 0, stderr);
      }
      const expected = readFileSync(join(stories, "expected_greedy_200.txt"), "utf8");
      const write = (model: string, tokens: number) =>
        nabla(["generate", model, "--prompt", "", "--tokens", String(tokens), "--temperature", "0"], {
          env: { NABLA_DEVICE: "wasm" },
        });
      for (const model of [gguf, folder, back]) assert.equal((await write(model, 200)).stdout, `${expected}\n`);
      assert.match((await write(small, 20)).stdout, /^Once upon a time, there was a little girl named/);
    },
  );
});

/** A conversation along a pipe. */
function converse(
  args: readonly string[],
  input: string,
): Promise<{ code: number | null; stdout: string; stderr: string }> {
  return new Promise((resolve) => {
    const child = spawn(process.execPath, [join(root, "bin", "nabla.js"), ...args], {
      env: { ...process.env, NABLA_DEVICE: "wasm", NODE_OPTIONS: "" },
    });
    let [stdout, stderr] = ["", ""];
    child.stdout.on("data", (piece) => {
      stdout += piece;
    });
    child.stderr.on("data", (piece) => {
      stderr += piece;
    });
    child.on("close", (code) => resolve({ code, stdout, stderr }));
    child.stdin.end(input);
  });
}

test("--chat answers each line, by the model's template and with what was said before", withStories, async () => {
  const folder = join(room, "chatty");
  const made = await nabla(["convert", join(stories, "stories260K.gguf"), "--to", "safetensors", "--out", folder]);
  assert.equal(made.code, 0, made.stderr);
  const path = join(folder, "tokenizer_config.json");
  const template = "{{ bos_token }}{% for message in messages %}{{ message['content'] }} {% endfor %}";
  writeFileSync(path, JSON.stringify({ ...JSON.parse(readFileSync(path, "utf8")), chat_template: template }));
  const flags = ["generate", folder, "--chat", "--tokens", "12", "--temperature", "0"];
  const { code, stdout, stderr } = await converse(flags, "Once upon a time\nOne day\n");
  assert.equal(code, 0, stderr);
  const answers = stdout.trimEnd().split("\n");
  assert.equal(answers.length, 2, stdout);
  const alone = (await converse(flags, "One day\n")).stdout.trimEnd();
  assert.notEqual(answers[1], alone);
  assert.equal(stderr, "");
  const long = await converse(flags, `${"One day ".repeat(1100)}\n`);
  assert.match(long.stderr, /^nabla: the conversation is longer than the \d+ tokens that the model sees; .*\n$/);
  const broken = JSON.stringify({
    ...JSON.parse(readFileSync(path, "utf8")),
    chat_template: "{% for m in messages %}",
  });
  writeFileSync(path, broken);
  const failed = await converse(flags, "a\n");
  assert.equal(failed.code, 65, failed.stderr);
  assert.match(failed.stderr, /the chat template can't be read/);
});
