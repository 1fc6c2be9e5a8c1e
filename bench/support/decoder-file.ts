/** A Llama of random weights as a GGUF file, for measuring how fast it decodes; the words of its tokenizer are numbers. */

import { readFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { type GgufTensorInput, type GgufType, type GgufValue, quantize, writeGguf } from "../../src/formats/index.ts";
import { blockTypes } from "../../src/formats/quants.ts";
import { uniform } from "./numbers.ts";

export const decodedTypes = [
  ...(["f32", "bf16", "f16", "q8_0", "q4_0"] as const),
  ...(["q4_1", "q5_0", "q5_1", "q4_k", "q5_k", "q6_k"] as const),
] satisfies readonly GgufType[];
export type DecodedType = (typeof decodedTypes)[number];

const [width, inner, heads, kvHeads, vocab] = [2048, 5632, 32, 4, 32000];
const headDim = width / heads;
const perLayer = width * (2 * width + 2 * kvHeads * headDim + 3 * inner);

/** Bytes of the largest cache, where the system tells (Linux); else 32 MiB. */
export function lastLevelCache(): number {
  for (const index of [4, 3, 2])
    try {
      const text = readFileSync(`/sys/devices/system/cpu/cpu0/cache/index${index}/size`, "utf8");
      const [, size, unit] = /^(\d+)([KMG])/.exec(text) ?? [];
      if (size) return Number(size) * { K: 2 ** 10, M: 2 ** 20, G: 2 ** 30 }[unit as "K"];
    } catch {
      // none at this level
    }
  return 32 * 2 ** 20;
}

const bytesOf = (type: DecodedType, elements: number): number =>
  (elements / blockTypes[type].elements) * blockTypes[type].bytes;

/** Layers such that the weights are at least four times the last cache, and a usual number of them. */
export const layersFor = (type: DecodedType): number =>
  Math.max(6, Math.ceil((4.2 * lastLevelCache() - bytesOf(type, vocab * width)) / bytesOf(type, perLayer)));

/** Bytes of the matrices, each of which a token reads once: the head is the embedding again. */
export const weightBytes = (type: DecodedType): number => bytesOf(type, vocab * width + layersFor(type) * perLayer);

/** Where the half-precision numbers of blocks that are not written here begin, and the upper byte of each: what makes weights of some 0.03. */
const halves: Partial<Record<GgufType, readonly (readonly [at: number, upper: number])[]>> = {
  q4_1: [
    [0, 0x1c],
    [2, 0xa8],
  ],
  q5_0: [[0, 0x18]],
  q5_1: [
    [0, 0x18],
    [2, 0xa8],
  ],
  q4_k: [
    [0, 0x0a],
    [2, 0x16],
  ],
  q5_k: [
    [0, 0x06],
    [2, 0x16],
  ],
  q6_k: [[208, 0x02]],
};

/** Random numbers of some 0.03 as blocks; of types that are not written here, random codes. */
function randomBlocks(type: DecodedType, elements: number): Uint8Array {
  const places = halves[type];
  if (places === undefined) return quantize(type, uniform(1, elements, 0.05));
  const { bytes: size } = blockTypes[type];
  const bytes = Uint8Array.from(uniform(1, bytesOf(type, elements), 1), (x) => 128 * (x + 1));
  for (let at = 0; at < bytes.length; at += size) for (const [to, upper] of places) bytes[at + to + 1] = upper;
  return bytes;
}

/** Writes the file; its tensors repeat one stretch of random numbers. */
export async function writeDecoder(path: string, type: DecodedType): Promise<void> {
  const stretch = 2 ** 20;
  const bytes = randomBlocks(type, stretch);
  const matrix = (rows: number, columns: number): GgufTensorInput => {
    const data = new Uint8Array(bytesOf(type, rows * columns));
    for (let at = 0; at < data.length; at += bytes.length) data.set(bytes.subarray(0, data.length - at), at);
    return { type, shape: [rows, columns], data };
  };
  const norm: GgufTensorInput = { type: "f32", shape: [width], data: new Float32Array(width).fill(1) };
  const tensors: Record<string, GgufTensorInput> = {
    "token_embd.weight": matrix(vocab, width),
    "output_norm.weight": norm,
  };
  // one copy of each shape for all layers
  const [square, small, up, down] = [
    matrix(width, width),
    matrix(kvHeads * headDim, width),
    matrix(inner, width),
    matrix(width, inner),
  ];
  for (let i = 0; i < layersFor(type); i++)
    for (const [name, tensor] of Object.entries({
      attn_norm: norm,
      attn_q: square,
      attn_k: small,
      attn_v: small,
      attn_output: square,
      ffn_norm: norm,
      ffn_gate: up,
      ffn_up: up,
      ffn_down: down,
    }))
      tensors[`blk.${i}.${name}.weight`] = tensor;
  const count = (value: number): GgufValue => ({ type: "uint32", value });
  const words = Array.from({ length: vocab }, (_, i) =>
    i === 0
      ? "<unk>"
      : i === 1
        ? "<s>"
        : i === 2
          ? "</s>"
          : i < 259
            ? `<0x${(i - 3).toString(16).toUpperCase().padStart(2, "0")}>`
            : `▁${i}`,
  );
  const kinds = Int32Array.from(words, (_, i) => (i === 0 ? 2 : i < 3 ? 3 : i < 259 ? 6 : 1));
  await writeGguf(path, {
    metadata: {
      "general.architecture": { type: "string", value: "llama" },
      "general.name": { type: "string", value: "random" },
      "llama.embedding_length": count(width),
      "llama.feed_forward_length": count(inner),
      "llama.block_count": count(layersFor(type)),
      "llama.attention.head_count": count(heads),
      "llama.attention.head_count_kv": count(kvHeads),
      "llama.context_length": count(2048),
      "llama.rope.dimension_count": count(headDim),
      "llama.vocab_size": count(vocab),
      "llama.attention.layer_norm_rms_epsilon": { type: "float32", value: 1e-5 },
      "tokenizer.ggml.model": { type: "string", value: "llama" },
      "tokenizer.ggml.tokens": { type: "array", itemType: "string", value: words },
      "tokenizer.ggml.scores": { type: "array", itemType: "float32", value: new Float32Array(vocab) },
      "tokenizer.ggml.token_type": { type: "array", itemType: "int32", value: kinds },
      "tokenizer.ggml.bos_token_id": count(1),
      "tokenizer.ggml.eos_token_id": count(2),
    },
    tensors,
  });
}

export const threads = (): number => Number(process.env["NABLA_THREADS"]) || availableParallelism();
