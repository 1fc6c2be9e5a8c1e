/** Module: what it finds, how it saves and loads, its modes, and that its outermost result outlives the step. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { StaleReadError } from "../../src/core/errors.ts";
import { setDevice } from "../../src/execution/index.ts";
import * as nn from "../../src/nn/index.ts";
import { SGD } from "../../src/optim/index.ts";
import { ones, randn, type Tensor, tensor, zeros } from "../../src/tensor/index.ts";

setDevice("reference");

class Net extends nn.Module {
  fc1 = new nn.Linear(3, 4);
  norm = new nn.BatchNorm1d(4);
  fc2 = new nn.Linear(4, 2, { bias: false });
  scale = new nn.Parameter(ones([1]));
  forward(x: Tensor): Tensor {
    return this.fc2.forward(this.norm.forward(this.fc1.forward(x)).relu()).mul(this.scale);
  }
}

const keys = [
  ...["scale", "fc1.weight", "fc1.bias", "norm.weight", "norm.bias"],
  ...["norm.running_mean", "norm.running_var", "norm.num_batches_tracked", "fc2.weight"],
];

test("parameters and buffers are found by property, own ones first, in the order of definition", () => {
  const net = new Net();
  assert.deepEqual(
    [...net.namedParameters()].map(([name]) => name),
    ["scale", "fc1.weight", "fc1.bias", "norm.weight", "norm.bias", "fc2.weight"],
  );
  assert.deepEqual(
    [...net.namedBuffers()].map(([name]) => name),
    ["norm.running_mean", "norm.running_var", "norm.num_batches_tracked"],
  );
  assert.deepEqual(
    [...net.namedModules()].map(([name]) => name),
    ["", "fc1", "norm", "fc2"],
  );
  assert.deepEqual(Object.keys(net.stateDict()), keys);
  assert.equal(net.parameterCount(), 1 + 16 + 8 + 8);
  assert.equal(net.fc1.weight.name, "fc1.weight");
});

test("a shared parameter comes once among the parameters and under each key in the state dict", () => {
  class Tied extends nn.Module {
    embed = new nn.Embedding(5, 3);
    head = new nn.Linear(3, 5, { bias: false });
    constructor() {
      super();
      this.head.weight = this.embed.weight;
    }
    forward(ids: Tensor): Tensor {
      return this.head.forward(this.embed.forward(ids));
    }
  }
  const tied = new Tied();
  assert.equal(tied.parameters().length, 1);
  assert.deepEqual(Object.keys(tied.stateDict()), ["embed.weight", "head.weight"]);
});

test("a plain array of modules is an error that names the property", () => {
  class Wrong extends nn.Module {
    layers = [new nn.Linear(1, 1)];
    forward(x: Tensor): Tensor {
      return x;
    }
  }
  assert.throws(() => new Wrong().parameters(), /Wrong: the property "layers" is a plain array.*ModuleList/);
});

test("train and eval reach every module; apply visits children before parents", () => {
  const net = new Net();
  net.eval();
  assert.ok(net.modules().every((m) => !m.training));
  net.train();
  assert.ok(net.modules().every((m) => m.training));
  const seen: string[] = [];
  net.apply((m) => seen.push(m.constructor.name));
  assert.deepEqual(seen, ["Linear", "BatchNorm1d", "Linear", "Net"]);
});

test("a state dict loads into another model, which then gives the same; the two stay independent", async () => {
  const a = new Net();
  const b = new Net();
  a.forward(randn([6, 3])); // moves the running statistics
  const result = b.loadStateDict(a.stateDict());
  assert.deepEqual(result, { missingKeys: [], unexpectedKeys: [] });
  const x = randn([4, 3]);
  const before = await a.eval().forward(x).data();
  assert.deepEqual(await b.eval().forward(x).data(), before);
  assert.equal(await b.norm.numBatchesTracked?.item(), 1);
  const optimizer = new SGD(b.parameters(), { lr: 0.5 });
  b.forward(x).sum().backward();
  await optimizer.step();
  assert.deepEqual(await a.forward(x).data(), before);
  assert.notDeepEqual(await b.forward(x).data(), before);
});

test("loading copies by default and takes over with assign; both give the values", async () => {
  for (const assign of [false, true]) {
    const layer = new nn.Linear(2, 1);
    const weight = tensor([[1, 2]]);
    layer.loadStateDict({ weight, bias: tensor([3]) }, { assign });
    assert.deepEqual([...(await layer.forward(tensor([[1, 1]])).data())], [6]);
    layer
      .forward(ones([1, 2]))
      .sum()
      .backward();
    await new SGD(layer.parameters(), { lr: 1 }).step();
    if (!assign) assert.deepEqual(await weight.tolist(), [[1, 2]]);
    assert.deepEqual(await layer.weight.tolist(), [[0, 1]]);
  }
});

test("loading casts to the parameter's dtype", async () => {
  const layer = new nn.Linear(2, 1, { dtype: "float64" });
  layer.loadStateDict({ weight: tensor([[0.5, 2]]), bias: tensor([3], { dtype: "int32" }) });
  assert.equal(layer.weight.dtype, "float64");
  assert.deepEqual(await layer.bias?.tolist(), [3]);
});

test("missing and unexpected keys and wrong shapes are named all at once, and nothing is loaded", async () => {
  const layer = new nn.Linear(2, 3);
  const before = await layer.weight.data();
  assert.throws(
    () => layer.loadStateDict({ weight: zeros([3, 3]), bogus: zeros([1]) }),
    (error: Error) =>
      /missing keys: "bias"/.test(error.message) &&
      /unexpected keys: "bogus"/.test(error.message) &&
      /"weight" has shape \[3, 3\], the model's is \[3, 2\]/.test(error.message),
  );
  assert.deepEqual(await layer.weight.data(), before);
  const loose = layer.loadStateDict({ weight: ones([3, 2]), bogus: zeros([1]) }, { strict: false });
  assert.deepEqual(loose, { missingKeys: ["bias"], unexpectedKeys: ["bogus"] });
  assert.throws(() => layer.loadStateDict({ weight: zeros([1]) }, { strict: false }), /wrong shapes/);
});

test("buffers: registerBuffer sets a property, non-persistent ones are not saved", () => {
  class WithBuffers extends nn.Module {
    declare mask: nn.Buffer;
    table = new nn.Buffer(zeros([2]), { persistent: false });
    constructor() {
      super();
      this.registerBuffer("mask", ones([3]));
    }
    forward(x: Tensor): Tensor {
      return x.mul(this.mask);
    }
  }
  const m = new WithBuffers();
  assert.deepEqual(m.mask.shape, [3]);
  assert.equal(m.buffers().length, 2);
  assert.deepEqual(Object.keys(m.stateDict()), ["mask"]);
});

test("to casts what floats and leaves integers; the model still trains", async () => {
  const net = new Net().to("float64");
  assert.ok(net.parameters().every((p) => p.dtype === "float64" && p.requiresGrad));
  assert.equal(net.norm.runningMean?.dtype, "float64");
  assert.equal(net.norm.numBatchesTracked?.dtype, "int32");
  net
    .forward(randn([4, 3], { dtype: "float64" }))
    .sum()
    .backward();
  assert.equal(net.fc1.weight.grad?.dtype, "float64");
  assert.throws(() => net.to("int32"), /floating dtype/);
});

test("zeroGrad drops the gradients, requiresGrad_ freezes", () => {
  const net = new Net();
  net.fc1.requiresGrad_(false);
  net
    .forward(randn([4, 3]))
    .sum()
    .backward();
  assert.equal(net.fc1.weight.grad, null);
  assert.ok(net.fc2.weight.grad);
  assert.equal(net.parameterCount({ trainable: true }), net.parameterCount() - 16);
  net.zeroGrad();
  assert.equal(net.fc2.weight.grad, null);
});

test("what the outermost forward gave can be read after the step; what it computed inside can't", async () => {
  class Inner extends nn.Module {
    fc = new nn.Linear(3, 3);
    hidden: Tensor | null = null;
    forward(x: Tensor): Tensor {
      return (this.hidden = this.fc.forward(x).mul(2)).tanh();
    }
  }
  const net = new Inner();
  const x = randn([2, 3]);
  const expected = await net.forward(x).data();
  const out = net.forward(x);
  out.sum().backward();
  await new SGD(net.parameters(), { lr: 1 }).step();
  assert.deepEqual(await out.data(), expected);
  await assert.rejects(async () => (net.hidden as Tensor).data(), StaleReadError);
});

test("an output of more than 1 MiB is not kept", async () => {
  const layer = new nn.Linear(1, 1);
  const out = layer.forward(ones([2 ** 18 + 1, 1]));
  out.mean().backward();
  await new SGD(layer.parameters(), { lr: 1 }).step();
  await assert.rejects(async () => out.data(), StaleReadError);
});

test("containers: names, iteration, errors", async () => {
  const named = new nn.Sequential({ hidden: new nn.Linear(2, 3), act: new nn.ReLU(), out: new nn.Linear(3, 1) });
  assert.deepEqual(Object.keys(named.stateDict()), ["hidden.weight", "hidden.bias", "out.weight", "out.bias"]);
  const plain = new nn.Sequential(new nn.Linear(2, 3), new nn.Tanh());
  assert.deepEqual(Object.keys(plain.stateDict()), ["0.weight", "0.bias"]);
  assert.equal(plain.length, 2);
  assert.ok(plain[1] instanceof nn.Tanh);
  assert.deepEqual(plain.forward(ones([5, 2])).shape, [5, 3]);
  // @ts-expect-error a class is no instance
  assert.throws(() => new nn.Sequential(nn.ReLU), /Sequential/);
  // @ts-expect-error a function is no layer
  assert.throws(() => new nn.Sequential(new nn.ReLU(), (x: Tensor) => x), /entry 1 is no module/);
  assert.throws(() => new nn.Sequential({ forward: new nn.ReLU() }), /can't be called "forward"/);

  const list = new nn.ModuleList([new nn.Linear(1, 1), new nn.Linear(1, 2)]).append(new nn.Linear(2, 1));
  assert.equal(list.length, 3);
  assert.equal(list.at(-1)?.outFeatures, 1);
  assert.deepEqual(
    [...list].map((l) => l.outFeatures),
    [1, 2, 1],
  );
  assert.throws(() => list.forward(), /no forward/);

  const dict = new nn.ModuleDict({ a: new nn.Linear(1, 1), forward: new nn.Linear(1, 1) });
  assert.deepEqual(Object.keys(dict.stateDict()), ["a.weight", "a.bias", "forward.weight", "forward.bias"]);
  assert.throws(() => dict.get("b"), /there is no "b"; there are a, forward/);
});

test("replaceChild puts another module in a child's place, in containers too", async () => {
  const twice = () => new nn.Sequential(new nn.Identity(), new nn.Identity());
  const x = tensor([-1, 2]);
  for (const [parent, name] of [
    [twice(), "1"],
    [new nn.Sequential({ first: new nn.Identity(), last: new nn.Identity() }), "first"],
  ] as const) {
    parent.replaceChild(name, new nn.ReLU());
    assert.deepEqual(await parent.forward(x).tolist(), [0, 2]);
    assert.match(String(parent), new RegExp(`\\(${name}\\): ReLU`));
  }
  const list = new nn.ModuleList([new nn.Identity(), new nn.Identity()]);
  list.replaceChild("0", new nn.ReLU());
  assert.ok([...list][0] instanceof nn.ReLU);
  const dict = new nn.ModuleDict({ a: new nn.Identity() });
  dict.replaceChild("a", new nn.ReLU());
  assert.ok(dict.get("a") instanceof nn.ReLU);
  assert.throws(() => dict.replaceChild("b", new nn.ReLU()), /there is no "b"; there are a/);
  assert.throws(
    () => new Net().replaceChild("fc3", new nn.ReLU()),
    /there is no child "fc3"; there are fc1, norm, fc2/,
  );
});

test("a module prints as a tree", () => {
  assert.equal(
    String(new nn.Sequential(new nn.Linear(2, 3), new nn.Dropout(0.1))),
    "Sequential(\n  (0): Linear(inFeatures=2, outFeatures=3, bias=true)\n  (1): Dropout(p=0.1)\n)",
  );
});
