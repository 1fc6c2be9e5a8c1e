import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import fc from "fast-check";
import { Rng } from "../../src/core/rng.ts";
import { readTextCorpus } from "../../src/data/text.ts";
import { CharTokenizer } from "../../src/data/tokenizer.ts";
import { NgramError, PairCounts, TrigramModel, trigramLoss } from "../../src/train/ngram.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));
const shakespeare = join(
  process.env["NABLA_TEST_DATA"] ?? join(root, "..", "shared", "data"),
  "shakespeare",
  "input.txt",
);

describe("the trigram model", () => {
  test("gives probabilities that sum to one, whatever the context", () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 9 }), fc.integer({ min: 20, max: 200 }), fc.integer(), (vocab, n, seed) => {
        const rng = new Rng(seed);
        const seen = 1 + rng.below(vocab); // some tokens never occur
        const model = TrigramModel.fit(
          Int32Array.from({ length: n }, () => rng.below(seen)),
          vocab,
        );
        for (let u = -1; u < vocab; u++)
          for (let v = u < 0 ? -1 : 0; v < vocab; v++) {
            let sum = 0;
            for (let w = 0; w < vocab; w++) {
              const p = model.probability(u, v, w);
              assert.ok(p > 0 && p <= 1);
              sum += p;
            }
            assert.ok(Math.abs(sum - 1) < 1e-12, `${u} ${v}: ${sum}`);
          }
      }),
      { numRuns: 60 },
    );
  });

  test("of a source with two tokens of memory comes close to that source's entropy", () => {
    // The next token is a function of the two before with probability 0.9, else uniform over 8.
    const rng = new Rng(1);
    const tokens = new Int32Array(200_000);
    for (let i = 2; i < tokens.length; i++)
      tokens[i] = rng.uniform() < 0.9 ? (3 * tokens[i - 2] + 5 * tokens[i - 1] + 1) % 8 : rng.below(8);
    const top = 0.9 + 0.1 / 8;
    const entropy = -(top * Math.log(top) + 7 * (0.1 / 8) * Math.log(0.1 / 8));
    const loss = trigramLoss(tokens.subarray(0, 180_000), tokens.subarray(180_000), 8);
    assert.ok(Math.abs(loss - entropy) < 0.01, `${loss}, entropy ${entropy}`);
  });

  test("of noise is no worse than the uniform guess by more than a trifle", () => {
    const rng = new Rng(2);
    const tokens = Int32Array.from({ length: 20_000 }, () => rng.below(50));
    const loss = trigramLoss(tokens.subarray(0, 18_000), tokens.subarray(18_000), 50);
    assert.ok(loss < Math.log(50) + 0.02 && loss > Math.log(50) - 0.02, String(loss));
  });

  test("of tiny Shakespeare's characters: 2.0 to 2.1 nats, a million tokens in seconds", {
    skip: !existsSync(shakespeare) && "no test data here (NABLA_TEST_DATA)",
  }, async () => {
    const { text, train, validation } = await readTextCorpus([shakespeare]);
    const tokenizer = CharTokenizer.fromText(text);
    const start = performance.now();
    const loss = trigramLoss(tokenizer.encode(train), tokenizer.encode(validation), tokenizer.vocabSize);
    const time = performance.now() - start;
    assert.ok(loss > 1.9 && loss < 2.15, String(loss));
    assert.ok(time < 10_000, `${time} ms`);
  });

  test("tokens outside the vocabulary and too few of them are errors", () => {
    const ones = new Int32Array(30).fill(1);
    assert.throws(
      () => trigramLoss(ones, ones, 1),
      (e: Error) => e instanceof NgramError && /token 1 at position 0 is outside/.test(e.message),
    );
    assert.throws(() => trigramLoss(ones.subarray(0, 5), ones, 2), /5 training tokens are too few/);
  });
});

test("pair counts agree with a Map", () => {
  fc.assert(
    fc.property(fc.integer(), fc.integer({ min: 1, max: 200 }), (seed, range) => {
      const rng = new Rng(seed);
      const counts = new PairCounts();
      const map = new Map<string, number>();
      for (let i = 0; i < 6000; i++) {
        const [a, b] = [rng.below(range), rng.below(range) * 10_000_019];
        counts.add(a, b | 0);
        map.set(`${a} ${b | 0}`, (map.get(`${a} ${b | 0}`) ?? 0) + 1);
      }
      assert.equal(counts.size, map.size);
      for (const [key, n] of map) {
        const [a, b] = key.split(" ").map(Number);
        assert.equal(counts.count(counts.find(a, b)), n);
      }
      assert.equal(counts.count(counts.find(range, 0)), 0);
    }),
    { numRuns: 20 },
  );
});
