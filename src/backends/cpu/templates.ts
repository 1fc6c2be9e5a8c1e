/**
 * Which composites and opaque primitives the native runtime runs by itself, and how: one row each, from a node of the
 * compiler's graph to commands. Operations of a user's own with a kernel are own.ts's (target.ts puts both together). Everything else becomes kernels.
 */

import { collapse, extentOf, isZero } from "../../compiler/lines.ts";
import type { GNode } from "../../compiler/lower.ts";
import type { Strided } from "../../compiler/views.ts";
import { dtypes } from "../../core/dtype.ts";
import { contiguousStrides, sizeOf } from "../../core/shape.ts";
import type { Node } from "../../graph/node.ts";
import type { CommandDesc } from "./contract.ts";
import {
  type Conv2dDesc,
  type ConvPlan,
  type ConvPost,
  MOST_POST_BUFFERS,
  planConv2d,
  planConv2dInput,
  planConv2dWeight,
  postLines,
} from "./convolution.ts";
import type { KernelShape } from "./native.ts";
import {
  type HeadStrides,
  planArgsort,
  planAttention,
  planAttentionBackward,
  planCumulative,
  planScatter,
} from "./plans.ts";

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

function convDesc(
  n: GNode,
  x: readonly number[],
  kernel: readonly number[],
  outer: number,
  weightStrides: readonly number[],
): Conv2dDesc {
  const { stride, low, dilation, groups } = n.attrs as unknown as {
    stride: number[];
    low: number[];
    dilation: number[];
    groups: number;
  };
  const pair = (v: readonly number[]): [number, number] => [v[0], v[1]];
  return {
    N: x[0],
    H: x[1],
    W: x[2],
    Cin: x[3],
    Cout: outer,
    kernel: pair(kernel),
    stride: pair(stride),
    padding: pair(low),
    dilation: pair(dilation),
    groups,
    weightStrides: weightStrides as [number, number, number, number],
  };
}

/** Parts of whole lines, and the lines a tile for them. */
function convParts(n: GNode): number[] {
  const [N, OH, OW, OC] = n.shape;
  const units = Array.from({ length: OH }, (_, i) => i + 1).filter((unit) => OH % unit === 0);
  return sizeOf(n.shape) ? units.filter((unit) => postLines(N, OH, OW, OC, unit)).map((unit) => (N * OH) / unit) : [];
}
function convPost(n: GNode, guest: Guest | undefined): { post?: ConvPost } {
  if (!guest) return {};
  const [N, OH, OW, OC] = n.shape;
  const lines = postLines(N, OH, OW, OC, (N * OH) / guest.parts) as number;
  return { post: { lines, own: guest.own && guest.own[1] <= MOST_POST_BUFFERS ? guest.own : undefined } };
}

/** conv and its input gradient: the weight is packed one phase before. */
function convCommands(plan: ConvPlan<string>, weight: Strided, flops: number): Commands {
  const at: Readonly<Record<string, Operand>> = {
    x: { of: 0, offset: 0 },
    dy: { of: 0, offset: 0 },
    weight: { of: 1, offset: weight.offset },
    packed: { of: TEMPORARY, offset: 0 },
    y: { of: -1, offset: 0 },
    dx: { of: -1, offset: 0 },
  };
  return {
    command: plan.main,
    buffers: plan.main.buffers.map((b) => at[b]),
    lead: { command: plan.pack, buffers: plan.pack.buffers.map((b) => at[b]) },
    temporaries: [plan.packed],
    scalars: [],
    scratchBytes: plan.scratchBytes,
    canFail: false,
    flops,
    blockRows: plan.tilePixels,
  };
}

export const plainAttention = (n: Node): boolean =>
  n.inputs[0].dtype === "float32" && n.inputs[0].shape[3] === n.inputs[2].shape[3] && n.inputs[0].shape[3] <= 256;

/** (batch, head, time) strides of a [B, H, T, D] operand. */
const heads = (look: Strided): HeadStrides => [look.strides[0], look.strides[1], look.strides[2]];
/** The same of [B, T, H, D]. */
export const headsOut = (strides: readonly number[]): HeadStrides => [strides[0], strides[2], strides[1]];

export function attentionDesc(n: GNode, looks: readonly Strided[]) {
  const [B, H, Tq, D] = n.inputs[0].shape;
  const [, Hkv, Tk] = n.inputs[1].shape;
  return {
    B,
    H,
    Hkv,
    Tq,
    Tk,
    D,
    causal: n.attrs["causal"] === true,
    q: heads(looks[0]),
    k: heads(looks[1]),
    v: heads(looks[2]),
  };
}

const prefix = (op: "add" | "mul" | "max"): Template => ({
  strided: never,
  plan: (n) => {
    const { outer, n: length, inner } = extentOf(n.shape, n.attrs["axis"] as number);
    const { main, scratchBytes } = planCumulative({ outer, n: length, inner, dtype: n.dtype, op });
    return {
      command: main,
      buffers: [
        { of: 0, offset: 0 },
        { of: -1, offset: 0 },
      ],
      scalars: [],
      scratchBytes,
      canFail: false,
      flops: sizeOf(n.shape),
    };
  },
});

export const templates: Readonly<Record<string, Template>> = {
  attention: {
    fits: (n) => plainAttention(n) && n.inputs.length === 3,
    strided: (_n, _i, look) => look.strides[3] === 1,
    plan: (n, looks, shape) => {
      const desc = attentionDesc(n, looks);
      const o = headsOut(contiguousStrides(n.shape));
      const { main, scratchBytes } = planAttention(shape, { ...desc, o });
      const buffers = [
        ...looks.map((l, i) => ({ of: i, offset: l.offset })),
        { of: -1, offset: 0 },
        { of: -2, offset: 0 },
      ];
      return {
        command: main,
        buffers,
        scalars: [n.attrs["scale"] as number],
        scratchBytes,
        canFail: false,
        flops: 2 * desc.B * desc.H * desc.Tq * desc.Tk * desc.D * (desc.causal ? 1 : 2),
      };
    },
  },
  attentionBackward: {
    fits: (n) => plainAttention(n) && n.inputs.length === 6,
    strided: (_n, i, look) => i !== 4 && look.strides[3] === 1,
    plan: (n, looks, shape) => {
      const desc = attentionDesc(n, looks);
      const outs = n.outputs as readonly { shape: readonly number[] }[];
      const [dq, dk, dv] = outs.map((s) => headsOut(contiguousStrides(s.shape)));
      const { main, scratchBytes } = planAttentionBackward(shape, {
        ...desc,
        o: headsOut(looks[3].strides),
        dO: headsOut(looks[5].strides),
        dq,
        dk,
        dv,
      });
      const buffers = [
        ...looks.map((l, i) => ({ of: i, offset: l.offset })),
        ...[-1, -2, -3].map((of) => ({ of, offset: 0 })),
      ];
      return {
        command: main,
        buffers,
        scalars: [n.attrs["scale"] as number],
        scratchBytes,
        canFail: false,
        flops: 5 * desc.B * desc.H * desc.Tq * desc.Tk * desc.D * (desc.causal ? 1 : 2),
      };
    },
  },
  conv: {
    fits: plainConv,
    strided: (_n, i) => i === 1,
    behind: convParts,
    plan: (n, looks, shape, _errorOp, guest) => {
      const [x, w] = n.inputs.map((i) => i.shape);
      return convCommands(
        planConv2d(shape, { ...convDesc(n, x, w.slice(2), w[0], looks[1].strides), ...convPost(n, guest) }),
        looks[1],
        2 * sizeOf(n.shape) * sizeOf(w.slice(1)),
      );
    },
  },
  convInputGradient: {
    fits: plainConv,
    strided: (_n, i) => i === 1,
    behind: (n) => ((n.attrs["stride"] as number[]).every((s) => s === 1) ? convParts(n) : []),
    plan: (n, looks, shape, _errorOp, guest) => {
      const [dy, w] = n.inputs.map((i) => i.shape);
      return convCommands(
        planConv2dInput(shape, { ...convDesc(n, n.shape, w.slice(2), w[0], looks[1].strides), ...convPost(n, guest) }),
        looks[1],
        2 * sizeOf(dy) * sizeOf(w.slice(1)),
      );
    },
  },
  convWeightGradient: {
    fits: plainConv,
    strided: never,
    plan: (n, _looks, shape) => {
      const [x, dy] = n.inputs.map((i) => i.shape);
      const plan = planConv2dWeight(shape, convDesc(n, x, n.shape.slice(2), n.shape[0], contiguousStrides(n.shape)));
      const at: Readonly<Record<string, Operand>> = {
        x: { of: 0, offset: 0 },
        dy: { of: 1, offset: 0 },
        partial: { of: TEMPORARY, offset: 0 },
        dw: { of: -1, offset: 0 },
      };
      return {
        command: plan.main,
        buffers: plan.main.buffers.map((b) => at[b]),
        finish: { command: plan.finish, buffers: plan.finish.buffers.map((b) => at[b]) },
        temporaries: [plan.partial],
        scalars: [],
        scratchBytes: plan.scratchBytes,
        canFail: false,
        flops: 2 * sizeOf(dy) * sizeOf(n.shape.slice(1)),
      };
    },
  },
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
    plan: (n) => {
      const { outer, n: length, inner } = extentOf(n.shape, n.attrs["axis"] as number);
      const { main, scratchBytes } = planArgsort({
        outer,
        n: length,
        inner,
        dtype: n.inputs[0].dtype,
        descending: n.attrs["descending"] === true,
      });
      return {
        command: main,
        buffers: [
          { of: 0, offset: 0 },
          { of: -1, offset: 0 },
        ],
        scalars: [],
        scratchBytes,
        canFail: false,
        flops: 10 * sizeOf(n.shape),
      };
    },
  },
  cumsum: prefix("add"),
  cumprod: prefix("mul"),
  cummax: prefix("max"),
};

export const bytesOf = (shape: readonly number[], dtype: GNode["dtype"]): number => sizeOf(shape) * dtypes[dtype].bytes;

/** Whether an operation may write its result over its first operand, of which it leaves most as it is. */
export const updates = (n: GNode): boolean => n.op === "dynamicUpdate";
