/**
 * The functions that generated WGSL computes with: what WGSL has not (erf, expm1, log1p, floor division, Threefry, the
 * 16-bit floats' bits) and what its built-ins leave loose (exp, log, tanh, sin, cos and pow may be off by many units of
 * the last place; NaN and infinity may be assumed away). Functions here keep NaN by looking at bits, and never lean on
 * a fused multiply-add. Siblings of cpu/runtime/lanes.h, whose minimax polynomials they share. Not the operations
 * table: operations.ts.
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

/** Infinity's bits come from the uniform buffer: a constant infinity is an error in WGSL, and could be folded away. */
export const INFINITY_WORD = "p[0].z";

/** Declares the polynomial with these coefficients at x. */
const polynomial = (name: string, x: string, [first, ...rest]: readonly number[]): string =>
  [`  var ${name} = ${first}f;`, ...rest.map((c) => `  ${name} = fma(${name}, ${x}, ${c}f);`)].join("\n");

/** One function each, and nothing else; what a text calls is found by name. */
const functions: Readonly<Record<string, string>> = {
  inf: `fn inf() -> f32 { return bitcast<f32>(${INFINITY_WORD}); }`,
  nan: `fn nan() -> f32 { return bitcast<f32>(${INFINITY_WORD} | 0x400000u); }`,
  is_nan: "fn is_nan(x: f32) -> bool { return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u; }",
  is_inf: "fn is_inf(x: f32) -> bool { return (bitcast<u32>(x) & 0x7fffffffu) == 0x7f800000u; }",
  /** The size of a with the sign of s. */
  like: "fn like(a: f32, s: f32) -> f32 { return bitcast<f32>((bitcast<u32>(a) & 0x7fffffffu) | (bitcast<u32>(s) & 0x80000000u)); }",

  f_max: "fn f_max(a: f32, b: f32) -> f32 { return select(select(max(a, b), b, is_nan(b)), a, is_nan(a)); }",
  f_min: "fn f_min(a: f32, b: f32) -> f32 { return select(select(min(a, b), b, is_nan(b)), a, is_nan(a)); }",
  f_sign: "fn f_sign(x: f32) -> f32 { return select(x, like(1f, x), (abs(x) > 0f) & !is_nan(x)); }",

  /** 2^n of a whole n in −126 … 127. */
  exp2i: "fn exp2i(n: i32) -> f32 { return bitcast<f32>((n + 127) << 23u); }",
  /** p·2^n of p near 1: in two steps, since 2^n itself may be too large or too small. */
  scale: "fn scale(p: f32, n: i32) -> f32 { let h = n >> 1u; return p * exp2i(h) * exp2i(n - h); }",
  /** e^r − 1 of |r| ≤ ln 2 / 2: the polynomial of Cephes' expf. */
  exp_core: `fn exp_core(r: f32) -> f32 {
${polynomial("p", "r", expPolynomial)}
  return fma(p, r * r, r);
}`,
  /** What is left of x after n ln 2, the first part of ln 2 short enough for n times it to be exact. */
  exp_rest: "fn exp_rest(x: f32, n: f32) -> f32 { return (x - n * 0.693359375f) + n * 2.12194440e-4f; }",
  f_exp: `fn f_exp(x: f32) -> f32 {
  let a = clamp(x, -104f, 89f);
  let n = round(a * 1.442695f);
  return select(scale(1f + exp_core(exp_rest(a, n)), i32(n)), x, is_nan(x));
}`,
  /** 2^n (e^r − 1) + (2^n − 1), with 2^(n−1) twice, which does not overflow. */
  f_expm1: `fn f_expm1(x: f32) -> f32 {
  let a = clamp(x, -30f, 89f);
  let n = round(a * 1.442695f);
  let h = exp2i(i32(n) - 1);
  let y = fma(h, exp_core(exp_rest(a, n)), h - 0.5f) * 2f;
  return select(y, x, is_nan(x) | (abs(x) < 5e-8f));
}`,
  /** tanh|x| = t / (t + 2) with t = e^(2|x|) − 1. */
  f_tanh: `fn f_tanh(x: f32) -> f32 {
  let a = min(20f, abs(x) * 2f);
  let n = round(a * 1.442695f);
  let s = exp2i(i32(n));
  let t = fma(s, exp_core(exp_rest(a, n)), s - 1f);
  return select(like(t / (t + 2f), x), x, is_nan(x));
}`,

  /** log(1 + f)·, plus e ln 2, of 1 + f in √½ … √2: the polynomial of Cephes' logf. */
  log_core: `fn log_core(f: f32, e: f32) -> f32 {
  let z = f * f;
${polynomial("p", "f", logPolynomial)}
  let y = fma(p, f * z, e * -2.12194440e-4f);
  return fma(e, 0.693359375f, f + fma(z, -0.5f, y));
}`,
  f_log: `fn f_log(x: f32) -> f32 {
  let small = x < 1.1754943e-38f;
  let bits = bitcast<i32>(select(x, x * 33554432f, small)) - 0x3f3504f3;
  let e = f32(bits >> 23u) - select(0f, 25f, small);
  let y = log_core(bitcast<f32>((bits & 0x7fffff) + 0x3f3504f3) - 1f, e);
  if (is_nan(x)) { return x; }
  if (x < 0f) { return nan(); }
  if (x * 33554432f == 0f) { return -inf(); }
  return select(y, x, is_inf(x));
}`,
  /** Near 0 the polynomial at x itself; elsewhere log(1 + x), where the rounding of 1 + x does not show. */
  f_log1p: `fn f_log1p(x: f32) -> f32 {
  let near = log_core(x, 0f);
  return select(f_log(1f + x), select(near, x, abs(x) < 1e-8f), (x > -0.292f) & (x < 0.414f));
}`,

  /** Below 0.93 a polynomial of erf(x) / x; above 1 − e^p, p a polynomial of log erfc. */
  f_erf: `fn f_erf(x: f32) -> f32 {
  let a = abs(x);
  let s = a * a;
  let t = min(4f, a);
${polynomial("p", "s", erfPolynomial)}
  p = fma(p, a, a);
${polynomial("q", "t", erfcPolynomial)}
  q = fma(q, t, -t);
  let n = round(q * 1.442695f);
  let e = exp2i(i32(n));
  let far = (1f - e) - e * exp_core(exp_rest(q, n));
  return select(like(select(p, far, a > 0.93f), x), x, is_nan(x));
}`,
  /** atan(a) of a ≤ 1 by a polynomial, π/2 − atan(1/a) above. */
  f_atan: `fn f_atan(x: f32) -> f32 {
  let a = abs(x);
  let over = a > 1f;
  let z = select(a, -1f / a, over);
  let s = z * z;
${polynomial("p", "s", atanPolynomial)}
  p = fma(p * s, z, z);
  return select(like(select(p, (p - 4.371139e-8f) + 1.5707964f, over), x), x, is_nan(x));
}`,

  mul_wide: `fn mul_wide(a: u32, b: u32) -> vec2<u32> {
  let low = (a & 0xffffu) * (b & 0xffffu);
  let mid = (a >> 16u) * (b & 0xffffu) + (low >> 16u);
  let mid2 = (a & 0xffffu) * (b >> 16u) + (mid & 0xffffu);
  return vec2<u32>((mid2 << 16u) | (low & 0xffffu), (a >> 16u) * (b >> 16u) + (mid >> 16u) + (mid2 >> 16u));
}`,
  /** x·2/π modulo 4 from the bits of 2/π around x's own (Payne and Hanek 1983); returns the quadrant and the rest. */
  trig_far: `fn trig_far(x: f32) -> vec2<f32> {
  let table = array<u32, 8>(0u, 0xa2f9836eu, 0x4e441529u, 0xfc2757d1u, 0xf534ddc0u, 0xdb629599u, 0x3c439041u, 0xfe5163abu);
  let bits = bitcast<u32>(x);
  let m = (bits & 0x7fffffu) | 0x800000u;
  let at = ((bits >> 23u) & 255u) - 120u;
  let w = at >> 5u;
  let b = at & 31u;
  let c = (31u - b) & 31u;
  let g0 = (table[w] << b) | ((table[w + 1u] >> 1u) >> c);
  let g1 = (table[w + 1u] << b) | ((table[w + 2u] >> 1u) >> c);
  let g2 = (table[w + 2u] << b) | ((table[w + 3u] >> 1u) >> c);
  let p2 = mul_wide(m, g2);
  let p1 = mul_wide(m, g1);
  let mid = p1.x + p2.y;
  let high = m * g0 + p1.y + select(0u, 1u, mid < p1.x);
  var q = high >> 30u;
  var f = (high << 2u) | (mid >> 30u);
  var rest = mid << 2u;
  var sign = 1f;
  if ((f & 0x80000000u) != 0u) {
    q += 1u;
    rest = ~rest + 1u;
    f = ~f + select(0u, 1u, rest == 0u);
    sign = -1f;
  }
  let r = sign * fma(f32(f), 2.3283064e-10f, f32(rest) * 5.421011e-20f) * 1.5707964f;
  return select(vec2<f32>(f32(q), r), vec2<f32>(-f32(q), -r), x < 0f);
}`,
  /** sin(x + quarter·π/2): x less a multiple of π/2 in four parts (Cody and Waite), Cephes' polynomials. */
  trig: `fn trig(x: f32, quarter: i32) -> f32 {
  var n = round(x * 0.63661977f);
  var r = (((x - n * 1.5703125f) - n * 0.0004837513f) - n * 7.5495336e-8f) - n * 2.563344e-12f;
  if (abs(x) > 8192f) {
    if (is_nan(x) || is_inf(x)) { return nan(); }
    let far = trig_far(x);
    n = far.x;
    r = far.y;
  }
  let k = i32(n) + quarter;
  let s = r * r;
${polynomial("p", "s", sinPolynomial)}
  p = fma(p * s, r, r);
${polynomial("q", "s", cosPolynomial)}
  q = fma(q, s * s, fma(s, -0.5f, 1f));
  let y = select(p, q, (k & 1) != 0);
  return select(select(y, -y, (k & 2) != 0), x, is_nan(x));
}`,
  f_sin: "fn f_sin(x: f32) -> f32 { return select(trig(x, 0), x, abs(x) < 1e-4f); }",
  f_cos: "fn f_cos(x: f32) -> f32 { return trig(x, 1); }",

  /** The upper 12 bits of the significand: products of two such are exact. */
  upper: "fn upper(x: f32) -> f32 { return bitcast<f32>(bitcast<u32>(x) & 0xfffff000u); }",
  /**
   * a^y of finite a > 0: log2 a in two floats from s = (a − b) / (a + b), b = 1 or 3/2, times y in two floats, the
   * scheme and coefficients of fdlibm's e_powf.c (Sun Microsystems, 1993).
   */
  pow_core: `fn pow_core(a_: f32, y_: f32) -> f32 {
  let small = a_ < 1.1754943e-38f;
  let bits = bitcast<u32>(select(a_, a_ * 33554432f, small));
  var n = i32(bits >> 23u) - 127 - select(0, 25, small);
  let j = bits & 0x7fffffu;
  let half = (j > 0x1cc471u) & (j < 0x5db3d7u);
  let top = j >= 0x5db3d7u;
  n += select(0, 1, top);
  let b = select(1f, 1.5f, half);
  let a = bitcast<f32>(j | select(0x3f800000u, 0x3f000000u, top));
  let u = a - b;
  let v = 1f / (a + b);
  let s = u * v;
  let s_h = upper(s);
  let d_h = upper(a + b);
  let d_l = a - (d_h - b);
  let s_l = v * ((u - s_h * d_h) - s_h * d_l);
  let s2 = s * s;
  var w = 0.20697501f;
  w = fma(w, s2, 0.23066075f);
  w = fma(w, s2, 0.27272812f);
  w = fma(w, s2, 0.33333334f);
  w = fma(w, s2, 0.42857143f);
  w = fma(w, s2, 0.6f);
  let r = s2 * s2 * w + s_l * (s_h + s);
  let q = s_h * s_h;
  let c_h = upper(3f + q + r);
  let c_l = r - ((c_h - 3f) - q);
  let e = s_h * c_h;
  let g = s_l * c_h + c_l * s;
  let p_h = upper(e + g);
  let p_l = g - (p_h - e);
  let z_h = 0.96191406f * p_h;
  let z_l = -0.000117368574f * p_h + p_l * 0.9617967f + select(0f, 1.5632208e-6f, half);
  let k_h = select(0f, 0.58496094f, half);
  let t_h = upper(((z_h + z_l) + k_h) + f32(n));
  let t_l = z_l - (((t_h - f32(n)) - k_h) - z_h);
  let y = clamp(y_, -2147483648f, 2147483648f);
  let y_h = upper(y);
  let l = (y - y_h) * t_h + y * t_l;
  let h = y_h * t_h;
  let z = l + h;
  if (z > 129f) { return inf(); }
  if (z < -152f) { return 0f; }
  let m = round(z);
  let x_h = h - m;
  let x = bitcast<f32>(bitcast<u32>(x_h + l) & 0xffff8000u);
  let o = x * 0.69314575f;
  let i = (l - (x - x_h)) * 0.6931472f + x * 1.4286065e-6f;
  let t = o + i;
  let t_rest = i - (t - o);
  return scale(1f + (exp_core(t) + (t_rest + t_rest * t)), i32(m));
}`,
  /** C's pow: anything to the 0 and 1 to anything are 1, NaN or not; (−1)^±∞ is 1. */
  f_pow: `fn f_pow(x: f32, y: f32) -> f32 {
  if (x == 1f && !is_nan(x)) { return 1f; }
  if (y == 0f && !is_nan(y)) { return 1f; }
  if (is_nan(x)) { return x; }
  if (is_nan(y)) { return y; }
  let a = abs(x);
  if (is_inf(y)) { return select(select(0f, inf(), (a > 1f) == (y > 0f)), 1f, a == 1f); }
  let whole = trunc(y) == y;
  let odd = whole && trunc(y * 0.5f) * 2f != y;
  if (bitcast<i32>(x) < 0 && !whole && a != 0f && !is_inf(x)) { return nan(); }
  var r: f32;
  if (a == 0f) { r = select(0f, inf(), y < 0f); }
  else if (is_inf(x)) { r = select(inf(), 0f, y < 0f); }
  else { r = pow_core(a, y); }
  return select(r, -r, odd && bitcast<i32>(x) < 0);
}`,
  /** The remainder with the divisor's sign, exactly: long division of the significands, eight bits a step. */
  f_mod: `fn f_mod(x: f32, y: f32) -> f32 {
  if (is_nan(x) || is_nan(y) || is_inf(x) || abs(y) < 1.1754943e-38f) { return nan(); }
  let a = bitcast<u32>(x) & 0x7fffffffu;
  let b = bitcast<u32>(y) & 0x7fffffffu;
  var r = abs(x);
  if (a >= b) {
    let d = (b & 0x7fffffu) | 0x800000u;
    var n = i32(a >> 23u) - i32(b >> 23u);
    var m = ((a & 0x7fffffu) | 0x800000u) % d;
    while (n > 0) {
      let s = min(n, 8);
      m = (m << u32(s)) % d;
      n -= s;
    }
    r = f32(m) * 1.1920929e-7f * exp2i(i32(b >> 23u) - 127);
  }
  r = like(r, x);
  return select(r, r + y, r != 0f && (r < 0f) != (y < 0f));
}`,

  /** Floor division and the remainder of the divisor's sign; by 0 both are 0 (the caller reports it). */
  i_idiv: `fn i_idiv(a: i32, b: i32) -> i32 {
  if (b == 0) { return 0; }
  let q = a / b;
  return select(q, q - 1, (q * b != a) & ((a ^ b) < 0));
}`,
  i_mod: `fn i_mod(a: i32, b: i32) -> i32 {
  if (b == 0) { return 0; }
  let r = a % b;
  return select(r, r + b, (r != 0) & ((r ^ b) < 0));
}`,
  u_idiv: "fn u_idiv(a: u32, b: u32) -> u32 { return select(a / max(b, 1u), 0u, b == 0u); }",
  u_mod: "fn u_mod(a: u32, b: u32) -> u32 { return select(a % max(b, 1u), 0u, b == 0u); }",
  /** By squaring; wraps. */
  u_pow: `fn u_pow(a_: u32, n_: u32) -> u32 {
  var a = a_;
  var n = n_;
  var r = 1u;
  while (n != 0u) {
    r *= select(1u, a, (n & 1u) != 0u);
    a *= a;
    n >>= 1u;
  }
  return r;
}`,
  /** A negative exponent gives 0 but of 1 and −1. */
  i_pow: `fn i_pow(a: i32, n: i32) -> i32 {
  let r = bitcast<i32>(u_pow(bitcast<u32>(a), bitcast<u32>(select(n, n & 1, n < 0))));
  return select(r, 0, (n < 0) & (a != 1) & (a != -1));
}`,
  i_shl: "fn i_shl(a: i32, s: i32) -> i32 { return select(0, a << (bitcast<u32>(s) & 31u), bitcast<u32>(s) < 32u); }",
  u_shl: "fn u_shl(a: u32, s: u32) -> u32 { return select(0u, a << (s & 31u), s < 32u); }",
  i_shr: "fn i_shr(a: i32, s: i32) -> i32 { return a >> min(bitcast<u32>(s), 31u); }",
  u_shr: "fn u_shr(a: u32, s: u32) -> u32 { return select(0u, a >> (s & 31u), s < 32u); }",

  /** Toward 0; beyond the ends the nearest end, and NaN 0: the reference backend's choice. */
  i_from_f: `fn i_from_f(x: f32) -> i32 {
  if (is_nan(x)) { return 0; }
  if (x >= 2147483648f) { return 2147483647; }
  return i32(max(x, -2147483648f));
}`,
  u_from_f: `fn u_from_f(x: f32) -> u32 {
  if (is_nan(x)) { return 0u; }
  if (x >= 4294967296f) { return 4294967295u; }
  return u32(max(x, 0f));
}`,
  c_from_f: "fn c_from_f(x: f32) -> i32 { return select(i32(clamp(x, 0f, 255f)), 0, is_nan(x)); }",

  /** Bits of the 16-bit floats, rounded to nearest, ties to even. */
  half_bits: `fn half_bits(x: f32) -> u32 {
  let u = bitcast<u32>(x);
  let a = u & 0x7fffffffu;
  let sign = (u >> 16u) & 0x8000u;
  if (a > 0x7f800000u) { return sign | 0x7e00u; }
  if (a >= 0x477ff000u) { return sign | 0x7c00u; }
  if (a < 0x38800000u) { return sign | u32(round(abs(x) * 16777216f)); }
  return sign | ((a + 0xfffu + ((a >> 13u) & 1u) - 0x38000000u) >> 13u);
}`,
  half: `fn half(h: u32) -> f32 {
  let sign = (h & 0x8000u) << 16u;
  let a = h & 0x7fffu;
  if (a >= 0x7c00u) { return bitcast<f32>(sign | ${INFINITY_WORD} | ((a & 0x3ffu) << 13u)); }
  let small = f32(a) * 5.9604645e-8f;
  return bitcast<f32>(sign | select(a * 8192u + 0x38000000u, bitcast<u32>(small), a < 0x400u));
}`,
  brain_bits: `fn brain_bits(x: f32) -> u32 {
  let u = bitcast<u32>(x);
  return select(u + 0x7fffu + ((u >> 16u) & 1u), u | 0x400000u, is_nan(x)) >> 16u;
}`,
  brain: "fn brain(b: u32) -> f32 { return bitcast<f32>(b << 16u); }",

  /** Threefry-2x32, 20 rounds (Salmon et al. 2011): word position mod 2 of block position / 2, as `random` defines it. */
  threefry: `fn threefry(k0: u32, k1: u32, position: u32) -> u32 {
  let key = array<u32, 3>(k0, k1, k0 ^ k1 ^ 0x1bd11bdau);
  var x = vec2<u32>((position >> 1u) + k0, k1);
  for (var s = 0u; s < 5u; s++) {
    let rotations = select(vec4<u32>(17u, 29u, 16u, 24u), vec4<u32>(13u, 15u, 26u, 6u), (s & 1u) == 0u);
    for (var i = 0u; i < 4u; i++) {
      let by = rotations[i];
      x.x += x.y;
      x.y = ((x.y << by) | (x.y >> (32u - by))) ^ x.x;
    }
    x.x += key[(s + 1u) % 3u];
    x.y += key[(s + 2u) % 3u] + s + 1u;
  }
  return select(x.x, x.y, (position & 1u) == 1u);
}`,

  /** Notes the first failure: which operation, and the index that was out of range. */
  fail: `fn fail(operation: u32, index: i32) {
  loop {
    let r = atomicCompareExchangeWeak(&failure.operation, 0u, operation);
    if (r.exchanged) { atomicStore(&failure.index, bitcast<u32>(index)); }
    if (r.exchanged || r.old_value != 0u) { break; }
  }
}`,
};

/** The texts of the functions that `body` calls, and of those that they call. */
export function libraryFor(body: string): string {
  const needed = new Set<string>();
  const visit = (text: string): void => {
    for (const [, name] of text.matchAll(/\b([a-z]\w*)\(/g)) {
      if (needed.has(name) || !Object.hasOwn(functions, name)) continue;
      needed.add(name);
      visit(functions[name]);
    }
  };
  visit(body);
  return Object.keys(functions)
    .filter((name) => needed.has(name))
    .map((name) => functions[name])
    .join("\n");
}
