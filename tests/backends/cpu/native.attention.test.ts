/**
 * The runtime's attention, forward and backward, against plain loops in float64 over awkward sizes: causal or not,
 * grouped queries, a length, a position, packed projections; the same bits at 1, 2 and 7 threads.
 */
import assert from "node:assert/strict";
import { before, test } from "node:test";
import { NativeRuntime } from "../../../src/backends/cpu/native.ts";
import type { AttentionDesc } from "../../../src/backends/cpu/plans.ts";
import { planAttention, planAttentionBackward } from "../../../src/backends/cpu/plans.ts";
import { findCompiler } from "../../../src/backends/cpu/toolchain.ts";
import { random, runCommands } from "./native.harness.ts";

const skip = findCompiler() ? false : "no C compiler here";
let runtime: NativeRuntime;
before(async () => {
  if (!skip) runtime = await NativeRuntime.open();
});

interface Case {
  B?: number;
  H: number;
  Hkv?: number;
  Tq: number;
  Tk: number;
  D: number;
  causal?: boolean;
  length?: number;
  offset?: number;
}

function check(c: Case): void {
  const { B = 1, H, Hkv = H, Tq, Tk, D, causal = false, length, offset } = c;
  const what = JSON.stringify(c);
  const rand = random(Tq * 1000 + Tk + D);
  const values = (n: number) => Float32Array.from({ length: n }, () => rand() * 4 - 2);
  // time before heads, as projections give it: [B, T, heads, D]
  const strides = (T: number, heads: number) => [T * heads * D, D, heads * D] as const;
  const desc: AttentionDesc = {
    B,
    H,
    Hkv,
    Tq,
    Tk,
    D,
    causal,
    hasLength: length !== undefined,
    hasOffset: offset !== undefined,
    q: strides(Tq, H),
    k: strides(Tk, Hkv),
    v: strides(Tk, Hkv),
    o: strides(Tq, H),
    dO: strides(Tq, H),
    dq: strides(Tq, H),
    dk: strides(Tk, Hkv),
    dv: strides(Tk, Hkv),
  };
  const q = values(B * Tq * H * D);
  const k = values(B * Tk * Hkv * D);
  const v = values(B * Tk * Hkv * D);
  const dO = values(q.length);
  const scale = 1 / Math.sqrt(D);
  const scalars = [scale, ...(length === undefined ? [] : [length]), ...(offset === undefined ? [] : [offset])];
  const nan = (n: number) => new Float32Array(n).fill(Number.NaN);
  const { result } = runCommands(
    runtime,
    [planAttention(runtime.shape, desc), planAttentionBackward(runtime.shape, desc)],
    {
      q,
      k,
      v,
      dO,
      o: nan(q.length),
      lse: nan(B * H * Tq),
      dq: nan(q.length),
      dk: nan(k.length),
      dv: nan(v.length),
    },
    scalars,
  );

  const o = new Float64Array(q.length);
  const lse = new Float64Array(B * H * Tq);
  const dq = new Float64Array(q.length);
  const dk = new Float64Array(k.length);
  const dv = new Float64Array(v.length);
  const dot = (x: Float32Array, i: number, y: Float32Array, j: number) => {
    let s = 0;
    for (let d = 0; d < D; d++) s += x[i + d]! * y[j + d]!;
    return s;
  };
  for (let b = 0; b < B; b++)
    for (let h = 0; h < H; h++)
      for (let i = 0; i < Tq; i++) {
        const qi = ((b * Tq + i) * H + h) * D;
        const kj = (j: number) => ((b * Tk + j) * Hkv + Math.floor(h / (H / Hkv))) * D;
        const n = Math.max(0, Math.min(Tk, length ?? Tk, causal ? (offset ?? 0) + i + 1 : Tk));
        const s = Array.from({ length: n }, (_, j) => dot(q, qi, k, kj(j)) * scale);
        const m = Math.max(...s);
        const z = s.reduce((t, x) => t + Math.exp(x - m), 0);
        lse[(b * H + h) * Tq + i] = m + Math.log(z);
        const p = s.map((x) => Math.exp(x - m) / z);
        p.forEach((pj, j) => {
          for (let d = 0; d < D; d++) o[qi + d]! += pj * v[kj(j) + d]!;
        });
        let delta = 0;
        for (let d = 0; d < D; d++) delta += o[qi + d]! * dO[qi + d]!;
        p.forEach((pj, j) => {
          const ds = pj * (dot(dO, qi, v, kj(j)) - delta) * scale;
          for (let d = 0; d < D; d++) {
            dv[kj(j) + d]! += pj * dO[qi + d]!;
            dk[kj(j) + d]! += ds * q[qi + d]!;
            dq[qi + d]! += ds * k[kj(j) + d]!;
          }
        });
      }
  const near = (name: string, expected: Float64Array, tolerance: number) => {
    expected.forEach((e, i) => {
      const got = result[name]![i]!;
      if (!(Math.abs(got - e) <= tolerance * (1 + Math.abs(e))) && !(got === e))
        assert.fail(`${what} ${name}[${i}]: ${got}, expected ${e}`);
    });
  };
  near("o", o, 5e-6);
  near("lse", lse, 5e-6);
  near("dq", dq, 3e-5);
  near("dk", dk, 3e-5);
  near("dv", dv, 3e-5);
}

test("attention over awkward sizes, causal and not", { skip }, () => {
  for (const T of [1, 2, 3, 6, 7, 15, 17, 33, 97])
    for (const D of [1, 5, 16, 33, 64]) for (const causal of [false, true]) check({ H: 2, Tq: T, Tk: T, D, causal });
  check({ B: 2, H: 3, Tq: 5, Tk: 97, D: 16 });
  check({ B: 2, H: 3, Tq: 97, Tk: 5, D: 17 });
  check({ H: 1, Tq: 40, Tk: 17, D: 8, causal: true });
  check({ H: 1, Tq: 17, Tk: 40, D: 8, causal: true });
});

test("long contexts go through several blocks of keys and of queries", { skip }, () => {
  check({ H: 1, Tq: 600, Tk: 600, D: 32, causal: true });
  check({ H: 1, Tq: 300, Tk: 777, D: 24 });
  check({ H: 2, Tq: 2, Tk: 1000, D: 64 });
});

test("grouped queries, a number of valid keys, a position of the first query", { skip }, () => {
  check({ B: 2, H: 6, Hkv: 2, Tq: 33, Tk: 33, D: 16, causal: true });
  check({ H: 4, Hkv: 1, Tq: 1, Tk: 97, D: 20, causal: true, offset: 40, length: 41 });
  for (const [H, Hkv] of [
    [3, 1],
    [10, 2],
    [24, 2],
    [17, 1],
  ])
    for (const D of [7, 16, 64]) check({ B: 2, H, Hkv, Tq: 1, Tk: 300, D, causal: true, offset: 270, length: 271 });
  check({ H: 2, Tq: 15, Tk: 97, D: 16, length: 33 });
  check({ H: 2, Tq: 17, Tk: 300, D: 16, causal: true, offset: 250, length: 260 });
  check({ H: 2, Tq: 300, Tk: 300, D: 16, causal: true, length: 270 });
});

test("a query that sees no key gets zeros, and so do all gradients", { skip }, () => {
  const strides = [40, 8, 8] as const;
  const desc = {
    B: 1,
    H: 1,
    Hkv: 1,
    Tq: 5,
    Tk: 5,
    D: 8,
    causal: false,
    hasLength: true,
    q: strides,
    k: strides,
    v: strides,
    o: strides,
    dO: strides,
    dq: strides,
    dk: strides,
    dv: strides,
  };
  const one = () => new Float32Array(40).fill(1);
  const { result } = runCommands(
    runtime,
    [planAttention(runtime.shape, desc), planAttentionBackward(runtime.shape, desc)],
    { q: one(), k: one(), v: one(), dO: one(), o: one(), lse: one(), dq: one(), dk: one(), dv: one() },
    [1, 0],
  );
  for (const name of ["o", "dq", "dk", "dv"])
    assert.ok(
      result[name]!.every((x) => x === 0),
      name,
    );
});
