/** The browser's CRC-32 is zlib's. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { crc32 as ours } from "../../src/data/checksum.browser.ts";
import { crc32 as zlibs } from "../../src/data/checksum.ts";

test("CRC-32 is zlib's, whole and in parts", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 300 }), fc.uint8Array({ maxLength: 40 }), (a, b) => {
      assert.equal(ours(a), zlibs(a));
      assert.equal(ours(b, ours(a)), zlibs(b, zlibs(a)));
    }),
  );
  assert.equal(ours(new TextEncoder().encode("123456789")), 0xcbf43926);
});
