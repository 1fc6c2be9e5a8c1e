/**
 * Two-dimensional convolution, its two gradients, and the plans of their commands. Channels are last, so a convolution is a
 * product whose left operand is never written out as a whole: row = pixel of the result, columns = (tap, channel). 64
 * pixels of it are gathered at a time, straight into the form in which the micro-kernel takes them (gemm.ts).
 *
 * The input's gradient is the same kernel with the roles changed: where a tap's position is not a multiple of the stride,
 * or lies outside, zeros are read. The weight's gradient is the product of the same gathered rows, turned, with dy, in parts
 * over the pixels that are added in order.
 */
import type { Strided } from "../../compiler/views.ts";
import { roundUp } from "../cpu/plans.ts";
import { buffer, ceilDiv, min, parameters, scratchOf } from "./command.ts";
import type { Func, Local } from "./function.ts";
import { MR, NR, type ProductParts, packedProduct, turned } from "./gemm.ts";
import { constant, type Expr, f32, i32, select, v128 } from "./instructions.ts";
import type { Module } from "./module.ts";

/** Pixels gathered at a time. */
const PIXELS = 64;
const MAX_PARTIAL_BYTES = 16 << 20;

export interface ConvShape {
  /** [N, height, width, channels] of x, and of y. */
  readonly x: readonly number[];
  readonly y: readonly number[];
  readonly kernel: readonly [number, number];
  readonly stride: readonly number[];
  readonly padding: readonly number[];
  readonly dilation: readonly number[];
  readonly groups: number;
  /** Of the weight [out, in / groups, height, width]. */
  readonly weightStrides: readonly number[];
}

// ---- plans ----------------------------------------------------------------------------------------------------------

const names = [
  ...["N", "SH", "SW", "SC", "OH", "OW", "OC", "groups", "kh", "kw"],
  ...["ay", "by", "cy", "sy", "ax", "bx", "cx", "sx"],
  ...["wn", "wc", "wy", "wx", "wg", "parts"],
] as const;
type Names = Record<(typeof names)[number], Local>;

interface Direction {
  readonly source: readonly number[];
  readonly out: readonly number[];
  /** Position of a tap in the source, times s: out · a + b + tap · c, along both axes. */
  readonly taps: readonly (readonly [a: number, b: number, c: number, s: number])[];
  /** Weight strides of the result's channel, the source's channel, and of a group. */
  readonly weight: readonly [number, number, number];
}

function direction(s: ConvShape, backward: boolean): Direction {
  const [wo, wi] = s.weightStrides;
  const outs = s.y[3] / s.groups;
  const axes = [0, 1];
  return backward
    ? {
        source: s.y,
        out: s.x,
        taps: axes.map((i) => [1, s.padding[i], -s.dilation[i], s.stride[i]]),
        weight: [wi, wo, outs * wo],
      }
    : {
        source: s.x,
        out: s.y,
        taps: axes.map((i) => [s.stride[i], -s.padding[i], s.dilation[i], 1]),
        weight: [wo, wi, outs * wo],
      };
}

function parametersOf(s: ConvShape, d: Direction, parts: number): number[] {
  const [n, c, g] = d.weight;
  return [
    ...d.source,
    ...d.out.slice(1),
    ...[s.groups, ...s.kernel],
    ...d.taps.flat(),
    ...[n, c, s.weightStrides[2], s.weightStrides[3], g, parts],
  ];
}

/** conv2d_fwd and conv2d_dx: b = [source, packed weight, result]; conv_pack: b = [weight, packed]. */
export function planConv(s: ConvShape, backward: boolean) {
  const d = direction(s, backward);
  const params = parametersOf(s, d, 1);
  const K = (s.kernel[0] * s.kernel[1] * d.source[3]) / s.groups;
  const columns = d.out[3] / s.groups;
  const panels = Math.ceil(columns / NR);
  const pixels = d.out[0] * d.out[1] * d.out[2];
  return {
    pack: { rows: s.groups * panels, params },
    main: { rows: s.groups * Math.ceil(pixels / PIXELS), params },
    packedBytes: 4 * s.groups * K * panels * NR,
    scratchBytes: 4 * (K * PIXELS + roundUp(d.source[3], 16) + 64),
    flops: 2 * pixels * K * columns * s.groups,
  };
}

/** conv2d_dw: b = [x, dy, parts]; conv2d_dw_finish: b = [parts, dw]. */
export function planConvWeight(s: ConvShape) {
  const d = direction(s, false);
  const K = (s.kernel[0] * s.kernel[1] * s.x[3]) / s.groups;
  const columns = s.y[3] / s.groups;
  const pixels = s.y[0] * s.y[1] * s.y[2];
  const bytes = 4 * K * s.y[3];
  const most = Math.max(1, Math.min(16, Math.floor(MAX_PARTIAL_BYTES / bytes)));
  const parts = Math.min(most, Math.ceil(pixels / PIXELS));
  const params = parametersOf(s, d, parts);
  return {
    main: { rows: parts * s.groups, params },
    finish: { rows: s.y[3], params },
    partialBytes: parts * bytes,
    scratchBytes: 4 * (roundUp(K, MR) * PIXELS + roundUp(columns, NR) * PIXELS + roundUp(s.x[3], 16) + 64),
    flops: 2 * pixels * K * s.y[3],
  };
}

export function convShape(
  attrs: Readonly<Record<string, unknown>>,
  x: readonly number[],
  y: readonly number[],
  weight: readonly number[],
  strides: Strided["strides"],
): ConvShape {
  const { stride, low, dilation, groups } = attrs as {
    stride: number[];
    low: number[];
    dilation: number[];
    groups: number;
  };
  const kernel = [weight[2], weight[3]] as const;
  return { x, y, kernel, stride, padding: low, dilation, groups, weightStrides: strides };
}

// ---- kernels --------------------------------------------------------------------------------------------------------

const sum = (a: Expr, ...rest: Expr[]): Expr => rest.reduce((x, y) => i32.add(x, y), a);

/** Where tap `k` of position `out` lies along an axis, or −1 where it reads zeros. */
function along(f: Func, out: Expr, k: Expr, p: Names, axis: "y" | "x"): Local {
  const [a, b, c, s] = [p[`a${axis}`], p[`b${axis}`], p[`c${axis}`], p[`s${axis}`]];
  const size = axis === "y" ? p.SH : p.SW;
  const at = f.let(sum(i32.mul(out, a), b, i32.mul(k, c)));
  f.if(i32.ne(s, 1), () => {
    const whole = i32.and(i32.ge_s(at, 0), i32.eqz(i32.rem(at, s)));
    f.set(at, select(whole, i32.div(at, s), constant.i32(-1)));
  });
  // beyond the end is negative too
  f.set(at, select(i32.lt_u(at, size), at, constant.i32(-1)));
  return at;
}

interface Pixel {
  readonly n: Local;
  readonly y: Local;
  readonly x: Local;
}
function pixelAt(f: Func, p: Names, index: Expr): Pixel {
  const rest = f.let(i32.div(index, p.OW));
  return { n: f.let(i32.div(rest, p.OH)), y: f.let(i32.rem(rest, p.OH)), x: f.let(i32.rem(index, p.OW)) };
}

/** For each tap in order, the address of the pixel's channels in the source, or of zeros. `body` gets one for each pixel. */
function overTaps(
  f: Func,
  p: Names,
  source: Expr,
  zeros: Expr,
  pixels: readonly Pixel[],
  body: (addresses: readonly Local[]) => void,
): void {
  f.for(0, p.kh, 1, (ky) => {
    const rows = pixels.map(({ n, y }) => {
      const at = along(f, y, ky, p, "y");
      return f.let(select(i32.ge_s(at, 0), i32.mul(i32.add(i32.mul(n, p.SH), at), p.SW), constant.i32(-1)));
    });
    f.for(0, p.kw, 1, (kx) => {
      body(
        pixels.map(({ x }, i) => {
          const at = along(f, x, kx, p, "x");
          const inside = i32.and(i32.ge_s(at, 0), i32.ge_s(rows[i], 0));
          const where = i32.add(source, i32.mul(i32.mul(i32.add(rows[i], at), p.SC), 4));
          return f.let(select(inside, where, zeros));
        }),
      );
    });
  });
}

/** conv_pack: the weight of each group as [tap · channels, result channels] in panels of eight. */
function packWeight(m: Module): Func {
  const f = m.function(["i32", "i32", "i32", "i32"]);
  const [cmd, r0, r1] = f.args;
  const p = parameters(f, cmd, names);
  const [weight, packed] = [buffer(f, cmd, 0), buffer(f, cmd, 1)];
  const [inputs, outputs] = [f.let(i32.div(p.SC, p.groups)), f.let(i32.div(p.OC, p.groups))];
  const panels = f.let(ceilDiv(outputs, NR));
  const K = f.let(i32.mul(i32.mul(p.kh, p.kw), inputs));
  f.for(r0, r1, 1, (t) => {
    const group = f.let(i32.div(t, panels));
    const n0 = f.let(i32.mul(i32.rem(t, panels), NR));
    const to = f.let(i32.add(packed, i32.mul(i32.mul(t, K), 4 * NR)));
    const from = f.let(sum(weight, i32.mul(sum(i32.mul(group, p.wg), i32.mul(n0, p.wn)), 4)));
    const columns = f.let(min(i32.sub(outputs, n0), NR));
    f.for(0, p.kh, 1, (ky) =>
      f.for(0, p.kw, 1, (kx) =>
        f.for(0, inputs, 1, (c) => {
          const at = sum(i32.mul(ky, p.wy), i32.mul(kx, p.wx), i32.mul(c, p.wc));
          const first = f.let(i32.add(from, i32.mul(at, 4)));
          for (let j = 0; j < NR; j++)
            f.if(
              i32.gt_s(columns, j),
              () => f.store("f32", to, f32.load(i32.add(first, i32.mul(p.wn, 4 * j))), 4 * j),
              () => f.store("f32", to, 0, 4 * j),
            );
          f.bump(to, 4 * NR);
        }),
      ),
    );
  });
  return f;
}

/** conv2d_fwd and conv2d_dx; a row of the command is 64 pixels of a group's result. */
function convolve(m: Module, product: Func): Func {
  const f = m.function(["i32", "i32", "i32", "i32"]);
  const [cmd, r0, r1, tid] = f.args;
  const p = parameters(f, cmd, names);
  const [source, packed, out] = [0, 1, 2].map((i) => buffer(f, cmd, i));
  const [inputs, outputs] = [f.let(i32.div(p.SC, p.groups)), f.let(i32.div(p.OC, p.groups))];
  const pixels = f.let(i32.mul(i32.mul(p.N, p.OH), p.OW));
  const blocks = f.let(ceilDiv(pixels, PIXELS));
  const K = f.let(i32.mul(i32.mul(p.kh, p.kw), inputs));
  const room = f.let(scratchOf(tid));
  const zeros = f.let(i32.add(room, i32.mul(K, 4 * PIXELS)));
  f.fillMemory(zeros, 0, i32.mul(inputs, 4));
  const groupBytes = f.let(i32.mul(i32.mul(K, ceilDiv(outputs, NR)), 4 * NR));
  f.for(r0, r1, 1, (t) => {
    const group = f.let(i32.div(t, blocks));
    const first = f.let(i32.mul(i32.rem(t, blocks), PIXELS));
    const rows = f.let(min(i32.sub(pixels, first), PIXELS));
    const from = f.let(i32.add(source, i32.mul(i32.mul(group, inputs), 4)));
    const to = f.let(room);
    f.for(0, rows, MR, (i) => {
      // behind the last pixel it is the last again, and not stored
      const four = [0, 1, 2, 3].map((r) => pixelAt(f, p, i32.add(first, min(i32.add(i, r), i32.sub(rows, 1)))));
      overTaps(f, p, from, zeros, four, (at) => {
        const c = f.let(0);
        f.while(i32.le_s(i32.add(c, 4), inputs), () => {
          const v = at.map((x) => f.let(v128.load(x)));
          turned(f, v).forEach((row, r) => {
            f.store("v128", to, row, 16 * r);
          });
          for (const x of at) f.bump(x, 16);
          f.bump(to, 64);
          f.bump(c, 4);
        });
        f.while(i32.lt_s(c, inputs), () => {
          at.forEach((x, r) => {
            f.store("f32", to, f32.load(x), 4 * r);
            f.bump(x, 4);
          });
          f.bump(to, 16);
          f.bump(c, 1);
        });
      });
    });
    const result = sum(out, i32.mul(sum(i32.mul(first, p.OC), i32.mul(group, outputs)), 4));
    f.call(product, room, i32.add(packed, i32.mul(group, groupBytes)), result, p.OC, rows, outputs, K, 0);
  });
  return f;
}

/** conv2d_dw; a row of the command is a part of the pixels of a group. */
function weightGradient(m: Module, pack8: Func, product: Func): Func {
  const f = m.function(["i32", "i32", "i32", "i32"]);
  const [cmd, r0, r1, tid] = f.args;
  const p = parameters(f, cmd, names);
  const [x, dy, partial] = [0, 1, 2].map((i) => buffer(f, cmd, i));
  const [inputs, outputs] = [f.let(i32.div(p.SC, p.groups)), f.let(i32.div(p.OC, p.groups))];
  const pixels = f.let(i32.mul(i32.mul(p.N, p.OH), p.OW));
  const share = f.let(i32.mul(ceilDiv(ceilDiv(pixels, PIXELS), p.parts), PIXELS));
  const K = f.let(i32.mul(i32.mul(p.kh, p.kw), inputs));
  const room = f.let(scratchOf(tid));
  const dyRoom = f.let(i32.add(room, i32.mul(i32.mul(ceilDiv(K, MR), MR), 4 * PIXELS)));
  const zeros = f.let(i32.add(dyRoom, i32.mul(i32.mul(ceilDiv(outputs, NR), NR), 4 * PIXELS)));
  f.fillMemory(zeros, 0, i32.mul(inputs, 4));
  f.for(r0, r1, 1, (t) => {
    const group = f.let(i32.rem(t, p.groups));
    const start = f.let(i32.mul(i32.div(t, p.groups), share));
    const to = f.let(i32.add(partial, i32.mul(i32.mul(t, i32.mul(K, outputs)), 4)));
    f.fillMemory(to, 0, i32.mul(i32.mul(K, outputs), 4));
    const from = f.let(i32.add(x, i32.mul(i32.mul(group, inputs), 4)));
    f.for(start, min(i32.add(start, share), pixels), PIXELS, (first) => {
      const rows = f.let(min(i32.sub(pixels, first), PIXELS));
      const step = f.let(i32.mul(rows, 4 * MR));
      f.for(0, rows, 1, (i) => {
        // number j = (tap, channel) of this pixel goes to strip j / 4, lane j % 4
        const strip = f.let(i32.add(room, i32.mul(i, 16)));
        const lane = f.let(0);
        overTaps(f, p, from, zeros, [pixelAt(f, p, i32.add(first, i))], ([at]) => {
          const c = f.let(0);
          f.if(i32.eqz(lane), () =>
            f.while(i32.le_s(i32.add(c, 4), inputs), () => {
              f.store("v128", strip, v128.load(at));
              f.bump(strip, step);
              f.bump(at, 16);
              f.bump(c, 4);
            }),
          );
          f.while(i32.lt_s(c, inputs), () => {
            f.store("f32", i32.add(strip, i32.mul(lane, 4)), f32.load(at));
            f.bump(at, 4);
            f.bump(c, 1);
            f.set(lane, i32.and(i32.add(lane, 1), 3));
            f.if(i32.eqz(lane), () => f.bump(strip, step));
          });
        });
      });
      const rowsOfDy = f.let(sum(dy, i32.mul(sum(i32.mul(first, p.OC), i32.mul(group, outputs)), 4)));
      const panel = f.let(dyRoom);
      f.for(0, outputs, NR, (j) => {
        f.call(pack8, i32.add(rowsOfDy, i32.mul(j, 4)), p.OC, 1, rows, min(i32.sub(outputs, j), NR), panel);
        f.bump(panel, i32.mul(rows, 4 * NR));
      });
      f.call(product, room, dyRoom, to, outputs, K, outputs, rows, 1);
    });
  });
  return f;
}

/** conv2d_dw_finish: adds the parts in order; a row of the command is a channel of the result. */
function finishWeight(m: Module): Func {
  const f = m.function(["i32", "i32", "i32", "i32"]);
  const [cmd, r0, r1] = f.args;
  const p = parameters(f, cmd, names);
  const [partial, dw] = [buffer(f, cmd, 0), buffer(f, cmd, 1)];
  const [inputs, outputs] = [f.let(i32.div(p.SC, p.groups)), f.let(i32.div(p.OC, p.groups))];
  const taps = f.let(i32.mul(p.kh, p.kw));
  const K = f.let(i32.mul(taps, inputs));
  const part = f.let(i32.mul(i32.mul(i32.mul(K, outputs), p.groups), 4));
  f.for(r0, r1, 1, (o) => {
    const to = f.let(i32.add(dw, i32.mul(i32.mul(o, K), 4)));
    const from = sum(i32.mul(i32.mul(i32.div(o, outputs), K), outputs), i32.rem(o, outputs));
    const first = f.let(i32.add(partial, i32.mul(from, 4)));
    f.for(0, inputs, 1, (c) =>
      f.for(0, taps, 1, (tap) => {
        const k = i32.add(i32.mul(tap, inputs), c);
        const at = f.let(i32.add(first, i32.mul(i32.mul(k, outputs), 4)));
        const total = f.let(constant.f32(0));
        f.for(0, p.parts, 1, () => {
          f.set(total, f32.add(total, f32.load(at)));
          f.bump(at, part);
        });
        f.store("f32", to, total);
        f.bump(to, 4);
      }),
    );
  });
  return f;
}

/** The kernels by the names of their commands. */
export function convKernels(m: Module, { pack8, micro }: ProductParts): Record<string, Func> {
  const product = packedProduct(m, micro);
  const forward = convolve(m, product);
  return {
    conv_pack: packWeight(m),
    conv2d_fwd: forward,
    conv2d_dx: forward,
    conv2d_dw: weightGradient(m, pack8, product),
    conv2d_dw_finish: finishWeight(m),
  };
}
