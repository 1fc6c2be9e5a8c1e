/** A GGUF file whose matrices are in few bits, on the command line: qlora on it as it is stored, and what reads the adapter afterwards. */
import assert from "node:assert/strict";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { before, test } from "node:test";
import { formatGguf, type GgufTensorInput, type GgufValue } from "../../src/formats/index.ts";
import { makeRoom, nabla } from "./support.ts";

const room = makeRoom();
const file = join(room, "small.gguf");
const [train, held, out] = ["train.jsonl", "held.jsonl", "out"].map((name) => join(room, name));
const [width, inner, vocab] = [32, 64, 70];

/** A Llama of one layer in q8_0, but for the values, which are in q4_0; its words are single letters. */
function writeModel(): void {
  let seed = 11;
  const random = (): number => {
    seed = (seed * 16807) % 2147483647;
    return seed / 2147483647 - 0.5;
  };
  const matrix = (rows: number, columns: number, type: "q8_0" | "q4_0" = "q8_0"): GgufTensorInput => ({
    type,
    shape: [rows, columns],
    data: Float32Array.from({ length: rows * columns }, () => 0.5 * random()),
  });
  const norm: GgufTensorInput = { type: "f32", shape: [width], data: new Float32Array(width).fill(1) };
  const count = (value: number): GgufValue => ({ type: "uint32", value });
  const special = ["<unk>", "<s>", "</s>", "▁"];
  const words = Array.from({ length: vocab }, (_, i) => special[i] ?? String.fromCharCode(61 + i));
  writeFileSync(
    file,
    formatGguf({
      metadata: {
        "general.architecture": { type: "string", value: "llama" },
        "llama.embedding_length": count(width),
        "llama.feed_forward_length": count(inner),
        "llama.block_count": count(1),
        "llama.attention.head_count": count(2),
        "llama.attention.head_count_kv": count(2),
        "llama.context_length": count(32),
        "llama.attention.layer_norm_rms_epsilon": { type: "float32", value: 1e-5 },
        "tokenizer.ggml.model": { type: "string", value: "llama" },
        "tokenizer.ggml.tokens": { type: "array", itemType: "string", value: words },
        "tokenizer.ggml.scores": { type: "array", itemType: "float32", value: new Float32Array(vocab) },
        "tokenizer.ggml.token_type": {
          type: "array",
          itemType: "int32",
          value: Int32Array.from(words, (_, i) => (i === 0 ? 2 : i < 3 ? 3 : 1)),
        },
        "tokenizer.ggml.bos_token_id": count(1),
        "tokenizer.ggml.eos_token_id": count(2),
      },
      tensors: {
        "token_embd.weight": matrix(vocab, width),
        "output_norm.weight": norm,
        "blk.0.attn_norm.weight": norm,
        "blk.0.attn_q.weight": matrix(width, width),
        "blk.0.attn_k.weight": matrix(width, width),
        "blk.0.attn_v.weight": matrix(width, width, "q4_0"),
        "blk.0.attn_output.weight": matrix(width, width),
        "blk.0.ffn_norm.weight": norm,
        "blk.0.ffn_gate.weight": matrix(inner, width),
        "blk.0.ffn_up.weight": matrix(inner, width),
        "blk.0.ffn_down.weight": matrix(width, inner),
      },
    }),
  );
}

const long = { skip: process.env["NABLA_LONG"] !== "1" && "more processes under NABLA_LONG=1" };

const letters = (from: number): string =>
  Array.from({ length: 24 }, (_, i) => String.fromCharCode(97 + ((from + i) % 13))).join("");

before(async () => {
  writeModel();
  for (const [path, from, to] of [
    [train, 0, 16],
    [held, 16, 20],
  ] as const) {
    const lines = Array.from({ length: to - from }, (_, i) => JSON.stringify({ text: letters(from + i) }));
    writeFileSync(path, `${lines.join("\n")}\n`);
  }
  const flags = "--method qlora --steps 6 --batch 4 --lr 0.02 --rank 4 --samples 0 --seed 5".split(" ");
  const { code, stdout, stderr } = await nabla([
    ...["finetune", file, "--data", train, "--eval", held, "--out", out],
    ...flags,
  ]);
  assert.equal(code, 0, stderr);
  assert.match(stdout, /small\.gguf: CausalLM, 12\.\dk parameters, q8_0, q4_0, on reference/);
  assert.match(stdout, /qlora: rank 4, .* on 7 layers; 7 layers as they are stored \(q8_0, q4_0\); /);
});

test("qlora on a GGUF file in few bits learns on its blocks, and says so; eval of it measures the same", async () => {
  const { quantize } = JSON.parse(readFileSync(join(out, "training.json"), "utf8"));
  assert.equal(quantize, "stored");
  assert.ok(existsSync(join(out, "adapter_model.safetensors")));
  const { before: was, after: now } = JSON.parse(readFileSync(join(out, "evaluation.json"), "utf8"));
  assert.ok(now.loss < was.loss - 0.2, `${was.loss} → ${now.loss}`);
  const measured = ["eval", file, "--adapter", out, "--data", held, "--metrics", "loss", "--json"];
  const [stored, floating] = await Promise.all([nabla(measured), nabla([...measured, "--dtype", "f32"])]);
  for (const { code, stdout, stderr } of [stored, floating]) {
    assert.equal(code, 0, stderr);
    assert.ok(Math.abs(JSON.parse(stdout).loss - now.loss) < 1e-5, `${stdout} beside ${now.loss}`);
  }
});

test(
  "generate with such an adapter writes what it writes over floating weights, and merge writes those",
  long,
  async () => {
    const merged = join(room, "merged");
    const merge = await nabla(["merge", file, "--adapter", out, "--out", merged]);
    assert.equal(merge.code, 0, merge.stderr);
    const write = (...model: string[]) =>
      nabla(["generate", ...model, "--prompt", "abcdef", "--tokens", "8", "--temperature", "0"]);
    const [stored, floating, whole] = await Promise.all([
      write(file, "--adapter", out),
      write(file, "--adapter", out, "--dtype", "f32"),
      write(merged),
    ]);
    assert.equal(stored.code, 0, stored.stderr);
    assert.match(stored.stdout, /^abcdef\S+/);
    assert.equal(floating.stdout, stored.stdout);
    assert.equal(whole.stdout, stored.stdout);
  },
);

test(
  "another base of qlora is made where it is asked for; as stored is refused where nothing is in few bits",
  long,
  async () => {
    const codes = join(room, "codes");
    const flags = ["--data", train, "--eval", held, "--steps", "1", "--samples", "0"];
    const [made, refused] = await Promise.all([
      nabla(["finetune", file, ...flags, "--quantize", "int8", "--out", codes]),
      (async () => {
        const plain = join(room, "plain");
        const converted = await nabla(["convert", file, "--to", "safetensors", "--out", plain]);
        assert.equal(converted.code, 0, converted.stderr);
        return nabla(["finetune", plain, ...flags, "--quantize", "stored", "--out", join(room, "none")]);
      })(),
    ]);
    assert.equal(made.code, 0, made.stderr);
    assert.match(made.stdout, /7 layers quantised to int8; /);
    assert.equal(refused.code, 2, refused.stderr);
    assert.match(refused.stderr, /--quantize stored: .*plain is not stored in few bits.*give nf4 or int8/);
    assert.ok(!existsSync(join(room, "none")));
  },
);
