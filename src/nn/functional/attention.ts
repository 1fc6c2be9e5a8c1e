/**
 * Scaled dot-product attention with PyTorch's layouts, [batch, heads, time, width]. One composite, which a backend may
 * compute without ever holding the scores; only dropout of the probabilities takes the long way.
 */
import { ShapeError } from "../../core/errors.ts";
import { broadcastShapes, sameShape, showShape, sizeOf } from "../../core/shape.ts";
import { lowered, raised } from "../../graph/autocast.ts";
import { swapHeads } from "../../graph/composites/attention.ts";
import { attention, softmax } from "../../graph/composites/index.ts";
import type { Node } from "../../graph/node.ts";
import * as ops from "../../graph/ops.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { dropoutNode } from "./dropout.ts";

export interface AttentionOptions {
  /** bool (true: seen) or floating (added to the scores), of a shape that grows to [batch, heads, queries, keys]. */
  readonly attnMask?: Tensor | null;
  /** Probability with which an attention weight is dropped. Default: 0. */
  readonly dropoutP?: number;
  /** Query i sees the keys 0 … i. */
  readonly isCausal?: boolean;
  /** Default: 1 / √width. */
  readonly scale?: number;
  /** Let groups of query heads share a key-value head. */
  readonly enableGqa?: boolean;
}

/** [lead…, time, width] as [batch, heads, time, width]. */
function fourAxes(name: string, x: Node): Node {
  const n = x.shape.length;
  if (n === 4) return x;
  if (n < 2) throw new ShapeError(`${name} must be [batch, heads, time, width], got ${showShape(x.shape)}`);
  if (n === 3) return ops.reshape(x, [x.shape[0], 1, ...x.shape.slice(1)]);
  return ops.reshape(x, [
    sizeOf(x.shape.slice(0, -3)),
    ...new Array<number>(Math.max(0, 3 - n)).fill(1),
    ...x.shape.slice(-3),
  ]);
}

/**
 * softmax(q kᵀ · scale + mask) v of q [B, H, Tq, D], k [B, H, Tk, D], v [B, H, Tk, Dv] → [B, H, Tq, Dv]
 * (torch.nn.functional.scaled_dot_product_attention). A query that sees no key gives zeros.
 */
export function scaledDotProductAttention(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions = {}): Tensor {
  const name = "scaledDotProductAttention";
  const { attnMask = null, dropoutP = 0, isCausal = false, scale, enableGqa = false } = options;
  if (attnMask && isCausal)
    throw new ShapeError(`${name}: attnMask and isCausal exclude each other; put the causal part into the mask`);
  const [x, y, z] = [q, k, v].map((t, i) => fourAxes(`${name}: ${"qkv"[i]}`, lowered(t.node)));
  if (x.shape[1] !== y.shape[1] && !enableGqa)
    throw new ShapeError(
      `${name}: q has ${x.shape[1]} heads, k has ${y.shape[1]}; pass { enableGqa: true } if query heads share key-value heads`,
    );
  const out =
    dropoutP > 0
      ? withDropout(x, y, z, attnMask?.node ?? null, isCausal, scale ?? 1 / Math.sqrt(x.shape[3]), dropoutP)
      : swapHeads(attention(x, y, z, { causal: isCausal, scale, mask: attnMask?.node ?? null }).out);
  return new Tensor(ops.reshape(out, [...q.shape.slice(0, -1), v.shape[v.ndim - 1]]));
}

/** The same in plain operations, with the probabilities dropped: [B, H, Tq, Dv]. */
function withDropout(
  q: Node,
  k: Node,
  v: Node,
  mask: Node | null,
  causal: boolean,
  scale: number,
  dropoutP: number,
): Node {
  const [batch, heads, tq] = q.shape;
  const repeated = (x: Node): Node => {
    const [, kvHeads, time, width] = x.shape;
    if (kvHeads === heads) return x;
    if (heads % kvHeads !== 0)
      throw new ShapeError(
        `scaledDotProductAttention: ${heads} query heads can't be shared among ${kvHeads} key-value heads`,
      );
    const spread = ops.expandTo(ops.unsqueeze(x, 2), [batch, kvHeads, heads / kvHeads, time, width]);
    return ops.reshape(spread, [batch, heads, time, width]);
  };
  let scores = ops.mul(ops.contract(q, ops.transpose(repeated(k), 2, 3)), scale);
  const shape = [batch, heads, tq, k.shape[2]];
  const never = Number.NEGATIVE_INFINITY;
  if (causal) scores = ops.where(ops.le(ops.iota(shape, 3), ops.iota(shape, 2)), scores, never);
  if (mask) {
    if (!sameShape(broadcastShapes("scaledDotProductAttention: attnMask", mask.shape, shape), shape))
      throw new ShapeError(
        `scaledDotProductAttention: attnMask ${showShape(mask.shape)} does not grow to ${showShape(shape)}`,
      );
    scores = mask.dtype === "bool" ? ops.where(mask, scores, never) : ops.add(scores, ops.cast(mask, scores.dtype));
  }
  return ops.contract(ops.cast(dropoutNode(softmax(raised(scores), 3), dropoutP), v.dtype), repeated(v));
}

/**
 * Causal self-attention of `numHeads` heads over queries, keys and values that lie side by side:
 * qkv [batch, time, 3 · width] → [batch, time, width], heads joined.
 */
export function causalSelfAttention(
  qkv: Tensor,
  numHeads: number,
  options: {
    readonly dropoutP?: number;
    readonly scale?: number;
    /** Beside causality: as in scaledDotProductAttention. */
    readonly attnMask?: Tensor | null;
  } = {},
): Tensor {
  const node = lowered(qkv.node);
  const [batch, time, triple] = node.shape;
  const width = triple / 3;
  if (node.shape.length !== 3 || width % numHeads !== 0)
    throw new ShapeError(
      `causalSelfAttention: expected [batch, time, 3 · width] with a width that ${numHeads} heads divide, got ${showShape(node.shape)}`,
    );
  const { dropoutP = 0, scale, attnMask } = options;
  const mask = attnMask?.node ?? null;
  const headWidth = width / numHeads;
  const part = (i: number): Node =>
    swapHeads(ops.reshape(ops.narrow(node, 2, i * width, width), [batch, time, numHeads, headWidth]));
  const [q, k, v] = [part(0), part(1), part(2)];
  const out =
    dropoutP > 0
      ? swapHeads(withDropout(q, k, v, mask, true, scale ?? 1 / Math.sqrt(headWidth), dropoutP))
      : attention(q, k, v, { causal: true, scale, mask }).out;
  return new Tensor(ops.reshape(out, [batch, time, width]));
}
