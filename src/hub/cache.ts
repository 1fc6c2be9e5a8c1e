/**
 * The cache on disk, in the layout of huggingface_hub, so that both share it
 * (https://huggingface.co/docs/huggingface_hub/guides/manage-cache):
 *
 *     models--org--name/refs/main               the commit that a branch or tag was last seen at
 *     models--org--name/blobs/HASH              each file's bytes, once
 *     models--org--name/snapshots/COMMIT/NAME   → ../../blobs/HASH
 */
import { copyFile, link, mkdir, readdir, readFile, stat, symlink, unlink } from "node:fs/promises";
import { dirname, join, relative } from "node:path";
import { ensureFolder, fileError, writeFileAtomic } from "../data/files.ts";
import type { ModelName } from "./model-name.ts";

export const isCommit = (text: string): boolean => /^[0-9a-f]{40}$/.test(text);

/** One model's folder of the cache. */
export class ModelCache {
  readonly folder: string;
  readonly blobs: string;

  constructor(cacheFolder: string, { id }: ModelName) {
    this.folder = join(cacheFolder, `models--${id.replace("/", "--")}`);
    this.blobs = join(this.folder, "blobs");
  }

  snapshot(commit: string): string {
    return join(this.folder, "snapshots", commit);
  }

  /** The commit that a revision was at when it was last looked up; null where it never was. */
  async commitOf(revision: string): Promise<string | null> {
    if (isCommit(revision)) return revision;
    const text = await readFile(join(this.folder, "refs", revision), "utf8").catch(() => "");
    return isCommit(text.trim()) ? text.trim() : null;
  }

  async setCommit(revision: string, commit: string): Promise<void> {
    if (isCommit(revision) || (await this.commitOf(revision)) === commit) return;
    const path = join(this.folder, "refs", revision);
    await ensureFolder(dirname(path));
    await writeFileAtomic(path, commit);
  }

  /** The paths of a snapshot's files whose bytes are there, with "/" between names; none where it was never fetched. */
  async files(commit: string): Promise<string[]> {
    const folder = this.snapshot(commit);
    const out: string[] = [];
    for (const name of await readdir(folder, { recursive: true }).catch(() => []))
      if (await isFile(join(folder, name))) out.push(name.replaceAll("\\", "/"));
    return out.sort();
  }

  /** Makes a snapshot's file stand for a blob: by a link, or a copy where the disk has none. */
  async point(commit: string, name: string, blob: string): Promise<void> {
    const path = join(this.snapshot(commit), ...name.split("/"));
    await ensureFolder(dirname(path));
    if (await isFile(path)) return;
    await unlink(path).catch(() => {}); // a link to what is no longer there
    try {
      await linkTo(blob, path);
    } catch (error) {
      // another process was faster
      if (!(await isFile(path))) throw fileError("write", path, error);
    }
  }

  async makeBlobs(): Promise<void> {
    await mkdir(this.blobs, { recursive: true }).catch((error) => {
      throw fileError("make the folder", this.blobs, error);
    });
  }
}

/** Whether there is a file, or a link to one. */
export const isFile = (path: string): Promise<boolean> =>
  stat(path).then(
    (info) => info.isFile(),
    () => false,
  );

/** Systems, disks and users without symbolic links. */
const noLinks = new Set(["EPERM", "EACCES", "ENOSYS", "ENOTSUP", "EOPNOTSUPP", "EINVAL", "EXDEV", "EMLINK"]);
const refused = (error: unknown): boolean => noLinks.has((error as NodeJS.ErrnoException).code ?? "");

async function linkTo(blob: string, path: string): Promise<void> {
  const ways = [
    ...(/^(1|on|yes|true)$/i.test(process.env["HF_HUB_DISABLE_SYMLINKS"] ?? "")
      ? []
      : [() => symlink(relative(dirname(path), blob), path)]),
    () => link(blob, path),
  ];
  for (const way of ways)
    try {
      return await way();
    } catch (error) {
      if (!refused(error)) throw error;
    }
  await copyFile(blob, path);
}
