import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdir, mkdtemp, readdir, readFile, rename, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { Rng } from "../../src/core/rng.ts";
import { FileError } from "../../src/data/files.ts";
import {
  CheckpointError,
  latestCheckpoint,
  resumeRunFolder,
  writeCheckpoint,
} from "../../src/train/checkpoint-folder.ts";
import { readRunLog } from "../../src/train/run-log.ts";
import { typescript } from "../support/typescript.ts";
import { weights } from "./fixtures/training-child.ts";

const child = fileURLToPath(new URL("fixtures/training-child.ts", import.meta.url));
const kills = process.env["NABLA_LONG"] === "1" ? 300 : 30;

describe("checkpoints", () => {
  let root = "";
  let n = 0;
  const fresh = async () => {
    const folder = join(root, String(n++));
    await mkdir(folder);
    return folder;
  };
  before(async () => {
    root = await mkdtemp(join(tmpdir(), "nabla-checkpoints-"));
  });
  after(() => rm(root, { recursive: true }));
  const files = (text: string) => ({ "model.safetensors": text, "state.json": "{}" });

  test("the latest is found, the last k are kept, and the run folder shows the latest model", async () => {
    const run = await fresh();
    assert.equal(await latestCheckpoint(run), null);
    for (const step of [5, 10, 100, 20_000]) await writeCheckpoint(run, step, files(`model ${step}`), { keep: 3 });
    assert.deepEqual((await readdir(run)).sort(), [
      "checkpoint-10",
      "checkpoint-100",
      "checkpoint-20000",
      "model.safetensors",
    ]);
    const latest = await latestCheckpoint(run);
    assert.deepEqual([latest!.step, latest!.path, latest!.damaged], [20_000, join(run, "checkpoint-20000"), []]);
    assert.equal(await readFile(join(run, "model.safetensors"), "utf8"), "model 20000");
  });

  test("a run that goes on shows the latest model again, and clears away what was half-written", async () => {
    const run = await fresh();
    await writeCheckpoint(run, 1, files("model 1"));
    await mkdir(join(run, "checkpoint-2.tmp"));
    for (const name of ["model.safetensors", "model.safetensors.tmp"]) {
      await rm(join(run, name), { force: true });
      await writeFile(join(run, name), "older");
    }
    assert.equal((await resumeRunFolder(run))!.step, 1);
    assert.deepEqual((await readdir(run)).sort(), ["checkpoint-1", "model.safetensors"]);
    assert.equal(await readFile(join(run, "model.safetensors"), "utf8"), "model 1");
  });

  test("the same step may be written again; going back removes what was ahead", async () => {
    const run = await fresh();
    await writeCheckpoint(run, 5, files("a"), { keep: 1 });
    await writeCheckpoint(run, 5, files("b"), { keep: 1 });
    assert.deepEqual((await readdir(run)).sort(), ["checkpoint-5", "model.safetensors"]);
    assert.equal(await readFile(join((await latestCheckpoint(run))!.path, "model.safetensors"), "utf8"), "b");
    await writeCheckpoint(run, 9, files("c"));
    await writeCheckpoint(run, 7, files("d"));
    assert.equal((await latestCheckpoint(run))!.step, 7);
  });

  test("torn and damaged ones are passed over with a reason; if all are, that is an error", async () => {
    const run = await fresh();
    for (const step of [1, 2, 3, 4]) await writeCheckpoint(run, step, files(`model ${step}`), { keep: 9 });
    await mkdir(join(run, "checkpoint-5.tmp"));
    await truncate(join(run, "checkpoint-4", "model.safetensors"), 3);
    await writeFile(join(run, "checkpoint-3", "model.safetensors"), "model X");
    await rm(join(run, "checkpoint-2", "state.json"));
    const latest = await latestCheckpoint(run);
    assert.equal(latest!.step, 1);
    assert.match(latest!.damaged[0], /checkpoint-4: model\.safetensors has 3 bytes instead of 7/);
    assert.match(latest!.damaged[1], /checkpoint-3: model\.safetensors has other content/);
    assert.match(latest!.damaged[2], /checkpoint-2: state\.json can't be read/);
    await rm(join(run, "checkpoint-1", "checkpoint.json"));
    await assert.rejects(
      latestCheckpoint(run),
      (e: Error) => e instanceof CheckpointError && /no checkpoint is whole/.test(e.message),
    );
    await rm(join(run, "checkpoint-4"), { recursive: true });
    await assert.rejects(resumeRunFolder(run), CheckpointError);
    assert.ok(!(await readdir(run)).includes("checkpoint-5.tmp"));
  });

  test("a kill between the two renames of a step written again loses nothing", async () => {
    const run = await fresh();
    await writeCheckpoint(run, 5, files("a"), { keep: 1 });
    await rename(join(run, "checkpoint-5"), join(run, "checkpoint-5.old"));
    await mkdir(join(run, "checkpoint-5.tmp"));
    assert.equal((await latestCheckpoint(run))!.step, 5);
    await writeCheckpoint(run, 5, files("b"), { keep: 1 });
    assert.deepEqual((await readdir(run)).sort(), ["checkpoint-5", "model.safetensors"]);
  });

  test("a full disk is a clear error, and earlier checkpoints stay", async () => {
    const run = await fresh();
    await writeCheckpoint(run, 1, files("model 1"));
    const module = new URL("../../src/train/checkpoint-folder.ts", import.meta.url).href;
    const script = `
      import { writeCheckpoint } from ${JSON.stringify(module)};
      await writeCheckpoint(process.argv[1], 2, { "model.safetensors": new Uint8Array(5000) }).catch((e) => console.log(e.code, e.message));`;
    const { stdout } = spawnSync(process.execPath, [...typescript, "--input-type=module", "-e", script, run], {
      encoding: "utf8",
      env: { ...process.env, NABLA_TEST_ENOSPC: "4000" },
    });
    assert.match(
      stdout,
      /^ENOSPC can't write the checkpoint of step 2, .*the disk is full.*earlier checkpoints are as they were/,
    );
    assert.deepEqual((await readdir(run)).sort(), ["checkpoint-1", "model.safetensors"]);
    assert.equal((await latestCheckpoint(run))!.step, 1);
  });

  test("a missing run folder and a name with a slash are errors", async () => {
    await assert.rejects(latestCheckpoint(join(root, "none")), FileError);
    await assert.rejects(writeCheckpoint(await fresh(), 1, { "../x": "" }), CheckpointError);
  });

  test(`a run killed ${kills} times, at any moment, always has its last checkpoint, and each step once in its log`, async (t) => {
    const seed = Number(process.env["NABLA_SEED"] ?? Date.now() % 1_000_000);
    t.diagnostic(`seed ${seed}`);
    const lanes = 5;
    const lane = async (which: number) => {
      const rng = new Rng(seed, which);
      const run = await fresh();
      let safe = 0;
      for (let k = which; k < kills; k += lanes) {
        const process_ = spawn(process.execPath, [...typescript, child, "run", run], {
          stdio: ["ignore", "pipe", "pipe"],
        });
        let output = "";
        let errors = "";
        process_.stdout.on("data", (data) => (output += data));
        process_.stderr.on("data", (data) => (errors += data));
        const exit = once(process_, "close");
        // Every third time a checkpoint is let through first, so that a slow machine gets on as well.
        const awaited = k % 3 === 0 ? "safe" : "ready";
        while (!output.includes(awaited) && process_.exitCode === null) await sleep(2);
        await sleep(rng.uniform() * 60);
        process_.kill("SIGKILL");
        const [code, signal] = await exit;
        assert.deepEqual([code, signal, errors], [null, "SIGKILL", ""], `seed ${seed}, run ${which}, kill ${k}`);
        safe = Math.max(safe, ...[...output.matchAll(/(?:safe|ready) (\d+)/g)].map((m) => Number(m[1])));
        const latest = await latestCheckpoint(run);
        const found = latest?.step ?? 0;
        assert.ok(found === safe || found === safe + 2, `found ${found}, ${safe} was safe; seed ${seed}`);
        if (latest === null) continue;
        assert.deepEqual(latest.damaged, []);
        assert.ok((await readFile(join(latest.path, "model.safetensors"))).equals(weights(found)));
        const shown = await readFile(join(run, "model.safetensors")).catch(() => undefined);
        // Whole, and of some step up to this one: kills may have come between a checkpoint and its showing.
        const earlier = Array.from({ length: found / 2 }, (_, i) => found - 2 * i);
        assert.ok(
          shown === undefined || earlier.some((step) => shown.equals(weights(step))),
          "the shown model is whole",
        );
        const steps = (await readRunLog(run)).map(({ step }) => step);
        assert.deepEqual(
          steps,
          Array.from({ length: steps.length }, (_, i) => i + 1),
          "each step once",
        );
        assert.ok(steps.length >= found);
      }
      assert.ok(safe > 0, "some checkpoint was written");
    };
    await Promise.all(Array.from({ length: lanes }, (_, which) => lane(which)));
  });
});
