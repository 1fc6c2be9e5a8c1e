/**
 * Programs that leave the cache on wasm take nothing with them: entries of the table of kernels are given out again, the
 * memory of their commands too, and modules can be collected, in the calling thread and in workers.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { MessageChannel, type MessagePort, Worker } from "node:worker_threads";
import { type CompiledModule, engine } from "../../../src/backends/wasm/engine.ts";
import { hostFunctions } from "../../../src/backends/wasm/host.ts";
import type { WasmBackend } from "../../../src/backends/wasm/index.ts";
import { Instances } from "../../../src/backends/wasm/instances.ts";
import { Heap } from "../../../src/backends/wasm/memory.ts";
import { Module } from "../../../src/backends/wasm/module.ts";
import { encodeRuntime } from "../../../src/backends/wasm/runtime.ts";
import { workerSource } from "../../../src/backends/wasm/worker.ts";
import { cacheCapacity } from "../../../src/execution/cache.ts";
import { backendOf } from "../../../src/execution/index.ts";
import { tensor } from "../../../src/tensor/index.ts";

setFlagsFromString("--expose-gc");
const gc = runInNewContext("gc") as () => void;
const turn = () => new Promise((resolve) => setTimeout(resolve, 5));

/** Collects until `count` is at most `limit`, or for a while. */
async function collectUntil(count: () => number, limit: number): Promise<void> {
  for (let i = 0; i < 100 && count() > limit; i++) {
    gc();
    await turn();
  }
}

/** Each makes two programs: a quarter of them fills the cache already. NABLA_LONG=1 runs more. */
const count = process.env["NABLA_LONG"] === "1" ? 2000 : 800;
const early = count / 4;

describe(`${count} times two programs, of which the cache keeps the last`, () => {
  test("leave a table, a memory and modules of bounded size", async () => {
    const backend = (await backendOf("wasm")) as WasmBackend;
    let modules = 0;
    let compiled = 0;
    const collected = new FinalizationRegistry(() => modules--);
    const { compile } = engine;
    engine.compile = async (bytes) => {
      const module = await compile.call(engine, bytes);
      modules++;
      compiled++;
      collected.register(module as object, null);
      return module;
    };
    // no two have a kernel in common: a length is in a kernel's text
    const program = async (n: number): Promise<void> => {
      const x = tensor(new Float32Array(n + 2).fill(0.5), { device: "wasm" });
      const [first, last] = [await x.mul(x).add(n).at(0).item(), await x.cumsum(0).at(-1).item()];
      assert.deepEqual([first, last], [n + 0.25, (n + 2) / 2]);
    };
    const after: { entries: number; memory: number }[] = [];
    for (let n = 0; n < count; n++) {
      await program(n);
      if (n + 1 === early || n + 1 === count) {
        await collectUntil(() => modules, cacheCapacity + 10);
        after.push({ entries: backend.tableLength, memory: backend.heldMemory });
        assert.ok(modules <= cacheCapacity + 10, `${modules} modules are held after ${n + 1} programs`);
      }
    }
    engine.compile = compile;
    assert.ok(compiled >= count, `${compiled} modules`);
    assert.equal(after[1].entries, after[0].entries);
    assert.ok(after[1].memory <= 1.1 * after[0].memory, `${after[1].memory} bytes, ${after[0].memory} before`);
    // what was evicted comes back
    await program(3);
  });
});

/** A module with one kernel that stores `value` into its first buffer. */
async function storing(heap: Heap, value: number) {
  const m = new Module(heap);
  const f = m.function(["i32", "i32", "i32", "i32"]);
  f.store("i32", f.args[0], value);
  m.kernel(f);
  return engine.compile(m.encode());
}

describe("a thread's instances", () => {
  test("go with their entries in the calling thread", async () => {
    const heap = new Heap(false);
    const runtime = encodeRuntime(heap);
    const slots = [...runtime.kernels.values()];
    const instances = new Instances(heap.memory, hostFunctions, await engine.compile(runtime.bytes), slots);
    let held = 0;
    const registry = new FinalizationRegistry(() => held--);
    const slot = slots.length;
    const add = (module: CompiledModule): void => {
      registry.register(instances.add(module, [slot]), null);
      held++;
    };
    for (let i = 0; i < 50; i++) {
      add(await storing(heap, i));
      if (i % 2) instances.drop([slot]);
    }
    await collectUntil(() => held, 0);
    assert.equal(held, 0);
  });

  test("go with their entries in workers", async () => {
    const heap = new Heap(true);
    const runtime = encodeRuntime(heap);
    const slots = [...runtime.kernels.values()];
    // in front of what every worker does: count instances
    const counting = `{
      require("node:v8").setFlagsFromString("--expose-gc");
      const gc = require("node:vm").runInNewContext("gc");
      const { port } = require("node:worker_threads").workerData;
      let held = 0;
      const registry = new FinalizationRegistry(() => held--);
      const { Instance } = WebAssembly;
      WebAssembly.Instance = function (...args) {
        const instance = new Instance(...args);
        held++;
        registry.register(instance, null);
        return instance;
      };
      port.on("message", async () => {
        for (let i = 0; i < 20; i++) {
          gc();
          await new Promise((resolve) => setTimeout(resolve, 5));
        }
        port.postMessage(held);
      });
    }\n`;
    const { port1, port2 } = new MessageChannel();
    const worker = new Worker(counting + workerSource('require("node:worker_threads").parentPort'), {
      eval: true,
      execArgv: [],
      workerData: { port: port2 },
      transferList: [port2],
    });
    const failed: string[] = [];
    worker.on("message", (a: { kind: string; reason?: string }) => {
      if (a.kind === "failed") failed.push(a.reason ?? "");
    });
    const held = (port: MessagePort): Promise<number> =>
      new Promise((resolve) => {
        port.once("message", resolve);
        port.postMessage(null);
      });
    worker.postMessage({ kind: "start", memory: heap.memory, tid: 0, team: 1 });
    worker.postMessage({ kind: "add", module: await engine.compile(runtime.bytes), slots });
    for (let i = 0; i < 50; i++) {
      worker.postMessage({ kind: "add", module: await storing(heap, i), slots: [slots.length] });
      worker.postMessage({ kind: "drop", slots: [slots.length] });
    }
    assert.equal(await held(port1), 1, "the runtime's alone is left");
    assert.deepEqual(failed, []);
    port1.close();
    await worker.terminate();
  });
});
