/** Paths in the origin's private file system are what node:path makes of them. */
import assert from "node:assert/strict";
import { posix } from "node:path";
import { test } from "node:test";
import fc from "fast-check";
import * as browser from "../../src/data/path.browser.ts";

const path = fc
  .array(fc.constantFrom("a", "b.c", ".d", "..", ".", "/", "//", "e.f.g", "h."), { minLength: 1, maxLength: 6 })
  .map((parts) => parts.join("/"));

test("paths are taken apart and joined as by node:path", () => {
  fc.assert(
    fc.property(path, path, (a, b) => {
      const plain = (text: string) => text.replace(/(?<=.)\/$/, ""); // join keeps a "/" at the end, which means nothing here
      assert.equal(browser.join(a, b), plain(posix.join(a, b)));
      const file = plain(posix.normalize(a));
      assert.equal(browser.basename(file), posix.basename(file));
      assert.equal(browser.dirname(file), posix.dirname(file));
      assert.equal(browser.extname(file), posix.extname(file));
    }),
    { numRuns: 1000 },
  );
  assert.equal(browser.join("a", "", "./b"), "a/b");
});
