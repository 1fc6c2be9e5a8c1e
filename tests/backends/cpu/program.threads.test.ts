/**
 * The same bits at any number of threads, and whatever the temporaries hold before a run: training steps of a GPT and of
 * a convolutional network, and random programs.
 */
import assert from "node:assert/strict";
import { after } from "node:test";
import { NativeRuntime } from "../../../src/backends/cpu/native.ts";
import { referenceBackend } from "../../../src/backends/reference/index.ts";
import { compileNodes } from "../../support/evaluate.ts";
import { bytesOf, recordsFrom } from "./program.records.ts";
import { convStep, gptStep } from "./program.steps.ts";
import { describe, openCpuBackend, test } from "./with-compiler.ts";

const backend = await openCpuBackend({ fuse: true });
const runtime = backend && (await NativeRuntime.open());
const usual = runtime?.threads;
after(() => runtime?.setThreads(usual));

const first = Number(process.env["NABLA_SEED"] ?? 1);
const count = process.env["NABLA_LONG"] === "1" ? 100 : 8;
const records = recordsFrom(first, count);

describe("a program's results are the same bits", () => {
  for (const [name, record] of Object.entries(records)) {
    test(`at 1, 2 and 7 threads: ${name}`, async () => {
      runtime.setThreads(1);
      const expected = await bytesOf(backend, record, 3);
      for (const threads of [2, 7]) {
        runtime.setThreads(threads);
        const got = await bytesOf(backend, record, 3);
        got.forEach((bytes, i) => {
          assert.ok(bytes.equals(expected[i]), `result ${i} differs at ${threads} threads`);
        });
      }
      runtime.setThreads(usual);
    });

    test(`with poisoned temporaries: ${name}`, async (t) => {
      const expected = await bytesOf(backend, record, 3);
      process.env["NABLA_POISON"] = "1";
      t.after(() => delete process.env["NABLA_POISON"]);
      const got = await bytesOf(backend, record, 3);
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
