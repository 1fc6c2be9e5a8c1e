/** Programs that leave the cache: each is disposed of once, never while a run of it is owed, and comes back where it is asked for again. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { Backend, Program } from "../../src/backends/backend.ts";
import { cacheCapacity } from "../../src/execution/cache.ts";
import { backendOf, registerBackend } from "../../src/execution/index.ts";
import { tensor } from "../../src/index.ts";

let made = 0;
const disposed = new Set<Program>();
let used = 0;
/** Programs whose run waits until it is let go. */
let hold: Promise<void> | null = null;

const real = await backendOf("reference");
const watched: Backend = {
  ...real,
  name: "watched",
  async compile(capture) {
    const program = await real.compile(capture);
    made++;
    const own: Program = {
      stats: program.stats,
      describe: (stage) => program.describe(stage),
      async run(run) {
        if (disposed.has(own)) used++;
        await hold;
        if (disposed.has(own)) used++;
        await program.run(run);
      },
      dispose() {
        assert.ok(!disposed.has(own), "disposed of twice");
        disposed.add(own);
      },
    };
    return own;
  },
};
registerBackend("watched", () => watched);

const sum = (n: number) => tensor(new Float32Array(n).fill(1), { device: "watched" }).sum();

describe("programs that were evicted", () => {
  test("are disposed of, all but those held, and found to be gone", async () => {
    const shapes = cacheCapacity + 200;
    for (let n = 1; n <= shapes; n++) assert.equal(await sum(n).item(), n);
    assert.equal(made, shapes);
    assert.equal(disposed.size, 200);
    assert.equal(await sum(1).item(), 1);
    assert.equal(made, shapes + 1);
    assert.equal(used, 0);
  });

  test("stay until the runs end that were promised before", async () => {
    let release = () => {};
    hold = new Promise((resolve) => (release = resolve));
    const before = disposed.size;
    // more at once than the cache holds: the first are evicted while they wait
    const many = Array.from({ length: 2 * cacheCapacity }, (_, i) => 10_000 + i);
    const values = many.map((n) => sum(n).item());
    await new Promise((resolve) => setTimeout(resolve, 20));
    release();
    assert.deepEqual(await Promise.all(values), many);
    assert.equal(used, 0);
    assert.equal(disposed.size - before, many.length);
  });
});
