/** Tokens that are found in a text before anything else is done with it: special tokens, and those that users added. */
import { TokenizerError } from "../errors.ts";
import type { Fields } from "./fields.ts";
import { rustWordCharacters, trimEnd, trimStart } from "./unicode.ts";
import { mostTokens } from "./vocabulary.ts";

export interface Added {
  readonly id: number;
  readonly content: string;
  /** Found only where no word goes on beside it. */
  readonly singleWord: boolean;
  /** Takes the white space before, or behind, it along. */
  readonly lstrip: boolean;
  readonly rstrip: boolean;
  /** Looked for in the normalized text. */
  readonly normalized: boolean;
  readonly special: boolean;
}

export function addedToken(fields: Fields): Added {
  const id = fields.whole("id");
  if (id >= mostTokens) throw fields.wrong("id", `below ${mostTokens}`);
  const special = fields.flag("special", false);
  return {
    id,
    content: fields.text("content"),
    singleWord: fields.flag("single_word", false),
    lstrip: fields.flag("lstrip", false),
    rstrip: fields.flag("rstrip", false),
    normalized: fields.flag("normalized", !special),
    special,
  };
}

/** A piece of a text: an added token's id, or text that the model has to do with. */
export type Section = { readonly id: number } | { readonly text: string; readonly isFirst: boolean };

const endsInWord = /* @__PURE__ */ new RegExp(`[${rustWordCharacters}]$`, "v");
const beginsWithWord = /* @__PURE__ */ new RegExp(`^[${rustWordCharacters}]`, "v");

/** Finds tokens from the left, of those at one place the longest. */
export class AddedFinder {
  readonly #byFirst = new Map<string, (readonly [content: string, token: Added])[]>();

  constructor(tokens: Iterable<readonly [content: string, token: Added]>) {
    for (const pair of tokens) {
      if (pair[0] === "") continue;
      const list = this.#byFirst.get(pair[0][0]);
      if (list) list.push(pair);
      else this.#byFirst.set(pair[0][0], [pair]);
    }
    for (const list of this.#byFirst.values()) list.sort(([a], [b]) => b.length - a.length);
  }

  split(text: string, isFirst: boolean): Section[] {
    const out: Section[] = [];
    let done = 0; // all before it is in `out`
    for (let at = 0; at < text.length; ) {
      const found = this.#byFirst.get(text[at])?.find(([content]) => text.startsWith(content, at));
      if (found === undefined) {
        at++;
        continue;
      }
      const [content, token] = found;
      const [from, to] = [at, at + content.length];
      at = to;
      if (
        token.singleWord &&
        (endsInWord.test(text.slice(Math.max(0, from - 2), from)) || beginsWithWord.test(text.slice(to, to + 2)))
      )
        continue;
      const start = token.lstrip ? Math.max(done, trimEnd(text.slice(0, from)).length) : from;
      if (start > done) out.push({ text: text.slice(done, start), isFirst: isFirst && done === 0 });
      out.push({ id: token.id });
      done = token.rstrip ? text.length - trimStart(text.slice(to)).length : to;
      at = Math.max(at, done);
    }
    if (done < text.length) out.push({ text: text.slice(done), isFirst: isFirst && done === 0 });
    return out;
  }
}

/** Both rounds: in the text as it is, and what is left of it once it has been normalized. */
export function sectioner(added: readonly Added[], normalize: (text: string) => string): (text: string) => Section[] {
  const ids = new Map<string, number>();
  for (const { content, id } of added) {
    if ((ids.get(content) ?? id) !== id)
      throw new TokenizerError(
        `tokenizer.json: the added token ${JSON.stringify(content)} has two ids, ${ids.get(content)} and ${id}`,
      );
    ids.set(content, id);
  }
  const plain = new AddedFinder(added.filter((token) => !token.normalized).map((token) => [token.content, token]));
  const normalized = new AddedFinder(
    added.filter((token) => token.normalized).map((token) => [normalize(token.content), token]),
  );
  return (text) =>
    plain
      .split(text, true)
      .flatMap((section) => ("id" in section ? [section] : normalized.split(normalize(section.text), section.isFirst)));
}
