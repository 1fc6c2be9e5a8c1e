/** The commands that look and tell: version, help, doctor, plan, graph, start. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { makeRoom, nabla, root } from "./support.ts";

const room = makeRoom();

test("version and help answer without loading anything heavy", async () => {
  const version = await nabla(["--version"]);
  assert.equal(version.code, 0);
  assert.equal(version.stdout.trim(), JSON.parse(readFileSync(join(root, "package.json"), "utf8")).version);
  const help = await nabla(["--help"]);
  assert.equal(help.code, 0);
  for (const command of [
    ...["start", "train", "finetune", "generate", "eval", "embed", "merge", "convert", "info"],
    ...["doctor", "plan", "graph"],
  ])
    assert.match(help.stdout, new RegExp(`^ {2}${command}\\b`, "m"));
  const flags = await nabla(["train", "gpt", "--help"]);
  assert.equal(flags.code, 0);
  assert.match(flags.stdout, /--checkpoint-every/);
});

test("doctor names every backend, and what to install where there is no compiler", async () => {
  const here = await nabla(["doctor", "--no-measure"], { env: { NABLA_DEVICE: undefined } });
  assert.equal(here.code, 0, here.stderr);
  assert.match(here.stdout, /^ {2}cpu +(works: |does not work: )/m);
  assert.match(here.stdout, /^ {2}reference +works/m);
  assert.match(here.stdout, /^ {2}wasm +works: .* threads?, up to .* of memory/m);
  const without = await nabla(["doctor", "--no-measure"], {
    env: { NABLA_DEVICE: undefined, NABLA_CC: join(room, "none") },
  });
  assert.equal(without.code, 0, without.stderr);
  assert.match(without.stdout, /cpu +does not work: .*none.*\n.*(to get it|a C compiler is needed): /);
  assert.doesNotMatch(without.stdout, /measured/);
});

test("doctor measures what works", async () => {
  // an adapter in software is named by its driver, and takes half a minute
  const env = { NABLA_DEVICE: undefined, ...(process.env["NABLA_LONG"] === "1" ? {} : { VK_DRIVER_FILES: undefined }) };
  const { code, stdout, stderr } = await nabla(["doctor"], { env });
  assert.equal(code, 0, stderr);
  for (const device of ["cpu", "wasm", "webgpu", "reference"]) {
    const measured = new RegExp(
      `${device} +([\\d.e+]+) GFLOP/s \\(float32 matrix product, \\d+³\\), [\\d.e+]+ GB/s`,
    ).exec(stdout);
    assert.equal(measured !== null, new RegExp(`^ {2}${device} +works`, "m").test(stdout), stdout);
    if (device === "cpu" && measured) assert.ok(Number(measured[1]) > 1, stdout);
  }
  assert.match(stdout, /^ {2}reference +works/m);
});

test("plan counts what a training would take without running it", async () => {
  const flags = "--layers 2 --width 32 --heads 4 --context 16 --batch 4 --vocab 50";
  const { code, stdout, stderr } = await nabla(`plan train gpt ${flags} --json`.split(" "));
  assert.equal(code, 0, stderr);
  const plan = JSON.parse(stdout);
  // embeddings 50·32 + 16·32, two blocks of 12·32² + 13·32, the last norm 2·32
  assert.equal(plan.parameters, 50 * 32 + 16 * 32 + 2 * (12 * 32 * 32 + 13 * 32) + 64);
  assert.equal(plan.weightBytes, 4 * plan.parameters);
  // AdamW: two moments beside the weights
  assert.ok(plan.stateBytes >= 3 * plan.weightBytes && plan.stateBytes < 3.01 * plan.weightBytes + 4096, stdout);
  assert.ok(plan.peakBytes >= plan.stateBytes + plan.temporaryBytes);
  assert.ok(plan.flopsPerStep > 6 * plan.parameters * 64 * 0.7, stdout);
  const words = await nabla(["plan", "train", "classifier", "--model", "mlp"]);
  assert.match(words.stdout, /parameters +102k/);
});

test("graph prints every stage, and draws the graph", async () => {
  for (const stage of ["graph", "kernels", "memory", "source"]) {
    const { code, stdout, stderr } = await nabla(["graph", "mlp", "--stage", stage]);
    assert.equal(code, 0, stderr);
    assert.ok(stdout.trim().length > 20, `${stage}: ${stdout}`);
  }
  const path = join(room, "graph.svg");
  const drawn = await nabla(["graph", "gpt", "--out", path]);
  assert.equal(drawn.code, 0, drawn.stderr);
  const svg = readFileSync(path, "utf8");
  assert.match(svg, /^<svg xmlns/);
  assert.match(svg, />attention</);
  assert.match(svg, />transformer\.wte\.weight</);
  assert.equal(svg.match(/<g>/g)!.length, svg.match(/<\/g>/g)!.length);
  const nowhere = await nabla(["graph", "gpt", "--out", join(path, "below.svg")]);
  assert.equal(nowhere.code, 74);
  const stranger = await nabla(["graph", "transformer9000"]);
  assert.equal(stranger.code, 2);
  assert.match(stranger.stderr, /known are gpt, convnet, mlp/);
});

test("graph shows a function of one's own", async () => {
  const path = join(root, "tests", "cli", `.own-${process.pid}.ts`);
  writeFileSync(
    path,
    'import { ones } from "../../src/tensor/index.ts";\nexport default () => ones([2, 3]).mul(2).exp().sum({ dim: 1 });\n',
  );
  try {
    // the sources' own command, whether or not there is a build: a tensor of another copy of the package is refused
    const run = `import("./src/cli/main.ts").then(async ({ main }) => { process.exitCode = await main(["graph", ${JSON.stringify(path)}]); })`;
    const { status, stdout, stderr } = spawnSync(process.execPath, ["--import", "tsx", "-e", run], {
      cwd: root,
      encoding: "utf8",
    });
    assert.equal(status, 0, stderr);
    assert.match(stdout, /exp/);
  } finally {
    (await import("node:fs")).rmSync(path);
  }
});

test("start trains, compares with the trigram model, and fine-tunes to a second kind of text", {
  timeout: 170_000,
}, async () => {
  const out = join(room, "start");
  const { code, stdout, stderr } = await nabla(["start", "--out", out, "--minutes", "0.05"]);
  assert.equal(code, 0, stderr);
  for (const part of [
    /What it writes before training:\n {2}│ The/,
    /training loss +o validation loss/,
    /What it writes now:\n {2}│ The/,
    /validation loss of the GPT +\d/,
    /of an interpolated trigram +\d/,
    /lora: rank 8, .* parameters learn/,
    /before +after +difference {2}\[paired 95 % interval\]\nloss +\d\.\d+ {2}→ {2}\d\.\d+/,
    /"function "\n {2}before {2}/,
    /on .*documentation-held-out\.txt, which was not learnt/,
  ])
    assert.match(stdout, part);
  assert.ok(existsSync(join(out, "lora", "adapter_model.safetensors")));
  const resumed = await nabla(["train", "gpt", "--resume", out]);
  assert.match(resumed.stdout, /is finished/);
});
