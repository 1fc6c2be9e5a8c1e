/** A real pretrained model, Karpathy's stories260K (grouped-query attention, tied embeddings), from llama2.c's own file and from GGUF. */
import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { setDevice } from "../../src/execution/index.ts";
import { generate } from "../../src/generate/index.ts";
import { modelFrom, readGgufModel } from "../../src/models/index.ts";
import type { StateDict } from "../../src/nn/index.ts";
import { noGrad, type Tensor, tensor } from "../../src/tensor/index.ts";
import { nativeDevice } from "../support/cpu.ts";
import { assertClose } from "../support/fixtures.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));
const folder = join(process.env["NABLA_TEST_DATA"] ?? join(root, "..", "shared", "data"), "stories260k");

/** llama2.c's file: seven integers, then the tensors, each kind for all layers. Its heads turn neighbours (x₂ᵢ, x₂ᵢ₊₁), not halves. */
function readLlama2c(path: string) {
  const bytes = readFileSync(path);
  const data = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
  const [dim, hidden, layers, heads, kvHeads, vocabulary, context] = new Int32Array(data, 0, 7);
  const width = dim / heads;
  let at = 28;
  const next = (...shape: number[]): Tensor => {
    const size = shape.reduce((a, b) => a * b, 1);
    at += 4 * size;
    return tensor(new Float32Array(data, at - 4 * size, size), { shape });
  };
  const halves = (x: Tensor, count: number): Tensor =>
    x
      .reshape(count, width / 2, 2, dim)
      .transpose(1, 2)
      .reshape(count * width, dim);
  const out: StateDict = { "model.embed_tokens.weight": next(vocabulary, dim) };
  const each = (name: string, shape: number[], change = (x: Tensor): Tensor => x): void => {
    for (let i = 0; i < layers; i++) out[`model.layers.${i}.${name}.weight`] = change(next(...shape));
  };
  each("input_layernorm", [dim]);
  each("self_attn.q_proj", [dim, dim], (x) => halves(x, heads));
  each("self_attn.k_proj", [kvHeads * width, dim], (x) => halves(x, kvHeads));
  each("self_attn.v_proj", [kvHeads * width, dim]);
  each("self_attn.o_proj", [dim, dim]);
  each("post_attention_layernorm", [dim]);
  each("mlp.gate_proj", [hidden, dim]);
  each("mlp.down_proj", [dim, hidden]);
  each("mlp.up_proj", [hidden, dim]);
  out["model.norm.weight"] = next(dim);
  const config = {
    model_type: "llama",
    vocab_size: vocabulary,
    hidden_size: dim,
    intermediate_size: hidden,
    num_hidden_layers: layers,
    num_attention_heads: heads,
    num_key_value_heads: kvHeads,
    max_position_embeddings: context,
    rms_norm_eps: 1e-5,
    tie_word_embeddings: true,
  };
  return { config, tensors: out };
}

for (const [name, read] of [
  ["llama2.c's file", async () => readLlama2c(join(folder, "stories260K.bin"))],
  ["GGUF", () => readGgufModel(join(folder, "stories260K.gguf"))],
] as const)
  test(`stories260K from ${name} gives the 200 greedy tokens that llama2.c gives`, {
    skip: !existsSync(folder) && "no test data here (NABLA_TEST_DATA)",
  }, async () => {
    setDevice(nativeDevice());
    const expected = JSON.parse(readFileSync(join(folder, "greedy_ids_200.json"), "utf8"));
    const { config, tensors } = await read();
    const model = modelFrom(config, tensors);
    const logits = await noGrad(() => model.forward(tensor([[1]], { dtype: "int32" }))).data();
    assertClose("the first logits", logits.slice(0, 8), expected.first_step_logits_first8, { rtol: 1e-4, atol: 1e-5 });
    const beginning = 1;
    assert.deepEqual(await generate(model, [beginning], { maxNewTokens: 200, temperature: 0 }), expected.ids);
  });
