/** Runs at the command line: stopped, killed and resumed they end with the same bits as one never stopped. */
import assert from "node:assert/strict";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { before, test } from "node:test";
import { logOf, makeRoom, nabla, tinyGpt, weightsOf, writeImages, writeText } from "./support.ts";

const room = makeRoom();
const text = writeText(join(room, "text.txt"));
const steps = 60;
const more = ["--steps", String(steps), "--checkpoint-every", "7", "--validate-every", "25"];
const whole = join(room, "whole");
const long = process.env["NABLA_LONG"] === "1";

before(async () => {
  const { code, stdout, stderr } = await nabla(tinyGpt(text, whole, ...more));
  assert.equal(code, 0, stderr);
  assert.match(stdout, /60 steps in .*; the run is in/);
});

function sameAsWhole(run: string): void {
  assert.deepEqual(logOf(run), logOf(whole));
  assert.deepEqual(
    logOf(run).map(({ step }) => step),
    Array.from({ length: steps }, (_, i) => i + 1),
  );
  assert.ok(weightsOf(run).equals(weightsOf(whole)), "the weights differ");
}

test("a run leaves weights, configuration, tokenizer, log and result", () => {
  for (const name of [
    "model.safetensors",
    "config.json",
    "tokenizer.json",
    "metrics.jsonl",
    "training.json",
    "result.json",
  ])
    assert.ok(existsSync(join(whole, name)), name);
  assert.ok(existsSync(join(whole, `checkpoint-${steps}`)));
  const validated = logOf(whole).filter((entry) => entry["validationLoss"] !== undefined);
  assert.deepEqual(
    validated.map(({ step }) => step),
    [25, 50, 60],
  );
});

test("Ctrl-C saves a checkpoint, says how to go on, and what goes on has the same bits", async () => {
  const run = join(room, "interrupted");
  let sent = false;
  const stopped = await nabla(tinyGpt(text, run, ...more), {
    onOutput(stdout, kill) {
      if (!sent && stdout.includes("step  1/60")) {
        sent = true;
        kill("SIGINT");
      }
    },
  });
  assert.equal(stopped.code, 130, stopped.stderr);
  assert.match(stopped.stdout, /stopped at step \d+ of 60; everything is saved/);
  assert.match(stopped.stdout, new RegExp(`npx nabla train gpt --resume ${run}`));
  const resumed = await nabla(["train", "gpt", "--resume", run]);
  assert.equal(resumed.code, 0, resumed.stderr);
  assert.match(resumed.stdout, /going on after step \d+/);
  sameAsWhole(run);
});

for (let trial = 0; trial < (long ? 10 : 2); trial++)
  test(`killed at random moments until it is done, trial ${trial}`, async (t) => {
    const seed = (Date.now() + 7919 * trial) % 100003;
    t.diagnostic(`seed ${seed}`);
    let state = seed;
    const random = (): number => {
      state = (state * 48271) % 2147483647;
      return state / 2147483647;
    };
    const run = join(room, `killed-${trial}`);
    // From what a whole run takes here: before the first step, in the middle, while a checkpoint is written.
    let began = performance.now();
    let patience = 300 + 900 * random();
    let last = await nabla(tinyGpt(text, run, ...more), { killAfter: patience });
    let kills = 0;
    while (last.code === null) {
      kills++;
      assert.equal(last.signal, "SIGKILL");
      assert.ok(kills < 200, "it never comes to its end");
      if (existsSync(join(run, "training.json"))) {
        patience = Math.max(performance.now() - began, 300) * (0.7 + random());
        began = performance.now();
        last = await nabla(["train", "gpt", "--resume", run], { killAfter: Math.min(patience, 4000) });
      } else {
        began = performance.now();
        last = await nabla(tinyGpt(text, run, ...more), { killAfter: patience * 1.5 + 300 });
      }
    }
    assert.equal(last.code, 0, last.stderr);
    t.diagnostic(`${kills} kills`);
    sameAsWhole(run);
  });

test("a run killed before its first checkpoint starts from its beginning", async () => {
  const run = join(room, "early");
  const every = ["--steps", String(steps), "--checkpoint-every", "1000", "--validate-every", "25"];
  const killed = await nabla(tinyGpt(text, run, ...every), {
    onOutput(stdout, kill) {
      if (stdout.includes("step  1/60")) kill("SIGKILL");
    },
  });
  assert.equal(killed.signal, "SIGKILL");
  const { code, stdout, stderr } = await nabla(["train", "gpt", "--resume", run]);
  assert.equal(code, 0, stderr);
  assert.match(stdout, /no checkpoint yet: the run starts from its beginning/);
  sameAsWhole(run);
});

test("a finished run that is resumed says so and exits with 0", async () => {
  const weights = weightsOf(whole);
  const { code, stdout } = await nabla(["train", "gpt", "--resume", whole]);
  assert.equal(code, 0);
  assert.match(stdout, /is finished after 60 steps/);
  assert.ok(weightsOf(whole).equals(weights));
});

test("the same seed writes the same text, another seed another", async () => {
  const write = (...flags: string[]) => nabla(["generate", whole, "--prompt", "the ", "--tokens", "40", ...flags]);
  const [a, b, c, greedy] = await Promise.all([
    write("--seed", "5"),
    write("--seed", "5"),
    write("--seed", "6"),
    write("--temperature", "0"),
  ]);
  assert.equal(a.code, 0, a.stderr);
  assert.equal(a.stdout, b.stdout);
  assert.notEqual(a.stdout, c.stdout);
  assert.match(a.stdout, /^the /);
  assert.equal([...a.stdout.trimEnd()].length <= 4 + 40, true);
  assert.equal(greedy.code, 0);
});

test("eval of a GPT gives the loss over a text", async () => {
  const { code, stdout, stderr } = await nabla(["eval", whole, "--data", text, "--json"]);
  assert.equal(code, 0, stderr);
  const { loss, perplexity, tokens } = JSON.parse(stdout);
  assert.ok(loss > 0.5 && loss < 4);
  assert.ok(Math.abs(Math.exp(loss) - perplexity) < 1e-9 * perplexity);
  assert.equal(tokens, [...readFileSync(text, "utf8")].length);
});

test("a classifier trains on IDX files, is interrupted and resumed, and eval shows its confusions", async () => {
  const data = join(room, "images");
  mkdirSync(data);
  writeImages(data, 240);
  writeImages(data, 80, { split: "t10k" });
  const flags =
    `--data ${data} --model mlp --hidden 16 --batch 16 --epochs 4 --lr 0.02 --seed 2 --checkpoint-every 5`.split(" ");
  const all = join(room, "digits");
  const first = await nabla(["train", "classifier", "--out", all, ...flags]);
  assert.equal(first.code, 0, first.stderr);
  assert.match(first.stdout, /validation: accuracy \d+\.\d\d %/);

  const parts = join(room, "digits-parts");
  await nabla(["train", "classifier", "--out", parts, ...flags], {
    onOutput(stdout, kill) {
      if (/step +1\/60/.test(stdout)) kill("SIGKILL");
    },
  });
  const resumed = await nabla(["train", "classifier", "--resume", parts]);
  assert.equal(resumed.code, 0, resumed.stderr);
  assert.ok(weightsOf(parts).equals(weightsOf(all)));
  assert.deepEqual(logOf(parts), logOf(all));

  const shown = await nabla(["eval", all, "--data", data]);
  assert.equal(shown.code, 0, shown.stderr);
  assert.match(shown.stdout, /80 images \(test split\): accuracy/);
  assert.match(shown.stdout, /true\\pred/);
  const measured = JSON.parse((await nabla(["eval", all, "--data", data, "--json"])).stdout);
  assert.ok(measured.accuracy > 0.9, JSON.stringify(measured));
  assert.equal(
    measured.confusion.flat().reduce((a: number, b: number) => a + b),
    80,
  );
});

test("what changed under a run is noticed when it goes on", async () => {
  const own = writeText(join(room, "changing.txt"));
  const run = join(room, "changing");
  await nabla(tinyGpt(own, run, ...more), {
    onOutput(stdout, kill) {
      if (stdout.includes("step  1/60")) kill("SIGKILL");
    },
  });
  writeFileSync(own, `${readFileSync(own, "utf8").slice(0, -40)}\n`);
  const { code, stderr } = await nabla(["train", "gpt", "--resume", run]);
  assert.equal(code, 65);
  assert.match(stderr, /the data is not what it was when the run began/);
});
