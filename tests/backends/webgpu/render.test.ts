/**
 * The WGSL renderer. Every text is checked by Dawn's null device, which needs no GPU: every operation in every dtype,
 * every form, the kernels that the fuser makes of what training records. Running them is run.test.ts.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { referenceBackend } from "../../../src/backends/reference/index.ts";
import { packUniforms, storageBytes, TooManyBindings } from "../../../src/backends/webgpu/layout.ts";
import { renderWgsl, type WgslOptions } from "../../../src/backends/webgpu/render.ts";
import { add, axis, constantIndex, scale } from "../../../src/compiler/index-expr.ts";
import { type Kernel, Values } from "../../../src/compiler/kernel.ts";
import type { DType } from "../../../src/core/dtype.ts";
import { BackendError } from "../../../src/core/errors.ts";
import type { Node } from "../../../src/graph/node.ts";
import * as o from "../../../src/graph/ops.ts";
import { captureOf } from "../../support/evaluate.ts";
import { deviceDtypes, everyMovement, everyOperation, everyReduction, graphs, Leaves } from "./cases.ts";
import { check, kernelsOf, nullDevice } from "./harness.ts";

const device = await nullDevice();
const skip = typeof device === "string" ? device : false;

const plain: WgslOptions = { f16: false, subgroups: false, maxStorageBuffers: 64 };
const variants: readonly WgslOptions[] = [plain, { ...plain, f16: true, subgroups: true }];
const leaves = new Leaves(referenceBackend());

/** Renders and checks every kernel of these roots; gives the forms that were met. */
async function checkAll(what: string, roots: readonly Node[], options: WgslOptions, fuse = true): Promise<Set<string>> {
  if (typeof device === "string") throw new Error(device);
  // the null device binds few buffers; what a kernel may bind is another test's affair
  const forms = new Set<string>();
  const kernels = kernelsOf(captureOf(roots), options, fuse);
  assert.ok(kernels.length > 0, `${what}: no kernel`);
  for (const { rendered } of kernels) {
    forms.add(rendered.form);
    if (rendered.bindings.length - 1 > device.limits.maxStorageBuffersPerShaderStage) continue;
    await check(device, rendered).catch((error: Error) => {
      throw new Error(`${what}: ${error.message}`, { cause: error });
    });
  }
  return forms;
}

for (const dtype of deviceDtypes)
  test(`every operation on ${dtype} is valid WGSL`, { skip }, async () => {
    for (const options of variants) {
      for (const [name, node] of everyOperation(leaves, dtype, [3, 7]))
        await checkAll(`${name} ${dtype}`, [node], options);
      for (const [name, node] of everyMovement(leaves.of(dtype, [4, 6])))
        await checkAll(`${name} ${dtype}`, [node], options);
      const index = leaves.below(6, [4, 2]);
      await checkAll(`gather ${dtype}`, [o.gather(leaves.of(dtype, [4, 6]), 1, index)], options);
    }
  });

for (const dtype of deviceDtypes)
  test(`every reduction of ${dtype} is valid WGSL in every form`, { skip }, async () => {
    for (const options of variants) {
      const forms = new Set<string>();
      for (const [rows, columns] of [
        [5, 300],
        [700, 3],
        [6, 6],
      ])
        for (const [name, node] of everyReduction(leaves, dtype, rows, columns))
          for (const form of await checkAll(`${name} ${dtype} [${rows}, ${columns}]`, [node], options)) forms.add(form);
      assert.ok(forms.has("columns") && forms.has("rows"), [...forms].join(", "));
      assert.ok(dtype === "bool" || forms.has("sums"), [...forms].join(", "));
    }
  });

for (const [name, build] of Object.entries(graphs))
  test(`the kernels of ${name}, forward and backward, are valid WGSL, fused and one by one`, { skip }, async () => {
    const roots = build(leaves);
    for (const options of variants) {
      await checkAll(name, roots, options);
      await checkAll(`${name} unfused`, roots, options, false);
    }
  });

// ---- single kernels ----------------------------------------------------------------------------------------------------

/** out[c] = a sum of loads from `reads` buffers. */
function sumOfLoads(reads: number, dtype: DType = "float32", columns = 10): Kernel {
  const values = new Values();
  const c = axis("c", columns);
  let value = values.make({ kind: "load", dtype, slot: 0, index: c });
  for (let i = 1; i < reads; i++)
    value = values.make({
      kind: "op",
      dtype,
      name: "add",
      args: [value, values.make({ kind: "load", dtype, slot: i, index: c })],
    });
  return {
    rows: 1,
    columns,
    buffers: [...Array.from({ length: reads }, () => ({ dtype, written: false })), { dtype, written: true }],
    scalars: [],
    stages: [{ stores: [{ buffer: reads, index: c, value }], reductions: [], columns: [], rowStores: [] }],
    canFail: false,
    flops: 0,
  };
}

test("a kernel that needs more storage buffers than a device binds is refused by an error that says how many", () => {
  const options = { f16: false, subgroups: false };
  assert.equal(renderWgsl(sumOfLoads(7), options).bindings.length, 9);
  assert.throws(
    () => renderWgsl(sumOfLoads(8), options),
    (e) => e instanceof TooManyBindings && e.needed === 9 && e.limit === 8,
  );
  assert.equal(renderWgsl(sumOfLoads(9), { ...options, maxStorageBuffers: 10 }).bindings.length, 11);
  // the failure word is one of them
  assert.throws(() => renderWgsl({ ...sumOfLoads(7), canFail: true }, options), TooManyBindings);
});

test("buffers that share memory are one binding, and a buffer that is not read is none", async () => {
  const kernel = sumOfLoads(2);
  const shared = renderWgsl(kernel, { ...plain, sharedWith: [0, 1, 0] });
  assert.deepEqual(
    shared.bindings.map((b) => b.buffers),
    [[], [0, 2], [1]],
  );
  assert.ok(!/\bb2\b/.test(shared.source));
  const unread = renderWgsl(
    {
      ...kernel,
      buffers: [...kernel.buffers, { dtype: "float64" as DType, written: false }].map((b) => ({
        ...b,
        dtype: "float32" as const,
      })),
    },
    plain,
  );
  assert.equal(unread.bindings.length, 4);
  if (typeof device !== "string") await check(device, shared);
  const mixed = sumOfLoads(1);
  const buffers = [mixed.buffers[0], { dtype: "int32" as const, written: true }];
  assert.throws(
    () => renderWgsl({ ...mixed, buffers }, { ...plain, sharedWith: [0, 0] }),
    /share memory as float32 and int32/,
  );
});

test("a number a row that is written in place is read by all lanes first", { skip }, async () => {
  if (typeof device === "string") return;
  const values = new Values();
  const [r, c] = [axis("r", 20), axis("c", 300)];
  const load = (slot: number, index: typeof r) => values.make({ kind: "load", dtype: "float32", slot, index });
  const state = load(1, r);
  const stretched = values.make({
    kind: "op",
    dtype: "float32",
    name: "mul",
    args: [load(0, add(scale(r, 300), c)), state],
  });
  const next = values.make({ kind: "op", dtype: "float32", name: "neg", args: [state] });
  const kernel: Kernel = {
    ...sumOfLoads(3),
    rows: 20,
    columns: 300,
    stages: [
      {
        stores: [{ buffer: 2, index: add(scale(r, 300), c), value: stretched }],
        reductions: [],
        columns: [],
        rowStores: [{ buffer: 3, index: r, value: next }],
      },
    ],
  };
  const shared = renderWgsl(kernel, { ...plain, sharedWith: [0, 1, 2, 1] });
  assert.match(shared.source, /workgroupBarrier\(\);\n +if \(live && lane == 0\)/);
  assert.ok(!renderWgsl(kernel, plain).source.includes("workgroupBarrier"));
  await check(device, shared);
});

test("float64 is refused, and so are positions that int32 does not hold", () => {
  assert.throws(
    () => renderWgsl(sumOfLoads(1, "float64"), plain),
    (e) => e instanceof BackendError && /float64/.test(e.message),
  );
  assert.throws(() => renderWgsl(sumOfLoads(1, "float32", 2 ** 31), plain), /more than/);
});

test("a check in a kernel that is not said to fail is an error of the compiler", () => {
  const values = new Values();
  const c = axis("c", 4);
  const a = values.make({ kind: "load", dtype: "int32", slot: 0, index: c });
  const value = values.make({ kind: "op", dtype: "int32", name: "idiv", args: [a, a] });
  const stages = [{ stores: [{ buffer: 1, index: c, value }], reductions: [], columns: [], rowStores: [] }];
  const kernel: Kernel = { ...sumOfLoads(1, "int32", 4), stages };
  assert.throws(() => renderWgsl(kernel, plain), /canFail/);
  assert.deepEqual(renderWgsl({ ...kernel, canFail: true }, plain).checks, [{ kind: "division", extent: 0 }]);
});

test("a kernel that writes state asks the failure word first, in every form", { skip }, async () => {
  if (typeof device === "string") return;
  const x = leaves.float([40, 30]);
  for (const root of [o.neg(x), o.sum(x, 1), o.sum(x, 0)])
    for (const { rendered } of kernelsOf(captureOf([root]), { ...plain, writesState: true })) {
      assert.match(rendered.source, /atomicLoad\(&failure\.operation\)/);
      assert.equal(rendered.bindings[rendered.bindings.length - 1].kind, "failure");
      await check(device, rendered);
    }
});

test("flat kernels of one row take their length at run time: texts of all lengths are equal", () => {
  const [a, b] = [sumOfLoads(2, "float32", 100), sumOfLoads(2, "float32", 5000)].map((k) => renderWgsl(k, plain));
  assert.equal(a.source, b.source);
  assert.deepEqual(a.dispatch({ length: 100 }), { x: 2, y: 1, z: 1 });
  assert.deepEqual(a.dispatch({ length: 0 }), { x: 0, y: 1, z: 1 });
  assert.deepEqual(a.dispatch({ length: 1e8 }), { x: 65535, y: 1, z: 1 });
});

test("narrow elements that lie one after the other are stored in whole words, others by atomics", () => {
  for (const dtype of ["bool", "uint8", "bfloat16", "float16"] as const) {
    const x = leaves.of(dtype, [6, 8]);
    const [words] = kernelsOf(captureOf([o.flip(x, [1])]), plain);
    assert.ok(!words.rendered.source.includes("atomic"), words.rendered.source);
    const values = new Values();
    const c = axis("c", 10);
    const value = values.make({ kind: "load", dtype, slot: 0, index: c });
    const spread: Kernel = {
      ...sumOfLoads(1, dtype),
      stages: [{ stores: [{ buffer: 1, index: constantIndex(0), value }], reductions: [], columns: [], rowStores: [] }],
    };
    assert.match(renderWgsl(spread, plain).source, /atomicOr/);
    if (dtype === "float16") assert.ok(!renderWgsl(spread, { ...plain, f16: true }).source.includes("atomic"));
  }
});

test("memory holds the CPU's bytes, rounded up to words; scalars are packed after the head", () => {
  assert.deepEqual(
    (["bool", "float16", "int32"] as const).map((d) => storageBytes(d, 5)),
    [8, 12, 20],
  );
  const words = packUniforms(["float32", "int32", "bool", "uint8", "float16"], {
    length: 9,
    firstCheck: 2,
    scalars: [0.5, -1, 3, 257, 1 / 3],
  });
  assert.deepEqual([...words], [9, 2, 0x7f800000, 0, 0x3f000000, 0xffffffff, 1, 1, 0x3eaaa000, 0, 0, 0]);
});
