/** State dicts from GGUF, PyTorch's and NumPy's files: every tensor of a file on a device, by its name. */
import { sizeOf } from "../core/shape.ts";
import type { StateDict } from "../nn/index.ts";
import type { Tensor } from "../tensor/index.ts";
import { quote } from "./format-error.ts";
import { type GgufTensor, readGguf } from "./gguf.ts";
import { readNpz } from "./numpy.ts";
import type { FormatSource } from "./random-access.ts";
import { type StoredDType, type StoredOptions, type StoredTensor, toTensor } from "./stored-tensor.ts";
import { readTorch } from "./torch-file.ts";

/** Of tensors that are one in the file one tensor is made. */
async function loadAll(
  source: FormatSource,
  stored: ReadonlyMap<string, StoredTensor>,
  options: StoredOptions,
): Promise<StateDict> {
  const file = typeof source === "string" ? `${source}: ` : "";
  const made = new Map<StoredTensor, Tensor>();
  const out: StateDict = {};
  for (const [name, tensor] of stored) {
    const known = made.get(tensor) ?? (await toTensor(`${file}tensor ${quote(name)}`, tensor, options));
    made.set(tensor, known);
    // not by assignment, which a name "__proto__" would turn into something else
    Object.defineProperty(out, name, { value: known, enumerable: true, writable: true, configurable: true });
  }
  return out;
}

const floats: Readonly<Record<string, StoredDType>> = { f32: "float32", f16: "float16", bf16: "bfloat16" };

function storedGguf(tensor: GgufTensor): StoredTensor {
  const { type, shape, byteLength } = tensor;
  if (type in floats) return { dtype: floats[type], shape, byteLength, read: tensor.read };
  const read = async (): Promise<Uint8Array> => new Uint8Array((await tensor.float32()).buffer);
  return { dtype: "float32", shape, byteLength: 4 * sizeOf(shape), read };
}

/**
 * Every tensor of a PyTorch file, by the keys that lead to it (see readTorch), on `device`; of tied weights one tensor. int64 comes
 * as int32, checked. Throws FormatError, FileError, and DTypeError for a dtype or value that tensors here can't hold.
 */
export async function loadTorch(source: FormatSource, options: StoredOptions = {}): Promise<StateDict> {
  return loadAll(source, (await readTorch(source)).tensors, options);
}

/** Every array of a .npz file, by its name, on `device`. int64 comes as int32, checked. Throws as loadTorch does. */
export async function loadNpz(source: FormatSource, options: StoredOptions = {}): Promise<StateDict> {
  return loadAll(source, await readNpz(source), options);
}

/**
 * Every tensor of a GGUF file, by its name, on `device`: f32, f16 and bf16 as they are, blocks dequantised to float32. Throws
 * FormatError, and FileError where a path can't be read.
 */
export async function loadGguf(source: FormatSource, options: StoredOptions = {}): Promise<StateDict> {
  const stored = new Map([...(await readGguf(source)).tensors].map(([name, tensor]) => [name, storedGguf(tensor)]));
  return loadAll(source, stored, options);
}
