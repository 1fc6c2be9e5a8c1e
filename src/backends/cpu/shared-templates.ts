/**
 * What the runtimes of cpu and wasm have in common of the operations that they run by themselves: what a row of their
 * tables is, which nodes their attention and convolutions take, and the rows of scatter, sort and running sums. The other
 * rows are templates.ts's and wasm/target.ts's.
 */
import { collapse, extentOf, isZero } from "../../compiler/lines.ts";
import type { GNode } from "../../compiler/lower.ts";
import type { Strided } from "../../compiler/views.ts";
import { dtypes } from "../../core/dtype.ts";
import { sizeOf } from "../../core/shape.ts";
import type { Node } from "../../graph/node.ts";
import type { CommandDesc } from "./contract.ts";
import type { KernelShape } from "./native.ts";
import { type Lines, type Plan, planArgsort, planCumulative, planScatter } from "./plans.ts";

export interface Operand {
  /** The operand's number, −1 − k for output k, or TEMPORARY + k. */
  readonly of: number;
  /** Element offset into it. */
  readonly offset: number;
}

export const TEMPORARY = 1000;

/** A kernel whose source comes with the command, for the operation of this name. */
export interface CommandSource {
  readonly source: string;
  readonly operation: string;
}

export interface Step {
  readonly command: Omit<CommandDesc<string>, "fn"> & { readonly fn: CommandDesc<string>["fn"] | CommandSource };
  readonly buffers: readonly Operand[];
}

export interface Commands extends Step {
  /** Constants and runtime scalars, in the command's order. */
  readonly scalars: readonly (number | GNode)[];
  /** Bytes of temporaries between the steps. */
  readonly temporaries?: readonly number[];
  /** Prepares operands, one phase before. */
  readonly lead?: Step;
  /** False: where the result is the state that operand 0 is, there is nothing to prepare. Default: true. */
  readonly leadsInPlace?: boolean;
  /** Puts parts together, one phase after. */
  readonly finish?: Step;
  readonly scratchBytes: number;
  readonly canFail: boolean;
  readonly flops: number;
  /** Of the command, in elements of the result along all but its last axis: the block that a kernel behind it gets. */
  readonly blockRows?: number;
}

/** A kernel that runs behind each tile of a template's command (see `behind`). */
export interface Guest {
  /** The result is cut into so many equal parts, and the kernel can take each by itself. */
  readonly parts: number;
  /** Where nobody else reads the result: its number among the kernel's buffers, and how many these are. */
  readonly own?: readonly [number: number, buffers: number];
}

export interface Template {
  /** Whether this node can be run so; asked before lowering (composites only). */
  readonly fits?: (node: Node) => boolean;
  /** Whether operand i may stay a strided view. */
  readonly strided: (n: GNode, operand: number, look: Strided) => boolean;
  /** Operands that are not read at all. */
  readonly ignores?: (n: GNode, operand: number) => boolean;
  /** Into how many equal parts the result may be cut for a kernel behind the command's tiles, most first. */
  readonly behind?: (n: GNode) => readonly number[];
  readonly plan: (n: GNode, looks: readonly Strided[], shape: KernelShape, errorOp: number, guest?: Guest) => Commands;
}

const never = () => false;

/** Two spatial axes, float32, equal padding before and behind. */
const plainConv = (n: Node): boolean => {
  const { low, high } = n.attrs as unknown as Record<string, number[]>;
  return n.dtype === "float32" && n.inputs[0].shape.length === 4 && low.every((p, i) => p === high[i]);
};

export const plainAttention = (n: Node): boolean =>
  n.inputs[0].dtype === "float32" && n.inputs[0].shape[3] === n.inputs[2].shape[3] && n.inputs[0].shape[3] <= 256;

/** What of the composites' rows is asked before there are commands. */
export const readings = {
  attention: {
    fits: (n: Node) => plainAttention(n) && n.inputs.length === 3,
    strided: (_n: GNode, _i: number, look: Strided) => look.strides[3] === 1,
  },
  attentionBackward: {
    fits: (n: Node) => plainAttention(n) && n.inputs.length === 6,
    strided: (_n: GNode, i: number, look: Strided) => i !== 4 && look.strides[3] === 1,
  },
  /** A convolution and its input's gradient. */
  conv: { fits: plainConv, strided: (_n: GNode, i: number) => i === 1 },
  convWeightGradient: { fits: plainConv, strided: never },
};

/** An operation from one operand to one output, along its axis. */
const alongAxis = (n: GNode, plan: (lines: Lines) => Plan<string>, flops: number): Commands => {
  const { outer, n: length, inner } = extentOf(n.shape, n.attrs["axis"] as number);
  const { main, scratchBytes } = plan({ outer, n: length, inner, dtype: n.inputs[0].dtype });
  const buffers = [
    { of: 0, offset: 0 },
    { of: -1, offset: 0 },
  ];
  return { command: main, buffers, scalars: [], scratchBytes, canFail: false, flops };
};

const prefix = (op: "add" | "mul" | "max"): Template => ({
  strided: never,
  plan: (n) => alongAxis(n, (lines) => planCumulative({ ...lines, op }), sizeOf(n.shape)),
});

/** Operations along an axis, which all runtimes have. */
export const indexedTemplates: Readonly<Record<string, Template>> = {
  scatter: {
    strided: (n, i, look) => i > 0 && collapse(n.inputs[i].shape, look.strides, n.attrs["axis"] as number) !== null,
    ignores: (n, i) => i === 0 && isZero(n.inputs[0]),
    plan: (n, looks, _shape, errorOp) => {
      const axis = n.attrs["axis"] as number;
      const { outer, n: size, inner } = extentOf(n.shape, axis);
      const count = n.inputs[1].shape[axis];
      const strides = (i: number) => collapse(n.inputs[i].shape, looks[i].strides, axis) as [number, number, number];
      const init = isZero(n.inputs[0]) ? "zero" : "base";
      const { main, scratchBytes } = planScatter({
        outer,
        count,
        inner,
        size,
        dtype: n.dtype,
        reduce: n.attrs["mode"] as "add",
        init,
        indexStrides: strides(1),
        srcStrides: strides(2),
        errorOp,
      });
      const buffers = [
        { of: -1, offset: 0 },
        { of: 1, offset: looks[1].offset },
        { of: 2, offset: looks[2].offset },
        ...(init === "base" ? [{ of: 0, offset: 0 }] : []),
      ];
      return { command: main, buffers, scalars: [], scratchBytes, canFail: true, flops: sizeOf(n.inputs[2].shape) };
    },
  },
  argsort: {
    strided: never,
    plan: (n) =>
      alongAxis(
        n,
        (lines) => planArgsort({ ...lines, descending: n.attrs["descending"] === true }),
        10 * sizeOf(n.shape),
      ),
  },
  cumsum: prefix("add"),
  cumprod: prefix("mul"),
  cummax: prefix("max"),
};

export const bytesOf = (shape: readonly number[], dtype: GNode["dtype"]): number => sizeOf(shape) * dtypes[dtype].bytes;

/** Whether an operation may write its result over its first operand, of which it leaves most as it is. */
export const updates = (n: GNode): boolean => n.op === "dynamicUpdate";
