/*
 * Scaled dot-product attention, forward and backward, without a T x T matrix: softmax runs online over blocks of keys
 * (Milakov and Gimelshein 2018; Dao et al. 2022), the backward pass recomputes probabilities from the saved log-sum-exp.
 * q [B, H, Tq, D], k and v [B, Hkv, Tk, D], o and the gradients by element strides with D contiguous; query head h reads
 * key head h / (H / Hkv). Query i stands at position offset + i; causal: it sees keys up to its own position.
 *
 * scalars: scale, then (flag LENGTH) the number of valid keys, then (flag OFFSET) the position of query 0. With LAST the
 * queries are the last of the valid positions. The forward pass also takes k and v of 16 bits, and with MASK a mask of bytes
 * (b[5], with strides of its own): a key counts for a query where it is not 0. GROUPED: there is one query, and a row of the command is up to
 * HEADS of the heads that share keys and values, so that these are read once for all of them.
 *
 * plans.ts counts the scratch from these sizes.
 */
#include "microkernel.h"
#include <math.h>

enum { A_B, A_H, A_HKV, A_TQ, A_TK, A_D, A_FLAGS, A_QBLOCK, A_KDTYPE, A_VDTYPE, A_STRIDES };
enum { CAUSAL = 1, LENGTH = 2, OFFSET = 4, LAST = 8, MASK = 16, GROUPED = 32 };
/* strides (batch, head, time) of q, k, v, o, then of dO, dq, dk, dv, then (batch, head, query, key) of the mask */
enum { S_Q = 0, S_K = 3, S_V = 6, S_O = 9, S_DO = 12, S_DQ = 15, S_DK = 18, S_DV = 21, S_MASK = 24 };
/* The score of a masked key, and what is above all of these, however scaled. */
#define MASKED -1e30f
#define UNMASKED -1e26f
enum { QUERIES = (72 + MR - 1) / MR * MR, KEYS = 256, LD = KEYS + 16, QUERIES_BWD = 256, KEYS_BWD = (72 + MR - 1) / MR * MR, HEADS = 8 };

typedef struct { int64_t b, h, hkv, tq, tk, d, length, offset; int causal; float scale; const int64_t *s; } Attention;
INLINE Attention attention(const Cmd *c) {
  const int64_t *p = c->p, flags = p[A_FLAGS];
  Attention a = {p[A_B], p[A_H], p[A_HKV], p[A_TQ], p[A_TK], p[A_D], p[A_TK], 0, (flags & CAUSAL) != 0, (float)c->s[c->si[0]], p + A_STRIDES};
  int at = 1;
  if (flags & LENGTH) a.length = max64(0, min64(a.tk, (int64_t)c->s[c->si[at++]]));
  if (flags & OFFSET) a.offset = (int64_t)c->s[c->si[at++]];
  if (flags & LAST) a.offset = a.length - a.tq;
  return a;
}
#define AT(base, which, bi, hi, ti) ((base) + (bi) * a.s[which] + (hi) * a.s[(which) + 1] + (ti) * a.s[(which) + 2])
/* How many keys query i sees. */
INLINE int64_t visible(const Attention *a, int64_t i) {
  return a->causal ? max64(0, min64(a->length, a->offset + i + 1)) : a->length;
}
INLINE int collide(int64_t ld) { return MR > 8 && ld * 4 % 2048 == 0; }

/* One query, no packing: for decoding, where every key and value is read once. `mask`: its row, or 0. */
#define FORWARD_ONE(NAME, T_, LOADT, LOAD1)                                                                                                           \
  static void NAME(const Attention *at, const float *q, const T_ *K, const T_ *V, const uint8_t *mask, int64_t n, float *s, float *o, float *lse) {   \
    const int64_t D = at->d, ldk = at->s[S_K + 2], ldv = at->s[S_V + 2], lm = at->s[S_MASK + 3];                                                      \
    float m = -INFINITY, z = 0;                                                                                                                       \
    for (int64_t d = 0; d < D; d++) o[d] = 0;                                                                                                         \
    for (int64_t j0 = 0; j0 < n; j0 += KEYS) {                                                                                                        \
      const int64_t kn = min64(KEYS, n - j0), kw = round_up(kn, W);                                                                                   \
      for (int64_t j = 0; j < kn; j++) {                                                                                                              \
        const T_ *k = K + (j0 + j) * ldk;                                                                                                             \
        vf x = {0}, y = {0};                                                                                                                          \
        int64_t d = 0;                                                                                                                                \
        for (; d + 2 * W <= D; d += 2 * W) {                                                                                                          \
          x = fma_(LOAD(q + d), LOADT(k + d), x);                                                                                                     \
          y = fma_(LOAD(q + d + W), LOADT(k + d + W), y);                                                                                             \
        }                                                                                                                                             \
        for (; d + W <= D; d += W) x = fma_(LOAD(q + d), LOADT(k + d), x);                                                                            \
        float t = hsum(x + y);                                                                                                                        \
        for (; d < D; d++) t += q[d] * LOAD1(k[d]);                                                                                                   \
        s[j] = mask && !mask[(j0 + j) * lm] ? MASKED : t * at->scale;                                                                                 \
      }                                                                                                                                               \
      for (int64_t j = kn; j < kw; j++) s[j] = MASKED;                                                                                                \
      vf top = LOAD(s);                                                                                                                               \
      for (int64_t j = W; j < kw; j += W) top = max_(top, LOAD(s + j));                                                                               \
      const float mn = fmaxf(m, hmax(top)), alpha = m == -INFINITY ? 0 : expf(m - mn);                                                                \
      if (mn < UNMASKED) continue;                                                                                                                    \
      vf sum = {0};                                                                                                                                   \
      for (int64_t j = 0; j < kw; j += W) {                                                                                                           \
        const vf x = LOAD(s + j), e = select_((vi)(x < splat(UNMASKED)), (vf){0}, exp_(x - splat(mn)));                                               \
        sum += e;                                                                                                                                     \
        STORE(s + j, e);                                                                                                                              \
      }                                                                                                                                               \
      z = z * alpha + hsum(sum);                                                                                                                      \
      m = mn;                                                                                                                                         \
      int64_t d = 0;                                                                                                                                  \
      for (; d + W <= D; d += W) {                                                                                                                    \
        vf x = LOAD(o + d) * splat(alpha), y = {0};                                                                                                   \
        int64_t j = 0;                                                                                                                                \
        for (; j + 2 <= kn; j += 2) {                                                                                                                 \
          x = fma_(splat(s[j]), LOADT(V + (j0 + j) * ldv + d), x);                                                                                    \
          y = fma_(splat(s[j + 1]), LOADT(V + (j0 + j + 1) * ldv + d), y);                                                                            \
        }                                                                                                                                             \
        if (j < kn) x = fma_(splat(s[j]), LOADT(V + (j0 + j) * ldv + d), x);                                                                          \
        STORE(o + d, x + y);                                                                                                                          \
      }                                                                                                                                               \
      for (; d < D; d++) {                                                                                                                            \
        float x = o[d] * alpha;                                                                                                                       \
        for (int64_t j = 0; j < kn; j++) x += s[j] * LOAD1(V[(j0 + j) * ldv + d]);                                                                    \
        o[d] = x;                                                                                                                                     \
      }                                                                                                                                               \
    }                                                                                                                                                 \
    const float inv = z > 0 || z != z ? 1 / z : 0;                                                                                                    \
    for (int64_t d = 0; d < D; d++) o[d] *= inv;                                                                                                      \
    *lse = m + logf(z);                                                                                                                               \
  }
#define SAME(x) (x)
FORWARD_ONE(forward_one_f32, float, LOAD, SAME)
FORWARD_ONE(forward_one_bf16, uint16_t, load_bf16, from_bf16)
FORWARD_ONE(forward_one_f16, uint16_t, load_f16, from_f16)

/* The sums of the lanes of four vectors, in order, W / 4 lanes apart. */
INLINE vf sums_of_4(vf a, vf b, vf c, vf d) {
#if W == 16
#define PAIR(a, b) (LANES_OF(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) + LANES_OF(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31))
  const vf ab = PAIR(a, b), cd = PAIR(c, d);
  vf s = LANES_OF(ab, cd, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) + LANES_OF(ab, cd, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  s += LANES(s, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
  return s + LANES(s, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
#elif W == 8
#define PAIR(a, b) (LANES_OF(a, b, 0, 1, 2, 3, 8, 9, 10, 11) + LANES_OF(a, b, 4, 5, 6, 7, 12, 13, 14, 15))
  const vf ab = PAIR(a, b), cd = PAIR(c, d), s = LANES_OF(ab, cd, 0, 1, 4, 5, 8, 9, 12, 13) + LANES_OF(ab, cd, 2, 3, 6, 7, 10, 11, 14, 15);
  return s + LANES(s, 1, 0, 3, 2, 5, 4, 7, 6);
#else
#define PAIR(a, b) (LANES_OF(a, b, 0, 1, 4, 5) + LANES_OF(a, b, 2, 3, 6, 7))
  const vf ab = PAIR(a, b), cd = PAIR(c, d);
  return LANES_OF(ab, cd, 0, 2, 4, 6) + LANES_OF(ab, cd, 1, 3, 5, 7);
#endif
#undef PAIR
}

/* What one query of each of some heads has to do with the keys and values that they share. */
typedef struct {
  int64_t D, heads, ldq, ldo, ldk, ldv, lm, lmh, n; /* distances of heads' q and o, of keys and values, of the mask's keys and heads; keys that count */
  float scale;
  const float *q;
  const uint8_t *mask;
  float *o, *s; /* s [HEADS][KEYS] */
} Group;

/* Scores of kn keys become probabilities before they are divided by their sum; what was summed up before is scaled by the result. */
static float softmax_step(float *s, int64_t kn, float *most, float *sum) {
  const int64_t kw = round_up(kn, W);
  for (int64_t j = kn; j < kw; j++) s[j] = MASKED;
  vf top = LOAD(s);
  for (int64_t j = W; j < kw; j += W) top = max_(top, LOAD(s + j));
  const float m = fmaxf(*most, hmax(top)), alpha = *most == -INFINITY ? 0 : expf(*most - m);
  if (m < UNMASKED) { /* all of them hidden, so far */
    for (int64_t j = 0; j < kw; j += W) STORE(s + j, (vf){0});
    return 1;
  }
  vf z = {0};
  for (int64_t j = 0; j < kw; j += W) {
    const vf x = LOAD(s + j), e = select_((vi)(x < splat(UNMASKED)), (vf){0}, exp_(x - splat(m)));
    z += e;
    STORE(s + j, e);
  }
  *sum = *sum * alpha + hsum(z);
  *most = m;
  return alpha;
}

/* A key's products with the queries of heads h to h + 3 (the last one again where there are fewer), and a value's share in their outputs. */
#define FORWARD_GROUP(NAME, T_, LOADT, LOAD1)                                                                                     \
  INLINE void NAME##_scores(const Group *g, int64_t h, const T_ *k, int64_t j) {                                                  \
    const int64_t D = g->D, last = g->heads - 1;                                                                                  \
    const float *q0 = g->q + h * g->ldq, *q1 = g->q + min64(h + 1, last) * g->ldq, *q2 = g->q + min64(h + 2, last) * g->ldq,      \
                *q3 = g->q + min64(h + 3, last) * g->ldq;                                                                         \
    vf x0 = {0}, x1 = {0}, x2 = {0}, x3 = {0};                                                                                    \
    int64_t d = 0;                                                                                                                \
    for (; d + W <= D; d += W) {                                                                                                  \
      const vf v = LOADT(k + d);                                                                                                  \
      x0 = fma_(LOAD(q0 + d), v, x0);                                                                                             \
      x1 = fma_(LOAD(q1 + d), v, x1);                                                                                             \
      x2 = fma_(LOAD(q2 + d), v, x2);                                                                                             \
      x3 = fma_(LOAD(q3 + d), v, x3);                                                                                             \
    }                                                                                                                             \
    const vf all = sums_of_4(x0, x1, x2, x3);                                                                                     \
    float t[4] = {all[0], all[W / 4], all[W / 2], all[3 * W / 4]};                                                                \
    for (; d < D; d++) {                                                                                                          \
      const float v = LOAD1(k[d]);                                                                                                \
      t[0] += q0[d] * v; t[1] += q1[d] * v; t[2] += q2[d] * v; t[3] += q3[d] * v;                                                 \
    }                                                                                                                             \
    for (int64_t i = 0; i < min64(4, g->heads - h); i++) g->s[(h + i) * KEYS + j] = t[i] * g->scale;                              \
  }                                                                                                                               \
  INLINE void NAME##_outputs(const Group *g, int64_t h, const T_ *V, int64_t kn, const float *alpha) {                            \
    const int64_t D = g->D, last = g->heads - 1, h1 = min64(h + 1, last), h2 = min64(h + 2, last), h3 = min64(h + 3, last);       \
    const float *s0 = g->s + h * KEYS, *s1 = g->s + h1 * KEYS, *s2 = g->s + h2 * KEYS, *s3 = g->s + h3 * KEYS;                    \
    float *o0 = g->o + h * g->ldo, *o1 = g->o + h1 * g->ldo, *o2 = g->o + h2 * g->ldo, *o3 = g->o + h3 * g->ldo;                  \
    int64_t d = 0;                                                                                                                \
    for (; d + W <= D; d += W) {                                                                                                  \
      vf x0 = LOAD(o0 + d) * splat(alpha[h]), x1 = LOAD(o1 + d) * splat(alpha[h1]), x2 = LOAD(o2 + d) * splat(alpha[h2]),         \
         x3 = LOAD(o3 + d) * splat(alpha[h3]);                                                                                    \
      const T_ *at = V + d;                                                                                                       \
      for (int64_t j = 0; j < kn; j++, at += g->ldv) {                                                                            \
        const vf v = LOADT(at);                                                                                                   \
        x0 = fma_(splat(s0[j]), v, x0);                                                                                           \
        x1 = fma_(splat(s1[j]), v, x1);                                                                                           \
        x2 = fma_(splat(s2[j]), v, x2);                                                                                           \
        x3 = fma_(splat(s3[j]), v, x3);                                                                                           \
      }                                                                                                                           \
      STORE(o3 + d, x3); STORE(o2 + d, x2); STORE(o1 + d, x1); STORE(o0 + d, x0);                                                 \
    }                                                                                                                             \
    for (; d < D; d++)                                                                                                            \
      for (int64_t i = h; i < min64(h + 4, g->heads); i++) {                                                                      \
        float x = g->o[i * g->ldo + d] * alpha[i];                                                                                \
        for (int64_t j = 0; j < kn; j++) x += g->s[i * KEYS + j] * LOAD1(V[j * g->ldv + d]);                                      \
        g->o[i * g->ldo + d] = x;                                                                                                 \
      }                                                                                                                           \
  }                                                                                                                               \
  static void NAME(const Group *g, const T_ *K, const T_ *V, float *lse) {                                                        \
    float most[HEADS], sum[HEADS], alpha[HEADS];                                                                                  \
    for (int64_t h = 0; h < g->heads; h++) {                                                                                      \
      most[h] = -INFINITY;                                                                                                        \
      sum[h] = 0;                                                                                                                 \
      for (int64_t d = 0; d < g->D; d++) g->o[h * g->ldo + d] = 0;                                                                \
    }                                                                                                                             \
    for (int64_t j0 = 0; j0 < g->n; j0 += KEYS) {                                                                                 \
      const int64_t kn = min64(KEYS, g->n - j0);                                                                                  \
      for (int64_t j = 0; j < kn; j++)                                                                                            \
        for (int64_t h = 0; h < g->heads; h += 4) NAME##_scores(g, h, K + (j0 + j) * g->ldk, j);                                  \
      for (int64_t h = 0; h < g->heads; h++) {                                                                                    \
        if (g->mask)                                                                                                              \
          for (int64_t j = 0; j < kn; j++)                                                                                        \
            if (!g->mask[h * g->lmh + (j0 + j) * g->lm]) g->s[h * KEYS + j] = MASKED;                                             \
        alpha[h] = softmax_step(g->s + h * KEYS, kn, most + h, sum + h);                                                          \
      }                                                                                                                           \
      for (int64_t h = 0; h < g->heads; h += 4) NAME##_outputs(g, h, V + j0 * g->ldv, kn, alpha);                                 \
    }                                                                                                                             \
    for (int64_t h = 0; h < g->heads; h++) {                                                                                      \
      const float z = sum[h], inverse = z > 0 || z != z ? 1 / z : 0;                                                              \
      for (int64_t d = 0; d < g->D; d++) g->o[h * g->ldo + d] *= inverse;                                                         \
      lse[h] = most[h] + logf(z);                                                                                                 \
    }                                                                                                                             \
  }
FORWARD_GROUP(forward_group_f32, float, LOAD, SAME)
FORWARD_GROUP(forward_group_bf16, uint16_t, load_bf16, from_bf16)
FORWARD_GROUP(forward_group_f16, uint16_t, load_f16, from_f16)

/* Rows [r0, r1) of a GROUPED command. */
static void attention_grouped(const Cmd *c, const Attention *at, int64_t r0, int64_t r1, float *scores) {
  const Attention a = *at;
  const int64_t group = a.h / a.hkv, parts = ceil_div(group, HEADS);
  const int dtype = (int)c->p[A_KDTYPE];
  for (int64_t t = r0; t < r1; t++) {
    const int64_t bi = t / parts / a.hkv, hk = t / parts % a.hkv, hi = hk * group + t % parts * HEADS;
    const int64_t *sm = a.s + S_MASK;
    const Group g = {
        a.d, min64(HEADS, hk * group + group - hi), a.s[S_Q + 1], a.s[S_O + 1], a.s[S_K + 2], a.s[S_V + 2], sm[3], sm[1], visible(&a, 0), a.scale,
        AT((const float *)c->b[0], S_Q, bi, hi, 0), c->p[A_FLAGS] & MASK ? (const uint8_t *)c->b[5] + bi * sm[0] + hi * sm[1] : 0,
        AT((float *)c->b[3], S_O, bi, hi, 0), scores};
    const char *K = c->b[1] + AT((int64_t)0, S_K, bi, hk, 0) * dtype_size(dtype), *V = c->b[2] + AT((int64_t)0, S_V, bi, hk, 0) * dtype_size(dtype);
    float *lse = (float *)c->b[4] + bi * a.h + hi;
    if (dtype == F32) forward_group_f32(&g, (const float *)K, (const float *)V, lse);
    else (dtype == BF16 ? forward_group_bf16 : forward_group_f16)(&g, (const uint16_t *)K, (const uint16_t *)V, lse);
  }
}

/* Rows of a key block as floats: where they lie, or widened into `room`. */
static const float *float_rows(const char *rows, int64_t ld, int64_t n, int64_t D, int dtype, float *room, int64_t *ldf) {
  *ldf = ld;
  if (dtype == F32) return (const float *)rows;
  for (int64_t j = 0; j < n; j++) widen((const uint16_t *)rows + j * ld, D, dtype, room + j * D);
  *ldf = D;
  return room;
}

/* b = [q, k, v, o, lse, mask]; a row of the command is (batch, head, block of queries), or (batch, key head, HEADS of its heads). */
void k_attention_fwd(const Cmd *c, int64_t r0, int64_t r1, int tid) {
  const Attention a = attention(c);
  const int64_t D = a.d, DP = round_up(D, NR), block = c->p[A_QBLOCK], blocks = ceil_div(a.tq, block);
  float T[MR * NR] __attribute__((aligned(64)));
  if (c->p[A_FLAGS] & GROUPED) {
    attention_grouped(c, &a, r0, r1, (float *)c->run->scratch[tid]);
    return;
  }
  for (int64_t t = r0; t < r1; t++) {
    const int64_t bi = t / blocks / a.h, hi = t / blocks % a.h, hk = hi / (a.h / a.hkv), q0 = t % blocks * block, q1 = min64(a.tq, q0 + block);
    const int kt = (int)c->p[A_KDTYPE], vt = (int)c->p[A_VDTYPE];
    const float *Q = AT((const float *)c->b[0], S_Q, bi, hi, 0);
    const char *K = c->b[1] + AT((int64_t)0, S_K, bi, hk, 0) * dtype_size(kt), *V = c->b[2] + AT((int64_t)0, S_V, bi, hk, 0) * dtype_size(vt);
    const int64_t *sm = a.s + S_MASK;
    const uint8_t *mask = c->p[A_FLAGS] & MASK ? (const uint8_t *)c->b[5] + bi * sm[0] + hi * sm[1] : 0;
    const int64_t ldq = a.s[S_Q + 2], ldk = a.s[S_K + 2], ldv = a.s[S_V + 2], ldo = a.s[S_O + 2];
    float *O = AT((float *)c->b[3], S_O, bi, hi, 0), *lse = (float *)c->b[4] + (bi * a.h + hi) * a.tq;
    float *Kt = (float *)c->run->scratch[tid];
    if (a.tq <= 2 && kt == vt) {
      for (int64_t i = q0; i < q1; i++) {
        const uint8_t *row = mask ? mask + i * sm[2] : 0;
        const int64_t n = visible(&a, i);
        if (kt == F32) forward_one_f32(&a, Q + i * ldq, (const float *)K, (const float *)V, row, n, Kt, O + i * ldo, lse + i);
        else (kt == BF16 ? forward_one_bf16 : forward_one_f16)(&a, Q + i * ldq, (const uint16_t *)K, (const uint16_t *)V, row, n, Kt, O + i * ldo, lse + i);
      }
      continue;
    }
    float *Vp = Kt + D * KEYS, *S = Vp + KEYS * DP, *acc = S + QUERIES * LD, *m = acc + block * DP, *z = m + block, *alpha = z + block, *Qc = alpha + round_up(block, 16), *wide = Qc + block * (D + 16);
    for (int64_t i = 0; i < q1 - q0; i++) { m[i] = -INFINITY; z[i] = 0; }
    memset(acc, 0, (q1 - q0) * DP * 4);
    if (collide(ldq)) { /* rows that share cache sets are copied apart once */
      for (int64_t i = q0; i < q1; i++) memcpy(Qc + (i - q0) * (D + 16), Q + i * ldq, D * 4);
      Q = Qc - q0 * (D + 16);
    }
    const int64_t ldr = collide(ldq) ? D + 16 : ldq, most = visible(&a, q1 - 1);
    for (int64_t j0 = 0; j0 < most; j0 += KEYS) {
      const int64_t kn = min64(KEYS, most - j0);
      int64_t ld;
      const float *rows = float_rows(K + j0 * ldk * dtype_size(kt), ldk, kn, D, kt, wide, &ld);
      pack_panels(rows, 1, ld, D, kn, Kt);
      rows = float_rows(V + j0 * ldv * dtype_size(vt), ldv, kn, D, vt, wide, &ld);
      pack_panels(rows, ld, 1, kn, D, Vp);
      for (int64_t i0 = q0; i0 < q1; i0 += QUERIES) {
        const int64_t i1 = min64(q1, i0 + QUERIES), see = min64(kn, visible(&a, i1 - 1) - j0);
        if (see <= 0) continue;
        for (int64_t j = 0; j < see; j += NR)
          for (int64_t i = i0; i < i1; i += MR) {
            const int64_t mr = min64(MR, i1 - i);
            if (j >= visible(&a, i + mr - 1) - j0) continue;
            uk_rows(D, Q + i * ldr, ldr, mr, Kt + j * D, S + (i - i0) * LD + j, LD, NR, 0);
          }
        const int64_t width = round_up(see, W);
        for (int64_t i = i0; i < i1; i++) {
          float *s = S + (i - i0) * LD;
          const int64_t n = max64(0, min64(kn, visible(&a, i) - j0)), nw = round_up(n, W);
          alpha[i - q0] = 1;
          int seen = n > 0;
          if (mask) {
            const uint8_t *row = mask + i * sm[2] + j0 * sm[3];
            seen = 0;
            for (int64_t j = 0; j < n; j++) if (row[j * sm[3]]) seen = 1; else s[j] = MASKED;
            if (!seen) for (int64_t j = 0; j < nw; j += W) STORE(s + j, (vf){0});
          }
          if (seen) {
            for (int64_t j = n; j < nw; j++) s[j] = s[n - 1];
            const vf scale = splat(a.scale);
            vf top = LOAD(s) * scale;
            for (int64_t j = W; j < nw; j += W) top = max_(top, LOAD(s + j) * scale);
            const float mn = fmaxf(m[i - q0], hmax(top));
            const vf mv = splat(mn);
            vf sum = {0};
            for (int64_t j = 0; j < nw; j += W) {
              vf e = exp_(fma_(LOAD(s + j), scale, -mv));
              if (j + W > n) e = select_((vi)(iota_() + splati((int)j) < splati((int)n)), e, (vf){0});
              if (mask) e = select_((vi)(LOAD(s + j) < splat(UNMASKED)), (vf){0}, e);
              sum += e;
              STORE(s + j, e);
            }
            alpha[i - q0] = m[i - q0] == -INFINITY ? 0 : expf(m[i - q0] - mn);
            z[i - q0] = z[i - q0] * alpha[i - q0] + hsum(sum);
            m[i - q0] = mn;
          }
          for (int64_t j = nw; j < width; j += W) STORE(s + j, (vf){0});
        }
        for (int64_t d = 0; d < D; d += NR)
          for (int64_t i = i0; i < i1; i += MR) {
            const int64_t mr = min64(MR, i1 - i), n = min64(kn, visible(&a, i + mr - 1) - j0);
            if (n <= 0) continue;
            uk_rows(n, S + (i - i0) * LD, LD, mr, Vp + d * kn, T, NR, min64(NR, D - d), 0);
            for (int64_t r = 0; r < mr; r++) for (int v = 0; v < NV; v++) {
              float *to = acc + (i - q0 + r) * DP + d + v * W;
              STORE(to, fma_(LOAD(to), splat(alpha[i - q0 + r]), LOAD(T + r * NR + v * W)));
            }
          }
      }
    }
    for (int64_t i = q0; i < q1; i++) {
      const float *from = acc + (i - q0) * DP, zi = z[i - q0], inv = zi > 0 || zi != zi ? 1 / zi : 0;
      float *to = O + i * ldo;
      int64_t d = 0;
      for (; d + W <= D; d += W) STORE(to + d, LOAD(from + d) * splat(inv));
      for (; d < D; d++) to[d] = from[d] * inv;
      lse[i] = m[i - q0] + logf(zi);
    }
  }
}

/* A product of mr rows that goes to (or is added to) C, nr columns of it: at once where the micro-kernel fits. */
#define INTO(C, ldc, CALL) do {                                                                                          \
    float *T = (C);                                                                                                      \
    int64_t ldt = (ldc);                                                                                                 \
    const int direct = nr == NR && rows_written(mr, nr) == mr;                                                           \
    if (!direct) {                                                                                                       \
      T = T1;                                                                                                            \
      ldt = NR;                                                                                                          \
      if (add) copy_tile((C), (ldc), T, NR, mr, nr);                                                                     \
    }                                                                                                                    \
    CALL;                                                                                                                \
    if (!direct) copy_tile(T, NR, (C), (ldc), mr, nr);                                                                   \
  } while (0)

/*
 * b = [q, k, v, o, lse, dO, dq, dk, dv]; a row of the command is (batch, key head). Scores are computed transposed, keys
 * by queries, so that two of the three products that follow read them as they lie. Per block of queries: dQ in scratch.
 */
void k_attention_bwd(const Cmd *c, int64_t r0, int64_t r1, int tid) {
  const Attention a = attention(c);
  const int64_t D = a.d, DP = round_up(D, NR), group = a.h / a.hkv;
  enum { QN = QUERIES_BWD, LDQ = QUERIES_BWD + 16, KN = KEYS_BWD };
  const int64_t ldq = a.s[S_Q + 2], ldk = a.s[S_K + 2], ldv = a.s[S_V + 2], ldo = a.s[S_O + 2], lddo = a.s[S_DO + 2], lddq = a.s[S_DQ + 2], lddk = a.s[S_DK + 2], lddv = a.s[S_DV + 2];
  float T1[MR * NR] __attribute__((aligned(64))), T2[MR * NR] __attribute__((aligned(64)));
  for (int64_t t = r0; t < r1; t++) {
    const int64_t bi = t / a.hkv, hk = t % a.hkv;
    const float *K = AT((const float *)c->b[1], S_K, bi, hk, 0), *V = AT((const float *)c->b[2], S_V, bi, hk, 0);
    float *dK = AT((float *)c->b[7], S_DK, bi, hk, 0), *dV = AT((float *)c->b[8], S_DV, bi, hk, 0);
    /* what the first block of queries does not see, it does not write */
    for (int64_t j = a.tq ? visible(&a, min64(QN, a.tq) - 1) : 0; j < a.tk; j++) {
      memset(dK + j * lddk, 0, D * 4);
      memset(dV + j * lddv, 0, D * 4);
    }
    float *Qt = (float *)c->run->scratch[tid], *dOt = Qt + D * QN, *Qp = dOt + D * QN, *dOp = Qp + QN * DP;
    float *P = dOp + QN * DP, *S = P + KN * LDQ, *Kp = S + KN * LDQ, *delta = Kp + KN * DP, *ls = delta + QN, *Kc = ls + QN, *Vc = Kc + KN * (D + 16);
    for (int64_t hi = hk * group; hi < (hk + 1) * group; hi++) {
      const float *Q = AT((const float *)c->b[0], S_Q, bi, hi, 0), *O = AT((const float *)c->b[3], S_O, bi, hi, 0), *dO = AT((const float *)c->b[5], S_DO, bi, hi, 0);
      const float *lse = (const float *)c->b[4] + (bi * a.h + hi) * a.tq;
      float *dq = AT((float *)c->b[6], S_DQ, bi, hi, 0);
      for (int64_t q0 = 0; q0 < a.tq; q0 += QN) {
        const int64_t qn = min64(QN, a.tq - q0), qw = round_up(qn, NR);
        for (int64_t i = 0; i < qn; i++) for (int64_t d = 0; d < D; d += 16) { /* what is read last is on its way first */
          __builtin_prefetch(O + (q0 + i) * ldo + d);
          __builtin_prefetch(dO + (q0 + i) * lddo + d);
        }
        pack_panels(Q + q0 * ldq, 1, ldq, D, qn, Qt);
        pack_panels(dO + q0 * lddo, 1, lddo, D, qn, dOt);
        pack_panels(Q + q0 * ldq, ldq, 1, qn, D, Qp);
        pack_panels(dO + q0 * lddo, lddo, 1, qn, D, dOp);
        for (int64_t i = 0; i < qn; i++) {
          const float *o = O + (q0 + i) * ldo, *g = dO + (q0 + i) * lddo;
          vf s = {0};
          int64_t d = 0;
          for (; d + W <= D; d += W) s = fma_(LOAD(o + d), LOAD(g + d), s);
          float x = hsum(s);
          for (; d < D; d++) x += o[d] * g[d];
          delta[i] = x;
          ls[i] = lse[q0 + i];
        }
        for (int64_t i = qn; i < qw; i++) { delta[i] = 0; ls[i] = 0; }
        const int64_t most = visible(&a, q0 + qn - 1);
        for (int64_t i = 0; i < qn && visible(&a, q0 + i) == 0; i++) memset(dq + (q0 + i) * lddq, 0, D * 4);
        for (int64_t j0 = 0; j0 < most; j0 += KN) {
          const int64_t kn = min64(KN, most - j0);
          /* the first query that sees key j0, down to a whole panel */
          const int64_t from = a.causal ? max64(0, j0 - a.offset - q0) / NR * NR : 0;
          const float *Kb = K + j0 * ldk, *Vb = V + j0 * ldv;
          int64_t lk = ldk, lv = ldv;
          if (collide(ldk)) { for (int64_t j = 0; j < kn; j++) memcpy(Kc + j * (D + 16), Kb + j * ldk, D * 4); Kb = Kc; lk = D + 16; }
          if (collide(ldv)) { for (int64_t j = 0; j < kn; j++) memcpy(Vc + j * (D + 16), Vb + j * ldv, D * 4); Vb = Vc; lv = D + 16; }
          for (int64_t q = from; q < qn; q += NR)
            for (int64_t j = 0; j < kn; j += MR) {
              const int64_t mr = min64(MR, kn - j);
              float *p = P + j * LDQ + q, *s = S + j * LDQ + q;
              if (a.causal && a.offset + q0 + q + NR - 1 < j0 + j) { /* no query of this panel sees these keys */
                for (int64_t r = 0; r < mr; r++) for (int v = 0; v < NV; v++) {
                  STORE(p + r * LDQ + v * W, (vf){0});
                  STORE(s + r * LDQ + v * W, (vf){0});
                }
                continue;
              }
              uk_rows(D, Kb + j * lk, lk, mr, Qt + q * D, T1, NR, NR, 0);
              uk_rows(D, Vb + j * lv, lv, mr, dOt + q * D, T2, NR, NR, 0);
              for (int v = 0; v < NV; v++) {
                const vf l = LOAD(ls + q + v * W), de = LOAD(delta + q + v * W);
                const vi position = iota_() + splati((int)(a.offset + q0 + q + v * W));
                for (int64_t r = 0; r < mr; r++) {
                  vf e = exp_(fma_(LOAD(T1 + r * NR + v * W), splat(a.scale), -l));
                  if (a.causal) e = select_((vi)(position >= splati((int)(j0 + j + r))), e, (vf){0});
                  STORE(p + r * LDQ + v * W, e);
                  STORE(s + r * LDQ + v * W, e * (LOAD(T2 + r * NR + v * W) - de) * splat(a.scale));
                }
              }
            }
          for (int64_t d = 0; d < D; d += NR)
            for (int64_t j = 0; j < kn; j += MR) {
              const int64_t mr = min64(MR, kn - j), nr = min64(NR, D - d);
              const int64_t start = a.causal ? max64(from, (j0 + j - a.offset - q0) / NR * NR) : 0, n = max64(0, qn - start);
              const int add = q0 > 0 || hi > hk * group;
              INTO(dV + (j0 + j) * lddv + d, lddv, uk_rows(n, P + j * LDQ + start, LDQ, mr, dOp + d * qn + start * NR, T, ldt, nr, add));
              INTO(dK + (j0 + j) * lddk + d, lddk, uk_rows(n, S + j * LDQ + start, LDQ, mr, Qp + d * qn + start * NR, T, ldt, nr, add));
            }
          pack_panels(K + j0 * ldk, ldk, 1, kn, D, Kp);
          for (int64_t i = from; i < qn; i += MR) { /* dS lies keys by queries: a transposed operand, read in place */
            const int64_t mr = min64(MR, qn - i), n = max64(0, min64(kn, visible(&a, q0 + i + mr - 1) - j0));
            const int add = j0 > 0;
            for (int64_t d = 0; d < D; d += NR) {
              const int64_t nr = min64(NR, D - d);
              INTO(dq + (q0 + i) * lddq + d, lddq, uk_panel(n, S + i, LDQ, mr, Kp + d * kn, NR, T, ldt, nr, add));
            }
          }
        }
      }
    }
  }
}
