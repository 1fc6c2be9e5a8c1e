import assert from "node:assert/strict";
import { isUtf8 } from "node:buffer";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import fc from "fast-check";
import { FileError } from "../../src/data/files.ts";
import { invalidUtf8Offset, readTextCorpus, splitText, TextError } from "../../src/data/text.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));
const shared = process.env["NABLA_TEST_DATA"] ?? join(root, "..", "shared", "data");
const shakespeare = join(shared, "shakespeare", "input.txt");

describe("a text corpus", () => {
  let folder = "";
  const put = async (name: string, content: string | Uint8Array) => {
    const path = join(folder, name);
    await mkdir(join(path, ".."), { recursive: true });
    await writeFile(path, content);
    return path;
  };
  before(async () => {
    folder = await mkdtemp(join(tmpdir(), "nabla-text-"));
  });
  after(() => rm(folder, { recursive: true }));

  test("a folder is read in the order of its names, recursively, text files only, each once", async () => {
    await put("tree/b.md", "B\n");
    await put("tree/Z.txt", "Z");
    await put("tree/a/deep.ts", "deep\n");
    await put("tree/a/empty.txt", "");
    await put("tree/image.png", Uint8Array.of(0, 1, 2));
    await put("tree/.hidden/x.txt", "no");
    await put("tree/node_modules/x.txt", "no");
    await symlink(join(folder, "tree"), join(folder, "tree", "loop"));
    await symlink(join(folder, "nowhere"), join(folder, "tree", "dangling.txt"));
    const { text, files } = await readTextCorpus([join(folder, "tree"), join(folder, "tree", "b.md")]);
    assert.equal(text, "Z\ndeep\nB\n");
    assert.deepEqual(
      files.map(({ path, bytes }) => [path.slice(folder.length + 6), bytes]),
      [
        ["Z.txt", 1],
        ["a/deep.ts", 5],
        ["b.md", 2],
      ],
    );
  });

  test("a named file is taken whatever its ending; a byte order mark is dropped", async () => {
    const path = await put("novel.xyz", "\uFEFFonce upon a time");
    assert.equal((await readTextCorpus([path])).text, "once upon a time");
  });

  const bad: [promise: string, name: string, content: string | Uint8Array, message: RegExp][] = [
    ["an empty file", "empty.txt", "", /empty\.txt: the file is empty/],
    [
      "a binary file",
      "binary.txt",
      Uint8Array.of(65, 66, 0, 67),
      /binary\.txt: not a text file: a zero byte at offset 2/,
    ],
    ["Latin-1", "latin.txt", Uint8Array.of(65, 0xe9, 66), /latin\.txt: not UTF-8: byte 0xe9 at offset 1; .*iconv/],
    ["UTF-16", "wide.txt", Uint8Array.of(0xff, 0xfe, 65, 0), /wide\.txt: the text is UTF-16; convert/],
    ["too short a text", "x.txt", "x", /1 characters are too few/],
  ];
  for (const [promise, name, content, message] of bad)
    test(`${promise} is an error that names the file`, async () => {
      const path = await put(`bad/${name}`, content);
      await assert.rejects(readTextCorpus([path]), (e: Error) => e instanceof TextError && message.test(e.message));
    });

  test("a missing path, no path and a folder without text are errors", async () => {
    await assert.rejects(
      readTextCorpus([join(folder, "none.txt")]),
      (e: Error) => e instanceof FileError && /none\.txt: there is no such/.test(e.message),
    );
    await assert.rejects(readTextCorpus([]), TextError);
    await put("pictures/a.png", "x");
    await assert.rejects(readTextCorpus([join(folder, "pictures")]), /pictures: no text files in this folder/);
    await put("blank/a.txt", "");
    await assert.rejects(readTextCorpus([join(folder, "blank")]), /all text files there are empty/);
  });

  test("the split is by characters, never inside one, and loses none", () => {
    assert.deepEqual(splitText("0123456789", 0.1), ["012345678", "9"]);
    assert.deepEqual(splitText("😀".repeat(10), 0.1), ["😀".repeat(9), "😀"]);
    fc.assert(
      fc.property(fc.string({ unit: "grapheme" }), fc.double({ min: 0, max: 0.99, noNaN: true }), (text, share) => {
        const [a, b] = splitText(text, share);
        assert.equal(a + b, text);
        assert.equal([...a].length, Math.floor([...text].length * (1 - share)));
      }),
    );
    assert.throws(() => splitText("x", 1), TextError);
  });

  test("the offset of the first invalid byte agrees with Node's UTF-8 check", () => {
    const bytes = fc.array(fc.oneof(fc.integer({ min: 0x80, max: 255 }), fc.constantFrom(65, 0xe0, 0xed, 0xf0, 0xf4)), {
      maxLength: 8,
    });
    fc.assert(
      fc.property(bytes, (list) => {
        const data = Uint8Array.from(list);
        const at = invalidUtf8Offset(data);
        assert.equal(at === -1, isUtf8(data));
        if (at >= 0) assert.ok(isUtf8(data.subarray(0, at)));
      }),
      { numRuns: 2000 },
    );
  });

  test("tiny Shakespeare splits as nanoGPT splits it", {
    skip: !existsSync(shakespeare) && "no test data here (NABLA_TEST_DATA)",
  }, async () => {
    const { text, train, validation } = await readTextCorpus([shakespeare]);
    assert.deepEqual([text.length, train.length, validation.length], [1115394, 1003854, 111540]);
  });
});
