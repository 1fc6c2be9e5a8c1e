import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { IndexError, ShapeError } from "../../src/core/errors.ts";
import {
  accuracy,
  argmaxRows,
  classificationReport,
  confusionMatrix,
  RunningMean,
  SmoothedMean,
  topKAccuracy,
} from "../../src/train/metrics.ts";

const close = (a: number, b: number) => assert.ok(Math.abs(a - b) < 1e-12, `${a} ≠ ${b}`);

describe("metrics", () => {
  test("argmax takes the first of equals, and a NaN", () => {
    assert.deepEqual([...argmaxRows([1, 3, 3, 5, 4, 5, 0, Number.NaN, 9], 3)], [1, 0, 1]);
    assert.throws(() => argmaxRows([1, 2, 3], 2), ShapeError);
  });

  test("accuracy and top-k accuracy", () => {
    assert.equal(accuracy([1, 2, 3, 3], [1, 2, 0, 3]), 0.75);
    const scores = [0.1, 0.9, 0.5, /**/ 0.3, 0.2, 0.1];
    assert.equal(topKAccuracy(scores, 3, [2, 1], 1), 0);
    assert.equal(topKAccuracy(scores, 3, [2, 1], 2), 1);
    assert.equal(topKAccuracy([1, 1, 1], 3, [0], 1), 0, "a model that says nothing is not right");
    assert.throws(() => accuracy([1], [1, 2]), ShapeError);
  });

  test("the report is scikit-learn's", () => {
    // classification_report([0,0,1,1,1,2,2,2,2,2], [0,1,1,1,2,2,2,2,0,2]) with a fourth class that never occurs
    const matrix = confusionMatrix([0, 1, 1, 1, 2, 2, 2, 2, 0, 2], [0, 0, 1, 1, 1, 2, 2, 2, 2, 2], 4);
    assert.deepEqual([...matrix.counts], [1, 1, 0, 0, 0, 2, 1, 0, 1, 0, 4, 0, 0, 0, 0, 0]);
    const report = classificationReport(matrix);
    close(report.accuracy, 0.7);
    assert.deepEqual(
      report.perClass.map((s) => [s.precision, s.recall, s.support]),
      [
        [0.5, 0.5, 2],
        [2 / 3, 2 / 3, 3],
        [0.8, 0.8, 5],
        [0, 0, 0],
      ],
    );
    close(report.macro.f1, (0.5 + 2 / 3 + 0.8) / 4);
    close(report.weighted.f1, (0.5 * 2 + (2 / 3) * 3 + 0.8 * 5) / 10);
  });

  test("counts of batches add up, and what is out of range changes nothing", () => {
    const pairs = fc.array(fc.tuple(fc.nat(4), fc.nat(4)), { minLength: 1, maxLength: 30 });
    fc.assert(
      fc.property(pairs, fc.nat(30), (list, cut) => {
        const p = list.map(([a]) => a);
        const l = list.map(([, b]) => b);
        const parts = confusionMatrix(
          p.slice(cut),
          l.slice(cut),
          5,
          confusionMatrix(p.slice(0, cut), l.slice(0, cut), 5),
        );
        assert.deepEqual(parts, confusionMatrix(p, l, 5));
        close(classificationReport(parts).accuracy, accuracy(p, l));
        close(classificationReport(parts).weighted.recall, accuracy(p, l));
      }),
    );
    const matrix = confusionMatrix([0], [0], 2);
    assert.throws(
      () => confusionMatrix([0, 1], [0, 2], 2, matrix),
      (e: Error) => e instanceof IndexError && /label 2 at position 1 is outside 0 … 1/.test(e.message),
    );
    assert.deepEqual([...matrix.counts], [1, 0, 0, 0]);
  });

  test("a running mean weighs batches by their size, and does not drift", () => {
    const mean = new RunningMean();
    assert.ok(Number.isNaN(mean.mean));
    mean.add(1, 3);
    mean.add(5, 1);
    assert.equal(mean.mean, 2);
    mean.reset();
    for (let i = 0; i < 1e6; i++) mean.add(0.1);
    assert.equal(mean.mean, 0.1);
    mean.add(Number.POSITIVE_INFINITY);
    assert.equal(mean.mean, Number.POSITIVE_INFINITY);
  });

  test("a smoothed mean starts at its first value", () => {
    const mean = new SmoothedMean(0.9);
    close(mean.add(4), 4);
    assert.ok(mean.add(0) < 4 && mean.value > 0);
  });
});
