/**
 * What the TensorFlow.js peers share: the library on its wasm backend, from the node_modules of the folder that is the first
 * argument, or the word that it is absent.
 */
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { absent, serveAs } from "./serve.mjs";

for (const name of ["log", "warn", "info"]) console[name] = console.error;
let wasm;
export let tf;
try {
  const require = createRequire(join(process.argv[2], "package.json"));
  tf = require("@tensorflow/tfjs");
  wasm = require("@tensorflow/tfjs-backend-wasm");
  wasm.setWasmPaths(`${join(dirname(require.resolve("@tensorflow/tfjs-backend-wasm/package.json")), "dist")}/`);
  if (!(await tf.setBackend("wasm"))) throw new Error("its wasm backend does not start");
  await tf.ready();
} catch (error) {
  absent(`TensorFlow.js: ${error.message}`);
}

/** See serve.mjs. */
export const serve = (peer) =>
  serveAs(`TensorFlow.js ${tf.version.tfjs} wasm, ${wasm.getThreadsCount?.() ?? 1} thread(s)`, peer);
