/** The recipe x-rays: how it counts, and, in the long run, one of its seeds: the pretrained network beats the one from nothing. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { choose, halfInterval, readData, scoresOf, steps, train, tuned } from "../../recipes/x-rays/finetune.ts";
import { setDevice } from "../../src/execution/index.ts";
import { nativeDevice } from "../support/cpu.ts";
import { dataFolder, lacks } from "../support/real-data.ts";

test("AUC counts pairs in the right order, ties half; balanced accuracy weighs both classes equally", () => {
  assert.deepEqual(scoresOf([-2, -1, 1, 2], [0, 0, 1, 1]), { auc: 1, balancedAccuracy: 1 });
  assert.deepEqual(scoresOf([2, 1, -1, -2], [0, 0, 1, 1]), { auc: 0, balancedAccuracy: 0 });
  assert.deepEqual(scoresOf([1, 1, 1, 1], [0, 0, 1, 1]), { auc: 0.5, balancedAccuracy: 0.5 });
  // three of a kind are right, and the other is not: pairs 3 and 0 of 3
  assert.deepEqual(scoresOf([-3, -2, -1, -4], [0, 0, 0, 1]), { auc: 0, balancedAccuracy: 0.5 });
  assert.deepEqual(scoresOf([0.5, -1, 0.2, 3], [0, 0, 1, 1]), { auc: 0.75, balancedAccuracy: 0.75 });
});

test("the interval of a mean is Student's", () => {
  // 1, 2, 3, 4, 5: standard error √(2.5 / 5), t of four degrees of freedom 2.776
  assert.ok(Math.abs(halfInterval([1, 2, 3, 4, 5]) - 2.776 * Math.sqrt(0.5)) < 1e-9);
});

test("as many pictures of each class are chosen, others by another seed", () => {
  const rays = {
    pictures: Array.from({ length: 50 }, (_, i) => Uint8Array.of(i)),
    labels: Array.from({ length: 50 }, (_, i) => +(i > 12)),
  };
  const ids = (seed: number): number[] => choose(rays, 10, seed).pictures.map(([id]) => id);
  const [one, other] = [ids(1), ids(2)];
  assert.deepEqual(choose(rays, 10, 1).labels, [...new Array(10).fill(0), ...new Array(10).fill(1)]);
  assert.equal(new Set(one).size, 20);
  assert.ok(one.slice(0, 10).every((id) => id <= 12) && one.slice(10).every((id) => id > 12));
  assert.deepEqual(ids(1), one);
  assert.notDeepEqual(one, other);
});

test("200 X-rays are learnt better from CIFAR-10's network than from nothing with three times the steps", {
  skip:
    lacks("resnet20-cifar10", "pneumoniamnist") ||
    (process.env["NABLA_LONG"] !== "1" && "NABLA_LONG=1 trains both networks, which takes a minute"),
}, async (t) => {
  setDevice(nativeDevice());
  assert.equal(steps.nothing, 3 * steps.pretrained);
  const data = await readData(dataFolder);
  assert.deepEqual([data.train.labels.length, data.val.labels.length, data.test.labels.length], [4708, 524, 624]);
  const pretrained = await train("pretrained", data, { lr: tuned.pretrained, seed: 2, on: "test" });
  const nothing = await train("nothing", data, { lr: tuned.nothing, seed: 2, on: "test" });
  t.diagnostic(`AUC ${pretrained.auc.toFixed(4)}, from nothing ${nothing.auc.toFixed(4)}`);
  assert.ok(pretrained.auc > nothing.auc, `${pretrained.auc}, from nothing ${nothing.auc}`);
  assert.ok(pretrained.auc > 0.9);
});

test("both languages tell the same sections", () => {
  const headings = (name: string): number =>
    readFileSync(new URL(`../../recipes/x-rays/${name}`, import.meta.url), "utf8").match(/^## /gm)?.length ?? 0;
  assert.equal(headings("README.md"), headings("README.zh.md"));
  assert.ok(headings("README.md") >= 3);
});
