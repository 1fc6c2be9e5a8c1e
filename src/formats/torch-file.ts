/**
 * PyTorch's files (.pt, .pth, .bin, .th): what torch.save writes, as a zip with a pickle in it (since 1.6), and in the older form,
 * five pickles and the storages one after the other. The pickle is read by `torch-pickle.ts`, which executes nothing; a tensor's
 * bytes are read when they are asked for, and come contiguous and little-endian, whatever they are stored as.
 */
import { sizeOf } from "../core/shape.ts";
import { Cursor, parseStart } from "./cursor.ts";
import { FormatError, quote } from "./format-error.ts";
import { type FormatSource, type OpenedSource, openAccess } from "./random-access.ts";
import { gather, type StoredDType, type StoredTensor, storedBytes, swapBytes } from "./stored-tensor.ts";
import { type Plain, type PlainMap, readPickle, type StorageRef, TensorRef, type TensorView } from "./torch-pickle.ts";
import { readZip, type ZipMember } from "./zip.ts";

/** A tensor in a PyTorch file. Tensors that are the same view of the same storage (tied weights) are one object. */
export class TorchTensor implements StoredTensor {
  readonly dtype: StoredDType;
  readonly shape: readonly number[];
  readonly byteLength: number;
  /** Whether it was a Parameter, or a tensor that requires a gradient. */
  readonly requiresGrad: boolean;
  readonly #read: () => Promise<Uint8Array>;

  constructor(view: TensorView, read: () => Promise<Uint8Array>) {
    this.dtype = view.dtype;
    this.shape = view.shape;
    this.requiresGrad = view.requiresGrad;
    this.byteLength = sizeOf(view.shape) * storedBytes[view.dtype];
    this.#read = read;
  }

  read(): Promise<Uint8Array> {
    return this.#read();
  }
}

/** What a file may hold: None is null; int is number where that is exact, else bigint; tuples are arrays; dicts are Maps. */
export type TorchValue = Plain<TorchTensor>;

export interface TorchFile {
  /** What was given to torch.save. */
  readonly value: TorchValue;
  /** Every tensor in it, by the keys that lead to it, joined with dots: of a state dict, by its names. */
  readonly tensors: ReadonlyMap<string, TorchTensor>;
}

/** Where the storages' bytes are. */
interface Storages {
  readonly bigEndian: boolean;
  /** Part of a storage, of which `offset` and `length` are in bytes. */
  part(key: string, offset: number, length: number): Promise<Uint8Array>;
}

/** The errors of a pickle's contents, at a byte of the pickle. */
type Wrong = (what: string, at: number) => FormatError;

const storageBytes = ({ dtype, elements }: StorageRef): number => elements * (dtype === null ? 1 : storedBytes[dtype]);

const spare = 16 << 20;

/** A view's first and one-past-last element in its storage, checked; and what it takes in memory. */
function extentOf(
  { storage, dtype, offset, shape, strides, at }: TensorView,
  wrong: Wrong,
): { end: number; bytes: number } {
  const each = storedBytes[dtype];
  const elements = shape.reduce((n, d) => n * d, 1);
  const last = shape.reduce((n, d, i) => n + (d - 1) * strides[i], 0);
  const end = elements === 0 ? offset : offset + last + 1;
  if (!Number.isSafeInteger(elements * each) || !Number.isSafeInteger(end * each) || end * each > storageBytes(storage))
    throw wrong(
      `a tensor of shape [${shape.join(", ")}] and strides [${strides.join(", ")}] from element ${offset} does not fit ` +
        `its storage ${quote(storage.key)} of ${storageBytes(storage)} bytes`,
      at,
    );
  return { end, bytes: elements * each };
}

const isContiguous = (shape: readonly number[], strides: readonly number[]): boolean => {
  let expected = 1;
  for (let d = shape.length - 1; d >= 0; d--) {
    if (shape[d] !== 1 && strides[d] !== expected) return false;
    expected *= shape[d];
  }
  return true;
};

async function readView(view: TensorView, end: number, { bigEndian, part }: Storages): Promise<Uint8Array> {
  const { storage, dtype, offset, shape, strides } = view;
  const each = storedBytes[dtype];
  if (sizeOf(shape) === 0) return new Uint8Array(0);
  let bytes = await part(storage.key, offset * each, (end - offset) * each);
  if (!isContiguous(shape, strides)) bytes = gather(bytes, each, 0, shape, strides);
  else if (bigEndian && each > 1) bytes = bytes.slice();
  if (bigEndian && each > 1) swapBytes(bytes, each);
  return bytes;
}

/** Makes tensors of what the pickle describes, each view once; all of them together must be of the file's size. */
function tensorMaker(storages: Iterable<StorageRef>, places: Storages, wrong: Wrong): (ref: TensorRef) => TorchTensor {
  let left = spare;
  for (const storage of storages) left += 4 * storageBytes(storage);
  const made = new Map<string, TorchTensor>();
  return ({ view }) => {
    const { storage, dtype, offset, shape, strides, requiresGrad, at } = view;
    const key = JSON.stringify([storage.key, dtype, offset, shape, strides, requiresGrad]);
    const known = made.get(key);
    if (known !== undefined) return known;
    const { end, bytes } = extentOf(view, wrong);
    left -= bytes;
    if (left < 0) throw wrong("the tensors, being views of few bytes, take much more than the file", at);
    const tensor = new TorchTensor(view, () => readView(view, end, places));
    made.set(key, tensor);
    return tensor;
  };
}

/** The same value with tensors in the place of what describes them; what is shared stays shared. */
function withTensors(root: Plain<TensorRef>, make: (ref: TensorRef) => TorchTensor): TorchValue {
  const done = new Map<object, TorchValue>();
  const convert = (value: Plain<TensorRef>): TorchValue => {
    if (typeof value !== "object" || value === null || value instanceof Uint8Array) return value;
    const known = done.get(value);
    if (known !== undefined) return known;
    let out: TorchValue;
    if (value instanceof TensorRef) out = make(value);
    else if (value instanceof Map)
      out = new Map([...(value as PlainMap<TensorRef>)].map(([key, item]) => [key, convert(item)]));
    else out = (value as readonly Plain<TensorRef>[]).map(convert);
    done.set(value, out);
    return out;
  };
  return convert(root);
}

const longestNames = 1 << 26;

/** Every tensor in a value under the keys that lead to it. */
function tensorsIn(root: TorchValue, wrong: Wrong): Map<string, TorchTensor> {
  const out = new Map<string, TorchTensor>();
  let length = 0;
  const visit = (value: TorchValue, path: string): void => {
    if (value instanceof TorchTensor) {
      length += path.length;
      if (length > longestNames) throw wrong(`the tensors' names take more than ${longestNames} characters`, 0);
      if (out.has(path)) throw wrong(`two tensors have the name ${quote(path)}`, 0);
      out.set(path, value);
    } else if (value instanceof Map || Array.isArray(value))
      for (const [key, item] of value.entries() as Iterable<[unknown, TorchValue]>)
        visit(item, path === "" ? String(key) : `${path}.${String(key)}`);
  };
  visit(root, "");
  return out;
}

function fileOf(root: Plain<TensorRef>, storages: Map<string, StorageRef>, places: Storages, wrong: Wrong): TorchFile {
  const value = withTensors(root, tensorMaker(storages.values(), places, wrong));
  return { value, tensors: tensorsIn(value, wrong) };
}

const largestPickle = 1 << 28;

/** The member that torch.save has put beside the pickle. */
async function readByteOrder(file: string, member: ZipMember | undefined): Promise<boolean> {
  if (member === undefined) return false; // before PyTorch 2.1 every file was written little-endian
  const text = new TextDecoder().decode(await member.start(16));
  if (text !== "little" && text !== "big")
    throw new FormatError(file, member.offset, `the byte order is ${quote(text)}; little and big are known`);
  return text === "big";
}

/** The newer form: NAME/data.pkl, NAME/data/KEY and some more. Checksums are not compared: PyTorch may write none. */
async function readZipped(source: OpenedSource): Promise<TorchFile> {
  const { name: file } = source;
  const members = await readZip(source);
  const pickle = [...members.values()].find(({ name }) => /^[^/]+\/data\.pkl$/.test(name));
  if (pickle === undefined)
    throw new FormatError(file, source.size, "the zip archive holds no data.pkl; it is not a file of torch.save");
  const folder = pickle.name.slice(0, -"data.pkl".length);
  if (members.has(`${folder}constants.pkl`))
    throw new FormatError(
      file,
      pickle.offset,
      "this is a TorchScript archive, which is code; save its state_dict instead",
    );
  if (pickle.size > largestPickle)
    throw new FormatError(file, pickle.offset, `the pickle takes ${pickle.size} bytes, more than ${largestPickle}`);
  const bigEndian = await readByteOrder(file, members.get(`${folder}byteorder`));
  const inside = pickle.deflated ? { inside: quote(pickle.name) } : {};
  const cursor = new Cursor(await pickle.read(false), { file, base: pickle.offset, ...inside });
  const storages = new Map<string, StorageRef>();
  const root = readPickle(cursor, storages);
  const memberOf = (key: string): ZipMember | undefined => members.get(`${folder}data/${key}`);
  for (const storage of storages.values()) {
    const bytes = memberOf(storage.key)?.size;
    if (bytes === storageBytes(storage)) continue;
    const what =
      bytes === undefined ? "is not in the archive" : `takes ${storageBytes(storage)} bytes, but holds ${bytes}`;
    throw cursor.error(`storage ${quote(storage.key)} ${what}`, storage.at);
  }
  const part: Storages["part"] = (key, offset, length) => memberOf(key)!.part(offset, length);
  return fileOf(root, storages, { bigEndian, part }, (what, at) => cursor.error(what, at));
}

const legacyMagic = 0x1950a86a20f9469cfc6cn;
const legacyProtocol = 1001;

/** The older form up to the storages: magic number, protocol, system, value, keys. */
function parseLegacy(cursor: Cursor) {
  const none = new Map<string, StorageRef>();
  if (readPickle(cursor, none) !== legacyMagic) throw cursor.error("the magic number is not that of torch.save", 0);
  const protocolAt = cursor.at;
  if (readPickle(cursor, none) !== legacyProtocol)
    throw cursor.error(`the protocol is not ${legacyProtocol}, the only one that there was`, protocolAt);
  const systemAt = cursor.at;
  const system = readPickle(cursor, none);
  if (!(system instanceof Map) || system.get("little_endian") !== true)
    throw cursor.error(
      "the file was not written on a little-endian machine; save it again in the newer form",
      systemAt,
    );
  const storages = new Map<string, StorageRef>();
  const root = readPickle(cursor, storages);
  const keysAt = cursor.at;
  const keys = readPickle(cursor, none);
  if (!Array.isArray(keys) || keys.some((key) => typeof key !== "string"))
    throw cursor.error("the keys of the storages are not a list of texts", keysAt);
  if (none.size > 0) throw cursor.error("here should be no storages", keysAt);
  return { root, storages, keys: keys as readonly string[], dataAt: cursor.at, keysAt };
}

/** The older form: each storage is its number of elements, in 64 bits, and then they. */
async function readLegacy(source: OpenedSource): Promise<TorchFile> {
  const { name: file, size } = source;
  const { root, storages, keys, dataAt, keysAt } = await parseStart(source, parseLegacy);
  const wrong: Wrong = (what, at) => new FormatError(file, at, what);
  const places = new Map<string, number>();
  let at = dataAt;
  for (const key of keys) {
    const storage = storages.get(key);
    if (storage === undefined || places.has(key))
      throw wrong(`storage ${quote(key)} is ${storage ? "listed twice" : "of no tensor"}`, keysAt);
    if (at + 8 > size) throw wrong(`the file ends before storage ${quote(key)}; it is truncated`, at);
    const cursor = new Cursor(await source.read(at, 8), { file, base: at });
    const elements = cursor.u64("the size of a storage");
    if (elements !== BigInt(storage.elements))
      throw wrong(`storage ${quote(key)} has ${elements} elements here, but ${storage.elements} in the pickle`, at);
    places.set(key, at + 8);
    at += 8 + storageBytes(storage);
    if (at > size)
      throw wrong(`storage ${quote(key)} reaches past the end of the file; it is truncated`, places.get(key)!);
  }
  for (const { key, at: usedAt } of storages.values())
    if (!places.has(key)) throw wrong(`storage ${quote(key)} is not in the file`, usedAt);
  if (at < size) throw wrong(`${size - at} bytes follow the last storage; the file is damaged`, at);
  const part: Storages["part"] = (key, offset, length) => source.read(places.get(key)! + offset, length);
  return fileOf(root, storages, { bigEndian: false, part }, wrong);
}

/**
 * Reads what a PyTorch file holds; the tensors' bytes when they are asked for. Nothing is executed: tensors, parameters,
 * OrderedDict and plain containers (dict, list, tuple, str, int, float, bool, None, bytes) are read, and a file that names
 * anything else is a FormatError that tells the name and the byte. Throws FormatError for every other fault too, and FileError
 * where a path can't be read.
 */
export async function readTorch(source: FormatSource): Promise<TorchFile> {
  const opened = await openAccess(source, "torch");
  const start = await opened.read(0, Math.min(opened.size, 512));
  if (start[0] === 0x50 && start[1] === 0x4b) return readZipped(opened);
  if (start[0] === 0x80) return readLegacy(opened);
  const tar = String.fromCharCode(...start.subarray(257, 262)) === "ustar";
  throw new FormatError(
    opened.name,
    0,
    tar
      ? "this is the tar form of PyTorch before 0.2, which is not read; load it there and save it again"
      : "this is neither a zip nor a pickle, and so not a file of torch.save",
  );
}
