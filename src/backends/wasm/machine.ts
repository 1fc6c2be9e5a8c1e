/**
 * What runs programs: the memory, the instances of the modules in this thread, and the threads beside it. Runs follow one
 * another. Which hosts have threads, and how a thread is started, is `threads.ts`'s.
 */

import { BackendError } from "../../core/errors.ts";
import { type CompiledModule, engine } from "./engine.ts";
import { hostFunctions } from "./host.ts";
import { Instances } from "./instances.ts";
import { ERROR, SCRATCH, SCRATCH_BYTES, SKIP } from "./layout.ts";
import { Heap } from "./memory.ts";
import { encodeRuntime } from "./runtime.ts";
import { Kernels, type KernelTables } from "./target.ts";
import { startThreads, type Threads } from "./threads.ts";

/** Scratch that every thread has at least. */
const MIN_SCRATCH = 1 << 20;
/** What the runtime's kernels take beyond what their plans say: the digits of a sort. */
const MORE_SCRATCH = 4096;

export class Machine implements KernelTables {
  readonly heap: Heap;
  readonly kernels: Kernels;
  readonly #threads: Threads | null;
  readonly #builtins: ReadonlyMap<string, number>;
  /** The modules in the calling thread. */
  readonly here: Instances;
  #scratch = { at: 0, each: 0 };
  #arena = { at: 0, bytes: 0 };
  #waiting = 0;
  #tail: Promise<unknown> = Promise.resolve();

  private constructor(
    heap: Heap,
    module: CompiledModule,
    builtins: ReadonlyMap<string, number>,
    threads: Threads | null,
  ) {
    this.heap = heap;
    this.#builtins = builtins;
    this.#threads = threads;
    this.kernels = new Kernels(heap, builtins.size, this);
    this.here = new Instances(heap.memory, hostFunctions, module, [...builtins.values()]);
  }

  /** Threads are as many as asked for; 0 means that all is done in the calling thread, over a memory that is not shared. */
  static async open(threads: number): Promise<Machine> {
    const heap = new Heap(threads > 0);
    const runtime = encodeRuntime(heap);
    const module = await engine.compile(runtime.bytes);
    const team = threads > 0 ? await startThreads(threads, heap.memory) : null;
    team?.add(module, [...runtime.kernels.values()]);
    return new Machine(heap, module, runtime.kernels, team);
  }

  get threads(): number {
    return this.#threads?.size ?? 0;
  }

  builtin(name: string): number {
    const slot = this.#builtins.get(name) as number;
    if (!import.meta.forBrowsers && !(slot >= 0)) throw new BackendError(`wasm: the runtime has no kernel "${name}"`);
    return slot;
  }

  /** Entries of the table of kernels. */
  get tableLength(): number {
    return this.here.tableLength;
  }

  async add(bytes: Uint8Array<ArrayBuffer>, slots: readonly number[]): Promise<void> {
    const module = await engine.compile(bytes);
    this.here.add(module, slots);
    this.#threads?.add(module, slots);
  }

  drop(slots: readonly number[]): void {
    this.here.drop(slots);
    this.#threads?.drop(slots);
  }

  /** Memory for the temporaries of the run that starts now; every run may be given the same. */
  arena(bytes: number): number {
    if (bytes > this.#arena.bytes) {
      const old = this.#arena;
      this.#arena = { at: 0, bytes: 0 };
      if (old.bytes) this.heap.free(old.at, old.bytes);
      this.#arena = { at: this.heap.take(bytes), bytes };
    }
    return this.#arena.at;
  }

  get idle(): boolean {
    return this.#waiting === 0;
  }

  /** Does `job` when those before it are done. */
  enqueue<T>(job: () => Promise<T>): Promise<T> {
    this.#waiting++;
    const result = this.#waiting === 1 ? job() : this.#tail.then(job, job);
    const done = (): void => {
      this.#waiting--;
    };
    this.#tail = result.then(done, done);
    return result;
  }

  /** Does `job` when the runs that were asked for are done: at once where there are none. */
  afterRuns(job: () => void): void {
    if (this.idle) job();
    else void this.enqueue(async () => job());
  }

  /** Runs a program, whose kernels use so many bytes of scratch a thread, in the calling thread. */
  runHere(program: number, scratchBytes: number): void {
    this.prepare(scratchBytes);
    this.here.runtime.run(program, 0, 1);
  }

  /** The same in the threads, where there are some. */
  async runThreads(program: number, scratchBytes: number): Promise<void> {
    this.prepare(scratchBytes);
    if (this.#threads) await this.#threads.run(program);
    else this.here.runtime.run(program, 0, 1);
  }

  /** What every run needs, before it starts: scratch of so many bytes a thread, and no error left of the last. */
  prepare(scratchBytes: number): void {
    const size = Math.max(1, this.threads);
    const wanted = Math.max(MIN_SCRATCH, scratchBytes + MORE_SCRATCH);
    if (wanted > this.#scratch.each) {
      const { at: old, each: oldEach } = this.#scratch;
      const each = Math.ceil(wanted / 4096) * 4096 + 128;
      // nobody has any, should there be no memory for more
      this.#scratch = { at: 0, each: 0 };
      if (old) this.heap.free(old, oldEach * size);
      this.#scratch = { at: this.heap.take(each * size), each };
    }
    const words = new Int32Array(this.heap.memory.buffer, 0, 1024);
    words[SCRATCH >> 2] = this.#scratch.at;
    words[SCRATCH_BYTES >> 2] = this.#scratch.each;
    // nothing of the barrier: a thread that is late may still be on its way out of the last one
    words.fill(0, ERROR >> 2, (SKIP >> 2) + 1);
  }
}
