/**
 * The assembler's command table (cpu/table.ts) as the records that the interpreter reads (layout.ts): how many bytes they
 * take, and their words, once it is known where they will lie. Nothing runs here.
 */
import { BackendError } from "../../core/errors.ts";
import type { Command, Table } from "../cpu/table.ts";
import { CMD, LOOP, MOVE, PHASE, PROGRAM } from "./layout.ts";

/** Phases, each as often as it runs. */
export function stepsOf({ phases, loops }: Table): number {
  let steps = 0;
  for (let i = 0; i < phases.length; i++)
    steps += loops.reduce((times, l) => (l.first <= i && i <= l.last ? times * l.count : times), 1);
  if (steps >= 2 ** 31) throw new BackendError(`wasm: a program of ${steps} steps, more than can be counted`);
  return steps;
}

const tilesOf = (phase: readonly number[], commands: readonly Command[]): number =>
  phase.reduce((n, c) => n + Math.ceil(commands[c].rows / commands[c].grain), 0);

/** Whether some phase has work for two threads. */
export const isParallel = ({ phases, commands }: Table): boolean => phases.some((p) => tilesOf(p, commands) > 1);

/** Where the records of a program lie, in bytes from its start: phases, loops, commands, then lists of words, then scalars. */
export interface Records {
  readonly table: Table;
  readonly firstLoop: number;
  readonly firstCommand: number;
  readonly orders: number;
  /** One word for each of the table's `refs`. */
  readonly pointers: number;
  readonly scalarLists: number;
  readonly params: number;
  /** The scalars: float64. */
  readonly values: number;
  readonly bytes: number;
}

export function placeRecords(table: Table, numValues: number): Records {
  const { commands, phases, loops, refs } = table;
  const sum = <T>(list: readonly T[], count: (x: T) => number): number => list.reduce((n, x) => n + count(x), 0);
  const firstLoop = PROGRAM.bytes + PHASE.bytes * phases.length;
  const firstCommand = firstLoop + sum(loops, (l) => LOOP.bytes + MOVE.bytes * l.moves.length);
  const orders = firstCommand + CMD.bytes * commands.length;
  const pointers = orders + 4 * sum(phases, (p) => p.length);
  const scalarLists = pointers + 4 * refs.length;
  const params = scalarLists + 4 * sum(commands, (c) => c.scalars?.length ?? 0);
  const values = Math.ceil((params + 4 * sum(commands, (c) => c.params?.length ?? 0)) / 8) * 8;
  const bytes = values + 8 * numValues;
  return { table, firstLoop, firstCommand, orders, pointers, scalarLists, params, values, bytes };
}

/** Writes the records at address `base`, all but pointers and scalars; `functionOf` gives a function's entry in the table. */
export function writeRecords(
  records: Records,
  memory: ArrayBuffer,
  base: number,
  functionOf: (fn: Command["fn"]) => number,
): void {
  const { table, firstLoop, firstCommand, orders, pointers, scalarLists, params, values } = records;
  const words = new Int32Array(memory, base, values >> 2);
  words.fill(0);
  const put = (at: number, value: number): void => {
    words[at >> 2] = value;
  };
  const phaseAt = (i: number): number => base + PROGRAM.bytes + PHASE.bytes * i;
  const pointer = (ref: number): number => base + pointers + 4 * ref;
  put(PROGRAM.steps, stepsOf(table));
  put(PROGRAM.loops, base + firstLoop);
  put(PROGRAM.numLoops, table.loops.length);
  let order = orders;
  table.phases.forEach((list, i) => {
    const phase = phaseAt(i) - base;
    put(phase + PHASE.tiles, tilesOf(list, table.commands));
    put(phase + PHASE.count, list.length);
    put(phase + PHASE.commands, base + order);
    for (const c of list) {
      put(order, base + firstCommand + CMD.bytes * c);
      order += 4;
    }
  });
  let move = firstLoop + LOOP.bytes * table.loops.length;
  table.loops.forEach(({ first, last, count, moves }, i) => {
    const at = firstLoop + LOOP.bytes * i;
    put(at + LOOP.count, count);
    put(at + LOOP.first, phaseAt(first));
    put(at + LOOP.last, phaseAt(last));
    put(at + LOOP.moves, base + move);
    put(at + LOOP.numMoves, moves.length);
    for (const { ref, stride, start } of moves) {
      put(move + MOVE.pointer, pointer(ref));
      put(move + MOVE.stride, stride);
      put(move + MOVE.start, start < 0 ? 0 : pointer(start));
      move += MOVE.bytes;
    }
  });
  let [ref, scalar, param] = [0, scalarLists, params];
  table.commands.forEach((c, i) => {
    const at = firstCommand + CMD.bytes * i;
    put(at + CMD.fn, functionOf(c.fn));
    put(at + CMD.rows, c.rows);
    put(at + CMD.grain, Math.min(c.grain, 0x7fffffff));
    put(at + CMD.flags, c.writesState ? 1 : 0);
    put(at + CMD.post, c.post === undefined ? 0 : base + firstCommand + CMD.bytes * c.post);
    put(at + CMD.buffers, pointer(ref));
    put(at + CMD.scalars, base + scalar);
    put(at + CMD.params, base + param);
    ref += c.buffers.length;
    for (const s of c.scalars ?? []) {
      put(scalar, base + values + 8 * s);
      scalar += 4;
    }
    for (const p of c.params ?? []) {
      put(param, p);
      param += 4;
    }
  });
}
