/**
 * A two-layer GPT-2 recorded with the graph's own builders, against the same network in PyTorch (fixtures/gpt.json):
 * logits, loss and the gradient of every weight, and fifty AdamW steps whose state is written by assigns.
 * Nothing here needs tensors or layers; tests/parity/training.test.ts trains the same network through them.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { gradientsOf, withGrad } from "../../src/autograd/index.ts";
import type { Backend } from "../../src/backends/backend.ts";
import type { DType } from "../../src/core/dtype.ts";
import { attention, crossEntropy, gelu, layerNorm } from "../../src/graph/composites/index.ts";
import type { Node } from "../../src/graph/node.ts";
import * as o from "../../src/graph/ops.ts";
import { backendsUnderTest } from "../support/backends.ts";
import { compileNodes, evaluate, nodeFrom } from "../support/evaluate.ts";
import { assertClose, readFixture, type Stored, type Tolerance, valuesOf } from "../support/fixtures.ts";

interface Fixture {
  readonly config: {
    readonly layers: number;
    readonly heads: number;
    readonly width: number;
    readonly vocabulary: number;
    readonly layerNormEps: number;
  };
  readonly optimizer: {
    readonly lr: number;
    readonly betas: readonly [number, number];
    readonly eps: number;
    readonly weightDecay: number;
    readonly maxNorm: number;
  };
  readonly weights: Readonly<Record<string, Stored>>;
  /** [steps, batch, context + 1] */
  readonly batches: Stored;
  readonly logits: Stored;
  readonly loss: number;
  readonly gradients: Readonly<Record<string, Stored>>;
  readonly losses: readonly number[];
  readonly finalWeights: Readonly<Record<string, Stored>>;
}

const fixture = readFixture<Fixture>("gpt");
const { layers, heads, width, vocabulary, layerNormEps } = fixture.config;
const [, batch, length] = fixture.batches.shape;
const time = length - 1;
const allTokens = valuesOf(fixture.batches);

/** The tokens of one step: what goes in and what should come out, [batch, time] each. */
function tokensOf(step: number): { inputs: number[]; targets: number[] } {
  const inputs: number[] = [];
  const targets: number[] = [];
  for (let b = 0; b < batch; b++)
    for (let t = 0; t < time; t++) {
      const at = (step * batch + b) * length + t;
      inputs.push(allTokens[at]);
      targets.push(allTokens[at + 1]);
    }
  return { inputs, targets };
}

type Weights = ReadonlyMap<string, Node>;

function forward(weights: Weights, inputs: Node): Node {
  const get = (name: string): Node => weights.get(name) as Node;
  const norm = (x: Node, name: string): Node =>
    layerNorm(x, 1, get(`${name}.weight`), get(`${name}.bias`), layerNormEps);
  const project = (x: Node, name: string): Node => o.add(o.matmul(x, get(`${name}.weight`)), get(`${name}.bias`));
  // [batch, time, width] → [batch, heads, time, width / heads]
  const split = (x: Node): Node => o.permute(o.reshape(x, [batch, time, heads, width / heads]), [0, 2, 1, 3]);
  const positions = o.narrow(get("wpe.weight"), 0, 0, time);
  let x = o.add(o.take(get("wte.weight"), 0, inputs), positions);
  for (let i = 0; i < layers; i++) {
    const qkv = project(norm(x, `h.${i}.ln_1`), `h.${i}.attn.c_attn`);
    const [q, k, v] = [0, 1, 2].map((part) => split(o.narrow(qkv, 2, part * width, width)));
    const { out } = attention(q, k, v, { causal: true });
    x = o.add(x, project(o.reshape(out, [batch, time, width]), `h.${i}.attn.c_proj`));
    const hidden = gelu(project(norm(x, `h.${i}.ln_2`), `h.${i}.mlp.c_fc`), "tanh");
    x = o.add(x, project(hidden, `h.${i}.mlp.c_proj`));
  }
  return o.matmul(norm(x, "ln_f"), o.transpose(get("wte.weight"), 0, 1)); // [batch, time, vocabulary]
}

const lossOf = (logits: Node, targets: Node): Node =>
  crossEntropy(o.reshape(logits, [batch * time, vocabulary]), o.reshape(targets, [batch * time]));

function loadWeights(backend: Backend, dtype: DType): Map<string, Node> {
  return new Map(
    Object.entries(fixture.weights).map(([name, stored]) => {
      const node = nodeFrom(backend, valuesOf(stored), stored.shape, dtype);
      node.requiresGrad = true;
      return [name, node];
    }),
  );
}

/** The fixture's gradients and weights are stored as float32 of float64 results, its losses as they are. */
const tolerances: Readonly<Record<string, Readonly<Record<"once" | "curve" | "trained", Tolerance>>>> = {
  float64: { once: { rtol: 1e-6, atol: 1e-9 }, curve: { rtol: 1e-8, atol: 0 }, trained: { rtol: 1e-6, atol: 1e-7 } },
  float32: { once: { rtol: 1e-4, atol: 1e-6 }, curve: { rtol: 1e-4, atol: 0 }, trained: { rtol: 1e-3, atol: 1e-3 } },
};

for (const backend of await backendsUnderTest())
  for (const dtype of (["float64", "float32"] as const).filter((each) => backend.dtypes.includes(each)))
    describe(`a GPT on ${backend.name} in ${dtype}`, () => {
      const { once, curve, trained } = tolerances[dtype];

      test("has PyTorch's logits, loss and gradients", async () => {
        const weights = loadWeights(backend, dtype);
        const { inputs, targets } = tokensOf(0);
        const logits = forward(weights, nodeFrom(backend, inputs, [batch, time], "int32"));
        const loss = lossOf(logits, nodeFrom(backend, targets, [batch, time], "int32"));
        const names = [...weights.keys()];
        const gradients = gradientsOf([loss], [null], [...weights.values()]) as Node[];
        const [gotLogits, gotLoss, ...got] = await evaluate(backend, [logits, loss, ...gradients]);
        assertClose("logits", gotLogits, valuesOf(fixture.logits), once);
        assertClose("loss", gotLoss, [fixture.loss], once);
        names.forEach((name, i) => {
          assertClose(name, got[i], valuesOf(fixture.gradients[name]), once);
        });
      });

      test("learns as PyTorch's does over fifty steps of AdamW", async () => {
        const { losses, states } = await train(backend, dtype);
        assertClose("losses", losses, fixture.losses, curve);
        assert.ok(losses[losses.length - 1] < losses[0] - 1, "the loss falls");
        const names = Object.keys(fixture.finalWeights);
        const got = await evaluate(
          backend,
          names.map((name) => states.get(name) as Node),
        );
        // AdamW divides by the gradient's own size, so that an element whose gradient is rounding error moves as far as any
        // other: single elements are compared in float64 only, whole tensors in both
        names.forEach((name, i) => {
          const expected = valuesOf(fixture.finalWeights[name]);
          if (dtype === "float64") assertClose(name, got[i], expected, trained);
          const distance = relativeDistance(got[i], expected);
          // a bias of the keys shifts all scores of a query alike: its gradient is nothing but rounding
          const limit = dtype === "float64" ? 1e-6 : name.endsWith("c_attn.bias") ? 5e-2 : 2e-3;
          assert.ok(distance < limit, `${name}: relative distance ${distance}`);
        });
      });
    });

/** ‖a − b‖ / ‖b‖ */
function relativeDistance(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let difference = 0;
  let size = 0;
  for (let i = 0; i < b.length; i++) {
    difference += (a[i] - b[i]) ** 2;
    size += b[i] ** 2;
  }
  return Math.sqrt(difference / size);
}

/** One compiled step, run fifty times: tokens, weights and moments are storages, the step's number a scalar. */
async function train(backend: Backend, dtype: DType): Promise<{ losses: number[]; states: Weights }> {
  const {
    lr,
    betas: [beta1, beta2],
    eps,
    weightDecay,
    maxNorm,
  } = fixture.optimizer;
  const states = loadWeights(backend, dtype);
  const inputs = nodeFrom(backend, new Int32Array(batch * time), [batch, time], "int32");
  const targets = nodeFrom(backend, new Int32Array(batch * time), [batch, time], "int32");
  const names = [...states.keys()];
  const loss = lossOf(forward(states, inputs), targets);
  const gradients = gradientsOf([loss], [null], [...states.values()]) as Node[];
  const correction = [o.scalar(1, dtype), o.scalar(1, dtype)]; // 1 − βᵗ
  const assigns = withGrad(false, () => {
    const norm = o.sqrt(gradients.map((g) => o.sum(o.mul(g, g))).reduce((a, b) => o.add(a, b)));
    const clip = o.minimum(o.div(maxNorm, o.add(norm, 1e-6)), 1);
    return names.flatMap((name, i) => {
      const w = states.get(name) as Node;
      const zeros = (): Node => nodeFrom(backend, new Float64Array(w.shape.reduce((a, b) => a * b, 1)), w.shape, dtype);
      const [m, v] = [zeros(), zeros()];
      const g = o.mul(gradients[i], clip);
      const nextM = o.add(o.mul(m, beta1), o.mul(g, 1 - beta1));
      const nextV = o.add(o.mul(v, beta2), o.mul(o.mul(g, g), 1 - beta2));
      const step = o.div(o.div(nextM, correction[0]), o.add(o.sqrt(o.div(nextV, correction[1])), eps));
      const decayed = w.shape.length >= 2 ? o.mul(w, 1 - lr * weightDecay) : w;
      return [
        { target: w, value: o.sub(decayed, o.mul(step, lr)) },
        { target: m, value: nextM },
        { target: v, value: nextV },
      ];
    });
  });
  const { run } = await compileNodes(backend, [loss], assigns);
  const losses: number[] = [];
  for (let step = 0; step < fixture.losses.length; step++) {
    const tokens = tokensOf(step);
    backend.write(inputs.storage?.memory, Int32Array.from(tokens.inputs));
    backend.write(targets.storage?.memory, Int32Array.from(tokens.targets));
    correction[0].value = 1 - beta1 ** (step + 1);
    correction[1].value = 1 - beta2 ** (step + 1);
    const [value] = await run();
    losses.push(value[0]);
  }
  return { losses, states };
}
