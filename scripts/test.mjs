/**
 * Runs the tests: every tests/**\/*.test.ts, each file in a process of its own, two at a time.
 *
 *   node scripts/test.mjs [--long] [--list] [FILTER…]
 *
 * A FILTER keeps the files whose path contains it. --long sets NABLA_LONG=1, with which tests do more of the same or
 * take real data in full. The exit code is the runner's; the output ends with the runner's own summary.
 */
import { spawn } from "node:child_process";
import { readdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { transpileAhead } from "./transpile.mjs";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
process.chdir(root);
const args = process.argv.slice(2);
const unknown = args.find((arg) => arg.startsWith("-") && arg !== "--long" && arg !== "--list");
if (unknown !== undefined) {
  console.error(`test: unknown option ${unknown}; known are --long and --list, anything else selects files by path`);
  process.exit(2);
}
const filters = args.filter((arg) => !arg.startsWith("-"));
const files = readdirSync("tests", { recursive: true })
  .map((name) => join("tests", name).replaceAll("\\", "/"))
  .filter((path) => path.endsWith(".test.ts") && (filters.length === 0 || filters.some((f) => path.includes(f))))
  .sort();
if (files.length === 0) {
  console.error(`test: no test file under tests has a path with ${filters.join(" or ")}`);
  process.exit(2);
}
if (args.includes("--list")) {
  console.log(files.join("\n"));
  process.exit(0);
}
const sources = ["src", "tests"].flatMap((folder) =>
  readdirSync(folder, { recursive: true })
    .filter((name) => name.endsWith(".ts"))
    .map((name) => join(root, folder, name)),
);
await transpileAhead(sources);
const env = { ...process.env };
if (args.includes("--long")) env.NABLA_LONG = "1";
const child = spawn(
  process.execPath,
  [
    "--import",
    pathToFileURL(join(root, "scripts/typescript.mjs")).href,
    "--test",
    "--test-concurrency=2",
    "--test-reporter=./scripts/test-reporter.mjs",
    "--test-reporter-destination=stdout",
    ...files,
  ],
  { stdio: ["inherit", "pipe", "inherit"], env },
);
child.stdout.pipe(process.stdout);
// whoever reads the output has seen enough (test.mjs | head): end as a program does that SIGPIPE ends, saying nothing
process.stdout.on("error", (error) => {
  if (error.code !== "EPIPE") throw error;
  child.kill();
  process.exit(141);
});
child.on("error", (error) => {
  console.error(`test: ${error.message}`);
  process.exit(1);
});
// "close" comes after the last of the output
child.on("close", (code, signal) => process.exit(signal === null ? code : 1));
for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => child.kill(signal));
