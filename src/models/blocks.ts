/**
 * Layers whose weight stays as a GGUF file stores it, in blocks of 32 numbers of 8 or 4 bits with a scale each: memory is the file's, and
 * products read it as it is. The weight is not learnt; gradients pass through to the inputs, and adapters can be put around a layer.
 */
import type { DType } from "../core/dtype.ts";
import { ShapeError } from "../core/errors.ts";
import { showShape, sizeOf } from "../core/shape.ts";
import { raised } from "../graph/autocast.ts";
import { blockLinear, dequantizeBlocks } from "../graph/composites/index.ts";
import * as ops from "../graph/ops.ts";
import { Buffer, Module, type Parameter } from "../nn/index.ts";
import { Tensor } from "../tensor/index.ts";

/** A weight [rows, width] in blocks along its width. */
export interface BlockWeight {
  readonly bits: 8 | 4;
  /** uint8 [rows, width · bits / 8] */
  readonly codes: Tensor;
  /** float16 [rows, width / 32] */
  readonly scales: Tensor;
}

/** [rows, width] */
export const blockShape = ({ bits, codes }: BlockWeight): readonly [number, number] => [
  codes.shape[0],
  (codes.shape[1] * 8) / bits,
];

/** What the layers have in common: the weight and the dtype of what they give. */
abstract class Blocks extends Module {
  readonly bits: 8 | 4;
  codes: Buffer;
  scales: Buffer;
  readonly dtype: DType;

  static override readonly stateNames = { codes: "weight", scales: "weight.scales" };

  constructor({ bits, codes, scales }: BlockWeight, dtype: DType) {
    super();
    this.bits = bits;
    this.codes = new Buffer(codes);
    this.scales = new Buffer(scales);
    this.dtype = dtype;
  }

  /** [rows, width] */
  get weightShape(): readonly [number, number] {
    return blockShape(this);
  }

  /** The weight as floating numbers, computed anew each time. */
  get weight(): Tensor {
    const { codes, scales, bits, dtype } = this;
    return new Tensor(ops.cast(dequantizeBlocks(codes.node, scales.node, { bits }), dtype));
  }

  /** x [rows…, width] · weightᵀ */
  protected product(x: Tensor): Tensor {
    const [outputs, inputs] = this.weightShape;
    if (x.shape.at(-1) !== inputs)
      throw new ShapeError(
        `${this.constructor.name}: the input ${showShape(x.shape)} must have ${inputs} features in its last axis`,
      );
    const outer = x.shape.slice(0, -1);
    const flat = ops.reshape(raised(x.node), [sizeOf(outer), inputs]);
    const y = blockLinear(flat, this.codes.node, this.scales.node, { bits: this.bits });
    return new Tensor(ops.reshape(y, [...outer, outputs]));
  }
}

/** x · weightᵀ + bias: [rows…, inFeatures] → [rows…, outFeatures], as nn.Linear. */
export class BlockLinear extends Blocks {
  bias: Parameter | null;
  constructor(weight: BlockWeight, dtype: DType, bias: Parameter | null) {
    super(weight, dtype);
    this.bias = bias;
  }
  get inFeatures(): number {
    return this.weightShape[1];
  }
  get outFeatures(): number {
    return this.weightShape[0];
  }
  forward(x: Tensor): Tensor {
    const y = this.product(x);
    return this.bias ? y.add(this.bias) : y;
  }
  override extraRepr(): string {
    return `inFeatures=${this.inFeatures}, outFeatures=${this.outFeatures}, bias=${this.bias !== null}, bits=${this.bits}`;
  }
}

/** Rows by integers, as nn.Embedding: [ids…] → [ids…, width]; and the product with the table, for a head that is the embedding again. */
export class BlockEmbedding extends Blocks {
  forward(ids: Tensor): Tensor {
    const flat = ops.reshape(ids.node, [ids.size]);
    const [codes, scales] = [this.codes, this.scales].map((table) => ops.take(table.node, 0, flat));
    const rows = ops.cast(dequantizeBlocks(codes, scales, { bits: this.bits }), this.dtype);
    return new Tensor(ops.reshape(rows, [...ids.shape, this.weightShape[1]]));
  }
  /** Logits [rows…, numEmbeddings] of states [rows…, width]. */
  project(x: Tensor): Tensor {
    return this.product(x);
  }
  override extraRepr(): string {
    return `${this.weightShape.join(", ")}, bits=${this.bits}`;
  }
}
