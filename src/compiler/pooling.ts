/**
 * ReLU's gradient behind a max-pool, on the pooled values: the gradient of maxPool(relu(v)) is masked by v ≤ 0 at every
 * position, but it differs from zero only where a window has its maximum, and there v ≤ 0 is the same as "the pooled value
 * is ≤ 0". Masking the pooled gradient reads a fraction of the memory, and v need not be kept for the backward pass.
 */
import { maxPool2d, maxPool2dGradient, type PoolAttrs } from "../graph/composites/index.ts";
import type { Node } from "../graph/node.ts";
import * as ops from "../graph/ops.ts";

const isNode = (n: Node, name: string): boolean => !n.storage && n.operation.name === name;

const isZero = (n: Node): boolean =>
  isNode(n, "const")
    ? Number(n.attrs["value"]) === 0
    : (isNode(n, "expand") || isNode(n, "reshape")) && isZero(n.inputs[0]);

/** What a permutation is of, and its axes; any other node is of itself. */
function unpermuted(n: Node): { of: Node; axes: readonly number[] } {
  return isNode(n, "permute")
    ? { of: n.inputs[0], axes: n.attrs["axes"] as readonly number[] }
    : { of: n, axes: [...n.shape.keys()] };
}

/** where(v ≤ 0, 0, gradient of a max-pool of relu(v)) as the gradient of that pool for a masked gradient; else null. */
export function maskPooled(n: Node): Node | null {
  const [condition, none, value] = n.inputs;
  if (!isNode(condition, "le") || !isZero(condition.inputs[1]) || !isZero(none)) return null;
  const outer = unpermuted(value);
  if (!isNode(outer.of, "maxPool2dGradient")) return null;
  const [x, gradient] = outer.of.inputs;
  const inner = unpermuted(x);
  if (!isNode(inner.of, "relu") || inner.of.inputs[0] !== condition.inputs[0]) return null;
  if (outer.axes.some((a, i) => inner.axes[a] !== i)) return null;
  const attrs = outer.of.attrs as unknown as PoolAttrs;
  const masked = ops.where(ops.le(maxPool2d(x, attrs), 0), 0, gradient);
  return ops.permute(maxPool2dGradient(x, masked, attrs), outer.axes);
}
