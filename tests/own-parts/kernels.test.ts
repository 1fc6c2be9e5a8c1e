/**
 * What a package of somebody else's adds with kernels of its own: trained with on every device present. On cpu its kernels
 * are what really ran, the results are those of the decomposition, and what its C gets wrong is told.
 */
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";
import type { Program } from "../../src/backends/backend.ts";
import { openCpuBackend } from "../../src/backends/cpu/index.ts";
import { CompilerError, findCompiler } from "../../src/backends/cpu/toolchain.ts";
import {
  defineOperation,
  manualSeed,
  nn,
  noGrad,
  randn,
  registerBackend,
  setDevice,
  type Tensor,
  tensor,
} from "../../src/index.ts";
import { Lion, RowNorm, ranKernel, rootMeanSquare, SquaredReLU, squaredRelu } from "./package/index.ts";

const skip = findCompiler() ? false : "no C compiler here";

/** The cpu's programs, as they are compiled. */
const programs: Program[] = [];
registerBackend("cpu", async () => {
  const backend = await openCpuBackend();
  return {
    ...backend,
    compile: async (capture) => {
      const program = await backend.compile(capture);
      programs.push(program);
      return program;
    },
  };
});
const sources = (): string => programs.map((p) => p.describe("source")).join("\n");

test("the package imports nothing but the public exports", () => {
  const folder = new URL("./package/", import.meta.url);
  const files = readdirSync(folder);
  assert.ok(files.length >= 4);
  for (const file of files)
    for (const [, from] of readFileSync(new URL(file, folder), "utf8").matchAll(/from "([^"]+)"/g))
      assert.ok(from === "../../../src/index.ts" || /^\.\/\w+\.ts$/.test(from), `${file} imports ${from}`);
});

/** 60 steps; the loss of each. */
async function train(device: string): Promise<number[]> {
  setDevice(device);
  manualSeed(8);
  const model = new nn.Sequential(
    new nn.Linear(1, 24),
    new RowNorm(24),
    new nn.Linear(24, 33),
    new SquaredReLU(0.75),
    new nn.Linear(33, 1),
  );
  const optimizer = new Lion(model.parameters(), { lr: 3e-3 });
  const x = tensor(
    Float32Array.from({ length: 65 }, (_, i) => -2 + i / 16),
    { shape: [65, 1] },
  );
  const y = noGrad(() => x.mul(3).sin());
  const losses: number[] = [];
  for (let step = 0; step < 60; step++) {
    const loss = nn.functional.mseLoss(model.forward(x), y);
    loss.backward();
    await optimizer.step();
    optimizer.zeroGrad();
    losses.push(await loss.item());
  }
  return losses;
}

test("training with its operations is the same on reference and, with its kernels, on cpu", { skip }, async () => {
  const expected = await train("reference");
  assert.ok(expected[59] < expected[0] / 2, `the loss went from ${expected[0]} to ${expected[59]}`);
  programs.length = 0;
  const losses = await train("cpu");
  losses.forEach((loss, i) => {
    assert.ok(Math.abs(loss - expected[i]) <= 1e-3 * Math.abs(expected[i]), `step ${i}: ${loss}, not ${expected[i]}`);
  });
  for (const mark of ["acme forward", "acme gradient", "acme rows"]) assert.ok(sources().includes(mark), mark);
  const step = programs.find((p) => p.describe("kernels").includes("acme.squaredReluGradient"));
  assert.ok(step, "no program lists the gradient's kernel");
  assert.match(step.describe("graph"), /= acme\.squaredRelu float32\[65, 33\]/);
  setDevice("cpu");
  assert.deepEqual(await ranKernel(tensor([5, 6])).tolist(), [1, 1]);
  setDevice("reference");
  assert.deepEqual(await ranKernel(tensor([5, 6])).tolist(), [0, 0]);
});

/** A result and its first and second order gradients. */
async function orders(device: string, make: () => Tensor, f: (x: Tensor) => Tensor): Promise<number[][]> {
  setDevice(device);
  manualSeed(3);
  const x = make();
  const y = f(x);
  const weights = noGrad(() => randn(y.shape));
  y.mul(weights).sum().backward(null, { createGraph: true });
  const first = x.grad as Tensor;
  const second = first.square().sum();
  x.grad = null;
  second.backward();
  const list = async (t: Tensor): Promise<number[]> => (await t.reshape([-1]).tolist()) as number[];
  return [await list(y), await list(first), await list(x.grad as unknown as Tensor)];
}

test("kernels get contiguous operands, whatever view is given, and gradients go through to the second order", {
  skip,
}, async () => {
  const leaf = (shape: number[]): Tensor => randn(shape, { requiresGrad: true });
  const cases: Record<string, [() => Tensor, (x: Tensor) => Tensor]> = {
    contiguous: [() => leaf([7, 300]), (x) => squaredRelu([x], { scale: 1.25 })],
    transposed: [() => leaf([5, 9]), (x) => squaredRelu([x.transpose(0, 1)], { scale: -2 })],
    expanded: [() => leaf([5, 1]), (x) => squaredRelu([x.expand([5, 3])], { scale: 1e-3 })],
    sliced: [() => leaf([40]), (x) => squaredRelu([x.narrow(0, 3, 33)], { scale: 0.5 })],
    "of rank 0": [() => leaf([]), (x) => squaredRelu([x], { scale: 3 })],
    empty: [() => leaf([0, 4]), (x) => squaredRelu([x], { scale: 3 })],
    "computed and read again": [() => leaf([6, 6]), (x) => squaredRelu([x.exp()], { scale: 1 }).add(x.exp()).sqrt()],
    "two outputs": [
      () => leaf([9, 17]),
      (x) => {
        const [rows, factor] = rootMeanSquare<readonly Tensor[]>([x.mul(2)], { eps: 1e-5 });
        return rows.add(factor);
      },
    ],
    "the second output alone": [
      () => leaf([9, 17]),
      (x) => rootMeanSquare<readonly Tensor[]>([x], { eps: 1e-5 })[1].mul(3),
    ],
  };
  for (const [name, [make, f]] of Object.entries(cases)) {
    const expected = await orders("reference", make, f);
    const got = await orders("cpu", make, f);
    got.forEach((values, order) => {
      assert.equal(values.length, expected[order].length);
      values.forEach((v, i) => {
        const e = expected[order][i];
        assert.ok(Math.abs(v - e) <= 2e-5 + 2e-5 * Math.abs(e), `${name}, order ${order}, ${i}: ${v}, not ${e}`);
      });
    });
  }
});

test("constants are operands as any other, and where a recipe gives null the decomposition runs", {
  skip,
}, async () => {
  setDevice("cpu");
  const sum = defineOperation({
    name: "own.sum3",
    forward: ([a, b, c]) => a.add(b).add(c),
    kernels: {
      cpu: (inputs, [out]) =>
        inputs.every((x) => x.dtype === "int32")
          ? {
              rows: out.shape[0],
              grain: 2,
              body: "for (nb_i64 i = r0; i < r1; i++) out0[i] = in0[i] + in1[i] + in2[i];",
            }
          : null,
    },
  });
  programs.length = 0;
  const five = tensor(5, { dtype: "int32" }).expand([3]);
  const x = tensor([1, 2, 3], { dtype: "int32" });
  assert.deepEqual(await sum([x, five, x]).tolist(), [7, 9, 11]);
  assert.match(sources(), /own\.sum3/);
  programs.length = 0;
  const y = tensor([1, 2, 3], { dtype: "float64" });
  assert.deepEqual(await sum([y, y, y]).tolist(), [3, 6, 9]);
  assert.doesNotMatch(sources(), /own\.sum3/);
});

test("every dtype has its pointer type, and doubles have lanes", { skip }, async () => {
  setDevice("cpu");
  const copy = defineOperation({
    name: "own.copy",
    forward: ([x]) => x.clone(),
    kernels: {
      cpu: (_, [out]) => ({ rows: out.shape[0], body: "for (nb_i64 i = r0; i < r1; i++) out0[i] = in0[i];" }),
    },
  });
  programs.length = 0;
  const dtypes = ["float32", "float64", "float16", "bfloat16", "int32", "uint8", "bool"] as const;
  for (const dtype of dtypes) {
    const x = tensor([0, 1, 1, 0, 1], { dtype });
    assert.deepEqual(await copy([x]).tolist(), await x.tolist(), dtype);
  }
  assert.equal(sources().split("/* own.copy */").length - 1, dtypes.length);
  const twice = defineOperation({
    name: "own.twice",
    forward: ([x]) => x.add(x),
    kernels: {
      cpu: ([x]) => ({
        rows: 1,
        body: `nb_i64 i = 0, n = ${x.shape[0]}; for (; i < n; i += L) { const int m = n - i < L ? n - i : L; d_storen(out0 + i, d_loadn(in0 + i, m) * 2, m); }`,
      }),
    },
  });
  const x = tensor(
    Float64Array.from({ length: 21 }, (_, i) => i / 7),
    { dtype: "float64" },
  );
  assert.deepEqual(await twice([x]).tolist(), await x.mul(2).tolist());
});

test("rows are shared out among threads, each once", { skip }, async () => {
  setDevice("cpu");
  const big = noGrad(() => randn([1025, 257]));
  const [rows] = rootMeanSquare<readonly Tensor[]>([big], { eps: 1e-5 });
  const squares = await rows.square().mean(-1).tolist();
  for (const s of squares as number[]) assert.ok(Math.abs(s - 1) < 1e-3, String(s));
});

test("what the compiler refuses is an error that names the operation, and says where the source is kept", {
  skip,
}, async () => {
  setDevice("cpu");
  const wrong = (name: string, body: string) =>
    defineOperation({ name, forward: ([x]) => x, kernels: { cpu: () => ({ rows: 1, body }) } });
  const broken = wrong("own.broken", "out0[0] = in0[0]");
  const absent = wrong("own.absent", "out0[0] = no_such_function(in0[0]);");
  for (const [operation, why] of [
    [broken, /own\.broken: its kernel .* does not compile[\s\S]*kept at .*\.c[\s\S]*expected ‘;’|expected ';'/],
    [absent, /own\.absent: its kernel .* does not compile[\s\S]*no_such_function[\s\S]*kept at .*\.c/],
  ] as const)
    await assert.rejects(
      async () => operation([tensor([1])]).tolist(),
      (error: Error) => error instanceof CompilerError && why.test(error.message),
    );
  const senseless = defineOperation({
    name: "own.senseless",
    forward: ([x]) => x,
    kernels: { cpu: () => ({ rows: -1, body: "" }) },
  });
  await assert.rejects(async () => senseless([tensor([1])]).tolist(), /own\.senseless: kernels\.cpu gave rows -1/);
  // and all goes on
  assert.deepEqual(await tensor([1]).add(1).tolist(), [2]);
});
