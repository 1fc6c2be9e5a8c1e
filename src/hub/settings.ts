/** Where the hub is, where its cache is, and who asks: options, then the environment variables of huggingface_hub, then its defaults. */
import { readFile } from "node:fs/promises";
import { homedir } from "node:os";
import { join, resolve } from "node:path";
import type { ReadOptions } from "../data/source.ts";

export interface HubOptions extends ReadOptions {
  /** Nothing is fetched: what is not in the cache is an error. Default: HF_HUB_OFFLINE. */
  readonly offline?: boolean;
  /** null: none, not even the one of the environment. Default: HF_TOKEN, else what `hf auth login` has kept. */
  readonly token?: string | null;
  /** Default: HF_ENDPOINT, else https://huggingface.co. */
  readonly endpoint?: string;
  /** The folder of the cache. Default: HF_HUB_CACHE, else HF_HOME/hub, else ~/.cache/huggingface/hub. */
  readonly cacheFolder?: string;
  /** Only these files, by their paths in the repository. Default: what a model needs (wanted.ts). */
  readonly files?: readonly string[];
  /** After a failure that may pass: how often to try again, and after how many milliseconds at first. Default: 5 times, 500. */
  readonly retries?: { readonly times: number; readonly delay: number };
}

export interface HubSettings {
  readonly endpoint: string;
  readonly cacheFolder: string;
  readonly token: string | null;
  readonly offline: boolean;
  /** Milliseconds without an answer, and without further bytes, that end an attempt. */
  readonly timeout: number;
  readonly retries: { readonly times: number; readonly delay: number };
  readonly signal: AbortSignal | undefined;
}

const isOn = (text: string | undefined): boolean => /^(1|on|yes|true)$/i.test(text?.trim() ?? "");

/** Of a path out of the environment: "~" is the user's folder. */
const expanded = (path: string): string => resolve(path.replace(/^~(?=$|[\\/])/, homedir()));

function home(): string {
  const env = process.env;
  if (env["HF_HOME"]) return expanded(env["HF_HOME"]);
  return join(env["XDG_CACHE_HOME"] ? expanded(env["XDG_CACHE_HOME"]) : join(homedir(), ".cache"), "huggingface");
}

async function tokenOf(): Promise<string | null> {
  const env = process.env;
  const given = (env["HF_TOKEN"] ?? env["HUGGING_FACE_HUB_TOKEN"])?.trim();
  if (given) return given;
  if (isOn(env["HF_HUB_DISABLE_IMPLICIT_TOKEN"])) return null;
  const path = env["HF_TOKEN_PATH"] ? expanded(env["HF_TOKEN_PATH"]) : join(home(), "token");
  return readFile(path, "utf8").then(
    (text) => text.trim() || null,
    () => null,
  );
}

/** Seconds of the environment as milliseconds. */
const seconds = (text: string | undefined, otherwise: number): number =>
  1000 * (Number(text) > 0 ? Number(text) : otherwise);

export async function hubSettings(options: HubOptions): Promise<HubSettings> {
  const env = process.env;
  const cache = env["HF_HUB_CACHE"] || env["HUGGINGFACE_HUB_CACHE"];
  return {
    endpoint: (options.endpoint || env["HF_ENDPOINT"] || "https://huggingface.co").replace(/\/+$/, ""),
    cacheFolder: options.cacheFolder ?? (cache ? expanded(cache) : join(home(), "hub")),
    token: options.token === undefined ? await tokenOf() : options.token,
    offline: options.offline ?? isOn(env["HF_HUB_OFFLINE"] || env["TRANSFORMERS_OFFLINE"]),
    timeout: seconds(env["HF_HUB_DOWNLOAD_TIMEOUT"], 10),
    retries: options.retries ?? { times: 5, delay: 500 },
    signal: options.signal,
  };
}
