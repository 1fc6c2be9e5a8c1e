/**
 * Text from a language model that knows its tokenizer: a prompt or a conversation goes in, pieces of text come out as soon as they are
 * certain. No piece ends within a character, and none shows a part of a stop string.
 */
import { NablaError } from "../core/errors.ts";
import type { ChatTemplate, DecodeStream, Message, Tokenizer } from "../data/index.ts";
import type { TextSide } from "../models/index.ts";
import { newTokens } from "./loop.ts";
import type { LanguageModel } from "./readers.ts";
import type { GenerateOptions } from "./sample.ts";
import { StopStrings } from "./stop-strings.ts";

/** A language model that knows its text, as `fromPretrained` gives. */
export type TextModel = LanguageModel & TextSide;

export interface TextOptions extends GenerateOptions {
  /** Generation ends where one of these stands in the text; it is not part of what is given. It may lie across tokens. */
  readonly stopStrings?: string | readonly string[];
  /** Generation ends with one of these; its text is not given. Default: those that the model's configuration names. */
  readonly stopTokens?: readonly number[];
  /** Whether special tokens are left out of the text. Default: true. */
  readonly skipSpecialTokens?: boolean;
  /** Whether what is not given of the sampling is as in the checkpoint's generation_config.json. Default: false. */
  readonly useGenerationConfig?: boolean;
  /** Default: the model's. */
  readonly tokenizer?: Tokenizer;
}

export interface ChatOptions extends TextOptions {
  /** Default: the model's. */
  readonly chatTemplate?: ChatTemplate;
  /** Names that the template may use, as `tools` or `enable_thinking`. */
  readonly variables?: Readonly<Record<string, unknown>>;
}

export type Prompt = string | readonly Message[];

/** A model that need not know its text, with what is given in its place. */
type PossiblyText = LanguageModel & Partial<TextSide>;

export const tokenizerOf = (model: PossiblyText, options: TextOptions): Tokenizer => {
  const tokenizer = options.tokenizer ?? model.tokenizer;
  if (tokenizer === undefined)
    throw new NablaError(
      `generate: ${model.constructor.name} does not know its tokenizer; give { tokenizer }, or load it by fromPretrained`,
    );
  return tokenizer;
};

/** The ids of a prompt: a text with the special tokens around it, or a conversation up to where the assistant begins to speak. */
export function promptIds(model: PossiblyText, prompt: Prompt, options: ChatOptions): Int32Array {
  const tokenizer = tokenizerOf(model, options);
  if (typeof prompt === "string") return tokenizer.encode(prompt);
  const template = options.chatTemplate ?? model.chatTemplate;
  if (!template)
    throw new NablaError(
      "generate: the model has no chat template, so that it is not known how it reads conversations; give { chatTemplate }, or a text",
    );
  const { variables } = options;
  const text = template.render(prompt, { addGenerationPrompt: true, ...(variables && { variables }) });
  return tokenizer.encode(text, { addSpecialTokens: false }); // the template writes them itself
}

/** The options with what the model says in the place of what is not given. */
export function withDefaults(model: PossiblyText, options: TextOptions): TextOptions {
  const sampling = options.useGenerationConfig ? model.generationConfig : {};
  const given = Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
  return { stopTokens: options.stopTokens ?? model.stopTokens ?? [], ...sampling, ...given } as TextOptions;
}

/** Stop strings that are special tokens: they are not in the text, which leaves them out, but they end it. */
function specialStops(tokenizer: Tokenizer, stops: string | readonly string[] = []): number[] {
  return [stops].flat().flatMap((stop) => {
    const id = tokenizer.tokenId(stop);
    const isSpecial = id !== undefined && stop !== "" && tokenizer.decode([id], { skipSpecialTokens: true }) === "";
    return isSpecial && tokenizer.decode([id]) === stop ? [id] : [];
  });
}

/**
 * Tokens of one text that become pieces: decoded, up to a stop token or a stop string. They go on with the text whose tokens are `before`:
 * what tokenizers drop at a text's beginning (SentencePiece's first space) is dropped there, as when both are decoded as one.
 */
export class Pieces {
  readonly #stream: DecodeStream;
  /** Characters of the text before that the stream has not given yet. */
  #before: number;
  readonly #stops: StopStrings;
  readonly #stopTokens: readonly number[];
  #isDone = false;

  constructor(
    tokenizer: Tokenizer,
    { stopStrings, stopTokens = [], skipSpecialTokens = true }: TextOptions,
    before: ArrayLike<number> = [],
  ) {
    this.#stream = tokenizer.decodeStream({ skipSpecialTokens });
    this.#before = before.length === 0 ? 0 : tokenizer.decode(before, { skipSpecialTokens }).length;
    for (let i = 0; i < before.length; i++) this.#fresh(this.#stream.push(before[i]));
    this.#stops = new StopStrings(stopStrings);
    this.#stopTokens = [...stopTokens, ...(skipSpecialTokens ? specialStops(tokenizer, stopStrings) : [])];
  }

  /** Whether the text has ended by itself. */
  get isDone(): boolean {
    return this.#isDone;
  }

  /** What of a piece is not of the text before. */
  #fresh(piece: string): string {
    const old = Math.min(this.#before, piece.length);
    this.#before -= old;
    return piece.slice(old);
  }

  push(token: number): string {
    if (this.#stopTokens.includes(token)) {
      this.#isDone = true;
      return "";
    }
    const piece = this.#stops.push(this.#fresh(this.#stream.push(token)));
    this.#isDone = this.#stops.hasStopped;
    return piece;
  }

  /** What was held back. */
  end(): string {
    const piece = this.#stops.push(this.#fresh(this.#stream.end()));
    return this.#stops.hasStopped ? piece : piece + this.#stops.end();
  }
}

/** The tokens of the text that a new one goes on with: an answer in a conversation begins a text of its own. */
export const goneBefore = (prompt: Prompt, ids: Int32Array): ArrayLike<number> =>
  typeof prompt === "string" ? ids : [];

/** Pieces of text as they are generated: `for await (const piece of stream)`, or `await stream.text()`. It can be read once. */
export class TextStream implements AsyncIterable<string> {
  readonly #pieces: AsyncGenerator<string, void, undefined>;
  readonly #ids: number[] = [];
  #finishReason: "stop" | "length" | null = null;
  #isRead = false;

  constructor(model: PossiblyText, prompt: Prompt, options: ChatOptions) {
    this.#pieces = this.#generate(model, prompt, options);
  }

  /** The new tokens so far, with the one that ended the text. */
  get ids(): readonly number[] {
    return this.#ids;
  }

  /** "stop" where a stop token or stop string ended the text, "length" where maxNewTokens did; null as long as it goes on. */
  get finishReason(): "stop" | "length" | null {
    return this.#finishReason;
  }

  async *#generate(model: PossiblyText, prompt: Prompt, given: ChatOptions): AsyncGenerator<string, void, undefined> {
    const options = withDefaults(model, given);
    const ids = promptIds(model, prompt, given);
    const pieces = new Pieces(tokenizerOf(model, options), options, goneBefore(prompt, ids));
    for await (const token of newTokens(model, ids, options)) {
      this.#ids.push(token);
      const piece = pieces.push(token);
      if (piece !== "") yield piece;
      if (pieces.isDone) break;
    }
    const rest = pieces.end();
    if (rest !== "") yield rest;
    this.#finishReason = pieces.isDone ? "stop" : "length";
  }

  [Symbol.asyncIterator](): AsyncGenerator<string, void, undefined> {
    if (this.#isRead) throw new NablaError("generate: this text has been read; call generate again for another");
    this.#isRead = true;
    return this.#pieces;
  }

  /** All of the text. */
  async text(): Promise<string> {
    let text = "";
    for await (const piece of this) text += piece;
    return text;
  }
}
