/**
 * Tensors to and from safetensors files: what torch.save and torch.load are for state dicts. The file's layout is
 * `safetensors.ts`; training state with more than tensors in it is the affair of `train/`.
 */
import { type DType, dtypes } from "../core/dtype.ts";
import { DTypeError } from "../core/errors.ts";
import { type ReadOptions, type Source, sourceName } from "../data/source.ts";
import { Module, type StateDict } from "../nn/index.ts";
import { fromRaw, realize, type Tensor } from "../tensor/index.ts";
import {
  readSafetensors,
  type SafetensorsDType,
  type SafetensorsEntry,
  safetensorsChunks,
  writeSafetensors,
} from "./safetensors.ts";

const theirs = new Map<DType, SafetensorsDType>([
  ["float32", "F32"],
  ["float64", "F64"],
  ["float16", "F16"],
  ["bfloat16", "BF16"],
  ["int32", "I32"],
  ["uint32", "U32"],
  ["uint8", "U8"],
  ["bool", "BOOL"],
]);

export interface SaveOptions {
  /** Texts by name, in the file's header; { format: "pt" } by default. */
  readonly metadata?: Readonly<Record<string, string>>;
}

/** A state dict's, or a module's, entries; tensors that are one (tied weights) once, under the first of their names. */
async function entriesOf(source: Module | Readonly<StateDict>): Promise<Record<string, SafetensorsEntry>> {
  const tensors = source instanceof Module ? source.stateDict() : source;
  const written = new Set<Tensor>();
  const once: StateDict = {};
  for (const [name, x] of Object.entries(tensors)) {
    if (written.has(x)) continue;
    written.add(x);
    once[name] = x;
  }
  return tensorEntries(once);
}

/**
 * Writes a state dict, or a module's, as a safetensors file, all or nothing; in a browser into the origin's private file system.
 * Tensors that are one (tied weights) are written once, under the first of their names. Throws FileError where the file can't be written.
 */
export async function save(
  source: Module | Readonly<StateDict>,
  path: string,
  { metadata = { format: "pt" } }: SaveOptions = {},
): Promise<void> {
  await writeSafetensors(path, await entriesOf(source), metadata);
}

/**
 * What `save` would write, as a blob: to hand to the user as a download (a link to `URL.createObjectURL(blob)`), to send, or to
 * `load` again.
 */
export async function saveToBlob(
  source: Module | Readonly<StateDict>,
  { metadata = { format: "pt" } }: SaveOptions = {},
): Promise<Blob> {
  return new Blob(safetensorsChunks(await entriesOf(source), metadata) as Uint8Array<ArrayBuffer>[]);
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

export interface LoadOptions extends ReadOptions {
  /** The default device by default. */
  readonly device?: string;
}

/**
 * Reads safetensors (a file, an address, a blob, bytes) as a state dict, on `device`. int64 comes as int32, checked. Throws
 * FileError, SafetensorsError, DTypeError for a dtype that tensors here do not have, or the signal's reason.
 */
export async function load(source: Source, options: LoadOptions = {}): Promise<StateDict> {
  const file = sourceName(source);
  const given = { owned: true, ...(options.device === undefined ? {} : { device: options.device }) };
  const out: StateDict = {};
  for (const [name, { dtype, shape, bytes }] of (await readSafetensors(source, options)).tensors) {
    if (dtype === "I64") {
      out[name] = fromRaw(narrowed(name, file, bytes), "int32", shape, given);
      continue;
    }
    const own = [...theirs].find(([, name]) => name === dtype)?.[0];
    if (own === undefined)
      throw new DTypeError(`${file}: "${name}" is of ${dtype}, which tensors here can't hold; convert it first`);
    out[name] = fromRaw(new dtypes[own].array(bytes.buffer as ArrayBuffer), own, shape, given);
  }
  return out;
}
