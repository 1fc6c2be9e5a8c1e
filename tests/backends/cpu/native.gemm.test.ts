/**
 * The runtime's matrix products against plain loops in float64: awkward sizes, every layout, batches, 16-bit operands,
 * epilogues, post commands, row sums, and the same bits at 1, 2 and 7 threads. Random choices print their seed.
 */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { before, test } from "node:test";
import { fileURLToPath } from "node:url";
import type { ContractDesc } from "../../../src/backends/cpu/contract.ts";
import { kernelPrelude, NativeRuntime, ProgramBuilder } from "../../../src/backends/cpu/native.ts";
import { features, findCompiler } from "../../../src/backends/cpu/toolchain.ts";
import type { DType } from "../../../src/core/dtype.ts";
import { dtypes, fromBfloat16Bits, toBfloat16Bits } from "../../../src/core/dtype.ts";
import { typescript } from "../../support/typescript.ts";

const skip = findCompiler() ? false : "no C compiler here";
let runtime: NativeRuntime;
let epilogue = 0;
let post = 0;
before(async () => {
  if (skip) return;
  runtime = await NativeRuntime.open();
  const head = kernelPrelude();
  // out = 2 * t + bias[j], and the row's blocks counted by the post command
  [epilogue, post] = (await runtime.compileKernels([
    {
      symbol: "epilogue",
      source: `${head}\nvoid epilogue(const Cmd *c, const float *T, nb_i64 ldt, nb_i64 i0, nb_i64 j0, nb_i64 mr, nb_i64 nr) {
        float *y = (float *)c->b[0]; const float *bias = (const float *)c->b[1]; const nb_i64 N = c->p[0];
        for (nb_i64 i = 0; i < mr; i++) for (nb_i64 j = 0; j < nr; j++) y[(i0 + i) * N + j0 + j] = 2 * T[i * ldt + j] + bias[j0 + j]; }`,
    },
    {
      symbol: "post",
      source: `${head}\nvoid post(const Cmd *c, nb_i64 r0, nb_i64 r1, int tid) {
        const float *y = (const float *)c->b[0]; float *rows = (float *)c->b[1]; float *starts = (float *)c->b[2]; const nb_i64 N = c->p[0];
        starts[r0 / c->p[1]] += r0 % c->p[1] == 0 ? 1 : 1000;
        for (nb_i64 i = r0; i < r1; i++) { float m = y[i * N]; for (nb_i64 j = 1; j < N; j++) m = y[i * N + j] > m ? y[i * N + j] : m; rows[i] += m; } }`,
    },
  ])) as [number, number];
});

/** A small generator (mulberry32), so that a failing case can be named by its seed. */
function random(seed: number): () => number {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

const product = (a: readonly number[]) => a.reduce((x, y) => x * y, 1);
/** Exact halves only: values k / 64 with |k| <= 64. */
const toFloat16 = (x: number) => {
  const k = Math.round(x * 64);
  if (k === 0) return 0;
  const e = Math.floor(Math.log2(Math.abs(k)));
  return (k < 0 ? 0x8000 : 0) | ((e - 6 + 15) << 10) | Math.round((Math.abs(k) / 2 ** e - 1) * 1024);
};

interface Operand {
  pointer: number;
  values: Float64Array;
  strides: number[];
  dtype: DType;
}

/** An operand of `sizes` laid out in the order of `axes` (slowest first), with a gap after each row where `gap`. */
function operand(
  sizes: number[],
  axes: number[],
  dtype: DType,
  rand: () => number,
  shared: boolean[] = [],
  gap = 0,
  rounds = false,
): Operand {
  const strides = sizes.map(() => 0);
  let size = 1;
  for (const axis of [...axes].reverse()) {
    if (shared[axis]) continue;
    strides[axis] = size;
    size *= sizes[axis]!;
    if (size === sizes[axis]) size += gap;
  }
  const pointer = runtime.alloc(size * dtypes[dtype].bytes);
  const raw = new dtypes[dtype].array(runtime.view(pointer, size * dtypes[dtype].bytes));
  const values = new Float64Array(size);
  for (let i = 0; i < size; i++) {
    if (rounds) {
      // floats of all lengths and signs, ties among them, which count as they are when rounded
      raw[i] =
        i % 5 === 0 ? (1 + (2 * (i % 128) + 1) / 256) * 2 ** -3 : (rand() * 2 - 1) * 2 ** Math.round(rand() * 6 - 4);
      values[i] = fromBfloat16Bits(toBfloat16Bits(raw[i]!));
      continue;
    }
    const k = Math.round((rand() * 2 - 1) * 64);
    values[i] = dtype === "int32" ? k * 1_000_003 : k / 64;
    raw[i] =
      dtype === "bfloat16" ? toBfloat16Bits(values[i]!) : dtype === "float16" ? toFloat16(values[i]!) : values[i]!;
  }
  return { pointer, values, strides, dtype };
}

type Options = Partial<ContractDesc> & {
  batch?: number[];
  aOrder?: "mk" | "km" | "m-k";
  bOrder?: "kn" | "nk";
  shareB?: boolean;
  gap?: number;
};

function check(M: number, N: number, K: number, options: Options = {}, seed = M * 1e6 + N * 1e3 + K): string {
  const { batch = [], aOrder = "mk", bOrder = "kn", shareB = false, gap = 0, out = "float32" } = options;
  const rand = random(seed);
  const nb = batch.length;
  const lead = batch.map((_, i) => i);
  const a = operand(
    [...batch, M, K],
    aOrder === "m-k" ? [nb, ...lead, nb + 1] : aOrder === "mk" ? [...lead, nb, nb + 1] : [...lead, nb + 1, nb],
    options.a?.dtype ?? out,
    rand,
    [],
    gap,
  );
  const b = operand(
    [...batch, K, N],
    bOrder === "kn" ? [...lead, nb, nb + 1] : [...lead, nb + 1, nb],
    options.b?.dtype ?? out,
    rand,
    shareB ? batch.map(() => true) : [],
    gap,
    options.rounds,
  );
  const { hasEpilogue, hasPost, asum, accumulate, rounds } = options;
  const plan = runtime.planContract({ batch, M, N, K, a, b, out, hasEpilogue, hasPost, asum, accumulate, rounds });
  const rows = product(batch) * M;
  const bytes = dtypes[out].bytes;
  const blocks = Math.ceil(rows / plan.rowBlock);
  const sizes = {
    out: rows * N * bytes,
    packed: plan.packed,
    asum: rows * 4,
    bias: N * 4,
    best: rows * 4,
    starts: blocks * 4,
  };
  const pointers = Object.fromEntries(
    Object.entries(sizes).map(([name, n]) => [name, runtime.alloc(n + 64)]),
  ) as Record<keyof typeof sizes, number>;
  const bias = new Float32Array(runtime.view(pointers.bias, 4 * N)).map((_, i) => i);
  new Float32Array(runtime.view(pointers.bias, 4 * N)).set(bias);
  const slots = ["a", "b", "packed", "out", "asum", "bias", "best", "starts"] as const;
  const at = (name: string): [number, number] => [slots.indexOf(name as "a"), 0];
  const builder = new ProgramBuilder();
  const epi = hasEpilogue
    ? builder.command({ fn: 0, rows: 0, grain: 1, buffers: [at("out"), at("bias")], params: [N] })
    : undefined;
  const after = hasPost
    ? builder.command({
        fn: 1,
        rows: 0,
        grain: 1,
        buffers: [at("out"), at("best"), at("starts")],
        params: [N, plan.rowBlock],
      })
    : undefined;
  if (plan.pack) builder.phase([builder.command({ ...plan.pack, buffers: plan.pack.buffers.map(at) })]);
  builder.phase([
    builder.command({
      ...plan.main,
      buffers: plan.main.buffers.map(at),
      ...(epi === undefined ? {} : { epilogue: epi }),
      ...(after === undefined ? {} : { post: after }),
    }),
  ]);
  const program = runtime.createProgram(
    builder.build({ numBuffers: slots.length, numScalars: 0, scratchBytes: plan.scratchBytes }),
    [epilogue, post],
  );
  const bufs = Float64Array.of(
    a.pointer,
    b.pointer,
    pointers.packed,
    pointers.out,
    pointers.asum,
    pointers.bias,
    pointers.best,
    pointers.starts,
  );
  const what = `${plan.main.fn} ${JSON.stringify({ M, N, K, ...options })}`;

  const result = new dtypes[out].array(runtime.view(pointers.out, sizes.out));
  let first: Uint8Array | undefined;
  for (const threads of [1, 2, 7]) {
    runtime.setThreads(threads);
    result.fill(accumulate ? 3 : Number.NaN);
    new Float32Array(runtime.view(pointers.best, sizes.best)).fill(0);
    new Float32Array(runtime.view(pointers.starts, sizes.starts)).fill(0);
    assert.equal(program.run(bufs, new Float64Array(0)), 0);
    const bits = new Uint8Array(result.buffer.slice(0));
    if (first) assert.ok(Buffer.from(bits).equals(Buffer.from(first)), `${what}: other bits at ${threads} threads`);
    first ??= bits;
  }
  runtime.setThreads(2);

  const sums = new Float32Array(runtime.view(pointers.asum, sizes.asum));
  const best = new Float32Array(runtime.view(pointers.best, sizes.best));
  const index = new Array(nb).fill(0);
  for (let t = 0; t < product(batch); t++) {
    for (let d = nb - 1, rest = t; d >= 0; d--) {
      index[d] = rest % batch[d]!;
      rest = Math.floor(rest / batch[d]!);
    }
    const oa = index.reduce((s, x, d) => s + x * a.strides[d]!, 0);
    const ob = index.reduce((s, x, d) => s + x * b.strides[d]!, 0);
    for (let m = 0; m < M; m++) {
      let largest = -Infinity;
      let sumA = 0;
      for (let k = 0; k < K; k++) sumA += a.values[oa + m * a.strides[nb]! + k * a.strides[nb + 1]!]!;
      for (let n = 0; n < N; n++) {
        let s = 0;
        let size = 0;
        for (let k = 0; k < K; k++) {
          const x =
            a.values[oa + m * a.strides[nb]! + k * a.strides[nb + 1]!]! *
            b.values[ob + k * b.strides[nb]! + n * b.strides[nb + 1]!]!;
          if (out === "int32")
            s =
              (s +
                Math.imul(
                  a.values[oa + m * a.strides[nb]! + k * a.strides[nb + 1]!]!,
                  b.values[ob + k * b.strides[nb]! + n * b.strides[nb + 1]!]!,
                )) |
              0;
          else s += x;
          size += Math.abs(x);
        }
        if (accumulate) s = out === "int32" ? (s + 3) | 0 : s + 3;
        if (hasEpilogue) s = 2 * s + n;
        const got = result[(t * M + m) * N + n]!;
        const tolerance =
          out === "float32" ? 1e-6 * (size + Math.abs(s) + 1) : out === "float64" ? 1e-13 * (size + 1) : 0;
        if (!(Math.abs(got - s) <= tolerance)) assert.fail(`${what} at [${t}, ${m}, ${n}]: ${got}, expected ${s}`);
        largest = Math.max(largest, got);
      }
      if (asum)
        assert.ok(
          Math.abs(sums[t * M + m]! - sumA) <= 1e-5 * (K + 1),
          `${what}: row sum ${m} is ${sums[t * M + m]}, expected ${sumA}`,
        );
      if (hasPost) assert.equal(best[t * M + m], largest, `${what}: post on row ${t * M + m}`);
    }
  }
  if (hasPost)
    assert.ok(
      new Float32Array(runtime.view(pointers.starts, sizes.starts)).every((v) => v === 1),
      `${what}: row blocks`,
    );
  program.dispose();
  for (const p of [a.pointer, b.pointer, ...Object.values(pointers)]) runtime.free(p);
  return plan.main.fn;
}

const sizes = [1, 5, 6, 7, 15, 17, 33, 97];

test("gemm equals plain loops for awkward sizes and every layout of A and B", { skip }, () => {
  const used = new Set<string>();
  for (const M of sizes)
    for (const N of [1, 10, 16, 17, 33, 65])
      for (const K of [1, 7, 33, 97])
        for (const aOrder of ["mk", "km"] as const)
          used.add(check(M, N, K, { aOrder, bOrder: (M + N + K) % 2 ? "kn" : "nk" }));
  assert.deepEqual([...used].sort(), ["gemm", "gemm_skinny"]);
});

test("gemm with several blocks of K, rows and columns", { skip }, () => {
  check(300, 97, 300, { aOrder: "km", asum: true });
  check(97, 300, 1100, { bOrder: "nk" });
  check(130, 1000, 40, { aOrder: "km", bOrder: "nk", gap: 3 });
  check(33, 40, 1024, { gap: 0 });
  check(120, 65, 512, { asum: true });
  check(9, 5, 0);
});

test("large results: tiles of twice the rows, and rows of whole vectors written past the caches", { skip }, () => {
  for (const aOrder of ["mk", "km"] as const) {
    check(1030, 528, 9, { aOrder, asum: true });
    check(1030, 528, 9, { aOrder, bOrder: "nk", accumulate: true });
    check(205, 656, 5, { aOrder, batch: [5], bOrder: "nk" });
    check(1030, 521, 5, { aOrder });
    check(1541, 2050, 3, { aOrder });
  }
});

test("gemm adds to C, hands tiles to an epilogue and strips to a post command", { skip }, () => {
  for (const [M, N, K] of [
    [97, 65, 300],
    [300, 33, 1100],
    [6, 100, 64],
    [15, 17, 7],
  ] as const) {
    check(M, N, K, { accumulate: true });
    check(M, N, K, { hasEpilogue: true, bOrder: "nk" });
    check(M, N, K, { hasEpilogue: true, aOrder: "km", asum: true });
    check(M, N, K, { hasPost: true });
    check(M, N, K, { hasPost: true, hasEpilogue: true, bOrder: "nk", gap: 5 });
  }
});

test("batched products: own B, shared B, small and large, axes that merge and axes that do not", { skip }, () => {
  const used = new Set<string>();
  for (const options of [
    {},
    { hasEpilogue: true },
    { hasPost: true },
    { asum: true },
    { accumulate: true },
  ] as Options[]) {
    used.add(check(17, 33, 15, { batch: [2, 3], ...options }));
    used.add(check(17, 33, 15, { batch: [2, 3], aOrder: "m-k", bOrder: "nk", ...options }));
    used.add(check(33, 17, 7, { batch: [3], shareB: true, ...options }));
    used.add(check(33, 17, 7, { batch: [3], shareB: true, aOrder: "km", ...options }));
    used.add(check(5, 17, 33, { batch: [4], ...options }));
    used.add(check(100, 300, 300, { batch: [2], ...options }));
  }
  assert.deepEqual([...used].sort(), ["gemm", "gemm_skinny", "gemm_small"]);
});

test("bfloat16 and float16 operands, on either side, in every kernel", { skip }, () => {
  for (const half of ["bfloat16", "float16"] as const)
    for (const [M, N, K] of [
      [33, 65, 97],
      [6, 70, 97],
      [1, 33, 300],
      [40, 33, 600],
    ] as const)
      for (const order of ["kn", "nk"] as const) {
        check(M, N, K, { b: { dtype: half, strides: [] }, bOrder: order });
        check(M, N, K, {
          a: { dtype: half, strides: [] },
          b: { dtype: half, strides: [] },
          aOrder: order === "kn" ? "mk" : "km",
          bOrder: order,
        });
        check(M, N, K, { batch: [4], a: { dtype: half, strides: [] }, b: { dtype: half, strides: [] }, bOrder: order });
      }
});

test("one row of A that the first cache can't keep", { skip }, () => {
  for (const dtype of ["float32", "bfloat16", "float16"] as const)
    for (const N of [7, 24, 77])
      for (const K of [4096, 4103]) check(1, N, K, { b: { dtype, strides: [] }, bOrder: "nk", gap: 3 });
});

/** Both sides bfloat16; with `rounds` the right one is float32 that is rounded as it is read. */
function checkBfloat16(M: number, N: number, K: number, options: Options = {}): string {
  const half = { dtype: "bfloat16" as const, strides: [] };
  const b = options.rounds ? {} : { b: half };
  return check(M, N, K, { a: half, ...b, ...options });
}

test("bfloat16 by bfloat16, stored or rounded from float32 as it is read: every layout, odd sizes, blocks, posts", {
  skip,
}, () => {
  const used = new Set<string>();
  for (const rounds of [false, true]) {
    for (const M of [9, 33])
      for (const N of [1, 17, 65])
        for (const K of [1, 2, 33])
          for (const aOrder of ["mk", "km"] as const)
            used.add(checkBfloat16(M, N, K, { aOrder, bOrder: (M + N + K) % 2 ? "kn" : "nk", rounds }));
    for (const bOrder of ["kn", "nk"] as const) {
      checkBfloat16(300, 97, 1101, { aOrder: "km", bOrder, rounds });
      checkBfloat16(97, 300, 1101, { bOrder, rounds, gap: 3 });
      checkBfloat16(33, 40, 1024, { bOrder, rounds }); // rows that evict one another
      checkBfloat16(97, 65, 300, { bOrder, rounds, hasPost: true });
    }
  }
  checkBfloat16(1030, 528, 9, { aOrder: "km" }); // rows of whole vectors written past the caches
  for (const options of [{}, { hasPost: true }, { shareB: true }, { aOrder: "km" }] as Options[]) {
    checkBfloat16(17, 33, 15, { batch: [2, 3], bOrder: "nk", ...options });
    checkBfloat16(100, 301, 301, { batch: [2], ...options });
  }
  const pairs = (runtime.features & features.avx512bf16) !== 0;
  assert.deepEqual([...used], [pairs ? "gemm_bf16" : "gemm"]);
});

test("the same with AVX2 alone", {
  skip: skip || (process.env["NABLA_LONG"] === "1" ? false : "runs with NABLA_LONG=1"),
}, () => {
  const args = [
    ...typescript,
    "--test",
    "--test-reporter=tap",
    "--test-name-pattern",
    "^bfloat16",
    fileURLToPath(import.meta.url),
  ];
  const run = spawnSync(process.execPath, args, {
    env: { ...process.env, NABLA_CPU: "avx2", NODE_TEST_CONTEXT: undefined },
  });
  assert.equal(run.status, 0, String(run.stdout) + String(run.stderr));
  assert.match(String(run.stdout), /pass 2/);
});

test("float64 and int32 (which wraps)", { skip }, () => {
  for (const out of ["float64", "int32"] as const)
    for (const [M, N, K] of [
      [1, 1, 1],
      [5, 17, 33],
      [97, 65, 300],
      [300, 33, 7],
      [33, 300, 17],
      [3, 2, 0],
    ] as const)
      for (const aOrder of ["mk", "km"] as const) {
        check(M, N, K, { out, aOrder, bOrder: aOrder === "mk" ? "nk" : "kn" });
        check(M, N, K, { out, aOrder, batch: [2], accumulate: true });
      }
});

test("types that no kernel takes are refused", { skip }, () => {
  const ask = (a: DType, b: DType, out: "float32" | "float64") => () =>
    runtime.planContract({
      batch: [],
      M: 2,
      N: 2,
      K: 2,
      a: { dtype: a, strides: [2, 1] },
      b: { dtype: b, strides: [2, 1] },
      out,
    });
  assert.throws(ask("float32", "int32", "float32"), /float32 x int32 -> float32/);
  assert.throws(ask("float32", "float32", "float64"), /cast the operands/);
});
