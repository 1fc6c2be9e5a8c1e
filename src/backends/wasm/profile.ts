/** NABLA_DEBUG=2: what each command of a run took in one thread, longest first. */
import { CMD, PHASE, PROGRAM } from "./layout.ts";
import type { Machine } from "./machine.ts";
import { type Records, stepsOf } from "./records.ts";

/** Commands that are listed. */
const LISTED = 40;

/** Runs the program at `base`, which is ready to be run, command by command in the calling thread, and prints the times. */
export function printProfile(machine: Machine, base: number, records: Records, names: readonly string[]): void {
  const { table, firstCommand } = records;
  const address = (c: number): number => base + firstCommand + CMD.bytes * c;
  const labels = new Map(table.phases.flat().map((c) => [address(c), names[c]]));
  machine.prepare(table.scratchBytes);
  const { command, advance } = machine.here.runtime;
  const took = new Map<number, number>();
  const words = new Int32Array(machine.heap.memory.buffer);
  for (let step = 0; step < stepsOf(table); step++) {
    const phase = words[(base + PROGRAM.at) >> 2];
    for (const c of table.phases[(phase - base - PROGRAM.bytes) / PHASE.bytes]) {
      const start = performance.now();
      command(address(c));
      took.set(address(c), (took.get(address(c)) ?? 0) + performance.now() - start);
    }
    advance(base);
  }
  const rows = [...took].sort((a, b) => b[1] - a[1]);
  const total = rows.reduce((n, [, ms]) => n + ms, 0);
  const lines = rows
    .slice(0, LISTED)
    .map(([cmd, ms]) => `  ${(1e3 * ms).toFixed(1).padStart(10)} µs  ${labels.get(cmd)}`);
  console.error(
    `program of ${rows.length} commands, ${(1e3 * total).toFixed(0)} µs in one thread\n${lines.join("\n")}`,
  );
}
