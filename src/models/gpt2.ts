/**
 * GPT-2 (Radford et al. 2019), with the names and layouts of Hugging Face's GPT2LMHeadModel: projections are stored as
 * [in, out], and the head is the token embedding. Reads from top to bottom: configuration, block, model, counts.
 */
import { ShapeError } from "../core/errors.ts";
import { showShape, sizeOf } from "../core/shape.ts";
import { dynamicSlice, scalar } from "../graph/ops.ts";
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
import { arange, randn, Tensor, zeros } from "../tensor/index.ts";

export interface GPT2Config extends FactoryOptions {
  readonly vocabSize: number;
  /** The most tokens that the model sees at once. */
  readonly contextLength: number;
  readonly numLayers: number;
  readonly numHeads: number;
  readonly hiddenSize: number;
  /** Of embeddings, attention weights and both branches of a block, in training. Default: 0. */
  readonly dropout?: number;
  /** Whether projections and layer norms have biases. Default: true. */
  readonly bias?: boolean;
  /** Default: 1e-5. */
  readonly layerNormEps?: number;
  /** Standard deviation of the weights at the start. Default: 0.02. */
  readonly initializerRange?: number;
}

/** More logits than this are made and used a chunk of rows at a time: 64 MiB of float32. */
const mostLogits = 2 ** 24;

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

/**
 * Examples that lie one behind the other in a row, [batch, time] each: a token sees those before it of the same segment
 * only, and has the position that it has in its own example.
 */
export interface Packing {
  /** int32, equal within an example. */
  readonly segments: Tensor;
  /** int32, from 0 in each example. */
  readonly positions: Tensor;
}

/** A projection stored as [in, out], as transformers' Conv1D. */
export class Projection extends Module {
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
  readonly numHeads: number;
  readonly dropout: number;
  c_attn: Projection;
  c_proj: Projection;
  constructor(config: GPT2Config, std: number, branchStd: number) {
    super();
    const { hiddenSize } = config;
    this.numHeads = config.numHeads;
    this.dropout = config.dropout ?? 0;
    this.c_attn = new Projection(hiddenSize, 3 * hiddenSize, std, config);
    this.c_proj = new Projection(hiddenSize, hiddenSize, branchStd, config);
  }
  forward(x: Tensor, attnMask?: Tensor): Tensor {
    const p = this.training ? this.dropout : 0;
    const options = { dropoutP: p, ...(attnMask && { attnMask }) };
    const y = F.causalSelfAttention(this.c_attn.forward(x), this.numHeads, options);
    return F.dropout(this.c_proj.forward(y), p);
  }
}

class FeedForward extends Module {
  readonly dropout: number;
  c_fc: Projection;
  c_proj: Projection;
  constructor(config: GPT2Config, std: number, branchStd: number) {
    super();
    const { hiddenSize } = config;
    this.dropout = config.dropout ?? 0;
    this.c_fc = new Projection(hiddenSize, 4 * hiddenSize, std, config);
    this.c_proj = new Projection(4 * hiddenSize, hiddenSize, branchStd, config);
  }
  forward(x: Tensor): Tensor {
    const y = this.c_proj.forward(F.gelu(this.c_fc.forward(x), { approximate: "tanh" }));
    return F.dropout(y, { p: this.dropout, training: this.training });
  }
}

class Block extends Module {
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
  forward(x: Tensor, attnMask?: Tensor): Tensor {
    x = x.add(this.attn.forward(this.ln_1.forward(x), attnMask));
    return x.add(this.mlp.forward(this.ln_2.forward(x)));
  }
}

class Transformer extends Module {
  readonly dropout: number;
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
    this.dropout = config.dropout ?? 0;
    this.wte = table(vocabSize);
    this.wpe = table(contextLength);
    this.h = new ModuleList(Array.from({ length: config.numLayers }, () => new Block(config)));
    this.ln_f = norm(config);
  }
  /** ids [batch, time] → hidden states [batch, time, hiddenSize]. */
  forward(ids: Tensor, packing?: Packing): Tensor {
    let x = this.wte.forward(ids).add(this.#places(ids.shape[1], packing));
    x = F.dropout(x, { p: this.dropout, training: this.training });
    const mask = packing?.segments.unsqueeze(2).eq(packing.segments.unsqueeze(1)).unsqueeze(1);
    for (const block of this.h) x = block.forward(x, mask);
    return this.ln_f.forward(x);
  }
  /** The embeddings of the positions. An adapter may stand in the table's place: then it is asked, not its weight. */
  #places(time: number, packing?: Packing): Tensor {
    if (packing) return this.wpe.forward(packing.positions);
    const table: Module = this.wpe;
    if (table instanceof Embedding) return table.weight.narrow(0, 0, time);
    return this.wpe.forward(arange(time, { dtype: "int32" }));
  }
}

/** The language model: token ids in, logits or a loss out. */
export class GPT2 extends Module {
  readonly config: GPT2Config;
  transformer: Transformer;
  constructor(config: GPT2Config) {
    super();
    check(config);
    this.config = config;
    this.transformer = new Transformer(config);
  }

  /** Tables that are read by more than their own forward: the head's weight is the token embedding. */
  readonly tiedEmbeddings = ["transformer.wte"];

  /** Whether forward takes a `packing`. */
  readonly supportsPacking = true;

  get contextLength(): number {
    return this.config.contextLength;
  }

  /** The last layer's normalised states [batch, time, hiddenSize] of integer ids [batch, time]. */
  hiddenStates(ids: Tensor, packing?: Packing): Tensor {
    const { contextLength } = this.config;
    if (ids.ndim !== 2 || ids.shape[1] > contextLength || ids.shape[1] === 0)
      throw new ShapeError(
        `GPT2: ids must be [batch, time] with 1 … ${contextLength} tokens, got ${showShape(ids.shape)}`,
      );
    return this.transformer.forward(ids, packing);
  }

  /**
   * ids [batch, time] → logits [batch, time, vocabSize]; with targets [batch, time] (−100: does not count) the mean
   * cross-entropy in nats, for which large logits never exist as a whole. `packing` tells of several examples in a row.
   */
  forward(ids: Tensor, targets?: Tensor, packing?: Packing): Tensor {
    const hidden = this.hiddenStates(ids, packing);
    const head = this.transformer.wte.weight;
    if (targets === undefined) return F.linear(hidden, head);
    if (sizeOf(ids.shape) * this.config.vocabSize > mostLogits) return F.linearCrossEntropy(hidden, head, targets);
    return F.crossEntropy(F.linear(hidden.flatten(0, 1), head), targets.flatten());
  }

  /** The logits [batch, vocabSize] after position `position` of ids [batch, time]; the position compiles nothing anew. */
  logitsAt(ids: Tensor, position: number): Tensor {
    const [batch, time] = ids.shape;
    if (!Number.isInteger(position) || position < 0 || position >= time)
      throw new ShapeError(`GPT2: position ${position} is outside ids ${showShape(ids.shape)}`);
    const hidden = this.hiddenStates(ids);
    const offsets = [0, position, 0].map((n) => scalar(n, "int32"));
    const row = new Tensor(dynamicSlice(hidden.node, offsets, [batch, 1, this.config.hiddenSize]));
    return F.linear(row.flatten(0, 1), this.transformer.wte.weight);
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
  const block = 12 * d * d + 2 * d + (bias ? 11 * d : 0);
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
  const perToken = 2 * (12 * d * d * numLayers + vocabSize * d) + 4 * time * d * numLayers;
  return 3 * perToken * batchSize * time;
}
