/** Tokenizers that are damaged, or meant to do harm: each is read, or refused by a named error, in the time that its size allows. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { Rng } from "../../src/core/rng.ts";
import { TokenizerError, tokenizerFromJSON } from "../../src/data/index.ts";

const kinds = JSON.parse(
  readFileSync(new URL("../parity/fixtures/tokenizers.json", import.meta.url), "utf8"),
) as Record<string, { readonly tokenizer: Record<string, unknown> }>;

const strange: readonly unknown[] = [
  ...[
    null,
    true,
    false,
    -1,
    0,
    1,
    7,
    0.5,
    1e308,
    2 ** 21,
    2 ** 53,
    "",
    "a",
    " ",
    "▁",
    "(",
    "[a",
    "\\",
    "a{2,1}",
    "<0x41>",
    "<unk>",
  ],
  ...[
    [],
    {},
    [[]],
    [{}],
    ["a", "b"],
    [["a", 1]],
    { type: "X" },
    { Regex: "(" },
    { Regex: "\\p{Nope}" },
    { String: "" },
    { a: 1e9 },
  ],
  ...[
    "Sequence",
    "BPE",
    "Unigram",
    "WordPiece",
    "WordLevel",
    "Fuse",
    "Split",
    "Metaspace",
    "Precompiled",
    "Strip",
    "constructor",
  ],
  JSON.parse('{"__proto__": {"type": "NFC"}, "type": "toString"}'),
];

/** A place in a JSON value, as the object that holds it and the key; by a walk from the top, so that large lists do not hide the rest. */
function place(value: Record<string, unknown>, rng: Rng): [Record<string, unknown>, string] {
  const keys = Object.keys(value);
  const key = keys[Math.floor(rng.uniform() * keys.length)];
  const below = value[key];
  const descends = typeof below === "object" && below !== null && Object.keys(below).length > 0;
  return descends && rng.uniform() < 0.8 ? place(below as Record<string, unknown>, rng) : [value, key];
}

function attempt(json: object, text: string): "read" | "refused" {
  try {
    const tokenizer = tokenizerFromJSON(json);
    const ids = tokenizer.encode(text);
    tokenizer.decode(ids);
    return "read";
  } catch (error) {
    assert.ok(error instanceof TokenizerError, String((error as Error).stack));
    return "refused";
  }
}

test("whatever is changed in a tokenizer.json, it is read or refused", () => {
  const seed = 11;
  const rng = new Rng(seed);
  const pick = <T>(list: readonly T[]): T => list[Math.floor(rng.uniform() * list.length)];
  const counts = { read: 0, refused: 0 };
  for (const [name, { tokenizer }] of Object.entries(kinds))
    for (let i = 0; i < (process.env["NABLA_LONG"] === "1" ? 2000 : 30); i++) {
      const json = structuredClone(tokenizer);
      for (let n = 0; n < 1 + Math.floor(rng.uniform() * 2); n++) {
        const [holder, key] = place(json, rng);
        if (rng.uniform() < 0.2) delete holder[key];
        else holder[key] = structuredClone(pick(strange));
      }
      try {
        counts[attempt(JSON.parse(JSON.stringify(json)), "The fox 🦊 isn't\n\n  here, 12 山高 <mask> new word.")]++;
      } catch (error) {
        throw new Error(`${name}, change ${i} of seed ${seed}`, { cause: error });
      }
    }
  assert.ok(counts.read > 50 && counts.refused > 100, JSON.stringify(counts));
});

test("what is nested too deeply, or asks for memory, is refused", () => {
  const { tokenizer } = kinds["llama2-like"];
  let nested: object = { type: "NFC" };
  for (let i = 0; i < 50_000; i++) nested = { type: "Sequence", normalizers: [nested] };
  assert.equal(attempt({ ...tokenizer, normalizer: nested }, "a"), "refused");
  const model = tokenizer["model"] as { readonly vocab: object };
  assert.equal(attempt({ ...tokenizer, model: { ...model, vocab: { ...model.vocab, a: 1e12 } } }, "a"), "refused");
  const padding = { strategy: { Fixed: 1e15 }, direction: "Right", pad_id: 0, pad_type_id: 0, pad_token: "" };
  assert.equal(attempt({ ...tokenizer, padding }, "a"), "refused");
  const token = { id: 2 ** 40, content: "x", special: true };
  assert.equal(attempt({ ...tokenizer, added_tokens: [token] }, "a"), "refused");
  assert.equal(
    attempt({ ...tokenizer, normalizer: { type: "Precompiled", precompiled_charsmap: "////////" } }, "a"),
    "refused",
  );
});
