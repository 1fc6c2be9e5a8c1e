/**
 * Layers whose weight stays as a GGUF file stores it, in blocks of 32 or 256 numbers of 4 to 8 bits: memory is the file's, and products read
 * it as it is. The weight is not learnt; gradients pass through to the inputs, and adapters can be put around a layer.
 */
import type { DType } from "../core/dtype.ts";
import { ShapeError } from "../core/errors.ts";
import { showShape, sizeOf } from "../core/shape.ts";
import { raised } from "../graph/autocast.ts";
import {
  blockLinear,
  dequantizeBlocks,
  dequantizeStored,
  type StoredFormat,
  storedLinear,
  storedWidth,
} from "../graph/composites/index.ts";
import type { Node } from "../graph/node.ts";
import * as ops from "../graph/ops.ts";
import { Buffer, Module, type Parameter } from "../nn/index.ts";
import { Tensor } from "../tensor/index.ts";

export type BlockFormat = "q8_0" | "q4_0" | StoredFormat;

/** A weight [rows, width] in blocks along its width. */
export interface BlockWeight {
  /** GGUF's name of the type. */
  readonly format: BlockFormat;
  /** uint8 [rows, bytes]: of q8_0 and q4_0 the codes, width or width / 2 bytes a row, else the blocks as they lie in the file. */
  readonly codes: Tensor;
  /** Of q8_0 and q4_0: float16 [rows, width / 32]. The others have their scales in the blocks. */
  readonly scales: Tensor | null;
}

type Split = "q8_0" | "q4_0";
const splitBits: Readonly<Record<Split, 8 | 4>> = { q8_0: 8, q4_0: 4 };
/** Whether codes and scales are kept apart. */
export const isSplit = (format: string): format is Split => Object.hasOwn(splitBits, format);

/** [rows, width] */
export function blockShape({ format, codes }: BlockWeight): readonly [number, number] {
  const [rows, bytes] = codes.shape;
  return [rows, isSplit(format) ? (bytes * 8) / splitBits[format] : storedWidth(bytes, format)];
}

/** Rows of a weight as float32. */
const floatsOf = (format: BlockFormat, codes: Node, scales: Node | undefined): Node =>
  isSplit(format)
    ? dequantizeBlocks(codes, scales as Node, { bits: splitBits[format] })
    : dequantizeStored(codes, format);

/** What the layers have in common: the weight and the dtype of what they give. */
abstract class Blocks extends Module {
  readonly format: BlockFormat;
  codes: Buffer;
  scales: Buffer | null;
  readonly dtype: DType;

  static override readonly stateNames = { codes: "weight", scales: "weight.scales" };

  constructor({ format, codes, scales }: BlockWeight, dtype: DType) {
    super();
    this.format = format;
    this.codes = new Buffer(codes);
    this.scales = scales && new Buffer(scales);
    this.dtype = dtype;
  }

  /** [rows, width] */
  get weightShape(): readonly [number, number] {
    return blockShape(this);
  }

  /** The weight as floating numbers, computed anew each time. */
  get weight(): Tensor {
    return new Tensor(ops.cast(floatsOf(this.format, this.codes.node, this.scales?.node), this.dtype));
  }

  /** x [rows…, width] · weightᵀ */
  protected product(x: Tensor): Tensor {
    const [outputs, inputs] = this.weightShape;
    if (x.shape.at(-1) !== inputs)
      throw new ShapeError(
        `${this.constructor.name}: the input ${showShape(x.shape)} must have ${inputs} features in its last axis`,
      );
    const { format, codes, scales } = this;
    const outer = x.shape.slice(0, -1);
    const flat = ops.reshape(raised(x.node), [sizeOf(outer), inputs]);
    const y = isSplit(format)
      ? blockLinear(flat, codes.node, (scales as Buffer).node, { bits: splitBits[format] })
      : storedLinear(flat, codes.node, { format });
    return new Tensor(ops.reshape(y, [...outer, outputs]));
  }
}

/** x · weightᵀ + bias: [rows…, inFeatures] → [rows…, outFeatures], as nn.Linear. */
export class BlockLinear extends Blocks {
  static override readonly isPure = true;
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
    return `inFeatures=${this.inFeatures}, outFeatures=${this.outFeatures}, bias=${this.bias !== null}, ${this.format}`;
  }
}

/** Rows by integers, of which only those that are asked for become floats, as nn.Embedding: [ids…] → [ids…, width]; and the product with the table, for a head that is the embedding again. */
export class BlockEmbedding extends Blocks {
  static override readonly isPure = true;
  forward(ids: Tensor): Tensor {
    const flat = ops.reshape(ids.node, [ids.size]);
    const gathered = (table: Buffer | null) => table?.node && ops.take(table.node, 0, flat);
    const rows = ops.cast(floatsOf(this.format, gathered(this.codes) as Node, gathered(this.scales)), this.dtype);
    return new Tensor(ops.reshape(rows, [...ids.shape, this.weightShape[1]]));
  }
  /** Logits [rows…, numEmbeddings] of states [rows…, width]. */
  project(x: Tensor): Tensor {
    return this.product(x);
  }
  override extraRepr(): string {
    return `${this.weightShape.join(", ")}, ${this.format}`;
  }
}
