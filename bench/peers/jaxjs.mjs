/**
 * What the jax-js peers share: the library on its backend DEVICE ("webgpu" or "wasm"), from the node_modules of the folder
 * that is the first argument, or the word that it is absent; and the conversation with the bench (support/protocol.ts).
 * jax-js looks for navigator.gpu: in Node that is the package webgpu, the one that our side uses.
 */
import { createRequire } from "node:module";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const [folder, device] = process.argv.slice(2);
const say = (answer) => process.stdout.write(`${JSON.stringify(answer)}\n`);
for (const name of ["log", "warn", "info"]) console[name] = console.error;
export let jax;
let version;
try {
  const require = createRequire(join(folder, "package.json"));
  const navigator = { userAgent: "Chrome", hardwareConcurrency: availableParallelism() }; // it reads the browser's name
  if (device === "webgpu") {
    const { create, globals } = await import("webgpu");
    Object.assign(globalThis, globals);
    navigator.gpu = create([]);
  }
  Object.defineProperty(globalThis, "navigator", { value: navigator, configurable: true });
  const entry = require.resolve("@jax-js/jax"); // the CommonJS build; the other lies beside it
  jax = await import(pathToFileURL(entry.replace(/\.cjs$/, ".js")).href);
  ({ version } = require(join(folder, "node_modules/@jax-js/jax/package.json")));
  if (!(await jax.init()).includes(device)) throw new Error(`its backend ${device} does not start`);
  jax.defaultDevice(device);
} catch (error) {
  say({ absent: `jax-js: ${error.message}` });
  process.exit(0);
}

/** What follows folder and device on the command line. */
export const rest = process.argv.slice(4);

/** Serves until the bench ends: `check` gives numbers to compare, `sample` takes one sample, of `per` steps. */
export async function serve({ check, sample, per = 1 }) {
  say({ ready: `jax-js ${version} ${device}` });
  for await (const text of createInterface({ input: process.stdin })) {
    const request = JSON.parse(text);
    if (request.do === "check") say({ values: await check() });
    else {
      await sample(); // brings things back into the caches
      const ms = [];
      const end = performance.now() + 1000 * request.seconds;
      for (let now = performance.now(); ms.length === 0 || now < end; ) {
        await sample();
        const after = performance.now();
        ms.push((after - now) / per);
        now = after;
      }
      say({ ms });
    }
  }
  process.exit(0);
}
