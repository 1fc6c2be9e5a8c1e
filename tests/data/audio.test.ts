/** WAV files of every encoding, damaged ones, and resampling. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { AudioError, formatWav, readWav, resample } from "../../src/data/index.ts";
import { dataFolder, lacks } from "../support/real-data.ts";

/** A WAV file by hand: a chunk that nobody knows, a format, data. */
function wav(kind: number, bits: number, channels: number, data: Uint8Array, extensible = false): Uint8Array {
  const unknown = Uint8Array.of(...Buffer.from("LIST"), 3, 0, 0, 0, 1, 2, 3, 0); // of odd length, filled up
  const format = new DataView(new ArrayBuffer(extensible ? 40 : 16));
  format.setUint16(0, extensible ? 0xfffe : kind, true);
  format.setUint16(2, channels, true);
  format.setUint32(4, 8000, true);
  format.setUint16(14, bits, true);
  if (extensible) format.setUint16(24, kind, true);
  const head = (id: string, size: number): Uint8Array => {
    const out = new Uint8Array(8);
    out.set(Buffer.from(id));
    new DataView(out.buffer).setUint32(4, size, true);
    return out;
  };
  return Buffer.concat([
    head("RIFF", 0),
    Buffer.from("WAVE"),
    unknown,
    head("fmt ", format.byteLength),
    new Uint8Array(format.buffer),
    head("data", data.length),
    data,
  ]);
}

const raw = (view: ArrayBufferView): Uint8Array => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);

test("every encoding of a sample is read, of one channel and of several", async () => {
  for (const [kind, bits, data, expected] of [
    [1, 8, Uint8Array.of(0, 128, 192, 255), [-1, 0, 0.5, 127 / 128]],
    [1, 16, raw(Int16Array.of(-32768, 0, 16384, 1)), [-1, 0, 0.5, 1 / 32768]],
    [1, 24, Uint8Array.of(0, 0, 128, 0, 0, 0, 0, 0, 64, 255, 255, 255), [-1, 0, 0.5, -1 / 8388608]],
    [1, 32, raw(Int32Array.of(-2147483648, 0, 1073741824, 65536)), [-1, 0, 0.5, 1 / 32768]],
    [3, 32, raw(Float32Array.of(-1, 0, 0.5, 3)), [-1, 0, 0.5, 3]],
    [3, 64, raw(Float64Array.of(-1, 0, 0.5, 3)), [-1, 0, 0.5, 3]],
  ] as const)
    for (const extensible of [false, true]) {
      const one = await readWav(wav(kind, bits, 1, data, extensible));
      assert.equal(one.sampleRate, 8000);
      assert.deepEqual(one.channels, [Float32Array.from(expected)], `${bits} bits`);
      const two = await readWav(wav(kind, bits, 2, data, extensible));
      const [a, b, c, d] = expected;
      assert.deepEqual(two.channels, [Float32Array.of(a, c), Float32Array.of(b, d)]);
    }
});

test("what formatWav writes readWav reads, to the last bit", async () => {
  const left = Float32Array.from({ length: 1000 }, (_, i) => Math.round(20000 * Math.sin(i / 7)) / 32768);
  const recording = { channels: [left, left.map((x) => 0 - x)], sampleRate: 22050 };
  assert.deepEqual(await readWav(formatWav(recording)), recording);
  const loud = await readWav(formatWav({ channels: [Float32Array.of(-2, 2)], sampleRate: 1 }));
  assert.deepEqual(loud.channels, [Float32Array.of(-1, 32767 / 32768)]);
  assert.throws(() => formatWav({ channels: [], sampleRate: 1 }), AudioError);
  assert.throws(() => formatWav({ channels: [left, left.slice(1)], sampleRate: 1 }), /one length/);
});

test("damaged files are AudioErrors; a length that a stream left open is that of the file", async () => {
  const whole = wav(1, 16, 1, raw(Int16Array.of(1, 2, 3)));
  for (let length = 0; length < whole.length - 6; length++)
    await assert.rejects(readWav(whole.subarray(0, length)), AudioError, `${length} bytes`);
  await assert.rejects(readWav(wav(85, 16, 1, new Uint8Array(4))), /encoding 85 with 16 bits is not read; convert it/);
  await assert.rejects(readWav(wav(1, 16, 0, new Uint8Array(4))), /0 channels/);
  await assert.rejects(readWav(join(dataFolder, "absent.wav")), { name: "FileError" });
  const open = whole.slice();
  new DataView(open.buffer).setUint32(open.length - 10, 0xffffffff, true);
  assert.equal((await readWav(open)).channels[0].length, 3);
});

test("1,000 mutated recordings are read or are AudioErrors", async () => {
  const whole = wav(1, 16, 2, raw(Int16Array.from({ length: 64 }, (_, i) => 500 * i)), true);
  let state = 7;
  const random = (n: number): number => (state = (state * 48271) % 2147483647) % n;
  for (let i = 0; i < 1000; i++) {
    const mutated = whole.slice(0, random(3) ? whole.length : random(whole.length));
    for (let k = 0; k <= random(4); k++) mutated[random(mutated.length || 1)] = random(3) ? random(256) : 255;
    await readWav(mutated).catch((error) => {
      if (!(error instanceof AudioError)) throw error;
    });
  }
});

test("a tone is the same tone at another rate, and one that the new rate can't hold is gone", () => {
  const tone = (frequency: number, rate: number, length: number): Float32Array =>
    Float32Array.from({ length }, (_, i) => Math.sin((2 * Math.PI * frequency * i) / rate));
  for (const [from, to] of [
    [8000, 16000],
    [44100, 16000],
    [16000, 44100],
    [48000, 8000],
    [11025, 8000],
  ]) {
    const got = resample(tone(440, from, from), from, to);
    assert.equal(got.length, to);
    const expected = tone(440, to, to);
    let worst = 0;
    for (let i = 200; i < to - 200; i++) worst = Math.max(worst, Math.abs(got[i] - expected[i]));
    assert.ok(worst < 5e-3, `${from} → ${to}: differs by ${worst}`);
  }
  const high = resample(tone(7000, 16000, 16000), 16000, 8000).slice(200, -200);
  assert.ok(Math.max(...high) < 0.02, `of a tone of 7,000 Hz ${Math.max(...high)} is left at 8,000 samples a second`);
  assert.deepEqual(resample(Float32Array.of(1, 2, 3), 8, 8), Float32Array.of(1, 2, 3));
  assert.equal(resample(new Float32Array(5), 3, 2).length, 4);
  assert.throws(() => resample(new Float32Array(1), 8000.5, 1), /whole number/);
});

test("a real recording is read", { skip: lacks("spoken-digits") }, async () => {
  const { channels, sampleRate } = await readWav(join(dataFolder, "spoken-digits", "recordings", "0_george_0.wav"));
  assert.equal(sampleRate, 8000);
  assert.equal(channels.length, 1);
  assert.equal(channels[0].length, 2384);
  assert.equal(channels[0][0] * 32768, -1489); // 2f fa
});
