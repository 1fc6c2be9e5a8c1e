/**
 * A program of the `wasm` backend: the assembler's command table laid out in the shared memory, as the interpreter
 * (runtime.ts) reads it, and run with the buffers and scalars of each run.
 */
import type { Program, ProgramStats, Run } from "../backend.ts";
import type { Parts } from "../cpu/assemble.ts";
import { failureError } from "../cpu/failure.ts";
import { builtins } from "../cpu/table.ts";
import { CMD, ERROR, PHASE, PROGRAM } from "./layout.ts";
import type { Machine } from "./machine.ts";
import type { Memory } from "./memory.ts";

interface Command {
  readonly fn: number;
  readonly rows: number;
  readonly grain: number;
  readonly flags: number;
  readonly post: number;
  readonly buffers: readonly (readonly [slot: number, offset: number])[];
  readonly scalars: readonly number[];
  readonly params: readonly number[];
}

/** Reads a table as `ProgramBuilder` (cpu/table.ts) writes it. */
function decode(table: Int32Array): { commands: Command[]; phases: number[][]; scratchBytes: number } {
  const [, , numCommands, numPhases, , , scratchBytes] = table;
  let at = 7;
  const next = (): number => table[at++];
  const wide = (): number => {
    const low = next();
    at++; // what needs more than 32 bits does not fit into this memory
    return low;
  };
  const list = <T>(read: () => T): T[] => Array.from({ length: next() }, read);
  const phases = Array.from({ length: numPhases }, () => list(next));
  const commands = Array.from({ length: numCommands }, (): Command => {
    const fn = next();
    const rows = wide();
    const [grain, flags, , post] = [next(), next(), next(), next()];
    const buffers = list(() => [next(), wide()] as const);
    return { fn, rows, grain, flags, post, buffers, scalars: list(next), params: list(wide) };
  });
  return { commands, phases, scratchBytes };
}

/** Runs of less work than this are done in the calling thread: to wake others takes 0.1 ms. */
const SMALL_FLOPS = 3e6;
const SMALL_BYTES = 3e6;

export class WasmProgram implements Program {
  readonly stats: ProgramStats;
  readonly parts: Parts;
  readonly #machine: Machine;
  readonly #memory: Memory;
  /** Slot and offset behind each word from `#pointers` on. */
  readonly #refs: readonly (readonly [slot: number, offset: number])[];
  readonly #pointers: number;
  readonly #scalars: number;
  readonly #phases: number;
  readonly #parallel: boolean;
  /** NABLA_DEBUG=2: the addresses of the commands, phase by phase, and their labels. */
  readonly #profiled: { phases: number[][]; labels: Map<number, string> } | null;

  constructor(machine: Machine, parts: Parts, slots: readonly number[]) {
    this.#machine = machine;
    this.parts = parts;
    this.stats = parts.stats;
    const { commands, phases, scratchBytes } = decode(parts.table);
    machine.needScratch(scratchBytes);
    const sum = (count: (c: Command) => number): number => commands.reduce((n, c) => n + count(c), 0);
    // phases, commands, then lists of words, then the scalars
    const firstCommand = PROGRAM.bytes + PHASE.bytes * phases.length;
    const orders = firstCommand + CMD.bytes * commands.length;
    const pointers = orders + 4 * phases.reduce((n, p) => n + p.length, 0);
    const scalarLists = pointers + 4 * sum((c) => c.buffers.length);
    const params = scalarLists + 4 * sum((c) => c.scalars.length);
    const values = Math.ceil((params + 4 * sum((c) => c.params.length)) / 8) * 8;
    const numValues = parts.numScalars + parts.constants.length;
    this.#memory = machine.heap.allocate(values + 8 * numValues);
    const base = this.#memory.pointer;
    const bytes = machine.heap.view(base, this.#memory.bytes);
    const words = new Int32Array(bytes.buffer, base, values >> 2);
    words.fill(0);
    const put = (at: number, value: number): void => {
      words[at >> 2] = value;
    };
    put(PROGRAM.phases, phases.length);
    let [order, ref, scalar, param] = [orders, pointers, scalarLists, params];
    phases.forEach((list, i) => {
      const phase = PROGRAM.bytes + PHASE.bytes * i;
      put(
        phase + PHASE.tiles,
        list.reduce((n, c) => n + Math.ceil(commands[c].rows / commands[c].grain), 0),
      );
      put(phase + PHASE.count, list.length);
      put(phase + PHASE.commands, base + order);
      for (const c of list) {
        put(order, base + firstCommand + CMD.bytes * c);
        order += 4;
      }
    });
    commands.forEach((c, i) => {
      const at = firstCommand + CMD.bytes * i;
      put(at + CMD.fn, c.fn >= 0 ? slots[c.fn] : machine.builtin(builtins[-1 - c.fn]));
      put(at + CMD.rows, c.rows);
      put(at + CMD.grain, c.grain);
      put(at + CMD.flags, c.flags);
      put(at + CMD.post, c.post < 0 ? 0 : base + firstCommand + CMD.bytes * c.post);
      put(at + CMD.buffers, base + ref);
      put(at + CMD.scalars, base + scalar);
      put(at + CMD.params, base + param);
      ref += 4 * c.buffers.length;
      for (const s of c.scalars) {
        put(scalar, base + values + 8 * s);
        scalar += 4;
      }
      for (const p of c.params) {
        put(param, p);
        param += 4;
      }
    });
    new Float64Array(bytes.buffer, base + values, numValues).set(parts.constants, parts.numScalars);
    this.#refs = commands.flatMap((c) => c.buffers);
    this.#pointers = base + pointers;
    this.#scalars = base + values;
    this.#phases = phases.length;
    const { flops, bytes: moved } = parts.stats;
    const address = (c: number): number => base + firstCommand + CMD.bytes * c;
    this.#profiled =
      Number(process.env["NABLA_DEBUG"] ?? 0) >= 2
        ? {
            phases: phases.map((list) => list.map(address)),
            labels: new Map(phases.flat().map((c) => [address(c), parts.labels[c]])),
          }
        : null;
    this.#parallel = flops >= SMALL_FLOPS || moved >= SMALL_BYTES;
  }

  run(run: Run): void | Promise<void> {
    const machine = this.#machine;
    if (this.#profiled) return machine.enqueue(async () => this.#profile(run));
    if (!this.#parallel && machine.idle) {
      this.#prepare(run);
      machine.runHere(this.#memory.pointer);
      this.#check();
      return;
    }
    return machine.enqueue(async () => {
      this.#prepare(run);
      if (this.#parallel) await machine.runThreads(this.#memory.pointer);
      else machine.runHere(this.#memory.pointer);
      this.#check();
      void run; // which keeps its buffers alive until it is done
    });
  }

  /** Time of the run's commands in one thread, longest first. */
  #profile(run: Run): void {
    this.#prepare(run);
    const { phases, labels } = this.#profiled as { phases: number[][]; labels: Map<number, string> };
    const rows = [...this.#machine.profile(phases)].sort((a, b) => b[1] - a[1]);
    const total = rows.reduce((n, [, ms]) => n + ms, 0);
    const lines = rows
      .slice(0, 40)
      .map(([cmd, ms]) => `  ${(1e3 * ms).toFixed(1).padStart(10)} µs  ${labels.get(cmd)}`);
    console.error(
      `program of ${rows.length} commands, ${(1e3 * total).toFixed(0)} µs in one thread\n${lines.join("\n")}`,
    );
    this.#check();
  }

  #prepare(run: Run): void {
    const { heap } = this.#machine;
    const slots = [this.#machine.arena(this.parts.arenaBytes)];
    for (const b of run.buffers) slots.push((b as Memory).pointer);
    for (const b of run.outputs) slots.push((b as Memory).pointer);
    const { buffer } = heap.memory;
    const pointers = new Int32Array(buffer, this.#pointers, this.#refs.length);
    this.#refs.forEach(([slot, offset], i) => {
      pointers[i] = slots[slot] + offset;
    });
    new Float64Array(buffer, this.#scalars, run.scalars.length).set(run.scalars);
    const words = new Int32Array(buffer, this.#memory.pointer, (PROGRAM.bytes + PHASE.bytes * this.#phases) >> 2);
    for (let i = 0; i < this.#phases; i++) words[(PROGRAM.bytes + PHASE.bytes * i + PHASE.next) >> 2] = 0;
  }

  #check(): void {
    const [op, position] = new Int32Array(this.#machine.heap.memory.buffer, ERROR, 2);
    if (op !== 0) throw failureError(this.parts.failures, op, position);
  }

  describe(stage: "graph" | "kernels" | "memory" | "source"): string {
    if (stage === "source") return this.parts.sources.join("\n\n");
    return this.parts.texts[stage];
  }
}
