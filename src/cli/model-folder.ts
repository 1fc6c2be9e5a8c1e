/**
 * Writing a model's folder in Hugging Face's layout, all or nothing: it is filled under another name beside its place, and renamed when
 * it is whole. What lies beside the weights (configuration, tokenizer, pooling) comes along from where the model came from.
 */
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  renameSync,
  rmdirSync,
  rmSync,
} from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { fileError, writeFileAtomic } from "../formats/atomic.ts";
import { architectures, formatConfig, type RawConfig, type Task } from "../models/index.ts";
import { labelMaps, tokenizerFileNames } from "../models/save-pretrained.ts";
import type { ModelPlace } from "./model-argument.ts";
import { tokenizerFiles } from "./model-tokenizer.ts";
import { RunError, writeJson } from "./run-folder.ts";

/** What lies beside weights and belongs to them. */
const companions = [
  ...tokenizerFileNames,
  "generation_config.json",
  "preprocessor_config.json",
  "modules.json",
  "1_Pooling/config.json",
  "sentence_bert_config.json",
  "config_sentence_transformers.json",
];

/** Throws RunError where there is something at the place already. */
export function expectFree(out: string): void {
  if (existsSync(out) && !(isFolder(out) && readdirSync(out).length === 0))
    throw new RunError(`${out} exists already; choose another --out, or remove it`);
}

const isFolder = (path: string): boolean => {
  try {
    readdirSync(path);
    return true;
  } catch {
    return false;
  }
};

/** Makes a folder whole or not at all. Throws RunError where it exists, FileError, and what `fill` throws. */
export async function writeWholeFolder(out: string, fill: (folder: string) => Promise<void>): Promise<void> {
  expectFree(out);
  const place = resolve(out);
  let temporary: string | undefined;
  try {
    mkdirSync(dirname(place), { recursive: true });
    temporary = mkdtempSync(join(dirname(place), `.${basename(place)}-`));
    chmodSync(temporary, 0o777 & ~process.umask()); // mkdtemp's are for the user alone
    await fill(temporary);
    if (existsSync(place)) rmdirSync(place); // empty
    renameSync(temporary, place);
  } catch (error) {
    if (temporary !== undefined) rmSync(temporary, { recursive: true, force: true });
    throw (error as { code?: unknown }).code === undefined || (error as Error).name === "FileError"
      ? error
      : fileError("write", out, error);
  }
}

export interface WrittenConfig {
  readonly task: Task;
  /** Of the weights; left as it is where it is not given. */
  readonly dtype?: string;
  readonly labels?: readonly string[] | null;
  /** Of a classifier: its one output is a number. */
  readonly regression?: boolean;
}

/** The configuration of the model that is written, from that of the one it was made of; as transformers writes it. */
export function writtenConfig(
  config: RawConfig,
  { task, dtype, labels, regression = false }: WrittenConfig,
): RawConfig {
  const rows: Readonly<Record<string, { readonly transformers: string }>> = architectures()[task];
  const { dtype: _, torch_dtype: __, num_labels: ___, ...rest } = config;
  const kept = config["dtype"] ?? config["torch_dtype"];
  return {
    ...rest,
    architectures: [rows[String(config["model_type"])].transformers],
    ...((dtype ?? kept) === undefined ? {} : { dtype: dtype ?? kept }),
    ...(regression ? { ...labelMaps(["LABEL_0"]), problem_type: "regression" } : labels ? labelMaps(labels) : {}),
  };
}

/** Writes config.json, and the files that belong to the weights. Of a GGUF file the tokenizer inside is written out. */
export async function writeCompanions(folder: string, place: ModelPlace, config: RawConfig): Promise<void> {
  await writeFileAtomic(join(folder, "config.json"), formatConfig(config));
  if (place.kind === "folder") {
    for (const name of companions) {
      const from = join(place.path, name);
      if (!existsSync(from)) continue;
      mkdirSync(dirname(join(folder, name)), { recursive: true });
      copyFileSync(from, join(folder, name));
    }
    return;
  }
  const { tokenizer, config: tokenizerConfig, eosTokenId } = await tokenizerFiles(place);
  await writeFileAtomic(join(folder, "tokenizer.json"), `${JSON.stringify(tokenizer)}\n`);
  await writeJson(join(folder, "tokenizer_config.json"), tokenizerConfig);
  if (eosTokenId !== undefined) await writeJson(join(folder, "generation_config.json"), { eos_token_id: eosTokenId });
}
