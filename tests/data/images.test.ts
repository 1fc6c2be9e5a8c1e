/** Pictures and folders of them: what goes in comes out, what is damaged is refused by name, real JPEGs agree with libjpeg. */
import assert from "node:assert/strict";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { deflateSync, inflateSync } from "node:zlib";
import { encode as encodePng, type ImageData } from "fast-png";
import jpeg from "jpeg-js";
import { DataLoader, decodeImage, ImageError, type ImageMode, imageFolder, LoaderError } from "../../src/data/index.ts";
import { readFixture, type Stored, valuesOf } from "../support/fixtures.ts";
import { dataFolder, lacks } from "../support/real-data.ts";

let room = "";
before(async () => {
  room = await mkdtemp(join(tmpdir(), "nabla-images-"));
});
after(() => rm(room, { recursive: true, force: true }));

/** Bytes of a picture in which every channel of every pixel differs from its neighbours'. */
const bytes = (length: number): Uint8Array => Uint8Array.from({ length }, (_, i) => (i * 37 + (i >> 3)) % 256);

/** [height, width, channels] → [channels, height, width] of the first `take` channels. */
const planar = (data: ArrayLike<number>, channels: number, take: number): number[] =>
  Array.from({ length: take }, (_, c) => Array.from(data).filter((_, i) => i % channels === c)).flat();

const png = (image: Partial<ImageData> & Pick<ImageData, "data">): Uint8Array =>
  encodePng({ width: 5, height: 4, depth: 8, ...image });

test("PNGs of colour, of grey and with transparency come out as they went in", async () => {
  for (const [channels, take] of [
    [1, 1],
    [2, 1],
    [3, 3],
    [4, 3],
  ]) {
    const data = bytes(20 * channels);
    const { dtype, shape, data: got } = await decodeImage(png({ data, channels }));
    assert.equal(dtype, "uint8");
    assert.deepEqual(shape, [3, 4, 5]);
    const planes = planar(data, channels, take);
    assert.deepEqual(Array.from(got), take === 3 ? planes : [...planes, ...planes, ...planes]);
  }
});

test("16 bits a channel become 8, and the modes convert colour to grey as PIL does", async () => {
  const wide = Uint16Array.from({ length: 60 }, (_, i) => i * 1000);
  const { data } = await decodeImage(png({ data: wide, channels: 3, depth: 16 }));
  assert.deepEqual(
    Array.from(data),
    planar(
      Array.from(wide, (x) => x >> 8),
      3,
      3,
    ),
  );
  const colours = Uint8Array.of(255, 0, 0, 0, 255, 0, 0, 0, 255, 255, 255, 255);
  const gray = await decodeImage(encodePng({ width: 4, height: 1, data: colours, channels: 3 }), { mode: "gray" });
  assert.deepEqual(gray, { dtype: "uint8", shape: [1, 1, 4], data: Uint8Array.of(76, 150, 29, 255) }); // PIL's numbers
});

test("PNGs of one bit a pixel, and of a palette in two bits, are read as Pillow wrote them", async () => {
  const bits = "iVBORw0KGgoAAAANSUhEUgAAAAUAAAADAQAAAABzTfhVAAAADklEQVR4nGOIYDJgUAAAAnYAq9NI/YcAAAAASUVORK5CYII=";
  const gray = await decodeImage(Buffer.from(bits, "base64"), { mode: "gray" });
  assert.deepEqual(gray.shape, [1, 3, 5]);
  assert.equal(Array.from(gray.data, (x) => (x === 255 ? 1 : x)).join(""), "010111000100100");
  const palette =
    "iVBORw0KGgoAAAANSUhEUgAAAAUAAAADAgMAAAAmWC1rAAAADFBMVEUKFB4oMjxGUFr/AIB/FhzJAAAAEUlEQVR4nGOQZmAJvMLiKgIABogBoqvmt1sAAAAASUVORK5CYII=";
  const { data } = await decodeImage(Buffer.from(palette, "base64"));
  const colours = [10, 20, 30, 40, 50, 60, 70, 80, 90, 255, 0, 128];
  const pixels = Array.from({ length: 15 }, (_, i) => colours.slice(3 * (i % 4), 3 * (i % 4) + 3)).flat();
  assert.deepEqual(Array.from(data), planar(pixels, 3, 3));
});

test("a JPEG comes out nearly as it went in, by path, blob and bytes alike", async () => {
  const [width, height] = [24, 16];
  const rgba = Uint8Array.from({ length: 4 * width * height }, (_, i) => {
    const [x, y, c] = [(i >> 2) % width, Math.floor((i >> 2) / width), i & 3];
    return c === 3 ? 255 : [10 * x, 15 * y, 128][c];
  });
  const { data: file } = jpeg.encode({ width, height, data: rgba }, 95);
  const { shape, data } = await decodeImage(new Uint8Array(file));
  assert.deepEqual(shape, [3, height, width]);
  const expected = planar(rgba, 4, 3);
  const mean = expected.reduce((sum, x, i) => sum + Math.abs(x - data[i]), 0) / expected.length;
  assert.ok(mean < 4, `the mean difference is ${mean}`);
  const path = join(room, "picture.jpg");
  await writeFile(path, file);
  assert.deepEqual((await decodeImage(path)).data, data);
  assert.deepEqual((await decodeImage(new Blob([new Uint8Array(file)]))).data, data);
});

test("damaged pictures, and files that are none, are ImageErrors that name the file", async () => {
  const { data } = jpeg.encode({ width: 32, height: 32, data: bytes(4096) }, 90);
  const whole = png({ data: bytes(60), channels: 3 });
  const damaged = whole.slice();
  damaged[damaged.length - 20] ^= 255; // in the pixels: their checksum is wrong
  const huge = whole.slice();
  new DataView(huge.buffer).setUint32(16, 1 << 30);
  for (const [name, file, what] of [
    ["short.jpg", data.subarray(0, data.length / 2), /picture is damaged/],
    ["header.jpg", data.subarray(0, 30), /picture is damaged/],
    ["short.png", whole.subarray(0, whole.length / 2), /picture is damaged/],
    ["damaged.png", damaged, /picture is damaged/],
    ["huge.png", huge, /pixels are more than/],
    ["empty.png", new Uint8Array(0), /not a JPEG or PNG/],
    ["text.png", new TextEncoder().encode("no picture"), /not a JPEG or PNG/],
  ] as const) {
    const path = join(room, name);
    await writeFile(path, file);
    await assert.rejects(decodeImage(path), (error: Error) => {
      assert.ok(error instanceof ImageError, `${name}: ${error}`);
      assert.match(error.message, what);
      assert.ok(error.message.includes(path));
      return true;
    });
  }
  await assert.rejects(decodeImage(join(room, "absent.png")), { name: "FileError" });
});

/** A PNG with other content in its chunks of one name, or with a chunk more after the header. */
function withChunk(whole: Uint8Array, name: string, content: Uint8Array): Uint8Array {
  const chunk = Buffer.alloc(12 + content.length);
  chunk.writeUInt32BE(content.length, 0);
  chunk.write(name, 4, "latin1");
  chunk.set(content, 8);
  chunk.writeUInt32BE(crc32(chunk.subarray(4, 8 + content.length)), 8 + content.length);
  const at = Buffer.from(whole).indexOf(name, 33, "latin1") - 4;
  const end = at < 0 ? 33 : at + 12 + Buffer.from(whole).readUInt32BE(at);
  return Buffer.concat([whole.subarray(0, at < 0 ? 33 : at), chunk, whole.subarray(end)]);
}

/** The checksum of PNG's chunks. */
function crc32(data: Uint8Array): number {
  let crc = -1;
  for (const byte of data) {
    crc ^= byte;
    for (let k = 0; k < 8; k++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}

test("a PNG whose few pixels unpack to very many bytes is refused before they are there; other packed parts are left alone", async () => {
  const whole = png({ data: bytes(60), channels: 3 });
  const bomb = deflateSync(new Uint8Array(64 << 20));
  await assert.rejects(decodeImage(withChunk(whole, "IDAT", bomb)), {
    name: "ImageError",
    message: /unpack to more than 10486\d\d bytes, which 5 × 4 pixels can't have/,
  });
  const profile = Buffer.concat([Buffer.from("icc\0\0"), bomb]);
  const before = process.memoryUsage().arrayBuffers;
  assert.deepEqual(await decodeImage(withChunk(whole, "iCCP", profile)), await decodeImage(whole));
  assert.ok(process.memoryUsage().arrayBuffers - before < 32 << 20);
  const again = deflateSync(inflateSync(Buffer.from(whole).subarray(Buffer.from(whole).indexOf("IDAT") + 4)));
  assert.deepEqual(await decodeImage(withChunk(whole, "IDAT", again)), await decodeImage(whole));
});

test("300 mutated pictures of each kind are read or are ImageErrors", async () => {
  const rgba = bytes(4 * 24 * 20);
  const kinds = [
    new Uint8Array(jpeg.encode({ width: 24, height: 20, data: rgba }, 80).data),
    encodePng({ width: 24, height: 20, data: rgba }),
  ];
  let state = 7;
  const random = (n: number): number => (state = (state * 48271) % 2147483647) % n;
  for (const whole of kinds)
    for (let i = 0; i < 300; i++) {
      const mutated = whole.slice();
      for (let k = 0; k <= random(4); k++)
        mutated[random(i % 2 ? mutated.length : Math.min(mutated.length, 200))] = random(256);
      await decodeImage(mutated).catch((error) => {
        if (!(error instanceof ImageError)) throw error;
      });
    }
});

async function makeFolder(name: string, classes: Readonly<Record<string, readonly string[]>>): Promise<string> {
  const path = join(room, name);
  await mkdir(path);
  for (const [label, files] of Object.entries(classes)) {
    await mkdir(join(path, label));
    for (const file of files)
      await writeFile(join(path, label, file), png({ data: bytes(60).map((x) => x + file.length), channels: 3 }));
  }
  return path;
}

test("a folder with a subfolder a class is a data set, for one thread and for two", async () => {
  const path = await makeFolder("animals", {
    cat: ["a.png", "b.PNG", "notes.txt"],
    dog: ["c.png"],
    ".hidden": ["d.png"],
  });
  await writeFile(join(path, "README.md"), "not a class");
  const folder = await imageFolder(path);
  assert.deepEqual(folder.classes, ["cat", "dog"]);
  assert.deepEqual(
    folder.samples.map(({ label }) => label),
    [0, 0, 1],
  );
  const read = async (numWorkers: number): Promise<unknown[]> => {
    const out: unknown[] = [];
    for await (const batch of new DataLoader(folder, { batchSize: 2, numWorkers })) out.push(batch);
    return out;
  };
  const batches = await read(0);
  const [images, labels] = batches[0] as Awaited<ReturnType<typeof folder.get>>;
  assert.deepEqual(images.shape, [2, 3, 4, 5]);
  assert.deepEqual(labels, { dtype: "int32", shape: [2], data: Int32Array.of(0, 0) });
  const plain = (list: unknown[]): unknown =>
    (list as Awaited<ReturnType<typeof folder.get>>[]).map((batch) =>
      batch.map(({ shape, data }) => [shape, [...data]]),
    );
  assert.deepEqual(plain(await read(2)), plain(batches));
  const gray = await (await imageFolder(path, { mode: "gray" as ImageMode })).get(0);
  assert.deepEqual(gray[0].shape, [1, 4, 5]);
});

test("a folder without classes, or with an empty one, says so", async () => {
  await assert.rejects(imageFolder(await makeFolder("none", {})), LoaderError);
  await assert.rejects(
    imageFolder(await makeFolder("half", { a: ["x.png"], b: ["x.gif"] })),
    /half.*b: there is no \.jpg/,
  );
  await assert.rejects(imageFolder(join(room, "nowhere")), { name: "FileError" });
});

test("a real JPEG's brightness is libjpeg's", { skip: lacks("cifar10-test-jpeg") }, async () => {
  const { jpeg } = readFixture<{ readonly jpeg: { readonly file: string; readonly luma: Stored } }>("small-models");
  const { shape, data } = await decodeImage(join(dataFolder, "cifar10-test-jpeg", "test", jpeg.file), { mode: "gray" });
  assert.deepEqual(shape, [1, 32, 32]);
  const luma = valuesOf(jpeg.luma); // as stored: no chroma, whose enlarging differs between decoders, is in it
  const worst = Math.max(...Array.from(data, (x, i) => Math.abs(x - luma[i])));
  assert.ok(worst <= 3, `it differs by ${worst} of 255`);
});
