/**
 * Data and models on a page: what comes by address or from a file that a user chose, what is kept in the origin's private file
 * system, training that is saved and gone on with, and that the page's main thread neither unpacks nor computes.
 */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import type { Server } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { gzipSync } from "node:zlib";
import type { Browser, Page } from "playwright-core";
import { buildBrowser } from "../../scripts/browser.mjs";
import { formatIdx } from "../../src/data/idx.ts";
import { formatSafetensors } from "../../src/formats/index.ts";
import { crc32 } from "../../src/train/checksum.browser.ts";
import { crc32 as expectedCrc32 } from "../../src/train/checksum.ts";
import { chromiumPath, launchChromium, serveFolder } from "../support/chromium.ts";

const skip = chromiumPath() === null && "no Chromium here (NABLA_CHROMIUM may name one)";
const room = mkdtempSync(join(tmpdir(), "nabla-data-"));
let server: Server;
let browser: Browser;
let page: Page;
let address: string;
/** Scripts that the page itself has loaded, its workers' aside, and those of all. */
const loaded = { page: [] as string[], all: [] as string[] };

const images = formatIdx({
  dtype: "uint8",
  shape: [3000, 28, 28],
  data: Uint8Array.from({ length: 3000 * 784 }, (_, i) => Math.imul(i ^ (i >>> 7), 2654435761) >>> 24),
});
const labels = formatIdx({ dtype: "uint8", shape: [3000], data: Uint8Array.from({ length: 3000 }, (_, i) => i % 10) });
const weights = formatSafetensors(
  {
    "0.weight": {
      dtype: "F32",
      shape: [3, 4],
      bytes: new Uint8Array(Float32Array.from({ length: 12 }, (_, i) => i / 8).buffer),
    },
    "0.bias": { dtype: "F32", shape: [3], bytes: new Uint8Array(Float32Array.of(1, 2, 3).buffer) },
    counts: { dtype: "I64", shape: [2], bytes: new Uint8Array(BigInt64Array.of(-7n, 9n).buffer) },
  },
  { format: "pt" },
);

/** What the page's main thread must not do is counted, from before its first script on. */
const watch = `
  globalThis.counted = { DecompressionStream: 0, "WebAssembly.Module": 0 };
  const count = (owner, key, name) => {
    const Class = owner[key];
    owner[key] = class extends Class { constructor(...values) { counted[name]++; super(...values); } };
  };
  count(globalThis, "DecompressionStream", "DecompressionStream");
  count(WebAssembly, "Module", "WebAssembly.Module");
  for (const name of ["compile", "compileStreaming", "instantiate", "instantiateStreaming"]) {
    const real = WebAssembly[name];
    WebAssembly[name] = (...values) => { counted["WebAssembly.Module"]++; return real.apply(WebAssembly, values); };
  }
  navigator.gpu && (navigator.gpu.requestAdapter = () => { throw new Error("the page asked for a GPU"); });
`;

/** The library on the page. */
const library = `
  const [nabla, data, formats, train] = await Promise.all(
    ["index", "data", "formats", "train"].map((name) => import("/" + name + ".js")));
`;
const onPage = <T>(body: string): Promise<T> => page.evaluate(`(async () => { ${library} ${body} })()`) as Promise<T>;

before(async () => {
  if (skip) return;
  await buildBrowser(room);
  writeFileSync(join(room, "train-images-idx3-ubyte.gz"), gzipSync(images));
  writeFileSync(join(room, "train-labels-idx1-ubyte"), labels);
  writeFileSync(join(room, "damaged.gz"), gzipSync(images).subarray(0, 5000));
  writeFileSync(join(room, "weights.safetensors"), weights);
  writeFileSync(join(room, "text.txt"), "Es war einmal ein König. ".repeat(4000));
  ({ server, address } = await serveFolder(room));
  browser = await launchChromium({ webgpu: false });
  const context = await browser.newContext();
  await context.addInitScript(watch);
  context.on("request", (request) => {
    if (request.url().endsWith(".js")) loaded.all.push(request.url());
  });
  page = await context.newPage();
  page.on("pageerror", (error) => console.error(`chromium: ${error.message}`));
  await page.goto(address);
});
after(async () => {
  await browser?.close();
  server?.close();
  rmSync(room, { recursive: true, force: true });
});

test("an IDX .gz comes by address with progress, unpacked by a worker", { skip }, async () => {
  const got = await onPage<{ shape: number[]; sum: number; type: string; told: [number, number | null][] }>(`
    const told = [];
    const url = new URL("train-images-idx3-ubyte.gz", location.href);
    const { shape, data: values } = await data.readIdx(url, { onProgress: (...now) => told.push(now) });
    return { shape, type: values.constructor.name, sum: values.reduce((n, x) => n + x, 0), told };
  `);
  const size = gzipSync(images).length;
  assert.deepEqual(got.shape, [3000, 28, 28]);
  assert.equal(got.type, "Uint8Array");
  assert.equal(
    got.sum,
    images.subarray(16).reduce((n, x) => n + x, 0),
  );
  assert.deepEqual(got.told[0], [0, size]);
  assert.deepEqual(got.told.at(-1), [size, size]);
  assert.ok(got.told.length > 3, `${got.told}`);
});

test("a training set comes from chosen files and addresses together", { skip }, async () => {
  const got = await onPage<{ classes: number; images: number[]; labels: number[]; test: null }>(`
    const blob = await (await fetch("/train-labels-idx1-ubyte")).blob();
    const set = await data.loadIdxClassification([
      new URL("train-images-idx3-ubyte.gz?v=1", location.href), new File([blob], "train-labels-idx1-ubyte")]);
    return { classes: set.numClasses, images: set.train.images.shape, labels: [...set.train.labels.subarray(0, 12)], test: set.test };
  `);
  assert.deepEqual(got, {
    classes: 10,
    images: [3000, 28, 28],
    labels: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1],
    test: null,
  });
});

test("what is missing, damaged or given up is told as in Node", { skip }, async () => {
  const errors = await onPage<string[]>(`
    const told = async (promise) => { try { await promise; return "nothing"; } catch (e) { return e.name + " " + (e instanceof formats.FileError) + " " + (e.code ?? "") + ": " + e.message; } };
    const at = (name) => new URL(name, location.href);
    const abort = new AbortController();
    const given = told(data.readIdx(at("train-images-idx3-ubyte.gz"), { signal: abort.signal }));
    abort.abort(new Error("enough"));
    return [
      await told(data.readIdx(at("none.gz"))),
      await told(data.readIdx(at("damaged.gz"))),
      await told(data.readIdx("folder/none")),
      await given,
      await told(formats.load(at("none.safetensors"))),
      await told(formats.load("none.safetensors")),
      await told(formats.load(new File(["no"], "chosen.safetensors"))),
      await told(formats.load("http://127.0.0.1:9/closed")),
      await told((async () => new data.DataLoader(new data.ArrayDataset(data.hostArray(new Float32Array(4))), { numWorkers: 2 }))()),
    ];
  `);
  const expected = [
    /^FileError true HTTP404: can't fetch http:.*none\.gz: the server answers 404 Not Found; check the address/,
    /^IdxError false : http:.*damaged\.gz: the gzip data is damaged or truncated/,
    /^FileError true ENOENT: can't read folder\/none: there is no such file or folder in the origin's private file system/,
    /^Error false : enough$/,
    /^FileError true HTTP404: can't fetch http:.*none\.safetensors/,
    /^FileError true ENOENT: can't read none\.safetensors/,
    /^SafetensorsError false : chosen\.safetensors: only 2 bytes/,
    /^FileError true NETWORK: can't fetch http:\/\/127\.0\.0\.1:9\/closed: there is no answer .*Access-Control-Allow-Origin/,
    /^LoaderError false : a loader has no workers in a browser/,
  ];
  for (const [i, pattern] of expected.entries()) assert.match(errors[i], pattern);
});

test("a text is read, a tokenizer made and the text encoded by a worker", { skip }, async () => {
  const got = await onPage<{ vocab: number; n: number; back: string; bpe: number; same: boolean; kept: string }>(`
    const corpus = await data.readTextCorpus(new URL("text.txt", location.href), { validation: 0.1 });
    const tokenizer = await data.trainTokenizer(corpus.text, { kind: "characters" });
    const ids = await data.encodeText(tokenizer, corpus.train);
    const bpe = await data.trainTokenizer(corpus.text, { kind: "byte-level-bpe", vocabSize: 270 });
    await bpe.save("texts");
    const again = await data.loadTokenizer("texts");
    const two = await data.encodeText(again, corpus.train);
    return { vocab: tokenizer.vocabSize, n: ids.length, back: tokenizer.decode(ids.subarray(0, 24)), bpe: again.vocabSize,
      same: JSON.stringify([...two]) === JSON.stringify([...bpe.encode(corpus.train)]), kept: again.decode(two.subarray(0, 12)) };
  `);
  assert.equal(got.n, 90_000);
  assert.equal(got.back, "Es war einmal ein König.");
  assert.equal(got.bpe, 270);
  assert.ok(got.same);
  assert.ok("Es war einmal ein König. ".startsWith(got.kept.slice(0, 20)));
});

test("safetensors come from a chosen file; a model saved in the OPFS is there after a reload", { skip }, async () => {
  const chosen = page.evaluate(`new Promise((resolve) => {
    const input = Object.assign(document.createElement("input"), { type: "file", id: "choose" });
    input.onchange = () => { globalThis.chosen = input.files[0]; resolve(); };
    document.body.append(input);
  })`);
  await page.setInputFiles("#choose", join(room, "weights.safetensors"));
  await chosen;
  const first = await onPage<{ keys: string[]; bias: number[]; counts: number[]; told: number[]; blob: number[] }>(`
    const told = [];
    const state = await formats.load(chosen, { onProgress: (n) => told.push(n) });
    const model = new nabla.nn.Sequential(new nabla.nn.Linear(4, 3));
    model.loadStateDict({ "0.weight": state["0.weight"], "0.bias": state["0.bias"] });
    await formats.save(model, "models/mine/model.safetensors");
    const blob = await formats.saveToBlob(model);
    const back = await formats.load(blob);
    return { keys: Object.keys(state), bias: [...await state["0.bias"].data()], counts: [...await state.counts.data()], told, blob: [...await back["0.weight"].data()] };
  `);
  assert.deepEqual(first.keys.sort(), ["0.bias", "0.weight", "counts"]);
  assert.deepEqual(first.bias, [1, 2, 3]);
  assert.deepEqual(first.counts, [-7, 9]);
  assert.equal(first.told.at(-1), weights.length);
  assert.deepEqual(
    first.blob,
    Array.from({ length: 12 }, (_, i) => i / 8),
  );
  await page.reload();
  const again = await onPage<{ y: number[]; names: string[] }>(`
    const model = new nabla.nn.Sequential(new nabla.nn.Linear(4, 3));
    model.loadStateDict(await formats.load("models/mine/model.safetensors"));
    const folder = await (await (await navigator.storage.getDirectory()).getDirectoryHandle("models")).getDirectoryHandle("mine");
    const names = [];
    for await (const name of folder.keys()) names.push(name);
    return { y: [...await model.forward(nabla.tensor([[1, 0, 0, 2]])).data()], names };
  `);
  assert.deepEqual(again, { y: [1.75, 4.25, 6.75], names: ["model.safetensors"] });
});
