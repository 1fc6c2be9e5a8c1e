/** Threefry-2x32: the known-answer vectors of its authors, and that its bits are even. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { referenceBackend } from "../../../src/backends/reference/index.ts";
import { threefry2x32 } from "../../../src/backends/reference/random.ts";
import { random, scalar } from "../../../src/graph/ops.ts";
import { evaluate } from "../../support/evaluate.ts";

const backend = referenceBackend();

test("threefry2x32 gives the known answers of Random123", () => {
  const all = 0xffffffff;
  for (const [k0, k1, c0, c1, x0, x1] of [
    [0, 0, 0, 0, 0x6b200159, 0x99ba4efe],
    [all, all, all, all, 0x1cb996fc, 0xbb002be7],
    [0x13198a2e, 0x03707344, 0x243f6a88, 0x85a308d3, 0xc4923a9c, 0x483df7a0],
  ]) {
    const out = new Uint32Array(2);
    threefry2x32(k0, k1, c0, c1, out, 0);
    assert.deepEqual([out[0], out[1]], [x0, x1]);
  }
});

test("the bits are spread evenly", async () => {
  const n = 1 << 16;
  const [bits] = await evaluate(backend, [random([n], scalar(42, "uint32"), scalar(0, "uint32"))]);
  for (let bit = 0; bit < 32; bit++) {
    let ones = 0;
    for (const word of bits) ones += (word >>> bit) & 1;
    // five standard deviations of a fair coin
    assert.ok(Math.abs(ones - n / 2) < 5 * Math.sqrt(n / 4), `bit ${bit}: ${ones} of ${n}`);
  }
});
