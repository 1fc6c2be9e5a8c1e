/**
 * Zip archives (PKWARE's APPNOTE 6.3), as PyTorch and NumPy use them: members that are stored or deflated, with zip64. The
 * directory is read and checked when an archive is opened, members when they are asked for. Members may not share bytes, and may
 * not claim to unpack to more than deflate can make of them: both are how zip bombs work.
 */
import { crc32 } from "../data/checksum.ts";
import { inflateRaw, inflateStart } from "../data/inflate.ts";
import { Cursor } from "./cursor.ts";
import { FormatError, quote } from "./format-error.ts";
import type { OpenedSource } from "./random-access.ts";

export interface ZipMember {
  readonly name: string;
  /** Unpacked. */
  readonly size: number;
  /** Of its first stored byte in the file. */
  readonly offset: number;
  readonly deflated: boolean;
  /** All of it, unpacked, with its checksum compared unless `checksum` is false. */
  read(checksum?: boolean): Promise<Uint8Array>;
  /** Its first `length` bytes (all where it is shorter). */
  start(length: number): Promise<Uint8Array>;
  /** A part; of a stored member without reading the rest. */
  part(offset: number, length: number): Promise<Uint8Array>;
}

const localSignature = 0x04034b50;
const centralSignature = 0x02014b50;
const endSignature = 0x06054b50;
const end64Signature = 0x06064b50;
const locator64Signature = 0x07064b50;
const endBytes = 22;
const locatorBytes = 20;
const most16 = 0xffff;
const most32 = 0xffffffff;
const largestRatio = 1032; // deflate makes at most 258 bytes of 2 bits
const largestDirectory = 1 << 28;

/** The number that `value` is, or the 64-bit one that follows in the extra field where it is all ones. */
type Wide = (value: number, what: string) => number;

interface Directory {
  readonly offset: number;
  readonly size: number;
  readonly count: number;
}

const cursorAt = async (source: OpenedSource, offset: number, length: number): Promise<Cursor> =>
  new Cursor(await source.read(offset, length), { file: source.name, base: offset });

/** A 64-bit number that must lie within the file. */
function placeIn(cursor: Cursor, what: string, limit: number): number {
  const start = cursor.at;
  const value = cursor.u64(what);
  if (value > BigInt(limit)) throw cursor.error(`${what} is ${value}, past the ${limit} bytes that there are`, start);
  return Number(value);
}

/** Where the last record stands: at the end, before a comment of at most 65,535 bytes. */
async function findEnd(source: OpenedSource): Promise<Cursor> {
  const length = Math.min(source.size, endBytes + most16);
  const base = source.size - length;
  const cursor = await cursorAt(source, base, length);
  const { bytes } = cursor;
  for (let at = length - endBytes; at >= 0; at--) {
    if (bytes[at] !== 0x50 || bytes[at + 1] !== 0x4b || bytes[at + 2] !== 5 || bytes[at + 3] !== 6) continue;
    if (at + endBytes + (bytes[at + 20] | (bytes[at + 21] << 8)) !== length) continue;
    cursor.at = at;
    return cursor;
  }
  throw new FormatError(source.name, source.size, "the zip archive has no end record; the file is truncated");
}

/** Of zip64: a record of which a locator before the end record says where it is. */
async function readDirectory64(source: OpenedSource, endAt: number): Promise<Directory | null> {
  if (endAt < locatorBytes) return null;
  const locator = await cursorAt(source, endAt - locatorBytes, locatorBytes);
  if (locator.u32("the zip64 locator") !== locator64Signature) return null;
  locator.u32("a disk number");
  const at = placeIn(locator, "the offset of the zip64 end record", endAt - locatorBytes - 56);
  const record = await cursorAt(source, at, 56);
  if (record.u32("the zip64 end record") !== end64Signature)
    throw record.error("here should be a zip64 end record; the archive is damaged", 0);
  record.skip(20, "the zip64 end record"); // its size, versions, disks
  record.skip(8, "the number of members of this disk");
  const count = placeIn(record, "the number of members", source.size);
  const size = placeIn(record, "the size of the directory", source.size);
  return { count, size, offset: placeIn(record, "the offset of the directory", at) };
}

async function findDirectory(source: OpenedSource): Promise<Directory> {
  const end = await findEnd(source);
  const endAt = source.size - end.left;
  const start = end.at;
  if (end.u32("the end record") !== endSignature) throw end.error("here should be an end record", start);
  const disks = end.u16("a disk number") | end.u16("a disk number");
  const here = end.u16("the number of members of this disk");
  const count = end.u16("the number of members");
  const size = end.u32("the size of the directory");
  const offset = end.u32("the offset of the directory");
  const wide = await readDirectory64(source, endAt);
  if (wide === null && ((disks !== 0 && disks !== most16) || here !== count))
    throw end.error("the zip archive is one of several parts; put it together first", start);
  const directory = wide ?? { count, size, offset };
  if (directory.offset + directory.size > endAt)
    throw end.error(
      `the directory of ${directory.size} bytes at ${directory.offset} reaches past the end record`,
      start,
    );
  if (directory.size > largestDirectory)
    throw end.error(`the directory takes ${directory.size} bytes, more than ${largestDirectory}`, start);
  if (directory.count * 46 > directory.size)
    throw end.error(`${directory.count} members do not fit a directory of ${directory.size} bytes`, start);
  return directory;
}

interface Entry {
  readonly name: string;
  readonly deflated: boolean;
  readonly crc: number;
  readonly packed: number;
  readonly size: number;
  readonly headerAt: number;
  /** Where the directory speaks of it. */
  readonly at: number;
}

/** The sizes and the offset that are all ones stand, with 64 bits, in the extra field of kind 1, in this order. */
function wideNumbers(cursor: Cursor, extra: Uint8Array, extraAt: number, where: string): Wide {
  const view = new DataView(extra.buffer, extra.byteOffset, extra.byteLength);
  let at = 0;
  let left = 0;
  while (at + 4 <= extra.length) {
    const kind = view.getUint16(at, true);
    const length = view.getUint16(at + 2, true);
    at += 4;
    if (at + length > extra.length)
      throw cursor.error(`${where}: an extra field reaches past its end`, extraAt + at - 2);
    if (kind === 1) {
      left = length;
      break;
    }
    at += length;
  }
  return (value, what) => {
    if (value !== most32) return value;
    if (left < 8) throw cursor.error(`${where}: ${what} should stand in a zip64 field, which is missing`, extraAt);
    const wide = view.getBigUint64(at, true);
    if (wide > BigInt(Number.MAX_SAFE_INTEGER)) throw cursor.error(`${where}: ${what} is ${wide}`, extraAt + at);
    at += 8;
    left -= 8;
    return Number(wide);
  };
}

function readEntry(cursor: Cursor): Entry {
  const at = cursor.at;
  if (cursor.u32("a record of the directory") !== centralSignature)
    throw cursor.error("here should be a record of the directory; the archive is damaged", at);
  cursor.skip(4, "the versions");
  const flags = cursor.u16("the flags");
  const method = cursor.u16("the method");
  cursor.skip(4, "a date");
  const crc = cursor.u32("a checksum");
  const packed = cursor.u32("a packed size");
  const size = cursor.u32("a size");
  const nameLength = cursor.u16("the length of a name");
  const extraLength = cursor.u16("the length of an extra field");
  const commentLength = cursor.u16("the length of a comment");
  cursor.skip(8, "attributes");
  const headerAt = cursor.u32("an offset");
  const name = cursor.text(nameLength, "the name of a member");
  const extraAt = cursor.at;
  const extra = cursor.take(extraLength, "an extra field");
  cursor.skip(commentLength, "a comment");
  const where = `member ${quote(name)}`;
  if (flags & 0x41) throw cursor.error(`${where} is encrypted`, at + 8);
  if (method !== 0 && method !== 8)
    throw cursor.error(`${where} is packed by method ${method}; stored (0) and deflated (8) are read here`, at + 10);
  const wide = wideNumbers(cursor, extra, extraAt, where);
  const sizes = { size: wide(size, "the size"), packed: wide(packed, "the packed size") };
  const entry = { name, deflated: method === 8, crc, ...sizes, headerAt: wide(headerAt, "the offset"), at };
  if (method === 0 && entry.size !== entry.packed)
    throw cursor.error(`${where} is stored, but of ${entry.size} bytes in ${entry.packed}`, at + 20);
  if (entry.size > entry.packed * largestRatio)
    throw cursor.error(
      `${where} claims ${entry.size} bytes out of ${entry.packed}, more than deflate can make`,
      at + 20,
    );
  return entry;
}

function readEntries(cursor: Cursor, count: number): Entry[] {
  const entries: Entry[] = [];
  const names = new Set<string>();
  for (let i = 0; i < count; i++) {
    const start = cursor.at;
    const entry = readEntry(cursor);
    if (names.has(entry.name)) throw cursor.error(`the archive holds ${quote(entry.name)} twice`, start);
    names.add(entry.name);
    entries.push(entry);
  }
  return entries;
}

/** Where each member's bytes begin, after its own header; no two may share any. */
async function locate(source: OpenedSource, entries: readonly Entry[], directoryAt: number, base: number) {
  const offsets = new Map<Entry, number>();
  let end = 0;
  for (const entry of entries.toSorted((a, b) => a.headerAt - b.headerAt)) {
    const fail = (what: string): never => {
      throw new FormatError(source.name, base + entry.at, `member ${quote(entry.name)} ${what}`);
    };
    if (entry.headerAt < end) fail("shares bytes with another");
    if (entry.headerAt + 30 > directoryAt) fail(`begins at ${entry.headerAt}, not before the directory`);
    const header = await cursorAt(source, entry.headerAt, 30);
    if (header.u32("a header") !== localSignature) throw header.error("here should be the header of a member", 0);
    header.skip(22, "a header");
    const offset = entry.headerAt + 30 + header.u16("a length") + header.u16("a length");
    end = offset + entry.packed;
    if (end > directoryAt) fail(`takes ${entry.packed} bytes from ${offset}, and so reaches into the directory`);
    offsets.set(entry, offset);
  }
  return offsets;
}

function memberOf(source: OpenedSource, entry: Entry, offset: number): ZipMember {
  const { name, size, packed, deflated, crc } = entry;
  const fail = (what: string): never => {
    throw new FormatError(source.name, offset, `member ${quote(name)} ${what}`);
  };
  const inflate = async (): Promise<Uint8Array> => {
    const bytes = await source.read(offset, packed);
    const out = await inflateRaw(bytes, size).catch((error: Error) => fail(`can't be unpacked (${error.message})`));
    return out.length === size ? out : fail(`unpacks to ${out.length} bytes, but claims ${size}`);
  };
  const read = async (checksum = true): Promise<Uint8Array> => {
    const bytes = deflated ? await inflate() : await source.read(offset, size);
    if (checksum && crc32(bytes) !== crc) fail("has not the checksum that it should have; the file is damaged");
    return bytes;
  };
  return {
    name,
    size,
    offset,
    deflated,
    read,
    start: async (length) => {
      if (!deflated) return source.read(offset, Math.min(length, size));
      const bytes = await source.read(offset, Math.min(packed, length + 256)); // deflate adds no more to what it can't pack
      const out = await inflateStart(bytes).catch((error: Error) => fail(`can't be unpacked (${error.message})`));
      return out.subarray(0, Math.min(length, size));
    },
    part: async (from, length) =>
      deflated ? (await read(false)).subarray(from, from + length) : source.read(offset + from, length),
  };
}

/** The members of an archive, in the order of its directory. Throws FormatError. */
export async function readZip(source: OpenedSource): Promise<Map<string, ZipMember>> {
  const directory = await findDirectory(source);
  const entries = readEntries(await cursorAt(source, directory.offset, directory.size), directory.count);
  const offsets = await locate(source, entries, directory.offset, directory.offset);
  return new Map(entries.map((entry) => [entry.name, memberOf(source, entry, offsets.get(entry)!)]));
}

/** Numbers of 16 (negative size), 32 and 64 bits in a row. */
function record(...fields: readonly (readonly [bytes: 2 | 4 | 8, value: number])[]): Uint8Array {
  const out = new Uint8Array(fields.reduce((n, [bytes]) => n + bytes, 0));
  const view = new DataView(out.buffer);
  let at = 0;
  for (const [bytes, value] of fields) {
    if (bytes === 2) view.setUint16(at, value, true);
    else if (bytes === 4) view.setUint32(at, value, true);
    else view.setBigUint64(at, BigInt(value), true);
    at += bytes;
  }
  return out;
}

const dateOf1980 = (1 << 5) | 1; // the first day that zip can tell
const version64 = 45;

/**
 * The pieces of an archive of stored members, the same each time: no dates, and headers as Python's zipfile writes them for
 * numpy.savez. `members` gives the pieces of each.
 */
export function* zipChunks(
  members: Iterable<readonly [name: string, pieces: readonly Uint8Array[]]>,
): Generator<Uint8Array> {
  const central: Uint8Array[] = [];
  let at = 0;
  let count = 0;
  for (const [name, pieces] of members) {
    const text = new TextEncoder().encode(name);
    const flags = text.length === name.length ? 0 : 0x800; // UTF-8, where it is not ASCII
    const size = pieces.reduce((n, piece) => n + piece.length, 0);
    const crc = pieces.reduce((sum, piece) => crc32(piece, sum), 0);
    const headerAt = at;
    const large = size >= most32;
    const far = headerAt >= most32;
    const common = [
      [2, version64],
      [2, flags],
      [2, 0],
      [2, 0],
      [2, dateOf1980],
      [4, crc],
    ] as const;
    // the header always has 64-bit sizes, as numpy.savez asks for
    const header = [
      [4, most32],
      [4, most32],
      [2, text.length],
      [2, 20],
      [2, 1],
      [2, 16],
      [8, size],
      [8, size],
    ] as const;
    const local = record([4, localSignature], ...common, ...header.slice(0, 4));
    for (const piece of [local, text, record(...header.slice(4)), ...pieces]) {
      at += piece.length;
      yield piece;
    }
    const wide = [...(large ? [size, size] : []), ...(far ? [headerAt] : [])];
    const extra = wide.length === 0 ? [] : [record([2, 1], [2, 8 * wide.length], ...wide.map((n) => [8, n] as const))];
    central.push(
      record(
        [4, centralSignature],
        [2, (3 << 8) | version64], // made by Unix
        ...common,
        ...[large ? most32 : size, large ? most32 : size].map((n) => [4, n] as const),
        [2, text.length],
        [2, extra.length === 0 ? 0 : extra[0].length],
        [2, 0],
        [2, 0],
        [2, 0],
        [4, 0o600 << 16], // its owner's to read and write
        [4, far ? most32 : headerAt],
      ),
      text,
      ...extra,
    );
    count++;
  }
  yield* central;
  const size = central.reduce((n, piece) => n + piece.length, 0);
  if (count >= most16 || at >= most32 || size >= most32) {
    yield record(
      [4, end64Signature],
      [8, 44],
      [2, version64],
      [2, version64],
      [4, 0],
      [4, 0],
      [8, count],
      [8, count],
      [8, size],
      [8, at],
    );
    yield record([4, locator64Signature], [4, 0], [8, at + size], [4, 1]);
  }
  const few = Math.min(count, most16);
  yield record(
    [4, endSignature],
    [2, 0],
    [2, 0],
    [2, few],
    [2, few],
    [4, Math.min(size, most32)],
    [4, Math.min(at, most32)],
    [2, 0],
  );
}
