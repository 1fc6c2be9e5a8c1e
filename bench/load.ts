/**
 * Loading: from a safetensors file of about 1 GB to the first token, in fresh processes on the built package, against what `cat FILE`
 * takes in the same state of the system's cache and one forward pass; and the memory that is resident then, against the file's size. The kernels are
 * compiled before, the device is open.
 */
import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Benchmark, Result } from "./support/benchmark.ts";
import { median } from "./support/numbers.ts";
import { writeRandomLlama } from "./support/random-checkpoint.ts";

const root = dirname(dirname(fileURLToPath(import.meta.url)));

interface Loaded {
  /** Milliseconds until the first token, and of one forward pass later. */
  readonly first: number;
  readonly forward: number;
  /** Bytes. */
  readonly peak: number;
}

function fresh(folder: string, cache: string): Loaded {
  const child = join(root, "bench/support/load-child.mjs");
  const env = { ...process.env, NABLA_CACHE_DIR: cache };
  return JSON.parse(execFileSync(process.execPath, [child, join(root, "dist"), folder], { encoding: "utf8", env }));
}

/** Milliseconds that `cat` takes. */
function cat(file: string): number {
  const start = performance.now();
  execFileSync("sh", ["-c", 'cat "$1" > /dev/null', "sh", file]);
  return performance.now() - start;
}

/** Takes a file out of the system's cache, with Python's posix_fadvise; false where that can't be done. */
function evict(file: string): boolean {
  const code =
    "import os, sys; f = os.open(sys.argv[1], os.O_RDONLY); os.fdatasync(f); os.posix_fadvise(f, 0, 0, os.POSIX_FADV_DONTNEED)";
  return spawnSync("python3", ["-c", code, file]).status === 0;
}

export const benchmark: Benchmark = {
  name: "load",
  title: "Loading 1 GB of safetensors to the first token",
  run: async ({ rounds, scale, say }) => {
    say("building the package");
    execFileSync(process.execPath, [join(root, "scripts/build.mjs")], { stdio: ["ignore", "ignore", "inherit"] });
    const results: Result[] = [];
    const room = mkdtempSync(join(tmpdir(), "nabla-load-"));
    try {
      for (const kind of ["F32", "BF16"] as const) {
        const folder = join(room, kind);
        const file = join(folder, "model.safetensors");
        say(`writing a random checkpoint, ${kind}`);
        const bytes = await writeRandomLlama(folder, kind, scale < 1 ? 0.3 : 1);
        const cache = join(room, "cache");
        fresh(folder, cache);
        const title = `${(bytes / 1e9).toFixed(2)} GB, ${kind.toLowerCase()}`;
        for (const state of ["cached", "not cached"] as const) {
          const prepare = () => state === "cached" || evict(file);
          const line = `to the first token, ${title}, ${state} by the system`;
          const peer = "cat + a forward pass";
          if (!prepare()) {
            results.push({ line, peer, unit: "ms", absent: "python3 is needed to empty the system's cache" });
            continue;
          }
          const mine: number[] = [];
          const theirs: number[] = [];
          let peak = 0;
          for (let round = 0; round < rounds; round++) {
            prepare();
            const read = cat(file);
            prepare();
            const loaded = fresh(folder, cache);
            mine.push(loaded.first);
            theirs.push(read + loaded.forward);
            peak = Math.max(peak, loaded.peak);
          }
          results.push({
            ...{ line, peer, unit: "ms", ours: median(mine), theirs: median(theirs), difference: null },
            ...{ ratio: median(theirs) / median(mine), ratioOfMinima: Math.min(...theirs) / Math.min(...mine) },
            target: { atLeast: 1 / 1.3 },
          });
          if (state === "cached")
            results.push({
              line: `resident memory by the file's size, ${title}`,
              ...{ peer: null, unit: "", ours: peak / bytes, target: { atMost: 1.1 } },
            });
        }
        rmSync(folder, { recursive: true, force: true });
      }
    } finally {
      rmSync(room, { recursive: true, force: true });
    }
    return results;
  },
};
