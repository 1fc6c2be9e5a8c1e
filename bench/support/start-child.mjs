/** What start.ts times in a fresh process, on the built package: its import, and the first training step of a GPT. */
import { pathToFileURL } from "node:url";

const [dist, config] = [process.argv[2], JSON.parse(process.argv[3])];
const at = (file) => pathToFileURL(`${dist}/${file}`).href;
const begin = performance.now();
const { optim, randint, manualSeed } = await import(at("index.js"));
const imported = performance.now();
const { GPT2 } = await import(at("models/index.js"));
manualSeed(1);
const start = performance.now();
const model = new GPT2(config);
const optimizer = new optim.AdamW(model.parameters(), { lr: 1e-3 });
const tokens = () => randint(0, config.vocabSize, [config.batch, config.contextLength]);
const loss = model.forward(tokens(), tokens());
loss.backward();
await optimizer.step();
await loss.item();
console.log(JSON.stringify({ import: imported - begin, first: performance.now() - start }));
process.exit(0);
