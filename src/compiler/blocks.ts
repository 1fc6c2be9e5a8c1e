/**
 * Whether a kernel can run piece by piece behind the operation whose result it reads: its rows fall into equal blocks, and
 * block k reads nothing of that result but its k-th part. Looks at positions only; assemblers decide what to do with it.
 */

import { sizeOf } from "../core/shape.ts";
import type { Group } from "./fuse.ts";
import { add, axis, div, type Index, scale, substitute } from "./index-expr.ts";
import { reachable } from "./kernel.ts";
import type { GNode } from "./lower.ts";

/** Whether each of `blocks` equal runs of the group's rows reads only its own one of `blocks` equal parts of `n`. */
export function readsByBlocks(group: Group, n: GNode, blocks: number): boolean {
  if (!group.built) return false;
  const { domain, body, entries } = group.built;
  const part = sizeOf(n.shape) / blocks;
  if (domain.rows % blocks || !Number.isInteger(part)) return false;
  const slot = body.buffers.indexOf(n);
  const rows = domain.rows / blocks;
  const block = axis("block", blocks);
  const split = new Map<string, Index>([["r", add(scale(block, rows), axis("r", rows))]]);
  for (const v of reachable(entries.map((e) => e.value)))
    if (v.kind === "load" && v.slot === slot && div(substitute(v.index as Index, split), part).key !== block.key)
      return false;
  return true;
}
