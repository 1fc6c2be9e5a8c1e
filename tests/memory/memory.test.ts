/**
 * What a training process holds, as the kernel counts it: the same after many steps as after few, and about what `nabla plan`
 * said. Each in a process of its own; with NABLA_LONG=1 many more steps, and the plans.
 */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { existsSync, rmSync } from "node:fs";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";
import { promisify } from "node:util";
import { buildInto, root } from "../support/build.ts";
import { whyNoCpu } from "../support/cpu.ts";

const run = promisify(execFile);
const path = (name: string): string => fileURLToPath(new URL(name, import.meta.url));
const long = process.env["NABLA_LONG"] === "1";

const reason =
  (await whyNoCpu()) || (existsSync("/proc/self/status") ? false : "needs /proc, to read what is resident");

/**
 * Answers of child.ts. The young generation of the JavaScript heap is held small: left alone it grows once, by 17 MB, when a
 * process has run for a while, whatever it computes.
 */
async function child(...args: string[]): Promise<Record<string, number>> {
  const flags = ["--expose-gc", "--max-semi-space-size=2", "--import", "tsx"];
  const { stdout } = await run(process.execPath, [...flags, path("./child.ts"), ...args]);
  return JSON.parse(stdout) as Record<string, number>;
}

describe("resident memory", { skip: reason }, () => {
  const [small, large] = long ? [100, 10_000] : [200, 2_000];
  for (const [kind, what] of [
    ["plain", "of a perceptron"],
    ["batchnorm", "with batch-norm statistics that nobody reads"],
    ["read", "with the loss read in every step"],
  ])
    test(`after ${large} steps is within 5 % of that after ${small}: ${what}`, async () => {
      const { small: early, large: late } = await child(kind, String(small), String(large));
      const text = `${(early / 1e6).toFixed(1)} MB after ${small} steps, ${(late / 1e6).toFixed(1)} MB after ${large}`;
      console.log(`${what}: ${text}`);
      assert.ok(late <= 1.05 * early, text);
    });
});

describe("programs of many shapes", { skip: long ? reason : "NABLA_LONG=1 runs 2,000 of them" }, () => {
  // the cache of 256 is long full after 800; a native program that stayed would keep its command table
  test("leave nothing behind when they leave the cache", async () => {
    const { small: early, large: late } = await child("shapes", "800", "2000");
    const text = `${(early / 1e6).toFixed(1)} MB after 800, ${(late / 1e6).toFixed(1)} MB after 2,000`;
    console.log(text);
    assert.ok(late <= 1.05 * early, text);
  });
});

describe("the planned peak", { skip: long ? reason : "NABLA_LONG=1 compares plans with runs" }, () => {
  const build = join(root, `dist.${process.pid}.memory`);
  before(() => {
    buildInto(build); // an error of types is not this test's affair
  });
  after(() => rmSync(build, { recursive: true, force: true }));

  const gpt = { layers: 6, width: 384, heads: 6, context: 256, dropout: 0, batch: 8, vocab: 65 };
  // a batch is a small part of each: where it is not, as in a perceptron's, whether one more waits for the collector shows
  const models: [string, string, Partial<typeof gpt>][] = [
    ["gpt", "a GPT of 10.8 M parameters", {}],
    ["gpt", "a GPT of nanoGPT's setting for processors", { layers: 4, width: 128, heads: 4, context: 64, batch: 12 }],
    ["gpt", "a wide and short GPT", { layers: 2, width: 768, context: 128, batch: 16 }],
    ["gpt", "a GPT with long context and dropout", { layers: 3, width: 192, context: 512, batch: 8, dropout: 0.1 }],
    ["convnet", "the convolutional net, batch 1,024", { batch: 1024 }],
  ];
  for (const threads of [2, 1])
    for (const [name, what, changes] of models)
      test(`is within 10 % of the measured one: ${what}, threads: ${threads}`, async () => {
        const flags = { ...gpt, ...changes };
        const env = { ...process.env, NABLA_THREADS: String(threads) };
        const values = Object.entries(flags).map(([key, value]) => [`--${key}`, String(value)] as const);
        const args =
          name === "gpt" ? ["gpt", ...values.flat()] : ["classifier", "--model", name, "--batch", String(flags.batch)];
        const main = `import(${JSON.stringify(pathToFileURL(join(build, "cli/main.js")).href)}).then(({ main }) => main(process.argv.slice(1)))`;
        const command = ["-e", main, "--", "plan", "train", ...args, "--device", "cpu", "--json"];
        const plan = await run(process.execPath, command, { env });
        const { peakBytes } = JSON.parse(plan.stdout) as { peakBytes: number };
        // left alone, the young generation of the JavaScript heap doubles once more in some runs, by chance and by 13 MB
        const peakArgs = ["--max-semi-space-size=8", path("./peak.mjs"), build, name, JSON.stringify(flags)];
        const measured = await run(process.execPath, peakArgs, { env });
        const { peak } = JSON.parse(measured.stdout) as { peak: number };
        const text = `planned ${(peakBytes / 1e6).toFixed(1)} MB, measured ${(peak / 1e6).toFixed(1)} MB`;
        console.log(`${what}, threads: ${threads}: ${text} (${((100 * peak) / peakBytes).toFixed(0)} %)`);
        assert.ok(Math.abs(peak / peakBytes - 1) <= 0.1, text);
      });
});
