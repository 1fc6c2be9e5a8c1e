/**
 * nabla train gpt, nabla train classifier: flags and their defaults. The work is in train-gpt.ts and train-classifier.ts, which are
 * loaded when it starts.
 */
import type { Command, OptionValues } from "commander";
import { UsageError } from "./exit.ts";
import type { Declare } from "./main.ts";
import { between, count, deviceFlag, nonNegative, oneOf, positive, precisionFlag, seed } from "./options.ts";

/** The flags of `train gpt`, as commander gives them. `nabla plan train gpt` takes those that shape the model. */
export interface GptFlags {
  readonly data?: string[];
  readonly out?: string;
  readonly resume?: string;
  readonly layers: number;
  readonly width: number;
  readonly heads: number;
  readonly context: number;
  readonly dropout: number;
  readonly tokenizer: "characters" | "bpe";
  readonly vocab: number;
  readonly batch: number;
  readonly accumulate: number;
  readonly steps: number;
  readonly lr: number;
  readonly minLr?: number;
  readonly warmup?: number;
  readonly weightDecay: number;
  readonly beta2: number;
  readonly clip: number;
  readonly validationShare: number;
  readonly validateEvery: number;
  readonly checkpointEvery: number;
  readonly seed: number;
  readonly precision: "f32" | "bf16";
  readonly device?: string;
  readonly detectAnomaly?: boolean;
}

export interface ClassifierFlags {
  readonly data?: string;
  readonly out?: string;
  readonly resume?: string;
  readonly model: "convnet" | "mlp";
  readonly hidden: number[];
  readonly classes?: number;
  readonly batch: number;
  readonly epochs: number;
  readonly lr: number;
  readonly weightDecay: number;
  readonly patience?: number;
  readonly validationShare: number;
  readonly checkpointEvery: number;
  readonly seed: number;
  readonly precision: "f32" | "bf16";
  readonly device?: string;
  readonly detectAnomaly?: boolean;
}

/** Flags that shape a GPT and its step. */
export const gptModelOptions = (command: Command): Command =>
  command
    .option("--layers <n>", "transformer blocks", count(1), 6)
    .option("--width <n>", "size of the embeddings, a multiple of --heads", count(1), 384)
    .option("--heads <n>", "attention heads", count(1), 6)
    .option("--context <n>", "tokens that the model sees at once", count(1), 256)
    .option("--dropout <p>", "share of activations dropped in training", between(0, 0.99), 0)
    .option("--batch <n>", "windows of text in a batch", count(1), 8);

/** Flags that every training has. */
const commonOptions = (command: Command): Command =>
  command
    .option("--out <dir>", "the run's folder, made if need be")
    .option("--resume <dir>", "go on with the run in this folder, exactly where it stopped")
    .option("--checkpoint-every <n>", "steps between checkpoints", count(1), 250)
    .option("--seed <n>", "of the weights, the order of the data and dropout", seed, 1337)
    .option(...precisionFlag)
    .option(...deviceFlag)
    .option("--detect-anomaly", "say which operation gives the first NaN or infinity (slow)");

/** With --resume the run's own settings hold; these flags may still be given. */
const allowedOnResume = new Set(["resume", "checkpointEvery", "detectAnomaly"]);

function checkResume(command: Command): void {
  const values: OptionValues = command.opts();
  if (values["resume"] === undefined) return;
  const given = command.options
    .map((option) => ({ flag: option.long, name: option.attributeName() }))
    .filter(({ name }) => command.getOptionValueSource(name) === "cli" && !allowedOnResume.has(name));
  if (given.length > 0)
    throw new UsageError(
      `${given.map(({ flag }) => flag).join(", ")} can't be combined with --resume: the run goes on with the settings it began with`,
    );
}

/** Values that were given on the command line, not by default. */
const given = (command: Command, name: string): boolean => command.getOptionValueSource(name) === "cli";

const listOfCounts = (text: string): number[] => text.split(",").map(count(1));

export const declare: Declare = (parent, done) => {
  const train = parent.command("train").description("train a model from nothing");
  const gpt = gptModelOptions(
    train
      .command("gpt")
      .description("a language model of GPT-2's architecture, on text files")
      .option("--data <path...>", "text files, and folders of them"),
  )
    .option("--tokenizer <kind>", "characters or bpe (byte-level)", oneOf("characters", "bpe"), "characters")
    .option("--vocab <n>", "tokens of a bpe", count(257), 1024)
    .option("--accumulate <n>", "batches to a step", count(1), 1)
    .option("--steps <n>", "steps of the optimiser", count(1), 2000)
    .option("--lr <x>", "highest learning rate", positive, 1e-3)
    .option("--min-lr <x>", "learning rate at the end of the cosine; a tenth of --lr by default", nonNegative)
    .option("--warmup <n>", "steps of linear warm-up; a twentieth of the steps, at most 100, by default", count(0))
    .option("--weight-decay <x>", "AdamW's weight decay of matrices", nonNegative, 0.1)
    .option("--beta2 <x>", "AdamW's second beta", between(0, 0.99999), 0.99)
    .option("--clip <x>", "largest norm of the gradient; 0 for none", nonNegative, 1)
    .option("--validation-share <x>", "share of the text, at its end, held out", between(0, 0.9), 0.1)
    .option("--validate-every <n>", "steps between validations", count(1), 250);
  commonOptions(gpt).action((flags: GptFlags) =>
    done(
      (async () => {
        checkResume(gpt);
        if (flags.resume === undefined) {
          if (flags.data === undefined) throw new UsageError("--data is missing: name text files, or folders of them");
          if (flags.out === undefined)
            throw new UsageError("--out is missing: name a folder for the run, e.g. --out runs/x");
          if (flags.width % flags.heads !== 0)
            throw new UsageError(`--width ${flags.width} is not a multiple of --heads ${flags.heads}`);
        }
        const { trainGpt } = await import("./train-gpt.ts");
        return trainGpt(flags, given(gpt, "checkpointEvery"));
      })(),
    ),
  );

  const classifier = train
    .command("classifier")
    .description("an image classifier, on IDX files (MNIST's format)")
    .option("--data <dir>", "folder with the IDX files, plain or gzip")
    .option("--model <kind>", "convnet or mlp", oneOf("convnet", "mlp"), "convnet")
    .option("--hidden <n,n…>", "sizes of the mlp's hidden layers", listOfCounts, [128])
    .option("--classes <n>", "number of classes; by default one more than the largest label", count(2))
    .option("--batch <n>", "images in a batch", count(1), 64)
    .option("--epochs <n>", "passes over the training images", count(1), 3)
    .option("--lr <x>", "highest learning rate (one cycle)", positive, 1e-3)
    .option("--weight-decay <x>", "AdamW's weight decay", nonNegative, 0.01)
    .option("--patience <n>", "stop after so many epochs without a better validation loss", count(1))
    .option(
      "--validation-share <x>",
      "share of the images held out where there is no test split",
      between(0.01, 0.9),
      0.1,
    );
  commonOptions(classifier).action((flags: ClassifierFlags) =>
    done(
      (async () => {
        checkResume(classifier);
        if (flags.resume === undefined) {
          if (flags.data === undefined) throw new UsageError("--data is missing: name a folder with IDX files");
          if (flags.out === undefined)
            throw new UsageError("--out is missing: name a folder for the run, e.g. --out runs/y");
        }
        const { trainClassifier } = await import("./train-classifier.ts");
        return trainClassifier(flags, given(classifier, "checkpointEvery"));
      })(),
    ),
  );
};
