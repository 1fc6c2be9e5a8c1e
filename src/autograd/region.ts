/**
 * Numbers for the regions in which checkpoints record their work again: 1, 2, … within one backward pass, so that
 * the same step gives the same graph, and the same program, every time. Region 0 is everything else.
 */
import { setRegion } from "../graph/node.ts";

let last = 0;

export function resetRegions(): void {
  last = 0;
}

/** Records in a region of its own. */
export function inNewRegion<T>(record: () => T): T {
  const before = setRegion(++last);
  try {
    return record();
  } finally {
    setRegion(before);
  }
}
