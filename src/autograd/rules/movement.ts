/**
 * Gradients of the movement rows, each another movement (a view where there is one), of the contraction and of the
 * rows that carry state.
 */
import type { Attrs, Node } from "../../graph/node.ts";
import {
  contract,
  flip,
  fold,
  full,
  narrow,
  pad,
  permute,
  reshape,
  slice,
  sum,
  transpose,
  window,
} from "../../graph/ops.ts";
import { primitives as p } from "../../graph/primitives.ts";
import { declareKeepsNothing, needs, type Rule, setGradients, single } from "../table.ts";

const ints = (attrs: Attrs, name: string): readonly number[] => attrs[name] as readonly number[];

/** For rows with one operand. */
const moved = (f: (g: Node, x: Node, attrs: Attrs) => Node): Rule => single((y, g) => [f(g, y.inputs[0], y.attrs)]);

/** Zeros where nothing was taken; a step of more than 1 leaves gaps, one below 0 turns the axis. */
function unslice(g: Node, x: Node, attrs: Attrs): Node {
  const [start, step, size] = [ints(attrs, "start"), ints(attrs, "step"), ints(attrs, "shape")];
  if (size.includes(0)) return full(x.shape, 0, x.dtype);
  const turned = flip(
    g,
    step.flatMap((s, i) => (s < 0 ? [i] : [])),
  );
  const low = start.map((s, i) => (step[i] < 0 ? s + (size[i] - 1) * step[i] : s));
  const interior = step.map((s, i) => (size[i] > 1 ? Math.abs(s) - 1 : 0));
  const high = low.map((l, i) => x.shape[i] - l - size[i] - (size[i] - 1) * interior[i]);
  return pad(turned, low, high, 0, interior);
}

/** [batch…, n, m] of a view that is itself such a turn of something: made the other way round, so that the turns cancel. */
const isTurned = (x: Node): boolean => {
  if (x.operation !== p.permute || x.storage) return false;
  const axes = ints(x.attrs, "axes");
  const n = axes.length;
  for (let i = 0; i < n - 2; i++) if (axes[i] !== i) return false;
  return axes[n - 1] === n - 2 && axes[n - 2] === n - 1;
};
const turn = (x: Node): Node => transpose(x, -1, -2);

/** a · b → A of [m, k], B of [k, n]; for an operand that is a turned view, the product of the turned operands. */
const contraction: Rule = single((y, g) => {
  const a = y.inputs[0];
  const b = y.inputs[1];
  return [needs(y, 0) ? gradientOfLeft(a, b, g) : null, needs(y, 1) ? gradientOfRight(a, b, g) : null];
});
const gradientOfLeft = (a: Node, b: Node, g: Node): Node =>
  isTurned(a) ? turn(contract(b, turn(g))) : contract(g, turn(b));
const gradientOfRight = (a: Node, b: Node, g: Node): Node =>
  isTurned(b) ? turn(contract(turn(g), a)) : contract(turn(a), g);

setGradients({
  reshape: moved((g, x) => reshape(g, x.shape)),
  permute: moved((g, _, attrs) => {
    const axes = ints(attrs, "axes");
    const inverse = new Array<number>(axes.length);
    for (let i = 0; i < axes.length; i++) inverse[axes[i]] = i;
    return permute(g, inverse);
  }),
  expand: moved((g, x) => {
    const grown: number[] = [];
    for (let i = 0; i < x.shape.length; i++) if (x.shape[i] !== g.shape[i]) grown.push(i);
    return sum(g, grown, { keepdim: true });
  }),
  slice: moved(unslice),
  pad: moved((g, x, attrs) => {
    const [low, interior] = [ints(attrs, "low"), ints(attrs, "interior")];
    return slice(
      g,
      x.shape.map((size, i) => ({ start: size === 0 ? 0 : low[i], size, step: interior[i] + 1 })),
    );
  }),
  window: moved((g, x, attrs) => {
    const [axes, size, stride, dilation] = ["axes", "size", "stride", "dilation"].map((n) => ints(attrs, n));
    const length = axes.map((a) => x.shape[a]);
    return fold(g, axes, size, stride, dilation, length);
  }),
  fold: moved((g, _, attrs) => {
    const [axes, size, stride, dilation] = ["axes", "size", "stride", "dilation"].map((n) => ints(attrs, n));
    return window(g, axes, size, stride, dilation);
  }),
  concat: single((y, g) => {
    const axis = y.attrs["axis"] as number;
    let start = 0;
    return y.inputs.map((x, i) => {
      const at = start;
      start += x.shape[axis];
      return needs(y, i) ? narrow(g, axis, at, x.shape[axis]) : null;
    });
  }),

  contract: contraction,

  // version k+1 of a state is the value that it got; the version before has no part in it
  assign: single((_, g) => [null, g]),
  // the walk hands this gradient to output `index` of the input
  output: single((_, g) => [g]),

  buffer: null,
  const: null,
  scalar: null,
  iota: null,
  random: null,
});
declareKeepsNothing(["reshape", "permute", "expand", "slice", "pad", "window", "fold", "concat", "assign", "output"]);
