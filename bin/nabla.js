#!/usr/bin/env node
/**
 * The `nabla` command. It runs the built package; in a checkout whose sources are newer than the build it runs the
 * sources through tsx, so that what is run is always what is read. The commands themselves are in src/cli.
 */
import { existsSync, readdirSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const source = join(root, "src", "cli", "main.ts");
const built = join(root, "dist", "cli", "main.js");
const stamp = join(root, "dist", ".built");

/** Whether any file of src was changed after `time`. */
function changedSince(time) {
  return readdirSync(join(root, "src"), { recursive: true, withFileTypes: true }).some(
    (entry) => entry.isFile() && statSync(join(entry.parentPath ?? entry.path, entry.name)).mtimeMs > time,
  );
}

function buildIsCurrent() {
  if (!existsSync(built)) return false;
  if (!existsSync(source)) return true; // an installed package
  return existsSync(stamp) && !changedSince(statSync(stamp).mtimeMs);
}

const current = buildIsCurrent();
if (!current && !existsSync(source)) {
  console.error("nabla: the package is incomplete: it has neither dist nor src; install it again");
  process.exit(70);
}
if (!current) {
  try {
    (await import("tsx/esm/api")).register();
  } catch {
    console.error("nabla: the sources are newer than the build and tsx is not installed; run npm ci, or npm run build");
    process.exit(70);
  }
}
const { main } = await import(current ? "../dist/cli/main.js" : "../src/cli/main.ts");
process.exitCode = await main(process.argv.slice(2));
