/**
 * What a page loads: a program that uses the package as it is installed, bundled as an application's is, is measured,
 * looked through for what does not belong into a browser, and compared with a program that uses little.
 */
import assert from "node:assert/strict";
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { after, before, test } from "node:test";
import { gzipSync } from "node:zlib";
import { build, type Metafile } from "esbuild";
import { minify } from "vite";
import { buildBrowser } from "../../scripts/browser.mjs";
import { nn, optim } from "../../src/index.ts";
import { root } from "../support/build.ts";

/** Bytes of tensors, nn, optim, wasm and webgpu, packed by gzip -9. The goal is 120,000. */
const most = 163_000;

const room = mkdtempSync(join(tmpdir(), "nabla-size-"));
const installed = join(room, "node_modules", "nabla");
let metafile: Metafile;

before(async () => {
  mkdirSync(installed, { recursive: true });
  cpSync(join(root, "package.json"), join(installed, "package.json"));
  metafile = await buildBrowser(join(installed, "dist", "browser"));
});
after(() => rmSync(room, { recursive: true, force: true }));

interface Chunk {
  readonly name: string;
  readonly text: string;
  readonly packed: number;
}

/** The files of an application, which a bundler makes of `program`, of what it imports, and of the worker that it starts. */
async function bundle(program: string): Promise<Chunk[]> {
  writeFileSync(join(room, "application.js"), program);
  const { outputFiles } = await build({
    entryPoints: [join(room, "application.js"), join(installed, "dist", "browser", "worker.js")],
    outdir: join(room, "application"),
    bundle: true,
    splitting: true,
    format: "esm",
    minify: true,
    charset: "utf8",
    write: false,
    logLevel: "error",
  });
  // a bundler also writes chunks that only what it left out would load
  const loadable = outputFiles.filter(({ path }) => /^(application|worker)\.js$/.test(basename(path)));
  for (const { text } of loadable)
    for (const file of outputFiles)
      if (text.includes(basename(file.path)) && !loadable.includes(file)) loadable.push(file);
  return Promise.all(
    loadable.map(async ({ path, text }) => {
      const name = basename(path);
      // as Vite does last of all
      const { code } = await minify(name, text, { module: true, compress: { target: "es2022" } });
      return { name, text, packed: gzipSync(code, { level: 9 }).length };
    }),
  );
}

const sum = (chunks: readonly Chunk[]): number => chunks.reduce((n, { packed }) => n + packed, 0);

const whole = 'import * as nabla from "nabla";\nglobalThis.nabla = nabla;\n';
const tiny = 'import { tensor } from "nabla";\nconsole.log(await tensor([1, 2]).add(1).data());\n';

/** Chunks that are loaded with one at once, itself first. */
function loadedWith(output: string): string[] {
  const found = [output];
  for (const at of found)
    for (const { path, kind } of metafile.outputs[at].imports)
      if (kind === "import-statement" && !found.includes(path)) found.push(path);
  return found;
}
const sourcesOf = (outputs: readonly string[]): string[] =>
  outputs.flatMap((output) => Object.keys(metafile.outputs[output].inputs));

test(`tensors, nn, optim and both backends are at most ${most} bytes for a page`, async (t) => {
  const chunks = await bundle(whole);
  for (const { name, text, packed } of chunks)
    t.diagnostic(`${name}: ${Buffer.byteLength(text)} bytes, ${packed} packed`);
  t.diagnostic(`together: ${sum(chunks)} packed`);
  for (const part of ["AdamW", "LSTM", "requestAdapter", "WebAssembly", "./worker.js"])
    assert.ok(
      chunks.some(({ text }) => text.includes(part)),
      `${part} is counted`,
    );
  assert.ok(sum(chunks) <= most, `${sum(chunks)} bytes`);
});

test("nothing of Node is left", async () => {
  const files = readdirSync(join(installed, "dist", "browser"));
  assert.ok(files.length > 8, `${files}`);
  for (const file of files) {
    const text = readFileSync(join(installed, "dist", "browser", file), "utf8");
    const left = text.match(/(\bfrom|\bimport\(?)\s*["'`]node:[\w/]+|\brequire\(|\bprocess\.|koffi/g) ?? [];
    assert.deepEqual([...left], [], file);
  }
});

test("compiler and kernels come with a backend, not before, and cpu and reference never", () => {
  const loaded = (file: string) =>
    sourcesOf(loadedWith(Object.keys(metafile.outputs).find((name) => name.endsWith(file)) as string));
  const heavy = /^src\/(compiler|backends\/(wasm|webgpu|cpu|reference))\//;
  const first = loaded("/core.js");
  assert.ok(first.includes("src/execution/flush.ts") && first.includes("src/execution/backends.browser.ts"));
  assert.deepEqual(
    first.filter((file) => heavy.test(file)),
    [],
  );
  const inWorker = loaded("/worker.js");
  assert.ok(inWorker.includes("src/backends/remote/host.ts"));
  assert.deepEqual(
    inWorker.filter((file) => /^src\/(compiler|tensor|execution|nn|backends\/(wasm|webgpu|cpu))\//.test(file)),
    [],
  );
  const all = sourcesOf(Object.keys(metafile.outputs));
  assert.ok(all.some((file) => file.startsWith("src/backends/webgpu/")));
  assert.deepEqual(
    all.filter((file) => /cpu\/(native|toolchain|index)|reference\/(program|index)|cli\//.test(file)),
    [],
  );
});

const classes = [...Object.entries(nn), ...Object.entries(optim)]
  .filter(([name, value]) => typeof value === "function" && /^[A-Z]/.test(name))
  .map(([name]) => name);

/** The layers and optimisers in an application, by the names that they keep. */
const classesIn = (chunks: readonly Chunk[]): string[] =>
  classes.filter((name) => chunks.some(({ text }) => text.includes(`static name="${name}"`)));

test("who uses little gets little: with a sum no layers, losses and optimisers", async () => {
  const [few, many] = [await bundle(tiny), await bundle(whole)];
  assert.deepEqual(classesIn(few), []);
  assert.ok(!few.some(({ text }) => /klDiv|kaiming|clipGradNorm/.test(text)));
  assert.ok(classesIn(many).length > 60, "that is how they are named where they are used");
  assert.ok(sum(few) < sum(many) - 20_000, `${sum(few)} of ${sum(many)} bytes`);
});

test("of a subpath comes what is imported from it", async () => {
  const program = `
    import { Linear } from "nabla/nn";
    import { SGD } from "nabla/optim";
    const model = new Linear(2, 3);
    console.log(model, new SGD(model.parameters(), { lr: 0.1 }));`;
  const needed = ["Buffer", "Linear", "Module", "Optimizer", "Parameter", "SGD"];
  assert.deepEqual(classesIn(await bundle(program)).sort(), needed);
});
