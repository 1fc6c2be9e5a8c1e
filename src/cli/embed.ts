/** nabla embed: texts as vectors by an encoder, pooled and normalised as its sentence-transformers files say; JSON lines or a NumPy array. */
import { dirname, extname } from "node:path";
import type { Command } from "commander";
import { exitCodes, UsageError } from "./exit.ts";
import type { Declare, Outcome } from "./main.ts";
import { modelArgument } from "./model-argument.ts";
import { count, deviceFlag, oneOf } from "./options.ts";

interface Flags {
  readonly data?: string[];
  readonly text: string;
  readonly out?: string;
  readonly batch: number;
  readonly promptName?: string;
  readonly dtype?: "f32" | "bf16" | "f16";
  readonly device?: string;
}

export const declare: Declare = (parent: Command, done) => {
  parent
    .command("embed")
    .description("texts as vectors: pooled and normalised as the model's own files say")
    .argument(...modelArgument)
    .option("--data <path...>", "text files, a text a line; or .json, .jsonl, .parquet, .csv, .tsv")
    .option("--text <name>", "the column or field of the text", "text")
    .option("--out <file>", "a .jsonl or .npy file; JSON lines on the terminal without")
    .option("--prompt-name <name>", "which of the model's own prompts to put before each text: query, passage, …")
    .option("--batch <n>", "texts at a time", count(1), 32)
    .option("--dtype <name>", "of the weights: f32, bf16 or f16; as stored by default", oneOf("f32", "bf16", "f16"))
    .option(...deviceFlag)
    .action((model: string, flags: Flags) => done(embedTexts(model, flags)));
};

async function embedTexts(name: string, flags: Flags): Outcome {
  if (flags.data === undefined) throw new UsageError("--data is missing: name a text file, a text a line");
  const kind = flags.out === undefined ? ".jsonl" : extname(flags.out).toLowerCase();
  if (kind !== ".jsonl" && kind !== ".npy")
    throw new UsageError(`--out ${flags.out}: its ending must be .jsonl or .npy`);
  const { findModel, ModelError } = await import("./model-argument.ts");
  const { configOf, openModel } = await import("./pretrained-model.ts");
  const { openTokenizer } = await import("./model-tokenizer.ts");
  const { openDevice } = await import("./device.ts");
  const { architectures, embed, readEmbeddingSettings } = await import("../models/index.ts");
  const { ensureFolder, writeFileAtomic } = await import("../formats/atomic.ts");
  if (flags.out !== undefined) {
    const { expectFree } = await import("./model-folder.ts");
    expectFree(flags.out);
  }
  const place = await findModel(name);
  const type = String((await configOf(place))["model_type"]);
  const encoders = Object.keys(architectures().features);
  if (!encoders.includes(type))
    throw new ModelError(`${name}: embed needs an encoder (${encoders.join(", ")}); this model is "${type}"`);
  const { texts, empty } = await readTexts(flags.data, flags.text);
  if (flags.out !== undefined) await ensureFolder(dirname(flags.out));
  const tokenizer = await openTokenizer(place);
  const device = await openDevice(flags.device);
  const settings = await readEmbeddingSettings(place.path);
  const model = await openModel(place, {
    task: "features",
    tokenizer: tokenizer.tokenizer,
    ...(flags.dtype === undefined ? {} : { dtype: flags.dtype }),
  });
  const longest = Math.min(settings.maxLength ?? model.contextLength, model.contextLength);
  const cut = texts.filter((text) => tokenizer.tokenizer.encode(text).length > longest).length;
  if (empty > 0) console.error(`nabla: empty lines, which were left out: ${empty}`);
  if (cut > 0) console.error(`nabla: texts longer than ${longest} tokens, which were cut off: ${cut}`);
  const vectors = await embed(model, texts, {
    ...settings,
    tokenizer: tokenizer.tokenizer,
    batch: flags.batch,
    ...(flags.promptName === undefined ? {} : { promptName: flags.promptName }),
  });
  const data = (await vectors.data()) as Float32Array;
  const [rows, width] = vectors.shape;
  if (kind === ".npy") {
    const { writeNpy } = await import("../formats/index.ts");
    await writeNpy(flags.out as string, {
      dtype: "float32",
      shape: [rows, width],
      bytes: new Uint8Array(data.buffer, data.byteOffset, data.byteLength),
    });
  } else {
    const lines = function* (): Generator<string> {
      for (let i = 0; i < rows; i++)
        yield `${JSON.stringify({ text: texts[i], embedding: Array.from(data.subarray(i * width, (i + 1) * width), short) })}\n`;
    };
    if (flags.out !== undefined) await writeFileAtomic(flags.out, lines());
    else for (const line of lines()) process.stdout.write(line);
  }
  if (flags.out !== undefined)
    console.log(
      `${rows} texts as vectors of ${width} (${settings.pooling.join(" and ")}${settings.normalize ? ", normalised" : ""}), on ${device}; in ${flags.out}`,
    );
  return exitCodes.ok;
}

/** As many digits as float32 has. */
const short = (x: number): number => Number(x.toPrecision(8));

/** Lines of text files without the empty ones, of which it tells the count, and texts of tables. Throws FinetuneError, FileError, TextError. */
async function readTexts(
  paths: readonly string[],
  field: string,
): Promise<{ readonly texts: string[]; readonly empty: number }> {
  const { FinetuneError, readExamples } = await import("../finetune/index.ts");
  const { readBytes } = await import("../data/index.ts");
  const { decodeText } = await import("../data/text.ts");
  const texts: string[] = [];
  let empty = 0;
  for (const path of paths) {
    if ([".json", ".jsonl", ".ndjson", ".parquet", ".csv", ".tsv"].includes(extname(path).toLowerCase())) {
      for (const example of await readExamples(path, { text: field })) {
        if (!("text" in example)) throw new FinetuneError(`${example.where}: expected "${field}", a text`);
        texts.push(example.text);
      }
      continue;
    }
    const lines = decodeText(await readBytes(path), path).split(/\r?\n/);
    if (lines.at(-1) === "") lines.pop(); // behind the last line's end
    for (const line of lines)
      if (line.trim() === "") empty++;
      else texts.push(line);
  }
  if (texts.length === 0) throw new FinetuneError(`${paths.join(", ")}: there are no texts`);
  return { texts, empty };
}
