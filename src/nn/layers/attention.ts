/** Causal self-attention as GPT's blocks have it: one projection to queries, keys and values, one back. */
import { ShapeError } from "../../core/errors.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { causalSelfAttention } from "../functional/attention.ts";
import { dropout } from "../functional/dropout.ts";
import { Module } from "../module.ts";
import { expectSize, type FactoryOptions, Linear } from "./linear.ts";

export interface CausalSelfAttentionOptions extends FactoryOptions {
  /** Of the attention weights and of the output, in training. Default: 0. */
  readonly dropout?: number;
  readonly bias?: boolean;
}

/** Each position attends to itself and those before: [batch, time, embedDim] → the same (Vaswani et al. 2017). */
export class CausalSelfAttention extends Module {
  readonly embedDim: number;
  readonly numHeads: number;
  readonly dropout: number;
  /** [3 · embedDim, embedDim]: queries, keys, values. */
  c_attn: Linear;
  c_proj: Linear;
  constructor(embedDim: number, numHeads: number, options: CausalSelfAttentionOptions = {}) {
    super();
    expectSize("CausalSelfAttention", "embedDim", embedDim);
    expectSize("CausalSelfAttention", "numHeads", numHeads);
    if (embedDim % numHeads !== 0)
      throw new ShapeError(`CausalSelfAttention: ${numHeads} heads do not divide a width of ${embedDim}`);
    this.embedDim = embedDim;
    this.numHeads = numHeads;
    this.dropout = options.dropout ?? 0;
    this.c_attn = new Linear(embedDim, 3 * embedDim, options);
    this.c_proj = new Linear(embedDim, embedDim, options);
  }
  forward(x: Tensor): Tensor {
    const p = this.training ? this.dropout : 0;
    const y = causalSelfAttention(this.c_attn.forward(x), this.numHeads, { dropoutP: p });
    return dropout(this.c_proj.forward(y), { p });
  }
}
