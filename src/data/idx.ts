/**
 * IDX files, the format of MNIST (http://yann.lecun.com/exdb/mnist): two zero bytes, a type, the number of axes, the
 * sizes, the elements, all big-endian; plain or gzip. Typed arrays out; scaling to floats is the caller's.
 */

import { join } from "node:path";
import { gunzipSync } from "node:zlib";
import { NablaError } from "../core/errors.ts";
import { listFolder, readBytes } from "./files.ts";

/** A file that is not valid IDX, or a folder without the files that a classifier needs. */
export class IdxError extends NablaError {
  override name = "IdxError";
}

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

/** Reads IDX from memory, plain or gzip. Throws IdxError; `file` is the name that its messages use. */
export function parseIdx(input: Uint8Array, file = "idx"): IdxArray {
  const fail = (what: string): never => {
    throw new IdxError(`${file}: ${what}`);
  };
  let bytes = input;
  if (input[0] === 0x1f && input[1] === 0x8b) {
    try {
      bytes = gunzipSync(input);
    } catch (error) {
      fail(`the gzip data is damaged or truncated (${(error as Error).message}); fetch the file again`);
    }
  }
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

/** Reads an IDX file, plain or gzip. Throws FileError or IdxError. */
export async function readIdx(path: string): Promise<IdxArray> {
  return parseIdx(await readBytes(path), path);
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

/**
 * Finds and reads the four files of an image classification set by their usual names, plain or gzip (plain wins where
 * both are). At least one split must be whole. Throws FileError or IdxError.
 */
export async function loadIdxClassification(folder: string): Promise<IdxClassification> {
  const found = new Map<string, string>(); // "train images" → file name
  const prefixes = new Set<string>();
  for (const name of listFolder(folder)) {
    const match = fileName.exec(name);
    if (match === null) continue;
    prefixes.add(match[1]);
    const key = `${match[2].toLowerCase() === "train" ? "train" : "test"} ${match[3].toLowerCase()}`;
    if (!found.has(key) || match[4] === undefined) found.set(key, name);
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
  const split = async (which: "train" | "test"): Promise<LabelledImages | null> => {
    const imagesName = found.get(`${which} images`);
    const labelsName = found.get(`${which} labels`);
    if (imagesName === undefined && labelsName === undefined) return null;
    if (imagesName === undefined || labelsName === undefined)
      throw new IdxError(
        `${folder}: ${imagesName ?? labelsName} is here, but the file of the ${which} ${imagesName === undefined ? "images" : "labels"} is missing`,
      );
    const images = await readIdx(join(folder, imagesName));
    const labels = await readIdx(join(folder, labelsName));
    const where = join(folder, labelsName);
    if (images.shape.length < 2)
      throw new IdxError(
        `${join(folder, imagesName)}: expected [count, …] images, got shape [${images.shape.join(", ")}]`,
      );
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

/** IDX in memory, of the array's own type: for making test files and for sharing a set with other tools. */
export function formatIdx({ dtype, shape, data }: IdxArray): Uint8Array {
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
