/**
 * Mixed precision (Micikevicius et al. 2018, "Mixed Precision Training"; torch.autocast): while it is on, products take their operands in
 * bfloat16 and softmax and losses in float32, whatever they are given. The state and the two casts; who calls which of them is the
 * list: `lowered` in tensor/linear.ts and nn/functional, `raised` in losses, softmax and recurrent layers.
 */
import type { Node } from "./node.ts";
import { cast } from "./ops.ts";

/** What products are computed in; null: in what they are given. */
export type AutocastDType = "bfloat16" | null;

let low: AutocastDType = null;

/** Gives what it was. */
export function setAutocast(dtype: AutocastDType): AutocastDType {
  const before = low;
  low = dtype;
  return before;
}
export const autocastDType = (): AutocastDType => low;

/** An operand of a product. */
export const lowered = (x: Node): Node => (low && (x.dtype === "float32" || x.dtype === "float16") ? cast(x, low) : x);
/** An operand of what needs float32's precision. */
export const raised = (x: Node): Node =>
  low && (x.dtype === "bfloat16" || x.dtype === "float16") ? cast(x, "float32") : x;
