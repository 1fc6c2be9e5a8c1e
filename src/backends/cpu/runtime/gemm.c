/*
 * Matrix products: pack_b, gemm, gemm_skinny, gemm_small, gemm_f64, gemm_i32. C[M, N] = sum over k of A[M, k] B[k, N], for
 * up to four batch axes, C contiguous. B is packed once for all threads, one phase earlier; A is read where it lies when
 * its k is contiguous. Blocks are chosen by planContract (contract.ts), which writes the parameters read here.
 * The order of a sum depends on the shape alone: K in blocks of kb, each from its first element to its last.
 */
#include "gemm.h"

/* ---- pack_b: b = [B, packed]; rows = tiles ------------------------------------------------------------------------- */

/* A tile is 64 whole rows where n is contiguous (few long streams), else four panels of a block of K. */
static void pack_tile(const Cmd *c, int64_t tile, int tid) {
  const int64_t *p = c->p, K = p[PB_K], N = p[PB_N], sk = p[PB_SK], sn = p[PB_SN], kb = p[PB_KB], panels = ceil_div(N, NR);
  const int dtype = (int)p[PB_DTYPE];
  const int64_t batch = tile / p[PB_TILES], per = sn == 1 ? ceil_div(kb, ROWS_A_TILE) : ceil_div(panels, PANELS_A_TILE);
  tile %= p[PB_TILES];
  const int64_t k0 = tile / per * kb, kc = min64(kb, K - k0), part = tile % per;
  const int64_t size = dtype_size(dtype);
  const char *src = c->b[0] + (batch_offsets(p + PB_BATCH, p[PB_DIMS], batch).b + k0 * sk) * size;
  float *d = (float *)c->b[1] + batch * K * panels * NR + k0 * panels * NR, *wide = (float *)c->run->scratch[tid];
  const float *B = (const float *)src;
  if (sn == 1) {
    const int64_t end = min64((part + 1) * ROWS_A_TILE, kc);
    for (int64_t k = part * ROWS_A_TILE; k < end; k += 8) {
      const int64_t rows = min64(8, end - k);
      const float *from = B + k * sk;
      int64_t ld = sk;
      if (dtype != F32) {
        for (int64_t r = 0; r < rows; r++) read_floats(src + (k + r) * sk * size, N, dtype, wide + r * N);
        from = wide;
        ld = N;
      }
      for (int64_t q = 0; q < panels; q++) pack_panel(from + q * NR, ld, 1, rows, min64(NR, N - q * NR), d + q * kc * NR + k * NR);
    }
    return;
  }
  for (int64_t q = part * PANELS_A_TILE; q < min64((part + 1) * PANELS_A_TILE, panels); q++) {
    const int64_t n0 = q * NR, nr = min64(NR, N - n0);
    if (dtype == F32) { pack_panel(B + n0 * sn, sk, sn, kc, nr, d + q * kc * NR); continue; }
    for (int64_t n = 0; n < nr; n++) {
      if (sk == 1) read_floats(src + (n0 + n) * sn * size, kc, dtype, wide + n * kc);
      else for (int64_t k = 0; k < kc; k++) wide[n * kc + k] = element(src, k * sk + (n0 + n) * sn, dtype);
    }
    pack_panel(wide, 1, kc, kc, nr, d + q * kc * NR);
  }
}
void k_pack_b(const Cmd *c, int64_t r0, int64_t r1, int tid) { for (int64_t t = r0; t < r1; t++) pack_tile(c, t, tid); }

/* ---- gemm: b = [A, packed or B, C unless an epilogue stores, row sums where asked]; rows = tiles ------------------- */

/* A strip of A with m contiguous (A[k * ld + m], mc x kc) to panels of MR, row sums into s where asked. */
static void pack_transposed(const float *A, int64_t ld, int64_t mc, int64_t kc, float *d, float *s) {
  const int64_t full = mc / MR * MR;
  for (int64_t k0 = 0; k0 < kc; k0 += 16) { /* 16 rows at a time: the next 16 are on their way meanwhile */
    const int64_t kb = min64(16, kc - k0);
    const float *a = A + k0 * ld;
    if (k0 + 16 < kc) for (int64_t k = 0; k < min64(16, kc - k0 - 16); k++) for (int64_t m = 0; m < mc; m += 16) __builtin_prefetch(a + (k + 16) * ld + m);
    for (int64_t m = 0; m < full; m += MR) {
      float *q = d + m * kc + k0 * MR;
      int64_t k = 0;
#if MR <= W
      /* wide copies overlap; the next row mends the tail, and the strip's last row is copied exactly */
      for (; k < kb && k0 + k + 1 < kc && m + W <= mc; k++) STORE(q + k * MR, LOAD(a + k * ld + m));
#elif W == 4
      for (; k < kb; k++) {
        STORE(q + k * MR, LOAD(a + k * ld + m));
        q[k * MR + 4] = a[k * ld + m + 4];
        q[k * MR + 5] = a[k * ld + m + 5];
      }
#endif
      for (; k < kb; k++) memcpy(q + k * MR, a + k * ld + m, MR * 4);
    }
    if (full < mc) {
      float *q = d + full * kc + k0 * MR;
      for (int64_t k = 0; k < kb; k++) for (int64_t i = 0; i < MR; i++) q[k * MR + i] = full + i < mc ? a[k * ld + full + i] : 0;
    }
    if (s) {
      int64_t m = 0;
      for (; m + W <= mc; m += W) {
        vf t = LOAD(s + m);
        for (int64_t k = 0; k < kb; k++) t += LOAD(a + k * ld + m);
        STORE(s + m, t);
      }
      for (; m < mc; m++) for (int64_t k = 0; k < kb; k++) s[m] += a[k * ld + m];
    }
  }
}
/* Any other strip to rows of floats. */
static void copy_rows(const char *A, int64_t sm, int64_t sk, int dtype, int64_t mc, int64_t kc, float *d, int64_t ld) {
  for (int64_t i = 0; i < mc; i++) {
    float *q = d + i * ld;
    if (sk == 1 && dtype == F32) memcpy(q, (const float *)A + i * sm, kc * 4);
    else if (sk == 1) widen((const uint16_t *)A + i * sm, kc, dtype, q);
    else for (int64_t k = 0; k < kc; k++) q[k] = element(A, i * sm + k * sk, dtype);
  }
}
static float row_sum(const float *a, int64_t n) {
  vf t[4] = {{0}};
  int64_t k = 0;
  for (; k + 4 * W <= n; k += 4 * W) for (int v = 0; v < 4; v++) t[v] += LOAD(a + k + v * W);
  for (; k + W <= n; k += W) t[0] += LOAD(a + k);
  float s = hsum((t[0] + t[1]) + (t[2] + t[3]));
  for (; k < n; k++) s += a[k];
  return s;
}

/*
 * Whether a transposed A (rows of M, `ld` apart) is read where it lies. A strip of 14 rows takes a whole line of the cache,
 * so copying it gains nothing; one of 6 is worth copying where many panels of B read it, or where lines evict one another.
 */
INLINE int reads_in_place(int64_t ld, int64_t columns) { return MR > 8 || (columns <= 4 * NR && ld % W == 0 && ld * 4 % 2048 != 0); }

/*
 * Rows [i0, i1) x columns [j0, j1) of one batch; `first_row` is that batch's row 0 among all rows of C.
 * B is in panels, or (B_IN_PLACE: A is transposed, N whole panels) as it lies.
 */
static void gemm_block(const Cmd *c, const char *A, const float *packed, int64_t first_row, int64_t i0, int64_t i1, int64_t j0, int64_t j1, float *room) {
  const int64_t *p = c->p, N = p[G_N], K = p[G_K], am = p[G_AM], ak = p[G_AK], kb = p[G_KB], panels = ceil_div(N, NR);
  const int in_place = (p[G_FLAGS] & B_IN_PLACE) != 0;
  const int64_t bs = in_place ? p[G_BK] : NR;
  const int dtype = (int)p[G_DTYPE], add_to = (p[G_FLAGS] & ACCUMULATE) != 0, stream = (p[G_FLAGS] & STREAM_C) != 0;
  const int transposed = am == 1 && ak != 1 && dtype == F32, copied = !transposed && (ak != 1 || dtype != F32 || rows_collide(am));
  const int64_t mc = i1 - i0, strips = ceil_div(mc, MR), ldr = kb + 16;
  const EpilogueFn epilogue = c->epi ? (EpilogueFn)(void *)c->epi->fn : 0;
  float *C = epilogue ? 0 : (float *)c->b[2] + first_row * N;
  float *sums = (p[G_FLAGS] & ROW_SUMS) && j0 == 0 ? (float *)c->b[epilogue ? 2 : 3] + first_row + i0 : 0;
  float *a_room = room, *partial = room + (transposed || copied ? strips * MR * ldr : 0);
  const int keep_partial = epilogue && K > kb, packed_a = transposed && (sums || !reads_in_place(ak, j1 - j0));
  float tile[MR * NR] __attribute__((aligned(64)));
  if (sums) memset(sums, 0, mc * 4);
  int64_t k0 = 0;
  do { /* once even where K is 0 */
    const int64_t kc = min64(kb, K - k0);
    const int first = k0 == 0, last = k0 + kc == K;
    const float *rows = (const float *)A + i0 * am + k0, *at = (const float *)A + k0 * ak + i0;
    int64_t lda = am;
    if (transposed) { /* in place, all but the last strip, of which a micro-kernel could read rows that do not exist */
      const int64_t from = packed_a ? 0 : mc / MR * MR;
      pack_transposed(at + from, ak, mc - from, kc, a_room, sums);
    } else if (copied) {
      copy_rows(A + (i0 * am + k0 * ak) * dtype_size(dtype), am, ak, dtype, mc, kc, a_room, ldr);
      rows = a_room;
      lda = ldr;
    }
    if (sums && !transposed) for (int64_t i = 0; i < mc; i++) sums[i] += row_sum(rows + i * lda, kc);
    const int64_t slice = ceil_div(kc * NR / 16, strips) * 16; /* the next panel of B comes to L2 a slice a tile */
    for (int64_t j = j0; j < j1; j += NR) {
      const float *B = in_place ? packed + k0 * bs + j : packed + k0 * panels * NR + j * kc, *next = B + kc * NR;
      const int64_t nr = min64(NR, j1 - j);
      if (j + NR >= j1) next = packed + (last ? 0 : (k0 + kc) * panels * NR) + j0 * min64(kb, last ? kc : K - k0 - kc);
      for (int64_t i = i0, s = 0; i < i1; i += MR, s++, next += slice) {
        const int64_t mr = min64(MR, i1 - i), exact = rows_written(mr, nr) == mr;
        float *T = keep_partial ? partial + ((j - j0) / NR * strips + s) * MR * NR : tile, *to = C + i * N + j;
        int64_t ldt = NR;
        /* straight into C, but not from small tiles, which would wait for its lines */
        const int direct = MR > 8 && C && nr == NR && exact && !stream, add = add_to || !first;
        const int acc = add && (direct || keep_partial);
        if (direct) {
          T = to;
          ldt = N;
        }
        if (C && !stream) for (int64_t r = 0; r < mr; r++) for (int64_t n = 0; n < nr; n += 16) __builtin_prefetch(to + r * N + n, 1, 3);
        if (!in_place) for (int64_t l = 0; l < slice; l += 16) __builtin_prefetch(next + l, 0, 2);
        if (!transposed) uk_rows(kc, rows + (i - i0) * lda, lda, mr, B, T, ldt, nr, acc);
        else if (packed_a || mr < MR) uk_panel(kc, a_room + (packed_a ? s * MR * kc : 0), MR, mr, B, bs, T, ldt, nr, acc);
        else uk_panel(kc, at + i - i0, ak, mr, B, bs, T, ldt, nr, acc);
        if (epilogue) { if (last) epilogue(c->epi, T, NR, first_row + i, j, mr, nr); }
        else if (stream) stream_tile(T, to, N, mr, nr);
        else if (!direct) store_tile(T, to, N, mr, nr, add);
      }
    }
    k0 += kb;
  } while (k0 < K);
  if (stream) STREAM_FENCE();
}

void k_gemm(const Cmd *c, int64_t r0, int64_t r1, int tid) {
  const int64_t *p = c->p, M = p[G_M], N = p[G_N], mc = p[G_MC], nc = p[G_NC];
  const int64_t per = ceil_div(M, mc) * ceil_div(N, nc);
  for (int64_t t = r0; t < r1; t++) {
    const Corner corner = corner_of(p, t % per);
    const int64_t batch = t / per, i0 = corner.i, j0 = corner.j, i1 = min64(M, i0 + mc);
    const Batch o = batch_offsets(p + G_BATCH, p[G_DIMS], batch);
    gemm_block(c, c->b[0] + o.a * dtype_size((int)p[G_DTYPE]), (const float *)c->b[1] + o.b, batch * M, i0, i1, j0, min64(N, j0 + nc), (float *)c->run->scratch[tid]);
    if (c->post) c->post->fn(c->post, batch * M + i0, batch * M + i1, tid);
  }
}

/* ---- gemm_small: many small products; B is packed inside the tile; a row is a batch ------------------------------- */
void k_gemm_small(const Cmd *c, int64_t r0, int64_t r1, int tid) {
  const int64_t *p = c->p, M = p[G_M], N = p[G_N], K = p[G_K], kb = p[G_KB], bk = p[G_BK], bn = p[G_BN], panels = ceil_div(N, NR);
  const int dtype = (int)p[G_BDTYPE];
  float *packed = (float *)c->run->scratch[tid], *wide = packed + round_up(K, 16) * panels * NR;
  float *room = wide + (dtype == F32 ? 0 : round_up(K * N, 16));
  for (int64_t t = r0; t < r1; t++) {
    const Batch o = batch_offsets(p + G_BATCH, p[G_DIMS], t);
    const char *B = c->b[1] + o.b * dtype_size(dtype);
    int64_t sk = bk, sn = bn;
    if (dtype != F32) { /* columns first, as the transposing copy wants them */
      for (int64_t n = 0; n < N; n++) {
        if (bk == 1) widen((const uint16_t *)B + n * bn, K, dtype, wide + n * K);
        else for (int64_t k = 0; k < K; k++) wide[n * K + k] = element(B, k * bk + n * bn, dtype);
      }
      B = (const char *)wide;
      sk = 1;
      sn = K;
    }
    for (int64_t k0 = 0; k0 < K; k0 += kb) pack_panels((const float *)B + k0 * sk, sk, sn, min64(kb, K - k0), N, packed + k0 * panels * NR);
    gemm_block(c, c->b[0] + o.a * dtype_size((int)p[G_DTYPE]), packed, t * M, 0, M, 0, N, room);
    if (c->post) c->post->fn(c->post, t * M, t * M + M, tid);
  }
}

/* ---- gemm_skinny: at most 8 rows, B unpacked; a row of the command is a block of `grain` columns of one batch ------ */
enum { SKINNY_ROWS = 8, SKINNY_COLS = 64 };

/*
 * One row of A by one column of B that is contiguous in k: all there is to do is to read B once. With vectors of 512 bits memory was
 * read at 27 of 35 GB/s, with 256 bits at all of them (two Zen 4 cores, bfloat16), so that these are taken where there are wider ones.
 */
#if W == 16
enum { SW = 8 };
typedef float vs __attribute__((vector_size(32), may_alias));
typedef float vs_u __attribute__((vector_size(32), may_alias, aligned(4)));
typedef int32_t vsi __attribute__((vector_size(32), may_alias));
typedef uint16_t vsh __attribute__((vector_size(16), may_alias));
typedef uint16_t vsh_u __attribute__((vector_size(16), may_alias, aligned(2)));
typedef short s16x8 __attribute__((vector_size(16)));
INLINE vs load_s(const float *p) { return (vs)*(const vs_u *)p; }
#if defined(__clang__)
INLINE vs fma_s(vs a, vs b, vs c) { return __builtin_elementwise_fma(a, b, c); }
INLINE vs load_bf16_s(const uint16_t *p) { return (vs)(__builtin_convertvector((vsh)*(const vsh_u *)p, vsi) << 16); }
#else
INLINE vs fma_s(vs a, vs b, vs c) { return (vs)__builtin_ia32_vfmaddps256(a, b, c); }
INLINE vs load_bf16_s(const uint16_t *p) { return (vs)((vsi)__builtin_ia32_pmovzxwd256((s16x8)*(const vsh_u *)p) << 16); }
#endif
INLINE vs load_f16_s(const uint16_t *p) { return (vs)__builtin_ia32_vcvtph2ps256((s16x8)*(const vsh_u *)p); }
INLINE float hsum_s(vs a) { return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7])); }
#else
enum { SW = W };
typedef vf vs;
#define load_s LOAD
#define load_bf16_s load_bf16
#define load_f16_s load_f16
#define fma_s fma_
#define hsum_s hsum
#endif
/* The rest behind the last whole vector is the caller's. */
#define STREAM_DOT(NAME, T_, LOADB)                                                          \
  INLINE float NAME(int64_t K, const float *a, const T_ *b) {                                \
    const int64_t KW = K / W * W;                                                            \
    vs s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};                                               \
    int64_t k = 0;                                                                           \
    for (; k + 4 * SW <= KW; k += 4 * SW) {                                                  \
      s0 = fma_s(load_s(a + k), LOADB(b + k), s0);                                           \
      s1 = fma_s(load_s(a + k + SW), LOADB(b + k + SW), s1);                                 \
      s2 = fma_s(load_s(a + k + 2 * SW), LOADB(b + k + 2 * SW), s2);                         \
      s3 = fma_s(load_s(a + k + 3 * SW), LOADB(b + k + 3 * SW), s3);                         \
    }                                                                                        \
    for (; k < KW; k += SW) s0 = fma_s(load_s(a + k), LOADB(b + k), s0);                     \
    return hsum_s((s0 + s1) + (s2 + s3));                                                    \
  }
STREAM_DOT(stream_f32, float, load_s)
STREAM_DOT(stream_bf16, uint16_t, load_bf16_s)
STREAM_DOT(stream_f16, uint16_t, load_f16_s)

/*
 * A row of A that fills half of the first cache or more is gone from it by the time the next column wants it. Eight columns then share
 * each load of it: their eight streams are read a tenth slower than one, but one beside such a row at half of the speed or less
 * (K = 14336 in bfloat16: 20 of 35 GB/s, by eight 32; float32 30 and 34. Two or four columns gain little).
 */
#define STREAM_TOGETHER(NAME, T_, LOADB, LOAD1)                                                                     \
  static void NAME(int64_t K, const float *a, const T_ *b, int64_t sn, float *y) {                                  \
    const int64_t KW = K / W * W;                                                                                   \
    vf s[TOGETHER] = {{0}};                                                                                         \
    for (int64_t k = 0; k < KW; k += W) {                                                                           \
      const vf x = LOAD(a + k);                                                                                     \
      _Pragma("GCC unroll 8") for (int j = 0; j < TOGETHER; j++) s[j] = fma_(x, LOADB(b + j * sn + k), s[j]);       \
    }                                                                                                               \
    _Pragma("GCC unroll 8") for (int j = 0; j < TOGETHER; j++) {                                                    \
      float t = hsum(s[j]);                                                                                         \
      for (int64_t k = KW; k < K; k++) t += a[k] * LOAD1(b[j * sn + k]);                                            \
      y[j] = t;                                                                                                     \
    }                                                                                                               \
  }
#define SAME(x) (x)
STREAM_TOGETHER(together_f32, float, LOAD, SAME)
STREAM_TOGETHER(together_bf16, uint16_t, load_bf16, from_bf16)
STREAM_TOGETHER(together_f16, uint16_t, load_f16, from_f16)

/* Columns of B contiguous in k: dot products; four rows of A by two columns of B share their loads. */
#define SKINNY_DOT(NAME, ONE, EIGHT, T_, LOADB, LOAD1)                                                                       \
  static void NAME(int64_t M, int64_t K, const float *A, int64_t lda, const T_ *B, int64_t sn, int64_t nn, float *T) {  \
    const int64_t KW = K / W * W;                                                                                       \
    int64_t n = 0;                                                                                                      \
    if (M == 1 && K * 4 >= LONG_ROW) for (; n + TOGETHER <= nn; n += TOGETHER) EIGHT(K, A, B + n * sn, sn, T + n);      \
    for (; n < nn; n += 4) {                                                                                            \
      const T_ *b0 = B + n * sn, *b1 = B + min64(n + 1, nn - 1) * sn, *b2 = B + min64(n + 2, nn - 1) * sn,              \
               *b3 = B + min64(n + 3, nn - 1) * sn;                                                                     \
      for (int64_t m = 0; m < M; m += 4) {                                                                              \
        const float *a0 = A + m * lda, *a1 = A + min64(m + 1, M - 1) * lda, *a2 = A + min64(m + 2, M - 1) * lda,        \
                    *a3 = A + min64(m + 3, M - 1) * lda;                                                                \
        float s[4][4];                                                                                                  \
        if (M - m == 1) {                                                                                               \
          for (int j = 0; j < min64(4, nn - n); j++) s[0][j] = ONE(K, a0, B + (n + j) * sn);                            \
        } else                                                                                                          \
          for (int h = 0; h < 4; h += 2) {                                                                              \
            const T_ *p = h ? b2 : b0, *q = h ? b3 : b1;                                                                \
            vf s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0}, u0 = {0}, u1 = {0}, u2 = {0}, u3 = {0};                          \
            for (int64_t k = 0; k < KW; k += W) {                                                                       \
              const vf x = LOADB(p + k), y = LOADB(q + k), v0 = LOAD(a0 + k), v1 = LOAD(a1 + k), v2 = LOAD(a2 + k),     \
                       v3 = LOAD(a3 + k);                                                                               \
              s0 = fma_(v0, x, s0); u0 = fma_(v0, y, u0);                                                               \
              s1 = fma_(v1, x, s1); u1 = fma_(v1, y, u1);                                                               \
              s2 = fma_(v2, x, s2); u2 = fma_(v2, y, u2);                                                               \
              s3 = fma_(v3, x, s3); u3 = fma_(v3, y, u3);                                                               \
            }                                                                                                           \
            s[0][h] = hsum(s0); s[1][h] = hsum(s1); s[2][h] = hsum(s2); s[3][h] = hsum(s3);                             \
            s[0][h + 1] = hsum(u0); s[1][h + 1] = hsum(u1); s[2][h + 1] = hsum(u2); s[3][h + 1] = hsum(u3);             \
          }                                                                                                             \
        for (int64_t r = 0; r < min64(4, M - m); r++)                                                                   \
          for (int64_t j = 0; j < min64(4, nn - n); j++) {                                                              \
            float t = s[r][j];                                                                                          \
            for (int64_t k = KW; k < K; k++) t += A[(m + r) * lda + k] * LOAD1(B[(n + j) * sn + k]);                    \
            T[(m + r) * SKINNY_COLS + n + j] = t;                                                                       \
          }                                                                                                             \
      }                                                                                                                 \
    }                                                                                                                   \
  }
SKINNY_DOT(skinny_dot_f32, stream_f32, together_f32, float, LOAD, SAME)
SKINNY_DOT(skinny_dot_bf16, stream_bf16, together_bf16, uint16_t, load_bf16, from_bf16)
SKINNY_DOT(skinny_dot_f16, stream_f16, together_f16, uint16_t, load_f16, from_f16)

/* Rows of B contiguous in n: 4 vectors of columns, every row of A broadcast. */
static void skinny_rows(int64_t M, int64_t K, const float *A, int64_t lda, const float *B, int64_t sk, int64_t nn, float *T) {
  for (int64_t m = 0; m < M; m += 4) {
    const int64_t rows = min64(4, M - m);
    const float *a[4];
    for (int64_t r = 0; r < 4; r++) a[r] = A + (m + min64(r, rows - 1)) * lda;
    int64_t n = 0;
    for (; n + 2 * W <= nn; n += 2 * W) {
      vf s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0}, u0 = {0}, u1 = {0}, u2 = {0}, u3 = {0};
      for (int64_t k = 0; k < K; k++) {
        const vf x = LOAD(B + k * sk + n), y = LOAD(B + k * sk + n + W);
        const vf v0 = splat(a[0][k]), v1 = splat(a[1][k]), v2 = splat(a[2][k]), v3 = splat(a[3][k]);
        s0 = fma_(v0, x, s0); u0 = fma_(v0, y, u0);
        s1 = fma_(v1, x, s1); u1 = fma_(v1, y, u1);
        s2 = fma_(v2, x, s2); u2 = fma_(v2, y, u2);
        s3 = fma_(v3, x, s3); u3 = fma_(v3, y, u3);
      }
      const vf s[4] = {s0, s1, s2, s3}, u[4] = {u0, u1, u2, u3};
      for (int64_t r = 0; r < rows; r++) {
        STORE(T + (m + r) * SKINNY_COLS + n, s[r]);
        STORE(T + (m + r) * SKINNY_COLS + n + W, u[r]);
      }
    }
    for (; n < nn; n++) for (int64_t r = 0; r < rows; r++) {
      float s = 0;
      for (int64_t k = 0; k < K; k++) s = __builtin_fmaf(a[r][k], B[k * sk + n], s);
      T[(m + r) * SKINNY_COLS + n] = s;
    }
  }
}
void k_gemm_skinny(const Cmd *c, int64_t r0, int64_t r1, int tid) {
  const int64_t *p = c->p, M = p[G_M], N = p[G_N], K = p[G_K], bk = p[G_BK], bn = p[G_BN], per = ceil_div(N, SKINNY_COLS);
  const int adt = (int)p[G_DTYPE], bdt = (int)p[G_BDTYPE];
  const EpilogueFn epilogue = c->epi ? (EpilogueFn)(void *)c->epi->fn : 0;
  float T[SKINNY_ROWS * SKINNY_COLS] __attribute__((aligned(64)));
  float *room = (float *)c->run->scratch[tid];
  for (int64_t t = r0; t < r1; t++) {
    const int64_t batch = t / per, n0 = t % per * SKINNY_COLS, nn = min64(SKINNY_COLS, N - n0);
    const Batch o = batch_offsets(p + G_BATCH, p[G_DIMS], batch);
    const char *B = c->b[1] + (o.b + n0 * bn) * dtype_size(bdt);
    const float *A = (const float *)c->b[0] + o.a;
    int64_t lda = p[G_AM];
    if (p[G_AK] != 1 || adt != F32) {
      copy_rows(c->b[0] + o.a * dtype_size(adt), p[G_AM], p[G_AK], adt, M, K, room, K);
      A = room;
      lda = K;
    }
    if ((p[G_FLAGS] & ROW_SUMS) && n0 == 0) {
      float *sums = (float *)c->b[epilogue ? 2 : 3] + batch * M;
      for (int64_t m = 0; m < M; m++) sums[m] = row_sum(A + m * lda, K);
    }
    if (bk == 1 && bdt == F32) skinny_dot_f32(M, K, A, lda, (const float *)B, bn, nn, T);
    else if (bk == 1 && bdt == BF16) skinny_dot_bf16(M, K, A, lda, (const uint16_t *)B, bn, nn, T);
    else if (bk == 1 && bdt == F16) skinny_dot_f16(M, K, A, lda, (const uint16_t *)B, bn, nn, T);
    else if (bn == 1 && bdt == F32) skinny_rows(M, K, A, lda, (const float *)B, bk, nn, T);
    else { /* any other: a column (or a row of columns) at a time through the scratch */
      float *wide = room + round_up(M * K, 16);
      if (bn == 1) {
        for (int64_t k = 0; k < K; k++) widen((const uint16_t *)B + k * bk, nn, bdt, wide + k * SKINNY_COLS);
        skinny_rows(M, K, A, lda, wide, SKINNY_COLS, nn, T);
      } else
        for (int64_t n = 0; n < nn; n++) {
          if (bk == 1) widen((const uint16_t *)B + n * bn, K, bdt, wide);
          else for (int64_t k = 0; k < K; k++) wide[k] = element(B, k * bk + n * bn, bdt);
          skinny_dot_f32(M, K, A, lda, wide, K, 1, T + n);
        }
    }
    if (epilogue) epilogue(c->epi, T, SKINNY_COLS, batch * M, n0, M, nn);
    else {
      float *C = (float *)c->b[2] + batch * M * N + n0;
      const int add = (p[G_FLAGS] & ACCUMULATE) != 0;
      for (int64_t m = 0; m < M; m++) for (int64_t n = 0; n < nn; n++) C[m * N + n] = T[m * SKINNY_COLS + n] + (add ? C[m * N + n] : 0);
    }
  }
}

/* ---- float64 and int32: b = [A, B, C]; a tile is mc rows x nc columns; both operands copied to blocks --------------- */
#define PLAIN_GEMM(KERNEL_NAME, T_, VEC, LANES, MULADD)                                                                  \
  typedef T_ VEC __attribute__((vector_size(LANES * sizeof(T_)), may_alias));                                            \
  void KERNEL_NAME(const Cmd *c, int64_t r0, int64_t r1, int tid) {                                                      \
    enum { NB = 2 * LANES, KB = 256 };                                                                                   \
    const int64_t *p = c->p, M = p[G_M], N = p[G_N], K = p[G_K], mc = p[G_MC], nc = p[G_NC];                              \
    const int64_t across = ceil_div(N, nc), per = ceil_div(M, mc) * across;                                              \
    T_ *a = (T_ *)c->run->scratch[tid], *b = a + round_up(mc, 4) * KB;                                                   \
    for (int64_t t = r0; t < r1; t++) {                                                                                  \
      const int64_t batch = t / per, at = t % per, i0 = at / across * mc, j0 = at % across * nc;                          \
      const int64_t rows = min64(mc, M - i0), cols = min64(nc, N - j0);                                                  \
      const Batch o = batch_offsets(p + G_BATCH, p[G_DIMS], batch);                                                      \
      const T_ *A = (const T_ *)c->b[0] + o.a + i0 * p[G_AM], *B = (const T_ *)c->b[1] + o.b + j0 * p[G_BN];             \
      T_ *C = (T_ *)c->b[2] + (batch * M + i0) * N + j0;                                                                 \
      int64_t k0 = 0;                                                                                                    \
      do {                                                                                                               \
        const int64_t kc = min64(KB, K - k0);                                                                            \
        const int add = k0 > 0 || (p[G_FLAGS] & ACCUMULATE);                                                             \
        for (int64_t i = 0; i < round_up(rows, 4); i++)                                                                  \
          for (int64_t k = 0; k < kc; k++) a[(i / 4 * kc + k) * 4 + i % 4] = i < rows ? A[i * p[G_AM] + (k0 + k) * p[G_AK]] : 0; \
        for (int64_t j = 0; j < cols; j += NB) {                                                                         \
          for (int64_t k = 0; k < kc; k++)                                                                               \
            for (int64_t n = 0; n < NB; n++) b[k * NB + n] = j + n < cols ? B[(k0 + k) * p[G_BK] + (j + n) * p[G_BN]] : 0; \
          for (int64_t i = 0; i < rows; i += 4) {                                                                        \
            const T_ *x = a + i * kc;                                                                                    \
            VEC s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0}, u0 = {0}, u1 = {0}, u2 = {0}, u3 = {0};                          \
            for (int64_t k = 0; k < kc; k++) {                                                                           \
              const VEC y = *(const VEC *)(b + k * NB), z = *(const VEC *)(b + k * NB + LANES);                          \
              MULADD(s0, x[4 * k], y); MULADD(u0, x[4 * k], z);                                                          \
              MULADD(s1, x[4 * k + 1], y); MULADD(u1, x[4 * k + 1], z);                                                  \
              MULADD(s2, x[4 * k + 2], y); MULADD(u2, x[4 * k + 2], z);                                                  \
              MULADD(s3, x[4 * k + 3], y); MULADD(u3, x[4 * k + 3], z);                                                  \
            }                                                                                                            \
            const VEC s[4] = {s0, s1, s2, s3}, u[4] = {u0, u1, u2, u3};                                                  \
            for (int64_t r = 0; r < min64(4, rows - i); r++)                                                             \
              for (int64_t n = 0; n < min64(NB, cols - j); n++) {                                                        \
                const T_ value = n < LANES ? s[r][n] : u[r][n - LANES];                                                  \
                T_ *to = C + (i + r) * N + j + n;                                                                        \
                *to = add ? *to + value : value;                                                                         \
              }                                                                                                          \
          }                                                                                                              \
        }                                                                                                                \
        k0 += KB;                                                                                                        \
      } while (k0 < K);                                                                                                  \
    }                                                                                                                    \
  }
#define MULADD_PLAIN(acc, x, y) acc += (x) * (y)
PLAIN_GEMM(k_gemm_f64, double, vd8, 8, MULADD_PLAIN)
PLAIN_GEMM(k_gemm_i32, int32_t, vi16, 16, MULADD_PLAIN)

/* The micro-kernel's shape, for the planner: MR, NR, lanes, skinny rows, skinny columns, whether there are products of bfloat16 pairs. */
EXPORT void nabla_shape(int32_t *out) {
  out[0] = MR;
  out[1] = NR;
  out[2] = W;
  out[3] = SKINNY_ROWS;
  out[4] = SKINNY_COLS;
#if W == 16 && defined(__AVX512BF16__)
  out[5] = 1;
#else
  out[5] = 0;
#endif
}
