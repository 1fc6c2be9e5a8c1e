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

/* Bits of halves to floats and back, round to nearest even. */
#if defined(__F16C__) && WIDTH_F == 512
INLINE vf f_of_h_(vh h) { return (vf)__builtin_ia32_vcvtph2ps512_mask((short __attribute__((vector_size(32))))h, (vf){0}, -1, 4); }
INLINE vh h_of_f_(vf x) { return (vh)__builtin_ia32_vcvtps2ph512_mask(x, 0, (short __attribute__((vector_size(32)))){0}, -1); }
#elif defined(__F16C__) && WIDTH_F == 256
INLINE vf f_of_h_(vh h) { return (vf)__builtin_ia32_vcvtph2ps256((short __attribute__((vector_size(16))))h); }
INLINE vh h_of_f_(vf x) { return (vh)__builtin_ia32_vcvtps2ph256(x, 0); }
#else
INLINE vf f_of_h_(vh h) {
  const vu u = CONVERT(h, vu), a = u & 0x7fff;
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
  return CONVERT(r | ((u >> 16) & 0x8000), vh);
}
#endif
INLINE vu b_bits_(vf x) {
  const vu u = (vu)x;
  return u_sel((vi)(x == x), u + 0x7fff + ((u >> 16) & 1), u | 0x400000) >> 16;
}
#define MEMORY(h, X, T, V, narrow, of, to) \
  INLINE X h##_load(const T *p) { const narrow x = (narrow)*(const narrow##_m *)p; return of; } \
  INLINE X h##_loadn(const T *p, int n) { narrow x = {0}; copy_(&x, p, n * (int)sizeof *p); return of; } \
  INLINE void h##_store(T *p, X x) { *(narrow##_m *)p = (narrow##_m)(to); } \
  INLINE void h##_storen(T *p, X x, int n) { const narrow y = (narrow)(to); copy_(p, &y, n * (int)sizeof *p); }
MEMORY(h, vf, u16, vh, vh, f_of_h_(x), h_of_f_(x))
MEMORY(b, vf, u16, vh, vh, (vf)(CONVERT(x, vu) << 16), CONVERT(b_bits_(x), vh))
MEMORY(c, vi, u8, vc, vc, CONVERT(x, vi), CONVERT(x, vc))
MEMORY(m, vi, u8, vc, vc, (vi)(CONVERT(x, vi) != 0), CONVERT(-x, vc))
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
