/**
 * What a run of the tests prints: a line for each file as it ends, failures in full, why tests were skipped, and at the
 * end node's own summary. With NABLA_TEST_SUMMARY=FILE the skipped tests are also written there as JSON, for CI.
 */
import { writeFileSync } from "node:fs";
import { relative } from "node:path";
import { inspect } from "node:util";

const seconds = (ms) => `${(ms / 1000).toFixed(1)} s`;
const indent = (text, by) => text.replace(/^/gm, " ".repeat(by));
const cwd = process.cwd();

function errorText(error) {
  const cause = error?.cause ?? error;
  if (cause === undefined || cause === null) return "";
  if (typeof cause === "string") return cause;
  return cause.stack ?? inspect(cause);
}

export default async function* report(source) {
  const files = new Map(); // file → counts
  const skipped = [];
  const failures = [];
  const summary = [];
  const of = (data) => {
    const name = relative(cwd, data.file ?? data.name ?? "?");
    if (!files.has(name)) files.set(name, { name, passed: 0, failed: 0, skipped: 0, ms: 0 });
    return files.get(name);
  };
  /** A file is an entry of its own at the top in some versions of node; that is not a test. */
  const isFile = (data) => data.nesting === 0 && data.name?.endsWith(".test.ts");
  let current = null;
  function* finish(file) {
    if (file === null || file.passed + file.failed + file.skipped === 0) return;
    const counts = [`${file.passed} passed`];
    if (file.failed > 0) counts.push(`${file.failed} failed`);
    if (file.skipped > 0) counts.push(`${file.skipped} skipped`);
    yield `${file.failed > 0 ? "✖" : "✔"} ${file.name}  ${counts.join(", ")}, ${seconds(file.ms)}\n`;
  }
  for await (const { type, data } of source) {
    if (type === "test:stderr" || type === "test:stdout") {
      if (type === "test:stderr" && !/ExperimentalWarning|--trace-warnings/.test(data.message)) yield data.message;
      continue;
    }
    if (type === "test:diagnostic" && data.nesting === 0) {
      const line = /^(tests|suites|pass|fail|cancelled|skipped|todo|duration_ms) [\d.]+$/.exec(data.message);
      if (line) summary.push(data.message);
      continue;
    }
    if (type !== "test:pass" && type !== "test:fail") continue;
    if (isFile(data) && type === "test:pass") continue;
    const file = of(data);
    if (current !== null && file !== current) yield* finish(current);
    current = file;
    if (data.nesting === 0) file.ms += data.details?.duration_ms ?? 0;
    if (data.details?.type === "suite" && type === "test:pass") continue;
    if (data.skip !== undefined) {
      file.skipped++;
      skipped.push({ file: file.name, test: data.name, reason: typeof data.skip === "string" ? data.skip : "" });
    } else if (type === "test:pass") file.passed++;
    else if (data.todo === undefined) {
      // A parent of a failed subtest fails with it; its own message says nothing.
      if (data.details?.error?.failureType !== "subtestsFailed") {
        file.failed++;
        const text = `✖ ${file.name}: ${data.name}\n${indent(errorText(data.details?.error), 4)}\n`;
        failures.push(text);
        yield text;
      }
    }
  }
  yield* finish(current);
  if (skipped.length > 0) {
    const reasons = new Map();
    for (const { reason } of skipped) reasons.set(reason, (reasons.get(reason) ?? 0) + 1);
    yield "\nskipped:\n";
    for (const [reason, n] of reasons) yield `  ${n} × ${reason || "(no reason given)"}\n`;
  }
  if (failures.length > 0) {
    yield `\n${failures.length} failed:\n`;
    for (const text of failures) yield `  ${text.split("\n", 1)[0].slice(2)}\n`;
  }
  if (process.env.NABLA_TEST_SUMMARY) writeFileSync(process.env.NABLA_TEST_SUMMARY, JSON.stringify({ skipped }));
  yield "\n";
  for (const line of summary) yield `ℹ ${line}\n`;
}
