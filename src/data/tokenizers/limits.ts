/**
 * What a `tokenizer.json` may be at most, so that a hostile one ends in an error and not in minutes of work or a process without memory.
 * The largest that are published have 34 MB, 2 million items and 2 million characters of pieces.
 */
import { TokenizerError } from "../errors.ts";

export const mostBytes = 64 << 20;
const mostItems = 4_000_000;
const deepest = 64;
/** Of all added tokens together, and of each, in UTF-16 units. */
const mostAdded = 4_000_000;
const longestAdded = 65_536;
/** Of all pieces of a Unigram model together: its tree takes some hundred bytes for each. */
export const mostPieces = 4_000_000;

export const tooLarge = (file: string, bytes: number | null): TokenizerError =>
  new TokenizerError(
    `${file}: ${bytes === null ? "over" : `${bytes} bytes,`} ${bytes === null ? `${mostBytes} bytes` : `more than the ${mostBytes} that are read`}; this is no tokenizer, or a damaged one`,
  );

/**
 * Looks over the bytes of a JSON text before it is parsed: objects and lists by the million, or inside one another, take
 * much more memory than their text. Throws TokenizerError; whether it is valid JSON is not looked at.
 */
export function checkStructure(bytes: Uint8Array, file: string): void {
  if (bytes.length > mostBytes) throw tooLarge(file, bytes.length);
  let depth = 0;
  let items = 0;
  for (let i = 0; i < bytes.length; i++)
    switch (bytes[i]) {
      case 0x22: // a string, up to the next " that no \ stands before
        for (i++; i < bytes.length && bytes[i] !== 0x22; i++) if (bytes[i] === 0x5c) i++;
        break;
      case 0x5b: // [ {
      case 0x7b:
        items++;
        if (++depth > deepest)
          throw new TokenizerError(`${file}: nested more than ${deepest} deep at byte ${i}; this is no tokenizer`);
        break;
      case 0x5d: // ] }
      case 0x7d:
        depth--;
        break;
      case 0x2c: // ,
        items++;
    }
  if (items > mostItems)
    throw new TokenizerError(`${file}: ${items} items, more than the ${mostItems} that are read; this is no tokenizer`);
}

/** Throws TokenizerError where added tokens are longer than any text that they could stand for. */
export function checkAdded(added: unknown, file: string): void {
  if (!Array.isArray(added)) return; // whoever reads them says so
  let total = 0;
  added.forEach((token: { readonly content?: unknown } | null, i) => {
    const content = token?.content;
    if (typeof content !== "string") return;
    total += content.length;
    if (content.length > longestAdded || total > mostAdded)
      throw new TokenizerError(
        `${file}: added_tokens[${i}]: ${content.length} characters, ${total} with those before it; at most ${longestAdded} and ${mostAdded} are read`,
      );
  });
}

/** How long a text may become when it is normalized: compatibility forms make up to 18 characters of one. */
export const mostNormalized = (text: string): number => 1024 + 32 * text.length;

/** The error of a normalizer that makes more of a text than it should. */
export const grown = (most: number): TokenizerError =>
  new TokenizerError(`the tokenizer's normalizer makes more than ${most} characters of a text; it is damaged`);
