/**
 * Tensors to and from safetensors files: what torch.save and torch.load are for state dicts. The file's layout is
 * `safetensors.ts`; training state with more than tensors in it is the affair of `train/`.
 */
import { allocateRaw, type DType } from "../core/dtype.ts";
import { DTypeError } from "../core/errors.ts";
import { sizeOf } from "../core/shape.ts";
import { Module, type StateDict } from "../nn/index.ts";
import { fromRaw, realize, type Tensor } from "../tensor/index.ts";
import { readSafetensors, type SafetensorsDType, type SafetensorsEntry, writeSafetensors } from "./safetensors.ts";

const names: readonly (readonly [DType, SafetensorsDType])[] = [
  ["float32", "F32"],
  ["float64", "F64"],
  ["float16", "F16"],
  ["bfloat16", "BF16"],
  ["int32", "I32"],
  ["uint32", "U32"],
  ["uint8", "U8"],
  ["bool", "BOOL"],
];
const theirs = new Map<string, SafetensorsDType>(names);
const ours = new Map<string, DType>(names.map(([a, b]) => [b, a]));

/**
 * Writes a state dict, or a module's, as a safetensors file, all or nothing. Tensors that are one (tied weights) are written
 * once, under the first of their names. Throws FileError where the file can't be written.
 */
export async function save(
  source: Module | Readonly<StateDict>,
  path: string,
  options: { readonly metadata?: Readonly<Record<string, string>> } = {},
): Promise<void> {
  const tensors = source instanceof Module ? source.stateDict() : source;
  const written = new Set<Tensor>();
  const once: StateDict = {};
  for (const [name, x] of Object.entries(tensors)) {
    if (written.has(x)) continue;
    written.add(x);
    once[name] = x;
  }
  await writeSafetensors(path, await tensorEntries(once), options.metadata ?? { format: "pt" });
}

/** Tensors as safetensors' entries, each under all of its names; computed in one program, then read from their device. */
export async function tensorEntries(tensors: Readonly<StateDict>): Promise<Record<string, SafetensorsEntry>> {
  await realize(...new Set(Object.values(tensors)));
  const entries: Record<string, SafetensorsEntry> = {};
  for (const [name, x] of Object.entries(tensors)) {
    const raw = await x.raw();
    const bytes = new Uint8Array(raw.buffer, raw.byteOffset, raw.byteLength);
    entries[name] = { dtype: theirs.get(x.dtype) as SafetensorsDType, shape: x.shape, bytes };
  }
  return entries;
}

/** int64 elements as int32; throws where one does not fit. */
function narrowed(name: string, path: string, bytes: Uint8Array): Int32Array {
  const wide = new BigInt64Array(bytes.slice().buffer);
  return Int32Array.from(wide, (v) => {
    if (v < -2147483648n || v > 2147483647n)
      throw new DTypeError(`${path}: "${name}" holds ${v}, which does not fit int32, the widest integer here`);
    return Number(v);
  });
}

/**
 * Reads a safetensors file as a state dict, on `device` (default: the default device). int64 comes as int32, checked. Throws
 * FileError, SafetensorsError, and DTypeError for a dtype that tensors here do not have.
 */
export async function load(path: string, options: { readonly device?: string } = {}): Promise<StateDict> {
  const out: StateDict = {};
  for (const [name, { dtype, shape, bytes }] of (await readSafetensors(path)).tensors) {
    if (dtype === "I64") {
      out[name] = fromRaw(narrowed(name, path, bytes), "int32", shape, { owned: true, ...options });
      continue;
    }
    const own = ours.get(dtype);
    if (own === undefined)
      throw new DTypeError(`${path}: "${name}" is of ${dtype}, which tensors here can't hold; convert it first`);
    const raw = allocateRaw(own, sizeOf(shape));
    new Uint8Array(raw.buffer).set(bytes);
    out[name] = fromRaw(raw, own, shape, { owned: true, ...options });
  }
  return out;
}
