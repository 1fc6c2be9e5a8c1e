import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { appendFileSync, readFileSync, writeFileSync } from "node:fs";
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import fc from "fast-check";
import { RunLog, RunLogError, readRunLog } from "../../src/train/run-log.ts";
import { typescript } from "../support/typescript.ts";

describe("the run log", () => {
  let root = "";
  let n = 0;
  const fresh = async () => {
    const folder = join(root, String(n++));
    await mkdir(folder);
    return folder;
  };
  before(async () => {
    root = await mkdtemp(join(tmpdir(), "nabla-log-"));
  });
  after(() => rm(root, { recursive: true }));
  const file = (run: string) => join(run, "metrics.jsonl");

  test("holds what was appended, also NaN and infinities, and can be read while it is written", async () => {
    const run = await fresh();
    const log = await RunLog.create(run);
    log.append({ step: 0, validationLoss: 4.2 });
    log.append({ step: 1, loss: Number.NaN, scale: Number.POSITIVE_INFINITY, note: "first", done: false });
    const expected = [
      { step: 0, validationLoss: 4.2 },
      { step: 1, loss: Number.NaN, scale: Number.POSITIVE_INFINITY, note: "first", done: false },
    ];
    assert.deepEqual(await readRunLog(run), expected);
    await log.close();
    assert.deepEqual(await readRunLog(file(run)), expected);
    for (const line of readFileSync(file(run), "utf8").trimEnd().split("\n")) JSON.parse(line);
  });

  test("resumed at a step it holds the steps up to there, whatever was torn behind, and goes on", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 0, max: 12 }),
        fc.integer({ min: 0, max: 14 }),
        fc.integer({ min: 0, max: 60 }),
        async (steps, resumeAt, cut) => {
          const run = await fresh();
          const log = await RunLog.create(run);
          for (let step = 1; step <= steps; step++) log.append({ step, loss: 1 / step });
          await log.close();
          const whole = readFileSync(file(run));
          writeFileSync(file(run), whole.subarray(0, Math.max(0, whole.length - cut))); // torn anywhere
          const left = (await readRunLog(run)).length;
          const again = await RunLog.resume(run, resumeAt);
          const last = again.lastStep;
          assert.equal(Math.max(0, last), Math.min(left, resumeAt));
          for (let step = Math.max(0, last) + 1; step <= 15; step++) again.append({ step, loss: 2 });
          await again.close();
          assert.deepEqual(
            (await readRunLog(run)).map(({ step }) => step),
            Array.from({ length: 15 }, (_, i) => i + 1),
          );
        },
      ),
      { numRuns: 150 },
    );
  });

  test("a torn last line is left out by the reader and repaired by the next writer", async () => {
    const run = await fresh();
    const log = await RunLog.create(run);
    log.append({ step: 1, loss: 1 });
    await log.close();
    appendFileSync(file(run), '{"step":2,"lo');
    assert.deepEqual(await readRunLog(run), [{ step: 1, loss: 1 }]);
    await (await RunLog.resume(run, 1)).close();
    assert.equal(readFileSync(file(run), "utf8"), '{"step":1,"loss":1}\n');
  });

  test("a step twice, or out of order, is refused; so is a new log over an old one", async () => {
    const run = await fresh();
    const log = await RunLog.create(run);
    log.append({ step: 3 });
    for (const step of [3, 2, -1, 4.5]) assert.throws(() => log.append({ step }), RunLogError);
    await log.close();
    await assert.rejects(RunLog.create(run), /already holds steps up to 3; resume that run/);
  });

  test("damage in the middle is an error that names the line", async () => {
    const run = await fresh();
    writeFileSync(file(run), '{"step":1}\nxx\n{"step":3}\n');
    await assert.rejects(readRunLog(run), /metrics\.jsonl: line 2 is damaged/);
    writeFileSync(file(run), '{"step":1}\n{"step":1}\n');
    await assert.rejects(readRunLog(run), /line 2 is of step 1, but the line before it of step 1/);
    await assert.rejects(readRunLog(join(run, "none")), /can't read .*no such file/);
  });

  test("a full disk is a clear error, and leaves no half line", async () => {
    const run = await fresh();
    const script = `
      import { RunLog } from ${JSON.stringify(new URL("../../src/train/run-log.ts", import.meta.url).href)};
      const log = await RunLog.create(process.argv[1]);
      try { for (let step = 1; ; step++) log.append({ step }); } catch (e) { console.log(e.code, e.message); }
      delete process.env.NABLA_TEST_ENOSPC;
      log.append({ step: log.lastStep + 1 });
      await log.close();`;
    const { stdout } = spawnSync(process.execPath, [...typescript, "--input-type=module", "-e", script, run], {
      encoding: "utf8",
      env: { ...process.env, NABLA_TEST_ENOSPC: "50" },
    });
    assert.match(stdout, /^ENOSPC can't append to .*the disk is full/);
    assert.deepEqual(
      (await readRunLog(run)).map(({ step }) => step),
      [1, 2, 3, 4, 5],
    );
    assert.equal(readFileSync(file(run), "utf8").split("\n").length, 6);
  });
});
