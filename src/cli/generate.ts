/** nabla generate: text from a language model, a pretrained one or one that was trained here, written as it comes; with --chat a conversation. */
import type { Command } from "commander";
import { exitCodes, UsageError } from "./exit.ts";
import type { Declare, Outcome } from "./main.ts";
import { modelHelp } from "./model-argument.ts";
import { between, count, deviceFlag, nonNegative, oneOf, positive, seed } from "./options.ts";

interface Flags {
  readonly adapter?: string;
  readonly prompt?: string;
  readonly chat?: boolean;
  readonly system?: string;
  readonly tokens: number;
  readonly temperature: number;
  readonly topK?: number;
  readonly topP?: number;
  readonly minP?: number;
  readonly repetitionPenalty?: number;
  readonly stop?: string[];
  readonly dtype?: "f32" | "bf16" | "f16";
  readonly seed: number;
  readonly device?: string;
  readonly json?: boolean;
}

const each = (text: string, before: string[] | undefined): string[] => [...(before ?? []), text];

export const declare: Declare = (parent: Command, done) => {
  parent
    .command("generate")
    .description("text from a language model; the same seed gives the same text")
    .argument("<model>", `${modelHelp}, or a run's folder`)
    .option("--adapter <dir>", "a LoRA adapter on it: what finetune --out, or PEFT, has written")
    .option("--prompt <text>", "how the text begins; of a run that was trained here, a new line by default")
    .option("--chat", "a conversation: each line that you write is answered, by the model's chat template")
    .option("--system <text>", "what the conversation begins with")
    .option("--tokens <n>", "most tokens to write", count(1), 200)
    .option("--temperature <x>", "below 1 the likely become likelier; 0 takes the likeliest", nonNegative, 0.8)
    .option("--top-k <n>", "draw only from the k likeliest", count(1))
    .option("--top-p <p>", "draw only from the likeliest that together have this probability", between(1e-9, 1))
    .option("--min-p <p>", "draw only from what is at least this often as probable as the likeliest", between(0, 1))
    .option("--repetition-penalty <x>", "above 1: what was said becomes less likely", positive)
    .option("--stop <text>", "end before this text; may be repeated", each)
    .option("--dtype <name>", "of the weights: f32, bf16 or f16; as stored by default", oneOf("f32", "bf16", "f16"))
    .option("--seed <n>", "of the random choices", seed, 1337)
    .option(...deviceFlag)
    .option("--json", "print one line of JSON: the prompt, the text, the number of tokens, what ended it")
    .action((model: string, flags: Flags) => done(generateText(model, flags)));
};

async function generateText(name: string, flags: Flags): Outcome {
  if (flags.chat && flags.prompt !== undefined) throw new UsageError("give either --prompt or --chat");
  if (flags.chat && flags.json) throw new UsageError("--json is for --prompt, not for --chat");
  if (flags.system !== undefined && !flags.chat) throw new UsageError("--system is for --chat");
  const { isOwnRun } = await import("./run-folder.ts");
  const own = flags.adapter === undefined && isOwnRun(name);
  if (!flags.chat && flags.prompt === undefined && !own)
    throw new UsageError("--prompt is missing: give the text something to begin with, or --chat for a conversation");
  if (own) {
    const { readSettings } = await import("./run-folder.ts");
    readSettings(name, "gpt");
  }
  const { openTokenizer } = await import("./model-tokenizer.ts");
  const { findText } = await import("./pretrained-model.ts");
  const { place, adapter } = own
    ? { place: { kind: "folder", path: name, name } as const, adapter: undefined }
    : await findText(name, flags.adapter);
  const tokenizer = await openTokenizer(place);
  const template = flags.chat ? await tokenizer.template() : null;
  const prompt = flags.prompt ?? "\n";
  const ids = tokenizer.tokenizer.encode(prompt);
  if (!flags.chat && ids.length === 0) throw new UsageError("--prompt is empty: give the text something to begin with");
  const { openDevice } = await import("./device.ts");
  await openDevice(flags.device);
  const model = own
    ? await (await import("./load.ts")).loadGpt(name)
    : await openGenerator(place, adapter, tokenizer.tokenizer, flags);
  if (!flags.chat && ids.length > model.contextLength)
    console.error(
      `nabla: the prompt has ${ids.length} tokens, of which the model sees the last ${model.contextLength} only`,
    );
  const { generate } = await import("../generate/index.ts");
  const { printable } = await import("./gpt-run.ts");
  const { temperature, topK, topP, minP, repetitionPenalty, stop } = flags;
  const options = {
    maxNewTokens: flags.tokens,
    temperature,
    ...(topK === undefined ? {} : { topK }),
    ...(topP === undefined ? {} : { topP }),
    ...(minP === undefined ? {} : { minP }),
    ...(repetitionPenalty === undefined ? {} : { repetitionPenalty }),
    ...(stop === undefined ? {} : { stopStrings: stop }),
    seed: flags.seed,
    tokenizer: tokenizer.tokenizer,
    stopTokens: tokenizer.endIds,
  };
  if (template !== null) {
    const { chat } = await import("./chat.ts");
    return chat({ model, system: flags.system, options: { ...options, chatTemplate: template } });
  }
  const stream = generate(model, prompt, options);
  let text = "";
  if (!flags.json) process.stdout.write(printable(prompt));
  for await (const piece of stream) {
    if (!flags.json) process.stdout.write(printable(piece));
    text += piece;
  }
  if (flags.json) console.log(JSON.stringify({ prompt, text, tokens: stream.ids.length, ended: stream.finishReason }));
  else process.stdout.write("\n");
  return exitCodes.ok;
}

/** A pretrained language model; another kind of model is said to be none. */
async function openGenerator(
  place: import("./model-argument.ts").ModelPlace,
  adapter: import("./pretrained-model.ts").AdapterPlace | undefined,
  tokenizer: import("../data/index.ts").Tokenizer,
  { dtype }: Flags,
) {
  const { configOf, expectWriter, openModel } = await import("./pretrained-model.ts");
  if (adapter?.taskType === "SEQ_CLS") {
    const { ModelError } = await import("./model-argument.ts");
    throw new ModelError(
      `${adapter.folder} is the adapter of a classifier, which writes no texts; nabla eval measures it`,
    );
  }
  expectWriter(
    await configOf(place),
    place.name,
    "nabla embed makes vectors of texts, nabla eval measures a classifier",
  );
  return openModel(place, {
    task: "generation",
    tokenizer,
    ...(adapter === undefined ? {} : { adapter }),
    ...(dtype === undefined ? {} : { dtype }),
    quantize: dtype === undefined ? "stored" : null,
  });
}
