/**
 * DistilBERT (Sanh et al. 2019), with the names of Hugging Face's DistilBertModel: BERT's encoder at half the depth, without
 * token types and pooler. Reads from top to bottom: configuration, embeddings, block, encoder, classifier.
 */
import { ShapeError } from "../core/errors.ts";
import * as F from "../nn/functional.ts";
import { type Embedding, type FactoryOptions, LayerNorm, type Linear, Module, ModuleList } from "../nn/index.ts";
import type { Tensor } from "../tensor/index.ts";
import { type ActivationName, activationNames, activations } from "./activations.ts";
import type { ConfigReader } from "./config.ts";
import {
  attentionMaskOf,
  bidirectionalAttention,
  checkText,
  normalLinear,
  normalTable,
  type TextClassifier,
  type TextEncoder,
  type TextInput,
} from "./encoder.ts";

export interface DistilBertConfig {
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly numLayers: number;
  readonly numHeads: number;
  readonly intermediateSize: number;
  readonly maxPositions: number;
  readonly activation: ActivationName;
  readonly dropout: number;
  readonly attentionDropout: number;
  readonly classifierDropout: number;
  readonly initializerRange: number;
}

const layerNormEps = 1e-12;

export function distilBertConfigOf(config: ConfigReader): DistilBertConfig {
  const hiddenSize = config.count("dim", 768);
  return {
    vocabSize: config.count("vocab_size"),
    hiddenSize,
    numLayers: config.count("n_layers", 6),
    numHeads: config.heads("n_heads", hiddenSize, 12),
    intermediateSize: config.count("hidden_dim", 3072),
    maxPositions: config.count("max_position_embeddings", 512),
    activation: config.choice("activation", activationNames(), "gelu"),
    dropout: config.number("dropout", 0.1),
    attentionDropout: config.number("attention_dropout", 0.1),
    classifierDropout: config.number("seq_classif_dropout", 0.2),
    initializerRange: config.number("initializer_range", 0.02),
  };
}

const linear = (inputs: number, outputs: number, config: DistilBertConfig, where: FactoryOptions): Linear =>
  normalLinear(inputs, outputs, config.initializerRange, where);
const norm = ({ hiddenSize }: DistilBertConfig, where: FactoryOptions): LayerNorm =>
  new LayerNorm(hiddenSize, { eps: layerNormEps, ...where });

class Embeddings extends Module {
  readonly dropout: number;
  word_embeddings: Embedding;
  position_embeddings: Embedding;
  LayerNorm: LayerNorm;
  constructor(config: DistilBertConfig, where: FactoryOptions) {
    super();
    const { vocabSize, maxPositions, hiddenSize, initializerRange } = config;
    this.dropout = config.dropout;
    this.word_embeddings = normalTable(vocabSize, hiddenSize, initializerRange, where);
    this.position_embeddings = normalTable(maxPositions, hiddenSize, initializerRange, where);
    this.LayerNorm = norm(config, where);
  }
  forward(ids: Tensor): Tensor {
    const positions = this.position_embeddings.weight.narrow(0, 0, ids.shape[1]);
    const x = this.LayerNorm.forward(this.word_embeddings.forward(ids).add(positions));
    return F.dropout(x, { p: this.dropout, training: this.training });
  }
}

class Attention extends Module {
  readonly config: DistilBertConfig;
  q_lin: Linear;
  k_lin: Linear;
  v_lin: Linear;
  out_lin: Linear;
  constructor(config: DistilBertConfig, where: FactoryOptions) {
    super();
    this.config = config;
    const make = (): Linear => linear(config.hiddenSize, config.hiddenSize, config, where);
    this.q_lin = make();
    this.k_lin = make();
    this.v_lin = make();
    this.out_lin = make();
  }
  forward(x: Tensor, mask: Tensor | null): Tensor {
    const { numHeads, attentionDropout } = this.config;
    const qkv = [this.q_lin.forward(x), this.k_lin.forward(x), this.v_lin.forward(x)] as const;
    return this.out_lin.forward(bidirectionalAttention(qkv, numHeads, mask, this.training ? attentionDropout : 0));
  }
}

class FeedForward extends Module {
  readonly config: DistilBertConfig;
  lin1: Linear;
  lin2: Linear;
  constructor(config: DistilBertConfig, where: FactoryOptions) {
    super();
    this.config = config;
    this.lin1 = linear(config.hiddenSize, config.intermediateSize, config, where);
    this.lin2 = linear(config.intermediateSize, config.hiddenSize, config, where);
  }
  forward(x: Tensor): Tensor {
    const y = this.lin2.forward(activations[this.config.activation](this.lin1.forward(x)));
    return F.dropout(y, { p: this.config.dropout, training: this.training });
  }
}

class Block extends Module {
  attention: Attention;
  sa_layer_norm: LayerNorm;
  ffn: FeedForward;
  output_layer_norm: LayerNorm;
  constructor(config: DistilBertConfig, where: FactoryOptions) {
    super();
    this.attention = new Attention(config, where);
    this.sa_layer_norm = norm(config, where);
    this.ffn = new FeedForward(config, where);
    this.output_layer_norm = norm(config, where);
  }
  forward(x: Tensor, mask: Tensor | null): Tensor {
    x = this.sa_layer_norm.forward(this.attention.forward(x, mask).add(x));
    return this.output_layer_norm.forward(this.ffn.forward(x).add(x));
  }
}

class Transformer extends Module {
  layer: ModuleList<Block>;
  constructor(config: DistilBertConfig, where: FactoryOptions) {
    super();
    this.layer = new ModuleList(Array.from({ length: config.numLayers }, () => new Block(config, where)));
  }
  forward(x: Tensor, mask: Tensor | null): Tensor {
    for (const block of this.layer) x = block.forward(x, mask);
    return x;
  }
}

/** The encoder: ids [batch, time] → the states of the last layer [batch, time, hiddenSize]. */
export class DistilBert extends Module implements TextEncoder {
  readonly config: DistilBertConfig;
  embeddings: Embeddings;
  transformer: Transformer;
  constructor(config: DistilBertConfig, where: FactoryOptions = {}) {
    super();
    this.config = config;
    this.embeddings = new Embeddings(config, where);
    this.transformer = new Transformer(config, where);
  }
  get hiddenSize(): number {
    return this.config.hiddenSize;
  }
  get contextLength(): number {
    return this.config.maxPositions;
  }
  /** Throws ShapeError where token types are given, which it does not tell apart. */
  forward(ids: Tensor, input: TextInput = {}): Tensor {
    checkText("DistilBert", ids, input, this.contextLength);
    if (input.tokenTypeIds) throw new ShapeError("DistilBert: there are no token types; leave tokenTypeIds out");
    return this.transformer.forward(this.embeddings.forward(ids), attentionMaskOf(input));
  }
}

/** DistilBERT with its classifier on the first token: ids [batch, time] → logits [batch, numLabels]. */
export class DistilBertForSequenceClassification extends Module implements TextClassifier {
  readonly numLabels: number;
  distilbert: DistilBert;
  pre_classifier: Linear;
  classifier: Linear;
  constructor(config: DistilBertConfig, numLabels: number, where: FactoryOptions = {}) {
    super();
    this.numLabels = numLabels;
    this.distilbert = new DistilBert(config, where);
    this.pre_classifier = linear(config.hiddenSize, config.hiddenSize, config, where);
    this.classifier = linear(config.hiddenSize, numLabels, config, where);
  }
  get contextLength(): number {
    return this.distilbert.contextLength;
  }
  forward(ids: Tensor, input: TextInput = {}): Tensor {
    const first = this.distilbert.forward(ids, input).select(1, 0);
    const p = this.distilbert.config.classifierDropout;
    const pooled = F.dropout(this.pre_classifier.forward(first).relu(), { p, training: this.training });
    return this.classifier.forward(pooled);
  }
}
