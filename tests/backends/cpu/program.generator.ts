/**
 * Random programs at the level of nodes, for the compiled backends: every kind of movement, arithmetic in every dtype,
 * reductions, products, gathers and scatters, over small odd shapes, with several roots and states that are written from
 * themselves, from each other and from views. The same seed gives the same program on any backend. Not a test.
 */
import type { Backend } from "../../../src/backends/backend.ts";
import { type DType, isFloat, isInteger } from "../../../src/core/dtype.ts";
import { type Shape, sizeOf } from "../../../src/core/shape.ts";
import * as composites from "../../../src/graph/composites/index.ts";
import { type Node, topologicalOrder } from "../../../src/graph/node.ts";
import * as o from "../../../src/graph/ops.ts";
import { windowCount } from "../../../src/graph/primitives.ts";
import { type Assign, nodeFrom } from "../../support/evaluate.ts";
import { random } from "./native.harness.ts";

/**
 * A node, and how its values are known: multiples of 2^−fraction below 2^magnitude. While both together fit the dtype's
 * mantissa, every order of computing gives the same bits, so that floors and comparisons agree between backends.
 */
interface Known {
  readonly node: Node;
  readonly fraction: number;
  readonly magnitude: number;
}

const mantissa: Readonly<Record<string, number>> = { float32: 24, float64: 53, float16: 11, bfloat16: 8 };
const isExact = ({ node, fraction, magnitude }: Known): boolean =>
  !isFloat(node.dtype) || fraction + magnitude < mantissa[node.dtype];
const inexact = { fraction: Number.POSITIVE_INFINITY, magnitude: 8 };

/** Lengths of axes and the most elements: small odd ones, and ones that several tiles of a kernel share. */
const sizes = {
  small: { lengths: [1, 2, 3, 5, 7, 17, 33], most: 2000 },
  large: { lengths: [1, 2, 3, 16, 31, 64, 130, 257], most: 40000 },
};

export interface Options {
  readonly dtype: DType;
  /** Axes of no elements among the lengths. */
  readonly empty?: boolean;
  readonly size?: keyof typeof sizes;
  readonly steps?: number;
}

class Dice {
  private readonly next: () => number;
  constructor(seed: number) {
    this.next = random(seed);
  }
  chance(p: number): boolean {
    return this.next() < p;
  }
  below(n: number): number {
    return Math.floor(this.next() * n);
  }
  pick<T>(list: readonly T[]): T {
    return list[this.below(list.length)];
  }
  shuffled<T>(list: readonly T[]): T[] {
    const out = list.slice();
    for (let i = out.length - 1; i > 0; i--) {
      const j = this.below(i + 1);
      [out[i], out[j]] = [out[j], out[i]];
    }
    return out;
  }
}

export interface RandomProgram {
  readonly roots: readonly Node[];
  readonly assigns: readonly Assign[];
  /** Every state, for reading after a run. */
  readonly states: readonly Node[];
  readonly scalars: readonly Node[];
}

class Builder {
  readonly backend: Backend;
  readonly dice: Dice;
  readonly dtype: DType;
  readonly empty: boolean;
  readonly lengths: readonly number[];
  readonly most: number;
  readonly all: Known[] = [];
  readonly scalars: Node[] = [];

  constructor(backend: Backend, seed: number, { dtype, empty = false, size = "small" }: Options) {
    this.backend = backend;
    this.dice = new Dice(seed);
    this.dtype = dtype;
    this.empty = empty;
    this.lengths = sizes[size].lengths;
    this.most = sizes[size].most;
  }

  length(): number {
    return this.empty && this.dice.chance(0.06) ? 0 : this.dice.pick(this.lengths);
  }

  shape(): number[] {
    for (;;) {
      const shape = Array.from({ length: this.dice.below(5) }, () => this.length());
      if (sizeOf(shape) <= this.most) return shape;
    }
  }

  /** Small multiples of 1/8, or small integers. */
  fresh(shape: Shape, dtype: DType = this.dtype): Known {
    const { dice } = this;
    const count = sizeOf(shape);
    const low = dtype === "uint8" || dtype === "uint32" ? 0 : -6;
    const values = Float64Array.from({ length: count }, () => {
      if (dtype === "bool") return dice.below(2);
      const n = dice.below(12) + low;
      return isFloat(dtype) ? n / 4 + dice.below(2) / 8 : n;
    });
    return { node: nodeFrom(this.backend, values, shape, dtype), fraction: isFloat(dtype) ? 3 : 0, magnitude: 2 };
  }

  /** Integers from 0 to below − 1. */
  indices(shape: Shape, below: number): Node {
    const values = Int32Array.from({ length: sizeOf(shape) }, () => this.dice.below(below));
    const shift = this.dice.below(3);
    // indices are computed now and then, so that what lies outside a pad is no index
    const node = nodeFrom(
      this.backend,
      values.map((v) => v + shift),
      shape,
      "int32",
    );
    return shift ? o.sub(node, shift) : node;
  }

  /** An operand of the same shape and dtype: an earlier value that grows to it, or a new one. */
  like({ node: x }: Known): Known {
    const fitting = this.all.filter(
      ({ node: n }) =>
        n.dtype === x.dtype &&
        n.shape.length <= x.shape.length &&
        n.shape.every((s, i) => s === 1 || s === x.shape[i + x.shape.length - n.shape.length]),
    );
    if (fitting.length && this.dice.chance(0.75)) {
      const found = this.dice.pick(fitting);
      return { ...found, node: o.expandTo(found.node, x.shape) };
    }
    const shape = x.shape.map((n) => (this.dice.chance(0.2) ? 1 : n));
    return { ...this.fresh(shape, x.dtype), node: o.expandTo(this.fresh(shape, x.dtype).node, x.shape) };
  }

  axis({ node }: Known): number {
    return this.dice.below(node.shape.length);
  }
}

type Step = (b: Builder, x: Known) => Known | null;

const float =
  (step: Step): Step =>
  (b, x) =>
    isFloat(x.node.dtype) ? step(b, x) : null;
const exactly =
  (step: Step): Step =>
  (b, x) =>
    isExact(x) ? step(b, x) : null;
const axes =
  (step: Step): Step =>
  (b, x) =>
    x.node.shape.length ? step(b, x) : null;
const filled =
  (step: Step): Step =>
  (b, x) =>
    sizeOf(x.node.shape) ? step(b, x) : null;
const sum = (a: Known, b: Known) => ({
  fraction: Math.max(a.fraction, b.fraction),
  magnitude: Math.max(a.magnitude, b.magnitude) + 1,
});
const product = (a: Known, b: Known) => ({
  fraction: a.fraction + b.fraction,
  magnitude: a.magnitude + b.magnitude,
});
const bits = (n: number): number => Math.ceil(Math.log2(Math.max(1, n)));
const bounded = { ...inexact, magnitude: 1 };

/** A smooth function, kept near 1 in size. */
const smooth = (f: (x: Node) => Node): Step =>
  float((_, x) => ({ node: f(o.mul(o.tanh(o.mul(x.node, 0.25)), 0.75)), ...bounded }));

const steps: Readonly<Record<string, Step>> = {
  add: (b, x) => {
    const y = b.like(x);
    return { node: o.add(x.node, y.node), ...sum(x, y) };
  },
  sub: (b, x) => {
    const y = b.like(x);
    return x.node.dtype === "bool" ? null : { node: o.sub(y.node, x.node), ...sum(x, y) };
  },
  mul: (b, x) => {
    const y = b.like(x);
    return { node: o.mul(x.node, y.node), ...product(x, y) };
  },
  maximum: (b, x) => {
    const y = b.like(x);
    return { node: o.maximum(x.node, y.node), ...sum(x, y) };
  },
  minimum: (b, x) => {
    const y = b.like(x);
    return { node: o.minimum(y.node, x.node), ...sum(x, y) };
  },
  divide: float((b, x) => ({
    node: o.div(x.node, o.add(o.abs(b.like(x).node), 1)),
    ...inexact,
    magnitude: x.magnitude,
  })),
  scalar: float((b, x) => {
    const s = o.scalar(b.dice.below(9) / 4 - 1, x.node.dtype);
    b.scalars.push(s);
    return { node: o.mul(x.node, s), fraction: x.fraction + 2, magnitude: x.magnitude + 1 };
  }),
  negate: (_, x) => (x.node.dtype === "bool" ? { ...x, node: o.not(x.node) } : { ...x, node: o.neg(x.node) }),
  abs: (_, x) => (x.node.dtype === "bool" ? null : { ...x, node: o.abs(x.node) }),
  tanh: smooth((x) => x),
  exp: smooth(o.exp),
  sin: smooth(o.sin),
  sqrt: smooth((x) => o.sqrt(o.add(o.abs(x), 0.25))),
  log: smooth((x) => o.log(o.add(o.abs(x), 0.25))),
  gelu: smooth(composites.gelu),
  tame: float((_, x) => ({ node: o.tanh(o.mul(x.node, 0.125)), ...bounded })),
  sign: exactly((_, x) => (x.node.dtype === "bool" ? null : { node: o.sign(x.node), fraction: 0, magnitude: 1 })),
  floor: exactly(float((_, x) => ({ node: o.floor(x.node), fraction: 0, magnitude: x.magnitude + 1 }))),
  round: exactly(float((_, x) => ({ node: o.round(x.node), fraction: 0, magnitude: x.magnitude + 1 }))),
  compare: exactly((b, x) => {
    const y = b.like(x);
    if (!isExact(y)) return null;
    return { node: b.dice.pick([o.lt, o.le, o.eq])(x.node, y.node), fraction: 0, magnitude: 1 };
  }),
  where: (b, x) => {
    const y = b.like(x);
    const bool = b.all.find(({ node }) => node.dtype === "bool" && node.shape.join() === x.node.shape.join());
    const rank = x.node.shape.length;
    const condition = bool
      ? bool.node
      : rank
        ? o.lt(o.iota(x.node.shape, b.dice.below(rank)), 1 + b.dice.below(3))
        : b.fresh([], "bool").node;
    return { node: o.where(condition, x.node, y.node), ...sum(x, y) };
  },
  bitwise: (b, x) =>
    isFloat(x.node.dtype)
      ? null
      : { node: b.dice.pick([o.and, o.or, o.xor])(x.node, b.like(x).node), fraction: 0, magnitude: 31 },
  shift: (b, x) =>
    isInteger(x.node.dtype)
      ? {
          node: b.dice.pick([o.shl, o.shr])(x.node, o.full(x.node.shape, b.dice.below(4), x.node.dtype)),
          fraction: 0,
          magnitude: 31,
        }
      : null,
  divideIntegers: (b, x) => {
    if (!isInteger(x.node.dtype)) return null;
    // 0 divides nothing, and it stands where a pad reads nothing
    const y = o.or(b.like(x).node, 1);
    return { node: b.dice.pick([o.floorDivide, o.mod])(x.node, y), fraction: 0, magnitude: 31 };
  },
  cast: exactly((b, x) => {
    const to = b.dice.pick<DType>(["float32", "float64", "float16", "bfloat16", "int32", "uint8", "bool", "uint32"]);
    if (to === x.node.dtype) return null;
    if (isFloat(to)) {
      if (!isFloat(x.node.dtype) && x.magnitude > 8) return null;
      return x.fraction + x.magnitude < mantissa[to] ? { ...x, node: o.cast(x.node, to) } : null;
    }
    if (to === "bool") return { node: o.cast(x.node, to), fraction: 0, magnitude: 1 };
    if (isFloat(x.node.dtype) && (x.magnitude > 7 || to === "uint8" || to === "uint32")) return null;
    return { node: o.cast(x.node, to), fraction: 0, magnitude: to === "int32" ? x.magnitude : 31 };
  }),
  back: exactly((b, x) => {
    if (x.node.dtype === b.dtype || x.magnitude > 8) return null;
    return { ...x, node: o.cast(x.node, b.dtype) };
  }),

  reshape: (b, x) => {
    const n = sizeOf(x.node.shape);
    if (n === 0) return { ...x, node: o.reshape(x.node, b.dice.shuffled(x.node.shape)) };
    const d = b.dice.pick([1, 2, 3, 5, 7, 17].filter((k) => n % k === 0));
    return { ...x, node: o.reshape(x.node, b.dice.pick([[d, n / d], [n / d, 1, d], [n]])) };
  },
  permute: (b, x) => ({ ...x, node: o.permute(x.node, b.dice.shuffled([...x.node.shape.keys()])) }),
  expand: (b, x) => {
    const size = b.dice.pick([2, 3, 5]);
    if (x.node.shape.length > 4) return null;
    return { ...x, node: o.expandTo(x.node, [size, ...x.node.shape]) };
  },
  slice: axes((b, x) => ({
    ...x,
    node: o.slice(
      x.node,
      x.node.shape.map((n) => {
        if (n === 0) return { start: 0, size: 0, step: 1 };
        const step = b.dice.pick([1, 1, 2, 3, -1, -2]);
        const start = b.dice.below(n);
        const room = step < 0 ? Math.floor(start / -step) + 1 : Math.ceil((n - start) / step);
        return { start, step, size: (b.empty && b.dice.chance(0.05) ? 0 : 1) + b.dice.below(room) };
      }),
    ),
  })),
  flip: axes((b, x) => ({ ...x, node: o.flip(x.node, [b.axis(x)]) })),
  pad: axes((b, x) => {
    const amounts = (most: number) => x.node.shape.map(() => (b.dice.chance(0.5) ? b.dice.below(most + 1) : 0));
    const value = isFloat(x.node.dtype) ? b.dice.pick([0, 0.5, -0]) : b.dice.below(2);
    return {
      ...x,
      fraction: Math.max(x.fraction, 1),
      node: o.pad(x.node, amounts(2), amounts(3), value, amounts(2)),
    };
  }),
  shiftAlong: axes((b, x) => {
    const a = b.axis(x);
    const n = x.node.shape[a];
    if (n < 2) return null;
    const by = 1 + b.dice.below(Math.min(3, n - 1));
    const at = (v: number) => x.node.shape.map((_, i) => (i === a ? v : 0));
    const [first, low, high] = b.dice.chance(0.5) ? [0, by, 0] : [by, 0, by];
    return { ...x, node: o.pad(o.narrow(x.node, a, first, n - by), at(low), at(high)) };
  }),
  roll: axes((b, x) => {
    const a = b.axis(x);
    const n = x.node.shape[a];
    if (n < 2) return null;
    const by = 1 + b.dice.below(n - 1);
    return { ...x, node: o.concat([o.narrow(x.node, a, by, n - by), o.narrow(x.node, a, 0, by)], a) };
  }),
  concat: axes((b, x) => {
    const a = b.axis(x);
    const fitting = b.all.filter(
      ({ node: n }) =>
        n.dtype === x.node.dtype &&
        n.shape.length === x.node.shape.length &&
        n.shape.every((s, i) => i === a || s === x.node.shape[i]),
    );
    const parts = [
      x,
      b.dice.pick([x, ...fitting]),
      b.fresh(
        x.node.shape.map((n, i) => (i === a ? b.length() : n)),
        x.node.dtype,
      ),
    ];
    const used = b.dice.shuffled(parts).slice(0, 2 + b.dice.below(2));
    return {
      node: o.concat(
        used.map((u) => u.node),
        a,
      ),
      fraction: Math.max(...used.map((u) => u.fraction)),
      magnitude: Math.max(...used.map((u) => u.magnitude)),
    };
  }),
  window: axes((b, x) => {
    const a = b.axis(x);
    const [size, stride, dilation] = [b.dice.pick([2, 3]), b.dice.pick([1, 2]), b.dice.pick([1, 2])];
    if (windowCount(x.node.shape[a], size, stride, dilation) < 1) return null;
    return { ...x, node: o.window(x.node, [a], [size], [stride], [dilation]) };
  }),
  fold: axes((b, x) => {
    const { node } = x;
    if (node.shape.length < 2 || node.dtype === "bool") return null;
    const size = node.shape[node.shape.length - 1];
    const a = b.dice.below(node.shape.length - 1);
    const [stride, dilation] = [b.dice.pick([1, 2]), b.dice.pick([1, 2])];
    const count = node.shape[a];
    if (size < 1 || size > 5 || count < 1) return null;
    const length = dilation * (size - 1) + (count - 1) * stride + 1;
    return {
      node: o.fold(node, [a], [size], [stride], [dilation], [length]),
      fraction: x.fraction,
      magnitude: x.magnitude + bits(size),
    };
  }),

  sum: axes((b, x) => {
    const list = b.dice.shuffled([...x.node.shape.keys()]).slice(0, 1 + b.dice.below(2));
    const count = list.reduce((n, a) => n * x.node.shape[a], 1);
    return {
      node: o.sum(x.node, list, { keepdim: b.dice.chance(0.5) }),
      fraction: x.fraction,
      magnitude: x.magnitude + bits(count),
    };
  }),
  center: float(
    axes(
      filled((b, x) => ({
        node: o.sub(x.node, o.mean(x.node, b.axis(x), { keepdim: true })),
        ...inexact,
        magnitude: x.magnitude,
      })),
    ),
  ),
  extreme: axes(
    filled((b, x) => ({
      ...x,
      node: b.dice.pick([o.reduceMax, o.reduceMin])(x.node, b.axis(x), { keepdim: b.dice.chance(0.5) }),
    })),
  ),
  limited: axes(
    filled((b, x) => {
      const limit = o.scalar(b.dice.below(5), "int32");
      b.scalars.push(limit);
      return { node: o.sum(x.node, b.axis(x), { limit }), fraction: x.fraction, magnitude: x.magnitude + 6 };
    }),
  ),
  product: float(
    axes((b, x) => {
      const a = b.axis(x);
      return x.node.shape[a] > 5 ? null : { node: o.prod(o.tanh(x.node), a), ...bounded };
    }),
  ),
  argmax: exactly(
    axes(filled((b, x) => ({ node: b.dice.pick([o.argmax, o.argmin])(x.node, b.axis(x)), fraction: 0, magnitude: 6 }))),
  ),
  argsort: exactly(
    axes((b, x) => ({ node: o.argsort(x.node, b.axis(x), b.dice.chance(0.5)), fraction: 0, magnitude: 6 })),
  ),
  cumsum: axes((b, x) => {
    const a = b.axis(x);
    return { node: o.cumsum(x.node, a), fraction: x.fraction, magnitude: x.magnitude + bits(x.node.shape[a]) };
  }),
  cummax: axes((b, x) => (x.node.dtype === "bool" ? null : { ...x, node: o.cummax(x.node, b.axis(x)) })),
  matmul: axes((b, x) => {
    const k = x.node.shape[x.node.shape.length - 1];
    if (x.node.dtype === "bool") return null;
    const y = b.fresh([k, b.dice.pick(b.lengths)], x.node.dtype);
    return { node: o.matmul(x.node, y.node), fraction: x.fraction + 3, magnitude: x.magnitude + 2 + bits(k) };
  }),
  gram: axes((b, x) => {
    if (x.node.shape.length < 2 || x.node.dtype === "bool") return null;
    const turned = o.transpose(x.node, -1, -2);
    const k = x.node.shape[x.node.shape.length - 1];
    return {
      node: b.dice.chance(0.5) ? o.matmul(x.node, turned) : o.matmul(turned, x.node),
      fraction: 2 * x.fraction,
      magnitude: 2 * x.magnitude + bits(Math.max(k, x.node.shape[x.node.shape.length - 2])),
    };
  }),
  linear: float(
    axes((b, x) => {
      const n = b.dice.pick([16, 17, 33]);
      const k = x.node.shape[x.node.shape.length - 1];
      const product = o.matmul(
        x.node,
        b.fresh([k, n]).node.dtype === x.node.dtype ? b.fresh([k, n]).node : b.fresh([k, n], x.node.dtype).node,
      );
      return { node: composites.gelu(o.mul(o.add(product, b.fresh([n], x.node.dtype).node), 0.125)), ...inexact };
    }),
  ),
  take: axes(
    filled((b, x) => {
      const a = b.axis(x);
      return { ...x, node: o.take(x.node, a, b.indices([b.dice.pick([1, 3, 5])], x.node.shape[a])) };
    }),
  ),
  gather: axes(
    filled((b, x) => {
      const a = b.axis(x);
      const shape = x.node.shape.map((n, i) => (i === a ? b.dice.pick([1, 3, 7]) : n));
      return { ...x, node: o.gather(x.node, a, b.indices(shape, x.node.shape[a])) };
    }),
  ),
  takeFound: axes(
    filled((b, x) => {
      // indices that the program itself computes
      const found = b.all.find(
        ({ node }) => node.operation.name === "argsort" && sizeOf(node.shape) > 0 && sizeOf(node.shape) < 40,
      );
      if (!found) return null;
      const a = b.axis(x);
      return { ...x, node: o.take(x.node, a, o.minimum(found.node, x.node.shape[a] - 1)) };
    }),
  ),
  scatter: axes(
    filled((b, x) => {
      if (x.node.dtype === "bool") return null;
      const a = b.axis(x);
      const shape = x.node.shape.map((n, i) => (i === a ? 4 : n));
      const source = b.fresh(shape, x.node.dtype);
      const target = b.dice.chance(0.3) ? { ...x, node: o.zerosLike(x.node) } : x;
      return {
        node: o.scatter(
          target.node,
          a,
          b.indices(shape, x.node.shape[a]),
          source.node,
          b.dice.pick(["add", "set", "max"]),
        ),
        fraction: Math.max(3, x.fraction),
        magnitude: x.magnitude + 3,
      };
    }),
  ),
  dynamicSlice: axes(
    filled((b, x) => {
      const offsets = x.node.shape.map((n) => o.scalar(b.dice.below(n + 2) - 1, "int32"));
      b.scalars.push(...offsets);
      return {
        ...x,
        node: o.dynamicSlice(
          x.node,
          offsets,
          x.node.shape.map((n) => 1 + b.dice.below(n)),
        ),
      };
    }),
  ),
  dynamicUpdate: axes(
    filled((b, x) => {
      const offsets = x.node.shape.map((n) => o.scalar(b.dice.below(n + 2) - 1, "int32"));
      b.scalars.push(...offsets);
      const update = b.fresh(
        x.node.shape.map((n) => 1 + b.dice.below(n)),
        x.node.dtype,
      );
      return {
        ...x,
        fraction: Math.max(x.fraction, 3),
        magnitude: x.magnitude + 1,
        node: o.dynamicUpdate(x.node, update.node, offsets),
      };
    }),
  ),
  softmax: float(axes(filled((b, x) => ({ node: composites.softmax(x.node, b.axis(x)), ...bounded })))),
  layerNorm: float(
    axes(
      filled((b, x) => ({
        node: composites.layerNorm(x.node, 1, b.fresh(x.node.shape.slice(-1), x.node.dtype).node, null),
        ...inexact,
      })),
    ),
  ),
};

/** What the compiler rewrites most is drawn most. */
const often = new Set(
  "reshape permute slice flip pad shiftAlong roll concat window fold sum center extreme argmax take gather compare where cast back".split(
    " ",
  ),
);
export const stepNames = Object.keys(steps).flatMap((name) => (often.has(name) ? [name, name, name] : [name]));

/** Random programs of `only` these steps, or of all. */
export function randomProgram(
  backend: Backend,
  seed: number,
  options: Options,
  only: readonly string[] = stepNames,
): RandomProgram {
  const b = new Builder(backend, seed, options);
  const { dice } = b;
  for (let i = 0; i < 4; i++)
    b.all.push(b.fresh(b.shape(), i === 3 ? dice.pick<DType>(["int32", "bool", "uint8"]) : options.dtype));
  // the last two leaves of the main dtype have one shape, so that they can be each other's next value
  b.all.push(b.fresh(b.all[0].node.shape));
  // a loose state may become anything; the others keep what is known of them from run to run
  const loose = new Set<Node>();
  b.all.forEach((leaf, i) => {
    if (!isFloat(leaf.node.dtype) || dice.chance(0.4)) return;
    loose.add(leaf.node);
    b.all[i] = { node: leaf.node, ...inexact };
  });
  const leaves = b.all.slice();
  const count = leaves.length + (options.steps ?? 4 + dice.below(16));
  for (let tries = 0; b.all.length < count && tries < 400; tries++) {
    const x = dice.chance(0.6) ? b.all[b.all.length - 1] : dice.pick(b.all);
    const y = steps[dice.pick(only)](b, x);
    if (!y || y.node === x.node || sizeOf(y.node.shape) > b.most || y.node.shape.length > 6 || y.magnitude > 40)
      continue;
    if (mantissa[y.node.dtype] < 24 && !isExact(y)) continue; // 16-bit floats round at every step, or after several
    b.all.push(y);
  }
  const computed = b.all.filter(({ node }) => !node.storage).map(({ node }) => node);
  if (computed.length === 0) computed.push(o.neg(leaves[0].node));
  const last = computed[computed.length - 1];
  const roots = new Set([last, dice.pick(computed), dice.pick(computed)].slice(0, 1 + dice.below(3)));
  const assigns: Assign[] = [];
  for (const { node: target } of leaves) {
    if (!dice.chance(0.6)) continue;
    const values = b.all.filter(
      ({ node, fraction, magnitude }) =>
        node !== target &&
        node.dtype === target.dtype &&
        node.shape.join() === target.shape.join() &&
        (loose.has(target) || (fraction <= 3 && magnitude <= 2 && !loose.has(node))),
    );
    const own: Node[] = [];
    const wide = target.shape.findIndex((n) => n > 1);
    if (wide >= 0 && sizeOf(target.shape)) {
      own.push(o.flip(target, [wide]));
      if (loose.has(target)) own.push(o.add(o.mul(target, 0.5), o.flip(target, [wide])));
    }
    if (loose.has(target)) own.push(o.mul(target, 0.5), o.add(o.mul(target, 0.5), o.sum(o.tanh(target))));
    const value = dice.chance(0.5) && values.length ? dice.pick(values).node : own.length ? dice.pick(own) : null;
    if (!value) continue;
    assigns.push({ target, value });
    if (dice.chance(0.3) && !value.storage) roots.add(value);
  }
  return { roots: [...roots], assigns, states: leaves.map(({ node }) => node), scalars: b.scalars };
}

export function showProgram({ roots, assigns }: RandomProgram): string {
  const order = topologicalOrder([...roots, ...assigns.map(({ value }) => value)], (node) => node.storage !== null);
  const lines = order.map((n) => {
    const attrs = Object.keys(n.attrs).length ? ` ${JSON.stringify(n.attrs)}` : "";
    return `  ${n} (${n.inputs.map(({ id }) => `%${id}`).join(", ")})${attrs}`;
  });
  for (const { target, value } of assigns) lines.push(`  %${target.id} := %${value.id}`);
  return [...lines, `  roots ${roots.map(({ id }) => `%${id}`).join(", ")}`].join("\n");
}
