/** eval of a run that was trained here: loss, perplexity and bits of a GPT, loss, accuracy and confusions of a classifier. */
import type { EvalFlags } from "./eval.ts";
import { exitCodes, UsageError } from "./exit.ts";
import type { Outcome } from "./main.ts";

type Flags = Pick<EvalFlags, "data" | "batch" | "json" | "device">;

/** Measures the model of a run of `train`. */
export async function evaluateRun(folder: string, flags: Flags): Outcome {
  const { readSettings } = await import("./run-folder.ts");
  const { kind } = readSettings(folder);
  if (flags.data === undefined)
    throw new UsageError(
      `--data is missing: name ${kind === "gpt" ? "text files or folders" : "a folder with IDX files"}`,
    );
  const { openDevice } = await import("./device.ts");
  await openDevice(flags.device);
  return kind === "gpt" ? evaluateGpt(folder, flags.data, flags) : evaluateClassifier(folder, flags.data, flags);
}

async function evaluateGpt(folder: string, data: readonly string[], flags: Flags): Outcome {
  const { readTextCorpus } = await import("../data/text.ts");
  const { loadTokenizer } = await import("../data/tokenizer.ts");
  const { loadGpt } = await import("./load.ts");
  const { lossOf, validationBatches } = await import("./gpt-run.ts");
  const { evaluate } = await import("../train/evaluate.ts");
  const { formatCount, formatLoss } = await import("../train/terminal.ts");
  const tokenizer = await loadTokenizer(folder);
  const { text } = await readTextCorpus(data, { validation: 0 });
  const tokens = tokenizer.encode(text);
  const model = await loadGpt(folder);
  const batches = validationBatches(tokens, { batch: flags.batch ?? 8, context: model.contextLength });
  const { loss } = await evaluate(model, batches, { batchLoss: lossOf });
  const bits = (loss * (tokens.length - 1)) / text.length / Math.LN2;
  if (flags.json)
    console.log(JSON.stringify({ loss, perplexity: Math.exp(loss), bitsPerCharacter: bits, tokens: tokens.length }));
  else
    console.log(
      `loss ${formatLoss(loss)} nats a token, perplexity ${Math.exp(loss).toPrecision(4)}, ${bits.toFixed(3)} bits a character ` +
        `(${formatCount(tokens.length)} tokens)`,
    );
  return exitCodes.ok;
}

async function evaluateClassifier(folder: string, data: readonly string[], flags: Flags): Outcome {
  if (data.length !== 1) throw new UsageError("--data: name one folder with IDX files");
  const { loadIdxClassification } = await import("../data/idx.ts");
  const { imageBatches, readClassifierConfig } = await import("./classifier-run.ts");
  const { loadClassifier } = await import("./load.ts");
  const { argmaxRows, classificationReport, confusionMatrix } = await import("../train/metrics.ts");
  const { crossEntropy } = await import("../nn/functional.ts");
  const { noGrad, realize } = await import("../tensor/index.ts");
  const { formatConfusionMatrix, formatLoss, usesColor } = await import("../train/terminal.ts");
  const config = readClassifierConfig(folder);
  const { train, test } = await loadIdxClassification(data[0]);
  const set = test ?? train!;
  const batches = imageBatches(set, config, { batchSize: flags.batch ?? 250 });
  const model = (await loadClassifier(folder)) as unknown as {
    forward(x: unknown): import("../tensor/index.ts").Tensor;
  };
  const classes = config.num_classes;
  const confusion = { classes, counts: new Float64Array(classes * classes) };
  let sum = 0;
  for await (const [images, labels] of batches) {
    const [logits, loss] = noGrad(() => {
      const outputs = model.forward(images);
      return [outputs, crossEntropy(outputs, labels, { reduction: "sum" })];
    });
    await realize(logits, loss);
    sum += await loss.item();
    const truth = await labels.data();
    confusionMatrix(argmaxRows(await logits.data(), classes), truth, classes, confusion);
  }
  const loss = sum / set.labels.length;
  const { accuracy, macro } = classificationReport(confusion);
  if (flags.json) {
    const matrix = Array.from({ length: classes }, (_, c) =>
      Array.from(confusion.counts.subarray(c * classes, (c + 1) * classes)),
    );
    console.log(JSON.stringify({ loss, accuracy, f1: macro.f1, images: set.labels.length, confusion: matrix }));
    return exitCodes.ok;
  }
  console.log(
    `${set.labels.length} images (${test === null ? "training" : "test"} split): accuracy ${(100 * accuracy).toFixed(2)} %, loss ${formatLoss(loss)}, ` +
      `macro F1 ${macro.f1.toFixed(4)}\n`,
  );
  console.log(
    formatConfusionMatrix(confusion, { width: process.stdout.columns || 100, color: usesColor(process.stdout) }),
  );
  return exitCodes.ok;
}
