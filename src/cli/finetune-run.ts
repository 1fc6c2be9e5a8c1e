/**
 * nabla finetune, at work: opens the model and the data, trains in a run's folder with log and checkpoints, and shows what was gained. What
 * is measured and kept is the library's affair (`finetune/`); the folder's rules are run-folder.ts.
 */
import { existsSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { isAbsolute, join, relative } from "node:path";
import {
  compare,
  FinetuneError,
  type FinetuneResult,
  finetune,
  formatComparison,
  formatResult,
  languageTask,
  type Measurement,
  measure,
  metricsOf,
  type Task,
  type TextualExample,
  type TokenExample,
  textTask,
} from "../finetune/index.ts";
import type { Task as ModelTask } from "../models/index.ts";
import type { Module } from "../nn/index.ts";
import { progress } from "../train/callbacks.ts";
import { resumeRunFolder } from "../train/checkpoint-folder.ts";
import { type Callback, DivergedError } from "../train/fit.ts";
import { counted, formatCount, formatDuration } from "../train/terminal.ts";
import { openDevice } from "./device.ts";
import { exitCodes } from "./exit.ts";
import { holdOut, lengthOfRows, promptsOf, readLanguage, readTargets, type SamplePrompt } from "./finetune-data.ts";
import { elements, formatsOf, prepareModel } from "./finetune-method.ts";
import { type FinetuneSettings, usesLora } from "./finetune-settings.ts";
import { printable } from "./gpt-run.ts";
import { takeInterrupts } from "./interrupt.ts";
import type { Outcome } from "./main.ts";
import { findModel, type ModelPlace } from "./model-argument.ts";
import { expectFree, writeCompanions, writtenConfig } from "./model-folder.ts";
import { type ModelTokenizer, openTokenizer } from "./model-tokenizer.ts";
import { configOf, expectWriter, labelsName, openModel } from "./pretrained-model.ts";
import { checkData, fingerprint, precisionOf, resumeCommand, startRun, writeJson } from "./run-folder.ts";
import { lockRun, unlockRun } from "./run-lock.ts";
import { isFinished, resultName } from "./session.ts";

interface Subject {
  readonly model: Module;
  readonly task: Task<never, never, never>;
  readonly train: readonly unknown[];
  readonly evaluation: readonly unknown[];
  /** Other data, by its name. */
  readonly also: readonly { readonly name: string; readonly examples: readonly unknown[] }[];
  readonly prompts: readonly SamplePrompt[];
  /** Whether conversations were learnt. */
  readonly spoken: boolean;
  readonly tokenizer: ModelTokenizer;
  /** What is printed of it. */
  readonly lines: readonly string[];
}

type Say = (text: string) => void;

/** Starts a run, or goes on with one. */
export async function runFinetune(
  asked: FinetuneSettings,
  folder: string,
  { resume, json }: { readonly resume: boolean; readonly json: boolean },
): Outcome {
  // With --json standard output holds the outcome alone
  const say: Say = json ? (text) => console.error(text) : (text) => console.log(text);
  if (resume && isFinished(folder)) return exitCodes.ok;
  const settings = resume ? asked : { ...asked, device: await openDevice(deviceAsked(asked)) };
  if (resume) {
    lockRun(folder, say);
    await openDevice(settings.device);
  } else if (!existsSync(join(folder, "training.json"))) expectFree(folder);
  try {
    const prepare = (): Promise<Subject> => prepareSubject(folder, settings);
    const subject = resume ? await prepare() : await startRun(folder, settings, prepare);
    for (const line of subject.lines) say(line);
    if (resume) await sayWhere(folder, say);
    return await train(folder, settings, subject, { resume, json, say });
  } finally {
    unlockRun(folder);
  }
}

/** A device is only insisted on where somebody named it. */
const deviceAsked = ({ device }: FinetuneSettings): string | undefined => (device === "" ? undefined : device);

/** What the model is loaded for. */
const modelTask = ({ task }: FinetuneSettings): ModelTask => (task === "language" ? "generation" : "classification");

async function prepareSubject(folder: string, settings: FinetuneSettings): Promise<Subject> {
  const place = await findModel(settings.model);
  const tokenizer = await openTokenizer(place);
  const subject =
    settings.task === "language"
      ? await languageSubject(place, tokenizer, settings)
      : await textSubject(place, tokenizer, settings);
  // what the task refuses is told before there is a run
  const { task, model, train, evaluation } = subject;
  for (const examples of [train, evaluation])
    task.training(model as never, examples as never, { batch: settings.batch, seed: settings.seed });
  await checkData(
    folder,
    fingerprint(JSON.stringify([subject.train.length, subject.evaluation]), JSON.stringify(subject.train)),
  );
  // A method that changes the weights leaves a model's folder, whose weights come at the end
  if (!usesLora(settings.method)) {
    const labels = settings.task === "classify" ? subject.labels : null;
    const config = writtenConfig(await configOf(place), {
      task: modelTask(settings),
      dtype: dtypeOf(subject.model),
      labels,
      regression: settings.task === "regress",
    });
    await writeCompanions(folder, place, config);
  } else if (settings.task === "classify") await writeJson(join(folder, labelsName), subject.labels);
  return subject;
}

type Prepared = Subject & { readonly labels: readonly string[] };

async function languageSubject(
  place: ModelPlace,
  tokenizer: ModelTokenizer,
  settings: FinetuneSettings,
): Promise<Prepared> {
  const { seed, text, turns, packing, maxLength: asked } = settings;
  expectWriter(await configOf(place), place.name, "give --task classify or --task regress");
  const model = await openModel(place, {
    task: "generation",
    tokenizer: tokenizer.tokenizer,
    quantize: settings.quantize,
    ...dtypeFlag(settings),
  });
  const maxLength = lengthOfRows(model, asked);
  const reading = { text, turns, maxLength };
  const data = await readLanguage(settings.data, tokenizer, reading);
  const { running } = data;
  const own = settings.evaluation === null ? null : await readLanguage(settings.evaluation, tokenizer, reading);
  const { kept, held } =
    own === null
      ? holdOut(data.tokens, settings.evaluationShare, { running, seed })
      : { kept: data.tokens, held: own.tokens };
  const textsOf = (tokens: readonly TokenExample[]) => [
    ...new Set(tokens.map((each) => data.textOf.get(each) as TextualExample)),
  ];
  const samplesOf = own ?? { ...data, tokens: held, textual: textsOf(held) };
  const prompts =
    settings.prompts?.map((text) => ({ text, rendered: false })) ??
    (await promptsOf(samplesOf, tokenizer, settings.samples));
  const also = [];
  for (const name of settings.also)
    also.push({ name, examples: (await readLanguage([name], tokenizer, reading)).tokens });
  const amount = (list: readonly { readonly ids: ArrayLike<number> }[], texts: number | null): string => {
    const tokens = `${formatCount(list.reduce((n, { ids }) => n + ids.length, 0))} tokens`;
    if (texts === null || texts === list.length) return `${counted(list.length, "example")} (${tokens})`;
    return `${counted(texts, "text")} (${tokens}, in ${formatCount(list.length)} pieces)`;
  };
  return {
    model,
    task: languageTask({ maxLength, packing }) as never,
    train: kept,
    evaluation: held,
    also,
    prompts,
    spoken: data.spoken,
    tokenizer,
    labels: [],
    lines: [
      describe(place, model, settings),
      prepareModel(model, settings),
      own === null
        ? `to learn from: ${amount(kept, null)}; to measure on, held out of the same data: ${amount(held, null)}`
        : `to learn from: ${amount(kept, data.textual.length)}; to measure on: ${amount(held, own.textual.length)}`,
    ],
  };
}

async function textSubject(
  place: ModelPlace,
  tokenizer: ModelTokenizer,
  settings: FinetuneSettings,
): Promise<Prepared> {
  const { seed, text, label, maxLength: asked } = settings;
  const regress = settings.task === "regress";
  const data = await readTargets(settings.data, tokenizer, { text, label, regress });
  const { labels } = data;
  const own =
    settings.evaluation === null
      ? null
      : await readTargets(settings.evaluation, tokenizer, { text, label, regress, labels });
  const { kept, held } =
    own === null
      ? holdOut(data.examples, settings.evaluationShare, {
          running: false,
          seed,
          classOf: regress ? null : ({ target }) => target,
        })
      : { kept: data.examples, held: own.examples };
  const also = [];
  for (const name of settings.also) {
    const { examples } = await readTargets([name], tokenizer, { text, label, regress, labels });
    also.push({ name, examples });
  }
  const { manualSeed } = await import("../tensor/index.ts");
  manualSeed(seed); // a new head is drawn
  const model = await openModel(place, {
    task: "classification",
    tokenizer: tokenizer.tokenizer,
    quantize: settings.quantize,
    numLabels: regress ? 1 : labels.length,
    ...dtypeFlag(settings),
  });
  const maxLength = lengthOfRows(model, asked);
  const shown = labels.slice(0, 12).map((name) => JSON.stringify(name));
  const classes = regress
    ? "a number"
    : `${labels.length} classes: ${shown.join(", ")}${labels.length > 12 ? " …" : ""}`;
  return {
    model,
    task: textTask({
      maxLength,
      problemType: regress ? "regression" : "single_label_classification",
    }) as never,
    train: kept,
    evaluation: held,
    also,
    prompts: [],
    spoken: false,
    tokenizer,
    labels,
    lines: [
      describe(place, model, settings),
      prepareModel(model, settings),
      `to learn from: ${counted(kept.length, "text")}; to measure on${own === null ? ", held out of the same data" : ""}: ` +
        `${formatCount(held.length)}; ${classes}`,
    ],
  };
}

const dtypeFlag = ({ dtype }: FinetuneSettings) => (dtype === null ? {} : { dtype });
const dtypeOf = (model: Module): string => model.parameters().reduce((a, b) => (b.size > a.size ? b : a)).dtype;

/** A path as short as it can be said from here. */
function shownPath(path: string): string {
  if (!isAbsolute(path)) return path;
  const short = relative(process.cwd(), path);
  return short === "" || short.startsWith("..") ? path : short;
}

/** What the model is, before an adapter is put on it. */
const describe = (place: ModelPlace, model: Module, { device }: FinetuneSettings): string =>
  `${shownPath(place.name)}: ${model.constructor.name}, ${formatCount(elements(model))} parameters, ${formatsOf(model).join(", ") || dtypeOf(model)}, on ${device}`;

/** Says after which step a resumed run goes on. */
async function sayWhere(folder: string, say: Say): Promise<void> {
  const checkpoints = join(folder, "checkpoints");
  const there = await readdir(checkpoints).catch(() => []);
  const latest = there.length === 0 ? null : await resumeRunFolder(checkpoints);
  for (const reason of latest?.damaged ?? []) say(`a damaged checkpoint is passed over: ${reason}`);
  say(latest === null ? "no checkpoint yet: the run starts from its beginning" : `going on after step ${latest.step}`);
}

/** Thrown when Ctrl-C has ended a training and its checkpoint is written. */
class Stopped extends Error {
  readonly step: number;
  readonly planned: number;
  constructor(step: number, planned: number) {
    super("stopped");
    this.step = step;
    this.planned = planned;
  }
}

async function train(
  folder: string,
  settings: FinetuneSettings,
  subject: Subject,
  { resume, json, say }: { readonly resume: boolean; readonly json: boolean; readonly say: Say },
): Outcome {
  const { task, evaluation, also, prompts, tokenizer } = subject;
  const model = subject.model as never;
  const checkpoints = join(folder, "checkpoints");
  const began = performance.now();
  const live = progress({
    perStep: settings.batch * settings.accumulate,
    unit: settings.task === "language" ? "examples" : "texts",
    ...(json ? { screen: process.stderr } : {}),
  });
  const interrupt = takeInterrupts(() => {
    const text = "stopping after this step; once more Ctrl-C stops at once";
    if (live.line === null) say(text);
    else live.line.print(text);
  });
  const ends: Callback = {
    name: "stopped",
    onEnd(run) {
      const planned = run.totalSteps ?? Number.POSITIVE_INFINITY;
      if (interrupt.signal.aborted && run.step < planned) throw new Stopped(run.step, planned);
    },
  };
  try {
    say("\nmeasuring it as it is …");
    const others: Measurement[] = [];
    for (const { examples } of also)
      others.push(await measure(model, task, examples as never, { batch: settings.batch }));
    const result = await finetune(model, {
      task,
      data: subject.train as never,
      evaluation: evaluation as never,
      ...optional({
        epochs: settings.epochs,
        steps: settings.steps,
        evaluateEvery: settings.evaluateEvery,
        patience: settings.patience,
      }),
      lr: settings.lr,
      schedule: settings.schedule,
      warmup: settings.warmup,
      weightDecay: settings.weightDecay,
      batch: settings.batch,
      accumulate: settings.accumulate,
      ...(settings.recompute ? { recompute: true } : {}),
      ...precisionOf(settings),
      seed: settings.seed,
      out: folder,
      checkpointEvery: settings.checkpointEvery,
      // steps that were logged before a first checkpoint are taken out of the log
      resume: resume && existsSync(checkpoints),
      signal: interrupt.signal,
      callbacks: [live, ends],
      ...(prompts.length === 0 ? {} : { samples: sampling(prompts, tokenizer, settings) }),
    });
    const after: Comparison[] = [];
    for (const [i, { name, examples }] of also.entries()) {
      const now = await measure(model, task, examples as never, { batch: settings.batch });
      after.push({ name, before: others[i], after: now });
    }
    const took = (performance.now() - began) / 1000;
    await writeJson(join(folder, resultName), {
      step: result.training.step,
      epoch: result.training.epoch,
      seconds: took,
    });
    if (json) console.log(JSON.stringify(outcomeOf(folder, result, after, took)));
    else sayOutcome(folder, settings, { result, also: after, took, spoken: subject.spoken });
    return exitCodes.ok;
  } catch (error) {
    if (error instanceof Stopped) {
      say(`stopped at step ${error.step} of ${error.planned}; everything is saved in ${folder}`);
      say(`go on with: ${resumeCommand("finetune", folder)}`);
      return exitCodes.interrupted;
    }
    if (error instanceof DivergedError)
      Object.assign(error, { hint: `the run is in ${folder}; begin another with a smaller --lr than ${settings.lr}` });
    else if (error instanceof Error && !(error instanceof FinetuneError))
      Object.assign(error, {
        hint: `the run is in ${folder}; once the cause is gone, go on with: ${resumeCommand("finetune", folder)}`,
      });
    throw error;
  } finally {
    interrupt.release();
  }
}

interface Comparison {
  readonly name: string;
  readonly before: Measurement;
  readonly after: Measurement;
}

/** What of an object is there. */
const optional = <T extends Record<string, number | null>>(values: T): { [K in keyof T]?: number } =>
  Object.fromEntries(Object.entries(values).filter(([, value]) => value !== null)) as { [K in keyof T]?: number };

const sampling = (prompts: readonly SamplePrompt[], tokenizer: ModelTokenizer, settings: FinetuneSettings) => ({
  prompts: prompts.map(({ text }) => text),
  tokenizer: {
    encode: (text: string) =>
      tokenizer.tokenizer.encode(text, {
        addSpecialTokens: !prompts.some((prompt) => prompt.rendered && prompt.text === text),
      }),
    decode: (ids: ArrayLike<number>) => tokenizer.decode(ids),
  },
  maxNewTokens: settings.sampleTokens,
  temperature: 0.7,
  stopTokens: tokenizer.endIds,
});

const numbersOf = ({ examples, targets }: Measurement) => ({ ...metricsOf(examples), targets });

const outcomeOf = (folder: string, result: FinetuneResult, also: readonly Comparison[], took: number) => ({
  out: folder,
  steps: result.training.step,
  bestStep: result.bestStep,
  seconds: Math.round(took * 10) / 10,
  before: numbersOf(result.before),
  after: numbersOf(result.after),
  difference: result.difference.metrics,
  also: also.map(({ name, before, after }) => ({
    data: name,
    before: numbersOf(before),
    after: numbersOf(after),
    difference: compare(before, after).metrics,
  })),
  samples: result.samples,
});

function sayOutcome(
  folder: string,
  settings: FinetuneSettings,
  {
    result,
    also,
    took,
    spoken,
  }: {
    readonly result: FinetuneResult;
    readonly also: readonly Comparison[];
    readonly took: number;
    readonly spoken: boolean;
  },
): void {
  console.log(`\n${printable(formatResult(result))}`);
  for (const { name, before, after } of also)
    console.log(
      `\non ${shownPath(name)}, which was not learnt:\n${formatComparison(before, after, compare(before, after))}`,
    );
  const { step } = result.training;
  const best =
    result.bestStep === step ? "" : `; the weights are those of step ${result.bestStep}, whose evaluation was best`;
  console.log(`\n${step} steps, all in ${formatDuration(took)}${best}`);
  const lora = usesLora(settings.method);
  console.log(`the ${lora ? "adapter" : "model"} is in ${folder}`);
  const use = lora ? `${shownPath(settings.model)} --adapter ${folder}` : folder;
  const speak = spoken ? "--chat" : '--prompt "…"';
  if (settings.task === "language") console.log(`use it: npx nabla generate ${use} ${speak}`);
  else console.log(`measure it elsewhere: npx nabla eval ${use} --data FILE`);
}
