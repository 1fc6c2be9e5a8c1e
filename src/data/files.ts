/**
 * Files on disk (in the browser's build `files.browser.ts` is in the place of this file): errors that say what to do, and writing that is all or nothing (a temporary name in the same folder,
 * fsync, rename, fsync of the folder). It knows nothing of any format; `formats/atomic.ts` shows it to the outside.
 */
import { closeSync, fstatSync, fsyncSync, ftruncateSync, openSync, readFileSync, statSync, writeSync } from "node:fs";
import { type FileHandle, mkdir, open, readdir, realpath, rename, stat, unlink } from "node:fs/promises";
import { hostname } from "node:os";
import { basename, dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { NablaError } from "../core/errors.ts";
import { FileError } from "./errors.ts";
import type { Reader } from "./reader.ts";

export { FileError } from "./errors.ts";

/** For each system code: what is wrong, and what to do about it. */
const explanations: Readonly<Record<string, readonly [what: string, todo: string]>> = {
  ENOSPC: ["the disk is full", "free some space, or choose a folder on another disk"],
  EDQUOT: ["the disk quota is used up", "free some space, or choose a folder elsewhere"],
  EACCES: ["permission denied", "check who owns it (ls -l), or choose another folder"],
  EPERM: ["the operation is not permitted", "check who owns it (ls -l), or choose another folder"],
  EROFS: ["the file system is read-only", "choose a folder on a writable disk"],
  ENOENT: ["there is no such file or folder", "check the spelling of the path"],
  ENOTDIR: ["a part of the path is a file, not a folder", "choose a path whose parents are folders"],
  EEXIST: ["something else of that name is already there", "choose another name, or remove it"],
  EISDIR: ["it is a folder, a file was expected", "name a file"],
  EMFILE: ["too many open files", "raise the limit (ulimit -n)"],
  ENFILE: ["too many open files on this machine", "close some programs"],
  ENAMETOOLONG: ["the name is too long", "choose a shorter path"],
  ELOOP: ["the symbolic links go in a circle", "check the links (ls -l)"],
  EIO: ["the disk reports an error", "check the disk, and the system's log"],
};

/** The nearest ancestor of `path` that exists and is not a folder, if any. */
function fileAbove(path: string): string | undefined {
  for (let p = dirname(resolve(path)); ; p = dirname(p)) {
    try {
      return statSync(p).isDirectory() ? undefined : p;
    } catch {
      if (p === dirname(p)) return undefined;
    }
  }
}

/**
 * A system error as a FileError: `can't <verb> <path>: what is wrong; what to do`. Errors that are already
 * NablaErrors, and errors without a system code, come back as they are.
 */
export function fileError(verb: string, path: string, error: unknown): unknown {
  if (error instanceof NablaError) return error;
  const code = (error as NodeJS.ErrnoException | null)?.code;
  if (typeof code !== "string" || !/^E[A-Z0-9]+$/.test(code)) return error;
  if (code === "ENOTDIR" || code === "EEXIST") {
    const file = fileAbove(path);
    if (file !== undefined)
      return new FileError(
        `can't ${verb} ${path}: ${file} is a file, so nothing can lie below it; choose a path whose parents are folders`,
        "ENOTDIR",
        path,
        error,
      );
  }
  const [what, todo] = explanations[code] ?? [(error as Error).message, "see the system's documentation of this code"];
  return new FileError(`can't ${verb} ${path}: ${what} (${code}); ${todo}`, code, path, error);
}

/** Makes a folder and its parents. Throws FileError (`ENOTDIR` when the path lies below a file). */
export async function ensureFolder(path: string): Promise<void> {
  try {
    await mkdir(path, { recursive: true });
  } catch (error) {
    if (
      await stat(path).then(
        (s) => !s.isDirectory(),
        () => false,
      )
    )
      throw new FileError(`can't make the folder ${path}: it is a file; choose another path`, "ENOTDIR", path, error);
    throw fileError("make the folder", path, error);
  }
}

/** The path of a file: URL. */
export const pathOfUrl = (url: URL): string => fileURLToPath(url);

/** Whether there is a folder of that path. */
export const isFolder = (path: string): Promise<boolean> =>
  stat(path).then(
    (s) => s.isDirectory(),
    () => false,
  );

/** Opens a file to read it in order. Throws system errors as they are. */
export async function openPath(path: string): Promise<Reader> {
  let handle: FileHandle;
  let size: number | null;
  try {
    handle = await open(path, "r");
    const info = await handle.stat();
    size = info.isFile() && info.size > 0 ? info.size : null; // pipes, and files of /proc, have a size of 0
  } catch (error) {
    throw fileError("read", path, error);
  }
  return {
    name: path,
    size,
    expected: size,
    read: async (out) => (await handle.read(out, 0, Math.min(out.length, 1 << 30), null)).bytesRead,
    close: () => handle.close(),
  };
}

let written = 0;

/**
 * A hook for tests only: with NABLA_TEST_ENOSPC=N in the environment, every write through this module fails with ENOSPC
 * once this process has written N bytes through it, the way a full disk does (the bytes that still fit are written).
 * Returns how many of `length` bytes may be written.
 */
function allowance(length: number): number {
  const limit = process.env["NABLA_TEST_ENOSPC"];
  if (limit === undefined) return length;
  const fits = Math.max(0, Math.min(length, Number(limit) - written));
  written += fits;
  return fits;
}

const noSpace = () => Object.assign(new Error("ENOSPC: no space left on device (injected)"), { code: "ENOSPC" });

const pieceBytes = 64 << 20; // below every system's limit of one write

/** Writes all of `bytes` at the descriptor's position. Throws system errors as they are. */
function writeAllSync(fd: number, bytes: Uint8Array): void {
  const fits = allowance(bytes.length);
  for (let at = 0; at < fits; ) at += writeSync(fd, bytes, at, Math.min(pieceBytes, fits - at));
  if (fits < bytes.length) throw noSpace();
}

/** Writes all of `bytes`, at the handle's position unless another is given. Throws system errors as they are. */
export async function writeAll(handle: FileHandle, bytes: Uint8Array, position?: number): Promise<void> {
  const fits = allowance(bytes.length);
  for (let at = 0; at < fits; )
    at += (
      await handle.write(bytes, at, Math.min(pieceBytes, fits - at), position === undefined ? null : position + at)
    ).bytesWritten;
  if (fits < bytes.length) throw noSpace();
}

/** Makes the names in a folder durable. A system that can't (Windows) is left alone: there the rename is enough. */
export function syncFolder(path: string): void {
  let fd: number;
  try {
    fd = openSync(path, "r");
  } catch {
    return;
  }
  try {
    fsyncSync(fd);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    if (code !== "EINVAL" && code !== "EPERM" && code !== "EISDIR" && code !== "ENOTSUP") throw error;
  } finally {
    closeSync(fd);
  }
}

/** What can be written: one piece, or many in order. Strings are written as UTF-8. */
export type Chunks = string | Uint8Array | Iterable<string | Uint8Array> | AsyncIterable<string | Uint8Array>;

async function* pieces(chunks: Chunks): AsyncGenerator<Uint8Array> {
  const encoder = new TextEncoder();
  if (typeof chunks === "string") yield encoder.encode(chunks);
  else if (chunks instanceof Uint8Array) yield chunks;
  else for await (const chunk of chunks) yield typeof chunk === "string" ? encoder.encode(chunk) : chunk;
}

/** Writes a new file and makes its bytes durable. Returns its size. Not atomic by itself; throws system errors. */
export async function writeDurably(path: string, chunks: Chunks, each?: (piece: Uint8Array) => void): Promise<number> {
  const handle = await open(path, "wx");
  let size = 0;
  try {
    for await (const piece of pieces(chunks)) {
      await writeAll(handle, piece);
      each?.(piece);
      size += piece.length;
    }
    await handle.sync();
  } finally {
    await handle.close();
  }
  return size;
}

// Temporaries are named .NAME.nabla-HOST-PID-COUNT.tmp: whoever finds one can tell whether its writer still lives.
const temporaryName = /^\..+\.nabla-([0-9a-f]{8})-(\d+)-\d+\.tmp$/;
const alive = new Set<string>();
let counter = 0;

/** Eight hexadecimal digits that tell machines apart, for names of temporaries on disks that several share. */
export function hostTag(): string {
  let hash = 0x811c9dc5; // FNV-1a
  for (const c of hostname()) hash = Math.imul(hash ^ c.codePointAt(0)!, 0x01000193);
  return (hash >>> 0).toString(16).padStart(8, "0");
}

/**
 * Writes a file so that, whatever happens (a kill, a full disk, a power cut), the path holds either what it held
 * before or all of `chunks`, never a part. A symbolic link is followed; an existing file keeps its permissions.
 * The folder must exist. Throws FileError; what was written so far is removed.
 */
export async function writeFileAtomic(path: string, chunks: Chunks): Promise<void> {
  let temporary: string | undefined;
  try {
    const target = await realpath(path).catch(() => path);
    const before = await stat(target).catch(() => undefined);
    if (before?.isDirectory()) throw Object.assign(new Error("a folder"), { code: "EISDIR" });
    if (before !== undefined && !before.isFile())
      throw new FileError(`can't write ${path}: it is not a regular file; name a regular file`, "EINVAL", path);
    const folder = dirname(target);
    temporary = join(folder, `.${basename(target)}.nabla-${hostTag()}-${process.pid}-${counter++}.tmp`);
    alive.add(temporary);
    const handle = await open(temporary, "wx", before === undefined ? 0o666 : before.mode & 0o777);
    try {
      for await (const piece of pieces(chunks)) await writeAll(handle, piece);
      if (before !== undefined) await handle.chmod(before.mode & 0o777);
      await handle.sync();
    } finally {
      await handle.close();
    }
    await rename(temporary, target);
    syncFolder(folder);
  } catch (error) {
    if (temporary !== undefined) await unlink(temporary).catch(() => {});
    throw fileError("write", path, error);
  } finally {
    if (temporary !== undefined) alive.delete(temporary);
  }
}

/**
 * Whether the writer of a temporary is gone, by what its name says of him: his machine and his process. On another machine: whether
 * it is older than a day. `mine` are the files that this process is writing.
 */
export function isAbandoned(path: string, host: string, pid: number, mine: ReadonlySet<string>): boolean {
  if (host === hostTag()) {
    if (pid === process.pid) return !mine.has(path);
    try {
      process.kill(pid, 0);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ESRCH") return true;
    }
  }
  try {
    return Date.now() - statSync(path).mtimeMs > 24 * 3600 * 1000; // another machine's, or a process id used again
  } catch {
    return false;
  }
}

function isStale(folder: string, name: string): boolean {
  const match = temporaryName.exec(name);
  return match !== null && isAbandoned(join(folder, name), match[1], Number(match[2]), alive);
}

/**
 * Removes what killed writers left in a folder: temporaries of writeFileAtomic whose process is gone (on another
 * machine: older than a day). Returns the removed names. A folder that does not exist holds none.
 */
export async function cleanStaleTemporaries(folder: string): Promise<string[]> {
  let names: string[];
  try {
    names = await readdir(folder);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return [];
    throw fileError("read the folder", folder, error);
  }
  const stale = names.filter((name) => isStale(folder, name)).sort();
  for (const name of stale) await unlink(join(folder, name)).catch(() => {});
  return stale;
}

/** The names in a folder, sorted by code unit so that every machine sees the same order. Throws FileError. */
export async function listFolder(path: string): Promise<string[]> {
  try {
    return (await readdir(path)).sort((a, b) => (a < b ? -1 : a > b ? 1 : 0));
  } catch (error) {
    throw fileError("read the folder", path, error);
  }
}

/** What is at a path: which file or folder it is, under whatever name; null for what is neither. Throws system errors as they are. */
export async function entryAt(path: string): Promise<{ readonly id: string; readonly kind: "file" | "folder" | null }> {
  const id = await realpath(path);
  const info = await stat(id);
  return { id, kind: info.isDirectory() ? "folder" : info.isFile() ? "file" : null };
}

/** A file that grows at its end, such as a log. */
export interface GrowingFile {
  /** What it held when it was opened. */
  readonly bytes: Uint8Array;
  /** Cuts it back to its first bytes, before anything is appended. */
  truncate(size: number): Promise<void>;
  /** In Node the bytes are with the system when this returns, or it throws and the file is as before. */
  append(bytes: Uint8Array): void;
  /** Makes it survive a power cut. */
  sync(): Promise<void>;
  close(): Promise<void>;
}

/** Opens a file to append to it; it is made if need be. Throws system errors as they are. */
export async function openGrowing(path: string): Promise<GrowingFile> {
  const fd = openSync(path, "a+");
  let bytes: Uint8Array;
  let size = 0;
  try {
    bytes = readFileSync(path);
    size = bytes.length;
  } catch (error) {
    closeSync(fd);
    throw error;
  }
  return {
    bytes,
    truncate: async (length) => {
      size = length;
      if (fstatSync(fd).size === size) return;
      ftruncateSync(fd, size);
      fsyncSync(fd);
    },
    append: (more) => {
      try {
        writeAllSync(fd, more);
      } catch (error) {
        ftruncateSync(fd, size); // half a line must not meet the next one
        throw error;
      }
      size += more.length;
    },
    sync: async () => fsyncSync(fd),
    close: async () => {
      fsyncSync(fd);
      closeSync(fd);
    },
  };
}
