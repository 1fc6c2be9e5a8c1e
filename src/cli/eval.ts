/**
 * nabla eval: how good a model is on data. A pretrained model, with an adapter or without (eval-pretrained.ts); a run of `train` (below);
 * or several runs side by side (eval-compare.ts).
 */
import type { Command } from "commander";
import { exitCodes, UsageError } from "./exit.ts";
import type { Declare, Outcome } from "./main.ts";
import { modelHelp } from "./model-argument.ts";
import { count, deviceFlag, oneOf } from "./options.ts";

export interface EvalFlags {
  readonly compare?: string[];
  readonly adapter?: string;
  readonly data?: string[];
  readonly metrics?: string[];
  readonly text: string;
  readonly label: string;
  readonly turns: "all" | "last";
  readonly maxLength?: number;
  readonly dtype?: "f32" | "bf16" | "f16";
  readonly out?: string;
  readonly batch?: number;
  readonly json?: boolean;
  readonly device?: string;
}

const names = (text: string, before: string[] | undefined): string[] => [...(before ?? []), ...text.split(",")];

export const declare: Declare = (parent: Command, done) => {
  parent
    .command("eval")
    .description("how good a model is on data: loss, perplexity, accuracy, exact match, F1; or runs side by side")
    .argument("[model]", `${modelHelp}, or a run's folder`)
    .option("--compare <run...>", "what runs of finetune, or eval --out, have measured, side by side")
    .option("--adapter <dir>", "a LoRA adapter on the model")
    .option(
      "--data <path...>",
      "files as for finetune; of a run: text files and folders, or for a classifier a folder with IDX files",
    )
    .option(
      "--metrics <names>",
      "which, e.g. loss,perplexity,accuracy,exact-match; by default all that there are",
      names,
    )
    .option("--text <name>", "the column or field of the text", "text")
    .option("--label <name>", "the column or field of the class, or of the number", "label")
    .option("--turns <which>", "the assistant's turns that count: all or last", oneOf("all", "last"), "all")
    .option("--max-length <n>", "most tokens of an example; the model's context, at most 512, by default", count(2))
    .option("--dtype <name>", "of the weights: f32, bf16 or f16; as stored by default", oneOf("f32", "bf16", "f16"))
    .option("--out <dir>", "a new folder for what was measured, for --compare")
    .option("--batch <n>", "examples, images or windows at a time", count(1))
    .option("--json", "print one line of JSON")
    .option(...deviceFlag)
    .action((model: string | undefined, flags: EvalFlags) => done(evaluate(model, flags)));
};

async function evaluate(model: string | undefined, flags: EvalFlags): Outcome {
  if (flags.compare !== undefined) {
    if (model !== undefined || flags.data !== undefined)
      throw new UsageError("--compare reads what runs have measured; it takes no MODEL and no --data");
    const { compareRuns } = await import("./eval-compare.ts");
    return compareRuns(flags.compare, { json: flags.json ?? false });
  }
  if (model === undefined) throw new UsageError("MODEL is missing: name a model, or runs by --compare");
  const { isOwnRun } = await import("./run-folder.ts");
  if (flags.adapter === undefined && isOwnRun(model) && flags.metrics === undefined) {
    const { evaluateRun } = await import("./eval-run.ts");
    return evaluateRun(model, flags);
  }
  if (flags.data === undefined) throw new UsageError("--data is missing: name .jsonl, .csv or .txt files");
  const { evaluatePretrained } = await import("./eval-pretrained.ts");
  return evaluatePretrained(model, { ...flags, data: flags.data });
}

export { exitCodes };
