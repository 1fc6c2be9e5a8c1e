/**
 * Gradients of reductions and prefixes. Ties of max and min share evenly (torch.amax); products are taken apart into
 * what lies before and behind, so that zeros need no division.
 */
import { accumulator } from "../../core/dtype.ts";
import { normalizeAxis, type Shape, sizeOf } from "../../core/shape.ts";
import type { Node } from "../../graph/node.ts";
import {
  add,
  and,
  cast,
  cummax,
  cumprod,
  cumsum,
  div,
  eq,
  expandTo,
  flip,
  full,
  iota,
  isNan,
  lt,
  mul,
  narrow,
  or,
  pad,
  permute,
  reshape,
  scatter,
  sum,
  where,
  zerosLike,
} from "../../graph/ops.ts";
import { declareKeepsNothing, type Rule, setGradients, single } from "../table.ts";

const axesOf = (y: Node): readonly number[] => y.attrs["axes"] as readonly number[];

/** A reduction's result (or its gradient) at every position that it was made from. */
function spread(reduced: Node, shape: Shape, axes: readonly number[]): Node {
  const kept = shape.slice();
  for (let i = 0; i < axes.length; i++) kept[axes[i]] = 1;
  return expandTo(reshape(reduced, kept), shape);
}

/** Where the optional runtime limit lets positions count; null where all do. */
function counted(y: Node): Node | null {
  const [x, limit] = y.inputs;
  return limit ? lt(iota(x.shape, axesOf(y)[0]), limit) : null;
}

/** Rules of reductions: `f` gives the gradient of the operand, the limit has none. */
const reduced = (f: (y: Node, g: Node, x: Node) => Node): Rule => single((y, g) => [f(y, g, y.inputs[0])]);

function extreme(y: Node, g: Node, x: Node): Node {
  const axes = axesOf(y);
  const mask = counted(y);
  const equal = eq(x, spread(y, x.shape, axes));
  const ties = mask ? and(equal, mask) : equal;
  const wide = accumulator(x.dtype);
  const share = cast(div(cast(g, wide), sum(cast(ties, wide), axes)), x.dtype);
  return where(ties, spread(share, x.shape, axes), 0);
}

/** 1, x0, x0·x1, …: the product of what lies before each position. */
function productBefore(x: Node, axis: number): Node {
  const n = x.shape[axis];
  const one = x.shape.map((_, i) => (i === axis ? 1 : 0));
  const none = x.shape.map(() => 0);
  return pad(cumprod(narrow(x, axis, 0, n - 1), axis), one, none, 1);
}

const productBehind = (x: Node, axis: number): Node => flip(productBefore(flip(x, [axis]), axis), [axis]);

/** Each element's factor is the product of all others. */
function product(y: Node, g: Node, x: Node): Node {
  const axes = axesOf(y);
  if (sizeOf(x.shape) === 0) return zerosLike(x);
  const mask = counted(y);
  const factors = mask ? where(mask, x, 1) : x;
  // the reduced axes as one, at the end
  const kept = x.shape.map((_, i) => i).filter((i) => !axes.includes(i));
  const order = [...kept, ...axes];
  const moved = permute(factors, order);
  const rows = reshape(moved, [...kept.map((i) => x.shape[i]), axes.reduce((n, a) => n * x.shape[a], 1)]);
  const others = mul(productBefore(rows, kept.length), productBehind(rows, kept.length));
  const back = order.map((_, i) => order.indexOf(i));
  const each = mul(permute(reshape(others, moved.shape), back), spread(g, x.shape, axes));
  return mask ? where(mask, each, 0) : each;
}

/** x moved `by` positions towards the front of the axis, zeros coming in behind. */
function shifted(x: Node, axis: number, by: number): Node {
  const none = x.shape.map(() => 0);
  return pad(
    narrow(x, axis, by, x.shape[axis] - by),
    none,
    x.shape.map((_, i) => (i === axis ? by : 0)),
  );
}

/**
 * dx_k = (x_0 ⋯ x_{k−1}) · s_k with s_k = g_k + x_{k+1} · s_{k+1}: a linear recurrence, solved by doubling
 * (Hillis & Steele 1986), with no division and so for zeros too.
 */
function runningProduct(y: Node, g: Node, x: Node): Node {
  const axis = y.attrs["axis"] as number;
  const n = x.shape[axis];
  if (sizeOf(x.shape) === 0) return zerosLike(x);
  let s = g;
  if (n > 1) {
    let factor = shifted(x, axis, 1);
    for (let by = 1; by < n; by *= 2) {
      s = add(s, mul(factor, shifted(s, axis, by)));
      if (by * 2 < n) factor = mul(factor, shifted(factor, axis, by));
    }
  }
  return mul(productBefore(x, axis), s);
}

/** To the last position so far that holds the running maximum (torch.cummax). */
function runningMaximum(y: Node, g: Node, x: Node): Node {
  const axis = normalizeAxis("cummax", y.attrs["axis"] as number, x.shape.length);
  const isTop = or(eq(x, y), isNan(x));
  const place = cummax(where(isTop, iota(x.shape, axis), 0), axis);
  return scatter(full(x.shape, 0, x.dtype), axis, place, g, "add");
}

const prefix = (f: (y: Node, g: Node, x: Node) => Node): Rule => single((y, g) => [f(y, g, y.inputs[0])]);

setGradients({
  sum: reduced((y, g, x) => {
    const each = spread(g, x.shape, axesOf(y));
    const mask = counted(y);
    return mask ? where(mask, each, 0) : each;
  }),
  prod: reduced(product),
  reduceMax: reduced(extreme),
  reduceMin: reduced(extreme),
  argmax: null,
  argmin: null,
  cumsum: prefix((y, g) => {
    const axis = y.attrs["axis"] as number;
    return flip(cumsum(flip(g, [axis]), axis), [axis]);
  }),
  cumprod: prefix(runningProduct),
  cummax: prefix(runningMaximum),
});
declareKeepsNothing(["sum", "cumsum"]);
