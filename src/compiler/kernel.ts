/**
 * The kernel language: what the fuser makes and every renderer reads. A kernel walks rows r (parallel) and columns c
 * (inner), in stages; each stage is one pass over c that stores values and feeds reductions. Values form a graph
 * without repeats, so a renderer emits each once a stage. The text form (`showKernel`) is what tests compare.
 */
import { accumulator, type DType } from "../core/dtype.ts";
import { dependsOn, type Index } from "./index-expr.ts";

/** How a dtype is computed with: f float32, d float64, i int32, u uint32, m truth (in a vector, a mask of 0 and −1). */
export type Lane = "f" | "d" | "i" | "u" | "m";
export const laneOf: Readonly<Record<DType, Lane>> = {
  float32: "f",
  float64: "d",
  float16: "f",
  bfloat16: "f",
  int32: "i",
  uint32: "u",
  uint8: "i",
  bool: "m",
};

/** A condition on positions: lo ≤ index < hi. */
export interface Condition {
  readonly index: Index;
  readonly lo: number;
  readonly hi: number;
}

export type ValueKind = "load" | "const" | "scalar" | "index" | "op" | "select" | "reduced" | "random";

const R = 1;
const C = 2;

export class Value {
  readonly id: number;
  readonly kind: ValueKind;
  readonly dtype: DType;
  /** Operation name (op), reduction number (reduced), text of the number (const). */
  readonly name: string;
  readonly args: readonly Value[];
  /** load: which buffer of the kernel; scalar: which of its scalars; reduced: which reduction. */
  readonly slot: number;
  /** load, index, random: the position. */
  readonly index: Index | null;
  /** load: positions outside are not read (the value is then unused); select: when args[0] rather than args[1]. */
  readonly valid: readonly Condition[];
  /** Which of r (1) and c (2) it varies along. */
  readonly along: number;
  /** Work an element, in FLOP; what it takes to compute this value from loads. */
  readonly cost: number;
  readonly loads: number;
  /** The first stage in which it can be computed. */
  readonly stage: number;

  constructor(id: number, v: ValueSpec, stage: number) {
    this.id = id;
    this.kind = v.kind;
    this.dtype = v.dtype;
    this.name = v.name ?? "";
    this.args = v.args ?? [];
    this.slot = v.slot ?? -1;
    this.index = v.index ?? null;
    this.valid = v.valid ?? [];
    let along = v.kind === "reduced" ? R : 0;
    let cost = v.kind === "op" ? (costs[this.name] ?? 1) : v.kind === "random" ? 100 : v.kind === "select" ? 1 : 0;
    let loads = v.kind === "load" ? 1 : 0;
    for (const a of this.args) {
      along |= a.along;
      cost += a.cost;
      loads += a.loads;
    }
    for (const i of [...(this.index ? [this.index] : []), ...this.valid.map((c) => c.index)]) {
      if (dependsOn(i, "r")) along |= R;
      if (dependsOn(i, "c")) along |= C;
    }
    this.along = along;
    this.cost = cost;
    this.loads = loads;
    this.stage = stage;
  }

  varies(axis: string): boolean {
    return (this.along & (axis === "r" ? R : C)) !== 0;
  }
}

export interface ValueSpec {
  readonly kind: ValueKind;
  readonly dtype: DType;
  readonly name?: string;
  readonly args?: readonly Value[];
  readonly slot?: number;
  readonly index?: Index;
  readonly valid?: readonly Condition[];
}

/** FLOP an element of the operations that are not one. */
const costs: Readonly<Record<string, number>> = {
  exp: 8,
  log: 8,
  log1p: 10,
  expm1: 10,
  sin: 12,
  cos: 12,
  atan: 12,
  tanh: 10,
  erf: 12,
  pow: 20,
  sqrt: 4,
  div: 4,
  mod: 8,
  idiv: 8,
  cast: 0,
  bitcast: 0,
};
export const costOf = (name: string): number => costs[name] ?? 1;

/** Makes values, each distinct one once. */
export class Values {
  private readonly known: Map<string, Value>;
  /** reduction number → the stage after which it is known. */
  private readonly reductionStage: number[];
  private next: number;

  /** `from`: the values to begin with. */
  constructor(from?: Values) {
    this.known = new Map(from?.known);
    this.reductionStage = from ? from.reductionStage.slice() : [];
    this.next = from?.next ?? 0;
  }

  make(spec: ValueSpec): Value {
    const key = `${spec.kind}|${spec.dtype}|${spec.name ?? ""}|${spec.slot ?? ""}|${spec.args?.map((a) => a.id).join(",") ?? ""}|${spec.index?.key ?? ""}|${spec.valid?.map((c) => `${c.lo}<=${c.index.key}<${c.hi}`).join("&") ?? ""}`;
    let value = this.known.get(key);
    if (!value) {
      let stage = spec.kind === "reduced" ? this.reductionStage[spec.slot as number] + 1 : 0;
      for (const a of spec.args ?? []) stage = Math.max(stage, a.stage);
      for (const v of runtimeValues(spec.index, spec.valid)) stage = Math.max(stage, v.stage);
      value = new Value(this.next++, spec, stage);
      this.known.set(key, value);
    }
    return value;
  }

  /** A new reduction over c of `value`; its result is a value from the next stage on. */
  reduction(value: Value, dtype: DType): Value {
    this.reductionStage.push(value.stage);
    return this.make({ kind: "reduced", dtype, slot: this.reductionStage.length - 1 });
  }
}

/** The values that positions depend on at run time. */
export function runtimeValues(index: Index | null | undefined, valid: readonly Condition[] = []): Value[] {
  const out: Value[] = [];
  const visit = (i: Index): void => {
    for (const { atom } of i.terms) {
      if (atom.kind === "value") out.push(atom.value as Value);
      else if (atom.kind !== "axis") visit(atom.of);
    }
  };
  if (index) visit(index);
  for (const c of valid) visit(c.index);
  return out;
}

/** What a value is computed from, positions at run time too. */
export const sourcesOf = (v: Value): Value[] => [...v.args, ...runtimeValues(v.index, v.valid)];

/** What `root` is computed from and has not been seen, each after its own sources, and `root`; without recursion. */
export function sourcesFirst(root: Value, seen: Set<Value>): Value[] {
  const out: Value[] = [];
  const stack = [root];
  const entered = new Set<Value>();
  while (stack.length) {
    const v = stack.pop() as Value;
    if (entered.delete(v)) out.push(v);
    else if (!seen.has(v)) {
      seen.add(v);
      entered.add(v);
      stack.push(v, ...sourcesOf(v).reverse());
    }
  }
  return out;
}

/** These values and all that they are computed from, at run-time positions too. */
export function reachable(values: readonly Value[]): Set<Value> {
  const seen = new Set<Value>();
  const stack = values.slice();
  while (stack.length) {
    const v = stack.pop() as Value;
    if (seen.has(v)) continue;
    seen.add(v);
    stack.push(...sourcesOf(v));
  }
  return seen;
}

export interface Store {
  readonly buffer: number;
  readonly index: Index;
  readonly value: Value;
}

export interface Reduction {
  readonly op: "sum" | "prod" | "max" | "min";
  readonly value: Value;
  readonly dtype: DType;
  /** Number that `reduced` values name. */
  readonly slot: number;
}

/** A reduction over r: block b of rows leaves its part at [b, c] of the buffer. */
/** The dtype in which the parts of a reduction are kept: as wide as it is accumulated. */
export const partDType = (dtype: DType): DType => (dtype === "uint8" ? "int32" : accumulator(dtype));

export interface ColumnReduction {
  readonly op: Reduction["op"];
  readonly value: Value;
  readonly buffer: number;
}

export interface Stage {
  readonly stores: readonly Store[];
  readonly reductions: readonly Reduction[];
  readonly columns: readonly ColumnReduction[];
  /** Stores of values that do not vary along c: once a row, after the pass. */
  readonly rowStores: readonly Store[];
}

export interface Kernel {
  readonly rows: number;
  readonly columns: number;
  /** dtype of each buffer, and whether it is written. */
  readonly buffers: readonly { readonly dtype: DType; readonly written: boolean }[];
  readonly scalars: readonly DType[];
  readonly stages: readonly Stage[];
  /** Some load position comes from data and is checked. */
  readonly canFail: boolean;
  readonly flops: number;
}

/** A text that only kernels have which do the same with their buffers and scalars. */
export function keyOf(k: Kernel): string {
  const seen = new Set<Value>();
  const roots = k.stages.flatMap((s) => [...s.stores, ...s.reductions, ...s.columns, ...s.rowStores]);
  const values = roots.flatMap((x) => sourcesFirst(x.value, seen)).map((v) => ({ ...v }));
  // values by number, indices by key
  return JSON.stringify({ ...k, values }, (_, x) => (x instanceof Value ? x.id : x?.terms ? x.key : x));
}

// ---- text -------------------------------------------------------------------------------------------------------

export const showIndex = (i: Index): string => {
  const parts = i.terms.map(({ atom, coefficient }) => {
    const a =
      atom.kind === "axis"
        ? atom.name
        : atom.kind === "value"
          ? `[v${(atom.value as Value).id}]`
          : atom.kind === "bounded"
            ? `(${showIndex(atom.of)})`
            : `(${showIndex(atom.of)} ${atom.kind === "div" ? "/" : "%"} ${atom.by})`;
    return coefficient === 1 ? a : `${coefficient}·${a}`;
  });
  if (i.constant !== 0 || parts.length === 0) parts.push(String(i.constant));
  return parts.join(" + ").replaceAll("+ -", "- ");
};

const showCondition = (c: Condition): string => `${c.lo} ≤ ${showIndex(c.index)} < ${c.hi}`;

export function showValue(v: Value): string {
  const args = v.args.map((a) => `v${a.id}`).join(", ");
  const guard = v.valid.length ? ` if ${v.valid.map(showCondition).join(" and ")}` : "";
  switch (v.kind) {
    case "load":
      return `b${v.slot}[${showIndex(v.index as Index)}]${guard}`;
    case "const":
      return v.name;
    case "scalar":
      return `s${v.slot}`;
    case "index":
      return showIndex(v.index as Index);
    case "reduced":
      return `reduction ${v.slot}`;
    case "random":
      return `random(${args}; ${showIndex(v.index as Index)})`;
    case "select":
      return `(${args})${guard}`;
    default:
      return `${v.name}(${args})`;
  }
}

/** The kernel as text: one line a value, a store or a reduction, stage by stage. */
export function showKernel(k: Kernel): string {
  const lines = [`kernel rows ${k.rows} × columns ${k.columns}`];
  k.buffers.forEach((b, i) => {
    lines.push(`  b${i}: ${b.written ? "out" : "in"} ${b.dtype}`);
  });
  k.stages.forEach((stage, s) => {
    lines.push(`  stage ${s}`);
    const seen = new Set<Value>();
    const emit = (root: Value): void => {
      for (const v of sourcesFirst(root, seen)) lines.push(`    v${v.id}: ${v.dtype} = ${showValue(v)}`);
    };
    for (const st of stage.stores) {
      emit(st.value);
      lines.push(`    b${st.buffer}[${showIndex(st.index)}] = v${st.value.id}`);
    }
    for (const r of stage.reductions) {
      emit(r.value);
      lines.push(`    reduction ${r.slot} = ${r.op} over c of v${r.value.id}`);
    }
    for (const r of stage.columns) {
      emit(r.value);
      lines.push(`    b${r.buffer}[block, c] = ${r.op} over r of v${r.value.id}`);
    }
    for (const st of stage.rowStores) {
      emit(st.value);
      lines.push(`    once a row: b${st.buffer}[${showIndex(st.index)}] = v${st.value.id}`);
    }
  });
  return lines.join("\n");
}
