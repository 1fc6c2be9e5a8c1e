/**
 * The `wasm` backend: a large matrix product beside the wasm backends of TensorFlow.js and jax-js, the MLP step beside
 * TensorFlow.js', the GPT step beside our own `cpu`.
 */
import { type Benchmark, type Result, race } from "./support/benchmark.ts";
import { serveProduct } from "./support/product.ts";
import { jaxjs, oursOn, tfjs } from "./support/sides.ts";

const size = 1024;

export const benchmark: Benchmark = {
  name: "wasm",
  title: "The wasm backend: product of 1024³, MLP step, GPT step",
  ours: () => serveProduct(size),
  run: async (options) => {
    const results: Result[] = [];
    results.push(
      ...(await race(options, {
        sides: [
          oursOn("wasm", "wasm"),
          tfjs("tfjs-gemm.mjs", String(size)),
          jaxjs("wasm", "jaxjs-gemm.mjs", String(size)),
        ],
        lines: ["1024³"],
        unit: "GFLOP/s",
        convert: (ms) => (2 * size ** 3) / ms / 1e6,
        seconds: 1,
        tolerance: 1e-3,
        targets: { "tfjs-wasm": { atLeast: 2 }, "jaxjs-wasm": { atLeast: 2 } },
      })),
      ...(await race(options, {
        sides: [oursOn("wasm", "mlp"), tfjs("tfjs-mlp.mjs")],
        lines: ["MLP step"],
        seconds: 1,
        tolerance: 1e-3,
        targets: { "tfjs-wasm": { atLeast: 5 } },
      })),
      ...(await race(options, {
        sides: [oursOn("wasm", "gpt"), oursOn("cpu", "gpt")],
        lines: ["GPT step"],
        seconds: 4,
        tolerance: 1e-3,
        targets: { cpu: { atLeast: 0.3 } },
      })),
    );
    return results;
  },
};
