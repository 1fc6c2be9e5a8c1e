/** The choice that needs no chance, made where the logits are: of 150,000 numbers a token one comes back. */
import { argmax, full, isNan, reduceMax, where } from "../graph/ops.ts";
import { Tensor } from "../tensor/index.ts";

/** logits [batch, vocabulary] → int32 [batch, 1]: the first of the largest of each row; −1 where one is NaN. */
export function likeliest({ node }: Tensor): Tensor {
  const best = argmax(node, 1, true);
  const largest = reduceMax(node, 1, { keepdim: true });
  return new Tensor(where(isNan(largest), full(best.shape, -1, "int32"), best));
}
