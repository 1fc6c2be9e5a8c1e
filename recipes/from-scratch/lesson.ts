/**
 * A neural network from scratch: the multilayer perceptron 2-4-4-1 for binary classification. Its gradient is worked out by
 * hand, layer by layer, then by automatic differentiation; the two agree. Then it learns two moons.
 * The README beside this file explains each step. Run it: node --import tsx recipes/from-scratch/lesson.ts
 */
import { fileURLToPath } from "node:url";
import {
  cat,
  manualSeed,
  nn,
  noGrad,
  ones,
  optim,
  rand,
  randn,
  stack,
  type Tensor,
  tensor,
  zeros,
} from "../../src/index.ts";

const float64 = { dtype: "float64" } as const;

// ---- 1. The network ---------------------------------------------------------------------------------------------------

/** Weights [out, in] and biases [out] of the three layers 2 → 4 → 4 → 1. */
export interface Network {
  W1: Tensor;
  b1: Tensor;
  W2: Tensor;
  b2: Tensor;
  W3: Tensor;
  b3: Tensor;
}

export function createNetwork(): Network {
  const leaf = { ...float64, requiresGrad: true };
  return {
    W1: randn([4, 2], leaf),
    b1: randn([4], leaf),
    W2: randn([4, 4], leaf),
    b2: randn([4], leaf),
    W3: randn([1, 4], leaf),
    b3: randn([1], leaf),
  };
}

/** Everything the network computes on its way from inputs X [n, 2] to logits z3 [n, 1]. */
export function forward({ W1, b1, W2, b2, W3, b3 }: Network, X: Tensor) {
  const z1 = X.matmul(W1.t()).add(b1); // [n, 4]
  const a1 = z1.sigmoid();
  const z2 = a1.matmul(W2.t()).add(b2); // [n, 4]
  const a2 = z2.sigmoid();
  const z3 = a2.matmul(W3.t()).add(b3); // [n, 1]
  return { z1, a1, z2, a2, z3 };
}

/**
 * The mean cross-entropy of p = σ(z) against labels y. Written in z, −y log p − (1 − y) log(1 − p) becomes
 * max(z, 0) − z y + log(1 + e^−|z|), in which nothing overflows and no logarithm meets a zero.
 */
export const crossEntropy = (z: Tensor, y: Tensor): Tensor =>
  z.maximum(0).sub(z.mul(y)).add(z.abs().neg().exp().log1p()).mean();

// ---- 2. The chain rule by hand ------------------------------------------------------------------------------------------

/** ∂L/∂ of every parameter, from the output back to the input. δ stands for ∂L/∂z. */
export function gradientsByHand(network: Network, X: Tensor, y: Tensor): Network {
  return noGrad(() => {
    const { a1, a2, z3 } = forward(network, X);
    const n = X.shape[0];
    // The last layer. Through cross-entropy and sigmoid together only a difference is left: ∂L/∂z = (p − y) / n.
    const delta3 = z3.sigmoid().sub(y).div(n); // [n, 1]
    const W3 = delta3.t().matmul(a2); //  z3 = a2 W3ᵀ + b3
    const b3 = delta3.sum(0);
    // The second. ∂L/∂a2 comes back through W3; the sigmoid's slope is a (1 − a).
    const slope = (a: Tensor): Tensor => a.mul(a.neg().add(1));
    const delta2 = delta3.matmul(network.W3).mul(slope(a2)); // [n, 4]
    const W2 = delta2.t().matmul(a1);
    const b2 = delta2.sum(0);
    // The first, the same once more.
    const delta1 = delta2.matmul(network.W2).mul(slope(a1)); // [n, 4]
    const W1 = delta1.t().matmul(X);
    const b1 = delta1.sum(0);
    return { W1, b1, W2, b2, W3, b3 };
  });
}

// ---- 3. The same by automatic differentiation -----------------------------------------------------------------------------

/** Records the loss and walks back through what was recorded. */
export function gradientsByAutograd(network: Network, X: Tensor, y: Tensor): Network {
  for (const parameter of Object.values(network)) parameter.grad = null;
  crossEntropy(forward(network, X).z3, y).backward();
  return Object.fromEntries(
    Object.entries(network).map(([name, parameter]) => [name, parameter.grad]),
  ) as unknown as Network;
}

/** The largest difference between two sets of gradients, and the largest gradient, to compare it with. */
export async function compare(a: Network, b: Network): Promise<{ difference: number; size: number }> {
  let [difference, size] = [0, 0];
  for (const name of Object.keys(a) as (keyof Network)[]) {
    const [x, y] = [await a[name].data(), await b[name].data()];
    x.forEach((value, i) => {
      difference = Math.max(difference, Math.abs(value - y[i]));
      size = Math.max(size, Math.abs(value));
    });
  }
  return { difference, size };
}

// ---- 4. Two moons -----------------------------------------------------------------------------------------------------------

/** Two half circles that reach into each other: points [n, 2], labels [n, 1]. */
export function twoMoons(n: number, noise = 0.1): { X: Tensor; y: Tensor } {
  const half = n / 2;
  const t = rand([half], float64).mul(Math.PI);
  const u = rand([half], float64).mul(Math.PI);
  const upper = stack([t.cos(), t.sin()], 1);
  const lower = stack([u.cos().neg().add(1), u.sin().neg().add(0.5)], 1);
  const X = cat([upper, lower]).add(randn([n, 2], float64).mul(noise));
  const y = cat([zeros([half, 1], float64), ones([half, 1], float64)]);
  return { X, y };
}

/** The share of points on the right side: p > ½ where z > 0. */
export const accuracy = async (network: Network, X: Tensor, y: Tensor): Promise<number> =>
  noGrad(() => forward(network, X).z3.gt(0).eq(y.gt(0.5)).to("float64").mean()).item();

/** Steps of Adam over all points at once. Gives the loss now and then. */
export async function train(
  network: Network,
  X: Tensor,
  y: Tensor,
  steps: number,
  onLoss: (step: number, loss: number) => void = () => {},
): Promise<void> {
  const optimizer = new optim.Adam(Object.values(network), { lr: 0.05 });
  for (let step = 1; step <= steps; step++) {
    const loss = crossEntropy(forward(network, X).z3, y);
    loss.backward();
    await optimizer.step();
    optimizer.zeroGrad();
    if (step % 100 === 0) onLoss(step, await loss.item());
  }
}

/** What the network says over the plane, as characters: · for the upper moon, # for the lower, + where it is unsure. */
export async function drawPlane(network: Network, columns = 60, rows = 20): Promise<string> {
  const points: number[] = [];
  for (let r = 0; r < rows; r++)
    for (let c = 0; c < columns; c++) points.push(-1.5 + (4 * c) / (columns - 1), 1.5 - (2.5 * r) / (rows - 1));
  const grid = tensor(Float64Array.from(points), { shape: [rows * columns, 2] });
  const p = await noGrad(() => forward(network, grid).z3.sigmoid()).data();
  const line = (r: number): string =>
    Array.from(p.subarray(r * columns, (r + 1) * columns), (v) => (v < 0.1 ? "·" : v > 0.9 ? "#" : "+")).join("");
  return Array.from({ length: rows }, (_, r) => `  ${line(r)}`).join("\n");
}

// ---- 5. At the edge of the numbers --------------------------------------------------------------------------------------------

/** The loss and its gradient at logits where σ is 0 or 1 to the last digit: as the definition says, and as we wrote it. */
export async function saturation(z: number, y: number): Promise<{ naive: number; stable: number; gradient: number }> {
  const logit = tensor([z], { ...float64, requiresGrad: true });
  const label = tensor([y], float64);
  const p = logit.sigmoid();
  const naive = noGrad(() =>
    p
      .log()
      .mul(label)
      .add(p.neg().add(1).log().mul(label.neg().add(1)))
      .neg()
      .mean(),
  );
  const stable = crossEntropy(logit, label);
  stable.backward();
  return { naive: await naive.item(), stable: await stable.item(), gradient: await (logit.grad as Tensor).item() };
}

// ---- 6. The same network in layers ----------------------------------------------------------------------------------------------

/** What all of the above is in the words of the library. */
export async function inLayers(X: Tensor, y: Tensor, steps: number): Promise<number> {
  const model = new nn.Sequential(
    ...[new nn.Linear(2, 4, float64), new nn.Sigmoid()],
    ...[new nn.Linear(4, 4, float64), new nn.Sigmoid()],
    new nn.Linear(4, 1, float64),
  );
  const optimizer = new optim.Adam(model.parameters(), { lr: 0.05 });
  let loss = NaN;
  for (let step = 1; step <= steps; step++) {
    const value = nn.functional.binaryCrossEntropyWithLogits(model.forward(X), y);
    optimizer.zeroGrad();
    value.backward();
    await optimizer.step();
    if (step === steps) loss = await value.item();
  }
  return loss;
}

// ---- the lesson -------------------------------------------------------------------------------------------------------------------

export async function main(
  print: (line: string) => void = console.log,
): Promise<{ heldOut: number; difference: number }> {
  manualSeed(7);
  const { X, y } = twoMoons(1000);
  const heldOut = twoMoons(1000);
  const network = createNetwork();

  print("1. The network 2-4-4-1");
  const { z3 } = forward(network, X);
  print(
    `   ${Object.values(network).reduce((n, p) => n + p.size, 0)} numbers to learn; loss before: ${(await crossEntropy(z3, y).item()).toFixed(4)} (guessing costs ln 2 = ${Math.LN2.toFixed(4)})`,
  );

  print("\n2. The chain rule by hand, and 3. by automatic differentiation");
  const byHand = gradientsByHand(network, X, y);
  const byAutograd = gradientsByAutograd(network, X, y);
  for (const name of Object.keys(byHand) as (keyof Network)[]) {
    const [a, b] = [await byHand[name].data(), await byAutograd[name].data()];
    print(`   ∂L/∂${name}[0] = ${a[0].toFixed(12).padStart(16)} by hand, ${b[0].toFixed(12).padStart(16)} by autograd`);
  }
  const { difference, size } = await compare(byHand, byAutograd);
  print(`   largest difference ${difference.toExponential(1)}, largest gradient ${size.toExponential(1)}`);

  print("\n4. Two moons: 1000 points to learn from, 1000 held out");
  await train(network, X, y, 1000, (step, loss) => {
    if (step % 200 === 0) print(`   step ${String(step).padStart(4)}  loss ${loss.toFixed(4)}`);
  });
  const share = await accuracy(network, heldOut.X, heldOut.y);
  print(`   right on ${(100 * share).toFixed(1)} % of the points held out\n`);
  print(await drawPlane(network));

  print("\n5. Saturated: the logits grow, the probabilities become 0 and 1");
  for (const [z, label] of [
    [-20, 1],
    [-800, 1],
    [800, 0],
    [800, 1],
  ]) {
    const { naive, stable, gradient } = await saturation(z, label);
    print(
      `   z = ${String(z).padStart(4)}, y = ${label}: from p ${String(naive).padStart(18)}, from z ${String(stable).padStart(18)}, ∂L/∂z ${gradient}`,
    );
  }

  print("\n6. The same in layers");
  print(`   nn.Sequential after 300 steps: loss ${(await inLayers(X, y, 300)).toFixed(4)}`);
  return { heldOut: share, difference };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main();
