/**
 * Operations of this package, with kernels of its own for cpu: one with lanes and an attribute written into the text, its
 * gradient as an operation with a kernel too, and one with two outputs that works row by row.
 */
import { defineOperation, type Spec, type Tensor } from "../../../src/index.ts";

/** A number as a C float. */
const float = (x: number): string => `${x.toExponential(9)}f`;
const sizeOf = (x: Spec): number => x.shape.reduce((a, b) => a * b, 1);
const allFloat32 = (specs: readonly Spec[]): boolean => specs.every((s) => s.dtype === "float32");

/** 2 · scale · relu(x) · g: the gradient of `squaredRelu`, in plain C. */
const squaredReluGradient = defineOperation<{ scale: number }>({
  name: "acme.squaredReluGradient",
  forward: ([x, g], { scale }) =>
    x
      .relu()
      .mul(2 * scale)
      .mul(g),
  kernels: {
    cpu: (inputs, [out], { scale }) =>
      allFloat32(inputs)
        ? {
            rows: sizeOf(out),
            body: `
              /* acme gradient */
              for (nb_i64 i = r0; i < r1; i++) out0[i] = (in0[i] > 0 ? in0[i] : 0) * ${float(2 * scale)} * in1[i];`,
          }
        : null,
  },
});

/** scale · relu(x)²; on cpu a kernel over lanes, in rows of 1,024 elements. */
export const squaredRelu = defineOperation<{ scale: number }>({
  name: "acme.squaredRelu",
  forward: ([x], { scale }) => x.relu().square().mul(scale),
  backward: ({ inputs: [x], attrs }, [g]) => [g && squaredReluGradient([x, g], attrs)],
  kernels: {
    cpu: (inputs, [out], { scale }) =>
      allFloat32(inputs)
        ? {
            rows: Math.ceil(sizeOf(out) / 1024),
            body: `
              /* acme forward */
              const nb_i64 size = ${sizeOf(out)}, end = r1 * 1024 < size ? r1 * 1024 : size;
              const vf zero = f_splat(0), scale = f_splat(${float(scale)});
              nb_i64 i = r0 * 1024;
              for (; i + L <= end; i += L) {
                const vf x = f_max(f_load(in0 + i), zero);
                f_store(out0 + i, x * x * scale);
              }
              if (i < end) {
                const vf x = f_max(f_loadn(in0 + i, end - i), zero);
                f_storen(out0 + i, x * x * scale, end - i);
              }`,
          }
        : null,
  },
});

/** Rows of [rows, n] by their root mean square: [rows, n], and the factors [rows, 1]. Its gradient is the decomposition's. */
export const rootMeanSquare = defineOperation<{ eps: number }>({
  name: "acme.rootMeanSquare",
  forward: ([x], { eps }) => {
    const factor = x.square().mean({ dim: -1, keepdim: true }).add(eps).rsqrt();
    return [x.mul(factor), factor];
  },
  kernels: {
    cpu: ([x], _outputs, { eps }) =>
      x.dtype === "float32" && x.shape.length === 2
        ? {
            rows: x.shape[0],
            grain: 4,
            body: `
              /* acme rows */
              enum { n = ${x.shape[1]} };
              for (nb_i64 r = r0; r < r1; r++) {
                double sum = 0;
                for (int j = 0; j < n; j++) sum += (double)in0[r * n + j] * in0[r * n + j];
                const float factor = (float)(1 / __builtin_sqrt(sum / n + ${eps}));
                for (int j = 0; j < n; j++) out0[r * n + j] = in0[r * n + j] * factor;
                out1[r] = factor;
              }`,
          }
        : null,
  },
});

/** Gives 1 where a kernel of the package ran, 0 where it was decomposed: not what an honest operation does. */
export const ranKernel: (x: Tensor) => Tensor = (() => {
  const probe = defineOperation({
    name: "acme.ranKernel",
    forward: ([x]) => x.mul(0),
    kernels: { cpu: ([x]) => ({ rows: sizeOf(x), body: "for (nb_i64 i = r0; i < r1; i++) out0[i] = 1;" }) },
  });
  return (x) => probe([x]);
})();
