/**
 * The script of the worker that decodes for a page: it reads, unpacks and converts, and hands over what came of it.
 * `elsewhere.browser.ts` starts it by its address.
 */
import { loadIdxClassification, readIdx } from "./idx.ts";
import { inflateRaw, inflateStart } from "./inflate.ts";
import { decodePicture, type ImageMode } from "./picture-formats.ts";
import type { ReadOptions, Source } from "./source.ts";
import { readSplitText, type TextCorpusOptions } from "./text.ts";
import { encodeWith, type TokenizerKind, trainOn } from "./tokenize.ts";
import { loadTokenizer, type SentTokenizer, sent } from "./tokenizer.ts";

export interface Request {
  readonly id: number;
  readonly task?: string;
  readonly values?: readonly unknown[];
  /** Whether to tell of progress. */
  readonly progress?: boolean;
  readonly abort?: boolean;
}

export interface Answer {
  readonly id: number;
  readonly value?: unknown;
  readonly progress?: readonly [loaded: number, total: number | null];
  readonly error?: { readonly name: string; readonly message: string; readonly code?: string; readonly path?: string };
}

/** What of a dedicated worker's global scope is used. */
interface Scope {
  postMessage(answer: Answer, transfer: ArrayBuffer[]): void;
  addEventListener(type: "message", listener: (event: { readonly data: Request }) => void): void;
}
const scope = globalThis as unknown as Scope;

/** By name; values come as they were sent. */
const tasks: Readonly<Record<string, (options: ReadOptions, ...values: never[]) => unknown>> = {
  readIdx: (options, source: Source) => readIdx(source, options),
  loadIdxClassification: (options, from: string | readonly Source[]) => loadIdxClassification(from, options),
  decodePicture: (_, bytes: Uint8Array, mode: ImageMode, name: string) => decodePicture(bytes, mode, name),
  readSplitText: (options, sources: readonly Source[], how: TextCorpusOptions) =>
    readSplitText(sources, { ...how, ...options }),
  sentTokenizer: async (options, source: Source) => sent(await loadTokenizer(source, options)),
  encodeWith: (_, tokenizer: SentTokenizer, text: string) => encodeWith(tokenizer, text),
  inflateRaw: (_, bytes: Uint8Array, limit: number) => inflateRaw(bytes, limit),
  inflateStart: (_, bytes: Uint8Array) => inflateStart(bytes),
  trainOn: (_, text: string, how: TokenizerKind) => trainOn(text, how),
};

/** The memory of a result's arrays, which moves instead of being copied. */
function buffersOf(value: unknown, found = new Set<ArrayBuffer>()): Set<ArrayBuffer> {
  if (ArrayBuffer.isView(value)) found.add(value.buffer as ArrayBuffer);
  else if (typeof value === "object" && value !== null) for (const item of Object.values(value)) buffersOf(item, found);
  return found;
}

const running = new Map<number, AbortController>();

async function run({ id, task = "", values = [], progress }: Request): Promise<void> {
  const abort = new AbortController();
  running.set(id, abort);
  const tell = (loaded: number, total: number | null): void => scope.postMessage({ id, progress: [loaded, total] }, []);
  try {
    const value = await tasks[task](
      { signal: abort.signal, ...(progress ? { onProgress: tell } : {}) },
      ...(values as never[]),
    );
    scope.postMessage({ id, value }, [...buffersOf(value)]);
  } catch (error) {
    const { name, message, code, path } = error as Error & { readonly code?: string; readonly path?: string };
    scope.postMessage({ id, error: { name, message, ...(path === undefined ? {} : { code, path }) } }, []);
  } finally {
    running.delete(id);
  }
}

scope.addEventListener("message", ({ data }) => {
  if (data.abort) running.get(data.id)?.abort();
  else void run(data);
});
