/**
 * all-MiniLM-L6-v2 learns to tell good reviews of films from bad ones: four fifths of `movie-reviews` to learn from, one fifth to be judged
 * on, one seed. Nothing is chosen by the fifth that judges.
 *
 *   node --import tsx recipes/pretrained-or-not/reviews.ts [FOLDER]
 *
 * With FOLDER the classifier is written there, as transformers' AutoModelForSequenceClassification loads it.
 */
import { fileURLToPath } from "node:url";
import { type FinetuneResult, finetune, formatResult, textTask } from "../../src/finetune/index.ts";
import { fromPretrained, readConfig, savePretrained } from "../../src/models/index.ts";
import { manualSeed } from "../../src/tensor/index.ts";
import { minilmFolder, readSentences, shuffled } from "./sentences.ts";

export async function learnReviews(say: (line: string) => void, out?: string): Promise<FinetuneResult> {
  const folder = minilmFolder();
  const { classes, examples } = await readSentences("movie-reviews", folder);
  const mixed = shuffled(examples, 0);
  const cut = Math.floor(mixed.length * 0.8);
  manualSeed(0);
  const task = "classification";
  const model = await fromPretrained(folder, { task, numLabels: classes.length, dtype: "float32" });
  const began = performance.now();
  const result = await finetune(model, {
    data: mixed.slice(0, cut),
    evaluation: mixed.slice(cut),
    task: textTask({ maxLength: 64 }),
    epochs: 1,
    lr: 1e-4,
    batch: 16,
    warmup: 0.06,
    keepBest: false,
    evaluateEvery: 1e9, // only before and after
    callbacks: [
      {
        name: "progress",
        wants: (step) => step % 50 === 0,
        onStep: (_, { step, loss }) =>
          say(`step ${step}: loss ${loss.toFixed(3)}, ${Math.round((performance.now() - began) / 1000)} s`),
      },
    ],
  });
  if (out !== undefined) {
    const config = await readConfig(folder);
    const problemType = "single_label_classification";
    await savePretrained(model, out, { config, task, labels: classes, problemType, from: folder });
  }
  return result;
}

if (process.argv[1] === fileURLToPath(import.meta.url))
  console.log(`\n${formatResult(await learnReviews(console.log, process.argv[2]))}`);
