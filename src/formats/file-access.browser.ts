/** In a browser a path names no file: what is read is a blob, bytes, or one's own random access. */
import { NablaError } from "../core/errors.ts";
import type { RandomAccess } from "./random-access.ts";

export async function fileAccess(path: string): Promise<RandomAccess> {
  throw new NablaError(`can't read ${path}: a page has no paths; give a Blob, a File or bytes`);
}
