/**
 * What every backend owes beyond PyTorch's numbers: run-time limits, offsets, scalars and keys; duplicates in scatter;
 * errors that leave state as it was; the order of reads and writes. One body for every backend present.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { threefry2x32 } from "../../src/backends/reference/random.ts";
import { type DType, roundTo } from "../../src/core/dtype.ts";
import { BackendError, IndexError } from "../../src/core/errors.ts";
import { make, registerOperation } from "../../src/graph/node.ts";
import * as o from "../../src/graph/ops.ts";
import {
  add,
  expandTo,
  floorDivide,
  full,
  gather,
  mod,
  mul,
  output,
  random,
  scalar,
  scatter,
  take,
} from "../../src/graph/ops.ts";
import { backendsUnderTest } from "../support/backends.ts";
import { compileNodes, evaluate, nodeFrom } from "../support/evaluate.ts";
import { assertClose } from "../support/fixtures.ts";

const twice = registerOperation({
  name: "test.twice",
  group: "composite",
  infer: ([x]) => x,
  decompose: ([x]) => [add(x, x)],
});
const fourTimes = registerOperation({
  name: "test.fourTimes",
  group: "composite",
  infer: ([x]) => [x, x],
  decompose: ([x]) => [make(twice, [make(twice, [x])]), make(twice, [x])],
});
const opaque = registerOperation({ name: "test.opaque", group: "composite", infer: ([x]) => x });

for (const backend of await backendsUnderTest())
  describe(backend.name, () => {
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

    test("sign of NaN is NaN", async () => {
      const [got] = await evaluate(backend, [o.sign(float([Number.NaN, -2, 0, 3]))]);
      assert.deepEqual([...got], [Number.NaN, -1, 0, 1]);
    });

    test("a product larger than a block of rows is the sum of its products", async () => {
      const dtype = backend.dtypes.includes("float64") ? "float64" : "float32";
      const error = dtype === "float64" ? 1e-12 : 1e-5;
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
        const product = o.matmul(nodeFrom(backend, a, [m, k], dtype), nodeFrom(backend, b, [k, n], dtype));
        assertClose(`[${m}, ${k}] × [${k}, ${n}]`, (await evaluate(backend, [product]))[0], expected, {
          rtol: error,
          atol: error,
        });
      }
    });

    test("a gather outside its axis is refused", async () => {
      const x = float([1, 2, 3, 4, 5, 6], [2, 3]);
      await assert.rejects(evaluate(backend, [gather(x, 1, int([0, 2, 1, 3], [2, 2]))]), {
        name: "IndexError",
        message: /index/,
      });
      await assert.rejects(evaluate(backend, [take(x, 0, int([-1]))]), IndexError);
    });

    test("a scatter outside its axis is refused in every mode", async () => {
      for (const mode of ["add", "set", "max"] as const)
        await assert.rejects(
          evaluate(backend, [scatter(float([0, 0], [2]), 0, int([0, 2]), float([1, 1], [2]), mode)]),
          {
            name: "IndexError",
            message: /scatter/,
          },
        );
    });

    test("integer division and remainder by zero are refused; of floats they are not", async () => {
      for (const operation of [floorDivide, mod])
        await assert.rejects(evaluate(backend, [operation(int([1, 2, 3, 4], [2, 2]), int([1, 1, 0, 1], [2, 2]))]), {
          name: "IndexError",
          message: /zero/,
        });
      const [quotient, remainder] = await evaluate(backend, [
        floorDivide(float([1], [1]), float([0], [1])),
        mod(float([1], [1]), float([0], [1])),
      ]);
      assert.deepEqual([quotient[0], remainder[0]], [Number.POSITIVE_INFINITY, Number.NaN]);
    });

    test("when an index is out of range no state is written", async () => {
      const weights = float([1, 2, 3], [3]);
      const other = float([7], [1]);
      const value = add(weights, take(weights, 0, int([0, 1, 3])));
      await assert.rejects(
        evaluate(
          backend,
          [],
          [
            { target: other, value: add(other, 1) },
            { target: weights, value },
          ],
        ),
        IndexError,
      );
      assert.deepEqual(await evaluate(backend, [weights, other]), [Float32Array.of(1, 2, 3), Float32Array.of(7)]);
    });

    test("an index is looked at even where it makes no difference to what is found", async () => {
      const tables = [full([3], 1, "float32"), expandTo(float([5], [1]), [3]), float([5], [1])];
      for (const table of tables) await assert.rejects(evaluate(backend, [take(table, 0, int([0, 3]))]), IndexError);
      const [found] = await evaluate(backend, [take(tables[0], 0, int([0, 2]))]);
      assert.deepEqual([...found], [1, 1]);
    });

    test("states that take each other's old values do so", async () => {
      const a = float([1, 2], [2]);
      const b = float([3, 4], [2]);
      await evaluate(
        backend,
        [],
        [
          { target: a, value: b },
          { target: b, value: a },
        ],
      );
      assert.deepEqual(await evaluate(backend, [a, b]), [Float32Array.of(3, 4), Float32Array.of(1, 2)]);
    });

    test("an assigned value and an output may be the same node, and reads mean the old state", async () => {
      const a = float([1, 2], [2]);
      const next = mul(a, 10);
      const [got] = await evaluate(backend, [add(next, a)], [{ target: a, value: next }]);
      assert.deepEqual(got, Float32Array.of(11, 22));
      assert.deepEqual(await evaluate(backend, [a]), [Float32Array.of(10, 20)]);
    });

    test("a composite is decomposed, however deep, and one that cannot be is named", async () => {
      const x = float([1, 2], [2]);
      const node = make(fourTimes, [x]);
      const second = output(node, 1);
      assert.deepEqual(await evaluate(backend, [node, second]), [Float32Array.of(4, 8), Float32Array.of(2, 4)]);
      await assert.rejects(evaluate(backend, [make(opaque, [x])]), (error: Error) => {
        assert.ok(error instanceof BackendError);
        assert.match(error.message, /test\.opaque/);
        return true;
      });
    });

    test("a chain of 2,500 nodes compiles and runs without recursion", async () => {
      let x = float([0], [1]);
      const one = expandTo(float([1], [1]), [1]);
      for (let i = 0; i < 2_500; i++) x = add(x, one);
      const [got] = await evaluate(backend, [x]);
      assert.equal(got[0], 2_500);
    });

    test("an element depends on the key and its flat position alone", async () => {
      const key = [scalar(0x13198a2e, "uint32"), scalar(0x83707344, "uint32")] as const;
      const [row, table, odd] = await evaluate(backend, [
        random([12], ...key),
        random([3, 4], ...key),
        random([7], ...key),
      ]);
      assert.deepEqual(table, row);
      assert.deepEqual(odd, row.slice(0, 7));
      for (let block = 0; block < 6; block++) {
        const pair = new Uint32Array(2);
        threefry2x32(0x13198a2e, 0x83707344, block, 0, pair, 0);
        assert.deepEqual(row.slice(2 * block, 2 * block + 2), pair);
      }
    });

    test("the key is read at run time", async () => {
      const [k0, k1] = [scalar(1, "uint32"), scalar(2, "uint32")];
      const compiled = await compileNodes(backend, [random([4], k0, k1)]);
      const [first] = await compiled.run();
      k0.value = 5;
      const [second] = await compiled.run();
      k0.value = 1;
      const [again] = await compiled.run();
      assert.notDeepEqual(first, second);
      assert.deepEqual(first, again);
    });

    test("an index that is computed, read back and scattered by is one value", async () => {
      const x = float(
        Array.from({ length: 24 }, (_, i) => Math.sin(7 * i + 1)),
        [2, 3, 4],
      );
      const source = float([1, 2, 3, 4, 5, 6], [2, 3, 1]);
      const index = o.argmax(x, 2, true);
      const values = gather(x, 2, index);
      const spread = scatter(o.full([2, 3, 4], 0, "float32"), 2, index, source, "add");
      const [gotValues, gotIndex, gotSpread] = await evaluate(backend, [values, index, spread]);
      assert.deepEqual([...gotIndex], [1, 3, 2, 0, 2, 0]);
      gotIndex.forEach((at, row) => {
        assert.equal(gotValues[row], Math.fround(Math.sin(7 * (4 * row + at) + 1)));
        for (let k = 0; k < 4; k++) assert.equal(gotSpread[4 * row + k], k === at ? row + 1 : 0);
      });
    });
  });
