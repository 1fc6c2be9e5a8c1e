/**
 * What a decoder's step is made of: a state of which a part is written in place, attention up to a runtime length, under masks and over
 * 16-bit keys and values, products of few rows with 16-bit weights and with weights in blocks. Against the reference backend.
 */
import assert from "node:assert/strict";
import type { Backend } from "../../../src/backends/backend.ts";
import { referenceBackend } from "../../../src/backends/reference/index.ts";
import { type DType, decode } from "../../../src/core/dtype.ts";
import { type Shape, sizeOf } from "../../../src/core/shape.ts";
import * as composites from "../../../src/graph/composites/index.ts";
import type { Node } from "../../../src/graph/node.ts";
import * as o from "../../../src/graph/ops.ts";
import { type Assign, compileNodes, evaluate, nodeFrom } from "../../support/evaluate.ts";
import { assertClose } from "../../support/fixtures.ts";
import { describe, openCpuBackend, test } from "./with-compiler.ts";

const backend = await openCpuBackend({ fuse: true });
const reference = referenceBackend();

const numbers = (shape: Shape, scale = 1, phase = 0): Float64Array =>
  Float64Array.from({ length: sizeOf(shape) }, (_, i) => scale * Math.sin(i * 12.9898 + shape.length + phase));
const leaf = (b: Backend, shape: Shape, dtype: DType = "float32", scale = 1, phase = 0): Node =>
  nodeFrom(b, numbers(shape, scale, phase), shape, dtype);

/** Blocks with codes and small scales of all kinds; their halves are such that no number is much above 1, and some are subnormal. */
function blocksOf(format: composites.StoredFormat, count: number): Uint8Array {
  const { elements, bytes } = composites.storedFormats[format];
  const out = Uint8Array.from({ length: count * bytes }, (_, i) => (i * 97 + (i >> 3) * 31) % 256);
  const halves = format === "q6_k" ? [208] : format === "q5_0" ? [0] : [0, 2];
  const upper = elements === 32 ? [0x02, 0x21, 0x9c, 0x2b] : [0x02, 0x0c, 0x8f, 0x10];
  for (let b = 0; b < count; b++) for (const at of halves) out[b * bytes + at + 1] = upper[b % 4];
  return out;
}

type Build = (b: Backend) => readonly Node[];

/** The same roots on both backends, close to one another. */
async function agree(what: string, build: Build, tolerance: { rtol: number; atol: number }): Promise<void> {
  const [got, expected] = [await evaluate(backend, build(backend)), await evaluate(reference, build(reference))];
  got.forEach((values, i) => {
    assertClose(`${what}, result ${i}`, values, expected[i], tolerance);
  });
}

describe("a part of a state written in place", () => {
  /** A state, an update of it at runtime offsets, what reads the state before and after. */
  async function updated(dtype: DType, at: number, turned: boolean): Promise<{ text: string }> {
    const shape = [2, 3, 40, 8];
    const results: ArrayLike<number>[][] = [];
    let text = "";
    for (const b of [backend, reference]) {
      const state = leaf(b, shape, dtype);
      const fresh = turned ? o.permute(leaf(b, [2, 5, 3, 8], dtype, 2), [0, 2, 1, 3]) : leaf(b, [2, 3, 5, 8], dtype, 2);
      const zero = o.constant(0, "int32");
      const value = o.dynamicUpdate(state, fresh, [zero, zero, o.scalar(at, "int32"), zero]);
      const assigns: Assign[] = [{ target: state, value }];
      const roots = [o.sum(o.cast(state, "float32"), [0, 1, 3]), o.sum(o.cast(value, "float32"), [0, 1, 3])];
      const compiled = await compileNodes(b, roots, assigns);
      const raw = await compiled.run();
      const [after] = await evaluate(b, [o.cast(state, "float32")]);
      results.push([...raw.map((x) => decode("float32", x)), after]);
      if (b === backend) text = compiled.program.describe?.("memory") ?? "";
    }
    results[0].forEach((values, i) => {
      assertClose(`${dtype} at ${at}, result ${i}`, values, results[1][i], { rtol: 1e-5, atol: 1e-5 });
    });
    return { text };
  }
  for (const dtype of ["float32", "bfloat16", "float16", "int32"] as const)
    test(`${dtype}: in the middle, at the end, beyond the ends, from a view`, async () => {
      for (const at of [0, 7, 35, 38, -4]) {
        const { text } = await updated(dtype, at, at === 7);
        assert.match(text, /dynamicUpdate/);
        assert.doesNotMatch(text, /copy to|pack for/, "the rest of the state is not copied");
      }
    });

  test("what needs the old value afterwards gets it: then the update is made apart", async () => {
    const results: ArrayLike<number>[][] = [];
    for (const b of [backend, reference]) {
      const state = leaf(b, [6, 4]);
      const value = o.dynamicUpdate(state, leaf(b, [2, 4], "float32", 3), [
        o.scalar(3, "int32"),
        o.constant(0, "int32"),
      ]);
      // the old state times a number that the new one makes
      const late = o.mul(state, o.expandTo(o.sum(value), [6, 4]));
      const raw = await (await compileNodes(b, [late], [{ target: state, value }])).run();
      results.push([decode("float32", raw[0]), (await evaluate(b, [state]))[0]]);
    }
    results[0].forEach((values, i) => {
      assertClose(`result ${i}`, values, results[1][i], { rtol: 1e-4, atol: 1e-4 });
    });
  });

  test("an update of a state that is assigned nothing leaves the state as it is", async () => {
    await agree(
      "both",
      (b) => {
        const state = leaf(b, [7, 5]);
        const offsets = [o.scalar(2, "int32"), o.constant(1, "int32")];
        return [o.dynamicUpdate(state, leaf(b, [3, 2], "float32", 9), offsets), o.mul(state, 2)];
      },
      { rtol: 0, atol: 0 },
    );
  });
});

describe("attention over a cache", () => {
  const cases: {
    tq: number;
    tk: number;
    d: number;
    length: number;
    mask: Shape | null;
    causal: boolean;
    /** Of queries and of keys; 4 and 2 where left out. */
    heads?: [number, number];
  }[] = [
    { tq: 1, tk: 300, d: 64, length: 1, mask: null, causal: true },
    { tq: 1, tk: 300, d: 64, length: 258, mask: null, causal: true },
    { tq: 1, tk: 600, d: 20, length: 600, mask: [2, 1, 1, 600], causal: true },
    { tq: 1, tk: 300, d: 20, length: 290, mask: [2, 12, 1, 300], causal: true, heads: [12, 1] },
    { tq: 1, tk: 300, d: 36, length: 5, mask: [2, 1, 1, 300], causal: true, heads: [9, 3] },
    { tq: 2, tk: 70, d: 4, length: 33, mask: [2, 1, 2, 70], causal: true },
    { tq: 5, tk: 300, d: 36, length: 280, mask: [1, 1, 5, 300], causal: true },
    { tq: 70, tk: 300, d: 16, length: 100, mask: null, causal: true },
    { tq: 70, tk: 290, d: 16, length: 270, mask: [2, 4, 70, 290], causal: true },
    { tq: 3, tk: 40, d: 16, length: 9, mask: [40], causal: false },
  ];
  for (const dtype of ["float32", "bfloat16", "float16"] as const)
    test(`${dtype}: runtime lengths, grouped heads, masks, one query and many`, async () => {
      for (const { tq, tk, d, length, mask, causal, heads: [many, few] = [4, 2] } of cases) {
        const build: Build = (b) => {
          const q = leaf(b, [2, many, tq, d], dtype, 2);
          const k = leaf(b, [2, few, tk, d], dtype, 1, 1);
          const v = leaf(b, [2, few, tk, d], dtype, 1, 2);
          const seen = mask && o.gt(leaf(b, mask, "float32", 1, 3), -0.3);
          const options = { causal, length: o.scalar(length, "int32"), mask: seen };
          const { out, lse } = composites.attention(q, k, v, options);
          return [o.cast(out, "float32"), lse];
        };
        const tolerance = dtype === "float32" ? { rtol: 2e-4, atol: 2e-5 } : { rtol: 2e-2, atol: 2e-2 };
        await agree(`${dtype} ${tq} × ${length} of ${tk}`, build, tolerance);
        const { program } = await compileNodes(backend, build(backend));
        assert.match(program.describe?.("memory") ?? "", /attention %/);
      }
    });

  test("what is behind the length is not read", async () => {
    const values = numbers([1, 1, 50, 16]);
    values.fill(Number.NaN, 20 * 16);
    for (const tq of [1, 4]) {
      const cache = nodeFrom(backend, values, [1, 1, 50, 16], "float32");
      const q = leaf(backend, [1, 2, tq, 16]);
      const { out } = composites.attention(q, cache, cache, { causal: true, length: o.scalar(20, "int32") });
      const [got] = await evaluate(backend, [out]);
      assert.ok(got.every(Number.isFinite));
    }
  });
});

describe("products of few rows", () => {
  for (const dtype of ["bfloat16", "float16"] as const)
    test(`${dtype} weights are read as they lie, also where they are widened first`, async () => {
      for (const [M, N, K] of [
        [1, 130, 70],
        [3, 65, 33],
        [8, 20, 260],
        [40, 70, 50],
      ] as const) {
        const tolerance = { rtol: 1e-4, atol: 1e-4 };
        const build: Build = (b) => {
          const weight = leaf(b, [N, K], dtype);
          return [o.contract(leaf(b, [M, K]), o.permute(o.cast(weight, "float32"), [1, 0]))];
        };
        await agree(`${M} × ${N} × ${K}`, build, tolerance);
        const { program } = await compileNodes(backend, build(backend));
        assert.doesNotMatch(program.describe?.("memory") ?? "", /kernel/, "nothing is widened in memory");
      }
    });

  test("16-bit subnormal weights count", async () => {
    const build: Build = (b) => [
      o.contract(
        nodeFrom(b, new Float64Array(2 * 35).fill(1), [2, 35], "float32"),
        o.permute(o.cast(nodeFrom(b, new Float64Array(3 * 35).fill(3e-6), [3, 35], "float16"), "float32"), [1, 0]),
      ),
    ];
    await agree("sums", build, { rtol: 1e-5, atol: 0 });
  });

  for (const bits of [8, 4] as const)
    test(`weights in blocks of ${bits} bits, from one row to many`, async () => {
      for (const [M, N, K] of [
        [1, 1, 32],
        [1, 130, 96],
        [2, 65, 1120],
        [3, 64, 64],
        [4, 7, 160],
        [9, 70, 288],
        [70, 33, 64],
        [1, 29, 8224], // several rows of the weight at a time
      ] as const) {
        const bytes = (K * bits) / 8;
        const build: Build = (b) => {
          const codes = nodeFrom(
            b,
            Float64Array.from({ length: N * bytes }, (_, i) => (i * 37) % 256),
            [N, bytes],
            "uint8",
          );
          const scales = leaf(b, [N, K / 32], "float16", 0.02);
          return [composites.blockLinear(leaf(b, [M, K], "float32", 3), codes, scales, { bits })];
        };
        // x has 15 bits and a sign a block
        await agree(`${M} × ${N} × ${K}`, build, { rtol: 1e-4, atol: 4e-5 * bits * Math.sqrt(K) });
      }
    });

  for (const format of Object.keys(composites.storedFormats) as composites.StoredFormat[])
    test(`weights in blocks of ${format}, from one row to many, and the gradient to x`, async () => {
      const { elements, bytes } = composites.storedFormats[format];
      for (const [M, N, blocks] of [
        [1, 1, 1],
        [1, 130, 3],
        [3, 65, 2],
        [4, 7, 5],
        [9, 70, 2],
        [17, 64, 2],
        [70, 33, 3],
        [1, 21, 8192 / elements + 1], // several rows of the weight at a time
      ] as const) {
        const K = elements * blocks;
        const build: Build = (b) => {
          const weight = nodeFrom(b, blocksOf(format, N * blocks), [N, blocks * bytes], "uint8");
          const x = composites.storedLinear(leaf(b, [M, K], "float32", 3), weight, { format });
          const rows = composites.dequantizeStored(o.take(weight, 0, nodeFrom(b, [0, N - 1, 0], [3], "int32")), format);
          return [x, o.contract(leaf(b, [M, N], "float32", 2), composites.dequantizeStored(weight, format)), rows];
        };
        await agree(`${M} × ${N} × ${K}`, build, { rtol: 1e-4, atol: 1e-4 * Math.sqrt(K) });
      }
    });

  test("nothing of the size of the weight's floats is planned: one row, many, the gradient, rows that are looked up", async () => {
    const [N, K] = [512, 1024];
    const { bytes } = composites.storedFormats.q4_k;
    const weight = nodeFrom(backend, blocksOf("q4_k", (N * K) / 256), [N, (bytes * K) / 256], "uint8");
    const product = (M: number) => composites.storedLinear(leaf(backend, [M, K]), weight, { format: "q4_k" });
    const floats = composites.dequantizeStored(weight, "q4_k");
    const rows = o.take(weight, 0, nodeFrom(backend, [3, 5], [2], "int32"));
    const gradient = o.contract(leaf(backend, [40, N]), floats);
    for (const root of [product(1), product(70), gradient, composites.dequantizeStored(rows, "q4_k")]) {
      const { program } = await compileNodes(backend, [root]);
      assert.ok(program.stats.arenaBytes < N * K, `${program.stats.arenaBytes}: ${program.describe?.("memory")}`);
    }
  });

  test("NaN and infinity in a block of x come through, its neighbours' rows do not feel them", async () => {
    const x = numbers([3, 64]);
    x[40] = Number.NaN;
    x[64 + 3] = Number.POSITIVE_INFINITY;
    const codes = nodeFrom(backend, new Float64Array(2 * 64).fill(3), [2, 64], "uint8");
    const scales = nodeFrom(backend, new Float64Array(4).fill(0.5), [2, 2], "float16");
    const [got] = await evaluate(backend, [
      composites.blockLinear(nodeFrom(backend, x, [3, 64], "float32"), codes, scales, { bits: 8 }),
    ]);
    assert.deepEqual(Array.from(got, Number.isFinite), [false, false, false, false, true, true]);
  });
});
