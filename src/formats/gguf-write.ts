/** Writing GGUF version 3 (`gguf.ts`): for the same metadata and tensors byte for byte what the `gguf` Python package writes. */
import { DTypeError, ShapeError } from "../core/errors.ts";
import { sizeOf } from "../core/shape.ts";
import { writeFileAtomic } from "../data/files.ts";
import { joined } from "../data/pieces.ts";
import { quote } from "./format-error.ts";
import {
  alignmentKey,
  defaultAlignment,
  type GgufArray,
  type GgufValue,
  type GgufValueType,
  ggufMagic,
  largestDepth,
  numericTypes,
  valueTypes,
} from "./gguf.ts";
import { blockTypes, type GgufType, quantize } from "./quants.ts";

/** A tensor to write: float32 values that are rounded to `type`, or the bytes of blocks as they are. */
export interface GgufTensorInput {
  readonly type: GgufType;
  /** Row-major, as PyTorch has it; the last dimension fills whole blocks. At most four dimensions. */
  readonly shape: readonly number[];
  readonly data: Float32Array | Uint8Array;
}

type Named<T> = ReadonlyMap<string, T> | Readonly<Record<string, T>>;
const entriesOf = <T>(named: Named<T>): [string, T][] =>
  named instanceof Map ? [...(named as ReadonlyMap<string, T>)] : Object.entries(named as Record<string, T>);

export interface GgufInput {
  /** In the order in which they are written. "general.alignment", a uint32, sets the alignment; 32 without. */
  readonly metadata?: Named<GgufValue>;
  /** In the order in which they are written. */
  readonly tensors: Named<GgufTensorInput>;
}

/** Little-endian numbers and strings, one after the other. */
class Writer {
  length = 0;
  #bytes = new Uint8Array(1024);
  #view = new DataView(this.#bytes.buffer);

  #room(length: number): number {
    const at = this.length;
    this.length += length;
    if (this.length > this.#bytes.length) {
      const grown = new Uint8Array(Math.max(this.length, 2 * this.#bytes.length));
      grown.set(this.#bytes);
      this.#bytes = grown;
      this.#view = new DataView(grown.buffer);
    }
    return at;
  }

  u8(value: number): void {
    const at = this.#room(1);
    this.#view.setUint8(at, value);
  }
  u32(value: number): void {
    const at = this.#room(4);
    this.#view.setUint32(at, value, true);
  }
  u64(value: number | bigint): void {
    const at = this.#room(8);
    this.#view.setBigUint64(at, BigInt(value), true);
  }
  raw(bytes: Uint8Array): void {
    const at = this.#room(bytes.length);
    this.#bytes.set(bytes, at);
  }
  text(text: string): void {
    const bytes = new TextEncoder().encode(text);
    this.u64(bytes.length);
    this.raw(bytes);
  }
  get bytes(): Uint8Array {
    return this.#bytes.subarray(0, this.length);
  }
}

/** Numbers of a type as bytes; what the type can't hold is an error, but for rounding to float32. */
function numberBytes(type: GgufValueType, values: NumericValues, what: string): Uint8Array {
  const { bytes, array } = numericTypes[type]!;
  const out = new array(new ArrayBuffer(values.length * bytes)) as unknown as (number | bigint)[];
  for (let i = 0; i < values.length; i++) {
    const value = values[i];
    const wide = type === "uint64" || type === "int64";
    const float = type === "float32" || type === "float64";
    if (typeof value === (wide ? "bigint" : "number")) out[i] = value;
    if (float ? typeof value !== "number" : out[i] !== value)
      throw new DTypeError(`${what} holds ${String(value)}, which is no ${type}`);
  }
  return new Uint8Array((out as unknown as Uint8Array).buffer);
}
type NumericValues = ArrayLike<number | bigint>;

function writeScalar(writer: Writer, type: GgufValueType, value: unknown, what: string): void {
  const expected = type === "string" ? "string" : type === "bool" ? "boolean" : undefined;
  if (expected !== undefined && typeof value !== expected)
    throw new DTypeError(`${what} is of type ${type}, but holds ${String(value)}`);
  if (type === "string") writer.text(value as string);
  else if (type === "bool") writer.u8(value ? 1 : 0);
  else writer.raw(numberBytes(type, [value as number | bigint], what));
}

function writeArray(writer: Writer, { itemType, value }: GgufArray, what: string, depth = 1): void {
  if (depth > largestDepth) throw new DTypeError(`${what} is an array in more than ${largestDepth} arrays`);
  writer.u32(codeOf(itemType, what));
  writer.u64(value.length);
  if (itemType === "array") for (const item of value) writeArray(writer, item, what, depth + 1);
  else if (numericTypes[itemType]) writer.raw(numberBytes(itemType, value as unknown as NumericValues, what));
  else for (const item of value as readonly unknown[]) writeScalar(writer, itemType, item, what);
}

function codeOf(type: GgufValueType, what: string): number {
  const code = valueTypes.indexOf(type);
  if (code < 0) throw new DTypeError(`${what}: there is no type ${String(type)}; known are ${valueTypes.join(" ")}`);
  return code;
}

/** The bytes that a tensor takes. Throws where type, shape and data do not fit together. */
function checkTensor(name: string, { type, shape, data }: GgufTensorInput): number {
  const where = `tensor ${quote(name)}`;
  const block = blockTypes[type];
  if (block === undefined)
    throw new DTypeError(`${where}: there is no type ${String(type)}; known are ${Object.keys(blockTypes).join(" ")}`);
  if (shape.length > 4) throw new ShapeError(`${where} has ${shape.length} dimensions; GGUF knows at most 4`);
  if (!shape.every((d) => Number.isSafeInteger(d) && d >= 0))
    throw new ShapeError(`${where}: shape must be whole numbers ≥ 0, got [${shape.join(", ")}]`);
  if ((shape.at(-1) ?? 1) % block.elements !== 0)
    throw new ShapeError(`${where}: rows of ${shape.at(-1) ?? 1} do not fill blocks of ${type} (${block.elements})`);
  const elements = sizeOf(shape);
  const bytes = (elements / block.elements) * block.bytes;
  if (data.length !== (data instanceof Float32Array ? elements : bytes))
    throw new ShapeError(
      `${where}: ${type} of shape [${shape.join(", ")}] takes ${elements} values or ${bytes} bytes, got ${data.length}`,
    );
  return bytes;
}

function tensorBytes(name: string, { type, data }: GgufTensorInput): Uint8Array {
  if (!(data instanceof Float32Array)) return data;
  try {
    return quantize(type, data);
  } catch (error) {
    throw error instanceof DTypeError ? new DTypeError(`tensor ${quote(name)}: ${error.message}`) : error;
  }
}

const padding = (length: number, alignment: number): Uint8Array =>
  new Uint8Array((alignment - (length % alignment)) % alignment);

function alignmentOf(metadata: readonly [string, GgufValue][]): number {
  const value = metadata.find(([key]) => key === alignmentKey)?.[1];
  if (value === undefined) return defaultAlignment;
  if (value.type !== "uint32" || value.value === 0 || (value.value & (value.value - 1)) !== 0)
    throw new DTypeError(`${alignmentKey} must be a uint32 and a power of two`);
  return value.value;
}

/** The pieces of the file. Tensors are quantised when it is their turn, so that only one is in memory twice. */
function* chunks({ metadata: given = {}, tensors: input }: GgufInput): Generator<Uint8Array> {
  const metadata = entriesOf(given);
  const tensors = entriesOf(input);
  const alignment = alignmentOf(metadata);
  const header = new Writer();
  header.u32(ggufMagic);
  header.u32(3);
  header.u64(tensors.length);
  header.u64(metadata.length);
  for (const [key, value] of metadata) {
    const what = `metadata ${quote(key)}`;
    header.text(key);
    header.u32(codeOf(value.type, what));
    if (value.type === "array") writeArray(header, value, what);
    else writeScalar(header, value.type, value.value, what);
  }
  let offset = 0;
  for (const [name, tensor] of tensors) {
    const size = checkTensor(name, tensor);
    header.text(name);
    header.u32(tensor.shape.length);
    for (const d of tensor.shape.toReversed()) header.u64(d);
    header.u32(blockTypes[tensor.type].code);
    header.u64(offset);
    offset += Math.ceil(size / alignment) * alignment;
  }
  header.raw(padding(header.length, alignment));
  yield header.bytes;
  for (const [name, tensor] of tensors) {
    const bytes = tensorBytes(name, tensor);
    yield bytes;
    yield padding(bytes.length, alignment);
  }
}

/**
 * A GGUF file in memory. Values are rounded as ggml's reference quantisation does, to f32, f16, bf16, q8_0 or q4_0; bytes of any
 * type are written as they are. Throws ShapeError and DTypeError where type, shape and data do not fit together.
 */
export function formatGguf(input: GgufInput): Uint8Array {
  return joined([...chunks(input)]);
}

/** Writes a GGUF file atomically, tensor by tensor. Throws what formatGguf throws, and FileError; the old file then stays. */
export async function writeGguf(path: string, input: GgufInput): Promise<void> {
  await writeFileAtomic(path, chunks(input));
}
