/** What only the reference backend promises: its two modes, messages, casts out of range, its listing and its memory. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { referenceBackend } from "../../../src/backends/reference/index.ts";
import * as o from "../../../src/graph/ops.ts";
import { compileNodes, evaluate, nodeFrom } from "../../support/evaluate.ts";

const backend = referenceBackend();
const float = (values: number[], shape = [values.length]) => nodeFrom(backend, values, shape, "float32");
const int = (values: number[], shape = [values.length]) => nodeFrom(backend, values, shape, "int32");

test("a float outside an integer type's range becomes the nearest end, NaN becomes 0", async () => {
  const x = float([1e20, -1e20, Number.NaN, 300.7, -3.7]);
  const results = await evaluate(backend, [o.cast(x, "int32"), o.cast(x, "uint8"), o.cast(x, "uint32")]);
  assert.deepEqual(
    results.map((values) => [...values]),
    [
      [2147483647, -2147483648, 0, 300, -3],
      [255, 0, 0, 255, 0],
      [4294967295, 0, 0, 300, 0],
    ],
  );
});

test("rounded mode rounds after each node, exact mode only where a value is stored", async () => {
  const exact = referenceBackend({ exact: true });
  for (const [dtype, tiny] of [
    ["float32", 2 ** -30],
    ["bfloat16", 2 ** -12],
  ] as const) {
    const build = (on: typeof backend) => {
      const x = nodeFrom(on, [tiny], [1], dtype);
      return [o.cast(o.sub(o.add(x, 1), 1), "float64"), o.sub(o.add(x, 1), 1)];
    };
    assert.deepEqual(
      (await evaluate(backend, build(backend))).map((values) => values[0]),
      [0, 0],
    );
    assert.deepEqual(
      (await evaluate(exact, build(exact))).map((values) => values[0]),
      [tiny, tiny],
    );
  }
});

test("memory is read and written as raw elements", async () => {
  const memory = backend.allocate(8);
  backend.write(memory, Uint16Array.of(0x3c00, 0xc000, 0x7c00, 0x0001));
  assert.deepEqual(await backend.read(memory, "float16", 4), Uint16Array.of(0x3c00, 0xc000, 0x7c00, 0x0001));
  assert.deepEqual(await backend.read(memory, "uint8", 2), Uint8Array.of(0x00, 0x3c));
});

test("a program describes its instructions, and holds as few temporaries as it needs", async () => {
  const x = float([1, 2, 3, 4, 5, 6], [2, 3]);
  let y = o.mul(x, o.scalar(2, "float32"));
  for (let i = 0; i < 10; i++) y = o.tanh(y);
  const { program } = await compileNodes(backend, [o.sum(y, 0)]);
  const lines = program.describe("graph").split("\n");
  assert.equal(lines[0], "%0 float32[2, 3] = storage 0");
  assert.equal(lines[1], "%1 float32[] = scalar 0");
  assert.equal(lines[2], "%2 float32[2, 3] = expand %1");
  assert.equal(lines[3], "%3 float32[2, 3] = mul %0 %2");
  assert.equal(lines.at(-2), "%14 float32[3] = sum %13 {axes: [0]}");
  assert.equal(lines.at(-1), "output 0 = %14");
  // two arrays of six numbers take turns, and the sum has its own three
  assert.equal(program.stats.arenaBytes, 2 * 24 + 12);
});

test("an index outside its axis is told with its position and the size", async () => {
  const x = float([1, 2, 3, 4, 5, 6], [2, 3]);
  await assert.rejects(evaluate(backend, [o.gather(x, 1, int([0, 2, 1, 3], [2, 2]))]), {
    name: "IndexError",
    message: "gather: index 3 at position [1, 1] is outside axis 1 of [2, 3]; it must be at least 0 and less than 3",
  });
  await assert.rejects(evaluate(backend, [o.scatter(float([0, 0]), 0, int([0, -1]), float([1, 1]), "add")]), {
    name: "IndexError",
    message: "scatter: index -1 at position [1] is outside axis 0 of [2]; it must be at least 0 and less than 2",
  });
  await assert.rejects(evaluate(backend, [o.mod(int([1, 2, 3, 4], [2, 2]), int([1, 1, 0, 1], [2, 2]))]), {
    name: "IndexError",
    message: "mod: integer division by zero at position [1, 0]; the divisor must not be 0",
  });
});

test("a chain of fifty thousand nodes compiles and runs without recursion", async () => {
  let x = float([0]);
  const one = float([1]);
  for (let i = 0; i < 50_000; i++) x = o.add(x, one);
  const [got] = await evaluate(backend, [x]);
  assert.equal(got[0], 50_000);
});
