/**
 * What load.ts times in a fresh process, on the built package: from `fromPretrained(folder)` to the first token, forward passes after that,
 * and the most memory that was resident.
 */
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [dist, folder] = process.argv.slice(2);
const at = (file) => pathToFileURL(`${dist}/${file}`).href;
const { noGrad, setDevice, tensor } = await import(at("index.js"));
const { fromPretrained } = await import(at("models/index.js"));
setDevice("cpu");
await tensor([1]).add(1).data(); // the device is open
const token = async (model) => {
  const logits = noGrad(() => model.forward(tensor([[1, 5, 7, 11]], { dtype: "int32" })));
  return (await logits.at(0, -1).argmax().data())[0];
};
const begin = performance.now();
const model = await fromPretrained(folder);
const loaded = performance.now();
const first = await token(model);
const end = performance.now();
const forward = [];
for (let i = 0; i < 4; i++) {
  const start = performance.now();
  if ((await token(model)) !== first) throw new Error("the passes differ");
  forward.push(performance.now() - start);
}
const peak = /VmHWM:\s*(\d+)/.exec(readFileSync("/proc/self/status", "utf8"))?.[1];
console.log(
  JSON.stringify({
    load: loaded - begin,
    first: end - begin,
    forward: Math.min(...forward),
    peak: 1024 * Number(peak),
    token: first,
  }),
);
process.exit(0);
