/**
 * The loader: seeded shuffling, batches, a position that can be saved and gone on from, and (if asked) workers that
 * make batches off the main thread. It yields arrays; `wrap` turns each batch into what the training loop wants.
 */
import { Rng } from "../core/rng.ts";
import { type Batch, type Dataset, LoaderError, makeBatch } from "./dataset.ts";
import { WorkerPool } from "./worker-pool.ts";

export {
  ArrayDataset,
  type Batch,
  type Dataset,
  type HostArray,
  hostArray,
  LoaderError,
  stackSamples,
  type WorkerSource,
} from "./dataset.ts";

export interface LoaderOptions<T, B> {
  /** Samples in a batch; 1 by default. */
  readonly batchSize?: number;
  /** A new order every epoch, which depends on `seed` and the epoch only. */
  readonly shuffle?: boolean;
  /** 0 by default. */
  readonly seed?: number;
  /** Leave out a last batch that is not full. */
  readonly dropLast?: boolean;
  /** Threads that make batches; 0 (the default) makes them on this thread. The data set then needs `worker()`. */
  readonly numWorkers?: number;
  /** Batches that each worker makes ahead; 2 by default. */
  readonly prefetch?: number;
  /** Makes a batch of samples; stackSamples by default. With workers it comes from the data set's `worker()` instead. */
  readonly collate?: (samples: T[]) => Batch | Promise<Batch>;
  /** What the loop gets for a batch, made on this thread (tensors, usually); the batch itself by default. */
  readonly wrap?: (batch: Batch) => B;
}

/** A loader's position, for a checkpoint. */
export interface LoaderState {
  readonly seed: number;
  readonly epoch: number;
  /** Batches of this epoch that have been handed out. */
  readonly batch: number;
  readonly batchSize: number;
  readonly shuffle: boolean;
  readonly length: number;
}

const wholeNumber = (name: string, value: number, least: number) => {
  if (!Number.isInteger(value) || value < least)
    throw new LoaderError(`${name} must be a whole number ≥ ${least}, got ${value}`);
  return value;
};

/**
 * `for await (const batch of loader)` is one epoch. A loop that was left early is not gone on with: the next loop is
 * the next epoch, unless `load` set a position. Torch's DataLoader, with its names.
 */
export class DataLoader<T, B = Batch> implements AsyncIterable<B> {
  readonly dataset: Dataset<T>;
  readonly batchSize: number;
  /** Batches in an epoch. */
  readonly length: number;
  readonly #options: LoaderOptions<T, B>;
  readonly #seed: number;
  readonly #shuffle: boolean;
  #epoch = 0;
  #batch = 0;
  #resumed = false;
  #run = 0; // counts loops, so that an abandoned one notices
  #pool: WorkerPool | undefined;

  constructor(dataset: Dataset<T>, options: LoaderOptions<T, B> = {}) {
    const {
      batchSize = 1,
      shuffle = false,
      seed = 0,
      dropLast = false,
      numWorkers = 0,
      prefetch = 2,
      collate,
    } = options;
    this.dataset = dataset;
    this.#options = options;
    this.batchSize = wholeNumber("batchSize", batchSize, 1);
    this.#shuffle = shuffle;
    this.#seed = seed;
    wholeNumber("numWorkers", numWorkers, 0);
    wholeNumber("prefetch", prefetch, 1);
    if (wholeNumber("the data set's length", dataset.length, 0) === 0) throw new LoaderError("the data set is empty");
    this.length = dropLast ? Math.floor(dataset.length / batchSize) : Math.ceil(dataset.length / batchSize);
    if (this.length === 0)
      throw new LoaderError(
        `with dropLast, ${dataset.length} samples make no batch of ${batchSize}; use a smaller batchSize`,
      );
    if (numWorkers > 0) WorkerPool.check();
    if (numWorkers > 0 && dataset.worker === undefined)
      throw new LoaderError(
        "numWorkers > 0 needs a data set with worker(), which says how a thread opens its own copy; use numWorkers: 0, or add it",
      );
    if (numWorkers > 0 && collate !== undefined)
      throw new LoaderError(
        "a collate function can't travel to a worker; return it from the function that worker() names, as { dataset, collate }",
      );
  }

  /** The position after the last batch that was handed out. */
  state(): LoaderState {
    const { batchSize, dataset } = this;
    return {
      seed: this.#seed,
      epoch: this.#epoch,
      batch: this.#batch,
      batchSize,
      shuffle: this.#shuffle,
      length: dataset.length,
    };
  }

  /** The next loop goes on there. Throws LoaderError if the state is of another data set, batch size, order or seed. */
  load(state: LoaderState): void {
    const now = this.state();
    for (const key of ["seed", "batchSize", "shuffle", "length"] as const)
      if (state[key] !== now[key])
        throw new LoaderError(
          `the saved position was made with ${key} ${state[key]}, this loader has ${key} ${now[key]}`,
        );
    wholeNumber("the saved epoch", state.epoch, 0);
    wholeNumber("the saved batch", state.batch, 0);
    this.#epoch = state.epoch;
    this.#batch = state.batch;
    this.#resumed = true;
    this.#run++;
  }

  /** The order of an epoch's samples. */
  #order(epoch: number): Int32Array {
    const n = this.dataset.length;
    if (this.#shuffle) return new Rng(this.#seed, epoch).permutation(n);
    return Int32Array.from({ length: n }, (_, i) => i);
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<B, void, undefined> {
    if (this.#batch > 0 && !this.#resumed) {
      this.#epoch++; // the loop before was left early
      this.#batch = 0;
    }
    this.#resumed = false;
    const run = ++this.#run;
    const { numWorkers = 0, collate, wrap = (batch: Batch) => batch as B } = this.#options;
    const order = this.#order(this.#epoch);
    const indices = (k: number) => order.slice(k * this.batchSize, (k + 1) * this.batchSize);
    const ahead: Promise<Batch>[] = []; // what the workers have been asked for, in order
    let asked = this.#batch;
    const askAhead = (pool: WorkerPool) => {
      for (; asked < this.length && ahead.length < pool.slots && pool.hasRoom; asked++) {
        const batch = pool.request(indices(asked));
        batch.catch(() => {}); // reported when its turn comes
        ahead.push(batch);
      }
    };
    const checkTurn = () => {
      if (run !== this.#run)
        throw new LoaderError("another loop over this loader, load() or close() came between; use one loader a loop");
    };
    for (let k = this.#batch; k < this.length; k++) {
      let batch: Batch;
      if (this.#pool === undefined) {
        // The first batch of all is made here even with workers: it is wanted at once, and tells the slots' size.
        batch = await makeBatch(this.dataset, indices(k), collate);
        asked = k + 1;
        if (numWorkers > 0) this.#pool ??= this.#startWorkers(batch);
      } else {
        askAhead(this.#pool);
        while (ahead.length === 0) {
          await new Promise((resolve) => setTimeout(resolve, 1)); // every slot still belongs to a loop that was left early
          checkTurn();
          askAhead(this.#pool);
        }
        batch = await ahead.shift()!;
      }
      checkTurn();
      if (this.#pool !== undefined) askAhead(this.#pool);
      this.#batch = k + 1;
      yield wrap(batch);
      checkTurn();
    }
    this.#epoch++;
    this.#batch = 0;
  }

  #startWorkers(first: Batch): WorkerPool {
    const { numWorkers = 0, prefetch = 2 } = this.#options;
    const bytes = first.reduce((n, { data }) => n + Math.ceil(data.byteLength / 64) * 64, 0);
    return new WorkerPool(this.dataset.worker!(), numWorkers, prefetch, bytes);
  }

  /** Stops the workers; the next loop would start new ones. A program may also just end. */
  async close(): Promise<void> {
    this.#run++;
    await this.#pool?.close();
    this.#pool = undefined;
  }
}
