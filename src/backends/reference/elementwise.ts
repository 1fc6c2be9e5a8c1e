/**
 * Unary, binary and choice rows: one loop a row, so that each is compiled for itself. Results are float64 numbers that
 * the output array rounds (float32) or wraps (integers); the 16-bit floats are rounded by the program afterwards.
 * Meanings are PyTorch 2's; where hardware leaves a choice open, it is written at the row.
 */
import { type DType, dtypes, isFloat, isInteger, roundHalfEven } from "../../core/dtype.ts";
import { IndexError } from "../../core/errors.ts";
import { erf } from "./erf.ts";
import { coordinates, fromRaw, type Kernel, type Row, rawOf, type Step, toRaw, type Values } from "./values.ts";

type One = (x: Values, o: Values) => void;
type Two = (x: Values, y: Values, o: Values, step: Step) => void;

const one = (float: One, integer: One = float): Row => ({
  plan: ({ dtype }) => {
    const loop = isFloat(dtype) ? float : integer;
    return (o, [x]) => loop(x, o);
  },
});
/** `float` serves integers too where no loop of their own is given; bool is served like integers. */
const two = (float: Two, integer: Two = float): Row => ({
  plan: (step) => {
    const loop = isFloat(step.inputs[0].dtype) ? float : integer;
    return (o, [x, y]) => loop(x, y, o, step);
  },
});

const divisionByZero = ({ name, shape }: Step, i: number): never => {
  throw new IndexError(
    `${name}: integer division by zero at position ${coordinates(i, shape)}; the divisor must not be 0`,
  );
};

/** C's pow: 1 to any power and anything to the 0 are 1, NaN or not; (−1)^±∞ is 1. */
function power(a: number, b: number): number {
  if (b === 2) return a * a;
  if (b === 0 || a === 1) return 1;
  if (a === -1 && (b === Number.POSITIVE_INFINITY || b === Number.NEGATIVE_INFINITY)) return 1;
  return a ** b;
}

/** Powers wrap; a negative exponent gives 0 unless the base is ±1. */
function integerPower(a: number, b: number): number {
  if (b < 0) return a === 1 ? 1 : a === -1 ? (b % 2 === 0 ? 1 : -1) : 0;
  let out = 1;
  for (let e = b >>> 0; e > 0; e >>>= 1) {
    if (e & 1) out = Math.imul(out, a);
    a = Math.imul(a, a);
  }
  return out;
}

const widthOf = ({ dtype }: Step): number => dtypes[dtype].bytes * 8;

export const elementwise: Readonly<Record<string, Row>> = {
  neg: one((x, o) => {
    for (let i = 0; i < o.length; i++) o[i] = -x[i];
  }),
  abs: one((x, o) => {
    for (let i = 0; i < o.length; i++) o[i] = Math.abs(x[i]);
  }),
  /** −1, 0 or 1; NaN stays NaN. */
  sign: one((x, o) => {
    for (let i = 0; i < o.length; i++) o[i] = Math.sign(x[i]);
  }),
  sqrt: one((x, o) => {
    for (let i = 0; i < o.length; i++) o[i] = Math.sqrt(x[i]);
  }),
  exp: one((x, o) => {
    for (let i = 0; i < o.length; i++) o[i] = Math.exp(x[i]);
  }),
  log: one((x, o) => {
    for (let i = 0; i < o.length; i++) o[i] = Math.log(x[i]);
  }),
  log1p: one((x, o) => {
    for (let i = 0; i < o.length; i++) o[i] = Math.log1p(x[i]);
  }),
  expm1: one((x, o) => {
    for (let i = 0; i < o.length; i++) o[i] = Math.expm1(x[i]);
  }),
  sin: one((x, o) => {
    for (let i = 0; i < o.length; i++) o[i] = Math.sin(x[i]);
  }),
  cos: one((x, o) => {
    for (let i = 0; i < o.length; i++) o[i] = Math.cos(x[i]);
  }),
  atan: one((x, o) => {
    for (let i = 0; i < o.length; i++) o[i] = Math.atan(x[i]);
  }),
  tanh: one((x, o) => {
    for (let i = 0; i < o.length; i++) o[i] = Math.tanh(x[i]);
  }),
  erf: one((x, o) => {
    for (let i = 0; i < o.length; i++) o[i] = erf(x[i]);
  }),
  floor: one((x, o) => {
    for (let i = 0; i < o.length; i++) o[i] = Math.floor(x[i]);
  }),
  ceil: one((x, o) => {
    for (let i = 0; i < o.length; i++) o[i] = Math.ceil(x[i]);
  }),
  trunc: one((x, o) => {
    for (let i = 0; i < o.length; i++) o[i] = Math.trunc(x[i]);
  }),
  /** Ties to even. */
  round: one((x, o) => {
    for (let i = 0; i < o.length; i++) o[i] = roundHalfEven(x[i]);
  }),
  /** Bits of integers, the truth of bool. */
  not: {
    plan: ({ dtype }) =>
      dtype === "bool"
        ? (o, [x]) => {
            for (let i = 0; i < o.length; i++) o[i] = x[i] ^ 1;
          }
        : (o, [x]) => {
            for (let i = 0; i < o.length; i++) o[i] = ~x[i];
          },
  },

  add: two((x, y, o) => {
    for (let i = 0; i < o.length; i++) o[i] = x[i] + y[i];
  }),
  sub: two((x, y, o) => {
    for (let i = 0; i < o.length; i++) o[i] = x[i] - y[i];
  }),
  mul: two(
    (x, y, o) => {
      for (let i = 0; i < o.length; i++) o[i] = x[i] * y[i];
    },
    (x, y, o) => {
      for (let i = 0; i < o.length; i++) o[i] = Math.imul(x[i], y[i]);
    },
  ),
  div: two((x, y, o) => {
    for (let i = 0; i < o.length; i++) o[i] = x[i] / y[i];
  }),
  pow: two(
    (x, y, o) => {
      for (let i = 0; i < o.length; i++) o[i] = power(x[i], y[i]);
    },
    (x, y, o) => {
      for (let i = 0; i < o.length; i++) o[i] = integerPower(x[i], y[i]);
    },
  ),
  /** A NaN on either side wins. */
  max: two((x, y, o) => {
    for (let i = 0; i < o.length; i++) o[i] = Math.max(x[i], y[i]);
  }),
  min: two((x, y, o) => {
    for (let i = 0; i < o.length; i++) o[i] = Math.min(x[i], y[i]);
  }),
  /** Rounds toward −∞. A double holds the quotient of two 32-bit integers closely enough for its floor. */
  idiv: two((x, y, o, step) => {
    for (let i = 0; i < o.length; i++) {
      if (y[i] === 0) divisionByZero(step, i);
      o[i] = Math.floor(x[i] / y[i]);
    }
  }),
  /** The remainder has the divisor's sign; of floats by 0 it is NaN. */
  mod: two(
    (x, y, o) => {
      for (let i = 0; i < o.length; i++) {
        const r = x[i] % y[i];
        o[i] = r !== 0 && r < 0 !== y[i] < 0 ? r + y[i] : r;
      }
    },
    (x, y, o, step) => {
      for (let i = 0; i < o.length; i++) {
        if (y[i] === 0) divisionByZero(step, i);
        const r = x[i] % y[i];
        o[i] = r !== 0 && r < 0 !== y[i] < 0 ? r + y[i] : r;
      }
    },
  ),
  and: two((x, y, o) => {
    for (let i = 0; i < o.length; i++) o[i] = x[i] & y[i];
  }),
  or: two((x, y, o) => {
    for (let i = 0; i < o.length; i++) o[i] = x[i] | y[i];
  }),
  xor: two((x, y, o) => {
    for (let i = 0; i < o.length; i++) o[i] = x[i] ^ y[i];
  }),
  /** A shift outside 0 … width−1 leaves 0. */
  shl: two((x, y, o, step) => {
    const width = widthOf(step);
    for (let i = 0; i < o.length; i++) o[i] = y[i] >= 0 && y[i] < width ? x[i] << y[i] : 0;
  }),
  /** Arithmetic for int32, logical for the unsigned; a shift outside 0 … width−1 leaves 0, or −1 of a negative. */
  shr: two((x, y, o, step) => {
    const width = widthOf(step);
    if (step.dtype === "int32")
      for (let i = 0; i < o.length; i++) o[i] = x[i] >> (y[i] >= 0 && y[i] < width ? y[i] : width - 1);
    else for (let i = 0; i < o.length; i++) o[i] = y[i] < width ? x[i] >>> y[i] : 0;
  }),
  lt: two((x, y, o) => {
    for (let i = 0; i < o.length; i++) o[i] = x[i] < y[i] ? 1 : 0;
  }),
  le: two((x, y, o) => {
    for (let i = 0; i < o.length; i++) o[i] = x[i] <= y[i] ? 1 : 0;
  }),
  eq: two((x, y, o) => {
    for (let i = 0; i < o.length; i++) o[i] = x[i] === y[i] ? 1 : 0;
  }),

  where: {
    moves: true,
    plan:
      () =>
      (o, [c, x, y]) => {
        for (let i = 0; i < o.length; i++) o[i] = c[i] ? x[i] : y[i];
      },
  },
  cast: { plan: (step) => planCast(step.inputs[0].dtype, step.dtype) },
  bitcast: {
    moves: true,
    plan: ({ inputs: [{ dtype: from }], dtype: to, exact }) => {
      return (o, [x]) => {
        const memory = new ArrayBuffer(x.length * dtypes[from].bytes);
        toRaw(x, from, rawOf(memory, from, x.length));
        o.set(fromRaw(rawOf(memory, to, x.length), to, exact));
      };
    },
  },
};

/**
 * Integers wrap; anything but 0 is true, NaN too; floats are truncated toward 0. A float outside the integer type's
 * range has no agreed meaning (PyTorch leaves it to the processor): here it becomes the nearest end, and NaN 0.
 */
function planCast(from: DType, to: DType): Kernel {
  if (to === "bool")
    return (o, [x]) => {
      for (let i = 0; i < o.length; i++) o[i] = x[i] !== 0 ? 1 : 0;
    };
  if (isFloat(from) && isInteger(to)) {
    const [low, high] = dtypes[to].range as readonly [number, number];
    return (o, [x]) => {
      for (let i = 0; i < o.length; i++) o[i] = Math.min(Math.max(Math.trunc(x[i]), low), high);
    };
  }
  return (o, [x]) => o.set(x);
}
