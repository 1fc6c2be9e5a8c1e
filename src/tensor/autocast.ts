/** autocast: mixed precision for whatever a function records. What it does to which operation is `graph/autocast.ts`. */
import { DTypeError } from "../core/errors.ts";
import { type AutocastDType, setAutocast } from "../graph/autocast.ts";

export interface AutocastOptions {
  /** What products are computed in, with float32 sums. Default: "bfloat16". */
  readonly dtype?: "bfloat16";
  /** false: `fn` runs as if there were no autocast around it. Default: true. */
  readonly enabled?: boolean;
}

/** Runs `fn` under a mode that `set` sets and that gives what it was before. If `fn` gives a promise, until it settles. */
export function under<V, T>(set: (value: V) => V, value: V, fn: () => T): T {
  const before = set(value);
  let result: T;
  try {
    result = fn();
  } catch (error) {
    set(before);
    throw error;
  }
  if (result instanceof Promise)
    return result.finally(() => {
      set(before);
    }) as T;
  set(before);
  return result;
}

/**
 * Runs `fn` in mixed precision (torch.autocast) and returns what it returns: linear layers, matmul, convolutions and attention take
 * float32 operands rounded to bfloat16, sum in float32 and give bfloat16; softmax and losses compute in float32, and so do recurrent layers;
 * everything else goes by its operands. Parameters stay as they are, and so are their gradients. The backward pass needs no autocast.
 * If `fn` gives a promise, the mode lasts until it settles; what is recorded meanwhile elsewhere is under it too. Throws DTypeError for
 * float16, whose range is too small for gradients without a scaled loss.
 */
export function autocast<T>(options: AutocastOptions, fn: () => T): T {
  const { dtype = "bfloat16", enabled = true } = options;
  if (dtype !== "bfloat16")
    throw new DTypeError(
      `autocast: dtype must be "bfloat16", got ${JSON.stringify(dtype)}; float16 would need a scaled loss, which is not here`,
    );
  return under<AutocastDType, T>(setAutocast, enabled ? dtype : null, fn);
}
