/**
 * What the tests of the WGSL renderer render: every operation in every dtype, reductions of every form, and the graphs
 * that training is made of, forward and backward. Roots of the graph, on any backend; no expectations here.
 */
import { gradientsOf } from "../../../src/autograd/index.ts";
import type { Backend } from "../../../src/backends/backend.ts";
import { type DType, dtypes, isFloat } from "../../../src/core/dtype.ts";
import { type Shape, sizeOf } from "../../../src/core/shape.ts";
import * as c from "../../../src/graph/composites/index.ts";
import { make, type Node, operations } from "../../../src/graph/node.ts";
import * as o from "../../../src/graph/ops.ts";
import { accepts } from "../../../src/graph/primitives.ts";
import { nodeFrom } from "../../support/evaluate.ts";
import { randomNumbers } from "../../support/gradients.ts";

export const deviceDtypes = (Object.keys(dtypes) as DType[]).filter((d) => d !== "float64");

/** Leaves of one backend, the same numbers for all. */
export class Leaves {
  readonly backend: Backend;
  private readonly next: () => number;
  constructor(backend: Backend, seed = 1) {
    this.backend = backend;
    this.next = randomNumbers(seed);
  }

  /** Numbers that every dtype holds exactly; `positive` ones have no 0 among them. */
  of(dtype: DType, shape: Shape, positive = false): Node {
    const whole = (): number => Math.floor(this.next() * 12) + (positive ? 1 : dtype === "int32" ? -5 : 0);
    const value = (): number => {
      if (dtype === "bool") return this.next() < 0.5 ? 0 : 1;
      if (!isFloat(dtype)) return whole();
      const x = Math.round(this.next() * 64) / 16;
      return positive ? x + 0.25 : x - 2;
    };
    return nodeFrom(this.backend, Array.from({ length: sizeOf(shape) }, value), shape, dtype);
  }

  float(shape: Shape, requiresGrad = false): Node {
    const node = this.of("float32", shape);
    node.requiresGrad = requiresGrad;
    return node;
  }

  below(n: number, shape: Shape): Node {
    const values = Array.from({ length: sizeOf(shape) }, () => Math.floor(this.next() * n));
    return nodeFrom(this.backend, values, shape, "int32");
  }
}

const elementwise = [...operations.values()].filter(({ group }) => group === "unary" || group === "binary");

/** Every unary, binary and choice operation that takes `dtype`, of `shape`. */
export function everyOperation(l: Leaves, dtype: DType, shape: Shape): Map<string, Node> {
  const out = new Map<string, Node>();
  const [a, b, condition] = [l.of(dtype, shape, true), l.of(dtype, shape, true), l.of("bool", shape)];
  const signed = l.of(dtype, shape);
  for (const row of elementwise) {
    if (!accepts.get(row.name)?.includes(dtype)) continue;
    const onlyPositive = row.name === "sqrt" || row.name === "log" || row.name === "log1p" || row.name === "pow";
    const x = onlyPositive ? a : signed;
    out.set(row.name, make(row, row.group === "unary" ? [x] : [x, b]));
  }
  out.set("where", o.where(condition, a, b));
  for (const to of deviceDtypes) {
    if (to === dtype) continue;
    out.set(`cast to ${to}`, o.cast(isFloat(dtype) ? o.abs(signed) : signed, to));
    const changes = dtypes[to].bytes === dtypes[dtype].bytes && dtype !== "bool" && to !== "bool";
    if (changes) out.set(`bitcast to ${to}`, o.bitcast(isFloat(to) ? o.bitcast(signed, dtype) : signed, to));
  }
  out.set("scalar", o.where(condition, a, o.expandTo(o.scalar(3, dtype), shape)));
  out.set("const", o.where(condition, a, o.full(shape, 1, dtype)));
  return out;
}

/** Movements that leave index arithmetic and conditions, of a [4, 6] value. */
export function everyMovement(x: Node): Map<string, Node> {
  return new Map([
    ["permute", o.permute(x, [1, 0])],
    [
      "slice",
      o.slice(x, [
        { start: 3, step: -1, size: 4 },
        { start: 1, step: 2, size: 3 },
      ]),
    ],
    ["pad", o.pad(x, [1, 0], [2, 3], 1, [0, 1])],
    ["concat", o.concat([x, o.flip(x, [1]), x], 0)],
    ["window", o.window(x, [1], [3], [1], [2])],
    ["reshape of a permutation", o.reshape(o.permute(x, [1, 0]), [3, 8])],
    [
      "a slice of a pad of a concat",
      o.slice(o.pad(o.concat([x, x], 1), [1, 1], [1, 1], 0, [0, 0]), [
        { start: 0, step: 1, size: 5 },
        { start: 2, step: 3, size: 4 },
      ]),
    ],
  ]);
}

const reducers = { sum: o.sum, prod: o.prod, reduceMax: o.reduceMax, reduceMin: o.reduceMin };

/** Reductions of [rows, columns] over columns (a row each), over rows (parts), and over the middle of three axes. */
export function everyReduction(l: Leaves, dtype: DType, rows: number, columns: number): Map<string, Node> {
  const x = l.of(dtype, [rows, columns], true);
  const out = new Map<string, Node>();
  for (const name of Object.keys(reducers) as (keyof typeof reducers)[]) {
    if (!accepts.get(name)?.includes(dtype)) continue;
    // products of many numbers: near 1
    const y = name === "prod" ? o.where(o.lt(o.iota([rows, columns], 1), 2), x, o.full([rows, columns], 1, dtype)) : x;
    out.set(`${name} of rows`, reducers[name](y, 1));
    const z = name === "prod" ? o.where(o.lt(o.iota([rows, columns], 0), 2), x, o.full([rows, columns], 1, dtype)) : x;
    out.set(`${name} over rows`, reducers[name](z, 0));
    out.set(`${name} of the middle`, reducers[name](o.reshape(y, [rows, 1, columns]), 1));
  }
  out.set("argmax", o.argmax(x, 1));
  out.set("argmin over rows", o.argmin(x, 0));
  return out;
}

/** Roots that a step of training asks for. */
export const graphs: Readonly<Record<string, (l: Leaves) => readonly Node[]>> = {
  softmax: (l) => {
    const x = l.float([37, 100], true);
    const y = c.softmax(x, 1);
    return [y, ...gradients([y], [l.float([37, 100])], [x])];
  },
  "softmax over rows": (l) => {
    const x = l.float([60, 33], true);
    const y = c.logSoftmax(x, 0);
    return [y, ...gradients([y], [l.float([60, 33])], [x])];
  },
  layerNorm: (l) => {
    const [x, w, b] = [l.float([130, 96], true), l.float([96], true), l.float([96], true)];
    const y = c.layerNorm(x, 1, w, b);
    return [y, ...gradients([y], [l.float([130, 96])], [x, w, b])];
  },
  "layerNorm of a few columns": (l) => {
    const [x, w, b] = [l.float([300, 5], true), l.float([5], true), l.float([5], true)];
    const y = c.layerNorm(x, 1, w, b);
    return [y, ...gradients([y], [l.float([300, 5])], [x, w, b])];
  },
  "layerNorm of many columns": (l) => {
    const [x, w] = [l.float([53, 4100], true), l.float([4100], true)];
    const y = c.rmsNorm(x, 1, w);
    return [o.sum(y), ...gradients([y], [l.float([53, 4100])], [x, w])];
  },
  batchNorm: (l) => {
    const [x, w, b] = [l.float([70, 6, 8], true), l.float([6], true), l.float([6], true)];
    const mean = o.mean(x, [0, 2], { keepdim: true });
    const centred = o.sub(x, mean);
    const rstd = o.div(1, o.sqrt(o.add(o.mean(o.mul(centred, centred), [0, 2], { keepdim: true }), 1e-5)));
    const y = o.add(o.mul(o.mul(centred, rstd), o.reshape(w, [1, 6, 1])), o.reshape(b, [1, 6, 1]));
    return [y, ...gradients([y], [l.float([70, 6, 8])], [x, w, b])];
  },
  crossEntropy: (l) => {
    const x = l.float([64, 50], true);
    const loss = c.crossEntropy(x, l.below(50, [64]), { labelSmoothing: 0.1 });
    return [loss, ...gradients([loss], [null], [x])];
  },
  embedding: (l) => {
    const table = l.float([30, 16], true);
    const y = o.take(table, 0, l.below(30, [20]));
    return [o.mul(y, 2), ...gradients([y], [l.float([20, 16])], [table])];
  },
  dropout: (l) => {
    const x = l.float([40, 25], true);
    const [key0, key1] = [o.scalar(7, "int32"), o.scalar(-3, "int32")];
    const bits = o.cast(o.bitcast(o.random([40, 25], key0, key1), "int32"), "float32");
    const y = o.where(o.lt(bits, o.scalar(0.4 * 2 ** 31, "float32")), o.div(x, 0.7), o.zerosLike(x));
    return [y, ...gradients([y], [l.float([40, 25])], [x])];
  },
  gelu: (l) => {
    const x = l.float([300], true);
    const y = c.gelu(x);
    return [y, c.gelu(x, "tanh"), ...gradients([y], [l.float([300])], [x])];
  },
  adam: (l) => {
    const [p, g, m, v] = [l.float([333]), l.float([333]), l.float([333]), l.of("float32", [333], true)];
    const [stepSize, correction, eps, beta2] = [0.01, 1.5, 1e-8, 0.99].map((x) => o.scalar(x, "float32"));
    const first = o.add(m, o.mul(o.sub(g, m), o.scalar(0.1, "float32")));
    const second = o.add(o.mul(v, beta2), o.mul(o.mul(g, g), o.scalar(0.01, "float32")));
    const root = o.add(o.mul(o.sqrt(second), correction), eps);
    return [o.sub(p, o.mul(o.div(first, root), stepSize)), first, second];
  },
  "halves and truths": (l) => {
    const [h, b] = [l.of("float16", [33, 12], true), l.of("bfloat16", [33, 12], true)];
    const condition = o.lt(o.cast(h, "float32"), o.cast(b, "float32"));
    const best = o.where(condition, o.cast(b, "float16"), h);
    return [condition, best, o.cast(o.sum(best, 0), "bfloat16"), o.cast(condition, "uint8")];
  },
  attention: (l) => {
    const [q, k, v] = [0, 1, 2].map(() => l.float([2, 2, 9, 4], true));
    const { out } = c.attention(q, k, v, { causal: true });
    return [out, ...gradients([out], [l.float(out.shape)], [q, k, v])];
  },
  pool: (l) => {
    const x = l.float([2, 7, 7, 3], true);
    const y = c.maxPool2d(x, {
      kernel: [3, 3],
      stride: [2, 2],
      low: [1, 1],
      high: [1, 1],
      dilation: [1, 1],
      ceilMode: false,
    });
    return [y, ...gradients([y], [l.float(y.shape)], [x])];
  },
};

const gradients = (outputs: readonly Node[], seeds: readonly (Node | null)[], inputs: readonly Node[]): Node[] =>
  gradientsOf(outputs, seeds, inputs) as Node[];
