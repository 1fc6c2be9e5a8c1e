/** nabla finetune and what is done with its outcome: eval, generate, merge; stopped, resumed, and wrong input. */
import assert from "node:assert/strict";
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { before, describe, test } from "node:test";
import { type Finished, makeRoom, nabla, tinyGpt, writeText } from "./support.ts";

const room = makeRoom();
const text = writeText(join(room, "text.txt"));
const base = join(room, "base");
const tuned = join(room, "tuned");
const train = join(room, "train.jsonl");
const held = join(room, "held.jsonl");

/** Texts of letters that the tiny model knows, in an order that it does not. */
function writeLines(path: string, from: number, to: number): void {
  const words = ["dog", "cat", "home", "again", "ran"];
  const line = (i: number): string => `${words[i % 5]} ${words[((i / 5) % 5) | 0]} ${words[((i / 25) % 5) | 0]} home`;
  const lines = Array.from({ length: to - from }, (_, i) => JSON.stringify({ text: line(from + i) }));
  writeFileSync(path, `${lines.join("\n")}\n`);
}

const quick =
  "--epochs 2 --lr 0.02 --rank 4 --batch 4 --checkpoint-every 5 --sample-tokens 6 --seed 5 --sample dog --sample"
    .split(" ")
    .concat("cat ");
const finetune = (out: string, ...more: string[]): string[] => [
  ...["finetune", base, "--data", train, "--eval", held, "--out", out],
  ...quick,
  ...more,
];

before(async () => {
  writeLines(train, 0, 48);
  writeLines(held, 100, 110);
  const { code, stderr } = await nabla(
    tinyGpt(text, base, "--context", "32", "--steps", "20", "--checkpoint-every", "20"),
  );
  assert.equal(code, 0, stderr);
  const run = await nabla(finetune(tuned, "--also", text));
  assert.equal(run.code, 0, run.stderr);
  for (const part of [
    /base: GPT2, .* parameters, float32, on reference/,
    /lora: rank 4, alpha 8, on 4 layers; .* parameters learn/,
    /to learn from: 48 examples \(.* tokens\); to measure on: 10 examples/,
    /before +after +difference {2}\[paired 95 % interval\]/,
    /loss +\d\.\d{4} {2}→ {2}\d\.\d{4} {2}−\d\.\d{4} {2}\[−\d\.\d{4}, [−+]\d\.\d{4}\]/,
    /"cat "\n {2}before {2}[\s\S]*\n {2}after {2}/,
    /on .*text\.txt, which was not learnt:/,
    /24 steps, all in/,
    /npx nabla generate .*base --adapter .*tuned --prompt/,
  ])
    assert.match(run.stdout, part);
});

function fails({ code, stderr }: Finished, expected: number, message: RegExp): void {
  assert.match(stderr, message);
  assert.equal(code, expected, stderr);
  assert.doesNotMatch(stderr, /\n {4}at /);
}

test("an adapter in PEFT's layout is left, with log, settings and evaluation", () => {
  for (const name of [
    "adapter_config.json",
    "adapter_model.safetensors",
    "evaluation.json",
    "metrics.jsonl",
    "training.json",
    "result.json",
  ])
    assert.ok(existsSync(join(tuned, name)), name);
  const config = JSON.parse(readFileSync(join(tuned, "adapter_config.json"), "utf8"));
  assert.equal(config.peft_type, "LORA");
  assert.equal(config.task_type, "CAUSAL_LM");
  assert.equal(config.base_model_name_or_path, base);
});

test("eval of model and adapter gives what the fine-tuning measured, and --compare sets runs side by side", async () => {
  const { before: was, after: now } = JSON.parse(readFileSync(join(tuned, "evaluation.json"), "utf8"));
  const plain = await nabla([
    "eval",
    base,
    "--metrics",
    "loss",
    "--data",
    held,
    "--out",
    join(room, "plain"),
    "--json",
  ]);
  assert.equal(plain.code, 0, plain.stderr);
  const adapted = await nabla(["eval", base, "--adapter", tuned, "--data", held, "--json"]);
  assert.equal(adapted.code, 0, adapted.stderr);
  const losses = [plain, adapted].map(({ stdout }) => JSON.parse(stdout).loss as number);
  assert.ok(Math.abs(losses[0] - was.loss) < 1e-6 && Math.abs(losses[1] - now.loss) < 1e-6, `${losses}`);
  assert.ok(losses[1] < losses[0]);
  assert.deepEqual(Object.keys(JSON.parse(plain.stdout)), ["model", "adapter", "data", "loss", "examples"]);

  const shown = await nabla(["eval", "--compare", tuned, join(room, "plain")]);
  assert.equal(shown.code, 0, shown.stderr);
  assert.match(shown.stdout, /tuned, before +\d/);
  assert.match(shown.stdout, /tuned → .*plain\n +the first +the second +difference/);
  const json = JSON.parse((await nabla(["eval", "--compare", join(room, "plain"), tuned, "--json"])).stdout);
  const { value, interval } = json.differences[0].difference.loss;
  assert.ok(Math.abs(value - (losses[1] - losses[0])) < 1e-9);
  assert.ok(interval[0] <= value && value <= interval[1]);
});

test("the adapter speaks otherwise than its model, and merged weights speak as it does", async () => {
  const merged = join(room, "merged");
  const write = (model: string, ...more: string[]) =>
    nabla(["generate", model, "--prompt", "dog ", "--tokens", "24", "--temperature", "0", ...more]);
  const merge = await nabla(["merge", base, "--adapter", tuned, "--out", merged]);
  assert.equal(merge.code, 0, merge.stderr);
  const [plain, adapted, short, of] = await Promise.all([
    write(base),
    write(base, "--adapter", tuned),
    write(tuned), // a run says which model its adapter is of
    write(merged),
  ]);
  for (const { code, stderr } of [plain, adapted, short, of]) assert.equal(code, 0, stderr);
  assert.match(plain.stdout, /^dog /);
  assert.notEqual(plain.stdout, adapted.stdout);
  assert.equal(adapted.stdout, short.stdout);
  assert.equal(adapted.stdout, of.stdout);
  assert.deepEqual(
    readdirSync(room).filter((name) => name.startsWith(".merged")),
    [],
  );
});

test("Ctrl-C saves a checkpoint and says how to go on; what goes on has the same bits", async () => {
  const run = join(room, "interrupted");
  let sent = false;
  const stopped = await nabla(finetune(run), {
    onOutput(stdout, kill) {
      if (!sent && /step +1\/24/.test(stdout)) {
        sent = true;
        kill("SIGINT");
      }
    },
  });
  assert.equal(stopped.code, 130, stopped.stderr);
  assert.match(stopped.stdout, /stopped at step \d+ of 24; everything is saved/);
  assert.match(stopped.stdout, new RegExp(`go on with: npx nabla finetune --resume ${run}`));
  assert.equal(existsSync(join(run, "adapter_model.safetensors")), false);
  const resumed = await nabla(["finetune", "--resume", run]);
  assert.equal(resumed.code, 0, resumed.stderr);
  assert.match(resumed.stdout, /going on after step \d+/);
  const weights = (folder: string): Buffer => readFileSync(join(folder, "adapter_model.safetensors"));
  assert.ok(weights(run).equals(weights(tuned)), "the adapters differ");
  assert.match((await nabla(["finetune", "--resume", run])).stdout, /is finished after 24 steps/);
});

test("killed before its first checkpoint, with steps in its log, it starts from its beginning", async () => {
  const run = join(room, "killed");
  // the last of the same flags holds
  const killed = await nabla(finetune(run, "--checkpoint-every", "1000"), {
    onOutput(stdout, kill) {
      if (/step +1\/24/.test(stdout)) kill("SIGKILL");
    },
  });
  assert.equal(killed.signal, "SIGKILL");
  const logged = (folder: string): string => readFileSync(join(folder, "metrics.jsonl"), "utf8");
  assert.match(logged(run), /"step":1,/);
  const { code, stdout, stderr } = await nabla(["finetune", "--resume", run, "--json"]);
  assert.equal(code, 0, stderr);
  assert.match(stderr, /no checkpoint yet: the run starts from its beginning/);
  assert.equal(logged(run), logged(tuned));
  const { before: was, after: now, difference, samples } = JSON.parse(stdout);
  assert.ok(now.loss < was.loss);
  assert.ok(Math.abs(difference.loss.value - (now.loss - was.loss)) < 1e-9);
  assert.equal(samples.length, 2);
});

describe("methods", { concurrency: 2 }, () => {
  test("full leaves a model's folder that is a MODEL again", async () => {
    const out = join(room, "full");
    const { code, stdout, stderr } = await nabla([
      ...["finetune", base, "--data", train, "--out", out, "--method", "full", "--lr", "0.01", "--steps", "8"],
      ...["--samples", "0", "--eval-share", "0.2"],
    ]);
    assert.equal(code, 0, stderr);
    assert.match(stdout, /full: .* parameters learn \(100 %\)/);
    assert.match(stdout, /held out of the same data/);
    const again = await nabla(["generate", out, "--prompt", "dog ", "--tokens", "4"]);
    assert.equal(again.code, 0, again.stderr);
  });

  test("freeze trains the last block by default, qlora an adapter on codes", async () => {
    const common = ["--data", train, "--steps", "2", "--samples", "0"];
    const frozen = await nabla(["finetune", base, ...common, "--method", "freeze", "--out", join(room, "frozen")]);
    assert.equal(frozen.code, 0, frozen.stderr);
    assert.match(frozen.stdout, /freeze: .* parameters learn .*, transformer\.h\.0\..* … transformer\.ln_f\.bias/);
    const codes = await nabla(["finetune", base, ...common, "--quantize", "int8", "--out", join(room, "codes")]);
    assert.equal(codes.code, 0, codes.stderr);
    assert.match(codes.stdout, /qlora: .* on 4 layers; 4 layers quantised to int8; /);
    assert.ok(existsSync(join(room, "codes", "adapter_model.safetensors")));
  });
});

test("an adapter that gives a number is measured again, and merged into a model that gives one", async () => {
  const [scores, out, whole] = ["scores.jsonl", "scored", "scored-whole"].map((name) => join(room, name));
  writeFileSync(
    scores,
    ["dog", "cat", "home"].map((text, i) => `${JSON.stringify({ text, label: i / 2 })}\n`).join(""),
  );
  const data = ["--data", scores];
  const run = await nabla([
    ...["finetune", base, ...data, "--eval", scores, "--task", "regress"],
    ...["--steps", "1", "--out", out, "--json"],
  ]);
  assert.equal(run.code, 0, run.stderr);
  const { after } = JSON.parse(run.stdout);
  const merged = await nabla(["merge", base, "--adapter", out, "--out", whole]);
  assert.equal(merged.code, 0, merged.stderr);
  const config = JSON.parse(readFileSync(join(whole, "config.json"), "utf8"));
  assert.deepEqual([config.id2label, config.problem_type], [{ 0: "LABEL_0" }, "regression"]);
  if (process.platform !== "win32")
    assert.equal(statSync(whole).mode & 0o777, 0o777 & ~process.umask(), "open to those to whom new folders are");
  for (const model of [[base, "--adapter", out], [whole]]) {
    const { code, stdout, stderr } = await nabla(["eval", ...model, ...data, "--json"]);
    assert.equal(code, 0, stderr);
    assert.ok(Math.abs(JSON.parse(stdout).loss - after.loss) < 1e-5, stdout);
  }
});

describe("what can't be done", { concurrency: 2 }, () => {
  const file = (name: string, content: string): string => {
    const path = join(room, name);
    writeFileSync(path, content);
    return path;
  };

  test("flags that are missing, or not for this method", async () => {
    fails(await nabla(["finetune"]), 2, /MODEL is missing/);
    fails(await nabla(["finetune", base]), 2, /--data is missing/);
    fails(
      await nabla(finetune(join(room, "x"), "--method", "full")),
      2,
      /--rank is for --method lora or qlora, not for full/,
    );
    fails(await nabla(["finetune", "--resume", tuned, "--lr", "1"]), 2, /--lr can't be combined with --resume/);
    fails(await nabla(["eval", base, "--data", held, "--metrics", "bleu"]), 2, /there is no "bleu"; known are loss/);
    fails(await nabla(["generate", base, "--prompt", "a", "--chat"]), 2, /either --prompt or --chat/);
  });

  test("a length that the model does not see: no run is left behind", async () => {
    const out = join(room, "long");
    fails(
      await nabla(finetune(out, "--max-length", "1000")),
      65,
      /maxLength must be a whole number from 1 to the \d+ tokens that the model sees, got 1000/,
    );
    assert.equal(existsSync(out), false);
    fails(
      await nabla(["eval", base, "--data", held, "--metrics", "loss,exact-match"]),
      2,
      /--metrics exact-match needs examples of prompt and completion; .*held\.jsonl, line 1 is none/,
    );
  });

  test("what is no model, or of an architecture that is not known", async () => {
    fails(await nabla(["finetune", join(room, "no where"), "--data", train]), 65, /there is no folder or file/);
    fails(await nabla(["info", room]), 65, /is not a model's folder: it has no config\.json/);
    fails(await nabla(["generate", text, "--prompt", "a"]), 65, /neither a folder nor a \.gguf file/);
    const strange = join(room, "strange");
    mkdirSync(strange);
    writeFileSync(join(strange, "config.json"), '{"model_type":"mamba"}');
    fails(await nabla(["info", strange]), 65, /unknown architecture "mamba"; known are .*llama/);
    fails(await nabla(["embed", base, "--data", text]), 65, /embed needs an encoder .* this model is "gpt2"/);
    fails(await nabla(["generate", base, "--chat"]), 65, /has no chat template/);
    writeFileSync(join(strange, "config.json"), '{"model_type":"bert"}');
    fails(await nabla(["eval", strange, "--data", text]), 65, /"bert", which writes no text; a classifier/);
  });

  test("a line of data that is damaged: file and line, and no run is left behind", async () => {
    const bad = file("bad.jsonl", '{"text":"dog"}\n{"text":"cat"\n');
    const out = join(room, "new", "of-bad");
    fails(await nabla(["finetune", base, "--data", bad, "--out", out]), 65, /bad\.jsonl, line 2: not valid JSON/);
    const foreign = file("foreign.jsonl", '{"text":"dog"}\n{"text":"日本"}\n');
    fails(
      await nabla(["finetune", base, "--data", foreign, "--out", out]),
      65,
      /foreign\.jsonl, line 2: character "日"/,
    );
    assert.equal(existsSync(join(room, "new")), false);
  });

  test("a loss that is no number any more: what to do, with this command's flags", async () => {
    const flags = ["--data", train, "--method", "full", "--lr", "1e30", "--steps", "3", "--samples", "0"];
    const run = await nabla(["finetune", base, ...flags, "--out", join(room, "diverged")]);
    fails(run, 76, /the loss is (NaN|Infinity)[\s\S]*begin another with a smaller --lr than 1e\+30/);
  });

  test("an --out that exists, and a run that is there already", async () => {
    fails(await nabla(finetune(base)), 65, /base already holds a run/);
    fails(await nabla(finetune(tuned)), 65, /already holds a run; go on with it \(npx nabla finetune --resume/);
    fails(await nabla(["merge", base, "--adapter", tuned, "--out", base]), 65, /base exists already/);
    fails(await nabla(["eval", base, "--metrics", "loss", "--data", held, "--out", base]), 65, /exists already/);
  });

  test("an adapter that is none, is damaged, or is of another model", async () => {
    const use = (adapter: string, model = base) => nabla(["generate", model, "--adapter", adapter, "--prompt", "dog"]);
    fails(await use(join(room, "nowhere")), 65, /there is no folder/);
    fails(await use(base), 65, /holds no adapter: it has no adapter_config\.json/);
    const broken = join(room, "broken");
    mkdirSync(broken);
    for (const name of ["adapter_config.json", "adapter_model.safetensors"])
      writeFileSync(join(broken, name), readFileSync(join(tuned, name)));
    truncateSync(join(broken, "adapter_model.safetensors"), 500);
    fails(await use(broken), 65, /adapter_model\.safetensors: .*truncated/);
    const wide = join(room, "wide");
    const made = await nabla([
      ...["train", "gpt", "--data", text, "--out", wide, "--layers", "1", "--width", "16", "--heads", "2"],
      ...["--context", "8", "--batch", "2", "--steps", "1"],
    ]);
    assert.equal(made.code, 0, made.stderr);
    fails(await use(tuned, wide), 65, /has shape .* Is it an adapter of this model\? Nothing was loaded/);
  });

  test("a folder that is no measurement, for --compare", async () => {
    fails(await nabla(["eval", "--compare", base]), 65, /holds no measurement: it has no evaluation\.json/);
    fails(await nabla(["eval", base, "--compare", tuned]), 2, /takes no MODEL/);
  });
});
