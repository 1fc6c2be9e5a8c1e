/**
 * From a capture to the compiler's own graph: composites without a template are decomposed, a few primitives are
 * rewritten into simpler ones, equal nodes are merged, nodes that change nothing vanish. The result holds no `Node`.
 */

import type { Capture } from "../backends/backend.ts";
import { accumulator, type DType, isFloat } from "../core/dtype.ts";
import { BackendError } from "../core/errors.ts";
import { type Shape, showShape, sizeOf } from "../core/shape.ts";
import { bodyOf, loopAttrs, unrolled } from "../graph/loop.ts";
import { type Attrs, type Node, type Spec, setGradEnabled, setRegion } from "../graph/node.ts";
import * as ops from "../graph/ops.ts";
import { maskPooled } from "./pooling.ts";

/** A node of the compiler's graph. */
export interface GNode {
  readonly id: number;
  readonly op: string;
  readonly inputs: readonly GNode[];
  readonly attrs: Attrs;
  readonly shape: Shape;
  readonly dtype: DType;
  /** Index of the capture's storage that a `buffer` leaf reads. */
  readonly storage: number;
  /** Index of the capture's scalar. */
  readonly slot: number;
  readonly outputs: readonly Spec[] | null;
}

export interface Lowered {
  /** Inputs before users. */
  readonly nodes: readonly GNode[];
  readonly roots: readonly GNode[];
  readonly assigns: readonly { readonly storage: number; readonly value: GNode }[];
}

/** Which composites (and opaque rows) a backend runs itself. */
export type HasTemplate = (name: string, node: Node) => boolean;

/** What a backend wants lowered in its own way. */
export interface LowerRule {
  /** The type in whose place scatter, argsort and the running reductions work, where they do not take one themselves. */
  readonly wider?: Partial<Record<DType, DType>>;
  /** Parts of a concat that one kernel can read; longer ones become a tree. */
  readonly maxParts?: number;
  /** Other nodes over the same inputs for one without a template; null: what is usual. */
  readonly replace?: (node: Node) => readonly Node[] | null;
  /** Whether operand i of an operation that runs by itself may be of a 16-bit float type in place of float32. */
  readonly readsHalf?: (op: string, operand: number) => boolean;
  /** Whether a product [rows, columns] of two operands in bfloat16 may get its right one in float32, and rounds it as it reads. */
  readonly rounds?: (shape: Shape) => boolean;
}

/** Rows rewritten in terms of others, or null to leave the node as it is. */
const rewrites: Readonly<Record<string, (node: Node) => Node | null>> = {
  contract: (n) => {
    const [a, b] = n.inputs;
    if (a.shape[a.shape.length - 1] === 0) return ops.full(n.shape, 0, n.dtype);
    if (n.dtype === "uint32")
      return ops.bitcast(ops.contract(ops.bitcast(a, "int32"), ops.bitcast(b, "int32")), "uint32");
    const wide: DType = n.dtype === "uint8" ? "int32" : accumulator(n.dtype);
    return wide === n.dtype ? null : ops.cast(ops.contract(ops.cast(a, wide), ops.cast(b, wide)), n.dtype);
  },
  fold: (n) => {
    const { axes, size, stride, dilation, length } = n.attrs as unknown as Record<string, number[]>;
    let x = n.inputs[0];
    // one axis at a time, the last first: every position of the kernel is one shifted, spread-out copy
    for (let k = axes.length - 1; k >= 0; k--) {
      const last = x.shape.length - 1;
      const axis = axes[k];
      if (stride[k] === size[k] && dilation[k] === 1 && x.shape[axis] > 0) {
        // windows side by side: the axis and its positions are one axis again
        const order = [...x.shape.keys()].filter((i) => i !== last);
        order.splice(axis + 1, 0, last);
        const joined = ops.permute(x, order);
        const covered = x.shape[axis] * size[k];
        const whole = [...joined.shape.slice(0, axis), covered, ...joined.shape.slice(axis + 2)];
        const none = whole.map(() => 0);
        x = ops.pad(
          ops.reshape(joined, whole),
          none,
          none.map((_, i) => (i === axis ? length[k] - covered : 0)),
        );
        continue;
      }
      let out: Node | null = null;
      for (let j = 0; j < size[k]; j++) {
        const tap = ops.squeeze(ops.narrow(x, last, j, 1), last);
        const count = tap.shape[axes[k]];
        const spread = count === 0 ? 0 : (count - 1) * stride[k] + 1;
        const at = (v: number) => tap.shape.map((_, i) => (i === axes[k] ? v : 0));
        const part = ops.pad(tap, at(j * dilation[k]), at(length[k] - j * dilation[k] - spread), 0, at(stride[k] - 1));
        out = out ? ops.add(out, part) : part;
      }
      x = out as Node;
    }
    return x;
  },
  argmax: (n) => firstWhere(n, ops.reduceMax),
  argmin: (n) => firstWhere(n, ops.reduceMin),
  where: maskPooled,
  dynamicSlice: (n) => {
    // one axis at a time: gather at offset + position, with the offset held inside
    const [x, ...offsets] = n.inputs;
    let y = x;
    n.shape.forEach((size, axis) => {
      if (size === y.shape[axis]) return;
      y = ops.take(y, axis, ops.add(clampOffset(offsets[axis], y.shape[axis] - size), ops.iota([size], 0)));
    });
    return y;
  },
  dynamicUpdate: (n) => {
    const [x, update, ...offsets] = n.inputs;
    let inside: Node | null = null;
    let y = update;
    x.shape.forEach((length, axis) => {
      const size = update.shape[axis];
      if (size === length) return;
      const shape = x.shape.map((_, i) => (i === axis ? length : 1));
      const at = ops.sub(ops.iota([length], 0), clampOffset(offsets[axis], length - size));
      const here = ops.reshape(ops.and(ops.ge(at, 0), ops.lt(at, size)), shape);
      inside = inside ? ops.and(inside, here) : here;
      y = ops.take(y, axis, ops.minimum(ops.maximum(at, 0), size - 1));
    });
    return inside ? ops.where(inside, y, x) : update;
  },
};

const clampOffset = (offset: Node, most: number): Node =>
  ops.expandTo(ops.minimum(ops.maximum(ops.cast(offset, "int32"), 0), most), [1]);

/** The first position of the extreme; a NaN is the extreme. */
function firstWhere(n: Node, extreme: typeof ops.reduceMax): Node {
  const axis = n.attrs["axis"] as number;
  const x = n.inputs[0].dtype === "bool" ? ops.cast(n.inputs[0], "int32") : n.inputs[0];
  const best = ops.expandTo(extreme(x, axis, { keepdim: true }), x.shape);
  let hit = ops.eq(x, best);
  if (isFloat(x.dtype)) hit = ops.or(hit, ops.isNan(x));
  return ops.reduceMin(ops.where(hit, ops.iota(x.shape, axis), x.shape[axis]), axis);
}

/** The 16-bit floats and the small integers go through a wider type where a row accumulates. */
function widen(n: Node, wider: Partial<Record<DType, DType>>): Node | null {
  const name = n.operation.name;
  const [x] = n.inputs;
  if (name === "reduceMax" || name === "reduceMin") {
    if (x.dtype !== "bool") return null;
    return ops.cast(
      (name === "reduceMax" ? ops.reduceMax : ops.reduceMin)(ops.cast(x, "int32"), n.attrs["axes"] as number[]),
      "bool",
    );
  }
  if (name === "scatter") {
    const wide = wider[x.dtype];
    if (!wide) return null;
    const [, index, source] = n.inputs;
    return ops.cast(
      ops.scatter(
        ops.cast(x, wide),
        n.attrs["axis"] as number,
        index,
        ops.cast(source, wide),
        n.attrs["mode"] as "add",
      ),
      n.dtype,
    );
  }
  if (name === "argsort") {
    const wide = wider[x.dtype];
    return wide ? ops.argsort(ops.cast(x, wide), n.attrs["axis"] as number, n.attrs["descending"] as boolean) : null;
  }
  if (name === "cumsum" || name === "cumprod" || name === "cummax") {
    const wide = wider[x.dtype];
    return wide ? ops.cast(scans[name](ops.cast(x, wide), n.attrs["axis"] as number), n.dtype) : null;
  }
  return null;
}
const scans = { cumsum: ops.cumsum, cumprod: ops.cumprod, cummax: ops.cummax };
const reducers = { sum: ops.sum, prod: ops.prod, reduceMax: ops.reduceMax, reduceMin: ops.reduceMin };
const defaultWider: Partial<Record<DType, DType>> = {
  float16: "float32",
  bfloat16: "float32",
  uint8: "int32",
  bool: "int32",
  uint32: "float64",
};

/** Positions at or after the runtime limit become the reduction's identity. */
function applyLimit(n: Node): Node | null {
  const [x, limit] = n.inputs;
  if (!limit) return null;
  const axis = (n.attrs["axes"] as number[])[0];
  const name = n.operation.name as keyof typeof identities;
  const inside = ops.lt(ops.iota(x.shape, axis), ops.expandTo(ops.cast(limit, "int32"), x.shape));
  return reducers[name](ops.where(inside, x, ops.full(x.shape, identities[name](x.dtype), x.dtype)), axis);
}
const lowest = (dtype: DType): number =>
  isFloat(dtype) ? Number.NEGATIVE_INFINITY : dtype === "int32" ? -2147483648 : 0;
const highest = (dtype: DType): number =>
  isFloat(dtype)
    ? Number.POSITIVE_INFINITY
    : dtype === "int32"
      ? 2147483647
      : dtype === "uint32"
        ? 4294967295
        : dtype === "bool"
          ? 1
          : 255;
const identities = { sum: () => 0, prod: () => 1, reduceMax: lowest, reduceMin: highest };

/** A long reduction to few results is done in two steps, so that it has rows to share out; the split is fixed by shape. */
function splitLong(n: Node): Node | null {
  const [x] = n.inputs;
  const axes = n.attrs["axes"] as number[];
  const long = axes.reduce((k, a) => k * x.shape[a], 1);
  if (long < 16384 || sizeOf(n.shape) >= 64) return null;
  const reduce = reducers[n.operation.name as "sum"];
  const real = axes.filter((a) => x.shape[a] > 1);
  if (real.length > 1) {
    const [first, ...rest] = real;
    const inner = reduce(x, rest);
    return reduce(
      inner,
      axes
        .filter((a) => !rest.includes(a))
        .map((a) => a - rest.filter((b) => b < a).length)
        .filter((a) => inner.shape[a] > 1 || a === first),
    );
  }
  const a = real[0];
  const length = x.shape[a];
  for (let parts = Math.floor(Math.sqrt(length / 4)); parts >= 8; parts--) {
    if (length % parts) continue;
    const halves = ops.reshape(x, [...x.shape.slice(0, a), parts, length / parts, ...x.shape.slice(a + 1)]);
    return ops.reshape(reduce(reduce(halves, a + 1), axes), n.shape);
  }
  return null;
}

/** A concat of more parts than a kernel can read is a concat of concats. */
function splitConcat(n: Node, maxParts: number): Node | null {
  const { inputs } = n;
  if (inputs.length <= maxParts) return null;
  const axis = n.attrs["axis"] as number;
  const each = Math.ceil(inputs.length / maxParts);
  const parts: Node[] = [];
  for (let i = 0; i < inputs.length; i += each) parts.push(ops.concat(inputs.slice(i, i + each), axis));
  return ops.concat(parts, axis);
}

function rewrite(n: Node, rule: LowerRule): Node | null {
  const name = n.operation.name;
  const wider = rule.wider ?? defaultWider;
  if (n.operation.group === "reduction" && name in identities) {
    const [x] = n.inputs;
    const op = name as keyof typeof identities;
    if ((n.attrs["axes"] as number[]).some((a) => x.shape[a] === 0))
      return ops.full(n.shape, identities[op](x.dtype), n.dtype);
    return applyLimit(n) ?? widen(n, wider) ?? splitLong(n);
  }
  if (name === "concat" && rule.maxParts !== undefined) return splitConcat(n, rule.maxParts);
  return rewrites[name]?.(n) ?? widen(n, wider);
}

/** Loops of more nodes than this are not written out step by step. */
const MOST_UNROLLED = 8192;

/** For loops that a backend does not repeat. */
function unroll(node: Node): readonly Node[] {
  const a = loopAttrs(node);
  const nodes = a.count * bodyOf(a).order.length;
  if (nodes > MOST_UNROLLED)
    throw new BackendError(
      `loop: its steps take or give parts of a 32-bit word, and ${a.count} steps are too many to write out (${nodes} operations, at most ${MOST_UNROLLED}); cast what it takes and gives to float32 or int32, or run it on "cpu" or "wasm"`,
    );
  return unrolled(node);
}

/** Lowers a capture. `fuse` false keeps big reductions whole, so that the graph is as recorded. */
export function lower(capture: Capture, hasTemplate: HasTemplate, rule: LowerRule = {}): Lowered {
  const gradients = setGradEnabled(false);
  try {
    return new Lowering(capture, hasTemplate, rule).run();
  } finally {
    setGradEnabled(gradients);
  }
}

/** Types all of whose values float32 has. */
const wideInFloat32: ReadonlySet<DType> = new Set(["bfloat16", "float16"]);
const plainViews = new Set(["reshape", "permute", "expand", "slice"]);

/** Whether a node is a view of what is in memory whatever is fused: a state, or a state that is written in place. */
function liesInMemory(n: GNode): boolean {
  while (plainViews.has(n.op)) n = n.inputs[0];
  return n.op === "buffer" || n.op === "dynamicUpdate";
}

type Intern = (op: string, inputs: readonly GNode[], attrs: Attrs, shape: Shape, dtype: DType) => GNode;

/** A view of a cast to `dtype` as the same view of what is cast, where that `fits`; else as it is. */
function beforeCast(intern: Intern, x: GNode, dtype: DType, fits: (n: GNode) => boolean): GNode {
  if (x.op === "cast") return x.dtype === dtype && fits(x.inputs[0]) ? x.inputs[0] : x;
  if (!plainViews.has(x.op)) return x;
  const inner = beforeCast(intern, x.inputs[0], dtype, fits);
  return inner === x.inputs[0] ? x : intern(x.op, [inner], x.attrs, x.shape, inner.dtype);
}

/**
 * What a view of a 16-bit tensor in memory shows before it is widened to float32: who reads it converts as it reads, so that the wide copy,
 * twice as large, is never there. Anything else as it is.
 */
const unwidened = (intern: Intern, x: GNode): GNode =>
  beforeCast(intern, x, "float32", (n) => wideInFloat32.has(n.dtype) && liesInMemory(n));

/**
 * The product of two widened bfloat16 operands, from them as they are; the right one, where it is rounded from float32 that lies in
 * memory (a weight), from that, so that there is no copy of it. Null for other products.
 */
function halfProduct(
  intern: Intern,
  { shape, dtype }: Node,
  inputs: readonly GNode[],
  rounds: (shape: Shape) => boolean,
): GNode | null {
  const [a, b] = inputs.map((x) => beforeCast(intern, x, "float32", (n) => n.dtype === "bfloat16"));
  if (a.dtype !== "bfloat16" || b.dtype !== "bfloat16") return null;
  const whole = rounds(shape) ? beforeCast(intern, b, "bfloat16", (n) => n.dtype === "float32" && liesInMemory(n)) : b;
  return intern("contract", [a, whole], whole === b ? {} : { rounds: true }, shape, dtype);
}

class Lowering {
  private readonly capture: Capture;
  private readonly hasTemplate: HasTemplate;
  private readonly rule: LowerRule;
  private readonly nodes: GNode[] = [];
  private readonly byKey = new Map<string, GNode>();
  /** A node's meaning; several outputs are a list. */
  private readonly done = new Map<Node, GNode | readonly GNode[]>();
  private readonly storageIndex: ReadonlyMap<unknown, number>;
  private readonly slotIndex: ReadonlyMap<Node, number>;
  private readonly aliases = new Map<Node, Node | readonly Node[]>();

  constructor(capture: Capture, hasTemplate: HasTemplate, rule: LowerRule) {
    this.capture = capture;
    this.hasTemplate = hasTemplate;
    this.rule = rule;
    this.storageIndex = new Map(capture.storages.map((s, i) => [s, i]));
    this.slotIndex = new Map(capture.scalars.map((s, i) => [s, i]));
  }

  run(): Lowered {
    for (const node of this.capture.order) this.convert(node);
    const one = (n: Node): GNode => this.single(n);
    const roots = this.capture.roots.map(one);
    const assigns = this.capture.assigns.map(({ storage, value }) => ({ storage, value: one(value) }));
    const live = new Set<GNode>();
    const stack = [...roots, ...assigns.map((a) => a.value)];
    while (stack.length) {
      const n = stack.pop() as GNode;
      if (live.has(n)) continue;
      live.add(n);
      stack.push(...n.inputs);
    }
    return { nodes: this.nodes.filter((n) => live.has(n)), roots, assigns };
  }

  private single(n: Node): GNode {
    const g = this.done.get(n);
    if (!import.meta.forBrowsers && !g) throw new BackendError(`compiler: ${n} was used before it was lowered`);
    return Array.isArray(g) ? g[0] : (g as GNode);
  }

  /** What stands for a node: itself, or (for rewrites and composites) other nodes over the same inputs. */
  private replacement(node: Node): Node | readonly Node[] | null {
    const { name, group } = node.operation;
    if (this.hasTemplate(name, node)) return null;
    const own = this.rule.replace?.(node);
    if (own) return own;
    if (name === "loop") return unroll(node);
    if (group !== "composite") return rewrite(node, this.rule);
    if (!node.operation.decompose)
      throw new BackendError(
        `${name}: no kernel for it here, and it has no decomposition; give defineOperation a decompose, or a kernel that fits these shapes and dtypes`,
      );
    return node.operation.decompose(node.inputs, node.attrs);
  }

  private convert(root: Node): void {
    const stack = [root];
    while (stack.length) {
      const node = stack[stack.length - 1];
      if (this.done.has(node)) {
        stack.pop();
        continue;
      }
      if (node.storage || node.operation.group === "leaf") {
        this.done.set(node, this.leaf(node));
        continue;
      }
      const missing = node.inputs.filter((i) => !this.done.has(i));
      if (missing.length) {
        stack.push(...missing);
        continue;
      }
      let other = this.aliases.get(node);
      if (other === undefined) {
        const outer = setRegion(node.region);
        other = this.replacement(node) ?? undefined;
        setRegion(outer);
        if (other) this.aliases.set(node, other);
      }
      if (other) {
        const list = Array.isArray(other) ? (other as readonly Node[]) : [other as Node];
        const waiting = list.filter((n) => !this.done.has(n));
        if (waiting.length) stack.push(...waiting);
        else this.done.set(node, node.outputs ? list.map((n) => this.single(n)) : this.single(list[0]));
        continue;
      }
      this.done.set(node, this.plain(node));
    }
  }

  private leaf(node: Node): GNode {
    if (node.storage)
      return this.intern("buffer", [], {}, node.shape, node.dtype, {
        storage: this.storageIndex.get(node.storage) as number,
      });
    if (node.operation.name === "scalar")
      return this.intern("scalar", [], {}, [], node.dtype, { slot: this.slotIndex.get(node) as number });
    return this.intern(node.operation.name, [], node.attrs, node.shape, node.dtype);
  }

  private plain(node: Node): GNode {
    const name = node.operation.name;
    if (name === "output") {
      const source = this.done.get(node.inputs[0]);
      const index = node.attrs["index"] as number;
      if (Array.isArray(source)) return source[index];
      return this.intern("output", [source as GNode], node.attrs, node.shape, node.dtype);
    }
    let inputs = node.inputs.map((i) => this.single(i));
    // not in browsers, whose backends read floats
    if (!import.meta.forBrowsers) {
      const intern: Intern = (...args) => this.intern(...args);
      const { readsHalf, rounds } = this.rule;
      const half = name === "contract" && rounds ? halfProduct(intern, node, inputs, rounds) : null;
      if (half) return half;
      if (readsHalf) inputs = inputs.map((x, i) => (readsHalf(name, i) ? unwidened(intern, x) : x));
    }
    if (name === "detach") return inputs[0];
    if (name === "assign") return inputs[1];
    if (name === "cast") {
      const [x] = inputs;
      if (x.dtype === node.dtype) return x;
      // widened and narrowed again
      if (x.op === "cast" && x.dtype === "float32" && x.inputs[0].dtype === node.dtype && wideInFloat32.has(node.dtype))
        return x.inputs[0];
    }
    if (name === "reshape" || name === "expand") {
      if (showShape(inputs[0].shape) === showShape(node.shape)) return inputs[0];
      if (name === "reshape" && inputs[0].op === "reshape")
        return this.intern("reshape", inputs[0].inputs, node.attrs, node.shape, node.dtype);
    }
    return this.intern(name, inputs, node.attrs, node.shape, node.dtype, {
      outputs: node.outputs,
      region: node.region,
    });
  }

  private intern(
    op: string,
    inputs: readonly GNode[],
    attrs: Attrs,
    shape: Shape,
    dtype: DType,
    more: { storage?: number; slot?: number; outputs?: readonly Spec[] | null; region?: number } = {},
  ): GNode {
    const key = `${op}|${inputs.map((i) => i.id).join(",")}|${JSON.stringify(attrs)}|${shape.join(",")}|${dtype}|${more.storage ?? ""}|${more.slot ?? ""}|${more.region ?? 0}`;
    let node = this.byKey.get(key);
    if (!node) {
      node = {
        id: this.nodes.length,
        op,
        inputs,
        attrs,
        shape,
        dtype,
        storage: more.storage ?? -1,
        slot: more.slot ?? -1,
        outputs: more.outputs ?? null,
      };
      this.nodes.push(node);
      this.byKey.set(key, node);
    }
    return node;
  }
}

export const showNode = (n: GNode): string =>
  `%${n.id} = ${n.op} ${n.dtype}[${n.shape.join(", ")}] ${n.inputs.map((i) => `%${i.id}`).join(" ")}${Object.keys(n.attrs).length ? ` ${JSON.stringify(n.attrs)}` : ""}`;
