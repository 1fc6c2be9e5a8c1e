/**
 * Memory that is not JavaScript's, seen through ArrayBuffers: a file that is mapped. Whoever makes such a buffer says where it lies, so that
 * a backend can use the memory in place instead of copying it.
 */

export interface Foreign {
  /** Of the buffer's first byte, in this process. */
  readonly address: number;
  /** Keeps the memory: it is released when this is no longer reachable. */
  readonly owner: object;
}

const known = new WeakMap<ArrayBufferLike, Foreign>();

/** Says where a buffer's memory is. The buffer keeps the owner. */
export function declareForeign(buffer: ArrayBuffer, foreign: Foreign): void {
  known.set(buffer, foreign);
}

/** Where a buffer's memory is; null for one of JavaScript's own. */
export const foreignOf = (buffer: ArrayBufferLike): Foreign | null => known.get(buffer) ?? null;
