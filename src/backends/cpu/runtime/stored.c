/*
 * Products with a weight in the blocks of a GGUF file (stored.h), a row or a few of x. x becomes integers of 16 bits first, a scale a block, kept
 * as high and low bytes: codes are bytes without sign, so that one instruction multiplies 32 of them, and sums of a block of 256 stay integers,
 * small scales included. A row of the weight is read once, as one stream, for up to four rows of x. Sums of blocks are float32.
 */
/* Memory is read faster with vectors of 256 bits than with wider ones: see gemm.c, "One row of A". */
#define NABLA_NARROW
#include "stored.h"
#include <math.h>

/* A row of the command is TILE rows of the weight (plans.ts). */
enum { TILE = 64, ROWS = 4 };

/*
 * x by blocks of U (32 or 256) numbers, x = scale (256 high + low): codes, 2 U bytes a block, first all high ones; then
 * U = 256: a scale a block, and the sums of 16 numbers each, [0, 2, … 14, 1, 3, … 15], in which order q6_k has its scales here;
 * U = 32: a scale and the sum of the block as floats, [scale, sum].
 */
enum { MOST = 32639 }; /* whose high byte, rounded, is 127 */

/* b = [x, codes, scales, sums]; params: K, distance of x's rows, U; a row is a block of x. */
void k_stored_quantize(const Cmd *c, int64_t r0, int64_t r1, int tid) {
  const int64_t K = c->p[0], ld = c->p[1], U = c->p[2], blocks = K / U;
  (void)tid;
  for (int64_t r = r0; r < r1; r++) {
    const float *x = (const float *)c->b[0] + r / blocks * ld + r % blocks * U;
    int8_t *to = (int8_t *)c->b[1] + r * 2 * U;
    int32_t sums[16] = {0};
    vf top = {0}, odd = {0};
    for (int64_t k = 0; k < U; k += W) {
      const vf v = LOAD(x + k);
      top = max_(top, max_(v, -v));
      odd += v - v; /* NaN for infinity and NaN */
    }
    const float most = hmax(top);
    const int bad = hsum(odd) != 0;
    /* to nearest: 1.5 * 2^23 added leaves the integer in the low bits */
    const vf inverse = splat(most > 0 && !bad ? MOST / most : 0), shift = splat(12582912.0f);
    for (int64_t k = 0; k < U; k += W) {
      const vi t = (vi)(fma_(bad ? (vf){0} : LOAD(x + k), inverse, shift)) - splati(0x4b400000), high = (t + splati(128)) >> 8, low = t - (high << 8);
      for (int i = 0; i < W; i++) {
        to[k + i] = (int8_t)high[i];
        to[U + k + i] = (int8_t)low[i];
        sums[k / 16] += t[i];
      }
    }
    const float scale = bad ? NAN : most / MOST;
    float *scales = (float *)c->b[2];
    if (U == 32) {
      scales[2 * r] = scale;
      scales[2 * r + 1] = scale * (float)(sums[0] + sums[1]);
      continue;
    }
    scales[r] = scale;
    for (int i = 0; i < 16; i++) ((int32_t *)c->b[3])[16 * r + i] = sums[i % 8 * 2 + i / 8];
  }
}

typedef uint8_t u8x8_u __attribute__((vector_size(8), may_alias, aligned(1)));
typedef int32_t vn __attribute__((vector_size(VB)));
typedef int32_t vn_u __attribute__((vector_size(VB), may_alias, aligned(4)));
typedef float vx __attribute__((vector_size(VB)));
enum { LANES_X = VB / 4 };

#if VB == W * 4
INLINE vx fma_x(vx a, vx b, vx c) { return (vx)fma_((vf)a, (vf)b, (vf)c); }
#else
INLINE vx fma_x(vx a, vx b, vx c) { return a * b + c; }
#endif
INLINE vx splat_x(float x) { return x - (vx){0}; }
INLINE vx float_x(vn x) { return __builtin_convertvector(x, vx); }
INLINE float sum_x(vx x) {
  float s = 0;
  for (int i = 0; i < LANES_X; i++) s += x[i];
  return s;
}

/* Small integers by the halves of parts. */
typedef struct { s16x8 half[2]; } Scales;

/* acc + the products of a piece's codes and bytes of x, times the scale of its half (or halves) of part p. */
#if defined(STORED_AVX2)
typedef int16_t s16x16 __attribute__((vector_size(32)));
typedef int32_t s32x4 __attribute__((vector_size(16)));
INLINE vn add_scaled(vn acc, vb codes, const int8_t *x, s16x16 scale) {
  const s16x16 pairs = (s16x16)__builtin_ia32_pmaddubsw256((b8x32)codes, (b8x32)bytes_at((const uint8_t *)x)); /* at most 63 * 256: it fits */
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
  return (vn)__builtin_ia32_vpdpwssd_v8si((vi)acc, (vi)pairs, (vi)scale);
#else
  return acc + (vn)__builtin_ia32_pmaddwd256(pairs, scale);
#endif
}
INLINE s16x16 scale_of(const Scales *scales, int p, int piece) {
  const char a = (char)(2 * p), b = (char)(2 * p + 1);
  /* not through memory: a vector that is written in halves is slow to be read back */
  const vi both = (vi)__builtin_ia32_vinsertf128_si256(__builtin_ia32_si256_si((s32x4)scales->half[0]), (s32x4)scales->half[1], 1);
  return (s16x16)__builtin_ia32_pshufb256((b8x32)both, (b8x32){a, b, a, b, a, b, a, b, a, b, a, b, a, b, a, b, a, b, a, b, a, b, a, b, a, b, a, b, a, b, a, b});
}
INLINE s16x16 scale_one(void) { return (int16_t)1 - (s16x16){0}; }
#define EACH_PART _Pragma("GCC unroll 8") for
#else
#if defined(__clang__)
#define ZIPPED(a, b, from) (s16x8) __builtin_shufflevector(a, b, from, 16 + from, 1 + from, 17 + from, 2 + from, 18 + from, 3 + from, 19 + from, 4 + from, 20 + from, 5 + from, 21 + from, 6 + from, 22 + from, 7 + from, 23 + from)
#else
#define ZIPPED(a, b, from) (s16x8) __builtin_shuffle(a, b, (vb){from, 16 + from, 1 + from, 17 + from, 2 + from, 18 + from, 3 + from, 19 + from, 4 + from, 20 + from, 5 + from, 21 + from, 6 + from, 22 + from, 7 + from, 23 + from})
#endif
INLINE vn add_scaled(vn acc, vb codes, const int8_t *x, int scale) {
  const vb zero = {0}, v = bytes_at((const uint8_t *)x);
  /* 8 sums of two products, at most 63 * 256 */
  const s16x8 sums = ZIPPED(codes, zero, 0) * (ZIPPED(zero, v, 0) >> 8) + ZIPPED(codes, zero, 8) * (ZIPPED(zero, v, 8) >> 8);
  return acc + ((((vn)sums << 16) >> 16) + ((vn)sums >> 16)) * scale;
}
INLINE int scale_of(const Scales *scales, int p, int piece) { return scales->half[piece][p]; }
INLINE int scale_one(void) { return 1; }
#define EACH_PART for
#endif
#define EACH_PIECE _Pragma("GCC unroll 2") for
#define EACH_ROW_OF_X _Pragma("GCC unroll 4") for

/* 8 bytes without sign, for both halves. */
INLINE Scales scales_of_4(const uint32_t bytes[2]) {
#if defined(STORED_AVX2)
  const s16x8 one = (s16x8)__builtin_ia32_pmovzxbw128((b8x16)(s64x2){(long long)((uint64_t)bytes[1] << 32 | bytes[0])});
#else
  const s16x8 one = __builtin_convertvector(*(const u8x8_u *)bytes, s16x8);
#endif
  return (Scales){.half = {one, one}};
}
/* 16 bytes with sign, of which the halves of a part have neighbouring ones. */
INLINE Scales scales_of_6(const uint8_t *p) {
  const s16x8 v = (s16x8)*(const u8x16_u *)p;
  return (Scales){.half = {(s16x8)(v << 8) >> 8, v >> 8}};
}
/* The products of 16 small integers and 16 sums. */
INLINE vn products_of(const Scales *small, const int32_t *sums) {
  vn r = {0};
#if defined(STORED_AVX2)
  for (int h = 0; h < 2; h++) r += (vn)__builtin_ia32_pmovsxwd256(small->half[h]) * (vn)*(const vn_u *)(sums + 8 * h);
#else
  for (int i = 0; i < 16; i++) r[i % LANES_X] += small->half[i / 8][i % 8] * sums[i];
#endif
  return r;
}

typedef struct { const int8_t *codes; const float *scales; const int32_t *sums; int64_t blocks; } Integers;

/* Block b of a row of the weight, 256 numbers, by `rows` rows of x, added to s. */
INLINE void block_of_k(int format, int rows, const uint8_t *w, Integers x, int64_t b, vx *s) {
  const int is_6 = format == FORMAT_Q6_K;
  /* a tenth faster on Zen 4; q5_k and q6_k, of which a block is more memory for the same work, are slower with it */
  if (format == FORMAT_Q4_K) for (int i = 0; i < 144; i += 64) __builtin_prefetch(w + 1536 + i);
  const SixBits six = six_bits(w + 4);
  const Scales scales = is_6 ? scales_of_6(w + 192) : scales_of_4(six.scales), minima = is_6 ? scales : scales_of_4(six.minima);
  vn high[ROWS] = {{0}}, low[ROWS] = {{0}};
  EACH_PART (int p = 0; p < 8; p++) {
    EACH_PIECE (int i = 0; i < PIECES; i++) {
      const vb codes = codes_of(format, w, p, i);
      const int8_t *at = x.codes + 512 * b + 32 * p + VB * i;
      EACH_ROW_OF_X (int r = 0; r < rows; r++, at += 512 * x.blocks) {
        high[r] = add_scaled(high[r], codes, at, scale_of(&scales, p, i));
        low[r] = add_scaled(low[r], codes, at + 256, scale_of(&scales, p, i));
      }
    }
  }
  const float d = half_at(is_6 ? w + 208 : w), least = is_6 ? d * 32 : half_at(w + 2);
  EACH_ROW_OF_X (int r = 0; r < rows; r++) {
    const int64_t at = r * x.blocks + b;
    s[r] = fma_x(fma_x(float_x(high[r]), splat_x(256), float_x(low[r])), splat_x(d * x.scales[at]), s[r]);
    s[r] = fma_x(float_x(products_of(&minima, x.sums + 16 * at)), splat_x(-least * x.scales[at]), s[r]);
  }
}

/*
 * `count` neighbouring rows of the weight by `rows` rows of x, sums to out[j + r * ldo]. One of the two is 1; several rows of the weight
 * at a time are for one row of x that the first cache can't keep (gemm.c, STREAM_TOGETHER).
 */
INLINE void rows_of_k(int format, int count, int rows, const uint8_t *w, Integers x, float *out, int64_t ldo) {
  vx s[TOGETHER][ROWS];
  for (int j = 0; j < count; j++) for (int r = 0; r < rows; r++) s[j][r] = (vx){0};
  for (int64_t b = 0; b < x.blocks; b++)
    for (int j = 0; j < count; j++) block_of_k(format, rows, w + (j * x.blocks + b) * block_bytes(format), x, b, s[j]);
  for (int j = 0; j < count; j++) for (int r = 0; r < rows; r++) out[j + r * ldo] = sum_x(s[j][r]);
}

typedef float f32x4 __attribute__((vector_size(16)));
typedef float f32x4_u __attribute__((vector_size(16), may_alias, aligned(4)));

/* Two blocks' scales and what is to be multiplied by the sums of x: their minima, of q5_0 the scales again (times -16: see row_of_32). */
INLINE f32x4 scales_of_2(int format, const uint8_t *first, const uint8_t *second) {
  uint32_t words[2] = {word_at(first), word_at(second)};
  if (format == FORMAT_Q5_0) for (int i = 0; i < 2; i++) words[i] = (words[i] & 0xffff) * 0x10001;
#if defined(__F16C__) && !defined(__clang__)
  return (f32x4)__builtin_ia32_vcvtph2ps((s16x8)(s64x2){(long long)((uint64_t)words[1] << 32 | words[0])});
#else
  return (f32x4){from_f16(words[0] & 0xffff), from_f16(words[0] >> 16), from_f16(words[1] & 0xffff), from_f16(words[1] >> 16)};
#endif
}

typedef struct { vx s[ROWS][2]; f32x4 rest[ROWS]; } Sums;

/* Blocks b and b + 1 of 32 numbers of a row of the weight, as block_of_k. */
INLINE void blocks_of_32(int format, int rows, const uint8_t *w, Integers x, int64_t b, Sums *to) {
  const int64_t bytes = block_bytes(format);
  const int two = b + 1 < x.blocks;
  const f32x4 scales = scales_of_2(format, w, two ? w + bytes : w);
  f32x4 both[ROWS];
  EACH_ROW_OF_X (int r = 0; r < rows; r++) {
    const float *of = x.scales + 2 * (r * x.blocks + b);
    both[r] = scales * (two ? (f32x4)*(const f32x4_u *)of : (f32x4){of[0], of[1], 0, 0});
    to->rest[r] += both[r];
  }
  _Pragma("GCC unroll 2") for (int k = 0; k < 2; k++) {
    if (k > 0 && !two) break;
    vb codes[PIECES];
    EACH_PIECE (int i = 0; i < PIECES; i++) codes[i] = codes_of(format, w + k * bytes, 0, i);
    EACH_ROW_OF_X (int r = 0; r < rows; r++) {
      const int8_t *at = x.codes + 64 * (r * x.blocks + b + k);
      vn sum = {0};
      EACH_PIECE (int i = 0; i < PIECES; i++) sum = add_scaled(sum, codes[i], at + VB * i, scale_one());
      sum = sum << 8;
      EACH_PIECE (int i = 0; i < PIECES; i++) sum = add_scaled(sum, codes[i], at + 32 + VB * i, scale_one());
      to->s[r][k] = fma_x(float_x(sum), splat_x(both[r][2 * k]), to->s[r][k]);
    }
  }
}

/* As rows_of_k. */
INLINE void rows_of_32(int format, int count, int rows, const uint8_t *w, Integers x, float *out, int64_t ldo) {
  Sums sums[TOGETHER];
  for (int j = 0; j < count; j++) sums[j] = (Sums){{{{0}}}};
  for (int64_t b = 0; b < x.blocks; b += 2)
    for (int j = 0; j < count; j++) blocks_of_32(format, rows, w + (j * x.blocks + b) * block_bytes(format), x, b, &sums[j]);
  for (int j = 0; j < count; j++)
    for (int r = 0; r < rows; r++) {
      const Sums *of = &sums[j];
      out[j + r * ldo] = sum_x(of->s[r][0] + of->s[r][1]) + (of->rest[r][1] + of->rest[r][3]) * (format == FORMAT_Q5_0 ? -16 : 1);
    }
}

INLINE void rows_of(int format, int count, int rows, const uint8_t *w, Integers x, float *out, int64_t ldo) {
  if (is_k(format)) rows_of_k(format, count, rows, w, x, out, ldo); else rows_of_32(format, count, rows, w, x, out, ldo);
}

INLINE void every_row(int format, const Cmd *c, int64_t r0, int64_t r1) {
  const int64_t M = c->p[0], N = c->p[1], K = c->p[2], U = block_elements(format), blocks = K / U, end = min64(r1 * TILE, N);
  const int64_t scales = is_k(format) ? blocks : 2 * blocks, bytes = blocks * block_bytes(format);
  const uint8_t *weight = (const uint8_t *)c->b[3];
  int64_t n = r0 * TILE;
  if (M == 1 && K * 2 >= LONG_ROW) {
    const Integers x = {(const int8_t *)c->b[0], (const float *)c->b[1], (const int32_t *)c->b[2], blocks};
    for (; n + TOGETHER <= end; n += TOGETHER) rows_of(format, TOGETHER, 1, weight + n * bytes, x, (float *)c->b[4] + n, N);
  }
  const int64_t strip = rows_in_cache(2 * K, ROWS);
  for (; n < end; n = min64(n + TILE, end))
    for (int64_t from = 0; from < M; from += strip)
      for (int64_t j = n; j < min64(n + TILE, end); j++)
        for (int64_t m = from, last = min64(from + strip, M); m < last;) {
          const Integers x = {(const int8_t *)c->b[0] + m * 2 * K, (const float *)c->b[1] + m * scales, (const int32_t *)c->b[2] + m * 16 * blocks, blocks};
          float *y = (float *)c->b[4] + m * N + j;
          if (last - m >= ROWS) { rows_of(format, 1, ROWS, weight + j * bytes, x, y, N); m += ROWS; }
          else { rows_of(format, 1, 1, weight + j * bytes, x, y, N); m++; }
        }
}

/* b = [x's codes, x's scales, x's sums, the weight's blocks, y [M, N]]; params: M, N, K, format. */
void k_stored_linear(const Cmd *c, int64_t r0, int64_t r1, int tid) {
  (void)tid;
  switch (c->p[3]) {
    case FORMAT_Q4_1: every_row(FORMAT_Q4_1, c, r0, r1); break;
    case FORMAT_Q5_0: every_row(FORMAT_Q5_0, c, r0, r1); break;
    case FORMAT_Q5_1: every_row(FORMAT_Q5_1, c, r0, r1); break;
    case FORMAT_Q4_K: every_row(FORMAT_Q4_K, c, r0, r1); break;
    case FORMAT_Q5_K: every_row(FORMAT_Q5_K, c, r0, r1); break;
    default: every_row(FORMAT_Q6_K, c, r0, r1);
  }
}
