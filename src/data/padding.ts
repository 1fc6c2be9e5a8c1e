/** To which lengths sequences of many lengths are padded, so that few programs are compiled. */

/** 16, 24, 32, 48, 64, … up to `longest`: a row is at most a third padding beyond 16. */
export function paddedLength(length: number, longest: number): number {
  let size = 16;
  while (size < length) size = Number.isInteger(Math.log2(size)) ? size * 1.5 : (size / 1.5) * 2;
  return Math.min(size, longest);
}
