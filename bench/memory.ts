/** Memory of ten GPT steps: the most that was resident (VmHWM) less what was resident after the imports, both sides. */
import type { Benchmark, Result } from "./support/benchmark.ts";
import { gptArguments, largeGpt, serveGpt } from "./support/gpt-step.ts";
import { median } from "./support/numbers.ts";
import { Absent } from "./support/protocol.ts";
import { ours, python, type Side } from "./support/sides.ts";

const steps = 10;

async function measure(side: Side, times: number): Promise<{ title: string; mb: number[] }> {
  const mb: number[] = [];
  let title = "";
  for (let k = 0; k < times; k++) {
    const session = await side.open();
    ({ title } = session);
    const { imported, peak } = await session.memory(steps);
    mb.push((peak - imported) / 1e6);
    await session.close();
  }
  return { title, mb };
}

export const benchmark: Benchmark = {
  name: "memory",
  title: `Memory of ${steps} GPT steps, 10.8 M parameters`,
  ours: () => serveGpt(largeGpt, true),
  run: async ({ rounds }) => {
    const times = Math.min(rounds, 3);
    const mine = await measure(ours("memory"), times);
    process.env["NABLA_BENCH_MEMORY"] = "1"; // the peer then tries no numbers of threads
    const common = { line: "most resident, less after import", unit: "MB", target: { atLeast: 1 / 0.7 } };
    try {
      const theirs = await measure(python("torch", "gpt.py", "eager", ...gptArguments(largeGpt)), times);
      const result: Result = {
        ...common,
        peer: theirs.title,
        ours: median(mine.mb),
        theirs: median(theirs.mb),
        ratio: median(theirs.mb) / median(mine.mb),
        ratioOfMinima: Math.min(...theirs.mb) / Math.min(...mine.mb),
        difference: null,
      };
      return [result];
    } catch (error) {
      if (!(error instanceof Absent)) throw error;
      return [{ ...common, peer: "torch", absent: error.message, ours: median(mine.mb) }];
    } finally {
      delete process.env["NABLA_BENCH_MEMORY"];
    }
  },
};
