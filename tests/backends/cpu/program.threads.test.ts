/**
 * The same bits at any number of threads, and whatever the temporaries hold before a run: training steps of a GPT and of
 * a convolutional network, and random programs.
 */
import assert from "node:assert/strict";
import { after, describe, test } from "node:test";
import type { Backend } from "../../../src/backends/backend.ts";
import { openCpuBackend } from "../../../src/backends/cpu/index.ts";
import { NativeRuntime } from "../../../src/backends/cpu/native.ts";
import { referenceBackend } from "../../../src/backends/reference/index.ts";
import type { Node } from "../../../src/graph/node.ts";
import { type Assign, compileNodes } from "../../support/evaluate.ts";
import { randomProgram } from "./program.generator.ts";
import { convStep, gptStep } from "./program.steps.ts";

const backend = await openCpuBackend({ fuse: true });
const runtime = await NativeRuntime.open();
const usual = runtime.threads;
after(() => runtime.setThreads(usual));

interface Recorded {
  readonly roots: readonly Node[];
  readonly assigns: readonly Assign[];
  readonly states: readonly Node[];
}

/** The bytes of all roots of three runs and of all states after them. */
async function bytesOf(record: (backend: Backend) => Recorded): Promise<Buffer[]> {
  const { roots, assigns, states } = record(backend);
  const { run } = await compileNodes(backend, roots, assigns);
  const out: Buffer[] = [];
  const keep = (data: { buffer: ArrayBufferLike; byteOffset: number; byteLength: number }): void => {
    out.push(Buffer.from(data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength) as ArrayBuffer));
  };
  for (let i = 0; i < 3; i++) for (const values of await run()) keep(values);
  for (const { storage, dtype } of states) if (storage) keep(await backend.read(storage.memory, dtype, storage.length));
  return out;
}

const first = Number(process.env["NABLA_SEED"] ?? 1);
const count = process.env["NABLA_LONG"] === "1" ? 100 : 8;
const records: Record<string, (backend: Backend) => Recorded> = {};
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

describe("a program's results are the same bits", () => {
  for (const [name, record] of Object.entries(records)) {
    test(`at 1, 2 and 7 threads: ${name}`, async () => {
      runtime.setThreads(1);
      const expected = await bytesOf(record);
      for (const threads of [2, 7]) {
        runtime.setThreads(threads);
        const got = await bytesOf(record);
        got.forEach((bytes, i) => {
          assert.ok(bytes.equals(expected[i]), `result ${i} differs at ${threads} threads`);
        });
      }
      runtime.setThreads(usual);
    });

    test(`with poisoned temporaries: ${name}`, async (t) => {
      const expected = await bytesOf(record);
      process.env["NABLA_POISON"] = "1";
      t.after(() => delete process.env["NABLA_POISON"]);
      const got = await bytesOf(record);
      got.forEach((bytes, i) => {
        assert.ok(bytes.equals(expected[i]), `result ${i} depends on what memory held before`);
      });
    });
  }

  test("and a training step's loss is the reference's, and falls", async () => {
    for (const step of [gptStep, convStep]) {
      const known = step(referenceBackend());
      const [[expected]] = await (await compileNodes(referenceBackend(), known.roots, known.assigns)).run();
      const { roots, assigns } = step(backend);
      const { run } = await compileNodes(backend, roots, assigns);
      const losses: number[] = [];
      for (let i = 0; i < 12; i++) losses.push((await run())[0][0]);
      assert.ok(Math.abs(losses[0] - expected) < 1e-5 * expected, `${losses[0]}, expected ${expected}`);
      assert.ok(losses[11] < 0.8 * losses[0], losses.join(" "));
    }
  });
});
