/** How a sentence-transformers folder says that states become vectors, and what is said where it asks for more than can be computed. */
import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { after, test } from "node:test";
import { readEmbeddingSettings } from "../../src/models/index.ts";

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

test("a folder without modules is the mean of all tokens", async () => {
  assert.deepEqual(await readEmbeddingSettings(folder({})), { pooling: ["mean"], normalize: false, maxLength: null });
});

test("pooling, normalisation and length are as the files say, old and new", async () => {
  const old = folder({
    "modules.json": [...modules, module(2, "2_Normalize", "Normalize")],
    [pooling]: { pooling_mode_cls_token: true, pooling_mode_mean_tokens: true, pooling_mode_max_tokens: false },
    "sentence_bert_config.json": { max_seq_length: 128, do_lower_case: false },
  });
  assert.deepEqual(await readEmbeddingSettings(old), { pooling: ["cls", "mean"], normalize: true, maxLength: 128 });
  for (const [name, expected] of [
    ["lasttoken", "last"],
    ["mean_sqrt_len_tokens", "meanSqrtLen"],
    ["cls", "cls"],
  ]) {
    const read = await readEmbeddingSettings(folder({ "modules.json": modules, [pooling]: { pooling_mode: name } }));
    assert.deepEqual(read.pooling, [expected]);
  }
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
