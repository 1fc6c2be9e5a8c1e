/**
 * The operations that a kernel's values name, as WGSL expressions over named operands: one row each. Sibling of the
 * table in cpu/operations.ts; the functions called are in library.ts. Knows dtypes, not loops or memory.
 */

import type { Reduction, Value } from "../../compiler/kernel.ts";
import { type DType, roundTo } from "../../core/dtype.ts";
import { BackendError } from "../../core/errors.ts";
import { type Lane, laneOf, typeOf } from "./layout.ts";

type Emit = (t: Lane, args: readonly string[], v: Value) => string;

const wrap = (text: string, dtype: DType): string => (dtype === "uint8" ? `(${text}) & 255` : text);
const infix =
  (operator: string): Emit =>
  (_, [a, b], v) =>
    wrap(`${a} ${operator} ${b}`, v.dtype);
/** A function of library.ts, one for each lane type. */
const own =
  (name: string): Emit =>
  (t, args, v) =>
    wrap(`${t}_${name}(${args.join(", ")})`, v.dtype);
const builtin =
  (name: string): Emit =>
  (_, args) =>
    `${name}(${args.join(", ")})`;
/** Truths have no arithmetic; what a bool operation means in logic. */
const orTruth =
  (truth: (a: string, b: string) => string, other: Emit): Emit =>
  (t, args, v) =>
    t === "m" ? truth(args[0], args[1]) : other(t, args, v);

/** Whether a float value can be NaN, as far as its kind tells. */
function mayBeNan(v: Value): boolean {
  if (laneOf(v.dtype) !== "f") return false;
  if (v.kind === "const") return Number.isNaN(Number(v.name));
  return !(v.kind === "op" && v.name === "cast" && laneOf(v.args[0].dtype) !== "f");
}

/**
 * WGSL may take NaN to be absent and turn comparisons around, so each operand is asked by its bits. Truths are joined by
 * & and |: && and || are branches.
 */
const comparison =
  (operator: string): Emit =>
  (t, [a, b], v) => {
    const compared = `${a} ${operator} ${b}`;
    if (t !== "f") return compared;
    const names = [...new Set([mayBeNan(v.args[0]) ? a : "", mayBeNan(v.args[1]) ? b : ""])].filter(Boolean);
    return [`(${compared})`, ...names.map((x) => `!is_nan(${x})`)].join(" & ");
  };

/** Powers by literals, where a product is as good. */
const literalPowers: Readonly<Record<string, (a: string) => string>> = {
  "2": (a) => `${a} * ${a}`,
  "3": (a) => `${a} * ${a} * ${a}`,
  "1": (a) => a,
  "-1": (a) => `1f / ${a}`,
};

/** Given the operands' lane type where it differs from the result's (comparisons). */
const operations: Readonly<Record<string, Emit>> = {
  neg: (t, [a], v) => (t === "u" ? `0u - ${a}` : wrap(`-${a}`, v.dtype)),
  abs: (t, [a], v) => (t === "u" || v.dtype === "uint8" ? a : `abs(${a})`),
  sign: (t, [a]) => (t === "u" ? `min(${a}, 1u)` : t === "i" ? `sign(${a})` : `f_sign(${a})`),
  sqrt: builtin("sqrt"),
  floor: builtin("floor"),
  ceil: builtin("ceil"),
  trunc: builtin("trunc"),
  round: builtin("round"),
  not: (t, [a], v) => (t === "m" ? `!${a}` : wrap(`~${a}`, v.dtype)),
  add: infix("+"),
  sub: infix("-"),
  mul: infix("*"),
  div: infix("/"),
  pow: (t, args, v) => {
    const exponent = v.args[1];
    const simple = t === "f" && exponent.kind === "const" ? literalPowers[exponent.name] : undefined;
    return simple ? simple(args[0]) : own("pow")(t, args, v);
  },
  max: orTruth(
    (a, b) => `${a} | ${b}`,
    (t, args) => `${t === "f" ? "f_max" : "max"}(${args.join(", ")})`,
  ),
  min: orTruth(
    (a, b) => `${a} & ${b}`,
    (t, args) => `${t === "f" ? "f_min" : "min"}(${args.join(", ")})`,
  ),
  and: infix("&"),
  or: infix("|"),
  xor: orTruth((a, b) => `${a} != ${b}`, infix("^")),
  lt: orTruth((a, b) => `!${a} & ${b}`, comparison("<")),
  le: orTruth((a, b) => `!${a} | ${b}`, comparison("<=")),
  eq: comparison("=="),
  where: (_, [c, a, b]) => `select(${b}, ${a}, ${c})`,
};

const fromTo: Readonly<Record<Lane, Readonly<Record<Lane, (a: string) => string>>>> = {
  f: { f: (a) => a, i: (a) => `i_from_f(${a})`, u: (a) => `u_from_f(${a})`, m: (a) => `(${a} != 0f) | is_nan(${a})` },
  i: { f: (a) => `f32(${a})`, i: (a) => a, u: (a) => `bitcast<u32>(${a})`, m: (a) => `${a} != 0` },
  u: { f: (a) => `f32(${a})`, i: (a) => `bitcast<i32>(${a})`, u: (a) => a, m: (a) => `${a} != 0u` },
  m: {
    f: (a) => `select(0f, 1f, ${a})`,
    i: (a) => `select(0, 1, ${a})`,
    u: (a) => `select(0u, 1u, ${a})`,
    m: (a) => a,
  },
};

/** The bits of a value of a narrow dtype as a u32, and back. */
export const narrowBits: Partial<
  Readonly<Record<DType, { to: (x: string) => string; from: (bits: string) => string }>>
> = {
  float16: { to: (x) => `half_bits(${x})`, from: (b) => `half(${b})` },
  bfloat16: { to: (x) => `brain_bits(${x})`, from: (b) => `brain(${b})` },
  uint8: { to: (x) => `bitcast<u32>(${x}) & 255u`, from: (b) => `bitcast<i32>(${b})` },
  bool: { to: (x) => `select(0u, 1u, ${x})`, from: (b) => `(${b}) != 0u` },
};

/** A 16-bit float keeps no more digits than it has. */
const roundTo16 = (text: string, dtype: DType): string =>
  dtype === "float16" ? `half(half_bits(${text}))` : dtype === "bfloat16" ? `brain(brain_bits(${text}))` : text;

function cast(to: DType, from: DType, a: string): string {
  const [t, s] = [laneOf(to), laneOf(from)];
  if (to === "uint8") return s === "f" ? `c_from_f(${a})` : s === "m" ? fromTo.m.i(a) : `(${fromTo[s].i(a)}) & 255`;
  const text = fromTo[s][t](a);
  return to === from ? text : roundTo16(text, to);
}

function bitcast(to: DType, from: DType, a: string): string {
  if (to === from) return a;
  const [out, bits] = [narrowBits[to], narrowBits[from]];
  if (out && bits) return out.from(bits.to(a));
  return `bitcast<${typeOf[laneOf(to)]}>(${a})`;
}

/** An operation's text; `args` are names, so that nothing needs parentheses and nothing is evaluated twice. */
export function operation(v: Value, args: readonly string[]): string {
  const from = v.args[0].dtype;
  if (v.name === "cast") return cast(v.dtype, from, args[0]);
  if (v.name === "bitcast") return bitcast(v.dtype, from, args[0]);
  const isComparison = v.name === "lt" || v.name === "le" || v.name === "eq";
  const t = laneOf(isComparison ? from : v.dtype);
  return (operations[v.name] ?? own(v.name))(t, args, v);
}

/** A literal of a dtype. Infinity and NaN are no literals in WGSL: they come from the uniform buffer. */
export function literal(text: string, dtype: DType): string {
  const t = laneOf(dtype);
  const v = Number(text);
  if (t === "m") return v ? "true" : "false";
  if (t === "u") return `${v >>> 0}u`;
  if (t === "i") return String(dtype === "uint8" ? v & 255 : v | 0);
  const f = roundTo(dtype, v);
  if (Number.isNaN(f)) return "nan()";
  if (!Number.isFinite(f)) return f < 0 ? "-inf()" : "inf()";
  if (Object.is(f, -0)) return "bitcast<f32>(0x80000000u)";
  return `${String(f)}f`;
}

const identities: Readonly<Record<Reduction["op"], Readonly<Record<"f" | "i" | "u", string>>>> = {
  sum: { f: "0f", i: "0", u: "0u" },
  prod: { f: "1f", i: "1", u: "1u" },
  max: { f: "-inf()", i: "-2147483648", u: "0u" },
  min: { f: "inf()", i: "2147483647", u: "4294967295u" },
};

/** The lane type in which a reduction of `dtype` is accumulated. */
export function accumulatorLane(dtype: DType): "f" | "i" | "u" {
  const t = laneOf(dtype);
  if (!import.meta.forBrowsers && t === "m")
    throw new BackendError("webgpu: a reduction of bool has to be lowered to one of int32");
  return t as "f";
}

export const identity = (op: Reduction["op"], dtype: DType): string => identities[op][accumulatorLane(dtype)];

export function combine(op: Reduction["op"], dtype: DType, a: string, b: string): string {
  if (op === "sum") return `${a} + ${b}`;
  if (op === "prod") return `${a} * ${b}`;
  return `${accumulatorLane(dtype) === "f" ? "f_" : ""}${op}(${a}, ${b})`;
}

/** An accumulated uint8 wraps when it is done. */
export const finished = (text: string, dtype: DType): string => wrap(text, dtype);
