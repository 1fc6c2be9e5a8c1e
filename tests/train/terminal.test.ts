import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { confusionMatrix } from "../../src/train/metrics.ts";
import {
  formatBytes,
  formatConfusionMatrix,
  formatCount,
  formatDuration,
  formatLoss,
  formatRate,
  LiveLine,
  lossChart,
  type Point,
  usesColor,
} from "../../src/train/terminal.ts";

// biome-ignore lint/suspicious/noControlCharactersInRegex: escape sequences begin with one
const plain = (text: string) => text.replace(/\u001b\[[0-9;]*[mK]/g, "");

/** A screen that remembers, with a clock that only moves when told to. */
function fake(tty: boolean, columns = 80) {
  const screen = {
    isTTY: tty,
    columns,
    text: "",
    write(text: string) {
      this.text += text;
    },
  };
  const time = { ms: 0 };
  return { screen, time, clock: () => time.ms };
}

describe("numbers as people read them", () => {
  const table: [string, string][] = [
    [formatCount(0), "0"],
    [formatCount(999), "999"],
    [formatCount(1000), "1.00k"],
    [formatCount(12_345), "12.3k"],
    [formatCount(999_900), "1.00M"],
    [formatCount(10_800_000), "10.8M"],
    [formatCount(2.71801), "2.72"],
    [formatRate(12_345, "tok"), "12.3k tok/s"],
    [formatDuration(0.35), "350ms"],
    [formatDuration(4.21), "4.2s"],
    [formatDuration(59.6), "1m 00s"],
    [formatDuration(80), "1m 20s"],
    [formatDuration(7500), "2h 05m"],
    [formatDuration(7199.9), "2h 00m"],
    [formatDuration(273_600), "3d 04h"],
    [formatDuration(Number.POSITIVE_INFINITY), "?"],
    [formatBytes(512), "512 B"],
    [formatBytes(45_300_000), "43.2 MiB"],
    [formatLoss(1.48213), "1.482"],
    [formatLoss(10.53), "10.53"],
    [formatLoss(0.0000123), "1.23e-5"],
    [formatLoss(Number.NaN), "NaN"],
    [formatLoss(0), "0.000"],
  ];
  for (const [got, expected] of table) test(expected, () => assert.equal(got, expected));
});

describe("the live line", () => {
  test("on a terminal is redrawn in place, and shows step, losses, speed and time left", () => {
    const { screen, time, clock } = fake(true);
    const line = new LiveLine({ steps: 200, screen, clock, env: {} });
    for (let step = 1; step <= 101; step++) {
      time.ms = (step - 1) * 100;
      line.update({ step, loss: 3 - step / 100, perSecond: 12_345, validationLoss: step === 50 ? 2.75 : undefined });
    }
    assert.ok(!screen.text.includes("\n"));
    const last = plain(screen.text).split("\r").at(-1)!;
    assert.match(last, /^step 101\/200 {2}█+.*· {2}loss 1\.990 {2}val 2\.750 {2}12\.3k tok\/s {2}eta 9\.9s$/);
    line.end();
    assert.ok(screen.text.endsWith("\n"));
  });

  test("on a terminal is redrawn at most every 80 ms, and never wraps", () => {
    fc.assert(
      fc.property(fc.integer({ min: 8, max: 120 }), (columns) => {
        const { screen, time, clock } = fake(true, columns);
        const line = new LiveLine({ steps: 2000, screen, clock, env: {} });
        for (let step = 1; step <= 1000; step++) {
          time.ms = step;
          line.update({ step, loss: 1.5, validationLoss: 2, perSecond: 1000 });
        }
        const drawn = plain(screen.text).split("\r").slice(1);
        assert.ok(drawn.length <= 14);
        for (const text of drawn) assert.ok(text.length < columns, `${columns}: ${text}`);
      }),
      { numRuns: 50 },
    );
  });

  test("in a pipe is a plain line at first, every few seconds, and at the end", () => {
    const { screen, time, clock } = fake(false);
    const line = new LiveLine({ steps: 100, every: 10, screen, clock, env: {} });
    for (let step = 1; step <= 100; step++) {
      time.ms = step * 300;
      line.update({ step, loss: 1 });
    }
    line.end();
    assert.deepEqual(
      screen.text.split("\n").map((l) => l.replace(/ {2}eta.*/, "")),
      [
        "step   1/100  loss 1.000",
        "step  35/100  loss 1.000",
        "step  69/100  loss 1.000",
        "step 100/100  loss 1.000",
        "",
      ],
    );
    for (const character of "\r\u001b█") assert.ok(!screen.text.includes(character));
  });

  test("a printed line stays above it", () => {
    const { screen, clock } = fake(true);
    const line = new LiveLine({ screen, clock, env: {} });
    line.update({ step: 1, loss: 2 });
    line.print("checkpoint saved");
    assert.match(plain(screen.text), /\rcheckpoint saved\n\rstep 1 {2}loss 2\.000$/);
  });

  test("colours go to terminals only, and not with NO_COLOR or a dumb terminal", () => {
    const screen = { isTTY: true, write() {} };
    assert.ok(usesColor(screen, {}));
    assert.ok(!usesColor(screen, { NO_COLOR: "1" }));
    assert.ok(!usesColor(screen, { TERM: "dumb" }));
    assert.ok(!usesColor({ write() {} }, {}));
    const seen = fake(true);
    const line = new LiveLine({ screen: seen.screen, clock: seen.clock, env: { NO_COLOR: "1" }, steps: 5 });
    line.update({ step: 1, loss: 1 });
    // biome-ignore lint/suspicious/noControlCharactersInRegex: that none is there is the point
    assert.ok(!/\u001b\[[0-9;]*m/.test(seen.screen.text));
  });
});

describe("the loss curve", () => {
  const falling: Point[] = Array.from({ length: 500 }, (_, i) => [i + 1, 1 + 3 * Math.exp(-i / 80)]);

  test("falls from the upper left to the lower right between labelled axes", () => {
    const lines = lossChart(falling, { width: 60, height: 14 }).split("\n");
    assert.equal(lines.length, 14);
    const rows = lines.slice(1, -2).map((l) => l.slice(l.search(/[│┤]/) + 1));
    const column = (row: string) => row.search(/[\u2801-\u28ff]/);
    const starts = rows.map(column).filter((c) => c >= 0);
    assert.equal(starts[0], 0);
    assert.deepEqual(
      [...starts].sort((a, b) => a - b),
      starts,
    );
    assert.match(lines.at(-1)!, / 200 +400 +step$/);
    assert.match(lines.join("\n"), /4 ┤/);
    assert.match(lines.at(-2)!, /└.*┬/);
  });

  test("is no wider or higher than asked, for any data, and draws something", () => {
    const point = fc.tuple(fc.integer({ min: 0, max: 1e6 }), fc.double({ min: -1e9, max: 1e9, noNaN: true }));
    fc.assert(
      fc.property(
        fc.array(point, { minLength: 1, maxLength: 40 }),
        fc.integer({ min: 30, max: 120 }),
        fc.integer({ min: 6, max: 40 }),
        fc.boolean(),
        (points, width, height, ascii) => {
          const series = [
            { name: "training", points: points as Point[] },
            { name: "validation", points: points.slice(0, 3) as Point[] },
          ];
          const text = lossChart(series, { width, height, ascii });
          const lines = text.split("\n");
          assert.equal(lines.length, height);
          for (const l of lines.slice(1)) assert.ok(l.length <= width + 1, `${l.length} > ${width}\n${text}`);
          assert.match(text, /[o*\u2801-\u28ff]/);
          if (ascii) assert.ok(/^[\n -~]*$/.test(text));
        },
      ),
      { numRuns: 300 },
    );
  });

  test("has a legend for two series, in colour only if asked", () => {
    const series = [
      { name: "training", points: falling },
      { name: "validation", points: [[250, 1.3] as Point, [500, 1.1] as Point] },
    ];
    const text = lossChart(series);
    assert.match(text, /⠒⠒ training {3}o validation/);
    assert.equal((text.match(/o/g) ?? []).length, 2 + 2, "two marks, one in the legend, one in its word");
    assert.ok(!text.includes("\u001b"));
    assert.equal(plain(lossChart(series, { color: true })), text);
  });

  test("of nothing, of one point and of values that are not finite does not fail", () => {
    assert.equal(lossChart([]), "(no loss to draw yet)");
    assert.equal(lossChart([[1, Number.NaN]]), "(no loss to draw yet)");
    assert.match(lossChart([[7, 2]]), /2\.0/);
    assert.match(
      lossChart([
        [1, 2],
        [2, Number.POSITIVE_INFINITY],
        [3, 1],
      ]),
      /[\u2801-\u28ff]/,
    );
  });
});

describe("a confusion matrix as text", () => {
  const matrix = confusionMatrix([0, 1, 1, 0], [0, 1, 0, 0], 2);
  test("shows counts, zeros as dots, and each class's recall", () => {
    assert.equal(
      formatConfusionMatrix(matrix, { labels: ["cat", "dog"] }),
      ["true\\pred  cat  dog   recall", "cat          2    1    66.7%", "dog          ·    1   100.0%"].join("\n"),
    );
    assert.equal(plain(formatConfusionMatrix(matrix, { color: true })), formatConfusionMatrix(matrix));
  });
  test("too wide for the terminal, it lists the largest confusions", () => {
    const text = formatConfusionMatrix(confusionMatrix([5, 5, 7, 3], [4, 4, 7, 2], 100));
    assert.deepEqual(text.split("\n"), [
      "the largest of 2 confusions among 100 classes:",
      "      2  4 taken for 5",
      "      1  2 taken for 3",
    ]);
  });
});
