/** Tensors as a user meets them: creation, reading, names, types, in place, and gradients. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { AutogradError, BackendError, DTypeError, ShapeError } from "../../src/core/errors.ts";
import { setDevice } from "../../src/execution/index.ts";
import * as nabla from "../../src/tensor/index.ts";
import {
  arange,
  asState,
  autograd,
  checkpoint,
  enableGrad,
  eye,
  fromRaw,
  full,
  grad,
  isGradEnabled,
  linspace,
  noGrad,
  ones,
  randn,
  realize,
  setData,
  stack,
  type Tensor,
  tensor,
  valueAndGrad,
  zeros,
} from "../../src/tensor/index.ts";

setDevice("reference");
const gradient = (x: Tensor): Tensor => x.grad as Tensor;

describe("creation and reading", () => {
  it("nested arrays, typed arrays and numbers", async () => {
    const x = tensor([
      [1, 2, 3],
      [4, 5, 6],
    ]);
    assert.deepEqual([x.shape, x.dtype, x.device, x.ndim, x.size], [[2, 3], "float32", "reference", 2, 6]);
    assert.deepEqual(await x.data(), new Float32Array([1, 2, 3, 4, 5, 6]));
    assert.deepEqual(await x.tolist(), [
      [1, 2, 3],
      [4, 5, 6],
    ]);
    assert.equal(await tensor(7).item(), 7);
    assert.equal(tensor([true, false]).dtype, "bool");
    assert.deepEqual(await tensor([true, false]).tolist(), [true, false]);
    assert.equal(tensor(new Float64Array(2)).dtype, "float64");
    assert.equal(tensor(new Int16Array(2)).dtype, "int32");
    assert.deepEqual(await tensor(new BigInt64Array([1n, -2n])).data(), new Int32Array([1, -2]));
    assert.deepEqual(tensor(new Float32Array(6), { shape: [3, 2] }).shape, [3, 2]);
    assert.deepEqual(await tensor([1, 2.5], { dtype: "bfloat16" }).data(), new Float32Array([1, 2.5]));
    assert.deepEqual(tensor([[], []]).shape, [2, 0]);
  });
  it("the data are copied", async () => {
    const data = new Float32Array([1, 2]);
    const x = tensor(data);
    data[0] = 9;
    assert.deepEqual(await x.data(), new Float32Array([1, 2]));
    (await x.data())[0] = 9;
    assert.deepEqual(await x.data(), new Float32Array([1, 2]));
  });
  it("says what is wrong with data", () => {
    assert.throws(() => tensor([[1, 2], [3]]), /not rectangular: expected \[2, 2\], found 1 elements at depth 1/);
    assert.throws(() => tensor(new BigInt64Array([2n ** 40n])), /element 0 is 1099511627776, which does not fit int32/);
    assert.throws(() => tensor([300], { dtype: "uint8" }), DTypeError);
    assert.throws(() => tensor(new Float32Array(3), { shape: [2, 2] }), ShapeError);
    assert.throws(
      () => tensor([1], { device: "tpu" }),
      (e: Error) => e instanceof BackendError && /known are reference, wasm, webgpu, cpu/.test(e.message),
    );
    assert.throws(() => tensor([1], { dtype: "float8" as never }), /there is no dtype "float8"/);
    assert.throws(() => zeros([-1]), /a size must be a whole number/);
  });
  it("without data", async () => {
    assert.deepEqual(await zeros([2]).tolist(), [0, 0]);
    assert.deepEqual(await full([2], 2.5).tolist(), [2.5, 2.5]);
    assert.equal(full([1], true).dtype, "bool");
    assert.deepEqual([arange(3).dtype, arange(0, 1, 0.5).dtype], ["int32", "float32"]);
    assert.deepEqual(await arange(5, -1, -2).tolist(), [5, 3, 1]);
    assert.deepEqual(await arange(0.5, 2).tolist(), [0.5, 1.5]);
    assert.deepEqual(await linspace(0, 1, 5).tolist(), [0, 0.25, 0.5, 0.75, 1]);
    assert.deepEqual(await eye(2, 3).tolist(), [
      [1, 0, 0],
      [0, 1, 0],
    ]);
    assert.deepEqual(await ones([]).tolist(), 1);
    for (const x of [arange(3), full([], 4), ones([])]) assert.equal((await x.data()).length, x.size); // leaves read as they are
    const half = fromRaw(new Uint16Array([0x3c00, 0xc000]), "float16", [2]);
    assert.deepEqual(await half.tolist(), [1, -2]);
  });
  it("item and realize", async () => {
    await assert.rejects(tensor([1, 2]).item(), /only a tensor of one element/);
    const [a, b] = [tensor([1]).add(1), tensor([1]).add(2)];
    await realize(a, b);
    assert.ok(a.node.storage && b.node.storage);
  });
  it("moves between dtypes and devices", async () => {
    const x = tensor([1.5, -2]);
    assert.equal(x.to("float32"), x);
    assert.deepEqual(await x.int().tolist(), [1, -2]);
    assert.deepEqual(await x.to({ dtype: "bool" }).tolist(), [true, true]);
    assert.equal(x.to("reference"), x);
    assert.throws(() => x.to("nowhere"), /there is no device "nowhere"/);
  });
});

describe("every operation is a function and a method", () => {
  it("of the same meaning", async () => {
    const x = tensor([
      [1, 2],
      [3, 4],
    ]);
    assert.deepEqual(await nabla.sum(x, { dim: 0 }).tolist(), await x.sum({ dim: 0 }).tolist());
    assert.deepEqual(await nabla.add(1, x).tolist(), await x.add(1).tolist());
    assert.deepEqual(await x.sum(0).tolist(), await x.sum([0]).tolist());
    assert.deepEqual(await x.permute(1, 0).tolist(), await x.permute([1, 0]).tolist());
    assert.deepEqual(x.sum({ dim: 1, keepdim: true }).shape, [2, 1]);
    const { values, indices } = x.max({ dim: 1 });
    assert.deepEqual(
      [await values.tolist(), await indices.tolist()],
      [
        [2, 4],
        [1, 1],
      ],
    );
    assert.equal(await x.max().item(), 4);
  });
  it("a number keeps an integer tensor's dtype only if it is whole", () => {
    const n = arange(3);
    assert.deepEqual(
      [n.add(1).dtype, n.add(0.5).dtype, n.div(2).dtype, n.gt(1).dtype],
      ["int32", "float32", "float32", "bool"],
    );
    assert.deepEqual([n.div(2, { roundingMode: "floor" }).dtype, n.mul(tensor(2.5)).dtype], ["int32", "float32"]);
    assert.throws(() => n.add(3e9), /3000000000 does not fit int32/);
  });
  it("mistakes are found by the compiler", () => {
    const misuse = (x: Tensor): unknown[] => [
      // @ts-expect-error an operand is a tensor or a number
      () => x.add("1"),
      // @ts-expect-error dtypes are known
      () => x.sum({ axis: 0 }),
      // @ts-expect-error max along an axis gives values and indices
      () => x.max(0).add(1),
      // @ts-expect-error a name with a spelling mistake
      () => x.matmull(x),
      // @ts-expect-error shapes are arrays
      () => zeros(2, 3),
      // @ts-expect-error no such dtype
      () => zeros([2], { dtype: "float8" }),
      // @ts-expect-error an index is a number, a slice, null, "...", a tensor or a list
      () => x.at(undefined),
      // @ts-expect-error nonzero waits
      () => x.nonzero().shape,
    ];
    assert.equal(misuse(zeros([1])).length, 8);
  });
});

describe("in place", () => {
  it("a plain tensor means the new value, views taken before keep the old one", async () => {
    const x = tensor([1, 2, 3]);
    const before = x.mul(10);
    const view = x.at(0);
    assert.equal(x.add_(1), x);
    x.mul_(2);
    assert.deepEqual([await x.tolist(), await before.tolist(), await view.item()], [[4, 6, 8], [10, 20, 30], 1]);
  });
  it("gradients flow through updates of plain tensors", async () => {
    const w = tensor([1, 2], { requiresGrad: true });
    const x = w.mul(3);
    x.mul_(x).setAt([0], 0);
    x.sum().backward();
    assert.deepEqual(await gradient(w).tolist(), [0, 36]);
  });
  it("a leaf that requires a gradient changes only under noGrad", async () => {
    const w = tensor([1], { requiresGrad: true });
    assert.throws(
      () => w.add_(1),
      (e: Error) => e instanceof AutogradError && /noGrad/.test(e.message),
    );
    noGrad(() => w.add_(1));
    assert.deepEqual([await w.item(), w.requiresGrad, w.isLeaf], [2, true, true]);
  });
  it("keeps shape and dtype, or says why not", () => {
    assert.throws(() => arange(3).add_(0.5), /result is float32 and can't be stored in a int32 tensor/);
    assert.throws(() => zeros([2]).add_(zeros([3, 2])), ShapeError);
    assert.equal(zeros([2], { dtype: "float16" }).add_(tensor([1, 2])).dtype, "float16");
  });
  it("an alias of the whole is the tensor itself, as a view is in PyTorch", async () => {
    const s = asState(tensor([1, 2]));
    s.reshape(2).add_(1);
    assert.deepEqual(await s.tolist(), [2, 3]);
  });
  it("setData replaces the memory of a state without a copy", async () => {
    const w = tensor([1, 2], { requiresGrad: true });
    setData(w, tensor([3, 4]));
    assert.ok(w.requiresGrad && w.isLeaf);
    w.square().sum().backward();
    assert.deepEqual(await gradient(w).tolist(), [6, 8]);
    assert.throws(() => setData(w, tensor([1])), ShapeError);
  });
});

describe("gradients", () => {
  it("accumulate over backward passes, lazily or after a flush", async () => {
    const w = tensor([2], { requiresGrad: true });
    for (let i = 0; i < 3; i++) w.mul(w).sum().backward();
    assert.deepEqual(await gradient(w).tolist(), [12]);
    w.mul(w).sum().backward();
    assert.deepEqual(await gradient(w).tolist(), [16]);
    const y = w.mul(w).sum();
    y.backward(null, { retainGraph: true });
    y.backward();
    assert.deepEqual(await gradient(w).tolist(), [24]);
    assert.throws(() => y.backward(), /was freed by an earlier backward pass.*retainGraph/);
  });
  it("the loss can be read before and after the step, and gradients before it", async () => {
    const w = tensor([3], { requiresGrad: true });
    const loss = w.mul(w).sum();
    loss.backward();
    assert.equal(await loss.item(), 9);
    assert.ok(gradient(w).node.storage, "reading the loss computes the gradient along");
    noGrad(() => w.sub_(gradient(w).mul(0.5)));
    assert.deepEqual(await w.tolist(), [0]);
    assert.equal(await loss.item(), 9);
  });
  it("take a seed of the output's shape", async () => {
    const w = tensor([1, 2], { requiresGrad: true });
    assert.throws(() => w.mul(2).backward(), /created implicitly only for an output of one element/);
    w.mul(2).backward(tensor([1, 10]));
    assert.deepEqual(await gradient(w).tolist(), [2, 20]);
    w.mul(3)
      .sum()
      .backward(null, { inputs: [w] });
    assert.deepEqual(await gradient(w).tolist(), [5, 23]);
  });
  it("autograd.grad touches no .grad, and tells what is unused", async () => {
    const [a, b] = [tensor([1, 2], { requiresGrad: true }), tensor([3], { requiresGrad: true })];
    const [g] = autograd.grad(a.pow(3).sum(), a, { createGraph: true });
    const [h] = autograd.grad(g.sum(), [a]);
    assert.deepEqual([await g.tolist(), await h.tolist(), a.grad], [[3, 12], [6, 12], null]);
    assert.throws(() => autograd.grad(a.sum(), [b]), /do not depend on it/);
    assert.deepEqual(autograd.grad(a.sum(), [b], { allowUnused: true }), [null]);
    const [s] = autograd.grad([a.mul(2), a.mul(3)], [a], { gradOutputs: [ones([2]), tensor([1, 0])] });
    assert.deepEqual(await s.tolist(), [5, 2]);
  });
  it("grad and valueAndGrad are functions of functions, and nest", async () => {
    const cube = (x: Tensor): Tensor => x.pow(3).sum();
    assert.equal(await grad(cube)(tensor(2)).item(), 12);
    assert.equal(await grad((x: Tensor) => grad(cube)(x))(tensor(2)).item(), 12);
    assert.equal(await grad(grad(grad(cube)))(tensor(2)).item(), 6);
    const [value, both] = valueAndGrad((x: Tensor, y: Tensor) => x.mul(y).sum(), [0, 1])(tensor([2]), tensor([5]));
    assert.deepEqual([await value.item(), await both[0].tolist(), await both[1].tolist()], [10, [5], [2]]);
    assert.equal(grad(cube)(tensor(2)).requiresGrad, false);
    const w = tensor(2, { requiresGrad: true });
    grad((x: Tensor) => x.mul(x).mul(w))(tensor(3)).backward(); // d/dw of 2xw
    assert.equal(await gradient(w).item(), 6);
  });
  it("modes: noGrad, enableGrad, detach, and asynchronous bodies", async () => {
    const w = tensor([1], { requiresGrad: true });
    assert.equal(noGrad(() => w.mul(2)).requiresGrad, false);
    assert.equal(noGrad(() => enableGrad(() => w.mul(2))).requiresGrad, true);
    assert.equal(w.detach().requiresGrad, false);
    await noGrad(async () => {
      await Promise.resolve();
      assert.equal(w.mul(2).requiresGrad, false);
    });
    assert.throws(
      () =>
        noGrad(() => {
          throw new Error("inside");
        }),
      /inside/,
    );
    assert.equal(isGradEnabled(), true);
    assert.throws(() => w.detach().sum().backward(), /does not require a gradient/);
    assert.throws(() => arange(2).requiresGrad_(), DTypeError);
    assert.throws(() => w.mul(2).requiresGrad_(false), /use detach/i);
  });
  it("a checkpointed function has the same value and gradients", async () => {
    const w = randn([3, 3], { requiresGrad: true });
    const f = (x: Tensor): Tensor => x.matmul(w).tanh().matmul(w).sigmoid();
    const x = randn([2, 3], { requiresGrad: true });
    f(x).sum().backward();
    const plain = [await gradient(w).tolist(), await gradient(x).tolist()];
    w.grad = null;
    x.grad = null;
    checkpoint(f, x).sum().backward();
    assert.deepEqual([await gradient(w).tolist(), await gradient(x).tolist()], plain);
  });
  it("a step by hand learns", async () => {
    const w = zeros([2], { requiresGrad: true });
    const x = stack([linspace(-1, 1, 9), ones([9])], 1);
    const y = x.matmul(tensor([3, -1]));
    for (let i = 0; i < 60; i++) {
      x.matmul(w).sub(y).square().mean().backward();
      noGrad(() => w.sub_(gradient(w).mul(0.4)));
      w.grad = null;
    }
    const [a, b] = (await w.tolist()) as number[];
    assert.ok(Math.abs(a - 3) < 1e-3 && Math.abs(b + 1) < 1e-3);
  });
});
