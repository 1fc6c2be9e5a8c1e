/**
 * Folders that appear all at once, and go all at once. In the browser's build `whole-folder.browser.ts` is in the place of this
 * file, for folders have other means there.
 */
import { createReadStream } from "node:fs";
import { link, mkdir, rename, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { type Chunks, syncFolder, writeDurably, writeFileAtomic } from "../data/files.ts";

/** Adds a file to a folder that is being written; gives its size. */
export type AddFile = (name: string, chunks: Chunks, each?: (piece: Uint8Array) => void) => Promise<number>;

export const exists = (path: string): Promise<boolean> =>
  stat(path).then(
    () => true,
    () => false,
  );

export const remove = (path: string): Promise<void> => rm(path, { recursive: true, force: true });

/** A folder that is going away: first out of its name, so that a kill in the middle leaves no half of it. */
export async function discard(path: string, _mark: string): Promise<void> {
  await rename(path, `${path}.tmp`);
  await remove(`${path}.tmp`);
}

/**
 * Writes the folder `path` inside `parent`: as `path`.tmp, made durable, and renamed. One that is there already becomes `path`.old. The last
 * file that `write` adds is called `mark`. Throws system errors; what was written is removed, and what was there is as it was.
 */
export async function writeWholeFolder(
  parent: string,
  path: string,
  mark: string,
  write: (add: AddFile) => Promise<void>,
): Promise<void> {
  const temporary = `${path}.tmp`;
  try {
    await mkdir(temporary);
    await write((name, chunks, each) => writeDurably(join(temporary, name), chunks, each));
    syncFolder(temporary);
    const old = `${path}.old`;
    if (await exists(path)) {
      if (await exists(old)) await discard(old, mark);
      await rename(path, old);
    }
    await rename(temporary, path);
    syncFolder(parent);
  } catch (error) {
    await remove(temporary).catch(() => {});
    throw error;
  }
}

/** Whether a folder is one that writeWholeFolder has not finished. Here those have another name. */
export const isUnfinished = async (_path: string, _mark: string): Promise<boolean> => false;

/** Shows a file under a second name: the same bytes, or a copy where that can't be. `temporary` is a name to do it with. */
export async function publish(from: string, to: string, temporary: string): Promise<void> {
  await rm(temporary, { force: true });
  try {
    await link(from, temporary);
    await rename(temporary, to);
    // Renaming one name of a file onto another of the same file leaves both.
    await rm(temporary, { force: true });
  } catch {
    await writeFileAtomic(to, createReadStream(from));
  }
}
