/**
 * Start-up, in fresh processes on the built package: `import "nabla"`; the first training step (made, compiled, run, its
 * loss read) with an empty kernel cache and with a full one; and that 1,000 steps under a schedule are one program.
 */
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { programCounts } from "../src/execution/index.ts";
import { getDevice, optim, randint } from "../src/index.ts";
import { GPT2 } from "../src/models/index.ts";
import type { Benchmark, Result } from "./support/benchmark.ts";
import { largeGpt } from "./support/gpt-step.ts";
import { median } from "./support/numbers.ts";
import { ours } from "./support/sides.ts";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
/** The command line's default, and the GPT of the other benchmarks. */
const small = { vocabSize: 65, contextLength: 64, numLayers: 4, numHeads: 4, hiddenSize: 128, batch: 12 };
const scheduled = 1000;

function fresh(config: object, cache: string): { import: number; first: number } {
  const child = join(root, "bench/support/start-child.mjs");
  const text = execFileSync(process.execPath, [child, join(root, "dist"), JSON.stringify(config)], {
    encoding: "utf8",
    env: { ...process.env, NABLA_CACHE_DIR: cache },
  });
  return JSON.parse(text) as { import: number; first: number };
}

export const benchmark: Benchmark = {
  name: "start",
  title: "Start-up",
  /** Serves the number of programs that steps under a schedule made after the second step. */
  ours: async () => {
    const model = new GPT2({ ...small, numLayers: 1, hiddenSize: 32, contextLength: 16 });
    const optimizer = new optim.AdamW(model.parameters(), { lr: 1e-3 });
    const schedule = optim.warmupCosine(optimizer, { warmupSteps: 100, totalSteps: scheduled });
    const tokens = () => randint(0, 65, [4, 16]);
    const step = async () => {
      model.forward(tokens(), tokens()).backward();
      await optimizer.step();
      optimizer.zeroGrad();
      schedule.step();
    };
    return {
      title: "Nabla",
      check: async () => {
        await step();
        await step();
        const { made } = programCounts(getDevice());
        for (let i = 2; i < scheduled; i++) await step();
        return [programCounts(getDevice()).made - made];
      },
      lines: [],
    };
  },
  run: async ({ rounds, say }) => {
    say("building the package");
    execFileSync(process.execPath, [join(root, "scripts/build.mjs")], { stdio: ["ignore", "ignore", "inherit"] });
    const results: Result[] = [];
    const imports: number[] = [];
    const cases: [string, object, Result["target"], Result["target"]][] = [
      ["4 layers, width 128", small, { atMost: 5000 }, { atMost: 500 }],
      ["10.8 M parameters", largeGpt, { atMost: 5000 }, undefined],
    ];
    for (const [name, config, cold, warm] of cases) {
      const times: { cold: number[]; warm: number[] } = { cold: [], warm: [] };
      for (let round = 0; round < rounds; round++) {
        const cache = mkdtempSync(join(tmpdir(), "nabla-start-"));
        try {
          const first = fresh(config, cache);
          const second = fresh(config, cache);
          times.cold.push(first.first);
          times.warm.push(second.first);
          imports.push(second.import);
        } finally {
          rmSync(cache, { recursive: true, force: true });
        }
      }
      for (const [kind, target] of [
        ["cold", cold],
        ["warm", warm],
      ] as const)
        results.push({
          line: `first step, ${name}, ${kind} kernel cache`,
          ...{ peer: null, unit: "ms", ours: median(times[kind]) },
          ...(target ? { target } : {}),
        });
    }
    results.unshift({ line: 'import "nabla"', peer: null, unit: "ms", ours: median(imports), target: { atMost: 100 } });
    const session = await ours("start").open();
    const [more] = await session.check();
    await session.close();
    results.push({
      line: `programs made by ${scheduled} scheduled steps after the second`,
      ...{ peer: null, unit: "", ours: more, target: { atMost: 0 } },
    });
    return results;
  },
};
