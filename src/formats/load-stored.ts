/** State dicts from GGUF, PyTorch's and NumPy's files: every tensor of a file on a device, by its name. */
import { dtypes, isDType } from "../core/dtype.ts";
import { DTypeError } from "../core/errors.ts";
import { foreignOf } from "../core/foreign.ts";
import { sizeOf } from "../core/shape.ts";
import type { StateDict } from "../nn/index.ts";
import { fromRaw, type Tensor } from "../tensor/index.ts";
import { quote } from "./format-error.ts";
import { type GgufTensor, readGguf } from "./gguf.ts";
import { readNpz } from "./numpy.ts";
import type { FormatSource } from "./random-access.ts";
import type { StoredDType, StoredTensor } from "./stored-tensor.ts";
import { readTorch } from "./torch-file.ts";

/** Copies of bytes that are views of what was given in memory, so that the tensor does not share it. */
const copied = (bytes: Uint8Array): ArrayBuffer => bytes.slice().buffer as ArrayBuffer;

/** Bytes that nobody else writes to: of a mapped file where they are aligned for elements of `each` bytes there, else a copy. */
async function ownBytes(stored: StoredTensor, each: number): Promise<ArrayBuffer> {
  const mapped = await stored.mapped?.();
  const address = mapped && foreignOf(mapped.buffer)?.address;
  return mapped && address && address % each === 0 ? mapped.buffer : copied(await stored.read());
}

/** int64 elements as int32. Throws DTypeError where one does not fit. */
function narrowed(where: string, bytes: Uint8Array): Int32Array {
  return Int32Array.from(new BigInt64Array(copied(bytes)), (v) => {
    if (v < -2147483648n || v > 2147483647n)
      throw new DTypeError(`${where} holds ${v}, which does not fit int32, the widest integer here`);
    return Number(v);
  });
}

export interface StoredOptions {
  /** The default device by default. */
  readonly device?: string;
}

export interface GgufOptions extends StoredOptions {
  /** Which tensors to load. Default: all. */
  readonly select?: (name: string) => boolean;
}

/**
 * A stored tensor as a Tensor, on `device`; `where` names it in messages. int64 comes as int32, checked. Throws DTypeError for a
 * dtype or a value that tensors here can't hold, and what reading throws.
 */
export async function storedTensor(where: string, stored: StoredTensor, options: StoredOptions = {}): Promise<Tensor> {
  const { dtype, shape } = stored;
  const given = { owned: true, ...options };
  if (dtype === "int64") return fromRaw(narrowed(where, await stored.read()), "int32", shape, given);
  if (!isDType(dtype)) throw new DTypeError(`${where} is of ${dtype}, which tensors here can't hold; convert it first`);
  const bytes = await ownBytes(stored, dtypes[dtype].bytes);
  const above = dtype === "bool" ? new Uint8Array(bytes).find((b) => b > 1) : undefined;
  if (above !== undefined) throw new DTypeError(`${where} is of bool, but holds ${above}; only 0 and 1 are bool`);
  return fromRaw(new dtypes[dtype].array(bytes), dtype, shape, given);
}

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
    const known = made.get(tensor) ?? (await storedTensor(`${file}tensor ${quote(name)}`, tensor, options));
    made.set(tensor, known);
    // not by assignment, which a name "__proto__" would turn into something else
    Object.defineProperty(out, name, { value: known, enumerable: true, writable: true, configurable: true });
  }
  return out;
}

const floats: Readonly<Record<string, StoredDType>> = { f32: "float32", f16: "float16", bf16: "bfloat16" };

function storedGguf(tensor: GgufTensor): StoredTensor {
  const { type, shape, byteLength } = tensor;
  if (type in floats) return { dtype: floats[type], shape, byteLength, read: tensor.read, mapped: tensor.mapped };
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
export async function loadGguf(source: FormatSource, options: GgufOptions = {}): Promise<StateDict> {
  const { select = () => true, ...where } = options;
  const wanted = [...(await readGguf(source)).tensors].filter(([name]) => select(name));
  return loadAll(source, new Map(wanted.map(([name, tensor]) => [name, storedGguf(tensor)])), where);
}
