/**
 * A WebAssembly function as it is written: locals, statements, control flow. Expressions come from `instructions.ts`, the
 * module around it from `module.ts`.
 */
import {
  type Code,
  type Expr,
  expr,
  i32,
  type Operand,
  type StoreKind,
  type Type,
  unsigned,
  writeAtomicStore,
  writeLane,
  writeStore,
} from "./instructions.ts";

export const typeCode: Readonly<Record<Type, number>> = { i32: 0x7f, i64: 0x7e, f32: 0x7d, f64: 0x7c, v128: 0x7b };

export interface Local extends Expr {
  readonly index: number;
}

export interface Signature {
  readonly params: readonly Type[];
  readonly results: readonly Type[];
}

/** Something that can be called; its index is known once the module is put together. */
export interface Callable extends Signature {
  index: number;
}

export class Func implements Callable {
  readonly params: readonly Type[];
  readonly results: readonly Type[];
  index = -1;
  readonly args: readonly Local[];
  readonly #locals: Type[] = [];
  #body: ((out: Code) => void)[] = [];
  #depth = 0;

  constructor(params: readonly Type[], results: readonly Type[] = []) {
    this.params = params;
    this.results = results;
    this.args = params.map((type, i) => localAt(type, i));
  }

  /** A new local, zero at first. */
  local(type: Type): Local {
    this.#locals.push(type);
    return localAt(type, this.params.length + this.#locals.length - 1);
  }

  /** A new local with a value. A number is an i32. */
  let(value: Operand): Local {
    const e = typeof value === "number" ? expr(value, "i32") : value;
    const l = this.local(e.type);
    this.set(l, e);
    return l;
  }

  set(local: Local, value: Operand): void {
    const e = expr(value, local.type);
    this.#write((out) => {
      e.write(out);
      out.push(0x21);
      unsigned(out, local.index);
    });
  }

  /** Adds to a local of type i32. */
  bump(local: Local, by: Operand): void {
    this.set(local, i32.add(local, by));
  }

  store(kind: StoreKind, address: Operand, value: Operand, offset = 0): void {
    const type: Type = kind === "i8" || kind === "i16" ? "i32" : kind;
    const [at, x] = [expr(address, "i32"), expr(value, type)];
    this.#write((out) => writeStore(out, kind, at, x, offset));
  }

  /** Stores lane `lane` of a vector. */
  storeLane(bits: 8 | 16 | 32 | 64, address: Operand, value: Expr, lane: number, offset = 0): void {
    const at = expr(address, "i32");
    this.#write((out) => writeLane(out, bits, at, value, lane, offset));
  }

  atomicStore(address: Operand, value: Operand): void {
    const [at, x] = [expr(address, "i32"), expr(value, "i32")];
    this.#write((out) => writeAtomicStore(out, at, x));
  }

  /** Evaluates for its effect. */
  drop(value: Expr): void {
    this.#write((out) => {
      value.write(out);
      out.push(0x1a);
    });
  }

  /** Calls for the effect alone; a result is dropped. */
  call(f: Callable, ...args: Operand[]): void {
    const e = call(f, ...args);
    if (f.results.length > 0) this.drop(e);
    else this.#write(e.write);
  }

  /** Calls entry `index` of table 0; `type` is the number of the signature in the module. */
  callIndirect(type: number, index: Operand, ...args: Operand[]): void {
    const [at, list] = [expr(index, "i32"), args.map((a) => expr(a, "i32"))];
    this.#write((out) => {
      for (const a of list) a.write(out);
      at.write(out);
      out.push(0x11);
      unsigned(out, type);
      out.push(0);
    });
  }

  copyMemory(to: Operand, from: Operand, bytes: Operand): void {
    this.#bulk([to, from, bytes], [0xfc, 10, 0, 0]);
  }

  fillMemory(to: Operand, byte: Operand, bytes: Operand): void {
    this.#bulk([to, byte, bytes], [0xfc, 11, 0]);
  }

  #bulk(operands: readonly Operand[], code: readonly number[]): void {
    const list = operands.map((x) => expr(x, "i32"));
    this.#write((out) => {
      for (const e of list) e.write(out);
      out.push(...code);
    });
  }

  if(condition: Operand, then: () => void, otherwise?: () => void): void {
    const c = expr(condition, "i32");
    if (c.known !== undefined) {
      if (c.known) then();
      else otherwise?.();
      return;
    }
    this.#write((out) => {
      c.write(out);
      out.push(0x04, 0x40);
    });
    this.#nested(then);
    if (otherwise) {
      this.#write((out) => out.push(0x05));
      this.#nested(otherwise);
    }
    this.#end();
  }

  /** for (i = from; i < to; i += step), signed; `body` gets i, which it may also change. */
  for(from: Operand, to: Operand, step: Operand, body: (i: Local) => void): void {
    const i = this.let(from);
    const end = typeof to === "number" || to.known !== undefined || isLocal(to) ? to : this.let(to);
    this.while(i32.lt_s(i, end), () => {
      body(i);
      this.bump(i, step);
    });
  }

  /** while (condition) body; the condition is looked at before the first turn and after each. */
  while(condition: Operand, body: () => void): void {
    const c = expr(condition, "i32");
    this.if(c, () => {
      this.loop((again) => {
        body();
        again(c);
      });
    });
  }

  /** Runs once, and once more for each `again(condition)` that holds. */
  loop(body: (again: (condition: Operand) => void) => void): void {
    this.#write((out) => out.push(0x03, 0x40));
    this.#branchable(body);
  }

  /** `leave(condition)` inside goes behind the block. */
  block(body: (leave: (condition: Operand) => void) => void): void {
    this.#write((out) => out.push(0x02, 0x40));
    this.#branchable(body);
  }

  #branchable(body: (branch: (condition: Operand) => void) => void): void {
    const target = this.#depth + 1;
    this.#nested(() =>
      body((condition) => {
        const c = expr(condition, "i32");
        const label = this.#depth - target;
        this.#write((out) => {
          c.write(out);
          out.push(0x0d);
          unsigned(out, label);
        });
      }),
    );
    this.#end();
  }

  return(value?: Operand): void {
    const e = value === undefined ? null : expr(value, this.results[0]);
    this.#write((out) => {
      e?.write(out);
      out.push(0x0f);
    });
  }

  /** The value that the function ends with. */
  result(value: Operand): void {
    const e = expr(value, this.results[0]);
    this.#write((out) => e.write(out));
  }

  #nested(body: () => void): void {
    this.#depth++;
    body();
    this.#depth--;
  }

  #end(): void {
    this.#write((out) => out.push(0x0b));
  }

  #write(statement: (out: Code) => void): void {
    this.#body.push(statement);
  }

  /** The code section's entry, without its length. */
  encode(): Code {
    const out: Code = [];
    const runs: { type: Type; count: number }[] = [];
    for (const type of this.#locals) {
      const last = runs[runs.length - 1];
      if (last?.type === type) last.count++;
      else runs.push({ type, count: 1 });
    }
    unsigned(out, runs.length);
    for (const { type, count } of runs) {
      unsigned(out, count);
      out.push(typeCode[type]);
    }
    for (const s of this.#body) s(out);
    out.push(0x0b);
    return out;
  }
}

const localAt = (type: Type, index: number): Local => ({
  type,
  index,
  write: (out) => {
    out.push(0x20);
    unsigned(out, index);
  },
});
const isLocal = (x: Expr): x is Local => (x as Local).index !== undefined;

/** The call of a function with one result (or, as a statement, with none). */
export function call(f: Callable, ...args: Operand[]): Expr {
  const exprs = f.params.map((t, i) => expr(args[i], t));
  return {
    type: f.results[0] ?? "i32",
    write: (out) => {
      for (const e of exprs) e.write(out);
      out.push(0x10);
      unsigned(out, f.index);
    },
  };
}
