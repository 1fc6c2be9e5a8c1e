/**
 * Kernels that one run of the C compiler builds. What a kernel starts with (lanes.h) takes longer to read than the kernel itself, and
 * starting a compiler and a linker as long again: eight kernels in one run take a third of the time of eight runs (measured with gcc 12).
 * In the cache each kernel is found under its own name as if it were alone. Nothing here has to succeed: what is missing in the cache
 * afterwards is built alone, with its own complaint.
 */
import { availableParallelism } from "node:os";
import { type Lanes, lanesPrelude, splitPrelude } from "./lanes.ts";
import { type KernelUnit, librarySpec } from "./native.ts";
import { buildTogether, CompilerError, missingLibraries, nameTogether } from "./toolchain.ts";

/** At most so many kernels in one run: there is no more to gain, and a run should not take long. */
const MOST = 16;

interface Piece {
  readonly path: string;
  readonly symbol: string;
  readonly needed: readonly string[];
  readonly body: string;
}

/** Builds those of the kernels that are not in the cache, several at a time. */
export async function buildAhead(units: readonly KernelUnit[], bits: number): Promise<void> {
  const symbols = new Map(units.map((unit) => [unit.source, unit.symbol]));
  const byLanes = new Map<Lanes, Piece[]>();
  let count = 0;
  for (const [path, { sources }] of missingLibraries(units.map((unit) => librarySpec(unit, bits)))) {
    const [{ text }] = sources;
    const parts = splitPrelude(text);
    if (parts === null) continue;
    const pieces = byLanes.get(parts.lanes) ?? [];
    byLanes.set(parts.lanes, pieces);
    pieces.push({ ...parts, path, symbol: symbols.get(text) as string });
    count++;
  }
  // as many runs as there are processors, all of about one size
  const size = Math.min(MOST, Math.ceil(count / availableParallelism()));
  if (size < 2) return;
  const runs = [...byLanes].flatMap(([lanes, pieces]) =>
    batches(pieces, size).map((batch) => build(lanes, batch, bits)),
  );
  await Promise.all(runs);
}

/** Cuts a list into parts of at most `size`, all of about one length. */
function batches<T>(list: readonly T[], size: number): T[][] {
  const parts = Math.ceil(list.length / size);
  return Array.from({ length: parts }, (_, i) =>
    list.slice(Math.round((i * list.length) / parts), Math.round(((i + 1) * list.length) / parts)),
  );
}

async function build(lanes: Lanes, pieces: readonly Piece[], bits: number): Promise<void> {
  if (pieces.length < 2) return;
  const prelude = lanesPrelude(lanes, new Set(pieces.flatMap(({ needed }) => needed)));
  const bodies = pieces.map(
    ({ path, symbol, body }) => `#define ${symbol} ${nameTogether(symbol, path)}\n${body}#undef ${symbol}\n`,
  );
  const source = `${prelude}\n${bodies.join("")}`;
  try {
    await buildTogether(
      librarySpec({ symbol: "", source }, bits),
      pieces.map(({ path }) => path),
    );
  } catch (error) {
    if (!(error instanceof CompilerError)) throw error;
  }
}
