/**
 * What the `webgpu` backend owes beyond what all backends owe: limits met by splitting, memory taken again and zeroed, a
 * lost device and missing memory said clearly, types that WGSL has not refused. Results are in the shared test bodies.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { referenceBackend } from "../../../src/backends/reference/index.ts";
import { openWebGpuBackend, type WebGpuBackend, type WebGpuOptions } from "../../../src/backends/webgpu/index.ts";
import { Allocator, Arena, sizeClass } from "../../../src/backends/webgpu/memory.ts";
import { BackendError, DTypeError, IndexError } from "../../../src/core/errors.ts";
import type { Node } from "../../../src/graph/node.ts";
import * as o from "../../../src/graph/ops.ts";
import { orReason } from "../../support/backends.ts";
import { captureOf, compileNodes, evaluate, nodeFrom } from "../../support/evaluate.ts";
import { assertClose, tolerances } from "../../support/fixtures.ts";

const open = (options?: WebGpuOptions): Promise<WebGpuBackend | string> => orReason(openWebGpuBackend(options));
const opened = await open();
const skip = typeof opened === "string" ? opened : false;
const backend = opened as WebGpuBackend;
const reference = referenceBackend();

const wave = (n: number, k = 1): Float32Array => Float32Array.from({ length: n }, (_, i) => Math.sin(k * i + 0.3));

/** The same roots on both backends. */
async function compare(
  on: WebGpuBackend,
  build: (leaf: (n: number, shape: number[]) => Node) => Node[],
): Promise<void> {
  const [got, expected] = await Promise.all(
    [on, reference].map((b) => {
      let k = 0;
      return evaluate(
        b,
        build((n, shape) => nodeFrom(b, wave(n, ++k), shape, "float32")),
      );
    }),
  );
  got.forEach((values, i) => {
    assertClose(`root ${i}`, values, expected[i], { rtol: 1e-4, atol: tolerances.float32.atol * 10 });
  });
}

test("an operation of more operands than a kernel binds is split", { skip }, async () => {
  const small = (await open({ limits: { storageBuffers: 8 } })) as WebGpuBackend;
  await compare(small, (leaf) => {
    const list = Array.from({ length: 40 }, () => leaf(6, [2, 3]));
    const sum = list.reduce((a, b) => o.add(a, o.sin(b)));
    const joined = o.concat(list, 0);
    const rows = o.sum(o.mul(joined, joined), 1);
    return [sum, joined, rows, o.sum(o.concat(list.slice(0, 9), 1), 0)];
  });
  small.device.gpu.destroy();
});

test("temporaries larger than a buffer are spread over several", { skip }, async () => {
  const small = (await open({ limits: { bufferBytes: 1 << 20 } })) as WebGpuBackend;
  const program = await small.compile(captureOf(chainOf((n, shape) => nodeFrom(small, wave(n), shape, "float32"))));
  assert.match(program.describe("memory"), /^[2-9] segments/);
  await compare(small, chainOf);
  small.device.gpu.destroy();
});

/** Running sums of 600,000 bytes each, of which several live side by side. */
function chainOf(leaf: (n: number, shape: number[]) => Node): Node[] {
  const a = leaf(300 * 500, [300, 500]);
  const parts = [1, 2, 3, 4, 5].map((k) => o.cumsum(o.mul(a, k), 1));
  return [parts.map((p) => o.cumsum(o.mul(p, 1e-3), 0)).reduce((x, y) => o.add(x, y))];
}

test("memory that is not there is said to be missing, with what was asked and what is held", async () => {
  let told: Error | null = null;
  const scopes: string[] = [];
  const gpu = {
    pushErrorScope: (kind: string) => scopes.push(kind),
    popErrorScope: async () => ({ message: "no" }),
    createBuffer: () => ({}),
  };
  const limits = { bufferBytes: 2 ** 32, bindingBytes: 2 ** 32, storageBuffers: 8, workgroupBytes: 16384 };
  const device = { gpu, limits, check: () => {}, blame: (e: Error) => (told ??= e) };
  const allocator = new Allocator(device as never);
  allocator.allocate(100 * 2 ** 20);
  await new Promise((resolve) => setImmediate(resolve));
  assert.deepEqual(scopes, ["out-of-memory"]);
  assert.match(
    String(told),
    /out of memory: 112 MiB for a tensor were asked for, beside 0.000 MiB already held .*largest buffer: 4096 MiB/,
  );
});

test("tensors larger than a buffer or a binding are refused, with both sizes", { skip }, async () => {
  const small = (await open({ limits: { bufferBytes: 1 << 20, bindingBytes: 1 << 16 } })) as WebGpuBackend;
  assert.throws(() => small.allocate(1 << 21), /2097152 bytes; this adapter's largest has 1048576/);
  const x = nodeFrom(small, wave(1 << 15), [1 << 15], "float32");
  await assert.rejects(compileNodes(small, [o.sin(x)]), /131072 bytes at once; this adapter binds at most 65536/);
  small.device.gpu.destroy();
});

test("bias and activation, a residual and a state in place follow a product in its own dispatch", {
  skip,
}, async () => {
  const build = (leaf: (n: number, shape: number[]) => Node): Node[] => {
    const [x, w, b, y] = [leaf(70 * 40, [70, 40]), leaf(40 * 50, [40, 50]), leaf(50, [50]), leaf(70 * 50, [70, 50])];
    const h = o.add(o.matmul(x, w), o.expandTo(b, [70, 50]));
    const batched = o.matmul(o.reshape(x, [2, 35, 40]), o.expandTo(w, [2, 40, 50]));
    return [o.add(o.tanh(h), y), o.mul(o.matmul(x, w), 0.5), o.sin(o.mul(batched, 3))];
  };
  await compare(backend, build);
  const program = await backend.compile(captureOf(build((n, shape) => nodeFrom(backend, wave(n), shape, "float32"))));
  assert.equal(program.stats.kernels, 2, program.describe("kernels"));
  const states: ArrayLike<number>[] = [];
  for (const on of [backend, reference]) {
    const state = nodeFrom(on, wave(64 * 32), [64, 32], "float32");
    const [a, b] = [nodeFrom(on, wave(64 * 20), [64, 20], "float32"), nodeFrom(on, wave(640), [20, 32], "float32")];
    await evaluate(on, [], [{ target: state, value: o.sub(state, o.mul(o.matmul(a, b), 0.1)) }]);
    states.push((await evaluate(on, [state]))[0]);
  }
  assertClose("the state", states[0], states[1], { rtol: 1e-5, atol: 1e-5 });
});

test("every dispatch keeps to the number of workgroups along an axis", { skip }, async () => {
  const many = 65535 * 64 * 8 + 77;
  const x = o.iota([many], 0);
  const [got] = await evaluate(backend, [o.reduceMax(x, 0)]);
  assert.equal(got[0], many - 1);
});

test("memory that nobody reaches is taken again for a request of its size", { skip }, async () => {
  const allocator = new Allocator(backend.device);
  for (const bytes of [10, 1000, 100_000]) {
    const first = allocator.allocate(bytes);
    allocator.write(first, new Uint8Array(bytes).fill(7));
    assert.deepEqual(new Uint8Array(await allocator.read(first, bytes)), new Uint8Array(bytes).fill(7));
    (allocator as unknown as { release(place: unknown): void }).release(first.place);
    const second = allocator.allocate(bytes);
    assert.equal(second.place, first.place);
    allocator.write(second, new Uint8Array(bytes - 3).fill(9));
    const expected = new Uint8Array(bytes).fill(9, 0, bytes - 3);
    const got = new Uint8Array(await allocator.read(second, bytes));
    assert.deepEqual(got.subarray(0, bytes - 3), expected.subarray(0, bytes - 3));
  }
});

test("size classes hold what is asked for, at places where a binding may begin, and waste at most a half", () => {
  for (let bytes = 1; bytes < 1e7; bytes = Math.ceil(bytes * 1.13)) {
    const size = sizeClass(bytes);
    assert.ok(size >= bytes && size % 256 === 0 && (size <= 2 * bytes || size === 256), `${bytes}: ${size}`);
    assert.equal(sizeClass(size), size);
  }
});

test("the arena keeps its buffers and grows to the largest program", { skip }, () => {
  const arena = new Arena(new Allocator(backend.device));
  const [a] = arena.reserve([1000]);
  assert.equal(arena.reserve([500])[0], a);
  assert.notEqual(arena.reserve([100_000])[0], a);
});

test("float64 is refused by name", { skip }, async () => {
  const x = nodeFrom(backend, wave(3), [3], "float32");
  await assert.rejects(
    compileNodes(backend, [o.cast(x, "float64")]),
    (e) => e instanceof DTypeError && /float64.*float32/.test(e.message),
  );
});

test("a run that cannot fail reads nothing back; one that can brings its failure with the results", {
  skip,
}, async () => {
  const x = nodeFrom(backend, wave(4), [4], "float32");
  const index = nodeFrom(backend, [0, 9], [2], "int32");
  /** What a run gives back: nothing, or a promise. */
  const begin = async (root: Node): Promise<{ result: void | Promise<void> }> => {
    const capture = captureOf([root]);
    const program = await backend.compile(capture);
    const buffers = capture.storages.map((s) => s.memory);
    return { result: program.run({ buffers, scalars: new Float64Array(0), outputs: [backend.allocate(16)] }) };
  };
  assert.equal((await begin(o.sin(x))).result, undefined);
  await assert.rejects((await begin(o.take(x, 0, index))).result as Promise<void>, IndexError);
  // the next run starts with a clean word
  assert.deepEqual(await evaluate(backend, [o.take(x, 0, nodeFrom(backend, [3], [1], "int32"))]), [wave(4).slice(3)]);
});

test("a lost device is said to be lost, by whatever is asked of it", { skip }, async () => {
  const lost = (await open()) as WebGpuBackend;
  const x = nodeFrom(lost, wave(8), [8], "float32");
  const { run } = await compileNodes(lost, [o.sin(x)]);
  await run();
  lost.device.gpu.destroy();
  const isLoss = (e: unknown): boolean =>
    e instanceof BackendError && /the device was lost \(it was destroyed\).*checkpoint/.test(e.message);
  await assert.rejects(run(), isLoss);
  await assert.rejects(async () => lost.read(x.storage?.memory, "float32", 8), isLoss);
  await assert.rejects(compileNodes(lost, [o.cos(x)]), isLoss);
  assert.throws(() => lost.allocate(16), isLoss);
});

test("a read that is under way when the device is lost is told so", { skip }, async () => {
  const lost = (await open()) as WebGpuBackend;
  const x = nodeFrom(lost, wave(1 << 16), [1 << 16], "float32");
  const reading = lost.read(x.storage?.memory, "float32", 1 << 16) as Promise<unknown>;
  lost.device.gpu.destroy();
  await assert.rejects(reading, /the device was lost/);
});
