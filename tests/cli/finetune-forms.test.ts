/** nabla finetune on data of other kinds than running text: conversations, classes and numbers; what its flags, samples and last lines say of them. */
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { holdOut } from "../../src/cli/finetune-data.ts";
import { type Finished, makeRoom, nabla } from "./support.ts";

const room = makeRoom();
const chat = fileURLToPath(new URL("../parity/fixtures/generation/tiny-chat", import.meta.url));
const write = (name: string, text: string): string => {
  const path = join(room, name);
  writeFileSync(path, text);
  return path;
};
const lines = (name: string, rows: readonly object[]): string =>
  write(name, rows.map((row) => `${JSON.stringify(row)}\n`).join(""));

let runs = 0;
const finetune = (...more: string[]): Promise<Finished> =>
  nabla(["finetune", chat, "--steps", "1", "--out", join(room, `run-${runs++}`), ...more]);

const talk = (i: number) => ({
  conversations: [
    { from: "human", value: `Who sang ${i}?` },
    { from: "gpt", value: `The fox ${i}.` },
  ],
});

describe("conversations", () => {
  const data = lines("talks.jsonl", [0, 1, 2, 3, 4, 5].map(talk));

  test("samples are of what was held out, and the last line says how to speak with the model", async () => {
    const { code, stdout, stderr } = await finetune(
      "--data",
      data,
      "--eval-share",
      "0.2",
      "--samples",
      "4",
      "--sample-tokens",
      "2",
    );
    assert.equal(code, 0, stderr);
    assert.match(stdout, /to learn from: 5 examples .* held out of the same data: 1 example \(/);
    assert.match(stdout, /\n1 example, \d+ targets\n/);
    assert.equal(stdout.match(/<\|assistant\|>\\n"\n {2}before/g)?.length, 1);
    assert.match(stdout, /use it: npx nabla generate .* --adapter .* --chat\n/);
  });
});

describe("classes and numbers", () => {
  const rows = Array.from({ length: 8 }, (_, i) => ({ text: `the fox ${i}`, label: i % 2 ? "good dog" : "bad dog" }));
  const classes = lines("classes.jsonl", rows);

  test("--also is measured for them too", async () => {
    const other = lines("other.jsonl", rows.slice(0, 3));
    const { code, stdout, stderr } = await finetune("--task", "classify", "--data", classes, "--also", other);
    assert.equal(code, 0, stderr);
    assert.match(
      stdout,
      /on .*other\.jsonl, which was not learnt:\n[\s\S]*balanced accuracy[\s\S]*\n3 examples, 3 targets/,
    );
    const strange = lines("strange.jsonl", [{ text: "a", label: "cat" }]);
    const refused = await finetune("--task", "classify", "--data", classes, "--also", strange);
    assert.match(refused.stderr, /strange\.jsonl, line 1: the class "cat" is not one that was learnt/);
    assert.equal(refused.code, 65);
  });

  test("of each class a share is held out, of the rare one too; of a class of one example nothing", () => {
    const list = Array.from({ length: 101 }, (_, i) => ({ i, target: i === 0 ? 2 : Number(i % 20 === 1) }));
    const classOf = ({ target }: { readonly target: number }) => target;
    const { kept, held } = holdOut(list, 0.1, { running: false, seed: 3, classOf });
    assert.deepEqual(
      [0, 1, 2].map((target) => held.filter((each) => each.target === target).length),
      [10, 1, 0],
    );
    assert.deepEqual(
      [...kept, ...held].sort((a, b) => a.i - b.i),
      list,
    );
    const alone = list.map(({ i }) => ({ i, target: i }));
    assert.equal(holdOut(alone, 0.1, { running: false, seed: 3, classOf }).held.length, 1);
  });

  test("what is not defined of one number is left open", async () => {
    const numbers = write("numbers.csv", "text,label\nthe fox,1\na dog,2\nan owl,3\n");
    const { code, stdout, stderr } = await finetune("--task", "regress", "--data", numbers);
    assert.equal(code, 0, stderr);
    assert.match(stdout, /\nR² +– +→ +–\n/);
    assert.doesNotMatch(stdout, /NaN|Infinity/);
  });

  test("flags that a task does not obey are refused", async () => {
    for (const [flags, message] of [
      [["--task", "classify", "--packing"], /--packing is for --task language, not for classify/],
      [["--label", "class"], /--label is for --task classify or regress, not for language/],
      [["--eval", classes, "--eval-share", "0.5"], /give either --eval \(.*\) or --eval-share/],
    ] as const) {
      const { code, stderr } = await finetune("--data", classes, ...flags);
      assert.match(stderr, message);
      assert.equal(code, 2);
    }
  });
});
