/**
 * A run that trains an image classifier: its settings, its images, its model. `train classifier` trains it and `eval` measures it;
 * both read it from here.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { IndexError } from "../core/errors.ts";
import { Rng } from "../core/rng.ts";
import { IdxError, type LabelledImages, loadIdxClassification } from "../data/idx.ts";
import { ArrayDataset, type Batch, DataLoader, hostArray } from "../data/loader.ts";
import { ConvNet, MLP } from "../models/index.ts";
import type { Module } from "../nn/index.ts";
import { fromRaw, type Tensor } from "../tensor/index.ts";
import { RunError, type RunSettings, readJson } from "./run-folder.ts";

export interface ClassifierSettings extends RunSettings {
  readonly kind: "classifier";
  readonly model: "convnet" | "mlp";
  readonly hidden: readonly number[];
  readonly classes: number | null;
  readonly batch: number;
  readonly epochs: number;
  readonly lr: number;
  readonly weightDecay: number;
  readonly patience: number | null;
  readonly validationShare: number;
}

/** config.json: the model, and what its inputs go through. */
export interface ClassifierConfig {
  readonly model_type: "nabla-convnet" | "nabla-mlp";
  readonly hidden: readonly number[];
  readonly image_size: readonly [height: number, width: number];
  readonly num_classes: number;
  /** Of the pixels of the training images, in the units of the files. */
  readonly mean: number;
  readonly std: number;
}

export const buildClassifier = (config: ClassifierConfig): Module => {
  const { hidden, image_size: imageSize, num_classes: numClasses } = config;
  return config.model_type === "nabla-mlp"
    ? new MLP({ sizes: [imageSize[0] * imageSize[1], ...hidden, numClasses] })
    : new ConvNet({ imageSize, numClasses, hiddenSize: hidden[0] });
};

export function readClassifierConfig(folder: string): ClassifierConfig {
  const path = join(folder, "config.json");
  if (!existsSync(path)) throw new RunError(`${folder} has no config.json; a run's folder is what --out named`);
  const config = readJson(path) as ClassifierConfig;
  if (config.model_type !== "nabla-convnet" && config.model_type !== "nabla-mlp")
    throw new RunError(
      `${path}: a model of type ${JSON.stringify(config.model_type)}; expected a classifier of Nabla's`,
    );
  return config;
}

export type ImageBatch = readonly [images: Tensor, labels: Tensor];

/** Images as the model takes them: scaled, as [batch, 1, height, width] or [batch, height · width]. */
function wrapFor(config: ClassifierConfig): (batch: Batch) => ImageBatch {
  const [height, width] = config.image_size;
  return ([images, labels]) => {
    const count = images.shape[0];
    const pixels = fromRaw(images.data, images.dtype, images.shape).to("float32").sub(config.mean).div(config.std);
    const shape = config.model_type === "nabla-mlp" ? [count, height * width] : [count, 1, height, width];
    return [pixels.reshape(shape), fromRaw(labels.data, "int32", labels.shape)];
  };
}

/** Batches of images and labels. Throws IndexError for a label that the model has no class for, RunError for another image size. */
export function imageBatches(
  { images, labels }: LabelledImages,
  config: ClassifierConfig,
  options: { readonly batchSize: number; readonly shuffle?: boolean; readonly seed?: number },
): DataLoader<Batch, ImageBatch> {
  const [height, width] = config.image_size;
  if (images.shape.length !== 3 || images.shape[1] !== height || images.shape[2] !== width)
    throw new RunError(`the model takes images of ${height}×${width}, these are [${images.shape.slice(1).join(", ")}]`);
  const bad = labels.findIndex((label) => label >= config.num_classes);
  if (bad >= 0)
    throw new IndexError(
      `label ${labels[bad]} (of image ${bad}) is out of range: the model has ${config.num_classes} classes, 0 … ${config.num_classes - 1}`,
    );
  const data = new ArrayDataset(hostArray(pixelArray(images.data), images.shape), hostArray(labels));
  return new DataLoader<Batch, ImageBatch>(data, { ...options, wrap: wrapFor(config) });
}

/** The pixels in an array that a tensor can be made from. */
const pixelArray = (data: LabelledImages["images"]["data"]): Uint8Array | Float32Array | Int32Array =>
  data instanceof Uint8Array || data instanceof Float32Array || data instanceof Int32Array
    ? data
    : Float32Array.from(data);

export interface ImageSets {
  readonly train: LabelledImages;
  readonly validation: LabelledImages;
  readonly numClasses: number;
  /** What a user should know of the split. */
  readonly note: string | null;
}

const pick = ({ images, labels }: LabelledImages, indices: Int32Array): LabelledImages => {
  const size = images.data.length / labels.length;
  const data = new (images.data.constructor as new (n: number) => typeof images.data)(indices.length * size);
  const chosen = new Int32Array(indices.length);
  indices.forEach((index, i) => {
    data.set(images.data.subarray(index * size, (index + 1) * size) as never, i * size);
    chosen[i] = labels[index];
  });
  return { images: { dtype: images.dtype, shape: [indices.length, ...images.shape.slice(1)], data }, labels: chosen };
};

/**
 * The images of a folder: its training and test splits as they are; where there is only one, a share of it (chosen by the seed) is
 * held out. Throws IdxError.
 */
export async function readImages(
  folder: string,
  { validationShare, seed, classes }: Pick<ClassifierSettings, "validationShare" | "seed" | "classes">,
): Promise<ImageSets> {
  const { train, test, numClasses } = await loadIdxClassification(folder);
  const one = (train ?? test)!;
  if (one.images.shape.length !== 3)
    throw new IdxError(`${folder}: expected images [count, height, width], got [${one.images.shape.join(", ")}]`);
  if (classes !== null && numClasses > classes)
    throw new IdxError(
      `${folder}: a label is ${numClasses - 1}, but with --classes ${classes} labels are 0 … ${classes - 1}`,
    );
  if (train !== null && test !== null)
    return { train, validation: test, numClasses: classes ?? numClasses, note: null };
  const order = new Rng(seed).permutation(one.labels.length);
  const held = Math.round(order.length * validationShare);
  if (held === 0 || held === order.length)
    throw new IdxError(`${folder}: ${order.length} images are too few to hold a share of ${validationShare} out`);
  const which = train === null ? "test" : "training";
  return {
    train: pick(one, order.slice(held)),
    validation: pick(one, order.slice(0, held)),
    numClasses: classes ?? numClasses,
    note: `${folder} holds only a ${which} split: ${held} of its images are held out for validation`,
  };
}

/** Mean and standard deviation of all pixels. */
export function pixelStatistics({ images }: LabelledImages): { mean: number; std: number } {
  let sum = 0;
  for (const x of images.data) sum += x;
  const mean = sum / images.data.length;
  let squares = 0;
  for (const x of images.data) squares += (x - mean) ** 2;
  return { mean, std: Math.sqrt(squares / images.data.length) || 1 };
}
