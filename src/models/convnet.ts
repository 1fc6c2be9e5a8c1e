/** A small convolutional network for images of one size, as for MNIST: two convolutions, two poolings, two linear layers. */
import { ShapeError } from "../core/errors.ts";
import * as functional from "../nn/functional.ts";
import { Conv2d, type FactoryOptions, Linear, Module } from "../nn/index.ts";
import type { Tensor } from "../tensor/index.ts";

export interface ConvNetConfig extends FactoryOptions {
  /** Default: 1. */
  readonly inChannels?: number;
  /** Height and width. Default: [28, 28]. */
  readonly imageSize?: readonly [number, number];
  /** Channels after the two convolutions. Default: [32, 64]. */
  readonly channels?: readonly [number, number];
  /** Default: 128. */
  readonly hiddenSize?: number;
  /** Default: 10. */
  readonly numClasses?: number;
  /** In training, before the last layer. Default: 0. */
  readonly dropout?: number;
}

/**
 * [batch, inChannels, height, width] → logits [batch, numClasses]. With the defaults 1 → 32 → 64 channels (3×3, padding 1),
 * each followed by ReLU and a 2×2 maximum, then 3136 → 128 → 10.
 */
export class ConvNet extends Module {
  readonly config: ConvNetConfig;
  conv1: Conv2d;
  conv2: Conv2d;
  fc1: Linear;
  fc2: Linear;
  constructor(config: ConvNetConfig = {}) {
    super();
    const { inChannels = 1, imageSize = [28, 28], channels = [32, 64], hiddenSize = 128, numClasses = 10 } = config;
    const [height, width] = imageSize.map((n) => Math.floor(Math.floor(n / 2) / 2));
    if (!(height >= 1 && width >= 1))
      throw new ShapeError(`ConvNet: images must be at least 4×4 (they are halved twice), got ${imageSize.join("×")}`);
    this.config = config;
    this.conv1 = new Conv2d(inChannels, channels[0], 3, { padding: 1, ...config });
    this.conv2 = new Conv2d(channels[0], channels[1], 3, { padding: 1, ...config });
    this.fc1 = new Linear(channels[1] * height * width, hiddenSize, config);
    this.fc2 = new Linear(hiddenSize, numClasses, config);
  }
  forward(x: Tensor): Tensor {
    x = functional.maxPool2d(this.conv1.forward(x).relu(), 2);
    x = functional.maxPool2d(this.conv2.forward(x).relu(), 2);
    x = this.fc1.forward(x.flatten(1)).relu();
    const { dropout = 0 } = this.config;
    if (dropout > 0) x = functional.dropout(x, { p: dropout, training: this.training });
    return this.fc2.forward(x);
  }
}
