/**
 * Opening a pretrained model for a command: its weights, its tokenizer, and an adapter on it. Also what is known of it before anything
 * is loaded: what kind of model it is, and the classes that it tells apart.
 */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import type { DType } from "../core/dtype.ts";
import type { Tokenizer } from "../data/index.ts";
import { type Adapted, loadAdapter, parseAdapterConfig, type Quantization, quantizer } from "../finetune/index.ts";
import { readTorch } from "../formats/index.ts";
import { readSafetensorsParts } from "../formats/safetensors-parts.ts";
import {
  architectures,
  fromPretrained,
  type RawConfig,
  readConfig,
  readGgufConfig,
  readStoredMatrices,
  type StoredMatrix,
  type Task,
  type Tasks,
} from "../models/index.ts";
import type { Module } from "../nn/index.ts";
import { UsageError } from "./exit.ts";
import { findModel, ModelError, type ModelPlace } from "./model-argument.ts";
import { readJson, settingsName } from "./run-folder.ts";

/** The dtypes of weights, as the flags call them. */
export const weightDTypes = { f32: "float32", bf16: "bfloat16", f16: "float16" } as const satisfies Record<
  string,
  DType
>;
export type WeightDType = keyof typeof weightDTypes;

export interface AdapterPlace {
  readonly folder: string;
  /** "CAUSAL_LM", "SEQ_CLS", or what PEFT wrote there. */
  readonly taskType: string | null;
  /** The classes of an adapter of a classifier, where a training of ours has written them. */
  readonly labels: readonly string[] | null;
  readonly modulesToSave: readonly string[];
}

export const labelsName = "labels.json";

/** Reads what an adapter is. Throws ModelError where the folder holds none, FinetuneError where it is damaged. */
function findAdapter(folder: string): AdapterPlace {
  const file = join(folder, "adapter_config.json");
  if (!existsSync(folder))
    throw new ModelError(`there is no folder ${folder}; --adapter names a folder with adapter_config.json`);
  if (!existsSync(file))
    throw new ModelError(
      `${folder} holds no adapter: it has no adapter_config.json; --adapter names what finetune --out, or PEFT, has written`,
    );
  if (!["adapter_model.safetensors", "adapter_model.bin"].some((name) => existsSync(join(folder, name))))
    throw new ModelError(`${folder} holds no weights: it has no adapter_model.safetensors; the adapter is not whole`);
  const { taskType, modulesToSave } = parseAdapterConfig(readFileSync(file, "utf8"), file);
  const labels = join(folder, labelsName);
  return { folder, taskType, modulesToSave, labels: existsSync(labels) ? (readJson(labels) as string[]) : null };
}

/** What config.json says of a model; of a GGUF file what it would say. */
export async function configOf(place: ModelPlace): Promise<RawConfig> {
  if (place.kind === "gguf") return readGgufConfig(place.path);
  return (await readConfig(place.path)).raw;
}

/** The names of a classifier's classes, by id2label; null where there are none but "LABEL_0". */
export function labelsOf(config: RawConfig): readonly string[] | null {
  const names = config["id2label"];
  if (typeof names !== "object" || names === null) return null;
  const list = Object.entries(names as Record<string, unknown>).sort(([a], [b]) => Number(a) - Number(b));
  return list.map(([, name]) => String(name));
}

/** Throws ModelError for a model that writes no text, with what to do instead. */
export function expectWriter(config: RawConfig, source: string, instead: string): void {
  const type = String(config["model_type"]);
  if (taskOf(config, source) !== "generation" && !Object.hasOwn(architectures().generation, type))
    throw new ModelError(`${source}: this model is "${type}", which writes no text; ${instead}`);
}

/** The names of `count` classes: these where they are as many, else transformers' own. */
export const namesFor = (count: number, names: readonly string[] | null): readonly string[] =>
  names?.length === count ? names : Array.from({ length: count }, (_, i) => `LABEL_${i}`);

/** How many classes an adapter's own head tells apart; undefined where it has none. */
async function headRows({ folder, modulesToSave }: AdapterPlace): Promise<number | undefined> {
  if (modulesToSave.length === 0) return undefined;
  const file = join(folder, "adapter_model.safetensors");
  const parts = existsSync(file)
    ? await readSafetensorsParts(file)
    : (await readTorch(join(folder, "adapter_model.bin"))).tensors;
  const head = [...parts.keys()].find((key) => /\.(classifier|classifier\.out_proj|score)\.weight$/.test(key));
  return head === undefined ? undefined : parts.get(head)?.shape[0];
}

/** What a model is for, where nobody says: by the class that config.json names, else the first task that knows its kind. */
export function taskOf(config: RawConfig, source: string): Task {
  const type = String(config["model_type"]);
  const [named = ""] = Array.isArray(config["architectures"]) ? (config["architectures"] as string[]) : [];
  const table = architectures();
  const fitting = (Object.keys(table) as Task[]).filter((task) => Object.hasOwn(table[task], type));
  if (fitting.length === 0)
    throw new ModelError(
      `${source}: unknown architecture "${type}"; known are ${[...new Set(Object.values(table).flatMap((row) => Object.keys(row)))].join(", ")}`,
    );
  const byName: readonly (readonly [RegExp, Task])[] = [
    [/ForSequenceClassification$/, "classification"],
    [/ForImageClassification$/, "image-classification"],
    [/(ForCausalLM|LMHeadModel)$/, "generation"],
  ];
  const wanted = byName.find(([pattern]) => pattern.test(named))?.[1];
  return wanted !== undefined && fitting.includes(wanted) ? wanted : fitting[0];
}

/** What the weights of a model that is not learnt are held in: codes that are made as it is read, or the blocks of its GGUF file. */
export type BaseQuantization = Quantization | "stored";

/** The matrices of a model that can stay in a GGUF file's blocks, by their keys; of a folder there are none. */
export const storedMatricesOf = async (place: ModelPlace): Promise<ReadonlyMap<string, StoredMatrix>> =>
  place.kind === "gguf" ? readStoredMatrices(place.path) : new Map();

/**
 * What the base of QLoRA is held in: what is asked for, else as it is stored, where that is in few bits, else NF4. Throws UsageError where
 * it is to stay as stored and is not in few bits.
 */
export async function baseQuantization(place: ModelPlace, asked?: BaseQuantization): Promise<BaseQuantization> {
  if (asked === "nf4" || asked === "int8") return asked;
  const { size } = await storedMatricesOf(place);
  if (size === 0 && asked === "stored")
    throw new UsageError(
      `--quantize stored: ${place.name} is not stored in few bits, as GGUF files of q8_0, q4_0, q4_k and their kin are; give nf4 or int8`,
    );
  return size > 0 ? "stored" : "nf4";
}

export interface OpenOptions<T extends Task> {
  readonly task: T;
  readonly dtype?: WeightDType;
  readonly adapter?: AdapterPlace;
  readonly numLabels?: number;
  /** Linear layers are quantised as they are read; or, of a GGUF file, matrices in 4 to 8 bits stay as they are stored. Default: neither. */
  readonly quantize?: BaseQuantization | null;
  /** The one that the command has read already; a folder's is not read again. Null: none is needed. */
  readonly tokenizer?: Tokenizer | null;
}

/** Loads a model, and puts the adapter on it. */
export async function openModel<T extends Task>(place: ModelPlace, options: OpenOptions<T>): Promise<Tasks[T]> {
  const { task, dtype, adapter, tokenizer, quantize = null } = options;
  const ofAdapter = async () => adapter && task === "classification" && (adapter.labels?.length ?? headRows(adapter));
  const numLabels = options.numLabels ?? ((await ofAdapter()) || undefined);
  const model = await fromPretrained<T>(place.path, {
    task,
    ...(dtype === undefined ? {} : { dtype: weightDTypes[dtype] }),
    ...(numLabels === undefined ? {} : { numLabels }),
    ...(tokenizer === undefined ? {} : { tokenizer }),
    ...(quantize === null || quantize === "stored" ? {} : { replace: quantizer({ quantization: quantize }) }),
    keepQuantized: quantize === "stored",
  });
  if (adapter === undefined) return model;
  return (await loadAdapter(
    model as unknown as Module,
    adapter.folder,
  )) as unknown as Adapted<Module> as unknown as Tasks[T];
}

/**
 * The model and the adapter that two arguments name. A folder that `finetune` has left an adapter in may stand for both: it says which
 * model it belongs to. Throws ModelError, FinetuneError.
 */
export async function findText(
  name: string,
  adapter?: string,
): Promise<{ readonly place: ModelPlace; readonly adapter: AdapterPlace | undefined }> {
  const settings = join(name, settingsName);
  if (adapter === undefined && existsSync(join(name, "adapter_config.json")) && existsSync(settings)) {
    const { model } = readJson(settings) as { readonly model?: unknown };
    if (typeof model === "string") return { place: await findModel(model), adapter: findAdapter(name) };
  }
  return { place: await findModel(name), adapter: adapter === undefined ? undefined : findAdapter(adapter) };
}
