/**
 * The vision transformer (Dosovitskiy et al. 2020), with the key names of Hugging Face's checkpoints of ViTForImageClassification: an
 * image is cut into patches, each a token. Reads from top to bottom: configuration, embeddings, layer, model.
 */
import { ShapeError } from "../core/errors.ts";
import { showShape } from "../core/shape.ts";
import * as F from "../nn/functional.ts";
import { Conv2d, type FactoryOptions, LayerNorm, Linear, Module, ModuleList, Parameter } from "../nn/index.ts";
import { cat, randn, type Tensor } from "../tensor/index.ts";
import { type ActivationName, activationNames, activations } from "./activations.ts";
import { type ConfigReader, PretrainedError } from "./config.ts";
import { bidirectionalAttention, normalLinear } from "./encoder.ts";

export interface ViTConfig {
  readonly imageSize: readonly [height: number, width: number];
  readonly patchSize: readonly [height: number, width: number];
  readonly numChannels: number;
  readonly hiddenSize: number;
  readonly numLayers: number;
  readonly numHeads: number;
  readonly intermediateSize: number;
  readonly activation: ActivationName;
  readonly layerNormEps: number;
  readonly hiddenDropout: number;
  readonly attentionDropout: number;
  /** Whether query, key and value have biases. */
  readonly qkvBias: boolean;
  readonly initializerRange: number;
}

/** A size that is one number or a pair. */
function pairOf(config: ConfigReader, name: string, fallback: number): [number, number] {
  if (!Array.isArray(config.raw[name])) {
    const size = config.count(name, fallback);
    return [size, size];
  }
  const sizes = config.numbers(name);
  if (sizes.length !== 2) throw new PretrainedError(`${config.source}: "${name}" must be a number or a pair`);
  return [sizes[0], sizes[1]];
}

export function vitConfigOf(config: ConfigReader): ViTConfig {
  const [imageSize, patchSize] = [pairOf(config, "image_size", 224), pairOf(config, "patch_size", 16)];
  const hiddenSize = config.count("hidden_size", 768);
  return {
    imageSize,
    patchSize,
    numChannels: config.count("num_channels", 3),
    hiddenSize,
    numLayers: config.count("num_hidden_layers", 12),
    numHeads: config.heads("num_attention_heads", hiddenSize, 12),
    intermediateSize: config.count("intermediate_size", 3072),
    activation: config.choice("hidden_act", activationNames(), "gelu"),
    layerNormEps: config.number("layer_norm_eps", 1e-12),
    hiddenDropout: config.number("hidden_dropout_prob", 0),
    attentionDropout: config.number("attention_probs_dropout_prob", 0),
    qkvBias: config.boolean("qkv_bias", true),
    initializerRange: config.number("initializer_range", 0.02),
  };
}

const norm = ({ hiddenSize, layerNormEps: eps }: ViTConfig, where: FactoryOptions): LayerNorm =>
  new LayerNorm(hiddenSize, { eps, ...where });

class PatchEmbeddings extends Module {
  projection: Conv2d;
  constructor({ numChannels, hiddenSize, patchSize }: ViTConfig, where: FactoryOptions) {
    super();
    this.projection = new Conv2d(numChannels, hiddenSize, patchSize, { stride: patchSize, ...where });
  }
  /** [batch, channels, height, width] → [batch, patches, hiddenSize], row by row. */
  forward(x: Tensor): Tensor {
    return this.projection.forward(x).flatten(2).transpose(1, 2);
  }
}

class Embeddings extends Module {
  readonly dropout: number;
  /** [1, 1, hiddenSize], a token before the patches that gathers what the image is. */
  cls_token: Parameter;
  /** [1, patches + 1, hiddenSize] */
  position_embeddings: Parameter;
  patch_embeddings: PatchEmbeddings;
  constructor(config: ViTConfig, where: FactoryOptions) {
    super();
    const { hiddenSize, imageSize, patchSize, initializerRange: std } = config;
    const patches = Math.floor(imageSize[0] / patchSize[0]) * Math.floor(imageSize[1] / patchSize[1]);
    this.dropout = config.hiddenDropout;
    this.cls_token = new Parameter(randn([1, 1, hiddenSize], where).mul(std));
    this.position_embeddings = new Parameter(randn([1, patches + 1, hiddenSize], where).mul(std));
    this.patch_embeddings = new PatchEmbeddings(config, where);
  }
  forward(x: Tensor): Tensor {
    const patches = this.patch_embeddings.forward(x);
    const [batch, , width] = patches.shape;
    const tokens = cat([this.cls_token.expand([batch, 1, width]), patches], 1).add(this.position_embeddings);
    return F.dropout(tokens, { p: this.dropout, training: this.training });
  }
}

/** Modules of one projection: the checkpoints' names have a level for each. */
class Dense extends Module {
  dense: Linear;
  constructor(inputs: number, outputs: number, config: ViTConfig, where: FactoryOptions) {
    super();
    this.dense = normalLinear(inputs, outputs, config.initializerRange, where);
  }
  forward(x: Tensor): Tensor {
    return this.dense.forward(x);
  }
}

class SelfAttention extends Module {
  readonly config: ViTConfig;
  query: Linear;
  key: Linear;
  value: Linear;
  constructor(config: ViTConfig, where: FactoryOptions) {
    super();
    this.config = config;
    const { hiddenSize: d, qkvBias: bias, initializerRange } = config;
    const make = (): Linear => new Linear(d, d, { bias, ...where, weight: randn([d, d], where).mul(initializerRange) });
    this.query = make();
    this.key = make();
    this.value = make();
  }
  forward(x: Tensor): Tensor {
    const qkv = [this.query.forward(x), this.key.forward(x), this.value.forward(x)] as const;
    return bidirectionalAttention(qkv, this.config.numHeads, null, this.training ? this.config.attentionDropout : 0);
  }
}

class Attention extends Module {
  attention: SelfAttention;
  output: Dense;
  constructor(config: ViTConfig, where: FactoryOptions) {
    super();
    this.attention = new SelfAttention(config, where);
    this.output = new Dense(config.hiddenSize, config.hiddenSize, config, where);
  }
  forward(x: Tensor): Tensor {
    return this.output.forward(this.attention.forward(x));
  }
}

class Layer extends Module {
  readonly config: ViTConfig;
  attention: Attention;
  intermediate: Dense;
  output: Dense;
  layernorm_before: LayerNorm;
  layernorm_after: LayerNorm;
  constructor(config: ViTConfig, where: FactoryOptions) {
    super();
    const { hiddenSize, intermediateSize } = config;
    this.config = config;
    this.attention = new Attention(config, where);
    this.intermediate = new Dense(hiddenSize, intermediateSize, config, where);
    this.output = new Dense(intermediateSize, hiddenSize, config, where);
    this.layernorm_before = norm(config, where);
    this.layernorm_after = norm(config, where);
  }
  forward(x: Tensor): Tensor {
    const drop = (y: Tensor): Tensor => F.dropout(y, { p: this.config.hiddenDropout, training: this.training });
    x = x.add(drop(this.attention.forward(this.layernorm_before.forward(x))));
    const inner = activations[this.config.activation](this.intermediate.forward(this.layernorm_after.forward(x)));
    return x.add(drop(this.output.forward(inner)));
  }
}

class Encoder extends Module {
  layer: ModuleList<Layer>;
  constructor(config: ViTConfig, where: FactoryOptions) {
    super();
    this.layer = new ModuleList(Array.from({ length: config.numLayers }, () => new Layer(config, where)));
  }
  forward(x: Tensor): Tensor {
    for (const layer of this.layer) x = layer.forward(x);
    return x;
  }
}

/** Pixels [batch, channels, height, width] → normalised states [batch, patches + 1, hiddenSize]. */
export class ViT extends Module {
  readonly config: ViTConfig;
  embeddings: Embeddings;
  encoder: Encoder;
  layernorm: LayerNorm;
  constructor(config: ViTConfig, where: FactoryOptions = {}) {
    super();
    this.config = config;
    this.embeddings = new Embeddings(config, where);
    this.encoder = new Encoder(config, where);
    this.layernorm = norm(config, where);
  }
  forward(pixels: Tensor): Tensor {
    const expected = [this.config.numChannels, ...this.config.imageSize];
    if (pixels.ndim !== 4 || pixels.shape.slice(1).join() !== expected.join())
      throw new ShapeError(`ViT: images must be [batch, ${expected.join(", ")}], got ${showShape(pixels.shape)}`);
    return this.layernorm.forward(this.encoder.forward(this.embeddings.forward(pixels)));
  }
}

/** With a linear classifier on the first token: pixels [batch, channels, height, width] → logits [batch, numLabels]. */
export class ViTForImageClassification extends Module {
  readonly numLabels: number;
  vit: ViT;
  classifier: Linear;
  constructor(config: ViTConfig, numLabels: number, where: FactoryOptions = {}) {
    super();
    this.numLabels = numLabels;
    this.vit = new ViT(config, where);
    this.classifier = normalLinear(config.hiddenSize, numLabels, config.initializerRange, where);
  }
  forward(pixels: Tensor): Tensor {
    return this.classifier.forward(this.vit.forward(pixels).select(1, 0));
  }
}
