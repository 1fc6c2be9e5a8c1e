/** The instances of the modules in one thread, around one table. Used in the calling thread and in workers alike. */

import { type CompiledModule, engine, type LinearMemory } from "./engine.ts";
import type { HostFunctions } from "./host.ts";

interface Exports {
  /** This thread's part of a run, as number `tid` of `team`. */
  readonly run: (program: number, tid: number, team: number) => void;
  /** One command by itself. */
  readonly command: (cmd: number) => void;
  /** Ends a phase whose commands were run by themselves. */
  readonly advance: (program: number) => void;
}

export class Instances {
  readonly #imports: Readonly<Record<string, unknown>>;
  readonly #table = new engine.Table({ initial: 64, element: "anyfunc" });
  /** What the runtime exports. */
  readonly runtime: Exports;

  /** `slots`: the runtime's kernels' entries of the table. */
  constructor(memory: LinearMemory, host: HostFunctions, runtime: CompiledModule, slots: readonly number[]) {
    this.#imports = { ...host, memory, table: this.#table };
    this.runtime = this.add(runtime, slots) as unknown as Exports;
  }

  /** Entries of the table. */
  get tableLength(): number {
    return this.#table.length;
  }

  /** Puts a module's kernels into entries of the table; gives what it exports. */
  add(module: CompiledModule, slots: readonly number[]): Readonly<Record<string, unknown>> {
    const missing = Math.max(...slots) + 1 - this.#table.length;
    if (missing > 0) this.#table.grow(Math.max(missing, this.#table.length));
    const { exports } = new engine.Instance(module, { env: this.#imports });
    slots.forEach((slot, i) => {
      this.#table.set(slot, exports[i]);
    });
    return exports;
  }

  /** Empties entries, so that what nothing else refers to can be collected. */
  drop(slots: readonly number[]): void {
    for (const slot of slots) if (slot < this.#table.length) this.#table.set(slot, null);
  }
}
