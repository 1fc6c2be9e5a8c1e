/**
 * Kernels that run behind the tiles of a convolution (bias, ReLU, pooling, means), what of its result then lies in memory,
 * the mask of ReLU on pooled gradients, and exchanged axes as a command: against the reference backend, and by the text.
 */
import assert from "node:assert/strict";
import { gradientsOf } from "../../../src/autograd/index.ts";
import type { Backend } from "../../../src/backends/backend.ts";
import { referenceBackend } from "../../../src/backends/reference/index.ts";
import { type Shape, sizeOf } from "../../../src/core/shape.ts";
import * as composites from "../../../src/graph/composites/index.ts";
import type { Node } from "../../../src/graph/node.ts";
import * as o from "../../../src/graph/ops.ts";
import { compileNodes, evaluate, nodeFrom } from "../../support/evaluate.ts";
import { assertClose } from "../../support/fixtures.ts";
import { describe, openCpuBackend, test } from "./with-compiler.ts";

const backend = await openCpuBackend({ fuse: true });
const reference = referenceBackend();
const close = { rtol: 1e-4, atol: 1e-4 };

const leaf = (shape: Shape, b: Backend, scale = 1): Node =>
  nodeFrom(
    b,
    Float64Array.from({ length: sizeOf(shape) }, (_, i) => scale * Math.sin(i * 12.9898 + shape.length)),
    shape,
    "float32",
  );

/** The gradient of a sum of `y` by `x`, which is made to ask for it. */
const gradient = (x: Node, of: (x: Node) => Node): Node => {
  const y = of(x);
  return gradientsOf([o.sum(y)], [null], [x])[0] as Node;
};
const trainable = (n: Node): Node => {
  n.requiresGrad = true;
  return n;
};

type Build = (b: Backend) => readonly Node[];

/** Runs on both backends; gives the memory text of the compiled program, by unit of work. */
async function compare(name: string, build: Build): Promise<string[]> {
  const [got, expected] = [await evaluate(backend, build(backend)), await evaluate(reference, build(reference))];
  got.forEach((values, i) => {
    assertClose(`${name}, result ${i}`, values, expected[i], close);
  });
  const { program } = await compileNodes(backend, build(backend));
  return program
    .describe("memory")
    .split("\n")
    .filter((line) => line.startsWith("  "))
    .map((line) => line.trim());
}
const kernels = (units: readonly string[]): number => units.filter((u) => u.startsWith("kernel")).length;

/** Whether the convolution's result lies in memory, and not only in the scratch of the thread that makes it. */
function keepsResult(units: readonly string[]): boolean {
  const own = /^conv (%\d+):/.exec(units.find((u) => u.startsWith("conv ")) as string)?.[1];
  return units.some((u) => u.replaceAll(`for ${own}@`, "").includes(`${own}@`));
}

const plain = { stride: [1, 1], low: [1, 1], high: [1, 1], dilation: [1, 1], groups: 1 };
const halves = { kernel: [2, 2], stride: [2, 2], low: [0, 0], high: [0, 0], dilation: [1, 1], ceilMode: false };
const overlapping = { ...halves, kernel: [3, 3], low: [1, 1], high: [1, 1] };
const dense = { ...overlapping, stride: [1, 1] };

function convolution(b: Backend, [N, H, W, C]: Shape, Cout: number, attrs = plain): Node {
  return composites.conv(leaf([N, H, W, C], b), leaf([Cout, C / attrs.groups, 3, 3], b, 0.3), attrs);
}

describe("behind a convolution's tiles", () => {
  const guests: Readonly<Record<string, (y: Node, b: Backend) => Node>> = {
    "bias and relu": (y, b) => composites.relu(o.add(y, leaf([y.shape[3]], b))),
    "pooling by halves": (y, b) => composites.maxPool2d(composites.relu(o.add(y, leaf([y.shape[3]], b))), halves),
    "overlapping pooling": (y) => composites.maxPool2d(y, overlapping),
    "pooling at every position": (y) => composites.maxPool2d(y, dense),
    "a mean over each image": (y) => o.mean(composites.relu(y), [1, 2]),
  };
  const shapes: Readonly<Record<string, Shape>> = {
    "one image a tile": [16, 14, 14, 5],
    "several lines a tile": [3, 40, 36, 3],
    "several images a tile": [70, 6, 6, 8],
  };
  for (const [name, guest] of Object.entries(guests))
    for (const [kind, shape] of Object.entries(shapes))
      test(`${name}, ${kind}`, async () => {
        const units = await compare(name, (b) => [guest(convolution(b, shape, 24), b)]);
        // three images are too few to share out whole
        if (shape[0] > 3 || name === "bias and relu" || name === "pooling by halves")
          assert.equal(kernels(units), 0, units.join("\n"));
        if (!kernels(units)) assert.ok(!keepsResult(units), units.join("\n"));
      });

  test("strides, groups and dilation", async () => {
    for (const attrs of [
      { ...plain, stride: [2, 2] },
      { ...plain, groups: 4 },
      { ...plain, dilation: [2, 1], low: [2, 1], high: [2, 1] },
    ]) {
      const units = await compare("pooled", (b) => [
        composites.maxPool2d(convolution(b, [16, 16, 16, 8], 16, attrs), halves),
      ]);
      assert.equal(kernels(units), 0, units.join("\n"));
    }
  });

  test("a result that others read too lies in memory", async () => {
    const build = (b: Backend) => {
      const y = convolution(b, [16, 12, 12, 4], 16);
      return [composites.maxPool2d(y, halves), y, o.sum(y, [0, 1, 2])];
    };
    assert.ok(
      (await compare("pooled and whole", build)).some((u) => /^conv .*-> output 1/.test(u)),
      "the convolution writes its result",
    );
  });

  test("the kernel behind an input gradient, with sums over the batch", async () => {
    const units = await compare("input gradient", (b) => {
      const x = composites.relu(trainable(leaf([20, 10, 10, 8], b)));
      const dx = gradient(x, (v) => {
        const y = composites.conv(v, leaf([12, 8, 3, 3], b, 0.3), plain);
        return o.mul(y, leaf(y.shape, b));
      });
      const masked = o.where(o.le(x, 0), 0, dx);
      return [masked, o.sum(masked, [0, 1, 2])];
    });
    assert.ok(kernels(units) <= 2, units.join("\n"));
  });
});

describe("relu behind a max-pool", () => {
  for (const [name, attrs] of Object.entries({ halves, overlapping, dense }))
    test(`its gradient is masked where it is small: ${name}`, async () => {
      const build = (b: Backend, special: boolean) => {
        const values = Float64Array.from({ length: 2 * 6 * 6 * 16 }, (_, i) => Math.round(2 * Math.sin(i * 7.13)) / 2);
        if (special) for (let i = 0; i < values.length; i += 37) values[i] = [Number.NaN, -0, 0][i % 3];
        const v = trainable(nodeFrom(b, values, [2, 6, 6, 16], "float32"));
        return [
          gradient(v, (x) => {
            const y = composites.maxPool2d(composites.relu(x), attrs);
            return o.mul(y, leaf(y.shape, b));
          }),
        ];
      };
      for (const special of [false, true]) await compare(name, (b) => build(b, special));
    });

  test("reads nothing of the values before it", async () => {
    const units = await compare("step", (b) => {
      const v = composites.conv(trainable(leaf([16, 8, 8, 4], b)), leaf([16, 4, 3, 3], b), plain);
      const pool = (x: Node): Node => composites.maxPool2d(composites.relu(x), halves);
      return [pool(v), gradient(v, (x) => o.mul(pool(x), pool(x)))];
    });
    assert.ok(!keepsResult(units), units.join("\n"));
  });
});

describe("exchanged axes", () => {
  const cases: Readonly<Record<string, Build>> = {
    "images to channels first": (b) => [o.permute(leaf([3, 7, 9, 20], b), [0, 3, 1, 2])],
    "and flattened": (b) => [o.reshape(o.permute(leaf([5, 7, 7, 64], b), [0, 3, 1, 2]), [5, 3136])],
    "a matrix": (b) => [o.transpose(leaf([37, 53], b), 0, 1)],
    "two axes around": (b) => [o.permute(leaf([4, 6, 10, 18], b), [1, 3, 0, 2])],
    "a slice": (b) => [o.permute(o.narrow(leaf([4, 6, 40], b), 2, 3, 30), [0, 2, 1])],
  };
  for (const [name, build] of Object.entries(cases))
    test(name, async () => {
      const units = await compare(name, build);
      assert.equal(kernels(units), 0, units.join("\n"));
    });
});
