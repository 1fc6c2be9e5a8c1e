/*
 * The matrix product's inner loops: MR x NR accumulators in registers over a packed panel of B, at full width and at half
 * width (for the last columns), and the packing of panels. Used by gemm.c, attention.c and conv.c. Shapes: 6 x 16 with
 * AVX2, 14 x 32 with AVX-512, 6 x 16 with 32 registers of four lanes.
 */
#ifndef NABLA_MICROKERNEL_H
#define NABLA_MICROKERNEL_H
#include "runtime.h"
#define R4_(X) X(0) X(1) X(2) X(3)
#define R6_(X) R4_(X) X(4) X(5)
#define R8_(X) R6_(X) X(6) X(7)
#define R14_(X) R8_(X) X(8) X(9) X(10) X(11) X(12) X(13)
#if W == 16
#define MR 14
#define NV 2
#define ALL_ROWS(X) R14_(X)
#elif W == 8
#define MR 6
#define NV 2
#define ALL_ROWS(X) R6_(X)
#else
#define MR 6
#define NV 4
#define ALL_ROWS(X) R6_(X)
#endif
#define NR (NV * W)
#define HALF (NR / 2)

/* What a step of k multiplies; gemm_bf16.c has pairs in place of floats. */
#define SPLAT splat
#define MULADD fma_
#define ROW_AT(A, n) ((A) + (n))
#define EACH_ROW ALL_ROWS
#define COLS NV
#define NAME(x) x##_full
#include "microkernel.inc"
#if NV == 4
#define COLS 2
#else
#define COLS 1
#endif
#define NAME(x) x##_half
#include "microkernel.inc"
#undef EACH_ROW

/* The last rows of an operand: with MR of 14, most of a tile could be of no use. */
#define EACH_ROW R4_
#define SHORT
#define COLS NV
#define NAME(x) x##_4
#include "microkernel.inc"
#undef EACH_ROW
#if MR > 8
#define EACH_ROW R8_
#define SHORT
#define COLS NV
#define NAME(x) x##_8
#include "microkernel.inc"
#undef EACH_ROW
#define SIZED(NAME_, ...) (mr > 8 ? NAME_##_full(__VA_ARGS__) : mr > 4 ? NAME_##_8(__VA_ARGS__) : NAME_##_4(__VA_ARGS__))
#else
#define SIZED(NAME_, ...) (mr > 4 ? NAME_##_full(__VA_ARGS__) : NAME_##_4(__VA_ARGS__))
#endif
/* Rows that a product of mr rows writes. */
INLINE int64_t rows_written(int64_t mr, int64_t nr) { return nr <= HALF ? MR : mr <= 4 ? 4 : MR > 8 && mr <= 8 ? 8 : MR; }

INLINE void uk_panel(int64_t kc, const float *A, int64_t as, int64_t mr, const float *B, int64_t bs, float *T, int64_t ldt, int64_t nr, int acc) {
  if (nr > HALF) SIZED(uk_panel, kc, A, as, B, bs, T, ldt, acc); else uk_panel_half(kc, A, as, B, bs, T, ldt, acc);
}
INLINE void uk_rows(int64_t kc, const float *A, int64_t lda, int64_t mr, const float *B, float *T, int64_t ldt, int64_t nr, int acc) {
  if (nr > HALF) SIZED(uk_rows, kc, A, lda, mr, B, T, ldt, acc); else uk_rows_half(kc, A, lda, mr, B, T, ldt, acc);
}
INLINE void uk_segments(int64_t ns, int64_t kc, int64_t ss, const float *const *rows, const float *B, float *T, int64_t ldt, int64_t nr, int acc) {
  if (nr > HALF) uk_segments_full(ns, kc, ss, rows, B, T, ldt, acc); else uk_segments_half(ns, kc, ss, rows, B, T, ldt, acc);
}
INLINE void uk_outer(int64_t ny, int64_t nx, const float *A, int64_t ax, int64_t ay, const float *B, float *T, int64_t ldt, int64_t nr, int acc) {
  if (nr > HALF) uk_outer_full(ny, nx, A, ax, ay, B, T, ldt, acc); else uk_outer_half(ny, nx, A, ax, ay, B, T, ldt, acc);
}

/* A tile of mr rows and nr columns from one place to another. */
INLINE void copy_tile(const float *from, int64_t lf, float *to, int64_t lt, int64_t mr, int64_t nr) {
  for (int64_t r = 0; r < mr; r++) {
    if (nr == NR) for (int v = 0; v < NV; v++) STORE(to + r * lt + v * W, LOAD(from + r * lf + v * W));
    else for (int64_t n = 0; n < nr; n++) to[r * lt + n] = from[r * lf + n];
  }
}

/* Rows whose distance is a multiple of 2 KiB share a few cache sets: with many rows at once they evict one another. */
INLINE int rows_collide(int64_t lda) { return MR > 8 && lda * 4 % 2048 == 0; }

/* Transposition of a square block of floats (8 x 8, or 4 x 4 with four lanes): d[j * dd + i] = s[i * ld + j]. */
#if W >= 8
#define TB 8
typedef float v8 __attribute__((vector_size(32), may_alias));
typedef float v8_u __attribute__((vector_size(32), may_alias, aligned(4)));
typedef int32_t v8i __attribute__((vector_size(32)));
#if defined(__clang__)
#define SHUFFLE8(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE8(a, b, ...) __builtin_shuffle(a, b, (v8i){__VA_ARGS__})
#endif
INLINE void transpose_block(const float *s, int64_t ld, float *d, int64_t dd) {
  v8 r[8], t[8];
  for (int i = 0; i < 8; i++) r[i] = (v8) * (const v8_u *)(s + i * ld);
  for (int i = 0; i < 8; i += 2) {
    t[i] = SHUFFLE8(r[i], r[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    t[i + 1] = SHUFFLE8(r[i], r[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int i = 0; i < 8; i += 4) {
    r[i] = SHUFFLE8(t[i], t[i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
    r[i + 1] = SHUFFLE8(t[i], t[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    r[i + 2] = SHUFFLE8(t[i + 1], t[i + 3], 0, 1, 8, 9, 4, 5, 12, 13);
    r[i + 3] = SHUFFLE8(t[i + 1], t[i + 3], 2, 3, 10, 11, 6, 7, 14, 15);
  }
  for (int i = 0; i < 4; i++) {
    *(v8_u *)(d + i * dd) = (v8_u)SHUFFLE8(r[i], r[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    *(v8_u *)(d + (i + 4) * dd) = (v8_u)SHUFFLE8(r[i], r[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}
#else
#define TB 4
INLINE void transpose_block(const float *s, int64_t ld, float *d, int64_t dd) {
  vf r[4];
  for (int i = 0; i < 4; i++) r[i] = LOAD(s + i * ld);
  for (int j = 0; j < 4; j++) STORE(d + j * dd, ((vf){r[0][j], r[1][j], r[2][j], r[3][j]}));
}
#endif

/* One panel of B, columns 0..nr of kc rows from B[k * sk + n * sn], to d[k * NR + n]; missing columns are zero. */
static __attribute__((unused)) void pack_panel(const float *B, int64_t sk, int64_t sn, int64_t kc, int64_t nr, float *d) {
  if (sn == 1 && nr == NR) {
    for (int64_t k = 0; k < kc; k++) for (int v = 0; v < NV; v++) STORE(d + k * NR + v * W, LOAD(B + k * sk + v * W));
    return;
  }
  if (sk == 1 && nr == NR) {
    int64_t k = 0;
    for (; k + TB <= kc; k += TB) for (int64_t n = 0; n < NR; n += TB) transpose_block(B + n * sn + k, sn, d + k * NR + n, NR);
    for (; k < kc; k++) for (int64_t n = 0; n < NR; n++) d[k * NR + n] = B[n * sn + k];
    return;
  }
  for (int64_t k = 0; k < kc; k++) {
    for (int64_t n = 0; n < nr; n++) d[k * NR + n] = B[k * sk + n * sn];
    for (int64_t n = nr; n < NR; n++) d[k * NR + n] = 0;
  }
}
/* All panels of a K x N operand, one after another. */
INLINE void pack_panels(const float *B, int64_t sk, int64_t sn, int64_t K, int64_t N, float *d) {
  for (int64_t j = 0; j < N; j += NR) pack_panel(B + j * sn, sk, sn, K, min64(NR, N - j), d + j * K);
}

/* The bits of floats rounded to bfloat16 (nearest, ties to even; NaN stays NaN), in the upper halves. */
INLINE vu rounded_bf16(vf x) {
  const vu u = (vu)x, up = u + 0x7fff + ((u >> 16) & 1), quiet = u | 0x400000, is_number = (vu)(x == x);
  return ((is_number & up) | (~is_number & quiet)) & 0xffff0000;
}
/* n contiguous elements of a 16-bit type to floats. */
static __attribute__((unused)) void widen(const uint16_t *s, int64_t n, int dtype, float *d) {
  int64_t i = 0;
  if (dtype == BF16) {
    for (; i + W <= n; i += W) STORE(d + i, load_bf16(s + i));
    for (; i < n; i++) d[i] = from_bf16(s[i]);
    return;
  }
  for (; i + W <= n; i += W) STORE(d + i, load_f16(s + i));
  for (; i < n; i++) d[i] = from_f16(s[i]);
}
/* n contiguous elements of any type but F32. */
static __attribute__((unused)) void read_floats(const char *s, int64_t n, int dtype, float *d) {
  if (dtype != BF16_OF_F32) { widen((const uint16_t *)s, n, dtype, d); return; }
  const float *x = (const float *)s;
  int64_t i = 0;
  for (; i + W <= n; i += W) STORE(d + i, (vf)rounded_bf16(LOAD(x + i)));
  for (; i < n; i++) d[i] = from_bf16(to_bf16(x[i]));
}
INLINE float element(const char *p, int64_t i, int dtype) {
  if (dtype == BF16_OF_F32) return from_bf16(to_bf16(((const float *)p)[i]));
  return dtype == F32 ? ((const float *)p)[i] : dtype == BF16 ? from_bf16(((const uint16_t *)p)[i]) : from_f16(((const uint16_t *)p)[i]);
}
INLINE int64_t dtype_size(int dtype) { return dtype == F64 ? 8 : dtype == F16 || dtype == BF16 ? 2 : 4; }
#endif
