/**
 * Pictures as arrays: JPEG and PNG, decoded to the same bytes in Node and in browsers, and a folder of them with a subfolder a
 * class as a data set (torchvision's ImageFolder). The decoders are libraries that are loaded when the first picture is read.
 */
import { type Batch, type Dataset, type HostArray, LoaderError, type WorkerSource } from "./dataset.ts";
import { elsewhere } from "./elsewhere.ts";
import { ImageError } from "./errors.ts";
import { isFolder, listFolder } from "./files.ts";
import { join } from "./path.ts";
import { type ReadOptions, readBytes, type Source, sourceName } from "./source.ts";

export { ImageError } from "./errors.ts";

/** The channels that come out. "gray" is PIL's "L": 0.299 R + 0.587 G + 0.114 B. */
export type ImageMode = "rgb" | "gray";

export interface ImageOptions {
  /** Default: "rgb". A picture of another kind is converted; transparency is left out. */
  readonly mode?: ImageMode;
}

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

/**
 * Reads a JPEG or PNG as uint8 [channels, height, width] (torchvision.io.decode_image). On a page in a worker. Chroma that a JPEG
 * stores at half the size is repeated, not interpolated, and rotations that EXIF asks for are not made; 16 bits a channel
 * become 8. Throws ImageError, FileError, or the signal's reason.
 */
export async function decodeImage(source: Source, options: ImageOptions & ReadOptions = {}): Promise<HostArray> {
  const { mode = "rgb", ...reading } = options;
  if (elsewhere) return elsewhere("decodeImage", [source, mode], reading);
  const name = sourceName(source);
  const bytes = await readBytes(source, reading);
  const kind = decoders.find(({ magic }) => magic.every((byte, i) => bytes[i] === byte));
  if (kind === undefined) throw new ImageError(`${name}: not a JPEG or PNG file, by its first bytes`);
  let pixels: Pixels;
  try {
    pixels = await kind.decode(bytes);
  } catch (error) {
    throw new ImageError(
      `${name}: the picture is damaged or of a kind that is not read (${(error as Error).message})`,
      {
        cause: error,
      },
    );
  }
  return planes(pixels, mode);
}

/** A picture of a folder, and the number of its class. */
export interface ImageSample {
  readonly path: string;
  readonly label: number;
}

interface ImageFolderParts {
  readonly classes: readonly string[];
  readonly samples: readonly ImageSample[];
  readonly mode: ImageMode;
}

/** The name by which workers find `openImages`. */
const openerName = "openImages";

/**
 * Pictures with labels: a sample is [uint8 [channels, height, width], int32 [] label]. For batches all must be of one size, or the
 * loader needs a `collate`. It can be read by the loader's workers.
 */
export class ImageFolder implements Dataset<Batch> {
  /** Sorted names of the subfolders. A label is a position here. */
  readonly classes: readonly string[];
  readonly samples: readonly ImageSample[];
  readonly mode: ImageMode;
  constructor({ classes, samples, mode }: ImageFolderParts) {
    this.classes = classes;
    this.samples = samples;
    this.mode = mode;
  }
  get length(): number {
    return this.samples.length;
  }
  async get(index: number): Promise<Batch> {
    const { path, label } = this.samples[index];
    const image = await decodeImage(path, { mode: this.mode });
    return [image, { dtype: "int32", shape: [], data: Int32Array.of(label) }];
  }
  worker(): WorkerSource {
    const { classes, samples, mode } = this;
    return { module: import.meta.url, name: openerName, data: { classes, samples, mode } };
  }
}

/** What a worker calls to open an ImageFolder (see `worker`). */
export function openImages(parts: ImageFolderParts): ImageFolder {
  return new ImageFolder(parts);
}

/**
 * Opens a folder in which each subfolder is a class and holds its pictures (.jpg, .jpeg, .png, at any case), in sorted order. Nothing is
 * decoded yet. Throws FileError, and LoaderError where a class has no pictures or there is none.
 */
export async function imageFolder(path: string, { mode = "rgb" }: ImageOptions = {}): Promise<ImageFolder> {
  const classes: string[] = [];
  const samples: ImageSample[] = [];
  for (const name of await listFolder(path)) {
    const folder = join(path, name);
    if (name.startsWith(".") || !(await isFolder(folder))) continue;
    const files = (await listFolder(folder)).filter((file) => /\.(jpe?g|png)$/i.test(file));
    if (files.length === 0) throw new LoaderError(`${folder}: there is no .jpg or .png picture in this class's folder`);
    for (const file of files) samples.push({ path: join(folder, file), label: classes.length });
    classes.push(name);
  }
  if (classes.length === 0)
    throw new LoaderError(`${path}: expected a subfolder for each class, with pictures in it; there is none`);
  return new ImageFolder({ classes, samples, mode });
}
