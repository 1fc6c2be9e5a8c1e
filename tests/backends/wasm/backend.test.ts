/**
 * What only the wasm backend promises: the same bits at any number of threads, a memory that says when it is full, and a
 * thread that fails without taking the process with it.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { Backend } from "../../../src/backends/backend.ts";
import { referenceBackend } from "../../../src/backends/reference/index.ts";
import { openWasmBackend } from "../../../src/backends/wasm/index.ts";
import { PHASE, PROGRAM } from "../../../src/backends/wasm/layout.ts";
import { Machine } from "../../../src/backends/wasm/machine.ts";
import { Heap } from "../../../src/backends/wasm/memory.ts";
import { conv } from "../../../src/graph/composites/index.ts";
import * as o from "../../../src/graph/ops.ts";
import { compileNodes, nodeFrom } from "../../support/evaluate.ts";
import { bytesOf, recordsFrom } from "../cpu/program.records.ts";
import { oneFill } from "./one-fill.ts";

describe("the same bits at 0, 1, 2, 3 and 7 threads", async () => {
  const records = recordsFrom(1, 4);
  // large enough that threads are really used
  records["a product with a sum over rows and columns"] = (b) => {
    const numbers = Float32Array.from({ length: 256 * 300 }, (_, i) => Math.sin(i));
    const a = nodeFrom(b, numbers, [256, 300], "float32");
    const c = o.contract(a, o.permute(a, [1, 0]));
    return { roots: [o.sum(o.exp(o.mul(c, 0.01)), [0]), o.sum(c, [1]), c], assigns: [], states: [] };
  };
  const backends = await Promise.all([0, 1, 2, 3, 7].map((threads) => openWasmBackend({ threads })));
  for (const [name, record] of Object.entries(records))
    test(name, async () => {
      const expected = await bytesOf(backends[0], record, 2);
      for (const backend of backends.slice(1)) {
        const got = await bytesOf(backend, record, 2);
        got.forEach((bytes, i) => {
          assert.ok(bytes.equals(expected[i]), `value ${i} differs`);
        });
      }
    });
});

describe("memory", () => {
  test("what is given back is given out again, neighbours joined", () => {
    const heap = new Heap(false);
    const [a, b, c] = [heap.take(1000), heap.take(1000), heap.take(1000)];
    heap.free(a, 1000);
    heap.free(c, 1000);
    heap.free(b, 1000);
    assert.equal(heap.bytesInUse, 0);
    assert.equal(heap.take(3000), a);
    assert.ok(heap.take(64) >= a + 3000);
  });

  test("grows, keeps what is there, and says what was asked for and what there is where it can't", () => {
    const heap = new Heap(false);
    const a = heap.take(100);
    heap.view(a, 100).fill(5);
    const large = heap.take(50 << 20);
    assert.ok(heap.view(a, 100).every((byte) => byte === 5));
    assert.equal(heap.view(large, 50 << 20).length, 50 << 20);
    const inUse = heap.bytesInUse;
    assert.throws(() => heap.take(5 * 2 ** 30), {
      name: "BackendError",
      message: /out of memory: 5120 MiB were asked for, 50 MiB are held, and the memory can't grow beyond \d+ MiB here/,
    });
    assert.equal(heap.bytesInUse, inUse);
  });
});

test("kernels that need more scratch than threads have at first are given it: nothing else is overwritten", async () => {
  const backend = await openWasmBackend({ threads: 2 });
  // whole numbers, of which every sum is exact: 1024 · 3 · 3 inputs for each output take more than twice the first scratch
  const whole = (length: number): Float32Array => Float32Array.from({ length }, (_, i) => ((i * 7919) % 5) - 2);
  const [x, w] = [whole(2 * 8 * 8 * 1024), whole(8 * 1024 * 3 * 3)];
  const attrs = { stride: [1, 1], low: [1, 1], high: [1, 1], dilation: [1, 1], groups: 1 };
  const product = (b: Backend) =>
    conv(nodeFrom(b, x, [2, 8, 8, 1024], "float32"), nodeFrom(b, w, [8, 1024, 3, 3], "float32"), attrs);
  const a = nodeFrom(backend, whole(2 ** 20), [2 ** 20], "float32");
  await (await compileNodes(backend, [o.mul(a, a)])).run(); // has taken the first scratch: what follows lies behind it
  const behind = Array.from({ length: 16 }, () => backend.allocate(2 ** 20));
  for (const memory of behind) backend.write(memory, new Uint8Array(2 ** 20).fill(5));
  const [got] = await (await compileNodes(backend, [product(backend)])).run();
  const exact = referenceBackend();
  const [expected] = await (await compileNodes(exact, [product(exact)])).run();
  assert.deepEqual(got, expected);
  for (const memory of behind) {
    const bytes = await backend.read(memory, "uint8", 2 ** 20);
    assert.ok(bytes.every((byte) => byte === 5));
  }
});

test("a thread that fails ends the run with an error, and the next run has new threads", async () => {
  const machine = await Machine.open(2);
  const nothing = 63; // an entry of the table that no module has filled
  await assert.rejects(
    machine.runThreads(oneFill(machine.heap, nothing), 0),
    /wasm: a thread failed in the middle of a run/,
  );
  const fill = oneFill(machine.heap, machine.builtin("fill"));
  await machine.runThreads(fill, 0);
  assert.deepEqual([...machine.heap.view(fill + 448, 17)], [...new Array(16).fill(9), 0]);
});

test("a thread that is late out of a run does not stay in it", async () => {
  // more threads than cores, and nothing to do but to meet
  const machine = await Machine.open(7);
  const fill = oneFill(machine.heap, machine.builtin("fill"));
  for (let i = 0; i < 3000; i++) {
    const words = new Int32Array(machine.heap.memory.buffer, fill, 128);
    words[(PROGRAM.bytes + PHASE.next) >> 2] = 0;
    words[PROGRAM.at >> 2] = fill + PROGRAM.bytes;
    await machine.runThreads(fill, 0);
  }
  assert.deepEqual([...machine.heap.view(fill + 448, 17)], [...new Array(16).fill(9), 0]);
});
