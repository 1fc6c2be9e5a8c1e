/*
 * Products with a weight in blocks of 32 numbers of 8 or 4 bits along k, a half-precision scale each (graph/composites/block-linear.ts
 * tells how they lie). x becomes 16-bit integers in blocks of 32 with a scale of their own first, so that a block's products are integers
 * and exact; a row of the weight is then read once, as one stream, for up to four rows of x. Sums of blocks are float32.
 */
/* Memory is read faster with vectors of 256 bits than with wider ones: see gemm.c, "One row of A". */
#define NABLA_NARROW
#include "runtime.h"
#include <math.h>

enum { BLOCK = 32, TILE = 64, ROWS = 4 };
/* Sums are to stay in registers, which takes loops without a counter; -O2 keeps it. */
#define EACH_OF_4 _Pragma("GCC unroll 4") for

/*
 * block_quantize: b = [x, codes int16, scales, offsets int32]; params: K, distance of x's rows, bits of the weight; a row is a block of x.
 * For a weight of 8 bits the codes lie as x does. For 4 bits, where a vector holds a quarter of each of its blocks at a time, a row
 * of x is filled up with zeros to whole groups of four blocks, and a group is the even numbers of its blocks' first halves, of their second
 * halves, then the odd ones alike; the offsets, four a block, take back the 8 that a code is too large.
 */
void k_block_quantize(const Cmd *c, int64_t r0, int64_t r1, int tid) {
  const int64_t K = c->p[0], ld = c->p[1], blocks = K / BLOCK, per = c->p[2] == 4 ? round_up(blocks, 4) : blocks;
  (void)tid;
  for (int64_t r = r0; r < r1; r++) {
    const int64_t block = r % per;
    int16_t q[BLOCK] = {0};
    float scale = 0;
    if (block < blocks) {
      const float *x = (const float *)c->b[0] + r / per * ld + block * BLOCK;
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
      scale = bad == 0 ? most / 32767 : NAN;
    }
    ((float *)c->b[2])[r] = scale;
    if (c->p[2] == 8) { memcpy((int16_t *)c->b[1] + r * BLOCK, q, sizeof q); continue; }
    int16_t *to = (int16_t *)c->b[1] + (r - block % 4) * BLOCK + block % 4 * 8;
    int32_t *offsets = (int32_t *)c->b[3] + 4 * r, sums[4] = {0};
    for (int e = 0; e < BLOCK; e++) {
      const int i = e % 16 / 2;
      to[(e / 16 + 2 * (e % 2)) * BLOCK + i] = q[e];
      sums[i / 2] += q[e];
    }
    for (int l = 0; l < 4; l++) offsets[l] = -8 * sums[l];
  }
}

/* ---- 8 bits: W sums of the products of a block's 32 numbers ------------------------------------------------------------ */

typedef int8_t c16 __attribute__((vector_size(16), may_alias, aligned(1)));
typedef int8_t s8x16 __attribute__((vector_size(16)));
typedef uint8_t u8x16 __attribute__((vector_size(16)));
typedef char b8x16 __attribute__((vector_size(16)));
typedef int16_t s16x16 __attribute__((vector_size(32)));
typedef int16_t s16x16_u __attribute__((vector_size(32), may_alias, aligned(2)));
#if defined(__AVX2__) && W == 8 && !defined(__clang__)
typedef struct { s16x16 a, b; } Numbers;
INLINE s16x16 words(s8x16 x) { return (s16x16)__builtin_ia32_pmovsxbw256((b8x16)x); }
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
INLINE vi products(Numbers w, const int16_t *x) {
  const vi first = (vi)__builtin_ia32_vpdpwssd_v8si((vi){0}, (vi)w.a, (vi)*(const vi_u *)x);
  return (vi)__builtin_ia32_vpdpwssd_v8si(first, (vi)w.b, (vi)*(const vi_u *)(x + 16));
}
#else
INLINE vi products(Numbers w, const int16_t *x) {
  return (vi)__builtin_ia32_pmaddwd256(w.a, (s16x16)*(const s16x16_u *)x) + (vi)__builtin_ia32_pmaddwd256(w.b, (s16x16)*(const s16x16_u *)(x + 16));
}
#endif
INLINE Numbers numbers8(const uint8_t *w) { return (Numbers){words((s8x16)*(const c16 *)w), words((s8x16)*(const c16 *)(w + 16))}; }
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
#endif

/*
 * One row of the weight by `rows` rows of x (their codes K apart, their scales K / 32), sums to out[r * ldo]. Without xs the scales are
 * products of both sides' already.
 */
INLINE void row_of_8(const uint8_t *w, const float *scales, int rows, int64_t K, const int16_t *x, const float *xs, float *out, int64_t ldo) {
  const int64_t blocks = K / BLOCK;
  vf s[ROWS] = {{0}}, u[ROWS] = {{0}};
  int64_t b = 0;
#define ADD(to, b)                                                                                                                \
  {                                                                                                                               \
    const Numbers n = numbers8(w + (b) * BLOCK);                                                                                  \
    EACH_OF_4(int r = 0; r < rows; r++)                                                                                           \
      to[r] = fma_(__builtin_convertvector(products(n, x + r * K + (b) * BLOCK), vf), splat(xs ? scales[b] * xs[r * blocks + (b)] : scales[b]), to[r]); \
  }
  for (; b + 2 <= blocks; b += 2) {
    ADD(s, b)
    ADD(u, b + 1)
  }
  if (b < blocks) ADD(s, b)
#undef ADD
  EACH_OF_4(int r = 0; r < rows; r++) out[r * ldo] = hsum(s[r] + u[r]);
}

/* ---- 4 bits: W / 4 blocks a vector, whose 16-bit words hold four numbers each ------------------------------------------- */

/* s + the products of neighbouring 16-bit numbers, two a lane. */
#if defined(__AVX512VNNI__) && defined(__AVX512VL__) && W == 8 && !defined(__clang__)
INLINE vi add_products(vi s, vi a, const int16_t *b) { return (vi)__builtin_ia32_vpdpwssd_v8si(s, a, (vi)*(const vi_u *)b); }
#elif defined(__AVX2__) && W == 8 && !defined(__clang__)
INLINE vi add_products(vi s, vi a, const int16_t *b) { return s + (vi)__builtin_ia32_pmaddwd256((s16x16)a, (s16x16)*(const vi_u *)b); }
#else
INLINE vi add_products(vi s, vi a, const int16_t *b) {
  const vi x = (vi)*(const vi_u *)b;
  return s + ((a << 16) >> 16) * ((x << 16) >> 16) + (a >> 16) * (x >> 16);
}
#endif
/* The first W / 4 lanes, each four times. */
#if W == 8
#define FOURFOLD(a) LANES(a, 0, 0, 0, 0, 1, 1, 1, 1)
#else
#define FOURFOLD(a) LANES(a, 0, 0, 0, 0)
#endif

/* As row_of_8; `blocks` of x are whole groups, of the weight `own`. */
INLINE void row_of_4(const uint8_t *w, const float *scales, int rows, int64_t own, const int16_t *x, const float *xs, const int32_t *offsets, float *out, int64_t ldo) {
  enum { AT_ONCE = W / 4 };
  const int64_t blocks = round_up(own, 4);
  uint8_t last[4 * W] __attribute__((aligned(64))) = {0};
  vf s[ROWS] = {{0}};
  for (int64_t b = 0; b < own; b += AT_ONCE) {
    const uint8_t *from = w + b * 16;
    if (b + AT_ONCE > own) from = memcpy(last, from, (own - b) * 16);
    const vu v = (vu)(vi)*(const vi_u *)from;
    const vi n[4] = {(vi)(v & 0x000f000f), (vi)((v >> 4) & 0x000f000f), (vi)((v >> 8) & 0x000f000f), (vi)((v >> 12) & 0x000f000f)};
    const int64_t at = b / 4 * 4 * BLOCK + b % 4 * 8;
    const vf scale = LOAD(scales + b);
    EACH_OF_4(int r = 0; r < rows; r++) {
      vi t = (vi)*(const vi_u *)(offsets + (r * blocks + b) * 4);
      EACH_OF_4(int j = 0; j < 4; j++) t = add_products(t, n[j], x + r * blocks * BLOCK + at + j * BLOCK);
      s[r] = fma_(__builtin_convertvector(t, vf), FOURFOLD((scale * LOAD(xs + r * blocks + b))), s[r]);
    }
  }
  EACH_OF_4(int r = 0; r < rows; r++) out[r * ldo] = hsum(s[r]);
}

/* Half-precision scales of a row as floats, times `by` where there is one, and zeros behind them. */
INLINE void float_scales(const uint16_t *s, int64_t n, const float *by, float *to) {
  int64_t i = 0;
  for (; i + W <= n; i += W) {
    vf scale = load_f16(s + i);
    if (by) scale *= LOAD(by + i);
    STORE(to + i, scale);
  }
  for (; i < n; i++) to[i] = from_f16(s[i]) * (by ? by[i] : 1);
  for (; i < n + W; i++) to[i] = 0;
}

/*
 * block_linear: b = [x's codes, x's scales, x's offsets, codes, scales, y [M, N]]; params: M, N, K, bits; a row is 64 rows of the weight.
 */
void k_block_linear(const Cmd *c, int64_t r0, int64_t r1, int tid) {
  const int64_t *p = c->p, M = p[0], N = p[1], K = p[2], blocks = K / BLOCK, groups = round_up(blocks, 4);
  const int16_t *x = (const int16_t *)c->b[0];
  const float *xs = (const float *)c->b[1];
  const int32_t *offsets = (const int32_t *)c->b[2];
  float *y = (float *)c->b[5], *scales = (float *)c->run->scratch[tid];
  const int one = M == 1 && p[3] == 8;
#define ROWS_OF_8(rows) row_of_8(w, scales, rows, K, x + m * K, xs + m * blocks, y + m * N + n, N)
#define ROWS_OF_4(rows) row_of_4(w, scales, rows, blocks, x + m * groups * BLOCK, xs + m * groups, offsets + m * groups * 4, y + m * N + n, N)
#define EVERY_ROW(ROWS_OF)                \
  for (int64_t m = 0; m < M; m += ROWS)   \
    switch (min64(ROWS, M - m)) {         \
      case 1: ROWS_OF(1); break;          \
      case 2: ROWS_OF(2); break;          \
      case 3: ROWS_OF(3); break;          \
      default: ROWS_OF(4);                \
    }
  for (int64_t n = r0 * TILE; n < min64(r1 * TILE, N); n++) {
    const uint8_t *w = (const uint8_t *)c->b[3] + n * (K * p[3] / 8);
    float_scales((const uint16_t *)c->b[4] + n * blocks, blocks, one ? xs : 0, scales);
    if (one) row_of_8(w, scales, 1, K, x, 0, y + n, 1);
    else if (p[3] == 8) EVERY_ROW(ROWS_OF_8)
    else EVERY_ROW(ROWS_OF_4)
  }
}
