/**
 * Tensors to and from safetensors files: what torch.save and torch.load are for state dicts. The file's layout is
 * `safetensors.ts`; training state with more than tensors in it is the affair of `train/`.
 */
import { type DType, dtypes } from "../core/dtype.ts";
import { DTypeError } from "../core/errors.ts";
import { type ReadOptions, type Source, sourceName } from "../data/source.ts";
import { Module, type StateDict } from "../nn/index.ts";
import { fromRaw, realize, type Tensor } from "../tensor/index.ts";
import { writeFileAtomic } from "./atomic.ts";
import { readSafetensors, type SafetensorsDType, safetensorsHeader } from "./safetensors.ts";

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

/** A state dict, or a module's; of tensors that are one (tied weights) one, under the first of their names. */
function stateOf(source: Module | Readonly<StateDict>): StateDict {
  const tensors = source instanceof Module ? source.stateDict() : source;
  const written = new Set<Tensor>();
  const once: StateDict = {};
  for (const [name, x] of Object.entries(tensors)) {
    if (written.has(x)) continue;
    written.add(x);
    once[name] = x;
  }
  return once;
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
  await writeFileAtomic(path, tensorChunks(stateOf(source), metadata, path));
}

/**
 * What `save` would write, as a blob: to hand to the user as a download (a link to `URL.createObjectURL(blob)`), to send, or to
 * `load` again.
 */
export async function saveToBlob(
  source: Module | Readonly<StateDict>,
  { metadata = { format: "pt" } }: SaveOptions = {},
): Promise<Blob> {
  const chunks: Uint8Array[] = [];
  for await (const chunk of tensorChunks(stateOf(source), metadata)) chunks.push(chunk);
  return new Blob(chunks as Uint8Array<ArrayBuffer>[]);
}

/**
 * Tensors as the pieces of a safetensors file, each under all of its names; computed in one program. Each is read from its device when its turn
 * comes, so that never more than one exists twice.
 */
export async function* tensorChunks(
  tensors: Readonly<StateDict>,
  metadata: Readonly<Record<string, string>>,
  file?: string,
): AsyncGenerator<Uint8Array> {
  await realize(...new Set(Object.values(tensors)));
  const specs = Object.entries(tensors).map(([name, { dtype, shape, size }]) => {
    return [
      name,
      { dtype: theirs.get(dtype) as SafetensorsDType, shape, byteLength: size * dtypes[dtype].bytes },
    ] as const;
  });
  const { pieces, order } = safetensorsHeader(specs, metadata, file);
  yield* pieces;
  for (const name of order) {
    const raw = await tensors[name].raw();
    yield new Uint8Array(raw.buffer, raw.byteOffset, raw.byteLength);
  }
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
