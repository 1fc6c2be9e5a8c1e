/**
 * The programs of one device, by canonical key: least recently used, bounded. A hit compares the whole key, never only
 * its hash. Programs that differ from an earlier one only in shapes or literals are counted: the eighth is reported, for
 * such a program usually should have been the same (a length that changes every step, a number used as a shape).
 */
import type { Capture, Program } from "../backends/backend.ts";
import { debugLevel, say } from "./debug.ts";
import { hashKey, hashStructure, sameKey, writeKey } from "./key.ts";

/** Programs kept for one device. */
export const cacheCapacity = 256;
const warnAt = 8;

export interface Entry {
  readonly id: number;
  readonly key: Int32Array;
  readonly hash: number;
  program: Program | null;
  /** While the backend compiles. */
  compiling: Promise<Program> | null;
  /** An array for the next run's scalars, while no run has it: making one costs more than filling it. */
  scalars: Float64Array | null;
  used: number;
  /** Jobs that were captured for it and have not ended. */
  jobs: number;
  /** Out of the cache: with its last job its program goes. */
  evicted: boolean;
}

/** Frees the program of an entry that nobody will find or run again. */
export function disposeUnused(entry: Entry): void {
  if (!entry.evicted || entry.jobs > 0) return;
  entry.program?.dispose?.();
  entry.program = null;
}

let warned = false;

export class ProgramCache {
  private readonly byHash = new Map<number, Entry[]>();
  private readonly variants = new Map<number, number>();
  private clock = 0;
  private nextId = 1;
  /** Programs held now. */
  size = 0;
  /** Programs made since the start. */
  made = 0;
  hits = 0;
  evicted = 0;

  /** The entry for `capture`; a new one has neither a program nor a promise of one. */
  find(capture: Capture): Entry {
    const key = writeKey(capture);
    const hash = hashKey(key);
    const list = this.byHash.get(hash);
    if (list !== undefined)
      for (let i = 0; i < list.length; i++)
        if (sameKey(list[i].key, key)) {
          this.hit(list[i]);
          return list[i];
        }
    const entry: Entry = {
      id: this.nextId++,
      key: key.slice(),
      hash,
      program: null,
      compiling: null,
      scalars: null,
      used: ++this.clock,
      jobs: 0,
      evicted: false,
    };
    if (this.size >= cacheCapacity) this.evict();
    if (list) list.push(entry);
    else this.byHash.set(hash, [entry]);
    this.size++;
    this.made++;
    this.countVariant(capture);
    return entry;
  }

  /** Counts that an entry is used again. */
  hit(entry: Entry): void {
    entry.used = ++this.clock;
    this.hits++;
  }

  /** Takes out a program that could not be compiled. */
  remove(entry: Entry): void {
    const list = this.byHash.get(entry.hash);
    const i = list ? list.indexOf(entry) : -1;
    if (!list || i < 0) return;
    list.splice(i, 1);
    if (list.length === 0) this.byHash.delete(entry.hash);
    this.size--;
  }

  private evict(): void {
    let oldest: Entry | null = null;
    for (const list of this.byHash.values())
      for (const entry of list) if (!oldest || entry.used < oldest.used) oldest = entry;
    if (!oldest) return;
    this.remove(oldest);
    this.evicted++;
    oldest.evicted = true;
    disposeUnused(oldest);
  }

  private countVariant(capture: Capture): void {
    const structure = hashStructure(capture);
    const count = (this.variants.get(structure) ?? 0) + 1;
    if (this.variants.size > 4 * cacheCapacity) this.variants.clear();
    this.variants.set(structure, count);
    if (count !== warnAt || (warned && debugLevel === 0)) return;
    warned = true;
    say(
      `${warnAt} programs were compiled that differ only in shapes or constants (${callSite()}). ` +
        "Each compiles anew: pad to a few fixed sizes, pass numbers as operands, or index the first axis",
    );
  }
}

/** The line outside of the library that led here. */
function callSite(): string {
  const here = import.meta.url.replace(/[^/]*\/[^/]*$/, ""); // bundlers take a `new URL` of it for a file to pack
  const lines = (new Error().stack ?? "").split("\n").slice(1);
  const line = lines.find((l) => !l.includes(here) && !l.includes(here.replace("file://", "")) && !l.includes("node:"));
  return line ? line.trim() : "call site unknown";
}
