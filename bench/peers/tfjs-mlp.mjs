/**
 * The perceptron of mlp.ts in TensorFlow.js on its wasm backend (SIMD, threads where it has them): tfjs-mlp.mjs FOLDER, in
 * whose node_modules @tensorflow/tfjs and @tensorflow/tfjs-backend-wasm are. Speaks the lines of support/protocol.ts.
 */
import { serve, tf } from "./tfjs.mjs";

function hash(seed, i) {
  let x = (i + Math.imul(seed, 0x9e3779b9)) >>> 0;
  x = Math.imul(x ^ (x >>> 16), 0x7feb352d);
  x = Math.imul(x ^ (x >>> 15), 0x846ca68b);
  return (x ^ (x >>> 16)) >>> 0;
}
const uniform = (seed, n, bound = 1) =>
  Float32Array.from({ length: n }, (_, i) => (2 * (hash(seed, i) / 2 ** 32) - 1) * bound);

const sizes = [784, 128, 10];
const layers = [0, 1].map((k) => {
  const [inputs, outputs] = [sizes[k], sizes[k + 1]];
  const weight = tf.tidy(() =>
    tf.transpose(tf.tensor2d(uniform(1000 + 2 * k, inputs * outputs, 1 / Math.sqrt(inputs)), [outputs, inputs])),
  );
  return { weight: tf.variable(weight), bias: tf.variable(tf.tensor1d(uniform(1001 + 2 * k, outputs, 0.1))) };
});
const batches = Array.from({ length: 8 }, (_, i) => ({
  images: tf.tensor2d(uniform(10 + i, 128 * 784), [128, 784]),
  labels: tf
    .oneHot(
      tf.tensor1d(
        Int32Array.from({ length: 128 }, (_, k) => hash(20 + i, k) % 10),
        "int32",
      ),
      10,
    )
    .toFloat(),
}));
const optimizer = tf.train.adam(1e-3, 0.9, 0.999, 1e-8);
let count = 0;
function step() {
  const { images, labels } = batches[count++ % 8];
  return optimizer.minimize(() => {
    const [first, second] = layers;
    const hidden = tf.relu(tf.add(tf.matMul(images, first.weight), first.bias));
    const logits = tf.add(tf.matMul(hidden, second.weight), second.bias);
    return tf.losses.softmaxCrossEntropy(labels, logits);
  }, true);
}
async function sample(steps) {
  for (let k = 1; k < steps; k++) step().dispose();
  const last = step();
  const [value] = await last.data();
  last.dispose();
  return value;
}

const per = 20;
await serve({
  check: async () => {
    const values = [];
    for (let k = 0; k < 6; k++) values.push(await sample(1));
    return values;
  },
  sample: () => sample(per),
  per,
  first: () => sample(per),
});
