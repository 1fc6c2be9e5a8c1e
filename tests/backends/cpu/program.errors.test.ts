/**
 * A step that fails leaves every state as it was, those too that its kernels write in place, names what was out of range,
 * and the program runs on with good data.
 */
import assert from "node:assert/strict";
import { IndexError } from "../../../src/core/errors.ts";
import type { Node } from "../../../src/graph/node.ts";
import * as o from "../../../src/graph/ops.ts";
import { type Assign, compileNodes, nodeFrom } from "../../support/evaluate.ts";
import { convStep, gptStep } from "./program.steps.ts";
import { describe, openCpuBackend, test } from "./with-compiler.ts";

const backend = await openCpuBackend({ fuse: true });

async function bytesOf(states: Iterable<Node>): Promise<Buffer[]> {
  const out: Buffer[] = [];
  for (const { storage, dtype } of states)
    if (storage) {
      const { buffer } = await backend.read(storage.memory, dtype, storage.length);
      out.push(Buffer.from(buffer as ArrayBuffer));
    }
  return out;
}

/** Runs once, where it must fail; the states must not have moved by a bit. */
async function failsWithoutTrace(run: () => Promise<unknown>, states: Iterable<Node>, message: RegExp): Promise<void> {
  const list = [...states];
  const before = await bytesOf(list);
  await assert.rejects(run, (error: Error) => {
    assert.ok(error instanceof IndexError, `${error.name}: ${error.message}`);
    assert.match(error.message, message);
    return true;
  });
  const after = await bytesOf(list);
  before.forEach((bytes, i) => {
    assert.ok(bytes.equals(after[i]), `state ${i} was written`);
  });
}

describe("a label out of range", () => {
  for (const [name, step] of [
    ["a GPT", gptStep],
    ["a convolutional network with running statistics", convStep],
  ] as const)
    for (const wrong of ["the number of classes", "a negative number"])
      test(`${wrong} in a step of ${name} names itself and changes nothing`, async () => {
        const { roots, assigns, states, labels, classes } = step(backend);
        const { run } = await compileNodes(backend, roots, assigns);
        await run();
        const memory = labels.storage?.memory;
        const good = (await backend.read(memory, "int32", labels.shape[0])) as Int32Array;
        const bad = good.slice();
        bad[bad.length - 2] = wrong === "a negative number" ? -3 : classes;
        backend.write(memory, bad);
        const said = wrong === "a negative number" ? /-3/ : new RegExp(`\\b${classes}\\b`);
        await failsWithoutTrace(run, states.values(), said);
        await failsWithoutTrace(run, states.values(), /0 … \d+/);
        backend.write(memory, good);
        const before = await bytesOf(states.values());
        const [[loss]] = await run();
        assert.ok(Number.isFinite(loss));
        const after = await bytesOf(states.values());
        assert.ok(after.filter((bytes, i) => !bytes.equals(before[i])).length > states.size / 2, "training goes on");
      });

  test("in place updates, copies and swaps that come first in the program wait for the check", async () => {
    const state = (n: number): Node =>
      nodeFrom(
        backend,
        Float64Array.from({ length: n }, (_, i) => i),
        [n],
        "float32",
      );
    const [count, a, b, c, d] = [1, 40, 40, 40, 40].map(state);
    const index = nodeFrom(backend, [0, 1, 2], [3], "int32");
    const table = nodeFrom(backend, new Float64Array(8), [4, 2], "float32");
    const assigns: Assign[] = [
      { target: count, value: o.add(count, 1) },
      { target: a, value: o.mul(a, 2) },
      { target: b, value: c },
      { target: c, value: b },
      { target: d, value: o.flip(d, [0]) },
    ];
    const { run } = await compileNodes(backend, [o.take(table, 0, index)], assigns);
    await run();
    backend.write(index.storage?.memory, Int32Array.of(0, 4, 2));
    await failsWithoutTrace(run, [count, a, b, c, d], /index 4 .* axis of 4/);
    backend.write(index.storage?.memory, Int32Array.of(3, 3, 3));
    await run();
    assert.deepEqual([...(await backend.read(count.storage?.memory, "float32", 1))], [2]);
    assert.deepEqual([...(await backend.read(d.storage?.memory, "float32", 3))], [0, 1, 2]);
  });

  test("a product whose finished rows update a state waits too", async () => {
    const n = 48;
    const values = Float64Array.from({ length: n * n }, (_, i) => ((i * 7) % 13) / 13);
    const [x, w, s] = [0, 1, 2].map(() => nodeFrom(backend, values, [n, n], "float32"));
    const index = nodeFrom(backend, [0, 1, 2], [3], "int32");
    const table = nodeFrom(backend, new Float64Array(8), [4, 2], "float32");
    const next = o.sub(s, o.mul(o.matmul(x, w), 0.1));
    const { run } = await compileNodes(backend, [o.take(table, 0, index)], [{ target: s, value: next }]);
    backend.write(index.storage?.memory, Int32Array.of(0, 9, 2));
    await failsWithoutTrace(run, [s], /index 9/);
  });
});

describe("other checks", () => {
  test("an index that a scatter writes to", async () => {
    const s = nodeFrom(backend, [1, 2, 3], [3], "float32");
    const index = nodeFrom(backend, [0, 1], [2], "int32");
    const update = nodeFrom(backend, [5, 6], [2], "float32");
    const value = o.scatter(s, 0, index, update, "add");
    const { run } = await compileNodes(backend, [], [{ target: s, value }]);
    backend.write(index.storage?.memory, Int32Array.of(0, 3));
    await failsWithoutTrace(run, [s], /scatter/);
    backend.write(index.storage?.memory, Int32Array.of(0, 2));
    await run();
    assert.deepEqual([...(await backend.read(s.storage?.memory, "float32", 3))], [6, 2, 9]);
  });

  // the write of the state could come as soon as the gather is done; the rest of the index is looked at much later
  const parts: Readonly<Record<string, (index: Node, table: Node) => Node>> = {
    "of which a gather reads the first half": (index, table) => o.take(table, 0, o.narrow(index, 0, 0, 2)),
    "of whose gathered values half is used": (index, table) => o.narrow(o.take(table, 0, index), 0, 0, 2),
    "that a concat reads in part": (index, table) => {
      const found = o.take(table, 0, index);
      return o.concat([o.narrow(found, 0, 0, 1), o.narrow(found, 0, 1, 1)], 0);
    },
  };
  for (const [name, part] of Object.entries(parts))
    test(`an index ${name}, and a scatter all`, async () => {
      const s = nodeFrom(backend, [1, 2, 3], [3], "float32");
      const table = nodeFrom(backend, [1, 2, 3], [3], "float32");
      const index = nodeFrom(backend, [0, 1, 2, 0], [4], "int32");
      const w = nodeFrom(backend, new Float64Array(16), [4, 4], "float32");
      const late = o.matmul(o.matmul(o.matmul(w, w), w), nodeFrom(backend, [5, 6, 7, 8], [4, 1], "float32"));
      const all = o.scatter(table, 0, index, o.reshape(late, [4]), "add");
      const { run } = await compileNodes(backend, [part(index, table), all], [{ target: s, value: o.add(s, 1) }]);
      backend.write(index.storage?.memory, Int32Array.of(0, 1, 2, 3));
      await failsWithoutTrace(run, [s], /out of range/);
      backend.write(index.storage?.memory, Int32Array.of(0, 1, 2, 2));
      await run();
      assert.deepEqual([...(await backend.read(s.storage?.memory, "float32", 3))], [2, 3, 4]);
    });

  test("an integer division by zero", async () => {
    const s = nodeFrom(backend, [8, 9], [2], "int32");
    const by = nodeFrom(backend, [2, 0], [2], "int32");
    const { run } = await compileNodes(backend, [], [{ target: s, value: o.floorDivide(s, by) }]);
    await failsWithoutTrace(run, [s], /division by zero/);
    backend.write(by.storage?.memory, Int32Array.of(2, 3));
    await run();
    assert.deepEqual([...(await backend.read(s.storage?.memory, "int32", 2))], [4, 3]);
  });

  test("nothing fails where a pad or a concat reads nothing", async () => {
    const x = nodeFrom(backend, [1, 2, 3], [3], "float32");
    const index = o.sub(nodeFrom(backend, [5, 6, 7], [3], "int32"), 5);
    const found = o.take(x, 0, index);
    const halves = o.floorDivide(
      nodeFrom(backend, [8, 9, 10], [3], "int32"),
      nodeFrom(backend, [2, 2, 2], [3], "int32"),
    );
    const joined = o.concat([found, found], 0);
    const { run } = await compileNodes(backend, [o.pad(found, [2], [9]), o.pad(halves, [1], [1]), joined]);
    const [padded, divided, twice] = await run();
    assert.deepEqual([...padded], [0, 0, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert.deepEqual([...divided], [0, 4, 4, 5, 0]);
    assert.deepEqual([...twice], [1, 2, 3, 1, 2, 3]);
  });
});
