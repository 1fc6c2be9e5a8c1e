/*
 * Two-dimensional convolution, channels last, as a product without im2col: one padded copy of the lines that a tile needs
 * lies in scratch, and the micro-kernel reads the taps behind row pointers. plans.ts writes the parameters.
 *
 * Forward and input gradient are one kernel. An output pixel (a, b) of a phase sums over taps (u, v) the source pixel
 * (y0 + a sy + u ty, x0 + b sx + v tx). Forward is one phase; the gradient of a strided convolution is a dense
 * convolution of its own for each residue of the output modulo the stride, so that no zeros are multiplied.
 */
#include "microkernel.h"

/* ---- shared parameters of conv_pack, conv2d_fwd and conv2d_dx ------------------------------------------------------ */
enum { CV_N, CV_SH, CV_SW, CV_SC, CV_OH, CV_OW, CV_OC, CV_GROUPS, CV_FLAGS, CV_SN, CV_SCH, CV_SKY, CV_SKX, CV_PHASES, CV_LIST };
/* a phase */
enum { PH_Y, PH_X, PH_STEPY, PH_STEPX, PH_NY, PH_NX, PH_Y0, PH_X0, PH_SY, PH_SX, PH_UY, PH_UX, PH_TY, PH_TX, PH_KY, PH_DKY, PH_KX, PH_DKX, PH_PACKED, PH_LINES, PH_TILES, PH_WORDS };
enum { CV_ACCUMULATE = 1 };

/*
 * conv_pack: b = [weight, packed]; a row is (phase, group, panel). Weight element (n, c, ky, kx) by strides, n an output
 * and c a source channel of the group. A panel holds K in the order of taps, then channels.
 */
enum { CP_GROUP_STRIDE = CV_LIST, CP_PHASES };
void k_conv_pack(const Cmd *c, int64_t r0, int64_t r1, int tid) {
  const int64_t *p = c->p, groups = p[CV_GROUPS], N = p[CV_OC] / groups, C = p[CV_SC] / groups, panels = ceil_div(N, NR);
  (void)tid;
  for (int64_t r = r0; r < r1; r++) {
    const int64_t *ph = p + CP_PHASES + r / (groups * panels) * PH_WORDS, group = r / panels % groups, j = r % panels * NR, taps = ph[PH_UY] * ph[PH_UX];
    const float *w = (const float *)c->b[0] + group * p[CP_GROUP_STRIDE] + j * p[CV_SN];
    float *d = (float *)c->b[1] + ph[PH_PACKED] + (group * panels * NR + j) * taps * C;
    for (int64_t u = 0; u < ph[PH_UY]; u++)
      for (int64_t v = 0; v < ph[PH_UX]; v++, d += C * NR)
        pack_panel(w + (ph[PH_KY] + u * ph[PH_DKY]) * p[CV_SKY] + (ph[PH_KX] + v * ph[PH_DKX]) * p[CV_SKX], p[CV_SCH], p[CV_SN], C, min64(NR, N - j), d);
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

/* b = [source, packed, out unless an epilogue stores]; a row is (image, phase, block of lines). */
static void conv_tile(const Cmd *c, int64_t tile, int tid) {
  const int64_t *p = c->p, groups = p[CV_GROUPS], C = p[CV_SC], Cg = C / groups, N = p[CV_OC] / groups, panels = ceil_div(N, NR), OW = p[CV_OW];
  const int64_t *ph = p + CV_LIST;
  int64_t total = 0;
  for (int64_t i = 0; i < p[CV_PHASES]; i++) total += ph[i * PH_WORDS + PH_TILES];
  const int64_t n = tile / total;
  tile %= total;
  while (tile >= ph[PH_TILES]) { tile -= ph[PH_TILES]; ph += PH_WORDS; }
  const int64_t a0 = tile * ph[PH_LINES], a1 = min64(ph[PH_NY], a0 + ph[PH_LINES]), nx = ph[PH_NX], pixels = (a1 - a0) * nx;
  const int64_t uy = ph[PH_UY], ux = ph[PH_UX], ty = ph[PH_TY], tx = ph[PH_TX], sy = ph[PH_SY], sx = ph[PH_SX], K = uy * ux * Cg;
  const EpilogueFn epilogue = c->epi ? (EpilogueFn)(void *)c->epi->fn : 0;
  const int64_t strips = ceil_div(pixels, MR), top = ph[PH_Y0] + a0 * sy, lines = uy ? (a1 - a0 - 1) * sy + (uy - 1) * ty + 1 : 0, width = ux ? (nx - 1) * sx + (ux - 1) * tx + 1 : 0;
  float *partial = (float *)c->run->scratch[tid], *lined = partial + strips * MR * NR;
  const float *image = (const float *)c->b[0] + n * p[CV_SH] * p[CV_SW] * C, *source = lined;
  int64_t pitch = width * C;
  if (K && top >= 0 && top + lines <= p[CV_SH] && ph[PH_X0] >= 0 && ph[PH_X0] + width <= p[CV_SW]) { /* nothing to pad */
    source = image + (top * p[CV_SW] + ph[PH_X0]) * C;
    pitch = p[CV_SW] * C;
  } else if (K)
    copy_lines(image, p[CV_SH], p[CV_SW], C, top, 1, lines, ph[PH_X0], width, lined);
  /* taps of a line lie side by side where they touch and there is one group; lines then are segments */
  const int joined = groups == 1 && tx == 1, whole = joined && K <= 1024;
  for (int64_t group = 0; group < groups; group++)
    for (int64_t j = 0; j < N; j += NR) {
      const int64_t nr = min64(NR, N - j), chunks = whole ? 1 : uy;
      const float *B = (const float *)c->b[1] + ph[PH_PACKED] + (group * panels * NR + j) * K;
      for (int64_t u = 0; u < max64(chunks, 1); u++)
        for (int64_t s = 0; s < strips; s++) {
          const float *rows[MR];
          for (int64_t r = 0; r < MR; r++) {
            const int64_t i = min64(s * MR + r, pixels - 1);
            rows[r] = source + (i / nx * sy + (whole ? 0 : u * ty)) * pitch + i % nx * sx * C + group * Cg;
          }
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
          const int64_t i = s * MR + r, y = ph[PH_Y] + (a0 + i / nx) * ph[PH_STEPY], x = ph[PH_X] + i % nx * ph[PH_STEPX];
          float *to = (float *)c->b[2] + ((n * p[CV_OH] + y) * OW + x) * p[CV_OC] + group * N + j;
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
 * partial sums are [parts, kh, kw, Cin / groups, Cout]. Both operands are copied near once a chunk of lines: x padded,
 * dY in panels.
 */
enum { DW_N, DW_H, DW_W, DW_C, DW_OH, DW_OW, DW_OC, DW_GROUPS, DW_KH, DW_KW, DW_SY, DW_SX, DW_PY, DW_PX, DW_DY, DW_DX, DW_PARTS, DW_BLOCK, DW_LINES, DW_S0, DW_S1, DW_S2, DW_S3 };
static void dw_tile(const Cmd *c, int64_t t, int tid) {
  const int64_t *p = c->p, groups = p[DW_GROUPS], C = p[DW_C], Cg = C / groups, OC = p[DW_OC], N = OC / groups, OW = p[DW_OW], kw = p[DW_KW];
  const int64_t blocks = ceil_div(N, p[DW_BLOCK]), block = t % blocks, group = t / blocks % groups, ky = t / blocks / groups % p[DW_KH], part = t / blocks / groups / p[DW_KH];
  const int64_t n0 = block * p[DW_BLOCK], n1 = min64(N, n0 + p[DW_BLOCK]), share = ceil_div(p[DW_N], p[DW_PARTS]);
  const int64_t width = (OW - 1) * p[DW_SX] + (kw - 1) * p[DW_DX] + 1, most = p[DW_LINES];
  const int joined = groups == 1 && p[DW_DX] == 1;
  float T[MR * NR] __attribute__((aligned(64)));
  float *panels = (float *)c->run->scratch[tid], *lined = panels + most * OW * round_up(p[DW_BLOCK], NR);
  float *out = (float *)c->b[2] + ((part * p[DW_KH] + ky) * kw * Cg) * OC + group * N;
  for (int64_t m = 0; m < kw * Cg; m++) memset(out + m * OC + n0, 0, (n1 - n0) * 4);
  for (int64_t n = part * share; n < min64(p[DW_N], (part + 1) * share); n++)
    for (int64_t y0 = 0; y0 < p[DW_OH]; y0 += most) {
      const int64_t lines = min64(most, p[DW_OH] - y0), pixels = lines * OW;
      copy_lines((const float *)c->b[0] + n * p[DW_H] * p[DW_W] * C, p[DW_H], p[DW_W], C, y0 * p[DW_SY] + ky * p[DW_DY] - p[DW_PY], p[DW_SY], lines, -p[DW_PX], width, lined);
      const float *dY = (const float *)c->b[1] + (n * p[DW_OH] + y0) * OW * OC + group * N + n0;
      pack_panels(dY, OC, 1, pixels, n1 - n0, panels);
      for (int64_t kx = 0; kx < (joined ? 1 : kw); kx++) {
        const int64_t M = joined ? kw * Cg : Cg;
        const float *A = lined + kx * p[DW_DX] * C + group * Cg;
        for (int64_t j = n0; j < n1; j += NR)
          for (int64_t m = 0; m < M; m += MR) {
            const int64_t nr = min64(NR, n1 - j), mr = min64(MR, M - m);
            uk_outer(lines, OW, A + m, p[DW_SX] * C, width * C, panels + (j - n0) * pixels, T, nr, 0);
            float *to = out + (kx * Cg + m) * OC + j;
            for (int64_t r = 0; r < mr; r++) {
              int64_t k = 0;
              for (; k + W <= nr; k += W) STORE(to + r * OC + k, LOAD(to + r * OC + k) + LOAD(T + r * NR + k));
              for (; k < nr; k++) to[r * OC + k] += T[r * NR + k];
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
  for (int64_t tap = 0; tap < taps; tap++)
    for (int64_t i = 0; i < Cg; i++)
      for (int64_t o = r0; o < r1; o++) {
        const float *x = from + (tap * Cg + i) * OC + o;
        float s = x[0];
        for (int64_t g = 1; g < p[DW_PARTS]; g++) s += x[g * size];
        ((float *)c->b[1])[o * p[DW_S0] + i * p[DW_S1] + tap / p[DW_KW] * p[DW_S2] + tap % p[DW_KW] * p[DW_S3]] = s;
      }
}
