/**
 * Decoding for a page is done in a worker, `decoder.ts`, which is started at the first task and stays. In a worker of the
 * user's own it is done there.
 */

import * as core from "../core/errors.ts";
import { isPage, type ModuleWorker, revive, startModule, type WorkerClass } from "../core/module-worker.ts";
import type { Answer, Request } from "./decoder.ts";
import type { Elsewhere } from "./elsewhere.ts";
import { FileError, IdxError, ImageError, TextError, TokenizerError } from "./errors.ts";
import type { ReadOptions } from "./source.ts";

declare const Worker: WorkerClass<Request, Answer>;

interface Task {
  readonly resolve: (value: never) => void;
  readonly reject: (error: unknown) => void;
  readonly options: ReadOptions;
}

interface Decoder {
  readonly worker: ModuleWorker<Request, Answer>;
  readonly tasks: Map<number, Task>;
}

let decoder: Decoder | null = null;
let count = 0;

/** An error of the worker as one of ours. */
const revived = ({ code, path, ...error }: NonNullable<Answer["error"]>): Error =>
  code !== undefined && path !== undefined
    ? new FileError(error.message, code, path)
    : revive(error, { ...core, IdxError, ImageError, TextError, TokenizerError });

function start(): Decoder {
  const tasks = new Map<number, Task>();
  const worker = startModule(
    "./decoder.js",
    import.meta.url,
    () => new Worker(new URL("./decoder.js", import.meta.url), { type: "module", name: "nabla decoder" }),
    "nabla decoder",
  );
  worker.addEventListener("message", ({ data: { id, progress, error, value } }) => {
    const task = tasks.get(id);
    if (progress) {
      task?.options.onProgress?.(...progress);
      return;
    }
    tasks.delete(id);
    if (error) task?.reject(revived(error));
    else task?.resolve(value as never);
  });
  worker.addEventListener("error", (event) => {
    event.preventDefault();
    worker.terminate();
    decoder = null; // the next task starts another
    const error = new core.NablaError(
      `the worker that decodes was lost: ${event.message || "its script, decoder.js, could not be loaded"}`,
    );
    for (const { reject } of tasks.values()) reject(error);
  });
  return { worker, tasks };
}

/** URL objects can't be sent to a worker. */
const sendable = (value: unknown): unknown =>
  value instanceof URL ? value.href : Array.isArray(value) ? value.map(sendable) : value;

/** In the worker, whoever asks. */
export const inWorker: Elsewhere = (task, values, options) => {
  const { signal } = options;
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    decoder ??= start();
    const { worker, tasks } = decoder;
    const id = count++;
    const abort = (): void => {
      if (!tasks.delete(id)) return;
      worker.postMessage({ id, abort: true });
      reject(signal?.reason);
    };
    const done = (): void => signal?.removeEventListener("abort", abort);
    signal?.addEventListener("abort", abort);
    tasks.set(id, {
      options,
      resolve: (value) => {
        done();
        resolve(value);
      },
      reject: (error) => {
        done();
        reject(error);
      },
    });
    worker.postMessage({ id, task, values: values.map(sendable), progress: options.onProgress !== undefined });
  });
};

const choose = (): Elsewhere | null => (isPage() ? inWorker : null);

export const elsewhere: Elsewhere | null = /* @__PURE__ */ choose();
