/**
 * What becomes of a capture on `cpu`, by the program's own text: kernels that ride on a product's finished rows, states
 * written in place, what is packed beforehand, and how much memory a step moves.
 */
import assert from "node:assert/strict";
import { withGrad } from "../../../src/autograd/index.ts";
import type { Program } from "../../../src/backends/backend.ts";
import { referenceBackend } from "../../../src/backends/reference/index.ts";
import type { TypedArray } from "../../../src/core/dtype.ts";
import { type Shape, sizeOf } from "../../../src/core/shape.ts";
import * as composites from "../../../src/graph/composites/index.ts";
import type { Node } from "../../../src/graph/node.ts";
import * as o from "../../../src/graph/ops.ts";
import { type Assign, compileNodes, evaluate, nodeFrom } from "../../support/evaluate.ts";
import { assertClose } from "../../support/fixtures.ts";
import { gptStep } from "./program.steps.ts";
import { describe, openCpuBackend, test } from "./with-compiler.ts";

const backend = await openCpuBackend({ fuse: true });

const values = (n: number): Float64Array => Float64Array.from({ length: n }, (_, i) => Math.sin(i * 12.9898));
const leaf = (shape: Shape, b = backend): Node => nodeFrom(b, values(sizeOf(shape)), shape, "float32");

async function compile(roots: readonly Node[], assigns: readonly Assign[] = []): Promise<Program> {
  return (await compileNodes(backend, roots, assigns)).program;
}
/** Lines of the memory text: one a unit of work. */
const units = (program: Program): string[] =>
  program
    .describe("memory")
    .split("\n")
    .filter((line) => line.startsWith("  "));
const count = (program: Program, what: RegExp): number =>
  units(program).filter((line) => what.test(line.trim())).length;

test("of large products that are added up never more than the sum and one of them is held", async () => {
  const [rows, columns, K, count] = [2100, 2048, 4, 5];
  const ones = (shape: Shape) => nodeFrom(backend, new Float64Array(sizeOf(shape)).fill(1), shape, "float32");
  const parts = Array.from({ length: count }, (_, i) => o.matmul(o.mul(ones([rows, K]), i + 1), ones([K, columns])));
  const total = o.mul(
    parts.reduce((x, y) => o.add(x, y)),
    2,
  );
  const { program } = await compileNodes(backend, [total]);
  assert.ok(program.stats.arenaBytes < 2.2 * 4 * rows * columns, program.describe?.("memory"));
  const [got] = await evaluate(backend, [o.sum(total, [1])]);
  assert.deepEqual(new Set(got), new Set([2 * K * columns * 15]));
});

describe("kernels on the rows of a product", () => {
  const heads: Readonly<Record<string, (y: Node, b: typeof backend) => Node>> = {
    "bias and gelu": (y, b) => composites.gelu(o.add(y, leaf([80], b))),
    "a residual": (y, b) => o.add(leaf([96, 80], b), y),
    "a softmax": (y) => composites.softmax(y, 1),
    "a layer norm": (y, b) => composites.layerNorm(y, 1, leaf([80], b), leaf([80], b)),
    "a residual and its layer norm": (y, b) => {
      const x = o.add(leaf([96, 80], b), y);
      return composites.layerNorm(x, 1, leaf([80], b), leaf([80], b));
    },
  };
  for (const [name, head] of Object.entries(heads))
    test(`${name} is computed while they are in cache`, async () => {
      const build = (b: typeof backend): Node => head(o.matmul(leaf([96, 64], b), leaf([64, 80], b)), b);
      const program = await compile([build(backend)]);
      assert.equal(count(program, /^kernel/), 0, program.describe("memory"));
      assert.equal(count(program, /^contract/), 1);
      const reference = referenceBackend();
      const [got, expected] = [
        await evaluate(backend, [build(backend)]),
        await evaluate(reference, [build(reference)]),
      ];
      assertClose(name, got[0], expected[0], { rtol: 1e-4, atol: 1e-4 });
    });

  test("what takes a product's place is written over it", async () => {
    const [x, w, b] = [leaf([96, 64]), leaf([64, 80]), leaf([80])];
    const y = o.matmul(x, w);
    const alone = await compile([composites.gelu(o.add(y, b))]);
    assert.ok(alone.stats.arenaBytes < 96 * 80 * 4, alone.describe("memory")); // but w in panels
    const wanted = await compile([y, composites.gelu(o.add(y, b))]);
    const sums = await compile([o.sum(y, 0)]);
    for (const program of [wanted, sums])
      assert.match(program.describe("memory"), /contract %\d+: .* -> (output 0|%\d+@\d+\+30720) /);
  });

  test("large logits go chunk by chunk: their gradients are made behind the product, none waits for the others' loss", async () => {
    const [rows, width, classes, chunk] = [1024, 16, 16384, 256];
    const targets = nodeFrom(backend, new Float64Array(rows), [rows], "int32");
    const inputs = [leaf([rows, width]), leaf([classes, width]), targets];
    const loss = composites.linearCrossEntropy(inputs[0], inputs[1], inputs[2], { chunk });
    const attrs = loss.attrs as composites.LinearCrossEntropyAttrs;
    const { dhidden } = composites.linearCrossEntropyBackward(inputs, leaf([]), attrs);
    const program = await compile([loss, dhidden]);
    // one chunk of logits and all of their gradients
    const most = ((rows / chunk + 1) * chunk + 128) * classes * 4;
    assert.ok(program.stats.arenaBytes < most, `${program.stats.arenaBytes} ≥ ${most}\n${program.describe("memory")}`);
  });

  test("not what reads them elsewhere", async () => {
    const y = o.matmul(leaf([64, 64]), leaf([64, 64]));
    const program = await compile([o.add(y, o.transpose(y, 0, 1))]);
    assert.equal(count(program, /^kernel/), 1);
  });

  test("transposed and sliced operands are read where they lie", async () => {
    const wide = leaf([64, 200]);
    const program = await compile([o.matmul(o.narrow(wide, 1, 40, 64), o.transpose(leaf([48, 64]), 0, 1))]);
    assert.equal(count(program, /^kernel/), 0, program.describe("memory"));
  });
});

describe("states", () => {
  const adam = (): { assigns: Assign[]; bytes: number } => {
    const [p, m, v, g] = [1, 2, 3, 4].map(() => leaf([64, 48]));
    const assigns = withGrad(false, () => {
      const nextM = o.add(o.mul(m, 0.9), o.mul(g, 0.1));
      const nextV = o.add(o.mul(v, 0.99), o.mul(o.mul(g, g), 0.01));
      return [
        { target: p, value: o.sub(p, o.div(nextM, o.add(o.sqrt(nextV), 1e-8))) },
        { target: m, value: nextM },
        { target: v, value: nextV },
      ];
    });
    return { assigns, bytes: 7 * 64 * 48 * 4 };
  };

  test("that are read where they are written are written in place: no temporaries, no copies", async () => {
    const { assigns, bytes } = adam();
    const program = await compile([], assigns);
    assert.equal(program.stats.kernels, 1, program.describe("memory"));
    assert.equal(program.stats.arenaBytes, 0);
    assert.equal(program.stats.bytes, bytes);
  });

  test("that a reduction of the same kernel leads to are written over after their old value has been read", async () => {
    for (const b of [backend, referenceBackend()]) {
      const [x, s] = [leaf([70, 33], b), leaf([70], b)];
      const sums = o.sum(x, 1);
      const next = o.add(o.mul(s, 0.5), sums);
      const roots = [o.add(s, 1), o.add(x, o.reshape(s, [70, 1])), o.mul(sums, s), sums];
      const { run, program } = await compileNodes(b, roots, [{ target: s, value: next }]);
      const results = [...(await run()), ...(await run()), await b.read(s.storage?.memory, "float32", 70)];
      if (b === backend) {
        got = results;
        assert.equal(count(program, /^copy to/), 0, program.describe("memory"));
      } else for (const [i, values] of got.entries()) assertClose(`result ${i}`, values, results[i], close);
    }
  });
  let got: TypedArray[] = [];
  const close = { rtol: 1e-5, atol: 1e-5 };

  test("a GPT's step copies no state", async () => {
    const { roots, assigns } = gptStep(backend);
    const program = await compile(roots, assigns);
    assert.equal(count(program, /^copy to/), 0, program.describe("memory"));
  });

  test("that swap, or move against themselves, are copied, and only they", async () => {
    const [a, b, c] = [1, 2, 3].map(() => leaf([32]));
    const program = await compile(
      [],
      [
        { target: a, value: b },
        { target: b, value: a },
        { target: c, value: o.mul(c, 2) },
      ],
    );
    assert.equal(count(program, /^copy to new state/), 2, program.describe("memory"));
    assert.equal(count(program, /^copy to old state/), 2);
    assert.equal(count(program, /^kernel/), 1);
  });
});

test("a right side of two products is copied for each of them, right before it: a copy is not kept from the one to the other", async () => {
  let expected: TypedArray[] = [];
  for (const b of [referenceBackend(), backend]) {
    const w = leaf([48, 48], b);
    let x = leaf([70, 48], b);
    for (let i = 0; i < 6; i++) x = o.tanh(o.matmul(x, i % 5 === 0 ? w : leaf([48, 48], b)));
    const { run, program } = await compileNodes(b, [x]);
    const results = await run();
    if (b !== backend) expected = results;
    else {
      assert.equal(count(program, /^pack for/), 6, program.describe("memory"));
      assertClose("result", results[0], expected[0], { rtol: 1e-3, atol: 1e-3 });
      // two of [70, 48], and the copies of one product and the next
      assert.ok(program.stats.arenaBytes <= 4 * (2 * 70 * 48 + 2 * 48 * 64), `${program.stats.arenaBytes}`);
    }
  }
});

test("products with one right side copy it once, before the state that it is gets its new value", async () => {
  let expected: TypedArray[] = [];
  for (const b of [referenceBackend(), backend]) {
    const w = leaf([40, 48], b);
    const [x, y, z] = [70, 71, 30].map((rows) => leaf([rows, 40], b));
    const roots = [
      o.matmul(x, w),
      o.matmul(y, w),
      o.matmul(z, o.narrow(w, 1, 0, 40)),
      o.matmul(z, o.narrow(w, 1, 8, 40)),
    ];
    const late = o.matmul(o.narrow(o.matmul(roots[0], leaf([48, 40], b)), 0, 0, 40), w);
    const { run, program } = await compileNodes(b, roots, [{ target: w, value: late }]);
    const results = [...(await run()), ...(await run()), await b.read(w.storage?.memory, "float32", 40 * 48)];
    if (b !== backend) expected = results;
    else {
      // w for three products, each of its halves, and the other right side
      assert.equal(count(program, /^pack for/), 4, program.describe("memory"));
      for (const [i, values] of results.entries())
        assertClose(`result ${i}`, values, expected[i], { rtol: 1e-3, atol: 1e-2 });
    }
  }
});

test("a GPT's forward, backward and update need few kernels and few sources", async () => {
  const { roots, assigns } = gptStep(backend);
  const program = await compile(roots, assigns);
  const sources = program.describe("source").split("void nabla_kernel").length - 1;
  const layers = 2;
  // a layer: 4 products forward, 8 backward, attention twice; the rest are rows, packing and one update a weight's shape
  assert.ok(program.stats.kernels <= 60 * layers, `${program.stats.kernels} units of work`);
  assert.ok(sources <= 40, `${sources} sources`);
});
