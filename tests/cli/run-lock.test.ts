/** Two processes and one run's folder: the second is refused while the first lives, and takes over what a killed one left. */
import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { hostname } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { lockName, lockRun, RunError, unlockRun } from "../../src/cli/run-lock.ts";
import { makeRoom, nabla, tinyGpt, writeText } from "./support.ts";

const room = makeRoom();
const text = writeText(join(room, "text.txt"));

test("a run in use is refused; after its process was killed, it goes on and says that it took the lock over", async () => {
  const run = join(room, "contested");
  let pid = 0;
  let second: ReturnType<typeof nabla> | null = null;
  const first = await nabla(tinyGpt(text, run, "--steps", "1000000", "--checkpoint-every", "20"), {
    onOutput(stdout, kill) {
      if (second !== null || !/step +\d+\//.test(stdout)) return;
      pid = (JSON.parse(readFileSync(join(run, lockName), "utf8")) as { pid: number }).pid;
      second = nabla(["train", "gpt", "--resume", run]);
      second.finally(() => kill("SIGKILL"));
    },
    killAfter: 60_000,
  });
  assert.equal(first.signal, "SIGKILL");
  assert.notEqual(second, null, first.stderr);
  const refused = await (second as unknown as ReturnType<typeof nabla>);
  assert.notEqual(refused.code, 0);
  assert.match(refused.stderr, new RegExp(`in use: process ${pid} trains there`));
  assert.ok(existsSync(join(run, lockName)), "a killed process can't take its lock along");

  let interrupted = false;
  const third = await nabla(["train", "gpt", "--resume", run], {
    onOutput(stdout, kill) {
      if (interrupted || !/step +\d+\//.test(stdout)) return;
      interrupted = true; // a second Ctrl-C would stop it at once
      kill("SIGINT");
    },
    killAfter: 60_000,
  });
  assert.match(third.stdout, new RegExp(`lock of process ${pid}, which is gone, is taken over`));
  assert.match(third.stdout, /stopped at step/);
  assert.deepEqual(
    readdirSync(run).filter((name) => name.startsWith(lockName)),
    [],
    "the lock goes with the process",
  );
});

test("whose lock it is is told by the beginning of the process too, and by its machine", () => {
  const path = join(room, lockName);
  const put = (holder: object) => writeFileSync(path, JSON.stringify(holder));
  const said: string[] = [];
  const take = () => lockRun(room, (line) => said.push(line));
  put({ pid: process.ppid, host: hostname(), began: null });
  assert.throws(take, RunError);
  put({ pid: process.ppid, host: `${hostname()}-other`, began: "1" });
  assert.throws(take, /trains there/);
  writeFileSync(path, "");
  assert.throws(take, /can be read/);
  assert.equal(said.length, 0);
  if (existsSync("/proc/self/stat")) {
    put({ pid: process.ppid, host: hostname(), began: "1" }); // the number was given to another process since
    take();
    assert.equal(said.length, 1);
    assert.equal((JSON.parse(readFileSync(path, "utf8")) as { pid: number }).pid, process.pid);
    unlockRun(room);
    assert.ok(!existsSync(path));
  }
});
