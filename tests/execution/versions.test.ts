/** Versions of state: what a flush promises to whoever reads before, after and across it, also when it fails. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { IndexError, StaleReadError } from "../../src/core/errors.ts";
import { enqueue, flush } from "../../src/execution/index.ts";
import { asState, noGrad, type Tensor, tensor } from "../../src/tensor/index.ts";
import { compiledCpu } from "./backends.ts";

const list = async (x: Tensor): Promise<number[]> => Array.from(await x.data());

const cpu = (await compiledCpu()).device;
for (const device of ["reference", "late", ...(cpu ? [cpu] : [])])
  describe(`state on ${device}`, () => {
    const state = (values: number[], name = ""): Tensor => {
      const x = asState(tensor(values, { device }));
      x.name = name;
      return x;
    };
    const ints = (values: number[]): Tensor => tensor(values, { device, dtype: "int32" });

    it("reads recorded before an assign mean the old value, also in the flush that assigns", async () => {
      const s = state([1, 2]);
      const before = s.mul(10);
      s.add_(1);
      const after = s.mul(10);
      s.mul_(2);
      await flush(device, [before.node, after.node]);
      assert.deepEqual(
        [await list(before), await list(after), await list(s)],
        [
          [10, 20],
          [20, 30],
          [4, 6],
        ],
      );
    });

    it("a read of a version that is gone throws StaleReadError with the operation, the state and the mend", async () => {
      const s = state([1, 2], "fc1.weight");
      const late = s.mul(10).sum();
      s.add_(1);
      await flush(device);
      await assert.rejects(late.data(), (error: Error) => {
        assert.ok(error instanceof StaleReadError);
        assert.match(error.message, /^mul \[2\] reads version 0 of "fc1\.weight" \(float32\[2\]\)/);
        assert.match(
          error.message,
          /it is at version 1 now.*Read the value before the step, or keep\(\) or clone\(\) it/,
        );
        return true;
      });
      assert.deepEqual(await list(s), [2, 3]);
    });

    it("a stale read leaves pending assigns as they are", async () => {
      const s = state([1]);
      const late = s.mul(10);
      s.add_(1);
      await flush(device);
      s.add_(1);
      await assert.rejects(late.data(), StaleReadError);
      assert.deepEqual(await list(s), [3]);
    });

    it("an assign of a stale value is refused, and the state keeps its value", async () => {
      const s = state([1], "w");
      const stale = s.mul(10);
      s.add_(1);
      await flush(device);
      s.copy_(stale);
      await assert.rejects(async () => flush(device), StaleReadError);
      assert.deepEqual(await list(s), [2]);
      s.add_(1);
      assert.deepEqual(await list(s), [3]);
    });

    it("keep and clone carry a value over the step", async () => {
      const s = state([1, 2]);
      const [kept, cloned] = [s.mul(10).keep(), s.clone()];
      s.zero_();
      await flush(device);
      assert.deepEqual(
        [await list(kept), await list(cloned), await list(s)],
        [
          [10, 20],
          [1, 2],
          [0, 0],
        ],
      );
    });

    it("only the last of several assigns writes, and the earlier ones count as versions", async () => {
      const s = state([1]);
      s.add_(1);
      const middle = s.mul(10);
      s.add_(1);
      assert.deepEqual(await list(s), [3]);
      assert.equal(s.node.storage?.version, 2);
      await assert.rejects(middle.data(), /reads version 1 of a state/);
    });

    it("what is computed in the step that writes a state reads the old value, wherever the kernels lie", async () => {
      const [a, b] = [state([1, 2]), state([10, 20])];
      const sum = a.add(b);
      a.copy_(b.mul(2));
      b.copy_(sum);
      await flush(device);
      assert.deepEqual(
        [await list(a), await list(b)],
        [
          [20, 40],
          [11, 22],
        ],
      );
    });

    it("two states exchange their values", async () => {
      const [a, b] = [state([1, 2]), state([3, 4])];
      const old = a.clone();
      a.copy_(b);
      b.copy_(old);
      await flush(device);
      assert.deepEqual(
        [await list(a), await list(b)],
        [
          [3, 4],
          [1, 2],
        ],
      );
    });

    it("a failed step leaves every state as it was, and the next one works", async () => {
      const [a, b] = [state([1, 2]), state([5])];
      const step = (index: number): void => {
        a.add_(1);
        b.copy_(a.at(ints([index])));
      };
      step(7);
      await assert.rejects(async () => flush(device), IndexError);
      assert.deepEqual([await list(a), await list(b)], [[1, 2], [5]]);
      assert.deepEqual([a.node.storage?.version, b.node.storage?.version], [0, 0]);
      step(1);
      assert.deepEqual([await list(a), await list(b)], [[2, 3], [3]]);
    });

    it("a failed read says why each time it is tried, and can be read once its cause is gone", async () => {
      const s = state([1, 2]);
      const bad = s.at(ints([2]));
      await assert.rejects(bad.data(), IndexError);
      await assert.rejects(bad.data(), IndexError);
      assert.deepEqual(await list(s.at(ints([1]))), [2]);
    });

    it("a first value that is computed arrives with the first flush, before any step", async () => {
      const s = asState(tensor([1, 2], { device }).mul(3));
      const before = s.add(0);
      s.add_(1);
      assert.deepEqual(
        [await list(before), await list(s)],
        [
          [3, 6],
          [4, 7],
        ],
      );
    });

    it("parameters stay leaves through steps", async () => {
      const w = tensor([1, 2], { device, requiresGrad: true });
      for (let i = 0; i < 3; i++) {
        w.mul(w).sum().backward();
        noGrad(() => w.sub_(w.grad?.mul(0.25) as Tensor));
        w.grad = null;
        await flush(device);
      }
      assert.ok(w.requiresGrad && w.isLeaf);
      assert.deepEqual(await list(w), [0.125, 0.25]);
    });
  });

describe("steps in flight", () => {
  const device = "late";

  it("one step runs while the next is recorded; a third waits for room", async () => {
    const s = asState(tensor([0], { device }));
    await flush(device);
    s.add_(1);
    assert.equal(enqueue(device), undefined);
    s.add_(1);
    const room = enqueue(device);
    assert.ok(room instanceof Promise);
    await room;
    s.add_(1);
    await enqueue(device);
    assert.deepEqual(await list(s), [3]);
  });

  it("a failure takes back the steps behind it, is told once, and leaves the state before it", async () => {
    const s = asState(tensor([1, 2], { device }));
    const step = (index: number): void => {
      s.copy_(s.at(tensor([index, index], { device, dtype: "int32" })).add(1));
    };
    await flush(device);
    step(1);
    await enqueue(device);
    step(5);
    await enqueue(device);
    step(0); // captured on top of a step that will fail
    await assert.rejects(async () => enqueue(device), IndexError);
    await flush(device);
    assert.deepEqual(await list(s), [3, 3]);
    assert.equal(s.node.storage?.version, 1);
    step(0);
    assert.deepEqual(await list(s), [4, 4]);
  });

  it("a read asked for before a step gives the value before it", async () => {
    const s = asState(tensor([1], { device }));
    await flush(device);
    s.add_(1);
    const first = flush(device);
    const read = list(s);
    s.add_(1);
    const second = flush(device);
    assert.deepEqual(await read, [2]);
    await Promise.all([first, second]);
    assert.deepEqual(await list(s), [3]);
  });
});
