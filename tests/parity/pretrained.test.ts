/**
 * Pretrained checkpoints against transformers: tiny ones of every architecture with random weights, in fixtures/pretrained,
 * written by generators/pretrained.py. Logits agree, and 64 greedy tokens are equal, decoded through the cache.
 */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { setDevice } from "../../src/execution/index.ts";
import { generate } from "../../src/generate/index.ts";
import { Bert, fromPretrained, modelFrom, readCheckpoint, readConfig } from "../../src/models/index.ts";
import { noGrad, type Tensor, tensor } from "../../src/tensor/index.ts";
import { backendsUnderTest, isBrief } from "../support/backends.ts";
import { assertClose, type Stored, valuesOf } from "../support/fixtures.ts";

const root = join(dirname(fileURLToPath(import.meta.url)), "fixtures", "pretrained");
const tolerance = { rtol: 1e-4, atol: 1e-5 };

interface Run {
  readonly ids: Stored;
  readonly logits: Stored;
}
interface Decoded extends Run {
  readonly prompt: readonly number[];
  readonly greedy: readonly number[];
  readonly ropes?: readonly { readonly name: string; readonly config: object; readonly runs: readonly Run[] }[];
}

const expectedOf = <T>(name: string): T => JSON.parse(readFileSync(join(root, name, "expected.json"), "utf8")) as T;
const integers = (stored: Stored): Tensor =>
  tensor(Int32Array.from(valuesOf(stored)), { shape: stored.shape, dtype: "int32" });

interface Encoded {
  readonly ids: Stored;
  readonly mask: Stored;
  readonly types: Stored | null;
  readonly logits: Stored;
  readonly hidden: Stored;
  readonly pooled: Stored | null;
}

const floats = (stored: Stored): Tensor => tensor(Float32Array.from(valuesOf(stored)), { shape: stored.shape });
const dtype = "float32";
const decoders = [
  "gpt2",
  "gpt2-relu",
  "llama",
  "llama3",
  "mistral",
  "qwen2",
  "qwen3",
  "gemma2",
  "gemma3",
  "gemma3-seeing",
  "phi3",
  "smollm3",
];

/** What an ordinary run takes where compiling is slow: each kind of norm, mask and projection once. */
const briefly = new Set(["gpt2", "llama3", "gemma2", "bert", "vit"]);

for (const backend of await backendsUnderTest()) {
  const brief = isBrief(backend);
  // reference computes each node in float64 and rounds; 64 tokens of ten models are many nodes for it
  const slow = backend.name === "reference" || brief;
  describe(`pretrained decoders on ${backend.name}`, () => {
    for (const name of decoders.filter((each) => !brief || briefly.has(each)))
      test(`${name} has transformers' logits and greedy tokens`, async () => {
        setDevice(backend.name);
        const expected = expectedOf<Decoded>(name);
        const model = await fromPretrained(join(root, name), { dtype: "float32" });
        const logits = await noGrad(() => model.forward(integers(expected.ids))).data();
        assertClose("logits", logits, valuesOf(expected.logits), tolerance);
        const count = slow ? 8 : expected.greedy.length;
        const tokens = await generate(model, expected.prompt, { maxNewTokens: count, temperature: 0 });
        assert.deepEqual(tokens, expected.greedy.slice(0, count));
      });

    for (const name of ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"])
      test(`${name} from GGUF has the logits of what is in it`, async (t) => {
        if (brief) return t.skip("more under NABLA_LONG=1");
        setDevice(backend.name);
        const { ids, logits } = JSON.parse(readFileSync(join(root, "gguf", `${name}.json`), "utf8")) as Run;
        const model = await fromPretrained(join(root, "gguf", `${name}.gguf`), { dtype });
        const got = await noGrad(() => model.forward(integers(ids))).data();
        assertClose("logits", got, valuesOf(logits), tolerance);
      });

    test("llama's kinds of rope scaling have transformers' logits", async (t) => {
      if (brief) return t.skip("more under NABLA_LONG=1");
      setDevice(backend.name);
      const config = (await readConfig(join(root, "llama"))).raw;
      for (const { name, config: fields, runs } of expectedOf<Decoded>("llama").ropes ?? [])
        for (const { ids, logits } of runs) {
          const tensors = await readCheckpoint(join(root, "llama"));
          const changed = { ...config, ...fields, max_position_embeddings: 32 };
          const model = modelFrom(changed, tensors);
          const got = await noGrad(() => model.forward(integers(ids))).data();
          assertClose(`${name}, ${ids.shape[1]} tokens`, got, valuesOf(logits), tolerance);
        }
    });
  });
  describe(`pretrained encoders on ${backend.name}`, () => {
    for (const name of ["bert", "roberta", "distilbert"].filter((each) => !brief || briefly.has(each)))
      test(`${name} has transformers' states, pooled vector and logits, with masked tokens`, async () => {
        setDevice(backend.name);
        const expected = expectedOf<Encoded>(name);
        const ids = integers(expected.ids);
        const attentionMask = integers(expected.mask);
        const input = { attentionMask, ...(expected.types ? { tokenTypeIds: integers(expected.types) } : {}) };
        const classifier = await fromPretrained(join(root, name), { task: "classification", dtype });
        const logits = await noGrad(() => classifier.forward(ids, input)).data();
        assertClose("logits", logits, valuesOf(expected.logits), tolerance);
        const encoder = await fromPretrained(join(root, name), { task: "features", dtype });
        const hidden = noGrad(() => encoder.forward(ids, input));
        assertClose("states", await hidden.data(), valuesOf(expected.hidden), tolerance);
        if (!expected.pooled) return;
        assert.ok(encoder instanceof Bert && encoder.pooler);
        const { pooler } = encoder;
        const pooled = await noGrad(() => pooler.forward(hidden)).data();
        assertClose("pooled", pooled, valuesOf(expected.pooled), tolerance);
      });

    for (const name of ["vit", "resnet", "resnet-basic"].filter((each) => !brief || briefly.has(each)))
      test(`${name} has transformers' logits`, async () => {
        setDevice(backend.name);
        const expected = expectedOf<{ readonly pixels: Stored; readonly logits: Stored }>(name);
        const model = await fromPretrained(join(root, name), { task: "image-classification", dtype });
        const logits = await noGrad(() => model.forward(floats(expected.pixels))).data();
        assertClose("logits", logits, valuesOf(expected.logits), tolerance);
      });
  });
}
