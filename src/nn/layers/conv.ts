/** Convolution and pooling layers over [batch, channels, space…]; the work is in functional/conv.ts. */
import { ShapeError } from "../../core/errors.ts";
import { sizeOf } from "../../core/shape.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import * as F from "../functional/conv.ts";
import { fans, uniformLike } from "../init.ts";
import { Module } from "../module.ts";
import { Parameter } from "../parameter.ts";
import { expectSize, type FactoryOptions, made } from "./linear.ts";

type LayerOptions = FactoryOptions & { readonly bias?: boolean };

const kernelOf = (kernelSize: F.Sizes, rank: number): readonly number[] =>
  typeof kernelSize === "number" ? new Array<number>(rank).fill(kernelSize) : kernelSize;

function checkChannels(
  layer: string,
  inChannels: number,
  outChannels: number,
  groups: number,
  kernel: readonly number[],
  rank: number,
): void {
  expectSize(layer, "inChannels", inChannels);
  expectSize(layer, "outChannels", outChannels);
  expectSize(layer, "groups", groups);
  if (kernel.length !== rank)
    throw new ShapeError(`${layer}: kernelSize must be a number or ${rank} of them, got [${kernel.join(", ")}]`);
  for (const k of kernel) expectSize(layer, "kernelSize", k);
  if (inChannels % groups !== 0 || outChannels % groups !== 0)
    throw new ShapeError(
      `${layer}: ${groups} groups must divide ${inChannels} channels in and ${outChannels} channels out`,
    );
}

/** What the convolutions of all ranks share: uniform within ±1 / √(inputs of a unit), as torch's default. */
abstract class Convolution extends Module {
  readonly inChannels: number;
  readonly outChannels: number;
  readonly kernelSize: readonly number[];
  readonly options: F.ConvOptions;
  /** [outChannels, inChannels / groups, kernel…] */
  weight: Parameter;
  /** [outChannels] */
  bias: Parameter | null;
  constructor(
    rank: number,
    inChannels: number,
    outChannels: number,
    kernelSize: F.Sizes,
    options: F.ConvOptions & LayerOptions,
  ) {
    super();
    const { stride, padding, dilation, groups = 1, bias = true } = options;
    const kernel = kernelOf(kernelSize, rank);
    checkChannels(this.constructor.name, inChannels, outChannels, groups, kernel, rank);
    this.inChannels = inChannels;
    this.outChannels = outChannels;
    this.kernelSize = kernel;
    this.options = {
      ...(stride === undefined ? {} : { stride }),
      ...(padding === undefined ? {} : { padding }),
      ...(dilation === undefined ? {} : { dilation }),
      groups,
    };
    const shape = [outChannels, inChannels / groups, ...kernel];
    const bound = 1 / Math.sqrt(fans(shape).fanIn);
    this.weight = new Parameter(uniformLike(shape, -bound, bound, made(options)));
    this.bias = bias ? new Parameter(uniformLike([outChannels], -bound, bound, made(options))) : null;
  }
  override extraRepr(): string {
    const { stride = 1, padding = 0 } = this.options;
    return `${this.inChannels}, ${this.outChannels}, kernelSize=${JSON.stringify(this.kernelSize)}, stride=${JSON.stringify(stride)}, padding=${JSON.stringify(padding)}`;
  }
}

/** [N, inChannels, L] → [N, outChannels, Lout] (torch.nn.Conv1d). */
export class Conv1d extends Convolution {
  constructor(
    inChannels: number,
    outChannels: number,
    kernelSize: F.Sizes,
    options: F.ConvOptions & LayerOptions = {},
  ) {
    super(1, inChannels, outChannels, kernelSize, options);
  }
  forward(x: Tensor): Tensor {
    return F.conv1d(x, this.weight, this.bias, this.options);
  }
}

/** [N, inChannels, H, W] → [N, outChannels, Hout, Wout] (torch.nn.Conv2d). */
export class Conv2d extends Convolution {
  constructor(
    inChannels: number,
    outChannels: number,
    kernelSize: F.Sizes,
    options: F.ConvOptions & LayerOptions = {},
  ) {
    super(2, inChannels, outChannels, kernelSize, options);
  }
  forward(x: Tensor): Tensor {
    return F.conv2d(x, this.weight, this.bias, this.options);
  }
}

/** The adjoint of Conv2d: [N, inChannels, H, W] → [N, outChannels, Hout, Wout], larger by the stride (torch.nn.ConvTranspose2d). */
export class ConvTranspose2d extends Module {
  readonly options: F.ConvTransposeOptions;
  /** [inChannels, outChannels / groups, kernel…] */
  weight: Parameter;
  bias: Parameter | null;
  constructor(
    inChannels: number,
    outChannels: number,
    kernelSize: F.Sizes,
    options: F.ConvTransposeOptions & LayerOptions = {},
  ) {
    super();
    const { stride = 1, padding = 0, outputPadding = 0, dilation = 1, groups = 1, bias = true } = options;
    const kernel = kernelOf(kernelSize, 2);
    checkChannels("ConvTranspose2d", inChannels, outChannels, groups, kernel, 2);
    this.options = { stride, padding, outputPadding, dilation, groups };
    const shape = [inChannels, outChannels / groups, ...kernel];
    const bound = 1 / Math.sqrt((outChannels / groups) * sizeOf(kernel));
    this.weight = new Parameter(uniformLike(shape, -bound, bound, made(options)));
    this.bias = bias ? new Parameter(uniformLike([outChannels], -bound, bound, made(options))) : null;
  }
  forward(x: Tensor): Tensor {
    return F.convTranspose2d(x, this.weight, this.bias, this.options);
  }
}

/** A layer that pools windows of `kernelSize`; without a stride they lie side by side. */
abstract class Pool<O extends F.PoolOptions> extends Module {
  readonly kernelSize: F.Sizes;
  readonly options: O;
  constructor(kernelSize: F.Sizes, options: O) {
    super();
    this.kernelSize = kernelSize;
    this.options = options;
  }
  override extraRepr(): string {
    return `kernelSize=${JSON.stringify(this.kernelSize)}, stride=${JSON.stringify(this.options.stride ?? this.kernelSize)}, padding=${JSON.stringify(this.options.padding ?? 0)}`;
  }
}

/** The maximum of each window of [N, C, H, W] (torch.nn.MaxPool2d). */
export class MaxPool2d extends Pool<F.MaxPoolOptions> {
  constructor(kernelSize: F.Sizes, options: F.MaxPoolOptions = {}) {
    super(kernelSize, options);
  }
  forward(x: Tensor): Tensor {
    return F.maxPool2d(x, this.kernelSize, this.options);
  }
}
/** The maximum of each window of [N, C, L] (torch.nn.MaxPool1d). */
export class MaxPool1d extends Pool<F.MaxPoolOptions> {
  constructor(kernelSize: F.Sizes, options: F.MaxPoolOptions = {}) {
    super(kernelSize, options);
  }
  forward(x: Tensor): Tensor {
    return F.maxPool1d(x, this.kernelSize, this.options);
  }
}
/** The mean of each window of [N, C, H, W] (torch.nn.AvgPool2d). */
export class AvgPool2d extends Pool<F.AvgPoolOptions> {
  constructor(kernelSize: F.Sizes, options: F.AvgPoolOptions = {}) {
    super(kernelSize, options);
  }
  forward(x: Tensor): Tensor {
    return F.avgPool2d(x, this.kernelSize, this.options);
  }
}
/** The mean of each window of [N, C, L] (torch.nn.AvgPool1d). */
export class AvgPool1d extends Pool<F.AvgPoolOptions> {
  constructor(kernelSize: F.Sizes, options: F.AvgPoolOptions = {}) {
    super(kernelSize, options);
  }
  forward(x: Tensor): Tensor {
    return F.avgPool1d(x, this.kernelSize, this.options);
  }
}
/** Means over a grid of `outputSize` cells, whatever the input's size (torch.nn.AdaptiveAvgPool2d). */
export class AdaptiveAvgPool2d extends Module {
  readonly outputSize: F.Sizes;
  constructor(outputSize: F.Sizes) {
    super();
    this.outputSize = outputSize;
  }
  forward(x: Tensor): Tensor {
    return F.adaptiveAvgPool2d(x, this.outputSize);
  }
}
