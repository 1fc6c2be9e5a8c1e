/** Safetensors that are mapped instead of read: the same values, no copy, and nothing that is written to them reaches the file. */
import assert from "node:assert/strict";
import { appendFile, mkdtemp, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, type TestContext, test } from "node:test";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { openCpuBackend } from "../../src/backends/cpu/index.ts";
import type { Memory } from "../../src/backends/cpu/memory.ts";
import { foreignOf } from "../../src/core/foreign.ts";
import { setDevice } from "../../src/execution/index.ts";
import {
  formatGguf,
  formatSafetensors,
  load,
  loadGguf,
  readGguf,
  readSafetensors,
  SafetensorsError,
} from "../../src/formats/index.ts";
import { Linear } from "../../src/nn/index.ts";
import { backendsUnderTest } from "../support/backends.ts";
import { whyNoCpu } from "../support/cpu.ts";

const rows = 600;
const columns = 512;
const a = Float32Array.from({ length: rows * columns }, (_, i) => Math.sin(i) / 8);
const b = Uint16Array.from({ length: 1000 }, (_, i) => 0x3f00 + (i % 64));
const file = formatSafetensors({
  a: { dtype: "F32", shape: [rows, columns], bytes: new Uint8Array(a.buffer) },
  b: { dtype: "BF16", shape: [1000], bytes: new Uint8Array(b.buffer) },
  empty: { dtype: "F32", shape: [0, 3], bytes: new Uint8Array(0) },
});

const backends = await backendsUnderTest(); // before the first test, lest the hooks run while more are still to come

let folder: string;
before(async () => {
  folder = await mkdtemp(join(tmpdir(), "nabla-mapping-"));
});
after(() => rm(folder, { recursive: true, force: true }));

let count = 0;
async function written(bytes: Uint8Array): Promise<string> {
  const path = join(folder, `${count++}.safetensors`);
  await writeFile(path, bytes);
  return path;
}

/** The file with its header made longer, by spaces, so that the data begins anywhere. */
function shifted(bytes: Uint8Array, by: number): Uint8Array {
  const length = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true));
  const out = new Uint8Array(bytes.length + by).fill(0x20);
  out.set(bytes.subarray(0, 8 + length));
  out.set(bytes.subarray(8 + length), 8 + length + by);
  new DataView(out.buffer).setBigUint64(0, BigInt(length + by), true);
  return out;
}

/** A GGUF file without metadata whose tensor begins at an odd byte. */
function unalignedGguf(bytes: Uint8Array): Uint8Array {
  const text = (value: string): Buffer => Buffer.concat([u64(value.length), Buffer.from(value)]);
  const u64 = (value: number): Buffer => Buffer.from(BigUint64Array.of(BigInt(value)).buffer);
  const u32 = (value: number): Buffer => Buffer.from(Uint32Array.of(value).buffer);
  const head = Buffer.concat([
    ...[Buffer.from(bytes.subarray(0, 8)), u64(1), u64(2)],
    ...[text("general.alignment"), u32(4), u32(1)], // uint32
    ...[text("byte"), u32(0), Buffer.of(7)], // uint8
    ...[text("a"), u32(2), u64(columns), u64(rows), u32(0), u64(0)], // f32, at 0
  ]);
  assert.equal(head.length % 2, 1);
  return Buffer.concat([head, Buffer.from(a.buffer)]);
}

// who has no mmap, or asks for none, reads: then there is nothing mapped to look at
const maps = process.platform !== "win32" && process.env["NABLA_MMAP"] !== "0";

test("a mapped file has the values of the file that is read, and tells of its progress", async () => {
  const path = await written(file);
  const told: [number, number | null][] = [];
  const { tensors, metadata } = await readSafetensors(path, { onProgress: (n, of) => void told.push([n, of]) });
  const inMemory = await readSafetensors(file);
  assert.deepEqual([...tensors.keys()], [...inMemory.tensors.keys()]);
  assert.deepEqual(metadata, inMemory.metadata);
  for (const [name, { dtype, shape, bytes }] of tensors) {
    assert.deepEqual(
      { dtype, shape, bytes: Buffer.from(bytes) },
      { ...inMemory.tensors.get(name), bytes: Buffer.from(inMemory.tensors.get(name)!.bytes) },
      name,
    );
    assert.equal(bytes.byteOffset, 0);
    assert.equal(bytes.buffer.byteLength, bytes.length);
    assert.equal(foreignOf(bytes.buffer) !== null, maps && bytes.length > 0, name);
  }
  assert.deepEqual(told.at(-1), [file.length, file.length]);
});

test("elements that are not aligned in the file are copied, the others are not", async () => {
  for (const by of [0, 1, 2, 4, 6]) {
    const { tensors } = await readSafetensors(await written(shifted(file, by)));
    for (const [name, { bytes }] of tensors) {
      assert.deepEqual(
        Buffer.from(bytes),
        Buffer.from(name === "a" ? a.buffer : name === "b" ? b.buffer : new ArrayBuffer(0)),
        `${name} ${by}`,
      );
      if (maps && bytes.length > 0)
        assert.equal(foreignOf(bytes.buffer) !== null, by % (name === "a" ? 4 : 2) === 0, `${name} ${by}`);
    }
    const loaded = await load(await written(shifted(file, by)), { device: "reference" });
    assert.deepEqual([...(await loaded["a"].data())].slice(0, 5), [...a].slice(0, 5));
  }
});

test("floating tensors of a GGUF file are mapped, and copied where they are not aligned", async () => {
  const values = { type: "f32", shape: [rows, columns], data: a } as const;
  const bytes = formatGguf({ metadata: {}, tensors: { a: values } });
  const path = await written(bytes);
  const tensor = (await readGguf(path)).tensors.get("a")!;
  const mapped = await tensor.mapped();
  assert.equal(mapped !== null, maps);
  if (mapped) {
    assert.deepEqual(Buffer.from(mapped), Buffer.from(await tensor.read()));
    assert.equal(foreignOf(mapped.buffer) !== null, true);
    mapped.fill(0xff);
    assert.deepEqual(await readFile(path), Buffer.from(bytes));
  }
  assert.equal(await (await readGguf(bytes)).tensors.get("a")!.mapped(), null, "what is in memory is not mapped");
  for (const file of [path, await written(unalignedGguf(bytes))]) {
    const { a: loaded } = await loadGguf(file, { device: "reference" });
    assert.deepEqual((await loaded.data()).subarray(0, 100), a.subarray(0, 100));
  }
  await appendFile(path, "x");
  await assert.rejects(tensor.mapped(), /changed since it was opened/);
});

test("what is written to the bytes does not reach the file", async () => {
  const path = await written(file);
  (await readSafetensors(path)).tensors.get("a")!.bytes.fill(0xff);
  assert.deepEqual(await readFile(path), Buffer.from(file));
  assert.deepEqual(Buffer.from((await readSafetensors(path)).tensors.get("a")!.bytes), Buffer.from(a.buffer));
});

test("large files that are cut short or whose offsets overlap are refused as small ones are", async () => {
  const refused = (bytes: Uint8Array, words: RegExp) =>
    written(bytes).then((path) =>
      assert.rejects(readSafetensors(path), (error: Error) => {
        assert.ok(error instanceof SafetensorsError, `${error}`);
        assert.ok(error.message.startsWith(path));
        assert.match(error.message, words);
        return true;
      }),
    );
  await refused(file.subarray(0, file.length - 100), /reach past the end.*the file is truncated/);
  await refused(Buffer.concat([file, new Uint8Array(3)]), /3 bytes after the last tensor/);
  const header = `{"a":{"dtype":"F32","shape":[300000],"data_offsets":[0,1200000]},"b":{"dtype":"F32","shape":[300000],"data_offsets":[8,1200008]}}`;
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  await refused(
    Buffer.concat([length, Buffer.from(header), new Uint8Array(1200008)]),
    /"b": its bytes overlap those of "a"/,
  );
  await refused(Buffer.concat([length, new Uint8Array(1200008)]), /not valid JSON/);
  length.writeBigUInt64LE(50_000_000n);
  await refused(
    Buffer.concat([length, Buffer.from(header), new Uint8Array(1200008)]),
    /header claims 50000000 bytes.*truncated/,
  );
});

async function onCpu(t: TestContext): Promise<boolean> {
  const why = await whyNoCpu();
  if (why) t.skip(why);
  return !why;
}

test("the cpu backend uses a mapped weight where it lies, and its updates do not reach the file", async (t) => {
  if (!(await onCpu(t))) return;
  const path = await written(shifted(file, 4));
  const backend = await openCpuBackend();
  const { bytes } = (await readSafetensors(path)).tensors.get("a")!;
  const memory = backend.adopt!(new Float32Array(bytes.buffer)) as Memory | null;
  assert.equal(memory?.pointer ?? null, foreignOf(bytes.buffer)?.address ?? null, "no copy");
  assert.equal(backend.adopt!(new Float32Array(4)), null, "memory of JavaScript's is copied");

  setDevice("cpu");
  const layer = new Linear(columns, rows, { bias: false });
  layer.loadStateDict({ weight: (await load(path))["a"] }, { assign: true });
  const x = layer.weight.detach().sum([1]);
  const before = await x.data();
  layer.weight.requiresGrad_(false).add_(1);
  const after = await layer.weight.sum([1]).data();
  for (let i = 0; i < rows; i++) assert.ok(Math.abs(after[i] - before[i] - columns) < 0.01);
  assert.deepEqual(await readFile(path), Buffer.from(shifted(file, 4)));
  assert.deepEqual((await (await load(path))["a"].data()).subarray(0, 100), a.subarray(0, 100));
});

for (const { name } of backends)
  test(`weights of a mapped file compute on ${name}`, async () => {
    const path = await written(file);
    const { a: weight, b: half } = await load(path, { device: name });
    const x = weight.mul(2).sum([1]);
    const expected = Array.from({ length: rows }, (_, r) =>
      a.subarray(r * columns, (r + 1) * columns).reduce((sum, v) => sum + 2 * v, 0),
    );
    const got = await x.data();
    for (let r = 0; r < rows; r++) assert.ok(Math.abs(got[r] - expected[r]) < 1e-3, `${r}: ${got[r]} ${expected[r]}`);
    assert.equal((await half.to("float32").data())[1], new Float32Array(Uint32Array.of(b[1] << 16).buffer)[0]);
    assert.deepEqual(await readFile(path), Buffer.from(file));
  });

test("a file may be replaced by another of its name while it is in use", async () => {
  const path = await written(file);
  const tensors = await load(path, { device: "reference" });
  const { bytes } = (await readSafetensors(path)).tensors.get("a")!;
  await rename(await written(formatSafetensors({})), path);
  assert.deepEqual(Buffer.from(bytes), Buffer.from(a.buffer));
  assert.deepEqual((await tensors["a"].data()).subarray(0, 10), a.subarray(0, 10));
  assert.ok((await stat(path)).size < 100);
});

// only Linux tells what is mapped
if (process.platform === "linux" && maps)
  test("a mapping is released when nothing uses it any more", async () => {
    const path = await written(file);
    setFlagsFromString("--expose-gc");
    const gc = runInNewContext("gc") as () => void;
    const isMapped = async () => (await readFile("/proc/self/maps", "utf8")).includes(path);
    const kept = [(await readSafetensors(path)).tensors.get("b")!.bytes];
    gc();
    await new Promise((resolve) => setTimeout(resolve, 10));
    assert.ok(await isMapped(), "as long as one tensor is in use");
    assert.equal(kept.pop()![1], 0x3f);
    for (let i = 0; i < 200 && (await isMapped()); i++) {
      gc();
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    assert.ok(!(await isMapped()), "not when none is");
  });
