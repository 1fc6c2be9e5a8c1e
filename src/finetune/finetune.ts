/**
 * finetune: measures a model, trains what in it collects gradients (an adapter, a part, all) on examples, keeps the weights of
 * the best evaluation, and measures again, so that what was gained stands beside what was there. The loop is `train/fit.ts`.
 */
import { join } from "../data/path.ts";
import { synchronize } from "../execution/index.ts";
import { ensureFolder, writeFileAtomic } from "../formats/atomic.ts";
import { save } from "../formats/index.ts";
import { type GenerateOptions, generate, type LanguageModel } from "../generate/index.ts";
import { BlockEmbedding, BlockLinear } from "../models/blocks.ts";
import type { Module } from "../nn/index.ts";
import { AdamW, LambdaLR } from "../optim/index.ts";
import { asState, getRngState, noGrad, realize, setRngState, type Tensor } from "../tensor/index.ts";
import {
  type Batches,
  type Callback,
  checkpointToResume,
  type FitResult,
  fit,
  logMetrics,
  type Precision,
  saveCheckpoints,
} from "../train/index.ts";
import { adapterOf } from "./adapter.ts";
import { FinetuneError } from "./errors.ts";
import { evaluationFile, examplesPrint, plainColumns } from "./evaluation-file.ts";
import { type Comparison, compare, type Measurement, measure } from "./measure.ts";
import { QuantizedLinear } from "./quantized-linear.ts";
import { languageTask, type Task } from "./tasks.ts";

/** A sample of a language model: what it makes of a prompt. */
export interface SampleOptions extends Partial<Omit<GenerateOptions, "onToken">> {
  readonly prompts: readonly string[];
  readonly tokenizer: { encode(text: string): ArrayLike<number>; decode(ids: ArrayLike<number>): string };
}

export interface Sample {
  readonly prompt: string;
  readonly before: string;
  readonly after: string;
}

export type Schedule = "cosine" | "linear" | "constant";

export interface FinetuneOptions<M extends Module, E, B> {
  /** What to learn from. */
  readonly data: readonly E[];
  /** What to measure on, before and after. It should have nothing in common with `data`. */
  readonly evaluation: readonly E[];
  /** What is learnt. Default: languageTask(), the next token. */
  readonly task?: Task<M, E, B>;
  /** Passes over the data. Default: 3, or as many as `steps` takes. */
  readonly epochs?: number;
  /** Steps of the optimiser in all. */
  readonly steps?: number;
  /** Peak learning rate. Default: 2e-4 for an adapter, 2e-5 otherwise. */
  readonly lr?: number;
  /** Examples (rows, with packing) in a batch. Default: 8. */
  readonly batch?: number;
  /** Batches whose gradients make one step. Default: 1. */
  readonly accumulate?: number;
  /** How the rate goes down after the warm-up, to 0. Default: "linear". */
  readonly schedule?: Schedule;
  /** The share of the steps, n of them, in which the rate rises: to 1 / (n + 1) of its peak at once, where transformers' first step has 0. Default: 0.03. */
  readonly warmup?: number;
  /** Whether blocks are computed again for the gradient instead of being kept: a third more work, less memory. Default: false. */
  readonly recompute?: boolean;
  /** What training computes products in: "bfloat16" is mixed precision (see autocast). Before and after are measured in float32. */
  readonly precision?: Precision;
  /** AdamW's, on matrices only. Default: 0. */
  readonly weightDecay?: number;
  /** Default: 1. */
  readonly clipGradNorm?: number;
  /** Of the order of the data, dropout and samples. Default: 0. */
  readonly seed?: number;
  /** Steps between evaluations in training; by default at the end of each epoch. */
  readonly evaluateEvery?: number;
  /** Evaluations without improvement after which training ends; by default it goes on to its end. */
  readonly patience?: number;
  /** Whether the weights of the best evaluation are kept rather than the last ones. Default: true. */
  readonly keepBest?: boolean;
  /** Texts to continue before and after. Only for language models. */
  readonly samples?: SampleOptions;
  /** A folder for the log, checkpoints, the measurements and what was learnt. */
  readonly out?: string;
  /** Steps between checkpoints in `out`. Default: none but the last. */
  readonly checkpointEvery?: number;
  /** Goes on from the newest checkpoint in `out`; to the bit as if it had not been stopped. The other options must be the same. */
  readonly resume?: boolean;
  readonly callbacks?: readonly Callback[];
  /** Ends the training after the step at hand; what was learnt is measured and kept. */
  readonly signal?: AbortSignal;
}

export interface FinetuneResult {
  readonly before: Measurement;
  readonly after: Measurement;
  /** after − before with paired 95 % intervals. */
  readonly difference: Comparison;
  readonly samples: readonly Sample[];
  /** Evaluation examples that are in the training data too, word for word: they prove nothing. */
  readonly overlap: number;
  /** Training examples that were cut, and that had nothing to learn. */
  readonly truncated: number;
  readonly dropped: number;
  /** Examples of the evaluation that were cut. */
  readonly evaluationTruncated: number;
  /** The step whose weights the model has now. */
  readonly bestStep: number;
  readonly training: FitResult;
}

const wholes = ["epochs", "steps", "batch", "accumulate", "evaluateEvery", "patience", "checkpointEvery"] as const;

function check<M extends Module, E, B>(options: FinetuneOptions<M, E, B>): void {
  for (const name of wholes) {
    const value = options[name];
    if (value !== undefined && (!Number.isInteger(value) || value < 1))
      throw new FinetuneError(`finetune: ${name} must be a whole number ≥ 1, got ${value}`);
  }
  const { lr, warmup = 0, schedule = "linear", data, evaluation } = options;
  if (lr !== undefined && !(lr > 0)) throw new FinetuneError(`finetune: lr must be above 0, got ${lr}`);
  if (!(warmup >= 0 && warmup < 1))
    throw new FinetuneError(`finetune: warmup is a share of the steps, 0 or more and below 1, got ${warmup}`);
  if (!Object.hasOwn(shapes, schedule))
    throw new FinetuneError(`finetune: schedule must be one of ${Object.keys(shapes).join(", ")}, got ${schedule}`);
  if (!data?.length) throw new FinetuneError("finetune: data holds no examples");
  if (!evaluation?.length)
    throw new FinetuneError(
      "finetune: evaluation holds no examples; hold some back from the data, so that it shows whether the model got better",
    );
  if ((options.resume || options.checkpointEvery !== undefined) && options.out === undefined)
    throw new FinetuneError("finetune: resume and checkpointEvery need a folder: give out");
}

/** The rate after the warm-up as a share of its peak; `x` goes from 0 to 1. */
const shapes: Readonly<Record<Schedule, (x: number) => number>> = {
  constant: () => 1,
  linear: (x) => 1 - x,
  cosine: (x) => (1 + Math.cos(Math.PI * x)) / 2,
};

function scheduler(optimizer: AdamW, totalSteps: number, warmup: number, schedule: Schedule): LambdaLR {
  const rising = Math.round(warmup * totalSteps);
  return new LambdaLR(optimizer, (step) => {
    if (step < rising) return (step + 1) / (rising + 1);
    return shapes[schedule](Math.min(1, (step - rising) / Math.max(1, totalSteps - rising)));
  });
}

/** Turns recomputation on, where it is asked for; gives what turns it back. */
function recomputing(model: Module & { recompute?: unknown }, on: boolean | undefined): () => void {
  const before = model.recompute;
  if (on === undefined) return () => {};
  if (typeof before !== "boolean")
    throw new FinetuneError(`finetune: ${model.constructor.name} can't recompute; decoders can (CausalLM, GPT2)`);
  model.recompute = on;
  return () => {
    model.recompute = before;
  };
}

/** AdamW over what collects gradients; vectors (biases, norms) do not decay. */
function optimizerFor(model: Module, lr: number, weightDecay: number): AdamW {
  const trained = model.parameters().filter((parameter) => parameter.requiresGrad);
  if (trained.length === 0)
    throw new FinetuneError(
      "finetune: no parameter of the model collects gradients; apply LoRA, or unfreeze a part (requiresGrad_, freeze)",
    );
  const matrices = trained.filter(({ ndim }) => ndim >= 2);
  const vectors = trained.filter(({ ndim }) => ndim < 2);
  const groups = [
    { params: matrices, weightDecay },
    { params: vectors, weightDecay: 0 },
  ].filter(({ params }) => params.length > 0);
  return new AdamW(groups, { lr });
}

/** The parameters and buffers that training changes, by name; codes of quantised weights are not among them. */
function learnt(model: Module): Record<string, Tensor> {
  const out: Record<string, Tensor> = {};
  const fixed = new Set<Tensor>();
  for (const module of model.modules())
    if (module instanceof QuantizedLinear || module instanceof BlockLinear || module instanceof BlockEmbedding)
      for (const buffer of module.buffers()) fixed.add(buffer);
  for (const [name, parameter] of model.namedParameters()) if (parameter.requiresGrad) out[name] = parameter;
  for (const [name, buffer] of model.namedBuffers()) if (buffer.persistent && !fixed.has(buffer)) out[name] = buffer;
  return out;
}

/** Keeps a copy of what has been learnt at the best evaluation. `putBack` gives its step, and the model those weights. */
interface BestKeeper extends Callback {
  putBack(model: Module, lastStep: number): number;
}

/** A copy of `now`, in the memory of `into`, the last one: left to the collector that would go too late. */
async function copied(
  now: Readonly<Record<string, Tensor>>,
  into: Readonly<Record<string, Tensor>> | null,
): Promise<Record<string, Tensor>> {
  const copy =
    into ?? noGrad(() => Object.fromEntries(Object.entries(now).map(([key, x]) => [key, x.detach().clone()])));
  await realize(...Object.values(copy));
  // in-place operations write the memory of states only
  for (const x of Object.values(copy)) asState(x);
  if (into === null) return copy;
  noGrad(() => {
    for (const [key, x] of Object.entries(copy)) x.copy_(now[key]);
  });
  await synchronize(); // not realize, which would hand out the new values in memory of their own
  return copy;
}

function bestKeeper(patience: number | undefined, restore: boolean): BestKeeper {
  let best = Number.POSITIVE_INFINITY;
  let bestStep = 0;
  let waited = 0;
  let weights: Record<string, Tensor> | null = null;
  return {
    name: "finetuneBest",
    async onStep(run, record) {
      const loss = record["validationLoss"];
      if (loss === undefined) return;
      if (loss < best) {
        [best, bestStep, waited] = [loss, record.step, 0];
        if (!restore) return;
        weights = await copied(run.weights(), weights);
      } else if (++waited >= (patience ?? Number.POSITIVE_INFINITY))
        run.stop(`the evaluation has not improved ${patience} times; the best was ${best} at step ${bestStep}`);
    },
    // after fit, not at its end: the last checkpoint is of the last step, so that a resumed run is the one that was stopped
    putBack(model, lastStep) {
      if (weights === null) return lastStep;
      if (bestStep !== lastStep) model.loadStateDict(weights, { strict: false });
      return bestStep;
    },
    state: () => ({ best, bestStep, waited, weights }),
    load(state: { best: number; bestStep: number; waited: number; weights: Record<string, Tensor> | null }) {
      ({ best, bestStep, waited, weights } = state);
    },
  };
}

/** Evaluation examples as fit takes its validation data. */
const validationOf = <M extends Module, E, B>(
  model: M,
  task: Task<M, E, B>,
  examples: readonly E[],
  batch: number,
): Batches<B> => ({
  *[Symbol.iterator]() {
    for (const measured of task.evaluation(model, examples, batch)) yield measured.batch;
  },
});

async function continued(model: Module, samples: SampleOptions | undefined, seed: number): Promise<string[]> {
  if (samples === undefined) return [];
  const { prompts, tokenizer, maxNewTokens = 48, ...options } = samples;
  if (typeof (model as Module & { logitsAt?: unknown }).logitsAt !== "function")
    throw new FinetuneError(`finetune: samples need a language model; ${model.constructor.name} has no logitsAt`);
  const texts: string[] = [];
  for (const prompt of prompts) {
    const ids = Array.from(tokenizer.encode(prompt));
    const made = await generate(model as LanguageModel, ids, { seed, maxNewTokens, ...options });
    // decoded together: some tokenizers drop the space at a text's beginning, which is none here
    const [before, whole] = [tokenizer.decode(ids), tokenizer.decode([...ids, ...made])];
    texts.push(whole.startsWith(before) ? whole.slice(before.length) : tokenizer.decode(made));
  }
  return texts;
}

/**
 * Fine-tunes `model` in place: measures it on `evaluation`, trains what collects gradients on `data` by AdamW, and measures again. Throws
 * FinetuneError for options and examples that can't be used, and what fit throws (DivergedError).
 */
export async function finetune<M extends Module, E, B>(
  model: M,
  options: FinetuneOptions<M, E, B>,
): Promise<FinetuneResult> {
  check(options);
  const task = options.task ?? (languageTask() as unknown as Task<M, E, B>);
  const { data, evaluation, batch = 8, accumulate = 1, steps, seed = 0, out, resume = false } = options;
  const {
    epochs = steps === undefined ? 3 : undefined,
    warmup = 0.03,
    schedule = "linear",
    clipGradNorm = 1,
  } = options;
  const lr = options.lr ?? (adapterOf(model) ? 2e-4 : 2e-5);
  const train = task.training(model, data, { batch, seed });
  const perEpoch = Math.ceil(train.length / accumulate);
  const totalSteps = Math.min(steps ?? Number.POSITIVE_INFINITY, (epochs ?? Number.POSITIVE_INFINITY) * perEpoch);
  const optimizer = optimizerFor(model, lr, options.weightDecay ?? 0);
  if (out !== undefined) await ensureFolder(out);
  const checkpoints = out === undefined ? undefined : join(out, "checkpoints");
  const from = resume ? await checkpointToResume(checkpoints as string) : undefined;

  const before = await measure(model, task, evaluation, { batch });
  const textsBefore = await continued(model, options.samples, seed);
  const best = bestKeeper(options.patience, options.keepBest ?? true);
  const putBack = recomputing(model, options.recompute);
  const training = await fit<M, B>(model, {
    train,
    validation: validationOf(model, task, evaluation, batch),
    batchLoss: task.loss,
    optimizer,
    scheduler: scheduler(optimizer, totalSteps, warmup, schedule),
    accumulate,
    clipGradNorm,
    seed,
    ...(epochs !== undefined && { epochs }),
    ...(steps !== undefined && { steps }),
    ...(options.evaluateEvery !== undefined && { validateEvery: options.evaluateEvery }),
    ...(options.precision !== undefined && { precision: options.precision }),
    ...(options.signal && { signal: options.signal }),
    weights: learnt, // the rest is in the model's own files
    ...(from !== undefined && { resume: from }),
    callbacks: [
      best,
      ...(out === undefined ? [] : [logMetrics({ dir: out, resume })]),
      ...(options.checkpointEvery === undefined || checkpoints === undefined
        ? []
        : [saveCheckpoints({ every: options.checkpointEvery, dir: checkpoints })]),
      ...(options.callbacks ?? []),
    ],
  }).finally(putBack);
  const bestStep = best.putBack(model, training.step);
  const random = getRngState(); // samples draw nothing of training's
  const after = await measure(model, task, evaluation, { batch });
  const textsAfter = await continued(model, options.samples, seed);
  setRngState(random);

  const seen = new Set(data.map(task.identity));
  const result: FinetuneResult = {
    before,
    after,
    difference: compare(before, after), // as a later comparison of the kept measurements gives it
    samples: textsBefore.map((text, i) => ({
      prompt: (options.samples as SampleOptions).prompts[i],
      before: text,
      after: textsAfter[i],
    })),
    overlap: evaluation.filter((example) => seen.has(task.identity(example))).length,
    truncated: task.truncated?.(model, data) ?? 0,
    dropped: train.dropped ?? 0,
    evaluationTruncated: task.truncated?.(model, evaluation) ?? 0,
    bestStep,
    training,
  };
  if (out !== undefined) await saveOutcome(model, result, out, examplesPrint(evaluation.map(task.identity)));
  return result;
}

/** Writes what was learnt (an adapter in PEFT's layout, or the whole model) and evaluation.json. */
async function saveOutcome(model: Module, result: FinetuneResult, out: string, print: string): Promise<void> {
  const adapter = adapterOf(model);
  if (adapter) await adapter.saveAdapter(out);
  else await save(model, join(out, "model.safetensors"));
  await writeFileAtomic(join(out, evaluationFile), formatOutcome(result, print));
}

/** evaluation.json: both measurements with the sums of each example, from which any comparison can be made again. */
function formatOutcome(
  { before, after, difference, samples, overlap, bestStep }: FinetuneResult,
  print: string,
): string {
  const plain = ({ examples, ...rest }: Measurement) => ({ ...rest, examples: plainColumns(examples) });
  return `${JSON.stringify({ before: plain(before), after: plain(after), difference, samples, overlap, bestStep, print })}\n`;
}
