/** GGUF files whose matrices stay in their blocks, on every device present: the model is that of the floating weights. */
import assert from "node:assert/strict";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test } from "node:test";
import type { Memory } from "../../src/backends/cpu/memory.ts";
import { dtypes } from "../../src/core/dtype.ts";
import { programCounts, setDevice } from "../../src/execution/index.ts";
import { applyLora } from "../../src/finetune/index.ts";
import { formatGguf, type GgufTensorInput, type GgufValue, readGguf, splitBlocks } from "../../src/formats/index.ts";
import { generate } from "../../src/generate/index.ts";
import {
  blockLinear,
  dequantizeBlocks,
  dequantizeStored,
  type StoredFormat,
  storedFormats,
  storedLinear,
} from "../../src/graph/composites/index.ts";
import {
  BlockEmbedding,
  type BlockFormat,
  BlockLinear,
  type CausalLM,
  fromPretrained,
  modelFrom,
  readGgufModel,
  readStoredMatrices,
} from "../../src/models/index.ts";
import { Linear, withDeferredInit } from "../../src/nn/index.ts";
import { AdamW } from "../../src/optim/index.ts";
import { fromRaw, manualSeed, noGrad, Tensor, tensor } from "../../src/tensor/index.ts";
import { bytesOf, fixture, floatsOf } from "../formats/files.ts";
import { backendsUnderTest, isBrief } from "../support/backends.ts";
import { nativeDevice, whyNoCpu } from "../support/cpu.ts";
import { assertClose } from "../support/fixtures.ts";

type Sizes = readonly [width: number, inner: number];
const small: Sizes = [64, 96];
/** Rows that fill blocks of 256. */
const wide: Sizes = [256, 256];
const [heads, kvHeads, vocab, layers] = [4, 2, 50, 2];

/** Bytes of random blocks of a type that is not written here: codes and small scales of all kinds, numbers of at most some 0.2. */
function randomBlocks(type: StoredFormat, elements: number, random: () => number): Uint8Array {
  const { elements: each, bytes: size } = storedFormats[type];
  const bytes = Uint8Array.from({ length: (elements / each) * size }, () => 256 * random());
  // the upper bytes of scales and minima: some 2^-7 where they are alone, some 2^-13 where small integers are beside them
  const upper: Record<StoredFormat, readonly (readonly [at: number, value: number])[]> = {
    q4_1: [
      [1, 0x20],
      [3, 0xac],
    ],
    q5_0: [[1, 0x20]],
    q5_1: [
      [1, 0x1c],
      [3, 0xac],
    ],
    q4_k: [
      [1, 0x04],
      [3, 0x0e],
    ],
    q5_k: [
      [1, 0x02],
      [3, 0x0e],
    ],
    q6_k: [[209, 0x02]],
  };
  for (let at = 0; at < bytes.length; at += size) for (const [to, value] of upper[type]) bytes[at + to] = value;
  return bytes;
}

/** Numbers from 0 to 1. */
function randoms(start: number): () => number {
  let seed = start;
  return () => {
    seed = (seed * 16807) % 2147483647;
    return seed / 2147483647;
  };
}

/** A random weight as formatGguf takes it. */
const blockData = (type: BlockFormat | "f16", size: number, random: () => number): Float32Array | Uint8Array =>
  type === "q8_0" || type === "q4_0" || type === "f16"
    ? Float32Array.from({ length: size }, () => 0.4 * (random() - 0.5))
    : randomBlocks(type, size, random);

/** A small Llama as a GGUF file, its matrices in `type`, or the type that `typeOf` says for a name. */
function ggufOf(
  type: BlockFormat,
  tied: boolean,
  [width, inner]: Sizes = small,
  typeOf: (name: string) => BlockFormat | "f16" = () => type,
  words = vocab,
): Uint8Array {
  const random = randoms(inner);
  const matrix = (name: string, rows: number, columns: number): Record<string, GgufTensorInput> => {
    const data = blockData(typeOf(name), rows * columns, random);
    return { [name]: { type: typeOf(name), shape: [rows, columns], data } as GgufTensorInput };
  };
  const norm = (): GgufTensorInput => ({ type: "f32", shape: [width], data: new Float32Array(width).fill(1.1) });
  const keys = (width / heads) * kvHeads;
  const tensors: Record<string, GgufTensorInput> = {
    ...matrix("token_embd.weight", words, width),
    "output_norm.weight": norm(),
  };
  if (!tied) Object.assign(tensors, matrix("output.weight", words, width));
  for (let i = 0; i < layers; i++)
    Object.assign(tensors, {
      [`blk.${i}.attn_norm.weight`]: norm(),
      ...matrix(`blk.${i}.attn_q.weight`, width, width),
      ...matrix(`blk.${i}.attn_k.weight`, keys, width),
      ...matrix(`blk.${i}.attn_v.weight`, keys, width),
      ...matrix(`blk.${i}.attn_output.weight`, width, width),
      [`blk.${i}.ffn_norm.weight`]: norm(),
      ...matrix(`blk.${i}.ffn_gate.weight`, inner, width),
      ...matrix(`blk.${i}.ffn_up.weight`, inner, width),
      ...matrix(`blk.${i}.ffn_down.weight`, width, inner),
    });
  const count = (value: number): GgufValue => ({ type: "uint32", value });
  const metadata: Record<string, GgufValue> = {
    "general.architecture": { type: "string", value: "llama" },
    "llama.embedding_length": count(width),
    "llama.feed_forward_length": count(inner),
    "llama.block_count": count(layers),
    "llama.attention.head_count": count(heads),
    "llama.attention.head_count_kv": count(kvHeads),
    "llama.context_length": count(256),
    "llama.attention.layer_norm_rms_epsilon": { type: "float32", value: 1e-5 },
  };
  return formatGguf({ metadata, tensors });
}

async function modelOf(file: Uint8Array, keepQuantized: boolean): Promise<CausalLM> {
  const { config, tensors, blocks } = await readGgufModel(file, { keepQuantized });
  return modelFrom(config, tensors, { blocks }) as CausalLM;
}

/** With NABLA_LONG=1 all; they differ in what a product reads, which the tests of each backend's products hold too. */
const types = (
  [
    ["q8_0", false, small],
    ["q4_0", true, small],
    ["q4_k", true, wide],
    ["q4_1", false, small],
    ["q5_0", true, small],
    ["q5_1", false, small],
    ["q5_k", false, wide],
    ["q6_k", true, wide],
  ] as const
).slice(0, process.env["NABLA_LONG"] === "1" ? undefined : 3);

const backends = (await backendsUnderTest()).filter((b) => !isBrief(b));
const ids = (values: number[]): Tensor => tensor(Int32Array.from(values), { shape: [1, values.length] });
const prompt = [3, 1, 4, 1, 5, 9, 2, 6];

for (const backend of backends)
  describe(`weights in blocks on ${backend.name}`, () => {
    for (const [type, tied, sizes] of types)
      test(`${type}, ${tied ? "the head tied" : "a head of its own"}: logits, tokens and gradients of the floating weights`, async () => {
        setDevice(backend.name);
        const file = ggufOf(type, tied, sizes);
        const [kept, floating] = [await modelOf(file, true), await modelOf(file, false)];
        assert.equal(kept.parameters().length, 2 * layers + 1, "norms are all that is floating");
        assert.equal(kept.dtype, "float32");
        const table = kept.model.embed_tokens;
        assert.ok(table instanceof BlockEmbedding && table.codes.dtype === "uint8");
        const [got, expected] = await Promise.all(
          [kept, floating].map((m) => noGrad(() => m.forward(ids(prompt))).data()),
        );
        // on cpu activations have 15 bits and a sign a block of 32: some 2e-5 of each product
        assertClose("logits", got, expected, { rtol: 1e-3, atol: 5e-4 });
        const options = { maxNewTokens: 12, temperature: 0 };
        assert.deepEqual(await generate(kept, prompt, options), await generate(floating, prompt, options));
        const losses: number[] = [];
        const gradients: ArrayLike<number>[] = [];
        for (const model of [kept, floating]) {
          model.requiresGrad_(false);
          const weight = model.model.norm as unknown as { weight: Tensor };
          const first = model.model.layers.at(0)!.input_layernorm as unknown as { weight: Tensor };
          for (const norm of [weight, first]) norm.weight.requiresGrad_();
          const loss = model.forward(ids(prompt), ids(prompt));
          await loss.backward();
          losses.push((await loss.item()) as number);
          gradients.push(await (first.weight.grad as Tensor).data());
        }
        assert.ok(Math.abs(losses[0] - losses[1]) < 1e-4, `losses ${losses}`);
        const largest = Math.max(...Array.from(gradients[1], Math.abs));
        assertClose("gradient", gradients[0], gradients[1], { rtol: 2e-3, atol: 2e-3 * largest });
      });
  });

/** Tensors of the file that the gguf package wrote, in blocks, with what it makes of them. */
const stored = Object.entries(fixture.gguf[0].tensors).flatMap(([name, { shape, float32 }]) => {
  const format = name.slice(2) as StoredFormat;
  return Object.hasOwn(storedFormats, format) ? [{ name, format, shape, floats: floatsOf(float32) }] : [];
});

for (const backend of backends)
  test(`blocks are the numbers that the gguf package makes of them, on ${backend.name}`, async () => {
    assert.equal(stored.length, Object.keys(storedFormats).length);
    setDevice(backend.name);
    const { tensors } = await readGguf(bytesOf(fixture.gguf[0].file));
    for (const { name, format, shape, floats } of stored) {
      const bytes = await tensors.get(name)!.read();
      const codes = fromRaw(bytes, "uint8", [shape[0], bytes.length / shape[0]]);
      const layer = new BlockLinear({ format, codes, scales: null }, "float32", null);
      const [both, second] = [
        layer.weight,
        new BlockEmbedding({ format, codes, scales: null }, "float32").forward(ids([1])),
      ];
      assertClose(format, await both.data(), floats, { rtol: 0, atol: 0 });
      assertClose(`${format}, a row`, await second.data(), floats.subarray(shape[1]), { rtol: 0, atol: 0 });
    }
  });

/** What a format's random weight [rows, width] is, where it is not written here as random blocks. */
async function randomLayer(format: BlockFormat, rows: number, width: number): Promise<BlockLinear> {
  const tensors = { w: { type: format, shape: [rows, width], data: blockData(format, rows * width, randoms(7)) } };
  const name = "blk.0.ffn_up.weight";
  const file = await readGguf(formatGguf({ metadata: {}, tensors: { [name]: tensors.w as GgufTensorInput } }));
  const bytes = await file.tensors.get(name)!.read();
  if (format !== "q8_0" && format !== "q4_0")
    return new BlockLinear(
      { format, codes: fromRaw(bytes, "uint8", [rows, bytes.length / rows]), scales: null },
      "float32",
      null,
    );
  const { codes, scales } = splitBlocks(format, bytes);
  return new BlockLinear(
    {
      format,
      codes: fromRaw(codes, "uint8", [rows, codes.length / rows]),
      scales: fromRaw(scales, "float16", [rows, width / 32]),
    },
    "float32",
    null,
  );
}

for (const backend of backends)
  test(`the gradient of the input is that of float64 differences of the dequantised product, on ${backend.name}`, async () => {
    setDevice(backend.name);
    const [rows, width, step] = [40, 256, 1e-3];
    for (const format of ["q8_0", "q4_0", ...Object.keys(storedFormats)] as BlockFormat[])
      for (const count of [2, 33]) {
        const layer = await randomLayer(format, rows, width);
        const weight = Float64Array.from(await layer.weight.data(), Number);
        const random = randoms(count);
        const [values, factors] = [count * width, count * rows].map((size) =>
          Float32Array.from({ length: size }, () => random() - 0.5),
        );
        const x = tensor(values, { shape: [count, width] }).requiresGrad_();
        const y = layer.forward(x);
        await y
          .mul(tensor(factors, { shape: [count, rows] }))
          .square()
          .sum()
          .backward();
        /** Of one row, in float64. */
        const loss = (input: Float64Array, row: number): number => {
          let sum = 0;
          for (let j = 0; j < rows; j++) {
            let dot = 0;
            for (let k = 0; k < width; k++) dot += input[k] * weight[j * width + k];
            sum += (dot * factors[row * rows + j]) ** 2;
          }
          return sum;
        };
        const gradient = await (x.grad as Tensor).data();
        const places = [0, 31, 32, 77, 200, width - 1];
        const row = count - 1;
        const expected = places.map((k) => {
          const input = Float64Array.from(values.subarray(row * width, (row + 1) * width));
          const at = (offset: number): number =>
            loss(
              input.map((value, i) => (i === k ? value + offset : value)),
              row,
            );
          return (at(step) - at(-step)) / (2 * step);
        });
        const got = places.map((k) => Number(gradient[row * width + k]));
        // the loss is of the products, which cpu rounds a little
        const largest = Math.max(...Array.from(gradient, (value) => Math.abs(Number(value))));
        assertClose(`${format}, ${count} rows`, got, expected, { rtol: 1e-3, atol: 5e-4 * largest });
      }
  });

/** As Q4_K_M: some matrices are of one type, some of another, the table of a third. */
const mixed = (name: string): BlockFormat =>
  name === "token_embd.weight" ? "q8_0" : /attn_v|ffn_down|output/.test(name) ? "q6_k" : "q4_k";

test("a file of several types takes its own size in memory, and decodes as the floating weights do", async () => {
  setDevice(nativeDevice());
  const file = ggufOf("q4_k", false, wide, mixed);
  const [kept, floating] = [await modelOf(file, true), await modelOf(file, false)];
  const bytes = Object.values(kept.stateDict()).reduce((sum, x) => sum + x.size * dtypes[x.dtype].bytes, 0);
  assert.ok(bytes < file.length, `${bytes} bytes of a file of ${file.length}`);
  const formats = kept
    .modules()
    .flatMap((m) => (m instanceof BlockLinear || m instanceof BlockEmbedding ? m.format : []));
  assert.deepEqual([...new Set(formats)].sort(), ["q4_k", "q6_k", "q8_0"]);
  const options = { maxNewTokens: 12, temperature: 0 };
  assert.deepEqual(await generate(kept, prompt, options), await generate(floating, prompt, options));
});

test("LoRA over blocks learns as over the floating weights", async () => {
  setDevice(nativeDevice());
  const formats: Readonly<Record<string, BlockFormat>> = {
    ...{ attn_q: "q8_0", attn_k: "q4_0", attn_v: "q4_1", attn_output: "q5_0" },
    ...{ ffn_gate: "q5_1", ffn_up: "q5_k", ffn_down: "q6_k" },
  };
  const file = ggufOf("q4_k", true, wide, (name) => formats[name.split(".")[2]] ?? "q4_k");
  const losses: number[][] = [];
  for (const keepQuantized of [true, false]) {
    const model = await modelOf(file, keepQuantized);
    manualSeed(0);
    applyLora(model, { r: 4, target: "all-linear" });
    const optimizer = new AdamW(
      model.parameters().filter((p) => p.requiresGrad),
      { lr: 1e-2 },
    );
    const text = ids([...prompt, 7, 9, 3, 2, 8, 1, 1, 4, 6, 20, 33, 5]);
    const own: number[] = [];
    for (let step = 0; step < 4; step++) {
      optimizer.zeroGrad();
      const loss = model.forward(text, text);
      await loss.backward();
      await optimizer.step();
      own.push((await loss.item()) as number);
    }
    losses.push(own);
  }
  const [kept, floating] = losses;
  assert.ok(kept[3] < kept[0] - 0.1, `losses ${kept}`);
  for (const [i, loss] of kept.entries()) assert.ok(Math.abs(loss - floating[i]) < 2e-3, `${kept} beside ${floating}`);
});

test("an adapter goes around layers in blocks, and the merged weights are floating", async () => {
  setDevice(nativeDevice());
  const model = await modelOf(ggufOf("q8_0", false), true);
  const before = await noGrad(() => model.forward(ids(prompt))).data();
  const adapted = applyLora(model, { r: 2, target: "all-linear" });
  assertClose("as before", await noGrad(() => model.forward(ids(prompt))).data(), before, { rtol: 1e-5, atol: 1e-6 });
  assert.throws(() => adapted.merge(), /is quantised/);
  const merged = adapted.mergedStateDict();
  assert.ok(Object.values(merged).every((x) => x.dtype === "float32"));
  assert.deepEqual(
    Object.keys(merged).sort(),
    Object.keys((await modelOf(ggufOf("q8_0", false), false)).stateDict()).sort(),
  );
});

test("a head in blocks gives the loss of many logits, which are never there as a whole, and the gradient", async () => {
  const device = nativeDevice();
  setDevice(device);
  const [words, time] = [33_000, 256];
  const file = ggufOf("q8_0", false, small, undefined, words);
  const text = tensor(
    Int32Array.from({ length: 2 * time }, (_, i) => (i * 7919) % words),
    { shape: [2, time] },
  );
  const numbers: number[][] = [];
  for (const keepQuantized of [true, false]) {
    const model = await modelOf(file, keepQuantized);
    model.requiresGrad_(false);
    const norm = (model.model.norm as unknown as { weight: Tensor }).weight.requiresGrad_();
    const loss = model.forward(text, text);
    assert.ok(loss.node.operation.name === "linearCrossEntropy" || !keepQuantized, loss.node.operation.name);
    await loss.backward();
    numbers.push([(await loss.item()) as number, ...Array.from((await (norm.grad as Tensor).data()) as Float32Array)]);
  }
  assertClose("loss and gradient", numbers[0], numbers[1], { rtol: 2e-3, atol: 1e-6 });
});

test("what is in 16 bits beside blocks does not make a model of 16 bits", async () => {
  setDevice(nativeDevice());
  const file = ggufOf("q8_0", true, small, (name) => (/attn_k/.test(name) ? "f16" : "q8_0"));
  const [kept, floating] = [await modelOf(file, true), await modelOf(file, false)];
  assert.ok(kept.model.layers.at(0)!.self_attn.k_proj instanceof Linear);
  for (const model of [kept, floating])
    assert.deepEqual(new Set(model.parameters().map((p) => p.dtype)), new Set(["float32"]));
});

test("a classifier is put on blocks without the head of the language model", async () => {
  setDevice(nativeDevice());
  const { config, tensors, blocks } = await readGgufModel(ggufOf("q8_0", false), { keepQuantized: true });
  const model = modelFrom(config, tensors, { blocks, task: "classification", numLabels: 3 });
  assert.ok([...model.modules()].filter((layer) => layer instanceof BlockLinear).length === 7 * layers);
  assert.deepEqual((await noGrad(() => model.forward(ids(prompt))).data()).length, 3);
});

test("a file's header tells which matrices stay as they are, and how large they are", async () => {
  setDevice(nativeDevice());
  const file = ggufOf("q4_k", false, wide, mixed);
  const { blocks } = await readGgufModel(file, { keepQuantized: true });
  const told = await readStoredMatrices(file);
  assert.deepEqual([...told.keys()].sort(), Object.keys(blocks).sort());
  for (const [key, { format, shape, byteLength }] of told) {
    const { codes, scales } = blocks[key];
    assert.deepEqual([format, byteLength], [blocks[key].format, codes.size + 2 * (scales?.size ?? 0)], key);
    assert.equal(shape[0], codes.shape[0]);
  }
});

test("a weight of another shape, and one that the model has no place for, are named", async () => {
  setDevice(nativeDevice());
  const { config, tensors, blocks } = await readGgufModel(ggufOf("q8_0", false), { keepQuantized: true });
  assert.ok(Object.keys(blocks).length === 7 * layers + 2);
  const wide = { ...config, intermediate_size: 128 };
  assert.throws(
    () => modelFrom(wide, tensors, { blocks }),
    /gate_proj.weight" has shape \[96, 64\], the model's is \[128, 64\]/,
  );
  const surplus = { ...blocks, "model.layers.7.mlp.up_proj.weight": blocks["lm_head.weight"] };
  assert.throws(
    () => modelFrom(config, tensors, { blocks: surplus }),
    /the model has no "model.layers.7.mlp.up_proj.weight"/,
  );
});

test("a tensor that was taken out while a module is loaded is not computed", () => {
  setDevice("reference");
  let taken: Tensor | null = null;
  const layer = withDeferredInit(
    () => new Linear(2, 3),
    (made, forget) => {
      taken = made.weight;
      forget(made.weight);
    },
  );
  assert.equal((taken as unknown as Tensor).requiresGrad, false);
  assert.equal(layer.bias?.requiresGrad, true);
});

test("many rows of x, of more than the caches hold at a time, by an odd number of rows: the products of the floating weight", async () => {
  setDevice(nativeDevice());
  const [rows, width] = [131, 4096];
  let seed = 11;
  const random = (): number => {
    seed = (seed * 16807) % 2147483647;
    return seed / 2147483647;
  };
  const numbers = (n: number): Float32Array => Float32Array.from({ length: n }, () => 2 * random() - 1);
  const scales = tensor(
    Float32Array.from({ length: (rows * width) / 32 }, () => 0.001 + random()),
    { shape: [rows, width / 32] },
  ).to("float16").node;
  const products: [name: string, of: (x: Tensor) => Tensor, weight: Tensor][] = [];
  for (const bits of [8, 4] as const) {
    const bytes = (width * bits) / 8;
    const codes = fromRaw(
      Uint8Array.from({ length: rows * bytes }, () => 256 * random()),
      "uint8",
      [rows, bytes],
    ).node;
    const weight = new Tensor(dequantizeBlocks(codes, scales, { bits }));
    products.push([`${bits} bits`, (x) => new Tensor(blockLinear(x.node, codes, scales, { bits })), weight]);
  }
  for (const format of Object.keys(storedFormats) as StoredFormat[]) {
    const bytes = randomBlocks(format, rows * width, random);
    const blocks = fromRaw(bytes, "uint8", [rows, bytes.length / rows]).node;
    const weight = new Tensor(dequantizeStored(blocks, format));
    products.push([format, (x) => new Tensor(storedLinear(x.node, blocks, { format })), weight]);
  }
  for (const M of [2, 5, 39, 70]) {
    const x = tensor(numbers(M * width), { shape: [M, width] });
    for (const [name, of, weight] of products) {
      const [got, expected] = await Promise.all([of(x), x.matmul(weight.transpose(0, 1))].map((y) => y.data()));
      const size = Math.hypot(...expected) / Math.sqrt(expected.length);
      // x is rounded to 16 bits
      assertClose(`${name}, ${M} rows`, got, expected, { rtol: 0, atol: 3e-4 * size });
    }
  }
});

test("products with blocks that do not fit are refused, by name", () => {
  setDevice("reference");
  const blocks = (bytes: number) => fromRaw(new Uint8Array(2 * bytes), "uint8", [2, bytes]).node;
  const x = tensor(new Float32Array(3 * 256), { shape: [3, 256] });
  const product = (input: Tensor, bytes: number) => storedLinear(input.node, blocks(bytes), { format: "q4_k" });
  assert.deepEqual(product(x, 144).shape, [3, 2]);
  assert.throws(() => product(x, 288), /storedLinear: the input \[3, 256\] has 256 features, the weight takes 512/);
  assert.throws(() => product(x, 145), /the weight takes 257\.7/);
  assert.throws(() => product(x.reshape(3, 2, 128), 144), /the input must have 2 axes/);
});

test("decoding makes as many programs for 8 tokens as for 150", async () => {
  const device = nativeDevice();
  setDevice(device);
  const model = await modelOf(ggufOf("q8_0", true), true);
  assert.ok(model.model.layers.at(0)!.mlp.down_proj instanceof BlockLinear);
  const made = async (maxNewTokens: number): Promise<number> => {
    await generate(model, prompt, { maxNewTokens });
    return programCounts(device).made;
  };
  assert.equal(await made(8), await made(150));
});

const maps = process.platform === "linux" && process.env["NABLA_MMAP"] !== "0";
test("weights in blocks are on the device once: those of a mapped file where they lie in it", async (t) => {
  const why = (await whyNoCpu()) || (maps ? false : "needs /proc/self/maps, to see where a file lies");
  if (why) return t.skip(why);
  setDevice("cpu");
  const folder = await mkdtemp(join(tmpdir(), "nabla-blocks-"));
  try {
    for (const type of ["q4_k", "q8_0"] as const) {
      const path = join(folder, `${type}.gguf`);
      await writeFile(path, ggufOf(type, false, [768, 1024]));
      const model = await fromPretrained(path, { keepQuantized: true, tokenizer: null });
      const ranges = (await readFile("/proc/self/maps", "utf8"))
        .split("\n")
        .filter((line) => line.includes(path))
        .map((line) => line.split(/[- ]/, 2).map((x) => Number.parseInt(x, 16)));
      for (const [name, layer] of model.namedModules()) {
        // rows of queries and keys are put in another order first
        if (!(layer instanceof BlockLinear) || /[qk]_proj$/.test(name)) continue;
        const memory = layer.codes.node.storage?.memory as Memory | null | undefined;
        assert.ok(memory, `${type}, ${name}: nothing is left to be computed`);
        const inFile = ranges.some(([start, end]) => memory.pointer >= start && memory.pointer < end);
        assert.equal(inFile, type === "q4_k", `${type}, ${name}`);
      }
    }
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
});
