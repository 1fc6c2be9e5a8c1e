/*
 * Products with a weight in blocks of 32 numbers of 8 or 4 bits along k, a half-precision scale each (graph/composites/block-linear.ts
 * tells how they lie). x becomes 16-bit integers in blocks of 32 with a scale of their own first, so that a block's products are integers
 * and exact; a row of the weight is then read once, as one stream, for up to four rows of x. Sums of blocks are float32.
 */
#include "runtime.h"
#include <math.h>

enum { BLOCK = 32, TILE = 64, ROWS = 4 };

/* block_quantize: b = [x, codes int16 [M, K], scales [M, K / 32]]; params: K, distance of x's rows; a row is a block of x. */
void k_block_quantize(const Cmd *c, int64_t r0, int64_t r1, int tid) {
  const int64_t K = c->p[0], ld = c->p[1], blocks = K / BLOCK;
  (void)tid;
  for (int64_t r = r0; r < r1; r++) {
    const float *x = (const float *)c->b[0] + r / blocks * ld + r % blocks * BLOCK;
    int16_t *q = (int16_t *)c->b[1] + r * BLOCK;
    vf top = {0}, odd = {0};
    for (int k = 0; k < BLOCK; k += W) {
      const vf v = LOAD(x + k);
      top = max_(top, max_(v, -v));
      odd += v - v; /* NaN for infinity and NaN */
    }
    const float most = hmax(top), bad = hsum(odd);
    /* to nearest: 1.5 * 2^23 added leaves the integer in the low bits */
    const vf inverse = splat(most > 0 && bad == 0 ? 32767 / most : 0), shift = splat(12582912.0f);
    for (int k = 0; k < BLOCK; k += W) {
      const vi t = (vi)(fma_(bad == 0 ? LOAD(x + k) : (vf){0}, inverse, shift));
      for (int i = 0; i < W; i++) q[k + i] = (int16_t)t[i];
    }
    ((float *)c->b[2])[r] = bad == 0 ? most / 32767 : NAN;
  }
}

/* Sums, W of them, of the products of a block's 32 numbers. */
typedef int8_t c16 __attribute__((vector_size(16), may_alias, aligned(1)));
typedef int8_t s8x16 __attribute__((vector_size(16)));
typedef uint8_t u8x16 __attribute__((vector_size(16)));
typedef int8_t s8x32 __attribute__((vector_size(32)));
typedef int8_t c32 __attribute__((vector_size(32), may_alias, aligned(1)));
typedef long long s64x2 __attribute__((vector_size(16)));
typedef long long s64x4 __attribute__((vector_size(32)));
typedef char b8x16 __attribute__((vector_size(16)));
typedef char b8x32 __attribute__((vector_size(32)));
typedef int16_t s16x16 __attribute__((vector_size(32)));
typedef int16_t s16x16_u __attribute__((vector_size(32), may_alias, aligned(2)));
#if W == 16 && !defined(__clang__)
typedef int16_t s16x32 __attribute__((vector_size(64)));
typedef int16_t s16x32_u __attribute__((vector_size(64), may_alias, aligned(2)));
typedef s16x32 Numbers;
INLINE Numbers numbers8(const uint8_t *w) { return (s16x32)__builtin_ia32_pmovsxbw512_mask((b8x32)(s8x32)*(const c32 *)w, (s16x32){0}, -1); }
INLINE vi products(Numbers w, const int16_t *x) { return (vi)__builtin_ia32_pmaddwd512_mask(w, (s16x32)*(const s16x32_u *)x, (vi){0}, -1); }
INLINE Numbers numbers4(const uint8_t *w) {
  const s8x16 bytes = (s8x16)*(const c16 *)w, low = bytes & 15, high = (s8x16)((u8x16)bytes >> 4);
  const s64x4 both = (s64x4){((s64x2)low)[0], ((s64x2)low)[1], ((s64x2)high)[0], ((s64x2)high)[1]};
  return (s16x32)__builtin_ia32_pmovsxbw512_mask((b8x32)((s8x32)both - 8), (s16x32){0}, -1);
}
#elif defined(__AVX2__) && W == 8 && !defined(__clang__)
typedef struct { s16x16 a, b; } Numbers;
INLINE s16x16 words(s8x16 x) { return (s16x16)__builtin_ia32_pmovsxbw256((b8x16)x); }
INLINE vi products(Numbers w, const int16_t *x) {
  return (vi)__builtin_ia32_pmaddwd256(w.a, (s16x16)*(const s16x16_u *)x) + (vi)__builtin_ia32_pmaddwd256(w.b, (s16x16)*(const s16x16_u *)(x + 16));
}
INLINE Numbers numbers8(const uint8_t *w) { return (Numbers){words((s8x16)*(const c16 *)w), words((s8x16)*(const c16 *)(w + 16))}; }
INLINE Numbers numbers4(const uint8_t *w) {
  const s8x16 bytes = (s8x16)*(const c16 *)w;
  return (Numbers){words((bytes & 15) - 8), words((s8x16)((u8x16)bytes >> 4) - 8)};
}
#else
typedef struct { int16_t n[BLOCK]; } Numbers;
typedef int16_t s16xw __attribute__((vector_size(W * 2), may_alias, aligned(2)));
INLINE vi products(Numbers w, const int16_t *x) {
  vi s = {0};
  for (int k = 0; k < BLOCK; k += W) s += __builtin_convertvector(*(const s16xw *)(w.n + k), vi) * __builtin_convertvector(*(const s16xw *)(x + k), vi);
  return s;
}
INLINE Numbers numbers8(const uint8_t *w) {
  Numbers r;
  for (int i = 0; i < BLOCK; i++) r.n[i] = (int8_t)w[i];
  return r;
}
INLINE Numbers numbers4(const uint8_t *w) {
  Numbers r;
  for (int i = 0; i < 16; i++) {
    r.n[i] = (int16_t)((w[i] & 15) - 8);
    r.n[i + 16] = (int16_t)((w[i] >> 4) - 8);
  }
  return r;
}
#endif

/* One row of the weight by `rows` rows of x (their codes K apart, their scales K / 32), sums to out[r * ldo]. */
INLINE void block_row(const uint8_t *w, const float *scales, int bits, int rows, int64_t K, const int16_t *x, const float *xs, float *out, int64_t ldo) {
  const int64_t blocks = K / BLOCK, step = bits == 8 ? BLOCK : BLOCK / 2;
  vf s[ROWS] = {{0}}, u[ROWS] = {{0}};
  int64_t b = 0;
#define ADD(to, b)                                                                                                                \
  {                                                                                                                               \
    const Numbers n = bits == 8 ? numbers8(w + (b) * step) : numbers4(w + (b) * step);                                            \
    for (int r = 0; r < rows; r++)                                                                                                \
      to[r] = fma_(__builtin_convertvector(products(n, x + r * K + (b) * BLOCK), vf), splat(scales[b] * xs[r * blocks + (b)]), to[r]); \
  }
  for (; b + 2 <= blocks; b += 2) {
    ADD(s, b)
    ADD(u, b + 1)
  }
  if (b < blocks) ADD(s, b)
#undef ADD
  for (int r = 0; r < rows; r++) out[r * ldo] = hsum(s[r] + u[r]);
}

/* Half-precision scales of a row as floats. */
INLINE void float_scales(const uint16_t *s, int64_t n, float *to) {
  int64_t i = 0;
  for (; i + W <= n; i += W) STORE(to + i, load_f16(s + i));
  for (; i < n; i++) to[i] = from_f16(s[i]);
}

/* block_linear: b = [x's codes, x's scales, codes, scales, y [M, N]]; params: M, N, K, bits; a row is 64 rows of the weight. */
void k_block_linear(const Cmd *c, int64_t r0, int64_t r1, int tid) {
  const int64_t *p = c->p, M = p[0], N = p[1], K = p[2], blocks = K / BLOCK, bytes = K * p[3] / 8;
  const int16_t *x = (const int16_t *)c->b[0];
  const float *xs = (const float *)c->b[1];
  float *y = (float *)c->b[4], *scales = (float *)c->run->scratch[tid];
#define ROWS_OF(bits, rows) block_row(w, scales, bits, rows, K, x + m * K, xs + m * blocks, y + m * N + n, N)
#define ALL_ROWS(bits)                                                  \
  for (int64_t m = 0; m < M; m += ROWS)                                 \
    switch (min64(ROWS, M - m)) {                                       \
      case 1: ROWS_OF(bits, 1); break;                                  \
      case 2: ROWS_OF(bits, 2); break;                                  \
      case 3: ROWS_OF(bits, 3); break;                                  \
      default: ROWS_OF(bits, 4);                                        \
    }
  for (int64_t n = r0 * TILE; n < min64(r1 * TILE, N); n++) {
    const uint8_t *w = (const uint8_t *)c->b[2] + n * bytes;
    float_scales((const uint16_t *)c->b[3] + n * blocks, blocks, scales);
    if (p[3] == 8) ALL_ROWS(8) else ALL_ROWS(4)
  }
}
