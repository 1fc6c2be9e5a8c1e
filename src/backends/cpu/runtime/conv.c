/*
 * Two-dimensional convolution, channels last, as a product without im2col: one padded copy of the lines that a tile needs
 * lies in scratch, and the micro-kernel reads the taps behind row pointers. convolution.ts writes the parameters.
 *
 * Forward and input gradient are one kernel. An output pixel (a, b) of a phase sums over taps (u, v) the source pixel
 * (y0 + a sy + u ty, x0 + b sx + v tx). Forward is one phase; the gradient of a strided convolution is a dense
 * convolution of its own for each residue of the output modulo the stride, so that no zeros are multiplied.
 */
#include "microkernel.h"

/* ---- shared parameters of conv_pack, conv2d_fwd and conv2d_dx ------------------------------------------------------ */
enum { CV_N, CV_SH, CV_SW, CV_SC, CV_OH, CV_OW, CV_OC, CV_GROUPS, CV_FLAGS, CV_SN, CV_SCH, CV_SKY, CV_SKX, CV_PHASES, CV_OWN, CV_BUFFERS, CV_LIST };
/* a phase */
enum { PH_Y, PH_X, PH_STEPY, PH_STEPX, PH_NY, PH_NX, PH_Y0, PH_X0, PH_SY, PH_SX, PH_UY, PH_UX, PH_TY, PH_TX, PH_KY, PH_DKY, PH_KX, PH_DKX, PH_PACKED, PH_LINES, PH_IMAGES, PH_BLOCK, PH_TILES, PH_WORDS };
enum { CV_ACCUMULATE = 1, MOST_BUFFERS = 64 };

/*
 * conv_pack: b = [weight, packed]; a row is (phase, group, panel). Weight element (n, c, ky, kx) by strides, n an output
 * and c a source channel of the group. A panel holds K in the order of taps, then channels.
 */
enum { CP_GROUP_STRIDE = CV_LIST, CP_PHASES };
void k_conv_pack(const Cmd *c, int64_t r0, int64_t r1, int tid) {
  const int64_t *p = c->p, groups = p[CV_GROUPS], N = p[CV_OC] / groups, C = p[CV_SC] / groups, panels = ceil_div(N, NR);
  const int64_t sn = p[CV_SN], sc = p[CV_SCH], sy = p[CV_SKY], sx = p[CV_SKX];
  (void)tid;
  for (int64_t r = r0; r < r1; r++) {
    const int64_t *ph = p + CP_PHASES + r / (groups * panels) * PH_WORDS, group = r / panels % groups, j = r % panels * NR;
    const int64_t uy = ph[PH_UY], ux = ph[PH_UX], taps = uy * ux, nr = min64(NR, N - j);
    const float *w = (const float *)c->b[0] + group * p[CP_GROUP_STRIDE] + j * sn + ph[PH_KY] * sy + ph[PH_KX] * sx;
    float *d = (float *)c->b[1] + ph[PH_PACKED] + (group * panels * NR + j) * taps * C;
    const int64_t dy = ph[PH_DKY] * sy, dx = ph[PH_DKX] * sx;
    if (sn == 1 || sc == 1) {
      for (int64_t t = 0; t < taps; t++) pack_panel(w + t / ux * dy + t % ux * dx, sc, sn, C, nr, d + t * C * NR);
    } else if (nr == NR && dx == 1 && dy == ux && sc == taps) {
      /* a filter's channels and taps are one contiguous row e = channel * taps + tap: transposed, its rows sorted by tap */
      const int64_t K = C * taps, whole = K / TB * TB;
      for (int64_t e = 0; e < whole; e += TB) {
        float block[TB * NR] __attribute__((aligned(64)));
        for (int64_t n = 0; n < NR; n += TB) transpose_block(w + n * sn + e, sn, block + n, NR);
        for (int64_t i = 0; i < TB; i++) memcpy(d + ((e + i) % taps * C + (e + i) / taps) * NR, block + i * NR, NR * 4);
      }
      for (int64_t e = whole; e < K; e++) for (int64_t n = 0; n < NR; n++) d[(e % taps * C + e / taps) * NR + n] = w[n * sn + e];
    } else
      for (int64_t k = 0; k < C; k++)
        for (int64_t n = 0; n < NR; n++)
          for (int64_t u = 0; u < uy; u++)
            for (int64_t v = 0; v < ux; v++) d[((u * ux + v) * C + k) * NR + n] = n < nr ? w[k * sc + n * sn + u * dy + v * dx] : 0;
  }
}

/*
 * transpose: b = [from, to], 4-byte elements; params: axes around, then (size, from stride, to stride) each, then P and its
 * from stride (to stride 1), Q and its to stride (from stride 1); a row is a block of TQ of Q at one position around.
 */
enum { TQ = 16 };
void k_transpose(const Cmd *c, int64_t r0, int64_t r1, int tid) {
  const int64_t n = c->p[0], *axes = c->p + 1, P = axes[3 * n], fp = axes[3 * n + 1], Q = axes[3 * n + 2], tq = axes[3 * n + 3], blocks = ceil_div(Q, TQ);
  (void)tid;
  for (int64_t r = r0; r < r1; r++) {
    const int64_t q0 = r % blocks * TQ, q1 = min64(Q, q0 + TQ);
    const float *s = (const float *)c->b[0];
    float *d = (float *)c->b[1];
    for (int64_t k = n - 1, rest = r / blocks; k >= 0; rest /= axes[3 * k], k--) {
      s += rest % axes[3 * k] * axes[3 * k + 1];
      d += rest % axes[3 * k] * axes[3 * k + 2];
    }
    int64_t p = 0;
    for (; p + TB <= P; p += TB) {
      int64_t q = q0;
      for (; q + TB <= q1; q += TB) transpose_block(s + p * fp + q, fp, d + q * tq + p, tq);
      for (; q < q1; q++) for (int64_t i = p; i < p + TB; i++) memcpy(d + q * tq + i, s + i * fp + q, 4);
    }
    for (int64_t q = q0; q < q1; q++) for (int64_t i = p; i < P; i++) memcpy(d + q * tq + i, s + i * fp + q, 4);
  }
}

/* Lines y, y + step ... (count of them) of an image [H, Wd, C], columns x .. x + width, zero outside, to d. */
static void copy_lines(const float *image, int64_t H, int64_t Wd, int64_t C, int64_t y, int64_t step, int64_t count, int64_t x, int64_t width, float *d) {
  const int64_t left = min64(width, max64(0, -x)), from = max64(0, x), inside = max64(0, min64(Wd - from, width - left));
  for (int64_t i = 0; i < count; i++, y += step, d += width * C) {
    if (y < 0 || y >= H) { memset(d, 0, width * C * 4); continue; }
    memset(d, 0, left * C * 4);
    memcpy(d + left * C, image + (y * Wd + from) * C, inside * C * 4);
    memset(d + (left + inside) * C, 0, (width - left - inside) * C * 4);
  }
}

/* n floats, by pieces of constant size that may overlap. */
INLINE void copy_short(float *d, const float *s, int64_t n) {
  if (n >= 8) {
    for (int64_t k = 0; k + 8 <= n; k += 8) memcpy(d + k, s + k, 32);
    memcpy(d + n - 8, s + n - 8, 32);
  } else if (n >= 4) {
    memcpy(d, s, 16);
    memcpy(d + n - 4, s + n - 4, 16);
  } else for (int64_t k = 0; k < n; k++) d[k] = s[k];
}

static void store_row(const float *T, float *to, int64_t n, int64_t add) {
  int64_t k = 0;
  for (; k + W <= n; k += W) {
    vf t = LOAD(T + k);
    if (add) t += LOAD(to + k);
    STORE(to + k, t);
  }
  for (; k < n; k++) to[k] = T[k] + (add ? to[k] : 0);
}

/*
 * b = [source, packed, out unless an epilogue stores or only the kernel behind reads it]; a row is (phase, images, block of
 * lines, block of channels). A kernel attached behind (`post`) runs on the rows that belong to the tile's lines. Where
 * nobody else reads the result (CV_OWN is its number among that kernel's CV_BUFFERS), it lies in scratch and nowhere else.
 */
static void conv_tile(const Cmd *c, int64_t tile, int tid) {
  const int64_t *p = c->p, groups = p[CV_GROUPS], C = p[CV_SC], Cg = C / groups, N = p[CV_OC] / groups, panels = ceil_div(N, NR), OW = p[CV_OW];
  const int64_t *ph = p + CV_LIST;
  while (tile >= ph[PH_TILES]) { tile -= ph[PH_TILES]; ph += PH_WORDS; }
  const int64_t across = ceil_div(N, ph[PH_BLOCK]), j0 = tile % across * ph[PH_BLOCK], j1 = min64(N, j0 + ph[PH_BLOCK]);
  tile /= across;
  const int64_t blocks = ceil_div(ph[PH_NY], ph[PH_LINES]), a0 = tile % blocks * ph[PH_LINES], a1 = min64(ph[PH_NY], a0 + ph[PH_LINES]);
  const int64_t n = tile / blocks * ph[PH_IMAGES], images = min64(ph[PH_IMAGES], p[CV_N] - n), nx = ph[PH_NX], pixels = images * (a1 - a0) * nx;
  const int64_t uy = ph[PH_UY], ux = ph[PH_UX], ty = ph[PH_TY], tx = ph[PH_TX], sy = ph[PH_SY], sx = ph[PH_SX], K = uy * ux * Cg;
  const EpilogueFn epilogue = c->epi ? (EpilogueFn)(void *)c->epi->fn : 0;
  const int64_t strips = ceil_div(pixels, MR), top = ph[PH_Y0] + a0 * sy, lines = uy ? (a1 - a0 - 1) * sy + (uy - 1) * ty + 1 : 0, width = ux ? (nx - 1) * sx + (ux - 1) * tx + 1 : 0;
  float *partial = (float *)c->run->scratch[tid];
  int64_t *from = (int64_t *)(partial + strips * MR * NR), *to_pixel = from + strips * MR; /* where each pixel reads and writes */
  float *lined = (float *)(((uintptr_t)(to_pixel + strips * MR) + 63) & ~(uintptr_t)63), *out = (float *)c->b[2];
  const int64_t begin = (n * p[CV_OH] + a0) * OW * p[CV_OC]; /* of the tile in the result, where it is one phase */
  if (c->post && p[CV_OWN] >= 0) {
    out = lined - begin;
    lined += pixels * p[CV_OC];
  }
  const float *image = (const float *)c->b[0] + n * p[CV_SH] * p[CV_SW] * C, *source = lined;
  int64_t pitch = width * C, next = lines * pitch; /* from a line, from an image to the next */
  if (K && top >= 0 && top + lines <= p[CV_SH] && ph[PH_X0] >= 0 && ph[PH_X0] + width <= p[CV_SW]) { /* nothing to pad */
    source = image + (top * p[CV_SW] + ph[PH_X0]) * C;
    pitch = p[CV_SW] * C;
    next = p[CV_SH] * pitch;
  } else if (K)
    for (int64_t m = 0; m < images; m++) copy_lines(image + m * p[CV_SH] * p[CV_SW] * C, p[CV_SH], p[CV_SW], C, top, 1, lines, ph[PH_X0], width, lined + m * next);
  for (int64_t i = 0, m = 0, a = a0, b = 0; i < strips * MR; i++) { /* beyond the last pixel: the last one again */
    from[i] = m * next + (a - a0) * sy * pitch + b * sx * C;
    to_pixel[i] = (((n + m) * p[CV_OH] + ph[PH_Y] + a * ph[PH_STEPY]) * OW + ph[PH_X] + b * ph[PH_STEPX]) * p[CV_OC];
    if (i + 1 < pixels && ++b == nx) {
      b = 0;
      if (++a == a1) { a = a0; m++; }
    }
  }
  /* taps of a line lie side by side where they touch and there is one group; lines then are segments */
  const int joined = groups == 1 && tx == 1, whole = joined && K <= 1024;
  const int64_t last = max64(whole ? 1 : uy, 1) - 1, add = p[CV_FLAGS] & CV_ACCUMULATE;
  /* all channels of a few pixels at once, if the weights stay near meanwhile; else all pixels for a few channels */
  const int widthFirst = !last && K * (j1 - j0) * 4 <= 512 << 10;
  const int inOrder = p[CV_PHASES] == 1 && ph[PH_STEPY] == 1 && ph[PH_STEPX] == 1 && nx == OW; /* pixels of the result */
  for (int64_t group = 0; group < groups; group++)
    for (int64_t j = j0, u = 0, s = 0;;) {
      const int64_t nr = min64(NR, j1 - j), mr = min64(MR, pixels - s * MR), at = group * N + j;
      const float *B = (const float *)c->b[1] + ph[PH_PACKED] + (group * panels * NR + j) * K, *rows[MR];
      const float *base = source + (whole ? 0 : u * ty * pitch) + group * Cg;
      for (int64_t r = 0; r < MR; r++) rows[r] = base + from[s * MR + r];
      /* whole tiles in order are summed where they belong */
      const int direct = inOrder && !epilogue && mr == MR && nr == NR, more = u > 0 || (direct && add);
      float *T = direct ? out + to_pixel[s * MR] + at : partial + (last ? s * MR * NR : 0);
      const int64_t ldt = direct ? p[CV_OC] : NR;
      if (whole) uk_segments(K ? uy : 0, ux * Cg, ty * pitch, rows, B, T, ldt, nr, more);
      else if (joined) uk_segments(K ? 1 : 0, ux * Cg, 0, rows, B + u * ux * Cg * NR, T, ldt, nr, more);
      else uk_segments(K ? ux : 0, Cg, tx * C, rows, B + u * ux * Cg * NR, T, ldt, nr, more);
      if (u == last && !direct) {
        if (epilogue) epilogue(c->epi, T, NR, (n * p[CV_OH] + a0) * OW + s * MR, at, mr, nr); /* one phase: pixels in order */
        else for (int64_t r = 0; r < mr; r++) store_row(T + r * NR, out + to_pixel[s * MR + r] + at, nr, add);
      }
      if (widthFirst) {
        if ((j += NR) < j1) continue;
        j = j0;
        if (++s == strips) break;
      } else if (++s == strips) {
        s = 0;
        if (u++ < last) continue;
        u = 0;
        if ((j += NR) >= j1) break;
      }
    }
  if (!c->post) return;
  const int64_t all = p[CV_N] * p[CV_OH], r0 = c->post->rows * (n * p[CV_OH] + a0) / all, r1 = c->post->rows * ((n + images - 1) * p[CV_OH] + a1) / all;
  if (p[CV_OWN] < 0) { c->post->fn(c->post, r0, r1, tid); return; }
  Cmd post = *c->post;
  char *buffers[MOST_BUFFERS];
  memcpy(buffers, post.b, p[CV_BUFFERS] * sizeof *buffers);
  buffers[p[CV_OWN]] = (char *)out;
  post.b = buffers;
  post.fn(&post, r0, r1, tid);
}
void k_conv2d_fwd(const Cmd *c, int64_t r0, int64_t r1, int tid) { for (int64_t t = r0; t < r1; t++) conv_tile(c, t, tid); }
void k_conv2d_dx(const Cmd *c, int64_t r0, int64_t r1, int tid) { for (int64_t t = r0; t < r1; t++) conv_tile(c, t, tid); }

/*
 * conv2d_dw: b = [x, dY, partial sums]; a row is (part of the batch, kernel line, group, block of rows, block of output
 * channels). The partial sums are [parts, kh, kw, Cin / groups, Cout]; rows are a kernel line's kw * Cin / groups. Chunks
 * of lines (of several images where these are small) are brought near, dY in panels and x in one of four ways:
 *   lines    the padded lines that one kernel line reads, used in place;
 *   images   the padded lines that all kernel lines read, and the tile does them all;
 *   gather   all taps of each pixel side by side, where a kernel line is much shorter than the micro-kernel's rows;
 *   strips   the micro-kernel's rows alone, packed, where the stride skips pixels that lines would bring too.
 */
enum { DW_N, DW_H, DW_W, DW_C, DW_OH, DW_OW, DW_OC, DW_GROUPS, DW_KH, DW_KW, DW_SY, DW_SX, DW_PY, DW_PX, DW_DY, DW_DX, DW_PARTS, DW_BLOCK, DW_LINES, DW_S0, DW_S1, DW_S2, DW_S3, DW_WAY, DW_ROWS };
enum { WAY_LINES, WAY_IMAGES, WAY_GATHER, WAY_STRIPS };

/* Taps [e, e + mr) of kernel line ky for the pixels of `lines` lines of the batch: d[pixel * MR + i]. */
static void pack_strip(const int64_t *p, const float *x, int64_t group, int64_t first, int64_t lines, int64_t ky, int64_t e, int64_t mr, float *d) {
  const int64_t H = p[DW_H], Wd = p[DW_W], C = p[DW_C], Cg = C / p[DW_GROUPS], OH = p[DW_OH], OW = p[DW_OW], sx = p[DW_SX];
  for (int64_t q = 0; q < lines; q++, d += OW * MR) {
    const int64_t y = (first + q) % OH * p[DW_SY] + ky * p[DW_DY] - p[DW_PY];
    if (y < 0 || y >= H) { memset(d, 0, OW * MR * 4); continue; }
    const float *line = x + ((first + q) / OH * H + y) * Wd * C + group * Cg;
    for (int64_t i = 0, n; i < mr; i += n) { /* taps of one column of the kernel */
      const int64_t kx = (e + i) / Cg, channel = (e + i) % Cg, off = kx * p[DW_DX] - p[DW_PX];
      n = min64(mr - i, Cg - channel);
      const int64_t lo = min64(OW, off < 0 ? ceil_div(-off, sx) : 0), hi = off >= Wd ? lo : max64(lo, min64(OW, (Wd - 1 - off) / sx + 1));
      const float *s = line + off * C + channel;
      float *t = d + i;
      for (int64_t o = 0; o < lo; o++) memset(t + o * MR, 0, n * 4);
      if (n == MR) for (int64_t o = lo; o < hi; o++) memcpy(t + o * MR, s + o * sx * C, MR * 4);
      else for (int64_t o = lo; o < hi; o++) copy_short(t + o * MR, s + o * sx * C, n);
      for (int64_t o = hi; o < OW; o++) memset(t + o * MR, 0, n * 4);
    }
  }
}

/* All taps of each pixel of a line of the batch: d[pixel * taps + tap * Cin / groups + channel]; `lined` holds a line. */
static void gather_line(const int64_t *p, const float *x, int64_t group, int64_t q, int64_t width, float *lined, float *d) {
  const int64_t C = p[DW_C], Cg = C / p[DW_GROUPS], kh = p[DW_KH], kw = p[DW_KW], taps = kh * kw * Cg, step = p[DW_SX] * C;
  const float *image = x + q / p[DW_OH] * p[DW_H] * p[DW_W] * C;
  const int joined = p[DW_GROUPS] == 1 && p[DW_DX] == 1;
  for (int64_t k = 0; k < kh; k++, d += kw * Cg) {
    copy_lines(image, p[DW_H], p[DW_W], C, q % p[DW_OH] * p[DW_SY] - p[DW_PY] + k * p[DW_DY], 1, 1, -p[DW_PX], width, lined);
    const float *s = lined + group * Cg;
    if (joined && kw * Cg == 3) for (int64_t o = 0; o < p[DW_OW]; o++) memcpy(d + o * taps, s + o * step, 12);
    else if (joined) for (int64_t o = 0; o < p[DW_OW]; o++) copy_short(d + o * taps, s + o * step, kw * Cg);
    else for (int64_t o = 0; o < p[DW_OW]; o++) for (int64_t i = 0; i < kw; i++) copy_short(d + o * taps + i * Cg, s + o * step + i * p[DW_DX] * C, Cg);
  }
}

static void dw_tile(const Cmd *c, int64_t t, int tid) {
  const int64_t *p = c->p, way = p[DW_WAY], groups = p[DW_GROUPS], C = p[DW_C], Cg = C / groups, OC = p[DW_OC], N = OC / groups, OH = p[DW_OH], OW = p[DW_OW], kh = p[DW_KH], kw = p[DW_KW];
  const int joined = groups == 1 && p[DW_DX] == 1;
  const int64_t rows = way == WAY_GATHER ? kh * kw * Cg : way == WAY_STRIPS || joined ? kw * Cg : Cg, across = way == WAY_LINES || way == WAY_IMAGES ? kw * Cg / rows : 1;
  const int64_t blocks = ceil_div(N, p[DW_BLOCK]), downs = ceil_div(rows, p[DW_ROWS]), together = way == WAY_GATHER || way == WAY_IMAGES;
  const int64_t n0 = t % blocks * p[DW_BLOCK], n1 = min64(N, n0 + p[DW_BLOCK]);
  t /= blocks;
  const int64_t m0 = t % downs * p[DW_ROWS], m1 = min64(rows, m0 + p[DW_ROWS]);
  t /= downs;
  const int64_t group = t % groups, ky0 = together ? 0 : t / groups % kh, ky1 = way == WAY_IMAGES ? kh : ky0 + 1, part = t / groups / (together ? 1 : kh);
  const int64_t width = (OW - 1) * p[DW_SX] + (kw - 1) * p[DW_DX] + 1, most = p[DW_LINES], share = ceil_div(p[DW_N], p[DW_PARTS]);
  float T[MR * NR] __attribute__((aligned(64)));
  const int isPacked = OC == NR; /* dY as it lies is one panel */
  float *room = (float *)c->run->scratch[tid], *near = room + (isPacked ? 0 : most * OW * round_up(p[DW_BLOCK], NR));
  const float *x = (const float *)c->b[0], *panels = room;
  float *out = (float *)c->b[2] + part * kh * kw * Cg * OC + group * N;
  const int64_t begin = part * share * OH, end = min64(p[DW_N], (part + 1) * share) * OH;
  if (begin >= end)
    for (int64_t ky = ky0; ky < ky1; ky++)
      for (int64_t k = 0; k < across; k++)
        for (int64_t m = m0; m < m1; m++) memset(out + ((ky * across + k) * rows + m) * OC + n0, 0, (n1 - n0) * 4);
  for (int64_t first = begin; first < end; first += most) { /* lines of the batch, image after image */
    const int64_t lines = min64(most, end - first), pixels = lines * OW;
    const float *dY = (const float *)c->b[1] + first * OW * OC;
    if (isPacked) panels = dY;
    else pack_panels(dY + group * N + n0, OC, 1, pixels, n1 - n0, room);
    if (way == WAY_LINES)
      for (int64_t q = first; q < first + lines; q++) copy_lines(x + q / OH * p[DW_H] * p[DW_W] * C, p[DW_H], p[DW_W], C, q % OH * p[DW_SY] - p[DW_PY] + ky0 * p[DW_DY], 1, 1, -p[DW_PX], width, near + (q - first) * width * C);
    else if (way == WAY_IMAGES) {
      float *d = near;
      for (int64_t q = first, n; q < first + lines; q += n) {
        n = min64(first + lines - q, OH - q % OH);
        const int64_t count = (n - 1) * p[DW_SY] + (kh - 1) * p[DW_DY] + 1;
        copy_lines(x + q / OH * p[DW_H] * p[DW_W] * C, p[DW_H], p[DW_W], C, q % OH * p[DW_SY] - p[DW_PY], 1, count, -p[DW_PX], width, d);
        d += count * width * C;
      }
    } else if (way == WAY_GATHER)
      for (int64_t q = 0; q < lines; q++) gather_line(p, x, group, first + q, width, near, near + width * C + q * OW * rows);
    for (int64_t ky = ky0; ky < ky1; ky++)
      for (int64_t k = 0; k < across; k++)
        for (int64_t m = m0; m < m1; m += MR) {
          const int64_t mr = min64(MR, m1 - m);
          if (way == WAY_STRIPS) pack_strip(p, x, group, first, lines, ky, m, mr, near);
          for (int64_t j = n0; j < n1; j += NR) {
            const int64_t nr = min64(NR, n1 - j);
            const float *B = panels + (j - n0) * pixels, *A = near + k * p[DW_DX] * C + group * Cg + m;
            float *to = out + ((ky * across + k) * rows + m) * OC + j, *sum = mr == MR && nr == NR ? to : T;
            const int64_t ldt = sum == T ? NR : OC;
            const int more = sum != T && first > begin;
            if (way == WAY_STRIPS) uk_outer(1, pixels, near, MR, 0, B, sum, ldt, nr, more);
            else if (way == WAY_GATHER) uk_outer(1, pixels, near + width * C + m, rows, 0, B, sum, ldt, nr, more);
            else if (way == WAY_LINES) uk_outer(lines, OW, A, p[DW_SX] * C, width * C, B, sum, ldt, nr, more);
            else
              for (int64_t q = first, n; q < first + lines; q += n) {
                n = min64(first + lines - q, OH - q % OH);
                uk_outer(n, OW, A + ky * p[DW_DY] * width * C, p[DW_SX] * C, p[DW_SY] * width * C, B + (q - first) * OW * NR, sum, ldt, nr, more || q > first);
                A += ((n - 1) * p[DW_SY] + (kh - 1) * p[DW_DY] + 1) * width * C;
              }
            if (sum == T) for (int64_t r = 0; r < mr; r++) store_row(T + r * NR, to + r * OC, nr, first > begin);
          }
        }
  }
}
void k_conv2d_dw(const Cmd *c, int64_t r0, int64_t r1, int tid) { for (int64_t t = r0; t < r1; t++) dw_tile(c, t, tid); }

/* b = [partial sums, dW by strides (Cout, Cin / groups, kh, kw)]; a row is an output channel; parts are added in order. */
void k_conv2d_dw_finish(const Cmd *c, int64_t r0, int64_t r1, int tid) {
  enum { TAPS = 64 }; /* at a time */
  const int64_t *p = c->p, Cg = p[DW_C] / p[DW_GROUPS], OC = p[DW_OC], kw = p[DW_KW], taps = p[DW_KH] * kw, size = taps * Cg * OC;
  float sums[TAPS * W] __attribute__((aligned(64)));
  (void)tid;
  for (int64_t o0 = r0; o0 < r1; o0 += W)
    for (int64_t i = 0; i < Cg; i++)
      for (int64_t t0 = 0; t0 < taps; t0 += TAPS) {
        const int64_t t1 = min64(taps, t0 + TAPS), no = min64(W, r1 - o0);
        for (int64_t t = t0; t < t1; t++) {
          const float *x = (const float *)c->b[0] + (t * Cg + i) * OC + o0;
          float *s = sums + (t - t0) * W;
          if (no == W) {
            vf v = LOAD(x);
            for (int64_t g = 1; g < p[DW_PARTS]; g++) v += LOAD(x + g * size);
            STORE(s, v);
          } else
            for (int64_t o = 0; o < no; o++) {
              s[o] = x[o];
              for (int64_t g = 1; g < p[DW_PARTS]; g++) s[o] += x[g * size + o];
            }
        }
        for (int64_t o = 0; o < no; o++) {
          float *d = (float *)c->b[1] + (o0 + o) * p[DW_S0] + i * p[DW_S1];
          for (int64_t t = t0, x = t0 % kw, y = t0 / kw; t < t1; t++) {
            d[y * p[DW_S2] + x * p[DW_S3]] = sums[(t - t0) * W + o];
            if (++x == kw) { x = 0; y++; }
          }
        }
      }
}
