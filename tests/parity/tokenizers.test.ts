/** Tokenizers of every kind against Hugging Face's `tokenizers`: ids, decoded texts, streams, and the settings of lengths. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { describe, test } from "node:test";
import { PipelineTokenizer, tokenizerFromJSON } from "../../src/data/tokenizer.ts";

interface Case {
  readonly text: string;
  readonly ids: readonly number[];
  readonly plain: readonly number[];
  readonly decoded: string;
  readonly skipped: string;
}
interface Kind {
  readonly tokenizer: object;
  readonly cases: readonly Case[];
  readonly batch?: readonly {
    readonly text: string | [string, string];
    readonly ids: readonly number[];
    readonly types: readonly number[];
    readonly mask: readonly number[];
  }[];
}

const kinds = JSON.parse(readFileSync(new URL("fixtures/tokenizers.json", import.meta.url), "utf8")) as Record<
  string,
  Kind
>;

for (const [name, { tokenizer: json, cases, batch }] of Object.entries(kinds))
  describe(`a ${name} tokenizer`, () => {
    const tokenizer = tokenizerFromJSON(json);

    test("encodes as the reference", () => {
      for (const { text, ids, plain } of cases) {
        assert.deepEqual([...tokenizer.encode(text)], ids, JSON.stringify(text));
        assert.deepEqual([...tokenizer.encode(text, { addSpecialTokens: false })], plain, JSON.stringify(text));
      }
    });

    test("decodes as the reference, at once and token by token, never half a character", () => {
      for (const { text, ids, decoded, skipped } of cases) {
        assert.equal(tokenizer.decode(ids), decoded, JSON.stringify(text));
        assert.equal(tokenizer.decode(ids, { skipSpecialTokens: true }), skipped, JSON.stringify(text));
        const stream = tokenizer.decodeStream();
        const pieces = [...ids.map((id) => stream.push(id)), stream.end()];
        assert.equal(pieces.join(""), decoded, JSON.stringify(text));
        assert.ok(pieces.every((piece) => !/\p{Surrogate}/u.test(piece)));
      }
    });

    test("is the same after it has been written and read", () => {
      const again = tokenizerFromJSON(JSON.parse(JSON.stringify(tokenizer.toJSON())));
      for (const { text, ids } of cases) assert.deepEqual([...again.encode(text)], ids);
    });

    if (batch)
      test("cuts and fills up as its file says", () => {
        assert.ok(tokenizer instanceof PipelineTokenizer);
        const got = tokenizer.encodeBatch(batch.map(({ text }) => text));
        for (const [i, { ids, types, mask }] of batch.entries()) {
          assert.deepEqual([...got[i].ids], ids);
          assert.deepEqual([...got[i].typeIds], types);
          assert.deepEqual([...got[i].attentionMask], mask);
        }
      });
  });
