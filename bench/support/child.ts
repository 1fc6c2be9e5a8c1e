/** A process of our side: imports one benchmark and serves it. Started by support/sides.ts as `child.ts NAME`. */
import { readFileSync } from "node:fs";
import "../../src/index.ts";
import type { Benchmark } from "./benchmark.ts";
import { serve } from "./protocol.ts";

/** Bytes of this process, from the kernel where it tells (Linux), else what Node knows. */
function status(field: "VmHWM" | "VmRSS"): number {
  try {
    const kib = new RegExp(`${field}:\\s+(\\d+)`).exec(readFileSync("/proc/self/status", "utf8"))?.[1];
    if (kib !== undefined) return 1024 * Number(kib);
  } catch {
    // no /proc here
  }
  return field === "VmHWM" ? 1024 * process.resourceUsage().maxRSS : process.memoryUsage.rss();
}

const imported = status("VmRSS");
const { benchmark } = (await import(`../${process.argv[2]}.ts`)) as { benchmark: Benchmark };
if (!benchmark.ours) throw new Error(`${process.argv[2]} has no side of ours`);
await serve(await benchmark.ours(process.argv.slice(3)), imported, () => status("VmHWM"));
process.exit(0);
