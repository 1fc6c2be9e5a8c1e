/**
 * A tokenizer as its `tokenizer.json` describes it, part by part: added tokens, normalizer, pre-tokenizer, model, post-processor,
 * decoder. It encodes and decodes as Hugging Face's `tokenizers` does. Byte-level BPE with GPT-2's splitting and nothing
 * else has a faster class of its own (`bpe.ts`).
 */
import { TokenizerError } from "../errors.ts";
import {
  type DecodeOptions,
  type DecodeStream,
  type EncodeOptions,
  saveTokenizer,
  type Tokenizer,
} from "../tokenizer-json.ts";
import { type Added, addedToken, type Section, sectioner } from "./added-tokens.ts";
import { type Decoder, decoderOf, spaced } from "./decoders.ts";
import { Fields } from "./fields.ts";
import { mostNormalized } from "./limits.ts";
import { modelOf, type TokenModel } from "./models.ts";
import { normalizerOf } from "./normalizers.ts";
import { bare, type Piece, type Template, templateOf } from "./post-processors.ts";
import { type PreTokenizer, preTokenizerOf } from "./pre-tokenizers.ts";

/** One or two texts as a model takes them; three lists of one length. */
export interface Encoding {
  readonly ids: Int32Array;
  /** Which text each token is of, as BERT's token types. */
  readonly typeIds: Int32Array;
  /** 1 for tokens, 0 for padding. */
  readonly attentionMask: Int32Array;
}

/** How many tokens an encoding has at most, and which are left out. */
export interface Truncation {
  readonly maxLength: number;
  readonly strategy: "LongestFirst" | "OnlyFirst" | "OnlySecond";
  readonly direction: "Right" | "Left";
}

/** To which length encodings are filled up, and with what. */
export interface Padding {
  /** Null: to the longest of those that are encoded together. */
  readonly length: number | null;
  readonly multipleOf: number | null;
  readonly direction: "Right" | "Left";
  readonly id: number;
  readonly typeId: number;
}

export interface EncodeBatchOptions extends EncodeOptions {
  /** Default: what the file says; null for none. */
  readonly truncation?: Truncation | null;
  readonly padding?: Padding | null;
}

function truncationOf(fields: Fields): Truncation {
  return {
    maxLength: fields.whole("max_length"),
    strategy: fields.choice("strategy", ["LongestFirst", "OnlyFirst", "OnlySecond"], "LongestFirst"),
    direction: fields.choice("direction", ["Right", "Left"], "Right"),
  };
}

/** A file that asks for more would have every text fill the memory. */
const longestPadding = 1 << 20;

function paddingOf(fields: Fields): Padding {
  const fixed = fields.raw["strategy"] === "BatchLongest" ? null : fields.part("strategy");
  const length = fixed?.whole("Fixed") ?? null;
  if (fixed && Number(length) > longestPadding) throw fixed.wrong("Fixed", `at most ${longestPadding}`);
  const multipleOf = fields.has("pad_to_multiple_of") ? fields.whole("pad_to_multiple_of", undefined, 1) : null;
  if (multipleOf !== null && multipleOf > longestPadding)
    throw fields.wrong("pad_to_multiple_of", `at most ${longestPadding}`);
  return {
    length,
    multipleOf,
    direction: fields.choice("direction", ["Right", "Left"], "Right"),
    id: fields.whole("pad_id", 0),
    typeId: fields.whole("pad_type_id", 0),
  };
}

const names = { BPE: "bpe", WordPiece: "wordpiece", WordLevel: "wordlevel", Unigram: "unigram" } as const;

export class PipelineTokenizer implements Tokenizer {
  readonly kind: (typeof names)[keyof typeof names];
  readonly vocabSize: number;
  /** What the file says of lengths; `encodeBatch` follows it, `encode` gives the whole text. */
  readonly truncation: Truncation | null;
  readonly padding: Padding | null;
  readonly #json: Readonly<Record<string, unknown>>;
  readonly #model: TokenModel;
  readonly #sections: (text: string) => Section[];
  readonly #split: PreTokenizer | null;
  readonly #template: Template;
  readonly #decoder: Decoder;
  readonly #ids: ReadonlyMap<string, number>;
  readonly #tokens: readonly (string | undefined)[]; // by id
  readonly #special: ReadonlySet<number>;

  /** `json`: a parsed tokenizer.json. Throws TokenizerError where a part is not known or damaged; `file` is the name in messages. */
  static fromJSON(json: object, file = "tokenizer.json"): PipelineTokenizer {
    return new PipelineTokenizer(json, file);
  }

  private constructor(json: object, file: string) {
    const fields = new Fields(json, file);
    const optional = <T>(name: string, read: (part: Fields) => T): T | null => {
      const part = fields.optional(name);
      return part && read(part);
    };
    this.#json = fields.raw;
    this.#model = modelOf(fields.part("model"));
    this.kind = names[fields.part("model").choice("type", ["BPE", "WordPiece", "WordLevel", "Unigram"], "BPE")];
    const normalizer = optional("normalizer", normalizerOf);
    const normalize = (text: string): string => (normalizer ? normalizer(text, mostNormalized(text)) : text);
    const added: Added[] = fields.parts("added_tokens").map(addedToken);
    this.#sections = sectioner(added, normalize);
    this.#split = optional("pre_tokenizer", preTokenizerOf);
    this.#template = optional("post_processor", templateOf) ?? bare;
    this.#decoder = optional("decoder", decoderOf) ?? spaced;
    this.truncation = optional("truncation", truncationOf);
    this.padding = optional("padding", paddingOf);
    const ids = new Map(this.#model.ids);
    for (const { content, id } of added) ids.set(content, id);
    const tokens: (string | undefined)[] = [];
    for (const [token, id] of ids) tokens[id] = token;
    this.#ids = ids;
    this.#tokens = tokens;
    this.#special = new Set(added.filter(({ special }) => special).map(({ id }) => id));
    this.vocabSize = tokens.length;
  }

  tokenId(token: string): number | undefined {
    return this.#ids.get(token);
  }

  /** The ids of the whole text with the special tokens that the file puts around it. Half a surrogate pair is read as U+FFFD. */
  encode(text: string, { addSpecialTokens = true }: EncodeOptions = {}): Int32Array {
    const ids = this.#encodeText(text);
    if (!addSpecialTokens) return Int32Array.from(ids);
    return assemble(this.#template.single, [ids]).ids;
  }

  /**
   * Texts, or pairs of texts, as `tokenizers` encodes them, cut and filled up as the file says. Throws TokenizerError where a text
   * can't be cut to the length.
   */
  encodeBatch(texts: readonly (string | readonly [string, string])[], options: EncodeBatchOptions = {}): Encoding[] {
    const { addSpecialTokens = true, truncation = this.truncation, padding = this.padding } = options;
    const encodings = texts.map((one) => {
      const lists = (typeof one === "string" ? [one] : one).map((text) => this.#encodeText(text));
      const pieces = (addSpecialTokens ? this.#template : bare)[lists.length === 1 ? "single" : "pair"];
      const extra = pieces.reduce((sum, piece) => sum + ("ids" in piece ? piece.ids.length : 0), 0);
      return assemble(pieces, truncation ? truncated(lists, truncation, truncation.maxLength - extra) : lists);
    });
    return padding ? padded(encodings, padding) : encodings;
  }

  #encodeText(text: string): number[] {
    const out: number[] = [];
    for (const section of this.#sections(wellFormed(text))) {
      if ("id" in section) out.push(section.id);
      else if (section.text !== "") {
        const words = this.#split ? this.#split(section.text, section.isFirst) : [section.text];
        for (const word of words) if (word !== "") this.#model.encode(word, out);
      }
    }
    return out;
  }

  decode(ids: ArrayLike<number>, options: DecodeOptions = {}): string {
    const stream = this.decodeStream(options);
    let out = "";
    for (let i = 0; i < ids.length; i++) out += stream.push(ids[i]);
    return out + stream.end();
  }

  /** Ids that no token has (models often have room for more) give nothing, as in `tokenizers`. */
  decodeStream({ skipSpecialTokens = false }: DecodeOptions = {}): DecodeStream {
    const stage = this.#decoder();
    return {
      push: (id) => {
        if (!Number.isInteger(id) || id < 0) throw new TokenizerError(`${id} is not an id of a token`);
        const token = this.#tokens[id];
        if (token === undefined || (skipSpecialTokens && this.#special.has(id))) return "";
        return stage.push(token).join("");
      },
      end: () => stage.end().join(""),
    };
  }

  toJSON(): Readonly<Record<string, unknown>> {
    return this.#json;
  }

  save(folder: string): Promise<void> {
    return saveTokenizer(this, folder);
  }
}

const wellFormed = (text: string): string => text.replace(/\p{Surrogate}/gu, "\ufffd");

function assemble(pieces: readonly Piece[], texts: readonly (readonly number[])[]): Encoding {
  const ids: number[] = [];
  const types: number[] = [];
  for (const piece of pieces)
    for (const id of "ids" in piece ? piece.ids : texts[piece.text]) {
      ids.push(id);
      types.push(piece.type);
    }
  return {
    ids: Int32Array.from(ids),
    typeIds: Int32Array.from(types),
    attentionMask: new Int32Array(ids.length).fill(1),
  };
}

/** The texts cut so that they have `room` tokens together. */
function truncated(
  texts: readonly (readonly number[])[],
  { strategy, direction, maxLength }: Truncation,
  room: number,
): (readonly number[])[] {
  if (room < 0)
    throw new TokenizerError(
      `a length of ${maxLength} tokens has no room for the special tokens, of which there are ${maxLength - room}`,
    );
  const total = texts.reduce((sum, { length }) => sum + length, 0);
  if (total <= room) return [...texts];
  const cut = (ids: readonly number[], length: number): readonly number[] =>
    direction === "Right" ? ids.slice(0, length) : ids.slice(ids.length - length);
  if (strategy === "LongestFirst") {
    if (texts.length === 1) return [cut(texts[0], room)];
    // the shorter keeps its length where the other can do with the rest; else both get half
    const short = texts[0].length <= texts[1].length ? 0 : 1;
    let shorter = texts[short].length;
    let longer = Math.max(shorter, room - shorter);
    if (shorter + longer > room) {
      shorter = Math.floor(room / 2);
      longer = shorter + (room % 2);
    }
    return texts.map((ids, i) => cut(ids, Math.min(ids.length, i === short ? shorter : longer)));
  }
  const target = strategy === "OnlyFirst" ? 0 : 1;
  const left = (texts[target]?.length ?? 0) - (total - room);
  if (left <= 0)
    throw new TokenizerError(
      `truncation: the ${target === 0 ? "first" : "second"} text is too short to be cut to ${maxLength} tokens in all`,
    );
  return texts.map((ids, i) => (i === target ? cut(ids, left) : ids));
}

function padded(encodings: readonly Encoding[], padding: Padding): Encoding[] {
  const { multipleOf, direction } = padding;
  let length = padding.length ?? Math.max(0, ...encodings.map(({ ids }) => ids.length));
  if (multipleOf !== null) length = Math.ceil(length / multipleOf) * multipleOf;
  const filled = (list: Int32Array, value: number): Int32Array => {
    if (list.length >= length) return list;
    const out = new Int32Array(length).fill(value);
    out.set(list, direction === "Right" ? 0 : length - list.length);
    return out;
  };
  return encodings.map(({ ids, typeIds, attentionMask }) => ({
    ids: filled(ids, padding.id),
    typeIds: filled(typeIds, padding.typeId),
    attentionMask: filled(attentionMask, 0),
  }));
}
