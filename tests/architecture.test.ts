/**
 * The house rules that a program can check: a folder of src imports only from folders above it, nothing imports itself
 * through a circle of folders, what the package exports is there, and what must be lazy is not imported at the start.
 */
import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative, resolve } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { entries } from "../scripts/browser.mjs";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const src = join(root, "src");

/** From the ground up: a folder may import from itself and from those before it. */
const floors = [
  "core",
  "graph",
  "autograd",
  "compiler",
  "backends",
  "execution",
  "tensor",
  "nn",
  "optim",
  "data",
  "formats",
  "hub",
  "models",
  "generate",
  "train",
  "finetune",
  "cli",
];

/** Imports against the order, each with its reason. An entry that no longer occurs fails the test. */
const exceptions: Readonly<Record<string, string>> = {
  "compiler/loop.ts → backends/backend.ts": "types only: a loop's body becomes a capture",
  "compiler/lower.ts → backends/backend.ts":
    "types only: a capture is the compiler's input, and part of what a backend is",
};

/** Folders whose files may import each other in circles, with the reason. */
const circles: Readonly<Record<string, string>> = {
  tensor: "a tensor and its methods are one thing in several files; each is used only after all are loaded",
};

interface Import {
  readonly file: string;
  readonly specifier: string;
  readonly typeOnly: boolean;
  readonly dynamic: boolean;
}

/** Comments, templates and strings aside, as far as imports can be confused with them. */
const withoutComments = (text: string) => text.replace(/\/\*[\s\S]*?\*\//g, "").replace(/^\s*\/\/.*$/gm, "");

function importsOf(file: string): Import[] {
  const text = withoutComments(readFileSync(file, "utf8"));
  const out: Import[] = [];
  for (const match of text.matchAll(
    /^(?:import|export)\b(\s+type\b)?[^;"'`]*?\bfrom\s+"([^"]+)"|^import\s+"([^"]+)"/gm,
  ))
    out.push({ file, specifier: match[2] ?? match[3], typeOnly: match[1] !== undefined, dynamic: false });
  for (const match of text.matchAll(/\bimport\(\s*"([^"]+)"\s*\)/g))
    out.push({ file, specifier: match[1], typeOnly: false, dynamic: true });
  return out;
}

const sources = readdirSync(src, { recursive: true })
  .map((name) => join(src, String(name)))
  .filter((path) => path.endsWith(".ts"));
const imports = sources.flatMap(importsOf);
const name = (file: string) => relative(src, file).replaceAll("\\", "/");
const floorOf = (file: string) => name(file).split("/")[0];

test("every import between our files names a file that is there, with its extension", () => {
  const missing = imports
    .filter(({ specifier }) => specifier.startsWith("."))
    .filter(({ file, specifier }) => !specifier.endsWith(".ts") || !existsSync(resolve(dirname(file), specifier)))
    .map(({ file, specifier }) => `${name(file)}: ${specifier}`);
  assert.deepEqual(missing, []);
});

test("a folder imports only from folders above it", () => {
  const found = new Set<string>();
  for (const { file, specifier } of imports) {
    if (!specifier.startsWith(".")) continue;
    const target = resolve(dirname(file), specifier);
    const from = floorOf(file);
    if (from.endsWith(".ts")) continue; // the package's front door stands on all of them
    const to = floorOf(target);
    assert.ok(floors.includes(from), `src/${from} is not in the list of floors`);
    const up = to.endsWith(".ts") ? floors.length : floors.indexOf(to);
    if (up > floors.indexOf(from)) found.add(`${name(file)} → ${name(target)}`);
  }
  assert.deepEqual([...found].sort(), Object.keys(exceptions).sort());
});

test("files do not import each other in a circle at load time", () => {
  const edges = new Map<string, string[]>(sources.map((file) => [file, []]));
  for (const { file, specifier, typeOnly, dynamic } of imports)
    if (specifier.startsWith(".") && !typeOnly && !dynamic) edges.get(file)!.push(resolve(dirname(file), specifier));
  const state = new Map<string, "open" | "done">();
  const found: string[] = [];
  const visit = (file: string, path: readonly string[]) => {
    if (state.get(file) === "done") return;
    if (state.get(file) === "open") {
      const circle = [...path.slice(path.indexOf(file)), file];
      if (!circle.every((f) => floorOf(f) in circles)) found.push(circle.map(name).join(" → "));
      return;
    }
    state.set(file, "open");
    for (const next of edges.get(file) ?? []) visit(next, [...path, file]);
    state.set(file, "done");
  };
  for (const file of sources) visit(file, []);
  assert.deepEqual(found, []);
});

test("src uses no package but those that the package depends on", () => {
  const manifest = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
  const dependencies = new Set(Object.keys(manifest.dependencies));
  // an optional peer may be missing: it is imported only when it is asked for
  const peers = new Set(Object.keys(manifest.peerDependenciesMeta ?? {}));
  const packageOf = (specifier: string): string => /^(@[^/]+\/)?[^/]+/.exec(specifier)![0];
  const strangers = imports
    .filter(({ specifier }) => !specifier.startsWith(".") && !specifier.startsWith("node:"))
    .filter(({ specifier }) => !dependencies.has(packageOf(specifier)))
    .filter(({ specifier, dynamic }) => !(dynamic && peers.has(packageOf(specifier))))
    .map(({ file, specifier }) => `${name(file)}: ${specifier}`);
  assert.deepEqual(strangers, []);
});

test("the wasm backend loads without Node: neither its modules nor koffi stand in the way of a browser", () => {
  const found: string[] = [];
  const seen = new Set<string>();
  const visit = (file: string) => {
    if (seen.has(file)) return;
    seen.add(file);
    for (const { specifier, typeOnly, dynamic } of importsOf(file)) {
      if (typeOnly || dynamic) continue;
      if (specifier.startsWith(".")) visit(resolve(dirname(file), specifier));
      else found.push(`${name(file)}: ${specifier}`);
    }
  };
  visit(join(src, "backends/wasm/index.ts"));
  assert.deepEqual(found, []);
  assert.ok(seen.size > 30, "the walk has found the compiler and the assembler");
});

test("importing the package, or asking the command line for help, loads no compiler, koffi or worker", () => {
  const heavy = (specifier: string) => /^(koffi|node:child_process|node:worker_threads)$/.test(specifier);
  const eager: string[] = [];
  const seen = new Set<string>();
  const visit = (file: string, from: string) => {
    if (seen.has(file)) return;
    seen.add(file);
    for (const { specifier, typeOnly, dynamic } of importsOf(file)) {
      if (typeOnly || dynamic) continue;
      if (heavy(specifier)) eager.push(`${from}: ${name(file)} imports ${specifier}`);
      if (specifier.startsWith(".")) visit(resolve(dirname(file), specifier), from);
    }
  };
  for (const entry of ["index.ts", "nn/index.ts", "optim/index.ts", "cli/main.ts"]) visit(join(src, entry), entry);
  assert.deepEqual(eager, []);
});

test("every file opens with a comment that says what it is", () => {
  const bare = sources.filter((file) => !/^(#!.*\n)?\/\*\*/.test(readFileSync(file, "utf8"))).map(name);
  assert.deepEqual(bare, []);
});

test("each export of the package has a source file, and the file list holds what it needs", () => {
  const manifest = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
  for (const [path, target] of Object.entries<string | Record<string, string>>(manifest.exports)) {
    const files = typeof target === "string" ? [target] : Object.values(target);
    for (const file of files) {
      if (!file.startsWith("./dist/")) assert.ok(existsSync(join(root, file)), `${path} → ${file}`);
      else {
        const browser = file.match(/^\.\/dist\/browser\/(\w+)\.js$/);
        const source = browser
          ? `src/${entries[browser[1]]}`
          : file.replace("./dist/", "src/").replace(/(\.d\.ts|\.js)$/, ".ts");
        assert.ok(existsSync(join(root, source)), `${path} → ${file}: there is no ${source}`);
      }
      if (file !== "./package.json") assert.ok(manifest.files.includes(file.split("/")[1]), `${file} is not packed`);
    }
  }
  for (const file of Object.values<string>(manifest.bin)) assert.ok(existsSync(join(root, file)), file);
});
