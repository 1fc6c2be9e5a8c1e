/**
 * Builds the package for browsers: ES modules without Node's, minified. What the subpaths export is one file, `core.js`, of which
 * a bundler takes what is used; a page without a bundler loads it whole. Each backend is a chunk of its own that is
 * loaded when it is needed. `scripts/build.mjs` and the tests call it.
 */
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const src = join(root, "src");

/** What the package exports to browsers, and the namespaces inside `nn`, by the names of the files that they become. */
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
  finetune: "finetune/index.ts",
};
/** Those that a page loads beside core.js, because few pages need them. */
const apart = new Set(["finetune"]);
/** Scripts that a page starts by their address. */
const workers = { worker: "backends/remote/worker.ts", decoder: "data/decoder.ts" };

/** Where a file for browsers stands beside one, it is taken instead. */
const forBrowsers = {
  name: "files for browsers",
  setup({ onResolve }) {
    onResolve({ filter: /^\.\.?\/.*\.ts$/ }, ({ path, resolveDir }) => {
      const file = join(resolveDir, path);
      const own = file.replace(/\.ts$/, ".browser.ts");
      return { path: existsSync(own) ? own : file };
    });
  },
};

/** Errors and printed modules tell the names of classes, which would be shortened. */
const namedClasses = {
  name: "names of classes",
  setup({ onLoad }) {
    onLoad({ filter: /src[\\/](nn|optim|models|finetune|hub)[\\/].*\.ts$/ }, ({ path }) => ({
      loader: "ts",
      contents: readFileSync(path, "utf8").replace(
        /^((?:export )?(?:abstract )?class (\w+)[^{]*\{)$/gm,
        '$1 static name = "$2";',
      ),
    }));
  },
};

/** Environment variables that what a page loads asks for. */
const settings = ["NABLA_DEBUG", "NABLA_FUSE", "NABLA_POISON", "NABLA_THREADS"];

/** The module "core", which is in no file. */
const virtual = (core) => ({
  name: "core",
  setup({ onResolve, onLoad }) {
    onResolve({ filter: /^core$/ }, () => ({ path: "core", namespace: "virtual" }));
    onLoad({ filter: /^core$/, namespace: "virtual" }, () => ({ contents: core, resolveDir: src, loader: "ts" }));
  },
});

/** @returns {import("esbuild").BuildOptions} */
const options = (folder, softwareAdapters = false) => ({
  absWorkingDir: root,
  outdir: folder,
  bundle: true,
  format: "esm",
  target: "es2022",
  // white space stays, and with it the comments that tell a bundler which calls it may leave out
  minifyIdentifiers: true,
  minifySyntax: true,
  charset: "utf8",
  metafile: true,
  define: {
    "import.meta.forBrowsers": "true",
    "import.meta.forGpus": String(!softwareAdapters),
    // There is no environment to read settings from: Object has none of their names. (An object literal would be a module of its own,
    // and every file would call it as soon as one, jpeg-js, is CommonJS.)
    process: "undefined",
    "process.env": "Object",
    ...Object.fromEntries(settings.map((name) => [`process.env.${name}`, "undefined"])),
  },
  plugins: [forBrowsers, namedClasses],
  logLevel: "warning",
});

/** The namespaces that a file exports, `export * as nn from "./nn/index.ts"`, and the entries that they are. */
function namespacesOf(entry) {
  const file = join(src, entries[entry]);
  const found = readFileSync(file, "utf8").matchAll(/^export \* as (\w+) from "(.+)";$/gm);
  return [...found].map(([, name, from]) => {
    const target = Object.keys(entries).find((other) => join(src, entries[other]) === join(dirname(file), from));
    if (!target) throw new Error(`${entries[entry]} exports the namespace ${name}, which has to be in entries`);
    return { name, file: `./${target}.js` };
  });
}

/** The names that every entry exports, namespaces left out. */
async function exportsOf(folder) {
  const points = Object.entries(entries)
    .filter(([out]) => !apart.has(out))
    .map(([out, file]) => ({ in: join(src, file), out }));
  const { metafile } = await build({ ...options(folder), splitting: true, entryPoints: points, write: false });
  return new Map(
    points.map(({ in: file, out: entry }) => {
      const output = Object.values(metafile.outputs).find(({ entryPoint: e }) => e && join(root, e) === file);
      const apart = namespacesOf(entry).map(({ name }) => name);
      return [entry, output.exports.filter((name) => !apart.includes(name))];
    }),
  );
}

/**
 * Builds into `folder`; gives esbuild's account of what became of which file. Throws where a file does not build.
 * `softwareAdapters`: with the forms of kernels for them, where WebGPU is computed by the processor (tests).
 * A namespace is a module of its own, not an object in one, because bundlers leave out what nobody uses only of modules.
 */
export async function buildBrowser(folder, { softwareAdapters = false } = {}) {
  const lists = await exportsOf(folder);
  let count = 0;
  let core = "";
  const faces = new Map();
  for (const [entry, names] of lists) {
    const pairs = names.map((name) => [name, `$${(count++).toString(36)}`]);
    core += `export { ${pairs.map(([name, short]) => `${name} as ${short}`).join(", ")} } from "./${entries[entry]}";\n`;
    faces.set(
      `${entry}.js`,
      [
        `export{${pairs.map(([name, short]) => `${short} as ${name}`).join(",")}}from"./core.js";`,
        ...namespacesOf(entry).map(({ name, file }) => `export*as ${name} from"${file}";`),
      ].join("\n"),
    );
  }
  const files = [...Object.entries(workers), ...Object.entries(entries).filter(([name]) => apart.has(name))];
  const { metafile } = await build({
    ...options(folder, softwareAdapters),
    splitting: true,
    entryPoints: { core: "core", ...Object.fromEntries(files.map(([name, file]) => [name, join(src, file)])) },
    chunkNames: "[name]-[hash]",
    plugins: [forBrowsers, namedClasses, virtual(core)],
  });
  for (const [name, text] of faces) writeFileSync(join(folder, name), `${text}\n`);
  return metafile;
}
