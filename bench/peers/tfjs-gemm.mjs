/**
 * A float32 matrix product in TensorFlow.js on its wasm backend: tfjs-gemm.mjs FOLDER SIZE, in whose node_modules
 * @tensorflow/tfjs and @tensorflow/tfjs-backend-wasm are. Speaks the lines of support/protocol.ts; operands are wasm.ts's.
 */
import { serve, tf } from "./tfjs.mjs";

const size = Number(process.argv[3]);
const numbers = (step) => Float32Array.from({ length: size * size }, (_, i) => ((i * step) % 1009) / 1009 - 0.5);
const a = tf.tensor2d(numbers(7), [size, size]);
const b = tf.tensor2d(numbers(11), [size, size]);
async function product() {
  const c = tf.matMul(a, b);
  const data = await c.data();
  c.dispose();
  return data;
}

await serve({
  check: async () => {
    const c = await product();
    return [c[0], c[c.length - 1], c.reduce((sum, x) => sum + Math.abs(x), 0)];
  },
  sample: product,
});
