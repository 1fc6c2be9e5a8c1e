/**
 * GGUF, the file format of llama.cpp, versions 2 and 3 (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): metadata with
 * types, then what the tensors are, then their bytes. Nothing but the header is read until a tensor is asked for; tensors stay in
 * the type they are stored in. Writing is `gguf-write.ts`, the block types are `quants.ts`.
 */
import { sizeOf } from "../core/shape.ts";
import { type Cursor, parseStart } from "./cursor.ts";
import { quote } from "./format-error.ts";
import { blockTypes, dequantize, type GgufType, otherTypes } from "./quants.ts";
import { type FormatSource, type OpenedSource, openAccess } from "./random-access.ts";

/** The types of single values; 64-bit integers are bigint. */
export interface GgufScalars {
  readonly uint8: number;
  readonly int8: number;
  readonly uint16: number;
  readonly int16: number;
  readonly uint32: number;
  readonly int32: number;
  readonly float32: number;
  readonly bool: boolean;
  readonly string: string;
  readonly uint64: bigint;
  readonly int64: bigint;
  readonly float64: number;
}

/** What an array of each type is. */
export interface GgufArrays {
  readonly uint8: Uint8Array;
  readonly int8: Int8Array;
  readonly uint16: Uint16Array;
  readonly int16: Int16Array;
  readonly uint32: Uint32Array;
  readonly int32: Int32Array;
  readonly float32: Float32Array;
  readonly bool: readonly boolean[];
  readonly string: readonly string[];
  readonly array: readonly GgufArray[];
  readonly uint64: BigUint64Array;
  readonly int64: BigInt64Array;
  readonly float64: Float64Array;
}

type OneOf<T> = T[keyof T];
/** An array in the metadata: the type of its items, and the items. */
export type GgufArray = OneOf<{
  [K in keyof GgufArrays]: { readonly type: "array"; readonly itemType: K; readonly value: GgufArrays[K] };
}>;
/** A value of the metadata with its type, as it is stored. */
export type GgufValue =
  | OneOf<{ [K in keyof GgufScalars]: { readonly type: K; readonly value: GgufScalars[K] } }>
  | GgufArray;

/** The types in the order of their numbers in files (gguf_metadata_value_type). */
export const valueTypes = [
  "uint8",
  "int8",
  "uint16",
  "int16",
  "uint32",
  "int32",
  "float32",
  "bool",
  "string",
  "array",
  "uint64",
  "int64",
  "float64",
] as const;
export type GgufValueType = (typeof valueTypes)[number];

type NumericArray = { [Symbol.iterator](): Iterator<number | bigint>; readonly length: number };
/** The types of numbers: the bytes of one, and the array that holds many. */
export const numericTypes: Readonly<
  Partial<Record<GgufValueType, { readonly bytes: number; readonly array: new (buffer: ArrayBuffer) => NumericArray }>>
> = {
  uint8: { bytes: 1, array: Uint8Array },
  int8: { bytes: 1, array: Int8Array },
  uint16: { bytes: 2, array: Uint16Array },
  int16: { bytes: 2, array: Int16Array },
  uint32: { bytes: 4, array: Uint32Array },
  int32: { bytes: 4, array: Int32Array },
  float32: { bytes: 4, array: Float32Array },
  uint64: { bytes: 8, array: BigUint64Array },
  int64: { bytes: 8, array: BigInt64Array },
  float64: { bytes: 8, array: Float64Array },
};

/** A tensor in a GGUF file. */
export interface GgufTensor {
  readonly name: string;
  readonly type: GgufType;
  /** Row-major, as PyTorch has it: the reverse of the order in the file. */
  readonly shape: readonly number[];
  /** Of its first byte in the file. */
  readonly offset: number;
  readonly byteLength: number;
  /** Its bytes as they are stored. */
  read(): Promise<Uint8Array>;
  /** The same, where the file can be mapped in a buffer of their own that takes memory only where it is used; null where it can't. */
  mapped(): Promise<Uint8Array<ArrayBuffer> | null>;
  /** Its elements as float32, in row-major order; blocks are dequantised as ggml does. */
  float32(): Promise<Float32Array<ArrayBuffer>>;
}

export interface GgufFile {
  readonly version: number;
  /** Bytes that the tensors' beginnings are multiples of. */
  readonly alignment: number;
  /** In the order of the file. */
  readonly metadata: ReadonlyMap<string, GgufValue>;
  /** In the order of the file. */
  readonly tensors: ReadonlyMap<string, GgufTensor>;
}

export const ggufMagic = 0x46554747; // "GGUF", read as a little-endian number
export const defaultAlignment = 32;
export const alignmentKey = "general.alignment";
/** Arrays in arrays are read and written up to this. */
export const largestDepth = 16;
const mostNames = 1 << 22; // of tensors, and of metadata: thousands are usual
const mostItems = 1 << 25; // of an array of texts, bools or arrays

const typeOf = (code: number): GgufType | undefined =>
  (Object.keys(blockTypes) as GgufType[]).find((name) => blockTypes[name].code === code);

function readString(cursor: Cursor, what: string): string {
  return cursor.text(cursor.count(`the length of ${what}`, 1), what);
}

/** A count of which more than `most` is no sane file. */
function readCount(cursor: Cursor, what: string, each: number, most: number): number {
  const start = cursor.at;
  const count = cursor.count(what, each);
  if (count > most) throw cursor.error(`${what} is ${count}; more than ${most} are not read`, start);
  return count;
}

function readType(cursor: Cursor, what: string): GgufValueType {
  const start = cursor.at;
  const code = cursor.u32(`the type of ${what}`);
  const type = valueTypes[code];
  if (type === undefined)
    throw cursor.error(`${what} is of type ${code}; the types of metadata are 0 … ${valueTypes.length - 1}`, start);
  return type;
}

function readBool(cursor: Cursor, what: string): boolean {
  const start = cursor.at;
  const value = cursor.u8(what);
  if (value > 1) throw cursor.error(`${what} is ${value}, which is no bool: 0 or 1`, start);
  return value === 1;
}

/** Numbers, aligned for their array whatever they are in the file. */
function readNumbers(cursor: Cursor, type: GgufValueType, count: number, what: string): NumericArray {
  const { bytes, array } = numericTypes[type]!;
  return new array(cursor.take(count * bytes, what).slice().buffer as ArrayBuffer);
}

/** The fewest bytes of an item of an array. */
const leastBytes = (type: GgufValueType): number =>
  numericTypes[type]?.bytes ?? (type === "bool" ? 1 : type === "string" ? 8 : 12);

function readArray(cursor: Cursor, what: string, depth: number): GgufArray {
  if (depth > largestDepth) throw cursor.error(`${what} is an array in more than ${largestDepth} arrays`);
  const itemType = readType(cursor, `the items of ${what}`);
  const most = numericTypes[itemType] ? Number.MAX_SAFE_INTEGER : mostItems;
  const count = readCount(cursor, `the number of items of ${what}`, leastBytes(itemType), most);
  const item = (): unknown => {
    if (itemType === "string") return readString(cursor, `an item of ${what}`);
    if (itemType === "bool") return readBool(cursor, `an item of ${what}`);
    return readArray(cursor, what, depth + 1);
  };
  let value: unknown;
  if (numericTypes[itemType]) value = readNumbers(cursor, itemType, count, what);
  else {
    const items: unknown[] = [];
    for (let i = 0; i < count; i++) items.push(item());
    value = items;
  }
  return { type: "array", itemType, value } as GgufArray;
}

function readValue(cursor: Cursor, what: string): GgufValue {
  const type = readType(cursor, what);
  if (type === "array") return readArray(cursor, what, 1);
  if (type === "string") return { type, value: readString(cursor, what) };
  if (type === "bool") return { type, value: readBool(cursor, what) };
  const [value] = readNumbers(cursor, type, 1, what);
  return { type, value } as GgufValue;
}

interface Described {
  readonly name: string;
  readonly type: GgufType;
  readonly shape: readonly number[];
  readonly byteLength: number;
  /** From the beginning of the data. */
  readonly offset: number;
  /** Where the file says so. */
  readonly offsetAt: number;
}

/** The shape, in the order of the file, and whether it fills blocks of the type. */
function readShape(cursor: Cursor, where: string): { shape: number[]; dimsAt: number } {
  const ndimAt = cursor.at;
  const ndim = cursor.u32(`the number of dimensions of ${where}`);
  if (ndim > 4) throw cursor.error(`${where} has ${ndim} dimensions; ggml knows at most 4`, ndimAt);
  const dimsAt = cursor.at;
  const shape: number[] = [];
  let elements = 1;
  for (let d = 0; d < ndim; d++) {
    const start = cursor.at;
    const claimed = cursor.u64(`a dimension of ${where}`);
    const size = Number(claimed);
    elements *= size;
    if (!Number.isSafeInteger(size) || !Number.isSafeInteger(elements * 4))
      throw cursor.error(`${where} has a dimension of ${claimed}, which is too large`, start);
    shape.push(size);
  }
  return { shape, dimsAt };
}

function readDescription(cursor: Cursor, alignment: number): Described {
  const name = readString(cursor, "the name of a tensor");
  const where = `tensor ${quote(name)}`;
  const { shape, dimsAt } = readShape(cursor, where);
  const typeAt = cursor.at;
  const code = cursor.u32(`the type of ${where}`);
  const type = typeOf(code);
  if (type === undefined) {
    const known = Object.keys(blockTypes).join(" ");
    throw cursor.error(
      `${where} is of type ${otherTypes[code] ?? code}, which is not read here; known are ${known}`,
      typeAt,
    );
  }
  const block = blockTypes[type];
  if ((shape[0] ?? 1) % block.elements !== 0)
    throw cursor.error(`${where}: rows of ${shape[0] ?? 1} do not fill blocks of ${type} (${block.elements})`, dimsAt);
  const byteLength = (sizeOf(shape) / block.elements) * block.bytes;
  const offsetAt = cursor.at;
  const offset = Number(cursor.u64(`the offset of ${where}`));
  if (offset % alignment !== 0)
    throw cursor.error(`${where}: its offset ${offset} is no multiple of the alignment, ${alignment}`, offsetAt);
  if (offset + byteLength > cursor.size)
    throw cursor.error(
      `${where}: its ${byteLength} bytes from offset ${offset} reach past the end of the file; it is damaged or truncated`,
      offsetAt,
    );
  return { name, type, shape: shape.reverse(), byteLength, offset, offsetAt };
}

/** No two tensors share bytes, and all end within the file. */
function checkPlaces(cursor: Cursor, described: readonly Described[], dataAt: number): void {
  let end = 0;
  let previous = "";
  for (const { name, offset, byteLength, offsetAt } of described.toSorted((a, b) => a.offset - b.offset)) {
    if (byteLength === 0) continue;
    if (offset < end)
      throw cursor.error(`the bytes of tensor ${quote(name)} overlap those of ${quote(previous)}`, offsetAt);
    end = offset + byteLength;
    previous = name;
    if (dataAt + end > cursor.size)
      throw cursor.error(
        `tensor ${quote(name)} ends ${dataAt + end - cursor.size} bytes past the end of the file; it is truncated`,
        offsetAt,
      );
  }
}

function readVersion(cursor: Cursor): number {
  if (cursor.u32("the magic number") !== ggufMagic)
    throw cursor.error('the file does not begin with "GGUF"; it is not a GGUF file', 0);
  const version = cursor.u32("the version");
  if (version === 2 || version === 3) return version;
  const why =
    version === 1
      ? "GGUF version 1, which was replaced within days; convert the model again"
      : (version & 0xffff) === 0
        ? "a big-endian GGUF file, which is not read here; convert the model for little-endian machines"
        : `GGUF version ${version}; versions 2 and 3 are read here`;
  throw cursor.error(`this is ${why}`, 4);
}

function readMetadata(cursor: Cursor, count: number) {
  const metadata = new Map<string, GgufValue>();
  let alignment = defaultAlignment;
  for (let i = 0; i < count; i++) {
    const start = cursor.at;
    const key = readString(cursor, "a key of the metadata");
    if (metadata.has(key)) throw cursor.error(`the metadata hold ${quote(key)} twice`, start);
    const valueAt = cursor.at;
    const value = readValue(cursor, `metadata ${quote(key)}`);
    metadata.set(key, value);
    if (key !== alignmentKey) continue;
    if (value.type !== "uint32" || value.value === 0 || (value.value & (value.value - 1)) !== 0)
      throw cursor.error(`${alignmentKey} must be a uint32 and a power of two`, valueAt);
    alignment = value.value;
  }
  return { metadata, alignment };
}

/** All before the tensors' bytes. */
function parseHeader(cursor: Cursor) {
  const version = readVersion(cursor);
  const tensorCount = readCount(cursor, "the number of tensors", 24, mostNames);
  const metadataCount = readCount(cursor, "the number of metadata", 13, mostNames);
  const { metadata, alignment } = readMetadata(cursor, metadataCount);
  const described = new Map<string, Described>();
  for (let i = 0; i < tensorCount; i++) {
    const start = cursor.at;
    const tensor = readDescription(cursor, alignment);
    if (described.has(tensor.name)) throw cursor.error(`the file holds tensor ${quote(tensor.name)} twice`, start);
    described.set(tensor.name, tensor);
  }
  const dataAt = Math.ceil(cursor.at / alignment) * alignment;
  checkPlaces(cursor, [...described.values()], dataAt);
  return { version, alignment, metadata, described, dataAt };
}

function tensorOf(
  source: OpenedSource,
  dataAt: number,
  { name, type, shape, byteLength, offset }: Described,
): GgufTensor {
  const at = dataAt + offset;
  const read = (): Promise<Uint8Array> => source.read(at, byteLength);
  return {
    name,
    type,
    shape,
    offset: at,
    byteLength,
    read,
    mapped: () => source.mapped(at, byteLength),
    float32: async () => dequantize(type, await read(), sizeOf(shape)),
  };
}

/**
 * Reads a GGUF file's metadata and what its tensors are; their bytes when they are asked for. Bytes that are given stay as they
 * are: `read()` of a tensor is a view of them. Throws FormatError with the byte at which the file is wrong (a type that is not
 * among GgufType's is such an error too), and FileError where a path can't be read.
 */
export async function readGguf(source: FormatSource): Promise<GgufFile> {
  const opened = await openAccess(source, "gguf");
  const { version, alignment, metadata, described, dataAt } = await parseStart(opened, parseHeader);
  const tensors = new Map<string, GgufTensor>();
  for (const [name, tensor] of described) tensors.set(name, tensorOf(opened, dataAt, tensor));
  return { version, alignment, metadata, tensors };
}
