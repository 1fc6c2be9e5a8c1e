/**
 * Classes of characters as Rust's and Oniguruma's regular expressions have them, for the flag "v", and changes of single
 * characters: JavaScript's \s, \w and toLowerCase mean other things. What is computed here is marked as pure, so that pages which
 * tokenize nothing load none of it.
 */
export const whiteSpace = "\\p{White_Space}";
/** \w of Oniguruma; Rust's has the two joiners too. */
export const wordCharacters = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}";
export const rustWordCharacters = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}";
/** What BERT takes for punctuation: Unicode's, and all of ASCII that is neither letter, digit nor control. */
export const punctuation = "\\p{P}!-\\/:-@\\[-`\\{-~";

export const pattern = (source: string): RegExp => new RegExp(source, "gv");

const leading = /* @__PURE__ */ new RegExp(`^[${whiteSpace}]+`, "v");
const trailing = /* @__PURE__ */ new RegExp(`[${whiteSpace}]+$`, "v");
export const trimStart = (text: string): string => text.replace(leading, "");

/** Without the white space at its end. From the end on, because a search for it would try every run of spaces. */
export function trimEnd(text: string): string {
  let end = text.length;
  while (end > 0 && trailing.test(text[end - 1])) end--;
  return text.slice(0, end);
}

/** Character by character, so that Σ at the end of a word is σ as in Rust. */
export function lowercase(text: string): string {
  // Σ is the only character whose lower case depends on its neighbours
  return text.includes("Σ")
    ? text
        .split("Σ")
        .map((part) => part.toLowerCase())
        .join("σ")
    : text.toLowerCase();
}

/** Ideographs, around which BERT puts spaces; the ranges are its authors'. */
export const ideograph = /* @__PURE__ */ pattern(
  "[\\u4e00-\\u9fff\\u3400-\\u4dbf\\u{20000}-\\u{2a6df}\\u{2a700}-\\u{2b73f}\\u{2b740}-\\u{2b81f}\\u{2b920}-\\u{2ceaf}\\uf900-\\ufaff\\u{2f800}-\\u{2fa1f}]",
);

/** GPT-2's printable stand-in of each byte: itself where it is visible, else the next character from U+0100 on. */
export const byteCharacters: readonly string[] = /* @__PURE__ */ (() => {
  let next = 256;
  return Array.from({ length: 256 }, (_, b) =>
    (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174 ? String.fromCharCode(b) : String.fromCharCode(next++),
  );
})();

/** The byte of each such character, by its code; −1 for the codes in between. */
export const characterBytes: Int16Array = /* @__PURE__ */ (() => {
  const out = new Int16Array(0x200).fill(-1);
  byteCharacters.forEach((c, b) => {
    out[c.charCodeAt(0)] = b;
  });
  return out;
})();

const utf8 = /* @__PURE__ */ new TextEncoder();

/** The bytes of a text in their printable stand-ins. */
export function inByteCharacters(text: string): string {
  let out = "";
  for (const b of utf8.encode(text)) out += byteCharacters[b];
  return out;
}

export { utf8 };
