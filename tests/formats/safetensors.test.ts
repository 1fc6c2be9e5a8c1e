import assert from "node:assert/strict";
import { mkdtemp, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test } from "node:test";
import fc from "fast-check";
import {
  formatSafetensors,
  parseSafetensors,
  readSafetensors,
  type SafetensorsDType,
  type SafetensorsEntry,
  SafetensorsError,
  writeSafetensors,
} from "../../src/formats/safetensors.ts";

/** A file from a header text and data, however wrong. */
function raw(header: string, data = new Uint8Array(0)): Uint8Array {
  const text = new TextEncoder().encode(header);
  const out = new Uint8Array(8 + text.length + data.length);
  new DataView(out.buffer).setBigUint64(0, BigInt(text.length), true);
  out.set(text, 8);
  out.set(data, 8 + text.length);
  return out;
}

const sizes: Record<string, number> = {
  F64: 8,
  F32: 4,
  F16: 2,
  BF16: 2,
  I64: 8,
  I32: 4,
  I16: 2,
  I8: 1,
  U8: 1,
  BOOL: 1,
};

const entry = fc
  .record({
    dtype: fc.constantFrom(...(Object.keys(sizes) as SafetensorsDType[])),
    shape: fc.array(fc.integer({ min: 0, max: 4 }), { maxLength: 4 }),
    seed: fc.integer({ min: 0, max: 255 }),
  })
  .map(({ dtype, shape, seed }): SafetensorsEntry => {
    const bytes = new Uint8Array(shape.reduce((n, d) => n * d, sizes[dtype]));
    for (let i = 0; i < bytes.length; i++) bytes[i] = (seed + i * 7) & 255;
    return { dtype, shape, bytes };
  });
const name = fc.string({ unit: "grapheme" }).filter((s) => s !== "__metadata__" && !/\p{Surrogate}/u.test(s));
const file = fc.array(fc.tuple(name, entry), { maxLength: 6 }).map((list) => new Map(list));

describe("safetensors", () => {
  test("what is written is read back, with its metadata, and every tensor is aligned to its element", () => {
    fc.assert(
      fc.property(file, fc.option(fc.dictionary(name, name), { nil: undefined }), (tensors, metadata) => {
        const bytes = formatSafetensors(tensors, metadata);
        const back = parseSafetensors(bytes);
        assert.deepEqual({ ...back.metadata }, { ...(metadata ?? {}) });
        assert.equal(back.tensors.size, tensors.size);
        for (const [key, { dtype, shape, bytes: data }] of tensors) {
          const got = back.tensors.get(key)!;
          assert.deepEqual([got.dtype, got.shape, Buffer.from(got.bytes)], [dtype, shape, Buffer.from(data)]);
          assert.equal(got.bytes.byteOffset % sizes[dtype], 0);
        }
      }),
      { numRuns: process.env["NABLA_LONG"] === "1" ? 5000 : 200 },
    );
  });

  test("the bytes are those of the reference library", () => {
    const zeros = (dtype: SafetensorsDType, ...shape: number[]): SafetensorsEntry => ({
      dtype,
      shape,
      bytes: new Uint8Array(shape.reduce((n, d) => n * d, sizes[dtype])),
    });
    const bytes = formatSafetensors(
      {
        b: zeros("F32", 2),
        a: zeros("F32"),
        h: zeros("BF16", 3),
        i: zeros("I64", 1),
        m: zeros("BOOL", 2),
        u: zeros("U8", 1),
        z: zeros("F16", 1),
        d: zeros("F64", 1),
        j: zeros("I32", 1),
        k: zeros("I16", 1),
        l: zeros("I8", 1),
      },
      { format: "pt" },
    );
    const header = new TextDecoder().decode(
      bytes.subarray(8, 8 + Number(new DataView(bytes.buffer).getBigUint64(0, true))),
    );
    assert.equal(header.length % 8, 0);
    // safetensors 0.8.0, safetensors.torch.save of the same names, dtypes and shapes with metadata={"format": "pt"}
    assert.equal(header.length, 640);
    assert.equal(
      header.trimEnd(),
      '{"__metadata__":{"format":"pt"},"i":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},' +
        '"d":{"dtype":"F64","shape":[1],"data_offsets":[8,16]},"a":{"dtype":"F32","shape":[],"data_offsets":[16,20]},' +
        '"b":{"dtype":"F32","shape":[2],"data_offsets":[20,28]},"j":{"dtype":"I32","shape":[1],"data_offsets":[28,32]},' +
        '"h":{"dtype":"BF16","shape":[3],"data_offsets":[32,38]},"z":{"dtype":"F16","shape":[1],"data_offsets":[38,40]},' +
        '"k":{"dtype":"I16","shape":[1],"data_offsets":[40,42]},"l":{"dtype":"I8","shape":[1],"data_offsets":[42,43]},' +
        '"u":{"dtype":"U8","shape":[1],"data_offsets":[43,44]},"m":{"dtype":"BOOL","shape":[2],"data_offsets":[44,46]}}',
    );
    assert.deepEqual(Buffer.from(formatSafetensors({})), Buffer.from("\x08\0\0\0\0\0\0\0{}      "));
  });

  test("every truncation of a file is an error that says so", () => {
    const bytes = formatSafetensors({
      w: { dtype: "F32", shape: [2, 3], bytes: new Uint8Array(24) },
      b: { dtype: "F32", shape: [3], bytes: new Uint8Array(12) },
    });
    for (let n = 0; n < bytes.length; n++)
      assert.throws(
        () => parseSafetensors(bytes.subarray(0, n), "model.safetensors"),
        (error: Error) => {
          assert.ok(error instanceof SafetensorsError, String(error.stack));
          assert.match(error.message, /^model\.safetensors: .*(truncated|only \d+ bytes)/s);
          return true;
        },
      );
  });

  const one = (info: string) => raw(`{"w":${info}}`, new Uint8Array(8));
  const broken: [promise: string, bytes: Uint8Array, message: RegExp][] = [
    ["bad JSON", raw("{nope}"), /x: the header is not valid JSON/],
    ["invalid UTF-8 in the header", Uint8Array.of(2, 0, 0, 0, 0, 0, 0, 0, 0x7b, 0xff), /not valid JSON/],
    ["a header that is no object", raw("[1]"), /must be a JSON object/],
    ["a header length beyond any", raw("{}").fill(255, 0, 8), /claims 18446744073709551615 bytes/],
    [
      "an unknown dtype",
      one('{"dtype":"F7","shape":[2],"data_offsets":[0,8]}'),
      /tensor "w": unknown dtype "F7"; known are BOOL/,
    ],
    ["a missing field", one('{"dtype":"F32","shape":[2]}'), /tensor "w": data_offsets must be two whole numbers/],
    ["a negative size", one('{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}'), /tensor "w": shape must be/],
    [
      "offsets past the end",
      one('{"dtype":"F32","shape":[4],"data_offsets":[0,16]}'),
      /tensor "w": .*past the end.*truncated/,
    ],
    [
      "offsets backwards",
      one('{"dtype":"F32","shape":[2],"data_offsets":[8,0]}'),
      /tensor "w": .*end before they begin/,
    ],
    [
      "a shape of other size",
      one('{"dtype":"F32","shape":[3],"data_offsets":[0,8]}'),
      /tensor "w": .*takes 12 bytes, but data_offsets hold 8/,
    ],
    [
      "a shape too large",
      one('{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}'),
      /tensor "w": .*too large/,
    ],
    [
      "overlapping tensors",
      raw(
        '{"v":{"dtype":"U8","shape":[6],"data_offsets":[0,6]},"w":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}',
        new Uint8Array(8),
      ),
      /tensor "w": its bytes overlap those of "v"/,
    ],
    ["a hole", one('{"dtype":"U8","shape":[4],"data_offsets":[4,8]}'), /4 bytes before it belong to no tensor/],
    ["bytes left over", one('{"dtype":"U8","shape":[4],"data_offsets":[0,4]}'), /4 bytes after the last tensor/],
    [
      "a name twice",
      raw(
        '{"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"\\u0077":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}',
        new Uint8Array(8),
      ),
      /holds the name "w" twice/,
    ],
    ["metadata that is no string", raw('{"__metadata__":{"a":1}}'), /__metadata__\["a"\] must be a string/],
  ];
  for (const [promise, bytes, message] of broken)
    test(`${promise} is an error naming file and tensor`, () => {
      assert.throws(
        () => parseSafetensors(bytes, "x"),
        (error: Error) => {
          assert.ok(error instanceof SafetensorsError);
          assert.match(error.message, message);
          return true;
        },
      );
    });

  test("writing bytes that do not fit the shape is an error", () => {
    assert.throws(
      () => formatSafetensors({ w: { dtype: "F32", shape: [2], bytes: new Uint8Array(4) } }),
      /tensor "w": F32 of shape \[2\] takes 8 bytes, got 4/,
    );
  });

  test("a name like __proto__ is a name", () => {
    const tensors = new Map([["__proto__", { dtype: "U8" as const, shape: [1], bytes: Uint8Array.of(7) }]]);
    assert.deepEqual([...parseSafetensors(formatSafetensors(tensors)).tensors.get("__proto__")!.bytes], [7]);
    const metadata = JSON.parse('{"__proto__":"x"}') as Record<string, string>;
    assert.deepEqual(Object.entries(parseSafetensors(formatSafetensors(tensors, metadata)).metadata), [
      ["__proto__", "x"],
    ]);
  });

  test("a file goes through the disk; a truncated one and a missing one are clear errors", async () => {
    const folder = await mkdtemp(join(tmpdir(), "nabla-safetensors-"));
    try {
      const path = join(folder, "model.safetensors");
      const values = Float32Array.of(1, 2, 3);
      const bytes = new Uint8Array(values.buffer);
      await writeSafetensors(path, { w: { dtype: "F32", shape: [3], bytes } }, { step: "5" });
      const { tensors, metadata } = await readSafetensors(path);
      const got = tensors.get("w")!;
      assert.deepEqual(new Float32Array(got.bytes.buffer, got.bytes.byteOffset, 3), values);
      assert.equal(metadata["step"], "5");
      assert.deepEqual((await readFile(path)).length % 4, 0);
      await truncate(path, (await readFile(path)).length - 4);
      await assert.rejects(readSafetensors(path), /model\.safetensors: tensor "w": .*truncated/);
      await assert.rejects(readSafetensors(join(folder, "none")), /can't read .*none: there is no such file/);
      await writeFile(path, "");
      await assert.rejects(readSafetensors(path), SafetensorsError);
    } finally {
      await rm(folder, { recursive: true });
    }
  });
});
