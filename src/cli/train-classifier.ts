/** nabla train classifier, at work: a new run from its flags, or one that is gone on with. */
import { join, resolve } from "node:path";
import * as F from "../nn/functional.ts";
import type { Module } from "../nn/index.ts";
import { AdamW, OneCycleLR } from "../optim/index.ts";
import { manualSeed } from "../tensor/index.ts";
import { earlyStopping } from "../train/callbacks.ts";
import { accuracyMetric, evaluate } from "../train/evaluate.ts";
import { formatCount, formatLoss } from "../train/terminal.ts";
import {
  buildClassifier,
  type ClassifierConfig,
  type ClassifierSettings,
  type ImageBatch,
  type ImageSets,
  imageBatches,
  pixelStatistics,
  readImages,
} from "./classifier-run.ts";
import { openDevice } from "./device.ts";
import { exitCodes } from "./exit.ts";
import type { Outcome } from "./main.ts";
import { checkData, fingerprint, precisionOf, readSettings, startRun, writeJson } from "./run-folder.ts";
import { lockRun } from "./run-lock.ts";
import {
  isFinished,
  runSession,
  type SessionOptions,
  sayFinished,
  sayInterrupted,
  sayWhereItGoesOn,
} from "./session.ts";
import type { ClassifierFlags } from "./train.ts";

export async function trainClassifier(flags: ClassifierFlags, checkpointEveryGiven: boolean): Outcome {
  const { resume } = flags;
  const folder = resume ?? flags.out!;
  if (resume !== undefined) {
    const settings = readSettings<ClassifierSettings>(folder, "classifier");
    if (isFinished(folder)) return exitCodes.ok;
    lockRun(folder);
    const device = await openDevice(settings.device);
    const data = await prepare(folder, settings);
    describe(data, device);
    await sayWhereItGoesOn(folder);
    return train(folder, settings, data, {
      resume: true,
      checkpointEvery: checkpointEveryGiven ? flags.checkpointEvery : settings.checkpointEvery,
      detectAnomaly: flags.detectAnomaly ?? false,
    });
  }
  const device = await openDevice(flags.device);
  const { model, hidden, batch, epochs, lr, weightDecay, validationShare, checkpointEvery, seed } = flags;
  const settings: ClassifierSettings = {
    format: 1,
    kind: "classifier",
    device,
    seed,
    data: [resolve(flags.data!)],
    checkpointEvery,
    precision: flags.precision,
    ...{ model, hidden, batch, epochs, lr, weightDecay, validationShare },
    classes: flags.classes ?? null,
    patience: flags.patience ?? null,
  };
  const data = await startRun(folder, settings, () => prepare(folder, settings));
  describe(data, device);
  return train(folder, settings, data, {
    resume: false,
    checkpointEvery,
    detectAnomaly: flags.detectAnomaly ?? false,
  });
}

interface Data extends ImageSets {
  readonly config: ClassifierConfig;
}

async function prepare(folder: string, settings: ClassifierSettings): Promise<Data> {
  const sets = await readImages(settings.data[0], settings);
  const { train, validation } = sets;
  const [, height, width] = train.images.shape;
  const config: ClassifierConfig = {
    model_type: `nabla-${settings.model}`,
    hidden: settings.hidden,
    image_size: [height, width],
    num_classes: sets.numClasses,
    ...pixelStatistics(train),
  };
  buildClassifier(config); // an image size that the model can't take is found now
  await checkData(folder, fingerprint(train.images.data, train.labels, validation.images.data, validation.labels));
  await writeJson(join(folder, "config.json"), config);
  return { ...sets, config };
}

function describe({ config, train, validation, note }: Data, device: string): void {
  const model = buildClassifier(config);
  const [height, width] = config.image_size;
  const name = config.model_type === "nabla-mlp" ? "MLP" : "convolutional net";
  console.log(
    `${name}: ${formatCount(model.parameterCount())} parameters, images of ${height}×${width}, ${config.num_classes} classes, on ${device}\n` +
      `${formatCount(train.labels.length)} images to train on, ${formatCount(validation.labels.length)} to validate on`,
  );
  if (note !== null) console.log(note);
}

async function train(
  folder: string,
  settings: ClassifierSettings,
  { config, train, validation }: Data,
  options: Pick<SessionOptions, "resume" | "checkpointEvery" | "detectAnomaly">,
): Promise<number> {
  const { seed, batch, epochs, lr, weightDecay, patience } = settings;
  manualSeed(seed);
  const model = buildClassifier(config);
  const optimizer = new AdamW(model.parameters(), { lr, weightDecay });
  const steps = epochs * Math.ceil(train.labels.length / batch);
  const scheduler = new OneCycleLR(optimizer, { maxLr: lr, totalSteps: steps });
  const heldOut = imageBatches(validation, config, { batchSize: Math.max(batch, 250) });
  const session: SessionOptions = { folder, kind: "classifier", seed, perStep: batch, unit: "images", ...options };
  const metrics = { accuracy: accuracyMetric };
  const { result, finished, seconds } = await runSession<Module, ImageBatch, { loss: number; accuracy: number }>(
    session,
    model,
    {
      train: imageBatches(train, config, { batchSize: batch, shuffle: true, seed }),
      validation: heldOut,
      loss: F.crossEntropy,
      ...precisionOf(settings),
      metrics,
      optimizer,
      scheduler,
      epochs,
      ...(patience === null ? {} : { callbacks: [earlyStopping({ patience })] }),
    },
    async () =>
      (await evaluate<Module, ImageBatch>(model, heldOut, { loss: F.crossEntropy, metrics })) as {
        loss: number;
        accuracy: number;
      },
  );
  if (finished === null) return sayInterrupted(session, result.step, steps);
  await sayFinished(session, result, seconds);
  console.log(
    `validation: accuracy ${(100 * finished.accuracy).toFixed(2)} %, loss ${formatLoss(finished.loss)}\n` +
      `see more with: npx nabla eval ${folder} --data ${settings.data[0]}`,
  );
  return exitCodes.ok;
}
