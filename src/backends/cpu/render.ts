/**
 * The C renderer: a kernel as the text of one C function over vectors of L lanes (`runtime/lanes.h`).
 *
 * Three forms, by where the lanes lie:
 *   flat     no reductions and one long row: lanes along c; a tile is a run of positions, the length a parameter;
 *   columns  lanes along c, row by row: reductions over c end in a horizontal sum, reductions over r in a partial a block;
 *   rows     lanes along r, when that is the direction in which memory is contiguous: reductions over c stay in lanes.
 * A value that does not vary along the lanes is a vector of equal lanes, computed outside the loop.
 */

import { type Check, Emission } from "../../compiler/emission.ts";
import { type Index, isUniform, stepAlong } from "../../compiler/index-expr.ts";
import {
  type Condition,
  type Kernel,
  laneOf,
  runtimeValues,
  type Stage,
  type Store,
  type Value,
} from "../../compiler/kernel.ts";
import type { DType } from "../../core/dtype.ts";
import { BackendError } from "../../core/errors.ts";
import {
  bitcastTo,
  call,
  castTo,
  combine,
  identity,
  memory,
  number,
  operations,
  splatOf,
  vector,
} from "./operations.ts";

/** Positions of a flat kernel are handed out in rows of this many. */
export const FLAT_ROW = 1024;

export type Form = "flat" | "columns" | "rows";

export interface Rendered {
  readonly form: Form;
  /** Everything but the function's name, which is the same for all. */
  readonly body: string;
  /** Functions of lanes.h that are used. */
  readonly needed: ReadonlySet<string>;
  readonly hasFloat64: boolean;
  /** What check k of the kernel looks at; check k fails as operation p[1] + k. */
  readonly checks: readonly Check[];
}

export type { Check };

/** Where the lanes of a kernel go. */
export function chooseForm(k: Kernel): Form {
  const reduces = k.stages.some((s) => s.reductions.length || s.columns.length || s.rowStores.length);
  if (k.rows === 1 && !reduces) return "flat";
  if (k.stages.some((s) => s.columns.length)) return "columns";
  let alongC = 0;
  let alongR = 0;
  const seen = new Set<Value>();
  const weigh = (index: Index, weight: number): void => {
    const [c, r] = [stepAlong(index, "c"), stepAlong(index, "r")];
    if (c !== 0 && c !== 1) alongC += weight;
    if (r !== 0 && r !== 1) alongR += weight;
  };
  const visit = (v: Value): void => {
    if (seen.has(v)) return;
    seen.add(v);
    if (v.kind === "load" && v.varies("c")) weigh(v.index as Index, 1);
    for (const a of [...v.args, ...runtimeValues(v.index, v.valid)]) visit(a);
  };
  for (const s of k.stages) {
    for (const x of [...s.stores, ...s.rowStores]) visit(x.value);
    for (const x of s.reductions) visit(x.value);
    for (const x of s.stores) weigh(x.index, 1);
  }
  // rows shorter than a vector waste lanes along c
  return alongR < alongC && k.rows >= 4 ? "rows" : "columns";
}

/** The kernel as C; `form` where the caller needs a certain one (a kernel that rides on a product goes row by row). */
export function renderKernel(k: Kernel, form: Form = chooseForm(k)): Rendered {
  return new Renderer(k, form).run();
}

class Renderer extends Emission<string> {
  private readonly form: Form;
  /** The axis that the lanes lie along. */
  private readonly along: "r" | "c";
  private readonly needed = new Set<string>();
  private readonly lines: string[] = [];
  private indent = 1;
  private partial = "";
  private temporary = 0;

  constructor(k: Kernel, form: Form) {
    super(k);
    this.form = form;
    this.along = this.form === "rows" ? "r" : "c";
  }

  run(): Rendered {
    const { k } = this;
    k.buffers.forEach((b, i) => {
      this.line(`${b.written ? "" : "const "}${memory[b.dtype].type} *b${i} = (${memory[b.dtype].type} *)c_->b[${i}];`);
    });
    if (this.form === "flat") this.flat();
    else if (this.form === "columns") this.columns();
    else this.rows();
    const dtypes = new Set<DType>(k.buffers.map((b) => b.dtype));
    const hasFloat64 =
      dtypes.has("float64") || k.scalars.includes("float64") || this.lines.some((l) => l.includes("vd "));
    for (const l of this.lines) this.use(l);
    if (hasFloat64) this.needed.add("d");
    return { form: this.form, body: this.lines.join("\n"), needed: this.needed, hasFloat64, checks: this.checks };
  }

  // ---- the three forms ---------------------------------------------------------------------------------------------

  private flat(): void {
    this.line(
      `const nb_i64 n_ = c_->p[0], e_ = r1 * ${FLAT_ROW} < n_ ? r1 * ${FLAT_ROW} : n_; const nb_i64 r = 0; nb_i64 c = r0 * ${FLAT_ROW};`,
    );
    this.uniforms(this.k.stages[0], 0);
    this.open("for (; c + L <= e_; c += L)");
    this.pass(this.k.stages[0]);
    this.close();
    this.open("if (c < e_)");
    this.line("const int m_ = (int)(e_ - c);");
    this.partial = "m_";
    this.pass(this.k.stages[0]);
    this.partial = "";
    this.close();
  }

  private columns(): void {
    const { k } = this;
    const partials = k.stages.flatMap((s) => s.columns);
    for (const p of partials) {
      const t = laneOf[k.buffers[p.buffer].dtype];
      const type = memory[k.buffers[p.buffer].dtype].type;
      this.line(`${type} *q${p.buffer} = b${p.buffer} + (r0 / c_->grain) * ${k.columns};`);
      this.line(`for (nb_i64 j = 0; j < ${k.columns}; j++) q${p.buffer}[j] = (${type})${identity[p.op][t as "f"]};`);
    }
    this.uniforms(k.stages[0], 0);
    this.open("for (nb_i64 r = r0; r < r1; r++)");
    k.stages.forEach((stage, s) => {
      this.stage = s;
      for (const x of stage.reductions) {
        const t = laneOf[x.dtype];
        this.line(`${vector[t]} a${x.slot} = ${splatOf[t]}(${identity[x.op][t as "f"]});`);
      }
      if (stage.stores.length || stage.reductions.length || stage.columns.length) {
        this.uniforms(stage, 1);
        this.open(`for (nb_i64 c = 0; c < ${k.columns} - ${k.columns} % L; c += L)`);
        this.pass(stage);
        this.close();
        this.open(`if (${k.columns} % L)`);
        this.line(`const nb_i64 c = ${k.columns} - ${k.columns} % L; enum { m_ = ${k.columns} % L };`);
        this.partial = "m_";
        this.pass(stage);
        this.partial = "";
        this.close();
      }
      for (const x of stage.reductions) {
        const t = laneOf[x.dtype];
        const h = { sum: "hsum", prod: "hprod", max: "hmax", min: "hmin" }[x.op];
        this.line(`const ${vector[t]} x${x.slot} = ${splatOf[t]}(${t}_${h}(a${x.slot}));`);
      }
      // here too, everything is read before anything is written
      const values = stage.rowStores.map((st) => this.value(st.value, 1));
      stage.rowStores.forEach((st, i) => {
        this.line(this.storeLanes(st, values[i], "1"));
      });
    });
    this.close();
  }

  private rows(): void {
    this.uniforms(this.k.stages[0], 0);
    this.open("for (nb_i64 r = r0; r < r1; r += L)");
    this.open("if (r + L <= r1)");
    this.rowBlock();
    this.close();
    this.open("else");
    this.line("const int m_ = (int)(r1 - r);");
    this.partial = "m_";
    this.rowBlock();
    this.partial = "";
    this.close();
    this.close();
  }

  private rowBlock(): void {
    const { k } = this;
    k.stages.forEach((stage, s) => {
      this.stage = s;
      for (const x of stage.reductions) {
        const t = laneOf[x.dtype];
        this.line(`${vector[t]} x${x.slot} = ${splatOf[t]}(${identity[x.op][t as "f"]});`);
      }
      if (stage.stores.length || stage.reductions.length) {
        this.uniforms(stage, 1);
        // with c known, few positions cost no divisions
        if (k.columns <= 9) this.line("#pragma GCC unroll 9");
        this.open(`for (nb_i64 c = 0; c < ${k.columns}; c++)`);
        const values = stage.stores.map((st) => this.value(st.value, 2));
        for (const x of stage.reductions) this.value(x.value, 2);
        for (const [i, st] of stage.stores.entries()) this.line(this.store(st, values[i]));
        for (const x of stage.reductions) {
          const v = this.value(x.value, 2);
          const t = laneOf[x.dtype];
          this.line(`x${x.slot} = ${combine(x.op, t, `x${x.slot}`, v)};`);
        }
        this.close();
      }
      const values = stage.rowStores.map((st) => this.value(st.value, 1));
      stage.rowStores.forEach((st, i) => {
        this.line(this.store(st, values[i]));
      });
    });
  }

  /** One step of a stage's pass: everything at positions c … c + L. */
  private pass(stage: Stage): void {
    // everything is read before anything is written: a kernel may write a state over the old one
    const values = stage.stores.map((st) => this.value(st.value, 2));
    for (const x of [...stage.reductions, ...stage.columns]) this.value(x.value, 2);
    for (const [i, st] of stage.stores.entries()) this.line(this.store(st, values[i]));
    for (const x of stage.reductions) {
      const t = laneOf[x.dtype];
      let v = this.value(x.value, 2);
      if (this.partial) v = `${t}_sel(${this.tailMask()}, ${v}, ${splatOf[t]}(${identity[x.op][t as "f"]}))`;
      this.line(`a${x.slot} = ${combine(x.op, t, `a${x.slot}`, v)};`);
    }
    for (const x of stage.columns) {
      const dtype = this.k.buffers[x.buffer].dtype;
      const { prefix } = memory[dtype];
      const t = laneOf[dtype];
      const v = this.value(x.value, 2);
      const at = `q${x.buffer} + c`;
      const old = this.partial ? `${prefix}_loadn(${at}, m_)` : `${prefix}_load(${at})`;
      const sum = combine(x.op, t, old, v);
      this.line(this.partial ? `${prefix}_storen(${at}, ${sum}, m_);` : `${prefix}_store(${at}, ${sum});`);
    }
  }

  // ---- values ----------------------------------------------------------------------------------------------------

  protected override canReload(): boolean {
    return this.form === "columns";
  }

  protected override emit(v: Value, again: Store | null): string {
    const text = again
      ? this.loadLanes(this.k.buffers[again.buffer].dtype, again.buffer, again.index, [])
      : this.expression(v, this.argsOf(v));
    const name = `v${v.id}${this.depth > 1 ? `_${this.depth}` : ""}`;
    this.line(`const ${vector[laneOf[v.dtype]]} ${name} = ${text};`);
    return name;
  }

  private expression(v: Value, args: readonly string[]): string {
    const t = laneOf[v.dtype];
    switch (v.kind) {
      case "const":
        return `${splatOf[t]}(${number(v.name, t)})`;
      case "scalar": {
        const s = `c_->s[c_->si[${v.slot}]]`;
        return t === "m"
          ? `i_splat(${s} != 0 ? -1 : 0)`
          : t === "f"
            ? `f_splat((float)${s})`
            : t === "d"
              ? `d_splat(${s})`
              : t === "u"
                ? `u_splat((__UINT32_TYPE__)(nb_i64)${s})`
                : `i_splat((__INT32_TYPE__)(nb_i64)${s})`;
      }
      case "reduced":
        return `x${v.slot}`;
      case "index":
        return this.positions(v.index as Index, "i");
      case "random":
        return `u_threefry(${args[0]}[0], ${args[1]}[0], ${this.positions(v.index as Index, "u")})`;
      case "select":
        if (v.valid.every((c) => this.isUniform(c)))
          return `(${v.valid.map((c) => this.condition(c, false)).join(" && ")}) ? ${args[0]} : ${args[1]}`;
        return `${t === "m" ? "i" : t}_sel(${this.mask(v.valid)}, ${args[0]}, ${args[1]})`;
      case "load":
        return this.loadLanes(v.dtype, v.slot, v.index as Index, v.valid);
      default:
        return this.operation(v, args);
    }
  }

  private operation(v: Value, args: readonly string[]): string {
    const t = laneOf[v.dtype];
    const from = v.args[0].dtype;
    if (v.name === "cast") {
      return castTo(v.dtype, from, args[0]);
    }
    if (v.name === "bitcast") return bitcastTo(v.dtype, from, args[0]);
    const isComparison = v.name === "lt" || v.name === "le" || v.name === "eq";
    const operand = isComparison ? laneOf[from] : t;
    if ((v.name === "idiv" || v.name === "mod") && (t === "i" || t === "u")) this.checkDivision(v, args[1]);
    const emit = operations[v.name] ?? call(v.name);
    return emit(operand, args, v.dtype);
  }

  /** Notes the functions of lanes.h that a text calls. */
  private use(text: string): void {
    for (const m of text.matchAll(/\b([fdium]_\w+)\(/g)) this.needed.add(m[1]);
  }

  // ---- positions ---------------------------------------------------------------------------------------------------

  /** An index as a C expression, at lane l or at the first. */
  private index(i: Index, inLane: boolean): string {
    const parts: string[] = [];
    for (const { atom, coefficient } of i.terms) {
      let a: string;
      if (atom.kind === "axis") a = inLane && atom.name === this.along ? `(${atom.name} + l)` : atom.name;
      else if (atom.kind === "value") a = this.runtimeIndex(atom.value as Value, atom.extent, inLane);
      else if (atom.kind === "bounded") a = `(${this.index(atom.of, inLane)})`;
      else {
        const operator = atom.kind === "div" ? "/" : "%";
        const of = this.index(atom.of, inLane);
        // unsigned and short: one multiplication and a shift, where a signed 64-bit division takes five instructions more
        const isShort = atom.of.min >= 0 && atom.of.max < 2 ** 32;
        a = isShort ? `(nb_i64)((__UINT32_TYPE__)(${of}) ${operator} ${atom.by}u)` : `((${of}) ${operator} ${atom.by})`;
      }
      parts.push(coefficient === 1 ? a : `${a} * ${coefficient}`);
    }
    if (i.constant !== 0 || parts.length === 0) parts.push(String(i.constant));
    return parts.join(" + ");
  }

  private runtimeIndex(v: Value, extent: number, inLane: boolean): string {
    const name = this.checkedIndex(v, extent);
    return `(nb_i64)${name}[${inLane && v.varies(this.along) ? "l" : "0"}]`;
  }

  /** A run-time index, held inside 0 … extent − 1; outside it the run has failed. */
  private checkedIndex(v: Value, extent: number): string {
    const source = this.find(v.id);
    if (source === undefined) throw new BackendError("cpu: a run-time index was used before it was emitted");
    const key = `${source}:${extent}:${this.partial}`;
    const known = this.find(key);
    if (known !== undefined) return known;
    const t = this.temporary++;
    const name = `k${v.id}_${extent}_${t}`;
    const check = this.addCheck({ kind: "index", extent });
    const live = this.partial && v.varies(this.along) ? ` & ${this.tailMask()}` : "";
    this.line(
      `vi ${name} = ${source}; { const vi t${t} = (i_lt(${source}, i_splat(0)) | ~i_lt(${source}, i_splat(${extent})))${live};`,
    );
    this.line(
      `  if (i_any(t${t})) { for (int l = 0; l < L; l++) if (t${t}[l]) { nabla_fail(c_->run, c_->p[1] + ${check}, (nb_i64)${source}[l] & 0xffffffffffLL); break; } }`,
    );
    this.line(`  ${name} = i_max(i_min(${name}, i_splat(${extent - 1})), i_splat(0)); }`);
    this.keep(key, name);
    return name;
  }

  private checkDivision(v: Value, divisor: string): void {
    const check = this.addCheck({ kind: "division", extent: 0 });
    const t = laneOf[v.dtype];
    const live = this.partial ? ` & ${this.tailMask()}` : "";
    this.line(`if (i_any(${t}_eq(${divisor}, ${splatOf[t]}(0))${live})) nabla_fail(c_->run, c_->p[1] + ${check}, 0);`);
  }

  /** Positions as a vector of integers. */
  private positions(i: Index, t: "i" | "u"): string {
    const step = stepAlong(i, this.along);
    const type = t === "i" ? "__INT32_TYPE__" : "__UINT32_TYPE__";
    if (step === null) {
      const name = `t${this.temporary++}`;
      this.line(`${vector[t]} ${name}; for (int l = 0; l < L; l++) ${name}[l] = (${type})(${this.index(i, true)});`);
      return name;
    }
    const base = `${splatOf[t]}((${type})(${this.index(i, false)}))`;
    if (step === 0) return base;
    const lanes = t === "u" ? "u_bits_i(i_iota())" : "i_iota()";
    return step === 1 ? `${base} + ${lanes}` : `${base} + ${lanes} * ${splatOf[t]}((${type})${step})`;
  }

  private isUniform(c: Condition): boolean {
    return isUniform(c.index, c.lo, c.hi, this.along);
  }

  private tailMask(): string {
    return "i_lt(i_iota(), i_splat(m_))";
  }

  /** Conditions as a mask. */
  private mask(conditions: readonly Condition[]): string {
    return conditions
      .map((c) => {
        const p = this.positions(c.index, "i");
        const parts: string[] = [];
        if (c.index.min < c.lo) parts.push(`~i_lt(${p}, i_splat(${c.lo}))`);
        if (c.index.max >= c.hi) parts.push(`i_lt(${p}, i_splat(${c.hi}))`);
        return parts.join(" & ");
      })
      .map((m) => `(${m})`)
      .join(" & ");
  }

  /** The condition as C, at one lane or at the first. */
  private condition(c: Condition, inLane: boolean): string {
    const i = `(${this.index(c.index, inLane)})`;
    const parts: string[] = [];
    if (c.index.min < c.lo) parts.push(`${i} >= ${c.lo}`);
    if (c.index.max >= c.hi) parts.push(`${i} < ${c.hi}`);
    return parts.join(" && ");
  }

  // ---- memory --------------------------------------------------------------------------------------------------------

  private loadLanes(dtype: DType, buffer: number, index: Index, valid: readonly Condition[]): string {
    const { prefix } = memory[dtype];
    const t = laneOf[dtype];
    const step = stepAlong(index, this.along);
    const uniform = valid.filter((c) => this.isUniform(c));
    const varying = valid.filter((c) => !this.isUniform(c));
    for (const c of valid) this.index(c.index, true); // run-time indices are checked before they are used in a condition
    const at = this.index(index, false);
    const one = `${prefix}_loadn(b${buffer} + (${at}), 1)[0]`;
    const plain =
      step === 0
        ? `${splatOf[t]}(${prefix === "f" || prefix === "d" || prefix === "i" || prefix === "u" ? `b${buffer}[${at}]` : one})`
        : step === 1
          ? this.partial
            ? `${prefix}_loadn(b${buffer} + (${at}), m_)`
            : `${prefix}_load(b${buffer} + (${at}))`
          : null;
    if (valid.length === 0 && plain) return plain;
    const name = `t${this.temporary++}`;
    const n = this.partial ? "m_" : "L";
    const inLane = this.index(index, true);
    const element =
      prefix === "f" || prefix === "d" || prefix === "i" || prefix === "u"
        ? `b${buffer}[${inLane}]`
        : `${prefix}_loadn(b${buffer} + (${inLane}), 1)[0]`;
    const guards = varying
      .map((c) => this.condition(c, true))
      .filter(Boolean)
      .join(" && ");
    const slow = `for (int l = 0; l < ${n}; l++) ${guards ? `if (${guards}) ` : ""}${name}[l] = ${element};`;
    this.line(`${vector[t]} ${name} = ${splatOf[t]}(0);`);
    const outer = uniform
      .map((c) => this.condition(c, false))
      .filter(Boolean)
      .join(" && ");
    let text = slow;
    const simple = varying.every((c) => stepAlong(c.index, this.along) !== null);
    if (plain && varying.length === 0) text = `${name} = ${plain};`;
    else if (plain && simple) {
      // all lanes inside: one load; all outside by one condition: none; else lane by lane
      const last = (c: Condition): string =>
        `(${this.index(c.index, false)} + ${stepAlong(c.index, this.along) as number} * (${n} - 1))`;
      const first = (c: Condition): string => `(${this.index(c.index, false)})`;
      const inside = varying
        .map((c) => [first(c), last(c)].map((e) => `${e} >= ${c.lo} && ${e} < ${c.hi}`).join(" && "))
        .join(" && ");
      const outside = varying
        .map(
          (c) => `(${first(c)} < ${c.lo} && ${last(c)} < ${c.lo}) || (${first(c)} >= ${c.hi} && ${last(c)} >= ${c.hi})`,
        )
        .join(" || ");
      text = `if (${inside}) ${name} = ${plain}; else if (!(${outside})) { ${slow} }`;
    }
    this.line(outer ? `if (${outer}) { ${text} }` : text);
    return name;
  }

  private store(st: Store, v: string): string {
    return this.storeLanes(st, v, this.partial ? "m_" : "L");
  }

  private storeLanes(st: Store, v: string, n: string): string {
    const { dtype } = this.k.buffers[st.buffer];
    const { prefix } = memory[dtype];
    const step = stepAlong(st.index, this.along);
    const at = `b${st.buffer} + (${this.index(st.index, false)})`;
    if (n === "1") return `${prefix}_storen(${at}, ${v}, 1);`;
    if (step === 1) return n === "L" ? `${prefix}_store(${at}, ${v});` : `${prefix}_storen(${at}, ${v}, m_);`;
    const lanes = `b${st.buffer} + (${this.index(st.index, true)})`;
    const direct = prefix === "f" || prefix === "d" || prefix === "i" || prefix === "u";
    if (direct) return `for (int l = 0; l < ${n}; l++) *(${lanes}) = ${v}[l];`;
    const s = splatOf[laneOf[dtype]];
    return `for (int l = 0; l < ${n}; l++) ${prefix}_storen(${lanes}, ${s}(${v}[l]), 1);`;
  }

  private line(text: string): void {
    this.lines.push("  ".repeat(this.indent) + text);
  }

  private open(head: string): void {
    this.line(`${head} {`);
    this.indent++;
    this.openScope();
  }

  private close(): void {
    this.closeScope();
    this.indent--;
    this.line("}");
  }
}
