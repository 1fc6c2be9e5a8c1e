/**
 * nabla start: the first thing to run, and the whole story. It trains a small GPT from nothing on text that the install brings (the
 * documentation of Node's own functions, from @types/node), shows it live, and sets its loss beside that of a trigram model of the same
 * tokens. Then the GPT learns a second kind of text by LoRA, the declarations of the same package, measured before and after.
 */
import type { Command } from "commander";
import { exitCodes } from "./exit.ts";
import type { GptSettings } from "./gpt-run.ts";
import type { Declare, Outcome } from "./main.ts";
import { deviceFlag, positive, seed } from "./options.ts";
import type { SecondLesson } from "./start-finetune.ts";

interface Flags {
  readonly minutes: number;
  readonly seed: number;
  readonly out?: string;
  readonly device?: string;
}

export const declare: Declare = (parent: Command, done) => {
  parent
    .command("start")
    .description(
      "train a small GPT on real text, from nothing, and fine-tune it to a second kind of text, in about three minutes",
    )
    .option("--minutes <x>", "time for the training itself", positive, 1.5)
    .option("--seed <n>", "of the weights and the order of the data", seed, 1337)
    .option("--out <dir>", "the run's folder; by default a new one in runs")
    .option(...deviceFlag)
    .action((flags: Flags) => done(start(flags)));
};

type Shape = Pick<
  GptSettings,
  "layers" | "width" | "heads" | "context" | "batch" | "tokenizer" | "vocab" | "lr" | "beta2"
>;

/** What is trained (on wasm the same as on cpu), and the fewest and most steps; between them the time decides. */
const plans: Readonly<
  Record<"cpu" | "reference", { shape: Shape; least: number; most: number; heldOut: number; second: SecondLesson }>
> = {
  cpu: {
    shape: {
      layers: 2,
      width: 128,
      heads: 4,
      context: 64,
      batch: 8,
      tokenizer: "characters",
      vocab: 0,
      lr: 5e-3,
      beta2: 0.99,
    },
    least: 1200,
    most: 4000,
    heldOut: 0.1,
    second: { characters: 150_000, kept: 15_000, steps: 300, sampleTokens: 120 },
  },
  reference: {
    shape: {
      layers: 2,
      width: 48,
      heads: 3,
      context: 32,
      batch: 8,
      tokenizer: "characters",
      vocab: 0,
      lr: 6e-3,
      beta2: 0.99,
    },
    least: 50,
    most: 2000,
    heldOut: 0.02,
    second: { characters: 4_000, kept: 500, steps: 8, sampleTokens: 10 },
  },
};

const prompt = "The ";

async function start(flags: Flags): Outcome {
  const { openDevice } = await import("./device.ts");
  const { readDocumentation } = await import("./documentation.ts");
  const text = readDocumentation();
  const backend = await openDevice(flags.device);
  const device = flags.device ?? (backend === "reference" ? "reference" : "cpu");
  const plan = backend === "reference" ? "reference" : "cpu";
  if (backend === "reference" && flags.device === undefined)
    console.log("Neither a C compiler nor WebAssembly works here, so a smaller model is trained, more slowly.\n");

  const { existsSync } = await import("node:fs");
  const { resolve } = await import("node:path");
  const { writeFileAtomic } = await import("../formats/atomic.ts");
  const { join } = await import("node:path");
  const { manualSeed } = await import("../tensor/index.ts");
  const { GPT2 } = await import("../models/index.ts");
  const { trigramLoss } = await import("../train/ngram.ts");
  const { formatLoss } = await import("../train/terminal.ts");
  const { describeRun, modelConfig, prepareData, report, sample, sessionOf, trainRun } = await import("./gpt-run.ts");
  const { startRun, writeJson, settingsName } = await import("./run-folder.ts");

  let folder = flags.out ?? "runs/start";
  for (let n = 2; flags.out === undefined && existsSync(folder); n++) folder = `runs/start-${n}`;
  const { shape, least, most, heldOut } = plans[plan];
  const settings: GptSettings = {
    format: 1,
    kind: "gpt",
    device,
    seed: flags.seed,
    data: [resolve(folder, "text.txt")],
    checkpointEvery: 200,
    ...shape,
    dropout: 0,
    accumulate: 1,
    steps: most,
    minLr: shape.lr / 20,
    warmup: 40,
    weightDecay: 0.1,
    clip: 1,
    validationShare: heldOut,
    validateEvery: 100,
  };
  const data = await startRun(folder, settings, async () => {
    await writeFileAtomic(join(folder, "text.txt"), text);
    return prepareData(folder, settings);
  });
  const vocabulary = data.tokenizer.vocabSize;
  console.log(describeRun(settings, data, device));
  const trigram = trigramLoss(data.train, data.validation, vocabulary);

  manualSeed(settings.seed);
  const untrained = new GPT2(modelConfig(settings, vocabulary));
  const writing = { maxNewTokens: plan === "cpu" ? 60 : 30, temperature: 0.8, topK: 40, seed: settings.seed };
  console.log(`\nWhat it writes before training:\n${quote(await sample(untrained, data.tokenizer, prompt, writing))}`);

  // The machine says how many steps the time allows; the schedule needs to know before the first.
  const seconds = await secondsOfAStep(settings, data);
  const steps = Math.round(Math.min(most, Math.max(least, (60 * flags.minutes) / seconds)) / 10) * 10;
  const final = {
    ...settings,
    steps,
    warmup: Math.min(settings.warmup, Math.floor(steps / 10)),
    validateEvery: Math.max(10, Math.round(steps / 200) * 10),
  };
  await writeJson(join(folder, settingsName), final);
  console.log(`\nTraining: ${steps} steps. Ctrl-C stops, keeps what is done and says how to go on.`);
  const session = sessionOf(folder, final, { resume: false });
  const outcome = await trainRun(session, final, data);
  const code = await report(session, final, data, outcome);
  if (code !== exitCodes.ok || outcome.validationLoss === null) return code;

  console.log(
    `\nWhat it writes now:\n${quote(await sample(outcome.model, data.tokenizer, prompt, { ...writing, maxNewTokens: 4 * writing.maxNewTokens }))}\n`,
  );
  const better = outcome.validationLoss < trigram;
  console.log(`validation loss of the GPT      ${formatLoss(outcome.validationLoss)}`);
  console.log(
    `of an interpolated trigram      ${formatLoss(trigram)}   ${better ? "the GPT has learnt more than three tokens' worth" : "the trigram is still ahead"}\n`,
  );
  const { learnDeclarations } = await import("./start-finetune.ts");
  const learnt = (await learnDeclarations(folder, final, data, text, plans[plan].second)) ?? exitCodes.ok;
  if (learnt !== exitCodes.ok) return learnt;
  console.log(
    `\nMore: npx nabla generate ${folder} --prompt "Returns " · npx nabla train gpt --data your-text.txt --out runs/mine · npx nabla finetune --help`,
  );
  if (better || plan === "reference") return exitCodes.ok;
  console.error("nabla: the GPT should beat the trigram model; give it more time (--minutes), or report this");
  return exitCodes.failed;
}

const quote = (text: string): string =>
  text
    .trim()
    .split("\n")
    .map((line) => `  │ ${line}`)
    .join("\n");

/** The median time of a training step, measured on a model of its own; the compiled program serves the training too. */
async function secondsOfAStep(settings: GptSettings, data: import("./gpt-run.ts").GptData): Promise<number> {
  const { GPT2 } = await import("../models/index.ts");
  const { fit } = await import("../train/fit.ts");
  const { gptOptimizer, lossOf, modelConfig, trainingBatches } = await import("./gpt-run.ts");
  const model = new GPT2(modelConfig(settings, data.tokenizer.vocabSize));
  const times: number[] = [];
  let clock = performance.now();
  await fit(model, {
    train: trainingBatches(data.train, settings),
    batchLoss: lossOf,
    optimizer: gptOptimizer(model, settings),
    steps: 12,
    clipGradNorm: settings.clip,
    callbacks: [
      {
        name: "clock",
        onStep() {
          times.push(performance.now() - clock);
          clock = performance.now();
        },
      },
    ],
  });
  const steady = times.slice(3).sort((a, b) => a - b);
  return steady[Math.floor(steady.length / 2)] / 1000;
}
