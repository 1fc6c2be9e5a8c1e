/**
 * A run that trains a GPT, as `train gpt` and `start` share it: its settings, its data, its model, and the training itself with the
 * log, the checkpoints and what is shown. The flags are in train.ts, the folder's rules in run-folder.ts.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { readTextCorpus, type TextCorpus } from "../data/text.ts";
import { evaluationBatches, type TextBatch, TextBatches } from "../data/text-batches.ts";
import { ByteLevelBpe, CharTokenizer, loadTokenizer, type Tokenizer } from "../data/tokenizer.ts";
import { generate } from "../generate/generate.ts";
import type { LanguageModel } from "../generate/readers.ts";
import { GPT2, type GPT2Config, gpt2FlopsPerStep, gpt2ParameterCount } from "../models/index.ts";
import { AdamW, warmupCosine } from "../optim/index.ts";
import { manualSeed, type Tensor, tensor } from "../tensor/index.ts";
import { type Batches, evaluate } from "../train/evaluate.ts";
import type { FitResult } from "../train/fit.ts";
import { formatCount, formatLoss } from "../train/terminal.ts";
import { exitCodes } from "./exit.ts";
import { checkData, fingerprint, precisionOf, RunError, type RunSettings, readJson, writeJson } from "./run-folder.ts";
import { runSession, type SessionOptions, sayFinished, sayInterrupted } from "./session.ts";

export interface GptSettings extends RunSettings {
  readonly kind: "gpt";
  readonly layers: number;
  readonly width: number;
  readonly heads: number;
  readonly context: number;
  readonly dropout: number;
  readonly tokenizer: "characters" | "bpe";
  readonly vocab: number;
  readonly batch: number;
  readonly accumulate: number;
  readonly steps: number;
  readonly lr: number;
  readonly minLr: number;
  readonly warmup: number;
  readonly weightDecay: number;
  readonly beta2: number;
  readonly clip: number;
  readonly validationShare: number;
  readonly validateEvery: number;
}

export interface GptData {
  readonly tokenizer: Tokenizer;
  readonly train: Int32Array;
  readonly validation: Int32Array;
  /** Characters of the validation text. */
  readonly validationCharacters: number;
}

// ---- the model -------------------------------------------------------------------------------------------------------------

export const modelConfig = (
  { layers, width, heads, context, dropout }: Pick<GptSettings, "layers" | "width" | "heads" | "context" | "dropout">,
  vocabSize: number,
): GPT2Config => ({
  vocabSize,
  contextLength: context,
  numLayers: layers,
  numHeads: heads,
  hiddenSize: width,
  dropout,
});

/** The model as Hugging Face's config.json describes it. */
const toHuggingFace = (config: GPT2Config) => ({
  architectures: ["GPT2LMHeadModel"],
  model_type: "gpt2",
  activation_function: "gelu_new",
  vocab_size: config.vocabSize,
  n_positions: config.contextLength,
  n_ctx: config.contextLength,
  n_embd: config.hiddenSize,
  n_layer: config.numLayers,
  n_head: config.numHeads,
  attn_pdrop: config.dropout ?? 0,
  embd_pdrop: config.dropout ?? 0,
  resid_pdrop: config.dropout ?? 0,
  initializer_range: 0.02,
  layer_norm_epsilon: 1e-5,
  tie_word_embeddings: true,
  torch_dtype: "float32",
});

/** The model of a run's config.json. Throws RunError. */
export function readModelConfig(folder: string): GPT2Config {
  const path = join(folder, "config.json");
  if (!existsSync(path)) throw new RunError(`${folder} has no config.json; a run's folder is what --out named`);
  const json = readJson(path) as Record<string, unknown>;
  if (json["model_type"] !== "gpt2")
    throw new RunError(`${path}: a model of type ${JSON.stringify(json["model_type"])}; expected "gpt2"`);
  const number = (key: string): number => {
    const value = json[key];
    if (typeof value !== "number") throw new RunError(`${path}: ${key} must be a number, got ${JSON.stringify(value)}`);
    return value;
  };
  return {
    vocabSize: number("vocab_size"),
    contextLength: number("n_positions"),
    numLayers: number("n_layer"),
    numHeads: number("n_head"),
    hiddenSize: number("n_embd"),
    dropout: number("resid_pdrop"),
    layerNormEps: number("layer_norm_epsilon"),
  };
}

/** The optimiser that language models are trained with: AdamW, whose decay spares biases and layer norms. */
export function gptOptimizer(
  model: GPT2,
  { lr, beta2, weightDecay }: Pick<GptSettings, "lr" | "beta2" | "weightDecay">,
): AdamW {
  const parameters = model.parameters();
  return new AdamW(
    [
      { params: parameters.filter((p) => p.ndim >= 2), weightDecay },
      { params: parameters.filter((p) => p.ndim < 2), weightDecay: 0 },
    ],
    { lr, betas: [0.9, beta2] },
  );
}

export type Pair = readonly [inputs: Tensor, targets: Tensor];

const toTensors = ({ inputs, targets, batch, context }: TextBatch): Pair => [
  tensor(inputs, { shape: [batch, context], dtype: "int32" }),
  tensor(targets, { shape: [batch, context], dtype: "int32" }),
];

export const lossOf = (model: GPT2, [inputs, targets]: Pair): Tensor => model.forward(inputs, targets);

/** Random windows without end, whose position can be saved. */
export function trainingBatches(
  tokens: Int32Array,
  settings: Pick<GptSettings, "batch" | "context" | "seed">,
): Batches<Pair> {
  const { batch, context, seed } = settings;
  const source = new TextBatches(tokens, { batch, context, seed });
  return {
    *[Symbol.iterator]() {
      for (;;) yield toTensors(source.next());
    },
    state: () => source.state(),
    load: (state: Parameters<TextBatches["load"]>[0]) => source.load(state),
  };
}

/** The validation tokens as batches; at most `limit` whole ones, spread evenly, if given. */
export function validationBatches(
  tokens: Int32Array,
  { batch, context }: { readonly batch: number; readonly context: number },
  limit?: number,
): Batches<Pair> {
  let list = [...evaluationBatches(tokens, { batch, context })];
  if (limit !== undefined && list.length > limit) {
    const whole = list.filter((b) => b.batch === batch && b.context === context);
    const count = Math.min(limit, whole.length);
    list = Array.from({ length: count }, (_, i) => whole[Math.floor((i * whole.length) / count)]);
  }
  return {
    length: list.length,
    *[Symbol.iterator]() {
      for (const b of list) yield toTensors(b);
    },
  };
}

// ---- the data --------------------------------------------------------------------------------------------------------------

function makeTokenizer(corpus: TextCorpus, { tokenizer, vocab }: GptSettings): Tokenizer {
  // Characters of the whole text, as nanoGPT does, so that the validation part can be encoded; a bpe can encode anything.
  return tokenizer === "characters"
    ? CharTokenizer.fromText(corpus.text)
    : ByteLevelBpe.train(corpus.train, { vocabSize: vocab });
}

/** Reads a run's text, and makes its tokenizer or loads the one that it has. */
export async function prepareData(folder: string, settings: GptSettings): Promise<GptData> {
  const corpus = await readTextCorpus(settings.data, { validation: settings.validationShare });
  const path = join(folder, "tokenizer.json");
  const tokenizer = existsSync(path) ? await loadTokenizer(path) : makeTokenizer(corpus, settings);
  if (!existsSync(path)) await tokenizer.save(folder);
  const train = tokenizer.encode(corpus.train);
  const validation = tokenizer.encode(corpus.validation);
  await checkData(folder, fingerprint(train, validation));
  // What training would only find out at its first step or validation.
  new TextBatches(train, settings);
  if (settings.validationShare > 0) validationBatches(validation, settings, 1);
  await writeJson(join(folder, "config.json"), toHuggingFace(modelConfig(settings, tokenizer.vocabSize)));
  return { tokenizer, train, validation, validationCharacters: corpus.validation.length };
}

// ---- training --------------------------------------------------------------------------------------------------------------

export interface RunOutcome {
  readonly result: FitResult;
  readonly model: GPT2;
  /** Over the whole validation part, nats a token; null without one, or when the run was interrupted. */
  readonly validationLoss: number | null;
  readonly seconds: number;
}

const validationLimit = 20; // batches of a validation along the way; the last one takes all

export const sessionOf = (
  folder: string,
  settings: GptSettings,
  options: { readonly resume: boolean; readonly checkpointEvery?: number; readonly detectAnomaly?: boolean },
): SessionOptions => ({
  folder,
  kind: "gpt",
  resume: options.resume,
  checkpointEvery: options.checkpointEvery ?? settings.checkpointEvery,
  detectAnomaly: options.detectAnomaly ?? false,
  seed: settings.seed,
  perStep: settings.batch * settings.context * settings.accumulate,
  unit: "tok",
});

/** Trains a run from where it is to its end. Ctrl-C ends it after a step, with a checkpoint. */
export async function trainRun(session: SessionOptions, settings: GptSettings, data: GptData): Promise<RunOutcome> {
  manualSeed(settings.seed);
  const model = new GPT2(modelConfig(settings, data.tokenizer.vocabSize));
  const optimizer = gptOptimizer(model, settings);
  const scheduler = warmupCosine(optimizer, {
    warmupSteps: settings.warmup,
    totalSteps: settings.steps,
    minRatio: settings.minLr / settings.lr,
  });
  const hasValidation = settings.validationShare > 0;
  const { result, finished, seconds } = await runSession<GPT2, Pair, { validationLoss: number | null }>(
    session,
    model,
    {
      train: trainingBatches(data.train, settings),
      ...(hasValidation ? { validation: validationBatches(data.validation, settings, validationLimit) } : {}),
      batchLoss: lossOf,
      optimizer,
      scheduler,
      steps: settings.steps,
      accumulate: settings.accumulate,
      ...(settings.clip > 0 ? { clipGradNorm: settings.clip } : {}),
      ...precisionOf(settings),
      validateEvery: settings.validateEvery,
    },
    async () => ({
      validationLoss: hasValidation
        ? (await evaluate<GPT2, Pair>(model, validationBatches(data.validation, settings), { batchLoss: lossOf })).loss
        : null,
    }),
  );
  return { result, model, validationLoss: finished?.validationLoss ?? null, seconds };
}

/** What a run is, in a line or two. */
export function describeRun(settings: GptSettings, data: GptData, device: string): string {
  const config = modelConfig(settings, data.tokenizer.vocabSize);
  const step = { batchSize: settings.batch * settings.accumulate, sequenceLength: settings.context };
  return (
    `GPT: ${settings.layers} layers, width ${settings.width}, ${settings.heads} heads, context ${settings.context}; ` +
    `${formatCount(gpt2ParameterCount(config))} parameters, ${formatCount(gpt2FlopsPerStep(config, step))}FLOP a step, on ${device}\n` +
    `text: ${formatCount(data.train.length)} tokens to train on, ${formatCount(data.validation.length)} to validate on, ` +
    `vocabulary ${data.tokenizer.vocabSize} (${data.tokenizer.kind})`
  );
}

/** Says how a run ended, and gives the exit code. */
export async function report(
  session: SessionOptions,
  settings: GptSettings,
  data: GptData,
  outcome: RunOutcome,
): Promise<number> {
  const { result, validationLoss, seconds } = outcome;
  if (result.ended === "aborted") return sayInterrupted(session, result.step, settings.steps);
  await sayFinished(session, result, seconds);
  if (validationLoss !== null) {
    const bits = (validationLoss * (data.validation.length - 1)) / data.validationCharacters / Math.LN2;
    console.log(
      `validation loss ${formatLoss(validationLoss)} nats a token, perplexity ${Math.exp(validationLoss).toPrecision(4)}, ` +
        `${bits.toFixed(3)} bits a character`,
    );
  }
  return exitCodes.ok;
}

/** A text that the model writes, by characters that a terminal can show. */
export async function sample(
  model: LanguageModel,
  tokenizer: Tokenizer,
  prompt: string,
  options: {
    readonly maxNewTokens: number;
    readonly temperature?: number;
    readonly topK?: number;
    readonly seed?: number;
  },
): Promise<string> {
  const ids = tokenizer.encode(prompt);
  const fresh = await generate(model, ids, options);
  return printable(tokenizer.decode([...ids, ...fresh]));
}

/** Control characters as their pictures: a model's text must not steer a terminal. */
export const printable = (text: string): string =>
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
  text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g, (c) => {
    const code = c.charCodeAt(0);
    return code < 0x20 ? String.fromCharCode(0x2400 + code) : "\u2421";
  });
