/** loop(): what users see of it, on every device present: names, gradients, what a body may not do, one program for all steps. */
import assert from "node:assert/strict";
import { beforeEach, describe, test } from "node:test";
import { programCounts, setDevice } from "../../src/execution/index.ts";
import * as nn from "../../src/nn/index.ts";
import { loop, ones, randn, type Tensor, tensor, zeros } from "../../src/tensor/index.ts";
import { backendsUnderTest } from "../support/backends.ts";

const list = async (x: Tensor): Promise<number[]> => Array.from(await x.data());

for (const { name: device } of await backendsUnderTest())
  describe(`loop on ${device}`, () => {
    beforeEach(() => setDevice(device));

    test("carries and outputs come back under their names", async () => {
      const { carries, outputs } = loop(
        ({ total }, { x }) => {
          const next = total.add(x);
          return { carries: { last: total, total: next }, outputs: { sum: next, double: x.mul(2) } };
        },
        { carries: { total: zeros([2]), last: ones([2]) }, sequences: { x: tensor([1, 2, 3, 4, 5, 6]).reshape(3, 2) } },
      );
      assert.deepEqual(await list(carries.total), [9, 12]);
      assert.deepEqual(await list(carries.last), [4, 6]);
      assert.deepEqual(await list(outputs.sum), [1, 2, 4, 6, 9, 12]);
      assert.deepEqual(await list(outputs.double), [2, 4, 6, 8, 10, 12]);
    });

    test("lists, a count without a sequence, and no steps at all", async () => {
      const double = (count: number) =>
        loop(([x]) => ({ carries: [x.mul(2)], outputs: [x] }), { carries: [tensor([1, 3])], count });
      assert.deepEqual(await list(double(5).carries[0]), [32, 96]);
      assert.deepEqual(await list(double(1).carries[0]), [2, 6]);
      const none = double(0);
      assert.deepEqual(await list(none.carries[0]), [1, 3]);
      assert.deepEqual(none.outputs[0].shape, [0, 2]);
    });

    test("reverse goes from the end, and outputs lie where the elements do", async () => {
      const x = tensor([1, 2, 3, 4]);
      const { outputs } = loop(([sum], [e]) => ({ carries: [sum.add(e)], outputs: [sum.add(e)] }), {
        carries: [zeros([])],
        sequences: [x],
        reverse: true,
      });
      assert.deepEqual(await list(outputs[0]), [10, 9, 7, 4]);
    });

    test("gradients reach carries, sequences and what the body reads from outside", async () => {
      const w = tensor([0.5]).requiresGrad_();
      const h = tensor([1]).requiresGrad_();
      const x = tensor([1, 2, 3]).reshape(3, 1).requiresGrad_();
      const { carries } = loop(([a], [e]) => ({ carries: [a.mul(w).add(e)] }), { carries: [h], sequences: [x] });
      carries[0].sum().backward();
      // ((h·w + x0)·w + x1)·w + x2
      assert.deepEqual(await list(w.grad as Tensor), [2 + 2 * 0.5 * 1 + 3 * 0.25]);
      assert.deepEqual(await list(h.grad as Tensor), [0.125]);
      assert.deepEqual(await list(x.grad as Tensor), [0.25, 0.5, 1]);
    });

    test("a module's step can be the body, and one program serves all steps and numbers", async () => {
      const cell = new nn.LSTMCell(3, 4);
      const run = (x: Tensor, factor: number): Tensor =>
        loop(
          ([h, c], [e]) => {
            const [a, b] = cell.forward(e.mul(factor), [h, c]);
            return { carries: [a, b], outputs: [a] };
          },
          { carries: [zeros([2, 4]), zeros([2, 4])], sequences: [x] },
        ).outputs[0];
      const x = randn([5, 2, 3]);
      const got = await list(run(x, 0.5));
      const { made } = programCounts(device);
      const other = await list(run(randn([5, 2, 3]), 0.25));
      assert.equal(programCounts(device).made, made, "the number in the body became part of the program");
      assert.notDeepEqual(got, other);
      const layer = new nn.LSTM(3, 4);
      for (const key of ["weight_ih", "weight_hh", "bias_ih", "bias_hh"] as const)
        layer[`${key}_l0` as "weight_ih_l0"] = cell[key] as nn.Parameter;
      const whole = await list(layer.forward(x.mul(0.5))[0]);
      for (const [i, v] of got.entries()) assert.ok(Math.abs(v - whole[i]) < 1e-6, `${i}: ${v} and ${whole[i]}`);
    });

    test("an index out of range in a step is an IndexError", async () => {
      const table = ones([4, 2]);
      const { outputs } = loop(([h], [i]) => ({ carries: [h.add(nn.functional.embedding(i, table))], outputs: [h] }), {
        carries: [zeros([2])],
        sequences: [tensor([0, 1, 7, 2], { dtype: "int32" })],
      });
      await assert.rejects(async () => list(outputs[0]), { name: "IndexError" });
    });
  });

test("what a body may not do is said at once", () => {
  setDevice("reference");
  const x = zeros([3, 2]);
  const h = zeros([2]);
  const run = (body: (h: Tensor, e: Tensor) => Tensor): unknown =>
    loop(([a], [e]) => ({ carries: [body(a, e)] }), { carries: [h], sequences: [x] });
  assert.throws(() => run((a) => a.reshape(1, 2)), /carry 0 goes into the body as \[2\] and comes out as \[1, 2\]/);
  assert.throws(() => run((a) => a.to("int32")), /comes out as int32; cast it with \.to\("float32"\)/);
  assert.throws(() => run((a) => a.add(randn([2]))), /draws random numbers/);
  const state = new nn.Buffer(zeros([2]));
  assert.throws(() => run((a) => state.add_(a)), /the body of a loop can't write a state/);
  assert.throws(() => run((async (a: Tensor) => a) as never), /carry "0" is no tensor, but a promise/);
  assert.throws(
    () => loop((([a]: Tensor[]) => ({ carries: { a } })) as never, { carries: [h], sequences: [x] }),
    /returns the carries \{ a \}, expected \{ 0 \}/,
  );
  assert.throws(() => loop(([a]) => ({ carries: [a] }), { carries: [h] }), /how many steps/);
  assert.throws(
    () => loop(([a]) => ({ carries: [a] }), { carries: [h], sequences: [x], count: 4 }),
    /sequence 0 is \[3, 2\], but there are 4 steps/,
  );
});

test("a value of the body read outside of it is an error that says so", async () => {
  setDevice("reference");
  let leaked: Tensor | null = null;
  loop(
    ([a]) => {
      leaked = a.add(1);
      return { carries: [leaked] };
    },
    { carries: [zeros([2])], count: 3 },
  );
  await assert.rejects(async () => (leaked as unknown as Tensor).data(), /inside a loop's body does not exist outside/);
});

test("what does not fit is an error of types", () => {
  const given = { carries: { h: zeros([2]) }, sequences: { x: zeros([3, 2]) } };
  const misuses = [
    // @ts-expect-error the body must give back every carry
    () => loop(() => ({ carries: {} }), given),
    // @ts-expect-error a carry is a tensor
    () => loop(() => ({ carries: { h: 1 } }), given),
    // @ts-expect-error there is no such element
    () => loop(({ h }, { y }) => ({ carries: { h: h.add(y) } }), given),
    // @ts-expect-error an output that the body does not give
    () => loop(({ h }) => ({ carries: { h }, outputs: { sum: h.sum() } }), given).outputs.mean,
  ];
  setDevice("reference");
  assert.throws(misuses[0], /the body gives 0 carries|returns the carries \{ {2}\}, expected \{ h \}/);
  assert.throws(misuses[1], /carry "h" is no tensor/);
});
