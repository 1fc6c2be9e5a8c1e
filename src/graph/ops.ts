/**
 * Builders: what composites, gradients and tensors call to record primitives. They make promotion and broadcasting
 * explicit (PyTorch's rules), skip movements that move nothing, and drop x·1 and x−0; no other value is assumed.
 * A plain number here is a literal of the library: it becomes a constant, part of the program's key. A user's numbers
 * are runtime scalars (`scalar`), which `tensor/` makes.
 */
import { accumulator, type DType, dtypes, isFloat, resultType, scalarResultType } from "../core/dtype.ts";
import { DTypeError, ShapeError } from "../core/errors.ts";
import {
  broadcastShapes,
  normalizeAxes,
  normalizeAxis,
  type Shape,
  sameShape,
  showShape,
  sizeOf,
} from "../core/shape.ts";
import { make, Node, noAttrs, type Operation, type Storage } from "./node.ts";
import { primitives as p } from "./primitives.ts";

export type Operand = Node | number | boolean;

// ---- leaves ---------------------------------------------------------------------------------------------------

/** A leaf that reads `storage` as it is now. */
export function leaf(storage: Storage, shape: Shape): Node {
  const node = new Node(p.buffer, [], noAttrs, shape, storage.dtype, storage.device, false, null);
  node.storage = storage;
  node.version = storage.version;
  return node;
}

export const constant = (value: number, dtype: DType): Node => make(p.const, [], { value: encodeNumber(value), dtype });

/** NaN, −0 and the infinities do not survive JSON, which keys are made of; they are written as text. */
const encodeNumber = (v: number): number | string =>
  Number.isFinite(v) && !Object.is(v, -0) ? v : Object.is(v, -0) ? "-0" : String(v);
/** The number that a `const` node holds. */
export const constantValue = (node: Node): number => Number(node.attrs["value"]);

/** A runtime slot: its value is no part of a program's key. */
export function scalar(value: number, dtype: DType): Node {
  const node = new Node(p.scalar, [], scalarAttrs[dtype], [], dtype, "", false, null);
  node.value = value;
  return node;
}
const scalarAttrs = Object.fromEntries(Object.keys(dtypes).map((dtype) => [dtype, { dtype }])) as unknown as Record<
  DType,
  { dtype: DType }
>;

/** int32 positions along `axis`. */
export const iota = (shape: Shape, axis: number): Node => make(p.iota, [], { shape, axis });
/** `value` everywhere. */
export const full = (shape: Shape, value: number, dtype: DType): Node => expandTo(constant(value, dtype), shape);
export const zerosLike = (x: Node): Node => full(x.shape, 0, x.dtype);
export const onesLike = (x: Node): Node => full(x.shape, 1, x.dtype);
/** Raw bits of Threefry-2x32 under the key (two scalars), position by position. */
export const random = (shape: Shape, key0: Node, key1: Node): Node => make(p.random, [key0, key1], { shape });

// ---- types ------------------------------------------------------------------------------------------------------

export const cast = (x: Node, dtype: DType): Node => (x.dtype === dtype ? x : make(p.cast, [x], { dtype }));
export const bitcast = (x: Node, dtype: DType): Node => (x.dtype === dtype ? x : make(p.bitcast, [x], { dtype }));
/** The same value, through which no gradient flows. */
export function detach(x: Node): Node {
  const out = make(p.detach, [x]);
  out.requiresGrad = false;
  return out;
}
/** As it is if floating, else float32: what PyTorch does with integers under sqrt, exp, mean … */
export const toFloat = (x: Node): Node => (isFloat(x.dtype) ? x : cast(x, "float32"));

// ---- movement -----------------------------------------------------------------------------------------------------

/** A view of a view reads the source itself, unless a gradient with respect to the view may be asked for. */
const skippable = (x: Node): boolean => !x.storage && !x.requiresGrad;

export function reshape(x: Node, shape: Shape): Node {
  if (sameShape(x.shape, shape)) return x;
  if (x.operation === p.reshape && skippable(x)) return reshape(x.inputs[0], shape);
  return make(p.reshape, [x], { shape });
}

export function permute(x: Node, axes: readonly number[]): Node {
  let moves = false;
  for (let i = 0; i < axes.length; i++) if (axes[i] !== i) moves = true;
  if (!moves) return x;
  if (x.operation === p.permute && skippable(x)) {
    const inner = x.attrs["axes"] as readonly number[];
    const through: number[] = [];
    for (let i = 0; i < axes.length; i++) through.push(inner[axes[i]]);
    return permute(x.inputs[0], through);
  }
  return make(p.permute, [x], { axes });
}

export function transpose(x: Node, a: number, b: number): Node {
  const axes: number[] = [];
  for (let k = 0; k < x.shape.length; k++) axes.push(k);
  const i = normalizeAxis("transpose", a, axes.length);
  const j = normalizeAxis("transpose", b, axes.length);
  axes[i] = j;
  axes[j] = i;
  return permute(x, axes);
}

/** Broadcasts to `shape` (torch.expand): new axes in front, axes of size 1 grow. */
export function expandTo(x: Node, shape: Shape): Node {
  if (sameShape(x.shape, shape)) return x;
  let y = x;
  const missing = shape.length - x.shape.length;
  if (missing > 0) {
    const sizes = new Array<number>(shape.length); // built by hand: every number beside a tensor comes through here
    for (let i = 0; i < missing; i++) sizes[i] = 1;
    for (let i = 0; i < x.shape.length; i++) sizes[missing + i] = x.shape[i];
    y = reshape(x, sizes);
  }
  return sameShape(y.shape, shape) ? y : make(p.expand, [y], { shape });
}

export interface Range {
  readonly start: number;
  readonly size: number;
  readonly step: number;
}

/** One range an axis; steps of either sign. */
export function slice(x: Node, ranges: readonly Range[]): Node {
  if (ranges.every((r, i) => r.start === 0 && r.size === x.shape[i] && r.step === 1)) return x;
  return make(p.slice, [x], {
    start: ranges.map((r) => r.start),
    step: ranges.map((r) => r.step),
    shape: ranges.map((r) => r.size),
  });
}

/** The part `start` … `start + size` of one axis. */
export const narrow = (x: Node, axis: number, start: number, size: number): Node =>
  slice(
    x,
    x.shape.map((n, i) => (i === axis ? { start, size, step: 1 } : { start: 0, size: n, step: 1 })),
  );

export const flip = (x: Node, axes: readonly number[]): Node =>
  slice(
    x,
    x.shape.map((n, i) =>
      axes.includes(i) && n > 0 ? { start: n - 1, size: n, step: -1 } : { start: 0, size: n, step: 1 },
    ),
  );

export function pad(
  x: Node,
  low: readonly number[],
  high: readonly number[],
  value = 0,
  interior: readonly number[] = low.map(() => 0),
): Node {
  if ([...low, ...high, ...interior].every((n) => n === 0)) return x;
  return make(p.pad, [x], { low, high, interior, value: encodeNumber(value) });
}

export const window = (
  x: Node,
  axes: readonly number[],
  size: readonly number[],
  stride: readonly number[],
  dilation: readonly number[],
): Node => make(p.window, [x], { axes, size, stride, dilation });
export const fold = (
  x: Node,
  axes: readonly number[],
  size: readonly number[],
  stride: readonly number[],
  dilation: readonly number[],
  length: readonly number[],
): Node => make(p.fold, [x], { axes, size, stride, dilation, length });

export function concat(inputs: readonly Node[], axis: number): Node {
  if (inputs.length === 1) return inputs[0];
  return make(p.concat, inputs, { axis });
}

export const unsqueeze = (x: Node, axis: number): Node =>
  reshape(x, [...x.shape.slice(0, axis), 1, ...x.shape.slice(axis)]);
export const squeeze = (x: Node, axis: number): Node =>
  reshape(x, [...x.shape.slice(0, axis), ...x.shape.slice(axis + 1)]);

// ---- elementwise ----------------------------------------------------------------------------------------------------

const unaryFloat =
  (op: Operation) =>
  (x: Node): Node =>
    make(op, [toFloat(x)]);
const unaryNumber =
  (op: Operation) =>
  (x: Node): Node => {
    if (x.dtype === "bool") throw new DTypeError(`${op.name}: does not take bool; cast it with .to("int32")`);
    return make(op, [x]);
  };
/** Floor and its kin leave integers as they are. */
const unaryRounding =
  (op: Operation) =>
  (x: Node): Node =>
    isFloat(x.dtype) ? make(op, [x]) : x;

export const neg = unaryNumber(p.neg);
export const abs = unaryNumber(p.abs);
export const sign = unaryNumber(p.sign);
export const sqrt = unaryFloat(p.sqrt);
export const exp = unaryFloat(p.exp);
export const log = unaryFloat(p.log);
export const log1p = unaryFloat(p.log1p);
export const expm1 = unaryFloat(p.expm1);
export const sin = unaryFloat(p.sin);
export const cos = unaryFloat(p.cos);
export const atan = unaryFloat(p.atan);
export const tanh = unaryFloat(p.tanh);
export const erf = unaryFloat(p.erf);
export const floor = unaryRounding(p.floor);
export const ceil = unaryRounding(p.ceil);
export const trunc = unaryRounding(p.trunc);
export const round = unaryRounding(p.round);
export function not(x: Node): Node {
  if (isFloat(x.dtype)) throw new DTypeError(`not: takes integers and bool, got ${x.dtype}`);
  return make(p.not, [x]);
}

/** Two operands promoted and broadcast; a literal takes the other's dtype where its category allows. */
export function operands(name: string, a: Operand, b: Operand): [Node, Node] {
  if (typeof a === "object" && typeof b === "object" && a.dtype === b.dtype && sameShape(a.shape, b.shape))
    return [a, b];
  if (typeof a !== "object" && typeof b !== "object") throw new DTypeError(`${name}: one operand must be a tensor`);
  if (typeof a !== "object") {
    const dtype = scalarResultType((b as Node).dtype, a);
    b = cast(b as Node, dtype);
    return [full(b.shape, Number(a), dtype), b];
  }
  if (typeof b !== "object") {
    const dtype = scalarResultType(a.dtype, b);
    a = cast(a, dtype);
    return [a, full(a.shape, Number(b), dtype)];
  }
  if (a.dtype !== b.dtype) {
    const dtype = resultType(a.dtype, a.shape.length, b.dtype, b.shape.length);
    a = cast(a, dtype);
    b = cast(b, dtype);
  }
  if (!sameShape(a.shape, b.shape)) {
    const shape = broadcastShapes(name, a.shape, b.shape);
    a = expandTo(a, shape);
    b = expandTo(b, shape);
  }
  return [a, b];
}

/** How a binary row treats bool operands, which PyTorch gives a meaning of its own. */
type Bool = "keep" | "error" | Operation;

function binary(op: Operation, onBool: Bool, name = op.name): (a: Operand, b: Operand) => Node {
  return (a, b) => {
    const pair = operands(name, a, b); // becomes the node's inputs
    if (pair[0].dtype === "bool" && onBool !== "keep") {
      if (onBool === "error")
        throw new DTypeError(`${name}: does not take two bool operands; cast one with .to("int32")`);
      return make(onBool, pair);
    }
    return make(op, pair);
  };
}

const addAny = binary(p.add, p.or);
const subAny = binary(p.sub, "error");
const mulAny = binary(p.mul, p.and);
export const add = addAny;
export const sub = (a: Operand, b: Operand): Node =>
  b === 0 && typeof a === "object" && a.dtype !== "bool" ? a : subAny(a, b);
export const mul = (a: Operand, b: Operand): Node => {
  if (b === 1 && typeof a === "object") return a;
  if (a === 1 && typeof b === "object") return b;
  return mulAny(a, b);
};
/** True division: integers become float32. */
export function div(a: Operand, b: Operand): Node {
  if (b === 1 && typeof a === "object" && isFloat(a.dtype)) return a;
  const pair = operands("div", a, b);
  pair[0] = toFloat(pair[0]);
  pair[1] = toFloat(pair[1]);
  return make(p.div, pair);
}
export const pow = binary(p.pow, "error");
export const maximum = binary(p.max, "keep", "maximum");
export const minimum = binary(p.min, "keep", "minimum");
/** Floor division; of floats it is floor(a / b). */
export function floorDivide(a: Operand, b: Operand): Node {
  const [x, y] = operands("floorDivide", a, b);
  if (x.dtype === "bool") throw new DTypeError('floorDivide: does not take bool; cast it with .to("int32")');
  return isFloat(x.dtype) ? floor(make(p.div, [x, y])) : make(p.idiv, [x, y]);
}
/** The remainder with the divisor's sign (torch.remainder). */
export const mod = binary(p.mod, "error", "remainder");
const bitwise =
  (op: Operation, name: string) =>
  (a: Operand, b: Operand): Node => {
    const [x, y] = operands(name, a, b);
    if (isFloat(x.dtype)) throw new DTypeError(`${name}: takes integers and bool, got ${x.dtype}`);
    return make(op, [x, y]);
  };
export const and = bitwise(p.and, "bitwiseAnd");
export const or = bitwise(p.or, "bitwiseOr");
export const xor = bitwise(p.xor, "bitwiseXor");
export const shl = bitwise(p.shl, "bitwiseLeftShift");
export const shr = bitwise(p.shr, "bitwiseRightShift");
export const lt = binary(p.lt, "keep");
export const le = binary(p.le, "keep");
export const eq = binary(p.eq, "keep");
export const gt = (a: Operand, b: Operand): Node => lt(b, a);
export const ge = (a: Operand, b: Operand): Node => le(b, a);
export const ne = (a: Operand, b: Operand): Node => not(eq(a, b));
export const isNan = (x: Node): Node => ne(x, x);

export function where(condition: Node, a: Operand, b: Operand): Node {
  const pair = operands("where", a, b);
  const shape = broadcastShapes("where", condition.shape, pair[0].shape);
  return make(p.where, [expandTo(condition, shape), expandTo(pair[0], shape), expandTo(pair[1], shape)]);
}

// ---- reduction --------------------------------------------------------------------------------------------------------

export interface ReduceOptions {
  readonly keepdim?: boolean;
  /** A runtime scalar: positions at or after it on the (single) axis do not count. */
  readonly limit?: Node;
}

function reduce(
  op: Operation,
  x: Node,
  dim: number | readonly number[] | undefined,
  { keepdim = false, limit }: ReduceOptions = plainReduction,
): Node {
  const axes = axesOf(op.name, x, dim);
  let y = x;
  if (axes.length || limit) {
    if (limit && axes.length !== 1) throw new ShapeError(`${op.name}: a limit needs exactly one axis`);
    y = make(op, limit ? [x, limit] : [x], { axes });
  }
  if (!keepdim) return y;
  const shape = x.shape.slice();
  for (let i = 0; i < axes.length; i++) shape[axes[i]] = 1;
  return reshape(y, shape);
}
const plainReduction: ReduceOptions = {};

/** The axes that `dim` names, sorted. A tensor without axes has none, though axis 0 may be named. */
function axesOf(name: string, x: Node, dim: number | readonly number[] | undefined): readonly number[] {
  const axes = normalizeAxes(name, dim, x.shape.length);
  return x.shape.length === 0 ? [] : axes;
}

/** Integers and bool are summed as int32, as PyTorch sums them as its widest integer. */
const countable = (x: Node): Node => (x.dtype === "bool" || x.dtype === "uint8" ? cast(x, "int32") : x);

export const sum = (x: Node, dim?: number | readonly number[], o?: ReduceOptions): Node =>
  reduce(p.sum, countable(x), dim, o);
export const prod = (x: Node, dim?: number | readonly number[], o?: ReduceOptions): Node =>
  reduce(p.prod, countable(x), dim, o);
export const reduceMax = (x: Node, dim?: number | readonly number[], o?: ReduceOptions): Node =>
  reduce(p.reduceMax, x, dim, o);
export const reduceMin = (x: Node, dim?: number | readonly number[], o?: ReduceOptions): Node =>
  reduce(p.reduceMin, x, dim, o);

/** mean in the accumulation type's precision. */
export function mean(x: Node, dim?: number | readonly number[], o: ReduceOptions = plainReduction): Node {
  if (!isFloat(x.dtype))
    throw new DTypeError(`mean: takes a floating dtype, got ${x.dtype}; cast it with .to("float32")`);
  const axes = axesOf("mean", x, dim);
  let n = 1;
  for (let i = 0; i < axes.length; i++) n *= x.shape[axes[i]];
  const wide = accumulator(x.dtype);
  return cast(div(sum(cast(x, wide), axes, o), n), x.dtype);
}

function argReduce(op: Operation, x: Node, axis: number | undefined, keepdim: boolean): Node {
  const y = axis === undefined ? reshape(x, [sizeOf(x.shape)]) : x.shape.length ? x : reshape(x, [1]);
  const a = axis === undefined ? 0 : normalizeAxis(op.name, axis, y.shape.length);
  const out = make(op, [y], { axis: a });
  if (!keepdim || x.shape.length === 0) return out;
  return reshape(out, axis === undefined ? x.shape.map(() => 1) : x.shape.map((n, i) => (i === a ? 1 : n)));
}
export const argmax = (x: Node, axis?: number, keepdim = false): Node => argReduce(p.argmax, x, axis, keepdim);
export const argmin = (x: Node, axis?: number, keepdim = false): Node => argReduce(p.argmin, x, axis, keepdim);

const scan =
  (op: Operation) =>
  (x: Node, axis: number): Node => {
    const y = countable(x);
    const a = normalizeAxis(op.name, axis, y.shape.length);
    return y.shape.length === 0 ? y : make(op, [y], { axis: a });
  };
export const cumsum = scan(p.cumsum);
export const cumprod = scan(p.cumprod);
export const cummax = scan(p.cummax);

// ---- contraction ------------------------------------------------------------------------------------------------------

export const contract = (a: Node, b: Node): Node => make(p.contract, [a, b]);

/** torch.matmul: vectors are given an axis that is taken away again, leading axes broadcast. */
export function matmul(a: Node, b: Node): Node {
  if (a.shape.length === 0 || b.shape.length === 0)
    throw new ShapeError(
      `matmul: both operands need at least one axis, got ${showShape(a.shape)} × ${showShape(b.shape)}`,
    );
  if (a.dtype !== b.dtype)
    throw new DTypeError(`matmul: operands differ in dtype: ${a.dtype} and ${b.dtype}; cast one with .to(dtype)`);
  if (a.dtype === "bool") throw new DTypeError('matmul: does not take bool; cast it with .to("float32")');
  const x = a.shape.length === 1 ? reshape(a, [1, a.shape[0]]) : a;
  const y = b.shape.length === 1 ? reshape(b, [b.shape[0], 1]) : b;
  const [n, m] = [x.shape.length, y.shape.length];
  const k = x.shape[n - 1];
  if (k !== y.shape[m - 2]) {
    const hint = m === 2 && y.shape[1] === k ? "; did you mean b.transpose(0, 1)?" : "";
    throw new ShapeError(
      `matmul: inner sizes differ: ${showShape(a.shape)} × ${showShape(b.shape)}, ${k} ≠ ${y.shape[m - 2]}${hint}`,
    );
  }
  let out: Node;
  if (m === 2 && n > 2) {
    // one tall product instead of a batch of small ones
    const rows = sizeOf(x.shape.slice(0, -1));
    out = reshape(contract(reshape(x, [rows, k]), y), [...x.shape.slice(0, -1), y.shape[1]]);
  } else {
    const batch = broadcastShapes("matmul", x.shape.slice(0, -2), y.shape.slice(0, -2));
    out = contract(expandTo(x, [...batch, ...x.shape.slice(-2)]), expandTo(y, [...batch, ...y.shape.slice(-2)]));
  }
  if (a.shape.length === 1) out = squeeze(out, out.shape.length - 2);
  if (b.shape.length === 1) out = squeeze(out, out.shape.length - 1);
  return out;
}

// ---- indexed ------------------------------------------------------------------------------------------------------------

const asIndex = (name: string, index: Node): Node => {
  if (isFloat(index.dtype) || index.dtype === "bool")
    throw new DTypeError(`${name}: the index must be an integer tensor, got ${index.dtype}`);
  return cast(index, "int32");
};

/** torch.gather: `index` may be smaller than x at the other axes. */
export function gather(x: Node, axis: number, index: Node): Node {
  const a = normalizeAxis("gather", axis, x.shape.length);
  return make(p.gather, [fit("gather", x, index.shape, a), asIndex("gather", index)], { axis: a });
}

function fit(name: string, x: Node, shape: Shape, axis: number): Node {
  if (shape.length !== x.shape.length || shape.some((n, i) => i !== axis && n > x.shape[i]))
    throw new ShapeError(
      `${name}: index ${showShape(shape)} does not fit ${showShape(x.shape)} along axis ${axis} (same number of axes, no larger elsewhere)`,
    );
  return slice(
    x,
    x.shape.map((n, i) => ({ start: 0, size: i === axis ? n : shape[i], step: 1 })),
  );
}

/** Whole slices of x along `axis`, one for every element of `index` (any shape): torch.index_select, embedding. */
export function take(x: Node, axis: number, index: Node): Node {
  const a = normalizeAxis("take", axis, x.shape.length);
  const flat = reshape(
    asIndex("take", index),
    x.shape.map((_, i) => (i === a ? sizeOf(index.shape) : 1)),
  );
  const shape = x.shape.map((n, i) => (i === a ? sizeOf(index.shape) : n));
  const out = make(p.gather, [x, expandTo(flat, shape)], { axis: a });
  return reshape(out, [...x.shape.slice(0, a), ...index.shape, ...x.shape.slice(a + 1)]);
}

export function scatter(x: Node, axis: number, index: Node, source: Node, mode: "add" | "set" | "max"): Node {
  const a = normalizeAxis("scatter", axis, x.shape.length);
  if (x.shape.some((n, i) => i !== a && n !== index.shape[i]))
    throw new ShapeError(
      `scatter: index ${showShape(index.shape)} must equal ${showShape(x.shape)} at every axis but ${a}`,
    );
  return make(p.scatter, [x, asIndex("scatter", index), source], { axis: a, mode });
}

export const dynamicSlice = (x: Node, offsets: readonly Node[], shape: Shape): Node =>
  make(p.dynamicSlice, [x, ...offsets], { shape });
export const dynamicUpdate = (x: Node, update: Node, offsets: readonly Node[]): Node =>
  make(p.dynamicUpdate, [x, update, ...offsets]);

export function argsort(x: Node, axis: number, descending = false): Node {
  const y = x.shape.length ? x : reshape(x, [1]);
  const out = make(p.argsort, [y], { axis: normalizeAxis("sort", axis, y.shape.length), descending });
  return reshape(out, x.shape);
}

/** Output `index` of an operation with several. */
export const output = (node: Node, index: number): Node => (index === 0 ? node : make(p.output, [node], { index }));
export const outputs = (node: Node): Node[] => (node.outputs ? node.outputs.map((_, i) => output(node, i)) : [node]);
