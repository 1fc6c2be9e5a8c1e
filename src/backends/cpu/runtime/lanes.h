/*
 * What a generated kernel computes with, after abi.h: L lanes (16, 8 or 4; defined before) of float (vf), double (vd),
 * int32 (vi), uint32 (vu); a mask is a vi of 0 and -1. The first letter of a name is the type of its result: f d i u, in
 * memory also h (half), b (bfloat16), c (uint8), m (bool byte). Includes nothing; compiles with gcc >= 9, clang >= 12.
 * Doubles exist with NEED_d, the rarer functions with NEED_<name> (lanes.ts). Not for the built-in kernels: simd.h.
 * Kernels run with denormals counted as zero (pool.c): nothing here passes through one.
 */
#define INLINE static inline __attribute__((always_inline, unused))
#define RARE static __attribute__((noinline, unused))
#define LANES_(T, name, size) \
  typedef T name __attribute__((vector_size(L * size), may_alias)); \
  typedef T name##_m __attribute__((vector_size(L * size), may_alias, aligned(size)));
typedef __UINT8_TYPE__ u8;
typedef __UINT16_TYPE__ u16;
typedef __UINT32_TYPE__ u32;
typedef __INT64_TYPE__ i64;
LANES_(float, vf, 4) LANES_(double, vd, 8) LANES_(nb_i32, vi, 4) LANES_(u32, vu, 4) LANES_(i64, vl, 8)
LANES_(u16, vh, 2) LANES_(u8, vc, 1)
#if L == 16
#define LANES(s) 0 ^ s, 1 ^ s, 2 ^ s, 3 ^ s, 4 ^ s, 5 ^ s, 6 ^ s, 7 ^ s, 8 ^ s, 9 ^ s, 10 ^ s, 11 ^ s, 12 ^ s, 13 ^ s, 14 ^ s, 15 ^ s
#elif L == 8
#define LANES(s) 0 ^ s, 1 ^ s, 2 ^ s, 3 ^ s, 4 ^ s, 5 ^ s, 6 ^ s, 7 ^ s
#else
#define LANES(s) 0 ^ s, 1 ^ s, 2 ^ s, 3 ^ s
#endif
#define CONVERT __builtin_convertvector
/* A vector of e for each lane i. */
#define EACH(V, e) ({ V r_; for (int i = 0; i < L; i++) r_[i] = (e); r_; })

INLINE vf f_splat(float x) { return x - (vf){0}; } /* x - 0 keeps -0 and NaN; compiles to one broadcast */
INLINE vi i_splat(nb_i32 x) { return x - (vi){0}; }
INLINE vu u_splat(u32 x) { return x - (vu){0}; }
INLINE vi i_iota(void) { return (vi){LANES(0)}; }
/* One value through a function of lanes. */
#define F1(fn, x) (fn(f_splat(x))[0])
#define F2(fn, x, y) (fn(f_splat(x), f_splat(y))[0])
#define I1(fn, x) (fn(i_splat(x))[0])
#define I2(fn, x, y) (fn(i_splat(x), i_splat(y))[0])
#define U1(fn, x) (fn(u_splat(x))[0])
#define U2(fn, x, y) (fn(u_splat(x), u_splat(y))[0])
#define D1(fn, x) (fn(d_splat(x))[0])
#define D2(fn, x, y) (fn(d_splat(x), d_splat(y))[0])

INLINE vf f_bits_i(vi x) { return (vf)x; }
INLINE vf f_bits_u(vu x) { return (vf)x; }
INLINE vi i_bits_f(vf x) { return (vi)x; }
INLINE vi i_bits_u(vu x) { return (vi)x; }
INLINE vu u_bits_f(vf x) { return (vu)x; }
INLINE vu u_bits_i(vi x) { return (vu)x; }

/* ---- what processors have instructions for -------------------------------------------------------------------------- */

/* Each operation for each register width: 512, 256, 128, arm, and 0 for none. t is ps or pd; V, M, T the vector, its mask
 * (integers as wide) and its element; F the suffix of C's functions. Where an operand of MAX or MIN is NaN, b results.
 * Modes of ROUND: 0 to even, 1 down, 2 up, 3 toward 0. */
#if defined(__AVX512F__)
#define FMA_512(t, F, V, a, b, c) __builtin_ia32_vfmadd##t##512_mask(a, b, c, -1, 4)
#define ROUND_512(t, F, V, a, mode, fn) __builtin_ia32_rndscale##t##_mask(a, mode + 8, a, -1, 4)
#ifdef __clang__
#define MAX_512(t, V, M, a, b) __builtin_ia32_max##t##512(a, b, 4)
#define MIN_512(t, V, M, a, b) __builtin_ia32_min##t##512(a, b, 4)
#define SQRT_512(t, F, V, a) __builtin_ia32_sqrt##t##512(a, 4)
#else
#define MAX_512(t, V, M, a, b) __builtin_ia32_max##t##512_mask(a, b, a, -1, 4)
#define MIN_512(t, V, M, a, b) __builtin_ia32_min##t##512_mask(a, b, a, -1, 4)
#define SQRT_512(t, F, V, a) __builtin_ia32_sqrt##t##512_mask(a, a, -1, 4)
#endif
#define SELECT_512 SELECT_0
#define LOADN_512(t, V, T, p, n, m) __builtin_ia32_loadu##t##512_mask((const void *)(p), (V){0}, (1 << (n)) - 1)
#define STOREN_512(t, V, T, p, x, n, m) __builtin_ia32_storeu##t##512_mask((void *)(p), x, (1 << (n)) - 1)
#endif
#if defined(__AVX2__) && defined(__FMA__)
#define FMA_256(t, F, V, a, b, c) __builtin_ia32_vfmadd##t##256(a, b, c)
#define ROUND_256(t, F, V, a, mode, fn) __builtin_ia32_round##t##256(a, mode + 8)
#define MAX_256(t, V, M, a, b) __builtin_ia32_max##t##256(a, b)
#define MIN_256(t, V, M, a, b) __builtin_ia32_min##t##256(a, b)
#define SQRT_256(t, F, V, a) __builtin_ia32_sqrt##t##256(a)
#define SELECT_256(t, V, M, m, a, b) __builtin_ia32_blendv##t##256(b, a, (V)(m))
#define LOADN_256(t, V, T, p, n, m) __builtin_ia32_maskload##t##256((const void *)(p), m)
#define STOREN_256(t, V, T, p, x, n, m) __builtin_ia32_maskstore##t##256((void *)(p), m, x)
#define FMA_128(t, F, V, a, b, c) __builtin_ia32_vfmadd##t(a, b, c)
#define ROUND_128(t, F, V, a, mode, fn) __builtin_ia32_round##t(a, mode + 8)
#define MAX_128(t, V, M, a, b) __builtin_ia32_max##t(a, b)
#define MIN_128(t, V, M, a, b) __builtin_ia32_min##t(a, b)
#define SQRT_128(t, F, V, a) __builtin_ia32_sqrt##t(a)
#define SELECT_128(t, V, M, m, a, b) __builtin_ia32_blendv##t(b, a, (V)(m))
#define LOADN_128(t, V, T, p, n, m) __builtin_ia32_maskload##t((const void *)(p), m)
#define STOREN_128(t, V, T, p, x, n, m) __builtin_ia32_maskstore##t((void *)(p), m, x)
#endif
#define FMA_0(t, F, V, a, b, c) EACH(V, __builtin_fma##F(a[i], b[i], c[i]))
#define ROUND_0(t, F, V, a, mode, fn) EACH(V, __builtin_##fn##F(a[i]))
#define MAX_0(t, V, M, a, b) SELECT_0(t, V, M, a > b, a, b)
#define MIN_0(t, V, M, a, b) SELECT_0(t, V, M, a < b, a, b)
#define SQRT_0(t, F, V, a) EACH(V, __builtin_sqrt##F(a[i]))
#define SELECT_0(t, V, M, m, a, b) (((m) & (M)(a)) | (~(m) & (M)(b)))
#define LOADN_0(t, V, T, p, n, m) ({ V r_ = {0}; for (int i = 0; i < (n); i++) r_[i] = (p)[i]; r_; })
#define STOREN_0(t, V, T, p, x, n, m) ({ for (int i = 0; i < (n); i++) (p)[i] = (x)[i]; })
#define FMA_arm(t, F, V, a, b, c) __builtin_aarch64_fmav4sf(a, b, c)
#define SQRT_arm(t, F, V, a) __builtin_aarch64_sqrtv4sf(a)
#define ROUND_arm ROUND_0
#define MAX_arm MAX_0
#define MIN_arm MIN_0
#define SELECT_arm SELECT_0
#define LOADN_arm LOADN_0
#define STOREN_arm STOREN_0

#if defined(__AVX512F__) && L == 16
#define WIDTH_F 512
#elif defined(FMA_256) && L == 8
#define WIDTH_F 256
#elif defined(FMA_256) && L == 4
#define WIDTH_F 128
#elif defined(__aarch64__) && !defined(__clang__)
#define WIDTH_F arm
#else
#define WIDTH_F 0
#endif
#if defined(__AVX512F__) && L == 8
#define WIDTH_D 512
#elif defined(FMA_256) && L == 4
#define WIDTH_D 256
#else
#define WIDTH_D 0
#endif

/* The same functions for floats and doubles. max_ and min_ give b where an operand is NaN, max and min give NaN. */
#define BOTH(...) BOTH_(__VA_ARGS__)
#define BOTH_(f, V, M, T, t, F, W) \
  INLINE V f##_load(const T *p) { return (V)*(const V##_m *)p; } \
  INLINE void f##_store(T *p, V x) { *(V##_m *)p = (V##_m)x; } \
  INLINE V f##_loadn(const T *p, int n) { return (V)LOADN_##W(t, V, T, p, n, ((M){LANES(0)} < n)); } \
  INLINE void f##_storen(T *p, V x, int n) { STOREN_##W(t, V, T, p, x, n, ((M){LANES(0)} < n)); } \
  INLINE V f##_fma(V a, V b, V c) { return (V)FMA_##W(t, F, V, a, b, c); } \
  INLINE V f##_sqrt(V a) { return (V)SQRT_##W(t, F, V, a); } \
  INLINE V f##_floor(V a) { return (V)ROUND_##W(t, F, V, a, 1, floor); } \
  INLINE V f##_ceil(V a) { return (V)ROUND_##W(t, F, V, a, 2, ceil); } \
  INLINE V f##_trunc(V a) { return (V)ROUND_##W(t, F, V, a, 3, trunc); } \
  INLINE V f##_round(V a) { return (V)ROUND_##W(t, F, V, a, 0, rint); } \
  INLINE V f##_max_(V a, V b) { return (V)MAX_##W(t, V, M, a, b); } \
  INLINE V f##_min_(V a, V b) { return (V)MIN_##W(t, V, M, a, b); } \
  INLINE V f##_max(V a, V b) { return (V)((M)f##_max_(a, b) | (M)(a != a)); } \
  INLINE V f##_min(V a, V b) { return (V)((M)f##_min_(a, b) | (M)(a != a)); } \
  INLINE V f##_pick_(M m, V a, V b) { return (V)SELECT_##W(t, V, M, m, a, b); } \
  INLINE V f##_neg(V a) { return -a; } \
  INLINE V f##_abs(V a) { return (V)((M)a & ~(M)f##_splat(-0.0f)); } \
  INLINE V f##_like_(V a, V s) { const M m = (M)f##_splat(-0.0f); return (V)(((M)a & ~m) | ((M)s & m)); } \
  INLINE V f##_sign(V a) { return f##_pick_((M)((a < 0) | (a > 0)), f##_like_(f##_splat(1), a), a); }

BOTH(f, vf, vi, float, ps, f, WIDTH_F)
INLINE vf f_sel(vi m, vf a, vf b) { return f_pick_(m, a, b); }
INLINE vi i_sel(vi m, vi a, vi b) { return (vi)f_pick_(m, (vf)a, (vf)b); }
INLINE vu u_sel(vi m, vu a, vu b) { return (vu)f_pick_(m, (vf)a, (vf)b); }
INLINE vi f_lt(vf a, vf b) { return (vi)(a < b); }
INLINE vi f_le(vf a, vf b) { return (vi)(a <= b); }
INLINE vi f_eq(vf a, vf b) { return (vi)(a == b); }

#ifdef NEED_d
INLINE vd d_splat(double x) { return x - (vd){0}; }
BOTH(d, vd, vl, double, pd, , WIDTH_D)
INLINE vd d_sel(vi m, vd a, vd b) { return d_pick_(CONVERT(m, vl), a, b); }
INLINE vi d_lt(vd a, vd b) { return CONVERT((vl)(a < b), vi); }
INLINE vi d_le(vd a, vd b) { return CONVERT((vl)(a <= b), vi); }
INLINE vi d_eq(vd a, vd b) { return CONVERT((vl)(a == b), vi); }
#endif

/* ---- integers ------------------------------------------------------------------------------------------------------- */

#define INTEGERS(i, V, T) \
  INLINE V i##_load(const T *p) { return (V)*(const V##_m *)p; } \
  INLINE void i##_store(T *p, V x) { *(V##_m *)p = (V##_m)x; } \
  INLINE V i##_loadn(const T *p, int n) { return (V)f_loadn((const float *)p, n); } \
  INLINE void i##_storen(T *p, V x, int n) { f_storen((float *)p, (vf)x, n); } \
  INLINE vi i##_lt(V a, V b) { return (vi)(a < b); } \
  INLINE vi i##_le(V a, V b) { return (vi)(a <= b); } \
  INLINE vi i##_eq(V a, V b) { return (vi)(a == b); } \
  INLINE V i##_max(V a, V b) { const V m = (V)(a > b); return (m & a) | (~m & b); } \
  INLINE V i##_min(V a, V b) { const V m = (V)(a < b); return (m & a) | (~m & b); } \
  INLINE V i##_shl(V a, V s) { return (a << (s & 31)) & (V)((vu)s < 32); }
INTEGERS(i, vi, nb_i32)
INTEGERS(u, vu, u32)
INLINE vi i_neg(vi a) { return -a; }
INLINE vi i_abs(vi a) { return i_max(a, -a); }
INLINE vi i_sign(vi a) { return (a < 0) - (a > 0); }
INLINE vu u_sign(vu a) { return (vu)-(a != 0); }
INLINE vi i_shr(vi a, vi s) { return a >> i_bits_u(u_min((vu)s, u_splat(31))); }
INLINE vu u_shr(vu a, vu s) { return (a >> (s & 31)) & (vu)(s < 32); }

/* ---- conversions ---------------------------------------------------------------------------------------------------- */

/* Floats become integers toward 0; beyond the ends the nearest end, and NaN 0: the reference backend's choice. */
INLINE vf f_from_i(vi x) { return CONVERT(x, vf); }
INLINE vf f_from_u(vu x) { return CONVERT(x, vf); }
INLINE vf f_from_m(vi m) { return (vf)(m & 0x3f800000); }
INLINE vi i_from_f(vf x) {
  const vi t = CONVERT(f_min_(f_splat(2147483520.0f), f_max_(f_splat(-2147483648.0f), f_pick_((vi)(x == x), x, (vf){0}))), vi);
  return i_sel((vi)(x >= 2147483648.0f), i_splat(2147483647), t);
}
INLINE vi i_from_u(vu x) { return (vi)x; }
INLINE vi i_from_m(vi m) { return -m; }
INLINE vu u_from_f(vf x) {
  const vi high = (vi)(x >= 2147483648.0f), over = (vi)(x >= 4294967296.0f);
  x = f_max_(x, (vf){0}); /* NaN becomes 0 */
  return (vu)((CONVERT(f_min_(f_pick_(high, x - 2147483648.0f, x), f_splat(2147483520.0f)), vi) ^ (high & (nb_i32)0x80000000)) | over);
}
INLINE vi c_from_f(vf x) { return CONVERT(f_min_(f_max_(x, (vf){0}), f_splat(255)), vi); }
INLINE vu u_from_i(vi x) { return (vu)x; }
INLINE vu u_from_m(vi m) { return (vu)-m; }
INLINE vi m_from_f(vf x) { return (vi)(x != 0); }
INLINE vi m_from_i(vi x) { return (vi)(x != 0); }
INLINE vi m_from_u(vu x) { return (vi)(x != 0); }
#ifdef NEED_d
INLINE vf f_from_d(vd x) { return CONVERT(x, vf); }
INLINE vd d_from_f(vf x) { return CONVERT(x, vd); }
INLINE vd d_from_i(vi x) { return CONVERT(x, vd); }
INLINE vd d_from_u(vu x) { return CONVERT((vi)(x ^ 0x80000000u), vd) + 2147483648.0; }
INLINE vd d_from_m(vi m) { return (vd)(CONVERT(m, vl) & (vl)d_splat(1)); }
INLINE vi i_from_d(vd x) {
  x = d_pick_((vl)(x == x), x, (vd){0});
  return CONVERT(d_min_(d_max_(x, d_splat(-2147483648.0)), d_splat(2147483647.0)), vi);
}
INLINE vu u_from_d(vd x) {
  x = d_trunc(d_min_(d_max_(x, (vd){0}), d_splat(4294967295.0)));
  return (vu)CONVERT(x - 2147483648.0, vi) ^ 0x80000000u;
}
INLINE vi c_from_d(vd x) { return CONVERT(d_min_(d_max_(x, (vd){0}), d_splat(255)), vi); }
INLINE vi m_from_d(vd x) { return CONVERT((vl)(x != 0), vi); }
#endif

/* ---- half, bfloat16 and bytes --------------------------------------------------------------------------------------- */

/* n bytes, n < 16 * size, without a call where n is no constant. */
INLINE void copy_(void *to, const void *from, int n) {
  char *d = to; const char *s = from;
  if (__builtin_constant_p(n)) { __builtin_memcpy(d, s, n); return; }
  if (n & 32) { __builtin_memcpy(d, s, 32); return; }
  if (n & 16) { __builtin_memcpy(d, s, 16); d += 16; s += 16; }
  if (n & 8) { __builtin_memcpy(d, s, 8); d += 8; s += 8; }
  if (n & 4) { __builtin_memcpy(d, s, 4); d += 4; s += 4; }
  if (n & 2) { __builtin_memcpy(d, s, 2); d += 2; s += 2; }
  if (n & 1) *d = *s;
}

/* Integers wider and narrower (the low bits of); what gcc makes of CONVERT is long. */
typedef char s8x16 __attribute__((vector_size(16)));
typedef short s16x8 __attribute__((vector_size(16)));
typedef short s16x16 __attribute__((vector_size(32)));
typedef int s32x4 __attribute__((vector_size(16)));
typedef long long s64x2 __attribute__((vector_size(16)));
#if WIDTH_F == 512 && !defined(__clang__)
INLINE vi i_of_c_(vc x) { return (vi)__builtin_ia32_pmovzxbd512_mask((s8x16)x, (vi){0}, -1); }
INLINE vu u_of_h_(vh x) { return (vu)__builtin_ia32_pmovzxwd512_mask((s16x16)x, (vi){0}, -1); }
#elif WIDTH_F == 256 && !defined(__clang__)
INLINE vi i_of_c_(vc x) { return (vi)__builtin_ia32_pmovzxbd256((s8x16)(s64x2){(i64)x}); }
INLINE vu u_of_h_(vh x) { return (vu)__builtin_ia32_pmovzxwd256((s16x8)x); }
#elif WIDTH_F == 128 && !defined(__clang__)
INLINE vi i_of_c_(vc x) { return (vi)__builtin_ia32_pmovzxbd128((s8x16)(s32x4){(nb_i32)x}); }
INLINE vu u_of_h_(vh x) { return (vu)__builtin_ia32_pmovzxwd128((s16x8)(s64x2){(i64)x}); }
#else
INLINE vi i_of_c_(vc x) { return CONVERT(x, vi); }
INLINE vu u_of_h_(vh x) { return CONVERT(x, vu); }
#endif
#if (WIDTH_F == 256 || WIDTH_F == 128) && !defined(__clang__) && !defined(__AVX512VL__)
INLINE s16x8 pack_(vi x) {
  union { vi v; s32x4 h[L / 4]; } u = {x & 0xffff};
  return __builtin_ia32_packusdw128(u.h[0], u.h[L / 4 - 1]);
}
INLINE vh h_of_u_(vu x) {
  union { s16x8 p; vh v; } u = {pack_((vi)x)};
  return u.v;
}
INLINE vc c_of_i_(vi x) {
  const s16x8 p = pack_(x & 255);
  union { s8x16 p; vc v; } u = {__builtin_ia32_packuswb128(p, p)};
  return u.v;
}
#else
INLINE vh h_of_u_(vu x) { return CONVERT(x, vh); }
INLINE vc c_of_i_(vi x) { return CONVERT(x, vc); }
#endif

/* Bits of halves to floats and back, round to nearest even. */
#if defined(__F16C__) && WIDTH_F == 512
INLINE vf f_of_h_(vh h) { return (vf)__builtin_ia32_vcvtph2ps512_mask((s16x16)h, (vf){0}, -1, 4); }
INLINE vh h_of_f_(vf x) { return (vh)__builtin_ia32_vcvtps2ph512_mask(x, 0, (s16x16){0}, -1); }
#elif defined(__F16C__) && WIDTH_F == 256
INLINE vf f_of_h_(vh h) { return (vf)__builtin_ia32_vcvtph2ps256((s16x8)h); }
INLINE vh h_of_f_(vf x) { return (vh)__builtin_ia32_vcvtps2ph256(x, 0); }
#elif defined(__F16C__) && WIDTH_F == 128
INLINE vf f_of_h_(vh h) { return (vf)__builtin_ia32_vcvtph2ps((s16x8)(s64x2){(i64)h}); }
INLINE vh h_of_f_(vf x) { return (vh)((s64x2)__builtin_ia32_vcvtps2ph(x, 0))[0]; }
#else
INLINE vf f_of_h_(vh h) {
  const vu u = u_of_h_(h), a = u & 0x7fff;
  const vf small = (vf)(a | 0x3f000000) - 0.5f; /* the last place of 1/2 is a half's smallest step, 2^-24 */
  const vu normal = (a << 13) + (112 << 23) + ((vu)(a >= 0x7c00) & (112 << 23));
  return (vf)(u_sel((vi)(a < 0x400), (vu)small, normal) | ((u & 0x8000) << 16));
}
INLINE vh h_of_f_(vf x) {
  const vu u = (vu)x, a = u & 0x7fffffff;
  const vu normal = (a + 0xfff + ((a >> 13) & 1) - (112u << 23)) >> 13;
  const vu small = (vu)((vf)a + 0.5f) - 0x3f000000; /* adding 1/2 rounds to a multiple of 2^-24 */
  vu r = u_sel((vi)(a < 0x38800000), small, normal);
  r = u_sel((vi)(a >= 0x477ff000), u_splat(0x7c00), r);
  r = u_sel((vi)(a > 0x7f800000), u_splat(0x7e00), r);
  return h_of_u_(r | ((u >> 16) & 0x8000));
}
#endif
INLINE vu b_bits_(vf x) {
  const vu u = (vu)x;
  return u_sel((vi)(x == x), u + 0x7fff + ((u >> 16) & 1), u | 0x400000) >> 16;
}
#define MEMORY(h, X, T, narrow, of, to) \
  INLINE X h##_load(const T *p) { const narrow x = (narrow)*(const narrow##_m *)p; return of; } \
  INLINE X h##_loadn(const T *p, int n) { narrow x = {0}; copy_(&x, p, n * (int)sizeof *p); return of; } \
  INLINE void h##_store(T *p, X x) { *(narrow##_m *)p = (narrow##_m)(to); } \
  INLINE void h##_storen(T *p, X x, int n) { const narrow y = (narrow)(to); copy_(p, &y, n * (int)sizeof *p); }
MEMORY(h, vf, u16, vh, f_of_h_(x), h_of_f_(x))
MEMORY(b, vf, u16, vh, (vf)(u_of_h_(x) << 16), h_of_u_(b_bits_(x)))
MEMORY(c, vi, u8, vc, i_of_c_(x), c_of_i_(x))
MEMORY(m, vi, u8, vc, (vi)(i_of_c_(x) != 0), c_of_i_(-x))
INLINE vf f_round_h(vf x) { return f_of_h_(h_of_f_(x)); }
INLINE vf f_round_b(vf x) { return (vf)(b_bits_(x) << 16); }

/* ---- reductions of the lanes: halves upon halves, 8 apart first ------------------------------------------------------ */

#ifdef __clang__
#define SWAP(V, M, a, s) __builtin_shufflevector(a, a, LANES(s))
#else
#define SWAP(V, M, a, s) __builtin_shuffle(a, (M){LANES(s)})
#endif
#if L == 16
#define SWAPS(V, M, op) a = op(a, SWAP(V, M, a, 8)); a = op(a, SWAP(V, M, a, 4));
#elif L == 8
#define SWAPS(V, M, op) a = op(a, SWAP(V, M, a, 4));
#else
#define SWAPS(V, M, op)
#endif
#define ACROSS(name, V, M, T, op) \
  INLINE T name(V a) { SWAPS(V, M, op) a = op(a, SWAP(V, M, a, 2)); a = op(a, SWAP(V, M, a, 1)); return a[0]; }
#define ADD_(a, b) (a + b)
#define MUL_(a, b) (a * b)
#define OR_(a, b) (a | b)
#define REDUCTIONS(f, V, M, T) \
  ACROSS(f##_hsum, V, M, T, ADD_) ACROSS(f##_hprod, V, M, T, MUL_) ACROSS(f##_hmax, V, M, T, f##_max) ACROSS(f##_hmin, V, M, T, f##_min)
REDUCTIONS(f, vf, vi, float)
REDUCTIONS(i, vi, vi, nb_i32)
REDUCTIONS(u, vu, vi, u32)
#ifdef NEED_d
REDUCTIONS(d, vd, vl, double)
#endif
#if WIDTH_F == 512 && defined(__AVX512DQ__)
INLINE int i_any(vi m) { return (__builtin_ia32_cvtd2mask512(m) & 0xffff) != 0; }
#elif WIDTH_F == 256
INLINE int i_any(vi m) { return __builtin_ia32_movmskps256((vf)m) != 0; }
#elif WIDTH_F == 128
INLINE int i_any(vi m) { return __builtin_ia32_movmskps((vf)m) != 0; }
#else
ACROSS(i_any, vi, vi, int, OR_)
#endif

/* ---- float32 functions ---------------------------------------------------------------------------------------------- */

#if WIDTH_F == 0
#define MAD(a, b, c) ((a) * (b) + (c)) /* where a fused multiply-add would be a call */
#else
#define MAD f_fma
#endif
#define C(x) f_splat(x)

/*
 * x = n ln 2 + r with |r| <= ln 2 / 2: returns e^r - 1 (the degree-5 polynomial of Cephes' expf), and n as a float. Given
 * NaN, both are NaN; x has to be within 2^20 of 0.
 */
INLINE vf f_exp_core_(vf x, vf *n_) {
  const vf shift = C(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
  const vf n = MAD(x, C(1.44269504f), shift) - shift;
  vf r = MAD(n, C(-0.693359375f), x);
  r = MAD(n, C(2.12194440e-4f), r);
  vf p = C(1.9875691500e-4f);
  p = MAD(p, r, C(1.3981999507e-3f));
  p = MAD(p, r, C(8.3334519073e-3f));
  p = MAD(p, r, C(4.1665795894e-2f));
  p = MAD(p, r, C(1.6666665459e-1f));
  p = MAD(p, r, C(0.5f));
  *n_ = n;
  return MAD(p, r * r, r);
}
/* 2^n of an integer n in -126..127 given as a float. */
INLINE vf f_exp2i_(vf n) { return (vf)((CONVERT(n, vi) + 127) << 23); }
INLINE vf f_exp(vf x) {
  vf n;
  x = f_min_(C(89.0f), f_max_(C(-104.0f), x)); /* NaN passes */
  const vf p = f_exp_core_(x, &n) + 1.0f;
#if WIDTH_F == 512
  return (vf)__builtin_ia32_scalefps512_mask(p, n, p, -1, 4);
#else
  const vi k = CONVERT(n, vi), half = k >> 1; /* in two steps: 2^n itself may be too large */
  return p * (vf)((half + 127) << 23) * (vf)((k - half + 127) << 23);
#endif
}

/* log: the polynomial of Cephes' logf on sqrt(1/2) .. sqrt(2). */
INLINE vf f_log(vf x) {
  const vi bits = (vi)x - 0x3f3504f3;
  const vf e = CONVERT(bits >> 23, vf);
  const vf f = (vf)((bits & 0x7fffff) + 0x3f3504f3) - 1.0f, z = f * f;
  vf p = C(7.0376836292e-2f);
  p = MAD(p, f, C(-1.1514610310e-1f));
  p = MAD(p, f, C(1.1676998740e-1f));
  p = MAD(p, f, C(-1.2420140846e-1f));
  p = MAD(p, f, C(1.4249322787e-1f));
  p = MAD(p, f, C(-1.6668057665e-1f));
  p = MAD(p, f, C(2.0000714765e-1f));
  p = MAD(p, f, C(-2.4999993993e-1f));
  p = MAD(p, f, C(3.3333331174e-1f));
  vf y = MAD(p, f * z, e * -2.12194440e-4f);
  y = MAD(z, C(-0.5f), y);
  y = MAD(e, C(0.693359375f), f + y);
  y = f_pick_((vi)(x < __builtin_inff()), y, x); /* inf and NaN stay */
  y = (vf)((vi)y | (x < 0)); /* NaN of negatives */
  return f_pick_((vi)(x == 0), C(-__builtin_inff()), y);
}

/* tanh|x| = t / (t + 2) with t = e^(2|x|) - 1 = 2^n (e^r - 1) + (2^n - 1): as accurate near 0 as anywhere. */
INLINE vf f_tanh(vf x) {
  vf n;
  const vf q = f_exp_core_(f_min_(C(20.0f), f_abs(x) * 2.0f), &n), s = f_exp2i_(n), t = MAD(s, q, s - 1.0f);
  return f_like_(t / (t + 2.0f), x);
}

#ifdef NEED_f_expm1
/* 2^n (e^r - 1) + (2^n - 1), with 2^(n-1) twice, which does not overflow. */
INLINE vf f_expm1(vf x) {
  vf n;
  const vf q = f_exp_core_(f_min_(C(89.0f), f_max_(C(-30.0f), x)), &n), h = f_exp2i_(n - 1.0f);
  return f_pick_((vi)(f_abs(x) < 5e-8f), x, MAD(h, q, h - 0.5f) * 2.0f);
}
#endif

#ifdef NEED_f_log1p
/* log(u) of u = 1 + x rounded, and what the rounding took (Kahan; the HP-15C handbook). */
INLINE vf f_log1p(vf x) {
  const vf u = x + 1.0f, y = f_log(u), c = y + (x - (u - 1.0f)) / u;
  return f_like_(f_pick_((vi)((u > 0) & (u < __builtin_inff())), c, y), x);
}
#endif

#ifdef NEED_f_erf
/* Below 0.93 a polynomial of erf(x) / x; above 1 - e^p, p a polynomial of log erfc. Minimax fits of our own. */
INLINE vf f_erf(vf x) {
  const vf a = f_abs(x), s = a * a, t = f_min_(C(4.0f), a);
  vf n, p = C(-5.91584714e-4f), q = C(2.13988358e-4f);
  p = MAD(p, s, C(4.97882394e-3f));
  p = MAD(p, s, C(-2.67572775e-2f));
  p = MAD(p, s, C(0.112815827f));
  p = MAD(p, s, C(-0.376124769f));
  p = MAD(p, s, C(0.128379151f));
  p = MAD(p, a, a);
  q = MAD(q, t, C(-3.21497885e-3f));
  q = MAD(q, t, C(2.2890022e-2f));
  q = MAD(q, t, C(-0.105261907f));
  q = MAD(q, t, C(-0.635718286f));
  q = MAD(q, t, C(-0.128514364f));
  q = f_exp_core_(MAD(q, t, -t), &n);
  const vf e = f_exp2i_(n);
  return f_like_(f_pick_((vi)(a > 0.93f), (1.0f - e) - e * q, p), x);
}
#endif

#ifdef NEED_f_atan
/* atan(a) of a <= 1 by a minimax polynomial of our own, and pi/2 - atan(1/a) above. */
INLINE vf f_atan(vf x) {
  const vf a = f_abs(x);
  const vi over = (vi)(a > 1.0f);
  const vf z = f_pick_(over, C(-1.0f), a) / f_pick_(over, a, C(1.0f)), s = z * z;
  vf p = C(2.92035984e-3f);
  p = MAD(p, s, C(-1.63665209e-2f));
  p = MAD(p, s, C(4.32094261e-2f));
  p = MAD(p, s, C(-7.55199343e-2f));
  p = MAD(p, s, C(0.106658928f));
  p = MAD(p, s, C(-0.142110243f));
  p = MAD(p, s, C(0.199937686f));
  p = MAD(p, s, C(-0.333331525f));
  p = MAD(p * s, z, z);
  return f_like_(f_pick_(over, (p - 4.37113883e-8f) + 1.57079637f, p), x);
}
#endif

#if defined(NEED_f_sin) || defined(NEED_f_cos)
RARE vf f_trig_far_(vf x, vf y, int quarter) {
  for (int i = 0; i < L; i++) if (!(__builtin_fabsf(x[i]) <= 1e5f)) y[i] = quarter ? __builtin_cosf(x[i]) : __builtin_sinf(x[i]);
  return y;
}
/* sin(x + quarter * pi/2): x less a multiple of pi/2 in three parts (Cody and Waite), Cephes' polynomials; libm beyond 1e5. */
INLINE vf f_trig_(vf x, int quarter) {
  const vf shift = C(12582912.0f), t = f_fma(x, C(0.636619772f), shift), n = t - shift;
  const vi k = (vi)t + quarter, far = ~(vi)(f_abs(x) <= 1e5f);
  const vf r = f_fma(n, C(1.71512451e-15f), f_fma(n, C(4.37113883e-8f), f_fma(n, C(-1.57079637f), x))), s = r * r;
  vf p = C(-1.9515295891e-4f), q = C(2.443315711809948e-5f);
  p = MAD(p, s, C(8.3321608736e-3f));
  p = MAD(p, s, C(-1.6666654611e-1f));
  p = MAD(p * s, r, r);
  q = MAD(q, s, C(-1.388731625493765e-3f));
  q = MAD(q, s, C(4.166664568298827e-2f));
  q = MAD(q, s * s, MAD(s, C(-0.5f), C(1.0f)));
  const vf y = (vf)((vi)f_pick_(-(k & 1), q, p) ^ ((k & 2) << 30));
  return i_any(far) ? f_trig_far_(x, y, quarter) : y;
}
INLINE vf f_sin(vf x) { return f_pick_((vi)(f_abs(x) < 1e-4f), x, f_trig_(x, 0)); }
INLINE vf f_cos(vf x) { return f_trig_(x, 1); }
#endif

#ifdef NEED_f_pow
/* Half the lanes as doubles. */
typedef float hf __attribute__((vector_size(L * 2), may_alias));
typedef double hd __attribute__((vector_size(L * 4), may_alias));
typedef i64 hl __attribute__((vector_size(L * 4), may_alias));
/* (2^e m)^y = 2^(y (e + log2 m)), sqrt(1/2) <= m <= sqrt(2); log2 m in f = (m - 1) / (m + 1); minimax fits of our own. */
INLINE hf f_pow_half_(hf m_, hf e, hf y) {
  const hd m = CONVERT(m_, hd), f = (m - 1) / (m + 1), s = f * f;
  hd p = s * 0.3407386502940898 + 0.4116721978469274;
  p = p * s + 0.5770835949243086;
  p = p * s + 0.9617966732803326;
  p = p * s + 2.8853900817901503;
  hd z = CONVERT(y, hd) * (f * p + CONVERT(e, hd));
  const hl high = (hl)(z > 200), low = (hl)(z < -200);
  z = (hd)((~(high | low) & (hl)z) | (high & (hl)((hd){0} + 200)) | (low & (hl)((hd){0} - 200)));
  const hd t = z + 0x1.8p52, r = z - (t - 0x1.8p52);
  p = r * 0.0001547802157245374 + 0.0013400431668126288;
  p = p * r + 0.009617994516824739;
  p = p * r + 0.05550327215763626;
  p = p * r + 0.2402265150503015;
  p = p * r + 0.6931472067096478;
  p = p * r + 0.999999999919072;
  return CONVERT(p * (hd)(((hl)t << 52) + 0x3ff0000000000000), hf);
}
RARE vf f_pow(vf x, vf y) {
  const vf inf = C(__builtin_inff()), a = f_abs(x);
  const vi bits = (vi)a - 0x3f3504f3;
  union { vf v; hf h[2]; } m, e, w, r;
  m.v = (vf)((bits & 0x7fffff) + 0x3f3504f3);
  e.v = f_pick_((vi)(a < inf), CONVERT(bits >> 23, vf), a); /* inf and NaN stay */
  e.v = f_pick_((vi)(a == 0), -inf, e.v);
  w.v = y;
  for (int i = 0; i < 2; i++) r.h[i] = f_pow_half_(m.h[i], e.h[i], w.h[i]);
  /* C's special cases */
  const vi whole = (vi)(f_trunc(y) == y), odd = whole & (vi)(f_trunc(y * 0.5f) * 2.0f != y);
  r.v = (vf)((vi)r.v | ((vi)x & odd & (vi)C(-0.0f)) | ((vi)((x < 0) & (a < inf)) & ~whole));
  return f_pick_((vi)((y == 0) | (x == 1.0f) | ((a == 1.0f) & (f_abs(y) == inf))), C(1.0f), r.v);
}
#endif

#ifdef NEED_f_mod
RARE vf f_mod_far_(vf x, vf y) { return EACH(vf, __builtin_fmodf(x[i], y[i])); }
/* x - floor(x / y) y is exact as long as the quotient is; C's fmod elsewhere. Zeros have x's sign. */
INLINE vf f_mod(vf x, vf y) {
  const vf q = f_floor(x / y);
  const vi near = (vi)((f_abs(q) < 4194304.0f) & (f_abs(y) < __builtin_inff()));
  vf r = f_fma(-q, y, x);
  if (i_any(~near)) r = f_pick_(near, r, f_mod_far_(x, y));
  r = f_pick_((vi)(((r < 0) & (y > 0)) | ((r > 0) & (y < 0))), r + y, r);
  return (vf)((vi)r | ((r == 0) & (vi)x & (vi)C(-0.0f)));
}
#endif

/* ---- integer functions ---------------------------------------------------------------------------------------------- */

/* Floor division and the remainder of the divisor's sign, lane by lane; of 0 both are 0 (the caller reports it). */
#if defined(NEED_i_idiv) || defined(NEED_i_mod)
INLINE nb_i32 i_mod1_(nb_i32 a, nb_i32 b) {
  if (b == 0 || b == -1) return 0;
  const nb_i32 r = a % b;
  return r && (r ^ b) < 0 ? r + b : r;
}
RARE vi i_mod(vi a, vi b) { return EACH(vi, i_mod1_(a[i], b[i])); }
RARE vi i_idiv(vi a, vi b) { return EACH(vi, b[i] == 0 ? 0 : b[i] == -1 ? -a[i] : (nb_i32)(((i64)a[i] - i_mod1_(a[i], b[i])) / b[i])); }
#endif
#if defined(NEED_u_idiv) || defined(NEED_u_mod)
RARE vu u_mod(vu a, vu b) { return EACH(vu, b[i] ? a[i] % b[i] : 0); }
RARE vu u_idiv(vu a, vu b) { return EACH(vu, b[i] ? a[i] / b[i] : 0); }
#endif
#if defined(NEED_i_pow) || defined(NEED_u_pow)
/* By squaring; wraps. */
RARE vu u_pow(vu a, vu n) {
  vu r = u_splat(1);
  for (; i_any((vi)(n != 0)); n >>= 1, a *= a) r *= u_sel((vi)((n & 1) != 0), a, u_splat(1));
  return r;
}
/* A negative exponent gives 0 but of 1 and -1. */
INLINE vi i_pow(vi a, vi n) {
  const vi low = (vi)(n < 0), unit = (vi)((a == 1) | (a == -1));
  return (vi)u_pow((vu)a, (vu)i_sel(low, n & 1, n)) & (~low | unit);
}
#endif

#if defined(NEED_u_threefry) || defined(NEED_u_threefry64)
/* Threefry-2x32 with 20 rounds (Salmon et al. 2011): word position mod 2 of block position / 2, as `random` defines it. */
INLINE vu u_threefry_(u32 k0, u32 k1, vu c0, vu c1, vu word) {
  const u32 key[3] = {k0, k1, k0 ^ k1 ^ 0x1bd11bda};
  vu x0 = c0 + k0, x1 = c1 + k1;
#define ROUND_(r) x0 += x1; x1 = ((x1 << r) | (x1 >> (32 - r))) ^ x0;
#define KEY_(s) x0 += key[s % 3]; x1 += key[(s + 1) % 3] + s;
#define EVEN_ ROUND_(13) ROUND_(15) ROUND_(26) ROUND_(6)
#define ODD_ ROUND_(17) ROUND_(29) ROUND_(16) ROUND_(24)
  EVEN_ KEY_(1) ODD_ KEY_(2) EVEN_ KEY_(3) ODD_ KEY_(4) EVEN_ KEY_(5)
  return u_sel((vi)(word != 0), x1, x0);
}
/* Of position base + offset. */
INLINE vu u_threefry64(u32 key0, u32 key1, i64 base, vu offset) {
  const vu low = offset + (u32)base, high = (u32)(base >> 32) - (vu)(low < offset);
  return u_threefry_(key0, key1, (low >> 1) | (high << 31), high >> 1, low & 1);
}
INLINE vu u_threefry(u32 key0, u32 key1, vu position) { return u_threefry_(key0, key1, position >> 1, (vu){0}, position & 1); }
#endif

/* ---- float64 functions: libm, lane by lane -------------------------------------------------------------------------- */

#ifdef NEED_d
#define LIBM(name) RARE vd d_##name(vd x) { return EACH(vd, __builtin_##name(x[i])); }
LIBM(exp) LIBM(log) LIBM(log1p) LIBM(expm1) LIBM(sin) LIBM(cos) LIBM(atan) LIBM(tanh) LIBM(erf)
RARE vd d_pow(vd x, vd y) { return EACH(vd, __builtin_pow(x[i], y[i])); }
RARE vd d_mod(vd x, vd y) {
  const vd r = EACH(vd, __builtin_fmod(x[i], y[i]));
  return d_pick_((vl)(((r < 0) & (y > 0)) | ((r > 0) & (y < 0))), r + y, r);
}
#endif
#undef C
