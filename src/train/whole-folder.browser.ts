/**
 * Folders that are there as a whole or not at all, in the origin's private file system, where folders can't be renamed: a folder counts
 * once its last file, the mark, is in it. A file appears all at once.
 */
import {
  ensureFolder,
  fileError,
  listFolder,
  openPath,
  removeEntry,
  settleAppends,
  writeFileAtomic,
} from "../data/files.browser.ts";
import { join } from "../data/path.browser.ts";
import { openSource, take } from "../data/source.ts";
import type { AddFile } from "./whole-folder.ts";

const namesIn = (path: string): Promise<string[]> => listFolder(path).catch(() => []);

/** Whether there is a file or folder. */
export const exists = async (path: string): Promise<boolean> => {
  if ((await namesIn(path)).length > 0) return true;
  return openPath(path).then(
    () => true,
    () => false,
  );
};

export const remove = (path: string): Promise<void> => removeEntry(path);

/** A folder that is going away: its mark first. */
export async function discard(path: string, mark: string): Promise<void> {
  await removeEntry(join(path, mark));
  await removeEntry(path);
}

async function* contents(path: string): AsyncGenerator<Uint8Array> {
  const source = await openSource(path);
  for (;;) {
    const piece = await take(source, 4 << 20);
    if (piece.length === 0) return;
    yield piece;
  }
}

async function copyFolder(from: string, to: string, mark: string): Promise<void> {
  const names = (await listFolder(from)).filter((name) => name !== mark);
  for (const name of [...names, mark]) await writeFileAtomic(join(to, name), contents(join(from, name)));
}

/**
 * Writes the folder `path` inside `parent`; the last file that `write` adds is called `mark`. One that is there already is copied to
 * `path`.old before. Throws FileError; what was written is removed.
 */
export async function writeWholeFolder(
  _parent: string,
  path: string,
  mark: string,
  write: (add: AddFile) => Promise<void>,
): Promise<void> {
  const old = `${path}.old`;
  const again = await exists(join(path, mark));
  if (again) {
    await discard(old, mark);
    await copyFolder(path, old, mark);
  }
  await discard(path, mark);
  try {
    await ensureFolder(path);
    await settleAppends(); // a log must not end before the checkpoint that it leads to
    await write((name, chunks, each) => writeFileAtomic(join(path, name), chunks, each));
  } catch (error) {
    await discard(path, mark).catch(() => {});
    throw fileError("write", path, error);
  }
}

export const isUnfinished = async (path: string, mark: string): Promise<boolean> => !(await exists(join(path, mark)));

/** Shows a file under a second name: a copy. */
export async function publish(from: string, to: string, _temporary: string): Promise<void> {
  await writeFileAtomic(to, contents(from));
}
