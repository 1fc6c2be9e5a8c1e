/**
 * Training of a byte-level BPE (Sennrich et al. 2016, on bytes as in GPT-2): words with their counts, then merge after
 * merge of the most frequent pair, updating only the words that hold it. Pure arithmetic on ids: what the ids are called
 * is `bpe.ts`'s affair.
 */
import { Heap } from "./heap.ts";

/** Two ids as one number. Ids stay below 2^21. */
export const pairKey = (a: number, b: number): number => a * 0x200000 + b;

interface Candidate {
  readonly count: number;
  readonly key: number;
}

/**
 * Learns merges. `words` are lists of ids with their counts (the lists are changed), `merged(a, b)` gives the id of the
 * pair's union, an existing one if that text is already a token. Learns until `enough()` or until no pair occurs
 * `minFrequency` times. Ties go to the pair with the smaller first, then the smaller second id, so that the result
 * depends on nothing but the counts. Returns the pairs in the order of merging.
 */
export function learnMerges(
  words: number[][],
  counts: readonly number[],
  merged: (a: number, b: number) => number,
  enough: () => boolean,
  minFrequency: number,
): [number, number][] {
  const pairCounts = new Map<number, number>();
  const pairWords = new Map<number, number[]>(); // words that hold or once held the pair, some twice

  // With `only`, just the pairs that hold this id are listed (the others already are), and reported as touched.
  const count = (word: readonly number[], by: number, w: number, only = -1, touched?: Set<number>) => {
    for (let i = 0; i + 1 < word.length; i++) {
      const key = pairKey(word[i], word[i + 1]);
      pairCounts.set(key, (pairCounts.get(key) ?? 0) + by);
      if (by < 0 || (only >= 0 && word[i] !== only && word[i + 1] !== only)) continue;
      touched?.add(key);
      const list = pairWords.get(key);
      if (list === undefined) pairWords.set(key, [w]);
      else if (list[list.length - 1] !== w) list.push(w);
    }
  };
  for (let w = 0; w < words.length; w++) count(words[w], counts[w], w);

  const queue = new Heap<Candidate>((x, y) => x.count > y.count || (x.count === y.count && x.key < y.key));
  for (const [key, n] of pairCounts) queue.push({ count: n, key });

  const merges: [number, number][] = [];
  while (!enough()) {
    const top = queue.pop();
    if (top === undefined) break;
    const now = pairCounts.get(top.key) ?? 0;
    if (now !== top.count) {
      if (now > 0 && now < top.count) queue.push({ count: now, key: top.key }); // had fallen; a risen one has a newer entry
      continue;
    }
    if (now < Math.max(1, minFrequency)) break;
    const a = Math.floor(top.key / 0x200000);
    const b = top.key % 0x200000;
    const id = merged(a, b);
    merges.push([a, b]);
    const touched = new Set<number>();
    const holders = pairWords.get(top.key)!;
    pairWords.delete(top.key);
    for (const w of new Set(holders)) {
      const word = words[w];
      let found = false;
      for (let i = 0; i + 1 < word.length && !found; i++) found = word[i] === a && word[i + 1] === b;
      if (!found) continue;
      count(word, -counts[w], w);
      let n = 0;
      for (let i = 0; i < word.length; i++) {
        if (i + 1 < word.length && word[i] === a && word[i + 1] === b) {
          word[n++] = id;
          i++;
        } else word[n++] = word[i];
      }
      word.length = n;
      count(word, counts[w], w, id, touched);
    }
    // Only pairs with the new id can have risen; an entry of the queue is never below its pair's count.
    for (const key of touched) queue.push({ count: pairCounts.get(key)!, key });
  }
  return merges;
}
