/**
 * Gives a model the weights that peers/common.py gives the peer's: by the order of the parameters, which must be that of
 * PyTorch's model. Matrices are uniform within ±1/√(inputs); norms lie around one, what else has one axis around zero.
 */
import type { nn, Tensor } from "../../src/index.ts";
import { fromRaw } from "../../src/index.ts";
import { uniform } from "./numbers.ts";

/** `inputsFirst`: matrices are stored [in, out], as GPT-2's projections. */
export function fill(model: nn.Module, inputsFirst: (name: string) => boolean = () => false): void {
  const own = model.stateDict();
  const weights: Record<string, Tensor> = {};
  Object.entries(own).forEach(([name, p], index) => {
    const n = p.size;
    const inputs = inputsFirst(name) ? p.shape[0] : n / p.shape[0];
    const values = uniform(1000 + index, n, p.ndim > 1 ? 1 / Math.sqrt(inputs) : 0.1);
    if (p.ndim === 1 && /ln_.*weight/.test(name)) for (let i = 0; i < n; i++) values[i] += 1;
    weights[name] = fromRaw(values, "float32", p.shape);
  });
  model.loadStateDict(weights);
}
