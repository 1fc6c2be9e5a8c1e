/**
 * What a user adds: an operation with a gradient, a layer, an optimiser. Written as a user would write it, with the public
 * exports alone; then trained on every device present. Kernels of one's own: kernels.test.ts.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import {
  defineOperation,
  manualSeed,
  nn,
  noGrad,
  optim,
  randn,
  setDevice,
  type Tensor,
  tensor,
} from "../../src/index.ts";
import { backendsUnderTest } from "../support/backends.ts";
import { Lion } from "./package/index.ts";

// ---- an operation: squared ReLU, with the gradient written down -------------------------------------------------------------

let gradientCalls = 0;
const squaredRelu = defineOperation({
  name: "own.squaredRelu",
  forward: ([x]) => x.relu().square(),
  backward: ({ inputs: [x] }, [g]) => {
    gradientCalls++;
    return [g?.mul(x.relu().mul(2)) ?? null];
  },
});

/** Two outputs, an attribute, and no gradient of its own: that of the decomposition is used. */
const sinCos = defineOperation<{ frequency: number }>({
  name: "own.sinCos",
  forward: ([x], { frequency }) => [x.mul(frequency).sin(), x.mul(frequency).cos()],
});

// ---- a layer ------------------------------------------------------------------------------------------------------------------

class FourierFeatures extends nn.Module {
  frequency: number;
  gain: nn.Parameter;
  constructor(features: number, frequency: number) {
    super();
    this.frequency = frequency;
    this.gain = new nn.Parameter(randn([features]).mul(0.1).add(1));
  }
  forward(x: Tensor): Tensor {
    const [sin, cos] = sinCos<readonly Tensor[]>([x.mul(this.gain)], { frequency: this.frequency });
    return sin.add(cos);
  }
}

class SquaredReLU extends nn.Module {
  forward(x: Tensor): Tensor {
    return squaredRelu([x]);
  }
}

// ---- misuse is caught by types ---------------------------------------------------------------------------------------------------------

/** Never called: what must not compile. */
export function misuse(): void {
  // @ts-expect-error an operation needs a meaning
  defineOperation({ name: "own.nothing" });
  // @ts-expect-error a kernel says how many rows there are
  defineOperation({ name: "own.rowless", forward: ([x]) => x, kernels: { cpu: () => ({ body: "" }) } });
  // @ts-expect-error kernels are for backends that take them
  defineOperation({ name: "own.elsewhere", forward: ([x]) => x, kernels: { gpu: () => null } });
  // @ts-expect-error inputs are tensors
  squaredRelu([1]);
  // @ts-expect-error a layer needs a forward method
  new (class extends nn.Module {})();
  // @ts-expect-error an optimiser needs an update
  new (class extends optim.Optimizer {})([], { lr: 1, maximize: false });
  // @ts-expect-error options are named
  new nn.Linear(1, 2, true);
}

test("the operation, its gradient and its gradient's gradient", async () => {
  setDevice("reference");
  const x = tensor([-1, 2, 3], { dtype: "float64", requiresGrad: true });
  gradientCalls = 0;
  squaredRelu([x]).sum().backward();
  assert.equal(gradientCalls, 1);
  assert.deepEqual(await x.grad?.tolist(), [0, 4, 6]);
  const z = tensor([0.3], { dtype: "float64", requiresGrad: true });
  const [sin] = sinCos<readonly Tensor[]>([z], { frequency: 2 });
  sin.sum().backward();
  assert.ok(Math.abs((await (z.grad as Tensor).item()) - 2 * Math.cos(0.6)) < 1e-12);
  assert.throws(() => defineOperation({ name: "relu", forward: ([y]) => y }), /already defined/);
  const secret = tensor([1]);
  const closing = defineOperation({ name: "own.closing", forward: ([y]) => y.add(secret) });
  assert.throws(() => closing([tensor([1])]), /reads a tensor \(float32\[1\]\) that is not among its inputs/);
  const drawing = defineOperation({ name: "own.drawing", forward: ([y]) => y.add(randn([1])) });
  assert.throws(() => drawing([tensor([1])]), /draws random numbers/);
});

for (const { name: device } of await backendsUnderTest())
  test(`on ${device} all of them train together`, async () => {
    setDevice(device);
    manualSeed(8);
    const model = new nn.Sequential(
      new nn.Linear(1, 16),
      new FourierFeatures(16, 1.5),
      new nn.Linear(16, 16),
      new SquaredReLU(),
      new nn.Linear(16, 1),
    );
    assert.ok(Object.keys(model.stateDict()).includes("1.gain"));
    const optimizer = new Lion(model.parameters(), { lr: 3e-3 });
    const schedule = new optim.CosineAnnealingLR(optimizer, { tMax: 200 });
    const x = tensor(
      Float32Array.from({ length: 64 }, (_, i) => -2 + (4 * i) / 63),
      { shape: [64, 1] },
    );
    const y = noGrad(() => x.mul(3).sin());
    const losses: number[] = [];
    for (let step = 0; step < 200; step++) {
      const loss = nn.functional.mseLoss(model.forward(x), y);
      loss.backward();
      await optimizer.step();
      optimizer.zeroGrad();
      schedule.step();
      if (step === 0 || step === 199) losses.push(await loss.item());
    }
    assert.ok(losses[1] < losses[0] / 10, `the loss went from ${losses[0]} to ${losses[1]}`);
  });
