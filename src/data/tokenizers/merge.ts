/** The merging of byte-pair encoding (Sennrich et al. 2016), which every tokenizer of that kind has in common. */
import { pairKey } from "../bpe-train.ts";
import { Heap } from "../heap.ts";

/** Merges by their pairs: the rank of each, and by rank the id of the union. */
export interface Merges {
  readonly ranks: ReadonlyMap<number, number>;
  readonly results: Int32Array;
}

/** Merges the ids of one word in place: always the pair of lowest rank next, the leftmost of equals. O(n log n); gives how many are left. */
export function mergePairs(ids: Int32Array, { ranks, results }: Merges): number {
  const n = ids.length;
  if (n < 2) return n;
  const next = Int32Array.from(ids, (_, i) => i + 1); // n is the end; -1 marks what was merged into its left neighbour
  const previous = Int32Array.from(ids, (_, i) => i - 1);
  // Rank and position as one number: the order of both.
  const queue = new Heap<number>((a, b) => a < b);
  const offer = (i: number) => {
    if (i < 0 || next[i] >= n) return;
    const rank = ranks.get(pairKey(ids[i], ids[next[i]]));
    if (rank !== undefined) queue.push(rank * 0x100000000 + i);
  };
  for (let i = 0; i + 1 < n; i++) offer(i);
  for (let top = queue.pop(); top !== undefined; top = queue.pop()) {
    const rank = Math.floor(top / 0x100000000);
    const i = top % 0x100000000;
    const j = next[i];
    if (j < 0 || j >= n || ranks.get(pairKey(ids[i], ids[j])) !== rank) continue; // an entry of before
    ids[i] = results[rank];
    next[i] = next[j];
    next[j] = -1;
    if (next[i] < n) previous[next[i]] = i;
    offer(i);
    offer(previous[i]);
  }
  let m = 0;
  for (let i = 0; i < n; i = next[i]) ids[m++] = ids[i];
  return m;
}
