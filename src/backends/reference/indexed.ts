/**
 * Rows whose reads or writes depend on data: gather, scatter, argsort. Every index is checked before it is used; one
 * outside the axis (negative ones too) throws IndexError, and the program has then written nothing.
 */
import { IndexError } from "../../core/errors.ts";
import { showShape } from "../../core/shape.ts";
import { aroundAxis, coordinates, type Row, type Step, type Values } from "./values.ts";

function outside({ name, attrs, inputs }: Step, index: number, position: number): never {
  const axis = attrs["axis"] as number;
  const size = inputs[0].shape[axis];
  throw new IndexError(
    `${name}: index ${index} at position ${coordinates(position, inputs[1].shape)} is outside axis ${axis} of ${showShape(inputs[0].shape)}; it must be at least 0 and less than ${size}`,
  );
}

/** Visits every element of the index in row-major order, with the flat position that it points to in x. */
function forEachIndex(
  step: Step,
  outer: number,
  n: number,
  m: number,
  inner: number,
  index: Values,
  visit: (i: number, target: number) => void,
): void {
  let i = 0;
  for (let a = 0; a < outer; a++)
    for (let r = 0; r < m; r++)
      for (let b = 0; b < inner; b++, i++) {
        const at = index[i];
        if (!(at >= 0 && at < n)) outside(step, at, i);
        visit(i, (a * n + at) * inner + b);
      }
}

/** Where duplicates meet: `add` sums in float64 and rounds once, `set` keeps the last, `max` the largest (NaN wins). */
const modes: Readonly<Record<string, (out: Values, target: number, value: number) => void>> = {
  add: (out, target, value) => {
    out[target] += value;
  },
  set: (out, target, value) => {
    out[target] = value;
  },
  max: (out, target, value) => {
    out[target] = Math.max(out[target], value);
  },
};

export const indexed: Readonly<Record<string, Row>> = {
  gather: {
    moves: true,
    plan: (step) => {
      const axis = step.attrs["axis"] as number;
      const [outer, n, inner] = aroundAxis(step.inputs[0].shape, axis);
      const m = step.shape[axis];
      return (o, [x, index]) =>
        forEachIndex(step, outer, n, m, inner, index, (i, target) => {
          o[i] = x[target];
        });
    },
  },
  scatter: {
    plan: (step) => {
      const axis = step.attrs["axis"] as number;
      const [outer, n, inner] = aroundAxis(step.shape, axis);
      const m = step.inputs[1].shape[axis];
      const apply = modes[step.attrs["mode"] as string];
      return (o, [x, index, source]) => {
        const sums = o instanceof Float32Array ? Float64Array.from(x) : o;
        if (sums === o) o.set(x);
        forEachIndex(step, outer, n, m, inner, index, (i, target) => apply(sums, target, source[i]));
        if (sums !== o) o.set(sums);
      };
    },
  },
  /** Stable: equal elements keep their order, ascending or descending. NaN is larger than everything. */
  argsort: {
    plan: ({ attrs, shape }) => {
      const [outer, n, inner] = aroundAxis(shape, attrs["axis"] as number);
      const sign = attrs["descending"] ? -1 : 1;
      const line = new Float64Array(n);
      const order = new Int32Array(n);
      const compare = (i: number, j: number): number => {
        const [x, y] = [line[i], line[j]];
        if (x === y) return 0;
        if (x < y) return -sign;
        if (x > y) return sign;
        return (Number.isNaN(x) ? (Number.isNaN(y) ? 0 : 1) : -1) * sign;
      };
      return (o, [x]) => {
        for (let a = 0; a < outer; a++)
          for (let b = 0; b < inner; b++) {
            const at = a * n * inner + b;
            for (let r = 0; r < n; r++) {
              line[r] = x[at + r * inner];
              order[r] = r;
            }
            order.sort(compare);
            for (let r = 0; r < n; r++) o[at + r * inner] = order[r];
          }
      };
    },
  },
};
