/**
 * Reads numbers and strings, one after the other, out of the start of a file, with every length checked against what the file
 * holds before anything is allocated. What is parsed so is parsed at once; where it is longer than what was read of the file,
 * `parseStart` reads more and begins again.
 */
import { FormatError } from "./format-error.ts";
import type { OpenedSource } from "./random-access.ts";

/** Thrown where the file goes on, but what was read of it does not. */
class OutOfWindow extends Error {
  readonly needed: number;
  constructor(needed: number) {
    super("out of window");
    this.needed = needed;
  }
}

export interface CursorPlace {
  readonly file: string;
  /** Where the bytes begin in the file. */
  readonly base?: number;
  /** How many bytes there are in all, of which `bytes` may be the first; without: as many as `bytes`. */
  readonly size?: number;
  /** The name of what was unpacked: positions in it are not positions in the file. */
  readonly inside?: string;
}

let utf8: TextDecoder | undefined; // made when it is needed: bundlers keep what is made at the start

export class Cursor {
  at = 0;
  readonly bytes: Uint8Array;
  readonly size: number;
  readonly #view: DataView;
  readonly #place: CursorPlace;

  constructor(bytes: Uint8Array, place: CursorPlace) {
    this.bytes = bytes;
    this.size = place.size ?? bytes.length;
    this.#place = place;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  /** The error that something at `at` (default: here) is wrong. */
  error(what: string, at = this.at): FormatError {
    const { file, base = 0, inside } = this.#place;
    if (inside === undefined) return new FormatError(file, base + Math.min(at, this.size), what);
    return new FormatError(file, base, `${what} (at byte ${at} of ${inside}, unpacked)`);
  }

  get left(): number {
    return this.size - this.at;
  }

  /** Passes over `length` bytes and returns where they begin. */
  skip(length: number, what: string): number {
    const start = this.at;
    if (length > this.left)
      throw this.error(
        `${what} takes ${length} bytes, but only ${this.left} are left; the file is damaged or truncated`,
      );
    if (start + length > this.bytes.length) throw new OutOfWindow(start + length);
    this.at += length;
    return start;
  }

  take(length: number, what: string): Uint8Array {
    const start = this.skip(length, what);
    return this.bytes.subarray(start, start + length);
  }

  u8(what: string): number {
    return this.bytes[this.skip(1, what)];
  }
  u16(what: string): number {
    return this.#view.getUint16(this.skip(2, what), true);
  }
  u32(what: string): number {
    return this.#view.getUint32(this.skip(4, what), true);
  }
  i32(what: string): number {
    return this.#view.getInt32(this.skip(4, what), true);
  }
  u64(what: string): bigint {
    return this.#view.getBigUint64(this.skip(8, what), true);
  }

  /** A 64-bit count of things of which each takes at least `each` bytes of what follows. */
  count(what: string, each: number): number {
    const start = this.at;
    const n = this.u64(what);
    if (n * BigInt(each) > BigInt(this.left))
      throw this.error(`${what} is ${n}, for which the ${this.left} bytes that follow are too few`, start);
    return Number(n);
  }

  /** `length` bytes as UTF-8. */
  text(length: number, what: string): string {
    const start = this.at;
    const bytes = this.take(length, what);
    try {
      utf8 ??= new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
      return utf8.decode(bytes);
    } catch {
      throw this.error(`${what} is not valid UTF-8`, start);
    }
  }
}

const firstWindow = 256 << 10;
const largestWindow = 1 << 28;

/** Parses what begins the source, whose length shows only while it is parsed; reads no more than about four times as much. */
export async function parseStart<T>(source: OpenedSource, parse: (cursor: Cursor) => T): Promise<T> {
  const { name: file, size } = source;
  if (source.bytes !== null) return parse(new Cursor(source.bytes, { file }));
  for (let length = Math.min(size, firstWindow); ; ) {
    try {
      return parse(new Cursor(await source.read(0, length), { file, size }));
    } catch (error) {
      if (!(error instanceof OutOfWindow)) throw error;
      if (error.needed > largestWindow)
        throw new FormatError(file, length, `what describes the tensors takes more than ${largestWindow} bytes`);
      length = Math.min(size, largestWindow, Math.max(4 * length, error.needed));
    }
  }
}
