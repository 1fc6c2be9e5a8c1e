/**
 * One file of the hub into the cache's blobs: resumed where an earlier attempt broke off, checked against its hash, and
 * given its name when it is whole. Each writer has a file of his own, so that several processes do not get in each other's way;
 * what a writer that is gone has left is taken over.
 */
import { createHash, type Hash } from "node:crypto";
import { type FileHandle, open, readdir, rename, unlink } from "node:fs/promises";
import { join } from "node:path";
import { fileError, hostTag, isAbandoned, writeAll } from "../data/files.ts";
import { isFile } from "./cache.ts";
import { HubError } from "./errors.ts";
import type { ModelName } from "./model-name.ts";
import { type Answer, ask, mayPass, refusal, withRetries } from "./request.ts";
import type { HubSettings } from "./settings.ts";

/** A file as the hub describes it. */
export interface RemoteFile {
  readonly name: string;
  readonly address: string;
  /** The name of its blob: the SHA-256 of a large file, git's SHA-1 of a small one. */
  readonly etag: string;
  /** In bytes; null where the hub does not say. */
  readonly size: number | null;
}

/** Asks the hub what a file is. Throws HubError. */
export async function describeFile(
  settings: HubSettings,
  { id, revision }: ModelName,
  commit: string,
  name: string,
): Promise<RemoteFile> {
  const path = name.split("/").map(encodeURIComponent).join("/");
  const address = `${settings.endpoint}/${id}/resolve/${commit}/${path}`;
  return withRetries(settings, async () => {
    const answer = await ask(settings, address, "HEAD", { stay: true });
    await answer.cancel();
    if (answer.status >= 400) throw refusal(settings, answer, `${id}: ${name}`, id, revision);
    const etag = (answer.header("x-linked-etag") ?? answer.header("etag") ?? "")
      .replace(/^W\//, "")
      .replace(/^"|"$/g, "");
    if (!/^[\w-]{8,128}$/.test(etag))
      throw new HubError("SERVER", `${address}: the answer names no hash (ETag "${etag}"); check HF_ENDPOINT`);
    const size = answer.header("x-linked-size") ?? (answer.status < 300 ? answer.header("content-length") : null);
    return { name, address, etag, size: size !== null && /^\d+$/.test(size) ? Number(size) : null };
  });
}

/** Files that this process writes now. */
const writing = new Set<string>();
let counter = 0;
const incomplete = /^([\w-]+)\.nabla-([0-9a-f]{8})-(\d+)-\d+\.incomplete$/;

/** What an earlier writer has left of a blob, under our name; or just our name. */
async function claim(blobs: string, etag: string): Promise<string> {
  const own = join(blobs, `${etag}.nabla-${hostTag()}-${process.pid}-${counter++}.incomplete`);
  writing.add(own);
  for (const name of await readdir(blobs)) {
    const match = incomplete.exec(name);
    if (match?.[1] !== etag || !isAbandoned(join(blobs, name), match[2], Number(match[3]), writing)) continue;
    try {
      await rename(join(blobs, name), own);
      break;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error; // else another one has taken it over
    }
  }
  return own;
}

/** The running hash that a blob's name is; null where the name is of a kind that is not known. */
function hashFor({ etag, size }: RemoteFile): Hash | null {
  if (/^[0-9a-f]{64}$/.test(etag)) return createHash("sha256");
  if (/^[0-9a-f]{40}$/.test(etag) && size !== null) return createHash("sha1").update(`blob ${size}\0`);
  return null;
}

/** A file that grows at its end, with the hash of what is in it. */
class Partial {
  at = 0;
  hash: Hash | null;
  readonly #handle: FileHandle;
  readonly #file: RemoteFile;
  constructor(handle: FileHandle, file: RemoteFile) {
    this.#handle = handle;
    this.#file = file;
    this.hash = hashFor(file);
  }

  /** Goes on behind what is there already; starts anew where that is more than the file has. */
  async resume(): Promise<void> {
    const { size } = await this.#handle.stat();
    if (size === 0 || this.#file.size === null || size > this.#file.size) return this.restart();
    const piece = Buffer.alloc(1 << 20);
    while (this.at < size) {
      const { bytesRead } = await this.#handle.read(piece, 0, Math.min(piece.length, size - this.at), null);
      if (bytesRead === 0) return this.restart();
      this.hash?.update(piece.subarray(0, bytesRead));
      this.at += bytesRead;
    }
  }

  async restart(): Promise<void> {
    await this.#handle.truncate(0);
    this.at = 0;
    this.hash = hashFor(this.#file);
  }

  async append(bytes: Uint8Array): Promise<void> {
    for (let done = 0; done < bytes.length; ) {
      const part = bytes.subarray(done, done + (1 << 20));
      await writeAll(this.#handle, part, this.at + done);
      done += part.length;
    }
    this.hash?.update(bytes);
    this.at += bytes.length;
  }

  /** Whether the bytes are those that the blob's name promises. */
  isRight(): boolean {
    return this.hash === null || this.hash.digest("hex") === this.#file.etag;
  }
}

/** Whether an answer brings the bytes from `at` on. */
function goesOn(answer: Answer, at: number): boolean {
  if (answer.status === 200) return at === 0;
  const from = /^bytes (\d+)-/.exec(answer.header("content-range") ?? "");
  return answer.status === 206 && from !== null && Number(from[1]) === at;
}

/** One attempt: asks for what is missing and appends it. Throws HubError, and system errors as they are. */
async function fetchRest(
  settings: HubSettings,
  file: RemoteFile,
  model: ModelName,
  partial: Partial,
  told: (at: number) => void,
): Promise<void> {
  if (partial.at === file.size) return;
  const answer = await ask(settings, file.address, "GET", { range: partial.at });
  if (answer.status === 416 || (answer.status < 300 && !goesOn(answer, partial.at))) {
    await partial.restart();
    told(0);
    if (answer.status !== 200) {
      await answer.cancel();
      throw mayPass(new HubError("SERVER", `${answer.address}: the answer is not of the bytes that were asked for`));
    }
  } else if (answer.status >= 300) {
    await answer.cancel();
    throw refusal(settings, answer, `${model.id}: ${file.name}`, model.id, model.revision);
  }
  for await (const piece of answer.pieces()) {
    if (file.size !== null && partial.at + piece.length > file.size)
      throw new HubError(
        "DAMAGED",
        `${answer.address}: more came than the ${file.size} bytes that the hub says; try again`,
      );
    await partial.append(piece);
    told(partial.at);
  }
  if (file.size !== null && partial.at < file.size)
    throw mayPass(
      new HubError("NETWORK", `${answer.address}: the connection ended after ${partial.at} of ${file.size} bytes`),
    );
}

/** Fills `path` and checks it; a part from before that proves damaged is fetched again. */
async function fill(
  path: string,
  settings: HubSettings,
  file: RemoteFile,
  model: ModelName,
  told: (at: number) => void,
): Promise<void> {
  const handle = await open(path, "a+").then(async (made) => {
    await made.close();
    return open(path, "r+");
  });
  try {
    const partial = new Partial(handle, file);
    await partial.resume();
    told(partial.at);
    for (let resumed = partial.at > 0; ; resumed = false) {
      let before = partial.at;
      const gained = (): boolean => {
        const more = partial.at > before;
        before = partial.at;
        return more;
      };
      await withRetries(settings, () => fetchRest(settings, file, model, partial, told), gained);
      if (partial.isRight()) break;
      await partial.restart();
      told(0);
      if (!resumed)
        throw new HubError(
          "DAMAGED",
          `${model.id}: ${file.name}: the bytes that came do not have the hash ${file.etag}; they were removed. Try again; if it stays so, something between here and ${settings.endpoint} changes them`,
        );
    }
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/**
 * Fetches a file into `blobs`, if it is not there. What is there when it fails stays, to be gone on with, but for a full disk and damaged
 * bytes. Throws HubError, FileError, or the signal's reason.
 */
export async function fetchBlob(
  settings: HubSettings,
  blobs: string,
  file: RemoteFile,
  model: ModelName,
  told: (at: number) => void,
): Promise<string> {
  const blob = join(blobs, file.etag);
  if (await isFile(blob)) return blob;
  let own = "";
  try {
    own = await claim(blobs, file.etag);
    await fill(own, settings, file, model, told);
    await rename(own, blob);
    return blob;
  } catch (error) {
    const { code } = error as { code?: string };
    const full = code === "ENOSPC" || code === "EDQUOT";
    if (full || code === "DAMAGED") await unlink(own).catch(() => {});
    throw fileError("write", blob, error);
  } finally {
    writing.delete(own);
  }
}
