/** Two training processes at once on the same cores: how much longer each step takes than in one alone, ours and PyTorch's. */
import { type Benchmark, openAll, type Result } from "./support/benchmark.ts";
import { gptArguments, largeGpt, serveGpt } from "./support/gpt-step.ts";
import { median } from "./support/numbers.ts";
import { ours, python, type Side } from "./support/sides.ts";

const seconds = 4;

export const benchmark: Benchmark = {
  name: "two",
  title: "Two training processes at once, GPT of 10.8 M parameters: time a step beside one alone",
  ours: () => serveGpt(largeGpt),
  run: async ({ rounds, scale, say }) => {
    const results: Result[] = [];
    const kinds: [Side, Result["target"]][] = [
      [ours("two"), { atMost: 2.3 }],
      [python("torch", "gpt.py", "eager", ...gptArguments(largeGpt)), undefined],
    ];
    for (const [side, target] of kinds) {
      const line = `${side.name}: two at once ÷ alone`;
      const common = { line, peer: null, unit: "×", ...(target ? { target } : {}) };
      const { sessions, reasons } = await openAll(
        side.name === "nabla" ? [side, side] : [ours("two"), side, side],
        say,
      );
      if (side.name !== "nabla") await sessions.shift()?.close();
      const [a, b] = sessions;
      if (!a || !b) {
        results.push({ ...common, absent: reasons.find((r) => r !== null) ?? "absent" });
        continue;
      }
      const alone: number[] = [];
      const both: number[] = [];
      for (let round = 0; round < rounds; round++) {
        alone.push(...(await a.round(0, seconds * scale)).ms, ...(await b.round(0, seconds * scale)).ms);
        const together = await Promise.all([a.round(0, 2 * seconds * scale), b.round(0, 2 * seconds * scale)]);
        for (const { ms } of together) both.push(...ms);
      }
      await a.close();
      await b.close();
      const note = `alone ${median(alone).toFixed(0)} ms, two at once ${median(both).toFixed(0)} ms (medians)`;
      results.push({ ...common, ours: median(both) / median(alone), note });
    }
    return results;
  },
};
