/**
 * What a kernel of the runtime module reads of its command (layout.ts), and the arithmetic on its numbers that every kernel
 * needs.
 */
import type { Func, Local } from "./function.ts";
import { atomic32, constant, type Expr, i32, select } from "./instructions.ts";
import { CMD, ERROR, SCRATCH, SCRATCH_BYTES } from "./layout.ts";

export const ceilDiv = (a: Expr, b: Expr | number): Expr => i32.div(i32.sub(i32.add(a, b), 1), b);
export const min = (a: Expr, b: Expr | number): Expr => {
  const y = typeof b === "number" ? constant.i32(b) : b;
  return select(i32.lt_s(a, y), a, y);
};

/** The parameters of a command by name, as locals. */
export function parameters<N extends string>(f: Func, cmd: Expr, names: readonly N[]): Record<N, Local> {
  const list = f.let(i32.load(cmd, CMD.params));
  return Object.fromEntries(names.map((name, i) => [name, f.let(i32.load(list, 4 * i))])) as Record<N, Local>;
}

/** The address of buffer i. */
export const buffer = (f: Func, cmd: Expr, i: number): Local => f.let(i32.load(i32.load(cmd, CMD.buffers), 4 * i));

/** The address of this thread's scratch. */
export const scratchOf = (tid: Expr): Expr => i32.add(i32.load(SCRATCH), i32.mul(tid, i32.load(SCRATCH_BYTES)));

/** Says that an operation has failed, and where, if none has before it in this run. */
export function fail(f: Func, operation: Expr, position: Expr): void {
  f.if(i32.eqz(atomic32.cmpxchg(ERROR, 0, operation)), () => f.store("i32", ERROR + 4, position));
}
