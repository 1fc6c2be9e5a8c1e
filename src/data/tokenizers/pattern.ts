/**
 * Regular expressions of `tokenizer.json`, which are Oniguruma's (Ruby's syntax), in JavaScript's: \s, \w and \d are Unicode's, ^ and $ mean
 * lines, classes nest, and what is possessive or atomic becomes a lookahead with a reference to it, which does not
 * backtrack either. What is not known here is refused.
 */
import { TokenizerError } from "../errors.ts";
import type { Fields } from "./fields.ts";
import { whiteSpace, wordCharacters } from "./unicode.ts";

/** What stands for an escape, inside a class and outside of one. */
const escapes: Readonly<Record<string, string>> = {
  s: whiteSpace,
  S: "\\P{White_Space}",
  d: "\\p{Nd}",
  D: "\\P{Nd}",
  w: `[${wordCharacters}]`,
  W: `[^${wordCharacters}]`,
  h: "[0-9a-fA-F]",
  H: "[^0-9a-fA-F]",
  n: "\\n",
  r: "\\r",
  t: "\\t",
  f: "\\f",
  v: "\\v",
  a: "\\x07",
  e: "\\x1b",
};
const outsideOnly: Readonly<Record<string, string>> = {
  A: "(?<![\\s\\S])",
  z: "(?![\\s\\S])",
  Z: "(?=\\n?(?![\\s\\S]))",
  b: `(?:(?<=[${wordCharacters}])(?![${wordCharacters}])|(?<![${wordCharacters}])(?=[${wordCharacters}]))`,
  B: `(?:(?<=[${wordCharacters}])(?=[${wordCharacters}])|(?<![${wordCharacters}])(?![${wordCharacters}]))`,
  R: "(?:\\r\\n|[\\n-\\r\\x85\\u2028\\u2029])",
};
const posix: Readonly<Record<string, string>> = {
  alpha: "\\p{Alphabetic}",
  digit: "\\p{Nd}",
  alnum: "\\p{Alphabetic}\\p{Nd}",
  upper: "\\p{Uppercase}",
  lower: "\\p{Lowercase}",
  space: whiteSpace,
  blank: "\\t\\p{Zs}",
  cntrl: "\\p{Cc}",
  punct: "\\p{P}\\p{S}",
  xdigit: "0-9a-fA-F",
  word: wordCharacters,
};

/** A character as itself; classes have more characters that mean something. */
const escaped = (character: string): string => character.replace(/[\\^$.*+?()[\]{}|/]/, "\\$&");
const escapedInClass = (character: string): string => character.replace(/[\\^()[\]{}|/\-&!#%,:;<=>@`~$*+.?]/, "\\$&");

/** A character that matches in both cases, with those that fold to the same. */
function bothCases(character: string): string {
  const lower = character.toLowerCase();
  const upper = character.toUpperCase();
  if (lower === upper || lower.length !== 1 || upper.length !== 1) return escapedInClass(character);
  return `[${lower}${upper}${{ s: "ſ", k: "\u212a" }[lower] ?? ""}]`;
}

/** Repetitions of up to so many are not many. */
const few = 8;

/** The most repetitions of {3}, {3,}, {,3} or {3,5}. */
const largest = ([, from, comma, to]: RegExpExecArray): number =>
  to !== "" ? Number(to) : comma === "" ? Number(from) : Number.POSITIVE_INFINITY;

class Translator {
  readonly #source: string;
  readonly #place: string;
  #at = 0;
  #atomic = 0;
  /** Choices so far that matching may come back to: repetitions of any number, and alternatives. */
  #choices = 0;

  constructor(source: string, place: string) {
    this.#source = source;
    this.#place = place;
  }

  translate(): string {
    const out = this.#alternatives(false);
    if (this.#at < this.#source.length) throw this.#error("an unmatched )");
    return out;
  }

  #error(what: string): TokenizerError {
    return new TokenizerError(
      `${this.#place}: the regular expression ${JSON.stringify(this.#source.slice(0, 200))} can't be used: ${what} at ${this.#at}`,
    );
  }
  #take(text: string): boolean {
    const found = this.#source.startsWith(text, this.#at);
    if (found) this.#at += text.length;
    return found;
  }
  #match(sticky: RegExp): RegExpExecArray | null {
    sticky.lastIndex = this.#at;
    const match = sticky.exec(this.#source);
    if (match) this.#at += match[0].length;
    return match;
  }
  #character(): string {
    const code = this.#source.codePointAt(this.#at);
    if (code === undefined) throw this.#error("an unexpected end");
    const character = String.fromCodePoint(code);
    this.#at += character.length;
    return character;
  }
  #once(inner: string): string {
    const name = `a${this.#atomic++}`;
    return `(?:(?=(?<${name}>${inner}))\\k<${name}>)`;
  }

  /** Up to the end or an unmatched ")". */
  #alternatives(fold: boolean): string {
    let out = "";
    while (this.#at < this.#source.length && this.#source[this.#at] !== ")") {
      if (this.#take("|")) {
        out += "|";
        this.#choices++;
        continue;
      }
      const options = this.#match(/\(\?(i?)(?:-(i?))?\)/y); // from here to the end of the group
      if (options) {
        out += `(?:${this.#alternatives(options[1] === "i" || (options[2] !== "i" && fold))})`;
        break;
      }
      const before = this.#choices;
      const atom = this.#atom(fold);
      out += this.#quantified(atom, before);
    }
    return out;
  }

  /** `before`: how many choices there were before the atom. */
  #quantified(atom: string, before: number): string {
    let out = atom;
    for (;;) {
      const simple = this.#match(/[*+?]/y);
      const counted = simple ? null : this.#match(/\{(\d*)(,?)(\d*)\}/y);
      if (!simple && !counted) return out;
      if (counted && counted[1] === "" && counted[3] === "") throw this.#error("an empty count");
      const quantifier = simple
        ? simple[0]
        : `{${counted?.[1] === "" ? "0" : counted?.[1]}${counted?.[2]}${counted?.[3]}}`;
      const most = simple ? (simple[0] === "?" ? 1 : Number.POSITIVE_INFINITY) : largest(counted as RegExpExecArray);
      const many = most > few;
      // each choice inside is made anew in each repetition: 2ⁿ ways to fail on a text that does not match
      if (many && this.#choices > before)
        throw this.#error("a repetition of what can match in several ways, which may take for ever,");
      if (simple || counted?.[2]) this.#choices++;
      // Ruby has possessive forms of the simple quantifiers only
      if (simple && this.#take("+")) {
        out = this.#once(`${out}${quantifier}`);
        this.#choices = before;
      } else if (this.#take("?")) out = `(?:${out}${quantifier}?)`;
      else out = `(?:${out}${quantifier})`;
    }
  }

  #atom(fold: boolean): string {
    if (this.#take("(")) return this.#group(fold);
    if (this.#take("[")) return this.#class(fold);
    if (this.#take(".")) return "[^\\n]";
    if (this.#take("^")) return "(?<![^\\n])";
    if (this.#take("$")) return "(?![^\\n])";
    if (this.#take("\\")) return this.#escape(true);
    const character = this.#character();
    if (/[*+?]/.test(character)) throw this.#error("a quantifier without anything before it");
    return fold && /\p{L}/u.test(character) ? bothCases(character) : escaped(character);
  }

  #group(fold: boolean): string {
    const start = this.#match(/\?(?:[:>=!]|<[=!]|#[^)]*|<[A-Za-z_]\w*>|(i?)(?:-(i?))?:)/y);
    if (!start && this.#source[this.#at] === "?") throw this.#error("a group of a kind that is not known");
    const kind = start?.[0] ?? "";
    if (kind.startsWith("?#")) return this.#closed("(?:)");
    const folds = start?.[1] === "i" || (start?.[2] !== "i" && fold);
    const before = this.#choices;
    const inner = this.#alternatives(folds);
    const looks = /^\?(?:<?[=!])$/.test(kind);
    if (looks || kind === "?>") this.#choices = before; // once they have matched they are not tried again
    if (kind === "?>") return this.#closed(this.#once(inner));
    const opening = looks ? kind : "?:";
    return this.#closed(`(${opening}${inner})`);
  }
  #closed(out: string): string {
    if (!this.#take(")")) throw this.#error("a group that is not closed");
    return out;
  }

  #escape(outside: boolean): string {
    const property = this.#match(/([pP])\{(\^?)([\w= ]+)\}/y);
    if (property) return this.#property((property[1] === "P") !== (property[2] === "^"), property[3]);
    const code = this.#match(/x\{([0-9a-fA-F]{1,6})\}|x([0-9a-fA-F]{1,2})|u([0-9a-fA-F]{4})/y);
    if (code) return `\\u{${code[1] ?? code[2] ?? code[3]}}`;
    const character = this.#character();
    if (Object.hasOwn(escapes, character)) return escapes[character];
    if (outside && Object.hasOwn(outsideOnly, character)) return outsideOnly[character];
    if (character === "b") return "\\x08";
    if (/[\p{L}\p{N}]/u.test(character)) throw this.#error(`the escape \\${character}, which is not known here,`);
    return outside ? escaped(character) : escapedInClass(character);
  }

  /** A property by its short or long name, or a script. */
  #property(negated: boolean, name: string): string {
    const sign = negated ? "P" : "p";
    for (const candidate of [name, `Script=${name}`])
      try {
        new RegExp(`\\p{${candidate}}`, "v");
        return `\\${sign}{${candidate}}`;
      } catch {}
    if (Object.hasOwn(posix, name.toLowerCase())) return `[${negated ? "^" : ""}${posix[name.toLowerCase()]}]`;
    throw this.#error(`the property ${name}, which is not known here,`);
  }

  #class(fold: boolean): string {
    let out = this.#take("^") ? "[^" : "[";
    let first = true;
    while (first || !this.#take("]")) {
      if (this.#at >= this.#source.length) throw this.#error("a class that is not closed");
      out += this.#classItem(fold, first);
      first = false;
    }
    return `${out}]`;
  }

  #classItem(fold: boolean, first: boolean): string {
    const named = this.#match(/\[:(\^?)(\w+):\]/y);
    if (named) {
      if (!Object.hasOwn(posix, named[2])) throw this.#error(`the class ${named[0]}, which is not known,`);
      return `[${named[1]}${posix[named[2]]}]`;
    }
    if (this.#take("[")) return this.#class(fold);
    if (!first && this.#take("&&")) throw this.#error("an intersection of classes, which is not known here,");
    const from = this.#take("\\") ? this.#escape(false) : this.#plain(fold);
    if (this.#source[this.#at] !== "-" || this.#source[this.#at + 1] === "]" || /^(\[|\\[pP])/.test(from)) return from;
    this.#at++;
    const to = this.#take("\\") ? this.#escape(false) : escapedInClass(this.#character());
    return fold ? `${from}-${to}${this.#otherCase(from, to)}` : `${from}-${to}`;
  }
  #plain(fold: boolean): string {
    const character = this.#character();
    // the end of a range is told by its own case
    return fold && this.#source[this.#at] !== "-" ? bothCases(character) : escapedInClass(character);
  }
  #otherCase(from: string, to: string): string {
    const range = `${from}-${to}`;
    return range === "a-z" ? "A-Z" : range === "A-Z" ? "a-z" : "";
  }
}

/** A pattern of the file, { String } or { Regex }, as a regular expression with the flags g and v. Null where it is empty, and matches nothing. */
export function patternOf(fields: Fields): RegExp | null {
  const raw = fields.raw["pattern"];
  const place = `${fields.place}.pattern`;
  if (typeof raw === "string") return literal(raw);
  const from = fields.part("pattern");
  if (from.has("String")) return literal(from.text("String"));
  const source = new Translator(from.text("Regex"), place).translate();
  try {
    const made = new RegExp(source, "gv");
    made.test(""); // what is too large shows only when it is first used
    return made;
  } catch (error) {
    throw new TokenizerError(`${place}: the regular expression can't be used: ${(error as Error).message}`);
  }
}

/** Matches the text itself. */
export const literalPattern = (text: string): RegExp => new RegExp([...text].map(escaped).join(""), "gv");

const literal = (text: string): RegExp | null => (text === "" ? null : literalPattern(text));
