/**
 * A float32 matrix product in jax-js: jaxjs-gemm.mjs FOLDER DEVICE SIZE. Operands are those of support/product.ts.
 */
import { jax, rest, serve } from "./jaxjs.mjs";

const { numpy: np } = jax;
const size = Number(rest[0]);
const numbers = (step) =>
  np
    .array(Float32Array.from({ length: size * size }, (_, i) => ((i * step) % 1009) / 1009 - 0.5))
    .reshape([size, size]);
const a = numbers(7);
const b = numbers(11);
const product = () => np.matmul(a.ref, b.ref).data(); // reading it gives it back

await serve({
  check: async () => {
    const c = await product();
    return [c[0], c[c.length - 1], c.reduce((sum, x) => sum + Math.abs(x), 0)];
  },
  sample: product,
});
