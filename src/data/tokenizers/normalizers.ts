/** Normalizers of `tokenizer.json`: what becomes of a text before it is split. A table by `type`; each row makes a function. */
import { TokenizerError } from "../errors.ts";
import { CharsMap } from "./charsmap.ts";
import type { Fields } from "./fields.ts";
import { grown } from "./limits.ts";
import { patternOf } from "./pattern.ts";
import { ideograph, inByteCharacters, lowercase, pattern, trimEnd, trimStart, whiteSpace } from "./unicode.ts";

/** `most`: how long the result may be. Throws TokenizerError where it would be longer. */
export type Normalizer = (text: string, most: number) => string;

/** Characters that are neither text nor space: control, format, private use. Tab and line ends are spaces. */
const control = /* @__PURE__ */ pattern("[[\\p{Cc}\\p{Cf}\\p{Co}\\ufffd]--[\\t\\n\\r]]");
const anySpace = /* @__PURE__ */ pattern(`[${whiteSpace}]`);

/** What NMT's rules take out, and what they make a space (SentencePiece's nmt_nfkc). */
const nmtRemoved = /* @__PURE__ */ pattern("[\\x01-\\x08\\x0b\\x0e-\\x1f\\x7f\\x8f\\x9f]");
const nmtSpaces = /* @__PURE__ */ pattern("[\\t\\n\\f\\r\\u1680\\u200b-\\u200f\\u2028\\u2029\\u2581\\ufeff\\ufffd]");

function bert(fields: Fields): Normalizer {
  const lower = fields.flag("lowercase", true);
  const clean = fields.flag("clean_text", true);
  const spaced = fields.flag("handle_chinese_chars", true);
  const bare = fields.flag("strip_accents", lower);
  return (text) => {
    let out = clean ? text.replace(control, "").replace(anySpace, " ") : text;
    if (spaced) out = out.replace(ideograph, " $& ");
    if (bare) out = out.normalize("NFD").replace(/\p{Mn}/gu, "");
    return lower ? lowercase(out) : out;
  };
}

/** In base64: SentencePiece's own have some 300,000. */
const mostBlob = 8 << 20;

function precompiled(fields: Fields): Normalizer {
  const place = `${fields.place}.precompiled_charsmap`;
  if (!fields.has("precompiled_charsmap")) return (text) => text;
  const text = fields.text("precompiled_charsmap");
  if (text.length > mostBlob)
    throw new TokenizerError(`${place}: ${text.length} characters; at most ${mostBlob} are read`);
  let blob: Uint8Array;
  try {
    const bytes = atob(text);
    blob = new Uint8Array(bytes.length);
    for (let i = 0; i < bytes.length; i++) blob[i] = bytes.charCodeAt(i);
  } catch (error) {
    if (error instanceof TokenizerError) throw error;
    throw new TokenizerError(`${place} is not valid base64`);
  }
  if (blob.length === 0) return (text) => text;
  const map = new CharsMap(blob, place);
  return (text, most) => map.normalize(text, most);
}

const kinds: Readonly<Record<string, (fields: Fields) => Normalizer>> = {
  Sequence: (fields) => {
    const steps = fields.parts("normalizers").map(normalizerOf);
    return (text, most) =>
      steps.reduce((before, step) => {
        const out = step(before, most);
        if (out.length > most) throw grown(most);
        return out;
      }, text);
  },
  BertNormalizer: bert,
  Precompiled: precompiled,
  NFC: () => (text) => text.normalize("NFC"),
  NFD: () => (text) => text.normalize("NFD"),
  NFKC: () => (text) => text.normalize("NFKC"),
  NFKD: () => (text) => text.normalize("NFKD"),
  Nmt: () => (text) => text.replace(nmtRemoved, "").replace(nmtSpaces, " "),
  Lowercase: () => lowercase,
  StripAccents: () => (text) => text.replace(/\p{M}/gu, ""),
  Strip: (fields) => {
    const [left, right] = [fields.flag("strip_left", true), fields.flag("strip_right", true)];
    return (text) => {
      const out = left ? trimStart(text) : text;
      return right ? trimEnd(out) : out;
    };
  },
  Prepend: (fields) => {
    const beginning = fields.text("prepend");
    return (text, most) => {
      if (beginning.length + text.length > most) throw grown(most);
      return text === "" ? text : beginning + text;
    };
  },
  Replace: (fields) => {
    const found = patternOf(fields);
    const content = fields.text("content");
    return (text, most) => {
      if (found === null) return text;
      // counted only where it could be too much
      if (content.length * (text.length + 1) > most) {
        let length = text.length;
        for (const _ of text.matchAll(found)) if ((length += content.length) > most) throw grown(most);
      }
      return text.replace(found, () => content);
    };
  },
  ByteLevel: () => inByteCharacters,
};

/** The function of a normalizer. Throws TokenizerError for one that is not known or damaged. */
export const normalizerOf = (fields: Fields): Normalizer => fields.kind(kinds)(fields);
