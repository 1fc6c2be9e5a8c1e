/**
 * A training process whose peak its parent judges: `peak.mjs BUILD NAME FLAGS`, with BUILD the folder of the compiled package. It
 * runs as a user's does, without a loader that transforms sources, whose own heap would be measured too.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [, , build, name, json] = process.argv;
const load = (path) => import(pathToFileURL(join(build, path)).href);
const { subjects } = await load("cli/models.js");
const { manualSeed, optim, setDevice } = await load("index.js");

/** Bytes, as the kernel counts them. */
const status = (field) =>
  1024 * Number(new RegExp(`${field}:\\s+(\\d+)`).exec(readFileSync("/proc/self/status", "utf8"))?.[1]);

setDevice("cpu");
manualSeed(1);
const imported = status("VmRSS");
const { model, optimizer, loss } = subjects[name](JSON.parse(json));
for (let i = 0; i < 10; i++) {
  const value = loss();
  value.backward();
  if (name === "gpt") optim.clipGradNorm_(model.parameters(), 1);
  await optimizer.step();
  optimizer.zeroGrad();
  await value.item();
}
console.log(JSON.stringify({ imported, peak: status("VmHWM") - imported }));
process.exit(0);
