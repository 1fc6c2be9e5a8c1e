/** How many programs steps make, and that nothing grows: one program for a thousand steps, flat memory, no deep recursion. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { cacheCapacity, flush, programCounts, setDevice } from "../../src/execution/index.ts";
import { arange, asState, manualSeed, noGrad, randn, type Tensor, tensor, zeros } from "../../src/tensor/index.ts";

const device = "reference";
setDevice(device);

/** A two-layer regression trained with Adam: what an optimiser does, by hand. */
function trainer(): (i: number) => Tensor {
  manualSeed(1);
  const params = [randn([4, 8]).mul(0.5), zeros([8]), randn([8, 1]).mul(0.5)].map((p) => p.detach().requiresGrad_());
  const [m, v] = [0, 1].map(() => params.map((p) => asState(zeros(p.shape))));
  return (i) => {
    const x = randn([16, 4]);
    const y = x.sum({ dim: 1, keepdim: true });
    const loss = x.matmul(params[0]).add(params[1]).relu().matmul(params[2]).sub(y).square().mean();
    loss.backward();
    const lr = 0.01 / (1 + i / 500); // a schedule: another number every step
    noGrad(() => {
      params.forEach((p, k) => {
        const g = p.grad as Tensor;
        m[k].mul_(0.9).add_(g, { alpha: 0.1 });
        v[k].mul_(0.999).addcmul_(g, g, { value: 0.001 });
        const denominator = v[k]
          .div(1 - 0.999 ** (i + 1))
          .sqrt()
          .add(1e-8);
        p.addcdiv_(m[k], denominator, { value: -lr / (1 - 0.9 ** (i + 1)) });
        p.grad = null;
      });
    });
    return loss;
  };
}

describe("programs", () => {
  it("a thousand steps under a schedule, with fresh random numbers, are one program", async () => {
    const step = trainer();
    const first = step(0);
    flush(device);
    const start = await first.item();
    const { made } = programCounts(device);
    let last = first;
    for (let i = 1; i < 1000; i++) {
      last = step(i);
      flush(device);
    }
    assert.equal(programCounts(device).made, made);
    const end = await last.item();
    assert.ok(end < start / 10, `the loss went from ${start} to ${end}`);
  });

  it("going through rows and batches by number is one program each", async () => {
    const x = arange(0, 40).float().reshape(20, 2);
    await x.data();
    const before = programCounts(device).made;
    for (let i = 1; i < 18; i++) {
      assert.deepEqual(await x.at(i).tolist(), [2 * i, 2 * i + 1]);
    }
    assert.equal(programCounts(device).made, before + 1);
  });

  it("numbers of every operation are no part of the program", async () => {
    const x = tensor([1, 2, 3]);
    const run = (a: number): Promise<unknown> =>
      x.add(a).mul(a).div(a).clamp(-a, a).maximum(a).lerp(x, a).maskedFill(x.gt(a), a).data();
    await run(0.5);
    const before = programCounts(device).made;
    for (const a of [1, 2.5, -3, 1e-9, 7]) await run(a);
    assert.equal(programCounts(device).made, before);
  });

  it("shapes, constants and which leaves share memory are part of the program", async () => {
    const made = async (x: Tensor): Promise<number> => {
      const before = programCounts(device).made;
      await x.data();
      return programCounts(device).made - before;
    };
    const [a, b] = [tensor([1, 2, 3, 4]), tensor([5, 6, 7, 8])];
    await a.add(b).tanh().data();
    assert.equal(await made(b.add(a).tanh()), 0);
    assert.equal(await made(a.add(a).tanh()), 1);
    assert.equal(await made(a.tanh().add(b.tanh())), 1);
    assert.equal(await made(a.pow(3).tanh()), 1);
    assert.equal(await made(a.pow(4).tanh()), 1);
    assert.equal(await made(a.reshape(2, 2).add(b.reshape(2, 2)).tanh()), 1);
  });

  it("the cache holds no more than its capacity, and the values stay right", async () => {
    const wave = tensor([1, 2]);
    for (let n = 1; n <= cacheCapacity + 40; n++)
      assert.equal(
        (
          await wave
            .add(zeros([n, 2]))
            .sum()
            .data()
        )[0],
        3 * n,
      );
    assert.ok(programCounts(device).held <= cacheCapacity);
    assert.ok(programCounts(device).evicted >= 40);
  });

  it("ten thousand steps leave memory as four thousand left it", async () => {
    const step = trainer();
    setFlagsFromString("--expose-gc");
    const collect = runInNewContext("gc") as () => void;
    const settle = (): number => {
      collect();
      return process.memoryUsage().heapUsed + process.memoryUsage().arrayBuffers;
    };
    let total = zeros([]);
    // the running sum's chain is cut every 2,000 operations: compare after whole multiples
    let at4000 = 0;
    for (let i = 0; i < 10_000; i++) {
      total = total.add(step(i).detach()); // a running sum that nobody reads until the end
      flush(device);
      if (i === 3999) at4000 = settle();
    }
    const grown = settle() - at4000;
    assert.ok(grown < 1e6, `memory grew by ${(grown / 1e6).toFixed(1)} MB`);
    assert.ok(Number.isFinite(await total.item()));
  });

  it("chains of 50,000 operations are recorded, flushed and differentiated without deep recursion", async () => {
    const w = tensor([1], { requiresGrad: true });
    let x: Tensor = w.mul(1);
    for (let i = 0; i < 50_000; i++) x = x.add(1);
    x.backward();
    assert.deepEqual([await x.item(), await w.grad?.item()], [50_001, 1]);
  });
});
