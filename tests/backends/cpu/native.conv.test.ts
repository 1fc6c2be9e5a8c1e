/**
 * The runtime's convolutions (forward, input gradient, weight gradient) against plain loops in float64: strides,
 * padding, dilation, groups, awkward channels; the same bits at 1, 2 and 7 threads.
 */
import assert from "node:assert/strict";
import { before, test } from "node:test";
import type { Conv2dDesc } from "../../../src/backends/cpu/convolution.ts";
import { convOutput, planConv2d, planConv2dInput, planConv2dWeight } from "../../../src/backends/cpu/convolution.ts";
import { NativeRuntime } from "../../../src/backends/cpu/native.ts";
import { findCompiler } from "../../../src/backends/cpu/toolchain.ts";
import { random, runCommands } from "./native.harness.ts";

const skip = findCompiler() ? false : "no C compiler here";
let runtime: NativeRuntime;
before(async () => {
  if (!skip) runtime = await NativeRuntime.open();
});

type Options = Partial<Omit<Conv2dDesc, "N" | "H" | "W" | "Cin" | "Cout" | "kernel">> & {
  channelsLastWeight?: boolean;
};

function check(
  N: number,
  H: number,
  W: number,
  Cin: number,
  Cout: number,
  kernel: [number, number],
  options: Options = {},
): void {
  const { stride = [1, 1], padding = [0, 0], dilation = [1, 1], groups = 1, channelsLastWeight = false } = options;
  const [kh, kw] = kernel;
  const Cg = Cin / groups;
  const Og = Cout / groups;
  const weightStrides = channelsLastWeight
    ? ([kh * kw * Cg, 1, kw * Cg, Cg] as const)
    : ([Cg * kh * kw, kh * kw, kw, 1] as const);
  const desc: Conv2dDesc = { N, H, W, Cin, Cout, kernel, stride, padding, dilation, groups, weightStrides };
  const [OH, OW] = convOutput(desc);
  const what = JSON.stringify(desc);
  const rand = random(H * 1000 + Cin * 10 + Cout);
  const values = (n: number) => Float32Array.from({ length: n }, () => Math.round(rand() * 32 - 16) / 16);
  const x = values(N * H * W * Cin);
  const weight = values(Cout * Cg * kh * kw);
  const dy = values(N * OH * OW * Cout);
  const nan = (n: number) => new Float32Array(n).fill(Number.NaN);

  const y64 = new Float64Array(dy.length);
  const dx64 = new Float64Array(x.length);
  const dw64 = new Float64Array(weight.length);
  for (let n = 0; n < N; n++)
    for (let oy = 0; oy < OH; oy++)
      for (let ox = 0; ox < OW; ox++)
        for (let co = 0; co < Cout; co++) {
          const yi = ((n * OH + oy) * OW + ox) * Cout + co;
          for (let ky = 0; ky < kh; ky++)
            for (let kx = 0; kx < kw; kx++) {
              const iy = oy * stride[0] - padding[0] + ky * dilation[0];
              const ix = ox * stride[1] - padding[1] + kx * dilation[1];
              if (iy < 0 || iy >= H || ix < 0 || ix >= W) continue;
              for (let c = 0; c < Cg; c++) {
                const xi = ((n * H + iy) * W + ix) * Cin + Math.floor(co / Og) * Cg + c;
                const wi = co * weightStrides[0] + c * weightStrides[1] + ky * weightStrides[2] + kx * weightStrides[3];
                y64[yi]! += x[xi]! * weight[wi]!;
                dx64[xi]! += dy[yi]! * weight[wi]!;
                dw64[wi]! += dy[yi]! * x[xi]!;
              }
            }
        }
  const near = (name: string, got: ArrayLike<number>, expected: Float64Array) => {
    expected.forEach((e, i) => {
      if (!(Math.abs(got[i]! - e) <= 1e-4 * (1 + Math.abs(e))))
        assert.fail(`${name}[${i}] is ${got[i]}, expected ${e}: ${what}`);
    });
  };
  const forward = planConv2d(runtime.shape, desc);
  const phases = (plan: typeof forward | ReturnType<typeof planConv2dInput>) => [
    { main: plan.pack, scratchBytes: 0 },
    plan,
  ];
  near(
    "y",
    runCommands(runtime, phases(forward), { x, weight, packed: nan(forward.packed / 4), y: nan(dy.length) }).result[
      "y"
    ]!,
    y64,
  );
  const input = planConv2dInput(runtime.shape, desc);
  near(
    "dx",
    runCommands(runtime, phases(input), { dy, weight, packed: nan(input.packed / 4), dx: nan(x.length) }).result["dx"]!,
    dx64,
  );
  const w = planConv2dWeight(runtime.shape, desc);
  near(
    "dw",
    runCommands(runtime, [w, { main: w.finish, scratchBytes: 0 }], {
      x,
      dy,
      partial: nan(w.partial / 4),
      dw: nan(weight.length),
    }).result["dw"]!,
    dw64,
  );
}

test("convolution and its gradients over kernels, strides, padding and dilation", { skip }, () => {
  check(1, 1, 1, 1, 1, [1, 1]);
  check(2, 7, 9, 5, 17, [3, 3], { padding: [1, 1] });
  check(3, 28, 28, 1, 32, [3, 3], { padding: [1, 1] });
  check(2, 14, 14, 32, 64, [3, 3], { padding: [1, 1] });
  check(2, 15, 13, 6, 7, [3, 2], { stride: [2, 2], padding: [1, 0] });
  check(1, 17, 16, 3, 33, [5, 7], { stride: [3, 2], padding: [2, 3] });
  check(1, 16, 16, 7, 5, [3, 3], { dilation: [2, 3], padding: [2, 1] });
  check(1, 19, 21, 4, 6, [3, 4], { stride: [2, 4], dilation: [2, 2], padding: [3, 2] });
  check(1, 12, 12, 8, 6, [2, 2], { stride: [3, 3] });
  check(2, 9, 9, 16, 40, [1, 1], { stride: [2, 2] });
  check(1, 40, 40, 3, 10, [3, 3], { padding: [1, 1], channelsLastWeight: true });
});

test("groups, one channel a group, and deep channels that need several blocks", { skip }, () => {
  check(2, 9, 9, 6, 12, [3, 3], { groups: 3, padding: [1, 1] });
  check(1, 9, 9, 17, 17, [3, 3], { groups: 17, padding: [1, 1], stride: [2, 2] });
  check(1, 6, 6, 300, 33, [3, 3], { padding: [1, 1] });
  check(1, 6, 6, 33, 300, [3, 3], { padding: [1, 1], channelsLastWeight: true });
  check(9, 5, 5, 15, 15, [3, 3], { padding: [1, 1] });
  // each way in which a weight gradient brings x near: whole images, all taps, strips
  check(18, 6, 7, 12, 40, [3, 3], { padding: [1, 1] });
  check(17, 11, 5, 12, 9, [3, 2], { padding: [2, 1], stride: [2, 1], dilation: [2, 1] });
  check(20, 9, 40, 14, 33, [2, 2], { groups: 1 });
  check(2, 20, 20, 3, 20, [7, 7], { padding: [3, 3], stride: [2, 2] });
  check(2, 8, 9, 70, 200, [1, 1], { stride: [2, 2] });
  check(3, 9, 13, 37, 130, [2, 2], { padding: [1, 1], stride: [2, 3] });
  check(2, 7, 14, 20, 110, [3, 2], { padding: [2, 2], stride: [1, 4], dilation: [2, 2] });
  check(1, 5, 9, 40, 260, [3, 2], { padding: [1, 1], stride: [1, 3], groups: 2 });
  check(2, 7, 7, 150, 130, [3, 3], { padding: [1, 1] });
});

test("channels that do not divide and kernels that do not fit are refused", { skip }, () => {
  const desc: Conv2dDesc = {
    N: 1,
    H: 4,
    W: 4,
    Cin: 3,
    Cout: 4,
    kernel: [3, 3],
    stride: [1, 1],
    padding: [0, 0],
    dilation: [1, 1],
    groups: 2,
    weightStrides: [9, 9, 3, 1],
  };
  assert.throws(() => planConv2d(runtime.shape, desc), /3 input and 4 output channels do not divide into 2 groups/);
  assert.throws(
    () => planConv2d(runtime.shape, { ...desc, groups: 1, kernel: [5, 5] }),
    /kernel 5x5 does not fit into 4x4/,
  );
});
