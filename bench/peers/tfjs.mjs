/**
 * What the TensorFlow.js peers share: the library on its wasm backend, from the node_modules of the folder that is the first
 * argument, or the word that it is absent; and the conversation with the bench (support/protocol.ts).
 */
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";

const say = (answer) => process.stdout.write(`${JSON.stringify(answer)}\n`);
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
  say({ absent: `TensorFlow.js: ${error.message}` });
  process.exit(0);
}

/** Serves until the bench ends: `check` gives numbers to compare, `sample` takes one sample, of `per` steps; `first` goes before a round. */
export async function serve({ check, sample, per = 1, first = () => {} }) {
  say({ ready: `TensorFlow.js ${tf.version.tfjs} wasm, ${wasm.getThreadsCount?.() ?? 1} thread(s)` });
  for await (const text of createInterface({ input: process.stdin })) {
    const request = JSON.parse(text);
    if (request.do === "check") say({ values: await check() });
    else {
      await first();
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
