/** Layers of this package. */
import { nn, ones, type Tensor } from "../../../src/index.ts";
import { rootMeanSquare, squaredRelu } from "./operations.ts";

/** Rows by their root mean square, times a gain: [rows, features]. */
export class RowNorm extends nn.Module {
  gain: nn.Parameter;
  constructor(features: number) {
    super();
    this.gain = new nn.Parameter(ones([features]));
  }
  forward(x: Tensor): Tensor {
    const [rows] = rootMeanSquare<readonly Tensor[]>([x], { eps: 1e-5 });
    return rows.mul(this.gain);
  }
}

export class SquaredReLU extends nn.Module {
  scale: number;
  constructor(scale = 1) {
    super();
    this.scale = scale;
  }
  forward(x: Tensor): Tensor {
    return squaredRelu([x], { scale: this.scale });
  }
}
