/**
 * The closed table of primitives: one row each, with its shape rule and dtype rule. What a row means is written in
 * `backends/reference`, its gradient in `autograd/rules.ts`. Rows are strict: operands have equal shapes and dtypes;
 * broadcasting and promotion are made explicit by the builders in `ops.ts`.
 */
import { type DType, dtypes } from "../core/dtype.ts";
import { DTypeError, ShapeError } from "../core/errors.ts";
import { type Shape, sameShape, showShape, sizeOf } from "../core/shape.ts";
import { type Attrs, type Group, type Node, type Operation, registerOperation, type Spec } from "./node.ts";

type Kind = "float" | "integer" | "bool" | "any" | "number" | "bits";

/** Which dtypes a row takes, by kind. The operation table of the tests reads this. */
export const dtypesOf: Readonly<Record<Kind, readonly DType[]>> = {
  float: ["float32", "float64", "float16", "bfloat16"],
  integer: ["int32", "uint32", "uint8"],
  bool: ["bool"],
  number: ["float32", "float64", "float16", "bfloat16", "int32", "uint32", "uint8"],
  bits: ["int32", "uint32", "uint8", "bool"],
  any: ["float32", "float64", "float16", "bfloat16", "int32", "uint32", "uint8", "bool"],
};

/** The dtypes that each primitive accepts for its (first) operand. */
export const accepts = new Map<string, readonly DType[]>();

function row(group: Group, name: string, kind: Kind, infer: Operation["infer"]): Operation {
  accepts.set(name, dtypesOf[kind]);
  return registerOperation({ group, name, infer });
}

function expectDType(name: string, dtype: DType, kind: Kind): void {
  if (!dtypesOf[kind].includes(dtype))
    throw new DTypeError(`${name}: takes ${dtypesOf[kind].join(", ")}, got ${dtype}; cast it with .to(dtype)`);
}

// Rules run for every recorded node: where an output is like an input, the input itself is the specification.

function unary(name: string, kind: Kind): Operation {
  return row("unary", name, kind, (inputs) => {
    expectDType(name, inputs[0].dtype, kind);
    return inputs[0];
  });
}

function expectPair(name: string, a: Node, b: Node): void {
  if (a.dtype !== b.dtype) throw new DTypeError(`${name}: operands differ in dtype: ${a.dtype} and ${b.dtype}`);
  if (!sameShape(a.shape, b.shape))
    throw new ShapeError(`${name}: operands differ in shape: ${showShape(a.shape)} and ${showShape(b.shape)}`);
}

function binary(name: string, kind: Kind, out?: DType): Operation {
  return row("binary", name, kind, (inputs) => {
    const a = inputs[0];
    expectPair(name, a, inputs[1]);
    expectDType(name, a.dtype, kind);
    return out === undefined ? a : { shape: a.shape, dtype: out };
  });
}

/** The shape without `axes`. */
export function withoutAxes(shape: Shape, axes: readonly number[]): number[] {
  const kept: number[] = [];
  for (let i = 0; i < shape.length; i++) if (!axes.includes(i)) kept.push(shape[i]);
  return kept;
}

/** sum prod max min over `axes` (removed). A second input is the runtime `limit`: positions at or after it on the one axis do not count. */
function reduction(name: string, kind: Kind): Operation {
  const extreme = name === "reduceMax" || name === "reduceMin";
  return row("reduction", name, kind, (inputs, attrs) => {
    const x = inputs[0];
    expectDType(name, x.dtype, kind);
    const list = ints(attrs, "axes");
    if (extreme && sizeOf(x.shape) === 0 && list.some((a) => x.shape[a] === 0))
      throw new ShapeError(
        `${name}: the ${name === "reduceMax" ? "maximum" : "minimum"} of no elements does not exist: ${showShape(x.shape)} over axes ${showShape(list)}`,
      );
    return { shape: withoutAxes(x.shape, list), dtype: x.dtype };
  });
}

function argReduction(name: string): Operation {
  return row("reduction", name, "any", ([x], { axis }) => {
    if (x.shape[axis as number] === 0)
      throw new ShapeError(`${name}: axis ${axis} of ${showShape(x.shape)} is empty; there is no index to give`);
    return { shape: withoutAxes(x.shape, [axis as number]), dtype: "int32" };
  });
}

const prefix = (name: string): Operation => row("prefix", name, "number", ([x]) => x);

const ints = (attrs: Attrs, name: string): readonly number[] => attrs[name] as readonly number[];

/** Windows of `size` positions, `dilation` apart, that fit into `length` when they start `stride` apart. */
export const windowCount = (length: number, size: number, stride: number, dilation: number): number =>
  Math.max(0, Math.floor((length - dilation * (size - 1) - 1) / stride) + 1);

export const primitives = {
  // leaves
  buffer: row("leaf", "buffer", "any", () => {
    throw new ShapeError("buffer: is made by leaf(), which knows its shape");
  }),
  const: row("leaf", "const", "any", (_, { dtype }) => ({ shape: [], dtype: dtype as DType })),
  scalar: row("leaf", "scalar", "any", (_, { dtype }) => ({ shape: [], dtype: dtype as DType })),
  iota: row("leaf", "iota", "any", (_, attrs) => ({ shape: ints(attrs, "shape"), dtype: "int32" })),
  /** What a loop's body stands on; only bodies have any. */
  placeholder: row("leaf", "placeholder", "any", (_, attrs) => ({
    shape: ints(attrs, "shape"),
    dtype: attrs["dtype"] as DType,
  })),

  // unary
  neg: unary("neg", "number"),
  abs: unary("abs", "number"),
  sign: unary("sign", "number"),
  sqrt: unary("sqrt", "float"),
  exp: unary("exp", "float"),
  log: unary("log", "float"),
  log1p: unary("log1p", "float"),
  expm1: unary("expm1", "float"),
  sin: unary("sin", "float"),
  cos: unary("cos", "float"),
  atan: unary("atan", "float"),
  tanh: unary("tanh", "float"),
  erf: unary("erf", "float"),
  floor: unary("floor", "float"),
  ceil: unary("ceil", "float"),
  trunc: unary("trunc", "float"),
  round: unary("round", "float"),
  not: unary("not", "bits"),

  // binary
  add: binary("add", "number"),
  sub: binary("sub", "number"),
  mul: binary("mul", "number"),
  div: binary("div", "float"),
  pow: binary("pow", "number"),
  max: binary("max", "any"),
  min: binary("min", "any"),
  idiv: binary("idiv", "integer"),
  mod: binary("mod", "number"),
  and: binary("and", "bits"),
  or: binary("or", "bits"),
  xor: binary("xor", "bits"),
  shl: binary("shl", "integer"),
  shr: binary("shr", "integer"),
  lt: binary("lt", "any", "bool"),
  le: binary("le", "any", "bool"),
  eq: binary("eq", "any", "bool"),

  // choice and types
  where: row("choice", "where", "any", ([c, a, b]) => {
    expectPair("where", a, b);
    if (c.dtype !== "bool") throw new DTypeError(`where: the condition must be bool, got ${c.dtype}`);
    if (!sameShape(c.shape, a.shape))
      throw new ShapeError(`where: condition ${showShape(c.shape)} and values ${showShape(a.shape)} differ in shape`);
    return a;
  }),
  cast: row("choice", "cast", "any", (inputs, attrs) => ({ shape: inputs[0].shape, dtype: attrs["dtype"] as DType })),
  bitcast: row("choice", "bitcast", "any", ([x], { dtype }) => {
    if (dtypes[x.dtype].bytes !== dtypes[dtype as DType].bytes)
      throw new DTypeError(`bitcast: ${x.dtype} and ${dtype} differ in size`);
    return { shape: x.shape, dtype: dtype as DType };
  }),
  detach: row("choice", "detach", "any", ([x]) => x),

  // movement
  reshape: row("movement", "reshape", "any", (inputs, attrs) => {
    const x = inputs[0];
    const shape = ints(attrs, "shape");
    if (sizeOf(shape) !== sizeOf(x.shape))
      throw new ShapeError(
        `reshape: ${showShape(x.shape)} has ${sizeOf(x.shape)} elements, ${showShape(shape)} has ${sizeOf(shape)}`,
      );
    return { shape, dtype: x.dtype };
  }),
  permute: row("movement", "permute", "any", (inputs, attrs) => {
    const x = inputs[0];
    const axes = ints(attrs, "axes");
    const shape: number[] = [];
    for (let i = 0; i < axes.length; i++) shape.push(x.shape[axes[i]]);
    return { shape, dtype: x.dtype };
  }),
  /** Axes of size 1 grow to the size asked for; the number of axes stays. */
  expand: row("movement", "expand", "any", (inputs, attrs) => {
    const x = inputs[0];
    const shape = ints(attrs, "shape");
    let grows = shape.length === x.shape.length;
    for (let i = 0; grows && i < shape.length; i++) grows = x.shape[i] === shape[i] || x.shape[i] === 1;
    if (!grows)
      throw new ShapeError(
        `expand: ${showShape(x.shape)} can't grow to ${showShape(shape)} (only axes of size 1 grow)`,
      );
    return { shape, dtype: x.dtype };
  }),
  /** Position i of the result is position start + i·step of the input; step is not 0 and may be negative. */
  slice: row("movement", "slice", "any", ([x], attrs) => ({ shape: ints(attrs, "shape"), dtype: x.dtype })),
  /** `low` and `high` positions of `value` around, `interior` between neighbours (all ≥ 0). */
  pad: row("movement", "pad", "any", ([x], attrs) => {
    const [low, high, interior] = [ints(attrs, "low"), ints(attrs, "high"), ints(attrs, "interior")];
    const shape = x.shape.map((n, i) => low[i] + n + Math.max(0, n - 1) * interior[i] + high[i]);
    return { shape, dtype: x.dtype };
  }),
  /** Sliding windows along `axes`: the axis becomes the window's number, its positions become new trailing axes. */
  window: row("movement", "window", "any", ([x], attrs) => {
    const [axes, size, stride, dilation] = ["axes", "size", "stride", "dilation"].map((n) => ints(attrs, n));
    const shape = x.shape.slice();
    axes.forEach((a, i) => {
      shape[a] = windowCount(x.shape[a], size[i], stride[i], dilation[i]);
    });
    return { shape: [...shape, ...size], dtype: x.dtype };
  }),
  /** The transpose of `window`: windows are added where they overlap, into axes of `length`. */
  fold: row("movement", "fold", "number", ([x], attrs) => {
    const [axes, length] = [ints(attrs, "axes"), ints(attrs, "length")];
    const shape = x.shape.slice(0, x.shape.length - axes.length);
    axes.forEach((a, i) => {
      shape[a] = length[i];
    });
    return { shape, dtype: x.dtype };
  }),
  concat: row("movement", "concat", "any", (inputs, { axis }) => {
    const a = axis as number;
    const first = inputs[0];
    let total = 0;
    for (const x of inputs) {
      if (x.dtype !== first.dtype)
        throw new DTypeError(`concat: inputs differ in dtype: ${first.dtype} and ${x.dtype}`);
      if (x.shape.length !== first.shape.length || x.shape.some((n, i) => i !== a && n !== first.shape[i]))
        throw new ShapeError(
          `concat: ${showShape(first.shape)} and ${showShape(x.shape)} may differ only at axis ${a}`,
        );
      total += x.shape[a];
    }
    return { shape: first.shape.map((n, i) => (i === a ? total : n)), dtype: first.dtype };
  }),

  // reduction
  sum: reduction("sum", "number"),
  prod: reduction("prod", "number"),
  reduceMax: reduction("reduceMax", "any"),
  reduceMin: reduction("reduceMin", "any"),
  argmax: argReduction("argmax"),
  argmin: argReduction("argmin"),

  // prefix
  cumsum: prefix("cumsum"),
  cumprod: prefix("cumprod"),
  cummax: prefix("cummax"),

  // contraction: a [batch…, m, k] · b [batch…, k, n] → [batch…, m, n], accumulated in accumulator(dtype)
  contract: row("contraction", "contract", "number", (inputs) => {
    const a = inputs[0];
    const b = inputs[1];
    const sa = a.shape;
    const sb = b.shape;
    const n = sa.length;
    expectDType("contract", a.dtype, "number");
    if (a.dtype !== b.dtype) throw new DTypeError(`contract: operands differ in dtype: ${a.dtype} and ${b.dtype}`);
    let fits = n >= 2 && sb.length === n && sa[n - 1] === sb[n - 2];
    for (let i = 0; fits && i < n - 2; i++) fits = sa[i] === sb[i];
    if (!fits)
      throw new ShapeError(`contract: ${showShape(sa)} × ${showShape(sb)} do not fit [batch…, m, k] × [batch…, k, n]`);
    const shape = sa.slice();
    shape[n - 1] = sb[n - 1];
    return { shape, dtype: a.dtype };
  }),

  // indexed
  /** out[…, i, …] = x[…, index[…, i, …], …] along `axis`; index (int32) has x's shape at every other axis. */
  gather: row("indexed", "gather", "any", ([x, index], { axis }) => {
    if (index.dtype !== "int32") throw new DTypeError(`gather: the index must be int32, got ${index.dtype}`);
    if (index.shape.length !== x.shape.length || index.shape.some((n, i) => i !== axis && n !== x.shape[i]))
      throw new ShapeError(
        `gather: index ${showShape(index.shape)} and source ${showShape(x.shape)} may differ only at axis ${axis}`,
      );
    return { shape: index.shape, dtype: x.dtype };
  }),
  /** x with source written (`mode` add, set: the last wins, max) at index along `axis`. */
  scatter: row("indexed", "scatter", "number", ([x, index, source], { axis }) => {
    if (index.dtype !== "int32") throw new DTypeError(`scatter: the index must be int32, got ${index.dtype}`);
    if (source.dtype !== x.dtype) throw new DTypeError(`scatter: source is ${source.dtype}, destination ${x.dtype}`);
    if (
      !sameShape(index.shape, source.shape) ||
      index.shape.length !== x.shape.length ||
      index.shape.some((n, i) => i !== axis && n !== x.shape[i])
    )
      throw new ShapeError(
        `scatter: index ${showShape(index.shape)} and source ${showShape(source.shape)} must be equal, and fit ${showShape(x.shape)} at every axis but ${axis}`,
      );
    return x;
  }),
  /** `shape` elements of x from the runtime offsets given as scalars, one an axis. */
  dynamicSlice: row("indexed", "dynamicSlice", "any", ([x], attrs) => ({
    shape: ints(attrs, "shape"),
    dtype: x.dtype,
  })),
  /** x with `update` written at the runtime offsets given as scalars, one an axis. */
  dynamicUpdate: row("indexed", "dynamicUpdate", "any", ([x]) => x),
  /** The stable order of an axis, as indices; NaN counts as larger than everything. */
  argsort: row("indexed", "argsort", "any", ([x]) => ({ shape: x.shape, dtype: "int32" })),

  // random: Threefry-2x32 of (key, position) → uint32; the key is two scalars
  random: row("random", "random", "any", (_, attrs) => ({ shape: ints(attrs, "shape"), dtype: "uint32" })),

  // control
  /**
   * `count` steps of a body (loop.ts), which gives the next value of each carry and the step's outputs. Inputs: the first
   * carries, the sequences, what the body captures. Outputs: the last carries, then the steps' outputs stacked.
   */
  loop: row("control", "loop", "any", (inputs, attrs) => [
    ...inputs.slice(0, attrs["carries"] as number).map(({ shape, dtype }) => ({ shape, dtype })),
    ...(attrs["outputs"] as readonly (readonly [DType, ...number[]])[]).map(([dtype, ...sizes]) => ({
      shape: [attrs["count"] as number, ...sizes],
      dtype,
    })),
  ]),

  // state and plumbing
  /** Version k+1 of the state that input 0 reads: the value of input 1. */
  assign: row("state", "assign", "any", (inputs) => {
    expectPair("assign", inputs[0], inputs[1]);
    return inputs[1];
  }),
  /** Output `index` (≥ 1) of an operation with several. */
  output: row("state", "output", "any", ([x], { index }) => (x.outputs as readonly Spec[])[index as number]),
};
