/**
 * The package as it is installed: packed by npm, unpacked elsewhere. Every subpath that package.json names can be imported,
 * with types, and every folder that is for users has a subpath.
 */
import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { after, before, test } from "node:test";
import { buildBrowser } from "../scripts/browser.mjs";
import { buildInto, root, tsc } from "./support/build.ts";

/** What a subpath is: types, a module for Node and, where it works there, one for browsers. */
interface Entry {
  readonly types: string;
  readonly browser?: string;
  readonly default: string;
}
const manifest = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as {
  readonly exports: Readonly<Record<string, string | Entry>>;
  readonly files: readonly string[];
  readonly dependencies: Readonly<Record<string, string>>;
};
/** Folders behind the public ones; `cli` is the command, `nabla/models` exports what is public of `hub`. */
const inner = ["core", "graph", "autograd", "compiler", "backends", "execution", "tensor", "hub", "cli"];
/** A name that each subpath gives. */
const names: Readonly<Record<string, string>> = {
  ".": "tensor",
  "./nn": "Linear",
  "./optim": "AdamW",
  "./data": "DataLoader",
  "./train": "fit",
  "./models": "GPT2",
  "./formats": "load",
  "./generate": "generate",
  "./finetune": "applyLora",
};
const subpaths = Object.keys(manifest.exports).filter((path) => path !== "./package.json");
const specifier = (path: string): string => path.replace(/^\./, "nabla");

const room = mkdtempSync(join(tmpdir(), "nabla-package-"));
const app = join(room, "app");
const installed = join(app, "node_modules", "nabla");

before(async () => {
  const whole = join(room, "nabla");
  mkdirSync(whole);
  for (const name of ["package.json", ...manifest.files.filter((f) => f !== "dist" && existsSync(join(root, f)))])
    cpSync(join(root, name), join(whole, name), { recursive: true });
  assert.equal(buildInto(join(whole, "dist")), "");
  await buildBrowser(join(whole, "dist", "browser"));
  const npm = (args: string) => execFileSync(`npm ${args}`, { cwd: whole, encoding: "utf8", shell: true });
  const [{ filename }] = JSON.parse(npm("pack --ignore-scripts --json")) as [{ filename: string }];
  mkdirSync(installed, { recursive: true });
  execFileSync("tar", ["-xzf", filename, "--strip-components=1", "-C", installed], { cwd: whole });
  for (const name of [...Object.keys(manifest.dependencies), "@koffi", "@types"])
    if (existsSync(join(root, "node_modules", name))) {
      mkdirSync(dirname(join(app, "node_modules", name)), { recursive: true });
      symlinkSync(join(root, "node_modules", name), join(app, "node_modules", name), "junction");
    }
  writeFileSync(join(app, "package.json"), '{ "type": "module" }');
});
after(() => rmSync(room, { recursive: true, force: true }));

test("every folder for users has a subpath", () => {
  const folders = readdirSync(join(root, "src"), { withFileTypes: true }).filter((f) => f.isDirectory());
  const expected = [".", ...folders.map((f) => `./${f.name}`).filter((path) => !inner.includes(path.slice(2)))];
  assert.deepEqual([...subpaths].sort(), expected.sort());
  assert.deepEqual(Object.keys(names).sort(), expected.sort(), "name something of it in this test");
});

/** Imports subpaths of the installed package, and looks for the names that they should give. */
function importAll(wanted: readonly (readonly string[])[], options: readonly string[] = []): string[] {
  const script = `for (const [path, name] of ${JSON.stringify(wanted)}) {
    const module = await import(path);
    if (typeof module[name] !== "function") throw new Error(path + " has no " + name);
    console.log(path);
  }
  const { default: manifest } = await import("nabla/package.json", { with: { type: "json" } });
  console.log(manifest.name);`;
  const { stdout, stderr, status } = spawnSync(process.execPath, [...options, "--input-type=module", "-e", script], {
    cwd: app,
    encoding: "utf8",
  });
  assert.equal(status, 0, stderr);
  return stdout.trim().split("\n");
}
const wanted = Object.entries(names).map(([path, name]) => [specifier(path), name]);

test("every subpath of the packed package can be imported", () => {
  assert.deepEqual(importAll(wanted), [...wanted.map(([path]) => path), "nabla"]);
});

test("what is for browsers can be imported as a browser's bundler finds it", () => {
  const has = ([path]: readonly string[]) => (manifest.exports[path.replace("nabla", ".")] as Entry).browser;
  const there = wanted.filter(has);
  assert.ok(there.length >= 5, `${there}`);
  assert.deepEqual(importAll(there, ["--conditions=browser"]), [...there.map(([path]) => path), "nabla"]);
});

test("every subpath has types, and they hold for whoever installs the package", () => {
  for (const path of subpaths) {
    const entry = manifest.exports[path] as Entry;
    for (const file of [entry.types, entry.default, ...(entry.browser ? [entry.browser] : [])])
      assert.ok(existsSync(join(installed, file)), `${path}: ${file}`);
  }
  const lines = Object.entries(names).map(
    ([path, name], i) =>
      `import { ${name} as x${i} } from "${specifier(path)}";\nexport const y${i}: string = x${i}.name;`,
  );
  // what is not there must be an error, or the check would be none
  writeFileSync(join(app, "good.ts"), lines.join("\n"));
  writeFileSync(join(app, "bad.ts"), 'import { notThere } from "nabla/generate";\nconsole.log(notThere);\n');
  const check = (file: string) =>
    spawnSync(
      process.execPath,
      [tsc, "--noEmit", "--strict", "--module", "nodenext", "--target", "es2023", "--types", "node", file],
      { cwd: app, encoding: "utf8" },
    );
  const good = check("good.ts");
  assert.equal(good.status, 0, good.stdout);
  const bad = check("bad.ts");
  assert.notEqual(bad.status, 0);
  assert.match(bad.stdout, /notThere/);
});
