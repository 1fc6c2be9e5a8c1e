/** Several examples in one row of a batch, so that less of it is filling. */
import type { Tensor } from "../tensor/index.ts";

/**
 * Examples that lie one behind the other in a row, [batch, time] each: a token sees those before it of the same segment
 * only, and has the position that it has in its own example.
 */
export interface Packing {
  /** int32, equal within an example. */
  readonly segments: Tensor;
  /** int32, from 0 in each example. */
  readonly positions: Tensor;
}

/** Which tokens are of one segment, bool [batch, 1, time, time]. */
export const sameSegment = ({ segments }: Packing): Tensor =>
  segments.unsqueeze(2).eq(segments.unsqueeze(1)).unsqueeze(1);
