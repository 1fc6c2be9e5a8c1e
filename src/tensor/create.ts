/**
 * Tensors from data and from nothing: tensor(…), zeros, arange … What needs no data is recorded like any operation and
 * takes no memory until it is used.
 */
import { allocateRaw, type DType, dtypes, encode, isDType, type TypedArray } from "../core/dtype.ts";
import { DTypeError, ShapeError } from "../core/errors.ts";
import { checkShape, type Shape, showShape, sizeOf } from "../core/shape.ts";
import { checkDevice, defaultDevice, leafFrom, transfer } from "../execution/index.ts";
import { Node } from "../graph/node.ts";
import * as ops from "../graph/ops.ts";
import { scalarNode } from "./operand.ts";
import { type NestedNumbers, Tensor, wrap } from "./tensor.ts";

export interface TensorOptions {
  readonly dtype?: DType;
  readonly device?: string;
  readonly requiresGrad?: boolean;
}

export interface DataOptions extends TensorOptions {
  /** The shape of flat data. */
  readonly shape?: Shape;
}

/** Arrays of numbers that tensor() takes; int64 comes in as BigInt64Array and is checked to fit int32. */
export type NumberArray = TypedArray | Int8Array | Int16Array | Uint8ClampedArray | BigInt64Array | BigUint64Array;

function checkDType(dtype: DType): DType {
  if (!isDType(dtype))
    throw new DTypeError(`there is no dtype ${JSON.stringify(dtype)}; known are ${Object.keys(dtypes).join(", ")}`);
  return dtype;
}

/** A new node as a tensor, on the device and with the gradient asked for. */
export function finish(node: Node, options: TensorOptions | undefined): Tensor {
  if (options?.device !== undefined) node = onDevice(node, checkDevice(options.device));
  const out = new Tensor(node);
  return options?.requiresGrad ? out.requiresGrad_() : out;
}

/** What is at home everywhere, tied to one device. */
function onDevice(node: Node, device: string): Node {
  if (node.device === device) return node;
  const tied = new Node(node.operation, node.inputs, node.attrs, node.shape, node.dtype, device, false, node.outputs);
  tied.value = node.value;
  return tied;
}

const typedDType = (data: NumberArray): DType => {
  if (data instanceof Float32Array) return "float32";
  if (data instanceof Float64Array) return "float64";
  if (data instanceof Uint8Array || data instanceof Uint8ClampedArray) return "uint8";
  if (data instanceof Uint32Array) return "uint32";
  return "int32";
};

const isTyped = (data: unknown): data is NumberArray => ArrayBuffer.isView(data) && !(data instanceof DataView);

/** Numbers in the raw form of `dtype`: integers are cut off toward zero as PyTorch cuts them, and must fit. */
function toRaw(dtype: DType, values: ArrayLike<number | bigint>, length: number): TypedArray {
  const out = allocateRaw(dtype, length);
  const { range } = dtypes[dtype];
  if (dtype === "bool") {
    for (let i = 0; i < length; i++) out[i] = Number(values[i]) !== 0 ? 1 : 0;
  } else if (range) {
    for (let i = 0; i < length; i++) {
      const v = Math.trunc(Number(values[i]));
      if (!(v >= range[0] && v <= range[1]))
        throw new DTypeError(
          `tensor: element ${i} is ${values[i]}, which does not fit ${dtype} (${range[0]} … ${range[1]})`,
        );
      out[i] = v;
    }
  } else encode(dtype, values as ArrayLike<number>, out);
  return out;
}

function shapeOfNested(data: NestedNumbers): number[] {
  const shape: number[] = [];
  for (let at: NestedNumbers | undefined = data; Array.isArray(at); at = at[0]) shape.push(at.length);
  return shape;
}

/** Row-major elements of nested arrays; throws where they are not rectangular. */
function flattenNested(data: NestedNumbers, shape: Shape): { values: number[]; bool: boolean } {
  const values: number[] = [];
  let bool = false;
  let number = false;
  const visit = (part: NestedNumbers, axis: number): void => {
    if (!Array.isArray(part)) {
      if (axis !== shape.length)
        throw new ShapeError(
          `tensor: the nested arrays are not rectangular: expected ${showShape(shape)}, found a number at depth ${axis}`,
        );
      if (typeof part === "boolean") bool = true;
      else if (typeof part === "number") number = true;
      else throw new DTypeError(`tensor: elements must be numbers or booleans, found ${typeof part}`);
      values.push(Number(part));
      return;
    }
    if (axis >= shape.length || part.length !== shape[axis])
      throw new ShapeError(
        `tensor: the nested arrays are not rectangular: expected ${showShape(shape)}, found ${part.length} elements at depth ${axis}`,
      );
    for (const inner of part) visit(inner, axis + 1);
  };
  visit(data, 0);
  return { values, bool: bool && !number };
}

/**
 * A tensor with the elements of nested arrays, a typed array or a number (torch.tensor). Numbers give float32, booleans bool,
 * typed arrays their own dtype (64-bit integers int32, checked). The data are copied. Throws ShapeError, DTypeError.
 */
export function tensor(data: NestedNumbers | NumberArray, options: DataOptions = {}): Tensor {
  const device = options.device === undefined ? defaultDevice() : checkDevice(options.device);
  let dtype: DType;
  let shape: Shape;
  let raw: TypedArray;
  let owned = true;
  if (isTyped(data)) {
    dtype = checkDType(options.dtype ?? typedDType(data));
    shape = options.shape ?? [data.length];
    checkShape("tensor", shape);
    if (sizeOf(shape) !== data.length)
      throw new ShapeError(
        `tensor: ${data.length} elements can't have shape ${showShape(shape)} (${sizeOf(shape)} elements)`,
      );
    if (data.constructor === dtypes[dtype].array && dtypes[dtype].bytes !== 2 && dtype !== "bool") {
      raw = data as TypedArray;
      owned = false;
    } else raw = toRaw(dtype, data as ArrayLike<number | bigint>, data.length);
  } else {
    const nested = shapeOfNested(data);
    const { values, bool } = flattenNested(data, nested);
    dtype = checkDType(options.dtype ?? (bool ? "bool" : "float32"));
    shape = options.shape ?? nested;
    checkShape("tensor", shape);
    if (sizeOf(shape) !== values.length)
      throw new ShapeError(
        `tensor: ${values.length} elements can't have shape ${showShape(shape)} (${sizeOf(shape)} elements)`,
      );
    raw = toRaw(dtype, values, values.length);
  }
  const out = new Tensor(leafFrom(device, dtype, shape, raw, owned));
  return options.requiresGrad ? out.requiresGrad_() : out;
}

/**
 * A tensor from raw elements in row-major order, 16-bit floats as bits: what files hold. `owned` says that nobody writes to the
 * array afterwards, so that it need not be copied.
 */
export function fromRaw(
  raw: TypedArray,
  dtype: DType,
  shape: Shape,
  options: { readonly device?: string; readonly owned?: boolean } = {},
): Tensor {
  checkShape("fromRaw", shape);
  if (raw.constructor !== dtypes[checkDType(dtype)].array || raw.length !== sizeOf(shape))
    throw new DTypeError(
      `fromRaw: ${dtype}${showShape(shape)} is held by ${sizeOf(shape)} elements of ${dtypes[dtype].array.name}, got ${raw.length} of ${raw.constructor.name}`,
    );
  const device = options.device === undefined ? defaultDevice() : checkDevice(options.device);
  return new Tensor(leafFrom(device, dtype, shape, raw, options.owned ?? false));
}

// ---- without data ---------------------------------------------------------------------------------------------------------

function fullNode(shape: Shape, value: number | boolean, dtype: DType): Node {
  checkShape("full", shape);
  return ops.expandTo(scalarNode("full", value, checkDType(dtype)), shape);
}
function constantNode(shape: Shape, value: number, dtype: DType): Node {
  checkShape("zeros", shape);
  return ops.full(shape, value, checkDType(dtype));
}

/** `value` everywhere; float32, or bool for a boolean. */
export const full = (shape: Shape, value: number | boolean, options: TensorOptions = {}): Tensor =>
  finish(fullNode(shape, value, options.dtype ?? (typeof value === "boolean" ? "bool" : "float32")), options);
export const zeros = (shape: Shape, options: TensorOptions = {}): Tensor =>
  finish(constantNode(shape, 0, options.dtype ?? "float32"), options);
export const ones = (shape: Shape, options: TensorOptions = {}): Tensor =>
  finish(constantNode(shape, 1, options.dtype ?? "float32"), options);
/** Zeros: memory is never given out uninitialised. */
export const empty = zeros;

const like = (x: Tensor, options: TensorOptions): TensorOptions => ({
  dtype: x.dtype,
  ...(x.node.device === "" ? {} : { device: x.node.device }),
  ...options,
});
export const zerosLike = (x: Tensor, options: TensorOptions = {}): Tensor => zeros(x.shape, like(x, options));
export const onesLike = (x: Tensor, options: TensorOptions = {}): Tensor => ones(x.shape, like(x, options));
export const emptyLike = zerosLike;
export const fullLike = (x: Tensor, value: number | boolean, options: TensorOptions = {}): Tensor =>
  full(x.shape, value, like(x, options));

/** start, start + step, … before end (torch.arange); int32 if all three are whole numbers, else float32. */
export function arange(end: number, options?: TensorOptions): Tensor;
export function arange(start: number, end: number, options?: TensorOptions): Tensor;
export function arange(start: number, end: number, step: number, options?: TensorOptions): Tensor;
export function arange(...args: (number | TensorOptions | undefined)[]): Tensor {
  const options = (args.find((a) => typeof a === "object") ?? {}) as TensorOptions;
  const numbers = args.filter((a) => typeof a === "number") as number[];
  const [start, end, step] = numbers.length === 1 ? [0, numbers[0], 1] : [numbers[0], numbers[1], numbers[2] ?? 1];
  if (!(step !== 0 && Number.isFinite((end - start) / step)))
    throw new ShapeError(`arange: can't go from ${start} to ${end} in steps of ${step}`);
  const n = Math.max(0, Math.ceil((end - start) / step));
  const whole = numbers.every(Number.isInteger);
  const dtype = checkDType(options.dtype ?? (whole ? "int32" : "float32"));
  if (whole && dtype !== "uint32") {
    let node = ops.iota([n], 0);
    if (step !== 1) node = ops.mul(node, scalarNode("arange", step, "int32"));
    if (start !== 0) node = ops.add(node, scalarNode("arange", start, "int32"));
    return finish(ops.cast(node, dtype), options);
  }
  return tensor(
    Float64Array.from({ length: n }, (_, i) => start + i * step),
    { ...options, dtype },
  );
}
/** `steps` values from start to end, both included. */
export function linspace(start: number, end: number, steps: number, options: TensorOptions = {}): Tensor {
  checkShape("linspace", [steps]);
  const step = steps > 1 ? (end - start) / (steps - 1) : 0;
  // from both ends, so that both are exact
  const values = Float64Array.from({ length: steps }, (_, i) =>
    i < steps / 2 ? start + i * step : end - (steps - 1 - i) * step,
  );
  return tensor(values, { dtype: "float32", ...options });
}
/** base to the power of `steps` values from start to end. */
export function logspace(
  start: number,
  end: number,
  steps: number,
  options: TensorOptions & { readonly base?: number } = {},
): Tensor {
  const { base = 10, ...rest } = options;
  checkShape("logspace", [steps]);
  const step = steps > 1 ? (end - start) / (steps - 1) : 0;
  return tensor(
    Float64Array.from({ length: steps }, (_, i) => base ** (start + i * step)),
    { dtype: "float32", ...rest },
  );
}
/** 1 on the diagonal of an n × m matrix, 0 elsewhere. */
export function eye(n: number, m: number = n, options: TensorOptions = {}): Tensor {
  const shape = [n, m];
  checkShape("eye", shape);
  const on = ops.eq(ops.iota(shape, 0), ops.iota(shape, 1));
  return finish(ops.cast(on, checkDType(options.dtype ?? "float32")), options);
}
/** A tensor without axes. */
export const scalarTensor = (value: number, options: TensorOptions = {}): Tensor => full([], value, options);

/** Grids of coordinates from vectors (torch.meshgrid). */
export function meshgrid(tensors: readonly Tensor[], options: { readonly indexing?: "ij" | "xy" } = {}): Tensor[] {
  const { indexing = "ij" } = options;
  for (const x of tensors) if (x.ndim > 1) throw new ShapeError(`meshgrid: takes vectors, got ${showShape(x.shape)}`);
  const swap = indexing === "xy" && tensors.length > 1;
  const places = tensors.map((_, i) => (swap && i < 2 ? 1 - i : i));
  const shape = new Array<number>(tensors.length);
  tensors.forEach((x, i) => {
    shape[places[i]] = x.size;
  });
  return tensors.map((x, i) => {
    const row = ops.reshape(
      x.node,
      shape.map((_, a) => (a === places[i] ? x.size : 1)),
    );
    return wrap(x, ops.expandTo(row, shape));
  });
}

// ---- conversion -------------------------------------------------------------------------------------------------------------

/**
 * As another dtype or on another device (torch.Tensor.to). A move between devices starts at once; a tensor with a graph must be
 * detached first.
 */
export function to(
  x: Tensor,
  target: DType | (string & {}) | { readonly dtype?: DType; readonly device?: string },
): Tensor {
  const { dtype, device } =
    typeof target === "object"
      ? target
      : isDType(target)
        ? { dtype: target, device: undefined }
        : { dtype: undefined, device: target };
  let { node } = x;
  if (dtype !== undefined) node = ops.cast(node, checkDType(dtype));
  if (device !== undefined && node.device !== checkDevice(device)) {
    if (node.requiresGrad)
      throw new DTypeError(
        `to: a tensor with a graph can't move to "${device}"; detach() it, or move the leaves before computing`,
      );
    node = node.device === "" ? onDevice(node, device) : transfer(node, device);
  }
  return wrap(x, node);
}
