/**
 * JPEG and PNG by two libraries in plain JavaScript, jpeg-js and fast-png, which are loaded with the first picture: the same bytes
 * everywhere. What of them becomes which channels is decided here.
 */
import type { HostArray } from "./dataset.ts";
import { ImageError } from "./errors.ts";
import { inflateRaw } from "./inflate.ts";
import { joined } from "./pieces.ts";

/** The channels that come out. "gray" is PIL's "L": 0.299 R + 0.587 G + 0.114 B. */
export type ImageMode = "rgb" | "gray";

/** [height, width, channels], row-major; 3 channels, or 1. */
interface Pixels {
  readonly width: number;
  readonly height: number;
  readonly channels: 1 | 3;
  readonly data: Uint8Array;
}

const mostPixels = 100e6;

/** By the first bytes of the file. */
const decoders: readonly { readonly magic: readonly number[]; readonly decode: (b: Uint8Array) => Promise<Pixels> }[] =
  [
    { magic: [0xff, 0xd8, 0xff], decode: decodeJpeg },
    { magic: [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a], decode: decodePng },
  ];

async function decodeJpeg(bytes: Uint8Array): Promise<Pixels> {
  const { default: jpeg } = await import("jpeg-js");
  // strictly: what is missing of a truncated file would be grey
  const { width, height, data } = jpeg.decode(bytes, {
    useTArray: true,
    formatAsRGBA: false,
    tolerantDecoding: false,
    maxResolutionInMP: mostPixels / 1e6,
    maxMemoryUsageInMB: 2048,
  });
  return { width, height, channels: 3, data };
}

/** Where the chunks of a PNG are, as far as they are whole: after length and name come the content and a checksum. */
function* pngChunks(
  bytes: Uint8Array,
): Generator<{ readonly name: string; readonly at: number; readonly length: number }> {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 8; at + 12 <= bytes.length; ) {
    const length = view.getUint32(at);
    if (at + 12 + length > bytes.length) return;
    yield { name: String.fromCharCode(...bytes.subarray(at + 4, at + 8)), at, length };
    at += 12 + length;
  }
}

/** Without what a picture does not need: names, colour profiles, further frames. Some of it is packed, and is never unpacked so. */
function essentialChunks(bytes: Uint8Array): Uint8Array {
  const kept: Uint8Array[] = [bytes.subarray(0, 8)];
  let end = 8;
  for (const { name, at, length } of pngChunks(bytes)) {
    end = at + 12 + length;
    if (/^[A-Z]|^tRNS$/.test(name)) kept.push(bytes.subarray(at, end));
  }
  kept.push(bytes.subarray(end)); // what is cut: the decoder says so
  return joined(kept);
}

/** Deflate makes at most so many bytes of one. */
const mostExpansion = 1032;

/** Throws where the pixels of a PNG unpack to more than there can be of them: the decoder would unpack it all. */
async function checkUnpacked(bytes: Uint8Array, width: number, height: number): Promise<void> {
  const parts = [...pngChunks(bytes)].filter(({ name }) => name === "IDAT");
  const packed = parts.reduce((n, { length }) => n + length, 0);
  // a row begins with a byte of its own, and an interlaced picture has up to two rows for one
  const most = height * (Math.ceil((width * bitsOfPixel(bytes)) / 8) + 4) + 2 ** 20;
  if (packed * mostExpansion <= most) return;
  const stream = joined(parts.map(({ at, length }) => bytes.subarray(at + 8, at + 8 + length)));
  try {
    await inflateRaw(stream.subarray(2, -4), most); // without zlib's two bytes before and its checksum
  } catch (error) {
    if (!/larger|more than|limit/i.test((error as Error).message)) return; // damaged: the decoder says how
    throw new Error(`its pixels unpack to more than ${most} bytes, which ${width} × ${height} pixels can't have`);
  }
}

/** By the header: the number of channels of its kind of colour, and the bits of each. */
const bitsOfPixel = (bytes: Uint8Array): number => bytes[24] * ({ 2: 3, 4: 2, 6: 4 }[bytes[25]] ?? 1);

async function decodePng(file: Uint8Array): Promise<Pixels> {
  const bytes = essentialChunks(file);
  const header = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.length < 26) throw new Error("the header is truncated");
  const pixels = header.getUint32(16) * header.getUint32(20);
  if (pixels > mostPixels) throw new Error(`${pixels} pixels are more than the ${mostPixels} that are read`);
  await checkUnpacked(bytes, header.getUint32(16), header.getUint32(20));
  const { decode } = await import("fast-png");
  const { width, height, depth, channels: stored, data, palette } = decode(bytes, { checkCrc: true });
  const samples = depth < 8 ? unpacked(data as Uint8Array, width, height, depth) : data;
  const isColour = palette !== undefined || stored >= 3;
  const channels = isColour ? 3 : 1;
  const out = new Uint8Array(width * height * channels);
  const scale = palette ? 1 : 255 / (2 ** depth - 1);
  for (let i = 0; i < width * height; i++)
    for (let c = 0; c < channels; c++) {
      const value = palette ? palette[samples[i]]?.[c] : samples[i * stored + c];
      if (value === undefined) throw new Error(`a pixel has colour ${samples[i]} of a palette of ${palette?.length}`);
      out[i * channels + c] = depth === 16 ? value >> 8 : value * scale;
    }
  return { width, height, channels, data: out };
}

/** Samples of 1, 2 or 4 bits, one a byte; each row begins with a byte of its own. */
function unpacked(data: Uint8Array, width: number, height: number, depth: number): Uint8Array {
  const rowBytes = Math.ceil((width * depth) / 8);
  const out = new Uint8Array(width * height);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) {
      const bit = x * depth;
      out[y * width + x] = (data[y * rowBytes + (bit >> 3)] >> (8 - depth - (bit & 7))) & (2 ** depth - 1);
    }
  return out;
}

/** [height, width, channels] → [channels, height, width], in the channels asked for. */
function planes({ width, height, channels, data }: Pixels, mode: ImageMode): HostArray {
  const size = width * height;
  const count = mode === "rgb" ? 3 : 1;
  const out = new Uint8Array(count * size);
  for (let i = 0; i < size; i++) {
    const at = i * channels;
    if (channels === 1) for (let c = 0; c < count; c++) out[c * size + i] = data[at];
    else if (mode === "rgb") for (let c = 0; c < 3; c++) out[c * size + i] = data[at + c];
    else out[i] = (19595 * data[at] + 38470 * data[at + 1] + 7471 * data[at + 2] + 0x8000) >> 16;
  }
  return { dtype: "uint8", shape: [count, height, width], data: out };
}

/** A file's bytes as uint8 [channels, height, width]; `name` is the file's, for messages. Throws ImageError. */
export async function decodePicture(bytes: Uint8Array, mode: ImageMode, name: string): Promise<HostArray> {
  const kind = decoders.find(({ magic }) => magic.every((byte, i) => bytes[i] === byte));
  if (kind === undefined) throw new ImageError(`${name}: not a JPEG or PNG file, by its first bytes`);
  try {
    return planes(await kind.decode(bytes), mode);
  } catch (error) {
    throw new ImageError(
      `${name}: the picture is damaged or of a kind that is not read (${(error as Error).message})`,
      { cause: error },
    );
  }
}
