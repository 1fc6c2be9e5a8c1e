/**
 * Functions on four floats (and pairs of two doubles) that WebAssembly has no instruction for: exp, log, tanh, erf …, the
 * 16-bit floats, Threefry. Each is a function of the module that uses it, made when first asked for. The polynomials are
 * those of the `cpu` backend's lanes.h, without fused multiply-adds; what is rare (sin of 10⁶, all of float64) is the
 * host's Math, lane by lane.
 */
import {
  atanPolynomial,
  cosPolynomial,
  erfcPolynomial,
  erfPolynomial,
  expPolynomial,
  logPolynomial,
  sinPolynomial,
} from "../polynomials.ts";
import { erfCoefficients } from "../reference/erf.ts";
import { type Callable, call, type Func, type Local } from "./function.ts";
import {
  type Expr,
  f32,
  f32s,
  f32x4,
  f64,
  f64s,
  f64x2,
  i32,
  i32s,
  i32x4,
  i64x2,
  shuffle32,
  type Type,
  v128,
  vector,
} from "./instructions.ts";
import type { Module } from "./module.ts";

const { add, sub, mul, div } = f32x4;
/** a · b + c, rounded twice. */
const mad = (a: Expr, b: Expr, c: Expr): Expr => add(mul(a, b), c);
/** a where the mask says so, else b. */
export const pick = (mask: Expr, a: Expr, b: Expr): Expr => v128.bitselect(a, b, mask);
const signBit = f32s(-0);
/** |a| with the sign of s. */
const like = (a: Expr, s: Expr): Expr => v128.bitselect(a, s, f32s2(0x7fffffff));
const f32s2 = (bits: number): Expr => vector(new Uint32Array(4).fill(bits));
const inf = Number.POSITIVE_INFINITY;

/** The polynomial with these coefficients, highest first, at x. */
const horner =
  ({ add, mul }: Pick<typeof f32x4, "add" | "mul">, splat: (c: number) => Expr) =>
  (f: Func, x: Expr, [first, ...rest]: readonly number[]): Local => {
    const p = f.let(splat(first));
    for (const c of rest) f.set(p, add(mul(p, x), splat(c)));
    return p;
  };
const polynomial = horner(f32x4, f32s);
const polynomial64 = horner(f64x2, f64s);

/** x = n ln 2 + r, |r| ≤ ln 2 / 2: e^r − 1 (the polynomial of Cephes' expf) and n as integers. x is within 2²⁰ of 0. */
function expCore(f: Func, x: Expr): { p: Local; n: Local } {
  const shift = 12582912; // 1.5 · 2²³: adding it rounds to an integer, found in the low bits
  const t = f.let(mad(x, f32s(Math.LOG2E), f32s(shift)));
  const whole = f.let(sub(t, f32s(shift)));
  const r = f.let(mad(whole, f32s(-0.693359375), x));
  f.set(r, mad(whole, f32s(2.1219444e-4), r));
  const p = polynomial(f, r, expPolynomial);
  f.set(p, mad(p, mul(r, r), r));
  return { p, n: f.let(i32x4.sub(t, i32s(0x4b400000))) };
}
/** 2^n of integers −126 … 127. */
const exp2i = (n: Expr): Expr => i32x4.shl(i32x4.add(n, i32s(127)), 23);

type Make = (f: Func, args: readonly Local[], lib: Library) => Expr;

const unary32: Readonly<Record<string, Make>> = {
  exp: (f, [x]) => {
    const { p, n } = expCore(f, f.let(f32x4.pmin(f32x4.pmax(x, f32s(-104)), f32s(89)))); // NaN passes
    const half = f.let(i32x4.shr_s(n, 1)); // in two steps: 2^n itself may be too large
    return mul(mul(add(p, f32s(1)), exp2i(half)), exp2i(i32x4.sub(n, half)));
  },
  log: (f, [x0]) => {
    // a subnormal is taken 2²³ times
    const tiny = f.let(f32x4.lt(x0, f32s(2 ** -126)));
    const x = f.let(pick(tiny, mul(x0, f32s(2 ** 23)), x0));
    const bits = f.let(i32x4.sub(x, i32s(0x3f3504f3)));
    const e = f.let(sub(f32x4.convert_i32x4_s(i32x4.shr_s(bits, 23)), v128.and(tiny, f32s(23))));
    const m = f.let(sub(i32x4.add(v128.and(bits, i32s(0x7fffff)), i32s(0x3f3504f3)), f32s(1)));
    const z = f.let(mul(m, m));
    const p = polynomial(f, m, logPolynomial);
    const y = f.let(mad(p, mul(m, z), mul(e, f32s(-2.1219444e-4))));
    f.set(y, mad(z, f32s(-0.5), y));
    f.set(y, mad(e, f32s(0.693359375), add(m, y)));
    f.set(y, pick(f32x4.lt(x, f32s(inf)), y, x)); // ∞ and NaN stay
    f.set(y, v128.or(y, f32x4.lt(x, f32s(0)))); // NaN of negatives
    return pick(f32x4.eq(x0, f32s(0)), f32s(-inf), y);
  },
  /** t / (t + 2) with t = e^(2|x|) − 1 = 2^n (e^r − 1) + (2^n − 1): as accurate near 0 as anywhere. */
  tanh: (f, [x]) => {
    const { p, n } = expCore(f, f.let(f32x4.pmin(mul(f32x4.abs(x), f32s(2)), f32s(20))));
    const s = f.let(exp2i(n));
    const t = f.let(mad(s, p, sub(s, f32s(1))));
    return pick(f32x4.eq(x, x), like(div(t, add(t, f32s(2))), x), x);
  },
  /** 2^n (e^r − 1) + (2^n − 1), with 2^(n−1) twice, which does not overflow. */
  expm1: (f, [x]) => {
    const { p, n } = expCore(f, f.let(f32x4.pmin(f32x4.pmax(x, f32s(-30)), f32s(89))));
    const h = f.let(exp2i(i32x4.sub(n, i32s(1))));
    const y = f.let(mul(mad(h, p, sub(h, f32s(0.5))), f32s(2)));
    return pick(f32x4.lt(f32x4.abs(x), f32s(5e-8)), x, pick(f32x4.eq(x, x), y, x));
  },
  /** log(u) of u = 1 + x rounded, and what the rounding took (Kahan; the HP-15C handbook). */
  log1p: (f, [x], lib) => {
    const u = f.let(add(x, f32s(1)));
    const y = f.let(call(lib.unary32("log"), u));
    const c = add(y, div(sub(x, sub(u, f32s(1))), u));
    return like32(f, pick(v128.and(f32x4.gt(u, f32s(0)), f32x4.lt(u, f32s(inf))), c, y), x);
  },
  /** Below 0.93 a polynomial of erf(x) / x; above 1 − e^p, p a polynomial of log erfc. */
  erf: (f, [x]) => {
    const a = f.let(f32x4.abs(x));
    const s = f.let(mul(a, a));
    const t = f.let(f32x4.pmin(a, f32s(4)));
    const p = polynomial(f, s, erfPolynomial);
    f.set(p, mad(p, a, a));
    const q = polynomial(f, t, erfcPolynomial);
    const core = expCore(f, f.let(sub(mul(q, t), t)));
    const e = f.let(exp2i(core.n));
    const far = sub(sub(f32s(1), e), mul(e, core.p));
    return pick(f32x4.eq(x, x), like(pick(f32x4.gt(a, f32s(0.93)), far, p), x), x);
  },
  /** A minimax polynomial up to 1, π/2 − atan(1/a) above. */
  atan: (f, [x]) => {
    const a = f.let(f32x4.abs(x));
    const over = f.let(f32x4.gt(a, f32s(1)));
    const z = f.let(div(pick(over, f32s(-1), a), pick(over, a, f32s(1))));
    const s = f.let(mul(z, z));
    const p = polynomial(f, s, atanPolynomial);
    f.set(p, mad(mul(p, s), z, z));
    return pick(f32x4.eq(x, x), like(pick(over, add(sub(p, f32s(4.37113883e-8)), f32s(1.57079637)), p), x), x);
  },
  sin: (f, [x], lib) => pick(f32x4.lt(f32x4.abs(x), f32s(1e-4)), x, trigonometric(f, x, 0, lib.import("sin", 1))),
  cos: (f, [x], lib) => trigonometric(f, x, 1, lib.import("cos", 1)),
};

/** The magnitude of a computed value with the sign of s; NaN stays. */
function like32(f: Func, a: Expr, s: Expr): Expr {
  const x = f.let(a);
  return pick(f32x4.eq(x, x), like(x, s), x);
}

/** Lanes 0 and 1, or 2 and 3, of four floats as doubles. */
export const toDoubles = (x: Expr): readonly [Expr, Expr] => [
  f64x2.promote_low_f32x4(x),
  f64x2.promote_low_f32x4(shuffle32(x, x, [2, 3, 2, 3])),
];
export const fromDoubles = (low: Expr, high: Expr): Expr =>
  shuffle32(f32x4.demote_f64x2_zero(low), f32x4.demote_f64x2_zero(high), [0, 1, 4, 5]);
const integers = (low: Expr, high: Expr): Expr =>
  shuffle32(i32x4.trunc_sat_f64x2_s_zero(low), i32x4.trunc_sat_f64x2_s_zero(high), [0, 1, 4, 5]);

/** A function of the host on each lane where `where` (a mask) says so; y elsewhere. */
function hostLanes(f: Func, y: Local, where: Local, host: Callable, args: readonly Expr[]): void {
  f.if(v128.any_true(where), () => {
    for (let l = 0; l < 4; l++)
      f.if(i32x4.lane(where, l), () => {
        const value = call(host, ...args.map((a) => f64.promote(f32x4.lane(a, l))));
        f.set(y, f32x4.replace(y, l, f32.demote(value)));
      });
  });
}

/** sin(x + quarter · π/2): x less a multiple of π/2, reduced in doubles; Cephes' polynomials; the host beyond 10⁵. */
function trigonometric(f: Func, x: Local, quarter: 0 | 1, host: Callable): Expr {
  const parts = toDoubles(x).map((half) => {
    const d = f.let(half);
    const n = f.let(f64x2.nearest(f64x2.mul(d, f64s(2 / Math.PI))));
    // π/2 in two parts: the first has 33 bits, so that n times it is exact
    const r = f64x2.sub(
      f64x2.sub(d, f64x2.mul(n, f64s(1.5707963267341256))),
      f64x2.mul(n, f64s(6.077100506506192e-11)),
    );
    return { n, r: f.let(r) };
  });
  const k = f.let(i32x4.add(integers(parts[0].n, parts[1].n), i32s(quarter)));
  const r = f.let(fromDoubles(parts[0].r, parts[1].r));
  const s = f.let(mul(r, r));
  const p = polynomial(f, s, sinPolynomial);
  f.set(p, mad(mul(p, s), r, r));
  const q = polynomial(f, s, cosPolynomial);
  f.set(q, mad(q, mul(s, s), mad(s, f32s(-0.5), f32s(1))));
  const odd = i32x4.neg(v128.and(k, i32s(1)));
  const y = f.let(v128.xor(pick(odd, q, p), i32x4.shl(v128.and(k, i32s(2)), 30)));
  const far = f.let(v128.not(f32x4.le(f32x4.abs(x), f32s(1e5))));
  hostLanes(f, y, far, host, [x]);
  return y;
}

const binary32: Readonly<Record<string, Make>> = {
  /** (2^e m)^y = 2^(y (e + log2 m)), √½ ≤ m ≤ √2, in doubles; log2 m in (m − 1) / (m + 1). */
  pow: (f, [x, y]) => {
    const a0 = f.let(f32x4.abs(x));
    const tiny = f.let(f32x4.lt(a0, f32s(2 ** -126)));
    const a = f.let(pick(tiny, mul(a0, f32s(2 ** 23)), a0));
    const bits = f.let(i32x4.sub(a, i32s(0x3f3504f3)));
    const m = f.let(i32x4.add(v128.and(bits, i32s(0x7fffff)), i32s(0x3f3504f3)));
    const e = f.let(sub(f32x4.convert_i32x4_s(i32x4.shr_s(bits, 23)), v128.and(tiny, f32s(23))));
    f.set(e, pick(f32x4.lt(a, f32s(inf)), e, a)); // ∞ and NaN stay
    f.set(e, pick(f32x4.eq(a, f32s(0)), f32s(-inf), e));
    const [ms, es, ys] = [toDoubles(m), toDoubles(e), toDoubles(y)];
    const halves = [0, 1].map((i) => powHalf(f, f.let(ms[i]), es[i], ys[i]));
    const r = f.let(fromDoubles(halves[0], halves[1]));
    // C's special cases
    const whole = f.let(f32x4.eq(f32x4.trunc(y), y));
    const odd = f.let(v128.and(whole, f32x4.ne(mul(f32x4.trunc(mul(y, f32s(0.5))), f32s(2)), y)));
    f.set(r, v128.or(r, v128.and(v128.and(x, odd), signBit)));
    f.set(r, v128.or(r, v128.andnot(v128.and(f32x4.lt(x, f32s(0)), f32x4.lt(a, f32s(inf))), whole)));
    const unit = v128.and(f32x4.eq(a, f32s(1)), f32x4.eq(f32x4.abs(y), f32s(inf)));
    return pick(v128.or(v128.or(f32x4.eq(y, f32s(0)), f32x4.eq(x, f32s(1))), unit), f32s(1), r);
  },
  /** x − ⌊x / y⌋ y, exact in doubles as long as the quotient is; the host's remainder elsewhere. Zeros have x's sign. */
  mod: (f, [x, y], lib) => {
    const [xs, ys] = [toDoubles(x), toDoubles(y)];
    const parts = [0, 1].map((i) => {
      const [a, b] = [f.let(xs[i]), f.let(ys[i])];
      const q = f.let(f64x2.floor(f64x2.div(a, b)));
      return { q, r: f.let(f64x2.sub(a, f64x2.mul(q, b))) };
    });
    const r = f.let(fromDoubles(parts[0].r, parts[1].r));
    const q = f.let(fromDoubles(parts[0].q, parts[1].q));
    const near = v128.and(f32x4.lt(f32x4.abs(q), f32s(2 ** 22)), f32x4.lt(f32x4.abs(y), f32s(inf)));
    const far = f.let(v128.not(near));
    hostLanes(f, r, far, lib.import("fmod", 2), [x, y]);
    const zero = f32s(0);
    const wrong = v128.or(
      v128.and(f32x4.lt(r, zero), f32x4.gt(y, zero)),
      v128.and(f32x4.gt(r, zero), f32x4.lt(y, zero)),
    );
    f.set(r, pick(f.let(wrong), add(r, y), r));
    return v128.or(r, v128.and(v128.and(f32x4.eq(r, zero), x), signBit));
  },
};

function powHalf(f: Func, m: Expr, e: Expr, y: Expr): Local {
  const { add, sub, mul, div } = f64x2;
  const g = f.let(div(sub(m, f64s(1)), add(m, f64s(1))));
  const s = f.let(mul(g, g));
  const p = polynomial64(f, s, [0.340738650294, 0.411672197847, 0.577083594924, 0.96179667328, 2.88539008179]);
  const z = f.let(mul(y, add(mul(g, p), e)));
  f.set(z, f64x2.pmin(f64x2.pmax(z, f64s(-200)), f64s(200))); // NaN passes
  const shift = f64s(1.5 * 2 ** 52);
  const t = f.let(add(z, shift));
  const r = f.let(sub(z, sub(t, shift)));
  const w = polynomial64(
    f,
    r,
    [
      0.000154780215725, 0.00134004316681, 0.00961799451682, 0.0555032721576, 0.24022651505, 0.69314720671,
      0.999999999919,
    ],
  );
  const power = i64x2.add(i64x2.shl(t, 52), vector(new BigUint64Array(2).fill(0x3ff0000000000000n)));
  return f.let(mul(w, power));
}

/** Functions on 32-bit integers: per lane where the instruction set has nothing for vectors. */
const integer: Readonly<Record<string, Make>> = {
  /** Floor division and the remainder with the divisor's sign; of 0 both are 0 (the kernel reports it). */
  i_mod: (f, [a, b]) => lanes(f, a, b, signedMod),
  i_idiv: (f, [a, b]) =>
    lanes(f, a, b, (x, y) => {
      const out = f.let(i32.sub(0, x));
      f.if(i32.ne(y, -1), () => {
        f.set(out, 0);
        f.if(y, () => {
          const rest = f.let(i32.rem_s(x, y));
          f.set(out, i32.div_s(x, y));
          f.if(i32.and(i32.ne(rest, 0), i32.lt_s(i32.xor(rest, y), 0)), () => f.bump(out, -1));
        });
      });
      return out;
    }),
  u_mod: (f, [a, b]) => lanes(f, a, b, (x, y) => orZero(f, y, () => i32.rem_u(x, y))),
  u_idiv: (f, [a, b]) => lanes(f, a, b, (x, y) => orZero(f, y, () => i32.div_u(x, y))),
  /** By squaring; wraps. */
  u_pow: (f, [a, n]) => {
    const r = f.let(i32s(1));
    f.while(v128.any_true(n), () => {
      f.set(r, i32x4.mul(r, pick(i32x4.ne(v128.and(n, i32s(1)), i32s(0)), a, i32s(1))));
      f.set(n, i32x4.shr_u(n, 1));
      f.set(a, i32x4.mul(a, a));
    });
    return r;
  },
  /** A negative exponent gives 0 but of 1 and −1. */
  i_pow: (f, [a, n], lib) => {
    const low = f.let(i32x4.lt_s(n, i32s(0)));
    const unit = f.let(v128.or(i32x4.eq(a, i32s(1)), i32x4.eq(a, i32s(-1))));
    const power = call(lib.integer("u_pow"), a, pick(low, v128.and(n, i32s(1)), n));
    return v128.and(power, v128.or(v128.not(low), unit));
  },
  shl: (f, [a, s]) =>
    v128.and(
      lanes(f, a, s, (x, y) => f.let(i32.shl(x, y))),
      i32x4.lt_u(s, i32s(32)),
    ),
  u_shr: (f, [a, s]) =>
    v128.and(
      lanes(f, a, s, (x, y) => f.let(i32.shr_u(x, y))),
      i32x4.lt_u(s, i32s(32)),
    ),
  i_shr: (f, [a, s]) => {
    const most = f.let(i32x4.min_u(s, i32s(31)));
    return lanes(f, a, most, (x, y) => f.let(i32.shr_s(x, y)));
  },
};

function orZero(f: Func, condition: Expr, value: () => Expr): Local {
  const out = f.local("i32");
  f.set(out, 0);
  f.if(condition, () => f.set(out, value()));
  return out;
}

function signedMod(x: Local, y: Local, f: Func): Local {
  const out = f.local("i32");
  f.set(out, 0);
  f.if(i32.and(i32.ne(y, 0), i32.ne(y, -1)), () => {
    f.set(out, i32.rem_s(x, y));
    f.if(i32.and(i32.ne(out, 0), i32.lt_s(i32.xor(out, y), 0)), () => f.bump(out, y));
  });
  return out;
}

function lanes(f: Func, a: Expr, b: Expr, each: (x: Local, y: Local, f: Func) => Local): Local {
  const out = f.let(i32s(0));
  for (let l = 0; l < 4; l++)
    f.set(out, i32x4.replace(out, l, each(f.let(i32x4.lane(a, l)), f.let(i32x4.lane(b, l)), f)));
  return out;
}

/** Bits of halves (in 32-bit lanes) to floats, and back, rounded to nearest even. */
const halves: Readonly<Record<string, Make>> = {
  from_half: (f, [u]) => {
    const a = f.let(v128.and(u, i32s(0x7fff)));
    // the last place of ½ is a half's smallest step, 2⁻²⁴
    const small = sub(v128.or(a, i32s(0x3f000000)), f32s(0.5));
    const special = v128.and(i32x4.ge_s(a, i32s(0x7c00)), i32s(112 << 23));
    const normal = i32x4.add(i32x4.add(i32x4.shl(a, 13), i32s(112 << 23)), special);
    const sign = i32x4.shl(v128.and(u, i32s(0x8000)), 16);
    return v128.or(pick(i32x4.lt_s(a, i32s(0x400)), small, normal), sign);
  },
  to_half: (f, [u]) => {
    const a = f.let(v128.and(u, i32s(0x7fffffff)));
    const odd = v128.and(i32x4.shr_u(a, 13), i32s(1));
    const normal = i32x4.shr_u(i32x4.sub(i32x4.add(i32x4.add(a, i32s(0xfff)), odd), i32s(112 << 23)), 13);
    const small = i32x4.sub(add(a, f32s(0.5)), i32s(0x3f000000)); // adding ½ rounds to a multiple of 2⁻²⁴
    const r = f.let(pick(i32x4.lt_s(a, i32s(0x38800000)), small, normal));
    f.set(r, pick(i32x4.ge_s(a, i32s(0x477ff000)), i32s(0x7c00), r));
    f.set(r, pick(i32x4.gt_s(a, i32s(0x7f800000)), i32s(0x7e00), r));
    return v128.or(r, v128.and(i32x4.shr_u(u, 16), i32s(0x8000)));
  },
  to_bfloat: (_, [u]) => {
    const odd = v128.and(i32x4.shr_u(u, 16), i32s(1));
    const rounded = i32x4.add(i32x4.add(u, i32s(0x7fff)), odd);
    return i32x4.shr_u(pick(f32x4.eq(u, u), rounded, v128.or(u, i32s(0x400000))), 16);
  },
};

/** erf on two doubles (reference/erf.ts says whose the coefficients are): both stretches for both lanes, and the right one taken. */
const erf64: Make = (f, [x], lib) => {
  const { mul, div, sub } = f64x2;
  const quotient = (z: Expr, [p, q]: readonly [readonly number[], readonly number[]]): Expr =>
    div(polynomial64(f, z, p), polynomial64(f, z, q));
  // beyond 6 erf is 1, which the numerator's overflow must not change
  const a = f.let(f64x2.pmin(f64x2.abs(x), f64s(6)));
  const s = f.let(mul(a, a));
  const far = sub(f64s(1), mul(call(lib.float64("exp", 1), f64x2.neg(s)), quotient(a, erfCoefficients.far)));
  const y = v128.bitselect(far, x, vector(new BigUint64Array(2).fill(0x7fffffffffffffffn)));
  const near = mul(x, quotient(s, erfCoefficients.near));
  return pick(f64x2.eq(x, x), pick(f64x2.le(a, f64s(0.46875)), near, y), x);
};

/** Threefry-2x32 with 20 rounds (Salmon et al. 2011): word position mod 2 of block position / 2, of four positions. */
const threefry: Make = (f, [k0, k1, position]) => {
  const keys = [k0, k1, f.let(v128.xor(v128.xor(k0, k1), i32s(0x1bd11bda)))];
  const x0 = f.let(i32x4.add(i32x4.shr_u(position, 1), k0));
  const x1 = f.let(k1);
  const rotations = [13, 15, 26, 6, 17, 29, 16, 24];
  for (let round = 0; round < 20; round++) {
    const by = rotations[round % 8];
    f.set(x0, i32x4.add(x0, x1));
    f.set(x1, v128.xor(v128.or(i32x4.shl(x1, by), i32x4.shr_u(x1, 32 - by)), x0));
    if (round % 4 === 3) {
      const s = (round + 1) / 4;
      f.set(x0, i32x4.add(x0, keys[s % 3]));
      f.set(x1, i32x4.add(i32x4.add(x1, keys[(s + 1) % 3]), i32s(s)));
    }
  }
  return pick(i32x4.eq(v128.and(position, i32s(1)), i32s(0)), x0, x1);
};

/** The functions that one module needs. */
export class Library {
  readonly #module: Module;
  readonly #made = new Map<string, Func>();

  constructor(module: Module) {
    this.#module = module;
  }

  import(name: string, args: 1 | 2): Callable {
    return this.#module.import(name, new Array<Type>(args).fill("f64"), ["f64"]);
  }

  #get(key: string, params: number, make: Make): Func {
    let f = this.#made.get(key);
    if (!f) {
      f = this.#module.function(new Array<Type>(params).fill("v128"), ["v128"]);
      this.#made.set(key, f);
      f.result(make(f, f.args, this));
    }
    return f;
  }

  unary32 = (name: string): Func => this.#get(`f_${name}`, 1, unary32[name]);
  binary32 = (name: string): Func => this.#get(`f_${name}`, 2, binary32[name]);
  integer = (name: string): Func => this.#get(name, 2, integer[name]);
  half = (name: "from_half" | "to_half" | "to_bfloat"): Func => this.#get(name, 1, halves[name]);
  threefry = (): Func => this.#get("threefry", 3, threefry);

  /** erf of two doubles, as the reference backend computes it. */
  erf64 = (): Func => this.#get("d_erf", 1, erf64);

  /** A function of the host on two doubles, or on two pairs. */
  float64(name: string, args: 1 | 2): Func {
    return this.#get(`d_${name}`, args, (f, pair) => {
      const fn = this.import(name, args);
      const out = f.let(f64s(0));
      for (let l = 0; l < 2; l++) f.set(out, f64x2.replace(out, l, call(fn, ...pair.map((v) => f64x2.lane(v, l)))));
      return out;
    });
  }
}

export const isUnary32 = (name: string): boolean => Object.hasOwn(unary32, name);
