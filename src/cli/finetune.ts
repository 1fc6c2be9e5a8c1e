/**
 * nabla finetune: a pretrained model is adapted to a user's data, and measured before and after. The flags and their defaults are here,
 * the work is in finetune-run.ts.
 */
import type { Command, OptionValues } from "commander";
import { UsageError } from "./exit.ts";
import type { Declare, Outcome } from "./main.ts";
import { modelHelp } from "./model-argument.ts";
import { between, count, deviceFlag, names, nonNegative, oneOf, positive, precisionFlag, seed } from "./options.ts";

export type Method = "full" | "freeze" | "lora" | "qlora";
export type FinetuneTask = "language" | "classify" | "regress";

export interface FinetuneFlags {
  readonly data?: string[];
  readonly eval?: string[];
  readonly evalShare: number;
  readonly also?: string[];
  readonly out?: string;
  readonly resume?: string;
  readonly task: FinetuneTask;
  readonly text: string;
  readonly label: string;
  readonly turns: "all" | "last";
  readonly method?: Method;
  readonly rank: number;
  readonly alpha?: number;
  readonly dropout: number;
  readonly target?: readonly string[];
  readonly rslora?: boolean;
  readonly quantize?: "nf4" | "int8" | "stored";
  readonly train?: string[];
  readonly freeze?: string[];
  readonly dtype?: "f32" | "bf16" | "f16";
  readonly epochs?: number;
  readonly steps?: number;
  readonly lr?: number;
  readonly schedule: "linear" | "cosine" | "constant";
  readonly warmup: number;
  readonly weightDecay: number;
  readonly batch: number;
  readonly accumulate: number;
  readonly maxLength?: number;
  readonly packing?: boolean;
  readonly recompute?: boolean;
  readonly precision?: "f32" | "bf16";
  readonly evaluateEvery?: number;
  readonly patience?: number;
  readonly checkpointEvery: number;
  readonly sample?: string[];
  readonly samples: number;
  readonly sampleTokens: number;
  readonly seed: number;
  readonly device?: string;
  readonly json?: boolean;
}

/** With --resume the run's own settings hold; these flags may still be given. */
const allowedOnResume = new Set(["resume", "json"]);

/** Flags that only some methods obey. */
const methodFlags: Readonly<Record<string, readonly Method[]>> = {
  rank: ["lora", "qlora"],
  alpha: ["lora", "qlora"],
  dropout: ["lora", "qlora"],
  target: ["lora", "qlora"],
  rslora: ["lora", "qlora"],
  quantize: ["qlora"],
  train: ["freeze"],
  freeze: ["freeze"],
};

/** Flags that only some tasks obey. */
const taskFlags: Readonly<Record<string, readonly FinetuneTask[]>> = {
  label: ["classify", "regress"],
  turns: ["language"],
  packing: ["language"],
  sample: ["language"],
  samples: ["language"],
  sampleTokens: ["language"],
};

const each = (text: string, before: string[] | undefined): string[] => [...(before ?? []), text];

export const declare: Declare = (parent, done) => {
  const command: Command = parent
    .command("finetune")
    .description("adapt a pretrained model to your data (LoRA by default), measured before and after")
    .argument("[model]", modelHelp)
    .option(
      "--data <path...>",
      ".jsonl, .json or .parquet (text; prompt and completion; messages), .csv or .tsv, .txt, .md",
    )
    .option("--eval <path...>", "what to measure on; without it a share of the data is held out")
    .option("--eval-share <x>", "that share", between(0.001, 0.9), 0.1)
    .option("--also <path...>", "other data to measure on before and after: what was learnt at its cost")
    .option("--out <dir>", "the run's folder; by default a new one in runs")
    .option("--resume <dir>", "go on with the run in this folder, exactly where it stopped")
    .option(
      "--task <kind>",
      "language (the next token), classify or regress",
      oneOf("language", "classify", "regress"),
      "language",
    )
    .option("--text <name>", "the column or field of the text", "text")
    .option("--label <name>", "the column or field of the class, or of the number", "label")
    .option("--turns <which>", "the assistant's turns that are learnt: all or last", oneOf("all", "last"), "all")
    .option("--method <name>", "lora, qlora, full or freeze; lora by default", oneOf("full", "freeze", "lora", "qlora"))
    .option("--rank <n>", "rank of the LoRA updates", count(1), 16)
    .option("--alpha <x>", "they count alpha / rank times; twice the rank by default", positive)
    .option("--dropout <p>", "share of their inputs dropped in training", between(0, 0.99), 0)
    .option("--target <names>", "all-linear, or names of layers, e.g. q_proj,v_proj; may be repeated", names)
    .option("--rslora", "scale by alpha / √rank instead")
    .option(
      "--quantize <kind>",
      "the base of qlora: nf4, int8, or stored, as a GGUF file has it (its default, where that is in few bits; else nf4)",
      oneOf("nf4", "int8", "stored"),
    )
    .option("--train <names>", "freeze: what alone is trained, by beginnings of parameters' names", names)
    .option("--freeze <names>", "freeze: or, the other way round, what stays as it is", names)
    .option(
      "--dtype <name>",
      "of the weights: f32, bf16 or f16; as stored by default (full and freeze: f32)",
      oneOf("f32", "bf16", "f16"),
    )
    .option("--epochs <n>", "passes over the data; 3, or as many as --steps takes", count(1))
    .option("--steps <n>", "steps of the optimiser in all", count(1))
    .option("--lr <x>", "highest learning rate; 2e-4 for an adapter, 2e-5 otherwise", positive)
    .option(
      "--schedule <kind>",
      "how it falls to 0: linear, cosine or constant",
      oneOf("linear", "cosine", "constant"),
      "linear",
    )
    .option("--warmup <x>", "share of the steps in which it rises", between(0, 0.99), 0.03)
    .option("--weight-decay <x>", "AdamW's weight decay of matrices", nonNegative, 0)
    .option("--batch <n>", "examples in a batch", count(1), 8)
    .option("--accumulate <n>", "batches to a step", count(1), 1)
    .option("--max-length <n>", "most tokens of an example; the model's context, at most 512, by default", count(2))
    .option("--packing", "several examples in a row, with boundaries")
    .option("--recompute", "compute blocks again for the gradient: a third more work, less memory")
    .option(...precisionFlag)
    .option("--evaluate-every <n>", "steps between evaluations; an epoch by default", count(1))
    .option("--patience <n>", "stop after so many evaluations without improvement", count(1))
    .option("--checkpoint-every <n>", "steps between checkpoints", count(1), 250)
    .option("--sample <prompt>", "a text to continue before and after; may be repeated", each)
    .option("--samples <n>", "without --sample: so many from the evaluation", count(0), 2)
    .option("--sample-tokens <n>", "most tokens of a sample", count(1), 48)
    .option("--seed <n>", "of the adapter, the order of the data, dropout and samples", seed, 1337)
    .option(...deviceFlag)
    .option("--json", "print the outcome as one line of JSON");
  command.action((model: string | undefined, flags: FinetuneFlags) => done(run(command, model, flags)));
};

async function run(command: Command, model: string | undefined, flags: FinetuneFlags): Outcome {
  const settings = await import("./finetune-settings.ts");
  const { runFinetune } = await import("./finetune-run.ts");
  if (flags.resume !== undefined) {
    checkResume(command, model);
    return runFinetune(settings.readFinetuneSettings(flags.resume), flags.resume, {
      resume: true,
      json: flags.json ?? false,
    });
  }
  if (model === undefined) throw new UsageError("MODEL is missing: name a model's folder or a GGUF file");
  if (flags.data === undefined) throw new UsageError("--data is missing: name .jsonl, .csv or .txt files");
  const method = flags.method ?? (flags.quantize === undefined ? "lora" : "qlora");
  checkMethod(command, method);
  checkTask(command, flags);
  const folder = flags.out ?? settings.freeFolder(model);
  const base = method === "qlora" ? { quantize: await quantizeOf(model, flags.quantize) } : {};
  return runFinetune(settings.settingsOf(model, { ...flags, data: flags.data, method, ...base }), folder, {
    resume: false,
    json: flags.json ?? false,
  });
}

/** What the base of QLoRA is held in, which the model may decide. */
async function quantizeOf(model: string, asked: FinetuneFlags["quantize"]) {
  const { findModel } = await import("./model-argument.ts");
  const { baseQuantization } = await import("./pretrained-model.ts");
  return baseQuantization(await findModel(model), asked);
}

/** Flags that were given on the command line, not by default. */
const given = (command: Command): { readonly flag: string; readonly name: string }[] =>
  command.options
    .map((option) => ({ flag: option.long as string, name: option.attributeName() }))
    .filter(({ name }) => command.getOptionValueSource(name) === "cli");

function checkResume(command: Command, model: string | undefined): void {
  const values: OptionValues = command.opts();
  const extra = given(command)
    .filter(({ name }) => !allowedOnResume.has(name))
    .map(({ flag }) => flag);
  if (model !== undefined) extra.unshift("MODEL");
  if (extra.length > 0)
    throw new UsageError(
      `${extra.join(", ")} can't be combined with --resume ${values["resume"]}: the run goes on with the settings it began with`,
    );
}

function checkMethod(command: Command, method: Method): void {
  for (const { flag, name } of given(command))
    if (methodFlags[name] !== undefined && !methodFlags[name].includes(method))
      throw new UsageError(`${flag} is for --method ${methodFlags[name].join(" or ")}, not for ${method}`);
  const values: OptionValues = command.opts();
  if (values["train"] !== undefined && values["freeze"] !== undefined)
    throw new UsageError("give either --train (what alone is trained) or --freeze (what stays as it is)");
}

function checkTask(command: Command, { task, eval: evaluation }: FinetuneFlags): void {
  const flags = given(command);
  for (const { flag, name } of flags)
    if (taskFlags[name] !== undefined && !taskFlags[name].includes(task))
      throw new UsageError(`${flag} is for --task ${taskFlags[name].join(" or ")}, not for ${task}`);
  if (evaluation !== undefined && flags.some(({ name }) => name === "evalShare"))
    throw new UsageError("give either --eval (what to measure on) or --eval-share (how much of the data is held out)");
}
