/** A training step of a GPT of 10.8 M parameters on 8 × 256 tokens, float32, AdamW. */
import { type Benchmark, race } from "./support/benchmark.ts";
import { gptArguments, largeGpt, serveGpt } from "./support/gpt-step.ts";
import { floor, ours, torch } from "./support/sides.ts";

export const benchmark: Benchmark = {
  name: "gpt",
  title: "GPT step: 10.8 M parameters, 8 × 256 tokens, AdamW",
  ours: () => serveGpt(largeGpt),
  run: (options) =>
    race(options, {
      sides: [ours("gpt"), ...torch("gpt.py", ...gptArguments(largeGpt)), floor("floor.c", ["gpt"], 3)],
      lines: ["step"],
      seconds: 4,
      tolerance: 1e-3,
      targets: { torch: { atLeast: 1.2 }, "torch.compile": { atLeast: 1.2 }, floor: { atLeast: 1 / 1.1 } },
    }),
};
