/**
 * Builds the package: src → dist (JavaScript and types), with the C sources that the cpu backend compiles at run time
 * beside the compiled files, and dist/browser (browser.mjs). Runs at `npm run build`, and at `npm ci` and `npm pack` through `prepare`. In an installed
 * package there is neither TypeScript nor src, and nothing to do.
 */
import { spawnSync } from "node:child_process";
import { chmodSync, cpSync, existsSync, mkdirSync, readdirSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
process.chdir(root);

/** Folders of files that are read at run time and that the compiler does not carry over. */
const assets = [["src/backends/cpu/runtime", "dist/backends/cpu/runtime"]];

function findCompiler() {
  try {
    const manifest = createRequire(join(root, "package.json")).resolve("typescript/package.json");
    return join(dirname(manifest), "bin", "tsc");
  } catch {
    return null;
  }
}

const tsc = findCompiler();
if (tsc === null || !existsSync("src")) {
  console.log(
    existsSync("dist")
      ? "build: TypeScript is not installed; dist is used as it is"
      : "build: TypeScript is not installed, so there is nothing to build with (npm ci installs it)",
  );
  process.exit(0);
}

// Built aside and moved into place, so that a program that runs from dist never meets half a build.
const began = performance.now();
const fresh = `dist.${process.pid}`;
const old = `dist.${process.pid}.old`;
try {
  const { status, error } = spawnSync(process.execPath, [tsc, "-p", "tsconfig.build.json", "--outDir", fresh], {
    stdio: "inherit",
  });
  if (error) throw error;
  if (status !== 0) {
    console.error("build: TypeScript found errors (above); dist is left as it was");
    process.exit(1);
  }
  for (const [from, to] of assets) {
    const target = to.replace(/^dist/, fresh);
    if (existsSync(from)) cpSync(from, target, { recursive: true });
  }
  const { buildBrowser } = await import("./browser.mjs");
  await buildBrowser(join(fresh, "browser"));
  chmodSync("bin/nabla.js", 0o755);
  mkdirSync(fresh, { recursive: true });
  writeFileSync(join(fresh, ".built"), `${new Date().toISOString()}\n`); // bin/nabla.js compares src with its time
  if (existsSync("dist")) renameSync("dist", old);
  renameSync(fresh, "dist");
} finally {
  rmSync(fresh, { recursive: true, force: true });
  rmSync(old, { recursive: true, force: true });
}
const files = readdirSync("dist", { recursive: true }).length;
console.log(`build: ${files} files in dist, ${((performance.now() - began) / 1000).toFixed(1)} s`);
