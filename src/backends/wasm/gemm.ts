/**
 * Matrix products of the runtime module: pack_b, gemm, gemm_skinny, gemm_small (float32), gemm_f64, gemm_i32. The commands and their
 * parameters are `cpu/contract.ts`'s; the blocking is that of the native runtime's gemm.c, with one difference: A is
 * always packed, four rows side by side, because the micro-kernel then needs one pointer for it.
 *
 * The micro-kernel holds 4 × 8 sums in eight vector registers and takes one step of k at a time. Unrolled by two it loses
 * a third of its speed: the engine then keeps more values alive than the machine has registers (docs/lab-notes.md).
 */
import { buffer, ceilDiv, min, parameters, scratchOf } from "./command.ts";
import type { Func, Local } from "./function.ts";
import {
  constant,
  type Expr,
  f32,
  f32x4,
  f64,
  f64x2,
  i32,
  i32s,
  i32x4,
  select,
  shuffle32,
  v128,
} from "./instructions.ts";
import { CMD } from "./layout.ts";
import type { Module } from "./module.ts";

export const MR = 4;
export const NR = 8;

const gemmNames = ["M", "N", "K", "am", "ak", "adt", "mc", "nc", "kb", "flags", "bk", "bn", "bdt", "dims"] as const;

/** Element offsets of both operands in batch `index`: batch axes are (size, a's stride, b's stride) from `list` on. */
export function batchOffsets(f: Func, list: Expr, dims: Expr, index: Expr): { a: Local; b: Local } {
  const [a, b, rest] = [f.let(0), f.let(0), f.let(index)];
  const d = f.let(i32.sub(dims, 1));
  f.while(i32.ge_s(d, 0), () => {
    const axis = f.let(i32.add(list, i32.mul(d, 12)));
    const at = f.let(i32.rem(rest, i32.load(axis)));
    f.set(rest, i32.div(rest, i32.load(axis)));
    f.bump(a, i32.mul(at, i32.load(axis, 4)));
    f.bump(b, i32.mul(at, i32.load(axis, 8)));
    f.bump(d, -1);
  });
  return { a, b };
}

/** Four vectors of four numbers as a square, turned: its columns. */
export function turned(f: Func, [a, b, c, d]: readonly Local[]): Expr[] {
  const [x, y] = [f.let(shuffle32(a, b, [0, 4, 1, 5])), f.let(shuffle32(c, d, [0, 4, 1, 5]))];
  const [z, w] = [f.let(shuffle32(a, b, [2, 6, 3, 7])), f.let(shuffle32(c, d, [2, 6, 3, 7]))];
  const [low, high] = [
    [0, 1, 4, 5],
    [2, 3, 6, 7],
  ];
  return [shuffle32(x, y, low), shuffle32(x, y, high), shuffle32(z, w, low), shuffle32(z, w, high)];
}

/**
 * pack(from, sk, sn, kc, n, to): `width` columns side by side, to[k · width + j] = from[k · sk + j · sn], zeros for
 * j ≥ n. Strides are in elements of 4 bytes.
 */
function packer(m: Module, width: 4 | 8): Func {
  const f = m.function(["i32", "i32", "i32", "i32", "i32", "i32"]);
  const [from, sk, sn, kc, n, to] = f.args;
  const d = f.let(to);
  const [bk, bn] = [f.let(i32.mul(sk, 4)), f.let(i32.mul(sn, 4))];
  const line = 4 * width;
  const s = f.let(from);
  f.if(i32.and(i32.eq(n, width), i32.eq(sn, 1)), () => {
    f.for(0, kc, 1, () => {
      for (let v = 0; v < width / 4; v++) f.store("v128", d, v128.load(s, 16 * v), 16 * v);
      f.bump(d, line);
      f.bump(s, bk);
    });
    f.return();
  });
  const k = f.let(0);
  f.if(i32.and(i32.eq(n, width), i32.eq(sk, 1)), () => {
    const columns = Array.from({ length: width }, (_, j) => f.let(i32.add(from, i32.mul(bn, j))));
    f.while(i32.le_s(i32.add(k, 4), kc), () => {
      for (let v = 0; v < width / 4; v++) {
        const c = [0, 1, 2, 3].map((j) => f.let(v128.load(columns[4 * v + j])));
        turned(f, c).forEach((row, i) => {
          f.store("v128", d, row, i * line + 16 * v);
        });
      }
      for (const c of columns) f.bump(c, 16);
      f.bump(d, 4 * line);
      f.bump(k, 4);
    });
    f.set(s, columns[0]);
  });
  f.while(i32.lt_s(k, kc), () => {
    for (let v = 0; v < width / 4; v++) f.store("v128", d, i32s(0), 16 * v);
    f.for(0, n, 1, (j) => f.store("i32", i32.add(d, i32.mul(j, 4)), i32.load(i32.add(s, i32.mul(j, bn)))));
    f.bump(s, bk);
    f.bump(d, line);
    f.bump(k, 1);
  });
  return f;
}

/** micro(kc, a, b, c, ldc bytes, rows, columns, add): a tile of C from packed operands, kept or added to what C holds. */
function microkernel(m: Module): Func {
  const f = m.function(["i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32"]);
  const [kc, a, b, c, ldc, rows, columns, add] = f.args;
  const sums = Array.from({ length: 2 * MR }, () => f.let(i32s(0)));
  f.for(0, kc, 1, () => {
    const [b0, b1] = [f.let(v128.load(b)), f.let(v128.load(b, 16))];
    for (let r = 0; r < MR; r++) {
      const x = f.let(v128.load32_splat(a, 4 * r));
      f.set(sums[2 * r], f32x4.add(sums[2 * r], f32x4.mul(x, b0)));
      f.set(sums[2 * r + 1], f32x4.add(sums[2 * r + 1], f32x4.mul(x, b1)));
    }
    f.bump(a, 4 * MR);
    f.bump(b, 4 * NR);
  });
  for (let r = 0; r < MR; r++)
    f.if(i32.gt_s(rows, r), () => {
      const pair = [sums[2 * r], sums[2 * r + 1]];
      f.if(
        i32.eq(columns, NR),
        () => {
          f.if(add, () => {
            pair.forEach((s, v) => {
              f.set(s, f32x4.add(s, v128.load(c, 16 * v)));
            });
          });
          pair.forEach((s, v) => {
            f.store("v128", c, s, 16 * v);
          });
        },
        () => {
          for (let n = 0; n < NR - 1; n++)
            f.if(i32.gt_s(columns, n), () => {
              const s = pair[n >> 2];
              f.if(add, () => f.set(s, f32x4.replace(s, n & 3, addTo(s, n & 3, c, 4 * n))));
              f.storeLane(32, c, s, n & 3, 4 * n);
            });
        },
      );
      f.bump(c, ldc);
    });
  return f;
}
const addTo = (s: Expr, lane: number, c: Expr, offset: number): Expr =>
  f32x4.lane(f32x4.add(s, v128.load32_splat(c, offset)), lane);

/**
 * block(params, A, packed B, C's first row, i0, i1, j0, j1, room): rows i0 … i1 × columns j0 … j1 of one batch. The order
 * of a sum depends on the shape alone: k in blocks of kb.
 */
function gemmBlock(m: Module, pack4: Func, micro: Func): Func {
  const f = m.function(new Array(9).fill("i32"));
  const [p, A, packed, C, i0, i1, j0, j1, room] = f.args;
  const [N, K, am, ak, kb] = [1, 2, 3, 4, 8].map((i) => f.let(i32.load(p, 4 * i)));
  const panels = f.let(ceilDiv(N, NR));
  f.for(0, K, kb, (k0) => {
    const kc = f.let(min(i32.sub(K, k0), kb));
    const strip = f.let(i32.mul(kc, 4 * MR));
    const to = f.let(room);
    f.for(i0, i1, MR, (i) => {
      const from = i32.add(A, i32.mul(i32.add(i32.mul(i, am), i32.mul(k0, ak)), 4));
      f.call(pack4, from, ak, am, kc, min(i32.sub(i1, i), MR), to);
      f.bump(to, strip);
    });
    const B = f.let(i32.add(packed, i32.mul(i32.mul(k0, panels), 4 * NR)));
    f.for(j0, j1, NR, (j) => {
      const panel = f.let(i32.add(B, i32.mul(i32.mul(j, kc), 4)));
      const columns = f.let(min(i32.sub(j1, j), NR));
      const a = f.let(room);
      f.for(i0, i1, MR, (i) => {
        const c = i32.add(C, i32.mul(i32.add(i32.mul(i, N), j), 4));
        f.call(micro, kc, a, panel, c, i32.mul(N, 4), min(i32.sub(i1, i), MR), columns, i32.ne(k0, 0));
        f.bump(a, strip);
      });
    });
  });
  return f;
}

/** pack_b: b = [B, packed]. A tile is 64 rows of a block of k where n is contiguous, else four panels. */
function packB(m: Module, pack8: Func): Func {
  const f = m.function(["i32", "i32", "i32", "i32"]);
  const [cmd, r0, r1] = f.args;
  const p = parameters(f, cmd, ["K", "N", "sk", "sn", "dtype", "kb", "tiles", "dims"]);
  const axes = f.let(i32.add(i32.load(cmd, CMD.params), 32));
  const [from, to] = [buffer(f, cmd, 0), buffer(f, cmd, 1)];
  const panels = f.let(ceilDiv(p.N, NR));
  const along = f.let(i32.eq(p.sn, 1));
  const per = f.let(select(along, ceilDiv(p.kb, 64), ceilDiv(panels, 4)));
  f.for(r0, r1, 1, (row) => {
    const batch = f.let(i32.div(row, p.tiles));
    const tile = f.let(i32.rem(row, p.tiles));
    const k0 = f.let(i32.mul(i32.div(tile, per), p.kb));
    const kc = f.let(min(i32.sub(p.K, k0), p.kb));
    const part = f.let(i32.rem(tile, per));
    const { b } = batchOffsets(f, axes, p.dims, batch);
    const src = f.let(i32.add(from, i32.mul(i32.add(b, i32.mul(k0, p.sk)), 4)));
    const start = i32.mul(i32.mul(panels, NR), i32.add(i32.mul(batch, p.K), k0));
    const dst = f.let(i32.add(to, i32.mul(start, 4)));
    // rows first … first + rows of all panels, or all rows of four panels
    const first = f.let(select(along, i32.mul(part, 64), constant.i32(0)));
    const rows = f.let(select(along, min(i32.sub(kc, first), 64), kc));
    const q0 = select(along, constant.i32(0), i32.mul(part, 4));
    const q1 = select(along, panels, min(i32.mul(i32.add(part, 1), 4), panels));
    f.for(q0, q1, 1, (q) => {
      const n0 = f.let(i32.mul(q, NR));
      const at = i32.add(src, i32.mul(i32.add(i32.mul(n0, p.sn), i32.mul(first, p.sk)), 4));
      const panel = i32.add(dst, i32.mul(i32.mul(i32.add(i32.mul(q, kc), first), NR), 4));
      f.if(i32.gt_s(rows, 0), () => f.call(pack8, at, p.sk, p.sn, rows, min(i32.sub(p.N, n0), NR), panel));
    });
  });
  return f;
}

/** Runs the attached command on rows that are finished. */
function runPost(f: Func, m: Module, cmd: Expr, from: Expr, to: Expr, tid: Expr): void {
  const post = f.let(i32.load(cmd, CMD.post));
  const type = m.type({ params: ["i32", "i32", "i32", "i32"], results: [] });
  f.if(post, () => f.callIndirect(type, i32.load(post, CMD.fn), post, from, to, tid));
}

/** gemm: b = [A, packed B, C]; a row of the command is a tile of mc × nc. */
function gemm(m: Module, block: Func): Func {
  const f = m.function(["i32", "i32", "i32", "i32"]);
  const [cmd, r0, r1, tid] = f.args;
  const p = parameters(f, cmd, gemmNames);
  const params = f.let(i32.load(cmd, CMD.params));
  const [A, B, C] = [0, 1, 2].map((i) => buffer(f, cmd, i));
  const room = f.let(scratchOf(tid));
  const wide = f.let(ceilDiv(p.N, p.nc));
  const per = f.let(i32.mul(ceilDiv(p.M, p.mc), wide));
  f.for(r0, r1, 1, (t) => {
    const batch = f.let(i32.div(t, per));
    const at = f.let(i32.rem(t, per));
    const i0 = f.let(i32.mul(i32.div(at, wide), p.mc));
    const j0 = f.let(i32.mul(i32.rem(at, wide), p.nc));
    const i1 = f.let(min(i32.add(i0, p.mc), p.M));
    const o = batchOffsets(f, i32.add(params, 4 * gemmNames.length), p.dims, batch);
    const first = f.let(i32.mul(batch, p.M));
    f.call(
      block,
      params,
      i32.add(A, i32.mul(o.a, 4)),
      i32.add(B, i32.mul(o.b, 4)),
      i32.add(C, i32.mul(i32.mul(first, p.N), 4)),
      i0,
      i1,
      j0,
      min(i32.add(j0, p.nc), p.N),
      room,
    );
    runPost(f, m, cmd, i32.add(first, i0), i32.add(first, i1), tid);
  });
  return f;
}

/** gemm_small: many small products, b = [A, B, C]; B is packed inside the tile; a row of the command is a batch. */
function gemmSmall(m: Module, pack8: Func, block: Func): Func {
  const f = m.function(["i32", "i32", "i32", "i32"]);
  const [cmd, r0, r1, tid] = f.args;
  const p = parameters(f, cmd, gemmNames);
  const params = f.let(i32.load(cmd, CMD.params));
  const [A, B, C] = [0, 1, 2].map((i) => buffer(f, cmd, i));
  const packed = f.let(scratchOf(tid));
  const panels = f.let(ceilDiv(p.N, NR));
  const rounded = i32.mul(i32.div(i32.add(p.K, 15), 16), 16);
  const room = f.let(i32.add(packed, i32.mul(i32.mul(rounded, panels), 4 * NR)));
  f.for(r0, r1, 1, (t) => {
    const o = batchOffsets(f, i32.add(params, 4 * gemmNames.length), p.dims, t);
    const from = f.let(i32.add(B, i32.mul(o.b, 4)));
    f.for(0, p.K, p.kb, (k0) => {
      const kc = f.let(min(i32.sub(p.K, k0), p.kb));
      const dst = f.let(i32.add(packed, i32.mul(i32.mul(k0, panels), 4 * NR)));
      f.for(0, p.N, NR, (j) => {
        const at = i32.add(from, i32.mul(i32.add(i32.mul(k0, p.bk), i32.mul(j, p.bn)), 4));
        f.call(pack8, at, p.bk, p.bn, kc, min(i32.sub(p.N, j), NR), i32.add(dst, i32.mul(i32.mul(j, kc), 4)));
      });
    });
    const first = f.let(i32.mul(t, p.M));
    const c = i32.add(C, i32.mul(i32.mul(first, p.N), 4));
    f.call(block, params, i32.add(A, i32.mul(o.a, 4)), packed, c, 0, p.M, 0, p.N, room);
    runPost(f, m, cmd, first, i32.add(first, p.M), tid);
  });
  return f;
}

/** Rows and columns of a tile of gemm_skinny. */
export const SKINNY_ROWS = 8;
export const SKINNY_COLUMNS = 64;

/** The sums of four floats a vector. */
const total = (f: Func, v: Local): Expr => {
  const x = f.let(f32x4.add(v, shuffle32(v, v, [2, 3, 0, 1])));
  return f32x4.lane(f32x4.add(x, shuffle32(x, x, [1, 0, 3, 2])), 0);
};

/**
 * gemm_skinny: few rows, b = [A, B, C]; B is read where it lies; a row of the command is 64 columns of a batch. Where B's
 * columns lie side by side, four rows by eight columns are summed up at a time; else columns are taken one by one.
 */
function gemmSkinny(m: Module): Func {
  const f = m.function(["i32", "i32", "i32", "i32"]);
  const [cmd, r0, r1, tid] = f.args;
  const p = parameters(f, cmd, gemmNames);
  const axes = f.let(i32.add(i32.load(cmd, CMD.params), 4 * gemmNames.length));
  const [A, B, C] = [0, 1, 2].map((i) => buffer(f, cmd, i));
  const blocks = f.let(ceilDiv(p.N, SKINNY_COLUMNS));
  const room = f.let(scratchOf(tid));
  const [bk, line] = [f.let(i32.mul(p.bk, 4)), f.let(i32.mul(p.N, 4))];
  f.for(r0, r1, 1, (t) => {
    const batch = f.let(i32.div(t, blocks));
    const o = batchOffsets(f, axes, p.dims, batch);
    const n0 = f.let(i32.mul(i32.rem(t, blocks), SKINNY_COLUMNS));
    const n1 = f.let(min(i32.add(n0, SKINNY_COLUMNS), p.N));
    const c = f.let(i32.add(C, i32.mul(i32.mul(i32.mul(batch, p.M), p.N), 4)));
    // rows of A, one number behind the other
    const a = f.let(i32.add(A, i32.mul(o.a, 4)));
    const am = f.let(i32.mul(p.am, 4));
    f.if(i32.ne(p.ak, 1), () => {
      f.for(0, p.M, 1, (i) =>
        f.for(0, p.K, 1, (k) => {
          const from = i32.add(a, i32.mul(i32.add(i32.mul(i, p.am), i32.mul(k, p.ak)), 4));
          f.store("f32", i32.add(room, i32.mul(i32.add(i32.mul(i, p.K), k), 4)), f32.load(from));
        }),
      );
      f.set(a, room);
      f.set(am, i32.mul(p.K, 4));
    });
    const b = f.let(i32.add(B, i32.mul(o.b, 4)));
    // past the last row, rows are the last one again, and not stored
    const rowsFrom = (i: Expr): Local[] =>
      [0, 1, 2, 3].map((r) => f.let(i32.add(a, i32.mul(min(i32.add(i, r), i32.sub(p.M, 1)), am))));
    f.for(0, p.M, 4, (i) => {
      const rows = f.let(i32.sub(p.M, i));
      f.if(
        i32.eq(p.bn, 1),
        () =>
          f.for(n0, n1, 8, (n) => {
            const from = f.let(i32.add(b, i32.mul(n, 4)));
            const at = rowsFrom(i);
            const sums = Array.from({ length: 8 }, () => f.let(i32s(0)));
            f.for(0, p.K, 1, () => {
              const [b0, b1] = [f.let(v128.load(from)), f.let(v128.load(from, 16))];
              at.forEach((x, r) => {
                const v = f.let(v128.load32_splat(x));
                f.set(sums[2 * r], f32x4.add(sums[2 * r], f32x4.mul(v, b0)));
                f.set(sums[2 * r + 1], f32x4.add(sums[2 * r + 1], f32x4.mul(v, b1)));
                f.bump(x, 4);
              });
              f.bump(from, bk);
            });
            const to = f.let(i32.add(c, i32.add(i32.mul(i, line), i32.mul(n, 4))));
            for (let r = 0; r < 4; r++)
              f.if(i32.gt_s(rows, r), () => {
                for (let l = 0; l < 8; l++)
                  f.if(i32.gt_s(i32.sub(n1, n), l), () => f.storeLane(32, to, sums[2 * r + (l >> 2)], l & 3, 4 * l));
                f.bump(to, line);
              });
          }),
        () =>
          f.for(n0, n1, 1, (n) => {
            const from = f.let(i32.add(b, i32.mul(i32.mul(n, p.bn), 4)));
            const at = rowsFrom(i);
            const sums = at.map(() => f.let(i32s(0)));
            const rest = at.map(() => f.let(constant.f32(0)));
            const k = f.let(0);
            f.if(i32.eq(p.bk, 1), () =>
              f.while(i32.le_s(i32.add(k, 4), p.K), () => {
                const column = f.let(v128.load(from));
                at.forEach((x, r) => {
                  f.set(sums[r], f32x4.add(sums[r], f32x4.mul(v128.load(x), column)));
                  f.bump(x, 16);
                });
                f.bump(from, 16);
                f.bump(k, 4);
              }),
            );
            f.while(i32.lt_s(k, p.K), () => {
              const column = f.let(f32.load(from));
              at.forEach((x, r) => {
                f.set(rest[r], f32.add(rest[r], f32.mul(f32.load(x), column)));
                f.bump(x, 4);
              });
              f.bump(from, bk);
              f.bump(k, 1);
            });
            const to = f.let(i32.add(c, i32.add(i32.mul(i, line), i32.mul(n, 4))));
            sums.forEach((s, r) => {
              f.if(i32.gt_s(rows, r), () => {
                f.store("f32", to, f32.add(total(f, s), rest[r]));
                f.bump(to, line);
              });
            });
          }),
      );
    });
  });
  return f;
}

/**
 * gemm_f64 and gemm_i32: b = [A, B, C], a tile is mc × nc. Rows of A by blocks of 256 of k, four columns (of float64: two)
 * at a time; B is read where it lies, lane by lane where its columns are not side by side.
 */
function plainGemm(m: Module, kind: "f64" | "i32"): Func {
  const f = m.function(["i32", "i32", "i32", "i32"]);
  const [cmd, r0, r1] = f.args;
  const p = parameters(f, cmd, gemmNames);
  const axes = f.let(i32.add(i32.load(cmd, CMD.params), 4 * gemmNames.length));
  const [A, B, C] = [0, 1, 2].map((i) => buffer(f, cmd, i));
  const bytes = kind === "f64" ? 8 : 4;
  const lanes = 16 / bytes;
  const wide = f.let(ceilDiv(p.N, p.nc));
  const per = f.let(i32.mul(ceilDiv(p.M, p.mc), wide));
  const muladd = (acc: Expr, x: Expr, y: Expr): Expr =>
    kind === "f64" ? f64x2.add(acc, f64x2.mul(x, y)) : i32x4.add(acc, i32x4.mul(x, y));
  const splat = (at: Expr): Expr => (kind === "f64" ? v128.load64_splat(at) : v128.load32_splat(at));
  const gathered = (at: Local, step: Expr): Expr => {
    let v = splat(at);
    for (let l = 1; l < lanes; l++) {
      const from = i32.add(at, i32.mul(step, l));
      v = kind === "f64" ? f64x2.replace(v, l, f64.load(from)) : i32x4.replace(v, l, i32.load(from));
    }
    return v;
  };
  f.for(r0, r1, 1, (t) => {
    const o = batchOffsets(f, axes, p.dims, i32.div(t, per));
    const first = f.let(i32.mul(i32.div(t, per), p.M));
    const at = f.let(i32.rem(t, per));
    const i0 = f.let(i32.mul(i32.div(at, wide), p.mc));
    const j0 = f.let(i32.mul(i32.rem(at, wide), p.nc));
    const j1 = f.let(min(i32.add(j0, p.nc), p.N));
    f.for(i0, min(i32.add(i0, p.mc), p.M), 1, (i) => {
      f.for(j0, j1, lanes, (j) => {
        const a = f.let(i32.add(A, i32.mul(i32.add(o.a, i32.mul(i, p.am)), bytes)));
        const b = f.let(i32.add(B, i32.mul(i32.add(o.b, i32.mul(j, p.bn)), bytes)));
        const sum = f.let(i32s(0));
        const columns = f.let(min(i32.sub(j1, j), lanes));
        const step = f.let(i32.mul(p.bn, bytes));
        const walk = (load: () => Expr): void =>
          f.for(0, p.K, 1, () => {
            f.set(sum, muladd(sum, splat(a), load()));
            f.bump(a, i32.mul(p.ak, bytes));
            f.bump(b, i32.mul(p.bk, bytes));
          });
        f.if(
          i32.eq(columns, lanes),
          () =>
            f.if(
              i32.eq(p.bn, 1),
              () => walk(() => v128.load(b)),
              () => walk(() => gathered(b, step)),
            ),
          () => {
            // fewer columns than lanes: each by itself
            const [a0, b0] = [f.let(a), f.let(b)];
            const total = f.let(i32s(0));
            for (let l = 0; l < lanes - 1; l++)
              f.if(i32.gt_s(columns, l), () => {
                f.set(a, a0);
                f.set(b, i32.add(b0, i32.mul(step, l)));
                f.set(sum, i32s(0));
                walk(() => splat(b));
                f.set(
                  total,
                  kind === "f64"
                    ? f64x2.replace(total, l, f64x2.lane(sum, 0))
                    : i32x4.replace(total, l, i32x4.lane(sum, 0)),
                );
              });
            f.set(sum, total);
          },
        );
        const c = f.let(i32.add(C, i32.mul(i32.add(i32.mul(i32.add(first, i), p.N), j), bytes)));
        for (let l = 0; l < lanes; l++)
          f.if(i32.gt_s(columns, l), () => f.storeLane(bytes === 8 ? 64 : 32, c, sum, l, l * bytes));
      });
    });
  });
  return f;
}

/** product(packed A, packed B, C, ldc elements, rows, columns, k, add): C = A · B, or C + A · B, of packed operands. */
export function packedProduct(m: Module, micro: Func): Func {
  const f = m.function(new Array(8).fill("i32"));
  const [a, b, c, ldc, rows, columns, k, add] = f.args;
  const [strip, panel, line] = [f.let(i32.mul(k, 4 * MR)), f.let(i32.mul(k, 4 * NR)), f.let(i32.mul(ldc, 4))];
  f.for(0, columns, NR, (j) => {
    const from = f.let(a);
    const width = f.let(min(i32.sub(columns, j), NR));
    f.for(0, rows, MR, (i) => {
      const to = i32.add(c, i32.add(i32.mul(i, line), i32.mul(j, 4)));
      f.call(micro, k, from, b, to, line, min(i32.sub(rows, i), MR), width, add);
      f.bump(from, strip);
    });
    f.bump(b, panel);
  });
  return f;
}

/** What other kernels use of the product: packing by fours and by eights, and the micro-kernel. */
export interface ProductParts {
  readonly pack4: Func;
  readonly pack8: Func;
  readonly micro: Func;
}

export const productParts = (m: Module): ProductParts => ({
  pack4: packer(m, 4),
  pack8: packer(m, 8),
  micro: microkernel(m),
});

/** The products by the names of their commands. */
export function gemmKernels(m: Module, { pack4, pack8, micro }: ProductParts): Record<string, Func> {
  const block = gemmBlock(m, pack4, micro);
  return {
    pack_b: packB(m, pack8),
    gemm: gemm(m, block),
    gemm_skinny: gemmSkinny(m),
    gemm_small: gemmSmall(m, pack8, block),
    gemm_f64: plainGemm(m, "f64"),
    gemm_i32: plainGemm(m, "i32"),
  };
}
