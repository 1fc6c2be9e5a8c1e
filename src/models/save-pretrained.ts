/**
 * Writing a model as transformers' `save_pretrained` does: `config.json` and `model.safetensors` under the keys that transformers gives
 * them, and the tokenizer's files beside them, so that `AutoModel….from_pretrained` loads the folder.
 */
import { ensureFolder, writeFileAtomic } from "../data/files.ts";
import { join } from "../data/path.ts";
import { readBytes } from "../data/source.ts";
import { save } from "../formats/index.ts";
import type { Module, StateDict } from "../nn/index.ts";
import { architectures, type Task } from "./architectures.ts";
import { ConfigReader, formatConfig, PretrainedError, type RawConfig } from "./config.ts";

export interface SavePretrainedOptions {
  /** The configuration that the model was loaded with: a folder's `config.json` (readConfig), or its parsed content. */
  readonly config: ConfigReader | RawConfig;
  /** Default: "generation". */
  readonly task?: Task;
  /** The names of the classes, by their numbers: `id2label` and `label2id`. */
  readonly labels?: readonly string[];
  /** transformers' `problem_type`. */
  readonly problemType?: "single_label_classification" | "regression";
  /** The token that filled up in training, where the configuration has none. Classifiers on decoders need it. */
  readonly padTokenId?: number;
  /** What is written instead of the model's own state, under the same keys: weights with an adapter merged into them. */
  readonly stateDict?: Readonly<StateDict>;
  /** The folder that the model came from: the files of its tokenizer are copied. */
  readonly from?: string;
}

/** The files of a checkpoint's tokenizer, of which each has some. */
export const tokenizerFileNames: readonly string[] = [
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.txt",
  "vocab.json",
  "merges.txt",
  "tokenizer.model",
  "chat_template.jinja",
];

function configOf(model: Module, options: SavePretrainedOptions): RawConfig {
  const { task = "generation", labels, problemType, padTokenId } = options;
  const reader = options.config instanceof ConfigReader ? options.config : new ConfigReader(options.config);
  const type = reader.text("model_type");
  const row = (architectures()[task] as Readonly<Record<string, { readonly transformers: string }>>)[type];
  if (!row) throw new PretrainedError(`${reader.source}: the architecture "${type}" is not for the task "${task}"`);
  const { numLabels } = model as { numLabels?: number };
  if (labels && labels.length !== numLabels)
    throw new PretrainedError(`savePretrained: ${labels.length} labels for a model with ${numLabels ?? "no"} of them`);
  if (labels && new Set(labels).size !== labels.length)
    throw new PretrainedError(`savePretrained: labels must differ, got ${JSON.stringify(labels)}`);
  // transformers counts the labels by their names
  const names = labels ?? reader.labelNames();
  const own = numLabels === undefined ? null : names?.length === numLabels ? names : numbered(numLabels, "LABEL_");
  const dtype =
    Object.values(options.stateDict ?? model.stateDict()).find((x) => x.dtype.includes("float"))?.dtype ?? "float32";
  const { torch_dtype: _, num_labels: __, ...raw } = reader.raw;
  return {
    ...raw,
    architectures: [row.transformers],
    dtype,
    ...(own && labelMaps(own)),
    ...(problemType && { problem_type: problemType }),
    ...(padTokenId !== undefined && reader.padTokenId() === null && { pad_token_id: padTokenId }),
  };
}

/** The names of classes as config.json has them. */
export const labelMaps = (labels: readonly string[]) => ({
  id2label: Object.fromEntries(labels.map((label, i) => [i, label])),
  label2id: Object.fromEntries(labels.map((label, i) => [label, i])),
});

const numbered = (count: number, prefix: string): string[] => Array.from({ length: count }, (_, i) => `${prefix}${i}`);

async function copyCompanions(from: string, to: string): Promise<void> {
  for (const name of tokenizerFileNames) {
    let bytes: Uint8Array;
    try {
      bytes = await readBytes(join(from, name));
    } catch (error) {
      if ((error as { code?: string }).code === "ENOENT") continue;
      throw error;
    }
    await writeFileAtomic(join(to, name), bytes);
  }
}

/**
 * Writes a model into a folder, in the layout and under the names of transformers. Throws PretrainedError where the configuration is of another
 * architecture, or the labels are not as many as the model's; FileError where a file can't be written.
 */
export async function savePretrained(model: Module, folder: string, options: SavePretrainedOptions): Promise<void> {
  const config = configOf(model, options);
  await ensureFolder(folder);
  await save(options.stateDict ?? model, join(folder, "model.safetensors"));
  await writeFileAtomic(join(folder, "config.json"), formatConfig(config));
  if (options.from !== undefined) await copyCompanions(options.from, folder);
}
