/**
 * Operations as C over the vectors of `runtime/lanes.h`, by lane and dtype: arithmetic, casts, numbers, and what reductions
 * begin and go on with. Knows no kernels; loops and memory are render.ts's.
 */
import { type Lane, laneOf, type Reduction } from "../../compiler/kernel.ts";
import type { DType } from "../../core/dtype.ts";
import { BackendError } from "../../core/errors.ts";

export const vector: Readonly<Record<Lane, string>> = { f: "vf", d: "vd", i: "vi", u: "vu", m: "vi" };
/** The element type in memory, and the prefix of its load and store functions. */
export const memory: Readonly<Record<DType, { readonly type: string; readonly prefix: string }>> = {
  float32: { type: "float", prefix: "f" },
  float64: { type: "double", prefix: "d" },
  float16: { type: "__UINT16_TYPE__", prefix: "h" },
  bfloat16: { type: "__UINT16_TYPE__", prefix: "b" },
  int32: { type: "__INT32_TYPE__", prefix: "i" },
  uint32: { type: "__UINT32_TYPE__", prefix: "u" },
  uint8: { type: "__UINT8_TYPE__", prefix: "c" },
  bool: { type: "__UINT8_TYPE__", prefix: "m" },
};

export const splatOf: Readonly<Record<Lane, string>> = {
  f: "f_splat",
  d: "d_splat",
  i: "i_splat",
  u: "u_splat",
  m: "i_splat",
};

type Emit = (t: Lane, args: readonly string[], dtype: DType) => string;
const infix =
  (operator: string): Emit =>
  (_, [a, b], dtype) =>
    dtype === "uint8" ? `((${a} ${operator} ${b}) & 255)` : `${a} ${operator} ${b}`;
/** A function of lanes.h, which are named by lane and operation. */
export const call =
  (name: string): Emit =>
  (t, args) =>
    `${t}_${name}(${args.join(", ")})`;
/** Masks have no arithmetic; what a bool operation means in logic. */
const orMask =
  (mask: (a: string, b: string) => string, other: Emit): Emit =>
  (t, args, dtype) =>
    t === "m" ? mask(args[0], args[1]) : other(t, args, dtype);
const comparison = (name: string, mask: (a: string, b: string) => string): Emit =>
  orMask(mask, (t, [a, b]) => `${t}_${name}(${a}, ${b})`);

/** Result lane first; comparisons are given their operands' lane. */
export const operations: Readonly<Record<string, Emit>> = {
  neg: (t, [a], dtype) => (t === "f" || t === "d" ? `${t}_neg(${a})` : dtype === "uint8" ? `((-${a}) & 255)` : `-${a}`),
  abs: (t, [a], dtype) => (t === "u" || dtype === "uint8" ? a : `${t}_abs(${a})`),
  sign: (t, [a], dtype) =>
    t === "u" ? `u_min(${a}, u_splat(1))` : dtype === "uint8" ? `i_min(${a}, i_splat(1))` : `${t}_sign(${a})`,
  not: (_, [a], dtype) => (dtype === "uint8" ? `((~${a}) & 255)` : `~${a}`),
  add: infix("+"),
  sub: infix("-"),
  mul: infix("*"),
  div: infix("/"),
  pow: (t, args, dtype) => (dtype === "uint8" ? `(i_pow(${args.join(", ")}) & 255)` : `${t}_pow(${args.join(", ")})`),
  max: orMask((a, b) => `${a} | ${b}`, call("max")),
  min: orMask((a, b) => `${a} & ${b}`, call("min")),
  idiv: call("idiv"),
  mod: call("mod"),
  and: infix("&"),
  or: infix("|"),
  xor: infix("^"),
  shl: (t, args, dtype) => (dtype === "uint8" ? `(i_shl(${args.join(", ")}) & 255)` : `${t}_shl(${args.join(", ")})`),
  shr: call("shr"),
  lt: comparison("lt", (a, b) => `~${a} & ${b}`),
  le: comparison("le", (a, b) => `~${a} | ${b}`),
  eq: comparison("eq", (a, b) => `~(${a} ^ ${b})`),
  where: (t, [c, a, b]) => `${t === "m" ? "i" : t}_sel(${c}, ${a}, ${b})`,
};

export function castTo(to: DType, from: DType, a: string): string {
  const [t, s] = [laneOf[to], laneOf[from]];
  let x = t === s ? a : `${t}_from_${s}(${a})`;
  if (to === "uint8" && from !== "bool") x = `(${x} & 255)`;
  if (to === "float16" && from !== "float16") x = `f_round_h(${x})`;
  if (to === "bfloat16" && from !== "bfloat16") x = `f_round_b(${x})`;
  return x;
}

/** The 16-bit floats are both computed as float32; their bits meet only in memory. */
const sixteen = (store: string, a: string, load: string): string =>
  `({ __UINT16_TYPE__ q_[L]; ${store}(q_, ${a}); ${load}(q_); })`;

export function bitcastTo(to: DType, from: DType, a: string): string {
  const [t, s] = [laneOf[to], laneOf[from]];
  if (to === "float16" && from === "bfloat16") return sixteen("b_store", a, "h_load");
  if (to === "bfloat16" && from === "float16") return sixteen("h_store", a, "b_load");
  if (to === "uint8" && from === "bool") return `i_from_m(${a})`;
  if (to === "bool" && from === "uint8") return `m_from_i(${a})`;
  if (t === s) return a;
  if (to === "bool" || from === "bool" || t === "d" || s === "d")
    throw new BackendError(`cpu: no bitcast from ${from} to ${to}`);
  return `${t}_bits_${s}(${a})`;
}

export const number = (text: string, t: Lane): string => {
  const v = Number(text);
  if (t === "m") return v ? "-1" : "0";
  if (t === "i" || t === "u")
    return t === "u" ? `${v >>> 0}u` : v === -2147483648 ? "(-2147483647 - 1)" : String(v | 0);
  if (Number.isNaN(v)) return '__builtin_nan("")';
  if (!Number.isFinite(v)) return `${v < 0 ? "-" : ""}__builtin_inf()`;
  const digits = Object.is(v, -0) ? "-0.0" : v.toExponential(17);
  return t === "f" ? `(float)${digits}` : digits;
};

export const identity: Readonly<Record<Reduction["op"], Readonly<Record<"f" | "d" | "i" | "u", string>>>> = {
  sum: { f: "0", d: "0", i: "0", u: "0" },
  prod: { f: "1", d: "1", i: "1", u: "1" },
  max: { f: "-__builtin_inff()", d: "-__builtin_inf()", i: "(-2147483647 - 1)", u: "0" },
  min: { f: "__builtin_inff()", d: "__builtin_inf()", i: "2147483647", u: "4294967295u" },
};
export const combine = (op: Reduction["op"], t: Lane, a: string, b: string): string =>
  op === "sum" ? `${a} + ${b}` : op === "prod" ? `${a} * ${b}` : `${t}_${op}(${a}, ${b})`;
