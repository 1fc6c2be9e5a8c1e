/*
 * Products with a weight in 4 or 8 bits, and the weight alone as floats: gemm_quantized, gemm_quantized_skinny, dequantize. A weight
 * [R, C] is elements in row-major order: NF4 (two elements a byte, the first in the upper half; a scale for each block of 64 elements; a table
 * of the two values of every byte), 8 bits with 128 for zero and a scale a row, or blocks as a GGUF file holds them (stored.h). A product makes floats of the part of the weight that it
 * reads, on the way into a panel of its own scratch: the weight never exists as floats. Parameters are planQuantized's (quantized.ts).
 */
#include "microkernel.h"
#include "stored.h"

enum { Q_M, Q_N, Q_K, Q_AM, Q_AK, Q_COLUMNS, Q_TRANSPOSED, Q_FORMAT, Q_MC, Q_NC, Q_KB };
enum { BLOCK = 64, ROWS_AT_ONCE = 96, DOT_COLUMNS = 64 };

typedef struct { const uint8_t *codes; const float *scales, *values; int64_t columns; int format; } Weight;
/* b = [..., codes, scales, values] from `at` on */
INLINE Weight weight_of(const Cmd *c, int at, int64_t columns, int64_t format) {
  return (Weight){(const uint8_t *)c->b[at], (const float *)c->b[at + 1], (const float *)c->b[at + 2], columns, (int)format};
}

static void scale_by(float *d, int64_t n, float s) {
  int64_t i = 0;
  for (; i + W <= n; i += W) STORE(d + i, LOAD(d + i) * splat(s));
  for (; i < n; i++) d[i] *= s;
}
/* Elements [start, start + n) of blocks as a GGUF file holds them. */
INLINE void blocks_to_floats(int format, const uint8_t *codes, int64_t start, int64_t n, float *d) {
  const int64_t size = block_elements(format);
  float whole[256] __attribute__((aligned(64)));
  for (int64_t at = start; at < start + n;) {
    const int64_t skipped = at % size, count = min64(size - skipped, start + n - at);
    float *to = count == size ? d : whole;
    block_to_floats(format, codes + at / size * block_bytes(format), to);
    if (to == whole) memcpy(d, whole + skipped, count * 4);
    d += count;
    at += count;
  }
}
/* Elements [start, start + n) as floats; of 8 bits they must lie in one row. */
static void to_floats(const Weight *w, int64_t start, int64_t n, float *d) {
#define STORED(format) case format: blocks_to_floats(format, w->codes, start, n, d); return;
  switch (w->format) {
    STORED(FORMAT_Q4_1) STORED(FORMAT_Q5_0) STORED(FORMAT_Q5_1) STORED(FORMAT_Q4_K) STORED(FORMAT_Q5_K) STORED(FORMAT_Q6_K)
  }
#undef STORED
  if (w->format == FORMAT_INT8) {
    typedef uint8_t vb __attribute__((vector_size(W), aligned(1), may_alias));
    const uint8_t *s = w->codes + start;
    const float scale = w->scales[start / w->columns] / 127.0f;
    int64_t i = 0;
    for (; i + W <= n; i += W) STORE(d + i, (__builtin_convertvector(__builtin_convertvector(*(const vb *)(s + i), vi), vf) - splat(128.0f)) * splat(scale));
    for (; i < n; i++) d[i] = ((float)s[i] - 128.0f) * scale;
    return;
  }
  for (int64_t end = start + n; start < end;) {
    const int64_t stop = min64(end, (start / BLOCK + 1) * BLOCK), count = stop - start;
    const uint8_t *s = w->codes + start / 2;
    float *q = d;
    int64_t left = count;
    if (start % 2) { *q++ = w->values[2 * *s++ + 1]; left--; }
    for (; left >= 2; left -= 2, q += 2) memcpy(q, w->values + 2 * *s++, 8);
    if (left) *q = w->values[2 * *s];
    scale_by(d, count, w->scales[start / BLOCK]);
    d += count;
    start = stop;
  }
}

/* Rows [k0, k0 + kc) and columns [j0, j1) of B to panels, one after another. B is the weight, or its transpose; `wide` holds floats on their way. */
static void pack_weight(const Weight *w, int transposed, int64_t k0, int64_t kc, int64_t j0, int64_t j1, float *d, float *wide) {
  if (transposed) { /* column n of B is a row of the weight */
    for (int64_t j = j0; j < j1; j += NR, d += kc * NR) {
      const int64_t nr = min64(NR, j1 - j);
      for (int64_t n = 0; n < nr; n++) to_floats(w, (j + n) * w->columns + k0, kc, wide + n * kc);
      pack_panel(wide, 1, kc, kc, nr, d);
    }
    return;
  }
  const int64_t ld = j1 - j0;
  for (int64_t k = 0; k < kc; k += 8) {
    const int64_t rows = min64(8, kc - k);
    for (int64_t r = 0; r < rows; r++) to_floats(w, (k0 + k + r) * w->columns + j0, ld, wide + r * ld);
    for (int64_t j = 0; j < ld; j += NR) pack_panel(wide + j, ld, 1, rows, min64(NR, ld - j), d + j * kc + k * NR);
  }
}

/* b = [A, codes, scales, values, C]; a row of the command is a tile of mc rows by nc columns of C. A's rows are floats. */
void k_gemm_quantized(const Cmd *c, int64_t r0, int64_t r1, int tid) {
  const int64_t *p = c->p, M = p[Q_M], N = p[Q_N], K = p[Q_K], am = p[Q_AM], ak = p[Q_AK], mc = p[Q_MC], nc = p[Q_NC], kb = p[Q_KB];
  const Weight w = weight_of(c, 1, p[Q_COLUMNS], p[Q_FORMAT]);
  const float *A = (const float *)c->b[0];
  const int64_t across = ceil_div(N, nc), ldr = kb + 16;
  const int copied = ak != 1 || rows_collide(am);
  float *panels = (float *)c->run->scratch[tid], *wide = panels + round_up(nc, NR) * kb;
  float *room = wide + max64(NR * kb, 8 * round_up(nc, NR));
  float tile[MR * NR] __attribute__((aligned(64)));
  for (int64_t t = r0; t < r1; t++) {
    const int64_t i0 = t / across * mc, i1 = min64(M, i0 + mc), j0 = t % across * nc, j1 = min64(N, j0 + nc);
    for (int64_t k0 = 0; k0 < K; k0 += kb) {
      const int64_t kc = min64(kb, K - k0);
      pack_weight(&w, (int)p[Q_TRANSPOSED], k0, kc, j0, j1, panels, wide);
      for (int64_t i = i0; i < i1; i += ROWS_AT_ONCE) {
        const int64_t end = min64(i1, i + ROWS_AT_ONCE);
        const float *rows = A + i * am + k0 * ak;
        int64_t lda = am;
        if (copied) {
          for (int64_t r = 0; r < end - i; r++) {
            if (ak == 1) memcpy(room + r * ldr, rows + r * am, kc * 4);
            else for (int64_t k = 0; k < kc; k++) room[r * ldr + k] = rows[r * am + k * ak];
          }
          rows = room;
          lda = ldr;
        }
        for (int64_t j = j0; j < j1; j += NR) {
          const float *B = panels + (j - j0) * kc;
          const int64_t nr = min64(NR, j1 - j);
          for (int64_t r = i; r < end; r += MR) {
            const int64_t mr = min64(MR, end - r);
            float *to = (float *)c->b[4] + r * N + j;
            const float *from = rows + (r - i) * lda;
            if (nr == NR && rows_written(mr, nr) == mr) { uk_rows(kc, from, lda, mr, B, to, N, nr, k0 > 0); continue; }
            uk_rows(kc, from, lda, mr, B, tile, NR, nr, 0);
            if (k0 == 0) { copy_tile(tile, NR, to, N, mr, nr); continue; }
            for (int64_t x = 0; x < mr; x++) for (int64_t n = 0; n < nr; n++) to[x * N + n] += tile[x * NR + n];
          }
        }
      }
    }
  }
}

/* Few rows, B the weight transposed: dot products with each row of the weight, which is made floats once. b and parameters as above, but a
 * row of the command is DOT_COLUMNS columns. */
void k_gemm_quantized_skinny(const Cmd *c, int64_t r0, int64_t r1, int tid) {
  const int64_t *p = c->p, M = p[Q_M], N = p[Q_N], K = p[Q_K], am = p[Q_AM], ak = p[Q_AK];
  const Weight w = weight_of(c, 1, p[Q_COLUMNS], p[Q_FORMAT]);
  const float *A = (const float *)c->b[0];
  float *wide = (float *)c->run->scratch[tid], *room = wide + round_up(K, 16), *C = (float *)c->b[4];
  if (ak != 1) {
    for (int64_t m = 0; m < M; m++) for (int64_t k = 0; k < K; k++) room[m * K + k] = A[m * am + k * ak];
  }
  for (int64_t n = r0 * DOT_COLUMNS; n < min64(N, r1 * DOT_COLUMNS); n++) {
    to_floats(&w, n * w.columns, K, wide);
    for (int64_t m = 0; m < M; m++) {
      const float *a = ak == 1 ? A + m * am : room + m * K;
      vf s = {0}, u = {0};
      int64_t k = 0;
      for (; k + 2 * W <= K; k += 2 * W) {
        s = fma_(LOAD(a + k), LOAD(wide + k), s);
        u = fma_(LOAD(a + k + W), LOAD(wide + k + W), u);
      }
      float sum = hsum(s + u);
      for (; k < K; k++) sum = __builtin_fmaf(a[k], wide[k], sum);
      C[m * N + n] = sum;
    }
  }
}

/* b = [codes, scales, values, out]; p = [elements, columns, format]; a row of the command is a row of the weight. */
void k_dequantize(const Cmd *c, int64_t r0, int64_t r1, int tid) {
  (void)tid;
  const Weight w = weight_of(c, 0, c->p[1], c->p[2]);
  for (int64_t r = r0; r < r1; r++) to_floats(&w, r * w.columns, w.columns, (float *)c->b[3] + r * w.columns);
}
