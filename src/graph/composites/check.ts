/**
 * What the composites' shape rules share: checks that name the operation, the operand and the sizes, and the
 * dtype in which an operation computes. No rows of the table here.
 */
import { accumulator, type DType, isFloat } from "../../core/dtype.ts";
import { DTypeError, ShapeError } from "../../core/errors.ts";
import { type Shape, sameShape, showShape } from "../../core/shape.ts";
import type { Attrs, Node } from "../node.ts";
import { cast } from "../ops.ts";

/** The operand in the dtype that sums and exponentials are computed in: 16-bit floats become float32. */
export const wide = (x: Node): Node => cast(x, accumulator(x.dtype));

/** Attributes as the shape that a row gave them. */
export const attrsOf = <T extends Attrs>(attrs: Attrs): T => attrs as T;

export function expectFloat(name: string, what: string, x: Node): void {
  if (!isFloat(x.dtype))
    throw new DTypeError(`${name}: ${what} must be floating, got ${x.dtype}; cast it with .to("float32")`);
}

export function expectIndex(name: string, what: string, x: Node): void {
  if (x.dtype !== "int32")
    throw new DTypeError(`${name}: ${what} must be int32, got ${x.dtype}; cast it with .to("int32")`);
}

export function expectDType(name: string, what: string, x: Node, dtype: DType, like: string): void {
  if (x.dtype !== dtype)
    throw new DTypeError(`${name}: ${what} is ${x.dtype} but ${like} is ${dtype}; cast one with .to(dtype)`);
}

/** `layout` names the axes, as in "[batch, channels]"; it is what the message shows. */
export function expectRank(name: string, what: string, x: Node, rank: number, layout: string): void {
  if (x.shape.length !== rank)
    throw new ShapeError(
      `${name}: ${what} must have ${rank} ax${rank === 1 ? "is" : "es"} ${layout}, got ${showShape(x.shape)}`,
    );
}

export function expectShape(name: string, what: string, x: Node, shape: Shape, why: string): void {
  if (!sameShape(x.shape, shape))
    throw new ShapeError(`${name}: ${what} must be ${showShape(shape)} (${why}), got ${showShape(x.shape)}`);
}
