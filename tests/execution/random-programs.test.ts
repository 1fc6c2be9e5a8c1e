/**
 * The promise of lazy state: random programs of assigns, slices, ties, updates in place and late reads give what an eager
 * interpreter gives, and StaleReadError exactly where the version that is read is gone.
 * NABLA_LONG=1 runs more; NABLA_SEED=n starts from another seed, and a failure names its seed.
 */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { backendOf } from "../../src/execution/index.ts";
import { orReason } from "../support/backends.ts";
import { compiledCpu } from "./backends.ts";
import { type Outcome, runProgram } from "./programs.ts";

const long = process.env["NABLA_LONG"] === "1";
const first = Number(process.env["NABLA_SEED"] ?? 1);

async function runMany(count: number, device: string): Promise<Outcome> {
  const sum: Outcome = { reads: 0, stale: 0, failed: 0 };
  for (let seed = first; seed < first + count; seed++) {
    const { reads, stale, failed } = await runProgram(seed, device);
    sum.reads += reads;
    sum.stale += stale;
    sum.failed += failed;
  }
  return sum;
}

function checkCoverage({ reads, stale, failed }: Outcome, count: number, log: (text: string) => void): void {
  log(`${count} programs from seed ${first}: ${reads} reads compared, ${stale} stale reads, ${failed} failed steps`);
  assert.ok(
    reads > 2 * count && stale > count / 5 && failed > count / 20,
    "the programs do not cover what they should",
  );
}

describe("random programs equal an eager interpreter", () => {
  const count = long ? 10_000 : 500;
  it(`on reference, ${count} times`, async (t) => {
    checkCoverage(await runMany(count, "reference"), count, (text) => t.diagnostic(text));
  });
  const lateCount = long ? 2_000 : 100;
  it(`on a backend that answers late, ${lateCount} times`, async (t) => {
    checkCoverage(await runMany(lateCount, "late"), lateCount, (text) => t.diagnostic(text));
  });
  const cpuCount = long ? 500 : 25;
  it(`on cpu, ${cpuCount} times`, async (t) => {
    const { device, reason } = await compiledCpu();
    if (!device) return t.skip(reason);
    checkCoverage(await runMany(cpuCount, device), cpuCount, (text) => t.diagnostic(text));
  });
  const gpuCount = long ? 100 : 10;
  it(`on webgpu, ${gpuCount} times`, async (t) => {
    const opened = await orReason(backendOf("webgpu"));
    if (typeof opened === "string") return t.skip(opened);
    const { reads, stale, failed } = await runMany(gpuCount, "webgpu");
    t.diagnostic(`${gpuCount} programs from seed ${first}: ${reads} reads, ${stale} stale, ${failed} failed steps`);
    assert.ok(reads > 2 * gpuCount, "the programs do not cover what they should");
  });
});
