/**
 * The row kernels and epilogues of a GPT's training step, written by hand in C: what the compiler is to generate. Only
 * the benchmark in this folder uses them.
 */
import type { KernelUnit } from "../../src/backends/cpu/native.ts";
import { kernelPrelude } from "../../src/backends/cpu/native.ts";

const epilogue = (name: string, body: string): [string, string] => [
  name,
  `void ${name}(const Cmd *c, const float *T, nb_i64 ldt, nb_i64 i0, nb_i64 j0, nb_i64 mr, nb_i64 nr) {
  const nb_i64 N = c->p[0];
  for (nb_i64 r = 0; r < mr; r++) for (nb_i64 n = 0; n < nr; n += W) { /* widths here are multiples of W */
    const nb_i64 j = j0 + n, at = (i0 + r) * N + j;
    const vf t = LOAD(T + r * ldt + n);
    ${body}
  }
}`,
];
const rows = (name: string, body: string): [string, string] => [
  name,
  `void ${name}(const Cmd *c, nb_i64 r0, nb_i64 r1, int tid) {
  ${body}
}`,
];

// gelu(x) with tanh is x * sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3)
const gelu = `
#define F(i) ((float *)c->b[i])
static inline vf sigmoid(vf x) { return splat(1.0f) / (splat(1.0f) + exp_(-x)); }
enum { dummy };
#define U1 (2 * 0.79788456f)
#define U3 (2 * 0.79788456f * 0.044715f)
static inline vf gelu(vf x) { return x * sigmoid(x * fma_(x * x, splat(U3), splat(U1))); }
static inline vf gelu_slope(vf x) {
  const vf s = sigmoid(x * fma_(x * x, splat(U3), splat(U1)));
  return fma_(x * s * (splat(1.0f) - s), fma_(x * x, splat(3 * U3), splat(U1)), s);
}
`;

const normalise = `
static inline void layer_norm(const float *x, const float *g, const float *b, float *y, float *stats, nb_i64 C) {
  vf s = {0}, q = {0};
  for (nb_i64 j = 0; j < C; j += W) s += LOAD(x + j);
  const float mean = hsum(s) / C;
  for (nb_i64 j = 0; j < C; j += W) { const vf d = LOAD(x + j) - splat(mean); q = fma_(d, d, q); }
  const float r = 1 / __builtin_sqrtf(hsum(q) / C + 1e-5f);
  for (nb_i64 j = 0; j < C; j += W) STORE(y + j, fma_((LOAD(x + j) - splat(mean)) * splat(r), LOAD(g + j), LOAD(b + j)));
  stats[0] = mean;
  stats[1] = r;
}
`;

const table: [string, string][] = [
  epilogue("add_bias", "STORE(F(0) + at, t + LOAD(F(1) + j));"),
  epilogue("bias_gelu", "const vf h = t + LOAD(F(1) + j); STORE(F(2) + at, h); STORE(F(0) + at, gelu(h));"),
  epilogue("bias_residual", "STORE(F(0) + at, t + LOAD(F(1) + j) + LOAD(F(2) + at));"),
  epilogue("gelu_backward", "STORE(F(0) + at, t * gelu_slope(LOAD(F(1) + at)));"),
  // b = [x, gamma, beta, y, stats]
  rows(
    "norm",
    "const nb_i64 C = c->p[0]; for (nb_i64 i = r0; i < r1; i++) layer_norm(F(0) + i * C, F(1), F(2), F(3) + i * C, F(4) + 2 * i, C);",
  ),
  // b = [dy, x, gamma, stats, dx, partial sums, residual gradient]; p = [C, rows a block, residual]
  rows(
    "norm_backward",
    `const nb_i64 C = c->p[0]; float *pg = F(5) + r0 / c->p[1] * 2 * C, *pb = pg + C;
  for (nb_i64 j = 0; j < 2 * C; j++) pg[j] = 0;
  for (nb_i64 i = r0; i < r1; i++) {
    const float *dy = F(0) + i * C, *x = F(1) + i * C, *g = F(2); float *dx = F(4) + i * C;
    const vf mean = splat(F(3)[2 * i]), r = splat(F(3)[2 * i + 1]); vf s = {0}, q = {0};
    for (nb_i64 j = 0; j < C; j += W) {
      const vf d = LOAD(dy + j), h = (LOAD(x + j) - mean) * r, e = d * LOAD(g + j);
      s += e; q = fma_(e, h, q);
      STORE(pg + j, fma_(d, h, LOAD(pg + j))); STORE(pb + j, LOAD(pb + j) + d);
    }
    const vf ms = splat(hsum(s) / C), mq = splat(hsum(q) / C);
    for (nb_i64 j = 0; j < C; j += W) {
      const vf h = (LOAD(x + j) - mean) * r; vf t = (LOAD(dy + j) * LOAD(g + j) - ms - h * mq) * r;
      if (c->p[2]) t += LOAD(F(6) + i * C + j);
      STORE(dx + j, t);
    }
  }`,
  ),
  // b = [partial sums, dgamma, dbeta]; rows are columns; p = [C, blocks]
  rows(
    "norm_finish",
    `const nb_i64 C = c->p[0];
  for (nb_i64 j = r0; j < r1; j += W) {
    vf s = {0}, q = {0};
    for (nb_i64 k = 0; k < c->p[1]; k++) { s += LOAD(F(0) + k * 2 * C + j); q += LOAD(F(0) + k * 2 * C + C + j); }
    STORE(F(1) + j, s); STORE(F(2) + j, q);
  }`,
  ),
  // b = [tokens, positions, indices, x, gamma, beta, y, stats]; p = [C, T]
  rows(
    "embed",
    `const nb_i64 C = c->p[0], T = c->p[1]; const int *index = (const int *)c->b[2];
  for (nb_i64 i = r0; i < r1; i++) {
    float *x = F(3) + i * C;
    for (nb_i64 j = 0; j < C; j += W) STORE(x + j, LOAD(F(0) + index[i] * C + j) + LOAD(F(1) + i % T * C + j));
    layer_norm(x, F(4), F(5), F(6) + i * C, F(7) + 2 * i, C);
  }`,
  ),
  // b = [dx, dpositions]; rows are positions; p = [C, T, B]
  rows(
    "positions_backward",
    `const nb_i64 C = c->p[0], T = c->p[1], B = c->p[2];
  for (nb_i64 i = r0; i < r1; i++) for (nb_i64 j = 0; j < C; j += W) {
    vf s = {0};
    for (nb_i64 b = 0; b < B; b++) s += LOAD(F(0) + (b * T + i) * C + j);
    STORE(F(1) + i * C + j, s);
  }`,
  ),
  // b = [logits, which become their gradient; targets; loss a block]; p = [V, rows, rows a block]
  rows(
    "cross_entropy",
    `const nb_i64 V = c->p[0]; const int *target = (const int *)c->b[1]; const float inv = 1.0f / c->p[1]; float loss = 0, *e = (float *)c->run->scratch[tid];
  for (nb_i64 i = r0; i < r1; i++) {
    float *l = F(0) + i * V, m = l[0]; const float at = l[target[i]]; vf s = {0};
    for (nb_i64 j = 1; j < V; j++) m = l[j] > m ? l[j] : m;
    for (nb_i64 j = 0; j < V; j++) e[j] = l[j];
    for (nb_i64 j = V; j % W; j++) e[j] = -1e30f;
    for (nb_i64 j = 0; j < V; j += W) { const vf x = exp_(LOAD(e + j) - splat(m)); s += x; STORE(e + j, x); }
    const float z = hsum(s);
    loss += __builtin_logf(z) + m - at;
    for (nb_i64 j = 0; j < V; j++) l[j] = e[j] * (inv / z);
    l[target[i]] -= inv;
  }
  F(2)[r0 / c->p[2]] = loss * inv;`,
  ),
  // AdamW: b = [p, m, v, g]; scalars 1 - lr * decay, lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t)
  rows(
    "adamw",
    `const vf decay = splat((float)c->s[c->si[0]]), lr = splat((float)c->s[c->si[1]]), ib = splat((float)c->s[c->si[2]]);
  for (nb_i64 i = r0; i < r1; i += W) {
    const vf g = LOAD(F(3) + i), m = fma_(LOAD(F(1) + i), splat(0.9f), g * splat(0.1f)), v = fma_(LOAD(F(2) + i), splat(0.999f), g * g * splat(0.001f));
    STORE(F(1) + i, m); STORE(F(2) + i, v);
    vf root; for (int k = 0; k < W; k++) root[k] = __builtin_sqrtf(v[k]);
    STORE(F(0) + i, LOAD(F(0) + i) * decay - lr * m / fma_(root, ib, splat(1e-8f)));
  }`,
  ),
];

/** The kernels as compilable units, and each one's place in the function list. */
export const units: KernelUnit[] = table.map(([symbol, body]) => ({
  symbol,
  source: `${kernelPrelude()}${gelu}${normalise}${body}\n`,
}));
export const kernel = Object.fromEntries(table.map(([symbol], i) => [symbol, i]));
