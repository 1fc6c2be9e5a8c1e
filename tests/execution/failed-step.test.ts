/**
 * A step that the workers have begun and that fails is told of at the next occasion, once, and leaves no trace, whatever was
 * recorded meanwhile; where there is no next occasion, the process ends with it.
 */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { nn, optim, synchronize, tensor } from "../../src/index.ts";
import { whyNoCpu } from "../support/cpu.ts";
import { typescript } from "../support/typescript.ts";
import { trainer } from "./fixtures/steps.ts";

const skip = await whyNoCpu();
const said = { name: "IndexError", message: /\b99\b.*No state was changed/ };

describe("a failed step", { skip }, async () => {
  const { head, step } = trainer(nn, optim, tensor);
  const weights = async (): Promise<number[]> => [...((await head.weight.data()) as Float32Array)];
  let before: number[] = [];

  test("is told of by synchronize()", async () => {
    for (let i = 0; i < 3; i++) await step(false);
    before = await weights();
    await step(true);
    await assert.rejects(synchronize(), said);
    assert.deepEqual(await weights(), before);
    await synchronize();
  });

  test("is told of by the next step, which is undone with it", async () => {
    await step(true);
    await assert.rejects(step(false), said);
    assert.deepEqual(await weights(), before);
  });

  test("is told of by a read of its loss, and of a weight", async () => {
    const loss = await step(true);
    await assert.rejects(loss.item(), said);
    await step(true);
    await assert.rejects(weights(), said);
    assert.deepEqual(await weights(), before);
  });

  test("does not end training", async () => {
    const first = (await (await step(false)).item()) as number;
    for (let i = 0; i < 5; i++) await step(false);
    assert.ok(((await (await step(false)).item()) as number) < first);
    assert.notDeepEqual(await weights(), before);
  });

  test("that nobody asks after ends the process with its error", async () => {
    const child = fileURLToPath(new URL("./fixtures/failed-step-child.ts", import.meta.url));
    const run = promisify(execFile)(process.execPath, [...typescript, child]);
    await assert.rejects(run, (error: { code: number; stdout: string; stderr: string }) => {
      assert.equal(error.code, 1);
      assert.match(error.stdout, /the end/);
      assert.match(error.stderr, /IndexError: index 99/);
      return true;
    });
  });
});
