/*
 * What the units of matrix products share: the layout of their parameters (contract.ts writes them), batch axes, and how a finished
 * tile is stored.
 */
#ifndef NABLA_GEMM_H
#define NABLA_GEMM_H
#include "microkernel.h"

/* ---- batch axes: a list of (size, aStride, bStride) at the end of the parameters ---------------------------------- */
typedef struct { int64_t a, b; } Batch;
INLINE Batch batch_offsets(const int64_t *dims, int64_t n, int64_t index) {
  Batch o = {0, 0};
  for (int64_t d = n - 1; d >= 0; d--) {
    const int64_t at = index % dims[3 * d];
    index /= dims[3 * d];
    o.a += at * dims[3 * d + 1];
    o.b += at * dims[3 * d + 2];
  }
  return o;
}

enum { PB_K, PB_N, PB_SK, PB_SN, PB_DTYPE, PB_KB, PB_TILES, PB_DIMS, PB_BATCH };
enum { ROWS_A_TILE = 64, PANELS_A_TILE = 4 };
enum { G_M, G_N, G_K, G_AM, G_AK, G_DTYPE, G_MC, G_NC, G_KB, G_FLAGS, G_BK, G_BN, G_BDTYPE, G_DIMS, G_BATCH };
enum { ACCUMULATE = 1, ROW_SUMS = 2, B_IN_PLACE = 4, STREAM_C = 8, DOWN_FIRST = 16 };

/* A tile's first row and column of one batch. DOWN_FIRST: those of the same columns follow one another. */
typedef struct { int64_t i, j; } Corner;
INLINE Corner corner_of(const int64_t *p, int64_t at) {
  const int64_t across = ceil_div(p[G_N], p[G_NC]), down = ceil_div(p[G_M], p[G_MC]);
  if (p[G_FLAGS] & DOWN_FIRST) return (Corner){at % down * p[G_MC], at / down * p[G_NC]};
  return (Corner){at / across * p[G_MC], at % across * p[G_NC]};
}

INLINE void store_tile(const float *T, float *C, int64_t ldc, int64_t mr, int64_t nr, int add) {
  if (!add) { copy_tile(T, NR, C, ldc, mr, nr); return; }
  for (int64_t r = 0; r < mr; r++) {
    if (nr == NR) for (int v = 0; v < NV; v++) STORE(C + r * ldc + v * W, LOAD(T + r * NR + v * W) + LOAD(C + r * ldc + v * W));
    else for (int64_t n = 0; n < nr; n++) C[r * ldc + n] += T[r * NR + n];
  }
}
/* A tile whose rows begin at vectors and whose columns are whole ones. */
INLINE void stream_tile(const float *T, float *C, int64_t ldc, int64_t mr, int64_t nr) {
  for (int64_t r = 0; r < mr; r++) for (int64_t n = 0; n < nr; n += W) STREAM(C + r * ldc + n, LOAD(T + r * NR + n));
}
#endif
