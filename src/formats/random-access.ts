/**
 * Reading parts of a file, so that a large one is not read as a whole: what the readers of GGUF, PyTorch's and NumPy's files
 * stand on. Bytes, blobs and paths are made into it; whoever has something else (ranges of an address) gives his own.
 */
import { fileError } from "../data/files.ts";
import { pathOf, readBytes, type Source, sourceName } from "../data/source.ts";
import { fileAccess } from "./file-access.ts";
import { FormatError } from "./format-error.ts";

/** Something with a size (in bytes) of which any part can be read. */
export interface RandomAccess {
  readonly size: number;
  /** For messages; "file" without. */
  readonly name?: string;
  /** `length` bytes from `offset`; only asked for what lies inside. The bytes are not written to by the reader. */
  read(offset: number, length: number): Promise<Uint8Array>;
  /**
   * The same bytes where they lie, in a buffer of their own, as mapping.ts maps them: memory of a page is taken when it is used. Null where
   * they can't be had so.
   */
  mapped?(offset: number, length: number): Promise<Uint8Array<ArrayBuffer> | null>;
}

/**
 * What can be read: a path, a blob (a file that a user chose), bytes, or one's own random access, all of them in parts; and an
 * address, which is fetched as a whole.
 */
export type FormatSource = Source | RandomAccess;

/** An opened source: it has a name, and answers with exactly as many bytes as were asked for. */
export interface OpenedSource {
  readonly name: string;
  readonly size: number;
  /** All of it, where it is in memory. */
  readonly bytes: Uint8Array | null;
  read(offset: number, length: number): Promise<Uint8Array>;
  /** See RandomAccess. */
  mapped(offset: number, length: number): Promise<Uint8Array<ArrayBuffer> | null>;
}

/** Bytes as a plain Uint8Array: slice() of Node's Buffer does not copy. */
const plain = (bytes: Uint8Array): Uint8Array =>
  bytes.constructor === Uint8Array ? bytes : new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);

function bytesSource(given: Uint8Array, name: string): OpenedSource {
  const bytes = plain(given);
  const read = async (offset: number, length: number) => bytes.subarray(offset, offset + length);
  return { name, size: bytes.length, bytes, read, mapped: async () => null };
}

/** Opens a source; `fallback` names what has no name. Throws FileError where a path or an address can't be read. */
export async function openAccess(source: FormatSource, fallback: string): Promise<OpenedSource> {
  if (source instanceof Uint8Array) return bytesSource(source, fallback);
  let access: RandomAccess;
  if (source instanceof Blob) access = blobAccess(source, sourceName(source));
  else if (typeof source === "string" || source instanceof URL) {
    const path = pathOf(source);
    if (path === null) return bytesSource(await readBytes(source), sourceName(source));
    access = await fileAccess(path);
  } else access = source;
  const name = access.name || fallback;
  return {
    name,
    size: access.size,
    bytes: null,
    read: async (offset, length) => {
      if (length === 0) return new Uint8Array(0); // of a tensor without elements, wherever the file says that it is
      const bytes = await access.read(offset, length);
      if (bytes.length !== length)
        throw new FormatError(name, offset, `asked for ${length} bytes, got ${bytes.length}; the file has changed`);
      return plain(bytes);
    },
    mapped: async (offset, length) => (await access.mapped?.(offset, length)) ?? null,
  };
}

/** A blob in slices, so that it need not be in memory as a whole. */
function blobAccess(blob: Blob, name: string): RandomAccess {
  return {
    size: blob.size,
    name,
    read: async (offset, length) => {
      try {
        return new Uint8Array(await blob.slice(offset, offset + length).arrayBuffer());
      } catch (error) {
        throw fileError("read", name, error);
      }
    },
  };
}
