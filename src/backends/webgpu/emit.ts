/**
 * The values of a kernel as WGSL: named constants in nested scopes, positions, conditions and checks, loads and stores.
 * What a renderer stands on; it decides where loops begin and end (render.ts), this only what is said inside them.
 */
import { type Check, Emission } from "../../compiler/emission.ts";
import type { Index } from "../../compiler/index-expr.ts";
import type { Condition, Kernel, Store, Value } from "../../compiler/kernel.ts";
import type { DType } from "../../core/dtype.ts";
import { BackendError } from "../../core/errors.ts";
import { type Plan, planKernel, valuesOf } from "./forms.ts";
import { laneOf, perWord, typeOf, UNIFORM_HEAD, uniformWord } from "./layout.ts";
import { literal, narrowBits, operation } from "./operations.ts";

export interface WgslOptions {
  /** Whether the device has the feature shader-f16: float16 then lies in memory as f16. The bytes are the same. */
  readonly f16: boolean;
  /** Whether the device has the feature subgroups: long trees then end in shuffles. The bits are the same. */
  readonly subgroups: boolean;
  /** Device.lanes: above 0, a subgroup is a vector of a processor; the bits of sums are those of that size. */
  readonly lanes?: number;
  /** For each buffer of the kernel, the first buffer that is the same memory (a state written in place); default: none is. */
  readonly sharedWith?: readonly number[];
  /** Whether the kernel writes state, and so does nothing once the failure word is set. */
  readonly writesState?: boolean;
  /** Storage buffers that the device binds; MAX_STORAGE_BUFFERS if not given. */
  readonly maxStorageBuffers?: number;
}

export type { Check };

/** Positions are int32; this leaves room for the strides beyond the end. */
const MAX_POSITIONS = 2 ** 31 - 2 ** 27;

export class Emitter extends Emission<string> {
  protected readonly options: WgslOptions;
  protected readonly plan: Plan;
  protected readonly lines: string[] = [];
  /** Buffers that are read or written at all. */
  protected readonly used = new Set<number>();
  /** Buffers whose single elements are changed by atomics. */
  protected readonly atomic = new Set<number>();
  private temporary = 0;
  private indent = 1;

  constructor(k: Kernel, options: WgslOptions) {
    super(k);
    this.options = options;
    this.plan = planKernel(k, (dtype) => this.isNarrow(dtype), options.lanes);
    for (const dtype of [...k.buffers.map((b) => b.dtype), ...k.scalars]) laneOf(dtype);
    this.findUses();
  }

  // ---- buffers -----------------------------------------------------------------------------------------------------

  /** Whether elements share words with their neighbours, so that stores have to be whole words or atomics. */
  protected isNarrow(dtype: DType): boolean {
    return perWord(dtype) > 1 && !(dtype === "float16" && this.options.f16);
  }

  protected get hasFailure(): boolean {
    return this.k.canFail || this.options.writesState === true;
  }

  /** The buffer under whose name this one is bound. */
  protected home(buffer: number): number {
    return this.options.sharedWith?.[buffer] ?? buffer;
  }

  /** Whether another of the kernel's buffers is the same memory. */
  protected isShared(buffer: number): boolean {
    return this.k.buffers.some((_, i) => i !== buffer && this.used.has(i) && this.home(i) === this.home(buffer));
  }

  protected dtypeOf(buffer: number): DType {
    return this.k.buffers[buffer].dtype;
  }

  protected findUses(): void {
    const { k } = this;
    let largest = k.rows * k.columns;
    const see = (index: Index): void => {
      largest = Math.max(largest, index.max, -index.min);
    };
    for (const v of valuesOf(k)) {
      laneOf(v.dtype);
      if (v.kind === "load") this.used.add(v.slot);
      if (v.index) see(v.index);
    }
    const written = k.stages.flatMap((s) => [...s.stores, ...s.rowStores, ...s.columns]);
    for (const st of written) this.used.add(st.buffer);
    for (const s of k.stages) for (const st of [...s.stores, ...s.rowStores]) see(st.index);
    if (largest > MAX_POSITIONS)
      throw new BackendError(
        `webgpu: a kernel of ${k.rows} × ${k.columns} reaches position ${largest}, more than ${MAX_POSITIONS}; split the tensor`,
      );
    for (const s of k.stages) {
      for (const st of s.stores) if (this.plan.granule === 1) this.markAtomic(st.buffer);
      for (const st of [...s.rowStores, ...s.columns]) this.markAtomic(st.buffer);
    }
    k.buffers.forEach((b, i) => {
      const home = this.home(i);
      if (!import.meta.forBrowsers && k.buffers[home].dtype !== b.dtype)
        throw new BackendError(
          `webgpu: buffers ${home} and ${i} of a kernel share memory as ${k.buffers[home].dtype} and ${b.dtype}`,
        );
    });
  }

  protected markAtomic(buffer: number): void {
    if (this.isNarrow(this.k.buffers[buffer].dtype)) this.atomic.add(this.home(buffer));
  }

  // ---- values ----------------------------------------------------------------------------------------------------

  /** 0: the same everywhere; 1: outside the inner loop; 2: inside it. A flat kernel has one loop. */
  protected override level(v: Value): number {
    const { form, outer, inner } = this.plan;
    if (v.varies(inner)) return 2;
    if (v.varies(outer)) return form === "flat" ? 2 : 1;
    return 0;
  }

  /** By the invocation that stored it, and only where it was stored whole. */
  protected override canReload(v: Value, { buffer }: Store): boolean {
    return this.level(v) === 2 && perWord(this.dtypeOf(buffer)) === 1;
  }

  protected override emit(v: Value, again: Store | null): string {
    const text = again ? `b${this.home(again.buffer)}[${this.index(again.index)}]` : this.expression(v, this.argsOf(v));
    const name = this.depth > 1 ? `v${v.id}_${this.depth}` : `v${v.id}`;
    this.line(`let ${name}: ${typeOf[laneOf(v.dtype)]} = ${text};`);
    return name;
  }

  protected expression(v: Value, args: readonly string[]): string {
    switch (v.kind) {
      case "const":
        return literal(v.name, v.dtype);
      case "scalar": {
        const word = uniformWord(UNIFORM_HEAD + v.slot);
        const t = laneOf(v.dtype);
        return t === "m" ? `${word} != 0u` : t === "u" ? word : `bitcast<${typeOf[t]}>(${word})`;
      }
      case "reduced":
        return `x${v.slot}`;
      case "index":
        return this.index(v.index as Index);
      case "random": {
        const keys = v.args.map((a, i) => (laneOf(a.dtype) === "u" ? args[i] : `bitcast<u32>(${args[i]})`));
        return `threefry(${keys.join(", ")}, u32(${this.index(v.index as Index)}))`;
      }
      case "select":
        return `select(${args[1]}, ${args[0]}, ${this.conditions(v.valid)})`;
      case "load":
        return this.load(v);
      default:
        if ((v.name === "idiv" || v.name === "mod") && laneOf(v.dtype) !== "f") this.checkDivision(v, args[1]);
        return operation(v, args);
    }
  }

  // ---- positions ---------------------------------------------------------------------------------------------------

  /** An index as an i32 expression. `guard` says where a run-time index in it has to be right. */
  protected index(i: Index, guard = ""): string {
    const parts: string[] = [];
    for (const { atom, coefficient } of i.terms) {
      let a: string;
      if (atom.kind === "axis") a = atom.name;
      else if (atom.kind === "value") a = this.checkedIndex(atom.value as Value, atom.extent, guard);
      else {
        const inner = this.index(atom.of, guard);
        a = inner.includes(" ") ? `(${inner})` : inner;
        if (atom.kind !== "bounded") a = `(${a} ${atom.kind === "div" ? "/" : "%"} ${atom.by})`;
      }
      parts.push(coefficient === 1 ? a : `${a} * ${coefficient}`);
    }
    if (i.constant !== 0 || parts.length === 0) parts.push(String(i.constant));
    return parts.join(" + ");
  }

  /** A run-time index, held inside 0 … extent − 1; outside it the run has failed. */
  protected checkedIndex(v: Value, extent: number, guard: string): string {
    const source = this.find(v.id) as string;
    if (!import.meta.forBrowsers && !source)
      throw new BackendError("webgpu: a run-time index was used before it was emitted");
    const key = `${source} of ${extent} if ${guard}`;
    const known = this.find(key);
    if (known) return known;
    const name = this.fresh("k");
    const outside = `bitcast<u32>(${source}) >= ${extent}u`;
    this.line(`let ${name} = clamp(${source}, 0, ${Math.max(0, extent - 1)});`);
    this.line(
      `if (${guard ? `${guard} & (${outside})` : outside}) { fail(${this.check({ kind: "index", extent })}, ${source}); }`,
    );
    this.keep(key, name);
    return name;
  }

  protected checkDivision(v: Value, divisor: string): void {
    const zero = laneOf(v.dtype) === "u" ? "0u" : "0";
    this.line(`if (${divisor} == ${zero}) { fail(${this.check({ kind: "division", extent: 0 })}, 0); }`);
  }

  protected check(check: Check): string {
    if (!import.meta.forBrowsers && !this.hasFailure)
      throw new BackendError("webgpu: a kernel checks an index or a divisor but is not said to fail (Kernel.canFail)");
    return `${uniformWord(1)} + ${this.addCheck(check)}u`;
  }

  /** Conditions as one truth; run-time indices of later ones count where the earlier hold. */
  protected conditions(conditions: readonly Condition[]): string {
    let all = "";
    for (const c of conditions) {
      const key = `${c.index.key} if ${all}`;
      let name = this.find(key);
      if (!name) {
        name = this.fresh("n");
        this.line(`let ${name} = ${this.index(c.index, all)};`);
        this.keep(key, name);
      }
      for (const part of [
        c.index.min < c.lo ? `${name} >= ${c.lo}` : "",
        c.index.max >= c.hi ? `${name} < ${c.hi}` : "",
      ])
        if (part) all = all ? `${all} & (${part})` : `(${part})`;
    }
    return all ? `(${all})` : "true";
  }

  // ---- memory ------------------------------------------------------------------------------------------------------

  protected load(v: Value): string {
    const t = laneOf(v.dtype);
    if (v.valid.length === 0) return this.element(v.slot, this.index(v.index as Index));
    const inside = this.conditions(v.valid);
    const at = this.index(v.index as Index, inside);
    const name = this.fresh("t");
    this.line(`var ${name}: ${typeOf[t]};`);
    this.open(`if ${inside === "true" ? "(true)" : inside}`);
    this.line(`${name} = ${this.element(v.slot, at)};`);
    this.close();
    return name;
  }

  /** The value of one element of a buffer. */
  protected element(buffer: number, at: string): string {
    const dtype = this.dtypeOf(buffer);
    const b = `b${this.home(buffer)}`;
    if (!this.isNarrow(dtype)) return dtype === "float16" ? `f32(${b}[${at}])` : `${b}[${at}]`;
    const n = perWord(dtype);
    const i = this.fresh("t");
    this.line(`let ${i} = ${at};`);
    const word = this.atomic.has(this.home(buffer)) ? `atomicLoad(&${b}[${i} / ${n}])` : `${b}[${i} / ${n}]`;
    return narrowBits[dtype]?.from(`extractBits(${word}, u32(${i} % ${n} * ${32 / n}), ${32 / n}u)`) as string;
  }

  protected store(buffer: number, at: string, v: string): void {
    const dtype = this.dtypeOf(buffer);
    const b = `b${this.home(buffer)}`;
    if (!this.isNarrow(dtype)) {
      this.line(`${b}[${at}] = ${dtype === "float16" ? `bitcast<vec2<f16>>(half_bits(${v})).x` : v};`);
      return;
    }
    const n = perWord(dtype);
    const i = this.fresh("t");
    this.line(`let ${i} = ${at};`);
    this.line(`let ${i}_by = u32(${i} % ${n} * ${32 / n});`);
    this.line(`atomicAnd(&${b}[${i} / ${n}], ~(${2 ** (32 / n) - 1}u << ${i}_by));`);
    this.line(`atomicOr(&${b}[${i} / ${n}], (${narrowBits[dtype]?.to(v)}) << ${i}_by);`);
  }

  /** A name that is not used yet. */
  protected fresh(letter: string): string {
    return `${letter}${this.temporary++}`;
  }

  protected line(text: string): void {
    this.lines.push("  ".repeat(this.indent) + text);
  }

  protected open(head: string): void {
    this.line(`${head} {`);
    this.indent++;
    this.openScope();
  }

  protected close(): void {
    this.closeScope();
    this.indent--;
    this.line("}");
  }
}
