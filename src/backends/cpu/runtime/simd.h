/*
 * Vectors by compiler extensions: vf is W floats, vi is W ints; 16 lanes with AVX-512, 8 with AVX2, 4 with NEON (and
 * anywhere else); NABLA_NARROW, defined before, takes 8 in place of 16. Loads, FMA, max, square root, reductions, exp. Includes nothing (<immintrin.h> costs half a second a
 * unit), so that generated kernels can carry its text.
 */
#ifndef NABLA_SIMD_H
#define NABLA_SIMD_H
#if defined(__AVX512F__) && !defined(NABLA_NARROW)
#define W 16
#elif defined(__AVX2__)
#define W 8
#else
#define W 4
#endif
#define INLINE static inline __attribute__((always_inline, unused))
typedef float vf __attribute__((vector_size(W * 4), may_alias));
typedef float vf_u __attribute__((vector_size(W * 4), may_alias, aligned(4)));
typedef __INT32_TYPE__ vi __attribute__((vector_size(W * 4), may_alias));
typedef __INT32_TYPE__ vi_u __attribute__((vector_size(W * 4), may_alias, aligned(4)));
typedef __UINT16_TYPE__ vh __attribute__((vector_size(W * 2), may_alias));
typedef __UINT16_TYPE__ vh_u __attribute__((vector_size(W * 2), may_alias, aligned(2)));
typedef __UINT32_TYPE__ vu __attribute__((vector_size(W * 4), may_alias));
#define LOAD(p) ((vf)(*(const vf_u *)(p)))
#define STORE(p, x) (*(vf_u *)(p) = (vf_u)(x))
/* Writes past the caches, to a multiple of a vector's size: for what is too large to be there when it is read. A fence ends it. */
#if defined(__clang__)
#define STREAM(p, x) __builtin_nontemporal_store(x, (vf *)(p))
#elif W == 16
#define STREAM(p, x) __builtin_ia32_movntps512((float *)(p), x)
#elif defined(__AVX2__)
#define STREAM(p, x) __builtin_ia32_movntps256((float *)(p), x)
#elif defined(__SSE__)
#define STREAM(p, x) __builtin_ia32_movntps((float *)(p), x)
#else
#define STREAM(p, x) (*(vf *)(p) = (x))
#endif
#if defined(__SSE__)
#define STREAM_FENCE() __builtin_ia32_sfence()
#else
#define STREAM_FENCE() ((void)0)
#endif
INLINE vf splat(float x) { return x - (vf){0}; } /* x - 0 keeps -0 and NaN; compiles to one broadcast */
INLINE vi splati(__INT32_TYPE__ x) { return x - (vi){0}; }

#if defined(__clang__) && defined(__has_builtin)
#if __has_builtin(__builtin_elementwise_fma)
INLINE vf fma_(vf a, vf b, vf c) { return __builtin_elementwise_fma(a, b, c); }
#else
INLINE vf fma_(vf a, vf b, vf c) {
#pragma clang fp contract(fast)
  return a * b + c;
}
#endif
#elif W == 16
INLINE vf fma_(vf a, vf b, vf c) { return (vf)__builtin_ia32_vfmaddps512_mask(a, b, c, (short)-1, 4); }
#elif defined(__FMA__)
INLINE vf fma_(vf a, vf b, vf c) { return (vf)__builtin_ia32_vfmaddps256(a, b, c); }
#elif defined(__aarch64__)
INLINE vf fma_(vf a, vf b, vf c) { return (vf)__builtin_aarch64_fmav4sf(a, b, c); }
#else
INLINE vf fma_(vf a, vf b, vf c) { for (int i = 0; i < W; i++) c[i] = __builtin_fmaf(a[i], b[i], c[i]); return c; }
#endif

/* W numbers of 16 bits as floats. gcc makes long code of __builtin_convertvector, clang has instructions of its own for it. */
#if !defined(__clang__) && defined(__AVX2__)
typedef short s16w __attribute__((vector_size(W * 2)));
#endif
#if !defined(__clang__) && W == 16
INLINE vu widen_(vh h) { return (vu)__builtin_ia32_pmovzxwd512_mask((s16w)h, (vi){0}, -1); }
#elif !defined(__clang__) && W == 8
INLINE vu widen_(vh h) { return (vu)__builtin_ia32_pmovzxwd256((s16w)h); }
#else
INLINE vu widen_(vh h) { return __builtin_convertvector(h, vu); }
#endif
INLINE vf load_bf16(const __UINT16_TYPE__ *p) { return (vf)(widen_((vh)(*(const vh_u *)p)) << 16); }
#if !defined(__clang__) && W == 16
INLINE vf load_f16(const __UINT16_TYPE__ *p) { return (vf)__builtin_ia32_vcvtph2ps512_mask((s16w)(*(const vh_u *)p), (vf){0}, -1, 4); }
#elif !defined(__clang__) && W == 8 && defined(__F16C__)
INLINE vf load_f16(const __UINT16_TYPE__ *p) { return (vf)__builtin_ia32_vcvtph2ps256((s16w)(*(const vh_u *)p)); }
#else
INLINE vf load_f16(const __UINT16_TYPE__ *p) {
  const vu u = widen_((vh)(*(const vh_u *)p)), a = u & 0x7fff;
  const vf small = (vf)(a | 0x3f000000) - 0.5f; /* the last place of 1/2 is a half's smallest step, 2^-24 */
  const vu normal = (a << 13) + (112 << 23) + ((vu)(a >= 0x7c00) & (112 << 23)), is_small = (vu)(a < 0x400);
  return (vf)(((is_small & (vu)small) | (~is_small & normal)) | ((u & 0x8000) << 16));
}
#endif

INLINE vf select_(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }
/* The larger; where either is NaN, b. */
#if W == 16 && !defined(__clang__)
INLINE vf max_(vf a, vf b) { return (vf)__builtin_ia32_maxps512_mask(a, b, (vf){0}, (short)-1, 4); }
INLINE vf min_(vf a, vf b) { return (vf)__builtin_ia32_minps512_mask(a, b, (vf){0}, (short)-1, 4); }
#elif W == 16
INLINE vf max_(vf a, vf b) { return (vf)__builtin_ia32_maxps512(a, b, 4); }
INLINE vf min_(vf a, vf b) { return (vf)__builtin_ia32_minps512(a, b, 4); }
#elif defined(__AVX2__)
INLINE vf max_(vf a, vf b) { return (vf)__builtin_ia32_maxps256(a, b); }
INLINE vf min_(vf a, vf b) { return (vf)__builtin_ia32_minps256(a, b); }
#else
INLINE vf max_(vf a, vf b) { return select_((vi)(a > b), a, b); }
INLINE vf min_(vf a, vf b) { return select_((vi)(a < b), a, b); }
#endif

/* Sum and maximum of the lanes, in a fixed pattern of halves. */
#if defined(__clang__)
#define LANES(a, ...) __builtin_shufflevector(a, a, __VA_ARGS__)
#define LANES_OF(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define LANES(a, ...) __builtin_shuffle(a, (vi){__VA_ARGS__})
#define LANES_OF(a, b, ...) __builtin_shuffle(a, b, (vi){__VA_ARGS__})
#endif
#if W == 16
#define HALVES(a, F)                                                      \
  a = F(a, LANES(a, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7)); \
  a = F(a, LANES(a, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11)); \
  a = F(a, LANES(a, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)); \
  a = F(a, LANES(a, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
#elif W == 8
#define HALVES(a, F)                          \
  a = F(a, LANES(a, 4, 5, 6, 7, 0, 1, 2, 3)); \
  a = F(a, LANES(a, 2, 3, 0, 1, 6, 7, 4, 5)); \
  a = F(a, LANES(a, 1, 0, 3, 2, 5, 4, 7, 6));
#else
#define HALVES(a, F)              \
  a = F(a, LANES(a, 2, 3, 0, 1)); \
  a = F(a, LANES(a, 1, 0, 3, 2));
#endif
INLINE vf plus_(vf a, vf b) { return a + b; }
INLINE float hsum(vf a) { HALVES(a, plus_) return a[0]; }
INLINE float hmax(vf a) { HALVES(a, max_) return a[0]; }
INLINE vi iota_(void) { vi r; for (int i = 0; i < W; i++) r[i] = i; return r; }

/*
 * exp(x) = 2^n e^r with |r| <= ln 2 / 2 and the degree-5 polynomial of Cephes' expf; within 2 ulp on [-87, 88], held at
 * the ends outside (no denormals); NaN stays NaN.
 */
INLINE vf exp_(vf x) {
  x = min_(splat(88.0f), max_(splat(-87.0f), x));
  const vf shift = splat(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer that lies in the low bits */
  const vf t = fma_(x, splat(1.44269504f), shift), n = t - shift;
  vf r = fma_(n, splat(-0.693359375f), x);
  r = fma_(n, splat(2.12194440e-4f), r);
  vf p = splat(1.9875691500e-4f);
  p = fma_(p, r, splat(1.3981999507e-3f));
  p = fma_(p, r, splat(8.3334519073e-3f));
  p = fma_(p, r, splat(4.1665795894e-2f));
  p = fma_(p, r, splat(1.6666665459e-1f));
  p = fma_(p, r, splat(0.5f));
  p = fma_(p, r * r, r + splat(1.0f));
  return p * (vf)((((vi)t) << 23) + splati(0x3f800000));
}
#endif
