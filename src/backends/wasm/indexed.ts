/**
 * Scatter, sort, prefix sums, fill and copy of the runtime module. The commands and their parameters are `cpu/plans.ts`'s.
 * A destination belongs to one tile, and a tile goes through its sources in order: the same bits at any number of threads.
 */
import { dtypes } from "../../core/dtype.ts";
import { buffer, ceilDiv, fail, min, parameters, scratchOf } from "./command.ts";
import type { Func, Local } from "./function.ts";
import { constant, type Expr, f32, f64, i32, i64, select } from "./instructions.ts";
import { CMD } from "./layout.ts";
import type { Module } from "./module.ts";

const COLUMNS = 64;

/** A dtype as single numbers. */
interface Scalar {
  readonly bytes: number;
  readonly load: (at: Expr) => Expr;
  readonly store: (f: Func, at: Expr, x: Expr) => void;
  readonly add: (a: Expr, b: Expr) => Expr;
  /** b if it is larger, or NaN; else a. */
  readonly larger: (a: Local, b: Local) => Expr;
}
const float = (type: "f32" | "f64", bytes: number): Scalar => {
  const op = type === "f32" ? f32 : f64;
  return {
    bytes,
    load: (at) => op.load(at),
    store: (f, at, x) => f.store(type, at, x),
    add: op.add,
    larger: (a, b) => select(i32.or(op.gt(b, a), op.ne(b, b)), b, a),
  };
};
const int32: Scalar = {
  bytes: 4,
  load: (at) => i32.load(at),
  store: (f, at, x) => f.store("i32", at, x),
  add: i32.add,
  larger: (a, b) => select(i32.gt_s(b, a), b, a),
};
const scalars: readonly (readonly [code: number, s: Scalar])[] = [
  [dtypes.float32.code, float("f32", 4)],
  [dtypes.float64.code, float("f64", 8)],
  [dtypes.int32.code, int32],
];

/** The statements once for each dtype, of which the run takes one. */
function byType(f: Func, dtype: Expr, body: (s: Scalar) => void): void {
  for (const [code, s] of scalars) f.if(i32.eq(dtype, code), () => body(s));
}

/** scatter: out[o, index[o, i, n], n] op= src[o, i, n]; a row of the command is (outer, block of 64 columns). */
function scatter(m: Module): Func {
  const f = m.function(["i32", "i32", "i32", "i32"]);
  const [cmd, r0, r1] = f.args;
  const names = ["outer", "count", "inner", "size", "dtype", "op", "init", "error", "io", "ii", "in", "so", "si", "sn"];
  const p = parameters(f, cmd, names);
  const [out, index, src] = [0, 1, 2].map((i) => buffer(f, cmd, i));
  const blocks = f.let(ceilDiv(p["inner"], COLUMNS));
  f.for(r0, r1, 1, (t) => {
    const o = f.let(i32.div(t, blocks));
    const n0 = f.let(i32.mul(i32.rem(t, blocks), COLUMNS));
    const n1 = f.let(min(i32.add(n0, COLUMNS), p["inner"]));
    byType(f, p["dtype"], (s) => {
      const first = f.let(i32.mul(i32.mul(o, p["size"]), p["inner"]));
      const line = f.let(i32.mul(p["inner"], s.bytes));
      const to = f.let(i32.add(out, i32.mul(first, s.bytes)));
      const bytes = f.let(i32.mul(i32.sub(n1, n0), s.bytes));
      const clear = (each: (at: Local) => void): void => {
        const at = f.let(i32.add(to, i32.mul(n0, s.bytes)));
        f.for(0, p["size"], 1, () => {
          each(at);
          f.bump(at, line);
        });
      };
      f.if(i32.eq(p["init"], 1), () => clear((at) => f.fillMemory(at, 0, bytes)));
      f.if(i32.eq(p["init"], 2), () => {
        const shift = f.let(i32.sub(i32.load(i32.load(cmd, CMD.buffers), 12), out));
        clear((at) => f.copyMemory(at, i32.add(at, shift), bytes));
      });
      f.for(0, p["count"], 1, (i) => {
        f.for(n0, n1, 1, (n) => {
          const place = i32.add(i32.add(i32.mul(o, p["io"]), i32.mul(i, p["ii"])), i32.mul(n, p["in"]));
          const at = f.let(i32.load(i32.add(index, i32.mul(place, 4))));
          f.if(
            i32.ge_u(at, p["size"]),
            () => {
              const position = i32.add(i32.mul(i32.add(i32.mul(o, p["count"]), i), p["inner"]), n);
              fail(f, p["error"], position);
            },
            () => {
              const from = i32.add(i32.add(i32.mul(o, p["so"]), i32.mul(i, p["si"])), i32.mul(n, p["sn"]));
              const x = f.let(s.load(i32.add(src, i32.mul(from, s.bytes))));
              const d = f.let(i32.add(i32.add(to, i32.mul(at, line)), i32.mul(n, s.bytes)));
              f.if(
                i32.eq(p["op"], 1),
                () => s.store(f, d, x),
                () => {
                  const old = f.let(s.load(d));
                  s.store(f, d, select(i32.eq(p["op"], 0), s.add(old, x), s.larger(old, x)));
                },
              );
            },
          );
        });
      });
    });
  });
  return f;
}

/** The place of a number in the order of its dtype, as an unsigned integer: −0 equals 0, NaN is above everything. */
function orderKey(f: Func, dtype: Expr, at: (bytes: number) => Expr): Local {
  const key = f.local("i64");
  f.if(i32.eq(dtype, dtypes.int32.code), () => {
    f.set(key, i64.extend_u(i32.xor(i32.load(at(4)), -2147483648)));
  });
  f.if(i32.eq(dtype, dtypes.float32.code), () => {
    const x = f.let(f32.add(f32.load(at(4)), 0));
    const u = f.let(i32.reinterpret(x));
    const ordered = select(i32.lt_s(u, 0), i32.xor(u, -1), i32.or(u, -2147483648));
    f.set(key, i64.extend_u(select(f32.ne(x, x), constant.i32(-1), ordered)));
  });
  f.if(i32.eq(dtype, dtypes.float64.code), () => {
    const x = f.let(f64.add(f64.load(at(8)), 0));
    const u = f.let(i64.reinterpret(x));
    const top = i64.shl(constant.i64(1), constant.i64(63));
    const negative = i64.eq(i64.shr_u(u, 63), 1);
    const ordered = select(negative, i64.xor(u, constant.i64(-1)), i64.or(u, top));
    f.set(key, select(f64.ne(x, x), constant.i64(-1), ordered));
  });
  return key;
}

/**
 * argsort: b = [x, indices, sorted values where asked]; a row of the command is a line. Items of (key, position) are put in
 * order by digits of 8 bits, the least first, which is stable; short lines by insertion.
 */
function argsort(m: Module): Func {
  const f = m.function(["i32", "i32", "i32", "i32"]);
  const [cmd, r0, r1, tid] = f.args;
  const p = parameters(f, cmd, ["n", "inner", "dtype", "descending", "values"]);
  const [x, indices] = [buffer(f, cmd, 0), buffer(f, cmd, 1)];
  const wide = f.let(i32.eq(p.dtype, dtypes.float64.code));
  const size = f.let(select(wide, constant.i32(8), constant.i32(4)));
  const step = f.let(i32.mul(p.inner, size));
  const scratch = f.let(scratchOf(tid));
  const counts = f.let(i32.add(scratch, i32.mul(p.n, 32)));
  f.for(r0, r1, 1, (row) => {
    const first = f.let(i32.add(i32.mul(i32.mul(i32.div(row, p.inner), p.n), p.inner), i32.rem(row, p.inner)));
    const line = f.let(i32.add(x, i32.mul(first, size)));
    const [a, b] = [f.let(scratch), f.let(i32.add(scratch, i32.mul(p.n, 16)))];
    const item = (list: Expr, i: Expr): Expr => i32.add(list, i32.mul(i, 16));
    const put = (at: Expr, key: Expr, place: Expr): void => {
      f.store("i64", at, key);
      f.store("i32", at, place, 8);
    };
    f.for(0, p.n, 1, (i) => {
      const key = orderKey(f, p.dtype, () => i32.add(line, i32.mul(i, step)));
      f.if(p.descending, () => {
        f.set(key, i64.xor(key, constant.i64(-1)));
        f.if(i32.eqz(wide), () => f.set(key, i64.and(key, 0xffffffff)));
      });
      put(item(a, i), key, i);
    });
    f.if(
      i32.le_s(p.n, 64),
      () => {
        f.for(1, p.n, 1, (i) => {
          const key = f.let(i64.load(item(a, i)));
          const place = f.let(i32.load(item(a, i), 8));
          const j = f.let(i);
          f.block((done) => {
            f.loop((again) => {
              done(i32.eqz(j));
              const before = f.let(item(a, i32.sub(j, 1)));
              done(i32.eqz(i64.gt_u(i64.load(before), key)));
              put(i32.add(before, 16), i64.load(before), i32.load(before, 8));
              f.bump(j, -1);
              again(1);
            });
          });
          put(item(a, j), key, place);
        });
      },
      () => {
        f.for(0, i32.mul(size, 8), 8, (shift) => {
          const by = f.let(i64.extend_u(shift));
          const digit = (at: Expr): Expr =>
            i32.add(counts, i32.mul(i32.wrap(i64.and(i64.shr_u(i64.load(at), by), 255)), 4));
          f.fillMemory(counts, 0, 1024);
          f.for(0, p.n, 1, (i) => {
            const d = f.let(digit(item(a, i)));
            f.store("i32", d, i32.add(i32.load(d), 1));
          });
          f.if(i32.ne(i32.load(digit(a)), p.n), () => {
            const sum = f.let(0);
            f.for(0, 1024, 4, (d) => {
              const at = f.let(i32.add(counts, d));
              const count = f.let(i32.load(at));
              f.store("i32", at, sum);
              f.bump(sum, count);
            });
            f.for(0, p.n, 1, (i) => {
              const from = f.let(item(a, i));
              const d = f.let(digit(from));
              const to = f.let(i32.load(d));
              f.store("i32", d, i32.add(to, 1));
              put(item(b, to), i64.load(from), i32.load(from, 8));
            });
            const other = f.let(a);
            f.set(a, b);
            f.set(b, other);
          });
        });
      },
    );
    f.for(0, p.n, 1, (i) => {
      const place = f.let(i32.load(item(a, i), 8));
      const to = f.let(i32.add(first, i32.mul(i, p.inner)));
      f.store("i32", i32.add(indices, i32.mul(to, 4)), place);
      f.if(p.values, () => {
        const values = i32.load(i32.load(cmd, CMD.buffers), 8);
        f.copyMemory(i32.add(values, i32.mul(to, size)), i32.add(line, i32.mul(place, step)), size);
      });
    });
  });
  return f;
}

/** cumulative: a running sum, product or maximum, b = [x, y]. float32 is accumulated in float64. */
function cumulative(m: Module): Func {
  const f = m.function(["i32", "i32", "i32", "i32"]);
  const [cmd, r0, r1] = f.args;
  const p = parameters(f, cmd, ["n", "inner", "dtype", "op", "reverse"]);
  const [x, y] = [buffer(f, cmd, 0), buffer(f, cmd, 1)];
  const blocks = f.let(ceilDiv(p.inner, COLUMNS));
  f.for(r0, r1, 1, (t) => {
    const n0 = f.let(i32.mul(i32.rem(t, blocks), COLUMNS));
    const first = f.let(i32.mul(i32.mul(i32.div(t, blocks), p.n), p.inner));
    f.for(n0, min(i32.add(n0, COLUMNS), p.inner), 1, (j) => {
      const walk = (bytes: number, each: (at: Expr, isFirst: Expr) => void): void => {
        const step = f.let(i32.mul(select(p.reverse, constant.i32(-bytes), constant.i32(bytes)), p.inner));
        const last = i32.mul(i32.sub(p.n, 1), p.inner);
        const start = i32.add(i32.add(first, j), select(p.reverse, last, constant.i32(0)));
        const at = f.let(i32.mul(start, bytes));
        f.for(0, p.n, 1, (k) => {
          each(at, i32.eqz(k));
          f.bump(at, step);
        });
      };
      const float = (bytes: 4 | 8): void => {
        const acc = f.local("f64");
        walk(bytes, (at, isFirst) => {
          const from = i32.add(x, at);
          const v = f.let(bytes === 4 ? f64.promote(f32.load(from)) : f64.load(from));
          const larger = select(i32.or(f64.gt(v, acc), f64.ne(v, v)), v, acc);
          const sum = select(i32.eq(p.op, 0), f64.add(acc, v), select(i32.eq(p.op, 1), f64.mul(acc, v), larger));
          f.set(acc, select(isFirst, v, sum));
          const to = i32.add(y, at);
          if (bytes === 4) f.store("f32", to, f32.demote(acc));
          else f.store("f64", to, acc);
        });
      };
      f.if(i32.eq(p.dtype, dtypes.float32.code), () => float(4));
      f.if(i32.eq(p.dtype, dtypes.float64.code), () => float(8));
      f.if(i32.eq(p.dtype, dtypes.int32.code), () => {
        const acc = f.local("i32");
        walk(4, (at, isFirst) => {
          const v = f.let(i32.load(i32.add(x, at)));
          const larger = select(i32.gt_s(v, acc), v, acc);
          const sum = select(i32.eq(p.op, 0), i32.add(acc, v), select(i32.eq(p.op, 1), i32.mul(acc, v), larger));
          f.set(acc, select(isFirst, v, sum));
          f.store("i32", i32.add(y, at), acc);
        });
      });
    });
  });
  return f;
}

/** fill: b = [x]; params: element size, bits of the value; a row is an element. */
function fill(m: Module): Func {
  const f = m.function(["i32", "i32", "i32", "i32"]);
  const [cmd, r0, r1] = f.args;
  const p = parameters(f, cmd, ["size", "bits"]);
  const x = buffer(f, cmd, 0);
  const from = f.let(i32.add(x, i32.mul(r0, p.size)));
  const bytes = f.let(i32.mul(i32.sub(r1, r0), p.size));
  f.if(i32.or(i32.eqz(p.bits), i32.eq(p.size, 1)), () => {
    f.fillMemory(from, p.bits, bytes);
    f.return();
  });
  f.for(0, bytes, p.size, (i) => {
    const at = f.let(i32.add(from, i));
    f.if(i32.eq(p.size, 2), () => f.store("i16", at, p.bits));
    f.if(i32.eq(p.size, 4), () => f.store("i32", at, p.bits));
    f.if(i32.eq(p.size, 8), () => f.store("i64", at, i64.extend_u(p.bits)));
  });
  return f;
}

/** copy: b = [from, to]; params: element size, axes, then (size, from's stride, to's stride) each; a row is an element. */
function copy(m: Module): Func {
  const f = m.function(["i32", "i32", "i32", "i32"]);
  const [cmd, r0, r1] = f.args;
  const p = parameters(f, cmd, ["size", "n"]);
  const axes = f.let(i32.add(i32.load(cmd, CMD.params), 8));
  const [from, to] = [buffer(f, cmd, 0), buffer(f, cmd, 1)];
  const innermost = f.let(i32.add(axes, i32.mul(i32.sub(p.n, 1), 12)));
  const beside = i32.and(i32.eq(i32.load(innermost, 4), 1), i32.eq(i32.load(innermost, 8), 1));
  const straight = f.let(i32.or(i32.eqz(p.n), i32.and(i32.eq(p.n, 1), beside)));
  f.if(straight, () => {
    const at = f.let(i32.mul(r0, p.size));
    f.copyMemory(i32.add(to, at), i32.add(from, at), i32.mul(i32.sub(r1, r0), p.size));
    f.return();
  });
  f.for(r0, r1, 1, (r) => {
    const [rest, a, b] = [f.let(r), f.let(0), f.let(0)];
    const axis = f.let(innermost);
    f.for(0, p.n, 1, () => {
      const at = f.let(i32.rem(rest, i32.load(axis)));
      f.set(rest, i32.div(rest, i32.load(axis)));
      f.bump(a, i32.mul(at, i32.load(axis, 4)));
      f.bump(b, i32.mul(at, i32.load(axis, 8)));
      f.bump(axis, -12);
    });
    f.copyMemory(i32.add(to, i32.mul(b, p.size)), i32.add(from, i32.mul(a, p.size)), p.size);
  });
  return f;
}

/** These kernels by the names of their commands. */
export const indexedKernels = (m: Module): Record<string, Func> => ({
  scatter: scatter(m),
  argsort: argsort(m),
  cumulative: cumulative(m),
  fill: fill(m),
  copy: copy(m),
});
