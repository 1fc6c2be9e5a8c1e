/**
 * IDX files, the format of MNIST (http://yann.lecun.com/exdb/mnist): two zero bytes, a type, the number of axes, the
 * sizes, the elements, all big-endian; plain or gzip. Typed arrays out; scaling to floats is the caller's.
 */

import { elsewhere } from "./elsewhere.ts";
import { IdxError } from "./errors.ts";
import { listFolder } from "./files.ts";
import { gunzip, gunzipSync } from "./gunzip.ts";
import { basename, join } from "./path.ts";
import { type ReadOptions, readBytes, type Source, sourceName, together } from "./source.ts";

export { IdxError } from "./errors.ts";

export type IdxDType = "uint8" | "int8" | "int16" | "int32" | "float32" | "float64";
export type IdxData = Uint8Array | Int8Array | Int16Array | Int32Array | Float32Array | Float64Array;

export interface IdxArray {
  readonly dtype: IdxDType;
  readonly shape: readonly number[];
  readonly data: IdxData;
}

interface IdxType {
  readonly dtype: IdxDType;
  readonly bytes: number;
  readonly read: (view: DataView, at: number, length: number) => IdxData;
}

const filled = <A extends IdxData>(out: A, get: (i: number) => number): A => {
  for (let i = 0; i < out.length; i++) out[i] = get(i);
  return out;
};

/** By the third byte of the file. */
const types: Readonly<Record<number, IdxType>> = {
  8: { dtype: "uint8", bytes: 1, read: (v, at, n) => new Uint8Array(v.buffer, v.byteOffset + at, n).slice() },
  9: { dtype: "int8", bytes: 1, read: (v, at, n) => new Int8Array(v.buffer, v.byteOffset + at, n).slice() },
  11: { dtype: "int16", bytes: 2, read: (v, at, n) => filled(new Int16Array(n), (i) => v.getInt16(at + 2 * i)) },
  12: { dtype: "int32", bytes: 4, read: (v, at, n) => filled(new Int32Array(n), (i) => v.getInt32(at + 4 * i)) },
  13: { dtype: "float32", bytes: 4, read: (v, at, n) => filled(new Float32Array(n), (i) => v.getFloat32(at + 4 * i)) },
  14: { dtype: "float64", bytes: 8, read: (v, at, n) => filled(new Float64Array(n), (i) => v.getFloat64(at + 8 * i)) },
};

const hex = (bytes: Uint8Array) => [...bytes].map((b) => b.toString(16).padStart(2, "0")).join(" ");

const isGzip = (bytes: Uint8Array): boolean => bytes[0] === 0x1f && bytes[1] === 0x8b;

const damagedGzip = (file: string, error: unknown): IdxError =>
  new IdxError(`${file}: the gzip data is damaged or truncated (${(error as Error).message}); fetch the file again`);

/**
 * Reads IDX from memory, plain or gzip (in a browser plain only: there `readIdx` unpacks). Throws IdxError; `file` is the name that its
 * messages use.
 */
export function parseIdx(input: Uint8Array, file = "idx"): IdxArray {
  if (!isGzip(input)) return parsePlain(input, file);
  if (gunzipSync === null)
    throw new IdxError(`${file}: gzip data can't be unpacked at once in a browser; use readIdx, which takes bytes too`);
  let bytes: Uint8Array;
  try {
    bytes = gunzipSync(input);
  } catch (error) {
    throw damagedGzip(file, error);
  }
  return parsePlain(bytes, file);
}

function parsePlain(bytes: Uint8Array, file: string): IdxArray {
  const fail = (what: string): never => {
    throw new IdxError(`${file}: ${what}`);
  };
  if (bytes.length < 4) fail(`only ${bytes.length} bytes; an IDX file starts with 4 bytes of magic number`);
  const type = types[bytes[2]];
  if (bytes[0] !== 0 || bytes[1] !== 0 || type === undefined)
    fail(
      `not an IDX file: its magic number is ${hex(bytes.subarray(0, 4))}, expected 00 00, a type 08 … 0e, the number of axes`,
    );
  const axes = bytes[3];
  const start = 4 + 4 * axes;
  if (bytes.length < start)
    fail(`truncated inside the sizes: ${bytes.length} bytes, ${axes} axes need a header of ${start}`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const shape = Array.from({ length: axes }, (_, i) => view.getUint32(4 + 4 * i));
  const length = shape.reduce((n, d) => n * d, 1);
  const expected = start + length * type.bytes;
  if (bytes.length !== expected)
    fail(
      `${type.dtype} of shape [${shape.join(", ")}] takes ${expected} bytes, the file has ${bytes.length}; ` +
        (bytes.length < expected ? "it is truncated, fetch it again" : "it is damaged, fetch it again"),
    );
  return { dtype: type.dtype, shape, data: type.read(view, start, length) };
}

/** Reads an IDX file, plain or gzip; on a page in a worker. Throws FileError, IdxError or the signal's reason. */
export async function readIdx(source: Source, options: ReadOptions = {}): Promise<IdxArray> {
  if (elsewhere) return elsewhere("readIdx", [source], options);
  const file = sourceName(source);
  const bytes = await readBytes(source, options);
  if (!isGzip(bytes)) return parsePlain(bytes, file);
  const plain = await gunzip(bytes).catch((error) => {
    throw damagedGzip(file, error);
  });
  return parsePlain(plain, file);
}

export interface LabelledImages {
  /** [count, height, width] or any [count, …]. */
  readonly images: IdxArray;
  /** [count], each 0 … numClasses − 1. */
  readonly labels: Int32Array;
}

export interface IdxClassification {
  readonly train: LabelledImages | null;
  readonly test: LabelledImages | null;
  /** One more than the largest label in either split. */
  readonly numClasses: number;
  /** What a user should be told, e.g. that only a test split is here; null if both splits are. */
  readonly note: string | null;
}

// train-images-idx3-ubyte, t10k-labels.idx1-ubyte.gz, emnist-letters-test-images-idx3-ubyte …
const fileName = /^(.*?)(train|t10k|test)[-_](images|labels)[-.]idx\d-ubyte(\.gz)?$/i;

/** The sources of a set by the names of their files. */
async function namedSources(from: string | readonly Source[]): Promise<[name: string, source: Source][]> {
  if (typeof from === "string") return (await listFolder(from)).map((name) => [name, join(from, name)]);
  return from.map((source) => [basename(sourceName(source).replace(/[?#].*$/, "")), source]);
}

/**
 * Finds and reads the four files of an image classification set by their usual names, plain or gzip (plain wins where
 * both are), in a folder or among sources (the files that a user chose, or addresses). At least one split must be whole.
 * On a page in a worker. Throws FileError, IdxError or the signal's reason.
 */
export async function loadIdxClassification(
  from: string | readonly Source[],
  options: ReadOptions = {},
): Promise<IdxClassification> {
  if (elsewhere) return elsewhere("loadIdxClassification", [from], options);
  const folder = typeof from === "string" ? from : "the files given";
  const found = new Map<string, readonly [name: string, source: Source]>(); // "train images" → file
  const prefixes = new Set<string>();
  for (const named of await namedSources(from)) {
    const match = fileName.exec(named[0]);
    if (match === null) continue;
    prefixes.add(match[1]);
    const key = `${match[2].toLowerCase() === "train" ? "train" : "test"} ${match[3].toLowerCase()}`;
    if (!found.has(key) || match[4] === undefined) found.set(key, named);
  }
  if (prefixes.size > 1)
    throw new IdxError(
      `${folder}: several sets lie in this folder (${[...prefixes].map((p) => `"${p}…"`).join(", ")}); give each its own folder`,
    );
  if (found.size === 0)
    throw new IdxError(
      `${folder}: no IDX files found; expected train-images-idx3-ubyte, train-labels-idx1-ubyte, ` +
        "t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, each plain or .gz",
    );
  const watch = together(options);
  const split = async (which: "train" | "test"): Promise<LabelledImages | null> => {
    const images = found.get(`${which} images`);
    const labels = found.get(`${which} labels`);
    if (images === undefined && labels === undefined) return null;
    if (images === undefined || labels === undefined)
      throw new IdxError(
        `${folder}: ${(images ?? labels)?.[0]} is here, but the file of the ${which} ${images === undefined ? "images" : "labels"} is missing`,
      );
    return checked(
      { file: sourceName(images[1]), array: await readIdx(images[1], watch()) },
      { file: sourceName(labels[1]), array: await readIdx(labels[1], watch()) },
    );
  };
  const train = await split("train");
  const test = await split("test");
  let largest = 0;
  for (const part of [train, test])
    if (part !== null) for (const label of part.labels) if (label > largest) largest = label;
  const note =
    train === null
      ? `${folder} holds only a test split; train on a part of it, or add train-images-idx3-ubyte and train-labels-idx1-ubyte`
      : test === null
        ? `${folder} holds only a training split; hold out a part of it, or add t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte`
        : null;
  return { train, test, numClasses: largest + 1, note };
}

interface NamedArray {
  readonly file: string;
  readonly array: IdxArray;
}

/** A split, if its images and its labels are such and belong together. Throws IdxError. */
function checked({ file, array: images }: NamedArray, { file: where, array: labels }: NamedArray): LabelledImages {
  if (images.shape.length < 2)
    throw new IdxError(`${file}: expected [count, …] images, got shape [${images.shape.join(", ")}]`);
  if (labels.shape.length !== 1)
    throw new IdxError(`${where}: expected one axis of labels, got shape [${labels.shape.join(", ")}]`);
  if (labels.shape[0] !== images.shape[0])
    throw new IdxError(
      `${where}: ${labels.shape[0]} labels for ${images.shape[0]} images; the files do not belong together`,
    );
  if (labels.shape[0] === 0) throw new IdxError(`${where}: the file holds no labels`);
  const bad = labels.data.findIndex((label: number) => !Number.isInteger(label) || label < 0 || label > 65535);
  if (bad >= 0) throw new IdxError(`${where}: label ${bad} is ${labels.data[bad]}; a label is a whole number ≥ 0`);
  return { images, labels: Int32Array.from(labels.data) };
}

/** IDX in memory, of the array's own type: for making test files and for sharing a set with other tools. */
export function formatIdx({ dtype, shape, data }: IdxArray): Uint8Array<ArrayBuffer> {
  const entry = Object.entries(types).find(([, type]) => type.dtype === dtype);
  if (entry === undefined) throw new IdxError(`IDX has no type ${dtype}`);
  const [code, { bytes }] = entry;
  const length = shape.reduce((n, d) => n * d, 1);
  if (length !== data.length)
    throw new IdxError(`shape [${shape.join(", ")}] has ${length} elements, the data ${data.length}`);
  const start = 4 + 4 * shape.length;
  const out = new Uint8Array(start + length * bytes);
  out[2] = Number(code);
  out[3] = shape.length;
  const view = new DataView(out.buffer);
  for (let i = 0; i < shape.length; i++) view.setUint32(4 + 4 * i, shape[i]);
  out.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), start);
  const littleEndian = new Uint8Array(Uint16Array.of(1).buffer)[0] === 1;
  if (littleEndian)
    for (let at = start; bytes > 1 && at < out.length; at += bytes) out.subarray(at, at + bytes).reverse();
  return out;
}
