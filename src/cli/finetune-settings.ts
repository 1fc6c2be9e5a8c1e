/** What a fine-tuning was asked to do, as its training.json keeps it: made of the flags, and read again by --resume. */
import { existsSync } from "node:fs";
import { basename, resolve } from "node:path";
import type { FinetuneFlags, FinetuneTask, Method } from "./finetune.ts";
import type { BaseQuantization } from "./pretrained-model.ts";
import { type RunSettings, readSettings } from "./run-folder.ts";

export interface FinetuneSettings extends RunSettings {
  readonly kind: "finetune";
  /** A folder or a file, absolute. */
  readonly model: string;
  readonly task: FinetuneTask;
  readonly method: Method;
  /** Of LoRA. */
  readonly rank: number;
  readonly alpha: number;
  readonly dropout: number;
  readonly target: readonly string[];
  readonly rslora: boolean;
  /** Of the base; null where it is not quantised. */
  readonly quantize: BaseQuantization | null;
  /** Of freeze: beginnings of parameters' names; null where the other one is given, or neither. */
  readonly train: readonly string[] | null;
  readonly freeze: readonly string[] | null;
  /** Null: as stored. */
  readonly dtype: "f32" | "bf16" | "f16" | null;
  /** Absolute paths; null where a share of the data is held out. */
  readonly evaluation: readonly string[] | null;
  readonly evaluationShare: number;
  readonly also: readonly string[];
  readonly text: string;
  readonly label: string;
  readonly turns: "all" | "last";
  readonly epochs: number | null;
  readonly steps: number | null;
  readonly lr: number;
  readonly schedule: "linear" | "cosine" | "constant";
  readonly warmup: number;
  readonly weightDecay: number;
  readonly batch: number;
  readonly accumulate: number;
  /** Null: the model's context, at most 512. */
  readonly maxLength: number | null;
  readonly packing: boolean;
  readonly recompute: boolean;
  readonly evaluateEvery: number | null;
  readonly patience: number | null;
  readonly prompts: readonly string[] | null;
  readonly samples: number;
  readonly sampleTokens: number;
}

export const usesLora = (method: Method): boolean => method === "lora" || method === "qlora";

/** The settings that flags ask for. */
export function settingsOf(
  model: string,
  flags: FinetuneFlags & { readonly method: Method; readonly data: readonly string[] },
): FinetuneSettings {
  const { method, rank } = flags;
  const lora = usesLora(method);
  return {
    format: 1,
    kind: "finetune",
    device: flags.device ?? "", // what computes is known once it is open
    seed: flags.seed,
    data: flags.data.map((path) => resolve(path)),
    checkpointEvery: flags.checkpointEvery,
    model: existsSync(model) ? resolve(model) : model,
    task: flags.task,
    method,
    rank,
    alpha: flags.alpha ?? 2 * rank,
    dropout: flags.dropout,
    target: flags.target ?? ["all-linear"],
    rslora: flags.rslora ?? false,
    quantize: method === "qlora" ? (flags.quantize ?? "nf4") : null,
    train: flags.train ?? null,
    freeze: flags.freeze ?? null,
    // Sixteen bits are too coarse for weights that learn; an adapter's own are float32 in any case
    dtype: flags.dtype ?? (lora ? null : "f32"),
    evaluation: flags.eval?.map((path) => resolve(path)) ?? null,
    evaluationShare: flags.evalShare,
    also: (flags.also ?? []).map((path) => resolve(path)),
    text: flags.text,
    label: flags.label,
    turns: flags.turns,
    epochs: flags.epochs ?? (flags.steps === undefined ? 3 : null),
    steps: flags.steps ?? null,
    lr: flags.lr ?? (lora ? 2e-4 : 2e-5),
    schedule: flags.schedule,
    warmup: flags.warmup,
    weightDecay: flags.weightDecay,
    batch: flags.batch,
    accumulate: flags.accumulate,
    maxLength: flags.maxLength ?? null,
    packing: flags.packing ?? false,
    recompute: flags.recompute ?? false,
    precision: flags.precision ?? "f32",
    evaluateEvery: flags.evaluateEvery ?? null,
    patience: flags.patience ?? null,
    prompts: flags.sample ?? null,
    samples: flags.samples,
    sampleTokens: flags.sampleTokens,
  };
}

export const readFinetuneSettings = (folder: string): FinetuneSettings =>
  readSettings<FinetuneSettings>(folder, "finetune");

/** A folder for a run whose --out was not given: runs/NAME-ft, or the next that is free. */
export function freeFolder(model: string): string {
  const name = `runs/${basename(resolve(model)).replace(/\.gguf$/i, "")}-ft`;
  let folder = name;
  for (let n = 2; existsSync(folder); n++) folder = `${name}-${n}`;
  return folder;
}
