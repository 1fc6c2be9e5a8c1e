/**
 * NumPy's files (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html): .npy, one array, versions 1 to 3, in C or
 * Fortran order, little- or big-endian; and .npz, a zip of them. Only plain numbers: an array of objects is a pickle, and is not
 * read. What is written is what numpy.save and numpy.savez write, byte for byte.
 */
import { DTypeError, ShapeError } from "../core/errors.ts";
import { sizeOf } from "../core/shape.ts";
import { writeFileAtomic } from "../data/files.ts";
import { joined } from "../data/pieces.ts";
import { Cursor } from "./cursor.ts";
import { FormatError, quote } from "./format-error.ts";
import { type FormatSource, openAccess } from "./random-access.ts";
import { gather, type StoredDType, type StoredTensor, storedBytes, swapBytes } from "./stored-tensor.ts";
import { readZip, type ZipMember, zipChunks } from "./zip.ts";

/** An array in a file. `read()` gives it in C order and little-endian, whatever it is stored in. */
export interface NpyArray extends StoredTensor {
  /** As it is stored: columns first. */
  readonly fortranOrder: boolean;
}

const kinds: Readonly<Record<string, StoredDType>> = {
  b1: "bool",
  i1: "int8",
  u1: "uint8",
  i2: "int16",
  u2: "uint16",
  f2: "float16",
  i4: "int32",
  u4: "uint32",
  f4: "float32",
  i8: "int64",
  u8: "uint64",
  f8: "float64",
};
const kindOf = (dtype: StoredDType): string | undefined => Object.keys(kinds).find((kind) => kinds[kind] === dtype);
const magic = [0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59]; // "\x93NUMPY"
const largestHeader = 10_000; // NumPy's own limit of what it reads without being told to
const largestDims = 64;

interface Header {
  readonly dtype: StoredDType;
  readonly bigEndian: boolean;
  readonly fortranOrder: boolean;
  readonly shape: readonly number[];
  /** Of the array's bytes, from the beginning of the .npy file. */
  readonly dataAt: number;
  readonly byteLength: number;
}

/** The header's text is a Python dict of three keys; this is all of Python's syntax that it needs. */
const token = /\s*(?:('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|(True|False)|(\d+)L?|([{}():,[\]]))/y;

type Literal = string | boolean | number | readonly Literal[] | ReadonlyMap<string, Literal>;

/** The error that the header is not valid, and why. */
type Wrong = (why: string) => FormatError;

/** Parses such a dict. */
function parseDict(text: string, wrong: Wrong): ReadonlyMap<string, Literal> {
  token.lastIndex = 0;
  let depth = 0;
  const next = (): RegExpExecArray => {
    const match = token.exec(text);
    if (match === null) throw wrong("it is not a dict of strings, numbers, True and False");
    return match;
  };
  const sequence = (close: string): Literal[] => {
    const items: Literal[] = [];
    for (;;) {
      const match = next();
      if (match[4] === close) return items;
      items.push(value(match));
      const after = next()[4];
      if (after === close) return items;
      if (after !== ",") throw wrong("a comma is missing");
    }
  };
  const dict = (): Map<string, Literal> => {
    const entries = new Map<string, Literal>();
    for (;;) {
      const match = next();
      if (match[4] === "}") return entries;
      if (match[1] === undefined) throw wrong("a key is not a string");
      const key = match[1].slice(1, -1);
      if (entries.has(key)) throw wrong(`it holds ${quote(key)} twice`);
      if (next()[4] !== ":") throw wrong("a colon is missing");
      entries.set(key, value(next()));
      const after = next()[4];
      if (after === "}") return entries;
      if (after !== ",") throw wrong("a comma is missing");
    }
  };
  const value = ([, string, bool, digits, mark]: RegExpExecArray): Literal => {
    if (string !== undefined) return string.slice(1, -1);
    if (bool !== undefined) return bool === "True";
    if (digits !== undefined) return Number(digits);
    if (depth++ > 8) throw wrong("it is nested too deeply");
    if (mark === "(") return sequence(")");
    if (mark === "[") return sequence("]");
    throw wrong(`${quote(mark)} has no place there`);
  };
  if (next()[4] !== "{") throw wrong("it is not a dict");
  const entries = dict();
  if (text.slice(token.lastIndex).trim() !== "") throw wrong("something follows the dict");
  return entries;
}

/** The dtype of a descr such as "<f4". */
function parseDescr(descr: Literal | undefined, wrong: Wrong): { dtype: StoredDType; bigEndian: boolean } {
  if (typeof descr !== "string") throw wrong("its descr is that of a structured array; only plain numbers are read");
  const order = descr[0];
  const dtype = Object.hasOwn(kinds, descr.slice(1)) ? kinds[descr.slice(1)] : undefined;
  if (dtype === undefined || !"<>|=".includes(order)) {
    const why = descr.endsWith("O") ? "; arrays of objects are pickles, which could run code" : "";
    throw wrong(`its dtype ${quote(descr)} is not read here${why}; known are ${Object.keys(kinds).join(" ")}`);
  }
  return { dtype, bigEndian: order === ">" };
}

function parseShape(shape: Literal | undefined, wrong: Wrong): number[] {
  if (!Array.isArray(shape)) throw wrong("its shape is not a tuple");
  if (shape.length > largestDims) throw wrong(`it has ${shape.length} dimensions; NumPy knows at most ${largestDims}`);
  let elements = 1;
  for (const d of shape) {
    if (typeof d !== "number") throw wrong("its shape is not one of numbers");
    elements *= d;
    if (!Number.isSafeInteger(d) || !Number.isSafeInteger(elements * 8)) throw wrong("its shape is too large");
  }
  return shape;
}

/** Parses what begins a .npy file of `cursor.size` bytes. */
function parseHeader(cursor: Cursor): Header {
  for (const byte of magic)
    if (cursor.u8("the magic number") !== byte)
      throw cursor.error('it does not begin with "\\x93NUMPY"; it is not a .npy file', 0);
  const major = cursor.u8("the version");
  cursor.skip(1, "the version");
  if (major < 1 || major > 3) throw cursor.error(`.npy version ${major}; versions 1, 2 and 3 are read here`, 6);
  const lengthAt = cursor.at;
  const length = major === 1 ? cursor.u16("the header's length") : cursor.u32("the header's length");
  if (length > largestHeader)
    throw cursor.error(
      `the header's length is ${length}; more than ${largestHeader} is none of plain numbers`,
      lengthAt,
    );
  const start = cursor.at;
  const bytes = cursor.take(length, "the header");
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte); // Latin-1; what is read in it is ASCII
  const wrong: Wrong = (why) => cursor.error(`the header is not valid: ${why}`, start);
  const dict = parseDict(text, wrong);
  for (const key of dict.keys())
    if (!["descr", "fortran_order", "shape"].includes(key)) throw wrong(`${quote(key)} is none of its keys`);
  const { dtype, bigEndian } = parseDescr(dict.get("descr"), wrong);
  const fortranOrder = dict.get("fortran_order");
  if (typeof fortranOrder !== "boolean") throw wrong("its fortran_order is not True or False");
  const shape = parseShape(dict.get("shape"), wrong);
  const byteLength = sizeOf(shape) * storedBytes[dtype];
  if (byteLength !== cursor.left)
    throw wrong(`${dtype} of shape [${shape.join(", ")}] takes ${byteLength} bytes, but ${cursor.left} follow`);
  return { dtype, bigEndian, fortranOrder, shape, dataAt: cursor.at, byteLength };
}

function arrayOf(header: Header, data: () => Promise<Uint8Array>): NpyArray {
  const { dtype, bigEndian, fortranOrder, shape, byteLength } = header;
  const each = storedBytes[dtype];
  return {
    dtype,
    shape,
    byteLength,
    fortranOrder,
    read: async () => {
      let bytes = await data();
      if (fortranOrder && shape.filter((d) => d !== 1).length > 1) {
        let stride = 1;
        const strides = shape.map((d) => (stride *= d) / (d || 1));
        bytes = gather(bytes, each, 0, shape, strides);
      } else if (bigEndian && each > 1) bytes = bytes.slice();
      if (bigEndian && each > 1) swapBytes(bytes, each);
      return bytes;
    },
  };
}

/**
 * Reads what the array of a .npy file is; its elements when they are asked for. Throws FormatError with the byte at which the file
 * is wrong (arrays of objects, texts, dates, complex numbers and structures are such errors), FileError where a path can't be read.
 */
export async function readNpy(source: FormatSource): Promise<NpyArray> {
  const opened = await openAccess(source, "npy");
  const { name: file, size } = opened;
  const header = parseHeader(new Cursor(await opened.read(0, Math.min(size, largestHeader + 12)), { file, size }));
  return arrayOf(header, () => opened.read(header.dataAt, header.byteLength));
}

async function memberArray(file: string, member: ZipMember): Promise<NpyArray> {
  const bytes = await member.start(largestHeader + 12);
  const inside = member.deflated ? { inside: quote(member.name) } : {};
  if (member.deflated && bytes.length < Math.min(member.size, largestHeader + 12))
    throw new FormatError(file, member.offset, `member ${quote(member.name)} ends too early`);
  const header = parseHeader(new Cursor(bytes, { file, base: member.offset, size: member.size, ...inside }));
  return arrayOf(header, async () => (await member.read()).subarray(header.dataAt));
}

/**
 * Reads what the arrays of a .npz file are, by their names (without ".npy"), in the order of the file; their elements when they are
 * asked for, and then with their checksum. Throws as readNpy does.
 */
export async function readNpz(source: FormatSource): Promise<Map<string, NpyArray>> {
  const opened = await openAccess(source, "npz");
  const out = new Map<string, NpyArray>();
  for (const member of (await readZip(opened)).values()) {
    const name = member.name.replace(/\.npy$/, "");
    if (out.has(name))
      throw new FormatError(opened.name, member.offset, `the archive holds the array ${quote(name)} twice`);
    out.set(name, await memberArray(opened.name, member));
  }
  return out;
}

/** An array to write: little-endian elements in C order. */
export interface NpyInput {
  readonly dtype: StoredDType;
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
}

/** The two pieces of a .npy file. */
function npyPieces(what: string, { dtype, shape, bytes }: NpyInput): [header: Uint8Array, data: Uint8Array] {
  const kind = kindOf(dtype);
  if (kind === undefined)
    throw new DTypeError(
      `${what}: NumPy has no ${String(dtype)}; convert it to one of ${Object.values(kinds).join(" ")}`,
    );
  if (shape.length > largestDims || !shape.every((d) => Number.isSafeInteger(d) && d >= 0))
    throw new ShapeError(`${what}: shape must be at most ${largestDims} whole numbers ≥ 0, got [${shape.join(", ")}]`);
  const expected = sizeOf(shape) * storedBytes[dtype];
  if (bytes.length !== expected)
    throw new ShapeError(
      `${what}: ${dtype} of shape [${shape.join(", ")}] takes ${expected} bytes, got ${bytes.length}`,
    );
  const descr = `${storedBytes[dtype] === 1 ? "|" : "<"}${kind}`;
  const tuple = `(${shape.join(", ")}${shape.length === 1 ? "," : ""})`;
  let text = `{'descr': '${descr}', 'fortran_order': False, 'shape': ${tuple}, }`;
  // NumPy leaves room for the first dimension to grow in place to 21 digits
  if (shape.length > 0) text += " ".repeat(21 - String(shape[0]).length);
  text += " ".repeat(63 - ((10 + text.length) % 64));
  const header = new Uint8Array(10 + text.length + 1);
  header.set([...magic, 1, 0, (text.length + 1) & 255, (text.length + 1) >> 8]);
  header.set(new TextEncoder().encode(`${text}\n`), 10);
  return [header, bytes];
}

type NpzInput = ReadonlyMap<string, NpyInput> | Readonly<Record<string, NpyInput>>;

function* npzPieces(arrays: NpzInput): Generator<readonly [string, readonly Uint8Array[]]> {
  const entries = arrays instanceof Map ? (arrays as ReadonlyMap<string, NpyInput>) : Object.entries(arrays);
  for (const [name, array] of entries) yield [`${name}.npy`, npyPieces(`array ${quote(name)}`, array)];
}

/** A .npy file in memory. Throws DTypeError for bfloat16, and ShapeError where shape and bytes do not fit together. */
export function formatNpy(array: NpyInput): Uint8Array {
  return joined(npyPieces("npy", array));
}

/** A .npz file in memory: stored, not deflated, and the same each time. Throws as formatNpy does. */
export function formatNpz(arrays: NpzInput): Uint8Array {
  return joined([...zipChunks(npzPieces(arrays))]);
}

/** Writes a .npy file atomically. Throws as formatNpy does, and FileError. */
export async function writeNpy(path: string, array: NpyInput): Promise<void> {
  await writeFileAtomic(path, npyPieces(path, array));
}

/** Writes a .npz file atomically. Throws as formatNpy does, and FileError. */
export async function writeNpz(path: string, arrays: NpzInput): Promise<void> {
  await writeFileAtomic(path, zipChunks(npzPieces(arrays)));
}
