/** Hostile tokenizer.json: each loads or ends in a TokenizerError, without minutes of work and within 1 GB. */
import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { loadTokenizer, TokenizerError, tokenizerFromJSON } from "../../src/data/tokenizer.ts";

const model = '"model":{"type":"BPE","vocab":{"a":0,"b":1},"merges":[]}';

/** A file of a beginning, something many times over, and an end; not a string, which may be too long for the heap. */
function file(begin: string, middle: string, times: number, end: string): Uint8Array {
  const body = Buffer.alloc(middle.length * times, middle);
  return Buffer.concat([Buffer.from(begin), body, Buffer.from(end)]);
}
const added = (content: string, normalized = true) => ({
  ...{ id: 2, content, normalized, single_word: false, lstrip: false, rstrip: false, special: false },
});
const withRegex = (pattern: string) => ({
  pre_tokenizer: { type: "Split", pattern: { Regex: pattern }, behavior: "Isolated", invert: false },
  ...JSON.parse(`{${model}}`),
});
const json = (value: object): Uint8Array => Buffer.from(JSON.stringify({ ...JSON.parse(`{${model}}`), ...value }));
const doubling = (times: number) => ({
  type: "Sequence",
  normalizers: Array(times).fill({ type: "Replace", pattern: { String: "a" }, content: "aa" }),
});

const refused: Readonly<Record<string, readonly [() => Uint8Array, RegExp]>> = {
  "lists inside one another": [() => file('{"x":', "[", 30_000_000, ""), /nested more than 64 deep at byte 68/],
  "objects inside one another": [() => file('{"x":', '{"a":', 10_000_000, ""), /nested more than 64 deep/],
  "normalizers inside one another": [
    () => file('{"normalizer":', '{"type":"Sequence","normalizers":[', 200_000, ""),
    /nested more than 64 deep/,
  ],
  "millions of empty lists": [() => file('{"x":[', "[],", 16_000_000, `1],${model}}`), /items, more than the 4000000/],
  "100 MB of strings": [
    () => file('{"x":[', '"some string",', 7_200_000, `1],${model}}`),
    /more than the 67108864 that are read|over 67108864/,
  ],
  "one string of 100 MB": [() => file('{"x":"', "y", 100_000_000, `",${model}}`), /67108864/],
  "an endless string": [() => file('{"x":"', '\\"', 1_000_000, ""), /not valid JSON/],
  "a giant added token": [() => json({ added_tokens: [added("z".repeat(30_000_000))] }), /added_tokens\[0\]: 30000000/],
  "too many added tokens": [
    () => json({ added_tokens: Array.from({ length: 300_000 }, (_, i) => added(`aaaaaaaaaaaaaaaa${i}`)) }),
    /added_tokens\[\d+\]: .*4000000 are read/,
  ],
  "a map of characters of 40 MB": [
    () => file('{"normalizer":{"type":"Precompiled","precompiled_charsmap":"', "A", 40_000_000, `"},${model}}`),
    /precompiled_charsmap: 40000000 characters/,
  ],
  "pieces of a million characters": [
    () =>
      json({
        model: {
          type: "Unigram",
          unk_id: 0,
          vocab: Array.from({ length: 8 }, (_, i) => [`${"a".repeat(1e6)}${i}`, -1]),
        },
      }),
    /model\.vocab\[3\].*4000000 in all/,
  ],
  "an id beyond all numbers": [
    () => json({ model: { type: "BPE", vocab: { a: 0, b: 2 ** 53 - 1 }, merges: [] } }),
    /below 2097152/,
  ],
  "padding without end": [
    () =>
      json({
        padding: { strategy: { Fixed: 2 ** 53 - 1 }, direction: "Right", pad_id: 0, pad_type_id: 0, pad_token: "a" },
      }),
    /padding.*at most 1048576/,
  ],
  "a normalizer that doubles again and again": [
    () => json({ added_tokens: [added("a".repeat(1000))], normalizer: doubling(40) }),
    /normalizer makes more than \d+ characters/,
  ],
  "a regular expression as deep as it is long": [
    () => Buffer.from(JSON.stringify(withRegex("(a".repeat(200_000) + ")".repeat(200_000)))),
    /can't be used as a tokenizer|regular expression/,
  ],
  "merges of what is not there": [
    () =>
      json({
        model: { type: "BPE", vocab: { ["__proto__"]: 0, constructor: 1 }, merges: [["__proto__", "constructor"]] },
      }),
    /merge 0/,
  ],
};

for (const [name, [make, words]] of Object.entries(refused))
  test(`${name}: refused`, async () => {
    await assert.rejects(loadTokenizer(make()), (error: Error) => {
      assert.ok(error instanceof TokenizerError, `${error.name}: ${error.message.slice(0, 300)}`);
      assert.match(error.message, words);
      assert.ok(error.message.length < 1000, "the message is for people");
      return true;
    });
  });

test("a file that is too long is not read", async (t) => {
  const folder = await mkdtemp(join(tmpdir(), "nabla-hostile-"));
  t.after(() => rm(folder, { recursive: true }));
  await writeFile(join(folder, "tokenizer.json"), Buffer.alloc((64 << 20) + 1, " "));
  await assert.rejects(loadTokenizer(folder), /over 67108864 bytes; this is no tokenizer/);
});

test("regular expressions that may take for ever are refused, those of real tokenizers are not", () => {
  const bad = ["(a+)+$", "(a|a)*c", "(a*)*b", "((ab?)+c?)*x", "(?:x|y)+", "(a{1,50})+", "(a+){20}", "(?i)(a+)*"];
  for (const pattern of bad)
    assert.throws(
      () => tokenizerFromJSON(withRegex(pattern)),
      (error: Error) => error instanceof TokenizerError && /may take for ever/.test(error.message),
      pattern,
    );
  const good = [
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+(?i:'s|'t|'re)?",
    "(?=(\\d{3})+(?!\\d))| ?\\p{L}+",
    "(?>a|ab)+c",
    "(?:a++)+b",
    "(?:(?=a|b).)+",
  ];
  for (const pattern of good)
    assert.deepEqual(
      tokenizerFromJSON(withRegex(pattern)).decode(tokenizerFromJSON(withRegex(pattern)).encode("ab")),
      "a b",
      pattern,
    );
});

test("large files that are no attack load: a chain of merges, merges by the hundred thousand", async () => {
  const vocab: Record<string, number> = { a: 0 };
  const chain: [string, string][] = [];
  for (let n = 2; n <= 2000; n++) {
    vocab["a".repeat(n)] = n - 1;
    chain.push(["a".repeat(n - 1), "a"]);
  }
  const tokenizer = await loadTokenizer(json({ model: { type: "BPE", vocab, merges: chain } }));
  assert.deepEqual([...tokenizer.encode("a".repeat(4000))], Array(2000).fill(1)); // of rank 0 there is always one more
  const many = { type: "BPE", vocab: { a: 0, b: 1, ab: 2 }, merges: Array(400_000).fill("a b") };
  assert.deepEqual([...(await loadTokenizer(json({ model: many }))).encode("abab")], [2, 2]);
});

test("all of this stayed below 1 GB", () => {
  const peak = process.resourceUsage().maxRSS * 1024;
  assert.ok(peak < 1e9, `${peak}`);
});
