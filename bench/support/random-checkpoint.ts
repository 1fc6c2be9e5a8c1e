/** A checkpoint in Llama's shape with random weights, of about `gigabytes`, for benchmarks of reading and decoding. */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type SafetensorsEntry, writeSafetensors } from "../../src/formats/index.ts";

const shape = { hidden: 2048, mlp: 5632, heads: 32, keyHeads: 4, vocab: 32000 };
const { hidden, mlp, heads, keyHeads, vocab } = shape;
const keys = (hidden / heads) * keyHeads;

/** Elements of size about 0.02: a pool of which each tensor takes a part. */
function pool(kind: "F32" | "BF16", elements: number): Uint8Array {
  let x = 1;
  const next = (): number => {
    x = (Math.imul(x, 1664525) + 1013904223) >>> 0;
    return (x / 2 ** 32 - 0.5) * 0.07;
  };
  const floats = Float32Array.from({ length: elements }, next);
  if (kind === "F32") return new Uint8Array(floats.buffer);
  const bits = new Uint32Array(floats.buffer);
  return new Uint8Array(Uint16Array.from(bits, (b) => b >>> 16).buffer);
}

/** Writes config.json and model.safetensors into `folder`; gives the size of the latter in bytes. */
export async function writeRandomLlama(folder: string, kind: "F32" | "BF16", gigabytes = 1): Promise<number> {
  const each = kind === "F32" ? 4 : 2;
  const layer: [string, number[]][] = [
    ["input_layernorm", [hidden]],
    ["post_attention_layernorm", [hidden]],
    ["self_attn.q_proj", [hidden, hidden]],
    ["self_attn.k_proj", [keys, hidden]],
    ["self_attn.v_proj", [keys, hidden]],
    ["self_attn.o_proj", [hidden, hidden]],
    ["mlp.gate_proj", [mlp, hidden]],
    ["mlp.up_proj", [mlp, hidden]],
    ["mlp.down_proj", [hidden, mlp]],
  ];
  const ends: [string, number[]][] = [
    ["model.embed_tokens", [vocab, hidden]],
    ["lm_head", [vocab, hidden]],
    ["model.norm", [hidden]],
  ];
  const count = (list: [string, number[]][]) => list.reduce((n, [, s]) => n + s.reduce((a, b) => a * b), 0);
  const layers = Math.max(1, Math.round(((gigabytes * 1e9) / each - count(ends)) / count(layer)));
  const all = [
    ...ends,
    ...Array.from({ length: layers }, (_, i) =>
      layer.map(([n, s]): [string, number[]] => [`model.layers.${i}.${n}`, s]),
    ).flat(),
  ];
  const bytes = pool(kind, vocab * hidden);
  const entries: Record<string, SafetensorsEntry> = {};
  for (const [name, s] of all)
    entries[`${name}.weight`] = { dtype: kind, shape: s, bytes: bytes.subarray(0, each * s.reduce((a, b) => a * b)) };
  mkdirSync(folder, { recursive: true });
  const config = {
    ...{ architectures: ["LlamaForCausalLM"], model_type: "llama", hidden_act: "silu", rms_norm_eps: 1e-5 },
    ...{ hidden_size: hidden, intermediate_size: mlp, num_attention_heads: heads, num_key_value_heads: keyHeads },
    ...{ num_hidden_layers: layers, vocab_size: vocab, max_position_embeddings: 2048, rope_theta: 10000 },
    ...{ tie_word_embeddings: false, bos_token_id: 1, eos_token_id: 2, attention_bias: false, mlp_bias: false },
  };
  writeFileSync(join(folder, "config.json"), JSON.stringify(config));
  await writeSafetensors(join(folder, "model.safetensors"), entries, { format: "pt" });
  return each * count(all);
}
