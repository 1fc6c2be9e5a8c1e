/** How many of a language model's logits exist at one time. */

/** 64 MiB in float32. Above it a loss is computed without the whole of them, and a measurement a piece at a time. */
const mostLogits = 2 ** 24;

/** The pieces that the logits of `tokens` tokens are made in: 1 where they may exist as a whole. */
export const logitPieces = (tokens: number, vocabSize: number): number => Math.ceil((tokens * vocabSize) / mostLogits);
