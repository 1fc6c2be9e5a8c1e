/** Recordings as arrays: WAV files, and another sampling rate. The computing is on the host: it is done once, before a network. */
import { NablaError } from "../core/errors.ts";
import { AudioError } from "./errors.ts";
import { type ReadOptions, readBytes, type Source, sourceName } from "./source.ts";

export { AudioError } from "./errors.ts";

export interface Recording {
  /** One array a channel, all equally long; samples between −1 and 1 (floating files may hold more). */
  readonly channels: readonly Float32Array[];
  /** Samples a second. */
  readonly sampleRate: number;
}

type ReadSample = (view: DataView, at: number) => number;

/** By the format's number and the bits of a sample (WAVE: 1 is whole numbers, 3 floating ones). */
const encodings: Readonly<Record<string, ReadSample>> = {
  "1 8": (view, at) => (view.getUint8(at) - 128) / 128,
  "1 16": (view, at) => view.getInt16(at, true) / 32768,
  "1 24": (view, at) => (view.getUint16(at, true) | (view.getInt8(at + 2) << 16)) / 8388608,
  "1 32": (view, at) => view.getInt32(at, true) / 2147483648,
  "3 32": (view, at) => view.getFloat32(at, true),
  "3 64": (view, at) => view.getFloat64(at, true),
};
const extensible = 0xfffe; // the real number is then the beginning of a GUID

interface WavFormat {
  readonly read: ReadSample;
  readonly channels: number;
  readonly sampleRate: number;
  readonly bytes: number;
}

function formatOf(view: DataView, at: number, size: number, fail: (what: string) => never): WavFormat {
  if (size < 16) fail(`the chunk "fmt " has ${size} bytes, it needs 16`);
  let kind = view.getUint16(at, true);
  const channels = view.getUint16(at + 2, true);
  const sampleRate = view.getUint32(at + 4, true);
  const bits = view.getUint16(at + 14, true);
  if (kind === extensible && size >= 26) kind = view.getUint16(at + 24, true);
  const read = encodings[`${kind} ${bits}`];
  if (read === undefined)
    fail(
      `encoding ${kind} with ${bits} bits is not read; convert it to 16-bit PCM (ffmpeg -i IN -c:a pcm_s16le OUT.wav)`,
    );
  if (channels < 1 || sampleRate < 1) fail(`${channels} channels at ${sampleRate} samples a second are no recording`);
  return { read, channels, sampleRate, bytes: bits / 8 };
}

/**
 * Reads a WAV file: PCM of 8, 16, 24 or 32 bits or floating (torchaudio.load). A data chunk that says it is longer than the file, as
 * programs leave that stream, is read to the file's end. Throws AudioError, FileError, or the signal's reason.
 */
export async function readWav(source: Source, options: ReadOptions = {}): Promise<Recording> {
  const bytes = await readBytes(source, options);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const fail = (what: string): never => {
    throw new AudioError(`${sourceName(source)}: ${what}`);
  };
  const text = (at: number): string => String.fromCharCode(...bytes.subarray(at, at + 4));
  if (bytes.length < 12 || text(0) !== "RIFF" || text(8) !== "WAVE") fail("not a WAV file, by its first bytes");
  let format: WavFormat | undefined;
  for (let at = 12; at + 8 <= bytes.length; ) {
    const id = text(at);
    const claimed = view.getUint32(at + 4, true);
    const size = Math.min(claimed, bytes.length - at - 8);
    if (id === "fmt ") format = formatOf(view, at + 8, size, fail);
    else if (id === "data") return samplesOf(view, at + 8, size, format ?? fail("its data come before their format"));
    at += 8 + claimed + (claimed & 1);
  }
  return fail("there is no chunk with data");
}

function samplesOf(view: DataView, start: number, size: number, format: WavFormat): Recording {
  const { read, channels: count, sampleRate, bytes } = format;
  const length = Math.floor(size / (count * bytes));
  const channels = Array.from({ length: count }, (_, c) => {
    const out = new Float32Array(length);
    for (let i = 0; i < length; i++) out[i] = read(view, start + (i * count + c) * bytes);
    return out;
  });
  return { channels, sampleRate };
}

/** A recording as a WAV file of 16-bit PCM; what is beyond ±1 is cut. */
export function formatWav({ channels, sampleRate }: Recording): Uint8Array<ArrayBuffer> {
  const count = channels.length;
  const length = channels[0]?.length ?? 0;
  if (count === 0 || channels.some((samples) => samples.length !== length))
    throw new AudioError(
      `a recording needs channels of one length, got ${channels.map((c) => c.length).join(", ") || "none"}`,
    );
  const out = new Uint8Array(44 + 2 * count * length);
  const view = new DataView(out.buffer);
  const text = (at: number, letters: string): void =>
    out.set(
      Array.from(letters, (c) => c.charCodeAt(0)),
      at,
    );
  text(0, "RIFF");
  view.setUint32(4, out.length - 8, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, count, true);
  view.setUint32(24, sampleRate, true);
  view.setUint32(28, 2 * count * sampleRate, true);
  view.setUint16(32, 2 * count, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, 2 * count * length, true);
  for (let i = 0; i < length; i++)
    for (let c = 0; c < count; c++) {
      const sample = Math.round(Math.max(-1, Math.min(1, channels[c][i])) * 32768);
      view.setInt16(44 + 2 * (i * count + c), Math.min(sample, 32767), true);
    }
  return out;
}

const gcd = (a: number, b: number): number => (b === 0 ? a : gcd(b, a % b));

/**
 * Samples at another rate: a windowed sinc at each of the new positions (Smith, "Digital Audio Resampling"; the formula and defaults of
 * torchaudio.functional.resample: 6 zero crossings, roll-off 0.99, a Hann window). ⌈length · to / from⌉ samples come out.
 */
export function resample(samples: Float32Array, from: number, to: number): Float32Array {
  for (const rate of [from, to])
    if (!Number.isInteger(rate) || rate < 1)
      throw new NablaError(`resample: a rate is a whole number of samples a second, got ${rate}`);
  if (from === to) return samples.slice();
  const shared = gcd(from, to);
  const [old, fresh] = [from / shared, to / shared];
  const crossings = 6;
  const base = Math.min(old, fresh) * 0.99;
  const width = Math.ceil((crossings * old) / base);
  const kernels = Array.from({ length: fresh }, (_, phase) =>
    Float64Array.from({ length: 2 * width + old }, (_, i) => {
      const t = Math.max(-crossings, Math.min(crossings, ((i - width) / old - phase / fresh) * base));
      const sinc = t === 0 ? 1 : Math.sin(Math.PI * t) / (Math.PI * t);
      return (sinc * Math.cos((Math.PI * t) / crossings / 2) ** 2 * base) / old;
    }),
  );
  return Float32Array.from({ length: Math.ceil((samples.length * fresh) / old) }, (_, i) => {
    const kernel = kernels[i % fresh];
    const start = Math.floor(i / fresh) * old - width;
    let sum = 0;
    const end = Math.min(kernel.length, samples.length - start);
    for (let k = Math.max(0, -start); k < end; k++) sum += kernel[k] * samples[start + k];
    return sum;
  });
}
