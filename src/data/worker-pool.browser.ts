/**
 * The browser's build has no workers for loaders yet: they open a data set by a module's address and an export's name, which
 * bundlers change. What takes long, reading and decoding, is done in a worker before (`elsewhere.browser.ts`).
 */
import { type Batch, LoaderError } from "./dataset.ts";

export class WorkerPool {
  readonly slots: number = 0;
  readonly hasRoom: boolean = false;

  static check(): void {
    throw new LoaderError("a loader has no workers in a browser; use numWorkers: 0");
  }

  request(): Promise<Batch> {
    return Promise.reject(new LoaderError("a loader has no workers in a browser"));
  }

  async close(): Promise<void> {}
}
