/**
 * Does pretraining help where labels are few? The same network, all-MiniLM-L6-v2's, learns a task twice from a few labelled sentences: from its
 * pretrained weights, and from nothing. The one from nothing gets a learning rate that is tuned for it on sentences apart, and three
 * times the steps. Five seeds, each with its own choice of sentences; both are judged on the same sentences that none has seen.
 *
 *   node --import tsx recipes/pretrained-or-not/compare.ts movie-reviews|financial-phrasebank [--out FILE] [--seeds N]
 *
 * NABLA_TEST_MINILM names the folder of all-MiniLM-L6-v2, NABLA_TEST_DATA that of the data. What has been run stands in FILE, a line each, and is not
 * run again: a run that was stopped goes on.
 */
import { appendFileSync, existsSync, readFileSync } from "node:fs";
import { finetune, measure, metricsOf, textTask } from "../../src/finetune/index.ts";
import { bertConfigOf } from "../../src/models/bert.ts";
import { BertForSequenceClassification, fromPretrained, readConfig } from "../../src/models/index.ts";
import { manualSeed } from "../../src/tensor/index.ts";
import { dataNames, minilmFolder, readSentences, shuffled, split } from "./sentences.ts";

interface Setting {
  /** How many sentences of each class are learnt from, tuned on, and judged on. */
  readonly train: number;
  readonly validation: number;
  readonly test: number;
  /** Passes of the pretrained network over what it learns from. */
  readonly epochs: number;
  readonly metric: string;
}

const settings: Readonly<Record<string, Setting>> = {
  "movie-reviews": {
    train: 1000,
    validation: 200,
    test: 1066,
    epochs: 1,
    metric: "accuracy",
  },
  "financial-phrasebank": {
    train: 100,
    validation: 50,
    test: 150,
    epochs: 4,
    metric: "balanced accuracy",
  },
};

const batch = 16;
const pretrainedRate = 1e-4; // not tuned
const ratesFromNothing = [1e-4, 3e-4, 1e-3];

const [name = "", ...rest] = process.argv.slice(2);
const setting = settings[name];
if (!setting) throw new Error(`name one of ${dataNames.join(", ")}`);
const option = (flag: string, usual: string): string => (rest.includes(flag) ? rest[rest.indexOf(flag) + 1] : usual);
const out = option("--out", `${name}.jsonl`);
const seeds = Number(option("--seeds", "5"));

const folder = minilmFolder();
const { classes, examples } = await readSentences(name, folder);
// what both are judged on is the same for every seed
const [test, pool] = split(shuffled(examples, 0), [setting.test]);

interface Run {
  readonly start: "pretrained" | "nothing";
  readonly lr: number;
  readonly seed: number;
  readonly judged: "validation" | "test";
}

const done = new Map<string, { readonly score: number }>();
if (existsSync(out))
  for (const line of readFileSync(out, "utf8").trim().split("\n")) {
    const { run, ...result } = JSON.parse(line);
    done.set(JSON.stringify(run), result);
  }

async function score(run: Run): Promise<number> {
  const key = JSON.stringify(run);
  const before = done.get(key);
  if (before) return before.score;
  const began = performance.now();
  const { start, lr, seed, judged } = run;
  const [train, validation] = split(shuffled(pool, 1 + seed), [setting.train, setting.validation]);
  manualSeed(seed);
  const options = { task: "classification", numLabels: classes.length, dtype: "float32" } as const;
  const model = start === "pretrained" ? await fromPretrained(folder, options) : await fromNothing(classes.length);
  const task = textTask({ maxLength: 64 });
  const steps = Math.ceil(train.length / batch) * setting.epochs * (start === "pretrained" ? 1 : 3);
  const { training } = await finetune(model, {
    data: train,
    evaluation: validation.slice(0, batch), // which only shows that it goes down: nothing is chosen by it
    evaluateEvery: steps,
    keepBest: false,
    task,
    steps,
    lr,
    batch,
    warmup: 0.1,
    seed,
  });
  const { examples: columns } = await measure(model, task, judged === "test" ? test : validation, { batch });
  const all = metricsOf(columns);
  const seconds = Math.round((performance.now() - began) / 1000);
  const result = { score: all[setting.metric], metrics: all, steps: training.step, seconds };
  appendFileSync(out, `${JSON.stringify({ run, ...result })}\n`);
  console.log(
    `${start}, rate ${lr}, seed ${seed}: ${(100 * result.score).toFixed(1)} % ${setting.metric} (${judged}; ${training.step} steps, ${seconds} s)`,
  );
  return result.score;
}

/** The same network with the weights that BERT's authors begin with: normal, of standard deviation 0.02. */
async function fromNothing(numLabels: number) {
  return new BertForSequenceClassification(bertConfigOf(await readConfig(folder), { padding: false }), numLabels);
}

let best = { lr: 0, score: Number.NEGATIVE_INFINITY };
for (const lr of ratesFromNothing) {
  const got = await score({ start: "nothing", lr, seed: 0, judged: "validation" });
  if (got > best.score) best = { lr, score: got };
}
console.log(`from nothing the rate ${best.lr} is best on sentences apart\n`);
const gains: number[] = [];
const scores = { pretrained: [] as number[], nothing: [] as number[] };
for (let seed = 1; seed <= seeds; seed++) {
  const pretrained = await score({ start: "pretrained", lr: pretrainedRate, seed, judged: "test" });
  const nothing = await score({ start: "nothing", lr: best.lr, seed, judged: "test" });
  scores.pretrained.push(pretrained);
  scores.nothing.push(nothing);
  gains.push(pretrained - nothing);
}
const mean = (values: readonly number[]): number => values.reduce((a, b) => a + b, 0) / values.length;
const percent = (x: number): string => (100 * x).toFixed(1);
console.log(`
${name}, ${setting.metric} over ${seeds} seeds, in %
pretrained    ${scores.pretrained.map(percent).join("  ")}   mean ${percent(mean(scores.pretrained))}
from nothing  ${scores.nothing.map(percent).join("  ")}   mean ${percent(mean(scores.nothing))}
gain          ${gains.map(percent).join("  ")}   mean ${percent(mean(gains))}, least ${percent(Math.min(...gains))}`);
