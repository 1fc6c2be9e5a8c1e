/**
 * Texts as vectors: an encoder's states, pooled and normalised as the folder of a sentence-transformers model says (Reimers & Gurevych
 * 2019, Sentence-BERT). What it says is read in embedding-settings.ts.
 */
import { paddedLength } from "../data/padding.ts";
import { inEvaluation } from "../nn/module.ts";
import { cat, noGrad, realize, type Tensor, tensor } from "../tensor/index.ts";
import { PretrainedError } from "./config.ts";
import { type EmbeddingSettings, plainEmbedding } from "./embedding-settings.ts";
import { pool, type TextEncoder } from "./encoder.ts";

/** What is needed of a tokenizer: the ids of a text, with the tokens that the model expects around it. */
export interface EmbeddingTokenizer {
  encode(text: string, options?: { readonly addSpecialTokens?: boolean }): ArrayLike<number>;
}

/** An encoder that knows how its vectors are made, as `fromPretrained` gives for the task "features". */
export interface SentenceEncoder extends TextEncoder {
  readonly tokenizer?: EmbeddingTokenizer;
  readonly embeddingSettings?: EmbeddingSettings | null;
}

/** What is not given is the model's own, where it knows it; else the mean of all tokens, not normalised. */
export interface EmbedOptions extends Partial<EmbeddingSettings> {
  /** Which of the prompts is put before every text. */
  readonly promptName?: string;
  readonly tokenizer?: EmbeddingTokenizer;
  /** Texts that are computed at once. Default: 32. */
  readonly batch?: number;
}

/** The model's own settings with what is given in their place. */
function settingsFor(
  { embeddingSettings }: SentenceEncoder,
  { promptName, ...given }: EmbedOptions,
): EmbeddingSettings {
  const set = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined));
  const settings: EmbeddingSettings = { ...plainEmbedding, ...embeddingSettings, ...set };
  if (promptName === undefined) return settings;
  if (Object.hasOwn(settings.prompts, promptName)) return { ...settings, prompt: settings.prompts[promptName] };
  throw new PretrainedError(
    `embed: there is no prompt "${promptName}"; the model has ${Object.keys(settings.prompts).join(", ") || "none"}`,
  );
}

/** How many tokens of a text are not pooled: those that stand before it where the prompt is not. */
function skippedTokens(tokenizer: EmbeddingTokenizer, { prompt, poolPrompt, lowerCase }: EmbeddingSettings): number {
  if (poolPrompt || prompt === "") return 0;
  const text = lowerCase ? prompt.toLowerCase() : prompt;
  const [whole, bare] = [tokenizer.encode(text), tokenizer.encode(text, { addSpecialTokens: false })];
  // what stands behind a text does not behind the prompt
  return whole.length > bare.length && whole[whole.length - 1] !== bare[bare.length - 1]
    ? whole.length - 1
    : whole.length;
}

/** Rows of tokens, padded to one length: ids and mask, [batch, time] each. */
function padded(rows: readonly ArrayLike<number>[], batch: number, longest: number, pad: number): [Tensor, Tensor] {
  const time = paddedLength(Math.max(...rows.map(({ length }) => length)), longest);
  const shape = [batch, time];
  const ids = new Int32Array(batch * time).fill(pad);
  const mask = new Int32Array(batch * time);
  for (let r = 0; r < batch; r++) mask[r * time] = 1; // a row that is missing: a softmax over nothing would be NaN
  rows.forEach((row, r) => {
    ids.set(row, r * time);
    mask.fill(1, r * time, r * time + row.length);
  });
  return [tensor(ids, { shape }), tensor(mask, { shape })];
}

/**
 * A vector for each text: [texts, width], in float32, on the model's device. What is longer than `maxLength` keeps its beginning and its last token, as
 * sentence-transformers cuts it. Batches hold texts of like length, and padding changes nothing. Throws PretrainedError where a text has no tokens.
 */
export async function embed(
  model: SentenceEncoder,
  texts: readonly string[],
  options: EmbedOptions = {},
): Promise<Tensor> {
  const settings = settingsFor(model, options);
  const { pooling, normalize, maxLength, dimensions } = settings;
  const { batch = 32 } = options;
  const tokenizer = options.tokenizer ?? model.tokenizer;
  if (!tokenizer) throw new PretrainedError("embed: the model knows no tokenizer; give one");
  if (texts.length === 0) throw new PretrainedError("embed: there are no texts");
  if (!Number.isInteger(batch) || batch < 1)
    throw new PretrainedError(`embed: batch must be a whole number ≥ 1, got ${batch}`);
  const longest = Math.min(maxLength ?? model.contextLength, model.contextLength);
  const skipped = skippedTokens(tokenizer, settings);
  if (skipped >= longest)
    throw new PretrainedError(`embed: the prompt has ${skipped} tokens, of the ${longest} that are seen of a text`);
  const read = (text: string) => tokenizer.encode(settings.lowerCase ? text.toLowerCase() : text);
  const rows = texts.map((text, i) => {
    const ids = Int32Array.from(read(settings.prompt + text));
    if (ids.length === 0) throw new PretrainedError(`embed: text ${i} has no tokens`);
    if (ids.length <= longest) return ids;
    const kept = ids.slice(0, longest);
    kept[longest - 1] = ids[ids.length - 1];
    return kept;
  });
  const order = rows.map((_, i) => i).sort((a, b) => rows[b].length - rows[a].length || a - b);
  const parts: Tensor[] = [];
  await inEvaluation(model, async () => {
    for (let at = 0; at < order.length; at += batch) {
      const chosen = order.slice(at, at + batch);
      const vectors = noGrad(() => {
        const [ids, attentionMask] = padded(
          chosen.map((i) => rows[i]),
          batch,
          longest,
          model.padTokenId ?? 0,
        );
        const after = (x: Tensor): Tensor => (skipped === 0 ? x : x.narrow(1, skipped, x.shape[1] - skipped));
        const hidden = after(model.forward(ids, { attentionMask }));
        const pooled = pooling.map((kind) => pool(hidden, kind, after(attentionMask)));
        const vector = unit(cat(pooled, 1).to("float32"), normalize).narrow(0, 0, chosen.length);
        return dimensions === null || dimensions >= vector.shape[1] ? vector : vector.narrow(1, 0, dimensions);
      });
      await realize(vectors);
      parts.push(vectors);
    }
  });
  const places = new Int32Array(order.length);
  for (const [place, text] of order.entries()) places[text] = place;
  const vectors = cat(parts, 0).indexSelect(0, tensor(places));
  await realize(vectors);
  return vectors;
}

/** Rows divided by their lengths, as torch.nn.functional.normalize does. */
const unit = (x: Tensor, normalize: boolean): Tensor =>
  normalize ? x.div(x.square().sum({ dim: 1, keepdim: true }).sqrt().clamp(1e-12)) : x;
