/**
 * What the fuser makes of well-known computations: how many kernels, what they read and write, and the text of some.
 * No kernel is rendered or run here; that they compute the right numbers is tests/backends/.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { gradientsOf, withGrad } from "../../src/autograd/index.ts";
import { referenceBackend } from "../../src/backends/reference/index.ts";
import { Fuser, type GroupKernel } from "../../src/compiler/fuse.ts";
import { runtimeValues, showKernel, type Value } from "../../src/compiler/kernel.ts";
import { type GNode, lower } from "../../src/compiler/lower.ts";
import { type DType, dtypes } from "../../src/core/dtype.ts";
import { type Shape, sizeOf } from "../../src/core/shape.ts";
import * as composites from "../../src/graph/composites/index.ts";
import type { Node } from "../../src/graph/node.ts";
import * as o from "../../src/graph/ops.ts";
import { type Assign, captureOf, nodeFrom } from "../support/evaluate.ts";

const backend = referenceBackend();

function leaf(shape: Shape, dtype: DType = "float32"): Node {
  const node = nodeFrom(backend, new Float64Array(sizeOf(shape)), shape, dtype);
  node.requiresGrad = dtype === "float32";
  return node;
}

/** Products and scatters are not kernels of the fuser's; nothing else is kept whole. */
const rule = {
  isOpaque: (n: GNode) => ["contract", "scatter", "argsort", "cumsum"].includes(n.op),
  takesStrided: () => false,
  ignores: () => false,
};

interface Made {
  readonly kernels: readonly GroupKernel[];
  readonly opaque: readonly string[];
  /** Bytes that the kernels read and write, each buffer once a kernel. */
  readonly bytes: number;
  readonly text: string;
}

function kernelsOf(roots: readonly Node[], assigns: readonly Assign[] = [], fuse = true): Made {
  const lowered = lower(captureOf(roots, assigns), () => false);
  const fuser = new Fuser(lowered, rule, fuse);
  fuser.run();
  const stored = fuser.storedMembers();
  const groups = fuser.groups.filter((g) => !g.opaque);
  for (const g of groups) fuser.chooseSplit(g);
  const kernels = groups.map((g) => fuser.kernelOf(g, stored));
  return {
    kernels,
    opaque: fuser.groups.flatMap((g) => (g.opaque ? [g.opaque.op] : [])),
    bytes: kernels.reduce((sum, k) => sum + bytesOf(k), 0),
    text: kernels.map((k) => showKernel(k.kernel)).join("\n"),
  };
}

/** A buffer read at positions that data gives is read once a position; every other one whole. */
function bytesOf({ kernel, reads, writes }: GroupKernel): number {
  const whole = new Set<number>();
  const positions = new Map<number, number>();
  const seen = new Set<Value>();
  const visit = (v: Value): void => {
    if (seen.has(v)) return;
    seen.add(v);
    if (v.kind === "load") {
      if (runtimeValues(v.index).length === 0) whole.add(v.slot);
      else positions.set(v.slot, v.varies("c") ? kernel.rows * kernel.columns : kernel.rows);
    }
    for (const a of [...v.args, ...runtimeValues(v.index, v.valid)]) visit(a);
  };
  for (const s of kernel.stages)
    for (const x of [...s.stores, ...s.rowStores, ...s.reductions, ...s.columns]) visit(x.value);
  let bytes = 0;
  reads.forEach((n, i) => {
    const elements = whole.has(i) ? sizeOf(n.shape) : Math.min(sizeOf(n.shape), positions.get(i) ?? 0);
    bytes += elements * dtypes[n.dtype].bytes;
  });
  for (const { node } of writes) bytes += sizeOf(node.shape) * dtypes[node.dtype].bytes;
  return bytes;
}

const sizeInBytes = (...nodes: readonly Node[]): number =>
  nodes.reduce((sum, n) => sum + sizeOf(n.shape) * dtypes[n.dtype].bytes, 0);

/** Gradients of y, whose own gradient is a leaf. */
function backward(y: Node, xs: readonly Node[]): { gradients: Node[]; upstream: Node } {
  const upstream = nodeFrom(backend, new Float64Array(sizeOf(y.shape)), y.shape, y.dtype);
  return { gradients: gradientsOf([y], [upstream], xs) as Node[], upstream };
}

const [rows, columns] = [256, 96];

describe("normalisations along rows", () => {
  const forward: Readonly<Record<string, (x: Node) => Node>> = {
    softmax: (x) => composites.softmax(x, 1),
    logSoftmax: (x) => composites.logSoftmax(x, 1),
  };
  for (const [name, f] of Object.entries(forward)) {
    test(`${name} is one kernel that reads its input and writes its result`, () => {
      const x = leaf([rows, columns]);
      const y = f(x);
      const made = kernelsOf([y]);
      assert.equal(made.kernels.length, 1, made.text);
      assert.equal(made.bytes, sizeInBytes(x, y));
    });
    test(`${name}'s gradient is one kernel that reads two and writes one`, () => {
      const x = leaf([rows, columns]);
      const { gradients, upstream } = backward(f(x), [x]);
      const made = kernelsOf(gradients);
      assert.equal(made.kernels.length, 1, made.text);
      assert.equal(made.bytes, sizeInBytes(x, upstream, ...gradients));
    });
  }

  test("layerNorm is one kernel, and it and its three gradients are one kernel", () => {
    const [x, weight, bias] = [leaf([rows, columns]), leaf([columns]), leaf([columns])];
    const y = composites.layerNorm(x, 1, weight, bias);
    const made = kernelsOf([y]);
    assert.equal(made.kernels.length, 1, made.text);
    assert.equal(made.bytes, sizeInBytes(x, weight, bias, y));
    const { gradients, upstream } = backward(y, [x, weight, bias]);
    const both = kernelsOf([y, ...gradients]);
    assert.equal(both.kernels.length, 1, both.text);
    assert.equal(both.bytes, sizeInBytes(x, weight, bias, upstream, y, ...gradients));
    const partial = both.kernels[0].writes.filter((w) => w.partial);
    assert.equal(partial.length, 2, "the sums over rows leave parts");
  });

  test("rmsNorm is one kernel, and its gradients are one", () => {
    const [x, weight] = [leaf([rows, columns]), leaf([columns])];
    const y = composites.rmsNorm(x, 1, weight);
    assert.equal(kernelsOf([y]).kernels.length, 1);
    const { gradients } = backward(y, [x, weight]);
    const made = kernelsOf(gradients);
    assert.equal(made.kernels.length, 1, made.text);
  });

  test("softmax along another axis than the last is one kernel too", () => {
    const x = leaf([8, 33, 20]);
    assert.equal(kernelsOf([composites.softmax(x, 1)]).kernels.length, 1);
    assert.equal(kernelsOf([composites.softmax(leaf([33, 20]), 0)]).kernels.length, 1);
  });
});

describe("cross-entropy", () => {
  /** Kernels that walk all the logits. */
  const wide = ({ kernels }: Made) => kernels.filter(({ kernel }) => kernel.rows * kernel.columns >= rows * columns);

  test("reads the logits once, writes no probabilities", () => {
    const [logits, labels] = [leaf([rows, columns]), leaf([rows], "int32")];
    const made = kernelsOf([composites.crossEntropy(logits, labels)]);
    assert.equal(wide(made).length, 1, made.text);
    assert.ok(made.kernels.length <= 2, made.text);
    assert.ok(made.bytes < 1.1 * sizeInBytes(logits, labels), `${made.bytes} bytes`);
  });

  test("with its gradient reads them twice and writes the gradient", () => {
    const [logits, labels] = [leaf([rows, columns]), leaf([rows], "int32")];
    const loss = composites.crossEntropy(logits, labels);
    const gradients = gradientsOf([loss], [null], [logits]) as Node[];
    const made = kernelsOf([loss, ...gradients]);
    assert.equal(wide(made).length, 2, made.text);
    assert.ok(made.bytes < 1.1 * sizeInBytes(logits, logits, labels, ...gradients), `${made.bytes} bytes`);
  });
});

describe("updates", () => {
  test("Adam's two moments and its weights are one kernel", () => {
    const [p, m, v, g] = [1, 2, 3, 4].map(() => leaf([columns, rows]));
    const lr = o.scalar(1e-3, "float32");
    const assigns = withGrad(false, () => {
      const nextM = o.add(o.mul(m, 0.9), o.mul(g, 0.1));
      const nextV = o.add(o.mul(v, 0.99), o.mul(o.mul(g, g), 0.01));
      const step = o.mul(o.div(nextM, o.add(o.sqrt(nextV), 1e-8)), lr);
      return [
        { target: p, value: o.sub(p, step) },
        { target: m, value: nextM },
        { target: v, value: nextV },
      ];
    });
    const made = kernelsOf([], assigns);
    assert.equal(made.kernels.length, 1, made.text);
    assert.equal(made.bytes, sizeInBytes(p, m, v, g, p, m, v));
    assert.equal(made.kernels[0].scalars.length, 1);
  });

  test("batch statistics and the running ones that follow them are two kernels: one a pass", () => {
    const [x, running] = [leaf([64, 8, 5, 5]), leaf([8])];
    const mean = o.mean(x, [0, 2, 3]);
    const made = kernelsOf(
      [o.sub(x, o.reshape(mean, [1, 8, 1, 1]))],
      [{ target: running, value: o.add(o.mul(running, 0.9), o.mul(mean, 0.1)) }],
    );
    assert.ok(made.kernels.length <= 2, made.text);
  });
});

describe("elementwise chains and views", () => {
  test("any number of them are one kernel", () => {
    const x = leaf([33, 7]);
    let y = x;
    for (let i = 0; i < 40; i++) y = o.tanh(o.add(o.mul(y, 0.5), 0.25));
    assert.ok(kernelsOf([y]).kernels.length <= 3);
    const short = kernelsOf([composites.gelu(o.add(o.mul(x, 2), leaf([7])))]);
    assert.equal(short.kernels.length, 1);
  });

  test("a transposed, flipped, padded and joined source is read where it lies", () => {
    const x = leaf([6, 8]);
    const moved = o.concat([o.pad(o.flip(o.transpose(x, 0, 1), [0]), [1, 0], [0, 2], 3), leaf([9, 8])], 0);
    const made = kernelsOf([o.mul(moved, 2)]);
    assert.equal(made.kernels.length, 1, made.text);
  });

  test("what is equal is computed once", () => {
    const x = leaf([64]);
    const made = kernelsOf([o.add(o.exp(x), o.exp(x))]);
    assert.equal(made.text.match(/exp\(/g)?.length, 1, made.text);
  });

  test("a random mask is drawn again in the backward pass, never stored", () => {
    const x = leaf([64, 32]);
    const [k0, k1] = [o.scalar(1, "uint32"), o.scalar(2, "uint32")];
    const bits = o.random([64, 32], k0, k1);
    const kept = o.lt(o.bitcast(bits, "int32"), 1 << 30);
    const y = o.where(kept, o.mul(x, 2), 0);
    const product = o.matmul(o.tanh(y), leaf([32, 16]));
    const { gradients } = backward(product, [x]);
    const made = kernelsOf([product, ...gradients]);
    for (const { reads, writes } of made.kernels)
      for (const n of [...reads, ...writes.map((w) => w.node)])
        assert.equal(n.dtype, "float32", `a mask lies in memory: ${made.text}`);
  });

  test("a value of two readers is recomputed where that is cheap and stored where it is not", () => {
    const x = leaf([64, 64]);
    const w = leaf([64, 64]);
    const cheap = o.mul(x, 2);
    const first = kernelsOf([o.matmul(o.transpose(o.add(cheap, 1), 0, 1), w), o.sum(cheap, 0)]);
    assert.ok(!first.kernels.some(({ writes }) => writes.some(({ node }) => node.op === "mul")), first.text);
    const dear = o.tanh(o.exp(o.sin(o.cos(x))));
    const second = kernelsOf([o.matmul(o.transpose(o.add(dear, 1), 0, 1), w), o.sum(o.sin(dear), 0)]);
    assert.equal(second.text.match(/tanh\(/g)?.length, 1, second.text);
  });
});

describe("reductions", () => {
  test("over different axes of one shape are kernels of their own", () => {
    // the same numbers of rows and columns, taken from different axes
    const x = leaf([5, 3, 2, 3, 3]);
    for (const [a, b] of [
      [4, 1],
      [3, 1],
      [3, 4],
    ]) {
      const made = kernelsOf([o.sum(x, a), o.reduceMax(x, b)]);
      assert.equal(made.kernels.length, 2, made.text);
    }
    assert.equal(kernelsOf([o.sum(x, 4), o.reduceMax(x, 4)]).kernels.length, 1);
    assert.equal(kernelsOf([o.sum(x, 1), o.reduceMax(x, 1)]).kernels.length, 1);
  });

  test("of a long vector are shared out: parts first, then their sum", () => {
    const made = kernelsOf([o.sum(leaf([1 << 20]))]);
    assert.equal(made.kernels.length, 2);
    assert.ok(made.kernels[0].kernel.rows >= 64, made.text);
  });

  test("of nothing are their identity", () => {
    const made = kernelsOf([o.sum(leaf([4, 0]), 1), o.prod(leaf([0, 4]), 0)]);
    assert.doesNotMatch(made.text, /reduction|NaN/);
  });

  test("whose result another reduction's rows need come in stages", () => {
    const x = leaf([4, 8]);
    const { kernels, text } = kernelsOf([composites.softmax(x, 1)]);
    assert.equal(
      text,
      `kernel rows 4 × columns 8
  b0: in float32
  b1: out float32
  stage 0
    v0: float32 = b0[c + 8·r]
    reduction 0 = max over c of v0
  stage 1
    v0: float32 = b0[c + 8·r]
    v1: float32 = reduction 0
    v2: float32 = sub(v0, v1)
    v3: float32 = exp(v2)
    reduction 1 = sum over c of v3
  stage 2
    v0: float32 = b0[c + 8·r]
    v1: float32 = reduction 0
    v2: float32 = sub(v0, v1)
    v3: float32 = exp(v2)
    v4: float32 = reduction 1
    v5: float32 = div(v3, v4)
    b1[c + 8·r] = v5`,
    );
    assert.equal(kernels[0].kernel.canFail, false);
  });
});

describe("what depends on data", () => {
  test("a gather is a load at a position that is checked", () => {
    const made = kernelsOf([o.mul(o.take(leaf([50, 8]), 0, leaf([3], "int32")), 2)]);
    assert.equal(made.kernels.length, 1, made.text);
    assert.ok(made.kernels[0].kernel.canFail);
    assert.match(made.text, /\[v\d+\]/);
  });

  test("of a computed table is computed at the positions that are read, unless they are many", () => {
    const table = leaf([50, 8]);
    const few = kernelsOf([o.take(o.tanh(table), 0, leaf([3], "int32"))]);
    assert.equal(few.kernels.length, 1, few.text);
    const many = kernelsOf([o.take(o.tanh(table), 0, leaf([300], "int32"))]);
    assert.equal(many.kernels.length, 2, many.text);
  });
});

describe("without fusion", () => {
  test("every operation is a kernel", () => {
    const x = leaf([4, 8]);
    const { kernels } = kernelsOf([composites.softmax(x, 1)], [], false);
    assert.ok(kernels.length >= 5, `${kernels.length} kernels`);
    for (const k of kernels) assert.equal(k.writes.length, 1);
  });
});
