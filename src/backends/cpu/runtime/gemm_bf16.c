/*
 * Matrix products of bfloat16 with float32 sums, on processors with VDPBF16PS (avx512_bf16), which multiplies two pairs and adds
 * both to a float: pack_bf16 and gemm_bf16, the same commands as pack_b and gemm (gemm.c). A step of the micro-kernel takes two
 * elements of k; where K is odd the last pair has a zero. Operands are bfloat16, or float32 that is rounded as it is copied.
 * Elsewhere the plan is gemm's, which widens as it packs (contract.ts).
 */
#include "gemm.h"
#if W == 16 && defined(__AVX512BF16__)
#undef SPLAT
#undef MULADD
#undef ROW_AT
typedef int32_t pair_u __attribute__((may_alias, aligned(2)));
INLINE vf multiply_pairs(vf a, vf b, vf c) {
  __asm__("vdpbf16ps %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));
  return c;
}
#define SPLAT(x) (vf)splati(*(const pair_u *)&(x))
#define MULADD multiply_pairs
#define ROW_AT(A, n) (const float *)((const uint16_t *)(A) + (n))
#define EACH_ROW ALL_ROWS
#define COLS NV
#define NAME(x) x##_pairs_full
#include "microkernel.inc"
#define COLS 1
#define NAME(x) x##_pairs_half
#include "microkernel.inc"
#undef EACH_ROW
#define EACH_ROW R4_
#define SHORT
#define COLS NV
#define NAME(x) x##_pairs_4
#include "microkernel.inc"
#undef EACH_ROW
#define EACH_ROW R8_
#define SHORT
#define COLS NV
#define NAME(x) x##_pairs_8
#include "microkernel.inc"
#undef EACH_ROW

/* Sixteen elements as lower and as upper halves of pairs. */
INLINE vu lower(const char *p, int dtype) { return dtype == BF16 ? widen_((vh)(*(const vh_u *)p)) : rounded_bf16(LOAD((const float *)p)) >> 16; }
INLINE vu upper(const char *p, int dtype) { return dtype == BF16 ? widen_((vh)(*(const vh_u *)p)) << 16 : rounded_bf16(LOAD((const float *)p)); }
INLINE uint16_t bits_of(const char *p, int64_t i, int dtype) { return dtype == BF16 ? ((const uint16_t *)p)[i] : to_bf16(((const float *)p)[i]); }

#if defined(__clang__)
INLINE vh halves(vu x) { return __builtin_convertvector(x, vh); }
#else
INLINE vh halves(vu x) { return (vh)__builtin_ia32_pmovdw512_mask((vi)x, (s16w){0}, -1); }
#endif
/* n elements, `step` apart, as bfloat16, and a zero where n is odd. */
static void round_row(const char *s, int64_t n, int64_t step, int dtype, uint16_t *d) {
  int64_t i = 0;
  if (step == 1 && dtype == BF16) {
    memcpy(d, s, n * 2);
    i = n;
  } else if (step == 1) for (; i + W <= n; i += W) *(vh_u *)(d + i) = (vh_u)halves(rounded_bf16(LOAD((const float *)s + i)) >> 16);
  for (; i < n; i++) d[i] = bits_of(s, i * step, dtype);
  if (n & 1) d[n] = 0;
}

/* ---- pack_bf16: b = [B, packed]; rows = tiles, as pack_b's ---------------------------------------------------------- */

/* Rows [k, end) (k even) of n contiguous elements to pairs; panels are `per` floats apart. */
static void pack_rows(const char *B, int64_t sk, int dtype, int64_t k, int64_t end, int64_t N, float *d, int64_t per) {
  const int64_t size = dtype_size(dtype);
  for (; k < end; k += 2) {
    const char *x = B + k * sk * size, *y = x + sk * size;
    const int two = k + 1 < end;
    float *row = d + k / 2 * NR;
    int64_t n = 0;
    for (; n + W <= N; n += W) {
      vu pair = lower(x + n * size, dtype);
      if (two) pair |= upper(y + n * size, dtype);
      STORE(row + n / NR * per + n % NR, (vf)pair);
    }
    for (; n < round_up(N, NR); n++) {
      uint32_t pair = n < N ? bits_of(x, n, dtype) : 0;
      if (two && n < N) pair |= (uint32_t)bits_of(y, n, dtype) << 16;
      memcpy(row + n / NR * per + n % NR, &pair, 4);
    }
  }
}
static void pack_tile(const Cmd *c, int64_t tile, int tid) {
  const int64_t *p = c->p, K = p[PB_K], N = p[PB_N], sk = p[PB_SK], sn = p[PB_SN], kb = p[PB_KB], panels = ceil_div(N, NR);
  const int dtype = (int)p[PB_DTYPE];
  const int64_t batch = tile / p[PB_TILES], per = sn == 1 ? ceil_div(kb, ROWS_A_TILE) : ceil_div(panels, PANELS_A_TILE);
  tile %= p[PB_TILES];
  const int64_t k0 = tile / per * kb, kc = min64(kb, K - k0), pairs = (kc + 1) / 2, part = tile % per, size = dtype_size(dtype);
  const char *src = c->b[0] + (batch_offsets(p + PB_BATCH, p[PB_DIMS], batch).b + k0 * sk) * size;
  float *d = (float *)c->b[1] + batch * ((K + 1) / 2) * panels * NR + k0 / 2 * panels * NR, *room = (float *)c->run->scratch[tid];
  if (sn == 1) {
    pack_rows(src, sk, dtype, part * ROWS_A_TILE, min64((part + 1) * ROWS_A_TILE, kc), N, d, pairs * NR);
    return;
  }
  for (int64_t q = part * PANELS_A_TILE; q < min64((part + 1) * PANELS_A_TILE, panels); q++) {
    const int64_t n0 = q * NR, nr = min64(NR, N - n0);
    for (int64_t n = 0; n < nr; n++) round_row(src + (n0 + n) * sn * size, kc, sk, dtype, (uint16_t *)(room + n * pairs));
    pack_panel(room, 1, pairs, pairs, nr, d + q * pairs * NR);
  }
}
void k_pack_bf16(const Cmd *c, int64_t r0, int64_t r1, int tid) { for (int64_t t = r0; t < r1; t++) pack_tile(c, t, tid); }

/* ---- gemm_bf16: b = [A, packed B, C]; rows = tiles ------------------------------------------------------------------ */

/* A strip of A with m contiguous (A[k * ld + m], mc x kc) to panels of MR pairs; `d` has a vector more than they take. */
static void pack_columns(const char *A, int64_t ld, int dtype, int64_t mc, int64_t kc, float *d) {
  const int64_t size = dtype_size(dtype), pairs = (kc + 1) / 2;
  for (int64_t m = 0; m < mc; m += MR) {
    float *q = d + m * pairs;
    for (int64_t k = 0; k < kc; k += 2) {
      const char *x = A + (k * ld + m) * size, *y = x + ld * size;
      const int two = k + 1 < kc;
      float *to = q + k / 2 * MR;
      if (m + W <= mc) { /* wide stores overlap; what comes next mends the tail */
        vu pair = lower(x, dtype);
        if (two) pair |= upper(y, dtype);
        STORE(to, (vf)pair);
        continue;
      }
      for (int64_t i = 0; i < MR; i++) {
        uint32_t pair = m + i < mc ? bits_of(x, i, dtype) : 0;
        if (two && m + i < mc) pair |= (uint32_t)bits_of(y, i, dtype) << 16;
        memcpy(to + i, &pair, 4);
      }
    }
  }
}

/* Rows [i0, i1) x columns [j0, j1) of one batch; `first_row` is that batch's row 0 among all rows of C. */
static void block_bf16(const Cmd *c, const char *A, const float *packed, int64_t first_row, int64_t i0, int64_t i1, int64_t j0, int64_t j1, float *room) {
  const int64_t *p = c->p, N = p[G_N], K = p[G_K], am = p[G_AM], ak = p[G_AK], kb = p[G_KB], panels = ceil_div(N, NR);
  const int dtype = (int)p[G_DTYPE], stream = (p[G_FLAGS] & STREAM_C) != 0, transposed = am == 1 && ak != 1;
  const int64_t mc = i1 - i0, strips = ceil_div(mc, MR), ldr = kb + 32, size = dtype_size(dtype);
  float *C = (float *)c->b[2] + first_row * N, tile[MR * NR] __attribute__((aligned(64)));
  for (int64_t k0 = 0; k0 < K; k0 += kb) {
    const int64_t kc = min64(kb, K - k0), pairs = (kc + 1) / 2;
    const int first = k0 == 0, last = k0 + kc == K;
    const char *at = A + (i0 * am + k0 * ak) * size;
    const float *rows = (const float *)at;
    int64_t lda = am;
    if (transposed) pack_columns(at, ak, dtype, mc, kc, room);
    else if (ak != 1 || dtype != BF16 || kc & 1 || am * 2 % 2048 == 0) { /* as it lies, unless rows evict one another */
      for (int64_t i = 0; i < mc; i++) round_row(at + i * am * size, kc, ak, dtype, (uint16_t *)room + i * ldr);
      rows = room;
      lda = ldr;
    }
    const int64_t slice = ceil_div(pairs * NR / 16, strips) * 16; /* the next panel of B comes to L2 a slice a tile */
    for (int64_t j = j0; j < j1; j += NR) {
      const float *B = packed + k0 / 2 * panels * NR + j * pairs, *next = B + pairs * NR;
      const int64_t nr = min64(NR, j1 - j);
      if (j + NR >= j1) next = packed + (last ? 0 : (k0 + kc) / 2 * panels * NR) + j0 * ((min64(kb, last ? kc : K - k0 - kc) + 1) / 2);
      for (int64_t i = i0, s = 0; i < i1; i += MR, s++, next += slice) {
        const int64_t mr = min64(MR, i1 - i);
        float *to = C + i * N + j;
        const int direct = nr == NR && rows_written(mr, nr) == mr && !stream;
        float *T = direct ? to : tile;
        const int64_t ldt = direct ? N : NR;
        if (!stream) for (int64_t r = 0; r < mr; r++) for (int64_t n = 0; n < nr; n += 16) __builtin_prefetch(to + r * N + n, 1, 3);
        for (int64_t l = 0; l < slice; l += 16) __builtin_prefetch(next + l, 0, 2);
        const float *a = transposed ? room + s * MR * pairs : ROW_AT(rows, (i - i0) * lda);
        const int acc = direct && !first;
        if (nr <= HALF && transposed) uk_panel_pairs_half(pairs, a, MR, B, NR, T, ldt, acc);
        else if (nr <= HALF) uk_rows_pairs_half(pairs, a, lda, mr, B, T, ldt, acc);
        else if (transposed) SIZED(uk_panel_pairs, pairs, a, MR, B, NR, T, ldt, acc);
        else SIZED(uk_rows_pairs, pairs, a, lda, mr, B, T, ldt, acc);
        if (stream) stream_tile(T, to, N, mr, nr);
        else if (!direct) store_tile(T, to, N, mr, nr, !first);
      }
    }
  }
  if (stream) STREAM_FENCE();
}

void k_gemm_bf16(const Cmd *c, int64_t r0, int64_t r1, int tid) {
  const int64_t *p = c->p, M = p[G_M], N = p[G_N], mc = p[G_MC], nc = p[G_NC];
  const int64_t per = ceil_div(M, mc) * ceil_div(N, nc);
  for (int64_t t = r0; t < r1; t++) {
    const Corner corner = corner_of(p, t % per);
    const int64_t batch = t / per, i0 = corner.i, j0 = corner.j, i1 = min64(M, i0 + mc);
    const Batch o = batch_offsets(p + G_BATCH, p[G_DIMS], batch);
    block_bf16(c, c->b[0] + o.a * dtype_size((int)p[G_DTYPE]), (const float *)c->b[1] + o.b, batch * M, i0, i1, j0, min64(N, j0 + nc), (float *)c->run->scratch[tid]);
    if (c->post) c->post->fn(c->post, batch * M + i0, batch * M + i1, tid);
  }
}
#else
typedef int nothing_here; /* a unit of C holds at least one declaration */
#endif
