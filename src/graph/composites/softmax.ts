/**
 * softmax and logSoftmax along one axis: straight primitives over a row (max, sub, exp, sum), so that a compiler
 * can make one kernel of the forward and one of the gradient.
 */
import { normalizeAxis, sizeOf } from "../../core/shape.ts";
import { type Attrs, make, type Node, registerOperation } from "../node.ts";
import { cast, div, exp, log, reduceMax, sub, sum, toFloat } from "../ops.ts";
import { attrsOf, expectFloat, wide } from "./check.ts";

export type AxisAttrs = { readonly axis: number };

function row(name: string, f: (shifted: Node, axis: number) => Node) {
  return registerOperation({
    group: "composite",
    name,
    infer: ([x], attrs) => {
      expectFloat(name, "the input", x);
      normalizeAxis(name, attrsOf<AxisAttrs>(attrs).axis, x.shape.length);
      return { shape: x.shape, dtype: x.dtype };
    },
    decompose: ([x], attrs: Attrs) => {
      const { axis } = attrsOf<AxisAttrs>(attrs);
      if (sizeOf(x.shape) === 0) return [x];
      const y = wide(x);
      return [cast(f(sub(y, reduceMax(y, axis, { keepdim: true })), axis), x.dtype)];
    },
  });
}

const softmaxRow = row("softmax", (shifted, axis) => {
  const e = exp(shifted);
  return div(e, sum(e, axis, { keepdim: true }));
});
const logSoftmaxRow = row("logSoftmax", (shifted, axis) =>
  sub(shifted, log(sum(exp(shifted), axis, { keepdim: true }))),
);

function along(operation: typeof softmaxRow, x: Node, axis: number): Node {
  const y = toFloat(x);
  return make(operation, [y], { axis: normalizeAxis(operation.name, axis, y.shape.length) });
}

/** e^x / Σ e^x along `axis` (torch.softmax). */
export const softmax = (x: Node, axis: number): Node => along(softmaxRow, x, axis);
/** x − log Σ e^x along `axis` (torch.log_softmax). */
export const logSoftmax = (x: Node, axis: number): Node => along(logSoftmaxRow, x, axis);
