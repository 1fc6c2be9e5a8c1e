/**
 * Scatter, sort, prefix sums, fill and copy of the runtime against plain loops, with the same bits at 1, 2 and 7 threads.
 */
import assert from "node:assert/strict";
import { before, test } from "node:test";
import { NativeRuntime } from "../../../src/backends/cpu/native.ts";
import { planArgsort, planCopy, planCumulative, planFill, planScatter } from "../../../src/backends/cpu/plans.ts";
import { findCompiler } from "../../../src/backends/cpu/toolchain.ts";
import { random, runCommands } from "./native.harness.ts";

const skip = findCompiler() ? false : "no C compiler here";
let runtime: NativeRuntime;
before(async () => {
  if (!skip) runtime = await NativeRuntime.open();
});

const kinds = { float32: Float32Array, float64: Float64Array, int32: Int32Array } as const;
type Kind = keyof typeof kinds;
type Numbers = Float32Array | Float64Array | Int32Array;
const make = (kind: Kind, n: number, f: (i: number) => number): Numbers => {
  const x = new kinds[kind](n);
  for (let i = 0; i < n; i++) x[i] = f(i);
  return x;
};
const dtypes = Object.keys(kinds) as Kind[];
const larger = (a: number, b: number) => (b > a || Number.isNaN(b) ? b : a);

test("scatter adds, sets and takes the maximum along any axis, with one index a row or one an element", {
  skip,
}, () => {
  for (const dtype of dtypes)
    for (const reduce of ["add", "set", "max"] as const)
      for (const init of ["none", "zero", "base"] as const)
        for (const [outer, count, inner, size] of [
          [1, 300, 1, 17],
          [3, 33, 5, 7],
          [2, 97, 130, 6],
          [1, 40, 384, 65],
        ] as const)
          for (const wide of [true, false]) {
            const rand = random(outer * 1000 + inner);
            const integer = () => Math.floor(rand() * 200 - 100); // sums of integers are exact in every order and type
            const index = Int32Array.from({ length: outer * count * (wide ? 1 : inner) }, () =>
              Math.floor(rand() * size),
            );
            const src = make(dtype, outer * count * inner, integer);
            const base = make(dtype, outer * size * inner, integer);
            const out = make(dtype, outer * size * inner, integer);
            const expected = init === "none" ? out.slice() : init === "zero" ? out.slice().fill(0) : base.slice();
            const indexStrides = wide ? ([count, 1, 0] as const) : ([count * inner, inner, 1] as const);
            for (let o = 0; o < outer; o++)
              for (let i = 0; i < count; i++)
                for (let n = 0; n < inner; n++) {
                  const at =
                    (o * size + index[o * indexStrides[0] + i * indexStrides[1] + n * indexStrides[2]]!) * inner + n;
                  const s = src[(o * count + i) * inner + n]!;
                  expected[at] = reduce === "add" ? expected[at]! + s : reduce === "set" ? s : larger(expected[at]!, s);
                }
            const plan = planScatter({
              outer,
              count,
              inner,
              size,
              dtype,
              reduce,
              init,
              indexStrides,
              srcStrides: [count * inner, inner, 1],
              errorOp: 9,
            });
            const { result, failure } = runCommands(runtime, [plan], { out, index, src, base });
            assert.equal(failure, null);
            assert.deepEqual(
              result["out"],
              expected,
              `${dtype} ${reduce} ${init} ${outer} ${count} ${inner} ${size} ${wide}`,
            );
          }
});

test("scatter reports the first index out of range and touches nothing outside", { skip }, () => {
  for (const bad of [-1, 4]) {
    const index = Int32Array.of(0, bad, 3, 1);
    const out = new Float32Array(4 * 3);
    const plan = planScatter({
      outer: 1,
      count: 4,
      inner: 3,
      size: 4,
      dtype: "float32",
      reduce: "add",
      init: "none",
      indexStrides: [4, 1, 0],
      srcStrides: [12, 3, 1],
      errorOp: 9,
    });
    const { result, failure } = runCommands(runtime, [plan], { out, index, src: new Float32Array(12).fill(1) });
    assert.deepEqual(failure, { op: 9, position: 3 });
    assert.deepEqual([...result["out"]!], [1, 1, 1, 1, 1, 1, 0, 0, 0, 1, 1, 1]);
  }
});

test("maximum by scatter: a NaN wins and stays", { skip }, () => {
  const plan = planScatter({
    outer: 1,
    count: 4,
    inner: 1,
    size: 2,
    dtype: "float32",
    reduce: "max",
    init: "none",
    indexStrides: [4, 1, 1],
    srcStrides: [4, 1, 1],
    errorOp: 1,
  });
  const { result } = runCommands(runtime, [plan], {
    out: Float32Array.of(0, 0),
    index: Int32Array.of(0, 0, 1, 1),
    src: Float32Array.of(Number.NaN, 5, -3, 2),
  });
  assert.deepEqual([...result["out"]!], [Number.NaN, 2]);
});

test("argsort is stable, both ways, along any axis; NaN is above everything and -0 equals 0", { skip }, () => {
  for (const dtype of dtypes)
    for (const descending of [false, true])
      for (const [outer, n, inner] of [
        [1, 1, 1],
        [2, 7, 3],
        [1, 64, 5],
        [3, 65, 2],
        [1, 3000, 1],
      ] as const) {
        const rand = random(n);
        const special =
          dtype === "int32" ? [-2147483648, 2147483647, 0] : [Number.NaN, Infinity, -Infinity, 0, -0, 1e-30, -1e30];
        const x = make(dtype, outer * n * inner, () =>
          rand() < 0.2 ? special[Math.floor(rand() * special.length)]! : Math.floor((rand() - 0.5) * 100),
        );
        const plan = planArgsort({ outer, n, inner, dtype, descending, values: true });
        const { result } = runCommands(runtime, [plan], {
          x,
          indices: new Int32Array(x.length),
          values: new kinds[dtype](x.length),
        });
        const compare = (a: number, b: number) =>
          Number.isNaN(a) ? (Number.isNaN(b) ? 0 : 1) : Number.isNaN(b) ? -1 : a < b ? -1 : a > b ? 1 : 0;
        for (let o = 0; o < outer; o++)
          for (let m = 0; m < inner; m++) {
            const at = (i: number) => (o * n + i) * inner + m;
            const order = Array.from({ length: n }, (_, i) => i).sort(
              (i, j) => (descending ? -1 : 1) * compare(x[at(i)]!, x[at(j)]!) || i - j,
            );
            order.forEach((from, i) => {
              assert.equal(
                result["indices"]![at(i)],
                from,
                `${dtype} ${descending} [${outer}, ${n}, ${inner}] line ${o}, ${m}, place ${i}`,
              );
              assert.ok(Object.is(result["values"]![at(i)], x[at(from)]));
            });
          }
      }
});

test("running sums, products and maxima along any axis, from either end", { skip }, () => {
  for (const dtype of dtypes)
    for (const op of ["add", "mul", "max"] as const)
      for (const reverse of [false, true])
        for (const [outer, n, inner] of [
          [1, 1, 1],
          [3, 33, 5],
          [2, 17, 130],
          [1, 300, 1],
        ] as const) {
          const rand = random(n + inner);
          const x = make(dtype, outer * n * inner, () =>
            op === "mul"
              ? (rand() < 0.5 ? -1 : 1) * (dtype === "int32" ? 3 : 0.5 + rand())
              : Math.floor(rand() * 100) - 50,
          );
          const expected = x.slice();
          for (let o = 0; o < outer; o++)
            for (let m = 0; m < inner; m++) {
              let acc = 0;
              for (let k = 0; k < n; k++) {
                const at = (o * n + (reverse ? n - 1 - k : k)) * inner + m;
                const v = x[at]!;
                acc =
                  k === 0
                    ? v
                    : op === "add"
                      ? acc + v
                      : op === "mul"
                        ? dtype === "int32"
                          ? Math.imul(acc, v)
                          : acc * v
                        : larger(acc, v);
                expected[at] = acc;
              }
            }
          const { result } = runCommands(runtime, [planCumulative({ outer, n, inner, dtype, op, reverse })], {
            x,
            y: new kinds[dtype](x.length),
          });
          assert.deepEqual(result["y"], expected, `${dtype} ${op} ${reverse} [${outer}, ${n}, ${inner}]`);
        }
});

test("fill and copy, strided, over several tiles", { skip }, () => {
  const bits = new Int32Array(Float32Array.of(1.5).buffer)[0]!;
  assert.ok(
    runCommands(runtime, [planFill({ count: 100_001, dtype: "float32", bits })], {
      x: new Float32Array(100_001),
    }).result["x"]!.every((v) => v === 1.5),
  );
  assert.ok(
    runCommands(runtime, [planFill({ count: 77, dtype: "float64", bits: 0 })], {
      x: new Float64Array(77).fill(3),
    }).result["x"]!.every((v) => v === 0),
  );
  for (const [Type, dtype] of [
    [Float32Array, "float32"],
    [Float64Array, "float64"],
    [Int32Array, "int32"],
  ] as const) {
    const [d0, d1, d2] = [37, 41, 53];
    const from = make(dtype, d0 * d1 * d2, (i) => i);
    // [d0, d1, d2] -> [d2, d0, d1]
    const plan = planCopy({ shape: [d2, d0, d1], dtype, from: [1, d1 * d2, d2], to: [d0 * d1, d1, 1] });
    const { result } = runCommands(runtime, [plan], { from, to: new Type(from.length) });
    for (let k = 0; k < d2; k++)
      for (let i = 0; i < d0; i++)
        for (let j = 0; j < d1; j++) assert.equal(result["to"]![(k * d0 + i) * d1 + j], (i * d1 + j) * d2 + k);
  }
  // every second column into a wider place
  const { result } = runCommands(runtime, [planCopy({ shape: [3, 4], dtype: "float32", from: [8, 2], to: [5, 1] })], {
    from: Float32Array.from({ length: 24 }, (_, i) => i),
    to: new Float32Array(15).fill(-1),
  });
  assert.deepEqual([...result["to"]!], [0, 2, 4, 6, -1, 8, 10, 12, 14, -1, 16, 18, 20, 22, -1]);
});
