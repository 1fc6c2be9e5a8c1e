/**
 * How long rows of tokens are and what of an example stands in one: the rule by which batches are made, and by which it is counted how many
 * examples were cut.
 */
import { FinetuneError } from "./errors.ts";

/** Tokens of an example that are never read: the last one of a language model's is only a target; of a text with a label all are read. */
const unread = { language: 1, text: 0 } as const;
export type RowKind = keyof typeof unread;

interface Example {
  readonly ids: ArrayLike<number>;
}

/** The tokens of an example that a row of at most `maxLength` reads; below 1 where nothing can be learnt of it. */
export const rowTokens = ({ ids }: Example, maxLength: number, kind: RowKind): number =>
  Math.min(ids.length - unread[kind], maxLength);

/** How many examples are longer than a row, so that they are cut. */
export const countCut = (examples: readonly Example[], maxLength: number, kind: RowKind): number =>
  examples.reduce((n, { ids }) => n + Number(ids.length - unread[kind] > maxLength), 0);

/** The most tokens of a row: `maxLength`, or the context. Throws FinetuneError where that is no whole number from 1 to the context. */
export function rowLength({ contextLength }: { readonly contextLength: number }, maxLength = contextLength): number {
  if (!Number.isInteger(maxLength) || maxLength < 1 || maxLength > contextLength)
    throw new FinetuneError(
      `maxLength must be a whole number from 1 to the ${contextLength} tokens that the model sees, got ${maxLength}`,
    );
  return maxLength;
}
