/**
 * BERT (Devlin et al. 2018) and RoBERTa (Liu et al. 2019), with the names of Hugging Face's BertModel: an encoder whose tokens see
 * each other in both directions, normalised after each branch. RoBERTa differs in how positions are counted and in the
 * classification head. Reads from top to bottom: configuration, embeddings, layer, encoder, classifiers.
 */
import * as F from "../nn/functional.ts";
import { type Embedding, type FactoryOptions, LayerNorm, type Linear, Module, ModuleList } from "../nn/index.ts";
import { arange, type Tensor, zerosLike } from "../tensor/index.ts";
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

export interface BertConfig {
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly numLayers: number;
  readonly numHeads: number;
  readonly intermediateSize: number;
  /** Rows of the table of positions. */
  readonly maxPositions: number;
  /** How many texts of a pair are told apart. */
  readonly typeVocabSize: number;
  readonly activation: ActivationName;
  readonly layerNormEps: number;
  readonly hiddenDropout: number;
  readonly attentionDropout: number;
  /** Before the last layer of a classifier. */
  readonly classifierDropout: number;
  readonly initializerRange: number;
  /** RoBERTa: positions count up from here + 1 over the tokens that are not this one, which stay at it. null: from 0. */
  readonly paddingPosition: number | null;
}

/** BERT's configuration of a `config.json`; of RoBERTa's, with `padding`. */
export function bertConfigOf(config: ConfigReader, { padding }: { readonly padding: boolean }): BertConfig {
  config.expect("position_embedding_type", "absolute", "positions are looked up in a table");
  config.expect("is_decoder", false, "tokens see each other in both directions");
  const hiddenSize = config.count("hidden_size", 768);
  const hiddenDropout = config.number("hidden_dropout_prob", 0.1);
  return {
    vocabSize: config.count("vocab_size"),
    hiddenSize,
    numLayers: config.count("num_hidden_layers", 12),
    numHeads: config.heads("num_attention_heads", hiddenSize, 12),
    intermediateSize: config.count("intermediate_size", 3072),
    maxPositions: config.count("max_position_embeddings", 512),
    typeVocabSize: config.count("type_vocab_size", 2),
    activation: config.choice("hidden_act", activationNames(), "gelu"),
    layerNormEps: config.number("layer_norm_eps", 1e-12),
    hiddenDropout,
    attentionDropout: config.number("attention_probs_dropout_prob", 0.1),
    classifierDropout: config.number("classifier_dropout", hiddenDropout),
    initializerRange: config.number("initializer_range", 0.02),
    paddingPosition: padding ? config.index("pad_token_id", 1) : null,
  };
}

const linear = (inputs: number, outputs: number, config: BertConfig, where: FactoryOptions): Linear =>
  normalLinear(inputs, outputs, config.initializerRange, where);
const norm = ({ hiddenSize, layerNormEps: eps }: BertConfig, where: FactoryOptions): LayerNorm =>
  new LayerNorm(hiddenSize, { eps, ...where });

class Embeddings extends Module {
  readonly config: BertConfig;
  word_embeddings: Embedding;
  position_embeddings: Embedding;
  token_type_embeddings: Embedding;
  LayerNorm: LayerNorm;
  constructor(config: BertConfig, where: FactoryOptions) {
    super();
    const { vocabSize, maxPositions, typeVocabSize, hiddenSize, initializerRange } = config;
    const table = (rows: number): Embedding => normalTable(rows, hiddenSize, initializerRange, where);
    this.config = config;
    this.word_embeddings = table(vocabSize);
    this.position_embeddings = table(maxPositions);
    this.token_type_embeddings = table(typeVocabSize);
    this.LayerNorm = norm(config, where);
  }

  /** Rows of the table of positions, [time] or [batch, time]. */
  #positions(ids: Tensor): Tensor {
    const { paddingPosition: padding } = this.config;
    if (padding === null) return arange(ids.shape[1], { device: ids.device });
    const counts = ids.ne(padding).to("int32");
    return counts.cumsum(1).mul(counts).add(padding);
  }

  forward(ids: Tensor, { tokenTypeIds }: TextInput): Tensor {
    const types = this.token_type_embeddings.forward(tokenTypeIds ?? zerosLike(ids));
    const x = this.word_embeddings
      .forward(ids)
      .add(types)
      .add(this.position_embeddings.forward(this.#positions(ids)));
    return F.dropout(this.LayerNorm.forward(x), { p: this.config.hiddenDropout, training: this.training });
  }
}

class SelfAttention extends Module {
  readonly config: BertConfig;
  query: Linear;
  key: Linear;
  value: Linear;
  constructor(config: BertConfig, where: FactoryOptions) {
    super();
    this.config = config;
    const make = (): Linear => linear(config.hiddenSize, config.hiddenSize, config, where);
    this.query = make();
    this.key = make();
    this.value = make();
  }
  forward(x: Tensor, mask: Tensor | null): Tensor {
    const qkv = [this.query.forward(x), this.key.forward(x), this.value.forward(x)] as const;
    return bidirectionalAttention(qkv, this.config.numHeads, mask, this.training ? this.config.attentionDropout : 0);
  }
}

/** The end of a branch: a projection, added to what the branch began with, normalised. */
class Output extends Module {
  readonly dropout: number;
  dense: Linear;
  LayerNorm: LayerNorm;
  constructor(inputs: number, config: BertConfig, where: FactoryOptions) {
    super();
    this.dropout = config.hiddenDropout;
    this.dense = linear(inputs, config.hiddenSize, config, where);
    this.LayerNorm = norm(config, where);
  }
  forward(x: Tensor, residual: Tensor): Tensor {
    const y = F.dropout(this.dense.forward(x), { p: this.dropout, training: this.training });
    return this.LayerNorm.forward(y.add(residual));
  }
}

class Attention extends Module {
  self: SelfAttention;
  output: Output;
  constructor(config: BertConfig, where: FactoryOptions) {
    super();
    this.self = new SelfAttention(config, where);
    this.output = new Output(config.hiddenSize, config, where);
  }
  forward(x: Tensor, mask: Tensor | null): Tensor {
    return this.output.forward(this.self.forward(x, mask), x);
  }
}

/** A projection with the activation behind it. */
class Intermediate extends Module {
  readonly activation: ActivationName;
  dense: Linear;
  constructor(config: BertConfig, where: FactoryOptions) {
    super();
    this.activation = config.activation;
    this.dense = linear(config.hiddenSize, config.intermediateSize, config, where);
  }
  forward(x: Tensor): Tensor {
    return activations[this.activation](this.dense.forward(x));
  }
}

class Layer extends Module {
  attention: Attention;
  intermediate: Intermediate;
  output: Output;
  constructor(config: BertConfig, where: FactoryOptions) {
    super();
    this.attention = new Attention(config, where);
    this.intermediate = new Intermediate(config, where);
    this.output = new Output(config.intermediateSize, config, where);
  }
  forward(x: Tensor, mask: Tensor | null): Tensor {
    x = this.attention.forward(x, mask);
    return this.output.forward(this.intermediate.forward(x), x);
  }
}

class Encoder extends Module {
  layer: ModuleList<Layer>;
  constructor(config: BertConfig, where: FactoryOptions) {
    super();
    this.layer = new ModuleList(Array.from({ length: config.numLayers }, () => new Layer(config, where)));
  }
  forward(x: Tensor, mask: Tensor | null): Tensor {
    for (const layer of this.layer) x = layer.forward(x, mask);
    return x;
  }
}

/** tanh(dense(state of the first token)): [batch, time, hiddenSize] → [batch, hiddenSize]. */
class Pooler extends Module {
  dense: Linear;
  constructor(config: BertConfig, where: FactoryOptions) {
    super();
    this.dense = linear(config.hiddenSize, config.hiddenSize, config, where);
  }
  forward(hidden: Tensor): Tensor {
    return this.dense.forward(hidden.select(1, 0)).tanh();
  }
}

/** The encoder: ids [batch, time] → the states of the last layer [batch, time, hiddenSize]. */
export class Bert extends Module implements TextEncoder {
  readonly config: BertConfig;
  embeddings: Embeddings;
  encoder: Encoder;
  /** What BERT was trained to tell the next sentence by; null where the checkpoint has none. */
  pooler: Pooler | null;
  constructor(config: BertConfig, options: FactoryOptions & { readonly pooler?: boolean } = {}) {
    super();
    const { pooler = true, ...where } = options;
    this.config = config;
    this.embeddings = new Embeddings(config, where);
    this.encoder = new Encoder(config, where);
    this.pooler = pooler ? new Pooler(config, where) : null;
  }
  get hiddenSize(): number {
    return this.config.hiddenSize;
  }
  /** RoBERTa counts positions over the tokens that are not this one. */
  get padTokenId(): number {
    return this.config.paddingPosition ?? 0;
  }
  /** The most tokens: RoBERTa's first positions stand for no token. */
  get contextLength(): number {
    const { maxPositions, paddingPosition } = this.config;
    return maxPositions - (paddingPosition === null ? 0 : paddingPosition + 1);
  }
  forward(ids: Tensor, input: TextInput = {}): Tensor {
    checkText("Bert", ids, input, this.contextLength);
    return this.encoder.forward(this.embeddings.forward(ids, input), attentionMaskOf(input));
  }
}

/** BERT with a linear classifier on the pooled first token: ids [batch, time] → logits [batch, numLabels]. */
export class BertForSequenceClassification extends Module implements TextClassifier {
  readonly numLabels: number;
  bert: Bert;
  classifier: Linear;
  constructor(config: BertConfig, numLabels: number, where: FactoryOptions = {}) {
    super();
    this.numLabels = numLabels;
    this.bert = new Bert(config, where);
    this.classifier = linear(config.hiddenSize, numLabels, config, where);
  }
  get contextLength(): number {
    return this.bert.contextLength;
  }
  forward(ids: Tensor, input: TextInput = {}): Tensor {
    const pooled = (this.bert.pooler as Pooler).forward(this.bert.forward(ids, input));
    const p = this.bert.config.classifierDropout;
    return this.classifier.forward(F.dropout(pooled, { p, training: this.training }));
  }
}

/** RoBERTa's head: dropout, dense, tanh, dropout, projection of the first token. */
class RobertaHead extends Module {
  readonly dropout: number;
  dense: Linear;
  out_proj: Linear;
  constructor(config: BertConfig, numLabels: number, where: FactoryOptions) {
    super();
    this.dropout = config.classifierDropout;
    this.dense = linear(config.hiddenSize, config.hiddenSize, config, where);
    this.out_proj = linear(config.hiddenSize, numLabels, config, where);
  }
  forward(hidden: Tensor): Tensor {
    const drop = (x: Tensor): Tensor => F.dropout(x, { p: this.dropout, training: this.training });
    return this.out_proj.forward(drop(this.dense.forward(drop(hidden.select(1, 0))).tanh()));
  }
}

/** RoBERTa with its classifier: ids [batch, time] → logits [batch, numLabels]. */
export class RobertaForSequenceClassification extends Module implements TextClassifier {
  readonly numLabels: number;
  roberta: Bert;
  classifier: RobertaHead;
  constructor(config: BertConfig, numLabels: number, where: FactoryOptions = {}) {
    super();
    this.numLabels = numLabels;
    this.roberta = new Bert(config, { ...where, pooler: false });
    this.classifier = new RobertaHead(config, numLabels, where);
  }
  get contextLength(): number {
    return this.roberta.contextLength;
  }
  get padTokenId(): number {
    return this.roberta.padTokenId;
  }
  forward(ids: Tensor, input: TextInput = {}): Tensor {
    return this.classifier.forward(this.roberta.forward(ids, input));
  }
}
