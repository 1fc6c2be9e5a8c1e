/** One cache for both: what modelFolder downloads huggingface_hub reads without a network, and the other way round (NABLA_PYTHON). */
import assert from "node:assert/strict";
import { execFile, spawnSync } from "node:child_process";
import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { modelFolder } from "../../src/hub/index.ts";
import { FakeHub, type FakeRepository, noise } from "../hub/server.ts";

const python = process.env["NABLA_PYTHON"];
const hasHub = python !== undefined && spawnSync(python, ["-c", "import huggingface_hub"]).status === 0;
const skip = hasHub ? false : "NABLA_PYTHON names no Python with huggingface_hub";

const text = (s: string) => new TextEncoder().encode(s);
const repository: FakeRepository = {
  commit: "89abcdef0123456789abcdef0123456789abcdef",
  refs: ["main", "v1"],
  files: {
    "config.json": text('{"model_type":"llama"}\n'),
    "tokenizer.json": text("{}"),
    "1_Pooling/config.json": text("{ }"),
    "model-00001-of-00002.safetensors": noise(100_000, 2),
    "model-00002-of-00002.safetensors": noise(30_000, 3),
    "model.safetensors.index.json": text(
      JSON.stringify({
        weight_map: { a: "model-00001-of-00002.safetensors", b: "model-00002-of-00002.safetensors" },
      }),
    ),
  },
};

/** Runs Python with a cache; gives what it printed. Not spawnSync: the server must go on answering. */
const run = (script: string, env: Record<string, string>): Promise<string> =>
  new Promise((resolve, reject) =>
    execFile(
      python as string,
      ["-c", `from huggingface_hub import snapshot_download, hf_hub_download, scan_cache_dir\n${script}`],
      { env: { ...process.env, HF_HUB_DISABLE_XET: "1", HF_HUB_DISABLE_TELEMETRY: "1", ...env } },
      (error, stdout, stderr) => (error ? reject(new Error(stderr)) : resolve(stdout.trim())),
    ),
  );

test("huggingface_hub reads the cache that is written here, and this one reads its", { skip }, async (t) => {
  const hub = await new FakeHub().listen();
  const folder = await mkdtemp(join(tmpdir(), "nabla-hub-parity-"));
  t.after(async () => {
    hub.close();
    await rm(folder, { recursive: true, force: true });
  });
  hub.repositories.set("org/model", repository);
  const ours = join(folder, "ours");
  const theirs = join(folder, "theirs");
  const options = { endpoint: hub.endpoint, token: null };

  const path = await modelFolder("org/model@v1", { ...options, cacheFolder: ours });
  const offline = { HF_HUB_CACHE: ours, HF_HUB_OFFLINE: "1" };
  assert.equal(await run('print(snapshot_download("org/model", revision="v1", local_files_only=True))', offline), path);
  assert.equal(
    await run('print(hf_hub_download("org/model", "1_Pooling/config.json", revision="v1"))', offline),
    join(path, "1_Pooling", "config.json"),
  );
  const scan = await run(
    "c = scan_cache_dir(); print(len(c.warnings), c.size_on_disk, [len(r.files) for x in c.repos for r in x.revisions], [sorted(r.refs) for x in c.repos for r in x.revisions])",
    offline,
  );
  const bytes = Object.values(repository.files).reduce((n, file) => n + file.length, 0);
  assert.equal(scan, `0 ${bytes} [6] [['v1']]`, "their scan finds nothing strange in it");
  // with a network it finds every file there
  hub.seen = [];
  await run('snapshot_download("org/model", revision="v1")', { HF_HUB_CACHE: ours, HF_ENDPOINT: hub.endpoint });
  assert.deepEqual(
    hub.fetched.filter((p) => p.includes("resolve")),
    [],
  );

  const made = await run('print(snapshot_download("org/model"))', { HF_HUB_CACHE: theirs, HF_ENDPOINT: hub.endpoint });
  hub.seen = [];
  assert.equal(await modelFolder("org/model", { ...options, cacheFolder: theirs, offline: true }), made);
  assert.deepEqual(hub.seen, []);
  assert.equal(await modelFolder("org/model", { ...options, cacheFolder: theirs, offline: false }), made);
  assert.deepEqual(hub.fetched, ["/api/models/org/model/revision/main"]);

  const blobs = (cache: string) => readdir(join(cache, "models--org--model", "blobs"));
  assert.deepEqual((await blobs(ours)).sort(), (await blobs(theirs)).sort());
  for (const name of Object.keys(repository.files))
    assert.deepEqual(await readFile(join(made, name)), await readFile(join(path, name)), name);
});
