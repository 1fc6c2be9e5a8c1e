/**
 * What a kernel computes for one node at one position: movement operations become index expressions, elementwise
 * operations become values, and the walk stops at boundaries: nodes that lie in memory, or that the same kernel
 * computes at the same position.
 */
import { isFloat } from "../core/dtype.ts";
import { BackendError } from "../core/errors.ts";
import { sizeOf } from "../core/shape.ts";
import {
  add,
  affine,
  axis,
  bounded,
  constantIndex,
  delinearize,
  div,
  type Index,
  linearize,
  mod,
  offset,
  scale,
  valueIndex,
} from "./index-expr.ts";
import { type Condition, reachable, type Value, Values } from "./kernel.ts";
import type { GNode } from "./lower.ts";

const movements = new Set(["reshape", "permute", "expand", "slice", "pad", "window", "concat"]);
export const isView = (n: GNode): boolean => movements.has(n.op);

const numbers = (n: GNode, name: string): readonly number[] => n.attrs[name] as readonly number[];

/** Where a movement with one source reads: its source's index, for position `at` of its result. Not for pad and concat. */
function sourceIndex(n: GNode, at: readonly Index[]): Index[] {
  const source = n.inputs[0].shape;
  switch (n.op) {
    case "reshape":
      return delinearize(linearize(at, n.shape), source);
    case "permute": {
      const out = new Array<Index>(source.length);
      numbers(n, "axes").forEach((a, i) => {
        out[a] = at[i];
      });
      return out;
    }
    case "expand":
      return source.map((size, i) => (size === 1 ? constantIndex(0) : at[i]));
    case "slice": {
      const [start, step] = [numbers(n, "start"), numbers(n, "step")];
      return at.map((i, k) => offset(scale(i, step[k]), start[k]));
    }
    case "window": {
      const [axes, stride, dilation] = ["axes", "stride", "dilation"].map((name) => numbers(n, name));
      const out = at.slice(0, source.length);
      axes.forEach((a, k) => {
        out[a] = add(scale(at[a], stride[k]), scale(at[source.length + k], dilation[k]));
      });
      return out;
    }
    default:
      throw new BackendError(`compiler: ${n.op} is not a movement with one source`);
  }
}

const always = (c: Condition): boolean => c.index.min >= c.lo && c.index.max < c.hi;
const never = (c: Condition): boolean => c.index.max < c.lo || c.index.min >= c.hi;

/** The check of all numbers of an index; the same for every shape in which the same ones are read. */
export function checkOf(index: GNode, extent: number): string {
  const look = strided(index);
  if (!look) return `${index.id} < ${extent}`;
  const axes: (readonly [size: number, stride: number])[] = [];
  index.shape.forEach((size, i) => {
    const stride = look.strides[i];
    if (size === 1 || stride === 0) return;
    const last = axes[axes.length - 1];
    if (last && last[1] === stride * size) axes[axes.length - 1] = [last[0] * size, stride];
    else axes.push([size, stride]);
  });
  return `${look.source.id}+${look.offset}:${axes.map(([size, stride]) => `${size}*${stride}`)} < ${extent}`;
}

/** Whether a kernel that computes at this position of a tensor of `size` elements comes to all of them. */
function isWhole(position: Index, size: number): boolean {
  const steps: (readonly [step: number, extent: number])[] = [];
  for (const { atom, coefficient } of position.terms) {
    if (atom.kind !== "axis") return false;
    steps.push([Math.abs(coefficient), atom.extent]);
  }
  let seen = 1;
  for (const [step, extent] of steps.sort((a, b) => a[0] - b[0])) {
    if (step !== seen) return false;
    seen *= extent;
  }
  return seen === size && position.min === 0;
}

/** Thrown (and caught by the fuser) where a kernel would need a value of itself from another position. */
export const misaligned = Symbol("misaligned");

/** Computations that may wait for one another: what is deeper is computed from the bottom up. */
const deepest = 200;

/** Operations that read their inputs from positions of their own. */
const moves: ReadonlySet<string> = new Set(["random", "pad", "concat", "gather"]);

const keyOf = (n: GNode, at: readonly Index[], valid: readonly Condition[]): string =>
  `${n.id}@${at.map((i) => i.key).join(";")}|${valid.map((c) => `${c.lo}<=${c.index.key}<${c.hi}`).join("&")}`;

export class Body {
  readonly values: Values;
  /** Nodes read from memory, in order of their kernel buffer number. */
  readonly buffers: GNode[];
  readonly scalars: GNode[];
  /** What this kernel checks at run time: an index (a node, by number) against an extent, or a divisor. */
  readonly checked: Set<string>;
  private readonly bufferIndex: Map<GNode, number>;
  private readonly own: Map<GNode, { readonly value: Value; readonly at: Index } | null>;
  private readonly memo: Map<string, Value>;
  /** Computations that wait for one another now. */
  private depth = 0;
  private readonly isBoundary: (n: GNode) => boolean;

  /** `from`: a body whose computations this one begins with. */
  constructor(isBoundary: (n: GNode) => boolean, from: Body | null = null) {
    this.isBoundary = isBoundary;
    this.values = new Values(from?.values);
    this.buffers = from ? from.buffers.slice() : [];
    this.scalars = from ? from.scalars.slice() : [];
    this.checked = new Set(from?.checked);
    this.bufferIndex = new Map(from?.bufferIndex);
    this.own = new Map(from?.own);
    this.memo = new Map(from?.memo);
  }

  /** A body that has computed what this one has; what it computes from now on leaves this one as it is. */
  fork(): Body {
    return new Body(this.isBoundary, this);
  }

  /** Declares that this kernel computes `n` at position `at` as `value`; null: computes it where it can't be read. */
  declare(n: GNode, value: Value | null, at: Index): void {
    this.own.set(n, value && { value, at });
  }

  buffer(n: GNode): number {
    let i = this.bufferIndex.get(n);
    if (i === undefined) {
      i = this.buffers.length;
      this.buffers.push(n);
      this.bufferIndex.set(n, i);
    }
    return i;
  }

  /** The value of `n` at `at`; only where `valid` holds need it be right. */
  at(n: GNode, at: readonly Index[], valid: readonly Condition[] = []): Value {
    return this.isRead(n) ? this.read(n, at, valid) : this.compute(n, at, valid);
  }

  private isRead(n: GNode): boolean {
    return n.op === "buffer" || (this.isBoundary(n) && n.op !== "const");
  }

  private read(n: GNode, at: readonly Index[], valid: readonly Condition[]): Value {
    const index = linearize(at, n.shape);
    const own = this.own.get(n);
    if (own !== undefined) {
      if (own && own.at.key === index.key) return own.value;
      throw misaligned;
    }
    return this.values.make({ kind: "load", dtype: n.dtype, slot: this.buffer(n), index, valid });
  }

  /** The value of `n` computed here, even if it is a boundary. */
  compute(n: GNode, at: readonly Index[], valid: readonly Condition[] = []): Value {
    const key = keyOf(n, at, valid);
    let value = this.memo.get(key);
    if (!value) {
      if (++this.depth > deepest) this.prepare(n, at, valid);
      value = this.fresh(n, at, valid);
      this.depth--;
      this.memo.set(key, value);
    }
    return value;
  }

  /** Computes what `n` needs from the bottom up: a long chain would be too deep for the engine's stack, which is small in workers. */
  private prepare(n: GNode, at: readonly Index[], valid: readonly Condition[]): void {
    const stack = [{ n, at, key: keyOf(n, at, valid) }];
    while (stack.length > 0) {
      const top = stack[stack.length - 1];
      const from = isView(top.n) ? sourceIndex(top.n, top.at) : top.at;
      const before = stack.length;
      if (!moves.has(top.n.op))
        for (const input of top.n.inputs) {
          const key = keyOf(input, from, valid);
          if (!this.isRead(input) && !this.memo.has(key)) stack.push({ n: input, at: from, key });
        }
      if (stack.length > before) continue;
      stack.pop();
      if (stack.length > 0 && !this.memo.has(top.key)) this.memo.set(top.key, this.fresh(top.n, top.at, valid));
    }
  }

  private fresh(n: GNode, at: readonly Index[], valid: readonly Condition[]): Value {
    const v = this.values;
    switch (n.op) {
      case "const":
        return v.make({ kind: "const", dtype: n.dtype, name: String(n.attrs["value"]) });
      case "scalar": {
        let slot = this.scalars.indexOf(n);
        if (slot < 0) slot = this.scalars.push(n) - 1;
        return v.make({ kind: "scalar", dtype: n.dtype, slot });
      }
      case "iota":
        return v.make({ kind: "index", dtype: "int32", index: at[n.attrs["axis"] as number] });
      case "random":
        return v.make({
          kind: "random",
          dtype: "uint32",
          args: n.inputs.map((i) => this.at(i, [], [])),
          index: linearize(at, n.shape),
        });
      case "pad":
        return this.pad(n, at, valid);
      case "concat":
        return this.concat(n, at, valid);
      case "gather": {
        const [x, index] = n.inputs;
        const a = n.attrs["axis"] as number;
        const found = this.guarded(this.at(index, at, valid), valid, "0");
        this.check(n, at, valid, checkOf(index, x.shape[a]));
        const where = at.slice();
        where[a] = valueIndex(found, `v${found.id}`, x.shape[a]);
        return this.looking(this.at(x, where, valid), found, where[a], x.shape[a]);
      }
    }
    if (isView(n)) return this.at(n.inputs[0], sourceIndex(n, at), valid);
    const args = n.inputs.map((i) => this.at(i, at, valid));
    if (n.op === "idiv" || (n.op === "mod" && !isFloat(n.dtype))) {
      this.check(n, at, valid, `divisor of ${n.id}`);
      args[1] = this.guarded(args[1], valid, "1");
    }
    return v.make({ kind: "op", dtype: n.dtype, name: n.op, args });
  }

  /** Notes a check that the computation of `n` makes; one of its positions in part is like no other. */
  private check(n: GNode, at: readonly Index[], valid: readonly Condition[], name: string): void {
    const position = linearize(at, n.shape);
    const whole = valid.length === 0 && isWhole(position, sizeOf(n.shape));
    this.checked.add(whole ? name : `${name}, in part: ${n.id} at ${position.key}`);
  }

  /** A gathered value, which may be the same wherever it comes from (ones, say): the index is looked at all the same. */
  private looking(value: Value, found: Value, where: Index, extent: number): Value {
    if (reachable([value]).has(found)) return value;
    const v = this.values;
    const index = v.make({ kind: "index", dtype: "int32", index: where });
    const most = v.make({ kind: "const", dtype: "int32", name: String(extent) });
    const inside = v.make({ kind: "op", dtype: "bool", name: "lt", args: [index, most] });
    return v.make({ kind: "op", dtype: value.dtype, name: "where", args: [inside, value, value] });
  }

  /** A value that is checked: where the position is outside `valid` and the value means nothing, one that passes. */
  private guarded(value: Value, valid: readonly Condition[], passes: string): Value {
    return this.select(
      valid,
      () => value,
      () => this.values.make({ kind: "const", dtype: value.dtype, name: passes }),
    );
  }

  private select(conditions: readonly Condition[], yes: () => Value, no: () => Value): Value {
    if (conditions.some(never)) return no();
    const needed = conditions.filter((c) => !always(c));
    if (needed.length === 0) return yes();
    const [a, b] = [yes(), no()];
    return a === b ? a : this.values.make({ kind: "select", dtype: a.dtype, args: [a, b], valid: needed });
  }

  private pad(n: GNode, at: readonly Index[], valid: readonly Condition[]): Value {
    const source = n.inputs[0];
    const [low, interior] = [numbers(n, "low"), numbers(n, "interior")];
    const conditions: Condition[] = [];
    const where = at.map((i, k) => {
      const step = interior[k] + 1;
      const shifted = offset(i, -low[k]);
      const span = source.shape[k] === 0 ? 0 : (source.shape[k] - 1) * step + 1;
      conditions.push({ index: shifted, lo: 0, hi: span });
      if (step > 1) conditions.push({ index: mod(shifted, step), lo: 0, hi: 1 });
      return bounded(div(shifted, step), source.shape[k]);
    });
    const empty = source.shape.some((s) => s === 0);
    const fill = () => this.values.make({ kind: "const", dtype: n.dtype, name: String(n.attrs["value"]) });
    if (empty) return fill();
    const needed = conditions.filter((c) => !always(c));
    return this.select(needed, () => this.at(source, where, [...valid, ...needed]), fill);
  }

  private concat(n: GNode, at: readonly Index[], valid: readonly Condition[]): Value {
    const a = n.attrs["axis"] as number;
    const parts = n.inputs.filter((x) => x.shape[a] > 0);
    let start = n.shape[a];
    let out: Value | null = null;
    for (let i = parts.length - 1; i >= 0; i--) {
      const part = parts[i];
      const end = start;
      start -= part.shape[a];
      const where = at.slice();
      where[a] = bounded(offset(at[a], -start), part.shape[a]);
      const inside: Condition = { index: at[a], lo: start, hi: end };
      const rest: Value | null = out;
      const guard = always(inside) ? valid : [...valid, inside];
      out =
        rest === null
          ? this.at(part, where, guard)
          : this.select(
              [inside],
              () => this.at(part, where, guard),
              () => rest as Value,
            );
    }
    // nothing but empty parts: no position to compute a value for
    return out ?? this.values.make({ kind: "const", dtype: n.dtype, name: "0" });
  }
}

/** A node as a strided look at what lies in memory: position → offset + Σ index·stride. */
export interface Strided {
  readonly source: GNode;
  readonly offset: number;
  readonly strides: readonly number[];
}

/**
 * The strided form of `n` if its movements allow one: the first node below that is not a movement (or that `inMemory`
 * says lies in memory itself), and how it is read.
 */
export function strided(n: GNode, inMemory: (n: GNode) => boolean = () => false): Strided | null {
  let at: Index[] = n.shape.map((size, i) => axis(`a${i}`, size));
  let source = n;
  // a pad or a concat is put into memory as it is, before further movements
  while (isView(source) && source.op !== "pad" && source.op !== "concat" && !inMemory(source)) {
    at = sourceIndex(source, at);
    source = source.inputs[0];
  }
  const plain = affine(linearize(at, source.shape));
  if (!plain) return null;
  return { source, offset: plain.constant, strides: n.shape.map((_, i) => plain.coefficients.get(`a${i}`) ?? 0) };
}
