/** Models by their names on the hub, from a server on this machine that answers as the hub does. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { cp, lstat, mkdir, mkdtemp, readdir, readFile, readlink, realpath, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { after, before, beforeEach, type TestContext, test } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";
import { setDevice } from "../../src/execution/index.ts";
import { HubError, type HubErrorCode, type HubOptions, modelFolder } from "../../src/hub/index.ts";
import { modelFolder as onPage } from "../../src/hub/model-folder.browser.ts";
import { parseModelName } from "../../src/hub/model-name.ts";
import { fromPretrained, PretrainedError } from "../../src/models/index.ts";
import { typescript } from "../support/typescript.ts";
import { etagOf, FakeHub, type FakeRepository, noise, sha256 } from "./server.ts";

setDevice("reference");
const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))));
const fixtures = join(root, "tests", "parity", "fixtures", "pretrained");
const commit = "0123456789abcdef0123456789abcdef01234567";
const text = (s: string) => new TextEncoder().encode(s);

let hub: FakeHub;
let cacheFolder: string;
let options: HubOptions;

const big = noise(300_000);
const plain: FakeRepository = {
  commit,
  refs: ["main", "v1"],
  files: {
    "config.json": text('{"model_type":"llama"}'),
    "tokenizer.json": text("{}"),
    "vocab.txt": text("not needed beside a tokenizer.json"),
    "README.md": text("# not needed"),
    "1_Pooling/config.json": text('{"pooling_mode_mean_tokens":true}'),
    "model.safetensors": big,
    "pytorch_model.bin": noise(1000),
    "onnx/model.onnx": noise(1000),
    "model.Q8_0.gguf": noise(5000, 7),
  },
};

before(async () => {
  hub = await new FakeHub().listen();
});
after(() => hub.close());
beforeEach(async (t) => {
  cacheFolder = await mkdtemp(join(tmpdir(), "nabla-hub-"));
  (t as TestContext).after(() => rm(cacheFolder, { recursive: true, force: true }));
  hub.seen = [];
  hub.faults.clear();
  hub.repositories.clear();
  hub.repositories.set("org/plain", plain);
  options = { endpoint: hub.endpoint, cacheFolder, token: null, offline: false, retries: { times: 3, delay: 1 } };
});

async function refused(work: Promise<unknown>, code: HubErrorCode, words: RegExp): Promise<void> {
  await assert.rejects(work, (error: Error) => {
    assert.ok(error instanceof HubError, `${error.name}: ${error.message}`);
    assert.equal(error.code, code, error.message);
    assert.match(error.message, words);
    return true;
  });
}

/** Names in the folder of blobs that are not whole. */
const unfinished = async () =>
  (await readdir(join(cacheFolder, "models--org--plain", "blobs"))).filter((name) => name.endsWith(".incomplete"));

test("names of the hub are told from paths", () => {
  assert.deepEqual(parseModelName("org/name"), { id: "org/name", revision: "main", file: null });
  assert.deepEqual(parseModelName("Qwen/Qwen2.5-0.5B@refs/pr/1"), {
    id: "Qwen/Qwen2.5-0.5B",
    revision: "refs/pr/1",
    file: null,
  });
  assert.deepEqual(parseModelName("org/name/q/x.gguf@v1"), { id: "org/name", revision: "v1", file: "q/x.gguf" });
  for (const path of [
    "name",
    "./org/name",
    "/org/name",
    "../name",
    "a/b/c",
    "org/name/../x.gguf",
    "org/..",
    "a/b@../x",
  ])
    assert.equal(parseModelName(path), null, path);
});

test("a folder, a file, and what is no name of the hub come back as they are, without a request", async () => {
  const folder = join(fixtures, "llama");
  assert.equal(await modelFolder(folder, options), folder);
  assert.equal(await modelFolder(join(folder, "config.json"), options), join(folder, "config.json"));
  assert.equal(await modelFolder("./no/such", options), "./no/such");
  const before = process.cwd();
  process.chdir(cacheFolder);
  try {
    await mkdir("org/plain", { recursive: true });
    assert.equal(await modelFolder("org/plain", options), "org/plain");
  } finally {
    process.chdir(before);
  }
  assert.deepEqual(hub.seen, []);
});

test("what a model needs is fetched once, into huggingface_hub's layout", async () => {
  const told: [number, number | null][] = [];
  const folder = await modelFolder("org/plain", { ...options, onProgress: (a, b) => void told.push([a, b]) });
  const home = join(cacheFolder, "models--org--plain");
  assert.equal(folder, join(home, "snapshots", commit));
  assert.equal(await readFile(join(home, "refs", "main"), "utf8"), commit);
  const wanted = ["1_Pooling/config.json", "config.json", "model.safetensors", "tokenizer.json"];
  for (const name of wanted) {
    assert.deepEqual(new Uint8Array(await readFile(join(folder, name))), plain.files[name]);
    assert.ok((await lstat(join(folder, name))).isSymbolicLink());
    assert.equal(
      await realpath(join(folder, name)),
      await realpath(join(home, "blobs", etagOf(name, plain.files[name]))),
    );
  }
  assert.match(await readlink(join(folder, "config.json")), /^\.\.[\\/]\.\.[\\/]blobs[\\/]/, "links are relative");
  assert.deepEqual((await readdir(join(home, "blobs"))).length, wanted.length, "nothing else was fetched");
  const total = wanted.reduce((n, name) => n + plain.files[name].length, 0);
  assert.deepEqual(told.at(-1), [total, total]);

  hub.seen = [];
  assert.equal(await modelFolder("org/plain", options), folder);
  assert.deepEqual(
    hub.fetched,
    ["/api/models/org/plain/revision/main"],
    "the second time only the commit is asked for",
  );
  hub.seen = [];
  assert.equal(await modelFolder("org/plain", { ...options, offline: true }), folder);
  assert.deepEqual(hub.seen, []);
});

test("a revision is kept under its name; a file of GGUF is fetched alone", async () => {
  const folder = await modelFolder("org/plain@v1", options);
  assert.equal(await readFile(join(cacheFolder, "models--org--plain", "refs", "v1"), "utf8"), commit);
  assert.equal(await modelFolder(`org/plain@${commit}`, { ...options, offline: true }), folder);
  const file = await modelFolder("org/plain/model.Q8_0.gguf", options);
  assert.equal(file, join(folder, "model.Q8_0.gguf"));
  assert.deepEqual(new Uint8Array(await readFile(file)), plain.files["model.Q8_0.gguf"]);
  await refused(modelFolder("org/plain/other.gguf", options), "NOT_FOUND", /org\/plain@main: there is no other\.gguf/);
});

test("the shards that the index names are fetched, and one that is missing is named", async () => {
  const shards = {
    "model-00001-of-00002.safetensors": noise(100, 2),
    "model-00002-of-00002.safetensors": noise(200, 3),
  };
  const index = { weight_map: { a: "model-00001-of-00002.safetensors", b: "model-00002-of-00002.safetensors" } };
  const files = {
    "config.json": text("{}"),
    "model.safetensors.index.json": text(JSON.stringify(index)),
    ...shards,
    "consolidated.safetensors": noise(50),
  };
  hub.repositories.set("org/sharded", { commit, refs: ["main"], files });
  const folder = await modelFolder("org/sharded", options);
  assert.deepEqual(
    (await readdir(folder)).sort(),
    ["config.json", "model.safetensors.index.json", ...Object.keys(shards)].sort(),
  );
  await rm(join(folder, "model-00002-of-00002.safetensors"));
  await refused(
    modelFolder("org/sharded", { ...options, offline: true }),
    "OFFLINE",
    /not complete.*model-00002-of-00002/,
  );

  const { "model-00002-of-00002.safetensors": _, ...fewer } = files;
  hub.repositories.set("org/fewer", { commit, refs: ["main"], files: fewer });
  await refused(modelFolder("org/fewer", options), "NOT_FOUND", /index\.json names model-00002-of-00002\.safetensors/);
  hub.repositories.set("org/gguf", { commit, refs: ["main"], files: { "q4.gguf": noise(10) } });
  await refused(modelFolder("org/gguf", options), "NOT_FOUND", /no weights.*name one: org\/gguf\/q4\.gguf/);
});

test("the token goes to the hub and to no other host", async () => {
  hub.repositories.set("org/private", { ...plain, token: "hf_secret" });
  await modelFolder("org/private", { ...options, token: "hf_secret" });
  const cdn = hub.seen.filter(({ at }) => at === "cdn");
  assert.ok(cdn.length > 0);
  assert.ok(cdn.every(({ token }) => token === undefined));
  assert.ok(hub.seen.filter(({ at }) => at === "hub").every(({ token }) => token === "Bearer hf_secret"));
});

test("what is missing or not allowed is said with what to do", async () => {
  await refused(modelFolder("org/nothing", options), "ACCESS", /no such public model.*check the name.*HF_TOKEN/);
  await refused(modelFolder("org/nothing", { ...options, token: "x" }), "NOT_FOUND", /check the name.*HF_TOKEN/);
  await refused(modelFolder("org/plain@v9", options), "NOT_FOUND", /no revision "v9"/);
  hub.repositories.set("org/gated", { ...plain, token: "hf_ok", gated: true });
  await refused(modelFolder("org/gated", options), "ACCESS", /accept the terms at .*org\/gated, then set HF_TOKEN/);
  await refused(
    modelFolder("org/gated", { ...options, token: "hf_no" }),
    "ACCESS",
    /403.*accept the terms.*must belong/,
  );
  await refused(modelFolder("org/other", { ...options, offline: true }), "OFFLINE", /not in the cache.*HF_HUB_OFFLINE/);
  hub.faults.set("GET /api/models/org/plain/revision/main", [{ body: text("<html>a portal</html>") }]);
  await refused(modelFolder("org/plain", options), "SERVER", /not JSON; is this a hub\? check HF_ENDPOINT/);
});

test("who may have meant a folder is told that there is none", async () => {
  for (const more of [{}, { offline: true }, { endpoint: "http://127.0.0.1:9", retries: { times: 0, delay: 1 } }])
    await assert.rejects(modelFolder("runs/ft", { ...options, ...more }), /there is no folder "runs\/ft" here/);
});

test("a repository that was renamed is found under its old name, with the token", async () => {
  hub.repositories.set("org/new", { ...plain, token: "hf_x" });
  hub.repositories.set("org/old", { ...plain, movedTo: "org/new" });
  const folder = await modelFolder("org/old", { ...options, token: "hf_x" });
  assert.equal(folder, join(cacheFolder, "models--org--old", "snapshots", commit));
  assert.deepEqual(new Uint8Array(await readFile(join(folder, "model.safetensors"))), big);
});

test("what has no room on the disk is not begun", async () => {
  hub.repositories.set("org/huge", { ...plain, claims: { "model.safetensors": 2 ** 52 } });
  await refused(
    modelFolder("org/huge", options),
    "ENOSPC",
    /MiB are to come, but the disk has \d+ MiB left; free some space/,
  );
  assert.deepEqual(
    hub.seen.filter(({ at }) => at === "cdn"),
    [],
  );
});

test("a page is told that it has to fetch a model itself", async () => {
  assert.equal(await onPage("models/my/folder"), "models/my/folder");
  await refused(onPage("org/plain"), "BROWSER", /a page does not download from the hub.*modelFrom/);
});

test("a file list that leads outside of the folder is refused", async () => {
  for (const name of ["../../evil.json", "/etc/evil", "a/../../b", "a\\b"]) {
    hub.repositories.set("org/evil", {
      commit,
      refs: ["main"],
      files: { "config.json": text("{}"), [name]: text("x") },
    });
    await refused(modelFolder("org/evil", options), "SERVER", /outside of the repository/);
  }
  assert.deepEqual(await readdir(cacheFolder), []);
});

test("failures that pass are tried again", async () => {
  hub.faults.set("GET /api/models/org/plain/revision/main", [{ status: 500 }, { status: 429, after: "0" }]);
  hub.faults.set(`HEAD /org/plain/resolve/${commit}/config.json`, [{ status: 503 }]);
  hub.faults.set(`GET /org/plain/resolve/${commit}/config.json`, [{ status: 502 }]);
  hub.faults.set("GET /org/plain/model.safetensors?signature=abc", [{ status: 504 }]);
  const folder = await modelFolder("org/plain", options);
  assert.deepEqual(new Uint8Array(await readFile(join(folder, "model.safetensors"))), big);

  hub.repositories.set("org/down", plain);
  hub.faults.set("GET /api/models/org/down/revision/main", Array(9).fill({ status: 500 }));
  await refused(modelFolder("org/down", options), "SERVER", /the hub answers 500; try again later/);
  assert.equal(hub.seen.filter(({ path }) => path.includes("org/down")).length, 4);
});

test("a connection that breaks is gone on with, where it broke", async () => {
  const path = "/org/plain/model.safetensors?signature=abc";
  hub.faults.set(`GET ${path}`, [{ cut: 100_000 }, { cut: 50_000 }]);
  const folder = await modelFolder("org/plain", options);
  assert.deepEqual(new Uint8Array(await readFile(join(folder, "model.safetensors"))), big);
  const ranges = hub.seen.filter((r) => r.at === "cdn" && r.path === path).map(({ range }) => range);
  assert.equal(ranges.length, 3);
  assert.equal(ranges[0], undefined);
  for (const range of ranges.slice(1)) assert.match(range ?? "", /^bytes=[1-9]\d*-$/);
  assert.deepEqual(await unfinished(), []);
});

test("a download that was given up goes on in the next call, and one that was damaged meanwhile starts anew", async () => {
  const path = "GET /org/plain/model.safetensors?signature=abc";
  const once = { ...options, retries: { times: 0, delay: 1 } };
  hub.faults.set(path, [{ cut: 120_000 }]);
  await refused(modelFolder("org/plain", once), "NETWORK", /connection (ended|broke off)/);
  const [left] = await unfinished();
  assert.ok(left.startsWith(`${sha256(big)}.`), left);
  const had = (await lstat(join(cacheFolder, "models--org--plain", "blobs", left))).size;
  assert.ok(had > 0 && had <= 120_000, `${had}`);
  hub.seen = [];
  await modelFolder("org/plain", once);
  assert.deepEqual(
    hub.seen.filter(({ at }) => at === "cdn").map(({ range }) => range),
    [`bytes=${had}-`],
  );
  assert.deepEqual(await unfinished(), []);

  // a process that is gone has left a part with other bytes
  await rm(join(cacheFolder, "models--org--plain"), { recursive: true });
  hub.faults.set(path, [{ cut: 120_000 }]);
  await refused(modelFolder("org/plain", once), "NETWORK", /connection/);
  const [again] = await unfinished();
  await writeFile(join(cacheFolder, "models--org--plain", "blobs", again), noise(1000, 99));
  const folder = await modelFolder("org/plain", once);
  assert.deepEqual(new Uint8Array(await readFile(join(folder, "model.safetensors"))), big);
});

test("bytes that are not what the hub says are refused, and nothing of them stays", async () => {
  const wrong = noise(big.length, 5);
  hub.faults.set("GET /org/plain/model.safetensors?signature=abc", [{ body: wrong }]);
  await refused(
    modelFolder("org/plain", options),
    "DAMAGED",
    /model\.safetensors: the bytes that came do not have the hash/,
  );
  hub.faults.set(`GET /org/plain/resolve/${commit}/tokenizer.json`, [{ body: text("[]") }]);
  await rm(join(cacheFolder, "models--org--plain"), { recursive: true });
  await refused(modelFolder("org/plain", options), "DAMAGED", /tokenizer\.json/);
  assert.deepEqual(await unfinished(), []);
  await refused(modelFolder("org/plain", { ...options, offline: true }), "OFFLINE", /not in the cache|not complete/);
  await modelFolder("org/plain", options);
});

test("a server that falls silent is left, and a signal gives up", async (t) => {
  process.env["HF_HUB_DOWNLOAD_TIMEOUT"] = "0.2";
  t.after(() => delete process.env["HF_HUB_DOWNLOAD_TIMEOUT"]);
  hub.faults.set("GET /api/models/org/plain/revision/main", [{ silent: true }]);
  await modelFolder("org/plain", options);
  hub.faults.set("GET /api/models/org/plain/revision/v1", Array(9).fill({ silent: true }));
  const giveUp = new AbortController();
  const work = modelFolder("org/plain@v1", { ...options, signal: giveUp.signal });
  giveUp.abort(new Error("enough"));
  await assert.rejects(work, /enough/);
});

test("where the hub is not there the cache serves, saying so; without a cache the error says what to do", async (t) => {
  const folder = await modelFolder("org/plain", options);
  const gone = { ...options, endpoint: "http://127.0.0.1:9", retries: { times: 1, delay: 1 } };
  const said = t.mock.method(console, "error", () => {});
  assert.equal(await modelFolder("org/plain", gone), folder);
  assert.match(
    said.mock.calls.map(({ arguments: [line] }) => line).join(),
    /can't reach.*Taking org\/plain from the cache/,
  );
  await refused(modelFolder("org/other", gone), "NETWORK", /can't reach http:\/\/127\.0\.0\.1:9.*HF_HUB_OFFLINE=1/);
});

test("the environment says where the hub and the cache are, as huggingface_hub has it", async (t) => {
  const before = { ...process.env };
  t.after(() => {
    process.env = before;
  });
  hub.repositories.set("org/private", { ...plain, token: "hf_from_file" });
  for (const name of ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE"])
    delete process.env[name];
  Object.assign(process.env, { HF_HOME: cacheFolder, HF_ENDPOINT: `${hub.endpoint}/` });
  await writeFile(join(cacheFolder, "token"), "hf_from_file\n");
  const folder = await modelFolder("org/private");
  assert.equal(folder, join(cacheFolder, "hub", "models--org--private", "snapshots", commit));
  process.env["HF_HUB_CACHE"] = join(cacheFolder, "elsewhere");
  process.env["HF_TOKEN"] = "hf_other";
  await refused(modelFolder("org/private"), "ACCESS", /token in use may not read it/);
  process.env["HF_TOKEN"] = "hf_from_file";
  assert.equal(
    dirname(dirname(await modelFolder("org/private"))),
    join(cacheFolder, "elsewhere", "models--org--private"),
  );
  process.env["HF_HUB_OFFLINE"] = "1";
  await refused(modelFolder("org/plain"), "OFFLINE", /offline/);
});

test("without symbolic links the snapshot has files", async (t) => {
  process.env["HF_HUB_DISABLE_SYMLINKS"] = "1";
  t.after(() => delete process.env["HF_HUB_DISABLE_SYMLINKS"]);
  const folder = await modelFolder("org/plain", options);
  const info = await lstat(join(folder, "model.safetensors"));
  assert.ok(info.isFile() && info.size === big.length);
});

/** Runs modelFolder in a process of its own; gives its exit code and what it wrote. */
async function inProcess(env: Record<string, string>): Promise<{ code: number; out: string }> {
  const hubModule = pathToFileURL(join(root, "src", "hub", "index.ts")).href;
  const code = `import { modelFolder } from ${JSON.stringify(hubModule)};
    try { console.log(await modelFolder("org/plain", { retries: { times: 2, delay: 1 } })); }
    catch (error) { console.log(error.name + ": " + error.message); process.exit(1); }`;
  const child = spawn(process.execPath, [...typescript, "--input-type=module", "-e", code], {
    cwd: root,
    env: { ...process.env, HF_ENDPOINT: hub.endpoint, HF_HUB_CACHE: cacheFolder, HF_HUB_OFFLINE: "0", ...env },
  });
  let out = "";
  child.stdout.on("data", (data) => (out += data));
  child.stderr.on("data", (data) => (out += data));
  const [exit] = await once(child, "close");
  return { code: exit, out };
}

test("several processes at once all get it whole", async () => {
  const results = await Promise.all([0, 1, 2].map(() => inProcess({})));
  for (const { code, out } of results) assert.equal(code, 0, out);
  const folder = join(cacheFolder, "models--org--plain", "snapshots", commit);
  assert.deepEqual(new Uint8Array(await readFile(join(folder, "model.safetensors"))), big);
  assert.deepEqual(await unfinished(), []);
});

test("a disk that fills up leaves nothing half-written", async () => {
  const { code, out } = await inProcess({ NABLA_TEST_ENOSPC: "200000" });
  assert.equal(code, 1, out);
  assert.match(out, /FileError: can't write .*: the disk is full \(ENOSPC\); free some space/);
  assert.deepEqual(await unfinished(), []);
  const blobs = await readdir(join(cacheFolder, "models--org--plain", "blobs"));
  assert.ok(!blobs.includes(sha256(big)));
  assert.equal((await inProcess({})).code, 0);
});

test("fromPretrained takes a name; an architecture that is not known is said before the weights are fetched", async () => {
  const files: Record<string, Uint8Array> = {};
  for (const name of await readdir(join(fixtures, "llama")))
    files[name] = await readFile(join(fixtures, "llama", name));
  hub.repositories.set("org/llama", { commit, refs: ["main"], files });
  const model = await fromPretrained("org/llama", options);
  const local = await fromPretrained(join(fixtures, "llama"));
  const values = async (m: typeof model) => [...(await Object.values(m.stateDict())[0].data())];
  assert.deepEqual(await values(model), await values(local));
  hub.repositories.set("org/mamba", {
    ...plain,
    files: { ...plain.files, "config.json": text('{"model_type":"mamba"}') },
  });
  hub.seen = [];
  await assert.rejects(fromPretrained("org/mamba", options), PretrainedError);
  assert.deepEqual(
    hub.seen.filter(({ at }) => at === "cdn"),
    [],
  );
  await cp(await modelFolder("org/llama", options), join(cacheFolder, "copy"), { recursive: true, dereference: true });
});
