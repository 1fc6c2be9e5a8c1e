/**
 * For the runtime's tests: memory that is freed together, a seeded generator, and running one command at 1, 2 and 7
 * threads with the demand that every buffer ends with the same bits. Not a test.
 */
import assert from "node:assert/strict";
import type { CommandDesc } from "../../../src/backends/cpu/contract.ts";
import type { NativeRuntime } from "../../../src/backends/cpu/native.ts";
import { ProgramBuilder } from "../../../src/backends/cpu/native.ts";

/** mulberry32: numbers in [0, 1). */
export function random(seed: number): () => number {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

type Arrays = Record<string, Float32Array | Float64Array | Int32Array>;

/**
 * Runs `commands` (each a phase) on native copies of `arrays`; returns the arrays' final contents. `scalars` are the
 * whole program's, given to every command in order.
 */
export function runCommands(
  runtime: NativeRuntime,
  commands: readonly { main: CommandDesc<string>; scratchBytes: number }[],
  arrays: Arrays,
  scalars: readonly number[] = [],
): { result: Arrays; failure: { op: number; position: number } | null } {
  const names = Object.keys(arrays);
  const pointers = names.map((n) => runtime.alloc(Math.max(arrays[n]!.byteLength, 8)));
  const b = new ProgramBuilder();
  for (const c of commands)
    b.phase([
      b.command({
        ...c.main,
        buffers: c.main.buffers.map((n) => [names.indexOf(n), 0] as const),
        scalars: scalars.map((_, i) => i),
      }),
    ]);
  const scratchBytes = Math.max(...commands.map((c) => c.scratchBytes));
  const program = runtime.createProgram(
    b.build({ numBuffers: names.length, numScalars: scalars.length, scratchBytes }),
    [],
  );
  let first: Arrays | undefined;
  let failure: { op: number; position: number } | null = null;
  for (const threads of [1, 2, 7]) {
    runtime.setThreads(threads);
    for (const [i, n] of names.entries()) {
      const { buffer, byteOffset, byteLength } = arrays[n]!;
      new Uint8Array(runtime.view(pointers[i]!, byteLength || 8)).set(new Uint8Array(buffer, byteOffset, byteLength));
    }
    program.run(Float64Array.from(pointers), Float64Array.from(scalars));
    const now: Arrays = {};
    names.forEach((n, i) => {
      const kind = arrays[n]!.constructor as Float32ArrayConstructor;
      now[n] = new kind(runtime.view(pointers[i]!, arrays[n]!.byteLength || 8).slice(0, arrays[n]!.byteLength));
      if (first)
        assert.ok(
          Buffer.from(now[n]!.buffer).equals(Buffer.from(first[n]!.buffer as ArrayBuffer)),
          `${commands[0]!.main.fn}: ${n} has other bits at ${threads} threads`,
        );
    });
    first ??= now;
    failure = program.failure;
  }
  runtime.setThreads(2);
  program.dispose();
  for (const p of pointers) runtime.free(p);
  return { result: first!, failure };
}
