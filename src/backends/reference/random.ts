/**
 * Threefry-2x32 with 20 rounds (Salmon, Moraes, Dror, Shaw: "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011,
 * section 3.3), checked against that paper's known-answer vectors.
 *
 * The rule that every backend follows: element i of the flattened result belongs to block b = floor(i / 2); the block's
 * counter is (b mod 2³², floor(b / 2³²)), its key the two scalars as uint32, and element i is output word i mod 2. So a
 * number depends on key and position alone, never on the shape around it.
 */
import type { Row } from "./values.ts";

const rotations = [13, 15, 26, 6, 17, 29, 16, 24];
/** Skein's key schedule constant, 32 bits (the paper's C240). */
const parity = 0x1bd11bda;

/** Encrypts the counter (c0, c1) under the key (k0, k1); writes two words at `at`. */
export function threefry2x32(
  k0: number,
  k1: number,
  c0: number,
  c1: number,
  out: { [index: number]: number },
  at: number,
) {
  const key = [k0 | 0, k1 | 0, k0 ^ k1 ^ parity];
  let x0 = (c0 + key[0]) | 0;
  let x1 = (c1 + key[1]) | 0;
  for (let round = 0; round < 20; round++) {
    const r = rotations[round & 7];
    x0 = (x0 + x1) | 0;
    x1 = ((x1 << r) | (x1 >>> (32 - r))) ^ x0;
    if ((round & 3) === 3) {
      const s = (round >> 2) + 1;
      x0 = (x0 + key[s % 3]) | 0;
      x1 = (x1 + key[(s + 1) % 3] + s) | 0;
    }
  }
  out[at] = x0 >>> 0;
  out[at + 1] = x1 >>> 0;
}

export const random: Readonly<Record<string, Row>> = {
  random: {
    plan: () => {
      const pair = new Uint32Array(2);
      return (o, [key0, key1]) => {
        for (let i = 0; i < o.length; i += 2) {
          const block = i / 2;
          threefry2x32(key0[0] >>> 0, key1[0] >>> 0, block >>> 0, Math.floor(block / 2 ** 32), pair, 0);
          o[i] = pair[0];
          if (i + 1 < o.length) o[i + 1] = pair[1];
        }
      };
    },
  },
};
