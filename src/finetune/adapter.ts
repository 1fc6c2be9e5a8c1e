/**
 * applyLora: puts LoRA layers into a model, and what can then be done with them: switch the adapter off and on, merge it into the
 * weights, save and load it in PEFT's layout. The layers themselves are `lora.ts`.
 */
import { join } from "../data/path.ts";
import { ensureFolder, readBytes, writeFileAtomic } from "../formats/atomic.ts";
import { load, loadTorch, save } from "../formats/index.ts";
import { BlockEmbedding, BlockLinear } from "../models/blocks.ts";
import type { Module, Parameter, StateDict } from "../nn/index.ts";
import { noGrad, realize, setData, type Tensor } from "../tensor/index.ts";
import { FinetuneError, listed } from "./errors.ts";
import { isAdaptable, isLoraLayer, type LoraLayer, type LoraSwitch, linearKind, withLora } from "./lora.ts";
import { type AdapterConfig, formatAdapterConfig, type LoraBias, parseAdapterConfig } from "./peft.ts";
import { QuantizedLinear } from "./quantized-linear.ts";
import { endsIn, inLayers, type LayerChoice, numberFor, pathTest, places, type Target, targetTest } from "./targets.ts";

export interface LoraOptions {
  /** The rank of the updates. Default: 8. */
  readonly r?: number;
  /** Updates count alpha / r times. Default: 8. */
  readonly alpha?: number;
  /** Probability with which an input of an update is dropped in training. Default: 0. */
  readonly dropout?: number;
  /** Which layers are wrapped. Default: "all-linear". */
  readonly target?: Target;
  /** Paths, or ends of paths, that are left out of the target; or a pattern, as there. */
  readonly exclude?: RegExp | string | readonly string[];
  /** Ranks of layers that have their own, by patterns that the end of a path matches: { "mlp.c_proj": 16 }. */
  readonly rankPattern?: Readonly<Record<string, number>>;
  /** Alphas of layers that have their own, likewise. */
  readonly alphaPattern?: Readonly<Record<string, number>>;
  /** Scale by alpha / √r instead, which keeps large ranks learning (Kalajdzievski 2023). Default: false. */
  readonly rslora?: boolean;
  /**
   * Modules that are trained and saved as a whole, as a new head: all whose paths end so, at a dot or not, as PEFT takes it ("classifier" is also
   * "pre_classifier").
   */
  readonly modulesToSave?: readonly string[];
  /** Which biases of the model are trained too. Default: "none". */
  readonly bias?: LoraBias;
  /** What adapter_config.json says of it: "CAUSAL_LM", "SEQ_CLS". With "SEQ_CLS" a `classifier` or `score` is in modulesToSave. */
  readonly taskType?: string;
  /** What adapter_config.json calls the model: a hub id or a folder. Default: what was given to fromPretrained. */
  readonly baseModel?: string;
}

const configFile = "adapter_config.json";
const weightsFile = "adapter_model.safetensors";
const prefix = "base_model.model.";

/** A module that is wrapped, under its first path, with all the places where it stands. */
interface Wrapped {
  readonly path: string;
  readonly layer: LoraLayer;
  readonly places: readonly { readonly parent: Module; readonly name: string }[];
}

/** A parameter of the base model that is trained itself, and its value before. */
interface Trained {
  readonly path: string;
  readonly parameter: Parameter;
  /** The value that is not in the model at present: the old one while the adapter is on. */
  other: Tensor;
}

/** An adapter in a model. `applyLora` makes it, and gives its methods to the model. */
export class LoraAdapter {
  readonly config: AdapterConfig;
  readonly #model: Module;
  readonly #state: LoraSwitch;
  readonly #wrapped: readonly Wrapped[];
  readonly #trained: readonly Trained[];
  readonly #flags: ReadonlyMap<Parameter, boolean>;

  constructor(
    model: Module,
    config: AdapterConfig,
    state: LoraSwitch,
    wrapped: readonly Wrapped[],
    trained: readonly Trained[],
    flags: ReadonlyMap<Parameter, boolean>,
  ) {
    this.config = config;
    this.#model = model;
    this.#state = state;
    this.#wrapped = wrapped;
    this.#trained = trained;
    this.#flags = flags;
  }

  /** The wrapped layers by their paths in the model. */
  get layers(): ReadonlyMap<string, LoraLayer> {
    return new Map(this.#wrapped.map(({ path, layer }) => [path, layer]));
  }
  /** Whether the adapter counts at present. */
  get enabled(): boolean {
    return this.#state.enabled;
  }
  /** Whether the updates are in the weights at present. */
  get merged(): boolean {
    return this.#state.merged;
  }

  /** The model computes what it did before applyLora. Throws FinetuneError while the adapter is merged. */
  disableAdapter(): void {
    this.#expectUnmerged("disableAdapter");
    if (!this.enabled) return;
    this.#state.enabled = false;
    this.#swap();
  }
  enableAdapter(): void {
    if (this.enabled) return;
    this.#state.enabled = true;
    this.#swap();
  }
  /** Runs `fn` with the adapter off: to measure the model as it was. */
  async withoutAdapter<T>(fn: () => T | Promise<T>): Promise<T> {
    const was = this.enabled;
    this.disableAdapter();
    try {
      return await fn();
    } finally {
      if (was) this.enableAdapter();
    }
  }
  /** Exchanges the trained parameters' values with their values before. */
  #swap(): void {
    for (const trained of this.#trained) {
      const now = trained.parameter.detach();
      setData(trained.parameter, trained.other);
      trained.other = now;
    }
  }

  #expectUnmerged(operation: string): void {
    if (this.merged)
      throw new FinetuneError(`${operation}: the adapter is merged into the weights; call unmerge() before`);
  }

  /** Every base layer must be one whose weight can be written, and only its own. */
  #expectMergeable(operation: string, into: "weights" | "dict"): void {
    const tied = new Set((this.#model as { tiedEmbeddings?: readonly string[] }).tiedEmbeddings);
    for (const { path, layer } of this.#wrapped) {
      if (
        into === "weights" &&
        (layer.base_layer instanceof QuantizedLinear || layer.base_layer instanceof BlockLinear)
      )
        throw new FinetuneError(
          `${operation}: "${path}" is quantised, and its weight can't take an update; saveMerged and mergedStateDict give the whole in floating numbers`,
        );
      if (tied.has(path))
        throw new FinetuneError(
          `${operation}: the table "${path}" is also the output head, which the adapter does not change, so that one table can't hold both; ` +
            "keep the adapter apart (saveAdapter), or adapt linear layers only",
        );
    }
  }

  /** Adds the updates to the weights, which makes the model as fast as it was. The adapter must be on. */
  merge(): void {
    this.#expectMergeable("merge", "weights");
    if (!this.enabled) throw new FinetuneError("merge: the adapter is off; call enableAdapter() before");
    if (this.merged) return;
    this.#addDeltas(1);
    this.#state.merged = true;
  }
  /** Takes the updates out of the weights again; they are as before up to rounding. */
  unmerge(): void {
    if (!this.merged) return;
    this.#addDeltas(-1);
    this.#state.merged = false;
  }
  #addDeltas(sign: number): void {
    noGrad(() => {
      for (const { layer } of this.#wrapped) {
        const weight = layer.weight as Parameter;
        weight.copy_(withDelta(weight.detach(), layer.delta().mul(sign)));
      }
    });
  }

  /**
   * The model's weights with the updates in them, under the keys that it had before applyLora; quantised ones as floating numbers. The model
   * stays as it is.
   */
  mergedStateDict(): StateDict {
    this.#expectMergeable("mergedStateDict", "dict");
    const layers = new Map<string, LoraLayer>();
    for (const { path, module } of places(this.#model)) if (isLoraLayer(module)) layers.set(path, module);
    const out: StateDict = {};
    const tables = new Map<Tensor, Tensor | null>();
    for (const module of this.#model.modules())
      if (module instanceof BlockLinear || module instanceof BlockEmbedding) {
        const { codes, scales } = module;
        tables.set(
          codes,
          noGrad(() => module.weight),
        );
        if (scales) tables.set(scales, null);
      }
    for (const [key, stored] of Object.entries(this.#model.stateDict())) {
      const tensor = tables.get(stored) ?? stored;
      const [, path, part, name] = /^(.*)\.(base_layer|lora_\w+)\.?(.*)$/.exec(key) ?? [];
      const layer = layers.get(path);
      if (tables.get(stored) === null) continue; // in the floating weight
      if (layer === undefined) out[key] = tensor;
      else if (part === "base_layer" && name === "weight") out[`${path}.weight`] = this.#mergedWeight(layer);
      else if (part === "base_layer" && name === "bias") out[`${path}.bias`] = tensor;
    }
    return out;
  }
  #mergedWeight(layer: LoraLayer): Tensor {
    return noGrad(() => {
      const weight = layer.weight.detach();
      return this.merged || !this.enabled ? weight : withDelta(weight, layer.delta());
    });
  }

  /** Writes mergedStateDict as safetensors: a checkpoint of the model's own kind. */
  async saveMerged(path: string): Promise<void> {
    await save(this.mergedStateDict(), path);
  }

  /**
   * Takes the adapter out of the model: the layers that were wrapped are back in their places, the other trained parameters have their
   * old values, and what collected gradients before does again.
   */
  unload(): void {
    this.unmerge();
    if (this.enabled) this.#swap();
    this.#remove();
  }
  /** Merges the adapter and takes its layers out of the model: a plain model that has learnt. */
  mergeAndUnload(): void {
    this.merge();
    this.#remove();
  }
  #remove(): void {
    for (const { layer, places: at } of this.#wrapped)
      for (const { parent, name } of at) parent.replaceChild(name, layer.base_layer);
    for (const [parameter, flag] of this.#flags) parameter.requiresGrad_(flag);
    for (const name of methods) delete (this.#model as unknown as Record<string, unknown>)[name];
    delete (this.#model as unknown as Record<string, unknown>)["adapter"];
  }

  /** The adapter's tensors by PEFT's keys: "base_model.model.….lora_A.weight", and what else is trained. */
  adapterStateDict(): StateDict {
    const out: StateDict = {};
    for (const { path, layer } of this.#wrapped)
      for (const [name, tensor] of Object.entries(layer.stateDict()))
        if (name.startsWith("lora_")) out[`${prefix}${path}.${name}`] = tensor;
    for (const { path, parameter } of this.#trained) out[prefix + path] = parameter;
    return out;
  }

  /** Writes adapter_config.json and adapter_model.safetensors into a folder, as PEFT's save_pretrained. The adapter must be on. */
  async saveAdapter(folder: string): Promise<void> {
    if (!this.enabled)
      throw new FinetuneError(
        "saveAdapter: the adapter is off, and what is trained is not in the model; call enableAdapter()",
      );
    const transposed = this.#wrapped.some(({ layer }) => linearKind(layer.base_layer)?.transposed(layer.base_layer));
    await ensureFolder(folder);
    await save(this.adapterStateDict(), join(folder, weightsFile));
    await writeFileAtomic(join(folder, configFile), formatAdapterConfig(this.config, transposed));
  }

  /**
   * Reads the tensors of an adapter of the same shape (rank, alpha, layers) from a folder in PEFT's layout into this one. Throws
   * FinetuneError naming what differs; nothing is loaded then.
   */
  async loadAdapter(folder: string): Promise<void> {
    this.#expectUnmerged("loadAdapter");
    if (!this.enabled) throw new FinetuneError("loadAdapter: the adapter is off; call enableAdapter() before");
    const saved = await readConfig(folder);
    for (const key of ["r", "alpha", "rslora", "rankPattern", "alphaPattern"] as const) {
      const [theirs, own] = [saved, this.config].map((config) => JSON.stringify(config[key]));
      if (theirs !== own)
        throw new FinetuneError(
          `${join(folder, configFile)}: ${key} is ${theirs}, the model's adapter has ${own}; load it into a model without adapter: loadAdapter(model, folder)`,
        );
    }
    await this.loadWeights(folder);
  }

  /** The tensors alone; for whoever has made the adapter by the folder's configuration. */
  async loadWeights(folder: string): Promise<void> {
    const { file, given } = await readWeights(folder);
    const own = this.adapterStateDict();
    const missing = Object.keys(own).filter((key) => !(key in given));
    // PEFT writes the biases of modules_to_save a second time, with bias="all", and the weight beside the update of an embedding or a head
    const unknown = Object.keys(given).filter(
      (key) => !(key in own) && !/\.(modules_to_save|original_module)\./.test(key) && !this.#tableOf(key),
    );
    const wrong = Object.keys(own).filter((key) => given[key] && given[key].shape.join() !== own[key].shape.join());
    const complaints = [
      ...(missing.length ? [`it lacks ${listed(missing)}`] : []),
      ...(unknown.length ? [`the model has no place for ${listed(unknown)}`] : []),
      ...wrong.map((key) => `"${key}" has shape [${given[key].shape}], the model's is [${own[key].shape}]`),
    ];
    if (complaints.length)
      throw new FinetuneError(`${file}: ${complaints.join("; ")}. Is it an adapter of this model? Nothing was loaded`);
    for (const [key, table] of Object.entries(given)) await this.#expectTable(file, key, table);
    for (const [key, tensor] of Object.entries(own)) setData(tensor, given[key].to(tensor.dtype).to(tensor.device));
    await realize(...Object.values(own));
  }

  /** The own weight of a layer with an update that PEFT's key is of. */
  #tableOf(key: string): Tensor | undefined {
    const [, path] = /^base_model\.model\.(.+)\.base_layer\.weight$/.exec(key) ?? [];
    return path === undefined ? undefined : this.layers.get(path)?.weight;
  }
  /** PEFT saves an embedding's table, and a head's, with its update; one that has been trained, or has other tokens, makes it another model. */
  async #expectTable(file: string, key: string, saved: Tensor): Promise<void> {
    const table = this.#tableOf(key);
    if (table === undefined) return;
    const same =
      table.shape.join() === saved.shape.join() && noGrad(() => saved.to(table.dtype).to(table.device).eq(table).all());
    if (same && (await same.item())) return;
    throw new FinetuneError(
      `${file}: "${key}" is not the table [${table.shape}] of this model; merge the adapter into its model with PEFT and use that. Nothing was loaded`,
    );
  }
}

/** A weight and an update, added before they are rounded to the weight's dtype. */
const withDelta = (weight: Tensor, delta: Tensor): Tensor => weight.to(delta.dtype).add(delta).to(weight.dtype);

/** What a model can do once it has an adapter. */
const methods = [
  "merge",
  "unmerge",
  "enableAdapter",
  "disableAdapter",
  "withoutAdapter",
  "mergedStateDict",
  "saveMerged",
  "unload",
  "mergeAndUnload",
  "adapterStateDict",
  "saveAdapter",
  "loadAdapter",
] as const satisfies readonly (keyof LoraAdapter)[];

/** A model with an adapter: the model itself, with the adapter's methods. */
export type Adapted<M extends Module> = M &
  Pick<LoraAdapter, (typeof methods)[number]> & { readonly adapter: LoraAdapter };

/** The adapter of a model; undefined where it has none. */
export const adapterOf = (model: Module): LoraAdapter | undefined => (model as { adapter?: LoraAdapter }).adapter;

/** The tensors of an adapter's folder: safetensors, or what older versions of PEFT wrote. */
async function readWeights(folder: string): Promise<{ readonly file: string; readonly given: StateDict }> {
  const file = join(folder, weightsFile);
  try {
    return { file, given: await load(file) };
  } catch (error) {
    if ((error as { code?: string }).code !== "ENOENT") throw error;
    const older = join(folder, "adapter_model.bin");
    const given = await loadTorch(older).catch((other: { code?: string }) => {
      throw other.code === "ENOENT" ? error : other;
    });
    return { file: older, given };
  }
}

async function readConfig(folder: string): Promise<AdapterConfig> {
  const file = join(folder, configFile);
  return parseAdapterConfig(new TextDecoder().decode(await readBytes(file)), file);
}

function checkOptions(options: LoraOptions): void {
  const { r = 8, alpha = 8, dropout = 0, bias = "none", rankPattern = {}, alphaPattern = {} } = options;
  for (const [pattern, rank] of Object.entries(rankPattern))
    if (!Number.isInteger(rank) || rank < 1)
      throw new FinetuneError(
        `applyLora: rankPattern gives "${pattern}" the rank ${rank}; it must be a whole number ≥ 1`,
      );
  for (const [pattern, own] of Object.entries(alphaPattern))
    if (!(own > 0)) throw new FinetuneError(`applyLora: alphaPattern gives "${pattern}" ${own}; it must be above 0`);
  for (const pattern of [rankPattern, alphaPattern].flatMap(Object.keys))
    pathTest(pattern, "applyLora: rankPattern and alphaPattern");
  if (!Number.isInteger(r) || r < 1) throw new FinetuneError(`applyLora: r must be a whole number ≥ 1, got ${r}`);
  if (!(alpha > 0)) throw new FinetuneError(`applyLora: alpha must be above 0, got ${alpha}; twice the rank is usual`);
  if (!(dropout >= 0 && dropout < 1))
    throw new FinetuneError(`applyLora: dropout must be a probability below 1, got ${dropout}`);
  if (!["none", "all", "lora_only"].includes(bias))
    throw new FinetuneError(`applyLora: bias must be "none", "all" or "lora_only", got ${JSON.stringify(bias)}`);
}

/**
 * Wraps layers of `model` in place by LoRA layers (Hu et al. 2021) and freezes all else, so that only the adapter is trained; the
 * model computes what it did until then. Gives the model back, with the methods of its adapter. Make the optimiser afterwards. Throws FinetuneError
 * where nothing matches, or one of several names does not, where the target names what can't be wrapped, or where there is an adapter already.
 */
export function applyLora<M extends Module>(model: M, options: LoraOptions = {}): Adapted<M> {
  checkOptions(options);
  if (adapterOf(model) !== undefined)
    throw new FinetuneError("applyLora: the model has an adapter; unload() or mergeAndUnload() it before");
  const { r = 8, alpha = 8, dropout = 0, target = "all-linear", exclude = [], rslora = false, bias = "none" } = options;
  const modulesToSave = savedModules(model, options);
  const { rankPattern = {}, alphaPattern = {} } = options;
  const state = { enabled: true, merged: false };
  const found = findTargets(model, target, exclude, modulesToSave);

  const flags = new Map(model.parameters().map((parameter) => [parameter, parameter.requiresGrad]));
  model.requiresGrad_(false);
  const wrapped = found.map(({ path, module, places: at }): Wrapped => {
    const rank = numberFor(path, rankPattern, r);
    const scaling = numberFor(path, alphaPattern, alpha) / (rslora ? Math.sqrt(rank) : rank);
    const layer = withLora(module, { r: rank, scaling, dropout, state });
    layer.train(module.training);
    for (const { parent, name } of at) parent.replaceChild(name, layer);
    return { path, layer, places: at };
  });
  const trained = trainedParameters(model, modulesToSave, bias);
  for (const { parameter } of trained) parameter.requiresGrad_();

  const config: AdapterConfig = {
    r,
    alpha,
    dropout,
    rslora,
    bias,
    rankPattern,
    alphaPattern,
    layers: null,
    ...(isNames(target) && isNames(exclude)
      ? { targetModules: target, excludeModules: exclude.length > 0 ? exclude : null }
      : { targetModules: wrapped.map(({ path }) => path), excludeModules: null }),
    modulesToSave,
    taskType: options.taskType ?? null,
    baseModel: options.baseModel ?? (model as { nameOrPath?: string }).nameOrPath ?? null,
  };
  const adapter = new LoraAdapter(model, config, state, wrapped, trained, flags);
  const attach = (name: string, value: unknown) => Object.defineProperty(model, name, { value, configurable: true });
  for (const name of methods) {
    if (name in model)
      throw new FinetuneError(`applyLora: ${model.constructor.name} has a "${name}" of its own; rename it`);
    attach(name, (adapter[name] as (...args: unknown[]) => unknown).bind(adapter));
  }
  attach("adapter", adapter);
  return model as Adapted<M>;
}

/** Applies the adapter of a folder in PEFT's layout to a model that has none. Throws FinetuneError, FileError, SafetensorsError. */
export async function loadAdapter<M extends Module>(model: M, folder: string): Promise<Adapted<M>> {
  const config = await readConfig(folder);
  const tuned = applyLora(model, {
    r: config.r,
    alpha: config.alpha,
    dropout: config.dropout,
    rslora: config.rslora,
    bias: config.bias,
    rankPattern: config.rankPattern,
    alphaPattern: config.alphaPattern,
    target: isNames(config.targetModules) ? knownOf(model, config.targetModules, config.layers) : config.targetModules,
    modulesToSave: config.modulesToSave.filter((name) => isThere(model, name)), // "score" stands in every classifier's
    ...(config.excludeModules === null ? {} : { exclude: config.excludeModules }),
    ...(config.taskType === null ? {} : { taskType: config.taskType }),
    ...(config.baseModel === null ? {} : { baseModel: config.baseModel }),
  });
  try {
    await tuned.adapter.loadWeights(folder);
  } catch (error) {
    tuned.unload();
    throw error;
  }
  return tuned;
}

/** What an adapter names may be more than the model has: PEFT's lists are made for several kinds of models. Of some layers alone: their paths. */
function knownOf(model: Module, names: readonly string[], layers: LayerChoice | null): readonly string[] {
  if (layers !== null) {
    const paths = [...places(model)].map(({ path }) => path);
    return paths.filter((path) => names.includes(path) || (endsIn(path, names) && inLayers(path, layers)));
  }
  const missed = unmatched(model, names);
  const known = names.filter((name) => !missed.includes(name));
  return known.length > 0 ? known : names;
}

/** Whether modules_to_save means the module of this path. */
const isSavedBy = (path: string, names: readonly string[]): boolean => names.some((name) => path.endsWith(name));
const isThere = (model: Module, name: string): boolean =>
  [...places(model)].some(({ path }) => isSavedBy(path, [name]));

/** The modules that are trained as a whole: those given, and a classifier's head. */
function savedModules(model: Module, { modulesToSave = [], taskType }: LoraOptions): string[] {
  const names = [...modulesToSave];
  const paths = [...places(model)].map(({ path }) => path);
  if (taskType === "SEQ_CLS")
    for (const head of ["classifier", "score"]) if (paths.includes(head) && !names.includes(head)) names.push(head);
  for (const name of modulesToSave)
    if (!isThere(model, name))
      throw new FinetuneError(`applyLora: modulesToSave names "${name}", which no module of the model is called`);
  return names;
}

interface Found {
  readonly path: string;
  readonly module: Module;
  readonly places: { readonly parent: Module; readonly name: string }[];
}

const isNames = (target: Target): target is readonly string[] => Array.isArray(target);

/** The names that no module is called. */
function unmatched(model: Module, names: readonly string[]): string[] {
  const paths = [...places(model)].map(({ path }) => path);
  return names.filter((name) => !paths.some((path) => endsIn(path, [name])));
}

/** The modules to wrap, each once. */
function findTargets(
  model: Module,
  target: Target,
  exclude: RegExp | string | readonly string[],
  modulesToSave: readonly string[],
): Found[] {
  const test = targetTest(target);
  const excluded = pathTest(exclude, "applyLora: exclude");
  const saved = [...places(model)].filter(({ path }) => isSavedBy(path, modulesToSave)).map(({ path }) => path);
  const isSaved = (path: string) => saved.some((s) => path === s || path.startsWith(`${s}.`));
  const found = new Map<Module, Found>();
  for (const { parent, name, path, module } of places(model)) {
    const known = found.get(module);
    if (known) known.places.push({ parent, name });
    if (known || excluded(path) || isSaved(path) || !test(path, module)) continue;
    if (!isAdaptable(module))
      throw new FinetuneError(
        `applyLora: the target matches "${path}", a ${module.constructor.name}; LoRA can wrap Linear, GPT-2's Conv1D, quantised linear layers and Embedding. ` +
          "Name those, or leave it out by exclude",
      );
    found.set(module, { path, module, places: [{ parent, name }] });
  }
  // a name that is misspelt among others would be left out unseen
  const missed = isNames(target) ? unmatched(model, target) : [];
  if (found.size === 0 || missed.length > 0) {
    const paths = [...places(model)].filter(({ module }) => isAdaptable(module)).map(({ path }) => path);
    const there = [...new Set(paths.map((path) => path.slice(path.lastIndexOf(".") + 1)))];
    const shown =
      missed.length > 0 ? listed(missed) : target instanceof RegExp ? String(target) : JSON.stringify(target);
    throw new FinetuneError(
      `applyLora: the target ${shown} matches no layer that LoRA can wrap; ` +
        (paths.length === 0
          ? "there are none in this model"
          : `there are ${listed(there)}, the first as "${paths[0]}"`),
    );
  }
  return [...found.values()];
}

/** The parameters of the base model that are trained: of modulesToSave, and biases. */
function trainedParameters(model: Module, modulesToSave: readonly string[], bias: LoraBias): Trained[] {
  const tied = (model as { tiedEmbeddings?: readonly string[] }).tiedEmbeddings ?? [];
  const out = new Map<Parameter, Trained>();
  const add = (path: string, parameter: Parameter) => {
    if (out.has(parameter)) return;
    const other = noGrad(() => parameter.detach().clone());
    out.set(parameter, { path, parameter, other });
  };
  for (const { path, module } of places(model)) {
    if (isSavedBy(path, modulesToSave)) {
      if (tied.includes(path))
        throw new FinetuneError(
          `applyLora: modulesToSave names "${path}", which is also the output head; PEFT would train a copy of one of them. Adapt it by target instead`,
        );
      for (const [name, parameter] of module.namedParameters()) add(`${path}.${name}`, parameter);
    }
    const own = (isLoraLayer(module) ? module.base_layer : module) as { bias?: unknown };
    const takes = bias === "all" || (bias === "lora_only" && isLoraLayer(module));
    if (takes && isParameter(own.bias)) add(isLoraLayer(module) ? `${path}.base_layer.bias` : `${path}.bias`, own.bias);
  }
  return [...out.values()];
}

const isParameter = (x: unknown): x is Parameter => typeof x === "object" && x !== null && "requiresGrad_" in x;
