/**
 * A linear layer whose weight stays in 4 or 8 bits: the base of QLoRA (Dettmers et al. 2023). The weight is never learnt; gradients pass through
 * it to the inputs. It is brought back to floating numbers by ordinary operations in front of the product.
 */
import { autocastDType } from "../graph/autocast.ts";
import { nf4Block as block, dequantize } from "../graph/composites/index.ts";
import { Projection } from "../models/gpt2.ts";
import * as F from "../nn/functional.ts";
import { Buffer, type Linear, Module, type Parameter } from "../nn/index.ts";
import { autocast, checkpoint, noGrad, Tensor, tensor } from "../tensor/index.ts";
import { FinetuneError } from "./errors.ts";
import { blockScales, nf4Code, quantizeInt8, quantizeNF4 } from "./nf4.ts";

/** "nf4": 4 bits in blocks of 64 (4.5 bits an element, 4.13 with double quantisation on disk); "int8": 8 bits a row. */
export type Quantization = "nf4" | "int8";

/** The two values of each possible byte of packed NF4, [256, 2]: one look-up gives two elements. */
const pairs = (): Float32Array =>
  Float32Array.from({ length: 512 }, (_, i) => nf4Code[i % 2 === 0 ? i >> 5 : (i >> 1) & 15]);

/** x · weightᵀ + bias with a quantised weight: [rows…, inFeatures] → [rows…, outFeatures]. Made by `quantizeLinear`. */
export class QuantizedLinear extends Module {
  static override readonly isPure = true;
  readonly inFeatures: number;
  readonly outFeatures: number;
  readonly quantization: Quantization;
  /** Whether the layer that it was made of kept its weight as [in, out]. */
  readonly transposed: boolean;
  /** "nf4": two elements a byte, [bytes, 1]; "int8": [outFeatures, inFeatures], 128 for 0. */
  weight: Buffer;
  /** Scales: of blocks of 64 elements, or of rows. */
  absmax: Buffer;
  /** Values of the bytes of NF4. */
  readonly code: Buffer | null;
  bias: Parameter | null;

  static override readonly stateNames = { absmax: "weight.absmax" };

  constructor(parts: {
    readonly inFeatures: number;
    readonly outFeatures: number;
    readonly quantization: Quantization;
    readonly transposed: boolean;
    readonly weight: Tensor;
    readonly absmax: Tensor;
    readonly bias: Parameter | null;
  }) {
    super();
    this.inFeatures = parts.inFeatures;
    this.outFeatures = parts.outFeatures;
    this.quantization = parts.quantization;
    this.transposed = parts.transposed;
    this.weight = new Buffer(parts.weight);
    this.absmax = new Buffer(parts.absmax);
    const { device } = parts.absmax;
    this.code =
      parts.quantization === "nf4"
        ? new Buffer(tensor(pairs(), { shape: [256, 2], device }), { persistent: false })
        : null;
    this.bias = parts.bias;
  }

  /** The weight as floating numbers [outFeatures, inFeatures]. */
  dequantize(): Tensor {
    const { weight, absmax, code, quantization: format, outFeatures: rows, inFeatures: columns } = this;
    return new Tensor(dequantize(weight.node, absmax.node, code?.node ?? null, { format, rows, columns }));
  }

  /** The weight as floating numbers in the layout of the layer that it was made of. */
  denseWeight(): Tensor {
    return this.transposed ? this.dequantize().transpose(0, 1) : this.dequantize();
  }

  /**
   * Where a product can't take the codes themselves, the gradient makes the floating weight again: or all layers' weights would be there at once.
   * The product is of the scales' dtype, so that 16-bit inputs do not round the weight.
   */
  forward(x: Tensor): Tensor {
    const product = autocast({ enabled: false }, () =>
      checkpoint(
        (input) =>
          F.linear(
            input,
            noGrad(() => this.dequantize()),
          ),
        x.to(this.absmax.dtype),
      ),
    );
    const y = product.to(autocastDType() ?? x.dtype);
    return this.bias === null ? y : y.add(this.bias.to(y.dtype));
  }

  override extraRepr(): string {
    return `inFeatures=${this.inFeatures}, outFeatures=${this.outFeatures}, bias=${this.bias !== null}, ${this.quantization}`;
  }
}

export interface QuantizeOptions {
  /** Default: "nf4". */
  readonly quantization?: Quantization;
  /**
   * Whether the scales of NF4 take the values that 8 bits can hold (QLoRA's double quantisation), as bitsandbytes' would be. In memory they are
   * float32 all the same. Default: false.
   */
  readonly doubleQuant?: boolean;
}

/** A linear layer's weight [outFeatures, inFeatures] in few bits; GPT-2's Conv1D is transposed first. The bias stays as it is. */
export async function quantizeLinear(
  layer: Linear | Projection,
  options: QuantizeOptions = {},
): Promise<QuantizedLinear> {
  const { quantization = "nf4", doubleQuant = false } = options;
  if (quantization !== "nf4" && quantization !== "int8")
    throw new FinetuneError(
      `quantizeLinear: quantization must be "nf4" or "int8", got ${JSON.stringify(quantization)}`,
    );
  const matrix = layer instanceof Projection ? layer.weight.detach().transpose(0, 1) : layer.weight.detach();
  const [outFeatures, inFeatures] = matrix.shape;
  const values = await matrix.data();
  const { device } = matrix;
  const common = { inFeatures, outFeatures, quantization, transposed: layer instanceof Projection, bias: layer.bias };
  if (quantization === "int8") {
    const { codes, absmax } = quantizeInt8(values, outFeatures, inFeatures);
    return new QuantizedLinear({
      ...common,
      weight: tensor(codes, { shape: [outFeatures, inFeatures], device }),
      absmax: tensor(absmax, { device }),
    });
  }
  const { packed, scales } = quantizeNF4(values, { block, doubleQuant });
  return new QuantizedLinear({
    ...common,
    weight: tensor(packed, { shape: [packed.length, 1], device }),
    absmax: tensor(blockScales(scales), { device }),
  });
}
