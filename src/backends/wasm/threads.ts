/**
 * The threads beside the calling one, which then never waits. They share the memory and are given every module; a run is
 * one message to each and one back. What they do is `worker.ts`'s, how the host starts one `thread.ts`'s.
 */

import { BackendError } from "../../core/errors.ts";
import type { CompiledModule, LinearMemory } from "./engine.ts";
import { BARRIER_COUNT } from "./layout.ts";
import { startThread, type Thread } from "./thread.ts";

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
