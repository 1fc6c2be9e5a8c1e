/** The instances of the modules in one thread, around one table. Used in the calling thread and in workers alike. */

import { type CompiledModule, engine, type LinearMemory } from "./engine.ts";
import type { HostFunctions } from "./host.ts";

export class Instances {
  readonly #memory: LinearMemory;
  readonly #host: HostFunctions;
  readonly #table = new engine.Table({ initial: 64, element: "anyfunc" });
  #run: ((program: number, tid: number, team: number) => void) | undefined;
  #command: ((cmd: number) => void) | undefined;

  constructor(memory: LinearMemory, host: HostFunctions) {
    this.#memory = memory;
    this.#host = host;
  }

  /** Puts a module's kernels into the table from entry `base` on. The first module is the runtime. */
  add(module: CompiledModule, base: number, count: number): void {
    const missing = base + count - this.#table.length;
    if (missing > 0) this.#table.grow(Math.max(missing, this.#table.length));
    const instance = new engine.Instance(module, {
      env: {
        ...this.#host,
        memory: this.#memory,
        table: this.#table,
        base: new engine.Global({ value: "i32" }, base),
      },
    });
    this.#run ??= instance.exports["run"] as (program: number, tid: number, team: number) => void;
    this.#command ??= instance.exports["command"] as (cmd: number) => void;
  }

  /** One command by itself. */
  command(cmd: number): void {
    this.#command?.(cmd);
  }

  /** This thread's part of a run, as number `tid` of `team`. */
  run(program: number, tid: number, team: number): void {
    this.#run?.(program, tid, team);
  }
}
