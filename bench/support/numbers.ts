/**
 * Numbers that come out the same here and in peers/common.py, so that both sides start from the same weights and see the
 * same data: a hash of a position (lowbias32, C. Wellons 2018), not a generator with a state. And the little statistics.
 */

/** Floats in [−bound, bound) for positions 0 … n−1 of the sequence `seed`. */
export function uniform(seed: number, n: number, bound = 1): Float32Array {
  const out = new Float32Array(n);
  for (let i = 0; i < n; i++) out[i] = (2 * (hash(seed, i) / 2 ** 32) - 1) * bound;
  return out;
}

/** Whole numbers in 0 … below−1 for positions 0 … n−1 of the sequence `seed`. */
export function integers(seed: number, n: number, below: number): Int32Array {
  const out = new Int32Array(n);
  for (let i = 0; i < n; i++) out[i] = hash(seed, i) % below;
  return out;
}

function hash(seed: number, i: number): number {
  let x = (i + Math.imul(seed, 0x9e3779b9)) >>> 0;
  x = Math.imul(x ^ (x >>> 16), 0x7feb352d);
  x = Math.imul(x ^ (x >>> 15), 0x846ca68b);
  return (x ^ (x >>> 16)) >>> 0;
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** The largest difference of two lists, relative to the second where that is above 1e-3. */
export function difference(a: readonly number[], b: readonly number[]): number {
  if (a.length !== b.length) return Number.POSITIVE_INFINITY;
  let worst = 0;
  for (let i = 0; i < a.length; i++) {
    const d = Math.abs(a[i] - b[i]) / Math.max(Math.abs(b[i]), 1e-3);
    if (!(d <= worst)) worst = Number.isNaN(d) ? Number.POSITIVE_INFINITY : d;
  }
  return worst;
}
