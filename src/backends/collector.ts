/**
 * Tells the engine's garbage collector of memory that it can't see: what a tensor holds is outside its heap, and the
 * wrappers that it sees are a few bytes each.
 */

/** Told by this much at a time, not of every block: it would mark the whole heap every 16 MB. */
const TOLD_BYTES = 64 * 2 ** 20;

export class Collector {
  /** Bytes given out that it has not been told of. */
  #untold = 0;

  /** Counts memory that was given out. */
  count(bytes: number): void {
    this.#untold += bytes;
    if (this.#untold < TOLD_BYTES) return;
    // an array of that size, dropped at once: pages that nobody touches cost nothing, and it counts
    try {
      new ArrayBuffer(this.#untold);
    } catch {
      // not even addresses for it: the collector is under pressure anyway
    }
    this.#untold = 0;
  }
}
