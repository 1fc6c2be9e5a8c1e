/*
 * Products with a weight in blocks of 32 numbers of 8 or 4 bits along k, a half-precision scale each (graph/composites/block-linear.ts
 * tells how they lie). x becomes 16-bit integers in blocks of 32 with a scale of their own first, so that a block's products are integers
 * and exact (for 4 bits as high and low bytes, so that one instruction multiplies 32 of them); a row of the weight is then read once, as one stream, for up to four rows of x. Sums of blocks are float32.
 */
/* Memory is read faster with vectors of 256 bits than with wider ones: see gemm.c, "One row of A". */
#define NABLA_NARROW
#include "runtime.h"
#include <math.h>

enum { BLOCK = 32, TILE = 64, ROWS = 4, GROUP = 8 };
/* Sums are to stay in registers, which takes loops without a counter; -O2 keeps it. */
#define EACH_OF_4 _Pragma("GCC unroll 4") for

typedef int8_t s8x16 __attribute__((vector_size(16)));
typedef int8_t s8x16_u __attribute__((vector_size(16), may_alias, aligned(1)));
typedef int16_t s16x16 __attribute__((vector_size(32), may_alias));
typedef int16_t s16w __attribute__((vector_size(W * 2)));
typedef int16_t s16w_u __attribute__((vector_size(W * 2), may_alias, aligned(2)));

/*
 * block_quantize: b = [x, codes, scales, offsets float]; params: K, distance of x's rows, bits of the weight; a row is a block of x.
 * For a weight of 8 bits the codes are int16 and lie as x does. For 4 bits a row of x is filled up with zeros to whole groups of eight blocks,
 * q = 256 high + low, and four blocks are the high bytes of their first halves, of their second halves, then the low ones alike; the
 * offsets, one a block, take back the 8 that a code of the weight is too large.
 */
void k_block_quantize(const Cmd *c, int64_t r0, int64_t r1, int tid) {
  const int64_t K = c->p[0], ld = c->p[1], blocks = K / BLOCK, per = c->p[2] == 4 ? round_up(blocks, GROUP) : blocks;
  const float limit = c->p[2] == 4 ? 32639 : 32767; /* 32639 = 127 * 257: high and low are bytes with sign */
  (void)tid;
  for (int64_t r = r0; r < r1; r++) {
    const int64_t block = r % per;
    int16_t q[BLOCK] __attribute__((aligned(64))) = {0};
    vi sums = {0};
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
      const vf inverse = splat(most > 0 && bad == 0 ? limit / most : 0), shift = splat(12582912.0f);
      for (int k = 0; k < BLOCK; k += W) {
        const vi t = (vi)(fma_(bad == 0 ? LOAD(x + k) : (vf){0}, inverse, shift)) - splati(0x4b400000);
        *(s16w_u *)(q + k) = __builtin_convertvector(t, s16w);
        sums += t;
      }
      scale = bad == 0 ? most / limit : NAN;
    }
    ((float *)c->b[2])[r] = scale;
    if (c->p[2] == 8) { memcpy((int16_t *)c->b[1] + r * BLOCK, q, sizeof q); continue; }
    int8_t *to = (int8_t *)c->b[1] + (r - block % 4) * 2 * BLOCK + block % 4 * 16;
    for (int half = 0; half < 2; half++) {
      const s16x16 v = *(const s16x16 *)(q + 16 * half), high = (v + ((int16_t)128 - (s16x16){0})) >> 8, low = v - (high << 8);
      *(s8x16_u *)(to + 64 * half) = (s8x16_u)__builtin_convertvector(high, s8x16);
      *(s8x16_u *)(to + 64 * half + 128) = (s8x16_u)__builtin_convertvector(low, s8x16);
    }
    int sum = 0;
    for (int i = 0; i < W; i++) sum += sums[i];
    ((float *)c->b[3])[r] = (float)(-8 * sum);
  }
}

/* ---- 8 bits: W sums of the products of a block's 32 numbers ------------------------------------------------------------ */

typedef int8_t c16 __attribute__((vector_size(16), may_alias, aligned(1)));
typedef uint8_t u8x16 __attribute__((vector_size(16)));
typedef char b8x16 __attribute__((vector_size(16)));
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

/*
 * Eight rows of the weight by one of x whose codes fill half of the first cache: see gemm.c, STREAM_TOGETHER. Scales are products of both
 * sides', `lds` floats from a row's to the next.
 */
#define EACH_TOGETHER _Pragma("GCC unroll 8") for (int j = 0; j < TOGETHER; j++)
static void together_of_8(const uint8_t *w, const float *scales, int64_t lds, int64_t K, const int16_t *x, float *out) {
  vf s[TOGETHER] = {{0}};
  for (int64_t b = 0; b < K / BLOCK; b++)
    EACH_TOGETHER s[j] = fma_(__builtin_convertvector(products(numbers8(w + j * K + b * BLOCK), x + b * BLOCK), vf), splat(scales[j * lds + b]), s[j]);
  EACH_TOGETHER out[j] = hsum(s[j]);
}

/* Two rows of the weight by four of x: scales are products of both sides', those of row j by row r from (4 * j + r) * lds on. */
static void two_by_four_of_8(const uint8_t *w, const float *scales, int64_t lds, int64_t K, const int16_t *x, float *out, int64_t ldo) {
  vf s[2][ROWS] = {{{0}}};
  for (int64_t b = 0; b < K / BLOCK; b++) {
    const Numbers first = numbers8(w + b * BLOCK), second = numbers8(w + K + b * BLOCK);
    EACH_OF_4(int r = 0; r < ROWS; r++) {
      const int16_t *at = x + r * K + b * BLOCK;
      s[0][r] = fma_(__builtin_convertvector(products(first, at), vf), splat(scales[r * lds + b]), s[0][r]);
      s[1][r] = fma_(__builtin_convertvector(products(second, at), vf), splat(scales[(ROWS + r) * lds + b]), s[1][r]);
    }
  }
  EACH_OF_4(int r = 0; r < ROWS; r++) {
    out[r * ldo] = hsum(s[0][r]);
    out[r * ldo + 1] = hsum(s[1][r]);
  }
}

/* ---- 4 bits: W / 4 blocks a vector of bytes ------------------------------------------------------------------------------ */

typedef uint8_t vb __attribute__((vector_size(4 * W)));
typedef uint8_t vb_u __attribute__((vector_size(4 * W), may_alias, aligned(1)));
typedef int16_t s16s __attribute__((vector_size(4 * W)));
typedef uint16_t u16s __attribute__((vector_size(4 * W)));
typedef char b8s __attribute__((vector_size(4 * W)));

/* Codes of first halves times the bytes at x, plus those of second halves times the bytes 64 further on; a lane has four neighbours. */
#if defined(__AVX512VNNI__) && defined(__AVX512VL__) && W == 8 && !defined(__clang__)
INLINE vi halves(vb first, vb second, const int8_t *x) {
  const vi t = (vi)__builtin_ia32_vpdpbusd_v8si((vi){0}, (vi)first, (vi)*(const vb_u *)x);
  return (vi)__builtin_ia32_vpdpbusd_v8si(t, (vi)second, (vi)*(const vb_u *)(x + 64));
}
#else
#if defined(__AVX2__) && W == 8 && !defined(__clang__)
INLINE s16s pairs(vb codes, const int8_t *x) { return (s16s)__builtin_ia32_pmaddubsw256((b8s)codes, (b8s)*(const vb_u *)x); }
INLINE vi sum_of_pairs(s16s s) { return (vi)__builtin_ia32_pmaddwd256(s, (int16_t)1 - (s16s){0}); }
#else
INLINE s16s pairs(vb codes, const int8_t *x) {
  const s16s v = (s16s)*(const vb_u *)x;
  return ((s16s)codes & ((int16_t)255 - (s16s){0})) * ((v << 8) >> 8) + ((s16s)codes >> 8) * (v >> 8);
}
INLINE vi sum_of_pairs(s16s s) { return (((vi)s << 16) >> 16) + ((vi)s >> 16); }
#endif
/* Four products of at most 15 * 128 fit into 16 bits. */
INLINE vi halves(vb first, vb second, const int8_t *x) { return sum_of_pairs(pairs(first, x) + pairs(second, x + 64)); }
#endif
/* Of the lanes that belong to vector j of four the two (or the one), each four times. */
#if W == 8
#define FOURFOLD(a, j) LANES(a, 2 * j, 2 * j, 2 * j, 2 * j, 2 * j + 1, 2 * j + 1, 2 * j + 1, 2 * j + 1)
#define PLACE(j) (j / 2 * 256 + j % 2 * 32)
#else
#define FOURFOLD(a, j) LANES(a, j, j, j, j)
#define PLACE(j) (j * 16)
#endif

/* x by `rows` rows, K filled up to `blocks`, which are whole groups. */
typedef struct { const int8_t *codes; const float *scales, *offsets; int64_t blocks; } Bytes;
typedef struct { vf s[ROWS], u[ROWS]; } Sums;

/* W blocks of a row of the weight from b on, whose scales are one vector, by `rows` rows of x, added to `to`. */
INLINE void blocks_of_4(const uint8_t *from, vf own, int rows, const Bytes *x, int64_t b, Sums *to) {
  const vb low = (uint8_t)15 - (vb){0};
  vf scale[ROWS];
  EACH_OF_4(int r = 0; r < rows; r++) {
    scale[r] = own * LOAD(x->scales + r * x->blocks + b);
    to->u[r] = fma_(scale[r], LOAD(x->offsets + r * x->blocks + b), to->u[r]);
  }
#define ADD(sums, j)                                                                                                          \
  {                                                                                                                           \
    const vb v = (vb)*(const vb_u *)(from + j * 4 * W), first = v & low, second = (vb)((u16s)v >> 4) & low;                     \
    EACH_OF_4(int r = 0; r < rows; r++) {                                                                                     \
      const int8_t *at = x->codes + (r * x->blocks + b) * 2 * BLOCK + PLACE(j);                                               \
      const vi t = (halves(first, second, at) << 8) + halves(first, second, at + 128);                                        \
      sums[r] = fma_(__builtin_convertvector(t, vf), FOURFOLD(scale[r], j), sums[r]);                                         \
    }                                                                                                                         \
  }
  ADD(to->s, 0)
  ADD(to->s, 1)
  ADD(to->s, 2)
  ADD(to->u, 3)
#undef ADD
}

/*
 * `count` neighbouring rows of the weight (of `own` blocks, their scales lds apart) by `rows` rows of x, to out[j + r * ldo]. One of the two
 * is 1.
 */
INLINE void rows_of_4(const uint8_t *w, const float *scales, int64_t lds, int count, int rows, int64_t own, Bytes x, float *out, int64_t ldo) {
  uint8_t last[16 * W] __attribute__((aligned(64))) = {0};
  Sums sums[TOGETHER];
  for (int j = 0; j < count; j++) sums[j] = (Sums){{{0}}};
  for (int64_t b = 0; b < own; b += W)
    for (int j = 0; j < count; j++) {
      const uint8_t *from = w + (j * own + b) * 16;
      if (b + W > own) from = memcpy(last, from, (own - b) * 16);
      blocks_of_4(from, LOAD(scales + j * lds + b), rows, &x, b, &sums[j]);
    }
  for (int j = 0; j < count; j++) EACH_OF_4(int r = 0; r < rows; r++) out[j + r * ldo] = hsum(sums[j].s[r] + sums[j].u[r]);
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

/* The operands of block_linear, and the worker's room for scales, `lds` floats a row. */
typedef struct {
  int64_t M, N, K, blocks, groups, lds;
  const int16_t *x;
  const float *xs, *offsets;
  const uint8_t *weight;
  const uint16_t *ws;
  float *y, *scales;
} Operands;

INLINE Bytes bytes_at(const Operands *o, int64_t m) {
  return (Bytes){(const int8_t *)o->x + m * o->groups * 2 * BLOCK, o->xs + m * o->groups, o->offsets + m * o->groups, o->groups};
}

/* One row of x by the rows n to `end` of the weight, which come as one stream. */
INLINE void one_row(const Operands *o, int bits, int64_t n, int64_t end) {
  const int64_t bytes = o->K * bits / 8;
  const int together = o->K * 2 >= LONG_ROW;
  while (n < end) {
    const int count = together && n + TOGETHER <= end ? TOGETHER : 1;
    const uint8_t *w = o->weight + n * bytes;
    for (int j = 0; j < count; j++) float_scales(o->ws + (n + j) * o->blocks, o->blocks, bits == 8 ? o->xs : 0, o->scales + j * o->lds);
    if (bits == 4) {
      if (count > 1) rows_of_4(w, o->scales, o->lds, TOGETHER, 1, o->blocks, bytes_at(o, 0), o->y + n, o->N);
      else rows_of_4(w, o->scales, o->lds, 1, 1, o->blocks, bytes_at(o, 0), o->y + n, o->N);
    } else if (count > 1) together_of_8(w, o->scales, o->lds, o->K, o->x, o->y + n);
    else row_of_8(w, o->scales, 1, o->K, o->x, 0, o->y + n, 1);
    n += count;
  }
}

/* Up to four rows of x at a time, from m to `last`, by row n of the weight. */
#define EVERY_ROW(ROWS_OF)                  \
  for (; m < last; m += ROWS)               \
    switch (min64(ROWS, last - m)) {        \
      case 1: ROWS_OF(1); break;            \
      case 2: ROWS_OF(2); break;            \
      case 3: ROWS_OF(3); break;            \
      default: ROWS_OF(4);                  \
    }

INLINE void row_by_rows(const Operands *o, int bits, int64_t n, int64_t m, int64_t last) {
  const uint8_t *w = o->weight + n * o->K * bits / 8;
  float_scales(o->ws + n * o->blocks, o->blocks, 0, o->scales);
#define ROWS_OF_8(rows) row_of_8(w, o->scales, rows, o->K, o->x + m * o->K, o->xs + m * o->blocks, o->y + m * o->N + n, o->N)
#define ROWS_OF_4(rows) rows_of_4(w, o->scales, o->lds, 1, rows, o->blocks, bytes_at(o, m), o->y + m * o->N + n, o->N)
  if (bits == 8) EVERY_ROW(ROWS_OF_8)
  else EVERY_ROW(ROWS_OF_4)
}

/* Rows m to `last` of x by two rows of the weight of 8 bits. */
INLINE void two_by_rows_of_8(const Operands *o, int64_t n, int64_t m, int64_t last) {
  for (; m + ROWS <= last; m += ROWS) {
    for (int j = 0; j < 2 * ROWS; j++)
      float_scales(o->ws + (n + j / ROWS) * o->blocks, o->blocks, o->xs + (m + j % ROWS) * o->blocks, o->scales + j * o->lds);
    two_by_four_of_8(o->weight + n * o->K, o->scales, o->lds, o->K, o->x + m * o->K, o->y + m * o->N + n, o->N);
  }
  if (m < last)
    for (int j = 0; j < 2; j++) row_by_rows(o, 8, n + j, m, last);
}

/*
 * block_linear: b = [x's codes, x's scales, x's offsets, codes, scales, y [M, N]]; params: M, N, K, bits; a row is 64 rows of the weight.
 */
void k_block_linear(const Cmd *c, int64_t r0, int64_t r1, int tid) {
  const int64_t *p = c->p, blocks = p[2] / BLOCK;
  const int bits = (int)p[3];
  const Operands o = {
    .M = p[0], .N = p[1], .K = p[2], .blocks = blocks, .groups = round_up(blocks, GROUP), .lds = round_up(blocks, W) + W,
    .x = (const int16_t *)c->b[0], .xs = (const float *)c->b[1], .offsets = (const float *)c->b[2],
    .weight = (const uint8_t *)c->b[3], .ws = (const uint16_t *)c->b[4],
    .y = (float *)c->b[5], .scales = (float *)c->run->scratch[tid],
  };
  const int64_t end = min64(r1 * TILE, o.N), strip = rows_in_cache(2 * o.K, ROWS);
  if (o.M == 1 && bits == 8) one_row(&o, 8, r0 * TILE, end);
  else if (o.M == 1) one_row(&o, 4, r0 * TILE, end);
  else
    for (int64_t from = r0 * TILE; from < end; from += TILE)
      for (int64_t m = 0; m < o.M; m += strip) {
        const int64_t last = min64(m + strip, o.M), to = min64(from + TILE, end);
        int64_t n = from;
        if (bits == 8)
          for (; n + 2 <= to; n += 2) two_by_rows_of_8(&o, n, m, last);
        for (; n < to; n++) {
          if (bits == 8) row_by_rows(&o, 8, n, m, last);
          else row_by_rows(&o, 4, n, m, last);
        }
      }
}
