/** Gemma's normalisation (Gemma Team 2024), whose weight is what the factor is above 1. */
import { rmsNorm } from "../nn/functional.ts";
import { type FactoryOptions, Module, Parameter } from "../nn/index.ts";
import { type Tensor, zeros } from "../tensor/index.ts";

/** x / √(mean x² + eps) · (1 + weight) over the last axis; the factor is computed in float32 at least. */
export class GemmaRMSNorm extends Module {
  static override readonly isPure = true;
  readonly width: number;
  readonly eps: number;
  /** [width], 0 at the start. */
  weight: Parameter;
  constructor(width: number, options: FactoryOptions & { readonly eps: number }) {
    super();
    const { eps, ...where } = options;
    this.width = width;
    this.eps = eps;
    this.weight = new Parameter(zeros([width], where));
  }
  forward(x: Tensor): Tensor {
    const { dtype } = this.weight;
    const wide = dtype === "float64" ? dtype : "float32";
    return rmsNorm(x, this.width, { weight: this.weight.to(wide).add(1), eps: this.eps });
  }
  override extraRepr(): string {
    return `${this.width}, eps=${this.eps}`;
  }
}
