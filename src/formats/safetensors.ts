/**
 * The safetensors format (https://github.com/huggingface/safetensors): eight bytes of header length, a JSON header,
 * the tensors' bytes. Typed arrays in, typed arrays out: no tensors here, and no dtype conversion. What is written is
 * byte for byte what the reference library writes; what is read is checked more loudly than there.
 */
import { NablaError } from "../core/errors.ts";
import { writeFileAtomic } from "../data/files.ts";
import { joined } from "../data/pieces.ts";
import { openSource, pathOf, type ReadOptions, type Source, sourceName, take } from "../data/source.ts";
import { longestView, type MappedFile, mapFile } from "./mapping.ts";

/** A file that is not valid safetensors. The message names the file and, where there is one, the tensor. */
export class SafetensorsError extends NablaError {
  override name = "SafetensorsError";
}

/** In the reference library's order: written from the last to the first, so that every tensor is aligned. */
const elementBytes = new Map([
  ["BOOL", 1],
  ["U8", 1],
  ["I8", 1],
  ["I16", 2],
  ["U16", 2],
  ["F16", 2],
  ["BF16", 2],
  ["I32", 4],
  ["U32", 4],
  ["F32", 4],
  ["F64", 8],
  ["I64", 8],
  ["U64", 8],
]);

export type SafetensorsDType =
  | "BOOL"
  | "U8"
  | "I8"
  | "I16"
  | "U16"
  | "F16"
  | "BF16"
  | "I32"
  | "U32"
  | "F32"
  | "F64"
  | "I64"
  | "U64";

/** One tensor: its dtype in the format's own names, its shape, its little-endian bytes. */
export interface SafetensorsEntry {
  readonly dtype: SafetensorsDType;
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
}

export interface SafetensorsFile {
  /** In the order of the data. */
  readonly tensors: Map<string, SafetensorsEntry>;
  readonly metadata: Record<string, string>;
}

interface Located {
  readonly name: string;
  readonly dtype: SafetensorsDType;
  readonly shape: readonly number[];
  readonly begin: number;
  readonly end: number;
}

const maxHeaderBytes = 100_000_000; // the reference library's limit

/** The first key that an object in this (valid) JSON text holds twice, which JSON.parse would drop without a word. */
function duplicateKey(json: string): string | undefined {
  const open: (Set<string> | null)[] = []; // null: an array
  const token = /[{}[\],:]|"(?:[^"\\]|\\.)*"/g;
  let expectsKey = false;
  for (let match = token.exec(json); match !== null; match = token.exec(json)) {
    const text = match[0];
    if (text === "{") open.push(new Set());
    else if (text === "[") open.push(null);
    else if (text === "}" || text === "]") open.pop();
    else if (text[0] === '"' && expectsKey) {
      const keys = open.at(-1)!;
      const key = JSON.parse(text) as string;
      if (keys!.has(key)) return key;
      keys!.add(key);
    }
    expectsKey = (text === "{" || text === ",") && open.at(-1) instanceof Set;
  }
  return undefined;
}

const isCount = (x: unknown): x is number => Number.isSafeInteger(x) && (x as number) >= 0;

const afterLast = (bytes: number | string) =>
  `${bytes} bytes after the last tensor belong to no tensor; the file is damaged`;

const quote = (name: string) => JSON.stringify(name);

/** Parses and checks a header whose data section has `dataBytes` bytes; null where that shows only at its end. */
export function parseHeader(header: Uint8Array, dataBytes: number | null, file: string) {
  const fail = (what: string): never => {
    throw new SafetensorsError(`${file}: ${what}`);
  };
  let text = "";
  let json: unknown;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(header);
    json = JSON.parse(text);
  } catch (error) {
    fail(`the header is not valid JSON (${(error as Error).message}); the file is damaged or not safetensors`);
  }
  if (text[0] !== "{" || typeof json !== "object" || json === null)
    fail("the header must be a JSON object that starts at its first byte; the file is not safetensors");
  const twice = duplicateKey(text);
  if (twice !== undefined) fail(`the header holds the name ${quote(twice)} twice; names must be unique`);

  const metadata: Record<string, string> = {};
  const located: Located[] = [];
  for (const [name, value] of Object.entries(json as Record<string, unknown>)) {
    if (name === "__metadata__") {
      if (typeof value !== "object" || value === null || Array.isArray(value))
        fail("__metadata__ must map strings to strings");
      for (const [key, item] of Object.entries(value as object)) {
        if (typeof item !== "string") fail(`__metadata__[${quote(key)}] must be a string`);
        // not by assignment, which a key "__proto__" would turn into something else
        Object.defineProperty(metadata, key, { value: item, enumerable: true, writable: true, configurable: true });
      }
      continue;
    }
    const bad = (what: string) => fail(`tensor ${quote(name)}: ${what}`);
    if (typeof value !== "object" || value === null || Array.isArray(value))
      bad("expected an object of dtype, shape and data_offsets");
    const { dtype, shape, data_offsets: offsets } = value as Record<string, unknown>;
    if (typeof dtype !== "string" || !elementBytes.has(dtype))
      bad(`unknown dtype ${JSON.stringify(dtype)}; known are ${[...elementBytes.keys()].join(" ")}`);
    if (!Array.isArray(shape) || !shape.every(isCount))
      bad(`shape must be a list of whole numbers ≥ 0, got ${JSON.stringify(shape)}`);
    if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isCount))
      bad(`data_offsets must be two whole numbers ≥ 0, got ${JSON.stringify(offsets)}`);
    const [begin, end] = offsets as number[];
    if (end < begin) bad(`data_offsets [${begin}, ${end}] end before they begin`);
    if (dataBytes !== null && end > dataBytes)
      bad(
        `data_offsets [${begin}, ${end}] reach past the end of the file, which holds ${dataBytes} bytes of data; ` +
          "the file is truncated, fetch or write it again",
      );
    const expected = (shape as number[]).reduce((n, d) => n * d, elementBytes.get(dtype as string)!);
    if (!Number.isSafeInteger(expected)) bad(`shape [${(shape as number[]).join(", ")}] is too large`);
    if (expected !== end - begin)
      bad(
        `${dtype} of shape [${(shape as number[]).join(", ")}] takes ${expected} bytes, but data_offsets hold ${end - begin}`,
      );
    located.push({ name, dtype: dtype as SafetensorsDType, shape: shape as number[], begin, end });
  }
  located.sort((a, b) => a.begin - b.begin || a.end - b.end);
  let at = 0;
  let previous = "";
  for (const { name, begin, end } of located) {
    if (begin < at) fail(`tensor ${quote(name)}: its bytes overlap those of ${quote(previous)}`);
    if (begin > at)
      fail(`tensor ${quote(name)}: ${begin - at} bytes before it belong to no tensor; the format allows no holes`);
    at = end;
    previous = name;
  }
  if (dataBytes !== null && at !== dataBytes) fail(afterLast(dataBytes - at));
  return { located, metadata };
}

/** Of a file's first eight bytes; `fileBytes` is null where the size is not known. */
export function headerLength(first: Uint8Array, fileBytes: number | null, file: string): number {
  if (first.length < 8)
    throw new SafetensorsError(
      `${file}: only ${first.length} bytes; a safetensors file starts with 8 bytes of header length`,
    );
  const length = new DataView(first.buffer, first.byteOffset, 8).getBigUint64(0, true);
  if (length > maxHeaderBytes)
    throw new SafetensorsError(
      `${file}: the header claims ${length} bytes, more than the format's ${maxHeaderBytes}; this is not safetensors`,
    );
  if (fileBytes !== null && Number(length) + 8 > fileBytes)
    throw new SafetensorsError(
      `${file}: the header claims ${length} bytes, but the file ends ${fileBytes - 8} bytes after the length; the file is truncated`,
    );
  return Number(length);
}

/**
 * Reads safetensors from memory. The entries' `bytes` are views of `bytes`, aligned only if it is.
 * Throws SafetensorsError; `file` is the name that its messages use.
 */
export function parseSafetensors(bytes: Uint8Array, file = "safetensors"): SafetensorsFile {
  const length = headerLength(bytes.subarray(0, 8), bytes.length, file);
  const { located, metadata } = parseHeader(bytes.subarray(8, 8 + length), bytes.length - 8 - length, file);
  const data = bytes.subarray(8 + length);
  const tensors = new Map(
    located.map(({ name, dtype, shape, begin, end }) => [name, { dtype, shape, bytes: data.subarray(begin, end) }]),
  );
  return { tensors, metadata };
}

/**
 * The tensors of a mapped file, as views of it; copies where an element would not be aligned. Null where one is longer than a
 * view can be.
 */
function readMapped(file: MappedFile, name: string, { onProgress, signal }: ReadOptions): SafetensorsFile | null {
  signal?.throwIfAborted();
  onProgress?.(0, file.size);
  const length = headerLength(file.view(0, 8), file.size, name);
  const { located, metadata } = parseHeader(file.view(8, length), file.size - 8 - length, name);
  if (located.some(({ begin, end }) => end - begin > longestView)) return null;
  const tensors = new Map<string, SafetensorsEntry>();
  for (const { name: tensor, dtype, shape, begin, end } of located) {
    const offset = 8 + length + begin;
    const view = file.view(offset, end - begin);
    const bytes = offset % elementBytes.get(dtype)! === 0 ? view : view.slice();
    tensors.set(tensor, { dtype, shape, bytes });
  }
  onProgress?.(file.size, file.size);
  return { tensors, metadata };
}

/**
 * Reads safetensors of any size, in the order of the file: nothing is in memory twice, and each tensor gets a buffer of its own, so that
 * its bytes are aligned. A file of over 1 MiB is mapped where the system can (see mapping.ts, and NABLA_MMAP=0): what is written to the
 * bytes does not reach it. Throws FileError if it can't be read, SafetensorsError if it is not valid, or the signal's reason.
 */
export async function readSafetensors(source: Source, options: ReadOptions = {}): Promise<SafetensorsFile> {
  const path = pathOf(source);
  const mapped = path === null ? null : await mapFile(path);
  const read = mapped && readMapped(mapped, sourceName(source), options);
  if (read) return read;
  const reader = await openSource(source, options);
  const { name: file, size } = reader;
  try {
    const length = headerLength(await take(reader, 8), size, file);
    const header = await take(reader, length);
    if (header.length < length)
      throw new SafetensorsError(
        `${file}: the header claims ${length} bytes, but the data ends after ${header.length} of them; it is truncated`,
      );
    const { located, metadata } = parseHeader(header, size === null ? null : size - 8 - length, file);
    const tensors = new Map<string, SafetensorsEntry>();
    for (const { name, dtype, shape, begin, end } of located) {
      const bytes = await take(reader, end - begin);
      if (bytes.length < end - begin)
        throw new SafetensorsError(
          size !== null
            ? `${file}: the file became shorter while it was read`
            : `${file}: tensor ${quote(name)}: data_offsets [${begin}, ${end}] reach past the end, which is at ${begin + bytes.length}; it is truncated, fetch it again`,
        );
      tensors.set(name, { dtype, shape, bytes });
    }
    if (size === null && (await take(reader, 1)).length > 0)
      throw new SafetensorsError(`${file}: ${afterLast("some")}`);
    return { tensors, metadata };
  } finally {
    await reader.close();
  }
}

/** What can be written: by name, in any order. */
export type SafetensorsInput = ReadonlyMap<string, SafetensorsEntry> | Readonly<Record<string, SafetensorsEntry>>;

/** The order of code points, which is UTF-8's byte order and Rust's order of strings (JavaScript's own compares UTF-16 units). */
function compareNames(a: string, b: string): number {
  const x = [...a];
  const y = [...b];
  for (let i = 0; i < x.length && i < y.length; i++)
    if (x[i] !== y[i]) return x[i].codePointAt(0)! - y[i].codePointAt(0)!;
  return x.length - y.length;
}

/** What the header says of a tensor. */
export interface SafetensorsSpec {
  readonly dtype: SafetensorsDType;
  readonly shape: readonly number[];
  readonly byteLength: number;
}

/** The header, in two pieces, and the names of the tensors in the order of their data. */
export function safetensorsHeader(
  specs: Iterable<readonly [name: string, spec: SafetensorsSpec]>,
  metadata: Readonly<Record<string, string>> | undefined,
  file = "safetensors",
): { readonly pieces: Uint8Array[]; readonly order: string[] } {
  const entries = [...specs];
  for (const [name, { dtype, shape, byteLength }] of entries) {
    const bad = (what: string) => new SafetensorsError(`${file}: tensor ${quote(name)}: ${what}`);
    if (name === "__metadata__") throw bad("this name is reserved for the metadata; choose another");
    if (!elementBytes.has(dtype))
      throw bad(`unknown dtype ${JSON.stringify(dtype)}; known are ${[...elementBytes.keys()].join(" ")}`);
    if (!shape.every((d) => isCount(d))) throw bad(`shape must be whole numbers ≥ 0, got [${shape.join(", ")}]`);
    const expected = shape.reduce((n, d) => n * d, elementBytes.get(dtype)!);
    if (expected !== byteLength)
      throw bad(`${dtype} of shape [${shape.join(", ")}] takes ${expected} bytes, got ${byteLength}`);
  }
  const ranks = [...elementBytes.keys()];
  const rank = ({ dtype }: { readonly dtype: string }): number => ranks.indexOf(dtype);
  entries.sort(([a, x], [b, y]) => rank(y) - rank(x) || compareNames(a, b));
  const items: string[] = [];
  if (metadata !== undefined) {
    const keys = Object.keys(metadata).sort(compareNames);
    for (const key of keys)
      if (typeof metadata[key] !== "string")
        throw new SafetensorsError(`${file}: metadata ${quote(key)} must be a string, got ${typeof metadata[key]}`);
    items.push(`"__metadata__":{${keys.map((key) => `${quote(key)}:${quote(metadata[key])}`).join(",")}}`);
  }
  let at = 0;
  for (const [name, { dtype, shape, byteLength }] of entries) {
    const end = at + byteLength;
    items.push(`${quote(name)}:{"dtype":"${dtype}","shape":[${shape.join(",")}],"data_offsets":[${at},${end}]}`);
    at = end;
  }
  let header = new TextEncoder().encode(`{${items.join(",")}}`);
  if (header.length % 8 !== 0) {
    const padded = new Uint8Array(Math.ceil(header.length / 8) * 8).fill(0x20);
    padded.set(header);
    header = padded;
  }
  const length = new Uint8Array(8);
  new DataView(length.buffer).setBigUint64(0, BigInt(header.length), true);
  return { pieces: [length, header], order: entries.map(([name]) => name) };
}

/** Header and data as the pieces of the file, in order; nothing is copied. */
function layOut(input: SafetensorsInput, metadata: Readonly<Record<string, string>> | undefined, file: string) {
  const entries = new Map<string, SafetensorsEntry>(input instanceof Map ? input : Object.entries(input));
  const specs = [...entries].map(([name, { dtype, shape, bytes }]) => {
    return [name, { dtype, shape, byteLength: bytes.byteLength }] as const;
  });
  const { pieces, order } = safetensorsHeader(specs, metadata, file);
  return [...pieces, ...order.map((name) => entries.get(name)!.bytes)];
}

/** Safetensors in memory. Throws SafetensorsError where dtype, shape and bytes do not fit together. */
export function formatSafetensors(
  tensors: SafetensorsInput,
  metadata?: Readonly<Record<string, string>>,
): Uint8Array<ArrayBuffer> {
  return joined(layOut(tensors, metadata, "safetensors"));
}

/** Writes a safetensors file atomically. Throws SafetensorsError or FileError; the old file then stays as it was. */
export async function writeSafetensors(
  path: string,
  tensors: SafetensorsInput,
  metadata?: Readonly<Record<string, string>>,
): Promise<void> {
  await writeFileAtomic(path, layOut(tensors, metadata, path));
}
