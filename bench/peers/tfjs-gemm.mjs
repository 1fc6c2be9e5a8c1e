/**
 * A float32 matrix product in TensorFlow.js on its wasm backend: tfjs-gemm.mjs FOLDER SIZE, in whose node_modules
 * @tensorflow/tfjs and @tensorflow/tfjs-backend-wasm are. Speaks the lines of support/protocol.ts; operands are wasm.ts's.
 */
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";

const say = (answer) => process.stdout.write(`${JSON.stringify(answer)}\n`);
for (const name of ["log", "warn", "info"]) console[name] = console.error;
let tf;
let wasm;
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

const size = Number(process.argv[3]);
const numbers = (step) => Float32Array.from({ length: size * size }, (_, i) => ((i * step) % 1009) / 1009 - 0.5);
const a = tf.tensor2d(numbers(7), [size, size]);
const b = tf.tensor2d(numbers(11), [size, size]);
async function product() {
  const c = tf.matMul(a, b);
  const data = await c.data();
  c.dispose();
  return data;
}

say({ ready: `TensorFlow.js ${tf.version.tfjs} wasm, ${wasm.getThreadsCount?.() ?? 1} thread(s)` });
for await (const text of createInterface({ input: process.stdin })) {
  const request = JSON.parse(text);
  if (request.do === "check") {
    const c = await product();
    say({ values: [c[0], c[c.length - 1], c.reduce((sum, x) => sum + Math.abs(x), 0)] });
  } else {
    const ms = [];
    const end = performance.now() + 1000 * request.seconds;
    for (let now = performance.now(); ms.length === 0 || now < end; ) {
      await product();
      const after = performance.now();
      ms.push(after - now);
      now = after;
    }
    say({ ms });
  }
}
process.exit(0);
