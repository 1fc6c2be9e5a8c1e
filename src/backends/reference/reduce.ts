/**
 * Reductions, prefixes and the contraction. Floats are accumulated in float64 and rounded once; integers wrap at 32
 * bits. Reductions see their input as [outer, n, inner] and walk rows of `inner`; axes that are not neighbours are
 * first brought to the end.
 */
import { type DType, dtypes, isFloat } from "../../core/dtype.ts";
import { contiguousStrides, sizeOf } from "../../core/shape.ts";
import { planWalk, read, type Walk } from "./movement.ts";
import { aroundAxis, heldAs, hold, type Row, type Step, type Values } from "./values.ts";

/** Folds row `x[at … at + inner]` into `acc`. */
type Fold = (acc: Values, x: Values, at: number, inner: number) => void;

interface Reduction {
  readonly start: (dtype: DType) => number;
  readonly float: Fold;
  readonly integer: Fold;
  /** Folds `n` neighbours, for inner = 1. */
  readonly run: (start: number, x: Values, at: number, n: number) => number;
  readonly runInteger: (start: number, x: Values, at: number, n: number) => number;
}

/** What no elements give: the identity, which a runtime `limit` of 0 can ask for. */
const lowest = (dtype: DType): number => dtypes[dtype].range?.[0] ?? (isFloat(dtype) ? Number.NEGATIVE_INFINITY : 0);
const highest = (dtype: DType): number => dtypes[dtype].range?.[1] ?? (isFloat(dtype) ? Number.POSITIVE_INFINITY : 1);

const maximum: Pick<Reduction, "float" | "run"> = {
  float: (acc, x, at, inner) => {
    for (let j = 0; j < inner; j++) acc[j] = Math.max(acc[j], x[at + j]);
  },
  run: (s, x, at, n) => {
    for (let i = 0; i < n; i++) s = Math.max(s, x[at + i]);
    return s;
  },
};
const minimum: Pick<Reduction, "float" | "run"> = {
  float: (acc, x, at, inner) => {
    for (let j = 0; j < inner; j++) acc[j] = Math.min(acc[j], x[at + j]);
  },
  run: (s, x, at, n) => {
    for (let i = 0; i < n; i++) s = Math.min(s, x[at + i]);
    return s;
  },
};

function reduction({ start, float, integer, run, runInteger }: Reduction): Row {
  return {
    plan: (step) => {
      const { dtype, inputs } = step;
      const floating = isFloat(dtype);
      const arrange = planArrangement(step);
      const [outer, n, inner] = arrange.sizes;
      const first = start(dtype);
      const acc = floating ? new Float64Array(inner) : hold(dtype === "uint32" ? "u32" : "i32", inner);
      const fold = floating ? float : integer;
      const foldRun = floating ? run : runInteger;
      return (o, [input, limit]) => {
        const x = arrange.walk ? arrange.gather(input) : input;
        const count = inputs.length > 1 ? Math.min(Math.max(limit[0], 0), n) : n;
        for (let a = 0; a < outer; a++) {
          const at = a * n * inner;
          if (inner === 1) o[a] = foldRun(first, x, at, count);
          else {
            acc.fill(first);
            for (let r = 0; r < count; r++) fold(acc, x, at + r * inner, inner);
            o.set(acc, a * inner);
          }
        }
      };
    },
  };
}

interface Arrangement {
  readonly sizes: readonly [outer: number, n: number, inner: number];
  /** Present where the input must be permuted first. */
  readonly walk: Walk | null;
  gather(x: Values): Values;
}

function planArrangement({ attrs, inputs: [{ shape, dtype }], exact }: Step): Arrangement {
  const axes = (attrs["axes"] as readonly number[]).slice().sort((a, b) => a - b);
  const n = axes.reduce((size, axis) => size * shape[axis], 1);
  const first = axes[0] ?? 0;
  const neighbours = axes.every((axis, i) => axis === first + i);
  if (neighbours) {
    const inner = sizeOf(shape.slice(first + axes.length));
    return { sizes: [sizeOf(shape.slice(0, first)), n, inner], walk: null, gather: (x) => x };
  }
  const order = [...shape.keys()].filter((axis) => !axes.includes(axis));
  const outer = order.reduce((size, axis) => size * shape[axis], 1);
  order.push(...axes);
  const strides = contiguousStrides(shape);
  const walk = planWalk(
    order.map((axis) => shape[axis]),
    order.map((axis) => strides[axis]),
  );
  const gather = (x: Values): Values => {
    const out = hold(heldAs(dtype, exact), x.length);
    read(walk, 0, x, out);
    return out;
  };
  return { sizes: [outer, n, 1], walk, gather };
}

/** The first position of the extreme value; a NaN counts as the extreme (torch.argmax, torch.argmin). */
function argReduction(better: (x: number, best: number) => boolean): Row {
  return {
    plan: ({ attrs, inputs }) => {
      const [outer, n, inner] = aroundAxis(inputs[0].shape, attrs["axis"] as number);
      return (o, [x]) => {
        for (let a = 0; a < outer; a++)
          for (let b = 0; b < inner; b++) {
            const at = a * n * inner + b;
            let best = x[at];
            let index = 0;
            for (let r = 1; r < n && !Number.isNaN(best); r++) {
              const value = x[at + r * inner];
              if (better(value, best) || Number.isNaN(value)) {
                best = value;
                index = r;
              }
            }
            o[a * inner + b] = index;
          }
      };
    },
  };
}

/** Running values along an axis; the carry is a float64 (or wrapped integer) that is not rounded on the way. */
function prefix(float: (carry: number, x: number) => number, integer = float): Row {
  return {
    plan: ({ attrs, shape, dtype }) => {
      const [outer, n, inner] = aroundAxis(shape, attrs["axis"] as number);
      const step = isFloat(dtype) ? float : integer;
      return (o, [x]) => {
        if (n === 0) return;
        for (let a = 0; a < outer; a++)
          for (let b = 0; b < inner; b++) {
            let at = a * n * inner + b;
            let carry = x[at];
            o[at] = carry;
            for (let r = 1; r < n; r++) {
              at += inner;
              carry = step(carry, x[at]);
              o[at] = carry;
            }
          }
      };
    },
  };
}

export const reductions: Readonly<Record<string, Row>> = {
  sum: reduction({
    start: () => 0,
    float: (acc, x, at, inner) => {
      for (let j = 0; j < inner; j++) acc[j] += x[at + j];
    },
    integer: (acc, x, at, inner) => {
      for (let j = 0; j < inner; j++) acc[j] = (acc[j] + x[at + j]) | 0;
    },
    run: (s, x, at, n) => {
      for (let i = 0; i < n; i++) s += x[at + i];
      return s;
    },
    runInteger: (s, x, at, n) => {
      for (let i = 0; i < n; i++) s = (s + x[at + i]) | 0;
      return s;
    },
  }),
  prod: reduction({
    start: () => 1,
    float: (acc, x, at, inner) => {
      for (let j = 0; j < inner; j++) acc[j] *= x[at + j];
    },
    integer: (acc, x, at, inner) => {
      for (let j = 0; j < inner; j++) acc[j] = Math.imul(acc[j], x[at + j]);
    },
    run: (s, x, at, n) => {
      for (let i = 0; i < n; i++) s *= x[at + i];
      return s;
    },
    runInteger: (s, x, at, n) => {
      for (let i = 0; i < n; i++) s = Math.imul(s, x[at + i]);
      return s;
    },
  }),
  reduceMax: reduction({ start: lowest, ...maximum, integer: maximum.float, runInteger: maximum.run }),
  reduceMin: reduction({ start: highest, ...minimum, integer: minimum.float, runInteger: minimum.run }),
  argmax: argReduction((x, best) => x > best),
  argmin: argReduction((x, best) => x < best),

  cumsum: prefix(
    (carry, x) => carry + x,
    (carry, x) => (carry + x) | 0,
  ),
  cumprod: prefix(
    (carry, x) => carry * x,
    (carry, x) => Math.imul(carry, x),
  ),
  cummax: prefix((carry, x) => Math.max(carry, x)),

  contract: {
    plan: ({ inputs: [a, b], dtype }) => {
      const dims = a.shape.length;
      const [m, k, n] = [a.shape[dims - 2], a.shape[dims - 1], b.shape[dims - 1]];
      const batch = sizeOf(a.shape.slice(0, dims - 2));
      const product = isFloat(dtype) ? (n < 4 ? floatDots : planProduct(k)) : integerRows;
      return (o, [x, y]) => {
        for (let i = 0; i < batch; i++) product(x, i * m * k, y, i * k * n, o, i * m * n, m, k, n);
      };
    },
  },
};

type Rows = (
  x: Values,
  xAt: number,
  y: Values,
  yAt: number,
  o: Values,
  oAt: number,
  m: number,
  k: number,
  n: number,
) => void;

/** Rows of A packed at a time. */
const rowBlock = 64;

/**
 * Blocks of 2 × 4 results, whose sums stay in registers. Two rows of A and four columns of B are packed as float64 side
 * by side, padded with zeros (whose products land in results that are not stored).
 */
function planProduct(k: number): Rows {
  const left = new Float64Array(rowBlock * k);
  const right = new Float64Array(4 * k);
  const tile = new Float64Array(8);
  return (x, xAt, y, yAt, o, oAt, m, _, n) => {
    for (let i0 = 0; i0 < m; i0 += rowBlock) {
      const rows = Math.min(rowBlock, m - i0);
      packLeft(x, xAt + i0 * k, rows, k, left);
      for (let j = 0; j < n; j += 4) {
        const columns = Math.min(4, n - j);
        packRight(y, yAt + j, columns, k, n, right);
        for (let i = 0; i < rows; i += 2) {
          multiply(left, i * k, right, k, tile);
          for (let r = 0; r < Math.min(2, rows - i); r++) {
            const at = oAt + (i0 + i + r) * n + j;
            for (let c = 0; c < columns; c++) o[at + c] = tile[r * 4 + c];
          }
        }
      }
    }
  };
}

function packLeft(x: Values, at: number, rows: number, k: number, left: Float64Array): void {
  if (rows % 2) left.fill(0, (rows - 1) * k, (rows + 1) * k);
  for (let i = 0; i < rows; i++) {
    const from = at + i * k;
    let to = (i - (i % 2)) * k + (i % 2);
    for (let p = 0; p < k; p++, to += 2) left[to] = x[from + p];
  }
}

function packRight(y: Values, at: number, columns: number, k: number, n: number, right: Float64Array): void {
  if (columns < 4) right.fill(0);
  for (let p = 0; p < k; p++) for (let c = 0; c < columns; c++) right[4 * p + c] = y[at + p * n + c];
}

function multiply(left: Float64Array, at: number, right: Float64Array, k: number, tile: Float64Array): void {
  let [s00, s01, s02, s03, s10, s11, s12, s13] = [0, 0, 0, 0, 0, 0, 0, 0];
  for (let q = 0, end = 4 * k; q < end; q += 4, at += 2) {
    const b0 = right[q];
    const b1 = right[q + 1];
    const b2 = right[q + 2];
    const b3 = right[q + 3];
    const a0 = left[at];
    const a1 = left[at + 1];
    s00 += a0 * b0;
    s01 += a0 * b1;
    s02 += a0 * b2;
    s03 += a0 * b3;
    s10 += a1 * b0;
    s11 += a1 * b1;
    s12 += a1 * b2;
    s13 += a1 * b3;
  }
  tile[0] = s00;
  tile[1] = s01;
  tile[2] = s02;
  tile[3] = s03;
  tile[4] = s10;
  tile[5] = s11;
  tile[6] = s12;
  tile[7] = s13;
}

/** For a few columns: dot products. */
const floatDots: Rows = (x, xAt, y, yAt, o, oAt, m, k, n) => {
  for (let i = 0; i < m; i++)
    for (let j = 0; j < n; j++) {
      let sum = 0;
      const at = xAt + i * k;
      for (let p = 0; p < k; p++) sum += x[at + p] * y[yAt + p * n + j];
      o[oAt + i * n + j] = sum;
    }
};

const integerRows: Rows = (x, xAt, y, yAt, o, oAt, m, k, n) => {
  const acc = new Int32Array(n);
  for (let i = 0; i < m; i++) {
    acc.fill(0);
    for (let p = 0; p < k; p++) {
      const a = x[xAt + i * k + p];
      for (let j = 0; j < n; j++) acc[j] = (acc[j] + Math.imul(a, y[yAt + p * n + j])) | 0;
    }
    o.set(acc, oAt + i * n);
  }
};
