/**
 * The `webgpu` backend beside jax-js on the same adapter: a large matrix product and a training step of a small GPT. In
 * Node the adapter is whatever Vulkan finds; VK_DRIVER_FILES may name a software one (SwiftShader, lavapipe).
 */
import { type Benchmark, race } from "./support/benchmark.ts";
import { type GptStep, gptArguments, serveGpt } from "./support/gpt-step.ts";
import { serveProduct } from "./support/product.ts";
import { jaxjs, oursOn } from "./support/sides.ts";

const size = 1024;

/** Vocabulary 65, 2 layers, 4 heads, width 128, context 64, batch 4: 0.4 M parameters, about a second a step in software. */
const gpt: GptStep = {
  vocabSize: 65,
  contextLength: 64,
  numLayers: 2,
  numHeads: 4,
  hiddenSize: 128,
  batch: 4,
  steps: 1,
};

export const benchmark: Benchmark = {
  name: "webgpu",
  title: "The webgpu backend: product of 1024³, step of a GPT of 0.4 M parameters on 4 × 64 tokens",
  ours: ([what]) => (what === "gpt" ? serveGpt(gpt) : serveProduct(size)),
  run: async (options) => [
    ...(await race(options, {
      sides: [oursOn("webgpu", "webgpu", "product"), jaxjs("webgpu", "jaxjs-gemm.mjs", String(size))],
      lines: ["1024³"],
      unit: "GFLOP/s",
      convert: (ms) => (2 * size ** 3) / ms / 1e6,
      seconds: 3,
      tolerance: 1e-3,
      targets: { "jaxjs-webgpu": { atLeast: 1 } },
    })),
    ...(await race(options, {
      sides: [oursOn("webgpu", "webgpu", "gpt"), jaxjs("webgpu", "jaxjs-gpt.mjs", ...gptArguments(gpt))],
      lines: ["GPT step"],
      seconds: 3,
      tolerance: 1e-3,
      targets: { "jaxjs-webgpu": { atLeast: 1 } },
    })),
  ],
};
