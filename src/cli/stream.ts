/** A model's text as it comes: tokens become characters, what could be the beginning of a stop string is held back. */
import { type GenerateOptions, generate, type LanguageModel } from "../generate/index.ts";
import type { ModelTokenizer } from "./model-tokenizer.ts";

export interface StreamOptions extends Omit<GenerateOptions, "onToken" | "stopTokens"> {
  /** Texts at whose beginning the output ends. */
  readonly stop: readonly string[];
  /** Asked after each token: whether somebody wants it to end. */
  readonly stopped?: () => boolean;
}

export interface Streamed {
  readonly text: string;
  readonly tokens: number;
}

/** Continues `ids`, hands each new piece of text to `write`, and gives all of it. */
export async function streamText(
  model: LanguageModel,
  tokenizer: ModelTokenizer,
  ids: readonly number[],
  write: (piece: string) => void,
  { stop, stopped, ...options }: StreamOptions,
): Promise<Streamed> {
  const begun = tokenizer.decode(ids).length;
  const all = [...ids];
  let shown = 0;
  let ended = false;
  const textNow = (): string => tokenizer.decode(all).slice(begun);
  /** Shows what is certain: whole characters, and nothing that a stop string may begin with. */
  const show = (final: boolean): void => {
    const text = textNow();
    const found = stop.map((each) => text.indexOf(each)).filter((at) => at >= 0);
    if (found.length > 0) ended = true;
    let end = found.length > 0 ? Math.min(...found) : text.length;
    if (!final && !ended) {
      end = text.replace(/\ufffd+$/, "").length;
      for (const each of stop)
        for (let length = Math.min(each.length - 1, end); length > 0; length--)
          if (text.slice(0, end).endsWith(each.slice(0, length))) {
            end -= length;
            break;
          }
    }
    if (end > shown) write(text.slice(shown, end));
    shown = Math.max(shown, end);
  };
  const fresh = await generate(model, ids, {
    ...options,
    stopTokens: tokenizer.endIds,
    onToken(token) {
      all.push(token);
      show(false);
      return !(ended || stopped?.() === true);
    },
  });
  show(true);
  return { text: textNow().slice(0, shown), tokens: fresh.length };
}
