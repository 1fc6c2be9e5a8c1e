/**
 * Attention as decoders use it: causal, over the text itself or over a cache of keys and values, with sliding windows and
 * capped scores. Positions are runtime numbers where there is a cache.
 */
import { lowered } from "../graph/autocast.ts";
import { swapHeads } from "../graph/composites/attention.ts";
import { attention, softmax } from "../graph/composites/index.ts";
import type { Node } from "../graph/node.ts";
import * as ops from "../graph/ops.ts";
import { dropout } from "../nn/functional.ts";
import { Tensor } from "../tensor/index.ts";
import type { CachePlace, KeyValueCache } from "./cache.ts";
import { type Packing, sameSegment } from "./packing.ts";
import type { Rotary, Rotation } from "./rotary.ts";

/** What all layers of one forward pass share: where the text stands, the angles of its positions, the cache. */
export class DecoderContext {
  readonly cache: KeyValueCache | null;
  /** Position of the first token, an int32 scalar of the graph where it is known at run time only; 0 without a cache. */
  readonly start: Node | number;
  /** How many tokens there are with these, a number of its own, which need not be computed; null without a cache. */
  readonly length: Node | null;
  /** One a layer. */
  readonly rotations: readonly (Rotation | null)[];
  /** The tokens' positions in their texts, int32 [time, 1, 1] or [batch, time, 1, 1]. */
  readonly positions: Node;
  readonly #masks = new Map<number | null, Node | null>();
  readonly #packing: Packing | null;

  /** For states x [batch, time, width] of tokens behind those in the cache, or of packed examples. */
  constructor(x: Tensor, rotaries: readonly (Rotary | null)[], place: CachePlace | null, packing?: Packing | null) {
    const time = x.shape[1];
    const cache = place?.cache ?? null;
    this.cache = cache;
    this.#packing = packing ?? null;
    this.start = place?.start ?? 0;
    this.length = place?.end ?? null;
    const end = place?.textLength ?? time;
    this.positions = this.#positionsOf(time);
    const made = new Map<Rotary, Rotation>();
    this.rotations = rotaries.map((rotary) => {
      if (!rotary) return null;
      let rotation = made.get(rotary);
      if (!rotation) made.set(rotary, (rotation = rotary.rotation(this.positions, end, x)));
      return rotation;
    });
  }

  /** Where each row of the cache begins, [batch, 1, 1, 1]; null where all begin at 0. */
  get #begins(): Node | null {
    const begins = this.cache?.begins?.node;
    return begins ? ops.reshape(begins, [begins.shape[0], 1, 1, 1]) : null;
  }

  #positionsOf(time: number): Node {
    const packed = this.#packing?.positions.node;
    if (packed) return ops.reshape(packed, [...packed.shape, 1, 1]);
    const positions = ops.add(ops.iota([time, 1, 1], 0), this.start);
    const begins = this.#begins;
    return begins ? ops.maximum(ops.sub(positions, begins), 0) : positions;
  }

  /** What no window hides: tokens of the same example, or those from where the row begins on. */
  #visible(queries: number, keys: number): Node | null {
    if (this.#packing) return sameSegment(this.#packing).node;
    const begins = this.#begins;
    if (!begins) return null;
    const shape = [begins.shape[0], 1, queries, keys];
    const key = ops.iota(shape, 3);
    // what fills up sees itself: a softmax over nothing would be NaN, which would come back through its value
    const itself = ops.eq(key, ops.add(ops.iota(shape, 2), this.start));
    return ops.or(ops.ge(key, begins), itself);
  }

  /**
   * Which of `keys` keys each of `queries` tokens sees, beside causality, through a window and within its example: bool [1 or batch, 1,
   * queries, keys], or null where nothing is hidden.
   */
  mask(window: number | null, queries: number, keys: number): Node | null {
    const narrow = window !== null && window < keys ? window : null;
    let mask = this.#masks.get(narrow);
    if (mask === undefined) {
      mask = this.#visible(queries, keys);
      if (narrow !== null) {
        const shape = [1, 1, queries, keys];
        const first = ops.add(ops.add(ops.iota(shape, 2), this.start), 1 - narrow);
        const inside = ops.le(first, ops.iota(shape, 3));
        mask = mask ? ops.and(mask, ops.expandTo(inside, mask.shape)) : inside;
      }
      this.#masks.set(narrow, mask);
    }
    return mask;
  }
}

export interface AttendOptions {
  readonly layer: number;
  readonly scale: number;
  readonly window: number | null;
  readonly softcap: number | null;
  readonly dropoutP: number;
}

/**
 * q [batch, time, heads, width], k and v [batch, time, key-value heads, width] → [batch, time, heads, width]. With a cache, k
 * and v are appended to it, and the queries see what it holds.
 */
export function attend(q: Tensor, k: Tensor, v: Tensor, context: DecoderContext, options: AttendOptions): Tensor {
  const { cache, start, length } = context;
  const time = q.shape[1];
  // without a cache the keys are a product's operand; a cache keeps its type, and the queries take it
  const own = (x: Tensor): Node => swapHeads(cache ? x.node : lowered(x.node));
  let [keys, values] = [new Tensor(own(k)), new Tensor(own(v))];
  if (cache) ({ keys, values } = cache.append(options.layer, keys, values, start as Node));
  const { scale, window, softcap, dropoutP } = options;
  const size = keys.shape[2];
  const mask = context.mask(window, time, size);
  const queries = ops.cast(own(q), keys.dtype);
  if (softcap === null && dropoutP === 0)
    return new Tensor(attention(queries, keys.node, values.node, { causal: true, scale, length, mask }).out);
  return explicit(queries, keys.node, values.node, { start, mask, scale, softcap, dropoutP });
}

/** The same in plain operations, with capped scores (cap · tanh(score / cap)) and dropped probabilities. */
function explicit(
  q: Node,
  k: Node,
  v: Node,
  options: Omit<AttendOptions, "layer" | "window"> & { readonly start: Node | number; readonly mask: Node | null },
): Tensor {
  const { start, mask, scale, softcap, dropoutP } = options;
  const [batch, heads, time, width] = q.shape;
  const [, kvHeads, size] = k.shape;
  const group = heads / kvHeads;
  // the queries of heads that share keys stand below one another
  const grouped = ops.reshape(q, [batch, kvHeads, group * time, width]);
  let scores = ops.reshape(ops.contract(grouped, ops.transpose(k, 2, 3)), [batch, heads, time, size]);
  scores = ops.mul(scores, scale);
  if (softcap !== null) scores = ops.mul(ops.tanh(ops.div(scores, softcap)), softcap);
  const never = Number.NEGATIVE_INFINITY;
  scores = ops.where(ops.le(ops.iota(scores.shape, 3), ops.add(ops.iota(scores.shape, 2), start)), scores, never);
  if (mask) scores = ops.where(mask, scores, never);
  // probabilities in float32 at least, as transformers computes them
  const wide = scores.dtype === "float64" ? scores.dtype : "float32";
  const weights = new Tensor(ops.cast(softmax(ops.cast(scores, wide), 3), q.dtype));
  const p = dropout(weights, dropoutP).node;
  const mixed = ops.contract(ops.reshape(p, [batch, kvHeads, group * time, size]), v);
  return new Tensor(swapHeads(ops.reshape(mixed, [batch, heads, time, v.shape[3]])));
}
