/**
 * `npm run bench [-- NAME… --json --rounds N --quick]`: runs the benchmarks of this folder, one file each, and prints ratios
 * against the peers that are present. The exit code is 1 where losses of both sides differ; a missed target is only said.
 */
import { readFileSync } from "node:fs";
import { arch, availableParallelism, cpus, loadavg, platform, release, totalmem } from "node:os";
import type { Benchmark, Result, Target } from "./support/benchmark.ts";
import { cpuFlags } from "./support/sides.ts";

const names = [
  ...["gemm", "gpt", "nanogpt-cpu", "mlp", "cnn", "tiny", "decode"],
  ...["memory", "start", "load", "two", "javascript", "wasm", "webgpu"],
] as const;

function usage(message: string): never {
  console.error(
    `bench: ${message}\nusage: npm run bench [-- NAME… --json --rounds N --quick]; names: ${names.join(", ")}`,
  );
  process.exit(2);
}

const args = process.argv.slice(2);
let rounds = 7;
let scale = 1;
let json = false;
const wanted: string[] = [];
for (let i = 0; i < args.length; i++) {
  const arg = args[i];
  if (arg === "--json") json = true;
  else if (arg === "--quick") [rounds, scale] = [1, 0.1];
  else if (arg === "--rounds") {
    rounds = Number(args[++i]);
    if (!Number.isInteger(rounds) || rounds < 1) usage(`--rounds takes a whole number ≥ 1, got ${args[i]}`);
  } else if (arg.startsWith("-")) usage(`unknown option ${arg}`);
  else if (!(names as readonly string[]).includes(arg)) usage(`there is no benchmark ${arg}`);
  else wanted.push(arg);
}

function machine(): Record<string, unknown> {
  const flags = cpuFlags();
  const vectors = ["avx2", "fma", "avx512f", "avx512_vnni", "asimd"].filter((f) => flags.has(f));
  let model = cpus()[0]?.model.trim() ?? "unknown";
  try {
    model = /model name\s*:\s*(.*)/.exec(readFileSync("/proc/cpuinfo", "utf8"))?.[1] ?? model;
  } catch {
    // no /proc here
  }
  return {
    processor: model,
    cores: availableParallelism(),
    vectors,
    memoryGiB: Math.round(totalmem() / 2 ** 30),
    system: `${platform()} ${arch()} ${release()}`,
    node: process.version,
    loadAverage: loadavg()[0],
  };
}

const number = (x: number): string =>
  x >= 100 ? x.toFixed(0) : x >= 10 ? x.toFixed(1) : x >= 1 || x === 0 ? x.toFixed(2) : x.toPrecision(2);

function verdict(value: number | undefined, target: Target | undefined): string {
  if (value === undefined || target === undefined) return "";
  const { atLeast = Number.NEGATIVE_INFINITY, atMost = Number.POSITIVE_INFINITY } = target;
  const goal = target.atLeast === undefined ? `≤ ${number(atMost)}` : `≥ ${number(atLeast)}`;
  return `  ${value >= atLeast && value <= atMost ? "met" : "NOT MET"}: ${goal}`;
}

function text(r: Result): string {
  if (r.absent !== undefined) {
    const own = r.ours === undefined ? "" : `ours ${number(r.ours)} ${r.unit}; `;
    return `  ${r.line}: ${own}not compared with ${r.peer ?? "anything"}: ${r.absent}`;
  }
  const ours = number(r.ours as number);
  if (r.ratio === undefined)
    return `  ${r.line}: ${ours} ${r.unit}${r.note ? ` (${r.note})` : ""}${verdict(r.ours, r.target)}`;
  const values = `${ours} ${r.unit}, ${r.peer} ${number(r.theirs as number)}`;
  const ratio = `${r.ratio.toFixed(2)}× (minima ${(r.ratioOfMinima as number).toFixed(2)}×)`;
  const note = r.note ? ` (${r.note})` : "";
  return `  ${r.line}: ${ratio}  ${values}${note}${agreement(r)}${verdict(r.ratio, r.target)}`;
}

const disagrees = (r: Result): boolean =>
  typeof r.difference === "number" && !(r.difference <= (r.tolerance as number));

function agreement(r: Result): string {
  if (typeof r.difference !== "number") return "";
  return disagrees(r)
    ? `; VALUES DIFFER by ${r.difference.toExponential(1)}, at most ${r.tolerance} is right`
    : `; values agree to ${r.difference.toExponential(1)}`;
}

const say = (line: string): void => console.error(`  … ${line}`);
const about = machine();
const print = (line: string): void => (json ? undefined : console.log(line));
print(
  Object.entries(about)
    .map(
      ([key, value]) =>
        `${key} ${Array.isArray(value) ? value.join(" ") : typeof value === "number" ? number(value) : value}`,
    )
    .join(", "),
);
if ((about["loadAverage"] as number) > 0.5 * (about["cores"] as number))
  console.error(
    `bench: this machine is busy (load average ${number(about["loadAverage"] as number)}); timings are worth little until it is not`,
  );
const all: Record<string, unknown>[] = [];
let wrong = false;
for (const name of wanted.length > 0 ? wanted : names) {
  const { benchmark } = (await import(`./${name}.ts`)) as { benchmark: Benchmark };
  print(`\n${benchmark.name}: ${benchmark.title}`);
  const results = await benchmark.run({ rounds, scale, say: json ? () => {} : say });
  for (const r of results) {
    if (disagrees(r)) wrong = true;
    print(text(r));
    all.push({ benchmark: benchmark.name, ...r });
  }
}
if (json) console.log(JSON.stringify({ machine: about, rounds, results: all }, null, 2));
process.exit(wrong ? 1 : 0);
