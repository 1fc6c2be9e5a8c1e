/**
 * A model's folder, by its path or by its name on the hub (https://huggingface.co): then it is downloaded, once, into the cache
 * that huggingface_hub uses too. In a browser's build `model-folder.browser.ts` is in the place of this file.
 */
import { readFile, stat, statfs } from "node:fs/promises";
import { join } from "node:path";
import { isCommit, isFile, ModelCache } from "./cache.ts";
import { describeFile, fetchBlob, type RemoteFile } from "./download.ts";
import { HubError, notHereEither } from "./errors.ts";
import { isInside, type ModelName, parseModelName } from "./model-name.ts";
import { ask, isPassing, refusal, withRetries } from "./request.ts";
import { type HubOptions, type HubSettings, hubSettings } from "./settings.ts";
import { smallFiles, weightFiles } from "./wanted.ts";

export type { HubOptions } from "./settings.ts";

const atOnce = 6;
const mebibytes = (bytes: number): string => `${Math.ceil(bytes / 2 ** 20)} MiB`;

/** What the hub knows of a model at a revision. */
interface Repository {
  readonly commit: string;
  readonly files: readonly string[];
}

async function lookUp(settings: HubSettings, { id, revision }: ModelName): Promise<Repository> {
  const address = `${settings.endpoint}/api/models/${id}/revision/${encodeURIComponent(revision)}`;
  const bytes = await withRetries(settings, async () => {
    const answer = await ask(settings, address, "GET");
    if (answer.status >= 300) {
      await answer.cancel();
      throw refusal(settings, answer, `${id}@${revision}`, id, revision);
    }
    return answer.bytes(64 << 20);
  });
  const strange = (what: string): HubError =>
    new HubError("SERVER", `${address}: the answer ${what}; is this a hub? check HF_ENDPOINT`);
  let info: { readonly sha?: unknown; readonly siblings?: unknown } | null;
  try {
    info = JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    throw strange("is not JSON");
  }
  const commit = info?.sha;
  if (typeof commit !== "string" || !isCommit(commit)) throw strange("names no commit");
  if (!Array.isArray(info?.siblings)) throw strange("lists no files");
  const files = info.siblings.map((entry: { rfilename?: unknown } | null) => entry?.rfilename);
  if (!files.every((name): name is string => typeof name === "string" && isInside(name)))
    throw strange("lists a file outside of the repository");
  return { commit, files };
}

/** Which of a repository's files are wanted: the small ones at once, the others when those can be read. */
async function* wantedOf(
  name: ModelName,
  files: readonly string[],
  options: HubOptions,
  read: (file: string) => Promise<string>,
): AsyncGenerator<readonly string[]> {
  const named = name.file === null ? options.files : [name.file];
  if (named !== undefined) {
    const missing = named.filter((file) => !files.includes(file));
    if (missing.length)
      throw new HubError("NOT_FOUND", `${name.id}@${name.revision}: there is no ${missing.join(", no ")}`);
    yield named;
    return;
  }
  const small = smallFiles(files);
  yield small;
  const index = files.filter((file) => file.endsWith(".index.json"));
  if (index.length) yield index;
  yield await weightFiles(name.id, files, read);
}

/** Tells of the progress of several files as one. */
function progressOf({ onProgress }: HubOptions): (file: RemoteFile, at: number) => void {
  const all = new Map<RemoteFile, number>();
  return (file, at) => {
    all.set(file, at);
    if (!onProgress) return;
    let loaded = 0;
    let total: number | null = 0;
    for (const [{ size }, done] of all) {
      loaded += done;
      total = total === null || size === null ? null : total + size;
    }
    onProgress(loaded, total);
  };
}

/** Does `work` for each item, some at once. The first failure ends it, when what was begun has ended. */
async function forEach<T>(items: readonly T[], work: (item: T) => Promise<void>): Promise<void> {
  const queue = [...items];
  const failures: unknown[] = [];
  const worker = async (): Promise<void> => {
    for (let item = queue.shift(); item !== undefined; item = queue.shift())
      await work(item).catch((error) => {
        queue.length = 0;
        failures.push(error);
      });
  };
  await Promise.all(Array.from({ length: atOnce }, worker));
  if (failures.length) throw failures[0];
}

/** Throws HubError where the disk has less room than is still to come. */
async function checkRoom(cache: ModelCache, files: readonly RemoteFile[]): Promise<void> {
  const missing = await Promise.all(
    files.map(async ({ etag, size }) => ((await isFile(join(cache.blobs, etag))) ? 0 : (size ?? 0))),
  );
  const needed = missing.reduce((a, b) => a + b, 0);
  const disk = await statfs(cache.blobs).catch(() => null);
  if (disk !== null && needed > disk.bavail * disk.bsize)
    throw new HubError(
      "ENOSPC",
      `${cache.folder}: ${mebibytes(needed)} are to come, but the disk has ${mebibytes(disk.bavail * disk.bsize)} left; free some space, or set HF_HOME to a folder on another disk`,
    );
}

/** Downloads of this process that are under way, by folder of blobs and hash: two callers share one. */
const underWay = new Map<string, Promise<string>>();

async function download(
  name: ModelName,
  { commit, files }: Repository,
  cache: ModelCache,
  settings: HubSettings,
  options: HubOptions,
): Promise<string> {
  const folder = cache.snapshot(commit);
  const told = progressOf(options);
  const read = (file: string) => readFile(join(folder, file), "utf8");
  for await (const wanted of wantedOf(name, files, options, read)) {
    const missing: string[] = [];
    for (const file of wanted) if (!(await isFile(join(folder, file)))) missing.push(file);
    const remote: RemoteFile[] = [];
    await forEach(missing, async (file) => {
      remote.push(await describeFile(settings, name, commit, file));
    });
    if (missing.length === 0) continue;
    await cache.makeBlobs();
    await checkRoom(cache, remote);
    for (const file of remote) told(file, 0);
    await forEach(remote, async (file) => {
      const key = join(cache.blobs, file.etag);
      const fetch = () => fetchBlob(settings, cache.blobs, file, name, (at) => told(file, at));
      // where another caller's fails (he has given up, say), this one tries itself
      const blob = (underWay.get(key)?.catch(fetch) ?? fetch()).finally(() => underWay.delete(key));
      underWay.set(key, blob);
      await cache.point(commit, file.name, await blob);
      told(file, file.size ?? (await stat(key)).size);
    });
  }
  await cache.setCommit(name.revision, commit);
  return folder;
}

/** What the cache has of a model, where that is all of it. Throws HubError. */
async function cached(name: ModelName, cache: ModelCache, options: HubOptions): Promise<string> {
  const commit = await cache.commitOf(name.revision);
  const files = commit === null ? [] : await cache.files(commit);
  const nothing = (why: string): HubError =>
    new HubError(
      "OFFLINE",
      `${name.id}@${name.revision}: ${why}, and nothing is fetched (offline). Run once without HF_HUB_OFFLINE, or set HF_HOME to the cache that has it`,
    );
  if (commit === null || files.length === 0) throw nothing(`not in the cache ${cache.folder}`);
  const folder = cache.snapshot(commit);
  const alone = name.file === null && options.files === undefined;
  if (alone && !files.includes("config.json") && !files.includes("adapter_config.json"))
    throw nothing(`the cache ${folder} has no config.json`);
  try {
    const read = (file: string) => readFile(join(folder, file), "utf8");
    for await (const _ of wantedOf(name, files, options, read));
  } catch (error) {
    if (!(error instanceof HubError)) throw error;
    throw nothing(`the cache ${folder} is not complete (${error.message})`);
  }
  return folder;
}

/** From the hub; from the cache where the hub is not there and the cache has all, saying so. */
async function fetched(
  name: ModelName,
  cache: ModelCache,
  settings: HubSettings,
  options: HubOptions,
): Promise<string> {
  const kept = await cached(name, cache, options).catch(() => null);
  // who has something to fall back on does not wait for long
  const patient = kept === null ? settings : { ...settings, retries: { ...settings.retries, times: 0 } };
  let repository: Repository;
  try {
    repository = await lookUp(patient, name);
  } catch (error) {
    if (kept === null || !isPassing(error)) throw error;
    console.error(`nabla: ${(error as Error).message}. Taking ${name.id} from the cache (${kept})`);
    return kept;
  }
  return download(name, repository, cache, settings, options);
}

const exists = (path: string): Promise<boolean> =>
  stat(path).then(
    () => true,
    () => false,
  );

/**
 * The path of a model: a local folder or file as it is given; of `org/name`, optionally `org/name@revision`, the folder in the cache, of
 * `org/name/file.gguf` the file, downloaded if need be, resumed where that was interrupted, and checked by hash. Environment: HF_HOME, HF_HUB_CACHE,
 * HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE, as huggingface_hub has them. What is neither on disk nor a name of the hub comes back as it is.
 * Throws HubError, FileError where the cache can't be written, or the signal's reason.
 */
export async function modelFolder(model: string, options: HubOptions = {}): Promise<string> {
  const name = parseModelName(model);
  if (name === null || (await exists(model))) return model;
  options.signal?.throwIfAborted();
  const settings = await hubSettings(options);
  const cache = new ModelCache(settings.cacheFolder, name);
  const work = settings.offline ? cached(name, cache, options) : fetched(name, cache, settings, options);
  const folder = await work.catch((error) => {
    const isMissing = error instanceof HubError && /^(ACCESS|NOT_FOUND|OFFLINE|NETWORK)$/.test(error.code);
    throw isMissing ? notHereEither(error, name.file === null ? name.id : `${name.id}/${name.file}`) : error;
  });
  return name.file === null ? folder : join(folder, name.file);
}
