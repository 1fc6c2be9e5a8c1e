/**
 * What execution says about itself: the NABLA_* environment and the lines of NABLA_DEBUG. Works in a browser too, where
 * there is no environment. It decides nothing.
 */
import type { Program } from "../backends/backend.ts";

/** An environment variable; undefined where there is none, or no environment. */
export function env(name: string): string | undefined {
  return typeof process === "object" ? process.env?.[name] : undefined;
}

/** NABLA_DEBUG: 1 prints a line for every program and every run; backends print more at 2 and 4. */
export const debugLevel = import.meta.forBrowsers ? 0 : Number(env("NABLA_DEBUG") ?? 0) || 0;

export function say(line: string): void {
  console.error(`nabla: ${line}`);
}

const units = ["", "k", "M", "G", "T"];

/** 1234567 → "1.23 M". */
export function quantity(n: number): string {
  let u = 0;
  while (Math.abs(n) >= 1000 && u < units.length - 1) {
    n /= 1000;
    u++;
  }
  return `${u === 0 ? n : n.toPrecision(3)} ${units[u]}`;
}

export function sayCompiled(device: string, id: number, program: Program, ms: number): void {
  const s = program.stats;
  say(
    `${device} program ${id}: ${s.kernels} kernels, ${quantity(s.flops)}FLOP, ${quantity(s.bytes)}B moved, ` +
      `${quantity(s.arenaBytes)}B of temporaries, compiled in ${ms.toFixed(1)} ms`,
  );
}

export function sayRun(device: string, id: number, program: Program, ms: number): void {
  const perSecond = 1000 / Math.max(ms, 1e-6);
  say(
    `${device} program ${id}: ran in ${ms.toFixed(3)} ms, ${quantity(program.stats.flops * perSecond)}FLOP/s, ` +
      `${quantity(program.stats.bytes * perSecond)}B/s`,
  );
}
