/** Text that is generated: what is held back, what ends it, what is let go, what is refused; and which calls are red in an editor. */
import assert from "node:assert/strict";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { cp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import fc from "fast-check";
import { openTokenizer } from "../../src/cli/model-tokenizer.ts";
import { ByteLevelBpe, CharTokenizer, ChatTemplate, tokenizerFromJSON } from "../../src/data/index.ts";
import { setDevice } from "../../src/execution/index.ts";
import { finetune, type PlainExample } from "../../src/finetune/index.ts";
import type { GgufFile } from "../../src/formats/index.ts";
import { generate, generateBatch, type TextModel } from "../../src/generate/index.ts";
import { StopStrings } from "../../src/generate/stop-strings.ts";
import { Pieces } from "../../src/generate/text.ts";
import { readGgufText } from "../../src/models/gguf-tokenizer.ts";
import { type CausalLM, fromPretrained, GPT2 } from "../../src/models/index.ts";
import { oneHot } from "../../src/nn/functional.ts";
import { Module } from "../../src/nn/index.ts";
import { manualSeed, type Tensor, tensor } from "../../src/tensor/index.ts";
import { nativeDevice } from "../support/cpu.ts";

setDevice(nativeDevice());
const root = fileURLToPath(new URL("../..", import.meta.url));
const checkpoint = join(root, "tests/parity/fixtures/generation/tiny-chat");
const data = join(process.env["NABLA_TEST_DATA"] ?? join(root, "..", "shared", "data"), "stories260k");
const load = () => fromPretrained(checkpoint, { dtype: "float32" });
const room = mkdtempSync(join(tmpdir(), "nabla-text-"));
after(() => rmSync(room, { recursive: true, force: true }));

describe("stop strings", () => {
  /** Where the first stop string is whole when the text comes character by character. */
  function cut(text: string, stops: readonly string[]): string {
    for (let end = 1; end <= text.length; end++) {
      const found = stops.filter((stop) => text.slice(0, end).endsWith(stop)).map(({ length }) => length);
      if (found.length > 0) return text.slice(0, end - Math.max(...found));
    }
    return text;
  }

  test("however a text is cut into pieces, what comes out is what stands before the first stop string", () => {
    const letters = (from: number, to: number) =>
      fc.string({ minLength: from, maxLength: to, unit: fc.constantFrom("a", "b", "c", "é", "🦊") });
    fc.assert(
      fc.property(
        fc.array(letters(0, 4), { maxLength: 12 }),
        fc.array(letters(1, 4), { maxLength: 3 }),
        (pieces, stops) => {
          const filter = new StopStrings(stops);
          const whole = pieces.join("");
          let out = "";
          for (const piece of pieces) {
            out += filter.push(piece);
            assert.ok(cut(whole, stops).startsWith(out));
          }
          out += filter.end();
          assert.equal(out, cut(whole, stops));
          assert.equal(
            filter.hasStopped,
            stops.some((stop) => whole.includes(stop)),
          );
        },
      ),
      { numRuns: 2000 },
    );
  });

  test("what can't become a stop string any more is given at once", () => {
    const filter = new StopStrings(["</answer>"]);
    assert.equal(filter.push("1 < 2"), "1 < 2");
    assert.equal(filter.push(" </ans"), " ");
    assert.equal(filter.push("x"), "</ansx");
    assert.equal(filter.push("</answer> and more"), "");
    assert.equal(filter.end(), "");
    assert.throws(() => new StopStrings(""), /empty stop string/);
  });
});

describe("a text that is generated", () => {
  test("samples by its seed, and as the checkpoint says where that is asked for", async () => {
    const model = await load();
    const text = (options: object) => generate(model, "Once upon", { maxNewTokens: 24, ...options }).text();
    assert.equal(await text({ seed: 3 }), await text({ seed: 3 }));
    assert.notEqual(await text({ seed: 3, temperature: 2 }), await text({ seed: 4, temperature: 2 }));
    assert.deepEqual(model.generationConfig, { temperature: 0.6, topK: 20, topP: 0.9 });
    assert.equal(
      await text({ seed: 5, useGenerationConfig: true, temperature: 1.5 }),
      await text({ seed: 5, temperature: 1.5, topK: 20, topP: 0.9 }),
    );
    assert.deepEqual([...model.stopTokens], [2, 3]);
  });

  test("of generation_config.json transformers' default counts where it says nothing, and what is not followed is told", async () => {
    const folder = join(room, "sampling");
    await cp(checkpoint, folder, { recursive: true });
    const configOf = async (config: object) => {
      writeFileSync(join(folder, "generation_config.json"), JSON.stringify(config));
      return (await fromPretrained(folder, { dtype: "float32" })).generationConfig;
    };
    assert.deepEqual(await configOf({ do_sample: true, top_p: 0.9 }), { topK: 50, topP: 0.9 });
    assert.deepEqual(await configOf({ do_sample: true, top_k: 0, typical_p: 1, suppress_tokens: null }), {});
    assert.deepEqual(await configOf({ top_k: 7, num_beams: 1 }), { topK: 7, temperature: 0 });
    await assert.rejects(configOf({ no_repeat_ngram_size: 3 }), /"no_repeat_ngram_size" is 3, which generate does not/);
    await assert.rejects(configOf({ suppress_tokens: [5] }), /"suppress_tokens" is \[5\], which generate does not/);
  });

  test("ends by its signal, whose reason is thrown", async () => {
    const model = await load();
    const control = new AbortController();
    let text = "";
    await assert.rejects(async () => {
      for await (const piece of generate(model, "Once upon", {
        maxNewTokens: 60,
        temperature: 0,
        signal: control.signal,
      })) {
        text += piece;
        if (text.length > 20) control.abort(new Error("enough"));
      }
    }, /enough/);
    assert.ok(text.length > 20 && text.length < 60);
    const { signal } = control;
    await assert.rejects(generate(model, [1, 2], { maxNewTokens: 2, signal }), /enough/);
    await assert.rejects(generateBatch(model, ["a"], { maxNewTokens: 2, signal }), /enough/);
  });

  test("ends at a special token that is given as a stop string", async () => {
    const model = await load();
    const messages = [{ role: "user", content: "Who are you?" }];
    const options = { maxNewTokens: 40, temperature: 0, stopTokens: [] };
    const stream = generate(model, messages, { ...options, stopStrings: ["<|end|>"] });
    assert.equal(await stream.text(), "I am a little fox.");
    assert.equal(stream.ids.at(-1), model.tokenizer.tokenId("<|end|>"));
    assert.equal(stream.finishReason, "stop");
    assert.equal(
      (await generate(model, messages, { ...options, maxNewTokens: 12, skipSpecialTokens: false }).text()).slice(0, 25),
      "I am a little fox.<|end|>",
    );
  });

  test("leaves the model in the mode that it was in, also between the pieces", async () => {
    const model = (await load()).train();
    for await (const _ of generate(model, "Once", { maxNewTokens: 4 })) assert.ok(model.training);
    assert.ok(model.modules().every(({ training }) => training));
    const prompts = ["Once upon", "One day", "The fox"];
    const options = { maxNewTokens: 12, temperature: 0 };
    const together = await Promise.all(prompts.map((prompt) => generate(model, prompt, options).text()));
    assert.ok(model.modules().every(({ training }) => training));
    assert.deepEqual(together, await generateBatch(model, prompts, options));
  });

  test("lets go of its cache when its loop is left", async () => {
    setFlagsFromString("--expose-gc");
    const collect = runInNewContext("gc") as () => void;
    const model = (await load()) as CausalLM & TextModel;
    const caches: WeakRef<object>[] = [];
    const create = model.createCache.bind(model);
    Object.defineProperty(model, "createCache", {
      value: (...options: Parameters<typeof create>) => {
        const cache = create(...options);
        caches.push(new WeakRef(cache));
        return cache;
      },
    });
    const stream = generate(model, "Once upon", { maxNewTokens: 50 });
    for await (const _ of stream) break;
    for (let i = 0; i < 100 && caches.some((cache) => cache.deref()); i++) {
      await sleep(5);
      collect();
    }
    assert.equal(caches.length, 1);
    assert.equal(caches[0].deref(), undefined);
    assert.ok(stream.ids.length > 0);
  });

  test("computes nothing before it is read, and can be read once", async () => {
    const model = await load();
    const stream = generate(model, "Once", { maxNewTokens: 2, temperature: 0 });
    assert.equal(stream.ids.length, 0);
    await stream.text();
    await assert.rejects(stream.text(), /has been read/);
    await assert.rejects(generate(model, "Once", { maxNewTokens: -1 }).text(), /maxNewTokens must be a whole number/);
    await assert.rejects(generate(model, "Once", { maxNewTokens: 1, topP: 2 }).text(), /topP must be above 0/);
  });

  test("needs a tokenizer, and a conversation needs a template", async () => {
    manualSeed(1);
    const gpt = new GPT2({ vocabSize: 8, contextLength: 16, numLayers: 1, numHeads: 1, hiddenSize: 8 });
    const tokenizer = CharTokenizer.fromText("abcdefgh");
    assert.equal([...(await generate(gpt, "ab", { maxNewTokens: 5, tokenizer }).text())].length, 5);
    // @ts-expect-error: a model that was made here does not know its tokenizer
    await assert.rejects(generate(gpt, "ab", { maxNewTokens: 5 }).text(), /does not know its tokenizer/);
    const messages = [{ role: "user", content: "a" }];
    await assert.rejects(generate(gpt, messages, { maxNewTokens: 5, tokenizer }).text(), /no chat template/);
    const chatTemplate = await ChatTemplate.create("{% for m in messages %}{{ m.content }}{% endfor %}b");
    assert.equal((await generate(gpt, messages, { maxNewTokens: 3, tokenizer, chatTemplate }).text()).length, 3);
    const model = await load();
    await assert.rejects(
      generate(model, [{ role: "tool", content: "x" }], { maxNewTokens: 1 }).text(),
      /line 4, \{\{- raise_exception\('there is no role ' ~ message.*there is no role tool here/,
    );
  });

  // what an editor marks; nothing of it is run
  (async (model: TextModel & CausalLM, bare: CausalLM): Promise<void> => {
    if (model === undefined) return;
    // @ts-expect-error: how many tokens has to be said
    generate(model, "a", {});
    // @ts-expect-error: an option's name
    generate(model, "a", { maxNewTokens: 1, maxLength: 4 });
    // @ts-expect-error: stop strings need text
    generate(model, [1, 2], { maxNewTokens: 1, stopStrings: ["."] });
    // @ts-expect-error: messages have content
    generate(model, [{ role: "user" }], { maxNewTokens: 1 });
    // @ts-expect-error: a promise of tokens is no stream
    for await (const _ of generate(model, [1, 2], { maxNewTokens: 1 }));
    // @ts-expect-error: texts for a model that does not know its tokenizer
    generateBatch(bare, ["a"], { maxNewTokens: 1 });
    // @ts-expect-error: data of a shape that is none of the known
    finetune(model, { data: [{ question: "a" }], evaluation: "test.jsonl" });
    // @ts-expect-error: files for a model that does not know its tokenizer
    finetune(bare, { data: "train.jsonl", evaluation: "test.jsonl" });
  })(...([] as unknown as [TextModel & CausalLM, CausalLM]));
});

describe("what a checkpoint says of text", () => {
  test("what is missing or damaged is told when it is used, and a tokenizer can be given", async () => {
    const folder = join(room, "bare");
    await cp(checkpoint, folder, { recursive: true });
    rmSync(join(folder, "tokenizer.json"));
    writeFileSync(join(folder, "chat_template.jinja"), "{% if %}");
    const model = await fromPretrained(folder, { dtype: "float32" });
    assert.equal((await generate(model, [1, 2], { maxNewTokens: 3 })).length, 3);
    await assert.rejects(generate(model, "a", { maxNewTokens: 3 }).text(), /bare: there is no tokenizer\.json/);
    assert.throws(() => model.chatTemplate, /the chat template can't be read \(line 1/);
    const tokenizer = ByteLevelBpe.train("abc abc", { vocabSize: 257 });
    const given = await fromPretrained(folder, { dtype: "float32", tokenizer });
    assert.equal(given.tokenizer, tokenizer);
    const without = await fromPretrained(checkpoint, { dtype: "float32", tokenizer: null });
    assert.throws(() => without.tokenizer, /loaded with \{ tokenizer: null \}/);
    assert.ok(without.stopTokens.length > 0);
    writeFileSync(join(folder, "tokenizer.json"), "{");
    const damaged = await fromPretrained(folder, { dtype: "float32" });
    assert.throws(() => damaged.tokenizer, { name: "TokenizerError", message: /not valid JSON/ });
    writeFileSync(join(folder, "generation_config.json"), "[1]");
    const unsettled = await fromPretrained(folder, { dtype: "float32", tokenizer });
    assert.equal((await generate(unsettled, [1, 2], { maxNewTokens: 3 })).length, 3);
    await assert.rejects(
      generate(unsettled, "a", { maxNewTokens: 3 }).text(),
      /generation_config\.json: must be a JSON/,
    );
  });

  test("the tokenizer inside a GGUF file encodes as the tokenizer.json that it was made of", () => {
    const kinds = JSON.parse(readFileSync(join(root, "tests/parity/fixtures/tokenizers.json"), "utf8"));
    for (const [name, pre] of [
      ["llama3-like", "llama-bpe"],
      ["qwen2-like", "qwen2"],
    ]) {
      const { tokenizer: json, cases } = kinds[name];
      const tokens: string[] = [];
      for (const [token, id] of Object.entries<number>(json.model.vocab)) tokens[id] = token;
      const special = ["<s>", "</s>", "<pad>"];
      const value = (value: unknown) => ({ value });
      const metadata = new Map<string, unknown>([
        ["tokenizer.ggml.model", value("gpt2")],
        ["tokenizer.ggml.pre", value(pre)],
        ["tokenizer.ggml.tokens", value(tokens)],
        ["tokenizer.ggml.token_type", value(Int32Array.from(tokens, (token) => (special.includes(token) ? 3 : 1)))],
        ["tokenizer.ggml.merges", value(json.model.merges.map((pair: string[]) => pair.join(" ")))],
        ["tokenizer.ggml.bos_token_id", value(0)],
        ["tokenizer.ggml.eos_token_id", value(1)],
      ]);
      const { tokenizer, stopTokens } = readGgufText({ metadata, tensors: new Map() } as unknown as GgufFile, "x.gguf");
      assert.deepEqual(stopTokens, [1]);
      for (const { text, ids } of cases) {
        if (text.includes("<mask>")) continue; // takes spaces along, which GGUF does not say
        assert.deepEqual([...tokenizer.encode(text)], ids, JSON.stringify(text));
      }
      metadata.set("tokenizer.ggml.pre", value("unheard"));
      const unknown = { metadata, tensors: new Map() } as unknown as GgufFile;
      assert.throws(() => readGgufText(unknown, "x.gguf"), /x\.gguf: its tokenizer splits texts as "unheard"/);
    }
  });

  test("vocab.txt, or vocab.json with merges.txt, stand in for a tokenizer.json that is not there", async () => {
    const fixtures = join(root, "tests/parity/fixtures");
    const kinds = JSON.parse(readFileSync(join(fixtures, "tokenizers.json"), "utf8"));
    const gpt2 = JSON.parse(readFileSync(join(root, "tests/data/fixtures/bpe-parity.json"), "utf8"));
    const wordPieces = Object.entries<number>(kinds["bert-like"].tokenizer.model.vocab).sort(([, a], [, b]) => a - b);
    const { vocab, merges } = gpt2.tokenizer.model;
    const lines = merges.map((pair: string | string[]) => (typeof pair === "string" ? pair : pair.join(" ")));
    const rows = [
      [
        "bert",
        { "vocab.txt": wordPieces.map(([token]) => `${token}\n`).join("") },
        kinds["bert-like"].cases,
        "features",
      ],
      [
        "gpt2",
        { "vocab.json": JSON.stringify(vocab), "merges.txt": `#version: 0.2\n${lines.join("\n")}\n` },
        gpt2.cases,
        "generation",
      ],
    ] as const;
    for (const [name, files, cases, task] of rows) {
      const folder = join(room, name);
      await cp(join(fixtures, "pretrained", name), folder, { recursive: true });
      for (const [file, content] of Object.entries(files)) writeFileSync(join(folder, file), content);
      const { tokenizer } = await fromPretrained(folder, { task });
      const place = { kind: "folder", path: folder, name } as const;
      const ofCommands = await openTokenizer(place);
      for (const { text, ids } of cases)
        for (const each of [tokenizer, ofCommands.tokenizer])
          assert.deepEqual([...each.encode(text)], ids, JSON.stringify(text));
      writeFileSync(join(folder, Object.keys(files)[0]), "[PAD]\n");
      const damaged = await fromPretrained(folder, { task });
      assert.throws(() => damaged.tokenizer, /vocab\.(txt has no \[SEP\]|json is not valid JSON)/);
      await assert.rejects(openTokenizer(place), /vocab\.(txt has no \[SEP\]|json is not valid JSON)/);
    }
  });

  test("stories260K, from its GGUF alone, tells the text that llama2.c tells", {
    skip: !existsSync(data) && "no test data here (NABLA_TEST_DATA)",
  }, async () => {
    const model = await fromPretrained(join(data, "stories260K.gguf"));
    const expected = readFileSync(join(data, "expected_greedy_200.txt"), "utf8");
    const pieces: string[] = [];
    for await (const piece of generate(model, "", { maxNewTokens: 200, temperature: 0 })) pieces.push(piece);
    assert.equal(pieces.join(""), expected);
    assert.ok(pieces.length > 150);
    const { ids } = JSON.parse(readFileSync(join(data, "greedy_ids_200.json"), "utf8"));
    assert.deepEqual([...model.tokenizer.encode(expected)], [1, ...ids]);
  });
});

test("finetune takes texts, prompts and conversations of a model that knows its text", async () => {
  const model = await load();
  const examples: PlainExample[] = Array.from({ length: 8 }, (_, i) => [
    { text: `The owl sang ${i} songs.` },
    { prompt: `What is ${i}?`, completion: ` A number.` },
    {
      messages: [
        { role: "user", content: `Are you ${i}?` },
        { role: "assistant", content: "I am an owl." },
      ],
    },
  ]).flat();
  const result = await finetune(model, {
    data: examples.slice(3),
    evaluation: examples.slice(0, 3),
    epochs: 2,
    lr: 2e-3,
    samples: ["The owl"],
  });
  assert.ok(result.after.loss < result.before.loss - 1, `${result.before.loss} → ${result.after.loss}`);
  assert.equal(result.samples.length, 1);
  assert.notEqual(result.samples[0].before, result.samples[0].after);
  await assert.rejects(
    finetune(model, { data: [{ prompt: "a" } as PlainExample], evaluation: examples }),
    /data\[0\]: "completion" must be a text, got nothing/,
  );
});

test("a stream of ids is the text of all of them, of any tokenizer", () => {
  const kinds = JSON.parse(readFileSync(join(root, "tests/parity/fixtures/tokenizers.json"), "utf8"));
  const tokenizers = Object.values<{ tokenizer: object }>(kinds).map(({ tokenizer }) => tokenizerFromJSON(tokenizer));
  fc.assert(
    fc.property(fc.nat(tokenizers.length - 1), fc.array(fc.nat(320), { maxLength: 30 }), (which, ids) => {
      const tokenizer = tokenizers[which];
      const known = ids.filter((id) => id < tokenizer.vocabSize);
      const stream = tokenizer.decodeStream();
      const pieces = [...known.map((id) => stream.push(id)), stream.end()];
      assert.equal(pieces.join(""), tokenizer.decode(known));
    }),
    { numRuns: 1000 },
  );
});

test("what is generated goes on with its prompt, with the space that some tokenizers drop at a text's beginning", async () => {
  const kinds = JSON.parse(readFileSync(join(root, "tests/parity/fixtures/tokenizers.json"), "utf8"));
  const tokenizers = Object.values<{ tokenizer: object }>(kinds).map(({ tokenizer }) => tokenizerFromJSON(tokenizer));
  const skip = { skipSpecialTokens: true };
  let compared = 0;
  fc.assert(
    fc.property(
      fc.nat(tokenizers.length - 1),
      fc.array(fc.nat(320), { maxLength: 12 }),
      fc.array(fc.nat(320), { maxLength: 12 }),
      (which, ...lists) => {
        const tokenizer = tokenizers[which];
        const [before, fresh] = lists.map((ids) => ids.filter((id) => id < tokenizer.vocabSize));
        const [start, whole] = [tokenizer.decode(before, skip), tokenizer.decode([...before, ...fresh], skip)];
        if (!whole.startsWith(start)) return; // a character begins in the one and ends in the other
        const pieces = new Pieces(tokenizer, { maxNewTokens: 12 }, before);
        assert.equal([...fresh.map((id) => pieces.push(id)), pieces.end()].join(""), whole.slice(start.length));
        compared++;
      },
    ),
    { numRuns: 1000 },
  );
  assert.ok(compared > 800, `${compared} of 1000`);

  const tokenizer = tokenizerFromJSON(kinds["llama2-like"].tokenizer);
  const bare = { addSpecialTokens: false };
  const [prompt, whole] = [tokenizer.encode("the fox"), tokenizer.encode("the fox and the dog")];
  assert.deepEqual(whole.slice(0, prompt.length), prompt);
  /** A model that says one text, whatever it read. */
  class Parrot extends Module {
    readonly contextLength = 32;
    forward(ids: Tensor): Tensor {
      return ids;
    }
    logitsAt(_: Tensor, position: number): Tensor {
      return oneHot(tensor([whole[position + 1]], { dtype: "int32" }), tokenizer.vocabSize)
        .to("float32")
        .mul(100);
    }
  }
  const settings = { maxNewTokens: whole.length - prompt.length, temperature: 0, tokenizer };
  assert.equal(await generate(new Parrot(), "the fox", settings).text(), " and the dog");
  assert.equal(tokenizer.decode(tokenizer.encode(" and the dog", bare).slice(1), skip), "and the dog");
});
