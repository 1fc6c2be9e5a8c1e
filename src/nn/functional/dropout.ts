/** Dropout. The mask is a function of a key and of the position: it is drawn again for the gradient, never stored. */

import type { Node } from "../../graph/node.ts";
import { dropout as drop, type Generator } from "../../tensor/random.ts";
import { Tensor } from "../../tensor/tensor.ts";

export interface DropoutOptions {
  /** Probability that an element becomes 0. Default: 0.5. */
  readonly p?: number;
  /** Default: true. Otherwise x comes back as it is. */
  readonly training?: boolean;
  readonly generator?: Generator;
}

/** Elements of x set to 0 with probability p, the others divided by 1 − p (torch.nn.functional.dropout). */
export function dropout(x: Tensor, options: number | DropoutOptions = {}): Tensor {
  const {
    p = 0.5,
    training = true,
    generator,
  }: DropoutOptions = typeof options === "number" ? { p: options } : options;
  if (p === 0 || !training) return x;
  return drop(x, p, generator ? { generator } : {});
}

export const dropoutNode = (x: Node, p: number): Node => drop(new Tensor(x), p).node;
