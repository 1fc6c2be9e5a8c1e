/**
 * Pre-tokenizers of `tokenizer.json`: how a text is split into the words that the model takes one by one. A table by
 * `type`; each row makes a function from a piece of text to its pieces.
 */
import type { Fields } from "./fields.ts";
import { literalPattern, patternOf } from "./pattern.ts";
import { inByteCharacters, pattern, punctuation, rustWordCharacters, whiteSpace } from "./unicode.ts";

/** `isFirst`: whether the piece begins where the whole text begins. */
export type PreTokenizer = (piece: string, isFirst: boolean) => readonly string[];

const behaviours = ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"] as const;
type Behaviour = (typeof behaviours)[number];

interface Stretch {
  text: string;
  readonly isMatch: boolean;
}

/** The text in matches and what lies between them. */
function stretches(text: string, found: RegExp): Stretch[] {
  const out: Stretch[] = [];
  let at = 0;
  for (const match of text.matchAll(found)) {
    if (match.index > at) out.push({ text: text.slice(at, match.index), isMatch: false });
    out.push({ text: match[0], isMatch: true });
    at = match.index + match[0].length;
  }
  if (at < text.length) out.push({ text: text.slice(at), isMatch: false });
  return out;
}

/** How the matches go together with what is around them. */
const joined: Readonly<Record<Behaviour, (parts: readonly Stretch[]) => string[]>> = {
  Removed: (parts) => parts.filter(({ isMatch }) => !isMatch).map(({ text }) => text),
  Isolated: (parts) => parts.map(({ text }) => text),
  Contiguous: (parts) => merged(parts, (a, b) => a === b),
  MergedWithPrevious: (parts) => merged(parts, (before, isMatch) => isMatch && !before),
  MergedWithNext: (parts) => {
    const out: string[] = [];
    let after = false;
    for (const { text, isMatch } of parts.toReversed()) {
      if (isMatch && !after && out.length > 0) out[out.length - 1] = text + out[out.length - 1];
      else out.push(text);
      after = isMatch;
    }
    return out.reverse();
  },
};

/** Appends a stretch to what stands before it where `joins` says so. */
function merged(parts: readonly Stretch[], joins: (before: boolean, isMatch: boolean) => boolean): string[] {
  const out: string[] = [];
  let before = false;
  for (const { text, isMatch } of parts) {
    if (out.length > 0 && joins(before, isMatch)) out[out.length - 1] += text;
    else out.push(text);
    before = isMatch;
  }
  return out;
}

const splitting = (found: RegExp, behaviour: Behaviour, invert = false): PreTokenizer => {
  const join = joined[behaviour];
  if (!invert) return (text) => join(stretches(text, found));
  return (text) => join(stretches(text, found).map(({ text, isMatch }) => ({ text, isMatch: !isMatch })));
};

const gpt2 = /* @__PURE__ */ pattern(
  `'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^${whiteSpace}\\p{L}\\p{N}]+|[${whiteSpace}]+(?![^${whiteSpace}])|[${whiteSpace}]+`,
);

function byteLevel(fields: Fields): PreTokenizer {
  const prefix = fields.flag("add_prefix_space", true);
  const splits = fields.flag("use_regex", true);
  return (piece) => {
    const text = prefix && !piece.startsWith(" ") ? ` ${piece}` : piece;
    return (splits ? joined.Isolated(stretches(text, gpt2)) : [text]).map(inByteCharacters);
  };
}

function metaspace(fields: Fields): PreTokenizer {
  const replacement = fields.text("replacement", "▁");
  if ([...replacement].length !== 1) throw fields.wrong("replacement", "one character");
  // files before 2024 say add_prefix_space instead of a scheme
  const scheme = fields.flag("add_prefix_space", true)
    ? fields.choice("prepend_scheme", ["always", "first", "never"], "always")
    : "never";
  const split = fields.flag("split", true) ? splitting(literalPattern(replacement), "MergedWithNext") : null;
  return (piece, isFirst) => {
    let text = piece.replaceAll(" ", replacement);
    const prepends = scheme === "always" || (scheme === "first" && isFirst);
    if (prepends && !text.startsWith(replacement)) text = replacement + text;
    return split ? split(text, isFirst) : [text];
  };
}

function fixedLength(fields: Fields): PreTokenizer {
  const length = fields.whole("length", 5, 1);
  return (piece) => {
    const characters = [...piece];
    return Array.from({ length: Math.ceil(characters.length / length) }, (_, i) =>
      characters.slice(i * length, (i + 1) * length).join(""),
    );
  };
}

const isolated = (fields: Fields): Behaviour => fields.choice("behavior", behaviours, "Isolated");

const kinds: Readonly<Record<string, (fields: Fields) => PreTokenizer>> = {
  Sequence: (fields) => {
    const steps = fields.parts("pretokenizers").map(preTokenizerOf);
    return (piece, isFirst) =>
      steps.reduce<readonly string[]>(
        (pieces, step) => pieces.flatMap((each, i) => (each === "" ? [] : step(each, isFirst && i === 0))),
        [piece],
      );
  },
  ByteLevel: byteLevel,
  Metaspace: metaspace,
  Whitespace: () =>
    splitting(pattern(`[${rustWordCharacters}]+|[^${rustWordCharacters}${whiteSpace}]+`), "Removed", true),
  WhitespaceSplit: () => splitting(pattern(`[${whiteSpace}]`), "Removed"),
  BertPreTokenizer: () => {
    const marks = splitting(pattern(`[${punctuation}]`), "Isolated");
    const words = splitting(pattern(`[${whiteSpace}]`), "Removed");
    return (piece, isFirst) => words(piece, isFirst).flatMap((word) => marks(word, false));
  },
  Punctuation: (fields) => splitting(pattern(`[${punctuation}]`), isolated(fields)),
  Digits: (fields) => splitting(pattern("\\p{N}"), fields.flag("individual_digits", false) ? "Isolated" : "Contiguous"),
  CharDelimiterSplit: (fields) => splitting(literalPattern(fields.text("delimiter")), "Removed"),
  FixedLength: fixedLength,
  Split: (fields) => {
    const found = patternOf(fields);
    const behaviour = fields.choice("behavior", behaviours);
    return found === null ? (piece) => [piece] : splitting(found, behaviour, fields.flag("invert", false));
  },
};

/** The function of a pre-tokenizer. Throws TokenizerError for one that is not known or damaged. */
export const preTokenizerOf = (fields: Fields): PreTokenizer => fields.kind(kinds)(fields);
