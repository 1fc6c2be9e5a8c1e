/** Decoders written as GGUF: read again they are the same model, to the bit in f32. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { setDevice } from "../../src/execution/index.ts";
import { formatGguf, readGguf } from "../../src/formats/index.ts";
import {
  ggufModelOf,
  ggufTokenizerMetadata,
  modelFrom,
  readCheckpoint,
  readConfig,
  readGgufModel,
  readGgufText,
} from "../../src/models/index.ts";
import { noGrad, tensor } from "../../src/tensor/index.ts";

const root = join(dirname(fileURLToPath(import.meta.url)), "..", "parity", "fixtures", "pretrained");
const folder = (name: string): string => join(root, name);

describe("a decoder as GGUF and back", () => {
  for (const name of ["llama", "llama3", "qwen3", "phi3"])
    test(`${name} gives the same logits`, async () => {
      setDevice("reference");
      const config = await readConfig(folder(name));
      const tensors = await readCheckpoint(folder(name));
      const bytes = formatGguf(await ggufModelOf(config, tensors, { type: "f32", name }));
      const back = await readGgufModel(bytes);
      const ids = tensor([[1, 5, 9, 2, 7, 3, 11, 4, 40, 5]], { dtype: "int32" });
      const logits = async (model: ReturnType<typeof modelFrom>) =>
        Array.from(await noGrad(() => model.forward(ids)).data());
      assert.deepEqual(
        await logits(modelFrom(back.config, back.tensors, { dtype: "float32" })),
        await logits(modelFrom(config, tensors, { dtype: "float32" })),
      );
    });

  test("what GGUF does not know is refused by name", async () => {
    for (const [name, message] of [
      ["gpt2", /the architecture "gpt2" can't be written as GGUF; known are llama/],
      ["smollm3", /the architecture "smollm3" can't be written/],
      ["mistral", /has no sliding window, which this model has/],
      ["gemma2", /"query_pre_attn_scalar" can't be written/],
    ] as const) {
      const given = [await readConfig(folder(name)), await readCheckpoint(folder(name))] as const;
      await assert.rejects(ggufModelOf(...given, { type: "f32", name }), { name: "PretrainedError", message });
    }
  });

  test("what a reader would take for something else is refused by name", async () => {
    const scale = {
      query_pre_attn_scalar: JSON.parse(readFileSync(join(folder("gemma2"), "config.json"), "utf8")).head_dim,
    };
    const layer_types = ["full_attention", "full_attention", "sliding_attention"];
    for (const [name, change, message] of [
      [
        "llama",
        { hidden_act: "gelu" },
        /"hidden_act" can't be written as GGUF: it is "gelu", .* takes it to be "silu"/,
      ],
      ["gemma2", { ...scale, attn_logit_softcapping: null }, /"attn_logit_softcapping" .* it is null, .* to be 50/],
      ["gemma2", { ...scale, layer_types, num_hidden_layers: 3 }, /"layer_types" can't be written/],
      ["gemma2", scale, null],
    ] as const) {
      const config = { ...(await readConfig(folder(name))).raw, ...change };
      const written = ggufModelOf(config, await readCheckpoint(folder(name)), { type: "f32", name });
      if (message === null) assert.ok((await written).tensors.size > 0);
      else await assert.rejects(written, { name: "PretrainedError", message });
    }
  });
});

/** A tokenizer.json as metadata, and as the tokenizer that they are read as. */
async function throughGguf(tokenizer: object, config: Readonly<Record<string, unknown>>, eosTokenId?: number) {
  const metadata = ggufTokenizerMetadata({ tokenizer, config, eosTokenId, source: "tokenizer.json" });
  return readGgufText(await readGguf(formatGguf({ metadata, tensors: {} })), "file");
}

const token = (id: number, content: string) => ({
  ...{ id, content, special: true },
  ...{ single_word: false, lstrip: false, rstrip: false, normalized: false },
});

describe("a tokenizer as GGUF's metadata and back", () => {
  test("byte-level BPE keeps its merges, its special tokens and its template", async () => {
    const { ByteLevelBpe } = await import("../../src/data/tokenizer.ts");
    const text = readFileSync(fileURLToPath(import.meta.url), "utf8");
    const trained = ByteLevelBpe.train(text, { vocabSize: 300, specialTokens: ["<|endoftext|>"] });
    const back = await throughGguf(trained.toJSON(), { eos_token: "<|endoftext|>", chat_template: "{{ messages }}" });
    for (const sample of [text.slice(0, 500), "an émigré's  日本 <|endoftext|> x"])
      assert.deepEqual(
        Array.from(back.tokenizer.encode(sample, { addSpecialTokens: false })),
        Array.from(trained.encode(sample)),
      );
    assert.equal(back.chatTemplate, "{{ messages }}");
    assert.deepEqual(back.stopTokens, [trained.tokenId("<|endoftext|>")]);
  });

  test("pieces with scores in the order of their merges are joined as before, and a text begins as before", async () => {
    const { tokenizerFromJSON } = await import("../../src/data/tokenizer.ts");
    const tokens = ["<unk>", "<s>", "</s>", "<0x41>", "▁", "a", "b", "c", "ab", "bc", "▁a", "▁ab"];
    const json = {
      version: "1.0",
      truncation: null,
      padding: null,
      added_tokens: [token(0, "<unk>"), token(1, "<s>"), token(2, "</s>")],
      normalizer: {
        type: "Sequence",
        normalizers: [
          { type: "Prepend", prepend: "▁" },
          { type: "Replace", pattern: { String: " " }, content: "▁" },
        ],
      },
      pre_tokenizer: null,
      post_processor: {
        type: "TemplateProcessing",
        single: [{ SpecialToken: { id: "<s>", type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
        pair: [{ Sequence: { id: "A", type_id: 0 } }, { Sequence: { id: "B", type_id: 0 } }],
        special_tokens: { "<s>": { id: "<s>", ids: [1], tokens: ["<s>"] } },
      },
      decoder: {
        type: "Sequence",
        decoders: [
          { type: "Replace", pattern: { String: "▁" }, content: " " },
          { type: "ByteFallback" },
          { type: "Fuse" },
        ],
      },
      model: {
        type: "BPE",
        unk_token: "<unk>",
        fuse_unk: true,
        byte_fallback: true,
        vocab: Object.fromEntries(tokens.map((each, id) => [each, id])),
        merges: ["b c", "a b", "▁ a", "▁ ab"],
      },
    };
    const own = tokenizerFromJSON(json);
    const back = await throughGguf(json, { bos_token: "<s>", eos_token: "</s>" });
    for (const sample of ["abc", "ab a b", "cab  bc", "Ab"])
      assert.deepEqual(Array.from(back.tokenizer.encode(sample)), Array.from(own.encode(sample)), sample);
    assert.deepEqual(back.stopTokens, [2]);
  });

  test("a kind that GGUF does not have is refused", () => {
    assert.throws(
      () => ggufTokenizerMetadata({ tokenizer: { model: { type: "WordPiece" } }, config: {}, source: "x.json" }),
      { name: "TokenizerError", message: /x\.json: a tokenizer of kind WordPiece can't be written/ },
    );
  });
});
