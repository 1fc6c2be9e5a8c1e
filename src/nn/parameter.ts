/**
 * Parameters and buffers: the two kinds of tensor that a module owns. Both are state (memory that in-place operations
 * write); a module finds them by looking through its own properties, so nothing has to be registered.
 */
import { isFloat } from "../core/dtype.ts";
import { DTypeError, NablaError } from "../core/errors.ts";
import { detach } from "../graph/ops.ts";
import { asState, Tensor } from "../tensor/tensor.ts";

function own(what: string, data: Tensor): Tensor["node"] {
  if (!(data instanceof Tensor))
    throw new NablaError(`${what}: expected a tensor, got ${typeof data}; tensor(…) makes one`);
  return data.node.requiresGrad ? detach(data.node) : data.node;
}

/** What `withDeferredInit` has to finish; null outside of it. */
let deferred: { readonly tensor: Tensor; readonly requiresGrad: boolean }[] | null = null;

function finish(tensor: Tensor, requiresGrad: boolean): void {
  if (deferred) {
    deferred.push({ tensor, requiresGrad });
    return;
  }
  asState(tensor);
  if (requiresGrad) tensor.requiresGrad_();
}

/** A module whose first values are only recorded. */
export interface Deferred<T> {
  readonly made: T;
  /** Says that a tensor is no longer the module's: it is let go. */
  forget(tensor: Tensor): void;
  /** Makes the module's tensors state; what they have not been given by now is computed. */
  finish(): void;
}

/** What `withDeferredInit` does in steps, for weights that come one by one. */
export function deferInit<T>(make: () => T): Deferred<T> {
  const before = deferred;
  const mine: NonNullable<typeof deferred> = [];
  deferred = mine;
  try {
    return {
      made: make(),
      forget(tensor) {
        const at = mine.findIndex((x) => x.tensor === tensor);
        if (at >= 0) mine.splice(at, 1);
      },
      finish() {
        for (const { tensor, requiresGrad } of mine.splice(0)) finish(tensor, requiresGrad);
      },
    };
  } finally {
    deferred = before;
  }
}

/**
 * Makes a module whose weights come from elsewhere: the first values of its parameters and buffers are only recorded while
 * `make` runs, and computed for those alone that `load` has not replaced (torch.nn.utils.skip_init). Modules that are
 * made outside are not concerned. `load` tells `forget` of tensors that it has taken out of the module.
 */
export function withDeferredInit<T>(make: () => T, load: (made: T, forget: Deferred<T>["forget"]) => void): T {
  const { made, forget, finish } = deferInit(make);
  load(made, forget);
  finish();
  return made;
}

/** A tensor that is learnt: a leaf of autograd that optimisers update (torch.nn.Parameter). Takes over the data's memory. */
export class Parameter extends Tensor {
  constructor(data: Tensor, options: { readonly requiresGrad?: boolean } = {}) {
    super(own("Parameter", data));
    const { requiresGrad = true } = options;
    if (requiresGrad && !isFloat(data.dtype))
      throw new DTypeError(
        `Parameter: only floating tensors have gradients, this one is ${data.dtype}; pass { requiresGrad: false }`,
      );
    finish(this, requiresGrad);
  }
}

/** State that is not learnt, as running statistics (torch.nn.Buffer). Only persistent buffers are in the state dict. */
export class Buffer extends Tensor {
  readonly persistent: boolean;
  constructor(data: Tensor, options: { readonly persistent?: boolean } = {}) {
    super(own("Buffer", data));
    this.persistent = options.persistent ?? true;
    finish(this, false);
  }
}
