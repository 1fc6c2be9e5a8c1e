/**
 * What the jax-js peers share: the library on its backend DEVICE ("webgpu" or "wasm"), from the node_modules of the folder
 * that is the first argument, or the word that it is absent.
 * jax-js looks for navigator.gpu: in Node that is the package webgpu, the one that our side uses.
 */
import { createRequire } from "node:module";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { absent, serveAs } from "./serve.mjs";

const [folder, device] = process.argv.slice(2);
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
  absent(`jax-js: ${error.message}`);
}

/** What follows folder and device on the command line. */
export const rest = process.argv.slice(4);

/** See serve.mjs; a sample before each round brings things back into the caches. */
export const serve = (peer) => serveAs(`jax-js ${version} ${device}`, { first: peer.sample, ...peer });
