/**
 * What kernels compute with: four lanes of float32, int32, uint32 or a mask in one vector, of float64 in two. The rows of
 * the operation table, casts, and how each dtype lies in memory. Where a kernel loops and stores is `emit.ts`'s.
 */
import { type Lane, laneOf, type Reduction } from "../../compiler/kernel.ts";
import type { DType } from "../../core/dtype.ts";
import { BackendError } from "../../core/errors.ts";
import { call, type Func, type Local } from "./function.ts";
import {
  type Expr,
  f32s,
  f32x4,
  f64,
  f64s,
  f64x2,
  i8x16,
  i16x8,
  i32,
  i32s,
  i32x4,
  i64x2,
  shuffle32,
  v128,
  vector,
} from "./instructions.ts";
import { fromDoubles, isUnary32, type Library, pick, toDoubles } from "./math.ts";

export const LANES = 4;

/** A value in four lanes: one vector, or two of doubles. */
export type Vec = readonly Expr[];
type Locals = readonly Local[];

const maskOf = (m: Expr): readonly [Expr, Expr] => [i64x2.extend_low_i32x4_s(m), i64x2.extend_high_i32x4_s(m)];
/** A mask of 32-bit lanes from two of 64-bit lanes. */
const narrow = (low: Expr, high: Expr): Expr => shuffle32(low, high, [0, 2, 4, 6]);

export function number(text: string, t: Lane): Vec {
  const v = Number(text);
  if (t === "m") return [i32s(v ? -1 : 0)];
  if (t === "i" || t === "u") return [i32s(v | 0)];
  if (t === "f") return [f32s(v)];
  return [f64s(v), f64s(v)];
}

export const zero = (t: Lane): Vec => (t === "d" ? [f64s(0), f64s(0)] : [i32s(0)]);

export function selectLanes(t: Lane, mask: Expr, a: Vec, b: Vec): Vec {
  if (t !== "d") return [pick(mask, a[0], b[0])];
  const wide = maskOf(mask);
  return [pick(wide[0], a[0], b[0]), pick(wide[1], a[1], b[1])];
}

// ---- operations -----------------------------------------------------------------------------------------------------

interface Context {
  readonly f: Func;
  readonly lib: Library;
  /** Lane of the operands; of the result for most. */
  readonly t: Lane;
  readonly dtype: DType;
}
type Emit = (c: Context, args: readonly Locals[]) => Vec;

type Two = (a: Expr, b: Expr) => Expr;
type One = (a: Expr) => Expr;

const each2 = (op: Two, a: Vec, b: Vec): Vec => a.map((x, i) => op(x, b[i]));
/** A row on floats, doubles and integers; uint8 is held in int32 and cut to its low bits. */
const binary =
  (float: Two, double: Two, int: Two, unsigned: Two = int): Emit =>
  ({ t, dtype }, [a, b]) => {
    const out = each2(t === "f" ? float : t === "d" ? double : t === "u" ? unsigned : int, a, b);
    return dtype === "uint8" ? [v128.and(out[0], i32s(255))] : out;
  };
const unary =
  (float: One, double: One, int: One = (x) => x, unsigned: One = int): Emit =>
  ({ t, dtype }, [a]) => {
    const out = a.map(t === "f" ? float : t === "d" ? double : t === "u" ? unsigned : int);
    return dtype === "uint8" ? [v128.and(out[0], i32s(255))] : out;
  };
/** Masks have no arithmetic; what a bool operation means in logic. */
const orMask =
  (mask: Two, other: Emit): Emit =>
  (c, args) =>
    c.t === "m" ? [mask(args[0][0], args[1][0])] : other(c, args);
const comparison = (mask: Two, float: Two, double: Two, int: Two, unsigned: Two): Emit =>
  orMask(mask, ({ t }, [a, b]) => {
    if (t === "d") return [narrow(double(a[0], b[0]), double(a[1], b[1]))];
    return [(t === "f" ? float : t === "u" ? unsigned : int)(a[0], b[0])];
  });
const bits = (op: Two): Emit => binary(op, op, op);
const integer =
  (name: string, perSign = true): Emit =>
  ({ lib, t, dtype }, [a, b]) => {
    const out = call(lib.integer(perSign ? `${t}_${name}` : name), a[0], b[0]);
    return [dtype === "uint8" ? v128.and(out, i32s(255)) : out];
  };
const floatOr =
  (integers: Emit, name: string, host = name): Emit =>
  (c, args) => {
    const [a, b] = args;
    if (c.t === "f") return [call(c.lib.binary32(name), a[0], b[0])];
    if (c.t === "d") return each2((x, y) => call(c.lib.float64(host, 2), x, y), a, b);
    return integers(c, args);
  };
/** A row that integers do not have. */
const noDivision: Two = () => {
  throw new BackendError("wasm: integers are divided by idiv");
};

function sign({ t, dtype }: Context, [a]: readonly Locals[]): Vec {
  if (t === "u" || dtype === "uint8") return [i32x4.min_u(a[0], i32s(1))];
  if (t === "i") return [i32x4.sub(i32x4.gt_s(i32s(0), a[0]), i32x4.gt_s(a[0], i32s(0)))];
  // ±1 with the value's own sign where it is not 0; 0 and NaN stay
  const [one, mask] = t === "f" ? [f32s(1), f32s(-0)] : [f64s(1), f64s(-0)];
  const { lt, gt } = t === "f" ? f32x4 : f64x2;
  const none = t === "f" ? f32s(0) : f64s(0);
  return a.map((x) => pick(v128.or(lt(x, none), gt(x, none)), v128.or(one, v128.and(x, mask)), x));
}

/** The remainder of doubles has the divisor's sign. */
const modFloat64: Emit = ({ f, lib }, [a, b]) =>
  a.map((x, i) => {
    const y = b[i];
    const r = f.let(call(lib.float64("fmod", 2), x, y));
    const none = f64s(0);
    const { lt, gt } = f64x2;
    const wrong = v128.or(v128.and(lt(r, none), gt(y, none)), v128.and(gt(r, none), lt(y, none)));
    return pick(wrong, f64x2.add(r, y), r);
  });

export const operations: Readonly<Record<string, Emit>> = {
  neg: unary(f32x4.neg, f64x2.neg, i32x4.neg),
  abs: (c, args) => (c.dtype === "uint8" ? args[0] : unary(f32x4.abs, f64x2.abs, i32x4.abs, (x) => x)(c, args)),
  sign,
  sqrt: unary(f32x4.sqrt, f64x2.sqrt),
  floor: unary(f32x4.floor, f64x2.floor),
  ceil: unary(f32x4.ceil, f64x2.ceil),
  trunc: unary(f32x4.trunc, f64x2.trunc),
  round: unary(f32x4.nearest, f64x2.nearest),
  not: unary(v128.not, v128.not, v128.not),
  add: binary(f32x4.add, f64x2.add, i32x4.add),
  sub: binary(f32x4.sub, f64x2.sub, i32x4.sub),
  mul: binary(f32x4.mul, f64x2.mul, i32x4.mul),
  div: binary(f32x4.div, f64x2.div, noDivision),
  pow: floatOr(integer("pow"), "pow"),
  max: orMask(v128.or, binary(f32x4.max, f64x2.max, i32x4.max_s, i32x4.max_u)),
  min: orMask(v128.and, binary(f32x4.min, f64x2.min, i32x4.min_s, i32x4.min_u)),
  idiv: integer("idiv"),
  mod: (c, args) => (c.t === "d" ? modFloat64(c, args) : floatOr(integer("mod"), "mod")(c, args)),
  and: bits(v128.and),
  or: bits(v128.or),
  xor: bits(v128.xor),
  shl: integer("shl", false),
  shr: integer("shr"),
  lt: comparison((a, b) => v128.andnot(b, a), f32x4.lt, f64x2.lt, i32x4.lt_s, i32x4.lt_u),
  le: comparison((a, b) => v128.or(v128.not(a), b), f32x4.le, f64x2.le, i32x4.le_s, i32x4.le_u),
  eq: comparison((a, b) => v128.not(v128.xor(a, b)), f32x4.eq, f64x2.eq, i32x4.eq, i32x4.eq),
  where: ({ t }, [m, a, b]) => selectLanes(t, m[0], a, b),
  erf: (c, args) => (c.t === "d" ? args[0].map((x) => call(c.lib.erf64(), x)) : fallback("erf")(c, args)),
};

/** A unary function of floats. */
export const fallback =
  (name: string): Emit =>
  ({ lib, t }, [a]) => {
    if (t === "f" && isUnary32(name)) return [call(lib.unary32(name), a[0])];
    if (t === "d") return a.map((x) => call(lib.float64(name, 1), x));
    throw new BackendError(`wasm: no kernel for ${name}`);
  };

// ---- conversions ----------------------------------------------------------------------------------------------------

/** To float32 lanes, from each kind; and so on. Floats become integers toward 0, beyond the ends the nearest end, NaN 0. */
const conversions: Readonly<Record<Lane, Readonly<Record<Lane, (a: Vec) => Vec>>>> = {
  f: {
    f: (a) => a,
    d: ([x, y]) => [fromDoubles(x, y)],
    i: ([x]) => [f32x4.convert_i32x4_s(x)],
    u: ([x]) => [f32x4.convert_i32x4_u(x)],
    m: ([m]) => [v128.and(m, f32s(1))],
  },
  d: {
    f: ([x]) => toDoubles(x),
    d: (a) => a,
    i: ([x]) => [f64x2.convert_low_i32x4_s(x), f64x2.convert_low_i32x4_s(shuffle32(x, x, [2, 3, 2, 3]))],
    u: ([x]) => [f64x2.convert_low_i32x4_u(x), f64x2.convert_low_i32x4_u(shuffle32(x, x, [2, 3, 2, 3]))],
    m: ([m]) => maskOf(m).map((w) => v128.and(w, f64s(1))),
  },
  i: {
    f: ([x]) => [i32x4.trunc_sat_f32x4_s(x)],
    d: ([x, y]) => [shuffle32(i32x4.trunc_sat_f64x2_s_zero(x), i32x4.trunc_sat_f64x2_s_zero(y), [0, 1, 4, 5])],
    i: (a) => a,
    u: (a) => a,
    m: ([m]) => [i32x4.neg(m)],
  },
  u: {
    f: ([x]) => [i32x4.trunc_sat_f32x4_u(x)],
    d: ([x, y]) => [shuffle32(i32x4.trunc_sat_f64x2_u_zero(x), i32x4.trunc_sat_f64x2_u_zero(y), [0, 1, 4, 5])],
    i: (a) => a,
    u: (a) => a,
    m: ([m]) => [i32x4.neg(m)],
  },
  m: {
    f: ([x]) => [f32x4.ne(x, f32s(0))],
    d: ([x, y]) => [narrow(f64x2.ne(x, f64s(0)), f64x2.ne(y, f64s(0)))],
    i: ([x]) => [i32x4.ne(x, i32s(0))],
    u: ([x]) => [i32x4.ne(x, i32s(0))],
    m: (a) => a,
  },
};

/** The 16-bit floats are computed as float32; what they round to. */
const roundTo = (lib: Library, to: DType, x: Expr): Expr =>
  to === "float16"
    ? call(lib.half("from_half"), call(lib.half("to_half"), x))
    : i32x4.shl(call(lib.half("to_bfloat"), x), 16);

export function castTo(lib: Library, to: DType, from: DType, a: Locals): Vec {
  const [t, s] = [laneOf[to], laneOf[from]];
  const x = conversions[t][s](a);
  if (to === "uint8" && (s === "f" || s === "d")) return [i32x4.min_s(i32x4.max_s(x[0], i32s(0)), i32s(255))];
  if (to === "uint8" && from !== "bool") return [v128.and(x[0], i32s(255))];
  if ((to === "float16" || to === "bfloat16") && to !== from) return [roundTo(lib, to, x[0])];
  return x;
}

export function bitcastTo(lib: Library, to: DType, from: DType, a: Locals): Vec {
  const [t, s] = [laneOf[to], laneOf[from]];
  if (to === from) return a;
  if (to === "float16" && from === "bfloat16") return [call(lib.half("from_half"), call(lib.half("to_bfloat"), a[0]))];
  if (to === "bfloat16" && from === "float16") return [i32x4.shl(call(lib.half("to_half"), a[0]), 16)];
  if (to === "uint8" && from === "bool") return [i32x4.neg(a[0])];
  if (to === "bool" && from === "uint8") return [i32x4.ne(a[0], i32s(0))];
  if (t === "m" || s === "m" || t === "d" || s === "d")
    throw new BackendError(`wasm: no bitcast from ${from} to ${to}`);
  return a;
}

// ---- reductions -----------------------------------------------------------------------------------------------------

export const identity: Readonly<Record<Reduction["op"], (t: Lane) => Vec>> = {
  sum: zero,
  prod: (t) => number("1", t),
  max: (t) => (t === "f" || t === "d" ? number("-Infinity", t) : number(t === "u" ? "0" : "-2147483648", t)),
  min: (t) => (t === "f" || t === "d" ? number("Infinity", t) : number(t === "u" ? "-1" : "2147483647", t)),
};

const combiners: Readonly<Record<Reduction["op"], Readonly<Record<"f" | "d" | "i" | "u", Two>>>> = {
  sum: { f: f32x4.add, d: f64x2.add, i: i32x4.add, u: i32x4.add },
  prod: { f: f32x4.mul, d: f64x2.mul, i: i32x4.mul, u: i32x4.mul },
  max: { f: f32x4.max, d: f64x2.max, i: i32x4.max_s, u: i32x4.max_u },
  min: { f: f32x4.min, d: f64x2.min, i: i32x4.min_s, u: i32x4.min_u },
};
export const combine = (op: Reduction["op"], t: Lane, a: Vec, b: Vec): Vec => each2(combiners[op][t as "f"], a, b);

/** The reduction of the four lanes, in all lanes: two apart first. */
export function across(f: Func, op: Reduction["op"], t: Lane, a: Locals): Vec {
  const two = combiners[op][t as "f"];
  if (t === "d") {
    const x = f.let(two(a[0], a[1]));
    const y = f.let(two(x, shuffle32(x, x, [2, 3, 0, 1])));
    return [y, y];
  }
  const x = f.let(two(a[0], shuffle32(a[0], a[0], [2, 3, 0, 1])));
  return [two(x, shuffle32(x, x, [1, 0, 3, 2]))];
}

// ---- memory ---------------------------------------------------------------------------------------------------------

interface InMemory {
  readonly bytes: number;
  /** The four lanes from consecutive elements. */
  readonly load: (lib: Library, address: Expr, offset: number) => Vec;
  /** All lanes from one element. */
  readonly splat: (lib: Library, address: Expr) => Vec;
  /** Sets lane l of `raw` (32-bit lanes, or two vectors of doubles) from memory. */
  readonly gather: (f: Func, raw: Locals, l: number, address: Expr) => void;
  /** Lanes from what `gather` put together. */
  readonly decode: (lib: Library, raw: Vec) => Vec;
  /** What is stored: the bits, narrowed to elements side by side. */
  readonly encode: (lib: Library, v: Vec) => Vec;
}

const words: InMemory = {
  bytes: 4,
  load: (_, at, offset) => [v128.load(at, offset)],
  splat: (_, at) => [v128.load32_splat(at)],
  gather: (f, raw, l, at) => f.set(raw[0], v128.load32_lane(at, raw[0], l)),
  decode: (_, raw) => raw,
  encode: (_, v) => v,
};
const small = (
  bytes: 1 | 2,
  decode: (lib: Library, x: Expr) => Expr,
  encode: (lib: Library, x: Expr) => Expr,
): InMemory => ({
  bytes,
  load: (lib, at, offset) => {
    const raw =
      bytes === 2
        ? v128.load16x4_u(at, offset)
        : i32x4.extend_low_i16x8_u(i16x8.extend_low_i8x16_u(v128.load32_zero(at, offset)));
    return [decode(lib, raw)];
  },
  splat: (lib, at) => [decode(lib, i32x4.splat(bytes === 2 ? i32.load16_u(at) : i32.load8_u(at)))],
  gather: (f, raw, l, at) => f.set(raw[0], i32x4.replace(raw[0], l, bytes === 2 ? i32.load16_u(at) : i32.load8_u(at))),
  decode: (lib, raw) => [decode(lib, raw[0])],
  encode: (lib, v) => {
    const x = encode(lib, v[0]);
    const h = i16x8.narrow_i32x4_u(x, x);
    return [bytes === 2 ? h : i8x16.narrow_i16x8_u(h, h)];
  },
});

export const inMemory: Readonly<Record<DType, InMemory>> = {
  float32: words,
  int32: words,
  uint32: words,
  float64: {
    bytes: 8,
    load: (_, at, offset) => [v128.load(at, offset), v128.load(at, offset + 16)],
    splat: (_, at) => [v128.load64_splat(at), v128.load64_splat(at)],
    gather: (f, raw, l, at) => f.set(raw[l >> 1], f64x2.replace(raw[l >> 1], l & 1, f64.load(at))),
    decode: (_, raw) => raw,
    encode: (_, v) => v,
  },
  float16: small(
    2,
    (lib, x) => call(lib.half("from_half"), x),
    (lib, x) => call(lib.half("to_half"), x),
  ),
  bfloat16: small(
    2,
    (_, x) => i32x4.shl(x, 16),
    (lib, x) => call(lib.half("to_bfloat"), x),
  ),
  uint8: small(
    1,
    (_, x) => x,
    (_, x) => v128.and(x, i32s(255)),
  ),
  bool: small(
    1,
    (_, x) => i32x4.ne(x, i32s(0)),
    (_, x) => v128.and(x, i32s(1)),
  ),
};

/** Lanes 0 … n−1 as a mask. */
export const firstLanes = (n: number): Expr => vector(Int32Array.from({ length: 4 }, (_, l) => (l < n ? -1 : 0)));
export const iota = vector(Int32Array.of(0, 1, 2, 3));
