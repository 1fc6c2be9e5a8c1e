/**
 * Operations in place, with PyTorch's trailing underscore. On state (parameters, buffers) they record an assign; on any other
 * tensor they make it mean the new value, and views taken before keep the old one (PyTorch's share memory).
 */
import { dtypes, isFloat } from "../core/dtype.ts";
import { DTypeError } from "../core/errors.ts";
import type { Node } from "../graph/node.ts";
import * as ops from "../graph/ops.ts";
import * as elementwise from "./elementwise.ts";
import * as indexed from "./indexed.ts";
import { numberNode, type Operand } from "./operand.ts";
import { Tensor, write } from "./tensor.ts";

/** The value in x's dtype, where the category allows (a float can't go into an integer tensor, nor an integer into bool). */
function stored(operation: string, x: Tensor, value: Node): Node {
  if (value.dtype === x.dtype) return value;
  if (dtypes[value.dtype].category > dtypes[x.dtype].category)
    throw new DTypeError(`${operation}: the result is ${value.dtype} and can't be stored in a ${x.dtype} tensor`);
  return ops.cast(value, x.dtype);
}

const inPlace =
  <A extends readonly unknown[]>(name: string, f: (x: Tensor, ...args: A) => Tensor) =>
  <T extends Tensor>(x: T, ...args: A): T =>
    write(name, x, stored(name, x, f(x, ...args).node));

export const add_ = inPlace(
  "add_",
  elementwise.add as (x: Tensor, y: Operand, o?: { readonly alpha?: number }) => Tensor,
);
export const sub_ = inPlace(
  "sub_",
  elementwise.sub as (x: Tensor, y: Operand, o?: { readonly alpha?: number }) => Tensor,
);
export const mul_ = inPlace("mul_", elementwise.mul as (x: Tensor, y: Operand) => Tensor);
export const div_ = inPlace("div_", elementwise.div as (x: Tensor, y: Operand) => Tensor);
export const pow_ = inPlace("pow_", elementwise.pow as (x: Tensor, y: Operand) => Tensor);
export const lerp_ = inPlace("lerp_", elementwise.lerp);
export const addcmul_ = inPlace("addcmul_", elementwise.addcmul);
export const addcdiv_ = inPlace("addcdiv_", elementwise.addcdiv);
export const clamp_ = inPlace("clamp_", elementwise.clamp);
export const neg_ = inPlace("neg_", elementwise.neg);
export const exp_ = inPlace("exp_", elementwise.exp);
export const sqrt_ = inPlace("sqrt_", elementwise.sqrt);
export const relu_ = inPlace("relu_", elementwise.relu);
export const maskedFill_ = inPlace("maskedFill_", elementwise.maskedFill);
export const scatter_ = inPlace("scatter_", indexed.scatter);
export const scatterAdd_ = inPlace("scatterAdd_", indexed.scatterAdd);
export const indexAdd_ = inPlace("indexAdd_", indexed.indexAdd);
export const indexCopy_ = inPlace("indexCopy_", indexed.indexCopy);

/** Takes over the (broadcast) values of `source`, cast to x's dtype as PyTorch does. */
export function copy_<T extends Tensor>(x: T, source: Operand): T {
  const value = source instanceof Tensor ? source.node : numberNode("copy_", source, x.dtype);
  return write("copy_", x, ops.expandTo(ops.cast(value, x.dtype), x.shape));
}
/** `value` everywhere. */
export function fill_<T extends Tensor>(x: T, value: Operand): T {
  if (typeof value === "number" && !isFloat(x.dtype) && !Number.isInteger(value)) value = Math.trunc(value);
  return copy_(x, value);
}
export const zero_ = <T extends Tensor>(x: T): T => write("zero_", x, ops.full(x.shape, 0, x.dtype));
export const ones_ = <T extends Tensor>(x: T): T => write("ones_", x, ops.full(x.shape, 1, x.dtype));
