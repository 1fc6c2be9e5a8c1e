/**
 * Post-processors of `tokenizer.json`: the special tokens around one or two texts. A table by `type`; each row makes a pair of
 * templates, of which the encoding is put together after it has been cut to length.
 */
import { TokenizerError } from "../errors.ts";
import type { Fields } from "./fields.ts";

/** A part of an encoding: special tokens, or the first or second text; `type` tells texts apart (BERT's token types). */
export type Piece =
  | { readonly ids: readonly number[]; readonly type: number }
  | { readonly text: 0 | 1; readonly type: number };

export interface Template {
  readonly single: readonly Piece[];
  readonly pair: readonly Piece[];
}

/** The texts alone. */
export const bare: Template = {
  single: [{ text: 0, type: 0 }],
  pair: [
    { text: 0, type: 0 },
    { text: 1, type: 1 },
  ],
};

function templateProcessing(fields: Fields): Template {
  const special = fields.optional("special_tokens");
  const pieces = (name: string): Piece[] =>
    fields.parts(name).map((part): Piece => {
      const sequence = part.optional("Sequence");
      if (sequence)
        return { text: sequence.choice("id", ["A", "B"]) === "A" ? 0 : 1, type: sequence.whole("type_id", 0) };
      const token = part.part("SpecialToken");
      const name = token.text("id");
      if (!special || !Object.hasOwn(special.raw, name))
        throw new TokenizerError(
          `${token.place}: ${JSON.stringify(name)} is not among the post-processor's special_tokens`,
        );
      const found = special.part(name);
      const ids = found.list("ids").map((id) => {
        if (!Number.isInteger(id)) throw found.wrong("ids", "a list of ids");
        return id as number;
      });
      return { ids, type: token.whole("type_id", 0) };
    });
  return { single: pieces("single"), pair: pieces("pair") };
}

/** A token and its id, as the processors of BERT and RoBERTa write them. */
function tokenId(fields: Fields, name: string): number {
  const id = fields.list(name)[1];
  if (!Number.isInteger(id)) throw fields.wrong(name, "a token and its id");
  return id as number;
}

function bert(fields: Fields): Template {
  const [cls, sep] = [tokenId(fields, "cls"), tokenId(fields, "sep")];
  const single: Piece[] = [
    { ids: [cls], type: 0 },
    { text: 0, type: 0 },
    { ids: [sep], type: 0 },
  ];
  return { single, pair: [...single, { text: 1, type: 1 }, { ids: [sep], type: 1 }] };
}

function roberta(fields: Fields): Template {
  const [cls, sep] = [tokenId(fields, "cls"), tokenId(fields, "sep")];
  const single: Piece[] = [
    { ids: [cls], type: 0 },
    { text: 0, type: 0 },
    { ids: [sep], type: 0 },
  ];
  return { single, pair: [...single, { ids: [sep], type: 0 }, { text: 1, type: 0 }, { ids: [sep], type: 0 }] };
}

/** One template inside another: the texts of the outer are what the inner gave. */
function within(inner: readonly Piece[], outer: readonly Piece[]): Piece[] {
  if (outer.some((piece) => "text" in piece && piece.text === 1)) {
    const second = inner.findIndex((piece) => "text" in piece && piece.text === 1);
    if (second !== 1 || inner.length !== 2)
      throw new TokenizerError(
        "tokenizer.json: two post-processors that both put tokens around pairs can't be combined",
      );
    return [...outer];
  }
  return outer.flatMap((piece) => ("text" in piece ? inner.map((each) => ({ ...each, type: piece.type })) : [piece]));
}

const kinds: Readonly<Record<string, (fields: Fields) => Template>> = {
  TemplateProcessing: templateProcessing,
  BertProcessing: bert,
  RobertaProcessing: roberta,
  ByteLevel: () => bare, // it moves offsets only
  Sequence: (fields) =>
    fields
      .parts("processors")
      .map(templateOf)
      .reduce(
        (inner, outer) => ({ single: within(inner.single, outer.single), pair: within(inner.pair, outer.pair) }),
        bare,
      ),
};

/** The templates of a post-processor. Throws TokenizerError for one that is not known or damaged. */
export const templateOf = (fields: Fields): Template => fields.kind(kinds)(fields);
