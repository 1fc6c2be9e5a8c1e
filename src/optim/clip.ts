/** Clipping of gradients, in place, between `backward()` and `step()` (torch.nn.utils.clip_grad_norm_, clip_grad_value_). */
import { defineOperation } from "../autograd/index.ts";
import { accumulator } from "../core/dtype.ts";
import { NablaError } from "../core/errors.ts";
import { type Node, setGradEnabled } from "../graph/node.ts";
import * as ops from "../graph/ops.ts";
import { Tensor } from "../tensor/tensor.ts";

/** The p-norm of all inputs taken as one vector; computed in the first one's accumulation dtype. */
const globalNorm = defineOperation<{ readonly p: number | "max" }>({
  name: "globalNorm",
  infer: ([x]) => ({ shape: [], dtype: accumulator(x.dtype) }),
  decompose: (inputs, { p }) => {
    const dtype = accumulator(inputs[0].dtype);
    const parts = inputs.map((x) => {
      const wide = ops.cast(x, dtype);
      if (p === "max") return ops.reduceMax(ops.abs(wide));
      return ops.sum(p === 2 ? ops.mul(wide, wide) : p === 1 ? ops.abs(wide) : ops.pow(ops.abs(wide), p));
    });
    const total = parts.reduce((a, b) => (p === "max" ? ops.maximum(a, b) : ops.add(a, b)));
    return [p === 2 ? ops.sqrt(total) : p === 1 || p === "max" ? total : ops.pow(total, 1 / p)];
  },
});

/** x · min(1, maxNorm / (norm + 10⁻⁶)). */
const scaledDown = defineOperation({
  name: "scaledDown",
  infer: ([x]) => ({ shape: x.shape, dtype: x.dtype }),
  decompose: ([x, norm, maxNorm]) => {
    const factor = ops.minimum(ops.div(maxNorm, ops.add(norm, 1e-6)), 1);
    return [ops.cast(ops.mul(ops.cast(x, norm.dtype), factor), x.dtype)];
  },
});

const gradientsOf = (name: string, parameters: Iterable<Tensor>): Tensor[] => {
  const list = parameters instanceof Tensor ? [parameters] : [...parameters];
  for (const p of list) if (!(p instanceof Tensor)) throw new NablaError(`${name}: takes parameters, got ${typeof p}`);
  return list.flatMap((p) => (p.grad ? [p.grad] : []));
};

function unrecorded<T>(record: () => T): T {
  const before = setGradEnabled(false);
  try {
    return record();
  } finally {
    setGradEnabled(before);
  }
}

/**
 * Scales all gradients down together so that their norm, taken as one vector, is at most `maxNorm`. Gives the norm before, a
 * tensor without axes that may be read after the step. `normType`: 2, 1, another p, or Infinity.
 */
export function clipGradNorm_(
  parameters: Iterable<Tensor>,
  maxNorm: number,
  options: { readonly normType?: number } = {},
): Tensor {
  const { normType = 2 } = options;
  if (!(maxNorm >= 0)) throw new NablaError(`clipGradNorm_: maxNorm must not be negative, got ${maxNorm}`);
  if (!(normType > 0)) throw new NablaError(`clipGradNorm_: normType must be above 0, got ${normType}`);
  const gradients = gradientsOf("clipGradNorm_", parameters);
  return unrecorded(() => {
    if (gradients.length === 0) return new Tensor(ops.constant(0, "float32"));
    const p = normType === Number.POSITIVE_INFINITY ? "max" : normType;
    const norm = globalNorm(
      gradients.map((g) => g.node),
      { p },
    )[0];
    const limit: Node = ops.scalar(maxNorm, norm.dtype);
    for (const g of gradients) g.node = scaledDown([g.node, norm, limit])[0];
    return new Tensor(norm).keep();
  });
}

/** Puts every element of every gradient between −clipValue and clipValue. */
export function clipGradValue_(parameters: Iterable<Tensor>, clipValue: number): void {
  if (!(clipValue >= 0)) throw new NablaError(`clipGradValue_: clipValue must not be negative, got ${clipValue}`);
  unrecorded(() => {
    for (const g of gradientsOf("clipGradValue_", parameters)) g.node = g.clamp(-clipValue, clipValue).node;
  });
}
