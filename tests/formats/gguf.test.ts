import assert from "node:assert/strict";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test } from "node:test";
import { pathToFileURL } from "node:url";
import fc from "fast-check";
import { toBfloat16Bits, toFloat16Bits } from "../../src/core/dtype.ts";
import { DTypeError, ShapeError } from "../../src/core/errors.ts";
import {
  dequantize,
  FormatError,
  formatGguf,
  type GgufInput,
  type GgufTensorInput,
  type GgufType,
  type GgufValue,
  loadGguf,
  quantize,
  readGguf,
  writeGguf,
} from "../../src/formats/index.ts";
import { bytesOf, fixture, floatsOf, realFile } from "./files.ts";

const bits = (x: Float32Array): Uint32Array => new Uint32Array(x.buffer, x.byteOffset, x.length);

/** A random access over bytes that counts what is read of them. */
function counted(bytes: Uint8Array) {
  const access = {
    size: bytes.length,
    name: "counted.gguf",
    readBytes: 0,
    read: async (offset: number, length: number) => {
      access.readBytes += length;
      return bytes.slice(offset, offset + length);
    },
  };
  return access;
}

const rejects = (what: RegExp, offset?: number) => (error: Error) => {
  assert.ok(error instanceof FormatError, String(error));
  assert.match(error.message, what);
  assert.match(error.message, new RegExp(`^\\S+: byte ${error.offset}: `));
  if (offset !== undefined) assert.equal(error.offset, offset, error.message);
  return true;
};

const minimal: GgufInput = {
  metadata: { "general.architecture": { type: "string", value: "test" } },
  tensors: {
    a: { type: "f32", shape: [2, 3], data: Float32Array.of(1, 2, 3, 4, 5, 6) },
    b: { type: "f16", shape: [4], data: Float32Array.of(1, 2, 3, 4) },
  },
};

/** The file with 8 bytes replaced. */
function patched(bytes: Uint8Array, at: number, value: bigint): Uint8Array {
  const out = bytes.slice();
  new DataView(out.buffer).setBigUint64(at, value, true);
  return out;
}
/** Where a text ends in a file. */
const after = (bytes: Uint8Array, text: string): number => Buffer.from(bytes).indexOf(text) + text.length;

describe("gguf", () => {
  for (const [i, { file, tensors }] of fixture.gguf.entries())
    test(`what the gguf package writes is read, with all types of metadata and tensors (${i ? 64 : 32} aligned)`, async () => {
      const { version, alignment, metadata, tensors: got } = await readGguf(bytesOf(file));
      assert.deepEqual([version, alignment], [3, i ? 64 : 32]);
      const value = (key: string) => metadata.get(key);
      assert.deepEqual(value("general.architecture"), { type: "string", value: "test" });
      assert.deepEqual(
        [...metadata].filter(([key]) => key.startsWith("v.")).map(([, v]) => [v.type, v.value]),
        [
          ["uint8", 200],
          ["int8", -100],
          ["uint16", 60000],
          ["int16", -30000],
          ["uint32", 4000000000],
          ["int32", -2000000000],
          ["float32", Math.fround(0.1)],
          ["bool", true],
          ["string", "∇ grüße 你好"],
          ["uint64", 2n ** 64n - 1n],
          ["int64", -(2n ** 63n)],
          ["float64", 0.1],
        ],
      );
      assert.deepEqual(value("a.strings"), { type: "array", itemType: "string", value: ["<s>", "", "▁the"] });
      assert.deepEqual(value("a.floats"), { type: "array", itemType: "float32", value: Float32Array.of(0.5, -1.25) });
      assert.deepEqual(value("a.ints"), { type: "array", itemType: "int32", value: Int32Array.of(1, -2, 3) });
      assert.deepEqual(value("a.bools"), { type: "array", itemType: "bool", value: [true, false] });
      assert.deepEqual([...got.keys()].sort(), Object.keys(tensors).sort());
      for (const [name, { shape, float32 }] of Object.entries(tensors)) {
        const tensor = got.get(name)!;
        assert.deepEqual(tensor.shape, shape, name);
        assert.equal(tensor.offset % alignment, 0);
        assert.equal((await tensor.read()).length, tensor.byteLength);
        assert.deepEqual(bits(await tensor.float32()), bits(floatsOf(float32)), name);
      }
    });

  for (const [i, { file, values }] of fixture.gguf.entries())
    test(`what is written is byte for byte what the gguf package writes (${i ? 64 : 32} aligned)`, async () => {
      const read = await readGguf(bytesOf(file));
      const tensors: Record<string, GgufTensorInput> = {};
      for (const [name, { type, shape, read: bytes }] of read.tensors) {
        const written = ["f32", "f16", "bf16", "q8_0", "q4_0"].includes(type) && name !== "t.vector";
        tensors[name] = { type, shape, data: written ? floatsOf(values) : await bytes() };
      }
      assert.deepEqual(Buffer.from(formatGguf({ metadata: read.metadata, tensors })), Buffer.from(bytesOf(file)));
    });

  test("a path, an address, a blob, bytes and one's own random access give the same; of a large file only what is asked for is read", async () => {
    const folder = await mkdtemp(join(tmpdir(), "nabla-gguf-"));
    try {
      const path = join(folder, "x.gguf");
      const large = {
        ...minimal,
        tensors: { ...minimal.tensors, c: { type: "f32", shape: [1 << 20], data: new Float32Array(1 << 20) } },
      } as const;
      await writeGguf(path, large);
      const bytes = new Uint8Array(await readFile(path));
      assert.deepEqual(Buffer.from(bytes), Buffer.from(formatGguf(large)));
      const access = counted(bytes);
      const address = `data:application/octet-stream;base64,${Buffer.from(bytes).toString("base64")}`;
      for (const source of [
        path,
        pathToFileURL(path),
        bytes,
        Buffer.concat([bytes]),
        new Blob([bytes]),
        access,
        address,
      ]) {
        const { tensors } = await readGguf(source);
        assert.deepEqual([...(await tensors.get("a")!.float32())], [1, 2, 3, 4, 5, 6]);
        assert.deepEqual([...(await tensors.get("b")!.float32())], [1, 2, 3, 4]);
      }
      assert.ok(access.readBytes < 1 << 20, `${access.readBytes} of ${bytes.length} bytes`);
      const { tensors } = await readGguf(path);
      await writeGguf(path, minimal);
      await assert.rejects(tensors.get("a")!.read(), /it changed since it was opened/);
    } finally {
      await rm(folder, { recursive: true });
    }
  });

  test("a header larger than the first look at the file is read to its end", async () => {
    const words = Array.from({ length: 100_000 }, (_, i) => `word ${i}`);
    const bytes = formatGguf({ ...minimal, metadata: { words: { type: "array", itemType: "string", value: words } } });
    const { metadata, tensors } = await readGguf(counted(bytes));
    assert.deepEqual(metadata.get("words")!.value, words);
    assert.deepEqual([...(await tensors.get("a")!.float32())], [1, 2, 3, 4, 5, 6]);
  });

  test("version 2 is read as version 3; other versions and other files are named", async () => {
    const bytes = formatGguf(minimal);
    const version = (v: number) => {
      const out = bytes.slice();
      new DataView(out.buffer).setUint32(4, v, true);
      return out;
    };
    assert.equal((await readGguf(version(2))).version, 2);
    await assert.rejects(readGguf(version(1)), rejects(/GGUF version 1/, 4));
    await assert.rejects(readGguf(version(4)), rejects(/GGUF version 4; versions 2 and 3/, 4));
    await assert.rejects(readGguf(version(0x03000000)), rejects(/big-endian/, 4));
    await assert.rejects(readGguf(new Uint8Array(100)), rejects(/does not begin with "GGUF"/, 0));
    await assert.rejects(readGguf(new Uint8Array(0)), rejects(/truncated/, 0));
  });

  test("every truncation is an error that says where", async () => {
    const bytes = formatGguf(minimal);
    const end = (await readGguf(bytes)).tensors.get("b")!;
    for (let n = 0; n < end.offset + end.byteLength; n++)
      await assert.rejects(readGguf(bytes.subarray(0, n)), rejects(/./), `${n} bytes`);
  });

  test("wrong counts, types, offsets and names are errors at their byte", async () => {
    const bytes = formatGguf(minimal);
    const a = bytes.length - Buffer.from(bytes).reverse().indexOf("a"); // after the name of tensor a
    const cases: [number, bigint, RegExp, number?][] = [
      [8, 2n ** 63n, /the number of tensors is 9223372036854775808/],
      [16, 2n ** 63n, /the number of metadata is 9223372036854775808/],
      [24, 2n ** 63n, /the length of a key/],
      [after(bytes, "general.architecture") + 4, 2n ** 62n, /the length of metadata "general.architecture"/],
      [after(bytes, "general.architecture"), 13n, /is of type 13/],
      [a + 4, 2n ** 61n, /a dimension of 2305843009213693952/],
      [a + 20, 11n, /is of type q3_k, which is not read here/],
      [a + 20, 77n, /is of type 77, which is not read here/],
      [a + 20, 2n, /rows of 3 do not fill blocks of q4_0/, a + 4],
      [a + 24, 2n ** 63n, /reach past the end/],
      [a + 24, 4n, /no multiple of the alignment/],
      [a + 24, 32n, /the bytes of tensor "[ab]" overlap those of "[ab]"/],
    ];
    for (const [at, value, what, offset = at] of cases) {
      const keep = at === a + 20 ? new DataView(bytes.buffer).getUint32(at + 4, true) : 0;
      const wrong = patched(bytes, at, value | (BigInt(keep) << 32n));
      if (value === 32n) await assert.rejects(readGguf(wrong), rejects(what));
      else await assert.rejects(readGguf(wrong), rejects(what, offset));
    }
    const dims = bytes.slice();
    new DataView(dims.buffer).setUint32(a, 5, true);
    await assert.rejects(readGguf(dims), rejects(/has 5 dimensions/, a));
    const twice = bytes.slice();
    twice[after(bytes, "a") - 1] = 98;
    twice[a - 1] = 98;
    await assert.rejects(readGguf(twice), rejects(/tensor "b" twice/));
  });

  test("arrays in arrays are read to a depth, and beyond it are an error", async () => {
    const nested = (depth: number): GgufValue => {
      let value: GgufValue = { type: "array", itemType: "uint8", value: Uint8Array.of(1) };
      for (let i = 1; i < depth; i++) value = { type: "array", itemType: "array", value: [value] };
      return value;
    };
    const file = (depth: number) => formatGguf({ metadata: { x: nested(depth) }, tensors: {} });
    assert.deepEqual((await readGguf(file(16))).metadata.get("x"), nested(16));
    assert.throws(() => file(17), DTypeError);
    // an array of one array of one array … : type 9 and the count 1, a hundred thousand times
    const deep = new Uint8Array(16 + 12 * 100_000);
    const view = new DataView(deep.buffer);
    for (let at = 0; at < 12 * 100_000; at += 12) {
      view.setUint32(at, 9, true);
      view.setBigUint64(at + 4, 1n, true);
    }
    const start = file(1);
    const x = after(start, "x") + 4; // behind the type of the value
    await assert.rejects(
      readGguf(Buffer.concat([start.subarray(0, x), deep])),
      rejects(/an array in more than 16 arrays/, x + 16 * 12),
    );
  });

  test("what is written is read back, whatever it is", async () => {
    const scalar = fc.oneof(
      fc.integer({ min: 0, max: 255 }).map((value): GgufValue => ({ type: "uint8", value })),
      fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 }).map((value): GgufValue => ({ type: "int32", value })),
      fc.float({ noNaN: true }).map((value): GgufValue => ({ type: "float32", value })),
      fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }).map((value): GgufValue => ({ type: "uint64", value })),
      fc.boolean().map((value): GgufValue => ({ type: "bool", value })),
      fc.string({ unit: "grapheme" }).map((value): GgufValue => ({ type: "string", value })),
      fc.array(fc.string()).map((value): GgufValue => ({ type: "array", itemType: "string", value })),
      fc.int16Array().map((value): GgufValue => ({ type: "array", itemType: "int16", value })),
    );
    const key = fc.string({ minLength: 1 }).filter((s) => s !== "general.alignment");
    const shape = fc.array(fc.integer({ min: 0, max: 3 }), { maxLength: 3 });
    const tensor = fc
      .tuple(shape, fc.constantFrom<GgufType>("f32", "q8_0", "q4_0"))
      .map(([rows, type]): GgufTensorInput => {
        const full = [...rows, 32];
        const size = full.reduce((n, d) => n * d, 1);
        return { type, shape: full, data: Float32Array.from({ length: size }, (_, i) => Math.sin(i)) };
      });
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.tuple(key, scalar)).map((list) => new Map(list)),
        fc.array(fc.tuple(fc.string(), tensor), { maxLength: 4 }).map((list) => new Map(list)),
        async (metadata, tensors) => {
          const back = await readGguf(formatGguf({ metadata, tensors }));
          assert.deepEqual(back.metadata, metadata);
          assert.deepEqual([...back.tensors.keys()], [...tensors.keys()]);
          for (const [name, { type, shape: dims, data }] of tensors) {
            const got = back.tensors.get(name)!;
            assert.deepEqual([got.type, got.shape], [type, dims]);
            assert.deepEqual(Buffer.from(await got.read()), Buffer.from(quantize(type, data as Float32Array)));
          }
        },
      ),
      { numRuns: process.env["NABLA_LONG"] === "1" ? 2000 : 100 },
    );
  });

  test("a tensor without elements may lie anywhere", async () => {
    const bytes = formatGguf({ tensors: { none: { type: "f32", shape: [3, 0], data: new Float32Array(0) } } });
    const { tensors } = await readGguf(counted(patched(bytes, after(bytes, "none") + 4 + 16 + 4, 32n)));
    assert.deepEqual(tensors.get("none")!.shape, [3, 0]);
    assert.equal((await tensors.get("none")!.float32()).length, 0);
  });

  test("q8_0 and q4_0 lose no more than half a step (q4_0: one at the far end)", () => {
    const values = Float32Array.from({ length: 320 }, (_, i) => Math.sin(i * i) * (1 + (i >> 5)));
    for (const [type, steps, most] of [
      ["q8_0", 127, 0.51],
      ["q4_0", 8, 1.01],
    ] as const) {
      const back = dequantize(type, quantize(type, values), values.length);
      for (let b = 0; b < values.length; b += 32) {
        const block = values.subarray(b, b + 32);
        const step = Math.max(...block.map(Math.abs)) / steps;
        for (let j = 0; j < 32; j++) assert.ok(Math.abs(back[b + j] - block[j]) <= most * step, `${type} ${b + j}`);
      }
    }
  });

  test("f16 and bf16 keep every half and bfloat16 there is", () => {
    for (const [type, toBits] of [
      ["f16", toFloat16Bits],
      ["bf16", toBfloat16Bits],
    ] as const) {
      const all = new Uint8Array(Uint16Array.from({ length: 1 << 16 }, (_, i) => i).buffer);
      const values = dequantize(type, all, 1 << 16);
      for (let i = 0; i < 1 << 16; i++)
        if (!Number.isNaN(values[i])) assert.equal(toBits(values[i]), i, `${type} ${i}`);
    }
  });

  test("float32 numbers are rounded to half precision as core rounds them: at ties, ends and subnormals too", () => {
    const values: number[] = [
      0,
      -0,
      65504,
      65519.99,
      65520,
      -65520,
      1e38,
      Infinity,
      -Infinity,
      2 ** -25,
      3 * 2 ** -25,
      1e-45,
    ];
    const halves = dequantize("f16", new Uint8Array(Uint16Array.from({ length: 0x7c00 }, (_, i) => i).buffer), 0x7c00);
    for (let i = 0; i + 1 < halves.length; i += 3) {
      const middle = (halves[i] + halves[i + 1]) / 2; // exact in float32
      values.push(halves[i], middle, middle * (1 + 2 ** -23), middle * (1 - 2 ** -23), -middle);
    }
    const got = new Uint16Array(quantize("f16", Float32Array.from(values)).buffer);
    const wrong = Array.from(got.keys()).filter((i) => got[i] !== toFloat16Bits(Math.fround(values[i])));
    assert.deepEqual(wrong, []);
    assert.deepEqual([...quantize("f16", Float32Array.of(Number.NaN))], [0, 0x7e]);
  });

  test("what does not fit is refused when it is written", () => {
    const one = (tensor: Partial<GgufTensorInput>): GgufInput => ({
      tensors: { x: { type: "f32", shape: [2], data: new Float32Array(2), ...tensor } },
    });
    assert.throws(() => formatGguf(one({ shape: [3] })), ShapeError);
    assert.throws(() => formatGguf(one({ type: "q8_0" })), /rows of 2 do not fill blocks of q8_0/);
    assert.throws(() => formatGguf(one({ shape: [1, 1, 1, 1, 2] })), /at most 4/);
    assert.throws(
      () => formatGguf(one({ type: "q6_k", shape: [256], data: new Float32Array(256) })),
      (error: Error) => error instanceof DTypeError && /q6_k is read but not written/.test(error.message),
    );
    const bad = new Float32Array(32);
    bad[7] = Number.NaN;
    assert.throws(() => formatGguf(one({ type: "q4_0", shape: [32], data: bad })), /tensor "x": element 7 is NaN/);
    const meta = (value: unknown) => () => formatGguf({ metadata: { k: value as GgufValue }, tensors: {} });
    assert.throws(meta({ type: "uint8", value: 256 }), /holds 256, which is no uint8/);
    assert.throws(meta({ type: "uint64", value: 5 }), /is no uint64/);
    assert.throws(meta({ type: "string", value: 5 }), DTypeError);
    assert.throws(meta({ type: "number", value: 5 }), /there is no type number/);
  });

  test("a GGUF file is loaded as tensors: floats as they are, blocks as float32", async () => {
    const state = await loadGguf(bytesOf(fixture.gguf[0].file), { device: "reference" });
    assert.equal(state["t.f16"].dtype, "float16");
    assert.equal(state["t.bf16"].dtype, "bfloat16");
    assert.equal(state["t.q6_k"].dtype, "float32");
    const { shape, float32 } = fixture.gguf[0].tensors["t.q6_k"];
    assert.deepEqual(state["t.q6_k"].shape, shape);
    assert.deepEqual(await state["t.q6_k"].data(), floatsOf(float32));
  });

  const stories = realFile("stories260k/stories260K.gguf");
  const checkpoint = realFile("stories260k/stories260K.bin");
  test("stories260K loads with its metadata, and its tensors are those of the llama2.c checkpoint", {
    skip: stories.skip || checkpoint.skip,
  }, async () => {
    const { version, metadata, tensors } = await readGguf(stories.path);
    const value = (key: string) => metadata.get(key)?.value;
    assert.equal(version, 3);
    assert.equal(value("general.architecture"), "llama");
    assert.equal(value("llama.embedding_length"), 64);
    assert.equal(value("llama.block_count"), 5);
    assert.equal(value("llama.attention.head_count"), 8);
    assert.equal(value("llama.attention.head_count_kv"), 4);
    assert.equal(value("llama.feed_forward_length"), 172);
    assert.equal(value("llama.context_length"), 2048);
    assert.equal(value("tokenizer.ggml.model"), "llama");
    assert.equal((value("tokenizer.ggml.tokens") as string[]).length, 512);
    assert.equal((value("tokenizer.ggml.scores") as Float32Array).length, 512);
    assert.equal(tensors.size, 48);
    assert.ok([...tensors.values()].every(({ type }) => type === "f32"));
    // the checkpoint: 7 int32, then for each kind of tensor those of all layers
    const bin = new Uint8Array(await readFile(checkpoint.path));
    const floats = new Float32Array(bin.slice(28).buffer);
    let at = 0;
    const next = async (name: string): Promise<void> => {
      const got = await tensors.get(name)!.float32();
      const expected = floats.subarray(at, at + got.length);
      at += got.length;
      assert.deepEqual(bits(got), new Uint32Array(expected.slice().buffer), name);
    };
    const layers = [0, 1, 2, 3, 4];
    await next("token_embd.weight");
    for (const l of layers) await next(`blk.${l}.attn_norm.weight`);
    for (const l of layers) await next(`blk.${l}.attn_q.weight`);
    for (const l of layers) await next(`blk.${l}.attn_k.weight`);
    for (const l of layers) await next(`blk.${l}.attn_v.weight`);
    for (const l of layers) await next(`blk.${l}.attn_output.weight`);
    for (const l of layers) await next(`blk.${l}.ffn_norm.weight`);
    for (const l of layers) await next(`blk.${l}.ffn_gate.weight`);
    for (const l of layers) await next(`blk.${l}.ffn_down.weight`);
    for (const l of layers) await next(`blk.${l}.ffn_up.weight`);
    await next("output_norm.weight");
  });
});
