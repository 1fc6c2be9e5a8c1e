/**
 * Losing a worker in the middle of a training step, and memory that does not suffice: a clear error, checkpoints that stay
 * whole, and a process that goes on.
 */
import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import type { Worker } from "node:worker_threads";
import { openWasmBackend, type WasmBackend } from "../../../src/backends/wasm/index.ts";
import { backendOf, registerBackend, setDevice } from "../../../src/execution/index.ts";
import { nn, optim, synchronize } from "../../../src/index.ts";
import { getRngState, manualSeed, ones, rand, randn, setRngState, type Tensor } from "../../../src/tensor/index.ts";
import { latestCheckpoint, writeCheckpoint } from "../../../src/train/checkpoint-folder.ts";
import { packCheckpoint, readCheckpoint } from "../../../src/train/saved.ts";

registerBackend("wasm", () => openWasmBackend({ threads: 2 }));
setDevice("wasm");

/** Every worker thread that was started, in order. */
const workers: Worker[] = [];
process.on("worker", (worker) => workers.push(worker));

describe("a worker that dies in the middle of a training step", () => {
  /** A step of this takes long enough to be hit. */
  const trainer = () => {
    const model = new nn.Sequential(new nn.Linear(512, 512), new nn.Tanh(), new nn.Linear(512, 512));
    const optimizer = new optim.AdamW(model.parameters(), { lr: 1e-3 });
    const [x, y] = [randn([4096, 512]), randn([4096, 512])];
    const step = async (): Promise<number> => {
      optimizer.zeroGrad();
      const loss = nn.functional.mseLoss(nn.functional.dropout(model.forward(x), 0.1), y);
      loss.backward();
      await optimizer.step();
      return loss.item();
    };
    const save = async (folder: string, step: number): Promise<void> => {
      const rest = { step, epoch: 0, inEpoch: 0, random: getRngState(), data: null, scheduler: null, callbacks: {} };
      await writeCheckpoint(
        folder,
        step,
        await packCheckpoint(model.stateDict(), { ...rest, optimizer: optimizer.stateDict() }),
      );
    };
    const load = async (folder: string): Promise<void> => {
      const latest = await latestCheckpoint(folder);
      assert.ok(latest && latest.damaged.length === 0);
      const { model: weights, state } = await readCheckpoint(latest.path);
      model.loadStateDict(weights);
      optimizer.loadStateDict(state.optimizer as Parameters<typeof optimizer.loadStateDict>[0]);
      setRngState(state.random);
    };
    return { model, step, save, load };
  };
  const bits = async (model: nn.Module): Promise<Float32Array[]> =>
    Promise.all(Object.values(model.stateDict()).map(async (w: Tensor) => (await w.data()) as Float32Array));

  for (const [how, end] of [
    ["is terminated", (w: Worker) => w.terminate()],
    ["tells of an error of its own", (w: Worker) => w.emit("error", new Error("out of memory"))],
  ] as const)
    test(`${how}: the step rejects, and training goes on from the checkpoint as if nothing had been`, async () => {
      const folder = await mkdtemp(join(tmpdir(), "nabla-wasm-"));
      try {
        manualSeed(5);
        const { model, step, save, load } = trainer();
        await step();
        await step();
        await save(folder, 2);
        const expected = { losses: [await step(), await step()], weights: await bits(model) };
        await load(folder);
        const before = workers.length;
        const victim = workers[before - 1];
        const lost = step();
        const outcome = assert.rejects(lost, {
          name: "BackendError",
          message:
            /wasm: a thread failed in the middle of a run: .*States that the run was writing are undefined; load a checkpoint/,
        });
        await sleep(20);
        await end(victim);
        await outcome;
        await load(folder);
        const got = { losses: [await step(), await step()], weights: await bits(model) };
        assert.equal(workers.length, before + 2, "a new team");
        assert.deepEqual(got, expected);
      } finally {
        await rm(folder, { recursive: true });
      }
    });
});

describe("out of memory", () => {
  const message = (mib: number) =>
    new RegExp(
      `^wasm: out of memory: ${mib} MiB were asked for, \\d+ MiB are held, and the memory can't grow beyond \\d+ MiB here`,
    );

  test("a tensor that does not fit says what was asked for and what there is, and the backend goes on", async () => {
    const { largestMemory } = (await backendOf("wasm")) as WasmBackend;
    const x = rand([1000]);
    const before = await x.data();
    const rows = Math.ceil(largestMemory / 4 / 1000) + 1;
    await assert.rejects(x.expand(rows, 1000).add(1).data(), {
      name: "BackendError",
      message: message(Math.round((rows * 4000) / 2 ** 20)),
    });
    assert.deepEqual(await x.data(), before);
    assert.equal(await ones([1000, 1000]).sum().item(), 1e6);
  });

  test("temporaries that do not fit, a gradient's say, change no weight", async () => {
    const { largestMemory } = (await backendOf("wasm")) as WasmBackend;
    const width = 1024;
    const w = new nn.Parameter(ones([width, width]));
    const optimizer = new optim.SGD([w], { lr: 0.1 });
    const rows = Math.ceil(largestMemory / 4 / width);
    const x = ones([1, width]).expand(rows, width);
    const loss = x.matmul(w).relu().matmul(w).sum();
    loss.backward();
    // a step may only be begun when it returns; what became of it is told of at the latest here
    const stepped = async (): Promise<void> => {
      await optimizer.step();
      await synchronize();
    };
    await assert.rejects(stepped(), { name: "BackendError", message: /^wasm: out of memory: \d+ MiB were asked for/ });
    assert.equal(await w.sum().item(), width * width);
    // and the next step, of a size that fits, works
    optimizer.zeroGrad();
    ones([2, width]).matmul(w).sum().backward();
    await stepped();
    assert.ok(Math.abs(Number(await w.at(0, 0).item()) - 0.8) < 1e-6);
  });
});
