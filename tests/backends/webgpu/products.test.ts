/**
 * Matrix products and convolutions on WebGPU against the reference backend, in both of their forms: tiles in workgroup
 * memory as on a GPU, and blocks that a subgroup makes alone as on a software adapter. Rests of every tile, operands
 * contiguous along any axis, sums in parts, windows with strides, dilation and unequal padding.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { Backend } from "../../../src/backends/backend.ts";
import { referenceBackend } from "../../../src/backends/reference/index.ts";
import { openWebGpuBackend } from "../../../src/backends/webgpu/index.ts";
import * as c from "../../../src/graph/composites/index.ts";
import type { Node } from "../../../src/graph/node.ts";
import * as o from "../../../src/graph/ops.ts";
import { orReason } from "../../support/backends.ts";
import { captureOf, evaluate, nodeFrom } from "../../support/evaluate.ts";
import { assertClose } from "../../support/fixtures.ts";

const opened = await orReason(
  Promise.all([openWebGpuBackend(), openWebGpuBackend({ features: { subgroups: false } })]),
);
const skip = typeof opened === "string" ? opened : false;
const ways = typeof opened === "string" ? [] : [opened[0], ...(opened[0].device.lanes > 0 ? [opened[1]] : [])];

type Leaf = (...shape: number[]) => Node;

/** The same roots on the reference backend and in every form. */
async function compare(build: (leaf: Leaf) => Node[]): Promise<void> {
  const roots = (on: Backend): Node[] => {
    let seed = 0;
    return build((...shape) => {
      const k = 0.7 + 0.31 * ++seed;
      const n = shape.reduce((a, b) => a * b, 1);
      return nodeFrom(
        on,
        Float32Array.from({ length: n }, (_, i) => Math.sin(k * i + seed)),
        shape,
        "float32",
      );
    });
  };
  const expected = await evaluate(referenceBackend(), roots(referenceBackend()));
  for (const on of ways)
    (await evaluate(on, roots(on))).forEach((values, i) => {
      assertClose(`root ${i}, lanes ${on.device.lanes}`, values, expected[i], { rtol: 1e-4, atol: 1e-4 });
    });
}

const swap = (x: Node): Node =>
  o.permute(x, [...x.shape.keys()].slice(0, -2).concat(x.shape.length - 1, x.shape.length - 2));

test("products with rests of rows, columns and depth, and either operand transposed", { skip }, async () => {
  await compare((leaf) => [
    o.matmul(leaf(70, 33), leaf(33, 41)),
    o.matmul(swap(leaf(18, 37)), leaf(18, 9)),
    o.matmul(leaf(11, 24), swap(leaf(66, 24))),
    o.matmul(swap(leaf(20, 13)), swap(leaf(35, 20))),
    o.matmul(leaf(3, 5, 7), leaf(3, 7, 6)),
  ]);
});

test("products of few rows, few columns and little depth", { skip }, async () => {
  await compare((leaf) => [
    o.matmul(leaf(1, 50), leaf(50, 130)),
    o.matmul(leaf(130, 50), leaf(50, 2)),
    o.matmul(leaf(9, 1), leaf(1, 10)),
    o.matmul(leaf(40, 3), leaf(3, 33)),
    o.matmul(leaf(2, 0), leaf(0, 5)),
  ]);
});

test("long sums of few tiles, in parts", { skip }, async () => {
  await compare((leaf) => [o.matmul(swap(leaf(1537, 8)), leaf(1537, 6))]);
});

/** A convolution with bias and ReLU, and its gradients. */
function convolution(leaf: Leaf, x: number[], outer: number, kernel: number[], attrs: c.ConvAttrs): Node[] {
  const [input, weight] = [leaf(...x), leaf(outer, x[3], ...kernel)];
  const y = c.conv(input, weight, attrs);
  const relu = o.maximum(o.add(y, o.expandTo(leaf(outer), y.shape)), 0);
  const gradient = leaf(...y.shape);
  const size = x.slice(1, 3);
  return [
    relu,
    c.convInputGradient(gradient, weight, { ...attrs, size }),
    c.convWeightGradient(input, gradient, { ...attrs, kernel }),
  ];
}

const plain = { stride: [1, 1], low: [1, 1], high: [1, 1], dilation: [1, 1], groups: 1 };

test("convolutions and their gradients, with rests of channels and positions", { skip }, async () => {
  await compare((leaf) => convolution(leaf, [2, 9, 7, 6], 13, [3, 3], plain));
  await compare((leaf) => convolution(leaf, [3, 6, 5, 1], 8, [3, 2], { ...plain, low: [1, 0], high: [0, 2] }));
});

test("the weight's gradient of no images at all is zero", { skip }, async () => {
  await compare((leaf) => {
    const [x, gradient] = [leaf(0, 5, 5, 3), leaf(0, 5, 5, 4)];
    return [c.convWeightGradient(x, gradient, { ...plain, kernel: [3, 3] })];
  });
});

test("convolutions with strides and dilation", { skip }, async () => {
  await compare((leaf) => convolution(leaf, [2, 11, 12, 5], 9, [3, 2], { ...plain, stride: [2, 3], dilation: [2, 1] }));
});

test("bias and ReLU follow a convolution in its own dispatch, and no windows lie in memory", { skip }, async () => {
  for (const on of ways) {
    const leaf: Leaf = (...shape) => nodeFrom(on, new Float32Array(shape.reduce((a, b) => a * b, 1)), shape, "float32");
    const program = await on.compile(captureOf(convolution(leaf, [2, 8, 8, 4], 16, [3, 3], plain).slice(0, 1)));
    assert.equal(program.stats.kernels, 1, program.describe("kernels"));
  }
});
