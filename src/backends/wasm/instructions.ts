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
    if (!import.meta.forBrowsers && type === "v128")
      throw new BackendError("wasm: a number does not say which vector it means");
    return constant[type as "i32"](x);
  }
  if (!import.meta.forBrowsers && x.type !== type)
    throw new BackendError(`wasm: an expression of type ${x.type} where ${type} was expected`);
  return x;
}

// ---- families of instructions ---------------------------------------------------------------------------------------

const simd = (out: Code, code: number): void => {
  out.push(0xfd);
  unsigned(out, code);
};

/** The names in a list of instructions, which its numbers are not. */
type Names<S extends string> = S extends `${infer A} ${infer Rest}`
  ? Names<A> | Names<Rest>
  : S extends `${number}`
    ? never
    : S;
type Functions<S extends string, F> = { readonly [K in Names<S>]: F };

/** What `make` makes of each instruction of a list: a number is the next one's code, those behind it have the codes that follow. */
function each<S extends string, F>(list: S, make: (code: number) => F): Functions<S, F> {
  const made: Record<string, F> = {};
  let code = 0;
  for (const word of list.split(" "))
    if (Number(word) >= 0) code = Number(word);
    else made[word] = make(code++);
  return made as Functions<S, F>;
}

function family<S extends string, A extends Operand[]>(
  types: readonly Type[],
  result: Type,
  list: S,
  write: (out: Code, code: number) => void,
): Functions<S, (...args: A) => Expr> {
  return each(list, (code) => (...args: A): Expr => {
    const exprs = types.map((t, i) => expr(args[i] as Operand, t));
    return {
      type: result,
      write: (out) => {
        for (const e of exprs) e.write(out);
        write(out, code);
      },
    };
  });
}

type One = [a: Operand];
type Two = [a: Operand, b: Operand];
const plain = (out: Code, code: number): void => {
  if (code > 255) out.push(code >> 8);
  out.push(code & 255);
};
const one = <S extends string>(type: Type, result: Type, list: S) => family<S, One>([type], result, list, plain);
const two = <S extends string>(type: Type, result: Type, list: S) => family<S, Two>([type, type], result, list, plain);
const vone = <S extends string>(list: S) => family<S, One>(["v128"], "v128", list, simd);
const vtwo = <S extends string>(list: S) => family<S, Two>(["v128", "v128"], "v128", list, simd);
const vshift = <S extends string>(list: S) => family<S, Two>(["v128", "i32"], "v128", list, simd);

/** Loads at address + offset; the offset is added without wrapping, so the address must not be negative. */
const loads = <S extends string>(result: Type, list: S) =>
  each(list, (code) => (address: Operand, offset = 0): Expr => {
    const at = expr(address, "i32");
    return {
      type: result,
      write: (out) => {
        at.write(out);
        (result === "v128" ? simd : plain)(out, code);
        out.push(0); // no promise about alignment
        unsigned(out, offset);
      },
    };
  });

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
const splat = <S extends string>(list: S, type: Type) => family<S, One>([type], "v128", list, simd);

// ---- the types ------------------------------------------------------------------------------------------------------

const raw32 = {
  ...two(
    "i32",
    "i32",
    "0x6a add sub mul div_s div_u rem_s rem_u and or xor shl shr_s shr_u 0x46 eq ne lt_s lt_u gt_s gt_u le_s le_u ge_s ge_u",
  ),
  ...one("i32", "i32", "0x45 eqz"),
  ...one("f64", "i32", "0xfc02 trunc_sat_f64_s"),
  ...one("i64", "i32", "0xa7 wrap"),
  ...one("f32", "i32", "0xbc reinterpret"),
  ...loads("i32", "0x28 load 0x2d load8_u 0x2f load16_u"),
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
  ...two("i64", "i64", "0x7c add sub 0x83 and or xor shl 0x88 shr_u"),
  ...two("i64", "i32", "0x51 eq 0x56 gt_u"),
  ...one("i32", "i64", "0xad extend_u"),
  ...one("f64", "i64", "0xbd reinterpret 0xfc06 trunc_sat_f64_s"),
  ...loads("i64", "0x29 load"),
};

export const f32 = {
  ...two("f32", "f32", "0x92 add sub mul div 0x97 max"),
  ...two("f32", "i32", "0x5b eq ne lt gt le ge"),
  ...one("f32", "f32", "0x8b abs neg"),
  ...one("f64", "f32", "0xb6 demote"),
  ...one("i32", "f32", "0xbe reinterpret"),
  ...loads("f32", "0x2a load"),
};

export const f64 = {
  ...two("f64", "f64", "0xa0 add sub mul div"),
  ...two("f64", "i32", "0x61 eq ne lt gt le ge"),
  ...one("f32", "f64", "0xbb promote"),
  ...one("i32", "f64", "0xb7 convert_i32_s"),
  ...loads("f64", "0x2b load"),
};

export const v128 = {
  ...vone("77 not"),
  ...vtwo("78 and andnot or xor"),
  /** Bits of a where the mask has ones, else of b. */
  ...family<"82 bitselect", [a: Operand, b: Operand, mask: Operand]>(
    ["v128", "v128", "v128"],
    "v128",
    "82 bitselect",
    simd,
  ),
  ...family<"83 any_true", One>(["v128"], "i32", "83 any_true", simd),
  ...loads("v128", "0 load 4 load16x4_u 9 load32_splat load64_splat 92 load32_zero"),
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

export const i8x16 = vtwo("102 narrow_i16x8_u");
export const i16x8 = {
  ...vtwo("134 narrow_i32x4_u"),
  ...vone("137 extend_low_i8x16_u"),
};

export const i32x4 = {
  ...splat("17 splat", "i32"),
  ...vtwo("55 eq ne lt_s lt_u gt_s gt_u le_s le_u ge_s ge_u 174 add 177 sub 181 mul min_s min_u max_s max_u"),
  ...vone(
    "160 abs neg 169 extend_low_i16x8_u 248 trunc_sat_f32x4_s trunc_sat_f32x4_u 252 trunc_sat_f64x2_s_zero trunc_sat_f64x2_u_zero",
  ),
  ...vshift("171 shl shr_s shr_u"),
  lane: lane(27, "i32"),
  replace: replace(28, "i32"),
};

export const i64x2 = {
  ...splat("18 splat", "i64"),
  ...vone("199 extend_low_i32x4_s extend_high_i32x4_s"),
  ...vtwo("206 add 209 sub"),
  ...vshift("203 shl shr_s shr_u"),
};

export const f32x4 = {
  ...splat("19 splat", "f32"),
  ...vtwo("65 eq ne lt gt le ge 228 add sub mul div"),
  /** min and max give NaN for NaN; pmin and pmax are b < a ? b : a and a < b ? b : a. */
  ...vtwo("232 min max pmin pmax"),
  ...vone("224 abs neg 227 sqrt 103 ceil floor trunc nearest 94 demote_f64x2_zero 250 convert_i32x4_s convert_i32x4_u"),
  lane: lane(31, "f32"),
  replace: replace(32, "f32"),
};

export const f64x2 = {
  ...splat("20 splat", "f64"),
  ...vtwo("71 eq ne lt gt le ge 240 add sub mul div"),
  ...vtwo("244 min max pmin pmax"),
  ...vone(
    "236 abs neg 239 sqrt 116 ceil floor 122 trunc 148 nearest 95 promote_low_f32x4 254 convert_low_i32x4_s convert_low_i32x4_u",
  ),
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
