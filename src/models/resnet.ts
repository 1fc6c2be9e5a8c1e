/**
 * Residual networks (He et al. 2015), with the names of Hugging Face's ResNetForImageClassification: the v1.5 form, whose
 * bottlenecks halve the image in their 3×3 convolution. Reads from top to bottom: configuration, layers, stages, model.
 */
import { ShapeError } from "../core/errors.ts";
import { showShape } from "../core/shape.ts";
import * as F from "../nn/functional.ts";
import {
  BatchNorm2d,
  Conv2d,
  type FactoryOptions,
  Flatten,
  Identity,
  Linear,
  Module,
  ModuleList,
  Sequential,
} from "../nn/index.ts";
import type { Tensor } from "../tensor/index.ts";
import { type ActivationName, activationNames, activations } from "./activations.ts";
import { type ConfigReader, PretrainedError } from "./config.ts";

export interface ResNetConfig {
  readonly numChannels: number;
  /** Channels behind the first convolution. */
  readonly embeddingSize: number;
  /** Channels and number of layers of each stage. */
  readonly hiddenSizes: readonly number[];
  readonly depths: readonly number[];
  readonly layerType: "basic" | "bottleneck";
  readonly activation: ActivationName;
  readonly downsampleInFirstStage: boolean;
  /** The first form (2015): the 1×1 convolution halves the image. */
  readonly downsampleInBottleneck: boolean;
}

export function resNetConfigOf(config: ConfigReader): ResNetConfig {
  const hiddenSizes = config.numbers("hidden_sizes", [256, 512, 1024, 2048]);
  const depths = config.numbers("depths", [3, 4, 6, 3]);
  if (hiddenSizes.length !== depths.length || depths.length === 0)
    throw new PretrainedError(`${config.source}: "hidden_sizes" and "depths" must have one entry for each stage`);
  return {
    numChannels: config.count("num_channels", 3),
    embeddingSize: config.count("embedding_size", 64),
    hiddenSizes,
    depths,
    layerType: config.choice("layer_type", ["basic", "bottleneck"], "bottleneck"),
    activation: config.choice("hidden_act", activationNames(), "relu"),
    downsampleInFirstStage: config.boolean("downsample_in_first_stage", false),
    downsampleInBottleneck: config.boolean("downsample_in_bottleneck", false),
  };
}

/** Convolution, batch norm and, where there is one, the activation. */
class ConvLayer extends Module {
  readonly activation: ActivationName | null;
  convolution: Conv2d;
  normalization: BatchNorm2d;
  constructor(
    sizes: { readonly from: number; readonly to: number; readonly kernel: number; readonly stride?: number },
    activation: ActivationName | null,
    where: FactoryOptions,
  ) {
    super();
    const { from, to, kernel, stride = 1 } = sizes;
    this.activation = activation;
    this.convolution = new Conv2d(from, to, kernel, { stride, padding: Math.floor(kernel / 2), bias: false, ...where });
    this.normalization = new BatchNorm2d(to, where);
  }
  forward(x: Tensor): Tensor {
    const y = this.normalization.forward(this.convolution.forward(x));
    return this.activation === null ? y : activations[this.activation](y);
  }
}

/** activation(layer(x) + shortcut(x)); the shortcut projects where shapes differ. */
class ResidualLayer extends Module {
  readonly activation: ActivationName;
  shortcut: ConvLayer | Identity;
  layer: Sequential;
  constructor(config: ResNetConfig, from: number, to: number, stride: number, where: FactoryOptions) {
    super();
    const { activation, layerType, downsampleInBottleneck: early } = config;
    this.activation = activation;
    this.shortcut =
      from !== to || stride !== 1 ? new ConvLayer({ from, to, kernel: 1, stride }, null, where) : new Identity();
    const inner = Math.floor(to / 4);
    // transformers gives the inner convolutions ReLU, whatever the layer's own activation is
    this.layer =
      layerType === "basic"
        ? new Sequential(
            new ConvLayer({ from, to, kernel: 3, stride }, "relu", where),
            new ConvLayer({ from: to, to, kernel: 3 }, null, where),
          )
        : new Sequential(
            new ConvLayer({ from, to: inner, kernel: 1, stride: early ? stride : 1 }, "relu", where),
            new ConvLayer({ from: inner, to: inner, kernel: 3, stride: early ? 1 : stride }, "relu", where),
            new ConvLayer({ from: inner, to, kernel: 1 }, null, where),
          );
  }
  forward(x: Tensor): Tensor {
    return activations[this.activation](this.layer.forward(x).add(this.shortcut.forward(x)));
  }
}

class Stage extends Module {
  layers: ModuleList<ResidualLayer>;
  constructor(config: ResNetConfig, index: number, where: FactoryOptions) {
    super();
    const { hiddenSizes, depths, embeddingSize, downsampleInFirstStage } = config;
    const from = index === 0 ? embeddingSize : hiddenSizes[index - 1];
    const to = hiddenSizes[index];
    const stride = index > 0 || downsampleInFirstStage ? 2 : 1;
    this.layers = new ModuleList(
      Array.from(
        { length: depths[index] },
        (_, i) => new ResidualLayer(config, i === 0 ? from : to, to, i === 0 ? stride : 1, where),
      ),
    );
  }
  forward(x: Tensor): Tensor {
    for (const layer of this.layers) x = layer.forward(x);
    return x;
  }
}

class Embedder extends Module {
  embedder: ConvLayer;
  constructor({ numChannels, embeddingSize, activation }: ResNetConfig, where: FactoryOptions) {
    super();
    this.embedder = new ConvLayer({ from: numChannels, to: embeddingSize, kernel: 7, stride: 2 }, activation, where);
  }
  forward(x: Tensor): Tensor {
    return F.maxPool2d(this.embedder.forward(x), 3, { stride: 2, padding: 1 });
  }
}

class Encoder extends Module {
  stages: ModuleList<Stage>;
  constructor(config: ResNetConfig, where: FactoryOptions) {
    super();
    this.stages = new ModuleList(config.depths.map((_, i) => new Stage(config, i, where)));
  }
  forward(x: Tensor): Tensor {
    for (const stage of this.stages) x = stage.forward(x);
    return x;
  }
}

/** Pixels [batch, channels, height, width] → features [batch, last hidden size, height / 32, width / 32]. */
export class ResNet extends Module {
  readonly config: ResNetConfig;
  embedder: Embedder;
  encoder: Encoder;
  constructor(config: ResNetConfig, where: FactoryOptions = {}) {
    super();
    this.config = config;
    this.embedder = new Embedder(config, where);
    this.encoder = new Encoder(config, where);
  }
  forward(pixels: Tensor): Tensor {
    if (pixels.ndim !== 4 || pixels.shape[1] !== this.config.numChannels)
      throw new ShapeError(
        `ResNet: images must be [batch, ${this.config.numChannels}, height, width], got ${showShape(pixels.shape)}`,
      );
    return this.encoder.forward(this.embedder.forward(pixels));
  }
}

/** With a linear classifier on the mean of the features: pixels → logits [batch, numLabels]. */
export class ResNetForImageClassification extends Module {
  readonly numLabels: number;
  resnet: ResNet;
  /** Flatten and Linear: the classifier's keys are "classifier.1.…". */
  classifier: Sequential;
  constructor(config: ResNetConfig, numLabels: number, where: FactoryOptions = {}) {
    super();
    this.numLabels = numLabels;
    this.resnet = new ResNet(config, where);
    this.classifier = new Sequential(new Flatten(), new Linear(config.hiddenSizes.at(-1) as number, numLabels, where));
  }
  forward(pixels: Tensor): Tensor {
    const features = this.resnet.forward(pixels).mean([2, 3]);
    return this.classifier.forward(features);
  }
}
