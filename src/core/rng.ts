/**
 * Random numbers on the JavaScript side: shuffling, sampling of windows, seeds of what has none. Tensors' random numbers
 * are another thing (Threefry, in the graph): these here never reach a kernel.
 */

/** All there is to restore a generator: four words. */
export type RngState = readonly [number, number, number, number];

/** splitmix32: a step of a Weyl sequence through the finaliser of MurmurHash3. */
function mix32(x: number): number {
  let z = (x + 0x9e3779b9) | 0;
  z = Math.imul(z ^ (z >>> 16), 0x85ebca6b);
  z = Math.imul(z ^ (z >>> 13), 0xc2b2ae35);
  return z ^ (z >>> 16);
}

/**
 * xoshiro128** (Blackman and Vigna 2018), seeded through a 32-bit mixer. The same seed gives the same numbers on every
 * machine. `state` and `load` save and restore it exactly.
 */
export class Rng {
  #a = 0;
  #b = 0;
  #c = 0;
  #d = 0;

  /** `seed` is any whole number up to 2^53; `stream` numbers independent sequences of one seed (an epoch, a worker). */
  constructor(seed: number, stream = 0) {
    if (!Number.isSafeInteger(seed) || !Number.isSafeInteger(stream))
      throw new RangeError(`a seed must be a whole number below 2^53, got seed ${seed}, stream ${stream}`);
    // Each word is a hash of its own of seed and stream, so that no two pairs meet in a 32-bit bottleneck.
    const parts = [seed, Math.floor(seed / 2 ** 32), stream, Math.floor(stream / 2 ** 32)];
    const word = (which: number) => parts.reduce((x, part) => mix32(x ^ part), mix32(which));
    this.#a = word(1);
    this.#b = word(2);
    this.#c = word(3);
    this.#d = word(4);
    if ((this.#a | this.#b | this.#c | this.#d) === 0) this.#a = 1; // the one state that never leaves itself
  }

  /** A whole number in [0, 2^32). */
  uint32(): number {
    const s = Math.imul(this.#b, 5);
    const result = Math.imul((s << 7) | (s >>> 25), 9) >>> 0;
    const t = this.#b << 9;
    this.#c ^= this.#a;
    this.#d ^= this.#b;
    this.#b ^= this.#c;
    this.#a ^= this.#d;
    this.#c ^= t;
    this.#d = (this.#d << 11) | (this.#d >>> 21);
    return result;
  }

  /** A number in [0, 1) with 53 random bits. */
  uniform(): number {
    return ((this.uint32() >>> 5) * 0x4000000 + (this.uint32() >>> 6)) / 0x20000000000000;
  }

  /** A whole number in [0, n), each equally likely; n from 1 to 2^32. */
  below(n: number): number {
    if (!(Number.isInteger(n) && n >= 1 && n <= 0x100000000))
      throw new RangeError(`below(n): n must be a whole number from 1 to 2^32, got ${n}`);
    const limit = 0x100000000 - (0x100000000 % n); // what lies above would favour the small numbers
    let x: number;
    do x = this.uint32();
    while (x >= limit);
    return x % n;
  }

  /** A number from the standard normal distribution (Box and Muller 1958; the second of the pair is not kept). */
  normal(): number {
    return Math.sqrt(-2 * Math.log(1 - this.uniform())) * Math.cos(2 * Math.PI * this.uniform());
  }

  /** Puts a list in random order, in place (Fisher and Yates). */
  shuffle<L extends { readonly length: number; [index: number]: unknown }>(list: L): L {
    for (let i = list.length - 1; i > 0; i--) {
      const j = this.below(i + 1);
      const t = list[i];
      list[i] = list[j];
      list[j] = t;
    }
    return list;
  }

  /** 0 … n−1 in random order. */
  permutation(n: number): Int32Array {
    const order = new Int32Array(n);
    for (let i = 0; i < n; i++) order[i] = i;
    return this.shuffle(order);
  }

  state(): RngState {
    return [this.#a >>> 0, this.#b >>> 0, this.#c >>> 0, this.#d >>> 0];
  }

  /** Goes on as the generator did whose state this is. */
  load(state: RngState): this {
    if (state?.length !== 4 || !state.every((w) => w === w >>> 0) || state.every((w) => w === 0))
      throw new RangeError(`a generator's state is four 32-bit words, not all zero; got ${JSON.stringify(state)}`);
    [this.#a, this.#b, this.#c, this.#d] = state.map((w) => w | 0);
    return this;
  }
}
