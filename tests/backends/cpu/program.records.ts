/**
 * Programs whose bits are compared, on whatever backend, between numbers of threads: training steps of a GPT and of a
 * convolutional network, and random programs.
 */
import type { Backend } from "../../../src/backends/backend.ts";
import type { Node } from "../../../src/graph/node.ts";
import { type Assign, compileNodes } from "../../support/evaluate.ts";
import { randomProgram } from "./program.generator.ts";
import { convStep, gptStep } from "./program.steps.ts";

interface Recorded {
  readonly roots: readonly Node[];
  readonly assigns: readonly Assign[];
  readonly states: readonly Node[];
}

/** Records a program on a backend: the same one on every backend. */
export type Recording = (backend: Backend) => Recorded;

/** By name: both training steps, and random programs of `count` seeds. */
export function recordsFrom(first: number, count: number): Record<string, Recording> {
  const records: Record<string, Recording> = {};
  for (const [name, step] of [
    ["a GPT's training step", gptStep],
    ["a convolutional network's training step", convStep],
  ] as const)
    records[name] = (b) => {
      const { roots, assigns, states } = step(b);
      return { roots, assigns, states: [...states.values()] };
    };
  for (let seed = first; seed < first + count; seed++)
    records[`random program ${seed}`] = (b) => randomProgram(b, seed, { dtype: seed % 2 ? "float32" : "float64" });
  return records;
}

/** The bytes of all roots of `runs` runs and of all states after them. */
export async function bytesOf(backend: Backend, record: Recording, runs: number): Promise<Buffer[]> {
  const { roots, assigns, states } = record(backend);
  const { run } = await compileNodes(backend, roots, assigns);
  const out: Buffer[] = [];
  const keep = (data: { buffer: ArrayBufferLike; byteOffset: number; byteLength: number }): void => {
    out.push(Buffer.from(data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength) as ArrayBuffer));
  };
  for (let i = 0; i < runs; i++) for (const values of await run()) keep(values);
  for (const { storage, dtype } of states) if (storage) keep(await backend.read(storage.memory, dtype, storage.length));
  return out;
}
