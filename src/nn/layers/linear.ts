/** Linear, Embedding, and the layers that only move: Identity, Flatten, Unflatten. */
import type { DType } from "../../core/dtype.ts";
import { ShapeError } from "../../core/errors.ts";
import { arange, zeros } from "../../tensor/create.ts";
import { randn } from "../../tensor/random.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { embedding, linear, paddingRow } from "../functional/linear.ts";
import { uniformLike } from "../init.ts";
import { Module } from "../module.ts";
import { Parameter } from "../parameter.ts";

/** Where a layer's parameters are made. */
export interface FactoryOptions {
  readonly dtype?: DType;
  readonly device?: string;
}

/** The options that `rand` and its kin take. */
export const made = ({ dtype, device }: FactoryOptions): FactoryOptions => ({
  ...(dtype === undefined ? {} : { dtype }),
  ...(device === undefined ? {} : { device }),
});

export function expectSize(layer: string, what: string, n: number): void {
  if (!Number.isInteger(n) || n < 1) throw new ShapeError(`${layer}: ${what} must be a whole number ≥ 1, got ${n}`);
}

export interface LinearOptions extends FactoryOptions {
  /** Default: true. */
  readonly bias?: boolean;
  /** The matrix to start with, instead of uniform numbers: a tensor of its own, [outFeatures, inFeatures]. The bias then starts at 0. */
  readonly weight?: Tensor;
}

function checkStart(layer: string, weight: Tensor | undefined, shape: readonly number[]): void {
  if (weight && weight.shape.join() !== shape.join())
    throw new ShapeError(`${layer}: the weight given is [${weight.shape.join(", ")}], expected [${shape.join(", ")}]`);
}

/**
 * x · weightᵀ + bias: [rows…, inFeatures] → [rows…, outFeatures] (torch.nn.Linear). Weight and bias start uniform within
 * ±1 / √inFeatures.
 */
export class Linear extends Module {
  static override readonly isPure = true;
  readonly inFeatures: number;
  readonly outFeatures: number;
  /** [outFeatures, inFeatures] */
  weight: Parameter;
  /** [outFeatures] */
  bias: Parameter | null;
  constructor(inFeatures: number, outFeatures: number, options: LinearOptions = {}) {
    super();
    expectSize("Linear", "inFeatures", inFeatures);
    expectSize("Linear", "outFeatures", outFeatures);
    this.inFeatures = inFeatures;
    this.outFeatures = outFeatures;
    const shape = [outFeatures, inFeatures];
    checkStart("Linear", options.weight, shape);
    const bound = 1 / Math.sqrt(inFeatures);
    this.weight = new Parameter(options.weight ?? uniformLike(shape, -bound, bound, made(options)));
    const bias = (): Tensor =>
      options.weight ? zeros([outFeatures], made(options)) : uniformLike([outFeatures], -bound, bound, made(options));
    this.bias = (options.bias ?? true) ? new Parameter(bias()) : null;
  }
  forward(x: Tensor): Tensor {
    return linear(x, this.weight, this.bias);
  }
  override extraRepr(): string {
    return `inFeatures=${this.inFeatures}, outFeatures=${this.outFeatures}, bias=${this.bias !== null}`;
  }
}

export interface EmbeddingOptions extends FactoryOptions {
  /** A row that starts at 0 and gets no gradient. */
  readonly paddingIdx?: number | null;
  /** The table to start with, instead of standard normal numbers: a tensor of its own, [numEmbeddings, embeddingDim]. */
  readonly weight?: Tensor;
}

/** A table of vectors, looked up by integers: [ids…] → [ids…, embeddingDim] (torch.nn.Embedding). */
export class Embedding extends Module {
  static override readonly isPure = true;
  readonly numEmbeddings: number;
  readonly embeddingDim: number;
  readonly paddingIdx: number | null;
  /** [numEmbeddings, embeddingDim] */
  weight: Parameter;
  constructor(numEmbeddings: number, embeddingDim: number, options: EmbeddingOptions = {}) {
    super();
    expectSize("Embedding", "numEmbeddings", numEmbeddings);
    expectSize("Embedding", "embeddingDim", embeddingDim);
    this.numEmbeddings = numEmbeddings;
    this.embeddingDim = embeddingDim;
    const padding = options.paddingIdx ?? null;
    this.paddingIdx = padding === null ? null : paddingRow(padding, numEmbeddings);
    const shape = [numEmbeddings, embeddingDim];
    checkStart("Embedding", options.weight, shape);
    let start = options.weight ?? randn(shape, made(options));
    if (this.paddingIdx !== null && !options.weight)
      start = start.maskedFill(arange(numEmbeddings).eq(this.paddingIdx).unsqueeze(1), 0);
    this.weight = new Parameter(start);
  }
  forward(ids: Tensor): Tensor {
    return embedding(ids, this.weight, { paddingIdx: this.paddingIdx });
  }
  override extraRepr(): string {
    return `${this.numEmbeddings}, ${this.embeddingDim}${this.paddingIdx === null ? "" : `, paddingIdx=${this.paddingIdx}`}`;
  }
}

/** Gives back what it gets. */
export class Identity extends Module {
  forward(x: Tensor): Tensor {
    return x;
  }
}

/** Joins the axes `startDim` … `endDim` (default: all but the batch). */
export class Flatten extends Module {
  readonly startDim: number;
  readonly endDim: number;
  constructor(options: { readonly startDim?: number; readonly endDim?: number } = {}) {
    super();
    this.startDim = options.startDim ?? 1;
    this.endDim = options.endDim ?? -1;
  }
  forward(x: Tensor): Tensor {
    return x.flatten(this.startDim, this.endDim);
  }
}

/** Cuts the axis `dim` into axes of the sizes given. */
export class Unflatten extends Module {
  readonly dim: number;
  readonly sizes: readonly number[];
  constructor(dim: number, sizes: readonly number[]) {
    super();
    this.dim = dim;
    this.sizes = sizes;
  }
  forward(x: Tensor): Tensor {
    return x.unflatten(this.dim, this.sizes);
  }
}
