/**
 * Work on whole texts, which takes seconds: on a page a worker does it, elsewhere it is done at once. For a prompt the
 * tokenizers' own methods are right.
 */
import { type BpeTrainingOptions, ByteLevelBpe } from "./bpe.ts";
import { elsewhere } from "./elsewhere.ts";
import { CharTokenizer, received, type SentTokenizer, sent, type Tokenizer } from "./tokenizer.ts";

/** The ids of a large text, as `tokenizer.encode(text)` gives them. Throws TokenizerError, or the signal's reason. */
export async function encodeText(
  tokenizer: Tokenizer,
  text: string,
  options: { readonly signal?: AbortSignal } = {},
): Promise<Int32Array> {
  if (elsewhere) return elsewhere("encodeWith", [sent(tokenizer), text], options);
  options.signal?.throwIfAborted();
  return tokenizer.encode(text);
}

/** What `encodeText` asks of the worker. */
export const encodeWith = (tokenizer: SentTokenizer, text: string): Int32Array => received(tokenizer).encode(text);

export type TokenizerKind =
  | { readonly kind: "characters"; readonly unk?: string }
  | ({ readonly kind: "byte-level-bpe" } & BpeTrainingOptions);

/** A tokenizer made from a text: `CharTokenizer.fromText` or `ByteLevelBpe.train`. Throws TokenizerError, or the signal's reason. */
export async function trainTokenizer(
  text: string,
  how: TokenizerKind,
  options: { readonly signal?: AbortSignal } = {},
): Promise<Tokenizer> {
  if (elsewhere) return received(await elsewhere("trainOn", [text, how], options));
  options.signal?.throwIfAborted();
  return how.kind === "characters" ? CharTokenizer.fromText(text, how) : ByteLevelBpe.train(text, how);
}

/** What `trainTokenizer` asks of the worker. */
export const trainOn = async (text: string, how: TokenizerKind): Promise<SentTokenizer> =>
  sent(await trainTokenizer(text, how));
