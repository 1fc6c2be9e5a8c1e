/**
 * The share of a GPT step that the JavaScript thread is at work (recording, finding the program, handing it over), as the
 * event loop itself measures it: the kernels run on threads of their own.
 */
import type { Benchmark } from "./support/benchmark.ts";
import { largeGpt, serveGpt } from "./support/gpt-step.ts";
import { median } from "./support/numbers.ts";
import { ours } from "./support/sides.ts";

export const benchmark: Benchmark = {
  name: "javascript",
  title: "JavaScript's share of the GPT step, 10.8 M parameters",
  ours: () => serveGpt(largeGpt),
  run: async ({ rounds, scale }) => {
    const session = await ours("javascript").open();
    await session.check();
    const shares: number[] = [];
    const steps: number[] = [];
    for (let round = 0; round < rounds; round++) {
      const { ms, active } = await session.round(0, 4 * scale);
      shares.push(100 * (active as number));
      steps.push(...ms);
    }
    await session.close();
    const share = median(shares);
    const note = `${((share / 100) * median(steps)).toFixed(1)} of ${median(steps).toFixed(0)} ms a step`;
    return [{ line: "share", peer: null, unit: "%", ours: share, target: { atMost: 3 }, note }];
  },
};
