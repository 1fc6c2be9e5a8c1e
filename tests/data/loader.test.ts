import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { describe, test } from "node:test";
import { threadId } from "node:worker_threads";
import fc from "fast-check";
import { ArrayDataset, type Batch, DataLoader, hostArray, LoaderError, stackSamples } from "../../src/data/loader.ts";
import { evaluationBatches, textBatches } from "../../src/data/text-batches.ts";
import { typescript } from "../support/typescript.ts";
import { collate, Numbers } from "./fixtures/worker-dataset.ts";

const images = (n: number) =>
  new ArrayDataset(
    hostArray(
      Uint8Array.from({ length: n * 4 }, (_, i) => i),
      [n, 2, 2],
    ),
    hostArray(Int32Array.from({ length: n }, (_, i) => i)),
  );

async function all<B>(loader: AsyncIterable<B>, count = Number.POSITIVE_INFINITY): Promise<B[]> {
  const out: B[] = [];
  for await (const batch of loader) {
    out.push(batch);
    if (out.length === count) break;
  }
  return out;
}
const labels = (batches: Batch[]) => batches.map((batch) => [...batch[1].data]);
const plain = (batches: Batch[]) =>
  batches.map((b) => b.map(({ dtype, shape, data }) => [dtype, [...shape], [...data]]));

describe("the loader", () => {
  test("yields batches of every part of a sample, in order, the last one smaller", async () => {
    const loader = new DataLoader(images(5), { batchSize: 2 });
    const batches = await all(loader);
    assert.equal(loader.length, 3);
    assert.deepEqual(plain(batches.slice(2)), [
      [
        ["uint8", [1, 2, 2], [16, 17, 18, 19]],
        ["int32", [1], [4]],
      ],
    ]);
    assert.deepEqual(labels(batches), [[0, 1], [2, 3], [4]]);
    assert.deepEqual(labels(await all(new DataLoader(images(5), { batchSize: 2, dropLast: true }))), [
      [0, 1],
      [2, 3],
    ]);
  });

  test("shuffles by seed and epoch: the same seed gives the same epochs, each sample once in each", async () => {
    const epochs = async (seed: number) => {
      const loader = new DataLoader(images(40), { batchSize: 7, shuffle: true, seed });
      return [labels(await all(loader)).flat(), labels(await all(loader)).flat()];
    };
    const [a, b] = await epochs(1);
    assert.deepEqual(await epochs(1), [a, b]);
    assert.notDeepEqual(a, b);
    assert.notDeepEqual(a, (await epochs(2))[0]);
    for (const epoch of [a, b])
      assert.deepEqual(
        [...epoch].sort((x, y) => x - y),
        Array.from({ length: 40 }, (_, i) => i),
      );
  });

  for (const numWorkers of [0, 2])
    test(`goes on from a saved position as if it had never stopped (${numWorkers} workers)`, async () => {
      const options = { batchSize: 3, shuffle: true, seed: 5, numWorkers };
      const loader = () => new DataLoader(images(20), options);
      const whole = loader();
      const expected = [...labels(await all(whole)), ...labels(await all(whole))];
      await whole.close();
      for (const stop of [1, 6, 7, 9]) {
        const first = loader();
        const seen: number[][] = [];
        let state = first.state();
        while (seen.length < stop)
          for await (const batch of first) {
            seen.push([...batch[1].data]);
            state = JSON.parse(JSON.stringify(first.state()));
            if (seen.length === stop) break;
          }
        await first.close();
        const second = loader();
        second.load(state);
        while (seen.length < 14) seen.push(...labels(await all(second)));
        await second.close();
        assert.deepEqual(seen, expected, `stopped after ${stop}`);
      }
    });

  test("a loop that was left early is followed by the next epoch", async () => {
    const loader = new DataLoader(images(8), { batchSize: 2, shuffle: true });
    await all(loader, 1);
    const second = labels(await all(loader)).flat();
    assert.equal(second.length, 8);
    const other = new DataLoader(images(8), { batchSize: 2, shuffle: true });
    await all(other);
    assert.deepEqual(labels(await all(other)).flat(), second);
  });

  test("a position of another data set, seed or batch size is refused", () => {
    const state = new DataLoader(images(8), { batchSize: 2 }).state();
    assert.throws(
      () => new DataLoader(images(9), { batchSize: 2 }).load(state),
      /made with length 8, this loader has length 9/,
    );
    assert.throws(() => new DataLoader(images(8), { batchSize: 2, seed: 1 }).load(state), /seed/);
    assert.throws(() => new DataLoader(images(8), { batchSize: 4 }).load(state), /batchSize/);
  });

  test("workers give the same batches as this thread, each with memory of its own", async () => {
    const options = { batchSize: 3, shuffle: true, seed: 2 };
    const expected = plain(await all(new DataLoader(images(50), options)));
    const loader = new DataLoader(images(50), { ...options, numWorkers: 2, prefetch: 3 });
    assert.deepEqual(plain(await all(loader)), expected); // all kept until the end: none was overwritten
    await all(loader, 2);
    assert.equal((await all(loader)).length, 17);
    await loader.close();
  });

  test("a user's own data set and collate run in the workers, in order, also batches larger than a slot", async () => {
    const here = new DataLoader(new Numbers(40), { batchSize: 4, collate });
    const there = new DataLoader(new Numbers(40), { batchSize: 4, numWorkers: 2 });
    const expected = await all(here);
    // The first batch is made on this thread, by stacking: there is no collate here.
    const got = await all(there);
    await there.close();
    assert.deepEqual(
      got.slice(1).map(([b]) => [b.shape, [...b.data]]),
      expected.slice(1).map(([b]) => [b.shape, [...b.data]]),
    );
    const threads = new Set(got.slice(1).map((b) => b[1].data[0]));
    assert.ok(threads.size === 2 && !threads.has(threadId), "made off the main thread");
  });

  test("an error in a worker, or its death, is an error in the loop", async () => {
    const failing = new DataLoader(new Numbers(40, 30), { batchSize: 4, numWorkers: 1 });
    let seen = 0;
    await assert.rejects(
      async () => {
        for await (const _ of failing) seen++;
      },
      (e: Error) => e instanceof LoaderError && /worker: RangeError: sample 30 is bad/.test(e.message),
    );
    assert.equal(seen, 7);
    await failing.close();
    const dying = new DataLoader(new Numbers(40, -2), { batchSize: 4, numWorkers: 2 });
    await assert.rejects(all(dying), /worker died: it stopped with exit code 3/);
    await dying.close();
  });

  test("a program with idle workers ends", () => {
    const script = `
      import { ArrayDataset, DataLoader, hostArray } from ${JSON.stringify(new URL("../../src/data/loader.ts", import.meta.url).href)};
      const loader = new DataLoader(new ArrayDataset(hostArray(new Float32Array(64))), { batchSize: 8, numWorkers: 2 });
      let n = 0;
      for await (const [x] of loader) n += x.data.length;
      console.log(n);`;
    const { stdout, status } = spawnSync(process.execPath, [...typescript, "--input-type=module", "-e", script], {
      encoding: "utf8",
      timeout: 20_000,
    });
    assert.deepEqual([stdout.trim(), status], ["64", 0]);
  });

  test("wrap makes what the loop gets", async () => {
    const loader = new DataLoader(images(4), { batchSize: 2, wrap: ([x, y]) => `${x.shape} ${y.shape}` });
    assert.deepEqual(await all(loader), ["2,2,2 2", "2,2,2 2"]);
  });

  test("bad options are clear errors", () => {
    const bad: [() => unknown, RegExp][] = [
      [() => new DataLoader(images(0)), /the data set is empty/],
      [() => new DataLoader(images(4), { batchSize: 0 }), /batchSize must be a whole number ≥ 1, got 0/],
      [() => new DataLoader(images(4), { batchSize: 5, dropLast: true }), /4 samples make no batch of 5/],
      [() => new DataLoader({ length: 1, get: (i) => i }, { numWorkers: 1 }), /needs a data set with worker\(\)/],
      [() => new DataLoader(images(4), { numWorkers: 1, collate: stackSamples }), /can't travel to a worker/],
      [
        () => new ArrayDataset(hostArray(new Float32Array(2)), hostArray(new Float32Array(3))),
        /as many samples each: \[2\], \[3\]/,
      ],
      [() => hostArray(new Float32Array(2), [3]), /shape \[3\] has 3 elements, the array has 2/],
      [() => hostArray(new Uint16Array(2)), /name the dtype/],
    ];
    for (const [attempt, message] of bad)
      assert.throws(attempt, (e: Error) => e instanceof LoaderError && message.test(e.message), String(message));
  });

  test("samples are stacked: numbers as float32, arrays with their shapes, lists part by part; different ones are an error", () => {
    assert.deepEqual(stackSamples([1, 2]), [{ dtype: "float32", shape: [2], data: Float32Array.of(1, 2) }]);
    const sample = (k: number) => [Float64Array.of(k, k), true, hostArray(Int32Array.of(k), [])];
    assert.deepEqual(stackSamples([sample(1), sample(2)]), [
      { dtype: "float64", shape: [2, 2], data: Float64Array.of(1, 1, 2, 2) },
      { dtype: "bool", shape: [2], data: Uint8Array.of(1, 1) },
      { dtype: "int32", shape: [2], data: Int32Array.of(1, 2) },
    ]);
    assert.throws(
      () => stackSamples([new Float32Array(2), new Float32Array(3)]),
      /sample 1 differs from its first: item 0 is float32 \[3\], expected float32 \[2\]/,
    );
    assert.throws(() => stackSamples([{}]), /sample 0, item 0: can't put object into a batch/);
  });
});

describe("windows of tokens", () => {
  const tokens = Int32Array.from({ length: 50 }, (_, i) => i);

  test("are random, of the right shape, targets one token on, and cover every start", () => {
    const batches = textBatches(tokens, { batch: 4, context: 8, seed: 1 });
    const starts = new Set<number>();
    for (let i = 0; i < 300; i++) {
      const { inputs, targets } = batches.next();
      assert.deepEqual([inputs.length, targets.length], [32, 32]);
      for (let k = 0; k < 32; k++) assert.equal(targets[k], inputs[k] + 1);
      for (let b = 0; b < 4; b++) starts.add(inputs[b * 8]);
    }
    assert.deepEqual(
      [...starts].sort((a, b) => a - b),
      Array.from({ length: 42 }, (_, i) => i),
    );
  });

  test("go on exactly from a saved state", () => {
    const a = textBatches(tokens, { batch: 2, context: 4, seed: 1 });
    a.next();
    const b = textBatches(tokens, { batch: 2, context: 4, seed: 9 });
    b.load(JSON.parse(JSON.stringify(a.state())));
    for (let i = 0; i < 5; i++) assert.deepEqual(a.next(), b.next());
  });

  test("for evaluation hold every token but the first as a target once, in at most three shapes", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 2, max: 200 }),
        fc.integer({ min: 1, max: 9 }),
        fc.integer({ min: 1, max: 9 }),
        (n, batch, context) => {
          const list = Int32Array.from({ length: n }, (_, i) => i);
          const batches = [...evaluationBatches(list, { batch, context })];
          assert.deepEqual(
            batches.flatMap((b) => [...b.targets]),
            [...list.subarray(1)],
          );
          assert.deepEqual(
            batches.flatMap((b) => [...b.inputs]),
            [...list.subarray(0, n - 1)],
          );
          assert.ok(new Set(batches.map((b) => `${b.batch} ${b.context}`)).size <= 3);
        },
      ),
    );
  });

  test("of too few tokens are an error", () => {
    assert.throws(
      () => textBatches(tokens, { batch: 1, context: 50 }),
      /50 tokens are too few for a context of 50: at least 51/,
    );
    assert.throws(() => textBatches(tokens, { batch: 0, context: 5 }), LoaderError);
  });
});
