/**
 * Gradients of the elementwise rows: unary, binary, choice, types. Where PyTorch chooses a subgradient (abs and sign
 * at 0, ties of max and min, pow at 0) the choice is the same.
 */
import { isFloat } from "../../core/dtype.ts";
import type { Node } from "../../graph/node.ts";
import {
  add,
  and,
  cast,
  constantValue,
  cos,
  div,
  eq,
  exp,
  floor,
  ge,
  log,
  lt,
  mul,
  neg,
  pow,
  sign,
  sin,
  sub,
  where,
  zerosLike,
} from "../../graph/ops.ts";
import { primitives as p } from "../../graph/primitives.ts";
import { declareKeepsNothing, needs, type Rule, setGradients, single } from "../table.ts";

/** g · f(x, y), for the rows with one operand; y is the row's own output. */
const unary = (f: (g: Node, x: Node, y: Node) => Node): Rule => single((y, g) => [f(g, y.inputs[0], y)]);
/** A function that is constant between its steps. */
const flat: Rule = unary((g) => zerosLike(g));

/** One gradient an operand, made only where it is of use. */
const binary = (da: (g: Node, y: Node) => Node, db: (g: Node, y: Node) => Node): Rule =>
  single((y, g) => [needs(y, 0) ? da(g, y) : null, needs(y, 1) ? db(g, y) : null]);

/** The number that a node is everywhere, where that is known while recording. */
function literalOf(node: Node): number | null {
  let x = node;
  while (!x.storage && (x.operation === p.expand || x.operation === p.reshape)) x = x.inputs[0];
  return x.operation === p.const ? constantValue(x) : null;
}

/** b · a^(b−1); 0 where b is 0, whatever a is. */
function powBase(g: Node, a: Node, b: Node): Node {
  const exponent = literalOf(b);
  if (exponent === 0) return zerosLike(g);
  if (exponent === 1) return g;
  if (exponent === 2) return mul(g, mul(a, 2));
  if (exponent !== null) return mul(g, mul(pow(a, exponent - 1), exponent));
  const none = eq(b, 0);
  // the branch that is not chosen stays finite, so that its own gradient is 0 and not 0 · ∞
  return where(none, 0, mul(g, mul(b, pow(a, where(none, 1, sub(b, 1))))));
}

/** a^b · log a; 0 where a is 0 and b ≥ 0, the limit from the right. */
function powExponent(g: Node, a: Node, b: Node, y: Node): Node {
  const limit = and(eq(a, 0), ge(b, 0));
  return mul(g, mul(y, log(where(limit, 1, a))));
}

/** All of g to the larger operand, half to each where they are equal. */
const larger = (g: Node, a: Node, b: Node): Node => where(lt(a, b), 0, where(eq(a, b), mul(g, 0.5), g));

setGradients({
  neg: unary((g) => neg(g)),
  abs: unary((g, x) => mul(g, sign(x))),
  sign: flat,
  sqrt: unary((g, _, y) => div(g, mul(y, 2))),
  exp: unary((g, _, y) => mul(g, y)),
  log: unary((g, x) => div(g, x)),
  log1p: unary((g, x) => div(g, add(x, 1))),
  expm1: unary((g, _, y) => mul(g, add(y, 1))),
  sin: unary((g, x) => mul(g, cos(x))),
  cos: unary((g, x) => neg(mul(g, sin(x)))),
  atan: unary((g, x) => div(g, add(mul(x, x), 1))),
  tanh: unary((g, _, y) => mul(g, sub(1, mul(y, y)))),
  erf: unary((g, x) => mul(g, mul(exp(neg(mul(x, x))), 2 / Math.sqrt(Math.PI)))),
  floor: flat,
  ceil: flat,
  trunc: flat,
  round: flat,
  not: null,

  add: binary(
    (g) => g,
    (g) => g,
  ),
  sub: binary(
    (g) => g,
    (g) => neg(g),
  ),
  mul: binary(
    (g, { inputs: [, b] }) => mul(g, b),
    (g, { inputs: [a] }) => mul(g, a),
  ),
  div: binary(
    (g, { inputs: [, b] }) => div(g, b),
    (g, y) => neg(mul(div(g, y.inputs[1]), y)),
  ),
  pow: binary(
    (g, { inputs: [a, b] }) => powBase(g, a, b),
    (g, y) => powExponent(g, y.inputs[0], y.inputs[1], y),
  ),
  max: binary(
    (g, { inputs: [a, b] }) => larger(g, a, b),
    (g, { inputs: [a, b] }) => larger(g, b, a),
  ),
  min: binary(
    (g, { inputs: [a, b] }) => larger(g, b, a),
    (g, { inputs: [a, b] }) => larger(g, a, b),
  ),
  // a − b · floor(a / b)
  mod: binary(
    (g) => g,
    (g, { inputs: [a, b] }) => neg(mul(g, floor(div(a, b)))),
  ),
  idiv: null,
  and: null,
  or: null,
  xor: null,
  shl: null,
  shr: null,
  lt: null,
  le: null,
  eq: null,

  where: single((y, g) => {
    const [condition] = y.inputs;
    return [null, needs(y, 1) ? where(condition, g, 0) : null, needs(y, 2) ? where(condition, 0, g) : null];
  }),
  cast: single((y, g) => [isFloat(y.inputs[0].dtype) ? cast(g, y.inputs[0].dtype) : null]),
  bitcast: null,
  detach: null,
});
declareKeepsNothing(["neg", "sign", "floor", "ceil", "trunc", "round", "add", "sub", "cast"]);
