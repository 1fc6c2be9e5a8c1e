/**
 * The functions that WebAssembly has no instruction for, float32: within a few units in the last place of the host's Math
 * over the whole range, and its special values exactly. The instructions around them, on a module of its own.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { engine } from "../../../src/backends/wasm/engine.ts";
import { call } from "../../../src/backends/wasm/function.ts";
import { openWasmBackend } from "../../../src/backends/wasm/index.ts";
import { constant, f64, i32, i32s, i32x4, select, shuffle32, vector } from "../../../src/backends/wasm/instructions.ts";
import { Module } from "../../../src/backends/wasm/module.ts";
import type { Node } from "../../../src/graph/node.ts";
import * as o from "../../../src/graph/ops.ts";
import { evaluate, nodeFrom } from "../../support/evaluate.ts";

const backend = await openWasmBackend({ threads: 0 });
const float = new Float32Array(1);
const bits = new Int32Array(float.buffer);

/** Floats between a and b as a line of integers, so that neighbours differ by one. */
function order(x: number): number {
  float[0] = x;
  return bits[0] < 0 ? -(bits[0] & 0x7fffffff) : bits[0];
}

/** Every so many-th float from −∞ to ∞, subnormals among them, and those around small integers. */
function samples(): Float32Array {
  const out: number[] = [0, -0, Infinity, -Infinity, NaN, 1e-45, -1e-45, 2 ** -126];
  for (let k = 0; k < 0x7f800000; k += 65537) {
    bits[0] = k;
    out.push(float[0], -float[0]);
  }
  for (let x = -110; x <= 110; x += 0.0371) out.push(x);
  return Float32Array.from(out);
}

/** The function, what it is compared with, and how many units in the last place it may be off. */
const functions: readonly (readonly [
  name: string,
  make: (x: Node) => Node,
  exact: (x: number) => number,
  ulps: number,
])[] = [
  ["exp", o.exp, Math.exp, 2],
  ["log", o.log, Math.log, 2],
  ["tanh", o.tanh, Math.tanh, 3],
  ["expm1", o.expm1, Math.expm1, 3],
  ["log1p", o.log1p, Math.log1p, 3],
  ["atan", o.atan, Math.atan, 2],
  ["sin", o.sin, Math.sin, 2],
  ["cos", o.cos, Math.cos, 2],
];

describe("float32 functions", () => {
  const x = samples();
  for (const [name, make, exact, ulps] of functions)
    test(`${name} is within ${ulps} ulp`, async () => {
      const [y] = await evaluate(backend, [make(nodeFrom(backend, x, [x.length], "float32"))]);
      let worst = 0;
      let where = 0;
      x.forEach((v, i) => {
        const expected = Math.fround(exact(v));
        assert.equal(Number.isNaN(y[i]), Number.isNaN(expected), `${name}(${v}) is ${y[i]}, expected ${expected}`);
        if (Number.isNaN(expected)) return;
        const off = Math.abs(order(y[i]) - order(expected));
        if (off > worst) [worst, where] = [off, v];
      });
      assert.ok(worst <= ulps, `${name}(${where}) is ${worst} ulp off`);
    });

  test("pow is within 2 ulp, and C's in its special cases", async () => {
    const values = [0, -0, 1, -1, 0.5, 2, -2, 3, -3, 1.5, 1e-3, 1e30, 1e-40, 7.25, Infinity, -Infinity, NaN];
    const pairs = values.flatMap((a) => values.map((b) => [a, b] as const));
    const [a, b] = [0, 1].map((k) =>
      nodeFrom(
        backend,
        pairs.map((p) => p[k]),
        [pairs.length],
        "float32",
      ),
    );
    const [y] = await evaluate(backend, [o.pow(a, b)]);
    pairs.forEach(([p, q], i) => {
      const [base, exponent] = [Math.fround(p), Math.fround(q)];
      const one = base === 1 || exponent === 0 || (base === -1 && Math.abs(exponent) === Infinity);
      const expected = Math.fround(one ? 1 : base ** exponent);
      const what = `${p} to the ${q} is ${y[i]}, expected ${expected}`;
      if (Number.isNaN(expected)) assert.ok(Number.isNaN(y[i]), what);
      else assert.ok(Math.abs(order(y[i]) - order(expected)) <= 2, what);
    });
  });
});

test("a module written by hand: loops, branches, calls, vectors, memory", async () => {
  const m = new Module({ shared: false, maximum: 16 });
  const hypot = m.import("hypot", ["f64", "f64"], ["f64"]);
  const factorial = m.function(["i32"], ["i32"]);
  {
    const [n] = factorial.args;
    const product = factorial.let(1);
    factorial.for(1, i32.add(n, 1), 1, (i) => factorial.set(product, i32.mul(product, i)));
    factorial.result(product);
  }
  const main = m.function(["i32"], ["f64"]);
  {
    const [n] = main.args;
    const f = main;
    const lanes = f.let(vector(Int32Array.of(1, 2, 3, 4)));
    f.store("v128", 16, i32x4.add(shuffle32(lanes, i32s(100), [3, 2, 5, 0]), i32x4.splat(n)));
    const steps = f.let(0);
    f.block((leave) =>
      f.loop((again) => {
        leave(i32.gt_s(steps, 99));
        f.bump(steps, 7);
        again(1);
      }),
    );
    f.store("i32", 32, steps);
    f.if(
      i32.lt_s(n, 5),
      () => f.store("i32", 36, select(i32.eq(n, 4), constant.i32(-70000), constant.i32(1))),
      () => f.store("i32", 36, 2),
    );
    f.store("i32", 40, call(factorial, n));
    f.result(call(hypot, f64.convert_i32_s(n), 3));
  }
  m.export("main", main);
  const bytes = m.encode();
  assert.ok(engine.validate(bytes));
  const memory = new engine.Memory({ initial: 1, maximum: 16, shared: false });
  const env = { memory, hypot: Math.hypot };
  const { exports } = new engine.Instance(await engine.compile(bytes), { env });
  assert.equal((exports["main"] as (n: number) => number)(4), 5);
  const words = new Int32Array(memory.buffer, 16, 7);
  assert.deepEqual([...words], [8, 7, 104, 5, 105, -70000, 24]);
});

test("an expression of the wrong type is refused where it is made", () => {
  assert.throws(() => i32.add(constant.f32(1), 2), /an expression of type f32 where i32 was expected/);
});
