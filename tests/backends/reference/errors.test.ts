/** What the reference backend refuses, and that a refused run writes nothing. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { referenceBackend } from "../../../src/backends/reference/index.ts";
import { BackendError, IndexError } from "../../../src/core/errors.ts";
import { make, registerOperation } from "../../../src/graph/node.ts";
import { add, expandTo, floorDivide, gather, mod, mul, output, scatter, take } from "../../../src/graph/ops.ts";
import { evaluate, nodeFrom } from "../../support/evaluate.ts";

const backend = referenceBackend();
const float = (values: number[], shape: number[]) => nodeFrom(backend, values, shape, "float32");
const int = (values: number[], shape = [values.length]) => nodeFrom(backend, values, shape, "int32");

test("a gather outside its axis names the index, the position and the size", async () => {
  const x = float([1, 2, 3, 4, 5, 6], [2, 3]);
  await assert.rejects(evaluate(backend, [gather(x, 1, int([0, 2, 1, 3], [2, 2]))]), {
    name: "IndexError",
    message: "gather: index 3 at position [1, 1] is outside axis 1 of [2, 3]; it must be at least 0 and less than 3",
  });
  await assert.rejects(evaluate(backend, [take(x, 0, int([-1]))]), IndexError);
});

test("a scatter outside its axis is refused in every mode", async () => {
  for (const mode of ["add", "set", "max"] as const)
    await assert.rejects(evaluate(backend, [scatter(float([0, 0], [2]), 0, int([0, 2]), float([1, 1], [2]), mode)]), {
      name: "IndexError",
      message: /^scatter: index 2 at position \[1\] is outside axis 0 of \[2\]/,
    });
});

test("integer division and remainder by zero are refused; of floats they are not", async () => {
  for (const operation of [floorDivide, mod])
    await assert.rejects(evaluate(backend, [operation(int([1, 2, 3, 4], [2, 2]), int([1, 1, 0, 1], [2, 2]))]), {
      name: "IndexError",
      message: /integer division by zero at position \[1, 0\]/,
    });
  const [quotient, remainder] = await evaluate(backend, [
    floorDivide(float([1], [1]), float([0], [1])),
    mod(float([1], [1]), float([0], [1])),
  ]);
  assert.deepEqual([quotient[0], remainder[0]], [Number.POSITIVE_INFINITY, Number.NaN]);
});

test("when an index is out of range no state is written", async () => {
  const weights = float([1, 2, 3], [3]);
  const other = float([7], [1]);
  const value = add(weights, take(weights, 0, int([0, 1, 3])));
  await assert.rejects(
    evaluate(
      backend,
      [],
      [
        { target: other, value: add(other, 1) },
        { target: weights, value },
      ],
    ),
    IndexError,
  );
  assert.deepEqual(await evaluate(backend, [weights, other]), [Float32Array.of(1, 2, 3), Float32Array.of(7)]);
});

test("states that take each other's old values do so", async () => {
  const a = float([1, 2], [2]);
  const b = float([3, 4], [2]);
  await evaluate(
    backend,
    [],
    [
      { target: a, value: b },
      { target: b, value: a },
    ],
  );
  assert.deepEqual(await evaluate(backend, [a, b]), [Float32Array.of(3, 4), Float32Array.of(1, 2)]);
});

test("an assigned value and an output may be the same node, and reads mean the old state", async () => {
  const a = float([1, 2], [2]);
  const next = mul(a, 10);
  const [got] = await evaluate(backend, [add(next, a)], [{ target: a, value: next }]);
  assert.deepEqual(got, Float32Array.of(11, 22));
  assert.deepEqual(await evaluate(backend, [a]), [Float32Array.of(10, 20)]);
});

test("a composite is decomposed, however deep, and one that cannot be is named", async () => {
  const twice = registerOperation({
    name: "test.twice",
    group: "composite",
    infer: ([x]) => x,
    decompose: ([x]) => [add(x, x)],
  });
  const fourTimes = registerOperation({
    name: "test.fourTimes",
    group: "composite",
    infer: ([x]) => [x, x],
    decompose: ([x]) => [make(twice, [make(twice, [x])]), make(twice, [x])],
  });
  const opaque = registerOperation({ name: "test.opaque", group: "composite", infer: ([x]) => x });
  const x = float([1, 2], [2]);
  const node = make(fourTimes, [x]);
  const second = output(node, 1);
  assert.deepEqual(await evaluate(backend, [node, second]), [Float32Array.of(4, 8), Float32Array.of(2, 4)]);
  await assert.rejects(evaluate(backend, [make(opaque, [x])]), (error: Error) => {
    assert.ok(error instanceof BackendError);
    assert.match(error.message, /composite "test\.opaque" \[2\] has no decomposition/);
    return true;
  });
});

test("a chain of fifty thousand nodes compiles and runs without recursion", async () => {
  let x = float([0], [1]);
  const one = expandTo(float([1], [1]), [1]);
  for (let i = 0; i < 50_000; i++) x = add(x, one);
  const [got] = await evaluate(backend, [x]);
  assert.equal(got[0], 50_000);
});
