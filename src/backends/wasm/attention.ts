/**
 * Attention of the runtime module, forward and backward, and the plans of its commands. A tile of the forward pass is 64
 * queries of a head or more, of the backward pass a key head. Scores are held for 64 queries at a time, over all keys that
 * these see; everything that is not softmax is the matrix product's packing and micro-kernel (gemm.ts).
 * The backward pass computes probabilities again from the log-sum-exp (Dao et al. 2022, FlashAttention).
 *
 * q, k, v are [B, H, T, D] by element strides of B, H and T, with D contiguous. Query i sees keys 0 … i where causal.
 */
import { type AttentionSizes, checkHeads, type HeadStrides, roundUp } from "../cpu/plans.ts";
import { buffer, ceilDiv, min, parameters, scratchOf } from "./command.ts";
import { call, type Func, type Local } from "./function.ts";
import { MR, NR, type ProductParts, packedProduct } from "./gemm.ts";
import { constant, type Expr, f32, f32s, f32x4, f64, i32, select, v128 } from "./instructions.ts";
import { across, firstLanes } from "./lanes.ts";
import { CMD } from "./layout.ts";
import { Library } from "./math.ts";
import type { Module } from "./module.ts";

/** Queries whose scores are held at once. */
const QUERIES = 64;

export interface AttentionShape extends AttentionSizes {
  /** Strides of q, k, v, o; backward also of dO, dq, dk, dv. */
  readonly strides: readonly HeadStrides[];
}

const names = ["B", "H", "Hkv", "Tq", "Tk", "D", "causal", "queries"] as const;
const parametersOf = (s: AttentionShape, queries: number): number[] => [
  ...[s.B, s.H, s.Hkv, s.Tq, s.Tk, s.D, s.causal ? 1 : 0, queries],
  ...s.strides.flat(),
];

/** Floats of each part of the scratch, one behind the other, multiples of 16. */
function roomsOf(s: { Tk: number; D: number }): { panels: number; queries: number; scores: number } {
  const [D, Tk] = [roundUp(s.D, NR), roundUp(s.Tk, NR)];
  return { panels: roundUp(D * Tk, 16), queries: roundUp(QUERIES * D, 16), scores: QUERIES * Tk };
}

export function planAttention(s: AttentionShape) {
  checkHeads(s);
  let parts = 1;
  while (s.B * s.H * parts < 16 && s.Tq > parts * QUERIES) parts *= 2;
  const queries = Math.max(QUERIES, roundUp(Math.ceil(s.Tq / parts), QUERIES));
  const { panels, queries: q, scores } = roomsOf(s);
  return {
    rows: s.B * s.H * Math.ceil(s.Tq / queries),
    params: parametersOf(s, queries),
    // keys and values packed, queries packed, scores, scores packed
    scratchBytes: 4 * (2 * panels + q + 2 * scores + 64),
  };
}

export function planAttentionBackward(s: AttentionShape) {
  const { panels, queries, scores } = roomsOf(s);
  return {
    rows: s.B * s.Hkv,
    params: parametersOf(s, 0),
    // keys twice and values packed; queries and dO packed twice; two blocks of scores, one packed; deltas
    scratchBytes: 4 * (3 * panels + 4 * queries + 3 * scores + QUERIES + 64),
  };
}

/** What both passes are made of. */
interface Parts {
  readonly pack4: Func;
  readonly pack8: Func;
  readonly product: Func;
  readonly lib: Library;
}

/** Packs `count` columns (of B, width 8) or rows (of A, width 4) of length k: element (k, j) is at from + k·sk + j·sn. */
function packAll(
  f: Func,
  pack: Func,
  width: number,
  from: Expr,
  sk: Expr | number,
  sn: Expr | number,
  k: Expr,
  count: Expr,
  to: Expr,
): void {
  const [at, source] = [f.let(to), f.let(from)];
  const step = f.let(i32.mul(i32.mul(sn, width), 4));
  f.for(0, count, width, (j) => {
    f.call(pack, source, sk, sn, k, min(i32.sub(count, j), width), at);
    f.bump(source, step);
    f.bump(at, i32.mul(k, 4 * width));
  });
}

type Names = Record<(typeof names)[number], Local>;
/** The address of (batch, head, time) in operand `which`. */
function place(f: Func, cmd: Expr, which: number, strides: number, batch: Expr, head: Expr, time: Expr): Local {
  const list = f.let(i32.add(i32.load(cmd, CMD.params), 4 * (names.length + 3 * strides)));
  const at = i32.add(
    i32.add(i32.mul(batch, i32.load(list)), i32.mul(head, i32.load(list, 4))),
    i32.mul(time, i32.load(list, 8)),
  );
  return f.let(i32.add(buffer(f, cmd, which), i32.mul(at, 4)));
}
const timeStride = (f: Func, cmd: Expr, strides: number): Local =>
  f.let(i32.load(i32.load(cmd, CMD.params), 4 * (names.length + 3 * strides + 2)));

/** The scalar of the command: the scale of the scores. */
const scaleOf = (f: Func, cmd: Expr): Local => f.let(f32.demote(f64.load(i32.load(i32.load(cmd, CMD.scalars)))));

/** How many keys the queries up to (not with) `end` see at most. */
const seenBy = (p: Names, end: Expr): Expr => select(p.causal, min(p.Tk, end), p.Tk);

/** Steps over the vectors of a row that holds `n` numbers that count: `body` gets the address and which lanes count. */
function alongRow(f: Func, row: Expr, n: Expr, body: (at: Expr, live: Expr | null) => void): void {
  const at = f.let(row);
  const end = f.let(i32.add(row, i32.mul(i32.and(n, -4), 4)));
  f.while(i32.lt_u(at, end), () => {
    body(at, null);
    f.bump(at, 16);
  });
  for (let rest = 1; rest < 4; rest++) f.if(i32.eq(i32.and(n, 3), rest), () => body(at, firstLanes(rest)));
}

/** softmax(row, n, width, scale) → the log-sum-exp: the first n of `width` scores become weights, the others 0. */
function softmaxRow(m: Module, lib: Library): Func {
  const f = m.function(["i32", "i32", "i32", "f32"], ["f32"]);
  const [row, n, width, scale] = f.args;
  const most = f.let(f32s(Number.NEGATIVE_INFINITY));
  const factor = f.let(f32x4.splat(scale));
  alongRow(f, row, n, (at, live) => {
    const x = f.let(f32x4.mul(v128.load(at), factor));
    f.store("v128", at, x);
    f.set(most, f32x4.pmax(most, live ? v128.bitselect(x, f32s(Number.NEGATIVE_INFINITY), live) : x));
  });
  f.set(most, across(f, "max", "f", [most])[0]);
  const sum = f.let(f32s(0));
  alongRow(f, row, n, (at, live) => {
    const e = f.let(call(lib.unary32("exp"), f32x4.sub(v128.load(at), most)));
    if (live) f.set(e, v128.and(e, live));
    f.store("v128", at, e);
    f.set(sum, f32x4.add(sum, e));
  });
  f.set(sum, across(f, "sum", "f", [sum])[0]);
  const inverse = f.let(f32x4.div(f32s(1), sum));
  alongRow(f, row, n, (at) => f.store("v128", at, f32x4.mul(v128.load(at), inverse)));
  clearRest(f, row, n, width);
  f.result(f32.add(f32x4.lane(most, 0), f32x4.lane(call(lib.unary32("log"), sum), 0)));
  return f;
}

/** Zeros from element n of a row up to `width`. */
function clearRest(f: Func, row: Expr, n: Expr, width: Expr): void {
  f.fillMemory(i32.add(row, i32.mul(n, 4)), 0, i32.mul(i32.sub(width, n), 4));
}

/** attention_fwd: b = [q, k, v, o, lse]. */
function forward(m: Module, { pack4, pack8, product, lib }: Parts): Func {
  const f = m.function(["i32", "i32", "i32", "i32"]);
  const [cmd, r0, r1, tid] = f.args;
  const softmax = softmaxRow(m, lib);
  const p = parameters(f, cmd, names);
  const scale = scaleOf(f, cmd);
  const [qt, kt, vt, ot] = [0, 1, 2, 3].map((i) => timeStride(f, cmd, i));
  const blocks = f.let(ceilDiv(p.Tq, p.queries));
  const rounded = (n: Expr, to: number): Expr => i32.mul(ceilDiv(n, to), to);
  f.for(r0, r1, 1, (t) => {
    const head = f.let(i32.rem(i32.div(t, blocks), p.H));
    const batch = f.let(i32.div(i32.div(t, blocks), p.H));
    const kvHead = f.let(i32.div(head, i32.div(p.H, p.Hkv)));
    const first = f.let(i32.mul(i32.rem(t, blocks), p.queries));
    const end = f.let(min(i32.add(first, p.queries), p.Tq));
    const keys = f.let(seenBy(p, end));
    const ld = f.let(rounded(p.Tk, NR));
    const room = f.let(scratchOf(tid));
    const panelBytes = f.let(i32.mul(i32.mul(ld, rounded(p.D, NR)), 4));
    const K = f.let(room);
    const V = f.let(i32.add(K, panelBytes));
    const Q = f.let(i32.add(V, panelBytes));
    const S = f.let(i32.add(Q, i32.mul(rounded(p.D, NR), 4 * QUERIES)));
    const P = f.let(i32.add(S, i32.mul(ld, 4 * QUERIES)));
    packAll(f, pack8, NR, place(f, cmd, 1, 1, batch, kvHead, constant.i32(0)), 1, kt, p.D, keys, K);
    f.for(first, end, QUERIES, (q0) => {
      const q1 = f.let(min(i32.add(q0, QUERIES), end));
      const rows = f.let(i32.sub(q1, q0));
      const seen = f.let(seenBy(p, q1));
      const width = f.let(rounded(seen, NR));
      packAll(f, pack4, MR, place(f, cmd, 0, 0, batch, head, q0), 1, qt, p.D, rows, Q);
      f.call(product, Q, K, S, ld, rows, seen, p.D, 0);
      f.for(0, rows, 1, (i) => {
        const n = f.let(seenBy(p, i32.add(i32.add(q0, i), 1)));
        const row = i32.add(S, i32.mul(i32.mul(i, ld), 4));
        const at = i32.add(i32.mul(i32.add(i32.mul(batch, p.H), head), p.Tq), i32.add(q0, i));
        const lse = f.let(call(softmax, row, n, width, scale));
        f.store("f32", i32.add(buffer(f, cmd, 4), i32.mul(at, 4)), lse);
      });
      // the values' panels are as long as the keys that this block sees
      packAll(f, pack8, NR, place(f, cmd, 2, 2, batch, kvHead, constant.i32(0)), vt, 1, seen, p.D, V);
      packAll(f, pack4, MR, S, 1, ld, seen, rows, P);
      f.call(product, P, V, place(f, cmd, 3, 3, batch, head, q0), ot, rows, p.D, seen, 0);
    });
  });
  return f;
}

/** attention_bwd: b = [q, k, v, o, lse, dO, dq, dk, dv]. */
function backward(m: Module, { pack4, pack8, product, lib }: Parts): Func {
  const f = m.function(["i32", "i32", "i32", "i32"]);
  const [cmd, r0, r1, tid] = f.args;
  const p = parameters(f, cmd, names);
  const scale = scaleOf(f, cmd);
  const [qt, kt, vt, , dOt, dqt, dkt, dvt] = [0, 1, 2, 3, 4, 5, 6, 7].map((i) => timeStride(f, cmd, i));
  const rounded = (n: Expr, to: number): Expr => i32.mul(ceilDiv(n, to), to);
  const share = f.let(i32.div(p.H, p.Hkv));
  const zeroTime = constant.i32(0);
  f.for(r0, r1, 1, (t) => {
    const batch = f.let(i32.div(t, p.Hkv));
    const kvHead = f.let(i32.rem(t, p.Hkv));
    const ld = f.let(rounded(p.Tk, NR));
    const D8 = f.let(rounded(p.D, NR));
    const at = f.let(scratchOf(tid));
    const take = (floats: Expr): Local => {
      const here = f.let(at);
      f.bump(at, i32.mul(floats, 4));
      return here;
    };
    const [Kt, Vt, Kn] = [0, 1, 2].map(() => take(i32.mul(ld, D8)));
    const [Qa, Oa, Qb, Ob] = [0, 1, 2, 3].map(() => take(i32.mul(D8, QUERIES)));
    const [S, dP, packed] = [0, 1, 2].map(() => take(i32.mul(ld, QUERIES)));
    const deltas = take(constant.i32(QUERIES));
    const [k, v] = [place(f, cmd, 1, 1, batch, kvHead, zeroTime), place(f, cmd, 2, 2, batch, kvHead, zeroTime)];
    const [dk, dv] = [place(f, cmd, 7, 6, batch, kvHead, zeroTime), place(f, cmd, 8, 7, batch, kvHead, zeroTime)];
    packAll(f, pack8, NR, k, 1, kt, p.D, p.Tk, Kt);
    packAll(f, pack8, NR, v, 1, vt, p.D, p.Tk, Vt);
    f.for(0, p.Tk, 1, (j) => {
      f.fillMemory(i32.add(dk, i32.mul(i32.mul(j, dkt), 4)), 0, i32.mul(p.D, 4));
      f.fillMemory(i32.add(dv, i32.mul(i32.mul(j, dvt), 4)), 0, i32.mul(p.D, 4));
    });
    f.for(i32.mul(kvHead, share), i32.mul(i32.add(kvHead, 1), share), 1, (head) => {
      f.for(0, p.Tq, QUERIES, (q0) => {
        const q1 = f.let(min(i32.add(q0, QUERIES), p.Tq));
        const rows = f.let(i32.sub(q1, q0));
        const seen = f.let(seenBy(p, q1));
        const width = f.let(rounded(seen, NR));
        const q = place(f, cmd, 0, 0, batch, head, q0);
        const [o, dO] = [place(f, cmd, 3, 3, batch, head, q0), place(f, cmd, 5, 4, batch, head, q0)];
        const ot = timeStride(f, cmd, 3);
        packAll(f, pack4, MR, q, 1, qt, p.D, rows, Qa);
        packAll(f, pack4, MR, dO, 1, dOt, p.D, rows, Oa);
        packAll(f, pack8, NR, q, qt, 1, rows, p.D, Qb);
        packAll(f, pack8, NR, dO, dOt, 1, rows, p.D, Ob);
        f.call(product, Qa, Kt, S, ld, rows, seen, p.D, 0);
        f.call(product, Oa, Vt, dP, ld, rows, seen, p.D, 0);
        f.for(0, rows, 1, (i) => {
          // delta = Σ dO · O, what every weight's gradient is less by
          const sum = f.let(f32s(0));
          const row = f.let(i32.add(o, i32.mul(i32.mul(i, ot), 4)));
          const other = f.let(i32.sub(i32.add(dO, i32.mul(i32.mul(i, dOt), 4)), row));
          alongRow(f, row, p.D, (x, live) => {
            const both = f32x4.mul(v128.load(x), v128.load(i32.add(x, other)));
            f.set(sum, f32x4.add(sum, live ? v128.and(both, live) : both));
          });
          f.store("v128", i32.add(deltas, i32.mul(i, 4)), across(f, "sum", "f", [sum])[0]);
        });
        f.for(0, rows, 1, (i) => {
          const n = f.let(seenBy(p, i32.add(i32.add(q0, i), 1)));
          const s = f.let(i32.add(S, i32.mul(i32.mul(i, ld), 4)));
          const away = f.let(i32.sub(dP, S));
          const place = i32.add(i32.mul(i32.add(i32.mul(batch, p.H), head), p.Tq), i32.add(q0, i));
          const lse = f.let(v128.load32_splat(i32.add(buffer(f, cmd, 4), i32.mul(place, 4))));
          const delta = f.let(v128.load32_splat(i32.add(deltas, i32.mul(i, 4))));
          const factor = f.let(f32x4.splat(scale));
          alongRow(f, s, n, (x) => {
            const w = f.let(call(lib.unary32("exp"), f32x4.sub(f32x4.mul(v128.load(x), factor), lse)));
            const d = f.let(i32.add(x, away));
            f.store("v128", x, w);
            f.store("v128", d, f32x4.mul(f32x4.mul(w, f32x4.sub(v128.load(d), delta)), factor));
          });
          clearRest(f, s, n, width);
          clearRest(f, i32.add(s, away), n, width);
        });
        packAll(f, pack4, MR, S, ld, 1, rows, seen, packed);
        f.call(product, packed, Ob, dv, dvt, seen, p.D, rows, 1);
        packAll(f, pack4, MR, dP, ld, 1, rows, seen, packed);
        f.call(product, packed, Qb, dk, dkt, seen, p.D, rows, 1);
        packAll(f, pack8, NR, k, kt, 1, seen, p.D, Kn);
        packAll(f, pack4, MR, dP, 1, ld, seen, rows, packed);
        f.call(product, packed, Kn, place(f, cmd, 6, 5, batch, head, q0), dqt, rows, p.D, seen, 0);
      });
    });
  });
  return f;
}

export function attentionKernels(m: Module, { pack4, pack8, micro }: ProductParts): Record<string, Func> {
  const parts: Parts = { pack4, pack8, product: packedProduct(m, micro), lib: new Library(m) };
  return { attention_fwd: forward(m, parts), attention_bwd: backward(m, parts) };
}
