/** Quantising a whole model: its linear layers become QuantizedLinear, the rest stays. */

import { Projection } from "../models/gpt2.ts";
import type { LayerReplacer } from "../models/index.ts";
import { Linear, type Module } from "../nn/index.ts";
import { FinetuneError } from "./errors.ts";
import { type QuantizedLinear, type QuantizeOptions, quantizeLinear } from "./quantized-linear.ts";
import { places, type Target, targetTest } from "./targets.ts";

/**
 * What `fromPretrained` takes as `replace`: linear layers (all but the output head, or those of `target`) are quantised as they are read, so that the
 * model is never in memory as floating numbers (transformers' load_in_4bit).
 */
export function quantizer(options: QuantizeOptions & { readonly target?: Target } = {}): LayerReplacer {
  const test = targetTest(options.target ?? "all-linear");
  return async (layer, path) => {
    if (!test(path, layer)) return null;
    expectQuantizable("quantizer", layer, path);
    return quantizeLinear(layer, options);
  };
}

function expectQuantizable(name: string, layer: Module, path: string): asserts layer is Linear | Projection {
  if (!(layer instanceof Linear || layer instanceof Projection))
    throw new FinetuneError(
      `${name}: the target matches "${path}", a ${layer.constructor.name}; only Linear and GPT-2's Conv1D can be quantised`,
    );
}

/**
 * Quantises the linear layers of a model in place (all but the output head, or those of `target`), as transformers' load_in_4bit; gives
 * the paths. The layers' biases, norms and embeddings stay as they are. Apply LoRA afterwards. Throws FinetuneError where the target names other layers or none.
 */
export async function quantizeModel(
  model: Module,
  options: QuantizeOptions & { readonly target?: Target } = {},
): Promise<string[]> {
  const { target = "all-linear" } = options;
  const test = targetTest(target);
  const done = new Map<Module, QuantizedLinear>();
  const paths: string[] = [];
  for (const { parent, name, path, module } of [...places(model)]) {
    if (!test(path, module)) continue;
    expectQuantizable("quantizeModel", module, path);
    const quantized = done.get(module) ?? (await quantizeLinear(module, options));
    done.set(module, quantized);
    parent.replaceChild(name, quantized);
    paths.push(path);
  }
  if (paths.length === 0)
    throw new FinetuneError(`quantizeModel: the target ${String(target)} matches no linear layer`);
  return paths;
}
