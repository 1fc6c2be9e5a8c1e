/*
 * Scatter, sort, prefix sums, fill and copy. Every one gives the same bits at any number of threads: a destination belongs
 * to one tile, and a tile goes through its sources in order. The parameters are written by plans.ts.
 */
#include "runtime.h"

enum { COLUMNS = 64 };

/*
 * scatter: out[o, index[o, i, n], n] op= src[o, i, n], as torch.scatter along the middle axis of [outer, size, inner].
 * b = [out, index (int32), src, base where init is BASE]; a row of the command is (outer, block of 64 columns).
 * An index out of range is reported as (op, o * I * inner + i * inner + n) and skipped.
 */
enum { SC_OUTER, SC_I, SC_INNER, SC_SIZE, SC_DTYPE, SC_OP, SC_INIT, SC_ERROR, SC_IO, SC_II, SC_IN, SC_SO, SC_SI, SC_SN };
enum { ADD, SET, MAX };
enum { NO_INIT, ZERO, BASE };

#define LARGER_FLOAT(a, b) ((b) > (a) || (b) != (b) ? (b) : (a))
#define LARGER_INT(a, b) ((b) > (a) ? (b) : (a))
#define SCATTER(NAME, T_, LARGER)                                                                                        \
  static void NAME(const Cmd *c, int64_t o, int64_t n0, int64_t n1) {                                                    \
    const int64_t *p = c->p, inner = p[SC_INNER], size = p[SC_SIZE], ii = p[SC_II], in = p[SC_IN], si = p[SC_SI], sn = p[SC_SN], op = p[SC_OP]; \
    T_ *out = (T_ *)c->b[0] + o * size * inner;                                                                          \
    const int32_t *index = (const int32_t *)c->b[1] + o * p[SC_IO];                                                      \
    const T_ *src = (const T_ *)c->b[2] + o * p[SC_SO];                                                                  \
    const int64_t bytes = (n1 - n0) * sizeof(T_);                                                                        \
    if (p[SC_INIT] == ZERO) for (int64_t d = 0; d < size; d++) memset(out + d * inner + n0, 0, bytes);                   \
    if (p[SC_INIT] == BASE) {                                                                                            \
      const T_ *base = (const T_ *)c->b[3] + o * size * inner;                                                           \
      for (int64_t d = 0; d < size; d++) memcpy(out + d * inner + n0, base + d * inner + n0, bytes);                     \
    }                                                                                                                    \
    for (int64_t i = 0; i < p[SC_I]; i++) {                                                                              \
      if (in == 0 || n1 - n0 == 1) { /* one index for the whole row */                                                   \
        const int64_t at = index[i * ii + n0 * in];                                                                      \
        if (at < 0 || at >= size) {                                                                                      \
          nabla_fail(c->run, p[SC_ERROR], (o * p[SC_I] + i) * inner + n0);                                               \
          continue;                                                                                                      \
        }                                                                                                                \
        T_ *d = out + at * inner;                                                                                        \
        const T_ *s = src + i * si;                                                                                      \
        if (op == ADD && sn == 1) for (int64_t n = n0; n < n1; n++) d[n] += s[n];                                        \
        else if (op == SET && sn == 1) memcpy(d + n0, s + n0, bytes);                                                    \
        else for (int64_t n = n0; n < n1; n++) d[n] = op == ADD ? d[n] + s[n * sn] : op == SET ? s[n * sn] : LARGER(d[n], s[n * sn]); \
        continue;                                                                                                        \
      }                                                                                                                  \
      for (int64_t n = n0; n < n1; n++) {                                                                                \
        const int64_t at = index[i * ii + n * in];                                                                       \
        if (at < 0 || at >= size) {                                                                                      \
          nabla_fail(c->run, p[SC_ERROR], (o * p[SC_I] + i) * inner + n);                                                \
          continue;                                                                                                      \
        }                                                                                                                \
        T_ *d = out + at * inner + n;                                                                                    \
        const T_ s = src[i * si + n * sn];                                                                               \
        *d = op == ADD ? *d + s : op == SET ? s : LARGER(*d, s);                                                         \
      }                                                                                                                  \
    }                                                                                                                    \
  }
SCATTER(scatter_f32, float, LARGER_FLOAT)
SCATTER(scatter_f64, double, LARGER_FLOAT)
SCATTER(scatter_i32, int32_t, LARGER_INT)

void k_scatter(const Cmd *c, int64_t r0, int64_t r1, int tid) {
  const int64_t inner = c->p[SC_INNER], blocks = ceil_div(inner, COLUMNS);
  (void)tid;
  for (int64_t t = r0; t < r1; t++) {
    const int64_t n0 = t % blocks * COLUMNS, n1 = min64(inner, n0 + COLUMNS);
    if (c->p[SC_DTYPE] == F32) scatter_f32(c, t / blocks, n0, n1);
    else if (c->p[SC_DTYPE] == F64) scatter_f64(c, t / blocks, n0, n1);
    else scatter_i32(c, t / blocks, n0, n1);
  }
}

/*
 * argsort along the middle axis of [outer, n, inner], contiguous; stable, NaN above everything (as torch.sort), -0 equal
 * to 0. b = [x, indices (int32), sorted values where asked]; a row of the command is a line.
 * Keys become unsigned integers of the same order; lines are sorted by digits of 8 bits (least first), short ones by
 * insertion.
 */
enum { SO_N, SO_INNER, SO_DTYPE, SO_DESCENDING, SO_VALUES };
typedef struct { uint64_t key; int32_t at; } Item;

static uint64_t order_key(const char *x, int64_t i, int dtype) {
  if (dtype == I32) return (uint32_t)((const int32_t *)x)[i] ^ 0x80000000u;
  if (dtype == F32) {
    const float f = ((const float *)x)[i] + 0.0f; /* -0 + 0 is 0 */
    uint32_t u;
    if (f != f) return 0xffffffffu;
    memcpy(&u, &f, 4);
    return u >> 31 ? (uint32_t)~u : u | 0x80000000u;
  }
  const double f = ((const double *)x)[i] + 0.0;
  uint64_t u;
  if (f != f) return ~0ull;
  memcpy(&u, &f, 8);
  return u >> 63 ? ~u : u | 1ull << 63;
}
void k_argsort(const Cmd *c, int64_t r0, int64_t r1, int tid) {
  const int64_t *p = c->p, n = p[SO_N], inner = p[SO_INNER];
  const int dtype = (int)p[SO_DTYPE], size = dtype == F64 ? 8 : 4;
  Item *a = (Item *)c->run->scratch[tid], *b = a + n;
  for (int64_t line = r0; line < r1; line++) {
    const int64_t first = line / inner * n * inner + line % inner;
    const char *x = c->b[0] + first * size;
    for (int64_t i = 0; i < n; i++) a[i] = (Item){order_key(x, i * inner, dtype), (int32_t)i};
    if (p[SO_DESCENDING]) for (int64_t i = 0; i < n; i++) a[i].key = ~a[i].key & (dtype == F64 ? ~0ull : 0xffffffffull);
    if (n <= 64) {
      for (int64_t i = 1; i < n; i++) {
        const Item item = a[i];
        int64_t j = i;
        for (; j > 0 && a[j - 1].key > item.key; j--) a[j] = a[j - 1];
        a[j] = item;
      }
    } else
      for (int shift = 0; shift < size * 8; shift += 8) {
        int64_t count[256] = {0}, sum = 0;
        for (int64_t i = 0; i < n; i++) count[a[i].key >> shift & 255]++;
        if (count[a[0].key >> shift & 255] == n) continue; /* all equal in this digit */
        for (int d = 0; d < 256; d++) { const int64_t k = count[d]; count[d] = sum; sum += k; }
        for (int64_t i = 0; i < n; i++) b[count[a[i].key >> shift & 255]++] = a[i];
        Item *t = a;
        a = b;
        b = t;
      }
    int32_t *to = (int32_t *)c->b[1] + first;
    for (int64_t i = 0; i < n; i++) to[i * inner] = a[i].at;
    if (p[SO_VALUES])
      for (int64_t i = 0; i < n; i++) memcpy(c->b[2] + (first + i * inner) * size, x + a[i].at * inner * size, size);
  }
}

/*
 * Running sum, product or maximum along the middle axis of [outer, n, inner], contiguous, from the end where reversed.
 * b = [x, y]; a row of the command is (outer, block of 64 columns). float32 is accumulated in float64, as torch does.
 */
enum { CU_N, CU_INNER, CU_DTYPE, CU_OP, CU_REVERSE };
enum { RUN_ADD, RUN_MUL, RUN_MAX };
#define CUMULATIVE(NAME, T_, ACC, LARGER)                                                                                \
  static void NAME(const Cmd *c, int64_t o, int64_t n0, int64_t n1) {                                                    \
    const int64_t n = c->p[CU_N], inner = c->p[CU_INNER], op = c->p[CU_OP], width = n1 - n0;                             \
    const T_ *x = (const T_ *)c->b[0] + o * n * inner + n0;                                                              \
    T_ *y = (T_ *)c->b[1] + o * n * inner + n0;                                                                          \
    ACC acc[COLUMNS];                                                                                                    \
    for (int64_t k = 0; k < n; k++) {                                                                                    \
      const int64_t at = (c->p[CU_REVERSE] ? n - 1 - k : k) * inner;                                                     \
      for (int64_t j = 0; j < width; j++) {                                                                              \
        const ACC v = x[at + j];                                                                                         \
        acc[j] = k == 0 ? v : op == RUN_ADD ? acc[j] + v : op == RUN_MUL ? acc[j] * v : LARGER(acc[j], v);               \
        y[at + j] = (T_)acc[j];                                                                                          \
      }                                                                                                                  \
    }                                                                                                                    \
  }
CUMULATIVE(cumulative_f32, float, double, LARGER_FLOAT)
CUMULATIVE(cumulative_f64, double, double, LARGER_FLOAT)
CUMULATIVE(cumulative_i32, int32_t, int32_t, LARGER_INT)

void k_cumulative(const Cmd *c, int64_t r0, int64_t r1, int tid) {
  const int64_t inner = c->p[CU_INNER], blocks = ceil_div(inner, COLUMNS);
  (void)tid;
  for (int64_t t = r0; t < r1; t++) {
    const int64_t n0 = t % blocks * COLUMNS, n1 = min64(inner, n0 + COLUMNS);
    if (c->p[CU_DTYPE] == F32) cumulative_f32(c, t / blocks, n0, n1);
    else if (c->p[CU_DTYPE] == F64) cumulative_f64(c, t / blocks, n0, n1);
    else cumulative_i32(c, t / blocks, n0, n1);
  }
}

/* fill: b = [x]; params: element size, bits of the value; a row is an element. */
void k_fill(const Cmd *c, int64_t r0, int64_t r1, int tid) {
  const int64_t size = c->p[0], bits = c->p[1];
  (void)tid;
  if (bits == 0) { memset(c->b[0] + r0 * size, 0, (r1 - r0) * size); return; }
  if (size == 1) memset(c->b[0] + r0, (int)bits, r1 - r0);
  else if (size == 2) for (int64_t i = r0; i < r1; i++) ((uint16_t *)c->b[0])[i] = (uint16_t)bits;
  else if (size == 4) for (int64_t i = r0; i < r1; i++) ((uint32_t *)c->b[0])[i] = (uint32_t)bits;
  else for (int64_t i = r0; i < r1; i++) ((int64_t *)c->b[0])[i] = bits;
}

/*
 * update: b = [update, out]; params: element size, axes, then (size, update's stride, out's stride, greatest offset) each; the scalars are
 * the offsets, one an axis; a row is one of the update's last axis, which is contiguous.
 */
void k_update(const Cmd *c, int64_t r0, int64_t r1, int tid) {
  const int64_t size = c->p[0], n = c->p[1], *d = c->p + 2, width = d[4 * (n - 1)];
  (void)tid;
  int64_t begin = 0;
  for (int64_t k = 0; k < n; k++) begin += max64(0, min64((int64_t)c->s[c->si[k]], d[4 * k + 3])) * d[4 * k + 2];
  for (int64_t r = r0; r < r1; r++) {
    int64_t from = 0, to = begin, rest = r;
    for (int64_t k = n - 2; k >= 0; k--) {
      const int64_t at = rest % d[4 * k];
      rest /= d[4 * k];
      from += at * d[4 * k + 1];
      to += at * d[4 * k + 2];
    }
    memcpy(c->b[1] + to * size, c->b[0] + from * size, width * size);
  }
}

/* copy: b = [from, to]; params: element size, axes, then (size, from stride, to stride) each; a row is an element. */
void k_copy(const Cmd *c, int64_t r0, int64_t r1, int tid) {
  enum { AXES = 16 };
  const int64_t size = c->p[0], n = c->p[1], *d = c->p + 2;
  (void)tid;
  int64_t at[AXES] = {0}, from = 0, to = 0, rest = r0;
  for (int64_t k = n - 1; k >= 0; k--) {
    at[k] = rest % d[3 * k];
    rest /= d[3 * k];
    from += at[k] * d[3 * k + 1];
    to += at[k] * d[3 * k + 2];
  }
  const int64_t length = n ? d[3 * n - 3] : 1, fs = n ? d[3 * n - 2] : 1, ts = n ? d[3 * n - 1] : 1;
  for (int64_t r = r0; r < r1;) {
    const int64_t run = min64(r1 - r, n ? length - at[n - 1] : 1);
    const char *s = c->b[0] + from * size;
    char *t = c->b[1] + to * size;
    if (fs == 1 && ts == 1) memcpy(t, s, run * size);
    else if (size == 4) for (int64_t i = 0; i < run; i++) ((uint32_t *)t)[i * ts] = ((const uint32_t *)s)[i * fs];
    else if (size == 8) for (int64_t i = 0; i < run; i++) ((uint64_t *)t)[i * ts] = ((const uint64_t *)s)[i * fs];
    else if (size == 2) for (int64_t i = 0; i < run; i++) ((uint16_t *)t)[i * ts] = ((const uint16_t *)s)[i * fs];
    else for (int64_t i = 0; i < run; i++) t[i * ts] = s[i * fs];
    r += run;
    if (!n) break;
    at[n - 1] += run;
    from += run * fs;
    to += run * ts;
    for (int64_t k = n - 1; k > 0 && at[k] == d[3 * k]; k--) { /* carry */
      from += d[3 * k - 2] - at[k] * d[3 * k + 1];
      to += d[3 * k - 1] - at[k] * d[3 * k + 2];
      at[k] = 0;
      at[k - 1]++;
    }
  }
}
