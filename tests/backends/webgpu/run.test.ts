/**
 * What the WGSL renderer's kernels compute, on any device that this machine has (a software Vulkan driver serves:
 * VK_DRIVER_FILES names it), against the reference backend. Skipped where there is none. Texts: render.test.ts.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { erf } from "../../../src/backends/reference/erf.ts";
import { referenceBackend } from "../../../src/backends/reference/index.ts";
import { threefry2x32 } from "../../../src/backends/reference/random.ts";
import { storageBytes } from "../../../src/backends/webgpu/layout.ts";
import { type RenderedWgsl, renderWgsl } from "../../../src/backends/webgpu/render.ts";
import { axis, type Index, offset, scale } from "../../../src/compiler/index-expr.ts";
import { type Kernel, type Value, Values } from "../../../src/compiler/kernel.ts";
import { allocateRaw, type DType, decode, encode } from "../../../src/core/dtype.ts";
import { IndexError } from "../../../src/core/errors.ts";
import { make, type Node } from "../../../src/graph/node.ts";
import * as o from "../../../src/graph/ops.ts";
import { primitives } from "../../../src/graph/primitives.ts";
import { compileNodes, evaluate, nodeFrom } from "../../support/evaluate.ts";
import { firstDifference, tolerances } from "../../support/fixtures.ts";
import { deviceDtypes, everyMovement, everyOperation, everyReduction, graphs, Leaves } from "./cases.ts";
import { computeDevice, KernelBackend, Runner } from "./harness.ts";

const device = await computeDevice();
const skip = typeof device === "string" ? device : false;
const runner = typeof device === "string" ? (null as never) : new Runner(device);
const backend = typeof device === "string" ? (null as never) : new KernelBackend(runner);
const reference = referenceBackend();

/** The same roots on the device and on the reference backend. */
async function compare(build: (l: Leaves) => ReadonlyMap<string, Node>): Promise<void> {
  const [got, expected] = [build(new Leaves(backend)), build(new Leaves(reference))];
  const names = [...got.keys()];
  const results = await evaluate(backend, [...got.values()]);
  const truth = await evaluate(reference, [...expected.values()]);
  names.forEach((name, i) => {
    const { dtype } = expected.get(name) as Node;
    const difference = firstDifference(results[i], truth[i], tolerances[dtype]);
    if (difference) assert.fail(`${name}: ${difference}`);
  });
}

for (const dtype of deviceDtypes)
  test(`every operation on ${dtype} computes what it means`, { skip }, async () => {
    await compare((l) => everyOperation(l, dtype, [5, 7]));
    await compare((l) => everyMovement(l.of(dtype, [4, 6])));
    await compare((l) => new Map([["gather", o.gather(l.of(dtype, [4, 6]), 1, l.below(6, [4, 3]))]]));
  });

/** Near to another dtype in how they are stored and reduced: int32, uint8, float16. An adapter in software takes long to compile them. */
const alike: readonly DType[] = process.env["NABLA_LONG"] === "1" ? [] : ["uint32", "bool", "bfloat16"];

for (const dtype of deviceDtypes)
  test(`every reduction of ${dtype} computes what it means, in every form`, {
    skip: skip || (alike.includes(dtype) && "NABLA_LONG=1 does the dtypes that are near to another"),
  }, async () => {
    for (const [rows, columns] of [
      [5, 300],
      [700, 3],
      [6, 6],
    ])
      await compare((l) => everyReduction(l, dtype, rows, columns));
  });

for (const [name, build] of Object.entries(graphs))
  test(`${name}, forward and backward, computes what the reference backend does`, { skip }, async () => {
    const truth = await evaluate(reference, build(new Leaves(reference)));
    const roots = build(new Leaves(backend));
    const results = await evaluate(backend, roots);
    truth.forEach((values, i) => {
      const { dtype } = roots[i];
      // sums of some hundred terms: relative to the largest
      let largest = 1;
      for (const v of values) largest = Math.max(largest, Math.abs(v));
      const { rtol, atol } = tolerances[dtype];
      const difference = firstDifference(results[i], values, { rtol: 5 * rtol, atol: largest * (rtol + atol) });
      if (difference) assert.fail(`root ${i}: ${difference}`);
    });
  });

// ---- functions ---------------------------------------------------------------------------------------------------------

const special = [Number.NaN, Infinity, -Infinity, 0, -0, 1, -1, 0.5, -2.5, 3, 88.5, -104, 1e-20, -3e38, 16777216, 1e30];

test("NaN, the infinities and the zeros come through every float function", { skip }, async () => {
  const pairs = special.flatMap((a) => special.map((b) => [a, b]));
  const [x, y] = [0, 1].map((i) => pairs.map((p) => p[i]));
  const rows = [
    ...[primitives.neg, primitives.abs, primitives.sign, primitives.sqrt, primitives.exp, primitives.log],
    ...[primitives.log1p, primitives.expm1, primitives.sin, primitives.cos, primitives.atan, primitives.tanh],
    ...[primitives.erf, primitives.floor, primitives.ceil, primitives.trunc, primitives.round],
    ...[primitives.pow, primitives.mod, primitives.max, primitives.min, primitives.lt, primitives.le, primitives.eq],
  ];
  const roots = (b: typeof reference): Node[] => {
    const inputs = [x, y].map((v) => nodeFrom(b, v, [v.length], "float32"));
    const made = rows.map((row) => make(row, row.group === "unary" ? [inputs[0]] : inputs));
    const casts = (["int32", "uint32", "uint8", "bool", "float16", "bfloat16"] as const).map((d) =>
      o.cast(inputs[0], d),
    );
    return [...made, ...casts, o.isNan(inputs[0])];
  };
  const [got, expected] = [await evaluate(backend, roots(backend)), await evaluate(reference, roots(reference))];
  expected.forEach((values, i) => {
    const name = rows[i]?.name ?? `cast ${i - rows.length}`;
    const difference = firstDifference(got[i], values, { rtol: 1e-5, atol: 1e-30 });
    const at = Number(difference?.match(/element (\d+)/)?.[1]);
    if (difference) assert.fail(`${name}(${x[at]}, ${y[at]}): ${difference}`);
  });
});

const LENGTH = 4000;
/** out[c] = name(in0[c], in1[c] …) */
function elementwise(name: string, numArgs: number, dtype: DType = "float32", length = LENGTH): Kernel {
  const values = new Values();
  const c = axis("c", length);
  const args = Array.from({ length: numArgs }, (_, i) => values.make({ kind: "load", dtype, slot: i, index: c }));
  return storing(values.make({ kind: "op", dtype, name, args }), c, numArgs, length);
}

/** A flat kernel with one store; buffers 0 … numReads − 1 are read. */
const storing = (value: Value, index: Index, numReads: number, columns: number): Kernel => ({
  rows: 1,
  columns,
  buffers: Array.from({ length: numReads + 1 }, (_, i) => ({ dtype: value.dtype, written: i === numReads })),
  scalars: [],
  stages: [{ stores: [{ buffer: numReads, index, value }], reductions: [], columns: [], rowStores: [] }],
  canFail: false,
  flops: 0,
});

const bits = new DataView(new ArrayBuffer(4));
/** The spacing of float32 numbers at x. */
function ulp(x: number): number {
  bits.setFloat32(0, Math.abs(x));
  const exponent = bits.getUint32(0) >>> 23;
  return 2 ** (Math.max(1, exponent) - 150);
}

test("the functions that WGSL leaves loose are within 4 units of the last place", { skip }, async () => {
  let seed = 12345;
  const random = (): number => (seed = (seed * 48271) % 2147483647) / 2147483647;
  const between = (a: number, b: number) => (): number => a + random() * (b - a);
  const powers = (a: number, b: number) => (): number => (random() < 0.5 ? -1 : 1) * 2 ** between(a, b)();
  const positive = (a: number, b: number) => (): number => 2 ** between(a, b)();
  const remainder = (x: number, y: number): number => (x % y !== 0 && x % y < 0 !== y < 0 ? (x % y) + y : x % y);
  const cases: [string, (...x: number[]) => number, ...(() => number)[]][] = [
    ["exp", Math.exp, between(-87, 88.7)],
    ["exp", Math.exp, between(-1, 1)],
    ["log", Math.log, positive(-126, 127)],
    ["log", Math.log, between(0.5, 2)],
    ["log1p", Math.log1p, between(-0.9999, 3)],
    ["log1p", Math.log1p, powers(-30, 0)],
    ["expm1", Math.expm1, between(-20, 88)],
    ["expm1", Math.expm1, powers(-30, 1)],
    ["tanh", Math.tanh, powers(-30, 3)],
    ["erf", erf, between(-5, 5)],
    ["erf", erf, powers(-30, 2)],
    ["atan", Math.atan, powers(-30, 30)],
    ["sin", Math.sin, between(-20, 20)],
    ["sin", Math.sin, () => Math.round(between(1, 10000)()) * Math.PI],
    ["sin", Math.sin, powers(13, 127)],
    ["cos", Math.cos, between(-8192, 8192)],
    ["cos", Math.cos, () => (Math.round(between(1, 10000)()) + 0.5) * Math.PI],
    ["cos", Math.cos, powers(13, 127)],
    ["pow", Math.pow, positive(-10, 10), between(-8, 8)],
    ["pow", Math.pow, between(0.9, 1.1), between(-400, 400)],
    ["pow", Math.pow, powers(-3, 3), () => Math.round(between(-20, 20)())],
    ["mod", remainder, powers(-10, 30), powers(-5, 5)],
    ["mod", remainder, powers(-100, 126), powers(-110, 100)],
  ];
  for (const [name, f, ...draws] of cases) {
    const inputs = draws.map((draw) => Float32Array.from({ length: LENGTH }, draw));
    const got = await run(renderWgsl(elementwise(name, draws.length), runner.options), inputs, LENGTH);
    for (let i = 0; i < LENGTH; i++) {
      const x = inputs.map((v) => v[i]);
      const exact = f(...x);
      if (Math.abs(exact) < 1.2e-38) continue; // a device may take denormals for 0
      const error = Math.abs(got[i] - exact) / ulp(exact);
      if (!(error <= 4)) assert.fail(`${name}(${x.join(", ")}) is ${got[i]}, expected ${exact}: ${error} ulp`);
    }
  }
});

/** Runs a kernel of float32 inputs and one output. */
async function run(rendered: RenderedWgsl, inputs: readonly Float32Array[], length: number): Promise<Float32Array> {
  const buffers = [...inputs, new Float32Array(length)].map((data) => {
    const buffer = runner.allocate(data.byteLength);
    runner.write(buffer, data);
    return buffer;
  });
  await runner.dispatch(rendered, buffers, { length });
  const out = await runner.read(buffers[inputs.length], new Float32Array(length));
  for (const b of buffers) b.destroy();
  return out;
}

test("random bits are Threefry's, whatever the type of the key's words", { skip }, async () => {
  const pair = new Uint32Array(2);
  const expected = new Uint32Array(1001);
  for (let i = 0; i < expected.length; i++) {
    threefry2x32(4294967293, 12345, i >> 1, 0, pair, 0);
    expected[i] = pair[i & 1];
  }
  for (const [dtype, high] of [
    ["uint32", 4294967293],
    ["int32", -3],
  ] as const) {
    const [got] = await evaluate(backend, [o.random([7, 143], o.scalar(high, dtype), o.scalar(12345, dtype))]);
    assert.deepEqual([...got], [...expected]);
  }
});

// ---- memory ------------------------------------------------------------------------------------------------------------

test("narrow elements are stored beside their neighbours, which keep their values", { skip }, async () => {
  const n = 1001;
  for (const dtype of ["bool", "uint8", "float16", "bfloat16"] as const)
    for (const [what, place, size] of [
      ["whole words", (c: Index) => c, n],
      ["an odd offset", (c: Index) => offset(c, 3), n + 7],
      ["every third", (c: Index) => offset(scale(c, 3), 1), 3 * n + 2],
    ] as const) {
      const values = new Values();
      const c = axis("c", n);
      const load = values.make({ kind: "load", dtype, slot: 0, index: c });
      const kernel = storing(load, place(c), 1, n);
      const source = allocateRaw(dtype, n);
      encode(
        dtype,
        Array.from({ length: n }, (_, i) => (dtype === "bool" ? i % 2 : i % 100)),
        source,
      );
      const before = allocateRaw(dtype, size);
      encode(dtype, new Array(size).fill(1), before);
      const buffers = [source, before].map((raw) => {
        const buffer = runner.allocate(storageBytes(dtype, raw.length));
        runner.write(buffer, raw);
        return buffer;
      });
      await runner.dispatch(renderWgsl(kernel, runner.options), buffers, { length: n });
      const got = decode(dtype, await runner.read(buffers[1], allocateRaw(dtype, size)));
      const expected = new Array(size).fill(1);
      const at = {
        "whole words": (i: number) => i,
        "an odd offset": (i: number) => i + 3,
        "every third": (i: number) => 3 * i + 1,
      };
      for (let i = 0; i < n; i++) expected[at[what](i)] = dtype === "bool" ? i % 2 : i % 100;
      assert.deepEqual([...got], expected, `${dtype}, ${what}`);
    }
});

test("narrow rows and narrow row results are stored right beside each other", { skip }, async () => {
  for (const dtype of ["bool", "uint8", "float16", "bfloat16"] as const)
    for (const shape of [
      [9, 40],
      [9, 41],
      [130, 3],
    ])
      await compare((l) => {
        const x = l.of("float32", shape);
        const mean = o.mean(x, 1, { keepdim: true });
        const above = o.lt(o.expandTo(mean, shape), x);
        return new Map([
          ["above", dtype === "bool" ? above : o.cast(above, dtype)],
          ["any", dtype === "bool" ? o.reduceMax(above, 1) : o.cast(o.reduceMax(above, 1), dtype)],
        ]);
      });
});

test("more elements, and more rows, than one dispatch has workgroups are reached by strides", { skip }, async () => {
  const many = 65535 * 64 + 77;
  const [flat] = await evaluate(backend, [o.iota([many], 0)]);
  assert.ok(flat.every((v, i) => v === i));
  const [sums] = await evaluate(backend, [o.sum(o.iota([66000, 256], 0), 1)]);
  assert.ok(sums.every((v, i) => v === 256 * i));
});

test("a state is written in place where reads and writes share memory", { skip }, async () => {
  const kernel = elementwise("add", 2);
  const rendered = renderWgsl(kernel, { ...runner.options, sharedWith: [0, 1, 0] });
  const [a, b] = [0, 1].map((k) => Float32Array.from({ length: LENGTH }, (_, i) => i * (k + 1)));
  const buffers = [a, b].map((data) => {
    const buffer = runner.allocate(data.byteLength);
    runner.write(buffer, data);
    return buffer;
  });
  await runner.dispatch(rendered, [...buffers, buffers[0]], { length: LENGTH });
  const got = await runner.read(buffers[0], new Float32Array(LENGTH));
  assert.ok(got.every((v, i) => v === 3 * i));
});

// ---- failures ----------------------------------------------------------------------------------------------------------

test("an index out of range and a division by zero set the failure word; padding does not", { skip }, async () => {
  const x = nodeFrom(backend, [10, 20, 30], [3], "int32");
  const index = (values: number[]): Node => nodeFrom(backend, values, [values.length], "int32");
  await assert.rejects(
    evaluate(backend, [o.take(x, 0, index([0, 3]))]),
    (e) => e instanceof IndexError && /index 3 .* axis of 3/.test(e.message),
  );
  await assert.rejects(evaluate(backend, [o.take(x, 0, index([-1]))]), /index -1 /);
  await assert.rejects(evaluate(backend, [o.floorDivide(x, index([1, 0, 2]))]), /division by zero/);
  await assert.rejects(evaluate(backend, [o.mod(x, index([1, 0, 2]))]), /division by zero/);
  const [padded] = await evaluate(backend, [o.pad(o.take(x, 0, index([2, 0])), [1], [2], 7, [0])]);
  assert.deepEqual([...padded], [7, 30, 10, 7, 7]);
});

test("a kernel that writes state does nothing once the failure word is set", { skip }, async () => {
  const options = { ...runner.options, writesState: true };
  const values = new Values();
  const [r, c] = [axis("r", 5), axis("c", 40)];
  const load = values.make({ kind: "load", dtype: "float32", slot: 0, index: c });
  const sum = values.reduction(load, "float32");
  const rowSums: Kernel = {
    ...elementwise("neg", 1),
    rows: 5,
    columns: 40,
    stages: [
      { stores: [], reductions: [{ op: "sum", value: load, dtype: "float32", slot: 0 }], columns: [], rowStores: [] },
      { stores: [], reductions: [], columns: [], rowStores: [{ buffer: 1, index: r, value: sum }] },
    ],
  };
  const overRows: Kernel = {
    ...rowSums,
    stages: [{ stores: [], reductions: [], columns: [{ op: "sum", value: load, buffer: 1 }], rowStores: [] }],
  };
  const input = Float32Array.from({ length: LENGTH }, (_, i) => i + 1);
  for (const kernel of [elementwise("neg", 1), rowSums, overRows]) {
    const rendered = renderWgsl(kernel, options);
    runner.write(runner.failure, Uint32Array.of(3, 0));
    assert.ok((await run(rendered, [input], LENGTH)).every((v) => v === 0));
    assert.deepEqual(await runner.failed(), { operation: 3, index: 0 });
    assert.notEqual((await run(rendered, [input], LENGTH))[0], 0);
  }
});

test("the first failure is kept, counted from the number of the kernel's first check", { skip }, async () => {
  const values = new Values();
  const c = axis("c", 500);
  const a = values.make({ kind: "load", dtype: "int32", slot: 0, index: c });
  const value = values.make({ kind: "op", dtype: "int32", name: "idiv", args: [a, a] });
  const rendered = renderWgsl({ ...storing(value, c, 1, 500), canFail: true }, runner.options);
  const buffers = [runner.allocate(2000), runner.allocate(2000)];
  await runner.dispatch(rendered, buffers, { length: 500, firstCheck: 17 });
  await runner.dispatch(rendered, buffers, { length: 500, firstCheck: 4 });
  assert.deepEqual(await runner.failed(), { operation: 17, index: 0 });
});

// ---- the same bits -----------------------------------------------------------------------------------------------------

test("sums have the same bits with subgroups and without", {
  skip: skip || (!runner.options.subgroups && "no subgroups"),
}, async () => {
  const without = new KernelBackend(new Runner(runner.device, { subgroups: false }));
  const results = [];
  for (const b of [backend, without]) {
    const l = new Leaves(b);
    const x = o.sin(l.float([7, 1000]));
    const { run: again } = await compileNodes(b, [o.sum(x, 1), o.prod(x, 1), o.sum(x, 0)]);
    results.push((await again()).map((v) => Buffer.from(v.buffer).toString("hex")));
  }
  assert.deepEqual(results[0], results[1]);
});

test("a scalar of every dtype reaches the kernel, and one program serves every value", { skip }, async () => {
  const scalars = deviceDtypes.map((d) => o.scalar(0, d));
  const { run: again } = await compileNodes(
    backend,
    scalars.map((s) => o.expandTo(o.reshape(s, [1]), [3])),
  );
  for (const value of [1, 3, 250]) {
    for (const s of scalars) s.value = s.dtype === "bool" ? Math.min(1, value) : value;
    const results = await again();
    results.forEach((raw, i) => {
      const { dtype } = scalars[i];
      assert.deepEqual([...decode(dtype, raw)], new Array(3).fill(dtype === "bool" ? 1 : value), dtype);
    });
  }
});

test("constants that no literal can say arrive whole", { skip }, async () => {
  const constants = [Infinity, -Infinity, Number.NaN, -0, 1e-40, 3.4028234663852886e38, 1 / 3];
  const x = nodeFrom(backend, [0], [1], "float32");
  const got = await evaluate(
    backend,
    constants.map((v) => o.where(o.lt(x, 1), o.full([1], v, "float32"), x)),
  );
  constants.forEach((v, i) => {
    if (Math.abs(v) === 1e-40) assert.ok(got[i][0] === 0 || got[i][0] === Math.fround(v));
    else assert.ok(Object.is(got[i][0], Math.fround(v)), `${v} became ${got[i][0]}`);
  });
  const integers = [-2147483648, 2147483647];
  const y = nodeFrom(backend, [0], [1], "int32");
  const whole = await evaluate(
    backend,
    integers.map((v) => o.where(o.lt(y, 1), o.full([1], v, "int32"), y)),
  );
  assert.deepEqual(
    whole.map((v) => v[0]),
    integers,
  );
});
