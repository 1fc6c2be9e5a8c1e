/**
 * Models from checkpoints in Hugging Face's layout: a folder with `config.json` and `model.safetensors`, or shards with
 * `model.safetensors.index.json` (older ones: `pytorch_model.bin`); or from GGUF files (gguf.ts). `config.json` names the architecture, the tasks' tables say how it is built; every tensor of the
 * model must be in the checkpoint and every tensor of the checkpoint in the model.
 */
import type { DType } from "../core/dtype.ts";
import { isFloat } from "../core/dtype.ts";
import { NablaError } from "../core/errors.ts";
import { sizeOf } from "../core/shape.ts";
import { ChatTemplate } from "../data/chat-template.ts";
import { join } from "../data/path.ts";
import { type ReadOptions, readBytes } from "../data/source.ts";
import type { Tokenizer } from "../data/tokenizer.ts";
import { type GgufFile, load, loadTorch, readTorch, type StoredTensor } from "../formats/index.ts";
import { readSafetensorsParts } from "../formats/safetensors-parts.ts";
import { type HubOptions, modelFolder } from "../hub/index.ts";
import { Embedding, type FactoryOptions, Linear, type Module, type StateDict, withDeferredInit } from "../nn/index.ts";
import { type Architecture, architectures, type BuildOptions, type Task, type Tasks } from "./architectures.ts";
import { BlockEmbedding, BlockLinear, type BlockWeight, blockShape } from "./blocks.ts";
import { ConfigReader, PretrainedError, type RawConfig } from "./config.ts";
import { type LayerReplacer, modelFromParts, replaceLayers } from "./from-parts.ts";
import { readGgufModel } from "./gguf.ts";
import { readGgufText } from "./gguf-tokenizer.ts";
import { parseJson } from "./json.ts";
import { attempt, type LoadedText, type Pretrained, readText, unread, withText } from "./pretrained-text.ts";
import { textPart } from "./text-part.ts";

export interface PretrainedOptions<T extends Task = "generation"> extends Omit<HubOptions, "files"> {
  /** Default: "generation". */
  readonly task?: T;
  /** Of the parameters. Default: that of the checkpoint's largest floating tensor. */
  readonly dtype?: DType;
  /** Default: the default device. */
  readonly device?: string;
  /**
   * Of a GGUF file: matrices in 4 to 8 bits (q8_0, q4_0, q4_1, q5_0, q5_1, q4_k, q5_k, q6_k) stay as they are stored, a quarter to a half of
   * bfloat16's memory, and are not learnt. Default: false, all become floating numbers.
   */
  readonly keepQuantized?: boolean;
  /** Classes of a classification head. One that the checkpoint lacks, or has for another number of classes, starts anew. */
  readonly numLabels?: number;
  /** Default: the one beside the weights. Null: none is read, for one who only wants weights; a large one takes a second. */
  readonly tokenizer?: Tokenizer | null;
  /**
   * Asked, as soon as a layer's weights are read, for a layer in its place; null leaves it. The checkpoint is then read a tensor at a time, so that a
   * model whose layers are quantised (finetune's `quantizer`) is never in memory as floating numbers; a GGUF file is read as a whole.
   */
  readonly replace?: LayerReplacer;
}

/** What `fromPretrained` gives: the task's model, which knows its tokenizer, its chat template and how its texts end. */
export type PretrainedModel<T extends Task = "generation"> = T extends "image-classification"
  ? Tasks[T]
  : Pretrained<Tasks[T]>;

const listed = (names: readonly string[]): string =>
  names
    .slice(0, 20)
    .map((name) => `"${name}"`)
    .join(", ") + (names.length > 20 ? ` and ${names.length - 20} more` : "");

const readJson = async (path: string): Promise<unknown> => parseJson(await readBytes(path), path);

const isObject = (x: unknown): x is Record<string, unknown> => typeof x === "object" && x !== null && !Array.isArray(x);

/**
 * A folder's `config.json`; of a model that also sees pictures the part about its language model. Throws FileError, or PretrainedError where
 * it is not a JSON object.
 */
export const readConfig = async (folder: string): Promise<ConfigReader> => textPart(await readWholeConfig(folder));

/** A folder's `config.json` as it stands. Throws as readConfig. */
export async function readWholeConfig(folder: string): Promise<ConfigReader> {
  const path = join(folder, "config.json");
  const raw = await readJson(path);
  if (!isObject(raw)) throw new PretrainedError(`${path}: must be a JSON object`);
  return new ConfigReader(raw, path);
}

type Reading = ReadOptions & { readonly device?: string };

/** The kinds of files that hold a checkpoint's tensors, in the order in which they are looked for; each has an index where it is sharded. */
const containers: readonly {
  readonly file: string;
  readonly read: (path: string, options: Reading) => Promise<StateDict>;
  /** What lies in it, to be read tensor by tensor. */
  readonly parts: (path: string) => Promise<ReadonlyMap<string, StoredTensor>>;
}[] = [
  { file: "model.safetensors", read: load, parts: readSafetensorsParts },
  // written by older versions; read without executing anything
  {
    file: "pytorch_model.bin",
    read: (path, { device }) => loadTorch(path, device === undefined ? {} : { device }),
    parts: async (path) => (await readTorch(path)).tensors,
  },
];

/** What the shards of a checkpoint with an index hold, merged; each tensor must be where the index says. */
async function readShards<T>(
  folder: string,
  index: unknown,
  indexPath: string,
  read: (path: string) => Promise<Readonly<Record<string, T>>>,
): Promise<Record<string, T>> {
  const map = isObject(index) ? index["weight_map"] : undefined;
  if (!isObject(map) || !Object.values(map).every((file) => typeof file === "string"))
    throw new PretrainedError(`${indexPath}: "weight_map" must say the file of each tensor`);
  const out: Record<string, T> = {};
  for (const file of [...new Set(Object.values(map) as string[])].sort()) {
    if (/[\\/]|^\.\.?$/.test(file))
      throw new PretrainedError(`${indexPath}: "${file}" must be a file beside the index`);
    const tensors = await read(join(folder, file));
    const wanted = Object.keys(map).filter((name) => map[name] === file);
    const missing = wanted.filter((name) => !(name in tensors));
    if (missing.length)
      throw new PretrainedError(`${join(folder, file)}: the index places ${listed(missing)} here, but it is not there`);
    const surplus = Object.keys(tensors).filter((name) => map[name] !== file);
    if (surplus.length)
      throw new PretrainedError(`${join(folder, file)}: holds ${listed(surplus)}, which the index does not place here`);
    Object.assign(out, tensors);
  }
  return out;
}

/** What `read` gives, or null where there is no such file. */
async function ifThere<T>(read: () => Promise<T>): Promise<T | null> {
  try {
    return await read();
  } catch (error) {
    if ((error as { code?: string }).code === "ENOENT") return null;
    throw error;
  }
}

/** The tensors of a checkpoint's folder by their names. */
export const readCheckpoint = (folder: string, options: Reading = {}): Promise<StateDict> =>
  readFolder(folder, ({ read }, path) => read(path, options));

/** What lies in the files of a checkpoint's folder, by name: nothing but headers has been read. */
const readCheckpointParts = (folder: string): Promise<Record<string, StoredTensor>> =>
  readFolder(folder, async ({ parts }, path) => Object.fromEntries(await parts(path)));

async function readFolder<T>(
  folder: string,
  read: (container: (typeof containers)[number], path: string) => Promise<Readonly<Record<string, T>>>,
): Promise<Readonly<Record<string, T>>> {
  for (const container of containers) {
    const { file } = container;
    const single = await ifThere(() => read(container, join(folder, file)));
    if (single) return single;
    const path = join(folder, `${file}.index.json`);
    const index = await ifThere(() => readJson(path));
    if (index !== null) return readShards(folder, index, path, (shard) => read(container, shard));
  }
  throw new PretrainedError(
    `${folder}: there are no weights; expected ${containers.map(({ file }) => `${file} (or ${file}.index.json)`).join(", or ")}`,
  );
}

/** The table's row for a configuration and a task; the error lists what is known. */
function architectureOf(config: ConfigReader, task: Task): Architecture<Module> {
  const type = config.text("model_type");
  const table = architectures();
  if (!Object.hasOwn(table, task))
    throw new PretrainedError(`fromPretrained: there is no task "${task}"; known are ${Object.keys(table).join(", ")}`);
  const known: Readonly<Record<string, Architecture<Module>>> = table[task];
  if (Object.hasOwn(known, type)) return known[type];
  const others = (Object.keys(table) as Task[]).filter((other) => Object.hasOwn(table[other], type));
  throw new PretrainedError(
    others.length
      ? `${config.source}: the architecture "${type}" is not for the task "${task}"; load it with { task: "${others[0]}" }${others
          .slice(1)
          .map((other) => ` or "${other}"`)
          .join("")}`
      : `${config.source}: unknown architecture "${type}"; known for "${task}" are ${Object.keys(known).join(", ")}`,
  );
}

/** Throws for weights that other software has quantised; their keys and types are its own. */
function expectFloating(config: ConfigReader): void {
  const method = config.part("quantization_config")?.raw["quant_method"];
  if (config.has("quantization_config"))
    throw new PretrainedError(
      `${config.source}: "quantization_config" says that the weights are quantised (${method ?? "by a method that it does not name"}), which can't be read here; ` +
        "take the model in floating numbers, or as GGUF",
    );
}

/**
 * The dtype of the largest floating tensor: norms may be stored more precisely than matrices. A weight in blocks is float32, as it would be if it
 * were not kept.
 */
function storedDType(tensors: Readonly<StateDict>, blocks: Readonly<Record<string, BlockWeight>>): DType {
  const floating = Object.values(tensors).filter((x) => isFloat(x.dtype));
  const wide = Object.values(blocks).map((block) => ({ size: sizeOf(blockShape(block)), dtype: "float32" as const }));
  return [...floating, ...wide].reduce((a, b) => (b.size > a.size ? b : a), { size: 0, dtype: "float32" }).dtype;
}

/**
 * A model of a configuration whose weights start anew, as its authors begin (transformers' `from_config`), in evaluation mode. `manualSeed`
 * says which. Throws PretrainedError where the architecture is unknown or the configuration damaged.
 */
export function fromConfig<T extends Task = "generation">(
  config: ConfigReader | RawConfig,
  options: Pick<PretrainedOptions<T>, "task" | "dtype" | "device" | "numLabels"> = {},
): Tasks[T] {
  const reader = config instanceof ConfigReader ? config : new ConfigReader(config);
  const { task = "generation", dtype = "float32", device, numLabels = reader.labels() } = options;
  const where: FactoryOptions = { dtype, ...(device === undefined ? {} : { device }) };
  return architectureOf(reader, task)
    .build(reader, where, { numLabels, has: () => true })
    .eval() as Tasks[T];
}

/**
 * A model from a parsed configuration and its tensors, which it takes over. For checkpoints that come from elsewhere than a folder; see
 * `fromPretrained` for the rest.
 */
export function modelFrom<T extends Task = "generation">(
  config: ConfigReader | RawConfig,
  tensors: Readonly<StateDict>,
  options: Omit<PretrainedOptions<T>, keyof HubOptions | "keepQuantized"> & {
    /** Weights that stay in blocks, by their keys. */
    readonly blocks?: Readonly<Record<string, BlockWeight>>;
  } = {},
): Tasks[T] {
  const reader = config instanceof ConfigReader ? config : new ConfigReader(config);
  const { task = "generation", device, numLabels } = options;
  const architecture = architectureOf(reader, task);
  const { adapted, blocks } = adaptAll(architecture, reader, tensors, options.blocks ?? {});
  const dtype = options.dtype ?? storedDType(adapted, blocks);
  if (!isFloat(dtype)) throw new PretrainedError(`${reader.source}: a model's dtype must be floating, not ${dtype}`);
  const where: FactoryOptions = { dtype, ...(device === undefined ? {} : { device }) };
  const build: BuildOptions = {
    numLabels: numLabels ?? reader.labels(),
    has: (key) => key in adapted || key in blocks,
  };
  return withDeferredInit(
    () => architecture.build(reader, where, build),
    (model, forget) => {
      const kept = keepBlocks(model, blocks, dtype, reader.source, forget);
      fill(model, { ...adapted, ...kept }, architecture, reader.source, numLabels);
    },
  ).eval() as Tasks[T];
}

/** Tensors and weights in blocks under the model's own keys, without what it has no part for. */
function adaptAll(
  architecture: Architecture<Module>,
  config: ConfigReader,
  tensors: Readonly<StateDict>,
  blocks: Readonly<Record<string, BlockWeight>>,
): { readonly adapted: StateDict; readonly blocks: Readonly<Record<string, BlockWeight>> } {
  const ofCodes = new Map(Object.values(blocks).map((block) => [block.codes, block]));
  const codes = Object.entries(blocks).map(([key, block]) => [key, block.codes] as const);
  const all = Object.entries(architecture.adapt({ ...tensors, ...Object.fromEntries(codes) }, config));
  return {
    adapted: Object.fromEntries(all.filter(([, x]) => !ofCodes.has(x))),
    blocks: Object.fromEntries(
      all.flatMap(([key, x]) => {
        const block = ofCodes.get(x);
        return block ? [[key, block]] : [];
      }),
    ),
  };
}

/**
 * Puts layers with these weights in the places of floating ones; gives their tensors by their keys. What the model has no layer for is
 * among them, under its own key.
 */
function keepBlocks(
  model: Module,
  blocks: Readonly<Record<string, BlockWeight>>,
  dtype: DType,
  source: string,
  forget: (weight: Linear["weight"]) => void,
): StateDict {
  const modules = new Map(model.namedModules());
  const out: StateDict = {};
  for (const [key, block] of Object.entries(blocks)) {
    out[key] = block.codes;
    const [, path, parent, name] = key.match(/^((?:(.*)\.)?([^.]+))\.weight$/) ?? [];
    const layer = modules.get(path ?? "");
    if (!(layer instanceof Linear || layer instanceof Embedding)) continue; // surplus
    const [expected, found] = [layer.weight.shape, blockShape(block)].map((shape) => shape.join(", "));
    if (expected !== found)
      throw new PretrainedError(
        `${source}: the tensors do not fit the configuration. "${key}" has shape [${found}], the model's is [${expected}]`,
      );
    const replacement =
      layer instanceof Linear ? new BlockLinear(block, dtype, layer.bias) : new BlockEmbedding(block, dtype);
    // the layer's own, which it need not be given again
    out[key] = replacement.codes;
    if (replacement.scales) out[`${key}.scales`] = replacement.scales;
    (modules.get(parent ?? "") as Module).replaceChild(name, replacement);
    forget(layer.weight); // or its first values would be computed
  }
  return out;
}

/** Gives the model its tensors; what is missing, surplus or of another shape is named all at once. */
function fill(
  model: Module,
  tensors: Readonly<StateDict>,
  architecture: Architecture<Module>,
  source: string,
  numLabels: number | undefined,
): void {
  const own = model.stateDict();
  const isFresh = (key: string): boolean => numLabels !== undefined && (architecture.head?.test(key) ?? false);
  const given = { ...tensors };
  const fresh = Object.keys(own).filter(isFresh);
  // a head is one thing: where a part of it does not fit, all of it starts anew
  if (fresh.some((key) => !given[key] || given[key].shape.join() !== own[key].shape.join()))
    for (const key of Object.keys(given)) if (architecture.head?.test(key)) delete given[key];
  const missing = Object.keys(own).filter((key) => !(key in given) && !isFresh(key));
  const headless = missing.length > 0 && missing.every((key) => architecture.head?.test(key));
  const surplus = Object.keys(given).filter((key) => !(key in own));
  const complaints = [
    ...(missing.length
      ? [
          `the checkpoint lacks ${listed(missing)}${headless ? ", the head of this task; { numLabels } makes a new one" : ""}`,
        ]
      : []),
    ...(surplus.length ? [`the model has no ${listed(surplus)}`] : []),
  ];
  if (complaints.length) throw new PretrainedError(`${source}: ${complaints.join("; ")}. Nothing was loaded`);
  try {
    model.loadStateDict(given, { assign: true, strict: false });
  } catch (error) {
    if (!(error instanceof NablaError)) throw error;
    throw new PretrainedError(`${source}: the tensors do not fit the configuration. ${error.message}`);
  }
}

/**
 * Loads a model from a folder in Hugging Face's layout, or a decoder from a GGUF file (a path that ends so), in evaluation mode; or by its
 * name on the hub (`org/name`, `org/name@revision`, `org/name/file.gguf`: see modelFolder). `onProgress` is told of the download first, then of
 * reading. Throws HubError where the hub does not have it, FileError where a file can't be read, SafetensorsError or FormatError
 * where one is damaged, and PretrainedError where the architecture is unknown or configuration and tensors do not fit, naming them.
 */
export async function fromPretrained<T extends Task = "generation">(
  path: string,
  options: PretrainedOptions<T> = {},
): Promise<PretrainedModel<T>> {
  const { onProgress, signal, keepQuantized = false } = options;
  const device = options.device === undefined ? {} : { device: options.device };
  if (/\.gguf(@[^@]*)?$/i.test(path)) {
    const { config, tensors, blocks, source, file } = await readGgufModel(await modelFolder(path, options), {
      ...device,
      keepQuantized,
    });
    const model = modelFrom(new ConfigReader(config, source), tensors, { ...options, blocks });
    if (options.replace) await replaceLayers(model, options.replace);
    return withText(model, await ggufText(file, source, path, options.tokenizer)) as PretrainedModel<T>;
  }
  // the configuration alone first: what is not known should say so before gigabytes are fetched and read
  const config = await readConfig(await modelFolder(path, { ...options, files: ["config.json"] }));
  architectureOf(config, options.task ?? "generation");
  expectFloating(config);
  const folder = await modelFolder(path, options);
  const reading = { ...(onProgress ? { onProgress } : {}), ...(signal ? { signal } : {}) };
  const model = options.replace
    ? await modelFromParts(
        (tensors) => modelFrom(config, tensors, options),
        await readCheckpointParts(folder),
        options.replace,
        { ...reading, ...device, source: path },
      )
    : modelFrom(config, await readCheckpoint(folder, { ...reading, ...device }), options);
  if (options.task === "image-classification") return model as PretrainedModel<T>;
  return withText(model, await readText(folder, path, config, options.tokenizer)) as PretrainedModel<T>;
}

/** The text side of a GGUF file, with another tokenizer where one is given. */
async function ggufText(
  file: GgufFile,
  source: string,
  nameOrPath: string,
  given: Tokenizer | null | undefined,
): Promise<LoadedText> {
  const text = await attempt(() => (given === null ? unread(nameOrPath) : readGgufText(file, source)));
  if ("error" in text) {
    const tokenizer = given ? { value: given } : text;
    return { nameOrPath, tokenizer, chatTemplate: text, stopTokens: { value: [] }, generationConfig: { value: {} } };
  }
  const { tokenizer, chatTemplate, bosToken, eosToken, stopTokens } = text.value;
  return {
    nameOrPath,
    tokenizer: { value: given ?? tokenizer },
    chatTemplate: await attempt(() =>
      chatTemplate === null ? null : ChatTemplate.create(chatTemplate, { bosToken, eosToken }),
    ),
    stopTokens: { value: stopTokens },
    generationConfig: { value: {} },
  };
}
