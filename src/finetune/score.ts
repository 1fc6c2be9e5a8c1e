/** How likely a language model finds texts that are given, token by token. Sums by example, for data sets, are measure.ts's. */
import type { Tokenizer } from "../data/index.ts";
import * as F from "../nn/functional.ts";
import { inEvaluation } from "../nn/module.ts";
import { noGrad, tensor } from "../tensor/index.ts";
import { FinetuneError } from "./errors.ts";
import { encodeAfter } from "./supervised.ts";
import type { TrainableLanguageModel } from "./tasks.ts";
import { ignored } from "./token-batches.ts";

/** A text, all of which is judged, or one of which the completion is. */
export type ScoredText = string | { readonly prompt: string; readonly completion: string };

export interface TextScore {
  /** The tokens that are judged: of a text all but its first (what begins every text), of a prompt with completion the completion's. */
  readonly ids: Int32Array;
  /** The natural logarithm of each one's probability after all that stands before it. */
  readonly logProbs: Float64Array;
  /** Their sum: the text's logarithmic probability. exp(−logProb / ids.length) is its perplexity. */
  readonly logProb: number;
}

export interface ScoreOptions {
  /** Default: the model's. */
  readonly tokenizer?: Tokenizer;
  /** Texts that are read at once. Default: 8. */
  readonly batch?: number;
}

interface Row {
  readonly ids: readonly number[];
  /** The place of the first token that is judged. */
  readonly from: number;
}

/**
 * The logarithmic probabilities of texts, in the order given. A prompt is encoded as `generate` reads it and the completion as what it
 * adds to it, as lm-evaluation-harness's loglikelihood does; a text is encoded with its special tokens. The model is in evaluation mode
 * meanwhile. Throws FinetuneError for a text that is longer than the model sees, or has no token that another stands before.
 */
export async function scoreTexts(
  model: TrainableLanguageModel & { readonly tokenizer?: Tokenizer },
  texts: readonly ScoredText[],
  options: ScoreOptions = {},
): Promise<TextScore[]> {
  const { tokenizer = model.tokenizer, batch = 8 } = options;
  if (tokenizer === undefined)
    throw new FinetuneError(`scoreTexts: ${model.constructor.name} does not know its tokenizer; give { tokenizer }`);
  const rows = texts.map((text, i) => rowOf(text, `texts[${i}]`, tokenizer, model.contextLength));
  const scores: TextScore[] = [];
  await inEvaluation(model, async () => {
    for (let i = 0; i < rows.length; i += batch) scores.push(...(await scored(model, rows.slice(i, i + batch))));
  });
  return scores;
}

function rowOf(text: ScoredText, where: string, tokenizer: Tokenizer, contextLength: number): Row {
  const before = Array.from(tokenizer.encode(typeof text === "string" ? text : text.prompt));
  const judged = typeof text === "string" ? [] : encodeAfter(tokenizer, text.prompt, text.completion, where);
  const ids = [...before, ...judged];
  const from = typeof text === "string" ? 1 : before.length;
  if (from === 0 || from >= ids.length)
    throw new FinetuneError(
      `${where}: there must be a token before those that are judged, and one at least that is; it has ${before.length} and ${judged.length}`,
    );
  if (ids.length > contextLength + 1)
    throw new FinetuneError(
      `${where}: ${ids.length} tokens are more than the ${contextLength + 1} that a model which sees ${contextLength} can judge`,
    );
  return { ids, from };
}

async function scored(model: TrainableLanguageModel, rows: readonly Row[]): Promise<TextScore[]> {
  const longest = Math.max(...rows.map(({ ids }) => ids.length)) - 1;
  // few lengths, so that few programs are compiled; what fills a row up stands behind all that is judged
  const time = Math.min(model.contextLength, 32 * Math.ceil(longest / 32));
  const inputs = new Int32Array(rows.length * time);
  const targets = new Int32Array(rows.length * time).fill(ignored);
  rows.forEach(({ ids, from }, row) => {
    inputs.set(ids.slice(0, -1), row * time);
    targets.set(ids.slice(from), row * time + from - 1);
  });
  const losses = noGrad(() => {
    const logits = model.forward(tensor(inputs, { shape: [rows.length, time] }));
    return F.crossEntropy(logits.flatten(0, 1).to("float32"), tensor(targets), {
      reduction: "none",
      ignoreIndex: ignored,
    });
  });
  const values = await losses.data();
  return rows.map(({ ids, from }, row) => {
    const judged = Int32Array.from(ids.slice(from));
    const logProbs = Float64Array.from(judged, (_, i) => -Number(values[row * time + from - 1 + i]));
    return { ids: judged, logProbs, logProb: logProbs.reduce((a, b) => a + b, 0) };
  });
}
