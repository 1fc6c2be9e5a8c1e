import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { chmod, mkdir, mkdtemp, readdir, readFile, rm, stat, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { cleanStaleTemporaries, ensureFolder, FileError, writeFileAtomic } from "../../src/formats/atomic.ts";
import { typescript } from "../support/typescript.ts";

const source = new URL("../../src/formats/atomic.ts", import.meta.url).href;

describe("writing a file atomically", () => {
  let folder = "";
  before(async () => {
    folder = await mkdtemp(join(tmpdir(), "nabla-atomic-"));
  });
  after(() => rm(folder, { recursive: true }));

  const isFileError = (code: string, message: RegExp) => (error: unknown) => {
    assert.ok(error instanceof FileError, String(error));
    assert.equal(error.code, code);
    assert.match(error.message, message);
    return true;
  };

  test("strings, bytes and streams of both arrive whole, and leave nothing else behind", async () => {
    const at = join(folder, "whole");
    await mkdir(at);
    await writeFileAtomic(join(at, "a"), "∇");
    await writeFileAtomic(join(at, "b"), [Uint8Array.of(1, 2), "x", new Uint8Array(3)]);
    await writeFileAtomic(
      join(at, "c"),
      (async function* () {
        yield "one ";
        yield "two";
      })(),
    );
    assert.equal(await readFile(join(at, "a"), "utf8"), "∇");
    assert.deepEqual([...(await readFile(join(at, "b")))], [1, 2, 120, 0, 0, 0]);
    assert.equal(await readFile(join(at, "c"), "utf8"), "one two");
    assert.deepEqual((await readdir(at)).sort(), ["a", "b", "c"]);
  });

  test("an existing file keeps its permissions, and a symbolic link still points to it", async () => {
    const path = join(folder, "private");
    await writeFile(path, "old");
    await chmod(path, 0o600);
    await symlink(path, join(folder, "link"));
    await writeFileAtomic(join(folder, "link"), "new");
    assert.equal(await readFile(path, "utf8"), "new");
    assert.equal((await stat(path)).mode & 0o777, 0o600);
  });

  test("a source that fails in the middle leaves the old file and no temporary", async () => {
    const at = join(folder, "half");
    await mkdir(at);
    await writeFileAtomic(join(at, "f"), "old");
    const failing = (function* () {
      yield "new";
      throw new RangeError("no more");
    })();
    await assert.rejects(writeFileAtomic(join(at, "f"), failing), RangeError);
    assert.equal(await readFile(join(at, "f"), "utf8"), "old");
    assert.deepEqual(await readdir(at), ["f"]);
  });

  test("a full disk is a clear error; the old file stays and the temporary is removed", async () => {
    const at = join(folder, "full");
    await mkdir(at);
    await writeFile(join(at, "f"), "old");
    const script = `
      import { writeFileAtomic } from ${JSON.stringify(source)};
      await writeFileAtomic(process.argv[1], [new Uint8Array(600), new Uint8Array(600)]).catch((e) => {
        console.log(JSON.stringify([e.name, e.code, e.message]));
      });`;
    const { stdout } = spawnSync(
      process.execPath,
      [...typescript, "--input-type=module", "-e", script, join(at, "f")],
      { encoding: "utf8", env: { ...process.env, NABLA_TEST_ENOSPC: "1000" } },
    );
    const [name, code, message] = JSON.parse(stdout);
    assert.deepEqual([name, code], ["FileError", "ENOSPC"]);
    assert.match(message, /can't write .*f: the disk is full \(ENOSPC\); free some space/);
    assert.equal(await readFile(join(at, "f"), "utf8"), "old");
    assert.deepEqual(await readdir(at), ["f"]);
  });

  test("a path below a file names that file", async () => {
    const file = join(folder, "plain");
    await writeFile(file, "");
    const below = isFileError("ENOTDIR", /plain is a file, so nothing can lie below it/);
    await assert.rejects(writeFileAtomic(join(file, "x", "y"), "z"), below);
    await assert.rejects(ensureFolder(join(file, "x", "y")), below);
    await assert.rejects(ensureFolder(file), isFileError("ENOTDIR", /plain: it is a file/));
  });

  test("a folder, a missing folder and a device are not written over", async () => {
    await assert.rejects(writeFileAtomic(folder, ""), isFileError("EISDIR", /it is a folder/));
    await assert.rejects(writeFileAtomic(join(folder, "no", "f"), ""), isFileError("ENOENT", /no such file or folder/));
    if (process.platform !== "win32")
      await assert.rejects(writeFileAtomic("/dev/null", "x"), isFileError("EINVAL", /not a regular file/));
  });

  test("without permission the error says so", {
    skip: process.getuid?.() === 0 && "root may write anywhere",
  }, async () => {
    const at = join(folder, "locked");
    await mkdir(at, { mode: 0o500 });
    await assert.rejects(writeFileAtomic(join(at, "f"), ""), isFileError("EACCES", /permission denied/));
  });

  test("a writer killed in the middle leaves the old file; its temporary is swept, a living writer's is not", async () => {
    const at = join(folder, "killed");
    await mkdir(at);
    await writeFile(join(at, "f"), "old");
    const script = `
      import { writeFileAtomic } from ${JSON.stringify(source)};
      await writeFileAtomic(process.argv[1], (async function* () { yield "half"; console.log("half"); await new Promise((r) => setTimeout(r, 60000)); })());`;
    const child = spawn(process.execPath, [...typescript, "--input-type=module", "-e", script, join(at, "f")]);
    await once(child.stdout, "data");
    assert.equal((await readdir(at)).length, 2);
    assert.deepEqual(await cleanStaleTemporaries(at), []);
    child.kill("SIGKILL");
    await once(child, "exit");
    await sleep(10);
    assert.equal((await cleanStaleTemporaries(at)).length, 1);
    assert.deepEqual(await readdir(at), ["f"]);
    assert.equal(await readFile(join(at, "f"), "utf8"), "old");
    assert.deepEqual(await cleanStaleTemporaries(join(folder, "none")), []);
  });
});
