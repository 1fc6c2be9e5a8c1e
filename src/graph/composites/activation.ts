/**
 * Activations: relu, sigmoid, silu, gelu. One row and one builder each; the gradients are in `autograd/`.
 * 16-bit floats are computed in float32 and rounded once.
 */
import { DTypeError } from "../../core/errors.ts";
import { type Attrs, make, type Node, registerOperation } from "../node.ts";
import { add, cast, div, erf, exp, maximum, mul, neg, tanh, toFloat } from "../ops.ts";
import { attrsOf, expectFloat, wide } from "./check.ts";

/** √(2/π) and the cubic coefficient of gelu's tanh form (Hendrycks & Gimpel 2016). */
export const geluTanh = { scale: Math.sqrt(2 / Math.PI), cubic: 0.044715 } as const;

export type GeluAttrs = { readonly approximate: "none" | "tanh" };

function activation(name: string, f: (x: Node, attrs: Attrs) => Node) {
  return registerOperation({
    group: "composite",
    name,
    infer: ([x]) => {
      expectFloat(name, "the input", x);
      return { shape: x.shape, dtype: x.dtype };
    },
    decompose: ([x], attrs) => [cast(f(wide(x), attrs), x.dtype)],
  });
}

/** 1 / (1 + e^−x); e^−x may overflow to infinity, which gives the right 0. */
const logistic = (x: Node): Node => div(1, add(exp(neg(x)), 1));

const reluRow = registerOperation({
  group: "composite",
  name: "relu",
  infer: ([x]) => {
    if (x.dtype === "bool") throw new DTypeError('relu: does not take bool; cast it with .to("int32")');
    return { shape: x.shape, dtype: x.dtype };
  },
  decompose: ([x]) => [maximum(x, 0)],
});
const sigmoidRow = activation("sigmoid", logistic);
const siluRow = activation("silu", (x) => div(x, add(exp(neg(x)), 1)));
const geluRow = activation("gelu", (x, attrs) => {
  const inner =
    attrsOf<GeluAttrs>(attrs).approximate === "tanh"
      ? tanh(mul(mul(x, add(mul(mul(x, x), geluTanh.cubic), 1)), geluTanh.scale))
      : erf(mul(x, Math.SQRT1_2));
  return mul(mul(x, 0.5), add(inner, 1));
});

/** max(x, 0); its gradient at 0 is 0 (torch.relu). */
export const relu = (x: Node): Node => make(reluRow, [x]);
/** 1 / (1 + e^−x) (torch.sigmoid). */
export const sigmoid = (x: Node): Node => make(sigmoidRow, [toFloat(x)]);
/** x · sigmoid(x) (torch.nn.functional.silu). */
export const silu = (x: Node): Node => make(siluRow, [toFloat(x)]);
/** x · Φ(x), or its tanh approximation (torch.nn.functional.gelu). */
export function gelu(x: Node, approximate: GeluAttrs["approximate"] = "none"): Node {
  if (approximate !== "none" && approximate !== "tanh")
    throw new DTypeError(`gelu: approximate must be "none" or "tanh", got ${JSON.stringify(approximate)}`);
  return make(geluRow, [x], { approximate });
}
