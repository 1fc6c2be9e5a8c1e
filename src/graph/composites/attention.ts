/**
 * Scaled dot-product attention with grouped queries, and its gradient from the saved log-sum-exp
 * (Dao et al. 2022, FlashAttention: the probabilities are recomputed, never saved). The decompositions here hold the
 * scores as a whole; a backend's template need not.
 */
import { accumulator } from "../../core/dtype.ts";
import { DTypeError, ShapeError } from "../../core/errors.ts";
import { broadcastShapes, sameShape, showShape } from "../../core/shape.ts";
import { type Attrs, make, type Node, registerOperation } from "../node.ts";
import {
  add,
  cast,
  contract,
  div,
  eq,
  exp,
  expandTo,
  iota,
  le,
  log,
  lt,
  mul,
  outputs,
  permute,
  reduceMax,
  reshape,
  sub,
  sum,
  unsqueeze,
  where,
} from "../ops.ts";
import { attrsOf, expectDType, expectFloat, expectIndex, expectRank, expectShape, wide } from "./check.ts";

/** `length` and `mask` say which of the optional inputs follow, in this order. */
export type AttentionAttrs = {
  readonly causal: boolean;
  readonly scale: number;
  readonly length: boolean;
  readonly mask: boolean;
};

export interface AttentionOptions {
  /** Query i sees the keys 0 … i; with `length`, the queries are the last ones of the `length` valid positions. */
  readonly causal?: boolean;
  /** Default 1 / √D. */
  readonly scale?: number;
  /** A runtime int32 scalar: keys at or after it do not count. */
  readonly length?: Node | null;
  /** bool (true: seen) or floating (added to the scores), of a shape that grows to [B, H, Tq, Tk]. */
  readonly mask?: Node | null;
}

interface Sizes {
  readonly batch: number;
  readonly heads: number;
  readonly kvHeads: number;
  /** Queries, keys, width of a query, width of a value. */
  readonly tq: number;
  readonly tk: number;
  readonly d: number;
  readonly dv: number;
}

function sizesOf(name: string, q: Node, k: Node, v: Node): Sizes {
  expectFloat(name, "q", q);
  expectRank(name, "q", q, 4, "[batch, heads, time, width]");
  for (const [what, x] of [
    ["k", k],
    ["v", v],
  ] as const) {
    expectRank(name, what, x, 4, "[batch, key-value heads, time, width]");
    expectDType(name, what, x, q.dtype, "q");
  }
  const [batch, heads, tq, d] = q.shape;
  const [, kvHeads, tk] = k.shape;
  if (k.shape[0] !== batch || k.shape[3] !== d)
    throw new ShapeError(
      `${name}: q ${showShape(q.shape)} and k ${showShape(k.shape)} must agree in batch (${batch}, ${k.shape[0]}) and width (${d}, ${k.shape[3]})`,
    );
  if (!sameShape(k.shape.slice(0, 3), v.shape.slice(0, 3)))
    throw new ShapeError(
      `${name}: k ${showShape(k.shape)} and v ${showShape(v.shape)} must agree in batch, heads and time`,
    );
  if (kvHeads === 0 || heads % kvHeads !== 0)
    throw new ShapeError(
      `${name}: ${heads} query heads can't be shared among ${kvHeads} key-value heads (must divide)`,
    );
  return { batch, heads, kvHeads, tq, tk, d, dv: v.shape[3] };
}

interface Extras {
  readonly length: Node | null;
  readonly mask: Node | null;
}

export function attentionExtras(inputs: readonly Node[], first: number, attrs: Attrs): Extras {
  const a = attrsOf<AttentionAttrs>(attrs);
  return { length: a.length ? inputs[first] : null, mask: a.mask ? inputs[first + (a.length ? 1 : 0)] : null };
}

function checkExtras(name: string, { length, mask }: Extras, s: Sizes): void {
  if (length) {
    expectIndex(name, "length", length);
    expectRank(name, "length", length, 0, "[]");
  }
  if (mask) {
    const shape = [s.batch, s.heads, s.tq, s.tk];
    if (mask.dtype !== "bool") expectFloat(name, "a mask that is not bool", mask);
    if (mask.shape.length > 4 || !sameShape(broadcastShapes(name, mask.shape, shape), shape))
      throw new ShapeError(
        `${name}: mask ${showShape(mask.shape)} does not grow to [batch, heads, queries, keys] = ${showShape(shape)}`,
      );
  }
}

// ---- the mathematics ------------------------------------------------------------------------------------------------

/** [B, H, T, D] as [B, kvHeads, queries that share a head, D]; nothing where every head has its own. */
const grouped = (x: Node, s: Sizes): Node =>
  reshape(x, [s.batch, s.kvHeads, (s.heads / s.kvHeads) * x.shape[2], x.shape[3]]);
const ungrouped = (x: Node, s: Sizes): Node => reshape(x, [s.batch, s.heads, s.tq, x.shape[3]]);
const turned = (x: Node): Node => permute(x, [0, 1, 3, 2]);
/** [B, H, T, D] ↔ [B, T, H, D]. */
export const swapHeads = (x: Node): Node => permute(x, [0, 2, 1, 3]);

/** Scaled and masked scores [B, H, Tq, Tk]. */
function scores(q: Node, k: Node, a: AttentionAttrs, { length, mask }: Extras, s: Sizes): Node {
  let x = mul(ungrouped(contract(grouped(q, s), turned(k)), s), a.scale);
  const never = Number.NEGATIVE_INFINITY;
  if (a.causal) {
    const last = length ? add(iota(x.shape, 2), sub(length, s.tq)) : iota(x.shape, 2);
    x = where(le(iota(x.shape, 3), last), x, never);
  } else if (length) x = where(lt(iota(x.shape, 3), length), x, never);
  if (mask)
    x =
      mask.dtype === "bool" ? where(expandTo(mask, x.shape), x, never) : add(x, expandTo(cast(mask, x.dtype), x.shape));
  return x;
}

/** A query that sees nothing has −∞ for its largest score; 0 in its place makes all its weights 0, not NaN. */
const finiteOrZero = (x: Node, guard: boolean): Node => (guard ? where(eq(x, Number.NEGATIVE_INFINITY), 0, x) : x);

const attentionRow = registerOperation({
  group: "composite",
  name: "attention",
  infer: (inputs, attrs) => {
    const [q, k, v] = inputs;
    const s = sizesOf("attention", q, k, v);
    checkExtras("attention", attentionExtras(inputs, 3, attrs), s);
    return [
      { shape: [s.batch, s.tq, s.heads, s.dv], dtype: q.dtype },
      { shape: [s.batch, s.heads, s.tq], dtype: accumulator(q.dtype) },
    ];
  },
  decompose: (inputs, attrs) => {
    const a = attrsOf<AttentionAttrs>(attrs);
    const [q, k, v] = inputs;
    const s = sizesOf("attention", q, k, v);
    const extras = attentionExtras(inputs, 3, attrs);
    const guard = a.length || a.mask;
    const x = scores(wide(q), wide(k), a, extras, s);
    const top = finiteOrZero(reduceMax(x, 3, { keepdim: true }), guard);
    const e = exp(sub(x, top));
    const total = sum(e, 3, { keepdim: true }); // [B, H, Tq, 1]
    const mixed = ungrouped(contract(grouped(e, s), wide(v)), s);
    const out = div(mixed, guard ? where(eq(total, 0), 1, total) : total);
    const lse = reshape(add(top, log(total)), [s.batch, s.heads, s.tq]);
    return [cast(swapHeads(out), q.dtype), lse];
  },
});

const backwardRow = registerOperation({
  group: "composite",
  name: "attentionBackward",
  infer: (inputs, attrs) => {
    const [q, k, v, out, lse, gradient] = inputs;
    const name = "attentionBackward";
    const s = sizesOf(name, q, k, v);
    expectShape(name, "the output", out, [s.batch, s.tq, s.heads, s.dv], "[batch, time, heads, width]");
    expectShape(name, "the output gradient", gradient, out.shape, "the output's shape");
    expectShape(name, "the log-sum-exp", lse, [s.batch, s.heads, s.tq], "[batch, heads, time]");
    if (lse.dtype !== accumulator(q.dtype))
      throw new DTypeError(`${name}: the log-sum-exp must be ${accumulator(q.dtype)}, got ${lse.dtype}`);
    checkExtras(name, attentionExtras(inputs, 6, attrs), s);
    return [
      { shape: [s.batch, s.tq, s.heads, s.d], dtype: q.dtype },
      { shape: [s.batch, s.tk, s.kvHeads, s.d], dtype: q.dtype },
      { shape: [s.batch, s.tk, s.kvHeads, s.dv], dtype: q.dtype },
    ];
  },
  decompose: (inputs, attrs) => {
    const a = attrsOf<AttentionAttrs>(attrs);
    const [q, k, v, out, lse, gradient] = inputs;
    const s = sizesOf("attentionBackward", q, k, v);
    const [wq, wk, wv, g] = [wide(q), wide(k), wide(v), wide(gradient)];
    const x = scores(wq, wk, a, attentionExtras(inputs, 6, attrs), s);
    const p = exp(sub(x, unsqueeze(finiteOrZero(lse, a.length || a.mask), 3))); // [B, H, Tq, Tk]
    const gh = swapHeads(g); // [B, H, Tq, Dv]
    const inner = swapHeads(sum(mul(g, wide(out)), 3, { keepdim: true })); // Σ dO·O, [B, H, Tq, 1]
    const dp = ungrouped(contract(grouped(gh, s), turned(wv)), s);
    const ds = grouped(mul(mul(p, sub(dp, inner)), a.scale), s);
    const dq = ungrouped(contract(ds, wk), s);
    const dk = contract(turned(ds), grouped(wq, s));
    const dv = contract(turned(grouped(p, s)), grouped(gh, s));
    return [dq, dk, dv].map((d) => cast(swapHeads(d), q.dtype));
  },
});

/**
 * q [B, H, Tq, D], k and v [B, Hkv, Tk, D] → the output [B, Tq, H, D] (time before heads, so that joining the heads is
 * a view) and the log-sum-exp of the scores [B, H, Tq]. torch.nn.functional.scaled_dot_product_attention; a query that
 * sees no key gives zeros.
 */
export function attention(q: Node, k: Node, v: Node, options: AttentionOptions = {}): { out: Node; lse: Node } {
  const { causal = false, length = null, mask = null } = options;
  expectRank("attention", "q", q, 4, "[batch, heads, time, width]");
  const scale = options.scale ?? 1 / Math.sqrt(q.shape[3]);
  const inputs = [q, k, v, ...(length ? [length] : []), ...(mask ? [mask] : [])];
  const node = make(attentionRow, inputs, { causal, scale, length: length !== null, mask: mask !== null });
  const [out, lse] = outputs(node);
  return { out, lse };
}

/** The gradients of `attention` with respect to q, k and v, each [B, T, heads, D]. `attrs` are the forward's. */
export function attentionBackward(
  saved: { readonly q: Node; readonly k: Node; readonly v: Node; readonly out: Node; readonly lse: Node },
  gradient: Node,
  attrs: AttentionAttrs,
  { length, mask }: Extras,
): { dq: Node; dk: Node; dv: Node } {
  const { q, k, v, out, lse } = saved;
  const inputs = [q, k, v, out, lse, gradient, ...(length ? [length] : []), ...(mask ? [mask] : [])];
  const [dq, dk, dv] = outputs(make(backwardRow, inputs, attrs));
  return { dq, dk, dv };
}
