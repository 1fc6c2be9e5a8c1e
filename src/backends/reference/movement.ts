/**
 * Movement rows. Each is a walk over one side in row-major order and over the other by strides: expand, permute, slice,
 * window read by strides; pad, fold, concat, dynamicUpdate write by strides. `reshape` and `detach` are no rows: the
 * lowering gives them the register of their input.
 */
import { contiguousStrides, type Shape, sizeOf } from "../../core/shape.ts";
import type { Attrs } from "../../graph/node.ts";
import type { Row, Step, Values } from "./values.ts";

/** Axes of a walk, merged where the strides allow; the last axis is the inner loop. */
export interface Walk {
  readonly shape: readonly number[];
  readonly strides: readonly number[];
  readonly size: number;
}

/** Drops axes of size 1 and merges neighbours that lie on one line. */
export function planWalk(shape: Shape, strides: readonly number[]): Walk {
  const outShape: number[] = [];
  const outStrides: number[] = [];
  for (let i = 0; i < shape.length; i++) {
    if (shape[i] === 1) continue;
    const last = outShape.length - 1;
    if (last >= 0 && outStrides[last] === shape[i] * strides[i]) {
      outShape[last] *= shape[i];
      outStrides[last] = strides[i];
    } else {
      outShape.push(shape[i]);
      outStrides.push(strides[i]);
    }
  }
  if (outShape.length === 0) {
    outShape.push(1);
    outStrides.push(1);
  }
  return { shape: outShape, strides: outStrides, size: sizeOf(shape) };
}

/** Calls `row(contiguous offset, strided offset, length, stride)` for every inner row. */
function walkRows(
  { shape, strides, size }: Walk,
  base: number,
  row: (flat: number, strided: number, length: number, stride: number) => void,
): void {
  if (size === 0) return;
  const last = shape.length - 1;
  const length = shape[last];
  const stride = strides[last];
  const at = new Array<number>(last).fill(0);
  let strided = base;
  for (let flat = 0; flat < size; flat += length) {
    row(flat, strided, length, stride);
    for (let axis = last - 1; axis >= 0; axis--) {
      strided += strides[axis];
      if (++at[axis] < shape[axis]) break;
      strided -= strides[axis] * shape[axis];
      at[axis] = 0;
    }
  }
}

/** out (row-major) = from (strided). */
export function read(walk: Walk, base: number, from: Values, out: Values): void {
  walkRows(walk, base, (flat, s, length, stride) => {
    if (stride === 0) out.fill(from[s], flat, flat + length);
    else if (stride === 1 && length > 64) out.set(from.subarray(s, s + length), flat);
    else for (let i = 0; i < length; i++) out[flat + i] = from[s + i * stride];
  });
}

/** out (strided) = from (row-major). */
export function write(walk: Walk, base: number, from: Values, out: Values): void {
  walkRows(walk, base, (flat, s, length, stride) => {
    if (stride === 1 && length > 64) out.set(from.subarray(flat, flat + length), s);
    else for (let i = 0; i < length; i++) out[s + i * stride] = from[flat + i];
  });
}

/** out (strided) += from (row-major). */
function accumulate(walk: Walk, base: number, from: Values, out: Values): void {
  walkRows(walk, base, (flat, s, length, stride) => {
    for (let i = 0; i < length; i++) out[s + i * stride] += from[flat + i];
  });
}

const list = (attrs: Attrs, name: string): readonly number[] => attrs[name] as readonly number[];
const dot = (a: readonly number[], b: readonly number[]): number => a.reduce((sum, x, i) => sum + x * b[i], 0);

/** A row that reads its only input by strides. */
const reading = (view: (step: Step, strides: number[]) => { strides: readonly number[]; base?: number }): Row => ({
  moves: true,
  plan: (step) => {
    const { strides, base = 0 } = view(step, contiguousStrides(step.inputs[0].shape));
    const walk = planWalk(step.shape, strides);
    return (o, [x]) => read(walk, base, x, o);
  },
});

/** Strides of the windows of a [… axes …] array: one step a window, then one a position within it. */
function windowStrides(attrs: Attrs, strides: readonly number[]): number[] {
  const [axes, stride, dilation] = ["axes", "stride", "dilation"].map((name) => list(attrs, name));
  const out = strides.slice();
  axes.forEach((axis, i) => {
    out[axis] = strides[axis] * stride[i];
  });
  return [...out, ...axes.map((axis, i) => strides[axis] * dilation[i])];
}

export const movement: Readonly<Record<string, Row>> = {
  permute: reading(({ attrs }, strides) => ({ strides: list(attrs, "axes").map((axis) => strides[axis]) })),
  expand: reading(({ inputs }, strides) => ({ strides: strides.map((s, i) => (inputs[0].shape[i] === 1 ? 0 : s)) })),
  slice: reading(({ attrs }, strides) => ({
    strides: strides.map((s, i) => s * list(attrs, "step")[i]),
    base: dot(list(attrs, "start"), strides),
  })),
  window: reading(({ attrs }, strides) => ({ strides: windowStrides(attrs, strides) })),

  /** Values are copied beside a filling, never multiplied by a mask: −0 and NaN come through. */
  pad: {
    moves: true,
    plan: ({ attrs, shape, inputs }) => {
      const strides = contiguousStrides(shape);
      const interior = list(attrs, "interior");
      const base = dot(list(attrs, "low"), strides);
      const walk = planWalk(
        inputs[0].shape,
        strides.map((s, i) => s * (interior[i] + 1)),
      );
      const value = Number(attrs["value"]);
      return (o, [x]) => {
        o.fill(value);
        write(walk, base, x, o);
      };
    },
  },
  /** Overlaps are summed in float64 (integers wrap), in the order of the windows. */
  fold: {
    plan: ({ attrs, shape, inputs }) => {
      const walk = planWalk(inputs[0].shape, windowStrides(attrs, contiguousStrides(shape)));
      return (o, [x]) => {
        const sums = o instanceof Float32Array ? new Float64Array(o.length) : o;
        sums.fill(0);
        accumulate(walk, 0, x, sums);
        if (sums !== o) o.set(sums);
      };
    },
  },
  concat: {
    moves: true,
    plan: ({ attrs, shape, inputs }) => {
      const axis = attrs["axis"] as number;
      const strides = contiguousStrides(shape);
      const walks = inputs.map((input) => planWalk(input.shape, strides));
      const bases: number[] = [];
      let position = 0;
      for (const input of inputs) {
        bases.push(position * strides[axis]);
        position += input.shape[axis];
      }
      return (o, xs) => {
        for (let i = 0; i < xs.length; i++) write(walks[i], bases[i], xs[i], o);
      };
    },
  },

  /** Offsets are clamped to 0 … size − length on each axis (as XLA's DynamicSlice): the region always fits. */
  dynamicSlice: {
    moves: true,
    plan: ({ shape, inputs }) => {
      const strides = contiguousStrides(inputs[0].shape);
      const walk = planWalk(shape, strides);
      return (o, [x, ...offsets]) => read(walk, clampedBase(inputs[0].shape, shape, strides, offsets), x, o);
    },
  },
  /** As dynamicSlice; the region is overwritten. */
  dynamicUpdate: {
    moves: true,
    plan: ({ shape, inputs }) => {
      const strides = contiguousStrides(shape);
      const walk = planWalk(inputs[1].shape, strides);
      return (o, [x, update, ...offsets]) => {
        o.set(x);
        write(walk, clampedBase(shape, inputs[1].shape, strides, offsets), update, o);
      };
    },
  },
};

function clampedBase(whole: Shape, part: Shape, strides: readonly number[], offsets: readonly Values[]): number {
  let base = 0;
  for (let i = 0; i < whole.length; i++)
    base += strides[i] * Math.min(Math.max(Math.trunc(offsets[i][0]), 0), whole[i] - part[i]);
  return base;
}
