/** What depends on run-time numbers: limits of reductions, dynamic offsets, scalars; duplicates in scatter; both modes. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { referenceBackend } from "../../../src/backends/reference/index.ts";
import { type DType, roundTo } from "../../../src/core/dtype.ts";
import * as o from "../../../src/graph/ops.ts";
import { compileNodes, evaluate, nodeFrom } from "../../support/evaluate.ts";

const backend = referenceBackend();
const float = (values: number[], shape = [values.length]) => nodeFrom(backend, values, shape, "float32");
const int = (values: number[], shape = [values.length]) => nodeFrom(backend, values, shape, "int32");

test("positions at or after the limit do not count, and one program serves every limit", async () => {
  const x = float([3, 1, 2, 9, -4, 5, 6, Number.NaN], [2, 4]);
  const limit = o.scalar(0, "int32");
  const options = { limit };
  const compiled = await compileNodes(backend, [
    o.sum(x, 1, options),
    o.prod(x, 1, options),
    o.reduceMax(x, 1, options),
    o.reduceMin(x, 1, options),
  ]);
  const at = async (n: number): Promise<number[][]> => {
    limit.value = n;
    return (await compiled.run()).map((values) => [...values]);
  };
  assert.deepEqual(await at(3), [
    [6, 7],
    [6, -120],
    [3, 6],
    [1, -4],
  ]);
  assert.deepEqual(await at(1), [
    [3, -4],
    [3, -4],
    [3, -4],
    [3, -4],
  ]);
  const { NEGATIVE_INFINITY, POSITIVE_INFINITY, NaN: nan } = Number;
  assert.deepEqual(await at(0), [
    [0, 0],
    [1, 1],
    [NEGATIVE_INFINITY, NEGATIVE_INFINITY],
    [POSITIVE_INFINITY, POSITIVE_INFINITY],
  ]);
  assert.deepEqual(await at(99), [
    [15, nan],
    [54, nan],
    [9, nan],
    [1, nan],
  ]);
});

test("a limit works along any axis", async () => {
  const x = int([1, 2, 3, 4, 5, 6], [3, 2]);
  const limit = o.scalar(2, "int32");
  const [sum, max] = await evaluate(backend, [o.sum(x, 0, { limit }), o.reduceMax(x, 0, { limit })]);
  assert.deepEqual(
    [[...sum], [...max]],
    [
      [4, 6],
      [3, 4],
    ],
  );
});

test("dynamic offsets are read at run time and clamped so that the region fits", async () => {
  const x = int([...Array(12).keys()], [3, 4]);
  const row = o.scalar(0, "int32");
  const column = o.scalar(0, "int32");
  const { run } = await compileNodes(backend, [
    o.dynamicSlice(x, [row, column], [2, 2]),
    o.dynamicUpdate(x, int([-1, -2], [1, 2]), [row, column]),
  ]);
  const at = async (r: number, c: number): Promise<number[][]> => {
    row.value = r;
    column.value = c;
    return (await run()).map((values) => [...values]);
  };
  assert.deepEqual(await at(1, 1), [
    [5, 6, 9, 10],
    [0, 1, 2, 3, 4, -1, -2, 7, 8, 9, 10, 11],
  ]);
  assert.deepEqual(await at(99, -5), [
    [4, 5, 8, 9],
    [0, 1, 2, 3, 4, 5, 6, 7, -1, -2, 10, 11],
  ]);
});

test("where indices repeat, set keeps the last, add sums all, max takes the largest and NaN wins", async () => {
  const x = float([10, 20, 30]);
  const index = int([1, 1, 0, 1, 0]);
  const source = float([1, 2, 3, 4, Number.NaN]);
  const results = await evaluate(
    backend,
    (["set", "add", "max"] as const).map((mode) => o.scatter(x, 0, index, source, mode)),
  );
  assert.deepEqual(
    results.map((values) => [...values]),
    [
      [Number.NaN, 4, 30],
      [Number.NaN, 27, 30],
      [Number.NaN, 20, 30],
    ],
  );
});

test("a scalar is rounded to its dtype and wraps like a stored number", async () => {
  const value = (number: number, dtype: DType) => o.detach(o.scalar(number, dtype));
  const results = await evaluate(backend, [
    value(0.1, "float32"),
    value(0.1, "float16"),
    value(300, "uint8"),
    value(-1, "uint32"),
    value(2, "bool"),
  ]);
  assert.deepEqual(
    results.map((values) => values[0]),
    [Math.fround(0.1), roundTo("float16", 0.1), 44, 4294967295, 1],
  );
});

test("a float outside an integer type's range becomes the nearest end, NaN becomes 0", async () => {
  const x = float([1e20, -1e20, Number.NaN, 300.7, -3.7]);
  const results = await evaluate(backend, [o.cast(x, "int32"), o.cast(x, "uint8"), o.cast(x, "uint32")]);
  assert.deepEqual(
    results.map((values) => [...values]),
    [
      [2147483647, -2147483648, 0, 300, -3],
      [255, 0, 0, 255, 0],
      [4294967295, 0, 0, 300, 0],
    ],
  );
});

test("sign of NaN is NaN", async () => {
  const [got] = await evaluate(backend, [o.sign(float([Number.NaN, -2, 0, 3]))]);
  assert.deepEqual([...got], [Number.NaN, -1, 0, 1]);
});

test("rounded mode rounds after each node, exact mode only where a value is stored", async () => {
  const exact = referenceBackend({ exact: true });
  for (const [dtype, tiny] of [
    ["float32", 2 ** -30],
    ["bfloat16", 2 ** -12],
  ] as const) {
    const build = (on: typeof backend) => {
      const x = nodeFrom(on, [tiny], [1], dtype);
      return [o.cast(o.sub(o.add(x, 1), 1), "float64"), o.sub(o.add(x, 1), 1)];
    };
    assert.deepEqual(
      (await evaluate(backend, build(backend))).map((values) => values[0]),
      [0, 0],
    );
    assert.deepEqual(
      (await evaluate(exact, build(exact))).map((values) => values[0]),
      [tiny, tiny],
    );
  }
});

test("memory is read and written as raw elements", async () => {
  const memory = backend.allocate(8);
  backend.write(memory, Uint16Array.of(0x3c00, 0xc000, 0x7c00, 0x0001));
  assert.deepEqual(await backend.read(memory, "float16", 4), Uint16Array.of(0x3c00, 0xc000, 0x7c00, 0x0001));
  assert.deepEqual(await backend.read(memory, "uint8", 2), Uint8Array.of(0x00, 0x3c));
});

test("a program describes its instructions, and holds as few temporaries as it needs", async () => {
  const x = float([1, 2, 3, 4, 5, 6], [2, 3]);
  let y = o.mul(x, o.scalar(2, "float32"));
  for (let i = 0; i < 10; i++) y = o.tanh(y);
  const { program } = await compileNodes(backend, [o.sum(y, 0)]);
  const lines = program.describe("graph").split("\n");
  assert.equal(lines[0], "%0 float32[2, 3] = storage 0");
  assert.equal(lines[1], "%1 float32[] = scalar 0");
  assert.equal(lines[2], "%2 float32[2, 3] = expand %1");
  assert.equal(lines[3], "%3 float32[2, 3] = mul %0 %2");
  assert.equal(lines.at(-2), "%14 float32[3] = sum %13 {axes: [0]}");
  assert.equal(lines.at(-1), "output 0 = %14");
  // two arrays of six numbers take turns, and the sum has its own three
  assert.equal(program.stats.arenaBytes, 2 * 24 + 12);
});

test("a product larger than a block of rows is the sum of its products", async () => {
  for (const [m, k, n] of [
    [130, 9, 7],
    [65, 3, 4],
    [1, 70, 5],
    [64, 1, 130],
  ]) {
    const a = Float64Array.from({ length: m * k }, (_, i) => Math.sin(i));
    const b = Float64Array.from({ length: k * n }, (_, i) => Math.cos(3 * i));
    const expected = Float64Array.from({ length: m * n }, (_, at) => {
      let sum = 0;
      for (let p = 0; p < k; p++) sum += a[Math.floor(at / n) * k + p] * b[p * n + (at % n)];
      return sum;
    });
    const product = o.matmul(nodeFrom(backend, a, [m, k], "float64"), nodeFrom(backend, b, [k, n], "float64"));
    assert.deepEqual((await evaluate(backend, [product]))[0], expected);
  }
});
