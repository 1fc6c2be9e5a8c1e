import assert from "node:assert/strict";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test } from "node:test";
import { DTypeError, ShapeError } from "../../src/core/errors.ts";
import {
  FormatError,
  formatNpy,
  formatNpz,
  loadNpz,
  type NpyInput,
  readNpy,
  readNpz,
  type StoredDType,
  writeNpy,
  writeNpz,
} from "../../src/formats/index.ts";
import { bytesOf, fixture, kinds, realFile } from "./files.ts";

const { npy, npz, refused } = fixture.numpy;

const rejects = (what: RegExp, offset?: number) => (error: Error) => {
  assert.ok(error instanceof FormatError, String(error.stack));
  assert.match(error.message, what);
  if (offset !== undefined) assert.equal(error.offset, offset, error.message);
  return true;
};

/** A .npy file of version 1 with this header. */
function raw(header: string, data = 0): Uint8Array {
  const out = Buffer.alloc(10 + header.length + data);
  out.write("\x93NUMPY\x01\x00", "latin1");
  out.writeUInt16LE(header.length, 8);
  out.write(header, 10, "latin1");
  return new Uint8Array(out);
}

describe("numpy", () => {
  for (const { kind, file, shape, fortranOrder, data } of npy) {
    const bytes = Buffer.from(file, "base64");
    const descr = /'descr': '(.*?)'/.exec(bytes.toString("latin1"))![1];
    const order = fortranOrder ? "Fortran" : "C";
    test(`a .npy version ${bytes[6]} of ${descr} [${shape}] in ${order} order reads as NumPy wrote it`, async () => {
      const array = await readNpy(bytesOf(file));
      assert.equal(array.dtype, kinds[kind]);
      assert.deepEqual(array.shape, shape);
      assert.equal(array.fortranOrder, fortranOrder);
      const buffer = Buffer.concat([Buffer.alloc(1), bytesOf(file)]).subarray(1); // at an odd place of a Node Buffer
      assert.deepEqual(Buffer.from(await (await readNpy(buffer)).read()), Buffer.from(bytesOf(data)));
      const read = await array.read();
      assert.equal(read.length, array.byteLength);
      assert.deepEqual(Buffer.from(read), Buffer.from(bytesOf(data)));
    });
  }

  test("what is read of bytes leaves them as they were", async () => {
    const { file } = npy.find(({ kind, file: f }) => kind === "f4" && Buffer.from(f, "base64").includes(">f4"))!;
    const bytes = bytesOf(file);
    await (await readNpy(bytes)).read();
    assert.deepEqual(Buffer.from(bytes), Buffer.from(file, "base64"));
  });

  test("a .npy is written byte for byte as numpy.save does", () => {
    let compared = 0;
    for (const { kind, file, shape, fortranOrder, data } of npy) {
      const theirs = Buffer.from(file, "base64");
      if (fortranOrder || theirs[6] !== 1 || theirs.includes(">")) continue;
      const ours = formatNpy({ dtype: kinds[kind] as StoredDType, shape, bytes: bytesOf(data) });
      assert.deepEqual(Buffer.from(ours), theirs);
      compared++;
    }
    assert.ok(compared >= 8);
  });

  for (const [name, file] of Object.entries(npz.files))
    test(`a .npz (${name}) reads as NumPy wrote it`, async () => {
      const arrays = await readNpz(bytesOf(file));
      assert.deepEqual([...arrays.keys()], Object.keys(npz.arrays));
      for (const [key, { kind, shape, data }] of Object.entries(npz.arrays)) {
        const array = arrays.get(key)!;
        assert.deepEqual([array.dtype, array.shape], [kinds[kind], shape]);
        assert.deepEqual(Buffer.from(await array.read()), Buffer.from(bytesOf(data)));
      }
    });

  const inputs = (): Record<string, NpyInput> =>
    Object.fromEntries(
      Object.entries(npz.arrays).map(([key, { kind, shape, data }]) => [
        key,
        { dtype: kinds[kind] as StoredDType, shape, bytes: bytesOf(data) },
      ]),
    );

  test("a .npz is written byte for byte as numpy.savez does, and the same to a file", async () => {
    assert.deepEqual(Buffer.from(formatNpz(inputs())), Buffer.from(bytesOf(npz.files["stored"])));
    const folder = await mkdtemp(join(tmpdir(), "nabla-npz-"));
    try {
      const path = join(folder, "x.npz");
      await writeNpz(path, inputs());
      assert.deepEqual(await readFile(path), Buffer.from(formatNpz(inputs())));
      const loaded = await loadNpz(path, { device: "reference" });
      assert.deepEqual(loaded["ids"].dtype, "int32");
      assert.deepEqual([...(await loaded["ids"].data())], [0, 1, 2, 3, 4]);
      assert.deepEqual(loaded["weight"].shape, [3, 4]);
      await writeNpy(join(folder, "x.npy"), inputs()["weight"]);
      assert.deepEqual((await readNpy(join(folder, "x.npy"))).shape, [3, 4]);
    } finally {
      await rm(folder, { recursive: true });
    }
  });

  for (const [name, file] of Object.entries(refused))
    test(`an array that is not of plain numbers is refused (${name})`, async () => {
      await assert.rejects(
        readNpy(bytesOf(file)),
        rejects(/not read here|only plain numbers|not a dict of strings/, 10),
      );
      if (name === "objects") await assert.rejects(readNpy(bytesOf(file)), /could run code/);
    });

  test("wrong headers are errors at their byte", async () => {
    const good = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n";
    assert.deepEqual((await readNpy(raw(good, 8))).shape, [2]);
    assert.deepEqual((await readNpy(raw(good.replace("(2,)", "(2L, 1L)"), 8))).shape, [2, 1]);
    for (const [header, data, what] of [
      [good, 7, /takes 8 bytes, but 7 follow/],
      [good, 9, /takes 8 bytes, but 9 follow/],
      [good.replace("(2,)", "(99999999999999999999,)"), 8, /too large/],
      [good.replace("(2,)", "(9007199254740991, 9007199254740991)"), 8, /too large/],
      [good.replace("(2,)", `(${"1,".repeat(65)})`), 4, /65 dimensions/],
      [good.replace("(2,)", `${"(".repeat(1000)}2,${")".repeat(1000)}`), 8, /nested too deeply/],
      [good.replace("(2,)", "('a',)"), 8, /not one of numbers/],
      [good.replace("(2,)", "__import__('os')"), 8, /not a dict of strings/],
      [good.replace("'shape': (2,), ", ""), 8, /shape is not a tuple/],
      [good.replace("False", "0"), 8, /fortran_order/],
      [good.replace("}", "'more': 1}"), 8, /"more" is none of its keys/],
      [good.replace("}", "'shape': (2,)}"), 8, /"shape" twice/],
      [`${good}x`, 8, /something follows/],
      ["[]", 8, /not a dict/],
    ] as const)
      await assert.rejects(readNpy(raw(header, data)), rejects(what, 10), header);
    const bytes = raw(good, 8);
    for (let n = 0; n < bytes.length; n++) await assert.rejects(readNpy(bytes.subarray(0, n)), rejects(/./));
    const version = bytes.slice();
    version[6] = 4;
    await assert.rejects(readNpy(version), rejects(/version 4/, 6));
  });

  test("archives that are damaged or made to harm are errors", async () => {
    const bytes = Buffer.from(
      formatNpz({
        a: { dtype: "uint8", shape: [3], bytes: Uint8Array.of(1, 2, 3) },
        b: { dtype: "uint8", shape: [1], bytes: Uint8Array.of(4) },
      }),
    );
    const directory = bytes.readUInt32LE(bytes.length - 6);
    const second = bytes.indexOf("PK\x01\x02", directory + 4, "latin1");
    const change = (edit: (b: Buffer) => void): Uint8Array => {
      const out = Buffer.from(bytes);
      edit(out);
      return new Uint8Array(out);
    };
    const cases: [string, (b: Buffer) => void, RegExp, number?][] = [
      ["overlapping members", (b) => b.writeUInt32LE(0, second + 42), /shares bytes with another/],
      ["twice the same name", (b) => b.write("a", second + 46), /holds "a.npy" twice/, second],
      ["encrypted", (b) => b.writeUInt16LE(1, second + 8), /is encrypted/, second + 8],
      ["another method", (b) => b.writeUInt16LE(14, second + 10), /packed by method 14/, second + 10],
      ["a claimed size", (b) => b.writeUInt32LE(0x7fffffff, second + 24), /stored, but of/, second + 20],
      [
        "a zip bomb",
        (b) => {
          b.writeUInt16LE(8, second + 10);
          b.writeUInt32LE(0x7fffffff, second + 24);
        },
        /more than deflate can make/,
        second + 20,
      ],
      ["a huge count", (b) => b.writeUInt32LE(0xfffefffe, b.length - 14), /do not fit a directory/],
      ["a directory out of the file", (b) => b.writeUInt32LE(0xfffffff0, b.length - 6), /reaches past the end record/],
      ["several parts", (b) => b.writeUInt16LE(1, b.length - 18), /several parts/],
      ["no end record", (b) => b.writeUInt32LE(0, b.length - 22), /no end record/],
    ];
    for (const [name, edit, what, offset] of cases)
      await assert.rejects(readNpz(change(edit)), rejects(what, offset), name);
    const wrong = await readNpz(change((b) => b.writeUInt8(9, directory - 1)));
    await assert.rejects(wrong.get("b")!.read(), rejects(/checksum/));
    assert.deepEqual([...(await wrong.get("a")!.read())], [1, 2, 3]);
    for (let n = 0; n < bytes.length; n++) await assert.rejects(readNpz(bytes.subarray(0, n)), rejects(/./));
  });

  test("what does not fit is refused when it is written", () => {
    const bytes = new Uint8Array(4);
    assert.throws(() => formatNpy({ dtype: "float32", shape: [2], bytes }), ShapeError);
    assert.throws(() => formatNpy({ dtype: "bfloat16", shape: [2], bytes }), DTypeError);
    assert.throws(() => formatNpz({ x: { dtype: "float32", shape: [-1], bytes } }), /array "x"/);
  });

  const g2p = realFile("g2p-en/checkpoint20.npz");
  test("g2p-en's arrays have the shapes of its GRUs", { skip: g2p.skip }, async () => {
    const arrays = await readNpz(g2p.path);
    const shapes = Object.fromEntries([...arrays].map(([name, { shape }]) => [name, shape]));
    assert.deepEqual(shapes, {
      enc_emb: [29, 256],
      enc_w_ih: [768, 256],
      enc_w_hh: [768, 256],
      enc_b_ih: [768],
      enc_b_hh: [768],
      dec_emb: [74, 256],
      dec_w_ih: [768, 256],
      dec_w_hh: [768, 256],
      dec_b_ih: [768],
      dec_b_hh: [768],
      fc_w: [74, 256],
      fc_b: [74],
    });
    for (const array of arrays.values()) assert.equal((await array.read()).length, array.byteLength);
  });

  const medical = realFile("pneumoniamnist/pneumoniamnist-reassembled.npz");
  test("pneumoniamnist's images and labels are unpacked", { skip: medical.skip }, async () => {
    const arrays = await readNpz(medical.path);
    assert.deepEqual(arrays.get("train_images")!.shape, [4708, 28, 28]);
    const labels = await arrays.get("test_labels")!.read();
    assert.equal(labels.filter((b) => b === 1).length, 390);
  });

  const frames = realFile("torchcrepe-tiny/frames-crepe-first500.npy");
  test("torchcrepe's frames are read", { skip: frames.skip }, async () => {
    const array = await readNpy(frames.path);
    assert.deepEqual([array.dtype, array.shape], ["float32", [500, 1024]]);
  });
});
