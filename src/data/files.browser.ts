/**
 * Files in the origin's private file system (OPFS), a browser's place for what a page keeps: the same functions as those of
 * `files.ts`, which this file replaces in the browser's build. A path is folders and a name, from the origin's root, with "/"
 * between; folders on the way to a file that is written are made. The browser itself writes aside and swaps when a file is closed.
 */
import { NablaError } from "../core/errors.ts";
import { FileError } from "./errors.ts";
import type { Chunks, GrowingFile } from "./files.ts";
import { basename, dirname, join } from "./path.browser.ts";
import { blobReader, type Reader } from "./reader.ts";

export { FileError } from "./errors.ts";

/** The browser's interfaces, as much of them as is used here: this package does not ask its users for the DOM's types. */
interface Writable {
  write(data: Uint8Array | { type: "write"; position: number; data: Uint8Array }): Promise<void>;
  truncate(size: number): Promise<void>;
  close(): Promise<void>;
  abort(): Promise<void>;
}
interface FileHandle {
  readonly kind: "file";
  getFile(): Promise<Blob & { readonly lastModified: number }>;
  createWritable(options?: { keepExistingData?: boolean }): Promise<Writable>;
  /** Not in every browser. */
  move?(folder: FolderHandle, name: string): Promise<void>;
}
interface FolderHandle {
  readonly kind: "directory";
  getDirectoryHandle(name: string, options?: { create?: boolean }): Promise<FolderHandle>;
  getFileHandle(name: string, options?: { create?: boolean }): Promise<FileHandle>;
  removeEntry(name: string, options?: { recursive?: boolean }): Promise<void>;
  keys(): AsyncIterable<string>;
}
interface Storage {
  getDirectory?(): Promise<FolderHandle>;
  estimate(): Promise<{ usage?: number; quota?: number }>;
}
const storage = (): Storage | undefined =>
  (globalThis as unknown as { navigator?: { storage?: Storage } }).navigator?.storage;

/** For each of the browser's names of errors: the system's code, what is wrong, and what to do about it. */
const explanations: Readonly<Record<string, readonly [code: string, what: string, todo: string]>> = {
  NotFoundError: [
    "ENOENT",
    "there is no such file or folder in the origin's private file system",
    "check the spelling of the path; an address on the server is given as new URL(…, location.href)",
  ],
  TypeMismatchError: [
    "EISDIR",
    "a folder is where a file was expected, or a file where a folder was",
    "name the other",
  ],
  QuotaExceededError: ["EDQUOT", "the storage that the browser gives this origin is full", "remove files of it"],
  NoModificationAllowedError: ["EBUSY", "another tab or worker is writing it", "wait until it is done, or close that"],
  SecurityError: ["EACCES", "the browser allows no files here", "leave private mode, or the sandboxed frame"],
  NotAllowedError: ["EACCES", "the browser allows no files here", "leave private mode, or the sandboxed frame"],
  NotReadableError: ["EIO", "the file can't be read, or has changed since it was chosen", "choose it again"],
  AbortError: ["EIO", "the browser has given the writing up", "check that there is room on the disk, and try again"],
  InvalidStateError: ["EIO", "the file has changed or gone meanwhile", "try again"],
};

/** The browser's error as a FileError, as `files.ts` does it with the system's; other errors come back as they are. */
export function fileError(verb: string, path: string, error: unknown): unknown {
  if (error instanceof NablaError) return error;
  const [code, what, todo] = explanations[(error as Error | null)?.name ?? ""] ?? [];
  if (code === undefined) return error;
  return new FileError(`can't ${verb} ${path}: ${what} (${code}); ${todo}`, code, path, error);
}

async function root(): Promise<FolderHandle> {
  const folder = await storage()?.getDirectory?.();
  if (folder) return folder;
  throw new FileError(
    "this page has no private file system (OPFS): the browser is too old, or the page came neither over https nor from localhost",
    "ENOTSUP",
    "/",
  );
}

const namesOf = (path: string): string[] =>
  join(path)
    .split("/")
    .filter((name) => name !== "" && name !== ".");

async function folderAt(path: string, options: { create?: boolean } = {}): Promise<FolderHandle> {
  let folder = await root();
  for (const name of namesOf(path)) folder = await folder.getDirectoryHandle(name, options);
  return folder;
}

const fileAt = async (path: string): Promise<FileHandle> =>
  (await folderAt(dirname(path))).getFileHandle(basename(path));

/** A browser opens no file: addresses. */
export function pathOfUrl(url: URL): string {
  throw new FileError(
    `can't read ${url.href}: a page can't open files by their address; let the user choose one (<input type="file">)`,
    "EACCES",
    url.href,
  );
}

export const isFolder = (path: string): Promise<boolean> =>
  folderAt(path).then(
    () => true,
    () => false,
  );

const isFile = (path: string): Promise<boolean> =>
  fileAt(path).then(
    () => true,
    () => false,
  );

/** Makes a folder and its parents. Throws FileError. */
export async function ensureFolder(path: string): Promise<void> {
  try {
    await folderAt(path, { create: true });
  } catch (error) {
    if ((error as Error).name === "TypeMismatchError")
      throw new FileError(
        `can't make the folder ${path}: a file of that name, or of a parent's, is there; choose another path`,
        "ENOTDIR",
        path,
        error,
      );
    throw fileError("make the folder", path, error);
  }
}

/** A file's bytes as they are now, to read parts of them. Throws FileError. */
export async function blobAt(path: string): Promise<Blob> {
  try {
    return await (await fileAt(path)).getFile();
  } catch (error) {
    throw fileError("read", path, error);
  }
}

/** Opens a file to read it in order. Throws FileError. */
export async function openPath(path: string): Promise<Reader> {
  return blobReader(await blobAt(path), path);
}

async function* pieces(chunks: Chunks): AsyncGenerator<Uint8Array> {
  const encoder = new TextEncoder();
  if (typeof chunks === "string") yield encoder.encode(chunks);
  else if (chunks instanceof Uint8Array) yield chunks;
  else for await (const chunk of chunks) yield typeof chunk === "string" ? encoder.encode(chunk) : chunk;
}

// A page's other work has its turn between two pieces. When the quota is used up Chromium says so of pieces of up to a MiB; of larger
// ones, and of blobs, at times only that a pipe broke (an AbortError).
const pieceBytes = 1 << 20;

/** What is wrong with the quota, in numbers. */
async function quotaError(path: string, asked: number, error: unknown): Promise<FileError> {
  const { usage = 0, quota = 0 } =
    (await storage()
      ?.estimate()
      .catch(() => undefined)) ?? {};
  return new FileError(
    `can't write ${path}: the storage that the browser gives this origin is full (EDQUOT): ${asked} bytes were asked for, ` +
      `${usage} of ${quota} are used; remove files of this origin, or free space on the disk`,
    "EDQUOT",
    path,
    error,
  );
}

/** Writes into a file, which changes when it is all written. Calls `each` with every piece. */
async function fill(
  path: string,
  file: FileHandle,
  chunks: Chunks,
  each?: (piece: Uint8Array) => void,
): Promise<number> {
  let size = 0;
  const writable = await file.createWritable();
  try {
    for await (const chunk of pieces(chunks))
      for (let at = 0; at < chunk.length; at += pieceBytes) {
        const piece = chunk.subarray(at, at + pieceBytes);
        size += piece.length;
        await writable.write(piece);
        each?.(piece);
      }
    await writable.close();
  } catch (error) {
    await writable.abort().catch(() => {});
    if ((error as Error).name === "QuotaExceededError") throw await quotaError(path, size, error);
    throw error;
  }
  return size;
}

// Temporaries are named .NAME.nabla-PAGE-COUNT.tmp; who made them shows only by their age.
const temporaryName = /^\..+\.nabla-[0-9a-f]{8}-\d+\.tmp$/;
let page: string | undefined;
const here = (): string =>
  (page ??= Math.floor(Math.random() * 2 ** 32)
    .toString(16)
    .padStart(8, "0"));
let counter = 0;

/**
 * Writes a file so that, whatever happens (the page is closed, no room is left), the path holds either what it held before or
 * all of `chunks`, never a part. Throws FileError. Gives the size; `each` is called with every piece.
 */
export async function writeFileAtomic(
  path: string,
  chunks: Chunks,
  each?: (piece: Uint8Array) => void,
): Promise<number> {
  let undo = async (): Promise<void> => {};
  try {
    if (await isFile(path)) return await fill(path, await fileAt(path), chunks, each);
    const folder = await folderAt(dirname(path), { create: true });
    // a new file is there, empty, before it is written: so it gets its name only when it is
    const moves =
      "move" in
      (globalThis as unknown as { FileSystemFileHandle: { prototype: object } }).FileSystemFileHandle.prototype;
    const name = moves ? `.${basename(path)}.nabla-${here()}-${counter++}.tmp` : basename(path);
    const file = await folder.getFileHandle(name, { create: true });
    undo = () => folder.removeEntry(name);
    const size = await fill(path, file, chunks, each);
    if (moves) await file.move?.(folder, basename(path));
    return size;
  } catch (error) {
    await undo().catch(() => {});
    throw fileError("write", path, error);
  }
}

/** Removes what closed pages left in a folder: temporaries older than a day. Returns the removed names. */
export async function cleanStaleTemporaries(path: string): Promise<string[]> {
  if (!(await isFolder(path))) return [];
  const folder = await folderAt(path);
  const removed: string[] = [];
  for (const name of (await listFolder(path)).filter((n) => temporaryName.test(n)))
    try {
      const { lastModified } = await (await folder.getFileHandle(name)).getFile();
      if (Date.now() - lastModified < 24 * 3600 * 1000) continue;
      await folder.removeEntry(name);
      removed.push(name);
    } catch {
      // gone, or in use
    }
  return removed;
}

/** The names in a folder, sorted by code unit. Throws FileError. */
export async function listFolder(path: string): Promise<string[]> {
  const names: string[] = [];
  try {
    for await (const name of (await folderAt(path)).keys()) names.push(name);
  } catch (error) {
    throw fileError("read the folder", path, error);
  }
  return names.sort((a, b) => (a < b ? -1 : a > b ? 1 : 0));
}

/** Which file or folder is at a path. */
export async function entryAt(path: string): Promise<{ readonly id: string; readonly kind: "file" | "folder" | null }> {
  const id = namesOf(path).join("/");
  if (await isFolder(path)) return { id, kind: "folder" };
  await fileAt(path);
  return { id, kind: "file" };
}

/** Removes a file or a whole folder; that there is none is no error. */
export async function removeEntry(path: string): Promise<void> {
  try {
    await (await folderAt(dirname(path))).removeEntry(basename(path), { recursive: true });
  } catch (error) {
    if ((error as Error).name !== "NotFoundError") throw fileError("remove", path, error);
  }
}

/** Appends that are on their way to the disk. */
const unsettled = new Set<Promise<void>>();

/** Waits until all that was appended is in its files. Errors are thrown to those who append. */
export const settleAppends = async (): Promise<void> => {
  await Promise.allSettled(unsettled);
};

/**
 * Opens a file to append to it. A page can only ask for a write: what is appended is on its way when `append` returns, in order,
 * and an error shows at the next `append`, `sync` or `close`.
 */
export async function openGrowing(path: string): Promise<GrowingFile> {
  const folder = await folderAt(dirname(path), { create: true });
  const handle = await folder.getFileHandle(basename(path), { create: true });
  const bytes = new Uint8Array(await (await handle.getFile()).arrayBuffer());
  let size = bytes.length;
  let waiting: Uint8Array[] = [];
  let writing: Promise<void> | null = null;
  let failure: unknown = null;

  const change = async (act: (writable: Writable) => Promise<void>): Promise<void> => {
    const writable = await handle.createWritable({ keepExistingData: true });
    try {
      await act(writable);
      await writable.close();
    } catch (error) {
      await writable.abort().catch(() => {});
      throw error;
    }
  };
  const drain = async (): Promise<void> => {
    while (waiting.length > 0) {
      const taken = waiting as Uint8Array<ArrayBuffer>[];
      waiting = [];
      const data = new Uint8Array(await new Blob(taken).arrayBuffer());
      await change((writable) => writable.write({ type: "write", position: size, data }));
      size += data.length;
    }
  };
  const check = (): void => {
    if (failure === null) return;
    const error = failure;
    failure = null;
    throw error;
  };
  const sync = async (): Promise<void> => {
    await writing;
    check();
  };
  return {
    bytes,
    truncate: async (length) => {
      if (length === size) return;
      await change((writable) => writable.truncate(length));
      size = length;
    },
    append: (more) => {
      check();
      waiting.push(more);
      if (writing !== null) return;
      const run = drain()
        .catch((error) => {
          waiting = [];
          failure = error;
        })
        .finally(() => {
          writing = null;
          unsettled.delete(run);
        });
      writing = run;
      unsettled.add(run);
    },
    sync,
    close: sync,
  };
}
