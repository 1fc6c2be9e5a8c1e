/**
 * A GPT's training step (10.8 M parameters, 8 x 256 tokens, float32) assembled by hand as a command table over the native
 * runtime: what the compiler's output is measured against. No graph, no autograd, no compiler.
 *
 *   node --import tsx bench/step1/gpt.ts [steps]            times it; --profile adds the time of each kind of command
 *   node --import tsx bench/step1/gpt.ts --check FOLDER     compares loss and gradients with what peer.py dumped there
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { ContractDesc, ContractPlan } from "../../src/backends/cpu/contract.ts";
import { NativeRuntime, ProgramBuilder } from "../../src/backends/cpu/native.ts";
import { planAttention, planAttentionBackward, planScatter } from "../../src/backends/cpu/plans.ts";
import { kernel, units } from "./kernels.ts";

const [V, T, C, L, H, B] = [65, 256, 384, 6, 6, 8] as const;
const R = B * T;
const F = 4 * C;
const runtime = await NativeRuntime.open();
if (process.env["THREADS"]) runtime.setThreads(Number(process.env["THREADS"]));
const functions = await runtime.compileKernels(units);

// ---- memory: one arena, handed out in order --------------------------------------------------------------------------
let top = 0;
const floats = (n: number): number => {
  const at = top;
  top += Math.ceil(n / 16) * 64;
  return at;
};

/** Parameters in PyTorch's order; the same layout serves gradients and both moments. */
const layout: { name: string; size: number; at: number }[] = [];
let numParameters = 0;
const parameter = (name: string, size: number): string => {
  layout.push({ name, size, at: 4 * numParameters });
  numParameters += size;
  return name;
};
parameter("wte", V * C);
parameter("wpe", T * C);
for (let i = 0; i < L; i++)
  for (const [name, size] of [
    ["g1", C],
    ["b1", C],
    ["wq", 3 * C * C],
    ["bq", 3 * C],
    ["wp", C * C],
    ["bp", C],
    ["g2", C],
    ["b2", C],
    ["wf", F * C],
    ["bf", F],
    ["wo", C * F],
    ["bo", C],
  ] as const)
    parameter(`${name}.${i}`, size);
parameter("gf", C);
parameter("bf", C);
const place = new Map(layout.map((p) => [p.name, p.at]));
const P = floats(numParameters);
const G = floats(numParameters);
const M1 = floats(numParameters);
const M2 = floats(numParameters);
const w = (name: string): number => P + place.get(name)!;
const g = (name: string): number => G + place.get(name)!;

// ---- commands --------------------------------------------------------------------------------------------------------
const builder = new ProgramBuilder();
const kinds: string[] = [];
let scratchBytes = 0;
let phase: number[] = [];
const flush = () => {
  if (phase.length) builder.phase(phase);
  phase = [];
};
const at = (offsets: readonly number[]) => offsets.map((o) => [0, o] as const);

interface Attached {
  epilogue?: number;
  post?: number;
}
const rowsCommand = (
  name: string,
  rows: number,
  grain: number,
  buffers: number[],
  params: number[],
  scalars: number[] = [],
): number => {
  kinds.push(name);
  return builder.command({ fn: kernel[name]!, rows, grain, buffers: at(buffers), params, scalars });
};
const attach = (name: string, buffers: number[], params: number[]): number => rowsCommand(name, 0, 1, buffers, params);

interface Product {
  plan: ContractPlan;
  packed: number;
  b: number;
  main: (outputs: { a: number; out?: number; asum?: number } & Attached) => void;
  pack: () => void;
}
const packedRoom = new Map<string, number>();
/** A product; `room` names the packed buffer, shared by products that are never alive together. */
function product(room: string, desc: Omit<ContractDesc, "batch" | "out">, b: number): Product {
  const plan = runtime.planContract({ batch: [], out: "float32", ...desc });
  const key = `${room} ${plan.packed}`;
  if (!packedRoom.has(key)) packedRoom.set(key, floats(plan.packed / 4));
  const packed = packedRoom.get(key)!;
  scratchBytes = Math.max(scratchBytes, plan.scratchBytes);
  return {
    plan,
    packed,
    b,
    pack: () => {
      if (!plan.pack) return; // b is read where it lies
      kinds.push("pack");
      phase.push(builder.command({ ...plan.pack, buffers: at([b, packed]) }));
    },
    main: ({ a, out = 0, asum = 0, epilogue, post }) => {
      kinds.push("gemm");
      const bind = { a, b, packed, out, asum };
      phase.push(
        builder.command({
          ...plan.main,
          buffers: at(plan.main.buffers.map((n) => bind[n])),
          ...(epilogue === undefined ? {} : { epilogue }),
          ...(post === undefined ? {} : { post }),
        }),
      );
    },
  };
}
const float = "float32" as const;
/** x [M, K] times a linear layer's weight [N, K], transposed. */
const forward = (room: string, M: number, N: number, K: number, weight: number, hasPost = false, hasEpilogue = true) =>
  product(
    room,
    { M, N, K, a: { dtype: float, strides: [K, 1] }, b: { dtype: float, strides: [1, K] }, hasEpilogue, hasPost },
    weight,
  );
/** dy [M, K] times the weight [K, N]. */
const backwardInput = (
  room: string,
  M: number,
  N: number,
  K: number,
  weight: number,
  options: { hasPost?: boolean; hasEpilogue?: boolean } = {},
) =>
  product(
    room,
    { M, N, K, a: { dtype: float, strides: [K, 1] }, b: { dtype: float, strides: [N, 1] }, ...options },
    weight,
  );
/** dyT [M, rows] times x [rows, N]; the bias gradient is the row sum of dyT. */
const backwardWeight = (room: string, M: number, N: number, x: number, asum = true) =>
  product(room, { M, N, K: R, a: { dtype: float, strides: [1, M] }, b: { dtype: float, strides: [N, 1] }, asum }, x);

const act = Array.from({ length: L }, () => ({
  x0: floats(R * C),
  h1: floats(R * C),
  s1: floats(2 * R),
  qkv: floats(R * 3 * C),
  lse: floats(R * H),
  att: floats(R * C),
  x1: floats(R * C),
  h2: floats(R * C),
  s2: floats(2 * R),
  pre: floats(R * F),
  act: floats(R * F),
}));
const [xf, hf, sf, logits, loss] = [floats(R * C), floats(R * C), floats(2 * R), floats(R * V), floats(64)];
const [dx, dln, dh, datt, dqkv] = [floats(R * C), floats(R * C), floats(R * F), floats(R * C), floats(R * 3 * C)];
const [index, target] = [floats(R), floats(R)];
const BLOCK = 64;

// forward
const heads = (ld: number) => [T * ld, C / H, ld] as const;
const attention = {
  B,
  H,
  Hkv: H,
  Tq: T,
  Tk: T,
  D: C / H,
  causal: true,
  q: heads(3 * C),
  k: heads(3 * C),
  v: heads(3 * C),
  o: heads(C),
  dO: heads(C),
  dq: heads(3 * C),
  dk: heads(3 * C),
  dv: heads(3 * C),
};
const SCALE = 3; // scalar slots: decay, lr, root, scale
const layers = act.map((_, i) => ({
  q: forward("q", R, 3 * C, C, w(`wq.${i}`)),
  p: forward("p", R, C, C, w(`wp.${i}`), true),
  f: forward("f", R, F, C, w(`wf.${i}`)),
  o: forward("o", R, C, F, w(`wo.${i}`), true),
}));
const head = forward("head", R, V, C, w("wte"), false, false);
phase.push(
  rowsCommand(
    "embed",
    R,
    BLOCK,
    [w("wte"), w("wpe"), index, act[0]!.x0, w("g1.0"), w("b1.0"), act[0]!.h1, act[0]!.s1],
    [C, T],
  ),
);
layers[0]!.q.pack();
flush();
layers.forEach((m, i) => {
  const a = act[i]!;
  const next = act[i + 1];
  m.q.main({ a: a.h1, epilogue: attach("add_bias", [a.qkv, w(`bq.${i}`)], [3 * C]) });
  m.p.pack();
  flush();
  const plan = planAttention(runtime.shape, attention);
  scratchBytes = Math.max(scratchBytes, plan.scratchBytes);
  kinds.push("attention");
  phase.push(
    builder.command({
      ...plan.main,
      buffers: at([a.qkv, a.qkv + 4 * C, a.qkv + 8 * C, a.att, a.lse]),
      scalars: [SCALE],
    }),
  );
  m.f.pack();
  flush();
  m.p.main({
    a: a.att,
    epilogue: attach("bias_residual", [a.x1, w(`bp.${i}`), a.x0], [C]),
    post: attach("norm", [a.x1, w(`g2.${i}`), w(`b2.${i}`), a.h2, a.s2], [C]),
  });
  m.o.pack();
  flush();
  m.f.main({ a: a.h2, epilogue: attach("bias_gelu", [a.act, w(`bf.${i}`), a.pre], [F]) });
  if (next) layers[i + 1]!.q.pack();
  else head.pack();
  flush();
  const x = next?.x0 ?? xf;
  m.o.main({
    a: a.act,
    epilogue: attach("bias_residual", [x, w(`bo.${i}`), a.x1], [C]),
    post: attach(
      "norm",
      next ? [x, w(`g1.${i + 1}`), w(`b1.${i + 1}`), next.h1, next.s1] : [x, w("gf"), w("bf"), hf, sf],
      [C],
    ),
  });
  flush();
});

// backward
const headX = backwardInput("head", R, C, V, w("wte"), { hasPost: true });
const headW = backwardWeight("xh", V, C, hf, false);
const back = act.map((a, i) => ({
  ox: backwardInput("o", R, F, C, w(`wo.${i}`), { hasEpilogue: true }),
  ow: backwardWeight("xo", C, F, a.act),
  fx: backwardInput("f", R, C, F, w(`wf.${i}`), { hasPost: true }),
  fw: backwardWeight("xf", F, C, a.h2),
  px: backwardInput("p", R, C, C, w(`wp.${i}`)),
  pw: backwardWeight("xp", C, C, a.att),
  qx: backwardInput("q", R, C, 3 * C, w(`wq.${i}`), { hasPost: true }),
  qw: backwardWeight("xq", 3 * C, C, a.h1),
}));
const rowBlock = headX.plan.rowBlock;
const blocks = Math.ceil(R / rowBlock);
const part = [floats(blocks * 2 * C), floats(blocks * 2 * C)] as const;
const normBackward = (p: Product, x: number, gamma: number, stats: number, partial: number, residual: boolean) => {
  if (p.plan.rowBlock !== rowBlock) throw new Error(`row blocks differ: ${p.plan.rowBlock} and ${rowBlock}`);
  return attach("norm_backward", [dln, x, gamma, stats, dx, partial, dx], [C, rowBlock, residual ? 1 : 0]);
};
const finish = (partial: number, gamma: string, beta: string) => {
  phase.push(rowsCommand("norm_finish", C, C, [partial, g(gamma), g(beta)], [C, blocks]));
};
head.main({ a: hf, out: logits });
headW.pack();
flush();
phase.push(rowsCommand("cross_entropy", R, BLOCK, [logits, target, loss], [V, R, BLOCK]));
headX.pack();
flush();
headW.main({ a: logits, out: g("wte") });
headX.main({ a: logits, out: dln, post: normBackward(headX, xf, w("gf"), sf, part[0], false) });
back[L - 1]!.ow.pack();
back[L - 1]!.ox.pack();
flush();
let pending: [string, string] = ["gf", "bf"];
for (let i = L - 1; i >= 0; i--) {
  const [a, m] = [act[i]!, back[i]!];
  m.ow.main({ a: dx, out: g(`wo.${i}`), asum: g(`bo.${i}`) });
  m.ox.main({ a: dx, epilogue: attach("gelu_backward", [dh, a.pre], [F]) });
  m.fw.pack();
  m.fx.pack();
  finish(part[0], ...pending);
  flush();
  m.fw.main({ a: dh, out: g(`wf.${i}`), asum: g(`bf.${i}`) });
  m.fx.main({ a: dh, out: dln, post: normBackward(m.fx, a.x1, w(`g2.${i}`), a.s2, part[1], true) });
  m.pw.pack();
  m.px.pack();
  flush();
  m.pw.main({ a: dx, out: g(`wp.${i}`), asum: g(`bp.${i}`) });
  m.px.main({ a: dx, out: datt });
  finish(part[1], `g2.${i}`, `b2.${i}`);
  flush();
  const plan = planAttentionBackward(runtime.shape, attention);
  scratchBytes = Math.max(scratchBytes, plan.scratchBytes);
  kinds.push("attention backward");
  phase.push(
    builder.command({
      ...plan.main,
      buffers: at([a.qkv, a.qkv + 4 * C, a.qkv + 8 * C, a.att, a.lse, datt, dqkv, dqkv + 4 * C, dqkv + 8 * C]),
      scalars: [SCALE],
    }),
  );
  m.qw.pack();
  m.qx.pack();
  flush();
  m.qw.main({ a: dqkv, out: g(`wq.${i}`), asum: g(`bq.${i}`) });
  m.qx.main({ a: dqkv, out: dln, post: normBackward(m.qx, a.x0, w(`g1.${i}`), a.s1, part[0], true) });
  if (i) {
    back[i - 1]!.ow.pack();
    back[i - 1]!.ox.pack();
  }
  flush();
  pending = [`g1.${i}`, `b1.${i}`];
}
const scatter = planScatter({
  outer: 1,
  count: R,
  inner: C,
  size: V,
  dtype: float,
  reduce: "add",
  init: "none",
  indexStrides: [R, 1, 0],
  srcStrides: [R * C, C, 1],
  errorOp: 1,
});
kinds.push("scatter");
phase.push(builder.command({ ...scatter.main, buffers: at([g("wte"), index, dx]) }));
phase.push(rowsCommand("positions_backward", T, 32, [dx, g("wpe")], [C, T, B]));
finish(part[0], ...pending);
flush();
phase.push(rowsCommand("adamw", numParameters, 1 << 16, [P, M1, M2, G], [], [0, 1, 2]));
flush();

const program = runtime.createProgram(builder.build({ numBuffers: 1, numScalars: 4, scratchBytes }), functions);
const arena = runtime.alloc(top);
const view = <A extends Float32Array | Int32Array>(Type: new (b: ArrayBuffer) => A, offset: number, n: number): A =>
  new Type(runtime.view(arena + offset, 4 * n));
const parameters = view(Float32Array, P, numParameters);
const gradients = view(Float32Array, G, numParameters);
const losses = view(Float32Array, loss, R / BLOCK);

let stepCount = 0;
/** One training step; the loss before it. */
function step(): number {
  stepCount++;
  const lr = 1e-3;
  const scalars = [
    1 - lr * 0.01,
    lr / (1 - 0.9 ** stepCount),
    1 / Math.sqrt(1 - 0.999 ** stepCount),
    1 / Math.sqrt(C / H),
  ];
  if (program.run(Float64Array.of(arena), Float64Array.from(scalars)))
    throw new Error(`step failed: ${JSON.stringify(program.failure)}`);
  return losses.reduce((a, b) => a + b, 0);
}

if (process.argv[2] === "--check") {
  const file = (name: string) => readFileSync(join(process.argv[3]!, name));
  const read = <A>(Type: new (b: ArrayBuffer) => A, name: string): A => {
    const data = file(name);
    return new Type(data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength) as ArrayBuffer);
  };
  parameters.set(read(Float32Array, "params.f32"));
  view(Int32Array, index, R).set(read(Int32Array, "idx.i32"));
  view(Int32Array, target, R).set(read(Int32Array, "tgt.i32"));
  const expected = read(Float32Array, "grads.f32");
  const peer = read(Float32Array, "losses.f32");
  const first = step();
  let worst = 0;
  let where = "";
  for (const { name, at: offset, size } of layout) {
    let e = 0;
    let s = 0;
    for (let i = offset / 4; i < offset / 4 + size; i++) {
      e += (gradients[i]! - expected[i]!) ** 2;
      s += expected[i]! ** 2;
    }
    if (Math.sqrt(e / s) > worst || !(e / s >= 0)) [worst, where] = [Math.sqrt(e / s), name];
  }
  const later = Array.from({ length: 5 }, step);
  const off = later.map((l, i) => Math.abs(l - peer[i + 1]!));
  const ok = worst < 1e-4 && Math.abs(first - peer[0]!) < 1e-5 && off.every((d) => d < 2e-3);
  console.log(
    `loss ${first.toFixed(7)}, PyTorch ${peer[0]!.toFixed(7)}; worst relative gradient error ${worst.toExponential(2)} (${where} of ${layout.length} tensors)`,
  );
  console.log(
    `five AdamW steps: losses ${later.map((l) => l.toFixed(5)).join(" ")}, at most ${Math.max(...off).toExponential(1)} from PyTorch's`,
  );
  console.log(ok ? "ok" : "FAILED");
  process.exit(ok ? 0 : 1);
}

let seed = 1;
const rand = () => (seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0) / 2 ** 32;
for (let i = 0; i < numParameters; i++) parameters[i] = (rand() - 0.5) * 0.06;
for (const { name, at: offset, size } of layout) if (/^g/.test(name)) parameters.fill(1, offset / 4, offset / 4 + size);
for (const where of [index, target])
  view(Int32Array, where, R).set(Int32Array.from({ length: R }, () => Math.floor(rand() * V)));
const steps = Number(process.argv[2] ?? 8);
step();
step();
const profile = process.argv.includes("--profile");
if (profile) program.profile(true);
const times: number[] = [];
let last = 0;
const cpu = process.cpuUsage();
for (let i = 0; i < steps; i++) {
  const t0 = performance.now();
  last = step();
  times.push(performance.now() - t0);
}
const used = process.cpuUsage(cpu);
times.sort((a, b) => a - b);
console.log(
  `gpt by hand: median ${times[steps >> 1]!.toFixed(1)} ms, min ${times[0]!.toFixed(1)}; ${((used.user + used.system) / 1e3 / steps).toFixed(0)} ms of processor a step; loss ${last.toFixed(4)}; ${runtime.threads} threads, ${runtime.shape.lanes} lanes; arena ${(top / 2 ** 20).toFixed(0)} MiB`,
);
if (profile) {
  const sums = new Map<string, number>();
  for (const [i, ns] of program.profileRead().entries())
    sums.set(kinds[i]!, (sums.get(kinds[i]!) ?? 0) + ns / 1e6 / steps);
  console.log(
    [...sums]
      .filter(([, ms]) => ms > 0.05)
      .sort((a, b) => b[1] - a[1])
      .map(([k, ms]) => `${k} ${ms.toFixed(1)}`)
      .join(", "),
    "(ms over all threads)",
  );
}
