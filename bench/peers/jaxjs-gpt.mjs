/**
 * The step of support/gpt-step.ts in jax-js: jaxjs-gpt.mjs FOLDER DEVICE VOCABULARY CONTEXT LAYERS HEADS WIDTH BATCH STEPS.
 * GPT-2's architecture out of jax.numpy, its gradient and AdamW in one jitted function. Every use of an array but the last
 * takes a reference of its own (`.ref`), as jax-js wants it.
 */
import { jax, rest, serve } from "./jaxjs.mjs";

const { numpy: np, nn, tree } = jax;
const [V, T, L, H, C, B, STEPS] = rest.map(Number);

function hash(seed, i) {
  let x = (i + Math.imul(seed, 0x9e3779b9)) >>> 0;
  x = Math.imul(x ^ (x >>> 16), 0x7feb352d);
  x = Math.imul(x ^ (x >>> 15), 0x846ca68b);
  return (x ^ (x >>> 16)) >>> 0;
}
const uniform = (seed, n, bound) =>
  Float32Array.from({ length: n }, (_, i) => (2 * (hash(seed, i) / 2 ** 32) - 1) * bound);

/** The weights of support/weights.ts, in its order; projections are [in, out]. */
let index = 0;
const matrix = (rows, columns, inputs) =>
  np.array(uniform(1000 + index++, rows * columns, 1 / Math.sqrt(inputs))).reshape([rows, columns]);
const vector = (n, around = 0) => np.array(uniform(1000 + index++, n, 0.1).map((x) => x + around));
const norm = () => [vector(C, 1), vector(C)];
const projection = (inputs, outputs) => [matrix(inputs, outputs, inputs), vector(outputs)];
const start = {
  wte: matrix(V, C, C),
  wpe: matrix(T, C, C),
  h: Array.from({ length: L }, () => ({
    ln1: norm(),
    attn: projection(C, 3 * C),
    proj: projection(C, C),
    ln2: norm(),
    fc: projection(C, 4 * C),
    out: projection(4 * C, C),
  })),
  lnf: norm(),
};

const layerNorm = (x, [weight, bias]) => nn.standardize(x, -1, { epsilon: 1e-5 }).mul(weight).add(bias);
const linear = (x, [weight, bias]) => np.matmul(x, weight).add(bias);

/** [B·T, 3C] → [B·T, C]: what nn.dotProductAttention does, whose einsum needs a Node of 22 at least. */
function attention(qkv) {
  const heads = np.split(qkv.reshape([B, T, 3 * C]), 3, -1).map((x) => x.reshape([B, T, H, C / H]));
  const [q, k, v] = heads.map((x, i) => x.transpose(i === 1 ? [0, 2, 3, 1] : [0, 2, 1, 3]));
  const scores = np.matmul(q, k).mul(1 / Math.sqrt(C / H)); // [B, H, T, T]
  const seen = np.where(np.tri(T, T, 0, { dtype: np.bool }), scores, -Infinity);
  return np
    .matmul(nn.softmax(seen), v)
    .transpose([0, 2, 1, 3])
    .reshape([B * T, C]);
}

function block(x, p) {
  x = x.ref.add(linear(attention(linear(layerNorm(x, p.ln1), p.attn)), p.proj));
  return x.ref.add(linear(nn.gelu(linear(layerNorm(x, p.ln2), p.fc)), p.out));
}

/** Tokens and targets come as one-hot rows [B·T, V]: a lookup's gradient is a product then, which is its fastest way. */
function loss(p, tokens, targets) {
  let x = np
    .matmul(tokens, p.wte.ref)
    .reshape([B, T, C])
    .add(p.wpe)
    .reshape([B * T, C]);
  for (const layer of p.h) x = block(x, layer);
  const logits = np.matmul(layerNorm(x, p.lnf), p.wte.transpose());
  return nn
    .logSoftmax(logits)
    .mul(targets)
    .sum()
    .mul(-1 / (B * T));
}

const [lr, beta1, beta2, eps, weightDecay] = [1e-3, 0.9, 0.999, 1e-8, 0.01];
/** stepSize: lr / (1 − β₁ᵗ); correction: 1 / √(1 − β₂ᵗ). */
function adamW(p, g, m, v, stepSize, correction) {
  const first = m.mul(beta1).add(g.ref.mul(1 - beta1));
  const second = v.mul(beta2).add(np.square(g).mul(1 - beta2));
  const root = np.sqrt(second.ref).mul(correction).add(eps);
  return [p.mul(1 - lr * weightDecay).sub(first.ref.div(root).mul(stepSize)), first, second];
}

const update = jax.jit((p, m, v, tokens, targets, stepSize, correction) => {
  const [value, gradients] = jax.valueAndGrad(loss)(tree.ref(p), tokens, targets);
  const [flat, structure] = tree.flatten(p);
  const [g, first, second] = [gradients, m, v].map((t) => tree.leaves(t));
  const next = flat.map((x, i) => adamW(x, g[i], first[i], second[i], stepSize.ref, correction.ref));
  stepSize.dispose();
  correction.dispose();
  return [
    value,
    ...[0, 1, 2].map((k) =>
      tree.unflatten(
        structure,
        next.map((each) => each[k]),
      ),
    ),
  ];
});

const oneHot = (seed) => {
  const rows = new Float32Array(B * T * V);
  for (let i = 0; i < B * T; i++) rows[i * V + (hash(seed, i) % V)] = 1;
  return np.array(rows).reshape([B * T, V]);
};
const batches = Array.from({ length: 8 }, (_, i) => [oneHot(10 + i), oneHot(20 + i)]);
let p = start;
let [m, v] = [0, 1].map(() => tree.map((x) => np.zeros(x.shape), start));
let t = 0;
function step() {
  const [tokens, targets] = batches[t++ % 8];
  const scalars = [lr / (1 - beta1 ** t), 1 / Math.sqrt(1 - beta2 ** t)].map((x) => np.array(new Float32Array([x])));
  let value;
  [value, p, m, v] = update(p, m, v, tokens.ref, targets.ref, ...scalars);
  return value;
}
async function sample() {
  for (let k = 1; k < STEPS; k++) step().dispose();
  return (await step().data())[0];
}

await serve({
  check: async () => {
    const values = [];
    for (let k = 0; k < 6; k++) values.push((await step().data())[0]);
    return values;
  },
  sample,
  per: STEPS,
});
