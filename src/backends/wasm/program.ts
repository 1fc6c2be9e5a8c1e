/**
 * A program of the `wasm` backend: the assembler's command table laid out in the shared memory (records.ts), and run with
 * the buffers and scalars of each run.
 */
import type { Program, ProgramStats, Run } from "../backend.ts";
import type { Parts } from "../cpu/assemble.ts";
import { failureError } from "../cpu/failure.ts";
import { ERROR, LOOP, PHASE, PROGRAM } from "./layout.ts";
import type { Machine } from "./machine.ts";
import type { Memory } from "./memory.ts";
import { printProfile } from "./profile.ts";
import { isParallel, placeRecords, type Records, writeRecords } from "./records.ts";
import type { HeldKernels } from "./target.ts";

/** Runs of less work than this are done in the calling thread: to wake others takes 0.1 ms. */
const SMALL_FLOPS = 3e6;
const SMALL_BYTES = 3e6;

export class WasmProgram implements Program {
  readonly stats: ProgramStats;
  readonly parts: Parts;
  readonly #machine: Machine;
  readonly #kernels: HeldKernels;
  readonly #records: Records;
  readonly #memory: Memory;
  readonly #parallel: boolean;
  /** NABLA_DEBUG=2: a run's commands are measured. */
  readonly #profiled: boolean;

  /** Takes over the kernels: they are given back with the program. */
  constructor(machine: Machine, parts: Parts, kernels: HeldKernels) {
    this.#machine = machine;
    this.#kernels = kernels;
    this.parts = parts;
    this.stats = parts.stats;
    const { table } = parts;
    const numValues = parts.numScalars + parts.constants.length;
    this.#records = placeRecords(table, numValues);
    this.#memory = machine.heap.allocate(this.#records.bytes);
    const { buffer } = machine.heap.memory;
    writeRecords(this.#records, buffer, this.#memory.pointer, (fn) =>
      typeof fn === "number" ? kernels.slot(parts.sources[fn]) : machine.builtin(fn),
    );
    new Float64Array(buffer, this.#memory.pointer + this.#records.values, numValues).set(
      parts.constants,
      parts.numScalars,
    );
    const { flops, bytes } = parts.stats;
    this.#profiled = !import.meta.forBrowsers && Number(process.env["NABLA_DEBUG"] ?? 0) >= 2;
    this.#parallel = isParallel(table) && (flops >= SMALL_FLOPS || bytes >= SMALL_BYTES);
  }

  run(run: Run): void | Promise<void> {
    const machine = this.#machine;
    const { scratchBytes } = this.#records.table;
    if (!import.meta.forBrowsers && this.#profiled)
      return machine.enqueue(async () => {
        this.#prepare(run);
        printProfile(machine, this.#memory.pointer, this.#records, this.parts.labels);
        this.#check();
      });
    if (!this.#parallel && machine.idle) {
      this.#prepare(run);
      machine.runHere(this.#memory.pointer, scratchBytes);
      this.#check();
      return;
    }
    return machine.enqueue(async () => {
      this.#prepare(run);
      if (this.#parallel) await machine.runThreads(this.#memory.pointer, scratchBytes);
      else machine.runHere(this.#memory.pointer, scratchBytes);
      this.#check();
      void run; // which keeps its buffers alive until it is done
    });
  }

  /** Puts in place what differs from run to run, and what a run changes that may have been broken off. */
  #prepare(run: Run): void {
    const { table, firstLoop, pointers, values } = this.#records;
    const base = this.#memory.pointer;
    const slots = [this.#machine.arena(this.parts.arenaBytes)];
    for (const b of run.buffers) slots.push((b as Memory).pointer);
    for (const b of run.outputs) slots.push((b as Memory).pointer);
    const { buffer } = this.#machine.heap.memory;
    const refs = new Int32Array(buffer, base + pointers, table.refs.length);
    table.refs.forEach(([slot, offset], i) => {
      refs[i] = slots[slot] + offset;
    });
    new Float64Array(buffer, base + values, run.scalars.length).set(run.scalars);
    const words = new Int32Array(buffer, base, pointers >> 2);
    words[PROGRAM.at >> 2] = base + PROGRAM.bytes;
    for (let i = 0; i < table.phases.length; i++) words[(PROGRAM.bytes + PHASE.bytes * i + PHASE.next) >> 2] = 0;
    for (let i = 0; i < table.loops.length; i++) words[(firstLoop + LOOP.bytes * i + LOOP.iteration) >> 2] = 0;
  }

  #check(): void {
    const [op, position] = new Int32Array(this.#machine.heap.memory.buffer, ERROR, 2);
    if (op !== 0) throw failureError(this.parts.failures, op, position);
  }

  dispose(): void {
    this.#machine.afterRuns(() => {
      this.#machine.heap.release(this.#memory);
      this.#kernels.release();
    });
  }

  describe(stage: "graph" | "kernels" | "memory" | "source"): string {
    return this.parts.texts[stage === "source" ? "kernels" : stage]; // its modules are bytes
  }
}
