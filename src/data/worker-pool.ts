/**
 * The main thread's side of a loader's workers: threads, and a ring of slots in shared memory in which they leave
 * batches. It hands out batches in the order in which they were asked for, whichever thread is first.
 */
import { Worker } from "node:worker_threads";
import { type Batch, type HostArray, LoaderError, viewOf, type WorkerSource } from "./dataset.ts";

export interface WorkerSetup {
  readonly source: WorkerSource;
  readonly ring: SharedArrayBuffer;
  readonly slotBytes: number;
  /** The worker's module, and where tsx's API is if it is needed to read TypeScript. */
  readonly file: string;
  readonly tsx: string | null;
}

export interface BatchRequest {
  readonly id: number;
  readonly indices: Int32Array;
  readonly slot: number;
}

interface Place {
  readonly dtype: HostArray["dtype"];
  readonly shape: HostArray["shape"];
  readonly byteOffset: number;
  readonly length: number;
}

export interface BatchReply {
  readonly id: number;
  readonly slot: number;
  readonly places?: readonly Place[];
  readonly batch?: Batch;
  readonly error?: { readonly name: string; readonly message: string; readonly stack?: string };
}

interface Waiting {
  readonly worker: number;
  readonly resolve: (batch: Batch) => void;
  readonly reject: (error: Error) => void;
}

// The worker's module lies beside this one, as TypeScript in the sources and as JavaScript in the package.
const workerFile = new URL(
  import.meta.url.endsWith(".ts") ? "./loader-worker.ts" : "./loader-worker.js",
  import.meta.url,
).href;

/**
 * A thread does not inherit tsx's loader (tsx issue 354), so a Node that can't read TypeScript by itself registers it
 * anew where the worker or the data set is TypeScript; and that must be done before either is imported.
 */
const bootstrap = `import("node:worker_threads").then(async ({ workerData }) => {
  if (workerData.tsx !== null) (await import(workerData.tsx)).register();
  await import(workerData.file);
})`;

function tsxFor(files: readonly string[]): string | null {
  const nodeReadsTypeScript = Boolean((process.features as { typescript?: unknown }).typescript);
  if (nodeReadsTypeScript || !files.some((file) => /\.[mc]?tsx?$/.test(file))) return null;
  try {
    return import.meta.resolve("tsx/esm/api");
  } catch (error) {
    throw new LoaderError(
      `this Node can't read TypeScript in a worker (${files.at(-1)}); install tsx, compile the data set's module, or use numWorkers: 0`,
      { cause: error },
    );
  }
}

export class WorkerPool {
  readonly slots: number;
  readonly #workers: Worker[] = [];
  readonly #ring: SharedArrayBuffer;
  readonly #free: number[];
  readonly #waiting = new Map<number, Waiting>();
  #next = 0;
  #failure: Error | undefined;
  #closing = false;

  /** Throws LoaderError where there can be no workers: in a browser (`worker-pool.browser.ts`). */
  static check(): void {}

  /** `slotBytes`: what one batch takes, arrays rounded up to 64 bytes. Larger ones come too, at the price of a message. */
  constructor(source: WorkerSource, workers: number, slotsEach: number, slotBytes: number) {
    this.slots = workers * slotsEach;
    this.#ring = new SharedArrayBuffer(this.slots * slotBytes);
    this.#free = Array.from({ length: this.slots }, (_, i) => i);
    const tsx = tsxFor([workerFile, source.module]);
    const setup: WorkerSetup = { source, ring: this.#ring, slotBytes, file: workerFile, tsx };
    for (let w = 0; w < workers; w++) {
      const worker = new Worker(bootstrap, { eval: true, workerData: setup, name: `nabla loader ${w}` });
      worker.on("message", (reply: BatchReply) => this.#receive(reply));
      worker.on("error", (error) => this.#fail(w, error as Error));
      worker.on("exit", (code) => this.#fail(w, new Error(`it stopped with exit code ${code}`)));
      worker.unref(); // idle workers must not keep the program alive; while a batch is awaited they are held
      this.#workers.push(worker);
    }
  }

  /** Whether another batch can be asked for now. */
  get hasRoom(): boolean {
    return this.#free.length > 0 || this.#failure !== undefined; // after a failure, a request is answered with it
  }

  /** Asks for a batch; it arrives as arrays of its own. The slot is free again once it has arrived. */
  request(indices: Int32Array): Promise<Batch> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    const slot = this.#free.pop();
    if (slot === undefined) throw new LoaderError("no free slot; wait for a batch first");
    const id = this.#next++;
    const worker = id % this.#workers.length;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { worker, resolve, reject });
      this.#hold();
      this.#workers[worker].postMessage({ id, indices, slot } satisfies BatchRequest);
    });
  }

  #hold(): void {
    if (this.#closing) return;
    for (const worker of this.#workers)
      if (this.#waiting.size > 0) worker.ref();
      else worker.unref();
  }

  #receive({ id, slot, places, batch, error }: BatchReply): void {
    const waiting = this.#waiting.get(id);
    this.#waiting.delete(id);
    this.#hold();
    // Copied out of the ring: the caller may keep a batch for as long as it likes.
    const arrays =
      batch ??
      places?.map(({ dtype, shape, byteOffset, length }) => {
        const data = viewOf(dtype, this.#ring, byteOffset, length).slice();
        return { dtype, shape, data };
      });
    this.#free.push(slot);
    if (error !== undefined || arrays === undefined) {
      const failure = new LoaderError(`in a loader's worker: ${error?.name}: ${error?.message}`);
      if (error?.stack !== undefined) failure.stack = `${failure.message}\n${error.stack}`;
      waiting?.reject(failure);
    } else waiting?.resolve(arrays);
  }

  #fail(worker: number, error: Error): void {
    this.#failure ??= new LoaderError(`a loader's worker died: ${error.message}`, { cause: error });
    for (const [id, waiting] of this.#waiting)
      if (waiting.worker === worker) {
        this.#waiting.delete(id);
        waiting.reject(this.#failure);
      }
    this.#hold();
  }

  /** Stops the threads. Batches still awaited are rejected. */
  async close(): Promise<void> {
    this.#failure ??= new LoaderError("the loader was closed");
    for (const { reject } of this.#waiting.values()) reject(this.#failure);
    this.#waiting.clear();
    this.#closing = true;
    for (const worker of this.#workers) worker.ref(); // until the threads have ended
    await Promise.all(this.#workers.map((worker) => worker.terminate()));
  }
}
