/**
 * The `wasm` backend: a large matrix product and the MLP step beside TensorFlow.js' wasm backend, the GPT step beside our
 * own `cpu`.
 */
import { tensor } from "../src/index.ts";
import { type Benchmark, type Result, race } from "./support/benchmark.ts";
import { oursOn, tfjs } from "./support/sides.ts";

const size = 1024;

export const benchmark: Benchmark = {
  name: "wasm",
  title: "The wasm backend: product of 1024³, MLP step, GPT step",
  ours: async () => {
    const numbers = (step: number) =>
      tensor(
        Float32Array.from({ length: size * size }, (_, i) => ((i * step) % 1009) / 1009 - 0.5),
        { shape: [size, size] },
      );
    const [a, b] = [numbers(7), numbers(11)];
    const product = async () => (await a.matmul(b).data()) as Float32Array;
    return {
      title: `Nabla, ${a.device}`,
      check: async () => {
        const c = await product();
        return [c[0], c[c.length - 1], c.reduce((sum, x) => sum + Math.abs(x), 0)];
      },
      lines: [{ name: "product", per: 1, run: product }],
    };
  },
  run: async (options) => {
    const results: Result[] = [];
    results.push(
      ...(await race(options, {
        sides: [oursOn("wasm", "wasm"), tfjs("tfjs-gemm.mjs", String(size))],
        lines: ["1024³"],
        unit: "GFLOP/s",
        convert: (ms) => (2 * size ** 3) / ms / 1e6,
        seconds: 1,
        tolerance: 1e-3,
        targets: { "tfjs-wasm": { atLeast: 2 } },
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
