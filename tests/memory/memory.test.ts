/**
 * What a training process holds, as the kernel counts it: the same after many steps as after few, and about what `nabla plan`
 * said. Each in a process of its own; with NABLA_LONG=1 many more steps, and the plans.
 */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { backendOf, setDevice } from "../../src/execution/index.ts";

const run = promisify(execFile);
const path = (name: string): string => fileURLToPath(new URL(name, import.meta.url));
const long = process.env["NABLA_LONG"] === "1";

setDevice("cpu");
let reason: string | false = existsSync("/proc/self/status") ? false : "needs /proc, to read what is resident";
try {
  await backendOf("cpu");
} catch (error) {
  reason = `the cpu backend does not open here: ${(error as Error).message}`;
}

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
      const { small: before, large: after } = await child("steps", kind, String(small), String(large));
      const text = `${(before / 1e6).toFixed(1)} MB after ${small} steps, ${(after / 1e6).toFixed(1)} MB after ${large}`;
      assert.ok(after <= 1.05 * before, text);
    });
});

/** Not met yet: a GPT of 10.8 M parameters is planned at 453 MB and measured at 548 MB. */
const unplanned = "what the process holds beside state and arena is not in the plan yet";

describe("the planned peak", { skip: long ? reason : "NABLA_LONG=1 compares plans with runs" }, () => {
  const gpt = { layers: 6, width: 384, heads: 6, context: 256, dropout: 0, batch: 8, vocab: 65 };
  const models: [string, string, Partial<typeof gpt>][] = [
    ["gpt", "a GPT of 10.8 M parameters", {}],
    ["gpt", "a wide and short GPT", { layers: 2, width: 768, context: 128, batch: 16 }],
    ["gpt", "a GPT with long context and dropout", { layers: 3, width: 192, context: 512, batch: 8, dropout: 0.1 }],
    ["convnet", "the convolutional net, batch 1,024", { batch: 1024 }],
    ["mlp", "the perceptron, batch 65,536", { batch: 65_536 }],
  ];
  for (const [name, what, changes] of models)
    test(`is within 10 % of the measured one: ${what}`, { todo: unplanned }, async () => {
      const flags = { ...gpt, ...changes };
      const values = Object.entries(flags).map(([key, value]) => [`--${key}`, String(value)] as const);
      const args =
        name === "gpt" ? ["gpt", ...values.flat()] : ["classifier", "--model", name, "--batch", String(flags.batch)];
      const command = [path("../../bin/nabla.js"), "plan", "train", ...args, "--device", "cpu", "--json"];
      const { stdout } = await run(process.execPath, command);
      const { peakBytes } = JSON.parse(stdout) as { peakBytes: number };
      const { peak } = await child("peak", name, JSON.stringify(flags));
      const text = `planned ${(peakBytes / 1e6).toFixed(1)} MB, measured ${(peak / 1e6).toFixed(1)} MB`;
      console.log(`${what}: ${text}`);
      assert.ok(Math.abs(peak / peakBytes - 1) <= 0.1, text);
    });
});
