/** A training step at nanoGPT's CPU setting: 4 layers, 4 heads, width 128, context 64, batch 12. */
import { type Benchmark, race } from "./support/benchmark.ts";
import { type GptStep, gptArguments, serveGpt } from "./support/gpt-step.ts";
import { ours, torch } from "./support/sides.ts";

const shape: GptStep = {
  vocabSize: 65,
  contextLength: 64,
  numLayers: 4,
  numHeads: 4,
  hiddenSize: 128,
  batch: 12,
  steps: 10,
};

export const benchmark: Benchmark = {
  name: "nanogpt-cpu",
  title: "GPT step at nanoGPT's CPU setting: 0.8 M parameters, 12 × 64 tokens, AdamW",
  ours: () => serveGpt(shape),
  run: (options) =>
    race(options, {
      sides: [ours("nanogpt-cpu"), ...torch("gpt.py", ...gptArguments(shape))],
      lines: ["step"],
      seconds: 2,
      tolerance: 1e-3,
      targets: { torch: { atLeast: 1.4 }, "torch.compile": { atLeast: 1.4 } },
    }),
};
