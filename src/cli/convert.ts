/** nabla convert: a model in another format or with other numbers: safetensors in Hugging Face's layout, or GGUF with the tokenizer inside. */
import type { Command } from "commander";
import { exitCodes, UsageError } from "./exit.ts";
import type { Declare, Outcome } from "./main.ts";
import { modelArgument } from "./model-argument.ts";
import { oneOf } from "./options.ts";

type Container = "safetensors" | "gguf";
export type StoredAs = "f32" | "bf16" | "f16" | "q8_0" | "q4_0";

interface Flags {
  readonly to?: Container;
  readonly dtype?: StoredAs;
  readonly out?: string;
}

export const declare: Declare = (parent: Command, done) => {
  parent
    .command("convert")
    .description("a model as safetensors or GGUF, in f32, bf16, f16, and in GGUF q8_0 or q4_0")
    .argument(...modelArgument)
    .option("--to <format>", "safetensors (a folder) or gguf (a file)", oneOf("safetensors", "gguf"))
    .option(
      "--dtype <name>",
      "f32, bf16, f16, q8_0 or q4_0; as stored by default",
      oneOf("f32", "bf16", "f16", "q8_0", "q4_0"),
    )
    .option("--out <path>", "a new folder, or a .gguf file")
    .action((model: string, flags: Flags) => done(convert(model, flags)));
};

async function convert(name: string, { to, dtype, out }: Flags): Outcome {
  if (to === undefined) throw new UsageError("--to is missing: safetensors or gguf");
  if (out === undefined) throw new UsageError("--out is missing: name a new folder, or a .gguf file");
  if (to === "safetensors" && (dtype === "q8_0" || dtype === "q4_0"))
    throw new UsageError(`--dtype ${dtype} is for --to gguf; safetensors hold f32, bf16 or f16`);
  if (to === "safetensors" && /\.(safetensors|gguf)$/i.test(out))
    throw new UsageError(
      `--out ${out}: safetensors are written as a folder, with config.json and the tokenizer beside the weights; name a folder`,
    );
  if (to === "gguf" && !/\.gguf$/i.test(out)) throw new UsageError(`--out ${out}: a GGUF file's name ends in .gguf`);
  const { findModel } = await import("./model-argument.ts");
  const { toGguf, toSafetensors } = await import("./convert-model.ts");
  const { expectFree } = await import("./model-folder.ts");
  const place = await findModel(name);
  expectFree(out);
  const lines =
    to === "gguf" ? await toGguf(place, out, dtype) : await toSafetensors(place, out, dtype as "f32" | undefined);
  for (const line of lines) console.log(line);
  return exitCodes.ok;
}
