/**
 * What text encoders share: which tokens count, attention in both directions, and how a text's states become one vector. The
 * architectures are pages of their own (bert.ts, distilbert.ts).
 */
import { ShapeError } from "../core/errors.ts";
import { showShape } from "../core/shape.ts";
import * as F from "../nn/functional.ts";
import type { FactoryOptions, Module } from "../nn/index.ts";
import { Embedding, Linear } from "../nn/index.ts";
import { arange, ones, randn, type Tensor } from "../tensor/index.ts";

export interface TextInput {
  /** [batch, time], 1 (or true) for tokens and 0 for what fills up; default: all are tokens. */
  readonly attentionMask?: Tensor | null;
  /** [batch, time] of integers: which of the texts of a pair a token is of; default: 0. */
  readonly tokenTypeIds?: Tensor | null;
}

/** A model that gives a vector for every token: ids [batch, time] → [batch, time, hiddenSize]. */
export interface TextEncoder extends Module {
  readonly contextLength: number;
  readonly hiddenSize: number;
  /** What fills up, where that has to be a certain token. Default: any. */
  readonly padTokenId?: number;
  forward(ids: Tensor, input?: TextInput): Tensor;
}

/** A classifier of texts: ids [batch, time] → logits [batch, numLabels]. */
export interface TextClassifier extends Module {
  readonly contextLength: number;
  readonly numLabels: number;
  /** What fills up, where that has to be a certain token. Default: any. */
  readonly padTokenId?: number;
  forward(ids: Tensor, input?: TextInput): Tensor;
}

/** Throws where ids are not [batch, time] with at most `contextLength` tokens, or the mask is of another shape. */
export function checkText(
  name: string,
  ids: Tensor,
  { attentionMask, tokenTypeIds }: TextInput,
  contextLength: number,
) {
  if (ids.ndim !== 2 || ids.shape[1] === 0 || ids.shape[1] > contextLength)
    throw new ShapeError(
      `${name}: ids must be [batch, time] with 1 … ${contextLength} tokens, got ${showShape(ids.shape)}`,
    );
  for (const [what, x] of Object.entries({ attentionMask, tokenTypeIds }))
    if (x && showShape(x.shape) !== showShape(ids.shape))
      throw new ShapeError(
        `${name}: ${what} ${showShape(x.shape)} must have the shape of the ids ${showShape(ids.shape)}`,
      );
}

/** The mask [batch, time] as attention takes it: bool [batch, 1, 1, time]. */
export const attentionMaskOf = ({ attentionMask }: TextInput): Tensor | null =>
  attentionMask ? attentionMask.to("bool").unsqueeze(1).unsqueeze(1) : null;

/** Attention of all tokens to all that count: q, k and v [batch, time, width], heads side by side → [batch, time, width]. */
export function bidirectionalAttention(
  [q, k, v]: readonly [Tensor, Tensor, Tensor],
  numHeads: number,
  mask: Tensor | null,
  dropoutP: number,
): Tensor {
  const heads = (x: Tensor): Tensor => x.unflatten(2, [numHeads, x.shape[2] / numHeads]).transpose(1, 2);
  const y = F.scaledDotProductAttention(heads(q), heads(k), heads(v), { attnMask: mask, dropoutP });
  return y.transpose(1, 2).flatten(2);
}

/** A linear layer and a table whose weights start normal with the standard deviation `std`, as BERT's do. */
export const normalLinear = (inputs: number, outputs: number, std: number, where: FactoryOptions): Linear =>
  new Linear(inputs, outputs, { ...where, weight: randn([outputs, inputs], where).mul(std) });
export const normalTable = (rows: number, width: number, std: number, where: FactoryOptions): Embedding =>
  new Embedding(rows, width, { weight: randn([rows, width], where).mul(std) });

/** Of the first token, of the last, or of all that count: mean, maximum, or the sum over the root of their number. */
export type Pooling = "cls" | "mean" | "max" | "meanSqrtLen" | "last";

/**
 * One vector a text: states [batch, time, width] → [batch, width], of those tokens that the mask [batch, time] counts, which stand at the
 * beginning (Reimers & Gurevych 2019, Sentence-BERT).
 */
export function pool(hidden: Tensor, kind: Pooling, attentionMask?: Tensor | null): Tensor {
  if (kind === "cls") return hidden.select(1, 0);
  const { device, dtype } = hidden;
  const time = hidden.shape[1];
  const mask = attentionMask ?? ones([1, time], { dtype: "int32", device });
  if (kind === "max") return hidden.maskedFill(mask.eq(0).unsqueeze(2), Number.NEGATIVE_INFINITY).amax(1);
  if (kind === "last") {
    const last = mask.to("int32").sum(1).sub(1).unsqueeze(1); // [batch, 1]
    const others = arange(time, { dtype: "int32", device }).ne(last).unsqueeze(2); // [batch, time, 1]
    return hidden.maskedFill(others, 0).sum(1);
  }
  const weights = mask.to(dtype).unsqueeze(2); // [batch, time, 1]
  const count = weights.sum(1).clamp(1e-9);
  return hidden
    .mul(weights)
    .sum(1)
    .div(kind === "mean" ? count : count.sqrt());
}
