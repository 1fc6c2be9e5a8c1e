/**
 * Operations that work element by element: functions of tensors, each also a method (`methods.ts`). Meaning, names and
 * promotion are PyTorch's; a number operand is a runtime scalar.
 */
import { type DType, isFloat } from "../core/dtype.ts";
import { DTypeError } from "../core/errors.ts";
import { relu as reluNode, sigmoid as sigmoidNode } from "../graph/composites/index.ts";
import { make, type Node } from "../graph/node.ts";
import * as ops from "../graph/ops.ts";
import { primitives as p } from "../graph/primitives.ts";
import { nodeOf, numberNode, type Operand, pairOf } from "./operand.ts";
import { Tensor, wrap } from "./tensor.ts";

type Unary = (x: Tensor) => Tensor;

const unary =
  (f: (x: Node) => Node): Unary =>
  (x) =>
    wrap(x, f(x.node));
/** Of the floating value: integers become float32. */
const floating =
  (f: (x: Node) => Node): Unary =>
  (x) =>
    new Tensor(f(ops.toFloat(x.node)));

/** −x. */
export const neg: Unary = unary(ops.neg);
/** |x|. */
export const abs: Unary = unary(ops.abs);
/** −1, 0 or 1. */
export const sign: Unary = unary(ops.sign);
/** Square root. */
export const sqrt: Unary = unary(ops.sqrt);
/** eˣ. */
export const exp: Unary = unary(ops.exp);
/** Natural logarithm. */
export const log: Unary = unary(ops.log);
/** ln(1 + x), exact near 0. */
export const log1p: Unary = unary(ops.log1p);
/** eˣ − 1, exact near 0. */
export const expm1: Unary = unary(ops.expm1);
export const sin: Unary = unary(ops.sin);
export const cos: Unary = unary(ops.cos);
export const atan: Unary = unary(ops.atan);
export const tanh: Unary = unary(ops.tanh);
/** The error function. */
export const erf: Unary = unary(ops.erf);
export const floor: Unary = unary(ops.floor);
export const ceil: Unary = unary(ops.ceil);
/** Rounds toward zero. */
export const trunc: Unary = unary(ops.trunc);
/** Rounds to nearest, halves to even. */
export const round: Unary = unary(ops.round);
/** max(x, 0). */
export const relu: Unary = unary(reluNode);
/** 1 / (1 + e⁻ˣ). */
export const sigmoid: Unary = unary(sigmoidNode);

/** x². */
export const square: Unary = unary((x) => ops.mul(x, x));
/** 1 / x. */
export const reciprocal: Unary = floating((x) => ops.div(1, x));
/** 1 / √x. */
export const rsqrt: Unary = floating((x) => ops.div(1, ops.sqrt(x)));
export const log2: Unary = floating((x) => ops.mul(ops.log(x), Math.LOG2E));
export const log10: Unary = floating((x) => ops.mul(ops.log(x), Math.LOG10E));
/** 2ˣ. */
export const exp2: Unary = floating((x) => ops.pow(ops.full(x.shape, 2, x.dtype), x));
export const tan: Unary = floating((x) => ops.div(ops.sin(x), ops.cos(x)));
const asinNode = (x: Node): Node => ops.atan(ops.div(x, ops.sqrt(ops.mul(ops.sub(1, x), ops.add(1, x)))));
export const asin: Unary = floating(asinNode);
export const acos: Unary = floating((x) => ops.mul(ops.atan(ops.sqrt(ops.div(ops.sub(1, x), ops.add(1, x)))), 2));
export const sinh: Unary = floating((x) => {
  const e = ops.expm1(x);
  return ops.mul(ops.add(e, ops.div(e, ops.add(e, 1))), 0.5);
});
export const cosh: Unary = floating((x) => ops.mul(ops.add(ops.exp(x), ops.exp(ops.neg(x))), 0.5));
/** ln(x + √(x² + 1)), by magnitude, so that small and negative x keep their digits. */
export const asinh: Unary = floating((x) => {
  const a = ops.abs(x);
  const square = ops.mul(a, a);
  const root = ops.sqrt(ops.add(square, 1));
  return ops.mul(ops.sign(x), ops.log1p(ops.add(a, ops.div(square, ops.add(root, 1)))));
});
export const acosh: Unary = floating((x) => ops.log(ops.add(x, ops.sqrt(ops.mul(ops.sub(x, 1), ops.add(x, 1))))));
export const atanh: Unary = floating((x) => ops.mul(ops.sub(ops.log1p(x), ops.log1p(ops.neg(x))), 0.5));
/** 1 − erf(x). */
export const erfc: Unary = floating((x) => ops.sub(1, ops.erf(x)));
/** The fractional part, with x's sign. */
export const frac: Unary = unary((x) => ops.sub(x, ops.trunc(x)));
export const rad2deg: Unary = floating((x) => ops.mul(x, 180 / Math.PI));
export const deg2rad: Unary = floating((x) => ops.mul(x, Math.PI / 180));

/** Whether an element is NaN. */
export const isnan: Unary = unary(ops.isNan);
const infinite = (x: Node): Node =>
  isFloat(x.dtype) ? ops.eq(ops.abs(x), Number.POSITIVE_INFINITY) : ops.full(x.shape, 0, "bool");
/** Whether an element is +∞ or −∞. */
export const isinf: Unary = unary(infinite);
/** Whether an element is neither NaN nor infinite. */
export const isfinite: Unary = unary((x) =>
  isFloat(x.dtype) ? ops.lt(ops.abs(x), Number.POSITIVE_INFINITY) : ops.full(x.shape, 1, "bool"),
);
/** Whether an element is 0 (torch.logical_not). */
export const logicalNot: Unary = unary((x) => (x.dtype === "bool" ? ops.not(x) : ops.eq(x, 0)));
/** Every bit flipped; of bool, logical not. */
export const bitwiseNot: Unary = unary(ops.not);

/** Replaces NaN by `nan`, infinities by the largest values of the dtype or what is given (torch.nan_to_num). */
export function nanToNum(
  x: Tensor,
  options: { readonly nan?: number; readonly posinf?: number; readonly neginf?: number } = {},
): Tensor {
  const { node } = x;
  if (!isFloat(node.dtype)) return x;
  const largest = largestOf[node.dtype as keyof typeof largestOf];
  const { nan = 0, posinf = largest, neginf = -largest } = options;
  const given = (v: number): Node => nodeOf("nanToNum", v, node);
  const noNan = ops.where(ops.isNan(node), given(nan), node);
  const noHigh = ops.where(ops.eq(node, Number.POSITIVE_INFINITY), given(posinf), noNan);
  return new Tensor(ops.where(ops.eq(node, Number.NEGATIVE_INFINITY), given(neginf), noHigh));
}
/** The largest finite value of each floating dtype. */
export const largestOf = {
  float32: 3.4028234663852886e38,
  float64: Number.MAX_VALUE,
  float16: 65504,
  bfloat16: 3.3895313892515355e38,
};

// ---- two operands -----------------------------------------------------------------------------------------------------

type Binary = (a: Operand, b: Operand) => Tensor;
type Method = (a: Tensor, b: Operand) => Tensor;

const binary =
  (name: string, f: (a: Node, b: Node) => Node): Binary & Method =>
  (a: Operand, b: Operand) => {
    const [x, y] = pairOf(name, a, b);
    return new Tensor(f(x, y));
  };

/** a + alpha · b. */
export function add(a: Operand, b: Operand, options?: { readonly alpha?: number }): Tensor {
  let [x, y] = pairOf("add", a, b);
  if (options?.alpha !== undefined) y = ops.mul(y, nodeOf("add", options.alpha, y));
  return new Tensor(ops.add(x, y));
}
/** a − alpha · b. */
export function sub(a: Operand, b: Operand, options?: { readonly alpha?: number }): Tensor {
  let [x, y] = pairOf("sub", a, b);
  if (options?.alpha !== undefined) y = ops.mul(y, nodeOf("sub", options.alpha, y));
  return new Tensor(ops.sub(x, y));
}
/** a · b, element by element. */
export const mul = binary("mul", ops.mul);

/** a / b; integers become float32. `roundingMode` "floor" or "trunc" rounds the quotient and keeps integers integers. */
export function div(a: Operand, b: Operand, options?: { readonly roundingMode?: "floor" | "trunc" | null }): Tensor {
  const [x, y] = pairOf("div", a, b);
  const mode = options?.roundingMode;
  if (!mode) return new Tensor(ops.div(x, y));
  if (mode === "floor") return new Tensor(ops.floorDivide(x, y));
  if (mode !== "trunc") throw new DTypeError(`div: roundingMode is "floor" or "trunc", got ${JSON.stringify(mode)}`);
  const [u, v] = ops.operands("div", x, y);
  if (isFloat(u.dtype)) return new Tensor(ops.trunc(ops.div(u, v)));
  // idiv floors: the quotient of the magnitudes, with its sign, rounds toward zero
  const magnitude = ops.floorDivide(ops.abs(u), ops.abs(v));
  return new Tensor(ops.mul(magnitude, ops.mul(ops.sign(u), ops.sign(v))));
}
/** ⌊a / b⌋ (torch.floor_divide). */
export const floorDivide = binary("floorDivide", ops.floorDivide);
/** The remainder with b's sign (torch.remainder). */
export const remainder = binary("remainder", ops.mod);
/** The remainder with a's sign (torch.fmod). */
export const fmod = binary("fmod", (a, b) => {
  const [x, y] = ops.operands("fmod", a, b);
  if (isFloat(x.dtype)) return ops.sub(x, ops.mul(ops.trunc(ops.div(x, y)), y));
  return ops.mul(ops.sign(x), ops.mod(ops.abs(x), ops.abs(y)));
});

/** a to the power b. A number as exponent is a constant of the program (x² and √x are worth knowing to the compiler). */
export function pow(a: Operand, b: Operand): Tensor {
  if (a instanceof Tensor && typeof b === "number") {
    const { node } = a;
    if (b === 1) return a;
    if (b === 2 && node.dtype !== "bool") return new Tensor(ops.mul(node, node));
    if (b === 0.5) return new Tensor(ops.sqrt(node));
    if (b < 0 && Number.isInteger(b) && !isFloat(node.dtype))
      throw new DTypeError(`pow: integers can't be raised to the negative power ${b}; cast with .to("float32")`);
    return new Tensor(ops.pow(node, b));
  }
  const [x, y] = pairOf("pow", a, b);
  return new Tensor(ops.pow(x, y));
}

/** The larger element; a NaN wins. */
export const maximum = binary("maximum", ops.maximum);
/** The smaller element; a NaN wins. */
export const minimum = binary("minimum", ops.minimum);
export const lt = binary("lt", ops.lt);
export const le = binary("le", ops.le);
export const gt = binary("gt", ops.gt);
export const ge = binary("ge", ops.ge);
export const eq = binary("eq", ops.eq);
export const ne = binary("ne", ops.ne);

const truth = (x: Node): Node => (x.dtype === "bool" ? x : ops.ne(x, 0));
export const logicalAnd = binary("logicalAnd", (a, b) => ops.and(truth(a), truth(b)));
export const logicalOr = binary("logicalOr", (a, b) => ops.or(truth(a), truth(b)));
export const logicalXor = binary("logicalXor", (a, b) => ops.xor(truth(a), truth(b)));
export const bitwiseAnd = binary("bitwiseAnd", ops.and);
export const bitwiseOr = binary("bitwiseOr", ops.or);
export const bitwiseXor = binary("bitwiseXor", ops.xor);
export const bitwiseLeftShift = binary("bitwiseLeftShift", ops.shl);
export const bitwiseRightShift = binary("bitwiseRightShift", ops.shr);

/** The angle of the point (x, y): a is y, b is x (torch.atan2). */
export const atan2 = binary("atan2", (a, b) => {
  const [y, x] = ops.operands("atan2", ops.toFloat(a), ops.toFloat(b));
  const angle = ops.atan(ops.div(y, x));
  // 0/0 and ∞/∞ have an angle too; −0 counts as below
  const below = ops.lt(ops.where(ops.eq(y, 0), ops.div(1, y), y), 0);
  const flat = ops.where(ops.and(ops.eq(y, 0), ops.eq(x, 0)), y, angle);
  const ratio = ops.where(
    ops.and(infinite(x), infinite(y)),
    ops.mul(ops.mul(ops.sign(x), ops.sign(y)), Math.PI / 4),
    flat,
  );
  const left = ops.lt(ops.where(ops.eq(x, 0), ops.div(1, x), x), 0);
  const turn = ops.where(below, ops.full(y.shape, -Math.PI, y.dtype), ops.full(y.shape, Math.PI, y.dtype));
  const onAxis = ops.and(ops.eq(y, 0), ops.eq(x, 0));
  return ops.where(left, ops.where(onAxis, turn, ops.add(ratio, turn)), ratio);
});

/** Whether elements are equal within atol + rtol · |b| (torch.isclose). */
export function isclose(
  a: Tensor,
  b: Tensor,
  options: { readonly rtol?: number; readonly atol?: number; readonly equalNan?: boolean } = {},
): Tensor {
  const { rtol = 1e-5, atol = 1e-8, equalNan = false } = options;
  const [x, y] = ops.operands("isclose", a.node, b.node);
  let close = ops.eq(x, y);
  if (isFloat(x.dtype)) {
    const allowed = ops.add(nodeOf("isclose", atol, y), ops.mul(nodeOf("isclose", rtol, y), ops.abs(y)));
    const near = ops.and(ops.le(ops.abs(ops.sub(x, y)), allowed), ops.lt(ops.abs(y), Number.POSITIVE_INFINITY));
    close = ops.or(close, near);
    if (equalNan) close = ops.or(close, ops.and(ops.isNan(x), ops.isNan(y)));
  }
  return new Tensor(close);
}

// ---- choice -------------------------------------------------------------------------------------------------------------

/** Elements of a where `condition` holds, else of b; all broadcast. */
export function where(condition: Tensor, a: Operand, b: Operand): Tensor {
  const bool = truth(condition.node);
  if (a instanceof Tensor || b instanceof Tensor) {
    const [x, y] = pairOf("where", a, b);
    return new Tensor(ops.where(bool, x, y));
  }
  return new Tensor(ops.where(bool, numberNode("where", a), numberNode("where", b)));
}

/** x with elements below `min` or above `max` set to them; either may be null. At a limit the gradient passes. */
export function clamp(x: Tensor, min?: Operand | null, max?: Operand | null): Tensor {
  let { node } = x;
  if ((min === undefined || min === null) && (max === undefined || max === null))
    throw new DTypeError("clamp: give min, max or both");
  if (min !== undefined && min !== null) {
    const [v, low] = ops.operands("clamp", node, nodeOf("clamp", min, node));
    node = ops.where(ops.lt(v, low), low, v);
  }
  if (max !== undefined && max !== null) {
    const [v, high] = ops.operands("clamp", node, nodeOf("clamp", max, node));
    node = ops.where(ops.lt(high, v), high, v);
  }
  return new Tensor(node);
}

/** x with `value` where `mask` holds (torch.masked_fill). */
export function maskedFill(x: Tensor, mask: Tensor, value: Operand): Tensor {
  if (mask.dtype !== "bool") throw new DTypeError(`maskedFill: the mask must be bool, got ${mask.dtype}`);
  const fill = value instanceof Tensor ? ops.cast(value.node, x.dtype) : numberNode("maskedFill", value, x.dtype);
  return new Tensor(ops.where(mask.node, ops.cast(fill, x.dtype), x.node));
}

/** start + weight · (end − start), by whichever end is nearer (torch.lerp). */
export function lerp(start: Tensor, end: Tensor, weight: Operand): Tensor {
  const [a, b] = ops.operands("lerp", start.node, end.node);
  const w = nodeOf("lerp", weight, a);
  return new Tensor(ops.add(a, ops.mul(w, ops.sub(b, a))));
}
/** x + value · a · b. */
export function addcmul(x: Tensor, a: Tensor, b: Tensor, options: { readonly value?: number } = {}): Tensor {
  const product = ops.mul(a.node, b.node);
  const { value } = options;
  return new Tensor(
    ops.add(x.node, value === undefined ? product : ops.mul(product, nodeOf("addcmul", value, product))),
  );
}
/** x + value · a / b. */
export function addcdiv(x: Tensor, a: Tensor, b: Tensor, options: { readonly value?: number } = {}): Tensor {
  const quotient = ops.div(a.node, b.node);
  const { value } = options;
  return new Tensor(
    ops.add(x.node, value === undefined ? quotient : ops.mul(quotient, nodeOf("addcdiv", value, quotient))),
  );
}

// ---- types --------------------------------------------------------------------------------------------------------------

const casting =
  (dtype: DType): Unary =>
  (x) =>
    wrap(x, ops.cast(x.node, dtype));
export const float: Unary = casting("float32");
export const double: Unary = casting("float64");
export const half: Unary = casting("float16");
export const bfloat16: Unary = casting("bfloat16");
export const int: Unary = casting("int32");
export const bool: Unary = unary(truth);

/** A copy that does not change when x does; also a root of the next flush, so it survives the step (torch.clone). */
export function clone(x: Tensor): Tensor {
  return new Tensor(make(p.reshape, [x.node], { shape: x.shape })).keep();
}
