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
import { encode as encodePng } from "fast-png";
import jpeg from "jpeg-js";
import type { Browser, Page } from "playwright-core";
import { buildBrowser } from "../../scripts/browser.mjs";
import { formatIdx } from "../../src/data/idx.ts";
import { decodeImage } from "../../src/data/images.ts";
import { formatSafetensors } from "../../src/formats/index.ts";
import { chromiumPath, launchChromium, serveFolder } from "../support/chromium.ts";

const skip = chromiumPath() === null && "no Chromium here (NABLA_CHROMIUM may name one)";
const room = mkdtempSync(join(tmpdir(), "nabla-data-"));
let server: Server;
let browser: Browser;
let page: Page;
let address: string;
let outputs: Awaited<ReturnType<typeof buildBrowser>>["outputs"];
/** Over all loads of the page: the scripts that it has loaded itself and those of its workers too, and what it was caught at. */
const seen = { page: new Set<string>(), all: new Set<string>(), DecompressionStream: 0, compiled: 0 };

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

const rgba = Uint8Array.from({ length: 4 * 20 * 24 }, (_, i) => ((i & 3) === 3 ? 255 : (i * 7) % 256));
const pictures = [
  { name: "picture.jpg", bytes: new Uint8Array(jpeg.encode({ width: 24, height: 20, data: rgba }, 90).data) },
  { name: "picture.png", bytes: encodePng({ width: 24, height: 20, data: rgba }) },
];

/** What the page's main thread must not do is counted, from before its first script on. */
const watch = `
  globalThis.counted = { DecompressionStream: 0, compiled: 0 };
  const count = (owner, key, name) => {
    const Class = owner[key];
    owner[key] = class extends Class { constructor(...values) { counted[name]++; super(...values); } };
  };
  count(globalThis, "DecompressionStream", "DecompressionStream");
  count(WebAssembly, "Module", "compiled");
  for (const name of ["compile", "compileStreaming", "instantiate", "instantiateStreaming"]) {
    const real = WebAssembly[name];
    WebAssembly[name] = (...values) => { counted.compiled++; return real.apply(WebAssembly, values); };
  }
  navigator.gpu && (navigator.gpu.requestAdapter = () => { throw new Error("the page asked for a GPU"); });
`;

/** The library on the page. */
const library = `
  const [nabla, data, formats, train] = await Promise.all(
    ["index", "data", "formats", "train"].map((name) => import("/" + name + ".js")));
`;
const onPage = <T>(body: string): Promise<T> => page.evaluate(`(async () => { ${library} ${body} })()`) as Promise<T>;

const fileName = (url: string): string => new URL(url).pathname.slice(1);

/** Notes what the page has loaded and done, before it is left. */
async function look(): Promise<void> {
  const { counted, urls } = (await page.evaluate(`({
    counted, urls: performance.getEntriesByType("resource").map(({ name }) => name),
  })`)) as { counted: { DecompressionStream: number; compiled: number }; urls: string[] };
  for (const url of urls) if (url.endsWith(".js")) seen.page.add(fileName(url));
  seen.DecompressionStream += counted.DecompressionStream;
  seen.compiled += counted.compiled;
}

async function reload(): Promise<void> {
  await look();
  await page.reload();
}

before(async () => {
  if (skip) return;
  ({ outputs } = await buildBrowser(room));
  writeFileSync(join(room, "train-images-idx3-ubyte.gz"), gzipSync(images));
  writeFileSync(join(room, "train-labels-idx1-ubyte"), labels);
  writeFileSync(join(room, "damaged.gz"), gzipSync(images).subarray(0, 5000));
  writeFileSync(join(room, "weights.safetensors"), weights);
  writeFileSync(join(room, "text.txt"), "Es war einmal ein König. ".repeat(4000));
  for (const { name, bytes } of pictures) writeFileSync(join(room, name), bytes);
  ({ server, address } = await serveFolder(room));
  browser = await launchChromium({ webgpu: false });
  const context = await browser.newContext();
  await context.addInitScript(watch);
  context.on("request", (request) => {
    if (request.url().endsWith(".js")) seen.all.add(fileName(request.url()));
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
  for (const [i, [loaded]] of got.told.entries()) assert.ok(i === 0 || loaded > got.told[i - 1][0], `${got.told}`);
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

test("a picture is decoded in the worker to the same bytes as in Node, asked for by a page or by a worker of the user's own", {
  skip,
}, async () => {
  const expected = await Promise.all(pictures.map(async ({ bytes }) => Array.from((await decodeImage(bytes)).data)));
  const got = await onPage<{ planes: number[][]; refused: string; inWorker: number[] }>(`
    const planes = [];
    for (const name of ${JSON.stringify(pictures.map(({ name }) => name))})
      planes.push([...(await data.decodeImage(new URL(name, location.href))).data]);
    const refused = await data.decodeImage(new Uint8Array([1, 2, 3])).catch((e) => e.constructor === data.ImageError && e.message);
    const text = \`
      const { decodeImage } = await import("\${location.origin}/data.js");
      postMessage([...(await decodeImage("\${location.origin}/${pictures[0].name}")).data]);\`;
    const worker = new Worker(URL.createObjectURL(new Blob([text], { type: "text/javascript" })), { type: "module" });
    const inWorker = await new Promise((resolve, reject) => {
      worker.onmessage = ({ data }) => resolve(data);
      worker.onerror = ({ message }) => reject(new Error(message));
    });
    worker.terminate();
    return { planes, refused, inWorker };
  `);
  assert.deepEqual(got.planes, expected);
  assert.deepEqual(got.inWorker, expected[0]);
  assert.equal(got.refused, "bytes: not a JPEG or PNG file, by its first bytes");
});

test("in a worker of the user's own everything is done there", { skip }, async () => {
  const got = await page.evaluate<{ shape: number[]; saved: number[] }>(`new Promise((resolve, reject) => {
    const text = \`
      const [nabla, data, formats] = await Promise.all(
        ["index", "data", "formats"].map((name) => import("\${location.origin}/" + name + ".js")));
      const { shape } = await data.readIdx("\${location.origin}/train-images-idx3-ubyte.gz");
      await formats.save({ x: nabla.tensor([1, 2, 3]).mul(2) }, "from/worker.safetensors");
      postMessage({ shape, saved: [...await (await formats.load("from/worker.safetensors")).x.data()] });\`;
    const worker = new Worker(URL.createObjectURL(new Blob([text], { type: "text/javascript" })), { type: "module" });
    worker.onmessage = ({ data }) => { worker.terminate(); resolve(data); };
    worker.onerror = ({ message }) => reject(new Error(message));
  })`);
  assert.deepEqual(got, { shape: [3000, 28, 28], saved: [2, 4, 6] });
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
  await reload();
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

/** Trains with dropout on shuffled data for 12 steps, checkpoints at each fifth; `stall` stays in that step for ever. */
const training = `
  const training = async (dir, { stall = 0, checkpoints = true } = {}) => {
    const { nn, optim } = nabla;
    nabla.manualSeed(3);
    const model = new nn.Sequential(new nn.Linear(5, 16), new nn.ReLU(), new nn.Dropout(0.3), new nn.Linear(16, 3));
    const optimizer = new optim.AdamW(model.parameters(), { lr: 0.01 });
    const xs = Float32Array.from({ length: 200 }, (_, i) => Math.sin(i * i));
    const ys = Int32Array.from({ length: 40 }, (_, i) => (i * 7) % 3);
    const loader = new data.DataLoader(new data.ArrayDataset(data.hostArray(xs, [40, 5]), data.hostArray(ys)), {
      batchSize: 8, shuffle: true, seed: 5,
      wrap: ([x, y]) => [nabla.tensor(x.data).reshape(x.shape), nabla.tensor(y.data)],
    });
    const waits = { name: "waits", wants: (step) => step === stall, onStep: (run, { step }) => {
      if (step !== stall) return;
      globalThis.reached();
      return new Promise(() => {});
    } };
    await nabla.tensor([1]).data();
    const resume = checkpoints ? await train.checkpointToResume(dir).catch(() => undefined) : undefined;
    const result = await train.fit(model, {
      train: loader, loss: nn.functional.crossEntropy, optimizer, steps: 12, seed: 11, ...(resume ? { resume } : {}),
      callbacks: [waits, train.logMetrics({ dir, resume: true }),
        ...(checkpoints ? [train.saveCheckpoints({ every: 5, dir, keep: 2 })] : [])],
    });
    return { resume, losses: result.history.map(({ loss }) => loss), weights: [...await model.stateDict()["0.weight"].data()] };
  };
  const names = async (path) => {
    let folder = await navigator.storage.getDirectory();
    for (const name of path.split("/")) folder = await folder.getDirectoryHandle(name);
    const found = [];
    for await (const name of folder.keys()) found.push(name);
    return found.sort();
  };
`;
interface Trained {
  readonly resume?: string;
  readonly losses: number[];
  readonly weights: number[];
}

test("training that a page is torn out of goes on from its checkpoint with the same bits", { skip }, async () => {
  const whole = await onPage<Trained>(`${training} return training("runs/whole", { checkpoints: false });`);
  assert.equal(whole.losses.length, 12);
  await onPage(`${training}
    const reached = new Promise((resolve) => { globalThis.reached = resolve; });
    training("runs/torn", { stall: 8 });
    await reached;
  `);
  await reload();
  const rest = await onPage<{ result: Trained; names: string[]; log: { step: number; loss: number }[] }>(`${training}
    // what a page leaves that is torn out of writing a checkpoint
    const folder = await (await (await navigator.storage.getDirectory()).getDirectoryHandle("runs")).getDirectoryHandle("torn");
    const half = await folder.getDirectoryHandle("checkpoint-8", { create: true });
    await half.getFileHandle("model.safetensors", { create: true });
    const result = await training("runs/torn");
    return { result, names: await names("runs/torn"), log: await train.readRunLog("runs/torn") };
  `);
  assert.equal(rest.result.resume, "runs/torn/checkpoint-5");
  assert.deepEqual(rest.result.losses, whole.losses.slice(5));
  assert.deepEqual(rest.result.weights, whole.weights);
  assert.deepEqual(
    rest.log.map(({ step, loss }) => [step, loss]),
    whole.losses.map((loss, i) => [i + 1, loss]),
  );
  assert.deepEqual(rest.names, ["checkpoint-10", "checkpoint-12", "metrics.jsonl", "model.safetensors"]);
});

test("a damaged checkpoint is passed over, and a step is saved anew in place of its first", { skip }, async () => {
  const got = await onPage<{
    damaged: string[];
    latest: string;
    names: string[];
    again: string | undefined;
  }>(`${training}
    let folder = await navigator.storage.getDirectory();
    for (const name of ["runs", "torn", "checkpoint-12"]) folder = await folder.getDirectoryHandle(name);
    const writable = await (await folder.getFileHandle("state.safetensors")).createWritable({ keepExistingData: true });
    await writable.write({ type: "write", position: 100, data: new Uint8Array([1, 2, 3]) });
    await writable.close();
    const { path, damaged } = await train.latestCheckpoint("runs/torn");
    const { resume } = await training("runs/torn");
    return { damaged, latest: path, again: resume, names: await names("runs/torn"), now: (await train.latestCheckpoint("runs/torn")).step };
  `);
  assert.equal(got.latest, "runs/torn/checkpoint-10");
  assert.match(got.damaged[0], /checkpoint-12: state\.safetensors has other content than was written/);
  assert.equal(got.again, "runs/torn/checkpoint-10");
  assert.deepEqual(got.names, ["checkpoint-10", "checkpoint-12", "metrics.jsonl", "model.safetensors"]);
});

test("where the quota is used up, saving says so and leaves what was there", { skip }, async () => {
  const devtools = await page.context().newCDPSession(page);
  const used = Number(await page.evaluate("navigator.storage.estimate().then(({ usage }) => usage ?? 0)"));
  await devtools.send("Storage.overrideQuotaForOrigin", { origin: new URL(address).origin, quotaSize: used + 500_000 });
  const got = await onPage<{ told: string[]; codes: string[]; kept: number; names: string[] }>(`${training}
    const told = [], codes = [];
    const large = { w: nabla.zeros([1024, 1024]) };
    for (const path of ["models/mine/model.safetensors", "models/mine/new.safetensors"])
      await formats.save(large, path).catch((error) => { told.push(error.message); codes.push(error.code); });
    const kept = (await formats.load("models/mine/model.safetensors"))["0.weight"].shape[0];
    return { told, codes, kept, names: await names("models/mine") };
  `);
  await devtools.send("Storage.overrideQuotaForOrigin", { origin: new URL(address).origin });
  assert.deepEqual(got.codes, ["EDQUOT", "EDQUOT"]);
  for (const message of got.told)
    assert.match(
      message,
      /^can't write models\/mine\/\w+\.safetensors: .* is full \(EDQUOT\): \d+ bytes were asked for, \d+ of \d+ are used/,
    );
  assert.equal(got.kept, 3);
  assert.deepEqual(got.names, ["model.safetensors"]);
});

test("the page's main thread has unpacked and compiled nothing, and loaded no compiler and no kernels", {
  skip,
}, async () => {
  await look();
  const heavy = /^(src\/(compiler|backends\/(?!remote\/|backend\.ts|collector\.ts))|node_modules\/(jpeg-js|fast-png))/;
  const heavyFiles = Object.entries(outputs)
    .filter(([, { inputs }]) => Object.keys(inputs).some((file) => heavy.test(file)))
    .map(([path]) => path.split("/").at(-1) as string);
  assert.ok(heavyFiles.length >= 3, `${heavyFiles}`);
  assert.ok(seen.page.has("core.js") && seen.page.has("data.js"), `${[...seen.page]}`);
  const { DecompressionStream, compiled } = seen;
  const caught = { files: heavyFiles.filter((file) => seen.page.has(file)), DecompressionStream, compiled };
  assert.deepEqual(caught, { files: [], DecompressionStream: 0, compiled: 0 });
  for (const file of ["worker.js", "decoder.js"]) assert.ok(seen.all.has(file), file);
  assert.ok(
    heavyFiles.some((file) => seen.all.has(file)),
    "the worker has loaded the compiler",
  );
});
