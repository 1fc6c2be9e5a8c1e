/**
 * Reads a pickle (Python's pickletools describes the opcodes) as PyTorch writes them, without executing anything: an opcode puts
 * data on a stack, and the only "functions" are those in the table below, which make tensors and containers. Whatever else a
 * pickle names is an error. What it holds is bounded too: a few bytes can describe a structure that is exponentially large once
 * it is walked, or one that contains itself, or one nested a million times.
 */
import type { Cursor } from "./cursor.ts";
import { type FormatError, quote } from "./format-error.ts";
import type { StoredDType } from "./stored-tensor.ts";

/** What a storage in a pickle says of itself; the bytes are elsewhere. */
export interface StorageRef {
  readonly dtype: StoredDType | null; // null: untyped, counted in bytes
  readonly key: string;
  readonly elements: number;
  /** Where the pickle first speaks of it. */
  readonly at: number;
}

/** A tensor as the pickle describes it: a view of a storage. Offset and strides are in elements. */
export interface TensorView {
  readonly storage: StorageRef;
  readonly dtype: StoredDType;
  readonly offset: number;
  readonly shape: readonly number[];
  readonly strides: readonly number[];
  readonly requiresGrad: boolean;
  /** Where the pickle makes it. */
  readonly at: number;
}

export class TensorRef {
  readonly view: TensorView;
  constructor(view: TensorView) {
    this.view = view;
  }
}

/** A name of Python's that the pickle may use. */
class Global {
  readonly name: string;
  readonly entry: Entry;
  constructor(name: string, entry: Entry) {
    this.name = name;
    this.entry = entry;
  }
}

class Storage {
  readonly ref: StorageRef;
  constructor(ref: StorageRef) {
    this.ref = ref;
  }
}

/** Plain data of Python: int is number where that is exact, else bigint; tuples and lists are arrays; dicts are Maps. */
export type Plain<T> = null | boolean | number | bigint | string | Uint8Array | T | readonly Plain<T>[] | PlainMap<T>;
export interface PlainMap<T> extends ReadonlyMap<null | boolean | number | bigint | string, Plain<T>> {}

type Value = Plain<TensorRef | Global | Storage>;
type List = readonly Value[];
type Fail = (what: string) => never;

type Entry =
  | { readonly kind: "storage"; readonly dtype: StoredDType | null }
  | { readonly kind: "dtype"; readonly dtype: StoredDType }
  | { readonly kind: "call"; readonly call: (args: List, fail: Fail, at: number) => Value };

const isCount = (x: unknown): x is number => Number.isSafeInteger(x) && (x as number) >= 0;
const isTuple = (x: unknown): x is List => Array.isArray(x) && Object.isFrozen(x);
const isList = (x: unknown): x is Value[] => Array.isArray(x) && !Object.isFrozen(x);
const mostDims = 64;

/** A view of a storage, checked to lie inside it. */
function makeTensor(args: List, dtype: StoredDType | null, fail: Fail, at: number): TensorRef {
  const [storage, offset, shape, strides, requiresGrad = false, hooks = null] = args;
  if (!(storage instanceof Storage)) return fail("a tensor is made of something that is not a storage");
  const own = dtype ?? storage.ref.dtype;
  if (own === null) return fail("a tensor without a dtype is made of an untyped storage");
  if (!isCount(offset)) return fail("a tensor's offset is not a whole number ≥ 0");
  if (!isTuple(shape) || !shape.every(isCount) || shape.length > mostDims)
    return fail(`a tensor's shape is not a tuple of at most ${mostDims} whole numbers ≥ 0`);
  if (!isTuple(strides) || !strides.every(isCount) || strides.length !== shape.length)
    return fail("a tensor's strides are not as many whole numbers ≥ 0 as it has dimensions");
  if (typeof requiresGrad !== "boolean") return fail("a tensor's requires_grad is not a bool");
  if (hooks !== null && !(hooks instanceof Map && hooks.size === 0)) return fail("a tensor has backward hooks");
  return new TensorRef({ storage: storage.ref, dtype: own, offset, shape, strides, requiresGrad, at });
}

function makeParameter([data, requiresGrad]: List, fail: Fail): Value {
  if (!(data instanceof TensorRef)) return fail("a parameter is made of something that is not a tensor");
  if (typeof requiresGrad !== "boolean") return fail("a parameter's requires_grad is not a bool");
  return new TensorRef({ ...data.view, requiresGrad });
}

function makeOrderedDict(args: List, fail: Fail): Value {
  const out = new Map<unknown, Value>();
  const [pairs = []] = args;
  if (args.length > 1 || !Array.isArray(pairs)) return fail("an OrderedDict is made of something that is not a list");
  for (const pair of pairs) {
    if (!Array.isArray(pair) || pair.length !== 2) return fail("an OrderedDict is made of something that is not pairs");
    setItem(out, pair[0], pair[1], fail);
  }
  return out as Value;
}

/** Python 3 writes bytes so in protocol 2: as a text of as many Latin-1 characters. */
function makeBytes([text, encoding]: List, fail: Fail): Value {
  if (typeof text !== "string" || encoding !== "latin1") return fail("bytes are made of something that is not Latin-1");
  const out = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) {
    const code = text.charCodeAt(i);
    if (code > 255) return fail("bytes are made of something that is not Latin-1");
    out[i] = code;
  }
  return out;
}

const noBytes = (args: List, fail: Fail): Value =>
  args.length === 0 ? new Uint8Array(0) : fail("bytes are made of something");

const storageTypes: Readonly<Record<string, StoredDType>> = {
  FloatStorage: "float32",
  DoubleStorage: "float64",
  HalfStorage: "float16",
  BFloat16Storage: "bfloat16",
  LongStorage: "int64",
  IntStorage: "int32",
  ShortStorage: "int16",
  CharStorage: "int8",
  ByteStorage: "uint8",
  BoolStorage: "bool",
};
const dtypeNames = ["uint16", "uint32", "uint64"] as const; // the dtypes without a storage type of their own

const call = (f: (args: List, fail: Fail, at: number) => Value): Entry => ({ kind: "call", call: f });

/** All that a pickle may name, as "module name". */
const makeGlobals = () =>
  new Map<string, Entry>([
    ["collections OrderedDict", call(makeOrderedDict)],
    ["torch._utils _rebuild_tensor", call((args, fail, at) => makeTensor(args.slice(0, 4), null, fail, at))],
    ["torch._utils _rebuild_tensor_v2", call((args, fail, at) => makeTensor(args, null, fail, at))],
    [
      "torch._utils _rebuild_tensor_v3",
      call((args, fail, at) => {
        const dtype = args[6];
        if (!(dtype instanceof Global) || dtype.entry.kind !== "dtype") return fail("a tensor's dtype is not a dtype");
        return makeTensor(args.slice(0, 6), dtype.entry.dtype, fail, at);
      }),
    ],
    ["torch._utils _rebuild_parameter", call(makeParameter)],
    ["_codecs encode", call(makeBytes)],
    ["__builtin__ bytes", call(noBytes)],
    ["builtins bytes", call(noBytes)],
    ["torch.storage UntypedStorage", { kind: "storage", dtype: null }],
    ["torch UntypedStorage", { kind: "storage", dtype: null }],
    ...Object.entries(storageTypes).map(([name, dtype]) => [`torch ${name}`, { kind: "storage", dtype }] as const),
    ...dtypeNames.map((dtype) => [`torch ${dtype}`, { kind: "dtype", dtype }] as const),
  ]);
let globals: ReadonlyMap<string, Entry> | undefined; // made when it is needed: bundlers keep what is made at the start

function setItem(map: Map<unknown, Value>, key: Value | undefined, value: Value | undefined, fail: Fail): void {
  if (key !== null && !["boolean", "number", "bigint", "string"].includes(typeof key))
    fail("a dict's key is not a text, a number, a bool or None");
  if (map.size >= mostItems) fail(`a dict of more than ${mostItems} items`);
  map.set(key, value as Value);
}

const mostObjects = 1 << 21;
const mostItems = 1 << 22; // of a dict and of the memo; a Map can hold four times as many
const mostOnStack = 1 << 25; // an array can hold four times as many
const smallestTree = 1 << 20; // parts, which every pickle may describe
const longestKey = 1000;
/** The longest int: PyTorch's own are of 64 bits, its magic number of 77. */
const largestInt = 32;

/** The machine that a pickle drives: a stack, marks in it, and a memo. */
class Machine {
  readonly stack: Value[] = [];
  readonly marks: number[] = [];
  readonly memo = new Map<number, Value>();
  readonly storages: Map<string, StorageRef>;
  readonly cursor: Cursor;
  objects = 0;
  copied = 0;
  /** Of the opcode that is carried out. */
  at = 0;

  constructor(cursor: Cursor, storages: Map<string, StorageRef>) {
    this.cursor = cursor;
    this.storages = storages;
  }

  error(what: string): FormatError {
    return this.cursor.error(what, this.at);
  }

  readonly fail: Fail = (what) => {
    throw this.error(what);
  };

  /** A new value. An empty dict takes one byte in a pickle and a hundred times that in memory: there is a limit. */
  push(value: Value): void {
    if (typeof value === "object" && value !== null && ++this.objects > mostObjects)
      this.fail(`the pickle holds more than ${mostObjects} containers`);
    this.pushAgain(value);
  }

  pushAgain(value: Value): void {
    if (this.stack.length >= mostOnStack) this.fail(`the pickle puts more than ${mostOnStack} values on its stack`);
    this.stack.push(value);
  }

  mark(): void {
    if (this.marks.length >= mostOnStack) this.fail(`the pickle sets more than ${mostOnStack} marks`);
    this.marks.push(this.stack.length);
  }

  protocol(): void {
    const protocol = this.cursor.u8("the protocol");
    if (protocol > 5) this.fail(`pickle protocol ${protocol}; 1 to 5 are read here`);
  }

  pop(): Value {
    if (this.stack.length <= (this.marks.at(-1) ?? 0)) this.fail("the pickle takes from an empty stack");
    return this.stack.pop() as Value;
  }

  /** A value, or a mark where there is none above it. */
  drop(): void {
    if (this.marks.at(-1) === this.stack.length) this.marks.pop();
    else this.pop();
  }

  top(): Value {
    if (this.stack.length <= (this.marks.at(-1) ?? 0)) this.fail("the pickle takes from an empty stack");
    return this.stack.at(-1) as Value;
  }

  /** All above the last mark. */
  popMark(): Value[] {
    const mark = this.marks.pop();
    if (mark === undefined) return this.fail("the pickle takes to a mark that is not there");
    return this.stack.splice(mark);
  }

  pushTuple(items: Value[]): void {
    this.push(Object.freeze(items));
  }

  remember(index: number): void {
    if (this.memo.size >= mostItems) this.fail(`the pickle remembers more than ${mostItems} values`);
    this.memo.set(index, this.top());
  }

  recall(index: number): void {
    const value = this.memo.get(index);
    if (value === undefined) this.fail(`the pickle refers to ${index}, which it has not remembered`);
    this.pushAgain(value as Value);
  }

  append(items: readonly Value[]): void {
    const list = this.top();
    if (!isList(list)) throw this.error("the pickle appends to something that is not a list");
    if (list.length + items.length > mostOnStack) this.fail(`a list of more than ${mostOnStack} items`);
    for (const item of items) list.push(item);
  }

  setItems(items: readonly Value[]): void {
    const map = this.top();
    if (!(map instanceof Map)) throw this.error("the pickle sets items of something that is not a dict");
    if (items.length % 2 !== 0) this.fail("the pickle sets a key without a value");
    for (let i = 0; i < items.length; i += 2) setItem(map, items[i], items[i + 1], this.fail);
  }

  makeDict(items: readonly Value[]): void {
    this.push(new Map() as Value);
    this.setItems(items);
  }

  global(module: Value, name: Value): void {
    const full = `${String(module)} ${String(name)}`;
    globals ??= makeGlobals();
    const entry = globals.get(full);
    if (typeof module !== "string" || typeof name !== "string" || entry === undefined)
      throw this.error(
        `the pickle names ${quote(full.replace(" ", "."))}; only tensors, parameters, OrderedDict and plain containers are read, and nothing is executed`,
      );
    this.push(new Global(full.replace(" ", "."), entry));
  }

  stackGlobal(): void {
    const [name, module] = [this.pop(), this.pop()];
    this.global(module, name);
  }

  /** Calls one of the few functions of the table. */
  reduce(): void {
    const args = this.pop();
    const callee = this.pop();
    if (!(callee instanceof Global) || callee.entry.kind !== "call" || !isTuple(args))
      throw this.error("the pickle calls something that is not a function, or without arguments");
    // what is remembered once can be copied by every call: all calls together may take some times the pickle's own bytes
    for (const arg of args) if (typeof arg === "string" || Array.isArray(arg)) this.copied += arg.length;
    if (this.copied > smallestTree + 16 * this.cursor.at)
      throw this.error("the pickle makes too much of too few bytes");
    this.push(callee.entry.call(args, this.fail, this.at));
  }

  /** Attributes; only an OrderedDict may have them (its _metadata), and nothing here needs them. */
  build(): void {
    const state = this.pop();
    if (!(this.top() instanceof Map) || !(state instanceof Map))
      this.fail("the pickle sets the state of something that is not an OrderedDict");
  }

  /** A storage, which lies outside the pickle: ("storage", type, key, location, elements), and in the older form a view. */
  persistent(): void {
    const id = this.pop();
    if (!isTuple(id) || id[0] !== "storage" || id.length < 5 || id.length > 6)
      throw this.error("the pickle refers to something outside of it that is not a storage");
    const [, type, key, , elements, view = null] = id;
    if (!(type instanceof Global) || type.entry.kind !== "storage" || typeof key !== "string" || !isCount(elements))
      throw this.error("a storage's type, key or size is not one");
    if (key.length > longestKey) this.fail(`a storage's key of more than ${longestKey} characters`);
    if (view !== null) this.fail("a storage is a view of another, as PyTorch before 0.4 wrote; save it again");
    const { dtype } = type.entry;
    const known = this.storages.get(key);
    if (known !== undefined && (known.dtype !== dtype || known.elements !== elements))
      this.fail(`storage ${quote(key)} is of another type or size than before`);
    const ref = known ?? { dtype, key, elements, at: this.at };
    this.storages.set(key, ref);
    this.push(new Storage(ref));
  }

  /** A little-endian two's complement number of `length` bytes. */
  int(length: number): void {
    if (length > largestInt) this.fail(`an int of ${length} bytes; more than ${largestInt} are not read`);
    const bytes = this.cursor.take(length, "an int");
    let value = 0n;
    for (let i = length - 1; i >= 0; i--) value = (value << 8n) | BigInt(bytes[i]);
    if (length > 0) value = BigInt.asIntN(8 * length, value);
    const exact = value >= BigInt(Number.MIN_SAFE_INTEGER) && value <= BigInt(Number.MAX_SAFE_INTEGER);
    this.push(exact ? Number(value) : value);
  }

  /** A text up to the end of the line. */
  line(): string {
    const { cursor } = this;
    const start = cursor.at;
    while (cursor.u8("a name") !== 10) if (cursor.at - start > 1000) this.fail("a name of more than 1000 bytes");
    return String.fromCharCode(...cursor.bytes.subarray(start, cursor.at - 1));
  }

  text(length: number): void {
    this.push(this.cursor.text(length, "a text"));
  }

  blob(length: number): void {
    this.push(this.cursor.take(length, "bytes").slice());
  }

  float(): void {
    const bytes = this.cursor.take(8, "a float");
    this.push(new DataView(bytes.buffer, bytes.byteOffset, 8).getFloat64(0, false));
  }
}

const long = (m: Machine, what: string): number => m.cursor.count(what, 1);
const size32 = (m: Machine, what: string): number => m.cursor.u32(what);

/** Every opcode with its name in Python's pickletools, and what it does; null where it has no place in a file of tensors. */
const opcodeList: readonly (readonly [code: number, name: string, carryOut: ((m: Machine) => unknown) | null])[] = [
  [0x80, "PROTO", (m) => m.protocol()],
  [0x95, "FRAME", (m) => m.cursor.count("the length of a frame", 1)],
  [0x28, "MARK", (m) => m.mark()],
  [0x30, "POP", (m) => m.drop()],
  [0x31, "POP_MARK", (m) => m.popMark()],
  [0x32, "DUP", (m) => m.pushAgain(m.top())],
  [0x4e, "NONE", (m) => m.push(null)],
  [0x88, "NEWTRUE", (m) => m.push(true)],
  [0x89, "NEWFALSE", (m) => m.push(false)],
  [0x4a, "BININT", (m) => m.push(m.cursor.i32("an int"))],
  [0x4b, "BININT1", (m) => m.push(m.cursor.u8("an int"))],
  [0x4d, "BININT2", (m) => m.push(m.cursor.u16("an int"))],
  [0x8a, "LONG1", (m) => m.int(m.cursor.u8("the length of an int"))],
  [0x8b, "LONG4", (m) => m.int(size32(m, "the length of an int"))],
  [0x47, "BINFLOAT", (m) => m.float()],
  [0x54, "BINSTRING", (m) => m.text(size32(m, "the length of a text"))],
  [0x55, "SHORT_BINSTRING", (m) => m.text(m.cursor.u8("the length of a text"))],
  [0x58, "BINUNICODE", (m) => m.text(size32(m, "the length of a text"))],
  [0x8c, "SHORT_BINUNICODE", (m) => m.text(m.cursor.u8("the length of a text"))],
  [0x8d, "BINUNICODE8", (m) => m.text(long(m, "the length of a text"))],
  [0x42, "BINBYTES", (m) => m.blob(size32(m, "the length of bytes"))],
  [0x43, "SHORT_BINBYTES", (m) => m.blob(m.cursor.u8("the length of bytes"))],
  [0x8e, "BINBYTES8", (m) => m.blob(long(m, "the length of bytes"))],
  [0x5d, "EMPTY_LIST", (m) => m.push([])],
  [0x61, "APPEND", (m) => m.append([m.pop()])],
  [0x65, "APPENDS", (m) => m.append(m.popMark())],
  [0x6c, "LIST", (m) => m.push(m.popMark())],
  [0x29, "EMPTY_TUPLE", (m) => m.pushTuple([])],
  [0x74, "TUPLE", (m) => m.pushTuple(m.popMark())],
  [0x85, "TUPLE1", (m) => m.pushTuple([m.pop()])],
  [0x86, "TUPLE2", (m) => m.pushTuple([m.pop(), m.pop()].reverse())],
  [0x87, "TUPLE3", (m) => m.pushTuple([m.pop(), m.pop(), m.pop()].reverse())],
  [0x7d, "EMPTY_DICT", (m) => m.push(new Map() as Value)],
  [0x64, "DICT", (m) => m.makeDict(m.popMark())],
  [0x73, "SETITEM", (m) => m.setItems([m.pop(), m.pop()].reverse())],
  [0x75, "SETITEMS", (m) => m.setItems(m.popMark())],
  [0x71, "BINPUT", (m) => m.remember(m.cursor.u8("an index of the memo"))],
  [0x72, "LONG_BINPUT", (m) => m.remember(m.cursor.u32("an index of the memo"))],
  [0x94, "MEMOIZE", (m) => m.remember(m.memo.size)],
  [0x68, "BINGET", (m) => m.recall(m.cursor.u8("an index of the memo"))],
  [0x6a, "LONG_BINGET", (m) => m.recall(m.cursor.u32("an index of the memo"))],
  [0x63, "GLOBAL", (m) => m.global(m.line(), m.line())],
  [0x93, "STACK_GLOBAL", (m) => m.stackGlobal()],
  [0x52, "REDUCE", (m) => m.reduce()],
  [0x62, "BUILD", (m) => m.build()],
  [0x51, "BINPERSID", (m) => m.persistent()],
  [0x46, "FLOAT", null],
  [0x49, "INT", null],
  [0x4c, "LONG", null],
  [0x50, "PERSID", null],
  [0x53, "STRING", null],
  [0x56, "UNICODE", null],
  [0x67, "GET", null],
  [0x69, "INST", null],
  [0x6f, "OBJ", null],
  [0x70, "PUT", null],
  [0x81, "NEWOBJ", null],
  [0x82, "EXT1", null],
  [0x83, "EXT2", null],
  [0x84, "EXT4", null],
  [0x8f, "EMPTY_SET", null],
  [0x90, "ADDITEMS", null],
  [0x91, "FROZENSET", null],
  [0x92, "NEWOBJ_EX", null],
  [0x96, "BYTEARRAY8", null],
  [0x97, "NEXT_BUFFER", null],
  [0x98, "READONLY_BUFFER", null],
];
type Opcode = (typeof opcodeList)[number];
let opcodes: ReadonlyMap<number, Opcode> | undefined;

const stop = 0x2e;

const deepest = 100;

/**
 * Checks that what a pickle holds is data and no more, contains itself nowhere, is not nested too deeply, and is not much larger
 * than the pickle when it is walked as a tree, which is what everybody does with it.
 */
function checkTree(root: Value, cursor: Cursor, at: number): void {
  const limit = smallestTree + 16 * cursor.at;
  const sizes = new Map<object, number>();
  const open = new Set<object>();
  const sizeOfTree = (value: Value | undefined, depth: number): number => {
    if (value instanceof Global || value instanceof Storage)
      throw cursor.error(`the pickle holds ${value instanceof Global ? value.name : "a storage"} as a value`, at);
    if (!(value instanceof Map || Array.isArray(value))) return 1;
    const known = sizes.get(value);
    if (known !== undefined) return known;
    if (open.has(value)) throw cursor.error("the pickle holds a container that contains itself", at);
    if (depth > deepest) throw cursor.error(`the pickle nests containers more than ${deepest} deep`, at);
    open.add(value);
    let size = 1;
    for (const item of value.values() as Iterable<Value>) size += sizeOfTree(item, depth + 1);
    if (size > limit) throw cursor.error(`the pickle describes a structure of more than ${limit} parts`, at);
    open.delete(value);
    sizes.set(value, size);
    return size;
  };
  sizeOfTree(root, 0);
}

/**
 * Reads one pickle from the cursor, to its end. `storages` gathers what it refers to, by key. Throws FormatError with the byte of
 * the opcode that is wrong.
 */
export function readPickle(cursor: Cursor, storages: Map<string, StorageRef>): Plain<TensorRef> {
  const machine = new Machine(cursor, storages);
  const start = cursor.at;
  opcodes ??= new Map(opcodeList.map((opcode) => [opcode[0], opcode]));
  for (;;) {
    machine.at = cursor.at;
    const opcode = cursor.u8("the pickle");
    if (opcode === stop) break;
    const known = opcodes.get(opcode);
    if (known === undefined)
      throw machine.error(`0x${opcode.toString(16)} is no opcode of a pickle; the file is damaged, or no pickle`);
    const [, name, carryOut] = known;
    if (carryOut === null)
      throw machine.error(
        `the pickle's opcode ${name} is not read here; only tensors, parameters, OrderedDict and plain containers are`,
      );
    carryOut(machine);
  }
  if (machine.marks.length > 0 || machine.stack.length !== 1) machine.fail("the pickle ends, but not with one value");
  const value = machine.pop();
  checkTree(value, cursor, start);
  return value as Plain<TensorRef>;
}
