/**
 * Classifiers of texts on decoders, with the names of transformers' …ForSequenceClassification: a projection without bias of the state
 * of the last token that counts, which has seen all others. Attention is causal: what fills up behind changes nothing.
 */
import { ShapeError } from "../core/errors.ts";
import { type FactoryOptions, Linear, Module } from "../nn/index.ts";
import { randn, type Tensor } from "../tensor/index.ts";
import { Decoder, type DecoderConfig } from "./decoder.ts";
import { checkText, pool, type TextClassifier, type TextInput } from "./encoder.ts";
import { type GPT2Config, GPT2Transformer } from "./gpt2.ts";

/** What a decoder's head is asked for besides its configuration. */
export interface DecoderClassifierOptions extends FactoryOptions {
  /** The token that fills up: transformers finds a text's last token by it. null where the configuration has none. */
  readonly padTokenId?: number | null;
  /** Of the head's first weights. Default: 0.02. */
  readonly initializerRange?: number;
}

abstract class DecoderClassifier extends Module implements TextClassifier {
  readonly numLabels: number;
  readonly padTokenId: number;
  score: Linear;
  constructor(hiddenSize: number, numLabels: number, options: DecoderClassifierOptions) {
    super();
    const { padTokenId, initializerRange = 0.02, ...where } = options;
    this.numLabels = numLabels;
    this.padTokenId = padTokenId ?? 0;
    const weight = randn([numLabels, hiddenSize], where).mul(initializerRange);
    this.score = new Linear(hiddenSize, numLabels, { ...where, bias: false, weight });
  }
  abstract readonly contextLength: number;
  protected abstract hiddenStates(ids: Tensor): Tensor;

  /** Throws ShapeError where token types are given, which decoders do not tell apart. */
  forward(ids: Tensor, input: TextInput = {}): Tensor {
    checkText(this.constructor.name, ids, input, this.contextLength);
    if (input.tokenTypeIds)
      throw new ShapeError(`${this.constructor.name}: there are no token types; leave tokenTypeIds out`);
    return this.score.forward(pool(this.hiddenStates(ids), "last", input.attentionMask));
  }
}

/** Llama and its kin with a classifier: ids [batch, time] → logits [batch, numLabels]. */
export class CausalLMForSequenceClassification extends DecoderClassifier {
  readonly config: DecoderConfig;
  model: Decoder;
  constructor(config: DecoderConfig, numLabels: number, options: DecoderClassifierOptions = {}) {
    super(config.hiddenSize, numLabels, { initializerRange: config.initializerRange, ...options });
    const { padTokenId: _, initializerRange: __, ...where } = options;
    this.config = config;
    this.model = new Decoder(config, where);
  }
  get contextLength(): number {
    return this.config.contextLength;
  }
  protected hiddenStates(ids: Tensor): Tensor {
    return this.model.forward(ids);
  }
}

/** GPT-2 with a classifier: ids [batch, time] → logits [batch, numLabels]. */
export class GPT2ForSequenceClassification extends DecoderClassifier {
  readonly config: GPT2Config;
  transformer: GPT2Transformer;
  constructor(config: GPT2Config, numLabels: number, options: DecoderClassifierOptions = {}) {
    super(config.hiddenSize, numLabels, options);
    const { padTokenId: _, initializerRange: __, ...where } = options;
    this.config = config;
    this.transformer = new GPT2Transformer({ ...config, ...where });
  }
  get contextLength(): number {
    return this.config.contextLength;
  }
  protected hiddenStates(ids: Tensor): Tensor {
    return this.transformer.forward(ids);
  }
}
