/**
 * Decoding steps that are repeated instead of recorded anew: whatever is changed between two of them, the logits are those of a model that records each
 * one, bit for bit.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { TypedArray } from "../../src/core/dtype.ts";
import { setDevice } from "../../src/execution/index.ts";
import { applyLora } from "../../src/finetune/index.ts";
import { constant } from "../../src/graph/ops.ts";
import { CausalLM, type DecoderConfig, GPT2, type GPT2Config, type KeyValueCache } from "../../src/models/index.ts";
import { Linear, Module, type Parameter } from "../../src/nn/index.ts";
import { autocast, manualSeed, noGrad, realize, type Tensor, tensor, zeros } from "../../src/tensor/index.ts";
import { backendsUnderTest, isBrief } from "../support/backends.ts";
import { tinyDecoder, tinyRotary } from "../support/tinyDecoder.ts";

/** Classes of a user's own, of which it isn't known what they look at: they record every step. */
class RecordedLM extends CausalLM {}
class RecordedGPT2 extends GPT2 {}

type Model = CausalLM | GPT2;

const decoder = (repeats: boolean, change: Partial<DecoderConfig> = {}, seed = 5): CausalLM => {
  manualSeed(seed);
  const config = { ...tinyDecoder(), ...change };
  return (repeats ? new CausalLM(config) : new RecordedLM(config)).eval() as CausalLM;
};

const gpt2 = (repeats: boolean): GPT2 => {
  manualSeed(6);
  const sizes = { vocabSize: 23, contextLength: 64, numLayers: 2, numHeads: 2, hiddenSize: 16, initializerRange: 0.5 };
  const config: GPT2Config = { ...sizes, dropout: 0.2 };
  return (repeats ? new GPT2(config) : new RecordedGPT2(config)).eval() as GPT2;
};

const idsOf = (tokens: readonly number[]): Tensor =>
  tensor(Int32Array.from(tokens), { shape: [tokens.length, 1], dtype: "int32" });

/** How many nodes `fn` makes. */
function nodesOf(fn: () => unknown): number {
  const before = constant(0, "float32").id;
  fn();
  return constant(0, "float32").id - before - 1;
}

/** A conversation with one model: what each step gave. */
class Steps {
  readonly logits: number[][] = [];
  /** The nodes made by each step. */
  readonly nodes: number[] = [];
  readonly cache: KeyValueCache;
  readonly model: Model;
  readonly rows: number;
  constructor(model: Model, options: { readonly rows?: number; readonly padding?: readonly number[] } = {}) {
    this.model = model;
    this.rows = options.rows ?? 1;
    const { padding } = options;
    this.cache = model.createCache({ batchSize: this.rows, capacity: 40, ...(padding && { padding }) });
  }
  get #tokens(): number[] {
    return Array.from({ length: this.rows }, (_, row) => (3 + 5 * this.logits.length + 2 * row) % 23);
  }
  async step(count = 1): Promise<void> {
    for (let i = 0; i < count; i++) {
      let logits: Tensor | undefined;
      const ids = idsOf(this.#tokens);
      this.nodes.push(
        nodesOf(() => {
          logits = noGrad(() => this.model.decode(ids, this.cache));
        }),
      );
      this.logits.push(Array.from(await (logits as Tensor).data()));
    }
  }
  /** Whether each of the last steps was recorded (R) or repeated (r). */
  get kinds(): string {
    return this.nodes.map((nodes) => (nodes > 60 ? "R" : "r")).join("");
  }
}

type Scenario = (steps: Steps) => Promise<void>;

/** Goes through a scenario with a model that may repeat and with one that records; tells which steps were repeated. */
async function same(make: (repeats: boolean) => Model, scenario: Scenario, options = {}): Promise<string> {
  const [own, recorded] = [new Steps(make(true), options), new Steps(make(false), options)];
  for (const steps of [own, recorded]) {
    await realize(...steps.model.parameters());
    manualSeed(9);
    await scenario(steps);
  }
  assert.ok(!recorded.kinds.includes("r"), "the other side records every step");
  own.logits.forEach((logits, i) => {
    assert.deepEqual(logits, recorded.logits[i], `step ${i} of ${own.kinds}`);
  });
  assert.ok(own.logits.flat().every(Number.isFinite));
  return own.kinds;
}

const layersOf = (model: Model): { readonly attention: Module; readonly norm: Module & { eps: number } } => {
  const [layer] = model instanceof CausalLM ? model.model.layers : model.transformer.h;
  const parts = Object.fromEntries((layer as Module).namedChildren());
  return { attention: parts["self_attn"] ?? parts["attn"], norm: (parts["input_layernorm"] ?? parts["ln_1"]) as never };
};

const models = { CausalLM: decoder, GPT2: gpt2 } as const;

for (const backend of (await backendsUnderTest()).filter((b) => !isBrief(b)))
  describe(`repeated steps on ${backend.name}`, () => {
    for (const [name, make] of Object.entries(models)) {
      test(`${name}: the second step and those behind it record nothing, at any length, in batches too`, async () => {
        setDevice(backend.name);
        const go: Scenario = async (steps) => {
          await steps.step(4);
          steps.cache.truncate(2);
          await steps.step(4);
        };
        assert.equal(await same(make, go), "Rrrrrrrr");
        assert.equal(await same(make, go, { rows: 3 }), "Rrrrrrrr");
        assert.equal(await same(make, go, { rows: 2, padding: [0, 1] }), "Rrrrrrrr");
      });

      test(`${name}: weights that change between two tokens count`, async () => {
        setDevice(backend.name);
        const other = make(true, {}).stateDict();
        const kinds = await same(make, async (steps) => {
          await steps.step(3);
          const { weight } = layersOf(steps.model).norm as unknown as { weight: Parameter };
          noGrad(() => weight.mul_(1.5)); // in place, and not computed yet
          await steps.step(3);
          await noGrad(() => weight.add_(0.25)).data();
          await steps.step(2);
          const halved = Object.entries(other).map(([key, x]) => [key, noGrad(() => x.mul(0.5))] as const);
          steps.model.loadStateDict(Object.fromEntries(halved)); // in other memory
          await steps.step(4);
        });
        assert.equal(kinds.slice(0, 8), "RrrRrrrr");
        assert.equal(kinds.slice(-2), "rr");
      });

      test(`${name}: adapters, replaced modules, modes and settings count`, async () => {
        setDevice(backend.name);
        const kinds = await same(make, async (steps) => {
          await steps.step(2);
          manualSeed(12);
          const adapted = applyLora(steps.model as Model, { r: 2, alpha: 8 });
          for (const [key, x] of Object.entries(adapted.adapterStateDict()))
            if (key.includes("lora_B")) noGrad(() => x.add_(0.3));
          await steps.step(3);
          adapted.disableAdapter();
          await steps.step(3);
          adapted.enableAdapter();
          await steps.step(3);
          adapted.merge();
          await steps.step(3);
          adapted.unmerge();
          await steps.step(3);
          adapted.unload();
          await steps.step(3);
          layersOf(steps.model).norm.eps = 0.1;
          await steps.step(3);
        });
        assert.match(kinds, /^Rr(R{1,2}r{1,2}){7}$/);
      });

      test(`${name}: mixed precision counts`, async () => {
        setDevice(backend.name);
        const kinds = await same(make, async (steps) => {
          await steps.step(2);
          await autocast({}, () => steps.step(2));
          await steps.step(2);
        });
        assert.equal(kinds, "RrRRrr");
      });

      test(`${name}: dropout is drawn anew for each token`, async () => {
        setDevice(backend.name);
        const dropping = (repeats: boolean): Model =>
          (make === decoder ? decoder(repeats, { attentionDropout: 0.3 }) : gpt2(repeats)).train();
        const kinds = await same(dropping, async (steps) => {
          await steps.step(4);
          steps.model.eval();
          await steps.step(3);
        });
        assert.equal(kinds, "RRRRRrr");
      });

      test(`${name}: a step with gradients, and one over tokens that are computed, is recorded`, async () => {
        setDevice(backend.name);
        const kinds = await same(make, async (steps) => {
          const { model, cache } = steps;
          await steps.step(2);
          await model.decode(idsOf([4]), cache).data();
          await steps.step(2);
          const one = idsOf([1]).add(6);
          steps.logits.push(Array.from(await noGrad(() => model.decode(one, cache)).data()));
          await steps.step(2);
        });
        assert.equal(kinds, "Rrrrrr");
      });

      test(`${name}: a token that does not exist fails as ever, and the text goes on from before it`, async () => {
        setDevice(backend.name);
        const kinds = await same(make, async (steps) => {
          const { model, cache } = steps;
          for (const before of [0, 3]) {
            await steps.step(before);
            const { length } = cache;
            await assert.rejects(
              (async () => await noGrad(() => model.decode(idsOf([99]), cache)).data())(),
              /99|out of range/,
            );
            cache.truncate(length);
          }
          await steps.step(3);
        });
        assert.equal(kinds.slice(-2), "rr");
      });

      test(`${name}: rows of a cache that change places count`, async () => {
        setDevice(backend.name);
        const reorder: Scenario = async (steps) => {
          await steps.step(3);
          for (const { keys, values } of steps.cache.layers)
            for (const memory of [keys, values]) noGrad(() => memory.copy_(memory.flip(0)));
          await steps.step(3);
        };
        const kinds = await same(make, reorder, { rows: 2 });
        assert.equal(kinds, "RrrRrr");
      });

      // a GPU answers later, so that a step may be recorded while the one before is on its way: its logits are read before the next, as ever
      const answersAtOnce = !backend.name.endsWith("webgpu");
      test(`${name}: logits of repeated steps can be read ${answersAtOnce ? "later, in any order" : "before the next"}`, async () => {
        setDevice(backend.name);
        const steps = new Steps(make(true));
        await steps.step(3);
        const tokens = [7, 8, 9];
        const decode = (token: number): Tensor => noGrad(() => steps.model.decode(idsOf([token]), steps.cache));
        const got: TypedArray[] = [];
        if (answersAtOnce) {
          const late = tokens.map(decode);
          got.push(await late[2].data(), await late[0].data(), await late[1].data());
        } else {
          for (const token of tokens) got.push(await decode(token).data());
          got.unshift(got.pop() as TypedArray);
        }
        steps.cache.truncate(3);
        const expected: TypedArray[] = [];
        for (const token of tokens) expected.push(await decode(token).data());
        assert.deepEqual(got, [expected[2], expected[0], expected[1]]);
      });
    }

    test("two models in turn, over caches of their own and over one", async () => {
      setDevice(backend.name);
      const other = decoder(true, {}, 77);
      const kinds = await same(decoder, async (steps) => {
        const cache = other.createCache({ capacity: 40 });
        const aside = async (to: KeyValueCache): Promise<void> => {
          const logits = noGrad(() => other.decode(idsOf([2]), to));
          steps.logits.push(Array.from(await logits.data()));
        };
        for (let i = 0; i < 4; i++) {
          await steps.step();
          await aside(cache);
        }
        for (let i = 0; i < 2; i++) {
          await steps.step();
          await aside(steps.cache);
        }
      });
      assert.equal(kinds, "RrrrrR");
    });

    test("angles that change with the length count", async () => {
      setDevice(backend.name);
      const scaling = {
        ...tinyRotary.scaling,
        frequencies: (width: number, theta: number, length: number) => ({
          values: tinyRotary.scaling.frequencies(width, theta).values.map((f) => (length > 4 ? f / 2 : f)),
          attentionFactor: length > 4 ? 1.5 : 1,
        }),
        key: (length: number) => (length > 4 ? "long" : ""),
      };
      const layer = { window: null, rotary: { ...tinyRotary, scaling } };
      const stretched = (repeats: boolean): Model => decoder(repeats, { layers: [layer, layer] });
      assert.equal(await same(stretched, (steps) => steps.step(8)), "RrrrRrrr");
    });

    test("a module of a user's own is asked at every token", async () => {
      setDevice(backend.name);
      let factor = 1;
      class Scaled extends Module {
        inner: Module & { forward(x: Tensor): Tensor };
        constructor(inner: Module) {
          super();
          this.inner = inner as Scaled["inner"];
        }
        forward(x: Tensor): Tensor {
          return this.inner.forward(x).mul(factor);
        }
      }
      const kinds = await same(decoder, async (steps) => {
        factor = 1;
        await steps.step(3);
        const { attention } = layersOf(steps.model);
        attention.replaceChild("o_proj", new Scaled((attention as unknown as { o_proj: Module }).o_proj));
        for (factor of [1, 0.5, 2]) await steps.step();
        attention.replaceChild("o_proj", new Linear(16, 16, { bias: false, weight: zeros([16, 16]).add(0.1) }));
        await steps.step(3);
        // a method of one module alone looks at what it likes
        const norm = layersOf(steps.model).norm as unknown as { forward: (x: Tensor) => Tensor };
        const forward = norm.forward.bind(norm);
        norm.forward = (x) => forward(x).mul(factor);
        for (factor of [1, 0.5]) await steps.step();
      });
      assert.equal(kinds, "RrrRRRRRrRR");
    });

    test("a model that moves to another device needs a cache there", async () => {
      setDevice(backend.name);
      const model = decoder(true);
      const steps = new Steps(model);
      await steps.step(3);
      model.to("reference");
      setDevice("reference");
      if (backend.name !== "reference")
        assert.throws(() => noGrad(() => model.decode(idsOf([1]), steps.cache)), /different devices/);
      const there = new Steps(model);
      await there.step(3);
      there.logits.forEach((logits, i) => {
        logits.forEach((x, k) => {
          assert.ok(Math.abs(x - steps.logits[i][k]) < 1e-4);
        });
      });
      assert.equal(there.kinds.slice(-1), "r");
    });
  });
