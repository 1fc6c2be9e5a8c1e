/** Loops that never wait for a device: others still get their turn of the event loop. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { ones, optim, realize, setDevice, synchronize } from "../../src/index.ts";

setDevice("reference"); // answers at once, without a promise

async function firesDuring(body: () => Promise<unknown>): Promise<void> {
  let fired = false;
  const timer = setTimeout(() => {
    fired = true;
  }, 5);
  const end = performance.now() + 10_000;
  while (!fired && performance.now() < end) await body();
  clearTimeout(timer);
  assert.ok(fired, "a timer of 5 ms did not fire in a loop of 10 s");
}

test("timers fire in a loop of optimiser steps", async () => {
  const w = ones([2], { requiresGrad: true });
  const optimizer = new optim.SGD([w], { lr: 0.1 });
  await firesDuring(async () => {
    w.mul(w).sum().backward();
    await optimizer.step();
    optimizer.zeroGrad();
  });
});

test("timers fire in a loop that reads values", async () => {
  const x = ones([2]);
  await firesDuring(() => x.add(1).data());
});

test("timers fire in a loop that computes values without reading them", async () => {
  const x = ones([2]);
  await firesDuring(() => realize(x.add(1)));
});

test("timers fire in a loop that waits for what is owed", async () => {
  const x = ones([2]);
  await firesDuring(() => {
    x.add(1).keep();
    return synchronize();
  });
});
