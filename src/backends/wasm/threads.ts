/**
 * The threads beside the calling one, which then never waits: in Node `worker_threads`, in a browser its workers, where the
 * page is cross-origin isolated. They share the memory and are given every module; a run is one message to each and one
 * back. What they do is `worker.ts`'s.
 */

import { BackendError } from "../../core/errors.ts";
import type { CompiledModule, LinearMemory } from "./engine.ts";
import { BARRIER_COUNT } from "./layout.ts";
import { type Answer, type Message, workerSource } from "./worker.ts";

export interface Threads {
  readonly size: number;
  add(module: CompiledModule, slots: readonly number[]): void;
  drop(slots: readonly number[]): void;
  run(program: number): Promise<void>;
}

/** A module, and which entries of the table its kernels have; −1 where one was dropped. */
interface Loaded {
  readonly module: CompiledModule;
  readonly slots: readonly number[];
}

/** A thread, as much of it as is used here. */
interface Thread {
  postMessage(message: Message): void;
  onMessage(listener: (answer: Answer) => void): void;
  onExit(listener: (reason: string) => void): void;
  /** Whether the process waits for it. */
  hold(on: boolean): void;
  terminate(): Promise<unknown>;
}

/** A browser's, as much of it as is used here. */
interface Browser {
  readonly SharedArrayBuffer?: unknown;
  readonly crossOriginIsolated?: boolean;
  readonly navigator?: { readonly hardwareConcurrency?: number };
  readonly Worker: new (
    url: string,
    options: { name: string },
  ) => {
    postMessage(message: Message): void;
    terminate(): void;
    addEventListener(
      type: "message" | "error" | "messageerror",
      listener: (event: { readonly data?: unknown; readonly message?: string }) => void,
    ): void;
  };
}

const host = globalThis as unknown as Browser;
const isNode = (): boolean => typeof process === "object" && process.versions?.node !== undefined;

/** Whether threads can share a memory here: in Node, and in a browser where the page is cross-origin isolated. */
export const canShare = (): boolean =>
  typeof host.SharedArrayBuffer === "function" && (isNode() || host.crossOriginIsolated === true);

/** Threads that this machine runs at the same time. */
export async function availableThreads(): Promise<number> {
  if (!isNode()) return host.navigator?.hardwareConcurrency ?? 1;
  const { availableParallelism } = await import("node:os");
  return availableParallelism();
}

const name = "nabla wasm";

async function nodeThread(): Promise<Thread> {
  const { Worker } = await import("node:worker_threads");
  const worker = new Worker(workerSource, { eval: true, name, execArgv: [] });
  worker.unref();
  return {
    postMessage: (message) => worker.postMessage(message),
    onMessage: (listener) => worker.on("message", listener),
    onExit: (listener) => {
      worker.on("error", (error: Error) => listener(error.message));
      worker.on("exit", (code) => listener(`it ended with code ${code}`));
    },
    hold: (on) => (on ? worker.ref() : worker.unref()),
    terminate: () => worker.terminate(),
  };
}

async function browserThread(): Promise<Thread> {
  const url = URL.createObjectURL(new Blob([workerSource], { type: "text/javascript" }));
  const worker = new host.Worker(url, { name });
  worker.addEventListener("message", () => URL.revokeObjectURL(url)); // it has been read by then
  return {
    postMessage: (message) => worker.postMessage(message),
    onMessage: (listener) => worker.addEventListener("message", ({ data }) => listener(data as Answer)),
    onExit: (listener) => {
      worker.addEventListener("error", ({ message }) => listener(message || "the browser did not start or ended it"));
      worker.addEventListener("messageerror", () => listener("a message could not be read"));
    },
    hold: () => {}, // a page does not end by itself
    terminate: async () => worker.terminate(),
  };
}

const startThread = (): Promise<Thread> => (isNode() ? nodeThread() : browserThread());

class Team implements Threads {
  readonly size: number;
  readonly #memory: LinearMemory;
  /** Everything that a new team has to be given. */
  #loaded: Loaded[] = [];
  #threads: Thread[] = [];
  /** The end of a team that has failed. */
  #ending: Promise<unknown> = Promise.resolve();
  #current: { resolve: () => void; reject: (error: Error) => void } | null = null;

  constructor(size: number, memory: LinearMemory) {
    this.size = size;
    this.#memory = memory;
  }

  async start(): Promise<void> {
    await this.#ending;
    new Int32Array(this.#memory.buffer)[BARRIER_COUNT >> 2] = 0; // who failed may have come there
    const threads = await Promise.all(Array.from({ length: this.size }, () => startThread()));
    let ready = 0;
    await new Promise<void>((resolve, reject) => {
      threads.forEach((t, tid) => {
        t.hold(true);
        t.onExit((reason) => {
          reject(new BackendError(`wasm: a thread did not start: ${reason}`));
          this.#fail(threads, reason);
        });
        t.onMessage((a) => {
          if (a.kind === "failed") this.#fail(threads, a.reason);
          else if (a.kind === "done") this.#done();
          else if (++ready === this.size) resolve();
        });
        t.postMessage({ kind: "start", memory: this.#memory, tid, team: this.size });
      });
    });
    for (const t of threads) t.hold(false);
    this.#threads = threads;
    for (const l of this.#loaded) for (const t of threads) t.postMessage({ kind: "add", ...l });
  }

  add(module: CompiledModule, slots: readonly number[]): void {
    this.#loaded.push({ module, slots });
    for (const t of this.#threads) t.postMessage({ kind: "add", module, slots });
  }

  drop(slots: readonly number[]): void {
    const gone = new Set(slots);
    this.#loaded = this.#loaded
      .map(({ module, slots }) => ({ module, slots: slots.map((slot) => (gone.has(slot) ? -1 : slot)) }))
      .filter(({ slots }) => slots.some((slot) => slot >= 0));
    for (const t of this.#threads) t.postMessage({ kind: "drop", slots });
  }

  async run(program: number): Promise<void> {
    if (this.#threads.length === 0) await this.start();
    await new Promise<void>((resolve, reject) => {
      this.#current = { resolve, reject };
      this.#threads[0].hold(true);
      for (const t of this.#threads) t.postMessage({ kind: "run", program });
    });
  }

  #done(): void {
    const run = this.#current;
    this.#current = null;
    this.#threads[0]?.hold(false);
    run?.resolve();
  }

  /** One thread has failed; the others may wait for it for ever. All are ended, the next run starts others. */
  #fail(threads: readonly Thread[], reason: string): void {
    if (this.#threads !== threads) return;
    this.#threads = [];
    const run = this.#current;
    this.#current = null;
    this.#ending = Promise.allSettled(threads.map((t) => t.terminate()));
    run?.reject(
      new BackendError(
        `wasm: a thread failed in the middle of a run: ${reason}. States that the run was writing are undefined; load a checkpoint`,
      ),
    );
  }
}

/** Starts `size` threads. Throws BackendError where this host has none. */
export async function startThreads(size: number, memory: LinearMemory): Promise<Threads> {
  const team = new Team(size, memory);
  await team.start();
  return team;
}
