/**
 * The wasm backend without threads and without shared memory, as on a page that is not cross-origin isolated: the same bits
 * over the whole table of primitives. (Training steps and random programs: backend.test.ts, at 0 threads.)
 */
import assert from "node:assert/strict";
import { resolveObjectURL } from "node:buffer";
import { describe, test } from "node:test";
import { Worker } from "node:worker_threads";
import { engine } from "../../../src/backends/wasm/engine.ts";
import { openWasmBackend } from "../../../src/backends/wasm/index.ts";
import { Machine } from "../../../src/backends/wasm/machine.ts";
import { Heap } from "../../../src/backends/wasm/memory.ts";
import { encodeRuntime } from "../../../src/backends/wasm/runtime.ts";
import { startThread } from "../../../src/backends/wasm/thread.browser.ts";
import type { Answer } from "../../../src/backends/wasm/worker.ts";
import type { TypedArray } from "../../../src/core/dtype.ts";
import { compileNodes } from "../../support/evaluate.ts";
import { type Case, fixture, nodeOf } from "../../support/primitives.ts";
import { oneFill } from "./one-fill.ts";

describe("without threads and shared memory", async () => {
  const alone = await openWasmBackend({ threads: 0 });
  const threaded = await openWasmBackend({ threads: 2 });
  const groups = new Map<string, Case[]>();
  for (const c of fixture.cases) {
    const group = `${c.row} ${c.dtype}`;
    groups.set(group, [...(groups.get(group) ?? []), c]);
  }
  const rows = new Set(fixture.cases.map((c) => c.row));
  for (const row of rows)
    test(`${row} has the same bits`, async () => {
      for (const [group, cases] of groups) {
        if (!group.startsWith(`${row} `)) continue;
        const [expected, got] = await Promise.all(
          [threaded, alone].map(async (backend): Promise<TypedArray[]> => {
            const roots = cases.map((c) => nodeOf(backend, c)).filter((node) => !node.storage);
            return roots.length ? (await compileNodes(backend, roots)).run() : [];
          }),
        );
        const bytes = (x: TypedArray): Uint8Array => new Uint8Array(x.buffer, x.byteOffset, x.byteLength);
        got.forEach((x, i) => {
          assert.deepEqual(bytes(x), bytes(expected[i]), `${group}, result ${i}`);
        });
      }
    });

  test("memory is not shared, and that threads were asked for is an error where it can't be", async () => {
    assert.ok((await Machine.open(0)).heap.memory.buffer instanceof ArrayBuffer);
    const { SharedArrayBuffer: shared } = globalThis;
    try {
      Reflect.deleteProperty(globalThis, "SharedArrayBuffer");
      await assert.rejects(openWasmBackend({ threads: 2 }), {
        name: "BackendError",
        message: /no threads here: a browser shares memory only where the page is cross-origin isolated/,
      });
      assert.equal((await openWasmBackend({ threads: 0 })).threads, 0);
    } finally {
      globalThis.SharedArrayBuffer = shared;
    }
  });
});

/** A browser's Worker over Node's: the script of a blob, `self` and events, no `require`. */
class PageWorker {
  readonly #listeners: ((event: { data: unknown }) => void)[] = [];
  readonly #worker: Promise<Worker>;

  constructor(url: string) {
    this.#worker = (resolveObjectURL(url) as Blob).text().then((source) => {
      const page = `{
        const { parentPort } = require("node:worker_threads");
        globalThis.self = globalThis;
        globalThis.postMessage = (data) => parentPort.postMessage(data);
        parentPort.on("message", (data) => self.onmessage({ data }));
      }
      ((require, module, process) => {${source}})();`;
      const worker = new Worker(page, { eval: true, execArgv: [] });
      worker.on("message", (data) => {
        for (const listener of this.#listeners) listener({ data });
      });
      return worker;
    });
  }

  addEventListener(type: string, listener: (event: { data: unknown }) => void): void {
    if (type === "message") this.#listeners.push(listener);
  }

  postMessage(message: unknown): void {
    void this.#worker.then((worker) => worker.postMessage(message));
  }

  terminate(): void {
    void this.#worker.then((worker) => worker.terminate());
  }
}

test("a thread as a browser starts it takes modules and runs programs", async () => {
  const page = globalThis as { Worker?: unknown };
  const before = page.Worker;
  page.Worker = PageWorker;
  try {
    const thread = await startThread();
    const heap = new Heap(true);
    const answers: Answer[] = [];
    const answered = (kind: Answer["kind"]): Promise<void> =>
      new Promise((resolve, reject) => {
        thread.onMessage((a) => {
          if (a.kind === kind) resolve();
          else if (a.kind === "failed") reject(new Error(a.reason));
        });
      });
    thread.onMessage((a) => answers.push(a));
    const ready = answered("ready");
    thread.postMessage({ kind: "start", memory: heap.memory, tid: 0, team: 1 });
    await ready;
    const runtime = encodeRuntime(heap);
    const slots = [...runtime.kernels.values()];
    thread.postMessage({ kind: "add", module: await engine.compile(runtime.bytes), slots });
    const done = answered("done");
    const fill = oneFill(heap, runtime.kernels.get("fill") as number);
    thread.postMessage({ kind: "run", program: fill });
    await done;
    assert.deepEqual([...heap.view(fill + 448, 17)], [...new Array(16).fill(9), 0]);
    assert.deepEqual(answers, [{ kind: "ready" }, { kind: "done" }]);
    await thread.terminate();
  } finally {
    page.Worker = before;
  }
});
