/**
 * Random access to a file on disk. No handle stays open between two reads, so that nothing has to be closed; that the file is
 * still the one that was opened is checked each time. In a browser's build `file-access.browser.ts` is in the place of this file.
 */
import { type FileHandle, open } from "node:fs/promises";
import { FileError, fileError } from "../data/files.ts";
import { longestView, type MappedFile, mapFile } from "./mapping.ts";
import type { RandomAccess } from "./random-access.ts";

const pieceBytes = 1 << 30; // below every system's limit of one read

async function withHandle<T>(path: string, use: (handle: FileHandle) => Promise<T>): Promise<T> {
  try {
    const handle = await open(path, "r");
    try {
      return await use(handle);
    } finally {
      await handle.close();
    }
  } catch (error) {
    throw fileError("read", path, error);
  }
}

/** Throws FileError where the file can't be read, or is no longer what it was when it was opened. */
export async function fileAccess(path: string): Promise<RandomAccess> {
  const first = await withHandle(path, (handle) => handle.stat());
  if (!first.isFile()) throw new FileError(`can't read ${path}: it is not a regular file; name a file`, "EINVAL", path);
  const unchanged = <T>(use: (handle: FileHandle) => Promise<T>): Promise<T> =>
    withHandle(path, async (handle) => {
      const now = await handle.stat();
      if (now.ino !== first.ino || now.size !== first.size || now.mtimeMs !== first.mtimeMs)
        throw new FileError(`can't read ${path}: it changed since it was opened; read it again`, "ESTALE", path);
      return use(handle);
    });
  let mapping: Promise<MappedFile | null> | undefined;
  return {
    size: first.size,
    name: path,
    mapped: (offset, length) =>
      unchanged(async () => {
        mapping ??= mapFile(path);
        const file = length > 0 && length <= longestView ? await mapping : null;
        return file && file.size === first.size ? file.view(offset, length) : null;
      }),
    read: (offset, length) =>
      unchanged(async (handle) => {
        const out = new Uint8Array(length);
        for (let at = 0; at < length; ) {
          const { bytesRead } = await handle.read(out, at, Math.min(length - at, pieceBytes), offset + at);
          if (bytesRead === 0) throw new FileError(`can't read ${path}: it ends early; read it again`, "ESTALE", path);
          at += bytesRead;
        }
        return out;
      }),
  };
}
