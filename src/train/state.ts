/**
 * Training state as files: any nest of objects, lists, numbers and tensors (an optimiser's state, a callback's) becomes one
 * JSON text and one safetensors file, and comes back the same to the bit. What is in it, and when it is written, is not
 * decided here.
 */
import { allocateRaw, type DType, dtypes, type TypedArray } from "../core/dtype.ts";
import { NablaError } from "../core/errors.ts";
import { sizeOf } from "../core/shape.ts";
import {
  parseSafetensors,
  readSafetensors,
  type SafetensorsDType,
  type SafetensorsEntry,
  safetensorsChunks,
} from "../formats/safetensors.ts";
import { fromRaw } from "../tensor/create.ts";
import { realize, Tensor } from "../tensor/tensor.ts";

/** A state that does not fit what it is loaded into. */
export class StateError extends NablaError {
  override name = "StateError";
}

const formatNames: Partial<Record<DType, SafetensorsDType>> = {
  float32: "F32",
  float64: "F64",
  float16: "F16",
  bfloat16: "BF16",
  int32: "I32",
  uint32: "U32",
  uint8: "U8",
  bool: "BOOL",
};
const ourNames = new Map(Object.entries(formatNames).map(([ours, theirs]) => [theirs as string, ours as DType]));

/** Tensors by name, read from their device, as a safetensors file in pieces; computed in one program if need be. */
export async function tensorFile(
  tensors: Readonly<Record<string, Tensor>>,
  metadata: Readonly<Record<string, string>> = { format: "pt" },
): Promise<Uint8Array[]> {
  return safetensorsChunks(await tensorEntries(tensors), metadata);
}

/** As `tensorFile`, before it is laid out. */
export async function tensorEntries(
  tensors: Readonly<Record<string, Tensor>>,
): Promise<Record<string, SafetensorsEntry>> {
  const list = Object.values(tensors);
  await realize(...list);
  const entries: Record<string, SafetensorsEntry> = {};
  for (const [name, x] of Object.entries(tensors)) {
    const dtype = formatNames[x.dtype];
    if (dtype === undefined) throw new StateError(`"${name}": a tensor of ${x.dtype} has no place in safetensors`);
    const raw = await x.raw();
    entries[name] = { dtype, shape: x.shape, bytes: new Uint8Array(raw.buffer, raw.byteOffset, raw.byteLength) };
  }
  return entries;
}

/** A file's tensors, on `device` (the default device if it is not given). Throws FileError, SafetensorsError, StateError. */
export async function readTensorFile(path: string, device?: string): Promise<Record<string, Tensor>> {
  return tensorsOf((await readSafetensors(path)).tensors, path, device);
}

/** As `readTensorFile`, from memory. */
export function parseTensorFile(bytes: Uint8Array, device?: string): Record<string, Tensor> {
  return tensorsOf(parseSafetensors(bytes).tensors, "safetensors", device);
}

function tensorsOf(
  entries: ReadonlyMap<string, SafetensorsEntry>,
  path: string,
  device: string | undefined,
): Record<string, Tensor> {
  const out: Record<string, Tensor> = {};
  for (const [name, { dtype, shape, bytes }] of entries) {
    const ours = ourNames.get(dtype);
    if (ours === undefined)
      throw new StateError(`${path}: "${name}" is of ${dtype}, which no tensor here can hold; convert it first`);
    const raw: TypedArray = allocateRaw(ours, sizeOf(shape));
    new Uint8Array(raw.buffer, raw.byteOffset, raw.byteLength).set(bytes);
    out[name] = fromRaw(raw, ours, shape, device === undefined ? {} : { device });
  }
  return out;
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

/** Bytes that tensors take in memory. */
export const bytesOf = (tensors: Iterable<Tensor>): number => {
  let bytes = 0;
  for (const x of tensors) bytes += x.size * dtypes[x.dtype].bytes;
  return bytes;
};
