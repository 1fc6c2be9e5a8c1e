/** Classes from the likeliest on, of which a draw needs the first few: a vocabulary is not sorted for each token. */

/** Ranges of logits that are counted apart. */
const buckets = 1024;

export class Ranking {
  readonly #logits: Float64Array;
  #sorted: number[] = [];

  constructor(logits: Float64Array) {
    this.#logits = logits;
  }

  /** The class of rank k, 0 the likeliest; of equal logits the earlier one is likelier. */
  at(k: number): number {
    if (k >= this.#sorted.length) this.#sort(Math.max(64, 8 * k));
    return this.#sorted[k];
  }

  /** Sorts at least the `count` likeliest: all classes from the bucket on in which the last of these falls. */
  #sort(count: number): void {
    const logits = this.#logits;
    const least = this.#least(count);
    const chosen: number[] = [];
    for (let i = 0; i < logits.length; i++) if (logits[i] >= least) chosen.push(i);
    this.#sorted = chosen.sort((a, b) => logits[b] - logits[a] || a - b);
  }

  /** A logit that at least `count` classes reach, and not many more. */
  #least(count: number): number {
    const logits = this.#logits;
    let [low, high] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
    for (let i = 0; i < logits.length; i++) {
      const x = logits[i];
      if (x > high) high = x;
      if (x < low && x !== Number.NEGATIVE_INFINITY) low = x;
    }
    const width = (high - low) / buckets;
    if (count >= logits.length || !(width > 0 && width < Number.POSITIVE_INFINITY)) return Number.NEGATIVE_INFINITY;
    const counts = new Uint32Array(buckets + 1);
    for (let i = 0; i < logits.length; i++) if (logits[i] >= low) counts[Math.floor((logits[i] - low) / width)]++;
    let seen = 0;
    for (let b = buckets; b > 0; b--) {
      seen += counts[b];
      // the next bucket's end is one of rounding: half a bucket more is never too few
      if (seen >= count) return low + (b - 0.5) * width;
    }
    return Number.NEGATIVE_INFINITY;
  }
}
