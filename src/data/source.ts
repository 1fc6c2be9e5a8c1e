/**
 * What can be read, and how: a path, an address, a blob (a file that a user chose), or bytes; with progress, and a signal
 * to give up. The same in Node, where a path is a file, and in a browser, where it is one of the origin's private file system.
 */
import { FileError } from "./errors.ts";
import { fileError, openPath, pathOfUrl } from "./files.ts";
import { blobReader, bytesReader, type Reader } from "./reader.ts";

/**
 * A path; an address (a URL, or a string that begins with http:, https:, blob: or data:); a Blob or File; or bytes. An address
 * relative to a page is `new URL("data/x.gz", location.href)`: a mere "data/x.gz" is a path.
 */
export type Source = string | URL | Blob | Uint8Array;

export interface ReadOptions {
  /** Told of bytes as they come: how many, and of how many (null where that is not known). */
  readonly onProgress?: (loaded: number, total: number | null) => void;
  /** Gives up; what it rejects with is the signal's reason. */
  readonly signal?: AbortSignal;
}

const pieceBytes = 8 << 20; // between two looks at the signal

const isAddress = (text: string): boolean => /^(?:https?|blob|data):/i.test(text);

/** The address, or the path, that a source is; null for what is in memory. */
function placeOf(source: string | URL): { readonly address: string } | { readonly path: string } {
  if (typeof source === "string") return isAddress(source) ? { address: source } : { path: source };
  return source.protocol === "file:" ? { path: pathOfUrl(source) } : { address: source.href };
}

/** A name for messages. */
export function sourceName(source: Source): string {
  if (typeof source === "string" || source instanceof URL) {
    const text = String(source);
    return text.length > 200 ? `${text.slice(0, 60)}…` : text;
  }
  return (source as { readonly name?: string }).name || (source instanceof Uint8Array ? "bytes" : "blob");
}

/** The path, where a source is one. */
export function pathOf(source: Source): string | null {
  if (typeof source !== "string" && !(source instanceof URL)) return null;
  const place = placeOf(source);
  return "path" in place ? place.path : null;
}

/** What an answer that is not one means to who asked. */
const advice = (status: number): string =>
  status === 404 || status === 410
    ? "check the address"
    : status === 401 || status === 403
      ? "this needs a permission: fetch it with the right headers yourself, and give its blob"
      : "try again later";

/** An error without an answer: no such host, refused, cut off, or forbidden by the browser's rules. */
function networkError(name: string, what: string, error: unknown): FileError {
  const cause = (error as Error).cause as { readonly code?: string; readonly message?: string } | undefined;
  const why = cause?.message || (error as Error).message;
  const foreign = typeof (globalThis as { origin?: unknown }).origin === "string";
  const todo = foreign
    ? "check the address and the connection; a server of another origin must allow it (Access-Control-Allow-Origin)"
    : "check the address and the connection";
  return new FileError(`can't fetch ${name}: ${what} (${why}); ${todo}`, cause?.code ?? "NETWORK", name, error);
}

/** Opens an address. Throws FileError, saying the status that the server has answered with. */
async function openAddress(address: string, signal: AbortSignal | undefined): Promise<Reader> {
  const name = sourceName(address);
  let response: Response;
  try {
    response = await fetch(address, signal ? { signal } : {});
  } catch (error) {
    signal?.throwIfAborted();
    throw networkError(name, "there is no answer", error);
  }
  if (!response.ok) {
    await response.body?.cancel().catch(() => {});
    const { status, statusText } = response;
    const said = statusText === "" ? `${status}` : `${status} ${statusText}`;
    throw new FileError(`can't fetch ${name}: the server answers ${said}; ${advice(status)}`, `HTTP${status}`, name);
  }
  // of encoded bodies the length is that before decoding
  const claimed = response.headers.get("content-encoding") ? null : response.headers.get("content-length");
  const expected = claimed === null ? null : Number(claimed);
  const body = response.body?.getReader();
  let rest: Uint8Array = new Uint8Array(0);
  let loaded = 0;
  return {
    name,
    size: null,
    expected,
    read: async (out) => {
      while (rest.length === 0) {
        let next: { done: boolean; value?: Uint8Array } | undefined;
        try {
          next = await body?.read();
        } catch (error) {
          signal?.throwIfAborted();
          const of = expected === null ? "" : ` of ${expected}`;
          throw networkError(name, `the connection ended after ${loaded}${of} bytes`, error);
        }
        if (next?.value === undefined) return 0;
        rest = next.value;
        loaded += rest.length;
      }
      const part = rest.subarray(0, out.length);
      out.set(part);
      rest = rest.subarray(part.length);
      return part.length;
    },
    close: async () => {
      await body?.cancel().catch(() => {});
    },
  };
}

/** An open source. */
export interface OpenSource extends Omit<Reader, "read"> {
  /** Reads on until `out` is full or there is no more; gives how many bytes were read. */
  fill(out: Uint8Array): Promise<number>;
}

/** Reads until it has what it wants; tells of progress and looks at the signal in between; makes errors ours. */
function watched(reader: Reader, path: string | null, { onProgress, signal }: ReadOptions): OpenSource {
  const { name, size, expected } = reader;
  let loaded = 0;
  const tell = (): void => onProgress?.(loaded, expected !== null && loaded <= expected ? expected : null);
  tell();
  const fill = async (out: Uint8Array): Promise<number> => {
    let at = 0;
    while (at < out.length) {
      signal?.throwIfAborted();
      const read = await reader.read(out.subarray(at, at + pieceBytes)).catch((error) => {
        throw path === null ? error : fileError("read", path, error);
      });
      if (read === 0) break;
      at += read;
      loaded += read;
      tell();
    }
    return at;
  };
  return { name, size, expected, fill, close: () => reader.close() };
}

/** Opens a source to read it in order; whoever opens it closes it. Throws FileError, or the signal's reason. */
export async function openSource(source: Source, options: ReadOptions = {}): Promise<OpenSource> {
  options.signal?.throwIfAborted();
  if (source instanceof Uint8Array) return watched(bytesReader(source, sourceName(source)), null, options);
  if (source instanceof Blob) {
    const name = sourceName(source);
    return watched(blobReader(source, name), name, options);
  }
  const place = placeOf(source);
  if ("address" in place) return watched(await openAddress(place.address, options.signal), null, options);
  return watched(await openPath(place.path), place.path, options);
}

/** `length` bytes of a reader; fewer where it ends. */
export async function take(reader: OpenSource, length: number): Promise<Uint8Array<ArrayBuffer>> {
  const out = new Uint8Array(length);
  const read = await reader.fill(out);
  return read === length ? out : out.slice(0, read);
}

/** All that a reader has left; `expected` bytes, it seems. */
async function takeAll(reader: OpenSource): Promise<Uint8Array> {
  let out = new Uint8Array(Math.max(reader.expected ?? 0, 0));
  let at = await reader.fill(out);
  if (reader.size !== null && at < out.length) return out.slice(0, at);
  for (let ahead = 64 << 10; ; ahead *= 2) {
    const more = await take(reader, ahead);
    if (more.length === 0) return at === out.length ? out : out.slice(0, at);
    const grown = new Uint8Array(at + more.length);
    grown.set(out.subarray(0, at));
    grown.set(more, at);
    out = grown;
    at = out.length;
  }
}

/** All bytes of a source. Throws FileError, or the signal's reason. */
export async function readBytes(source: Source, options: ReadOptions = {}): Promise<Uint8Array> {
  if (source instanceof Uint8Array) {
    options.signal?.throwIfAborted();
    options.onProgress?.(source.length, source.length);
    return source;
  }
  const reader = await openSource(source, options);
  try {
    return await takeAll(reader);
  } finally {
    await reader.close();
  }
}

/** All bytes of a source that has at most so many; null of a longer one. Throws FileError, or the signal's reason. */
export async function readAtMost(source: Source, most: number, options: ReadOptions = {}): Promise<Uint8Array | null> {
  if (source instanceof Uint8Array) return source.length > most ? null : readBytes(source, options);
  const reader = await openSource(source, options);
  try {
    if (reader.size !== null && reader.size > most) return null;
    const bytes = await take(reader, (reader.size ?? most) + 1);
    return bytes.length > most ? null : bytes;
  } finally {
    await reader.close();
  }
}

/** The options of reading several files, one after the other, as one. How much there is in all is not known. */
export function together({ onProgress, signal }: ReadOptions): () => ReadOptions {
  let before = 0;
  let loaded = 0;
  return () => {
    before += loaded;
    loaded = 0;
    const progress = (now: number): void => {
      loaded = now;
      onProgress?.(before + now, null);
    };
    return { ...(onProgress ? { onProgress: progress } : {}), ...(signal ? { signal } : {}) };
  };
}
