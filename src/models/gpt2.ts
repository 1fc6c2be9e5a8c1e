/**
 * GPT-2 (Radford et al. 2019), with the names and layouts of Hugging Face's GPT2LMHeadModel: projections are stored as
 * [in, out], and the head is the token embedding. Reads from top to bottom: configuration, block, model, counts.
 */
import { ShapeError } from "../core/errors.ts";
import { showShape } from "../core/shape.ts";
import { dynamicSlice, minimum, scalar } from "../graph/ops.ts";
import * as F from "../nn/functional.ts";
import {
  Embedding,
  type FactoryOptions,
  LayerNorm,
  Module,
  ModuleList,
  Parameter,
  type StateDict,
} from "../nn/index.ts";
import { arange, checkpoint, randn, Tensor, zeros } from "../tensor/index.ts";
import { type ActivationName, activationNames, activations } from "./activations.ts";
import { attend, DecoderContext } from "./attention.ts";
import { type CachePlace, type CreateCacheOptions, KeyValueCache } from "./cache.ts";
import type { ConfigReader } from "./config.ts";
import { logitPieces } from "./logits.ts";
import type { Packing } from "./packing.ts";
import { decodingStep, type StepKind } from "./replay.ts";

export interface GPT2Config extends FactoryOptions {
  readonly vocabSize: number;
  /** The most tokens that the model sees at once. */
  readonly contextLength: number;
  readonly numLayers: number;
  readonly numHeads: number;
  readonly hiddenSize: number;
  /** Of the feed-forward part. Default: four times hiddenSize. */
  readonly intermediateSize?: number;
  /** Default: "gelu_new", the tanh form of GELU. */
  readonly activation?: ActivationName;
  /** Of embeddings, attention weights and both branches of a block, in training. Default: 0. */
  readonly dropout?: number;
  /** Of embeddings and of attention weights alone. Default: dropout. */
  readonly embeddingDropout?: number;
  readonly attentionDropout?: number;
  /** Whether projections and layer norms have biases. Default: true. */
  readonly bias?: boolean;
  /** Default: 1e-5. */
  readonly layerNormEps?: number;
  /** Standard deviation of the weights at the start. Default: 0.02. */
  readonly initializerRange?: number;
}

/** The configuration that a `config.json` of transformers' GPT-2 gives. */
export function gpt2ConfigOf(config: ConfigReader): GPT2Config {
  const hiddenSize = config.count("n_embd", 768);
  config.expect("scale_attn_weights", true, "scores are scaled by 1 / √width");
  config.expect("scale_attn_by_inverse_layer_idx", false, "scores are scaled by the width alone");
  config.expect("tie_word_embeddings", true, "the head is the token embedding");
  config.expect("add_cross_attention", false, "there is no encoder to attend to");
  return {
    vocabSize: config.count("vocab_size", 50257),
    contextLength: config.count("n_positions", 1024),
    numLayers: config.count("n_layer", 12),
    numHeads: config.count("n_head", 12),
    hiddenSize,
    intermediateSize: config.count("n_inner", 4 * hiddenSize),
    activation: config.choice("activation_function", activationNames(), "gelu_new"),
    dropout: config.number("resid_pdrop", 0.1),
    embeddingDropout: config.number("embd_pdrop", 0.1),
    attentionDropout: config.number("attn_pdrop", 0.1),
    layerNormEps: config.number("layer_norm_epsilon", 1e-5),
    initializerRange: config.number("initializer_range", 0.02),
  };
}

const innerSize = ({ intermediateSize, hiddenSize }: GPT2Config): number => intermediateSize ?? 4 * hiddenSize;

function check({ vocabSize, contextLength, numLayers, numHeads, hiddenSize }: GPT2Config): void {
  for (const [name, n] of Object.entries({ vocabSize, contextLength, numLayers, numHeads, hiddenSize }))
    if (!Number.isInteger(n) || n < 1) throw new ShapeError(`GPT2: ${name} must be a whole number ≥ 1, got ${n}`);
  if (hiddenSize % numHeads !== 0)
    throw new ShapeError(`GPT2: ${numHeads} heads do not divide a hidden size of ${hiddenSize}`);
}

const where = ({ dtype, device }: GPT2Config): FactoryOptions => ({
  ...(dtype === undefined ? {} : { dtype }),
  ...(device === undefined ? {} : { device }),
});

/** A projection stored as [in, out], as transformers' Conv1D. */
export class Projection extends Module {
  static override readonly isPure = true;
  weight: Parameter;
  bias: Parameter | null;
  constructor(inputs: number, outputs: number, std: number, config: GPT2Config) {
    super();
    this.weight = new Parameter(randn([inputs, outputs], where(config)).mul(std));
    this.bias = (config.bias ?? true) ? new Parameter(zeros([outputs], where(config))) : null;
  }
  forward(x: Tensor): Tensor {
    return F.conv1D(x, this.weight, this.bias);
  }
}

const norm = (config: GPT2Config): LayerNorm =>
  new LayerNorm(config.hiddenSize, { eps: config.layerNormEps ?? 1e-5, bias: config.bias ?? true, ...where(config) });

class Attention extends Module {
  static override readonly isPure = true;
  readonly numHeads: number;
  readonly dropout: number;
  readonly attentionDropout: number;
  c_attn: Projection;
  c_proj: Projection;
  constructor(config: GPT2Config, std: number, branchStd: number) {
    super();
    const { hiddenSize } = config;
    this.numHeads = config.numHeads;
    this.dropout = config.dropout ?? 0;
    this.attentionDropout = config.attentionDropout ?? this.dropout;
    this.c_attn = new Projection(hiddenSize, 3 * hiddenSize, std, config);
    this.c_proj = new Projection(hiddenSize, hiddenSize, branchStd, config);
  }
  /** With a context, the tokens of x stand behind those in its cache, of which this is layer `layer`, or are packed examples. */
  forward(x: Tensor, context: DecoderContext | null = null, layer = 0): Tensor {
    const p = this.training ? this.attentionDropout : 0;
    const qkv = this.c_attn.forward(x);
    const y = context
      ? this.#within(context, qkv, layer, p)
      : F.causalSelfAttention(qkv, this.numHeads, { dropoutP: p });
    return F.dropout(this.c_proj.forward(y), this.training ? this.dropout : 0);
  }
  #within(context: DecoderContext, qkv: Tensor, layer: number, dropoutP: number): Tensor {
    const width = qkv.shape[2] / (3 * this.numHeads);
    const [q, k, v] = qkv.unflatten(2, [3, this.numHeads, width]).unbind(2);
    const scale = 1 / Math.sqrt(width);
    return attend(q, k, v, context, { layer, scale, window: null, softcap: null, dropoutP }).flatten(2);
  }
}

class FeedForward extends Module {
  static override readonly isPure = true;
  readonly activation: ActivationName;
  readonly dropout: number;
  c_fc: Projection;
  c_proj: Projection;
  constructor(config: GPT2Config, std: number, branchStd: number) {
    super();
    const { hiddenSize } = config;
    this.dropout = config.dropout ?? 0;
    const inner = innerSize(config);
    this.activation = config.activation ?? "gelu_new";
    this.c_fc = new Projection(hiddenSize, inner, std, config);
    this.c_proj = new Projection(inner, hiddenSize, branchStd, config);
  }
  forward(x: Tensor): Tensor {
    const y = this.c_proj.forward(activations[this.activation](this.c_fc.forward(x)));
    return F.dropout(y, { p: this.dropout, training: this.training });
  }
}

class Block extends Module {
  static override readonly isPure = true;
  ln_1: LayerNorm;
  attn: Attention;
  ln_2: LayerNorm;
  mlp: FeedForward;
  constructor(config: GPT2Config) {
    super();
    const std = config.initializerRange ?? 0.02;
    // two branches a block add up along the depth: their last projections start smaller
    const branchStd = std / Math.sqrt(2 * config.numLayers);
    this.ln_1 = norm(config);
    this.attn = new Attention(config, std, branchStd);
    this.ln_2 = norm(config);
    this.mlp = new FeedForward(config, std, branchStd);
  }
  forward(x: Tensor, context: DecoderContext | null = null, layer = 0): Tensor {
    x = x.add(this.attn.forward(this.ln_1.forward(x), context, layer));
    return x.add(this.mlp.forward(this.ln_2.forward(x)));
  }
}

export class GPT2Transformer extends Module {
  static override readonly isPure = true;
  readonly dropout: number;
  readonly contextLength: number;
  recompute = false;
  /** Token embeddings [vocabSize, hiddenSize]; the head's weight too. */
  wte: Embedding;
  /** Position embeddings [contextLength, hiddenSize]. */
  wpe: Embedding;
  h: ModuleList<Block>;
  ln_f: LayerNorm;
  constructor(config: GPT2Config) {
    super();
    const { vocabSize, contextLength, hiddenSize, initializerRange: std = 0.02 } = config;
    const table = (rows: number): Embedding =>
      new Embedding(rows, hiddenSize, { weight: randn([rows, hiddenSize], where(config)).mul(std) });
    this.dropout = config.embeddingDropout ?? config.dropout ?? 0;
    this.contextLength = contextLength;
    this.wte = table(vocabSize);
    this.wpe = table(contextLength);
    this.h = new ModuleList(Array.from({ length: config.numLayers }, () => new Block(config)));
    this.ln_f = norm(config);
  }
  /** ids [batch, time] → hidden states [batch, time, hiddenSize]; with a cache, of tokens behind those in it. */
  forward(ids: Tensor, place: CachePlace | null = null, packing: Packing | null = null): Tensor {
    const tokens = this.wte.forward(ids);
    const context = place || packing ? new DecoderContext(tokens, [], place, packing) : null;
    const x = tokens.add(this.#places(ids.shape[1], context));
    let hidden = F.dropout(x, { p: this.dropout, training: this.training });
    for (let i = 0; i < this.h.length; i++) {
      const block = (x: Tensor): Tensor => this.h[i].forward(x, context, i);
      hidden = this.recompute && this.training ? checkpoint(block, hidden) : block(hidden);
    }
    return this.ln_f.forward(hidden);
  }
  /** The embeddings of the positions. An adapter may stand in the table's place: then it is asked, not its weight. */
  #places(time: number, context: DecoderContext | null): Tensor {
    // what fills up a piece of text may stand behind the last position
    if (context) return this.wpe.forward(new Tensor(minimum(context.positions, this.contextLength - 1)).flatten(-3));
    const table: Module = this.wpe;
    if (table instanceof Embedding) return table.weight.narrow(0, 0, time);
    return this.wpe.forward(arange(time, { dtype: "int32" }));
  }
}

/** The language model: token ids in, logits or a loss out. */
export class GPT2 extends Module {
  static override readonly isPure = true;
  readonly config: GPT2Config;
  transformer: GPT2Transformer;
  constructor(config: GPT2Config) {
    super();
    check(config);
    this.config = config;
    this.transformer = new GPT2Transformer(config);
  }

  /** Tables that are read by more than their own forward: the head's weight is the token embedding. */
  readonly tiedEmbeddings = ["transformer.wte"];

  /** Whether forward takes a `packing`. */
  readonly supportsPacking = true;

  get contextLength(): number {
    return this.config.contextLength;
  }
  get vocabSize(): number {
    return this.config.vocabSize;
  }
  /** Whether training computes each block again for the gradient instead of keeping what is in it; see CausalLM. */
  get recompute(): boolean {
    return this.transformer.recompute;
  }
  set recompute(on: boolean) {
    this.transformer.recompute = on;
  }

  /** The last layer's normalised states [batch, time, hiddenSize] of integer ids [batch, time]. */
  hiddenStates(ids: Tensor, packing?: Packing): Tensor {
    const { contextLength } = this.config;
    if (ids.ndim !== 2 || ids.shape[1] > contextLength || ids.shape[1] === 0)
      throw new ShapeError(
        `GPT2: ids must be [batch, time] with 1 … ${contextLength} tokens, got ${showShape(ids.shape)}`,
      );
    return this.transformer.forward(ids, null, packing ?? null);
  }

  /**
   * ids [batch, time] → logits [batch, time, vocabSize]; with targets [batch, time] (−100: does not count) the mean
   * cross-entropy in nats, float32 whatever the weights are, for which large logits never exist as a whole. `packing` tells of several examples in a row.
   */
  forward(ids: Tensor, targets?: Tensor, packing?: Packing): Tensor {
    const hidden = this.hiddenStates(ids, packing);
    const head = this.transformer.wte.weight;
    if (targets === undefined) return F.linear(hidden, head);
    if (logitPieces(ids.size, this.config.vocabSize) > 1)
      return F.linearCrossEntropy(hidden, head, targets, { wide: true });
    return F.crossEntropy(F.linear(hidden.flatten(0, 1), head).to("float32"), targets.flatten());
  }

  /** States [rows…, hiddenSize] → logits [rows…, vocabSize]. */
  logitsOf(hidden: Tensor): Tensor {
    return F.linear(hidden, this.transformer.wte.weight);
  }

  /** The logits [batch, vocabSize] after position `position` of ids [batch, time]; the position compiles nothing anew. */
  logitsAt(ids: Tensor, position: number): Tensor {
    return F.linear(this.#row(this.hiddenStates(ids), position), this.transformer.wte.weight);
  }

  /** Row `position` of hidden states [batch, time, hiddenSize] → [batch, hiddenSize]. */
  #row(hidden: Tensor, position: number): Tensor {
    const [batch, time, width] = hidden.shape;
    if (!Number.isInteger(position) || position < 0 || position >= time)
      throw new ShapeError(`GPT2: position ${position} is outside ids [${batch}, ${time}]`);
    const offsets = [0, position, 0].map((n) => scalar(n, "int32"));
    return new Tensor(dynamicSlice(hidden.node, offsets, [batch, 1, width])).flatten(0, 1);
  }

  /** An empty cache for `batchSize` sequences of up to `capacity` tokens (default: the context). */
  createCache(options: CreateCacheOptions = {}): KeyValueCache {
    const { numLayers, numHeads, hiddenSize } = this.config;
    const { dtype, device } = this.transformer.wte.weight;
    const size = { numLayers, numKeyValueHeads: numHeads, headDim: hiddenSize / numHeads };
    return new KeyValueCache({ batchSize: 1, capacity: this.contextLength, ...options, ...size, dtype, device });
  }

  /** The logits [batch, vocabSize] after the first `count` of ids [batch, time], which follow the cache's tokens; see CausalLM. */
  decode(ids: Tensor, cache: KeyValueCache, count?: number): Tensor {
    return this.#step("decode", ids, cache, count);
  }

  /** As `decode`; the likeliest token [batch, 1] of each row, int32, in place of its logits; −1 where a logit is NaN. */
  decodeGreedy(ids: Tensor, cache: KeyValueCache, count?: number): Tensor {
    return this.#step("decodeGreedy", ids, cache, count);
  }

  #step(kind: StepKind, ids: Tensor, cache: KeyValueCache, count = ids.shape[1]): Tensor {
    cache.checkRoom(ids.shape[1]);
    const place = cache.place(ids.shape[1]);
    return decodingStep({ model: this, kind, ids, place, tables: () => [] }, count, () =>
      F.linear(this.#row(this.transformer.forward(ids, place), count - 1), this.transformer.wte.weight),
    );
  }
}

/**
 * A state dict of Hugging Face's GPT-2, from any of its classes and ages, under the keys of GPT2: the prefix "transformer." is
 * added where it is missing; the tied head and the masks that old checkpoints hold are left out.
 */
export function adaptGPT2StateDict(stateDict: Readonly<StateDict>): StateDict {
  const out: StateDict = {};
  for (const [key, tensor] of Object.entries(stateDict)) {
    if (key === "lm_head.weight" || /\.attn\.(masked_)?bias$/.test(key)) continue;
    out[key.startsWith("transformer.") ? key : `transformer.${key}`] = tensor;
  }
  return out;
}

/** Number of parameters; the head is the token embedding and counts once. */
export function gpt2ParameterCount(config: GPT2Config): number {
  const { vocabSize, contextLength, numLayers, hiddenSize: d, bias = true } = config;
  const inner = innerSize(config);
  const block = 4 * d * d + 2 * d * inner + 2 * d + (bias ? 7 * d + inner : 0);
  return (vocabSize + contextLength) * d + numLayers * block + d + (bias ? d : 0);
}

/**
 * Floating-point operations of the matrix products of one training step (forward and backward, 2 a multiplication), with the
 * whole square of attention scores counted, as in Chowdhery et al. 2022, PaLM, appendix B.
 */
export function gpt2FlopsPerStep(
  config: GPT2Config,
  step: { readonly batchSize: number; readonly sequenceLength?: number },
): number {
  const { vocabSize, contextLength, numLayers, hiddenSize: d } = config;
  const { batchSize, sequenceLength: time = contextLength } = step;
  const block = 4 * d * d + 2 * d * innerSize(config);
  const perToken = 2 * (block * numLayers + vocabSize * d) + 4 * time * d * numLayers;
  return 3 * perToken * batchSize * time;
}
