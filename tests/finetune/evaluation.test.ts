/** Measuring models: the table of metrics, questions with choices, exact answers, and runs that are compared from their files. */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, test } from "node:test";
import { CharTokenizer } from "../../src/data/index.ts";
import { setDevice } from "../../src/execution/index.ts";
import {
  type ChoiceExample,
  type Columns,
  compareColumns,
  compareRuns,
  exactMatch,
  examplesPrint,
  formatColumns,
  metricsOf,
  multipleChoice,
  readChoices,
  readEvaluation,
  scoreTexts,
  writeEvaluation,
} from "../../src/finetune/index.ts";
import { GPT2 } from "../../src/models/index.ts";
import { Module } from "../../src/nn/index.ts";
import { AdamW } from "../../src/optim/index.ts";
import { manualSeed, noGrad, type Tensor, tensor, zeros } from "../../src/tensor/index.ts";
import { fit } from "../../src/train/index.ts";
import { assertClose } from "../support/fixtures.ts";

setDevice("wasm"); // its kernels are ready sooner than a C compiler's
const text = "cat:meow. dog:woof. cow:moo. ";
const tokenizer = CharTokenizer.fromText(text);

/** A model that has learnt the text by heart. */
async function animals(): Promise<GPT2> {
  manualSeed(2);
  const model = new GPT2({
    vocabSize: tokenizer.vocabSize,
    contextLength: 32,
    numLayers: 1,
    numHeads: 2,
    hiddenSize: 32,
  });
  const ids = tokenizer.encode(text + text.slice(0, 4));
  const batch = [...ids.slice(0, 32)];
  const next = [...ids.slice(1, 33)];
  await fit(model, {
    train: [[tensor([batch], { dtype: "int32" }), tensor([next], { dtype: "int32" })] as const],
    batchLoss: (net: GPT2, [inputs, targets]) => net.forward(inputs, targets),
    optimizer: new AdamW(model.parameters(), { lr: 0.01 }),
    steps: 120,
  });
  return model.eval();
}
const model = await animals();

const room = mkdtempSync(join(tmpdir(), "nabla-evaluation-"));
after(() => rmSync(room, { recursive: true, force: true }));
const file = (name: string, text: string): string => {
  const path = join(room, name);
  writeFileSync(path, text);
  return path;
};

const columns = (values: Readonly<Record<string, readonly number[]>>): Columns =>
  Object.fromEntries(Object.entries(values).map(([name, list]) => [name, Float64Array.from(list)]));

const classes = columns({
  loss: [0.1, 0.2, 2, 1, 0.5, 3],
  count: [1, 1, 1, 1, 1, 1],
  correct: [1, 1, 0, 1, 1, 0],
  predicted: [0, 0, 0, 1, 1, 3],
  target: [0, 0, 1, 1, 1, 2],
});

describe("metrics", () => {
  test("of classes are scikit-learn's", () => {
    // f1_score(average="macro", zero_division=0) over the labels 0 … 3, balanced_accuracy_score over 0 … 2
    const got = metricsOf(classes);
    assert.deepEqual(Object.keys(got), ["loss", "accuracy", "macro-F1", "balanced accuracy"]);
    assertClose("accuracy", [got["accuracy"]], [4 / 6], { rtol: 1e-12, atol: 0 });
    assertClose("macro-F1", [got["macro-F1"]], [(0.8 + 0.8 + 0 + 0) / 4], { rtol: 1e-12, atol: 0 });
    assertClose("balanced", [got["balanced accuracy"]], [(1 + 2 / 3 + 0) / 3], { rtol: 1e-12, atol: 0 });
  });

  test("of numbers are scikit-learn's", () => {
    const got = metricsOf(
      columns({ loss: [0.25, 0, 0.25, 1], count: [1, 1, 1, 1], predicted: [2.5, 0, 2, 8], target: [3, -0.5, 2, 7] }),
    );
    assert.deepEqual(Object.keys(got), ["loss", "absolute error", "R²"]);
    assertClose("MAE and R²", [got["absolute error"], got["R²"]], [0.5, 0.9486081370449679], { rtol: 1e-12, atol: 0 });
  });

  test("R² of equal targets is 1 where all are met, else 0, and an interval stays finite; one example has none", () => {
    const of = (predicted: readonly number[], target: readonly number[]) =>
      columns({ loss: target.map((t, i) => (t - predicted[i]) ** 2), count: target.map(() => 1), predicted, target });
    assert.equal(metricsOf(of([2, 2], [2, 2]))["R²"], 1);
    assert.equal(metricsOf(of([2, 3], [2, 2]))["R²"], 0);
    assert.ok(Number.isNaN(metricsOf(of([2], [3]))["R²"]));
    const { interval } = compareColumns(of([2, 3], [2, 4]), of([2, 4], [2, 4]))["R²"];
    assert.ok(interval?.every(Number.isFinite), String(interval));
  });

  test("examples without a target that counts are left out; a table shows what both sides have", () => {
    const some = columns({ loss: [2, 0, 4], count: [2, 0, 2], correct: [1, 0, 2], exact: [1, 1, 0] });
    assertClose("loss", [metricsOf(some)["loss"]], [1.5], { rtol: 1e-12, atol: 0 });
    assert.equal(metricsOf(some)["exact match"], 0.5);
    const other = columns({ loss: [1, 0, 1], count: [2, 0, 2], correct: [2, 0, 2] });
    const text = formatColumns(some, other, compareColumns(some, other));
    assert.match(text, /loss +1\.5000 +→ +0\.5000 +−1\.0000/);
    assert.match(text, /perplexity +4\.482 +→ +1\.649/);
    assert.doesNotMatch(text, /exact/);
  });

  test("each difference has an interval over the same examples", () => {
    const better = {
      ...classes,
      correct: Float64Array.of(1, 1, 1, 1, 1, 0),
      predicted: Float64Array.of(0, 0, 1, 1, 1, 3),
    };
    const differences = compareColumns(classes, better, { seed: 3 });
    assertClose("accuracy", [differences["accuracy"].value], [1 / 6], { rtol: 1e-12, atol: 0 });
    const [low, high] = differences["macro-F1"].interval as readonly [number, number];
    assert.ok(low <= differences["macro-F1"].value && differences["macro-F1"].value <= high);
    assert.deepEqual(compareColumns(classes, better, { seed: 3 }), differences);
    assert.deepEqual(differences["loss"], { value: 0, interval: [0, 0] });
    assert.throws(
      () => compareColumns(classes, { ...classes, target: Float64Array.of(0, 0, 1, 1, 1, 1) }),
      /different examples/,
    );
  });
});

describe("runs", () => {
  const print = examplesPrint(["a", "b"]);
  test("are read again as they were written, and compared with the first", async () => {
    const [first, second] = ["first.json", "second.json"].map((name) => join(room, name));
    const later = { ...classes, loss: classes["loss"].map((x) => x / 2) };
    await writeEvaluation(first, { before: null, after: classes, print });
    await writeEvaluation(second, { before: classes, after: later, print });
    assert.deepEqual(await readEvaluation(second), { before: classes, after: later, print });
    const [{ runs, metrics, differences }] = await compareRuns([first, second]);
    assert.deepEqual(runs, [first, second]);
    assertClose("loss", [metrics[1]["loss"]], [metrics[0]["loss"] / 2], { rtol: 1e-12, atol: 0 });
    assert.ok((differences["loss"].interval as readonly number[])[1] < 0);
  });

  test("of other examples are not compared, and damaged files say what is wrong", async () => {
    const first = join(room, "first.json");
    const other = join(room, "other.json");
    await writeEvaluation(other, { before: null, after: classes, print: examplesPrint(["a", "c"]) });
    await assert.rejects(compareRuns([first, other]), /first\.json and .*other\.json have measured different examples/);
    await assert.rejects(compareRuns([first]), /name two runs or more, got 1/);
    for (const [text, message] of [
      ["{", /bad\.json: this is not valid JSON/],
      ["{}", /bad\.json: "after" is missing/],
      ['{"after":{}}', /"after" holds no "examples"/],
      ['{"after":{"examples":{"loss":[1,2],"count":[1]}}}', /"examples" → "count" must be 2 numbers/],
      ['{"after":{"examples":{"loss":[1,"2"]}}}', /"loss" must be 2 numbers/],
    ] as const)
      await assert.rejects(readEvaluation(file("bad.json", text)), { name: "FinetuneError", message });
    await assert.rejects(readEvaluation(join(room, "nowhere")), { name: "FileError" });
  });

  test("a print tells examples apart, and where one ends", () => {
    assert.equal(examplesPrint(["ab", "c"]), examplesPrint(["ab", "c"]));
    assert.notEqual(examplesPrint(["ab", "c"]), examplesPrint(["a", "bc"]));
    assert.notEqual(examplesPrint(["ab"]), examplesPrint(["ba"]));
  });
});

const ask = (prompt: string, choices: readonly string[], answer: number): ChoiceExample => ({
  where: prompt,
  prompt,
  choices,
  answer,
});

describe("questions", () => {
  test("the likeliest choice is found by its tokens behind the question", async () => {
    const examples = [
      ask("cat:meow. dog:", ["meow.", "woof.", "moo."], 1),
      ask("cat:", ["woof.", "meow."], 1),
      ask("cat:meow. dog:woof. cow:", ["moo.", "woof."], 1),
    ];
    const got = await multipleChoice(model, examples, { tokenizer, batch: 4 });
    assert.deepEqual([...got["chosen"]], [1, 1, 0]);
    assert.deepEqual([...got["choice"]], [1, 1, 0]);
    assert.equal(metricsOf(got)["multiple choice"], 2 / 3);
    assert.equal(metricsOf(got)["multiple choice by length"], 2 / 3);
  });

  test("normalised by length, a long choice is not worse for its length", async () => {
    // what the model thinks of each choice, computed here from its logits
    const scores = await Promise.all(
      ["m", "meow. dog:wxof. "].map(async (choice) => {
        const ids = [...tokenizer.encode("cat:"), ...tokenizer.encode(choice.replace("x", "o"))];
        const logits = (await noGrad(() =>
          model.forward(tensor([ids], { dtype: "int32" })).logSoftmax(2),
        ).tolist()) as number[][][];
        return ids.slice(4).reduce((sum, id, t) => sum + logits[0][3 + t][id], 0);
      }),
    );
    const choices = ["m", "meow. dog:woof. "];
    const [by, normalised] = [scores, scores.map((s, i) => s / choices[i].length)].map((list) =>
      list.indexOf(Math.max(...list)),
    );
    const got = await multipleChoice(model, [ask("cat:", choices, 0)], { tokenizer });
    assert.deepEqual([got["chosen"][0], got["chosenNormalized"][0]], [by, normalised]);
    assert.equal(by, 0); // a beginning is never less likely than the whole
  });

  test("white space at a question's end is read with the choice, as lm-evaluation-harness reads it", async () => {
    const words = ["a", ":", " ", " yes", "yes", " no", "no"];
    const encoder = {
      encode: (text: string) => (text.match(/ ?\w+|./g) ?? []).map((word) => words.indexOf(word)),
    };
    const seen: unknown[] = [];
    class Watched extends Module {
      readonly contextLength = 8;
      forward(ids: Tensor): Tensor {
        seen.push(ids.narrow(1, 0, 4).tolist());
        return zeros([...ids.shape, words.length]);
      }
    }
    await multipleChoice(new Watched(), [ask("a: ", ["yes", "no no"], 0)], { tokenizer: encoder, batch: 1 });
    const [longer, shorter] = (await Promise.all(seen)) as number[][][];
    assert.deepEqual(longer[0].slice(0, 3), [0, 1, 5]); // of what is judged the last is not read
    assert.deepEqual(shorter[0].slice(0, 2), [0, 1]);
    assert.ok(!longer[0].includes(2) && !shorter[0].includes(2));
  });

  test("a choice's length is its number of characters, also of those outside the basic plane", async () => {
    const astral = CharTokenizer.fromText("ab:\u{1f600}");
    manualSeed(7);
    const model = new GPT2({
      vocabSize: astral.vocabSize,
      contextLength: 16,
      numLayers: 1,
      numHeads: 1,
      hiddenSize: 4,
    });
    const choices = ["ab", "\u{1f600}\u{1f600}"];
    const [first, second] = (
      await scoreTexts(
        model,
        choices.map((completion) => ({ prompt: "a:", completion })),
        { tokenizer: astral },
      )
    ).map(({ logProb }) => logProb);
    const got = await multipleChoice(model, [ask("a:", choices, 0)], { tokenizer: astral });
    assert.ok(first > second && second > 2 * first, `${first}, ${second}`); // so that lengths of 2 and of 4 decide differently
    assert.equal(got["chosenNormalized"][0], 0);
  });

  test("each token of a text, and of a completion behind its prompt, has its own logarithmic probability", async () => {
    const texts = ["cat:meow. ", { prompt: "dog:", completion: "woof." }, "co"] as const;
    const scores = await scoreTexts(model, texts, { tokenizer, batch: 2 });
    for (const [i, each] of texts.entries()) {
      const [before, judged] = typeof each === "string" ? [each[0], each.slice(1)] : [each.prompt, each.completion];
      const ids = [...tokenizer.encode(before + judged)];
      const logits = (await noGrad(() =>
        model.forward(tensor([ids], { dtype: "int32" })).logSoftmax(2),
      ).tolist()) as number[][][];
      const from = before.length;
      const expected = ids.slice(from).map((id, t) => logits[0][from - 1 + t][id]);
      assert.equal(tokenizer.decode(scores[i].ids), judged);
      assertClose("logProbs", scores[i].logProbs, expected, { rtol: 1e-4, atol: 1e-5 });
      assertClose("logProb", [scores[i].logProb], [expected.reduce((a, b) => a + b, 0)], { rtol: 1e-4, atol: 1e-5 });
    }
    await assert.rejects(scoreTexts(model, ["cat", "c"], { tokenizer }), /texts\[1\]: there must be a token before/);
    await assert.rejects(scoreTexts(model, ["c".repeat(40)], { tokenizer }), /40 tokens are more than the 33/);
    await assert.rejects(scoreTexts(model, ["cat"]), /does not know its tokenizer/);
  });

  test("a choice that is longer than the model sees, and a question without tokens, are told by their place", async () => {
    await assert.rejects(multipleChoice(model, [ask("cat:", ["m", "o".repeat(40)], 0)], { tokenizer }), {
      name: "FinetuneError",
      message: /cat:: "choices"\[1\] has 40 tokens; a model that sees 32 weighs 1 … 32/,
    });
    await assert.rejects(multipleChoice(model, [ask("", ["m", "o"], 0)], { tokenizer }), /"prompt" has no tokens/);
    // a question that is too long with its choices loses its beginning
    const long = ask("cow:moo. cat:meow. dog:woof. cat:meow. dog:woof. cow:", ["moo.", "woof"], 0);
    const cut = { ...long, prompt: long.prompt.slice(-29) };
    assert.deepEqual(
      await multipleChoice(model, [long], { tokenizer }),
      await multipleChoice(model, [cut], { tokenizer }),
    );
  });

  test("an exact answer is what the model writes until a token that ends it", async () => {
    const examples = [
      { where: "1", prompt: "cat:meow. dog:", completion: "woof" },
      { where: "2", prompt: "cat:", completion: "moo" },
    ];
    const stopTokens = [tokenizer.tokenId(".") as number];
    const { columns: got, answers } = await exactMatch(model, examples, { tokenizer, stopTokens });
    assert.deepEqual(answers, ["woof", "meow"]);
    assert.deepEqual([...got["exact"]], [1, 0]);
    const cut = await exactMatch(model, examples, { tokenizer });
    assert.deepEqual(cut.answers, ["woof", "meo"]);
    await assert.rejects(
      exactMatch(model, [{ where: "a.jsonl, line 3", text: "x" }], { tokenizer }),
      /a\.jsonl, line 3: exact match needs a prompt and a completion/,
    );
  });

  test("choices are read from JSON lines, the answer by number or text; mistakes are told by line and field", async () => {
    const path = file(
      "questions.jsonl",
      '{"prompt":"2+2=","choices":["3","4"],"answer":1}\n{"prompt":"a","choices":["b","c"],"answer":"b"}\n',
    );
    assert.deepEqual(await readChoices(path), [
      { where: `${path}, line 1`, prompt: "2+2=", choices: ["3", "4"], answer: 1 },
      { where: `${path}, line 2`, prompt: "a", choices: ["b", "c"], answer: 0 },
    ]);
    for (const [line, message] of [
      [
        '{"prompt":"a","choices":["b","c"],"answer":2}',
        /line 1: "answer" must be one of the choices, .* 0 to 1, got 2/,
      ],
      ['{"prompt":"a","choices":["b"],"answer":0}', /line 1: "choices" must be a list of two texts/],
      ['{"prompt":"a","choices":["b",""],"answer":0}', /line 1: "choices"\[1\] must be a text that is not empty/],
      ['{"choices":["b","c"],"answer":0}', /line 1: "prompt" must be a text, got nothing/],
    ] as const)
      await assert.rejects(readChoices(file("wrong.jsonl", line)), { name: "FinetuneError", message });
    await assert.rejects(readChoices(file("questions.csv", "a")), /its ending is not one of \.json, \.jsonl/);
  });
});
