/**
 * The WebAssembly renderer: a kernel as one function over vectors of four lanes. Written after the C renderer
 * (`cpu/render.ts`), which tells what the three forms are: flat, columns (lanes along c) and rows (lanes along r). What a
 * value is computed with is `lanes.ts`'s.
 *
 * Unlike C's, the compiler behind this takes nothing out of loops: what does not change along the inner axis, the address
 * of a row among it, is computed before the loop here.
 */
import { type Check, Emission } from "../../compiler/emission.ts";
import { dependsOn, type Index, isUniform, stepAlong } from "../../compiler/index-expr.ts";
import {
  type Condition,
  type Kernel,
  type Lane,
  laneOf,
  runtimeValues,
  type Stage,
  type Store,
  type Value,
} from "../../compiler/kernel.ts";
import type { DType } from "../../core/dtype.ts";
import { BackendError } from "../../core/errors.ts";
import { fail } from "./command.ts";
import { call, type Func, type Local } from "./function.ts";
import { constant, type Expr, f32, f32x4, f64, f64x2, i32, i32s, i32x4, i64, select, v128 } from "./instructions.ts";
import {
  across,
  bitcastTo,
  castTo,
  combine,
  fallback,
  firstLanes,
  identity,
  inMemory,
  iota,
  LANES,
  number,
  operations,
  selectLanes,
  type Vec,
  zero,
} from "./lanes.ts";
import { CMD } from "./layout.ts";
import { Library } from "./math.ts";
import type { Module } from "./module.ts";

export type Form = "flat" | "columns" | "rows";
type Locals = readonly Local[];

/** Emits kernels into one module; the functions they call are shared. */
export class KernelModule {
  readonly module: Module;
  readonly lib: Library;
  readonly fail: Func;

  constructor(module: Module) {
    this.module = module;
    this.lib = new Library(module);
    const f = module.function(["i32", "i32"]);
    const [operation, position] = f.args;
    fail(f, operation, position);
    this.fail = f;
  }

  /** Adds a kernel; gives what it checks. */
  add(kernel: Kernel, form: Form, flatRow: number): readonly Check[] {
    const f = this.module.function(["i32", "i32", "i32", "i32"]);
    this.module.kernel(f);
    return new Emitter(this, kernel, form, flatRow, f).run();
  }
}

/** A value's name is its locals; the addresses of rows have names too. */
class Emitter extends Emission<Locals> {
  private readonly form: Form;
  private readonly flatRow: number;
  private readonly f: Func;
  private readonly lib: Library;
  private readonly fail: Func;
  /** The axis that the lanes lie along. */
  private readonly along: "r" | "c";
  private readonly cmd: Local;
  private readonly r0: Local;
  private readonly r1: Local;
  private readonly bases: Local[] = [];
  private readonly axes: { r: Expr; c: Expr } = { r: constant.i32(0), c: constant.i32(0) };
  private readonly accumulators: Locals[] = [];
  private readonly reduced: Locals[] = [];
  private readonly parts = new Map<number, Local>();
  private readonly checked = new Map<string, Locals>();
  /** Lanes that count in this pass. */
  private live = LANES;

  constructor(owner: KernelModule, k: Kernel, form: Form, flatRow: number, f: Func) {
    super(k);
    this.form = form;
    this.flatRow = flatRow;
    this.f = f;
    this.lib = owner.lib;
    this.fail = owner.fail;
    this.along = form === "rows" ? "r" : "c";
    [this.cmd, this.r0, this.r1] = f.args;
  }

  run(): readonly Check[] {
    const { f, k } = this;
    const list = f.let(i32.load(this.cmd, CMD.buffers));
    k.buffers.forEach((_, i) => {
      this.bases.push(f.let(i32.load(list, 4 * i)));
    });
    if (this.form === "flat") this.flat();
    else if (this.form === "columns") this.columns();
    else this.rows();
    return this.checks;
  }

  // ---- the three forms ---------------------------------------------------------------------------------------------

  private flat(): void {
    const { f, k, flatRow } = this;
    const n = k.columns;
    const end = f.let(i32.mul(this.r1, flatRow));
    f.if(i32.gt_s(end, n), () => f.set(end, n));
    this.uniforms(k.stages[0], 0);
    const c = f.let(i32.mul(this.r0, flatRow));
    this.axes.c = c;
    f.while(i32.le_s(i32.add(c, LANES), end), () => {
      this.scope(() => this.pass(k.stages[0]));
      f.bump(c, LANES);
    });
    if (n % LANES !== 0) f.if(i32.lt_s(c, end), () => this.partially(n % LANES, () => this.pass(k.stages[0])));
  }

  private columns(): void {
    const { f, k } = this;
    for (const p of k.stages.flatMap((s) => s.columns)) {
      const { dtype } = k.buffers[p.buffer];
      const bytes = inMemory[dtype].bytes;
      const block = i32.div(this.r0, i32.load(this.cmd, CMD.grain));
      const part = f.let(i32.add(this.bases[p.buffer], i32.mul(block, k.columns * bytes)));
      this.parts.set(p.buffer, part);
      const first = identity[p.op](laneOf[dtype]);
      f.for(0, k.columns - (k.columns % LANES), LANES, (c) => {
        first.forEach((v, i) => {
          f.store("v128", i32.add(part, i32.mul(c, bytes)), v, 16 * i);
        });
      });
      const rest = k.columns % LANES;
      if (rest) this.storeLanes(dtype, first, rest, (l) => i32.add(part, (k.columns - rest + l) * bytes));
    }
    this.uniforms(k.stages[0], 0);
    f.for(this.r0, this.r1, 1, (r) => {
      this.axes.r = r;
      this.scope(() => {
        k.stages.forEach((stage, s) => {
          this.rowStage(stage, s);
        });
      });
    });
  }

  private rowStage(stage: Stage, s: number): void {
    const { f, k } = this;
    this.stage = s;
    for (const x of stage.reductions) this.accumulators[x.slot] = this.fresh(identity[x.op](laneOf[x.dtype]));
    if (stage.stores.length || stage.reductions.length || stage.columns.length) {
      this.uniforms(stage, 1);
      const whole = k.columns - (k.columns % LANES);
      if (whole)
        f.for(0, whole, LANES, (c) => {
          this.axes.c = c;
          this.scope(() => this.pass(stage));
        });
      if (k.columns % LANES) {
        this.axes.c = constant.i32(whole);
        this.partially(k.columns % LANES, () => this.pass(stage));
      }
    }
    for (const x of stage.reductions)
      this.reduced[x.slot] = this.fresh(across(f, x.op, laneOf[x.dtype], this.accumulators[x.slot]));
    // here too, everything is read before anything is written
    const values = stage.rowStores.map((st) => this.value(st.value, 1));
    stage.rowStores.forEach((st, i) => {
      this.store(st, values[i], 1);
    });
  }

  private rows(): void {
    const { f, k } = this;
    this.uniforms(k.stages[0], 0);
    const r = f.let(this.r0);
    this.axes.r = r;
    f.while(i32.le_s(i32.add(r, LANES), this.r1), () => {
      this.scope(() => this.rowBlock());
      f.bump(r, LANES);
    });
    if (k.rows % LANES) f.if(i32.lt_s(r, this.r1), () => this.partially(k.rows % LANES, () => this.rowBlock()));
  }

  private rowBlock(): void {
    const { f, k } = this;
    k.stages.forEach((stage, s) => {
      this.stage = s;
      for (const x of stage.reductions) this.reduced[x.slot] = this.fresh(identity[x.op](laneOf[x.dtype]));
      if (stage.stores.length || stage.reductions.length) {
        this.uniforms(stage, 1);
        f.for(0, k.columns, 1, (c) => {
          this.axes.c = c;
          this.scope(() => {
            const values = stage.stores.map((st) => this.value(st.value, 2));
            for (const x of stage.reductions) this.value(x.value, 2);
            stage.stores.forEach((st, i) => {
              this.store(st, values[i], this.live);
            });
            for (const x of stage.reductions)
              this.assign(
                this.reduced[x.slot],
                combine(x.op, laneOf[x.dtype], this.reduced[x.slot], this.value(x.value, 2)),
              );
          });
        });
      }
      const values = stage.rowStores.map((st) => this.value(st.value, 1));
      stage.rowStores.forEach((st, i) => {
        this.store(st, values[i], this.live);
      });
    });
  }

  /** One step of a stage's pass: everything at positions c … c + 3. */
  private pass(stage: Stage): void {
    // everything is read before anything is written: a kernel may write a state over the old one
    const values = stage.stores.map((st) => this.value(st.value, 2));
    for (const x of [...stage.reductions, ...stage.columns]) this.value(x.value, 2);
    stage.stores.forEach((st, i) => {
      this.store(st, values[i], this.live);
    });
    for (const x of stage.reductions) {
      const t = laneOf[x.dtype];
      let v: Vec = this.value(x.value, 2);
      if (this.live < LANES) v = selectLanes(t, firstLanes(this.live), v, identity[x.op](t));
      this.assign(this.accumulators[x.slot], combine(x.op, t, this.accumulators[x.slot], v));
    }
    for (const x of stage.columns) {
      const { dtype } = this.k.buffers[x.buffer];
      const { bytes, load } = inMemory[dtype];
      const at = this.f.let(i32.add(this.parts.get(x.buffer) as Local, i32.mul(this.axes.c, bytes)));
      const sum = this.fresh(combine(x.op, laneOf[dtype], load(this.lib, at, 0), this.value(x.value, 2)));
      if (this.live < LANES) this.storeLanes(dtype, sum, this.live, (l) => i32.add(at, l * bytes));
      else this.storeAll(dtype, sum, at);
    }
  }

  private scope(body: () => void): void {
    this.openScope();
    body();
    this.closeScope();
    this.checked.clear();
  }

  private partially(lanes: number, body: () => void): void {
    this.live = lanes;
    this.scope(body);
    this.live = LANES;
  }

  // ---- values ------------------------------------------------------------------------------------------------------

  protected override canReload(): boolean {
    return this.form === "columns";
  }

  protected override emit(v: Value, again: Store | null): Locals {
    if (again) return this.fresh(this.load(this.k.buffers[again.buffer].dtype, again.buffer, again.index, []));
    return this.fresh(this.expression(v, this.argsOf(v)));
  }

  private fresh(value: Vec): Locals {
    return value.map((e) => this.f.let(e));
  }

  private assign(locals: Locals, value: Vec): void {
    const next = value.length > 1 ? this.fresh(value) : value;
    locals.forEach((l, i) => {
      this.f.set(l, next[i]);
    });
  }

  private expression(v: Value, args: readonly Locals[]): Vec {
    const t = laneOf[v.dtype];
    switch (v.kind) {
      case "const":
        return number(v.name, t);
      case "scalar":
        return this.scalar(v.slot, t);
      case "reduced":
        return this.reduced[v.slot];
      case "index":
        return [this.positions(v.index as Index)];
      case "random":
        return [call(this.lib.threefry(), args[0][0], args[1][0], this.positions(v.index as Index))];
      case "select":
        if (v.valid.every((c) => this.isUniform(c))) {
          const condition = this.f.let(this.all(v.valid.map((c) => this.condition(c, null))));
          return args[0].map((a, i) => select(condition, a, args[1][i]));
        }
        return selectLanes(t, this.f.let(this.mask(v.valid)), args[0], args[1]);
      case "load":
        return this.load(v.dtype, v.slot, v.index as Index, v.valid);
      default:
        return this.operation(v, args);
    }
  }

  private scalar(slot: number, t: Lane): Vec {
    const x = f64.load(i32.load(i32.load(this.cmd, CMD.scalars), 4 * slot));
    if (t === "f") return [f32x4.splat(f32.demote(x))];
    if (t === "d") return [f64x2.splat(x), f64x2.splat(x)];
    if (t === "m") return [i32x4.splat(i32.sub(0, f64.ne(x, 0)))];
    return [i32x4.splat(i32.wrap(i64.trunc_sat_f64_s(x)))];
  }

  private operation(v: Value, args: readonly Locals[]): Vec {
    const from = v.args[0].dtype;
    if (v.name === "cast") return castTo(this.lib, v.dtype, from, args[0]);
    if (v.name === "bitcast") return bitcastTo(this.lib, v.dtype, from, args[0]);
    const isComparison = v.name === "lt" || v.name === "le" || v.name === "eq";
    const t = laneOf[isComparison ? from : v.dtype];
    if ((v.name === "idiv" || v.name === "mod") && (t === "i" || t === "u")) this.checkDivision(args[1][0]);
    const emit = operations[v.name] ?? fallback(v.name);
    return emit({ f: this.f, lib: this.lib, t, dtype: v.dtype }, args);
  }

  // ---- positions ---------------------------------------------------------------------------------------------------

  /** An index as an integer: of lane l, or (null) of the first lane. */
  private index(i: Index, l: number | null): Expr {
    return this.sum(i.terms, i.constant, l);
  }

  private sum(terms: Index["terms"], first: number, l: number | null): Expr {
    let out: Expr = constant.i32(first);
    for (const { atom, coefficient } of terms) {
      let a: Expr;
      if (atom.kind === "axis") {
        a = atom.name === "r" ? this.axes.r : this.axes.c;
        if (l && atom.name === this.along) a = i32.add(a, l);
      } else if (atom.kind === "value") {
        const v = atom.value as Value;
        a = i32x4.lane(this.checkedIndex(v, atom.extent), l && v.varies(this.along) ? l : 0);
      } else if (atom.kind === "bounded") a = this.index(atom.of, l);
      else a = (atom.kind === "div" ? i32.div : i32.rem)(this.index(atom.of, l), atom.by);
      out = i32.add(out, i32.mul(a, coefficient));
    }
    return out;
  }

  /** The terms of an index that change in the inner loop, and those that don't. */
  private split(i: Index): { inner: Index["terms"]; outer: Index["terms"] } {
    const inside = ({ atom }: Index["terms"][number]): boolean => dependsOn(i, "c", atom);
    return { inner: i.terms.filter(inside), outer: i.terms.filter((t) => !inside(t)) };
  }

  private rowKey(buffer: number, i: Index, outer: Index["terms"]): string {
    return `${buffer}@${i.constant}${outer.map((t) => `+${t.coefficient}*${t.atom.key}`).join("")}`;
  }

  /** Computes where a row starts, if everything that this depends on is known at this point. */
  protected override beforeAccess(buffer: number, i: Index, level: number): void {
    const { outer } = this.split(i);
    const values = runtimeValues({ ...i, terms: outer });
    const depends = outer.some(({ atom }) => dependsOn(i, "r", atom));
    if (outer.length === 0 || (depends && level === 0) || values.some((v) => this.find(v.id) === undefined)) return;
    if (this.form === "flat" && depends) return;
    const key = this.rowKey(buffer, i, outer);
    if (this.find(key)) return;
    const { bytes } = inMemory[this.k.buffers[buffer].dtype];
    const at = this.f.let(i32.add(this.bases[buffer], i32.mul(this.sum(outer, i.constant, null), bytes)));
    this.keep(key, [at]);
  }

  /** The address of an element. */
  private address(buffer: number, i: Index, bytes: number, l: number | null): Expr {
    const { inner, outer } = this.split(i);
    const row = l && this.along === "r" ? undefined : this.find(this.rowKey(buffer, i, outer));
    if (row) return i32.add(row[0], i32.mul(this.sum(inner, 0, l), bytes));
    return i32.add(this.bases[buffer], i32.mul(this.index(i, l), bytes));
  }

  /** A run-time index, held inside 0 … extent − 1; outside it the run has failed. */
  private checkedIndex(v: Value, extent: number): Local {
    const source = this.find(v.id) as Locals;
    if (!import.meta.forBrowsers && !source)
      throw new BackendError("wasm: a run-time index was used before it was emitted");
    const key = `${source[0].index}:${extent}`;
    let held = this.checked.get(key);
    if (!held) {
      const { f } = this;
      const [x] = source;
      const check = this.addCheck({ kind: "index", extent });
      const out = v128.or(i32x4.lt_s(x, i32s(0)), i32x4.ge_s(x, i32s(extent)));
      const partial = this.live < LANES && v.varies(this.along);
      const wrong = f.let(partial ? v128.and(out, firstLanes(this.live)) : out);
      f.if(v128.any_true(wrong), () => {
        for (let l = 0; l < LANES; l++)
          f.if(i32x4.lane(wrong, l), () => f.call(this.fail, this.operationNumber(check), i32x4.lane(x, l)));
      });
      held = [f.let(i32x4.max_s(i32x4.min_s(x, i32s(extent - 1)), i32s(0)))];
      this.checked.set(key, held);
    }
    return held[0];
  }

  private checkDivision(divisor: Local): void {
    const check = this.addCheck({ kind: "division", extent: 0 });
    const none = i32x4.eq(divisor, i32s(0));
    this.f.if(v128.any_true(this.live < LANES ? v128.and(none, firstLanes(this.live)) : none), () =>
      this.f.call(this.fail, this.operationNumber(check), 0),
    );
  }

  private operationNumber(check: number): Expr {
    return i32.add(i32.load(i32.load(this.cmd, CMD.params), 4), check);
  }

  /** Positions as a vector of integers. */
  private positions(i: Index): Expr {
    const step = stepAlong(i, this.along);
    if (step === null) {
      const lanes = Array.from({ length: LANES }, (_, l) => this.index(i, l));
      const out = this.f.let(i32x4.splat(lanes[0]));
      for (let l = 1; l < LANES; l++) this.f.set(out, i32x4.replace(out, l, lanes[l]));
      return out;
    }
    const base = i32x4.splat(this.index(i, null));
    if (step === 0) return base;
    return i32x4.add(base, step === 1 ? iota : i32x4.mul(iota, i32s(step)));
  }

  private isUniform(c: Condition): boolean {
    return isUniform(c.index, c.lo, c.hi, this.along);
  }

  /** Conditions as a mask. */
  private mask(conditions: readonly Condition[]): Expr {
    const parts = conditions.flatMap((c) => {
      const p = this.f.let(this.positions(c.index));
      return [
        ...(c.index.min < c.lo ? [i32x4.ge_s(p, i32s(c.lo))] : []),
        ...(c.index.max >= c.hi ? [i32x4.lt_s(p, i32s(c.hi))] : []),
      ];
    });
    return parts.length ? parts.reduce((a, b) => v128.and(a, b)) : i32s(-1);
  }

  /** The condition at one lane, or at the first. */
  private condition(c: Condition, l: number | null): Expr {
    const i = this.index(c.index, l);
    return this.all([
      ...(c.index.min < c.lo ? [i32.ge_s(i, c.lo)] : []),
      ...(c.index.max >= c.hi ? [i32.lt_s(i, c.hi)] : []),
    ]);
  }

  private all(conditions: readonly Expr[]): Expr {
    const open = conditions.filter((c) => !c.known);
    return open.length ? open.reduce((a, b) => i32.and(a, b)) : constant.i32(1);
  }

  // ---- memory --------------------------------------------------------------------------------------------------------

  private load(dtype: DType, buffer: number, index: Index, valid: readonly Condition[]): Vec {
    const { f, lib } = this;
    const { bytes, load, splat, gather, decode } = inMemory[dtype];
    const step = stepAlong(index, this.along);
    const uniform = valid.filter((c) => this.isUniform(c));
    const varying = valid.filter((c) => !this.isUniform(c));
    // run-time indices are checked before they are used, outside of conditions
    for (const c of valid) this.index(c.index, null);
    const at = this.address(buffer, index, bytes, null);
    // lanes that do not count may be read as well: memory is longer than what lies in it (memory.ts)
    const plain = step === 0 ? () => splat(lib, at) : step === 1 ? () => load(lib, f.let(at), 0) : null;
    if (valid.length === 0 && plain) return plain();
    const out = this.fresh(zero(laneOf[dtype]));
    const lanes = Array.from({ length: this.live }, (_, l) => ({
      at: this.address(buffer, index, bytes, l),
      if: this.all(varying.map((c) => this.condition(c, l))),
    }));
    const slow = (): void => {
      const raw = out.length > 1 ? out : [f.let(i32s(0))];
      lanes.forEach((x, l) => {
        f.if(x.if, () => gather(f, raw, l, x.at));
      });
      const decoded = decode(lib, raw);
      if (out.length === 1) f.set(out[0], decoded[0]);
    };
    const outer = this.all(uniform.map((c) => this.condition(c, null)));
    if (plain && varying.length === 0) f.if(outer, () => this.assign(out, plain()));
    else if (plain && varying.every((c) => stepAlong(c.index, this.along) !== null)) {
      // all lanes inside: one load; all outside by one condition: none; else lane by lane
      const ends = varying.map((c) => {
        const first = f.let(this.index(c.index, null));
        const last = f.let(i32.add(first, (stepAlong(c.index, this.along) as number) * (this.live - 1)));
        return { c, first, last };
      });
      const both = (test: (e: Expr) => Expr, a: Expr, b: Expr): Expr => i32.and(test(a), test(b));
      const inside = this.all(
        ends.map(({ c, first, last }) => both((e) => i32.and(i32.ge_s(e, c.lo), i32.lt_s(e, c.hi)), first, last)),
      );
      const outside = ends
        .map(({ c, first, last }) =>
          i32.or(
            both((e) => i32.lt_s(e, c.lo), first, last),
            both((e) => i32.ge_s(e, c.hi), first, last),
          ),
        )
        .reduce((a, b) => i32.or(a, b));
      f.if(outer, () =>
        f.if(
          inside,
          () => this.assign(out, plain()),
          () => f.if(i32.eqz(outside), slow),
        ),
      );
    } else f.if(outer, slow);
    return out;
  }

  private store(st: Store, v: Locals, lanes: number): void {
    const { dtype } = this.k.buffers[st.buffer];
    const { bytes } = inMemory[dtype];
    const step = stepAlong(st.index, this.along);
    if (lanes === LANES && step === 1) this.storeAll(dtype, v, this.address(st.buffer, st.index, bytes, null));
    else this.storeLanes(dtype, v, lanes, (l) => this.address(st.buffer, st.index, bytes, l));
  }

  /** Four elements side by side. */
  private storeAll(dtype: DType, v: Vec, address: Expr): void {
    const at = this.f.let(address);
    const { bytes, encode } = inMemory[dtype];
    const out = encode(this.lib, v);
    if (bytes >= 4)
      out.forEach((x, i) => {
        this.f.store("v128", at, x, 16 * i);
      });
    else this.f.storeLane(bytes === 2 ? 64 : 32, at, out[0], 0);
  }

  private storeLanes(dtype: DType, v: Vec, lanes: number, address: (l: number) => Expr): void {
    const { bytes, encode } = inMemory[dtype];
    const out = this.fresh(encode(this.lib, v));
    for (let l = 0; l < lanes; l++) {
      const at = address(l);
      if (bytes === 8) this.f.storeLane(64, at, out[l >> 1], l & 1);
      else this.f.storeLane((bytes * 8) as 8 | 16 | 32, at, out[0], l);
    }
  }
}
