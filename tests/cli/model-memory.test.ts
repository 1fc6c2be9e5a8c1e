/** memoryOf: what a model will take by its config.json, against the model itself and against plans of its full depth. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { type MemoryMethod, memoryOf } from "../../src/cli/model-memory.ts";
import type { StoredMatrix } from "../../src/models/index.ts";
import { nativeDevice } from "../support/cpu.ts";

const device = nativeDevice();
const [hidden, inner, layers, vocab, heads, keys] = [64, 160, 9, 300, 4, 2];
const llama = {
  model_type: "llama",
  hidden_size: hidden,
  intermediate_size: inner,
  num_hidden_layers: layers,
  num_attention_heads: heads,
  num_key_value_heads: keys,
  vocab_size: vocab,
  max_position_embeddings: 128,
  rms_norm_eps: 1e-5,
  tie_word_embeddings: false,
};
/** [outputs, inputs] of a layer's matrices. */
const matrices = [
  [hidden, hidden],
  [(hidden * keys) / heads, hidden],
  [(hidden * keys) / heads, hidden],
  [hidden, hidden],
  [inner, hidden],
  [inner, hidden],
  [hidden, inner],
] as const;
const elements = matrices.reduce((n, [a, b]) => n + a * b, 0);
const norms = (2 * layers + 1) * hidden;
const tables = 2 * vocab * hidden;
const lora = (rank: number): number => layers * matrices.reduce((n, [a, b]) => n + rank * (a + b), 0);

test("parameters, what is learnt and weights are the model's own, to the byte", async () => {
  const options = { device, batch: 2, time: 64, rank: 8 };
  const parameters = layers * elements + norms + tables;
  const expected: Record<MemoryMethod, { trained: number; weights: number }> = {
    inference: { trained: 0, weights: 4 * parameters },
    full: { trained: parameters, weights: 4 * parameters },
    lora: { trained: lora(8), weights: 4 * (parameters + lora(8)) },
    qlora: {
      trained: lora(8),
      // codes, a scale for each block of 64, and each layer's table of 512 values
      weights:
        layers * (elements / 2 + 4 * (elements / 64) + 4 * 512 * matrices.length) + 4 * (norms + tables + lora(8)),
    },
  };
  for (const [method, { trained, weights }] of Object.entries(expected)) {
    const memory = await memoryOf(llama, method as MemoryMethod, options);
    assert.equal(memory.parameters, parameters, method);
    assert.equal(memory.trained, trained, method);
    assert.equal(memory.weights, weights, method);
    const { weights: w, otherState, temporaries, best, process, total } = memory;
    assert.equal(best, 4 * trained, method);
    assert.equal(total, w + otherState + temporaries + best + process);
    // AdamW: two moments of all that is learnt
    if (method !== "inference") assert.ok(Math.abs(otherState / (8 * trained) - 1) < 0.1, `${method}: ${otherState}`);
  }
});

test("of a base that stays in a GGUF file's blocks the weights are the file's, however its layers differ", async () => {
  const names = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj"];
  names.push("mlp.up_proj", "mlp.down_proj");
  const stored = new Map<string, StoredMatrix>();
  const keep = (key: string, shape: readonly [number, number], format: "q8_0" | "q4_0"): void => {
    const byteLength = ((shape[0] * shape[1]) / 32) * (format === "q8_0" ? 34 : 18);
    stored.set(key, { format, shape, byteLength });
  };
  for (let layer = 0; layer < layers; layer++)
    for (const [i, shape] of matrices.entries())
      keep(`model.layers.${layer}.${names[i]}.weight`, shape, layer < 6 ? "q8_0" : "q4_0");
  keep("model.embed_tokens.weight", [vocab, hidden], "q8_0");
  const bytes = [...stored.values()].reduce((n, { byteLength }) => n + byteLength, 0);
  const floating = 4 * (norms + vocab * hidden); // the head is not among them
  const options = { device, batch: 1, time: 16, rank: 8, stored, depths: [1, 2] };
  const inference = await memoryOf(llama, "inference", options);
  assert.equal(inference.weights, bytes + floating);
  const qlora = await memoryOf(llama, "qlora", options);
  assert.equal(qlora.weights, bytes + floating + 4 * lora(8));
  assert.equal(qlora.trained, lora(8));
});

/** Each is a model whose every kernel is compiled. */
const long = process.env["NABLA_LONG"] === "1";

test("temporaries of a deep model follow from shallow ones; recomputation takes less", async () => {
  const temporaries = async (recompute: boolean, depths?: readonly number[]): Promise<number> => {
    const options = { device, batch: 2, time: 128, recompute, ...(depths && { depths }) };
    return (await memoryOf(llama, "qlora", options)).temporaries;
  };
  for (const recompute of long ? [false, true] : [true]) {
    const [guessed, planned] = [await temporaries(recompute), await temporaries(recompute, [layers])];
    assert.ok(
      Math.abs(guessed / planned - 1) < (device === "cpu" ? 0.05 : 0.15),
      `recompute ${recompute}: ${guessed} guessed, ${planned} planned`,
    );
  }
  const [again, kept] = [await temporaries(true, [layers - 1]), await temporaries(false, [layers - 1])];
  // without the native runtime the floats of a quantised layer are most of the temporaries
  assert.ok(again < (device === "cpu" ? 0.5 : 1) * kept, `recomputed ${again}, kept ${kept}`);
  // weights that are read by a block, and again by the block that is computed again, are not kept packed in between
  for (const method of long ? (["lora", "full"] as const) : (["lora"] as const)) {
    const temporaries = async (recompute: boolean): Promise<number> =>
      (await memoryOf(llama, method, { device, batch: 2, time: 128, recompute, depths: [5] })).temporaries;
    const [again, kept] = [await temporaries(true), await temporaries(false)];
    assert.ok(again < kept, `${method}: recomputed ${again}, kept ${kept}`);
  }
});

test("a configuration of no language model is refused", async () => {
  await assert.rejects(
    memoryOf({ model_type: "mamba", num_hidden_layers: 3 }, "lora", { device }),
    /memory of "mamba"/,
  );
  await assert.rejects(memoryOf({ model_type: "llama" }, "lora", { device }), /says how many layers/);
});
