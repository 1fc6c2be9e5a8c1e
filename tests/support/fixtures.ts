/** Reads the fixtures that PyTorch made (tests/parity/generate.py), and compares numbers within a dtype's tolerance. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { allocateRaw, type DType, decode, dtypes, encode, type TypedArray } from "../../src/core/dtype.ts";

/** A stored tensor: base64 of raw little-endian elements. */
export interface Stored {
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly data: string;
}

export function readFixture<T>(name: string): T {
  return JSON.parse(readFileSync(new URL(`../parity/fixtures/${name}.json`, import.meta.url), "utf8")) as T;
}

/** Raw elements: 16-bit floats as bits. */
export function rawOf({ dtype, data }: Stored): TypedArray {
  const bytes = Uint8Array.from(Buffer.from(data, "base64"));
  return new dtypes[dtype].array(bytes.buffer);
}

export const valuesOf = (stored: Stored): TypedArray => decode(stored.dtype, rawOf(stored));

export interface Tolerance {
  readonly rtol: number;
  readonly atol: number;
}

/** How closely a dtype's results agree with PyTorch's; integers and bool exactly. */
export const tolerances: Readonly<Record<DType, Tolerance>> = {
  float32: { rtol: 1e-5, atol: 1e-6 },
  float64: { rtol: 1e-10, atol: 1e-10 },
  float16: { rtol: 2e-3, atol: 2e-3 },
  bfloat16: { rtol: 2e-2, atol: 2e-2 },
  int32: { rtol: 0, atol: 0 },
  uint32: { rtol: 0, atol: 0 },
  uint8: { rtol: 0, atol: 0 },
  bool: { rtol: 0, atol: 0 },
};

/** Where two arrays first differ beyond the tolerance, in words; null where they agree. NaN equals NaN. */
export function firstDifference(
  got: ArrayLike<number>,
  expected: ArrayLike<number>,
  { rtol, atol }: Tolerance,
  signedZero = false,
): string | null {
  if (got.length !== expected.length) return `${got.length} elements, expected ${expected.length}`;
  for (let i = 0; i < got.length; i++) {
    const [a, b] = [got[i], expected[i]];
    if (Object.is(a, b) || (a === b && !signedZero)) continue;
    if (a !== b && Math.abs(a - b) <= atol + rtol * Math.abs(b)) continue;
    return `element ${i} is ${Object.is(a, -0) ? "-0" : a}, expected ${Object.is(b, -0) ? "-0" : b}`;
  }
  return null;
}

export function assertClose(
  what: string,
  got: ArrayLike<number>,
  expected: ArrayLike<number>,
  tolerance: Tolerance,
): void {
  const difference = firstDifference(got, expected, tolerance);
  if (difference) assert.fail(`${what}: ${difference}`);
}

/** Numbers as raw elements of `dtype`. */
export function encodeAs(dtype: DType, values: ArrayLike<number>): TypedArray {
  const raw = allocateRaw(dtype, values.length);
  encode(dtype, values, raw);
  return raw;
}
