/** How a model is made ready to learn, by the method of a fine-tuning: adapters put on it, its base quantised, parts of it frozen. */
import { sizeOf } from "../core/shape.ts";
import { applyLora, freeze, QuantizedLinear, type Target } from "../finetune/index.ts";
import { BlockEmbedding, BlockLinear } from "../models/index.ts";
import type { Module } from "../nn/index.ts";
import { manualSeed } from "../tensor/index.ts";
import { formatCount } from "../train/terminal.ts";
import type { FinetuneSettings } from "./finetune-settings.ts";

/** Heads that a checkpoint of the bare model lacks, by the names of modules; distilbert's has two layers. */
const headNames = ["pre_classifier", "classifier", "score"];

/** The parts of a classifier that learn as a whole beside an adapter. */
export const headsOf = (model: Module): string[] => headNames.filter((name) => hasChild(model, name));

/** Prepares `model` in place, and says in a line what will learn. The base of QLoRA has been quantised as it was read. */
export function prepareModel(model: Module, settings: FinetuneSettings): string {
  const total = elements(model);
  const { method, rank, alpha, quantize } = settings;
  const share = (trained: number): string =>
    `${formatCount(trained)} of ${formatCount(total)} parameters learn (${((100 * trained) / total).toPrecision(3)} %)`;
  if (method === "full") {
    model.requiresGrad_(true);
    return `full: ${share(total)}`;
  }
  if (method === "freeze") {
    const trained = freeze(model, frozenParts(model, settings));
    const paths = [...model.namedParameters()].filter(([, p]) => p.requiresGrad).map(([path]) => path);
    return `freeze: ${share(trained)}, ${paths[0]} … ${paths.at(-1)}`;
  }
  const quantized = [...model.modules()].filter((layer) => layer instanceof QuantizedLinear);
  const stored = [...model.modules()].filter((layer) => layer instanceof BlockLinear);
  manualSeed(settings.seed);
  const heads = settings.task === "language" ? [] : headsOf(model);
  const tuned = applyLora(model, {
    r: rank,
    alpha,
    dropout: settings.dropout,
    rslora: settings.rslora,
    target: targetOf(settings.target),
    modulesToSave: heads,
    taskType: settings.task === "language" ? "CAUSAL_LM" : "SEQ_CLS",
    baseModel: settings.model,
  });
  const base =
    (quantized.length === 0 ? "" : `; ${quantized.length} layers quantised to ${quantize}`) +
    (stored.length === 0 ? "" : `; ${stored.length} layers as they are stored (${formatsOf(model).join(", ")})`);
  const trained = tuned.parameterCount({ trainable: true });
  const head = heads.length === 0 ? "" : `, and ${heads.join(" and ")} as a whole`;
  return `${method}: rank ${rank}, alpha ${alpha}, on ${tuned.adapter.layers.size} layers${head}${base}; ${share(trained)}`;
}

/** What --target names, as applyLora takes it. */
export const targetOf = (names: readonly string[]): Target =>
  names.length === 1 && names[0] === "all-linear" ? "all-linear" : names;

/** Parameters, quantised ones too. */
export const elements = (model: Module): number =>
  [...model.modules()].reduce((n, layer) => n + codedElements(layer), model.parameterCount());

const isBlocks = (layer: Module): layer is BlockLinear | BlockEmbedding =>
  layer instanceof BlockLinear || layer instanceof BlockEmbedding;

function codedElements(layer: Module): number {
  if (layer instanceof QuantizedLinear) return layer.inFeatures * layer.outFeatures;
  return isBlocks(layer) ? sizeOf(layer.weightShape) : 0;
}

/** GGUF's types that the model's matrices are in, those of the most parameters first. */
export function formatsOf(model: Module): string[] {
  const sizes = new Map<string, number>();
  for (const layer of model.modules())
    if (isBlocks(layer)) sizes.set(layer.format, (sizes.get(layer.format) ?? 0) + codedElements(layer));
  return [...sizes].sort(([, a], [, b]) => b - a).map(([format]) => format);
}

const hasChild = (model: Module, name: string): boolean => [...model.namedChildren()].some(([child]) => child === name);

/** What --train or --freeze name; without either the last block and what comes after the blocks learn. */
function frozenParts(model: Module, { train, freeze: frozen }: FinetuneSettings) {
  if (frozen !== null) return { freeze: frozen };
  if (train !== null) return { train };
  const paths = [...model.namedParameters()].map(([path]) => path);
  const block = (path: string): number => Number(/\.(\d+)\./.exec(path)?.[1] ?? -1);
  const last = Math.max(...paths.map(block));
  const end = paths.findLastIndex((path) => block(path) === last);
  return { train: paths.filter((path, i) => (last >= 0 && block(path) === last) || i > end) };
}
