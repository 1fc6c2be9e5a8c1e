/** nabla generate: text from a GPT that was trained here, written as it comes. */
import type { Command } from "commander";
import { exitCodes, UsageError } from "./exit.ts";
import type { Declare, Outcome } from "./main.ts";
import { between, count, deviceFlag, nonNegative, seed } from "./options.ts";

interface Flags {
  readonly prompt: string;
  readonly tokens: number;
  readonly temperature: number;
  readonly topK?: number;
  readonly topP?: number;
  readonly seed: number;
  readonly device?: string;
}

export const declare: Declare = (parent: Command, done) => {
  parent
    .command("generate")
    .description("text from a trained GPT; the same seed gives the same text")
    .argument("<run>", "the run's folder")
    .option("--prompt <text>", "how the text begins", "\n")
    .option("--tokens <n>", "tokens to write", count(1), 200)
    .option("--temperature <x>", "below 1 the likely become likelier; 0 takes the likeliest", nonNegative, 0.8)
    .option("--top-k <n>", "draw only from the k likeliest", count(1))
    .option("--top-p <p>", "draw only from the likeliest that together have this probability", between(1e-9, 1))
    .option("--seed <n>", "of the random choices", seed, 1337)
    .option(...deviceFlag)
    .action((run: string, flags: Flags) => done(generateText(run, flags)));
};

async function generateText(folder: string, flags: Flags): Outcome {
  const { readSettings } = await import("./run-folder.ts");
  readSettings(folder, "gpt");
  const { loadTokenizer } = await import("../data/tokenizer.ts");
  const { generate } = await import("../generate/generate.ts");
  const { printable } = await import("./gpt-run.ts");
  const { openDevice } = await import("./device.ts");
  const { loadGpt } = await import("./load.ts");
  const tokenizer = await loadTokenizer(folder);
  const prompt = tokenizer.encode(flags.prompt);
  if (prompt.length === 0) throw new UsageError("--prompt is empty: give the text something to begin with");
  await openDevice(flags.device);
  const model = await loadGpt(folder);
  const { temperature, topK, topP } = flags;

  // A token may hold a part of a character: what is not whole yet waits for the next one.
  const ids: number[] = [...prompt];
  let shown = "";
  const show = (final: boolean): void => {
    const text = tokenizer.decode(ids);
    const end = final ? text.length : text.replace(/\ufffd+$/, "").length;
    if (end <= shown.length) return;
    process.stdout.write(printable(text.slice(shown.length, end)));
    shown = text.slice(0, end);
  };
  show(false);
  await generate(model, prompt, {
    maxNewTokens: flags.tokens,
    temperature,
    ...(topK === undefined ? {} : { topK }),
    ...(topP === undefined ? {} : { topP }),
    seed: flags.seed,
    onToken(token) {
      ids.push(token);
      show(false);
    },
  });
  show(true);
  process.stdout.write("\n");
  return exitCodes.ok;
}
