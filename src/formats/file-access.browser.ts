/** Random access to a file in the origin's private file system, which is a browser's place for paths. */
import { blobAt, fileError } from "../data/files.browser.ts";
import type { RandomAccess } from "./random-access.ts";

/** Throws FileError where the file can't be read; a later read does so too where it has changed since. */
export async function fileAccess(path: string): Promise<RandomAccess> {
  const blob = await blobAt(path);
  return {
    size: blob.size,
    name: path,
    read: async (offset, length) => {
      try {
        return new Uint8Array(await blob.slice(offset, offset + length).arrayBuffer());
      } catch (error) {
        throw fileError("read", path, error);
      }
    },
  };
}
