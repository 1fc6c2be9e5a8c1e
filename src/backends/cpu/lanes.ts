/**
 * What a generated kernel's source starts with: the interface (abi.h), the number of lanes, and the functions on lanes
 * (runtime/lanes.h), of which the rarer ones are compiled only where a kernel names them. Rendering is not done here.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { kernelPrelude } from "./native.ts";
import { features, runtimeFolder } from "./toolchain.ts";

export type Lanes = 4 | 8 | 16;

let files: { readonly abi: string; readonly text: string } | undefined;

const read = () =>
  (files ??= {
    abi: kernelPrelude({ simd: false }),
    text: readFileSync(join(runtimeFolder, "lanes.h"), "utf8"),
  });

/**
 * The text before a kernel that computes with `lanes` lanes and uses the functions `needed` of lanes.h (`f_erf`, …; more
 * names than necessary do no harm). `d` among them gives the float64 functions, and so does any name that starts with `d_`
 * or ends with `_d`.
 */
export function lanesPrelude(lanes: Lanes, needed: Iterable<string>): string {
  const { abi, text } = read();
  const names = new Set(needed);
  for (const name of names) if (/^d_|_d$/.test(name)) names.add("d");
  const defines = [...names].sort().map((name) => `#define NEED_${name}\n`);
  return `${abi}\n#define L ${lanes}\n${defines.join("")}${text}`;
}

/** The parts of a source that starts as `lanesPrelude` does; null of another. */
export function splitPrelude(source: string): { lanes: Lanes; needed: string[]; body: string } | null {
  const { abi, text } = read();
  const start = `${abi}\n#define L `;
  const end = source.indexOf(text);
  if (!source.startsWith(start) || end < 0) return null;
  const [lanes, ...defines] = source.slice(start.length, end).trimEnd().split("\n");
  const needed = defines.map((line) => line.replace("#define NEED_", ""));
  return { lanes: Number(lanes) as Lanes, needed, body: source.slice(end + text.length) };
}

/** Lanes of a kernel: as many floats as a register of this processor holds, or as many doubles where it has any. */
export function lanesFor(bits: number, hasFloat64: boolean): Lanes {
  if (bits & features.avx512) return hasFloat64 ? 8 : 16;
  if (bits & features.avx2 && bits & features.fma) return hasFloat64 ? 4 : 8;
  return 4;
}
