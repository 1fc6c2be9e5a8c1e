/** Lion (Chen et al. 2023, Algorithm 2): the sign of an interpolated momentum. */
import { optim, type Tensor, zerosLike } from "../../../src/index.ts";

export interface LionOptions {
  readonly lr?: number;
  readonly maximize?: boolean;
  readonly betas?: readonly [number, number];
}

export class Lion extends optim.Optimizer<LionOptions> {
  constructor(params: optim.Params<LionOptions>, options: LionOptions = {}) {
    super(params, { lr: 1e-3, maximize: false, betas: [0.9, 0.99], ...options });
  }
  protected update(p: Tensor, gradient: Tensor, { lr, betas }: optim.Group<LionOptions>): void {
    const { mean } = this.stateOf(p, () => ({ mean: zerosLike(p) }));
    p.sub_(
      mean
        .lerp(gradient, 1 - betas[0])
        .sign()
        .mul(lr),
    );
    mean.lerp_(gradient, 1 - betas[1]);
  }
}
