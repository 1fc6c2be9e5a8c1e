/**
 * node-llama-cpp (llama.cpp's own prebuilt binaries) decoding greedily from GGUF files: llamacpp.mjs FOLDER THREADS TOKENS CHECKED FILE…; a
 * line a file, TOKENS tokens a sample behind those that are there. A model is loaded when it is first asked for, and replaces the one
 * before.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { absent, serveAs } from "./serve.mjs";

const [folder, threads, tokens, checked, ...files] = process.argv.slice(2);
const room = 1024;
for (const name of ["log", "warn", "info"]) console[name] = console.error;
let llama;
let version;
try {
  const home = join(folder, "node_modules/node-llama-cpp");
  const { getLlama } = await import(pathToFileURL(join(home, "dist/index.js")).href);
  ({ version } = JSON.parse(readFileSync(join(home, "package.json"), "utf8")));
  llama = await getLlama({ gpu: false, build: "never", maxThreads: Number(threads), logLevel: "error" });
} catch (error) {
  absent(`node-llama-cpp: ${error.message}`);
}

let current = null;
async function open(file) {
  if (current?.file === file) return current;
  await current?.model.dispose();
  const model = await llama.loadModel({ modelPath: file, gpuLayers: 0 });
  const context = await model.createContext({ contextSize: room, batchSize: 64, threads: Number(threads) });
  current = { file, model, sequence: context.getSequence(), next: [1] };
  return current;
}

async function decode(file, count) {
  const state = await open(file);
  const { sequence } = state;
  if (sequence.nextTokenIndex + count >= room) {
    await sequence.clearHistory();
    state.next = [1];
  }
  const out = [];
  for await (const token of sequence.evaluate(state.next, { temperature: 0, yieldEogToken: true })) {
    out.push(token);
    if (out.length === count) break;
  }
  state.next = [out[out.length - 1]];
  return out;
}

await serveAs(`node-llama-cpp ${version}, ${threads} threads`, {
  check: async () => {
    const all = [];
    for (const file of files) all.push(...(await decode(file, Number(checked))));
    return all;
  },
  per: Number(tokens),
  first: (line) => decode(files[line], Number(tokens)),
  sample: (line) => decode(files[line], Number(tokens)),
});
