/** Losses as modules (torch.nn's): each calls the function of functional/loss.ts with the options it was made with. */
import type { Tensor } from "../../tensor/tensor.ts";
import * as F from "../functional/loss.ts";
import { Module } from "../module.ts";

type OptionsOf<T extends (input: Tensor, target: Tensor, options: never) => Tensor> = NonNullable<Parameters<T>[2]>;

abstract class Loss<O> extends Module {
  readonly options: O;
  constructor(options: O = {} as O) {
    super();
    this.options = options;
  }
}

export class CrossEntropyLoss extends Loss<OptionsOf<typeof F.crossEntropy>> {
  forward(input: Tensor, target: Tensor): Tensor {
    return F.crossEntropy(input, target, this.options);
  }
}
export class NLLLoss extends Loss<OptionsOf<typeof F.nllLoss>> {
  forward(input: Tensor, target: Tensor): Tensor {
    return F.nllLoss(input, target, this.options);
  }
}
export class MSELoss extends Loss<OptionsOf<typeof F.mseLoss>> {
  forward(input: Tensor, target: Tensor): Tensor {
    return F.mseLoss(input, target, this.options);
  }
}
export class L1Loss extends Loss<OptionsOf<typeof F.l1Loss>> {
  forward(input: Tensor, target: Tensor): Tensor {
    return F.l1Loss(input, target, this.options);
  }
}
export class SmoothL1Loss extends Loss<OptionsOf<typeof F.smoothL1Loss>> {
  forward(input: Tensor, target: Tensor): Tensor {
    return F.smoothL1Loss(input, target, this.options);
  }
}
export class HuberLoss extends Loss<OptionsOf<typeof F.huberLoss>> {
  forward(input: Tensor, target: Tensor): Tensor {
    return F.huberLoss(input, target, this.options);
  }
}
/** Of probabilities; from logits, BCEWithLogitsLoss is the stable one. */
export class BCELoss extends Loss<OptionsOf<typeof F.binaryCrossEntropy>> {
  forward(input: Tensor, target: Tensor): Tensor {
    return F.binaryCrossEntropy(input, target, this.options);
  }
}
export class BCEWithLogitsLoss extends Loss<OptionsOf<typeof F.binaryCrossEntropyWithLogits>> {
  forward(input: Tensor, target: Tensor): Tensor {
    return F.binaryCrossEntropyWithLogits(input, target, this.options);
  }
}
export class KLDivLoss extends Loss<OptionsOf<typeof F.klDiv>> {
  forward(input: Tensor, target: Tensor): Tensor {
    return F.klDiv(input, target, this.options);
  }
}
export class PoissonNLLLoss extends Loss<OptionsOf<typeof F.poissonNllLoss>> {
  forward(input: Tensor, target: Tensor): Tensor {
    return F.poissonNllLoss(input, target, this.options);
  }
}
