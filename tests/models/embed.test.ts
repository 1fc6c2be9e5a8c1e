/** How a sentence-transformers folder says that states become vectors, and what is said where it asks for more than can be computed. */
import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { after, describe, test } from "node:test";
import { setDevice } from "../../src/execution/index.ts";
import { type EmbedOptions, embed, readEmbeddingSettings } from "../../src/models/index.ts";
import { Module } from "../../src/nn/index.ts";
import { cat, type Tensor } from "../../src/tensor/index.ts";
import { assertClose } from "../support/fixtures.ts";

setDevice("reference");

const rooms: string[] = [];
after(() => {
  for (const room of rooms) rmSync(room, { recursive: true, force: true });
});

/** A folder with these files. */
function folder(files: Readonly<Record<string, unknown>>): string {
  const room = mkdtempSync(join(tmpdir(), "nabla-embed-"));
  rooms.push(room);
  for (const [name, content] of Object.entries(files)) {
    mkdirSync(dirname(join(room, name)), { recursive: true });
    writeFileSync(join(room, name), typeof content === "string" ? content : JSON.stringify(content));
  }
  return room;
}

const module = (idx: number, path: string, kind: string) => ({
  idx,
  name: String(idx),
  path,
  type: `sentence_transformers.models.${kind}`,
});
const modules = [module(0, "", "Transformer"), module(1, "1_Pooling", "Pooling")];
const pooling = "1_Pooling/config.json";

/** What no file says anything of. */
const plain = {
  pooling: ["mean"],
  normalize: false,
  maxLength: null,
  prompt: "",
  prompts: {},
  poolPrompt: true,
  lowerCase: false,
  dimensions: null,
};

test("a folder without modules is the mean of all tokens", async () => {
  assert.deepEqual(await readEmbeddingSettings(folder({})), plain);
});

test("pooling, normalisation and length are as the files say, old and new", async () => {
  const old = folder({
    "modules.json": [...modules, module(2, "2_Normalize", "Normalize")],
    [pooling]: { pooling_mode_cls_token: true, pooling_mode_mean_tokens: true, pooling_mode_max_tokens: false },
    "sentence_bert_config.json": { max_seq_length: 128, do_lower_case: false },
  });
  assert.deepEqual(await readEmbeddingSettings(old), {
    ...plain,
    pooling: ["cls", "mean"],
    normalize: true,
    maxLength: 128,
  });
  for (const [name, expected] of [
    ["lasttoken", "last"],
    ["mean_sqrt_len_tokens", "meanSqrtLen"],
    ["cls", "cls"],
    [
      ["max", "mean"],
      ["max", "mean"],
    ],
  ]) {
    const read = await readEmbeddingSettings(folder({ "modules.json": modules, [pooling]: { pooling_mode: name } }));
    assert.deepEqual(read.pooling, [expected].flat());
  }
});

test("how texts are read, what stands before them and how much of a vector is kept", async () => {
  const files = {
    "modules.json": modules,
    [pooling]: { pooling_mode: "mean", include_prompt: false },
    "sentence_roberta_config.json": { do_lower_case: true },
    // where newer versions keep the length
    "tokenizer_config.json": { model_max_length: 40 },
    "config_sentence_transformers.json": {
      prompts: { query: "query: ", passage: "passage: ", none: null },
      default_prompt_name: "passage",
      truncate_dim: 8,
    },
  };
  assert.deepEqual(await readEmbeddingSettings(folder(files)), {
    ...plain,
    maxLength: 40,
    prompt: "passage: ",
    prompts: { query: "query: ", passage: "passage: ", none: "" },
    poolPrompt: false,
    lowerCase: true,
    dimensions: 8,
  });
  const { maxLength } = await readEmbeddingSettings(
    folder({ ...files, "sentence_bert_config.json": { max_seq_length: 30 } }),
  );
  assert.equal(maxLength, 30);
});

describe("embed", () => {
  // a "model" whose states are its tokens, and a tokenizer of characters between two marks
  class Letters extends Module {
    readonly contextLength = 64;
    readonly hiddenSize = 2;
    forward(ids: Tensor): Tensor {
      const x = ids.to("float32").unsqueeze(2);
      return cat([x, x.mul(2)], 2);
    }
  }
  const tokenizer = {
    encode: (text: string, { addSpecialTokens = true } = {}) => {
      const ids = [...text].map((c) => c.charCodeAt(0));
      return addSpecialTokens ? [1, ...ids, 2] : ids;
    },
  };
  const model = new Letters();
  const mean = (text: string): number[] => {
    const ids = tokenizer.encode(text);
    const middle = ids.reduce((a, b) => a + b, 0) / ids.length;
    return [middle, 2 * middle];
  };
  const vectors = async (options: EmbedOptions) =>
    (await embed(model, ["Ab", "c"], { tokenizer, ...options })).tolist();
  const close = async (options: EmbedOptions, expected: number[][]) =>
    assertClose("vectors", ((await vectors(options)) as number[][]).flat(), expected.flat(), { rtol: 1e-6, atol: 0 });

  test("puts a prompt before texts, writes them in small letters, keeps the beginning of vectors", async () => {
    const prompts = { query: "q: ", passage: "p: " };
    await close({}, [mean("Ab"), mean("c")]);
    await close({ lowerCase: true }, [mean("ab"), mean("c")]);
    await close({ prompts, promptName: "query" }, [mean("q: Ab"), mean("q: c")]);
    await close({ prompt: "p: ", dimensions: 1 }, [mean("p: Ab").slice(0, 1), mean("p: c").slice(0, 1)]);
    await assert.rejects(vectors({ prompts, promptName: "title" }), /no prompt "title"; the model has query, passage/);
  });

  test("leaves a prompt, and what stands before it, out of the pooling", async () => {
    const sum = (text: string): number => [...text].reduce((a, c) => a + c.charCodeAt(0), 2);
    const only = (text: string): number[] => [1, 2].map((k) => (k * sum(text)) / (text.length + 1));
    await close({ prompt: "p: ", poolPrompt: false }, [only("Ab"), only("c")]);
    await close({ prompt: "p: ", poolPrompt: false, pooling: ["cls"] }, [
      [65, 130],
      [99, 198],
    ]);
    await assert.rejects(
      vectors({ prompt: "p: ", poolPrompt: false, maxLength: 4 }),
      /the prompt has 4 tokens, of the 4/,
    );
  });
});

for (const [what, files, message] of [
  [
    "a step that is not known",
    { "modules.json": [...modules, module(2, "2_Dense", "Dense")], [pooling]: { pooling_mode: "mean" } },
    /modules\.json: module 2 is of type "sentence_transformers\.models\.Dense"; known are Transformer, Pooling and Normalize/,
  ],
  [
    "a way of pooling that is not known",
    { "modules.json": modules, [pooling]: { pooling_mode_weightedmean_tokens: true } },
    /1_Pooling\/config\.json: "pooling_mode_weightedmean_tokens" can't be computed/,
  ],
  [
    "an unknown name of one",
    { "modules.json": modules, [pooling]: { pooling_mode: "attention" } },
    /"pooling_mode" is "attention"; known are cls, max, mean/,
  ],
  ["none", { "modules.json": modules, [pooling]: {} }, /no way of pooling is chosen/],
  [
    "a missing file",
    { "modules.json": modules },
    /1_Pooling.config\.json: this file is missing; .*modules\.json names it/,
  ],
  ["no pooling at all", { "modules.json": modules.slice(0, 1) }, /there is no Pooling among the modules/],
  ["modules that are no list", { "modules.json": {} }, /modules\.json: must be a list of modules/],
  ["a module that is no object", { "modules.json": [3] }, /module 0 must be an object/],
  ["a broken file", { "modules.json": "[" }, /modules\.json: this is not valid JSON/],
] as const)
  test(`refuses ${what}`, async () => {
    await assert.rejects(readEmbeddingSettings(folder(files)), { name: "PretrainedError", message });
  });
