/**
 * Which composites and opaque primitives the native runtime runs by itself, and how: one row each, from a node of the
 * compiler's graph to commands. Operations of a user's own with a kernel are own.ts's (target.ts puts both together). Everything else becomes kernels.
 */

import type { GNode } from "../../compiler/lower.ts";
import type { Strided } from "../../compiler/views.ts";
import { contiguousStrides, sizeOf } from "../../core/shape.ts";
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
import { type HeadStrides, planAttention, planAttentionBackward } from "./plans.ts";
import {
  type Commands,
  type Guest,
  indexedTemplates,
  type Operand,
  readings,
  TEMPORARY,
  type Template,
} from "./shared-templates.ts";

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

export const templates: Readonly<Record<string, Template>> = {
  ...indexedTemplates,
  attention: {
    ...readings.attention,
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
    ...readings.attentionBackward,
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
    ...readings.conv,
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
    ...readings.conv,
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
    ...readings.convWeightGradient,
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
};
