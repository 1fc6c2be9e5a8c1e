/**
 * WebAssembly's instructions as functions on expressions: `f32x4.mul(a, b)` is the expression of that product, a number
 * stands for a constant of the type that is expected. Types are checked as the expression is made. Statements, locals and
 * control flow are `function.ts`'s; opcodes are from the core specification (2.0) and the threads proposal.
 */
import { BackendError } from "../../core/errors.ts";

export type Type = "i32" | "i64" | "f32" | "f64" | "v128";
/** Bytes of a function, as they are written. */
export type Code = number[];

export interface Expr {
  readonly type: Type;
  readonly write: (out: Code) => void;
  /** The number, where the expression is a constant i32. */
  readonly known?: number;
}
export type Operand = Expr | number;

// ---- numbers as bytes -----------------------------------------------------------------------------------------------

export function unsigned(out: Code, value: number): void {
  let v = value;
  do {
    const low = v % 128;
    v = Math.floor(v / 128);
    out.push(v > 0 ? low | 128 : low);
  } while (v > 0);
}

export function signed(out: Code, value: number | bigint): void {
  let v = BigInt(value);
  for (;;) {
    const low = Number(BigInt.asUintN(7, v));
    v >>= 7n;
    const done = (v === 0n && (low & 64) === 0) || (v === -1n && (low & 64) !== 0);
    out.push(done ? low : low | 128);
    if (done) return;
  }
}

const bytesOf = (array: ArrayBufferView): Uint8Array =>
  new Uint8Array(array.buffer, array.byteOffset, array.byteLength);

// ---- constants ------------------------------------------------------------------------------------------------------

export const constant: Readonly<Record<"i32" | "i64" | "f32" | "f64", (value: number) => Expr>> = {
  i32: (value) => ({
    type: "i32",
    known: value | 0,
    write: (out) => {
      out.push(0x41);
      signed(out, value | 0);
    },
  }),
  i64: (value) => ({
    type: "i64",
    write: (out) => {
      out.push(0x42);
      signed(out, value);
    },
  }),
  f32: (value) => ({ type: "f32", write: (out) => out.push(0x43, ...bytesOf(new Float32Array([value]))) }),
  f64: (value) => ({ type: "f64", write: (out) => out.push(0x44, ...bytesOf(new Float64Array([value]))) }),
};

/** A vector constant from a typed array of 16 bytes. */
export const vector = (array: ArrayBufferView): Expr => ({
  type: "v128",
  write: (out) => {
    simd(out, 12);
    out.push(...bytesOf(array));
  },
});
export const f32s = (x: number): Expr => vector(new Float32Array(4).fill(x));
export const i32s = (x: number): Expr => vector(new Int32Array(4).fill(x));
export const f64s = (x: number): Expr => vector(new Float64Array(2).fill(x));

export function expr(x: Operand, type: Type): Expr {
  if (typeof x === "number") {
    if (type === "v128") throw new BackendError("wasm: a number does not say which vector it means");
    return constant[type](x);
  }
  if (x.type !== type) throw new BackendError(`wasm: an expression of type ${x.type} where ${type} was expected`);
  return x;
}

// ---- families of instructions ---------------------------------------------------------------------------------------

const simd = (out: Code, code: number): void => {
  out.push(0xfd);
  unsigned(out, code);
};

type Functions<N extends string, A extends unknown[]> = { readonly [K in N]: (...args: A) => Expr };

function family<N extends string, A extends Operand[]>(
  types: readonly Type[],
  result: Type,
  codes: Readonly<Record<N, number>>,
  write: (out: Code, code: number) => void,
): Functions<N, A> {
  return Object.fromEntries(
    Object.entries<number>(codes).map(([name, code]) => [
      name,
      (...args: A): Expr => {
        const exprs = types.map((t, i) => expr(args[i] as Operand, t));
        return {
          type: result,
          write: (out) => {
            for (const e of exprs) e.write(out);
            write(out, code);
          },
        };
      },
    ]),
  ) as Functions<N, A>;
}

type One = [a: Operand];
type Two = [a: Operand, b: Operand];
const plain = (out: Code, code: number): void => {
  if (code > 255) out.push(code >> 8);
  out.push(code & 255);
};
const one = <N extends string>(type: Type, result: Type, codes: Readonly<Record<N, number>>) =>
  family<N, One>([type], result, codes, plain);
const two = <N extends string>(type: Type, result: Type, codes: Readonly<Record<N, number>>) =>
  family<N, Two>([type, type], result, codes, plain);
const vone = <N extends string>(codes: Readonly<Record<N, number>>) => family<N, One>(["v128"], "v128", codes, simd);
const vtwo = <N extends string>(codes: Readonly<Record<N, number>>) =>
  family<N, Two>(["v128", "v128"], "v128", codes, simd);
const vshift = <N extends string>(codes: Readonly<Record<N, number>>) =>
  family<N, Two>(["v128", "i32"], "v128", codes, simd);

/** Loads at address + offset; the offset is added without wrapping, so the address must not be negative. */
function loads<N extends string>(result: Type, codes: Readonly<Record<N, number>>) {
  return Object.fromEntries(
    Object.entries<number>(codes).map(([name, code]) => [
      name,
      (address: Operand, offset = 0): Expr => {
        const at = expr(address, "i32");
        return {
          type: result,
          write: (out) => {
            at.write(out);
            if (result === "v128") simd(out, code);
            else plain(out, code);
            out.push(0); // no promise about alignment
            unsigned(out, offset);
          },
        };
      },
    ]),
  ) as { readonly [K in N]: (address: Operand, offset?: number) => Expr };
}

/** Extracts or replaces a lane. */
const lane =
  (code: number, result: Type) =>
  (v: Expr, at: number): Expr => ({
    type: result,
    write: (out) => {
      v.write(out);
      simd(out, code);
      out.push(at);
    },
  });
const replace =
  (code: number, type: Type) =>
  (v: Expr, at: number, x: Operand): Expr => ({
    type: "v128",
    write: (out) => {
      v.write(out);
      expr(x, type).write(out);
      simd(out, code);
      out.push(at);
    },
  });
const splat = (code: number, type: Type) => family<"splat", One>([type], "v128", { splat: code }, simd);

// ---- the types ------------------------------------------------------------------------------------------------------

const raw32 = {
  ...two("i32", "i32", {
    add: 0x6a,
    sub: 0x6b,
    mul: 0x6c,
    div_s: 0x6d,
    div_u: 0x6e,
    rem_s: 0x6f,
    rem_u: 0x70,
    and: 0x71,
    or: 0x72,
    xor: 0x73,
    shl: 0x74,
    shr_s: 0x75,
    shr_u: 0x76,
    eq: 0x46,
    ne: 0x47,
    lt_s: 0x48,
    lt_u: 0x49,
    gt_s: 0x4a,
    gt_u: 0x4b,
    le_s: 0x4c,
    le_u: 0x4d,
    ge_s: 0x4e,
    ge_u: 0x4f,
  }),
  ...one("i32", "i32", { eqz: 0x45 }),
  ...one("f64", "i32", { trunc_sat_f64_s: 0xfc02, trunc_sat_f64_u: 0xfc03 }),
  ...one("i64", "i32", { wrap: 0xa7 }),
  ...one("f32", "i32", { reinterpret: 0xbc }),
  ...loads("i32", { load: 0x28, load8_u: 0x2d, load16_u: 0x2f }),
};

const known = (x: Operand): number | undefined => (typeof x === "number" ? x | 0 : x.known);
const isPowerOf2 = (n: number): boolean => n > 0 && (n & (n - 1)) === 0;

/** Sums and products of what is known are made here, so that what is written reads as one would write it. */
export const i32 = {
  ...raw32,
  add: (a: Operand, b: Operand): Expr => {
    const [x, y] = [known(a), known(b)];
    if (x !== undefined && y !== undefined) return constant.i32(x + y);
    return y === 0 ? expr(a, "i32") : x === 0 ? expr(b, "i32") : raw32.add(a, b);
  },
  sub: (a: Operand, b: Operand): Expr => {
    const [x, y] = [known(a), known(b)];
    if (x !== undefined && y !== undefined) return constant.i32(x - y);
    return y === 0 ? expr(a, "i32") : raw32.sub(a, b);
  },
  mul: (a: Operand, b: Operand): Expr => {
    const [x, y] = [known(a), known(b)];
    if (x !== undefined && y !== undefined) return constant.i32(Math.imul(x, y));
    if (x === 0 || y === 0) return constant.i32(0);
    if (y === 1) return expr(a, "i32");
    if (x === 1) return expr(b, "i32");
    if (y !== undefined && isPowerOf2(y)) return raw32.shl(a, Math.log2(y));
    return raw32.mul(a, b);
  },
  /** The quotient of numbers that are not negative. */
  div: (a: Operand, b: Operand): Expr => {
    const y = known(b);
    return y === 1
      ? expr(a, "i32")
      : y !== undefined && isPowerOf2(y)
        ? raw32.shr_u(a, Math.log2(y))
        : raw32.div_u(a, b);
  },
  rem: (a: Operand, b: Operand): Expr => {
    const y = known(b);
    return y !== undefined && isPowerOf2(y) ? raw32.and(a, y - 1) : raw32.rem_u(a, b);
  },
};

export const i64 = {
  ...two("i64", "i64", { add: 0x7c, sub: 0x7d, and: 0x83, or: 0x84, xor: 0x85, shl: 0x86, shr_u: 0x88 }),
  ...two("i64", "i32", { eq: 0x51, gt_u: 0x56 }),
  ...one("i32", "i64", { extend_u: 0xad }),
  ...one("f64", "i64", { reinterpret: 0xbd, trunc_sat_f64_s: 0xfc06 }),
  ...loads("i64", { load: 0x29 }),
};

export const f32 = {
  ...two("f32", "f32", { add: 0x92, sub: 0x93, mul: 0x94, div: 0x95, max: 0x97 }),
  ...two("f32", "i32", { eq: 0x5b, ne: 0x5c, lt: 0x5d, gt: 0x5e, le: 0x5f, ge: 0x60 }),
  ...one("f32", "f32", { abs: 0x8b, neg: 0x8c }),
  ...one("f64", "f32", { demote: 0xb6 }),
  ...one("i32", "f32", { reinterpret: 0xbe }),
  ...loads("f32", { load: 0x2a }),
};

export const f64 = {
  ...two("f64", "f64", { add: 0xa0, sub: 0xa1, mul: 0xa2, div: 0xa3 }),
  ...two("f64", "i32", { eq: 0x61, ne: 0x62, lt: 0x63, gt: 0x64, le: 0x65, ge: 0x66 }),
  ...one("f32", "f64", { promote: 0xbb }),
  ...one("i32", "f64", { convert_i32_s: 0xb7, convert_i32_u: 0xb8 }),
  ...loads("f64", { load: 0x2b }),
};

export const v128 = {
  ...vone({ not: 77 }),
  ...vtwo({ and: 78, andnot: 79, or: 80, xor: 81 }),
  /** Bits of a where the mask has ones, else of b. */
  ...family<"bitselect", [a: Operand, b: Operand, mask: Operand]>(
    ["v128", "v128", "v128"],
    "v128",
    { bitselect: 82 },
    simd,
  ),
  ...family<"any_true", One>(["v128"], "i32", { any_true: 83 }, simd),
  ...loads("v128", {
    load: 0,
    load8x8_u: 2,
    load16x4_u: 4,
    load8_splat: 7,
    load16_splat: 8,
    load32_splat: 9,
    load64_splat: 10,
    load32_zero: 92,
    load64_zero: 93,
  }),
  /** The vector with lane `at` read from memory. */
  load32_lane: (address: Operand, v: Expr, at: number): Expr => ({
    type: "v128",
    write: (out) => {
      expr(address, "i32").write(out);
      v.write(out);
      simd(out, 86);
      out.push(0, 0, at);
    },
  }),
};

/** Bytes of a and b by number, 0 … 31. */
export const shuffle = (a: Expr, b: Expr, bytes: readonly number[]): Expr => ({
  type: "v128",
  write: (out) => {
    a.write(out);
    b.write(out);
    simd(out, 13);
    out.push(...bytes);
  },
});
/** 32-bit lanes of a and b by number, 0 … 7. */
export const shuffle32 = (a: Expr, b: Expr, lanes: readonly number[]): Expr =>
  shuffle(
    a,
    b,
    lanes.flatMap((l) => [4 * l, 4 * l + 1, 4 * l + 2, 4 * l + 3]),
  );

export const i8x16 = vtwo({ narrow_i16x8_u: 102 });
export const i16x8 = {
  ...vtwo({ narrow_i32x4_u: 134 }),
  ...vone({ extend_low_i8x16_u: 137 }),
};

export const i32x4 = {
  ...splat(17, "i32"),
  ...vtwo({
    eq: 55,
    ne: 56,
    lt_s: 57,
    lt_u: 58,
    gt_s: 59,
    gt_u: 60,
    le_s: 61,
    le_u: 62,
    ge_s: 63,
    ge_u: 64,
    add: 174,
    sub: 177,
    mul: 181,
    min_s: 182,
    min_u: 183,
    max_s: 184,
    max_u: 185,
  }),
  ...vone({
    abs: 160,
    neg: 161,
    extend_low_i16x8_u: 169,
    trunc_sat_f32x4_s: 248,
    trunc_sat_f32x4_u: 249,
    trunc_sat_f64x2_s_zero: 252,
    trunc_sat_f64x2_u_zero: 253,
  }),
  ...vshift({ shl: 171, shr_s: 172, shr_u: 173 }),
  lane: lane(27, "i32"),
  replace: replace(28, "i32"),
};

export const i64x2 = {
  ...splat(18, "i64"),
  ...vone({ extend_low_i32x4_s: 199, extend_high_i32x4_s: 200, extend_low_i32x4_u: 201, extend_high_i32x4_u: 202 }),
  ...vtwo({ add: 206, sub: 209 }),
  ...vshift({ shl: 203, shr_s: 204, shr_u: 205 }),
};

export const f32x4 = {
  ...splat(19, "f32"),
  ...vtwo({ eq: 65, ne: 66, lt: 67, gt: 68, le: 69, ge: 70, add: 228, sub: 229, mul: 230, div: 231 }),
  /** min and max give NaN for NaN; pmin and pmax are b < a ? b : a and a < b ? b : a. */
  ...vtwo({ min: 232, max: 233, pmin: 234, pmax: 235 }),
  ...vone({
    abs: 224,
    neg: 225,
    sqrt: 227,
    ceil: 103,
    floor: 104,
    trunc: 105,
    nearest: 106,
    demote_f64x2_zero: 94,
    convert_i32x4_s: 250,
    convert_i32x4_u: 251,
  }),
  lane: lane(31, "f32"),
  replace: replace(32, "f32"),
};

export const f64x2 = {
  ...splat(20, "f64"),
  ...vtwo({ eq: 71, ne: 72, lt: 73, gt: 74, le: 75, ge: 76, add: 240, sub: 241, mul: 242, div: 243 }),
  ...vtwo({ min: 244, max: 245, pmin: 246, pmax: 247 }),
  ...vone({
    abs: 236,
    neg: 237,
    sqrt: 239,
    ceil: 116,
    floor: 117,
    trunc: 122,
    nearest: 148,
    promote_low_f32x4: 95,
    convert_low_i32x4_s: 254,
    convert_low_i32x4_u: 255,
  }),
  lane: lane(33, "f64"),
  replace: replace(34, "f64"),
};

/** a where the condition is not 0, else b: both are computed. */
export function select(condition: Operand, a: Expr, b: Expr): Expr {
  const [c, y] = [expr(condition, "i32"), expr(b, a.type)];
  return {
    type: a.type,
    write: (out) => {
      a.write(out);
      y.write(out);
      c.write(out);
      if (a.type === "v128") out.push(0x1c, 1, 0x7b);
      else out.push(0x1b);
    },
  };
}

// ---- stores and atomics: what changes memory -------------------------------------------------------------------------

const storeCodes = { i32: 0x36, i64: 0x37, f32: 0x38, f64: 0x39, v128: 11, i8: 0x3a, i16: 0x3b } as const;
export type StoreKind = keyof typeof storeCodes;

export function writeStore(out: Code, kind: StoreKind, address: Expr, value: Expr, offset: number): void {
  address.write(out);
  value.write(out);
  if (kind === "v128") simd(out, storeCodes.v128);
  else out.push(storeCodes[kind]);
  out.push(0);
  unsigned(out, offset);
}

const laneStores = { 8: 88, 16: 89, 32: 90, 64: 91 } as const;
/** Writes one lane of `bits` bits. */
export function writeLane(
  out: Code,
  bits: keyof typeof laneStores,
  address: Expr,
  value: Expr,
  at: number,
  offset = 0,
): void {
  address.write(out);
  value.write(out);
  simd(out, laneStores[bits]);
  out.push(0);
  unsigned(out, offset);
  out.push(at);
}

const atomic =
  (code: number, args: readonly Type[], result: Type, align: number) =>
  (...operands: Operand[]): Expr => {
    const exprs = args.map((t, i) => expr(operands[i], t));
    return {
      type: result,
      write: (out) => {
        for (const e of exprs) e.write(out);
        out.push(0xfe, code, align, 0);
      },
    };
  };
/** On aligned 32-bit words. `add` and `cmpxchg` give the old value; `wait` gives 0 woken, 1 changed, 2 timed out. */
export const atomic32 = {
  load: atomic(0x10, ["i32"], "i32", 2),
  add: atomic(0x1e, ["i32", "i32"], "i32", 2),
  cmpxchg: atomic(0x48, ["i32", "i32", "i32"], "i32", 2),
  /** (address, expected, nanoseconds as i64: negative waits for ever). Only where a thread may sleep. */
  wait: atomic(0x01, ["i32", "i32", "i64"], "i32", 2),
  /** (address, how many) wakes sleepers; gives how many there were. */
  notify: atomic(0x00, ["i32", "i32"], "i32", 2),
};
export function writeAtomicStore(out: Code, address: Expr, value: Expr): void {
  address.write(out);
  value.write(out);
  out.push(0xfe, 0x17, 2, 0);
}
