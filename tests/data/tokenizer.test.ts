import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import fc from "fast-check";
import { readTextCorpus } from "../../src/data/text.ts";
import {
  ByteLevelBpe,
  CharTokenizer,
  loadTokenizer,
  type Tokenizer,
  TokenizerError,
} from "../../src/data/tokenizer.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));
const parity = JSON.parse(readFileSync(new URL("fixtures/bpe-parity.json", import.meta.url), "utf8"));
const documentation = join(root, "node_modules", "@types", "node"); // 2.5 MB of text that every install has
const runs = process.env["NABLA_LONG"] === "1" ? 20_000 : 500;

/** The encoder of the paper's listing, slow and obvious: merge every occurrence of the best pair, again and again. */
function slowEncode(
  word: number[],
  ranks: ReadonlyMap<string, number>,
  tokens: readonly string[],
  ids: ReadonlyMap<string, number>,
) {
  for (;;) {
    let best = -1;
    let rank = Number.POSITIVE_INFINITY;
    for (let i = 0; i + 1 < word.length; i++) {
      const r = ranks.get(`${word[i]} ${word[i + 1]}`) ?? Number.POSITIVE_INFINITY;
      if (r < rank) [best, rank] = [i, r];
    }
    if (best < 0) return word;
    word.splice(best, 2, ids.get(tokens[word[best]] + tokens[word[best + 1]])!);
  }
}

describe("tokenizers", () => {
  let folder = "";
  before(async () => {
    folder = await mkdtemp(join(tmpdir(), "nabla-tokenizer-"));
  });
  after(() => rm(folder, { recursive: true }));

  const saved = async (tokenizer: Tokenizer): Promise<Tokenizer> => {
    await tokenizer.save(folder);
    return loadTokenizer(folder);
  };

  describe("characters", () => {
    test("have ids in code point order, and go out and come back", async () => {
      const tokenizer = CharTokenizer.fromText("hello 😀\n1");
      assert.deepEqual([...tokenizer.encode("\n 1eh😀")], [0, 1, 2, 3, 4, 7]);
      assert.equal(tokenizer.vocabSize, 8);
      const back = await saved(tokenizer);
      assert.ok(back instanceof CharTokenizer);
      assert.deepEqual(back.encode("hello😀1"), tokenizer.encode("hello😀1"));
    });

    test("round-trip any text that they were made from, also through their file", async () => {
      await fc.assert(
        fc.asyncProperty(fc.string({ unit: "binary", minLength: 1 }), async (text) => {
          const tokenizer = CharTokenizer.fromText(text);
          const ids = tokenizer.encode(text);
          assert.equal(ids.length, [...text].length);
          assert.equal(tokenizer.decode(ids), text);
          const back = CharTokenizer.fromJSON(JSON.parse(JSON.stringify(tokenizer)));
          assert.deepEqual(back.encode(text), ids);
        }),
        { numRuns: runs },
      );
    });

    test("an unknown character is an error that names it, or the unknown token where there is one", async () => {
      assert.throws(
        () => CharTokenizer.fromText("ab").encode("abé"),
        /character "é" \(U\+00E9\) at offset 2 is not among/,
      );
      assert.throws(() => CharTokenizer.fromText("ab").encode("a😀"), /U\+1F600/);
      const tokenizer = await saved(CharTokenizer.fromText("ab", { unk: "<unk>" }));
      assert.deepEqual([...tokenizer.encode("aé😀b")], [0, 2, 2, 1]);
      assert.equal(tokenizer.decode(tokenizer.encode("aéb")), "a<unk>b");
    });

    test("half a surrogate pair, an id outside the vocabulary and doubled tokens are errors", () => {
      assert.throws(() => CharTokenizer.fromText("a\ud800"), TokenizerError);
      assert.throws(
        () => CharTokenizer.fromText("ab").decode([0, 2]),
        /id 2 at position 1 is not in the vocabulary \(0 … 1\)/,
      );
      assert.throws(() => new CharTokenizer(["a", "a"]), TokenizerError);
      assert.throws(() => new CharTokenizer(["ab"]), TokenizerError);
    });
  });

  describe("byte-level BPE", () => {
    const hf = ByteLevelBpe.fromJSON(parity.tokenizer);

    test("a tokenizer.json of Hugging Face encodes and decodes as it does there", () => {
      for (const { text, ids, decoded } of parity.cases) {
        assert.deepEqual([...hf.encode(text)], ids, JSON.stringify(text));
        assert.equal(hf.decode(ids), decoded, JSON.stringify(text));
      }
      for (const { ids, decoded } of parity.cut) assert.equal(hf.decode(ids), decoded, "characters cut in two");
    });

    test("training gives Hugging Face's vocabulary and merges", () => {
      const ours = ByteLevelBpe.train(parity.trainingText, {
        vocabSize: parity.vocabSize,
        specialTokens: ["<|endoftext|>"],
      }).toJSON();
      assert.deepEqual({ ...ours.model.vocab }, parity.tokenizer.model.vocab);
      assert.deepEqual(
        ours.model.merges,
        parity.tokenizer.model.merges.map((m: string | string[]) => (typeof m === "string" ? m : m.join(" "))),
      );
    });

    test("the fast encoder equals the slow one, also on long words", () => {
      const { model } = hf.toJSON();
      const ids = new Map(Object.entries(model.vocab));
      const tokens: string[] = [];
      for (const [token, id] of ids) tokens[id] = token;
      const ranks = new Map(
        model.merges.map((m, rank) => {
          const [a, b] = (m as string).split(" ");
          return [`${ids.get(a)} ${ids.get(b)}`, rank] as const;
        }),
      );
      fc.assert(
        fc.property(fc.string({ unit: fc.constantFrom(..."abnxthequicks"), maxLength: 60 }), (word) => {
          const slow = slowEncode(
            [...word].map((c) => ids.get(c)!),
            ranks,
            tokens,
            ids,
          );
          assert.deepEqual([...hf.encode(word)], slow);
        }),
        { numRuns: runs },
      );
    });

    test("any text round-trips, also through the file", async () => {
      const tokenizer = await saved(
        ByteLevelBpe.train("the cat sat on the mat, the cat ate. ".repeat(4), { vocabSize: 300 }),
      );
      assert.equal(tokenizer.kind, "byte-level-bpe");
      fc.assert(
        fc.property(fc.string({ unit: "binary" }), (text) => {
          assert.equal(tokenizer.decode(tokenizer.encode(text)), text);
        }),
        { numRuns: runs },
      );
    });

    test("training is deterministic and stops when nothing is left to merge", () => {
      const options = { vocabSize: 5000 };
      const text = "one two three two three three\n".repeat(3);
      const a = ByteLevelBpe.train(text, options);
      assert.deepEqual(JSON.stringify(a), JSON.stringify(ByteLevelBpe.train([text], options)));
      assert.ok(a.vocabSize < 300);
      assert.equal(a.encode(" three").length, 1);
      assert.equal(a.tokenId(" three"), a.encode(" three")[0]);
    });

    test("what travels between threads is put together to the same tokenizer", () => {
      const again = ByteLevelBpe.fromPieces(structuredClone(hf.pieces()));
      assert.equal(JSON.stringify(again), JSON.stringify(hf));
      for (const { text, ids } of parity.cases) assert.deepEqual([...again.encode(text)], ids);
    });

    test("a merge that is not two tokens is refused", () => {
      const { model, ...rest } = hf.toJSON();
      for (const merge of ["ab", "a b c", "a\u0000 b", ["a"], ["a", "b", "c"]])
        assert.throws(
          () => ByteLevelBpe.fromJSON({ ...rest, model: { ...model, merges: [merge as string] } }),
          /merge 0, .* is not a pair of tokens of the vocabulary/,
        );
    });

    test("special tokens are one id and never merged into", () => {
      const id = hf.tokenId("<|endoftext|>")!;
      assert.deepEqual([...hf.encode("<|endoftext|>a<|endoftext|>")], [id, ...hf.encode("a"), id]);
    });

    test("a word of a million letters is encoded in a second or so", () => {
      const start = performance.now();
      assert.equal(hf.decode(hf.encode("a".repeat(1_000_000))).length, 1_000_000);
      assert.ok(performance.now() - start < 10_000);
    });

    test("2.5 MB of text: 4,096 tokens are learnt in ≤ 10 s and encoded in ≤ 3 s", async () => {
      const { text } = await readTextCorpus([documentation]);
      let start = performance.now();
      const tokenizer = ByteLevelBpe.train(text, { vocabSize: 4096 });
      const training = performance.now() - start;
      start = performance.now();
      const ids = tokenizer.encode(text);
      const encoding = performance.now() - start;
      assert.equal(tokenizer.decode(ids), text);
      assert.equal(tokenizer.vocabSize, 4096);
      assert.ok(training <= 10_000 && encoding <= 3_000, `training ${training} ms, encoding ${encoding} ms`);
    });
  });

  test("what is damaged or of another kind is a clear error", async () => {
    const file = join(folder, "bad.json");
    const attempt = async (content: unknown, message: RegExp) => {
      await writeFile(file, typeof content === "string" ? content : JSON.stringify(content));
      await assert.rejects(
        loadTokenizer(file),
        (e: Error) => e instanceof TokenizerError && message.test(e.message) && e.message.includes("bad.json"),
      );
    };
    const model = parity.tokenizer.model;
    await attempt("{", /not valid JSON/);
    await attempt({}, /it has no "model"/);
    await attempt(
      { model: { type: "Unigram" }, pre_tokenizer: { type: "Metaspace" } },
      /bad\.json: model\.vocab must be a list, got nothing/,
    );
    await attempt(
      { ...parity.tokenizer, normalizer: { type: "Sequence", normalizers: [{ type: "NFC" }, { type: "NFX" }] } },
      /bad\.json: normalizer\.normalizers\[1\]\.type must be one of Sequence, .*NFC.*, got "NFX"/,
    );
    await attempt(
      { ...parity.tokenizer, model: { ...model, merges: [...model.merges, "q zz"] } },
      /merge \d+, "q zz", is not a pair/,
    );
    await attempt(
      { ...parity.tokenizer, model: { ...model, vocab: { ...model.vocab, a: 7 } } },
      /ids must be 0 … \d+, each once/,
    );
    await assert.rejects(loadTokenizer(join(folder, "none")), /can't read .*none/);
    assert.throws(() => ByteLevelBpe.train("x", { vocabSize: 100 }), /vocabSize must be a whole number from 256/);
  });

  const python = process.env["NABLA_TEST_PYTHON"] ?? "python3";
  const hasLibrary = spawnSync(python, ["-c", "import tokenizers"]).status === 0;
  test("Hugging Face's library loads our files and encodes the same", {
    skip:
      (!hasLibrary && "no Python with tokenizers here (NABLA_TEST_PYTHON)") ||
      (!existsSync(documentation) && "no text"),
  }, async () => {
    const { text } = await readTextCorpus([join(documentation, "fs.d.ts")]);
    await writeFile(join(folder, "text.txt"), text);
    const script = `
import array, sys
from tokenizers import Tokenizer
t = Tokenizer.from_file("tokenizer.json")
text = open("text.txt", newline="", encoding="utf-8").read()
ids = t.encode(text).ids
assert t.decode(ids, skip_special_tokens=False) == text
sys.stdout.buffer.write(array.array("i", ids).tobytes())`;
    for (const tokenizer of [
      CharTokenizer.fromText(text),
      ByteLevelBpe.train(text, { vocabSize: 1024, specialTokens: ["<|endoftext|>"] }),
    ]) {
      await tokenizer.save(folder);
      const { stdout, status, stderr } = spawnSync(python, ["-c", script], { cwd: folder, maxBuffer: 1 << 28 });
      assert.equal(status, 0, String(stderr));
      assert.ok(Buffer.from(tokenizer.encode(text).buffer).equals(stdout), tokenizer.kind);
    }
  });
});
