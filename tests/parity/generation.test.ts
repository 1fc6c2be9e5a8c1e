/** Text from a tiny model that has learnt a few sentences, against transformers: texts, stop strings, penalties, conversations, sampling. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import type { Rng } from "../../src/core/rng.ts";
import type { Message } from "../../src/data/index.ts";
import { setDevice } from "../../src/execution/index.ts";
import { generate, generateBatch, type SamplingOptions, sampleLogits } from "../../src/generate/index.ts";
import { fromPretrained } from "../../src/models/index.ts";
import { backendsUnderTest, isBrief } from "../support/backends.ts";

const root = join(fileURLToPath(new URL(".", import.meta.url)), "fixtures", "generation");

interface Made {
  readonly fresh: readonly number[];
  readonly text: string;
}
interface Expected {
  readonly texts: readonly (Made & { readonly prompt: string; readonly ids: readonly number[] })[];
  readonly stops: readonly (Made & { readonly prompt: string; readonly stop: readonly string[] })[];
  readonly penalties: readonly {
    readonly prompt: string;
    readonly penalty: number;
    readonly fresh: readonly number[];
  }[];
  readonly talks: readonly (Made & { readonly messages: readonly Message[]; readonly ids: readonly number[] })[];
  readonly sampling: {
    readonly logits: readonly number[];
    readonly cases: readonly {
      readonly options: Readonly<Record<string, number>>;
      readonly probabilities: readonly number[];
    }[];
  };
}
const expected = JSON.parse(readFileSync(join(root, "expected.json"), "utf8")) as Expected;
const load = () => fromPretrained(join(root, "tiny-chat"), { dtype: "float32" });
const greedy = { temperature: 0 };

for (const backend of await backendsUnderTest())
  describe(`text on ${backend.name}`, () => {
    test("greedy texts are transformers', in pieces that never end within a character", async () => {
      setDevice(backend.name);
      const model = await load();
      for (const { prompt, ids, fresh, text } of expected.texts.slice(0, isBrief(backend) ? 1 : undefined)) {
        assert.deepEqual([...model.tokenizer.encode(prompt)], ids);
        const stream = generate(model, prompt, { maxNewTokens: 64, ...greedy });
        const pieces: string[] = [];
        for await (const piece of stream) pieces.push(piece);
        assert.equal(pieces.join(""), text);
        assert.deepEqual(stream.ids, fresh);
        assert.equal(stream.finishReason, fresh.length === 64 ? "length" : "stop");
        assert.ok(pieces.length > fresh.length / 2, "pieces come as they are made");
        assert.ok(pieces.every((piece) => piece !== "" && !/\ufffd|^\p{Surrogate}|\p{Surrogate}$/u.test(piece)));
      }
    });

    if (isBrief(backend)) return; // the rest is the same programs; more under NABLA_LONG=1

    test("stop strings end a text where transformers ends it, and none is shown", async () => {
      setDevice(backend.name);
      const model = await load();
      for (const { prompt, stop, fresh, text } of expected.stops) {
        const stream = generate(model, prompt, { maxNewTokens: 40, stopStrings: stop, ...greedy });
        const pieces: string[] = [];
        for await (const piece of stream) {
          pieces.push(piece);
          assert.ok(text.startsWith(pieces.join("")));
        }
        assert.equal(pieces.join(""), text);
        assert.deepEqual(stream.ids, fresh);
      }
    });

    test("a penalty on repetition gives transformers' tokens", async () => {
      setDevice(backend.name);
      const model = await load();
      for (const { prompt, penalty, fresh } of expected.penalties) {
        const stream = generate(model, prompt, { maxNewTokens: 64, repetitionPenalty: penalty, ...greedy });
        await stream.text();
        assert.deepEqual(stream.ids, fresh);
      }
    });

    test("conversations go through the chat template; the answer ends with its turn", async () => {
      setDevice(backend.name);
      const model = await load();
      for (const { messages, fresh, text } of expected.talks) {
        const stream = generate(model, messages, { maxNewTokens: 64, ...greedy });
        assert.equal(await stream.text(), text);
        assert.deepEqual(stream.ids, fresh);
        assert.equal(stream.finishReason, "stop");
      }
    });

    test("texts generated together are those generated alone", async () => {
      setDevice(backend.name);
      const model = await load();
      const options = { maxNewTokens: 24, stopStrings: ["owl", " deep"], ...greedy };
      const prompts = ["Once upon", expected.talks[1].messages, "The fox liked to"];
      const alone: string[] = [];
      for (const prompt of prompts)
        alone.push(
          await (typeof prompt === "string"
            ? generate(model, prompt, options)
            : generate(model, prompt, options)
          ).text(),
        );
      assert.deepEqual(await generateBatch(model, prompts, options), alone);
    });
  });

test("temperature, topK, topP and minP draw each token as often as transformers does", () => {
  const names = { temperature: "temperature", top_k: "topK", top_p: "topP", min_p: "minP" } as const;
  const { logits, cases } = expected.sampling;
  for (const { options, probabilities } of cases) {
    const own = Object.fromEntries(
      Object.entries(options).map(([name, value]) => [names[name as keyof typeof names], value]),
    ) as SamplingOptions;
    const draw = (u: number): number => sampleLogits(logits, { uniform: () => u } as Rng, own);
    const order = probabilities.map((_, i) => i).filter((i) => probabilities[i] > 0);
    // the classes share the numbers from 0 to 1 by their rank; in their own order where nothing is left out
    const { topK, topP, minP } = own;
    if (topK !== undefined || topP !== undefined || minP !== undefined) order.sort((a, b) => logits[b] - logits[a]);
    let before = 0;
    for (const token of order) {
      const after = before + probabilities[token];
      if (probabilities[token] > 1e-4) {
        assert.equal(draw(before + 2e-5), token, JSON.stringify(options));
        assert.equal(draw(after - 2e-5), token, JSON.stringify(options));
      }
      before = after;
    }
    assert.equal(draw(1 - 1e-12), order.at(-1), "nothing else can be drawn");
  }
});
