/**
 * Builds the package for browsers: ES modules without Node's, minified and split into chunks, so that a page loads a
 * backend and its compiler only when it computes there. `scripts/build.mjs` and the tests call it.
 */
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const src = join(root, "src");

/** What the package exports to browsers, the namespaces inside `nn`, and the workers that a page starts, by the names of the files that they become. */
export const entries = {
  index: "index.ts",
  nn: "nn/index.ts",
  functional: "nn/functional.ts",
  init: "nn/init.ts",
  optim: "optim/index.ts",
  models: "models/index.ts",
  generate: "generate/index.ts",
  data: "data/index.ts",
  formats: "formats/index.ts",
  train: "train/index.ts",
  worker: "backends/remote/worker.ts",
  decoder: "data/decoder.ts",
};
const entryOf = new Map(Object.entries(entries).map(([name, file]) => [join(src, file), `./${name}.js`]));

/** Two rules for imports between files. */
const imports = {
  name: "imports",
  setup({ onResolve }) {
    onResolve({ filter: /^\.\.?\/.*\.ts$/ }, ({ path, importer, resolveDir }) => {
      const file = join(resolveDir, path);
      // `export * as nn from "./nn/index.ts"` stays what it is: bundlers leave out what nobody uses of a namespace that
      // is a module, but not of one that is an object
      if (entryOf.has(importer) && entryOf.has(file)) return { path: entryOf.get(file), external: true };
      // where a file for browsers stands beside one, it is taken instead
      const own = file.replace(/\.ts$/, ".browser.ts");
      return { path: existsSync(own) ? own : file };
    });
  },
};

/** Builds into `folder`; gives esbuild's account of what became of which file. Throws where a file does not build. */
export async function buildBrowser(folder) {
  const { metafile } = await build({
    absWorkingDir: root,
    entryPoints: Object.fromEntries(Object.entries(entries).map(([name, file]) => [name, join(src, file)])),
    outdir: folder,
    chunkNames: "[name]-[hash]",
    bundle: true,
    splitting: true,
    format: "esm",
    target: "es2022",
    minify: true,
    metafile: true,
    // there is no environment to read settings from
    define: { process: "undefined", "process.env": "{}" },
    plugins: [imports],
    logLevel: "warning",
  });
  return metafile;
}
