/** Normalising layers. Batch norm's running statistics are buffers, moved by assigns whether or not anybody reads them. */
import { ShapeError } from "../../core/errors.ts";
import { showShape } from "../../core/shape.ts";
import * as ops from "../../graph/ops.ts";
import { ones, zeros } from "../../tensor/create.ts";
import { type Tensor, write } from "../../tensor/tensor.ts";
import { batchNorm, groupNorm, layerNorm, rmsNorm } from "../functional/norm.ts";
import { Module } from "../module.ts";
import { Buffer, Parameter } from "../parameter.ts";
import { expectSize, type FactoryOptions, made } from "./linear.ts";

export interface BatchNormOptions extends FactoryOptions {
  readonly eps?: number;
  /** How far the running statistics move each time; null: they are the plain mean of all batches. Default: 0.1. */
  readonly momentum?: number | null;
  readonly affine?: boolean;
  readonly trackRunningStats?: boolean;
}

abstract class BatchNorm extends Module {
  static override readonly stateNames = {
    runningMean: "running_mean",
    runningVar: "running_var",
    numBatchesTracked: "num_batches_tracked",
  };
  readonly numFeatures: number;
  readonly eps: number;
  readonly momentum: number | null;
  weight: Parameter | null;
  bias: Parameter | null;
  runningMean: Buffer | null = null;
  runningVar: Buffer | null = null;
  /** int32 (PyTorch: int64): the number of batches seen in training. */
  numBatchesTracked: Buffer | null = null;
  constructor(numFeatures: number, options: BatchNormOptions = {}) {
    super();
    expectSize(this.constructor.name, "numFeatures", numFeatures);
    const { eps = 1e-5, momentum = 0.1, affine = true, trackRunningStats = true } = options;
    this.numFeatures = numFeatures;
    this.eps = eps;
    this.momentum = momentum;
    this.weight = affine ? new Parameter(ones([numFeatures], made(options))) : null;
    this.bias = affine ? new Parameter(zeros([numFeatures], made(options))) : null;
    if (trackRunningStats) {
      this.runningMean = new Buffer(zeros([numFeatures], made(options)));
      this.runningVar = new Buffer(ones([numFeatures], made(options)));
      const where = options.device === undefined ? {} : { device: options.device };
      this.numBatchesTracked = new Buffer(zeros([], { dtype: "int32", ...where }));
    }
  }
  protected normalized(x: Tensor, ranks: readonly number[]): Tensor {
    if (!ranks.includes(x.ndim) || x.shape[1] !== this.numFeatures)
      throw new ShapeError(
        `${this.constructor.name}: expected ${ranks.map((r) => showShape(["N", this.numFeatures, "H", "W"].slice(0, r) as never)).join(" or ")}, got ${showShape(x.shape)}`,
      );
    const { training, runningMean, runningVar, numBatchesTracked, weight, bias, eps } = this;
    let momentum: number | Tensor = this.momentum ?? 0;
    if (training && numBatchesTracked) {
      write("batchNorm", numBatchesTracked, ops.add(numBatchesTracked.node, 1));
      if (this.momentum === null) momentum = numBatchesTracked.detach().to("float32").reciprocal();
    }
    return batchNorm(x, runningMean, runningVar, {
      weight,
      bias,
      eps,
      training: training || !runningMean,
      momentum,
    });
  }
  override extraRepr(): string {
    return `${this.numFeatures}, eps=${this.eps}, momentum=${this.momentum}, affine=${this.weight !== null}, trackRunningStats=${this.runningMean !== null}`;
  }
}

/** Normalises each channel of [N, C] or [N, C, L] (Ioffe & Szegedy 2015; torch.nn.BatchNorm1d). */
export class BatchNorm1d extends BatchNorm {
  forward(x: Tensor): Tensor {
    return this.normalized(x, [2, 3]);
  }
}
/** Normalises each channel of [N, C, H, W] (torch.nn.BatchNorm2d). */
export class BatchNorm2d extends BatchNorm {
  forward(x: Tensor): Tensor {
    return this.normalized(x, [4]);
  }
}

export interface LayerNormOptions extends FactoryOptions {
  readonly eps?: number;
  readonly elementwiseAffine?: boolean;
  readonly bias?: boolean;
}

/** Normalises over the last axes, those of `normalizedShape` (Ba et al. 2016; torch.nn.LayerNorm). */
export class LayerNorm extends Module {
  static override readonly isPure = true;
  readonly normalizedShape: readonly number[];
  readonly eps: number;
  weight: Parameter | null;
  bias: Parameter | null;
  constructor(normalizedShape: number | readonly number[], options: LayerNormOptions = {}) {
    super();
    const { eps = 1e-5, elementwiseAffine = true, bias = true } = options;
    this.normalizedShape = typeof normalizedShape === "number" ? [normalizedShape] : normalizedShape;
    for (const n of this.normalizedShape) expectSize("LayerNorm", "normalizedShape", n);
    this.eps = eps;
    this.weight = elementwiseAffine ? new Parameter(ones(this.normalizedShape, made(options))) : null;
    this.bias = elementwiseAffine && bias ? new Parameter(zeros(this.normalizedShape, made(options))) : null;
  }
  forward(x: Tensor): Tensor {
    const { weight, bias, eps } = this;
    return layerNorm(x, this.normalizedShape, { weight, bias, eps });
  }
  override extraRepr(): string {
    return `${showShape(this.normalizedShape)}, eps=${this.eps}, elementwiseAffine=${this.weight !== null}`;
  }
}

/** x / √(mean x² + eps) · weight over the last axes (Zhang & Sennrich 2019; torch.nn.RMSNorm). */
export class RMSNorm extends Module {
  static override readonly isPure = true;
  readonly normalizedShape: readonly number[];
  /** null: the machine epsilon of the input's dtype. */
  readonly eps: number | null;
  weight: Parameter | null;
  constructor(
    normalizedShape: number | readonly number[],
    options: FactoryOptions & { readonly eps?: number | null; readonly elementwiseAffine?: boolean } = {},
  ) {
    super();
    this.normalizedShape = typeof normalizedShape === "number" ? [normalizedShape] : normalizedShape;
    for (const n of this.normalizedShape) expectSize("RMSNorm", "normalizedShape", n);
    this.eps = options.eps ?? null;
    this.weight = (options.elementwiseAffine ?? true) ? new Parameter(ones(this.normalizedShape, made(options))) : null;
  }
  forward(x: Tensor): Tensor {
    return rmsNorm(x, this.normalizedShape, { weight: this.weight, eps: this.eps });
  }
  override extraRepr(): string {
    return `${showShape(this.normalizedShape)}, eps=${this.eps}, elementwiseAffine=${this.weight !== null}`;
  }
}

/** Normalises groups of channels of each sample (Wu & He 2018; torch.nn.GroupNorm). */
export class GroupNorm extends Module {
  readonly numGroups: number;
  readonly numChannels: number;
  readonly eps: number;
  weight: Parameter | null;
  bias: Parameter | null;
  constructor(
    numGroups: number,
    numChannels: number,
    options: FactoryOptions & { readonly eps?: number; readonly affine?: boolean } = {},
  ) {
    super();
    expectSize("GroupNorm", "numGroups", numGroups);
    if (numChannels % numGroups !== 0)
      throw new ShapeError(`GroupNorm: ${numGroups} groups must divide ${numChannels} channels`);
    const { eps = 1e-5, affine = true } = options;
    this.numGroups = numGroups;
    this.numChannels = numChannels;
    this.eps = eps;
    this.weight = affine ? new Parameter(ones([numChannels], made(options))) : null;
    this.bias = affine ? new Parameter(zeros([numChannels], made(options))) : null;
  }
  forward(x: Tensor): Tensor {
    const { weight, bias, eps } = this;
    return groupNorm(x, this.numGroups, { weight, bias, eps });
  }
}

/** Normalises each channel of each sample of [N, C, H, W] by itself; no parameters (torch.nn.InstanceNorm2d's defaults). */
export class InstanceNorm2d extends Module {
  readonly numFeatures: number;
  readonly eps: number;
  constructor(numFeatures: number, options: { readonly eps?: number } = {}) {
    super();
    expectSize("InstanceNorm2d", "numFeatures", numFeatures);
    this.numFeatures = numFeatures;
    this.eps = options.eps ?? 1e-5;
  }
  forward(x: Tensor): Tensor {
    if (x.shape[1] !== this.numFeatures)
      throw new ShapeError(
        `InstanceNorm2d: expected ${this.numFeatures} channels at axis 1, got ${showShape(x.shape)}`,
      );
    return groupNorm(x, this.numFeatures, { eps: this.eps });
  }
}
