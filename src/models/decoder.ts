/**
 * The decoder that most open language models are: Llama (Touvron et al. 2023) and its kin, with Hugging Face's module names, so
 * that the keys of a state dict equal the checkpoint's. What distinguishes them is data, a DecoderConfig, which
 * `decoder-config.ts` makes from each one's `config.json`. Reads from top to bottom: configuration, attention, feed-forward,
 * block, model.
 */
import type { DType } from "../core/dtype.ts";
import { ShapeError } from "../core/errors.ts";
import { showShape } from "../core/shape.ts";
import { dynamicSlice, scalar } from "../graph/ops.ts";
import * as F from "../nn/functional.ts";
import { Embedding, type FactoryOptions, Linear, Module, ModuleList, RMSNorm } from "../nn/index.ts";
import { checkpoint, randn, Tensor } from "../tensor/index.ts";
import { type ActivationName, activations } from "./activations.ts";
import { attend, DecoderContext } from "./attention.ts";
import { BlockEmbedding, BlockLinear } from "./blocks.ts";
import { type CachePlace, type CreateCacheOptions, KeyValueCache } from "./cache.ts";
import { GemmaRMSNorm } from "./gemma-norm.ts";
import { logitPieces } from "./logits.ts";
import type { Packing } from "./packing.ts";
import { decodingStep, type StepKind } from "./replay.ts";
import { Rotary, type RotaryConfig, rotate } from "./rotary.ts";

/** What distinguishes one layer from another. */
export interface LayerConfig {
  /** A token sees itself and the window − 1 tokens before it; null: all. */
  readonly window: number | null;
  /** null: queries and keys are not turned (Yang et al. 2025, RoPE to NoPE and Back Again). */
  readonly rotary: RotaryConfig | null;
}

export interface DecoderConfig {
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly numHeads: number;
  /** Fewer than heads: groups of heads share keys and values (Ainslie et al. 2023, GQA). */
  readonly numKeyValueHeads: number;
  readonly headDim: number;
  /** The most tokens that the model sees at once. */
  readonly contextLength: number;
  readonly layers: readonly LayerConfig[];
  readonly activation: ActivationName;
  readonly normEps: number;
  /** Gemma's norms: the weight is what the factor is above 1. */
  readonly zeroCentredNorms: boolean;
  /** Gemma 2 and 3: what a branch gives is normalised too before it is added. */
  readonly sandwichNorms: boolean;
  /** Queries and keys are normalised, each head by itself (Henry et al. 2020, Query-Key Normalization). */
  readonly queryKeyNorms: boolean;
  /** Biases of the query, key and value projections, of the output projection, and of the feed-forward part. */
  readonly bias: { readonly qkv: boolean; readonly out: boolean; readonly mlp: boolean };
  /** Phi-3: one matrix for query, key and value, and one for gate and up. */
  readonly fusedProjections: boolean;
  /** On the token embeddings; Gemma: √hiddenSize. */
  readonly embeddingScale: number;
  /** On the scores; usually 1 / √headDim. */
  readonly attentionScale: number;
  /** cap · tanh(x / cap) of the scores, and of the logits (Gemma Team 2024, Gemma 2). */
  readonly attentionSoftcap: number | null;
  readonly logitSoftcap: number | null;
  readonly attentionDropout: number;
  /** The head is the token embedding (Press & Wolf 2017). */
  readonly tieEmbeddings: boolean;
  /** Standard deviation of the weights at the start. */
  readonly initializerRange: number;
}

const project = (
  inputs: number,
  outputs: number,
  bias: boolean,
  config: DecoderConfig,
  where: FactoryOptions,
): Linear =>
  new Linear(inputs, outputs, {
    bias,
    ...where,
    weight: randn([outputs, inputs], where).mul(config.initializerRange),
  });

const norm = (
  width: number,
  { normEps: eps, zeroCentredNorms }: DecoderConfig,
  where: FactoryOptions,
): Module & Norm =>
  zeroCentredNorms ? new GemmaRMSNorm(width, { eps, ...where }) : new RMSNorm(width, { eps, ...where });

interface Norm {
  forward(x: Tensor): Tensor;
}

class Attention extends Module {
  static override readonly isPure = true;
  readonly config: DecoderConfig;
  readonly index: number;
  q_proj?: Linear;
  k_proj?: Linear;
  v_proj?: Linear;
  /** Phi-3: the three side by side, [(heads + 2 · key-value heads) · headDim, hiddenSize]. */
  qkv_proj?: Linear;
  o_proj: Linear;
  q_norm?: Module & Norm;
  k_norm?: Module & Norm;
  constructor(config: DecoderConfig, index: number, where: FactoryOptions) {
    super();
    this.config = config;
    this.index = index;
    const { hiddenSize, numHeads, numKeyValueHeads, headDim, bias } = config;
    const [queries, keys] = [numHeads * headDim, numKeyValueHeads * headDim];
    if (config.fusedProjections) this.qkv_proj = project(hiddenSize, queries + 2 * keys, bias.qkv, config, where);
    else {
      this.q_proj = project(hiddenSize, queries, bias.qkv, config, where);
      this.k_proj = project(hiddenSize, keys, bias.qkv, config, where);
      this.v_proj = project(hiddenSize, keys, bias.qkv, config, where);
    }
    this.o_proj = project(queries, hiddenSize, bias.out, config, where);
    if (config.queryKeyNorms) {
      this.q_norm = norm(headDim, config, where);
      this.k_norm = norm(headDim, config, where);
    }
  }

  /** Queries [batch, time, heads, headDim], keys and values [batch, time, key-value heads, headDim]. */
  #projections(x: Tensor): [Tensor, Tensor, Tensor] {
    const { numHeads, numKeyValueHeads, headDim } = this.config;
    const heads = (y: Tensor): Tensor => y.unflatten(2, [y.shape[2] / headDim, headDim]);
    if (!this.qkv_proj)
      return [this.q_proj!.forward(x), this.k_proj!.forward(x), this.v_proj!.forward(x)].map(heads) as [
        Tensor,
        Tensor,
        Tensor,
      ];
    const [queries, keys] = [numHeads * headDim, numKeyValueHeads * headDim];
    const qkv = this.qkv_proj.forward(x);
    return [
      heads(qkv.narrow(2, 0, queries)),
      heads(qkv.narrow(2, queries, keys)),
      heads(qkv.narrow(2, queries + keys, keys)),
    ];
  }

  forward(x: Tensor, context: DecoderContext): Tensor {
    const { config, index } = this;
    let [q, k, v] = this.#projections(x);
    if (this.q_norm) q = this.q_norm.forward(q);
    if (this.k_norm) k = this.k_norm.forward(k);
    const rotation = context.rotations[index];
    if (rotation) [q, k] = [rotate(q, rotation), rotate(k, rotation)];
    const y = attend(q, k, v, context, {
      layer: index,
      scale: config.attentionScale,
      window: config.layers[index].window,
      softcap: config.attentionSoftcap,
      dropoutP: this.training ? config.attentionDropout : 0,
    }); // [batch, time, heads, headDim]
    return this.o_proj.forward(y.flatten(2));
  }
}

/** down(activation(gate(x)) · up(x)) (Shazeer 2020, GLU Variants Improve Transformer). */
class FeedForward extends Module {
  static override readonly isPure = true;
  readonly activation: ActivationName;
  gate_proj?: Linear;
  up_proj?: Linear;
  /** Phi-3: gate and up side by side. */
  gate_up_proj?: Linear;
  down_proj: Linear;
  constructor(config: DecoderConfig, where: FactoryOptions) {
    super();
    const { hiddenSize, intermediateSize, bias } = config;
    this.activation = config.activation;
    if (config.fusedProjections) this.gate_up_proj = project(hiddenSize, 2 * intermediateSize, bias.mlp, config, where);
    else {
      this.gate_proj = project(hiddenSize, intermediateSize, bias.mlp, config, where);
      this.up_proj = project(hiddenSize, intermediateSize, bias.mlp, config, where);
    }
    this.down_proj = project(intermediateSize, hiddenSize, bias.mlp, config, where);
  }
  forward(x: Tensor): Tensor {
    const [gate, up] = this.gate_up_proj
      ? this.gate_up_proj.forward(x).chunk(2, -1)
      : [this.gate_proj!.forward(x), this.up_proj!.forward(x)];
    return this.down_proj.forward(activations[this.activation](gate).mul(up));
  }
}

class Block extends Module {
  static override readonly isPure = true;
  self_attn: Attention;
  mlp: FeedForward;
  input_layernorm: Module & Norm;
  /** Before the feed-forward part; with sandwich norms, behind attention. */
  post_attention_layernorm: Module & Norm;
  pre_feedforward_layernorm?: Module & Norm;
  post_feedforward_layernorm?: Module & Norm;
  constructor(config: DecoderConfig, index: number, where: FactoryOptions) {
    super();
    this.self_attn = new Attention(config, index, where);
    this.mlp = new FeedForward(config, where);
    this.input_layernorm = norm(config.hiddenSize, config, where);
    this.post_attention_layernorm = norm(config.hiddenSize, config, where);
    if (!config.sandwichNorms) return;
    this.pre_feedforward_layernorm = norm(config.hiddenSize, config, where);
    this.post_feedforward_layernorm = norm(config.hiddenSize, config, where);
  }
  /** x [batch, time, hiddenSize] → the same shape. */
  forward(x: Tensor, context: DecoderContext): Tensor {
    const { pre_feedforward_layernorm: before, post_feedforward_layernorm: behind } = this;
    const attended = this.self_attn.forward(this.input_layernorm.forward(x), context);
    if (!before || !behind) {
      x = x.add(attended);
      return x.add(this.mlp.forward(this.post_attention_layernorm.forward(x)));
    }
    x = x.add(this.post_attention_layernorm.forward(attended));
    return x.add(behind.forward(this.mlp.forward(before.forward(x))));
  }
}

export class Decoder extends Module {
  static override readonly isPure = true;
  readonly config: DecoderConfig;
  /** [vocabSize, hiddenSize]; the head's weight too where they are tied. */
  embed_tokens: Embedding | BlockEmbedding;
  layers: ModuleList<Block>;
  norm: Module & Norm;
  /** One a layer; layers with the same parameters share it. */
  readonly rotaries: readonly (Rotary | null)[];
  /** Each of them once. */
  readonly #kinds: readonly Rotary[];
  recompute = false;
  constructor(config: DecoderConfig, where: FactoryOptions) {
    super();
    const { vocabSize, hiddenSize, layers, initializerRange } = config;
    this.config = config;
    this.embed_tokens = new Embedding(vocabSize, hiddenSize, {
      weight: randn([vocabSize, hiddenSize], where).mul(initializerRange),
    });
    this.layers = new ModuleList(layers.map((_, i) => new Block(config, i, where)));
    this.norm = norm(hiddenSize, config, where);
    const shared = new Map<RotaryConfig, Rotary>();
    this.rotaries = layers.map(({ rotary }) => {
      if (!rotary) return null;
      if (!shared.has(rotary)) shared.set(rotary, new Rotary(rotary));
      return shared.get(rotary) as Rotary;
    });
    this.#kinds = [...shared.values()];
  }
  /** The angles' tables that a step to `length` tokens reads. */
  tables(length: number, device: string): Tensor[] {
    return this.#kinds.map((rotary) => rotary.at(length, device).values);
  }
  /** Whether a text that grows from `from` to `to` tokens has to be read again, since its keys are turned otherwise. */
  readsAgain(from: number, to: number): boolean {
    return this.#kinds.some(({ config: { scaling } }) => scaling.readsAgain && scaling.key(from) !== scaling.key(to));
  }
  /** ids [batch, time] → the last block's normalised states [batch, time, hiddenSize]. */
  forward(ids: Tensor, place: CachePlace | null = null, packing: Packing | null = null): Tensor {
    const { embeddingScale } = this.config;
    let x = this.embed_tokens.forward(ids);
    // the scale is rounded to the weights' dtype, as it was in training
    if (embeddingScale !== 1) x = x.mul(new Tensor(scalar(embeddingScale, x.dtype)));
    const context = new DecoderContext(x, this.rotaries, place, packing);
    const again = this.recompute && this.training;
    for (const block of this.layers)
      x = again ? checkpoint((h) => block.forward(h, context), x) : block.forward(x, context);
    return this.norm.forward(x);
  }
}

/** The language model: token ids in, logits or a loss out. */
export class CausalLM extends Module {
  static override readonly isPure = true;
  readonly config: DecoderConfig;
  model: Decoder;
  /** null where the head is the token embedding. */
  lm_head: Linear | null;
  constructor(config: DecoderConfig, options: FactoryOptions = {}) {
    super();
    this.config = config;
    this.model = new Decoder(config, options);
    this.lm_head = config.tieEmbeddings ? null : project(config.hiddenSize, config.vocabSize, false, config, options);
  }

  /** Tables that are read by more than their own forward: a head that is the token embedding. */
  get tiedEmbeddings(): readonly string[] {
    return this.lm_head ? [] : ["model.embed_tokens"];
  }
  /** Whether forward takes a `packing`. */
  readonly supportsPacking = true;

  get contextLength(): number {
    return this.config.contextLength;
  }
  get vocabSize(): number {
    return this.config.vocabSize;
  }
  /**
   * Whether training keeps only what goes from block to block and computes the rest again for the gradient (Chen et al. 2016; transformers'
   * gradient_checkpointing): a third more work, a fraction of the memory, the same numbers.
   */
  get recompute(): boolean {
    return this.model.recompute;
  }
  set recompute(on: boolean) {
    this.model.recompute = on;
  }
  get dtype(): DType {
    return this.model.embed_tokens.weight.dtype;
  }
  /** [vocabSize, hiddenSize] */
  get headWeight(): Tensor {
    return this.lm_head?.weight ?? this.model.embed_tokens.weight;
  }

  /** The last block's normalised states [batch, time, hiddenSize] of integer ids [batch, time]. */
  hiddenStates(ids: Tensor, packing?: Packing): Tensor {
    const { contextLength } = this.config;
    if (ids.ndim !== 2 || ids.shape[1] > contextLength || ids.shape[1] === 0)
      throw new ShapeError(
        `CausalLM: ids must be [batch, time] with 1 … ${contextLength} tokens, got ${showShape(ids.shape)}`,
      );
    return this.model.forward(ids, null, packing ?? null);
  }

  /** States [rows…, hiddenSize] → logits [rows…, vocabSize]. */
  logitsOf(hidden: Tensor): Tensor {
    const { logitSoftcap: cap } = this.config;
    const { embed_tokens } = this.model;
    const tied = (): Tensor =>
      embed_tokens instanceof BlockEmbedding ? embed_tokens.project(hidden) : F.linear(hidden, embed_tokens.weight);
    const logits = this.lm_head ? this.lm_head.forward(hidden) : tied();
    return cap === null ? logits : logits.div(cap).tanh().mul(cap);
  }

  /**
   * ids [batch, time] → logits [batch, time, vocabSize]; with targets [batch, time] (−100: does not count) the mean
   * cross-entropy in nats, float32 whatever the weights are, for which large logits never exist as a whole. `packing` tells of several examples in a row.
   */
  forward(ids: Tensor, targets?: Tensor, packing?: Packing): Tensor {
    const { vocabSize, logitSoftcap } = this.config;
    const hidden = this.hiddenStates(ids, packing);
    if (targets === undefined) return this.logitsOf(hidden);
    // an adapter may stand in the head's place: then it is asked, not its weight
    const head: Module | null = this.lm_head;
    const plain = logitSoftcap === null && (head === null || head instanceof Linear || head instanceof BlockLinear);
    if (plain && logitPieces(ids.size, vocabSize) > 1)
      return F.linearCrossEntropy(hidden, this.headWeight, targets, { wide: true });
    return F.crossEntropy(this.logitsOf(hidden.flatten(0, 1)).to("float32"), targets.flatten());
  }

  /** The logits [batch, vocabSize] after position `position` of ids [batch, time]; the position compiles nothing anew. */
  logitsAt(ids: Tensor, position: number): Tensor {
    return this.logitsOf(rowAt(this.hiddenStates(ids), position));
  }

  /** An empty cache for `batchSize` sequences of up to `capacity` tokens (default: the context). */
  createCache(options: CreateCacheOptions = {}): KeyValueCache {
    const { numKeyValueHeads, headDim, layers } = this.config;
    const { dtype, device } = this.model.embed_tokens.weight;
    const size = { numLayers: layers.length, numKeyValueHeads, headDim };
    return new KeyValueCache({ batchSize: 1, capacity: this.contextLength, ...options, ...size, dtype, device });
  }

  /** Whether a text of `to` tokens has to be read again where the cache holds its first `from`; LongRoPE has a length at which it is so. */
  readsAgain(from: number, to: number): boolean {
    return this.model.readsAgain(from, to);
  }

  /**
   * Goes on with a text: ids [batch, time], the tokens behind those in the cache, → the logits [batch, vocabSize] after the
   * last of them. With `count` only the first `count` ids are text and the others fill up, so that texts of any length are
   * read in pieces of one length; `textLength` is then how long the text is that they are pieces of (default: what the cache holds with
   * these). Without gradients; the cache's memory is written by the next flush. Nothing compiles anew for another number of tokens in the
   * cache.
   */
  decode(ids: Tensor, cache: KeyValueCache, count?: number, textLength?: number): Tensor {
    return this.#step("decode", ids, cache, count, textLength);
  }

  /** As `decode`; the likeliest token [batch, 1] of each row, int32, in place of its logits; −1 where a logit is NaN. */
  decodeGreedy(ids: Tensor, cache: KeyValueCache, count?: number, textLength?: number): Tensor {
    return this.#step("decodeGreedy", ids, cache, count, textLength);
  }

  #step(
    kind: StepKind,
    ids: Tensor,
    cache: KeyValueCache,
    count = ids.shape[1],
    textLength = cache.length + count,
  ): Tensor {
    if (ids.ndim !== 2 || ids.shape[0] !== cache.batchSize || ids.shape[1] === 0)
      throw new ShapeError(
        `CausalLM.${kind}: ids must be [${cache.batchSize}, time], as the cache is, got ${showShape(ids.shape)}`,
      );
    cache.checkRoom(ids.shape[1]);
    const place = cache.place(ids.shape[1], textLength);
    const tables = () => this.model.tables(textLength, ids.device);
    return decodingStep({ model: this, kind, ids, place, tables }, count, () =>
      this.logitsOf(rowAt(this.model.forward(ids, place), count - 1)),
    );
  }
}

/** Row `position`, a runtime number, of x [batch, time, width] → [batch, width]. */
function rowAt(x: Tensor, position: number): Tensor {
  const [batch, time, width] = x.shape;
  if (!Number.isInteger(position) || position < 0 || position >= time)
    throw new ShapeError(`CausalLM: position ${position} is outside ${time} tokens`);
  const offsets = [0, position, 0].map((n) => scalar(n, "int32"));
  return new Tensor(dynamicSlice(x.node, offsets, [batch, 1, width])).flatten(0, 1);
}
