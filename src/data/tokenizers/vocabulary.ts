/** What the models of tokenizers have in common: their interface, the limit of ids, and tokens that stand for bytes. */
import { utf8 } from "./unicode.ts";

export interface TokenModel {
  readonly ids: ReadonlyMap<string, number>;
  /** Appends the ids of a word, which is not empty. Throws TokenizerError where the model has no way to express it. */
  encode(word: string, out: number[]): void;
}

/** Ids must be below this, so that a pair of them is one exact number. */
export const mostTokens = 0x200000;

export const hexByte = (byte: number): string => `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`;

/** The ids of the bytes <0x00> …, where all of the text's are in the vocabulary. */
export function byteIds(text: string, ids: ReadonlyMap<string, number>): number[] | null {
  const out: number[] = [];
  for (const byte of utf8.encode(text)) {
    const id = ids.get(hexByte(byte));
    if (id === undefined) return null;
    out.push(id);
  }
  return out;
}
