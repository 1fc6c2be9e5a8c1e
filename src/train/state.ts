/**
 * Training state as files: any nest of objects, lists, numbers and tensors (an optimiser's state, a callback's) becomes one
 * JSON text and tensors by name, and comes back the same to the bit. What is in it, and when it is written, is not
 * decided here.
 */
import { NablaError } from "../core/errors.ts";
import { Tensor } from "../tensor/tensor.ts";

/** A state that does not fit what it is loaded into. */
export class StateError extends NablaError {
  override name = "StateError";
}

/** How a tensor stands in the JSON: by its name in the file beside it. */
interface Mark {
  readonly $tensor: string;
}

const isMark = (x: unknown): x is Mark =>
  typeof x === "object" && x !== null && typeof (x as Mark).$tensor === "string";

/** A number that JSON can't hold. */
const odd: Readonly<Record<string, number>> = {
  NaN: Number.NaN,
  Infinity: Number.POSITIVE_INFINITY,
  "-Infinity": Number.NEGATIVE_INFINITY,
};

/** Takes a state apart: what JSON can hold, and the tensors under their paths ("optimizer.state.0.expAvg"). */
export function takeApart(state: unknown, prefix: string, tensors: Record<string, Tensor>): unknown {
  if (state instanceof Tensor) {
    tensors[prefix] = state;
    return { $tensor: prefix } satisfies Mark;
  }
  if (typeof state === "number" && !Number.isFinite(state)) return { $number: String(state) };
  if (state instanceof Map) return takeApart(Object.fromEntries(state), prefix, tensors);
  if (Array.isArray(state)) return state.map((item, i) => takeApart(item, `${prefix}.${i}`, tensors));
  if (typeof state === "object" && state !== null) {
    const out: Record<string, unknown> = {};
    for (const [key, value] of Object.entries(state))
      if (value !== undefined) out[key] = takeApart(value, prefix === "" ? key : `${prefix}.${key}`, tensors);
    return out;
  }
  if (typeof state === "function" || typeof state === "symbol" || typeof state === "bigint")
    throw new StateError(`a ${typeof state} at "${prefix}" can't be saved; a state holds numbers, strings and tensors`);
  return state;
}

/** Puts together what `takeApart` took apart. Throws StateError where a tensor is missing. */
export function putTogether(json: unknown, tensors: Readonly<Record<string, Tensor>>): unknown {
  if (isMark(json)) {
    const tensor = tensors[json.$tensor];
    if (tensor === undefined) throw new StateError(`the state's tensor "${json.$tensor}" is missing from its file`);
    return tensor;
  }
  if (Array.isArray(json)) return json.map((item) => putTogether(item, tensors));
  if (typeof json === "object" && json !== null) {
    const number = (json as { $number?: unknown }).$number;
    if (typeof number === "string" && Object.hasOwn(odd, number)) return odd[number];
    return Object.fromEntries(Object.entries(json).map(([key, value]) => [key, putTogether(value, tensors)]));
  }
  return json;
}
