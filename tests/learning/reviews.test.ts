/** A real encoder learns a real task: recipes/pretrained-or-not/reviews.ts on all of movie-reviews, one seed. */
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { learnReviews } from "../../recipes/pretrained-or-not/reviews.ts";
import { dataFolder } from "../../recipes/pretrained-or-not/sentences.ts";
import { formatResult, metricsOf } from "../../src/finetune/index.ts";
import { whyNoCpu } from "../support/cpu.ts";

const reason = await whyNoCpu();
const skip =
  process.env["NABLA_LONG"] !== "1"
    ? "some minutes: npm run test:long"
    : !process.env["NABLA_TEST_MINILM"]
      ? "all-MiniLM-L6-v2 is not here: set NABLA_TEST_MINILM to its folder"
      : !existsSync(join(dataFolder, "movie-reviews"))
        ? "the test data are not here: set NABLA_TEST_DATA to their folder"
        : reason;

// PyTorch beside us: 84.6 % after two epochs at 5e-5
test("all-MiniLM-L6-v2 tells at least 82 % of unseen film reviews from one another", { skip }, async (t) => {
  const result = await learnReviews(() => {});
  for (const line of formatResult(result).split("\n")) t.diagnostic(line);
  const { accuracy, "macro-F1": f1 } = metricsOf(result.after.examples);
  assert.ok(accuracy >= 0.82 && f1 >= 0.82, formatResult(result));
  assert.ok((result.difference.accuracy.interval as readonly [number, number])[0] > 0.25);
});
