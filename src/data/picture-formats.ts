/**
 * JPEG and PNG by two libraries in plain JavaScript, jpeg-js and fast-png, which are loaded with the first picture: the same bytes
 * everywhere. What of them becomes which channels is decided here.
 */
import type { HostArray } from "./dataset.ts";
import { ImageError } from "./errors.ts";

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

async function decodePng(bytes: Uint8Array): Promise<Pixels> {
  const header = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.length < 24) throw new Error("the header is truncated");
  const pixels = header.getUint32(16) * header.getUint32(20);
  if (pixels > mostPixels) throw new Error(`${pixels} pixels are more than the ${mostPixels} that are read`);
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
