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
enum { CV_N, CV_SH, CV_SW, CV_SC, CV_OH, CV_OW, CV_OC, CV_GROUPS, CV_FLAGS, CV_SN, CV_SCH, CV_SKY, CV_SKX, CV_PHASES, CV_LIST };
/* a phase */
enum { PH_Y, PH_X, PH_STEPY, PH_STEPX, PH_NY, PH_NX, PH_Y0, PH_X0, PH_SY, PH_SX, PH_UY, PH_UX, PH_TY, PH_TX, PH_KY, PH_DKY, PH_KX, PH_DKX, PH_PACKED, PH_LINES, PH_IMAGES, PH_BLOCK, PH_TILES, PH_WORDS };
enum { CV_ACCUMULATE = 1 };

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

/* b = [source, packed, out unless an epilogue stores]; a row is (phase, images, block of lines, block of channels). */
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
  float *lined = (float *)(to_pixel + strips * MR);
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
  for (int64_t group = 0; group < groups; group++)
    for (int64_t j = j0; j < j1; j += NR) {
      const int64_t nr = min64(NR, j1 - j), chunks = whole ? 1 : uy;
      const float *B = (const float *)c->b[1] + ph[PH_PACKED] + (group * panels * NR + j) * K;
      for (int64_t u = 0; u < max64(chunks, 1); u++)
        for (int64_t s = 0; s < strips; s++) {
          const float *rows[MR];
          const float *base = source + (whole ? 0 : u * ty * pitch) + group * Cg;
          for (int64_t r = 0; r < MR; r++) rows[r] = base + from[s * MR + r];
          float *T = partial + s * MR * NR;
          if (whole) uk_segments(K ? uy : 0, ux * Cg, ty * pitch, rows, B, T, nr, 0);
          else if (joined) uk_segments(K ? 1 : 0, ux * Cg, 0, rows, B + u * ux * Cg * NR, T, nr, u > 0);
          else uk_segments(K ? ux : 0, Cg, tx * C, rows, B + u * ux * Cg * NR, T, nr, u > 0);
        }
      for (int64_t s = 0; s < strips; s++) {
        const float *T = partial + s * MR * NR;
        const int64_t mr = min64(MR, pixels - s * MR);
        if (epilogue) { /* one phase whose pixels follow one another */
          epilogue(c->epi, T, NR, (n * p[CV_OH] + a0) * OW + s * MR, group * N + j, mr, nr);
          continue;
        }
        for (int64_t r = 0; r < mr; r++) {
          float *to = (float *)c->b[2] + to_pixel[s * MR + r] + group * N + j;
          const int add = (p[CV_FLAGS] & CV_ACCUMULATE) != 0;
          int64_t k = 0;
          for (; k + W <= nr; k += W) {
            vf t = LOAD(T + r * NR + k);
            if (add) t += LOAD(to + k);
            STORE(to + k, t);
          }
          for (; k < nr; k++) to[k] = T[r * NR + k] + (add ? to[k] : 0);
        }
      }
    }
}
void k_conv2d_fwd(const Cmd *c, int64_t r0, int64_t r1, int tid) { for (int64_t t = r0; t < r1; t++) conv_tile(c, t, tid); }
void k_conv2d_dx(const Cmd *c, int64_t r0, int64_t r1, int tid) { for (int64_t t = r0; t < r1; t++) conv_tile(c, t, tid); }

/*
 * conv2d_dw: b = [x, dY, partial sums]; a row is (part of the batch, kernel line, group, block of output channels). The
 * partial sums are [parts, kh, kw, Cin / groups, Cout]. Both operands are copied near, a chunk of lines at a time (of
 * several images where these are small): x padded, dY in panels. Where a kernel line is short (DW_GATHER) a tile does all
 * kernel lines, with the taps of each pixel gathered side by side.
 */
enum { DW_N, DW_H, DW_W, DW_C, DW_OH, DW_OW, DW_OC, DW_GROUPS, DW_KH, DW_KW, DW_SY, DW_SX, DW_PY, DW_PX, DW_DY, DW_DX, DW_PARTS, DW_BLOCK, DW_LINES, DW_S0, DW_S1, DW_S2, DW_S3, DW_GATHER };

static void dw_tile(const Cmd *c, int64_t t, int tid) {
  const int64_t *p = c->p, groups = p[DW_GROUPS], C = p[DW_C], Cg = C / groups, OC = p[DW_OC], N = OC / groups, OH = p[DW_OH], OW = p[DW_OW], kh = p[DW_KH], kw = p[DW_KW];
  const int gather = (int)p[DW_GATHER], joined = groups == 1 && p[DW_DX] == 1;
  const int64_t blocks = ceil_div(N, p[DW_BLOCK]), block = t % blocks, group = t / blocks % groups, lines_of_kernel = gather ? 1 : kh;
  const int64_t ky = t / blocks / groups % lines_of_kernel, part = t / blocks / groups / lines_of_kernel;
  const int64_t n0 = block * p[DW_BLOCK], n1 = min64(N, n0 + p[DW_BLOCK]), share = ceil_div(p[DW_N], p[DW_PARTS]);
  const int64_t width = (OW - 1) * p[DW_SX] + (kw - 1) * p[DW_DX] + 1, most = p[DW_LINES], taps = kh * kw * Cg;
  float T[MR * NR] __attribute__((aligned(64)));
  float *panels = (float *)c->run->scratch[tid], *lined = panels + most * OW * round_up(p[DW_BLOCK], NR), *gathered = lined + width * C * (gather ? 1 : most);
  float *out = (float *)c->b[2] + (part * kh + ky) * kw * Cg * OC + group * N;
  const int64_t begin = part * share * OH, end = min64(p[DW_N], (part + 1) * share) * OH;
  if (begin >= end) for (int64_t m = 0; m < (gather ? taps : kw * Cg); m++) memset(out + m * OC + n0, 0, (n1 - n0) * 4);
  for (int64_t first = begin; first < end; first += most) { /* lines of the batch, image after image */
    const int64_t lines = min64(most, end - first), pixels = lines * OW;
    const int fresh = first == begin;
    for (int64_t q = 0; q < lines; q++) {
      const int64_t n = (first + q) / OH, y = (first + q) % OH * p[DW_SY] - p[DW_PY];
      const float *image = (const float *)c->b[0] + n * p[DW_H] * p[DW_W] * C;
      if (!gather) { copy_lines(image, p[DW_H], p[DW_W], C, y + ky * p[DW_DY], 1, 1, -p[DW_PX], width, lined + q * width * C); continue; }
      for (int64_t k = 0; k < kh; k++) {
        copy_lines(image, p[DW_H], p[DW_W], C, y + k * p[DW_DY], 1, 1, -p[DW_PX], width, lined);
        for (int64_t x = 0; x < OW; x++) {
          const float *s = lined + x * p[DW_SX] * C + group * Cg;
          float *d = gathered + (q * OW + x) * taps + k * kw * Cg;
          if (joined) for (int64_t e = 0; e < kw * Cg; e++) d[e] = s[e];
          else for (int64_t i = 0; i < kw; i++) for (int64_t e = 0; e < Cg; e++) d[i * Cg + e] = s[i * p[DW_DX] * C + e];
        }
      }
    }
    pack_panels((const float *)c->b[1] + first * OW * OC + group * N + n0, OC, 1, pixels, n1 - n0, panels);
    for (int64_t kx = 0; kx < (joined || gather ? 1 : kw); kx++) {
      const int64_t M = gather ? taps : joined ? kw * Cg : Cg;
      const float *A = gather ? gathered : lined + kx * p[DW_DX] * C + group * Cg;
      const int64_t ax = gather ? taps : p[DW_SX] * C, ay = gather ? OW * taps : width * C;
      for (int64_t m = 0; m < M; m += MR)
        for (int64_t j = n0; j < n1; j += NR) {
          const int64_t nr = min64(NR, n1 - j), mr = min64(MR, M - m);
          uk_outer(gather ? 1 : lines, gather ? pixels : OW, A + m, ax, ay, panels + (j - n0) * pixels, T, nr, 0);
          float *to = out + (kx * Cg + m) * OC + j;
          for (int64_t r = 0; r < mr; r++) {
            int64_t k = 0;
            for (; k + W <= nr; k += W) {
              vf v = LOAD(T + r * NR + k);
              if (!fresh) v += LOAD(to + r * OC + k);
              STORE(to + r * OC + k, v);
            }
            for (; k < nr; k++) to[r * OC + k] = T[r * NR + k] + (fresh ? 0 : to[r * OC + k]);
          }
        }
    }
  }
}
void k_conv2d_dw(const Cmd *c, int64_t r0, int64_t r1, int tid) { for (int64_t t = r0; t < r1; t++) dw_tile(c, t, tid); }

/* b = [partial sums, dW by strides (Cout, Cin / groups, kh, kw)]; a row is an output channel; parts are added in order. */
void k_conv2d_dw_finish(const Cmd *c, int64_t r0, int64_t r1, int tid) {
  const int64_t *p = c->p, Cg = p[DW_C] / p[DW_GROUPS], OC = p[DW_OC], taps = p[DW_KH] * p[DW_KW], size = taps * Cg * OC;
  const float *from = (const float *)c->b[0];
  (void)tid;
  for (int64_t i0 = 0; i0 < Cg; i0 += 16) /* few enough that the lines written stay near until they are full */
    for (int64_t tap = 0; tap < taps; tap++)
      for (int64_t i = i0; i < min64(Cg, i0 + 16); i++)
        for (int64_t o = r0; o < r1; o++) {
          const float *x = from + (tap * Cg + i) * OC + o;
          float s = x[0];
          for (int64_t g = 1; g < p[DW_PARTS]; g++) s += x[g * size];
          ((float *)c->b[1])[o * p[DW_S0] + i * p[DW_S1] + tap / p[DW_KW] * p[DW_S2] + tap % p[DW_KW] * p[DW_S3]] = s;
        }
}
