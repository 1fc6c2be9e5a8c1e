/**
 * The operations that are texts of their own rather than kernels of the compiler: one row each, from a node to
 * dispatches. Everything else is decomposed into primitives, which become kernels. The texts are in matmul.ts, conv.ts,
 * attention.ts and indexed.ts and the forms for software adapters beside them, memory and order in assemble.ts.
 */
import { partDType } from "../../compiler/kernel.ts";
import { collapse, extentOf, isZero } from "../../compiler/lines.ts";
import type { GNode } from "../../compiler/lower.ts";
import type { Buffer } from "../../compiler/schedule.ts";
import { type Strided, strided } from "../../compiler/views.ts";
import type { DType } from "../../core/dtype.ts";
import { BackendError } from "../../core/errors.ts";
import { contiguousStrides, sizeOf } from "../../core/shape.ts";
import type { Node } from "../../graph/node.ts";
import {
  type Attention,
  type AttentionGradient,
  attention,
  attentionBackward,
  type Heads,
  WIDEST,
} from "./attention.ts";
import { fitsLanes, laneAttention, laneAttentionBackward } from "./attention-lanes.ts";
import { convReads, convSizes, convStore, geometryOf, isConv, plainConv } from "./conv.ts";
import { laneConv, laneConvParts, laneConvWeight } from "./conv-lanes.ts";
import { argsort, type Lines, type PrefixOp, prefix, scatter } from "./indexed.ts";
import { laneOf, typeOf } from "./layout.ts";
import { canRepeat } from "./loops.ts";
import { type Product, type ProductText, partsOf, productText, type Sizes } from "./matmul.ts";
import { lanePartsOf, laneProductText } from "./matmul-lanes.ts";
import { type Dispatch, type Element, type Numbers, Shader } from "./shader.ts";

/** What a template is given to write its dispatches with. */
export interface Place {
  readonly looks: readonly Strided[];
  /** See Device.lanes. */
  readonly lanes: number;
  /** The memory of operand i, and of output k. */
  readonly operand: (i: number) => Buffer;
  readonly output: (k?: number) => Buffer;
  /** Memory of so many 32-bit numbers between the dispatches. */
  readonly temporary: (count: number) => Buffer;
  /** A number to fail as where an index is outside of 0 … extent − 1. */
  readonly check: (extent: number) => number;
}

interface Template {
  /** Whether this node can be run so; asked before lowering (composites only). */
  readonly fits?: (node: Node) => boolean;
  /** Whether operand i may stay a strided view. */
  readonly strided: (n: GNode, operand: number, look: Strided) => boolean;
  /** Operands that are not read at all. */
  readonly ignores?: (n: GNode, operand: number) => boolean;
  readonly plan: (n: GNode, place: Place) => readonly Dispatch[];
  readonly flops: (n: GNode) => number;
}

const never = (): boolean => false;

/** How a text holds elements of a 32-bit dtype. */
export function elementOf(dtype: DType): Element {
  const lane = laneOf(dtype);
  if (!import.meta.forBrowsers && lane === "m")
    throw new BackendError("webgpu: bool has no arithmetic of its own; it should have been widened");
  return typeOf[lane] as Element;
}

const axisOf = (n: GNode): number => n.attrs["axis"] as number;

/** Operand i as lines along an axis. */
function linesOf(n: GNode, i: number, axis: number, { looks, operand }: Place): Lines {
  const { shape, dtype } = n.inputs[i];
  const strides = collapse(shape, looks[i].strides, axis) as [number, number, number];
  return { buffer: operand(i), element: elementOf(dtype), offset: looks[i].offset, strides };
}

const running = (op: PrefixOp): Template => ({
  strided: never,
  plan: (n, place) =>
    prefix(linesOf(n, 0, axisOf(n), place), extentOf(n.shape, axisOf(n)), op, place.output(), place.temporary),
  flops: (n) => sizeOf(n.shape),
});

function sizesOf(n: GNode): Sizes {
  const rank = n.shape.length;
  return {
    batch: n.shape.slice(0, rank - 2),
    M: n.shape[rank - 2],
    N: n.shape[rank - 1],
    K: n.inputs[0].shape[rank - 1],
  };
}

/** Operations that are products of two matrices, however these are read. */
export const isProduct = (op: string): boolean => op === "contract" || isConv(op);

/** A product of either kind: its sizes, rows counted over all that lies before the last axis. */
const productSizes = (n: GNode): Sizes => (isConv(n.op) ? convSizes(geometryOf(n)) : sizesOf(n));

function partsFor(n: GNode, lanes: number): number {
  if (import.meta.forGpus || lanes === 0) return partsOf(productSizes(n));
  if (!isConv(n.op)) return lanePartsOf(sizesOf(n), lanes);
  return n.op === "convWeightGradient" ? laneConvParts(geometryOf(n), lanes) : 1;
}

/** Whether a kernel may go on with a product's finished sums: they come whole, and in the order of memory. */
export const canBeFollowed = (n: GNode, lanes: number): boolean =>
  isProduct(n.op) &&
  n.dtype === "float32" &&
  n.op !== "convWeightGradient" &&
  sizeOf(n.shape) > 0 &&
  partsFor(n, lanes) === 1;

/** A product's description, its operands bound in a shader. */
export function productOf(n: GNode, place: Place, s: Shader, finish: string): Product {
  const element = elementOf(n.dtype) as "f32" | "i32";
  const order = n.op === "convWeightGradient" ? [1, 0] : [0, 1]; // its rows are the gradient's channels
  const [a, b] = order.map((i) => ({ ...place.looks[i], name: s.bind(place.operand(i), element) }));
  if (!isConv(n.op)) return { ...sizesOf(n), a, b, element, finish };
  const g = geometryOf(n);
  // strides tell here only what is contiguous: depth of the first operand, or rows and columns of both
  const [deep, own] = g.kind === "convWeightGradient" ? [g.Cout, 1] : [1, g.Cout];
  return {
    ...convSizes(g),
    a: { name: a.name, offset: 0, strides: [own, deep], read: "read_a" },
    b: { name: b.name, offset: 0, strides: [g.Cin, 1], read: "read_b" },
    element,
    finish,
  };
}

/** A product as one dispatch, whose text does `finish` with every sum. */
export function dispatchProduct(
  n: GNode,
  p: Product,
  s: Shader,
  { lanes, looks }: Pick<Place, "lanes" | "looks">,
  numbers: Numbers = {},
): Dispatch {
  const parts = partsFor(n, lanes);
  const text = (): ProductText => {
    if (!isConv(n.op))
      return !import.meta.forGpus && lanes > 0 ? laneProductText(p, parts, lanes) : productText(p, parts);
    const g = geometryOf(n);
    if (!import.meta.forGpus && lanes > 0)
      return n.op === "convWeightGradient" ? laneConvWeight(g, p, parts, lanes) : laneConv(g, p, looks[1], lanes);
    for (const f of convReads(g, p.a.name, p.b.name, looks[1])) s.define(f);
    return productText(p, parts);
  };
  const { workgroup, functions, body, size, groups } = text();
  for (const w of workgroup) s.workgroup(w);
  for (const f of functions) s.define(f);
  return s.build(body, size, groups, numbers);
}

function planProduct(n: GNode, place: Place): Dispatch[] {
  const s = new Shader();
  const bare = productOf(n, place, s, "");
  const parts = partsFor(n, place.lanes);
  const total = sizeOf(n.shape);
  const into = parts === 1 ? place.output() : place.temporary(parts * total);
  const size = bare.M * bare.N;
  const at = isConv(n.op) ? convStore(geometryOf(n)) : `row * ${bare.N} + column`;
  const store = `${s.bind(into, bare.element)}[z * ${size} + ${at}] = x;`;
  const main = dispatchProduct(n, { ...bare, finish: store }, s, place);
  if (parts === 1) return [main];
  const f = new Shader();
  const [from, to] = [f.bind(into, bare.element), f.bind(place.output(), bare.element)];
  const add = f.flat(
    total,
    `    var sum = ${from}[e];
    for (var q = 1; q < ${parts}; q++) { sum += ${from}[q * ${total} + e]; }
    ${to}[e] = sum;`,
  );
  return [main, add];
}

/** Multiplications and additions of a product. */
const productFlops = (n: GNode): number => {
  const { batch, M, N, K } = productSizes(n);
  return 2 * sizeOf(batch) * M * N * K;
};

const convolution: Template = {
  fits: plainConv,
  strided: (n, i) => i === 1 && n.op !== "convWeightGradient", // the weight
  plan: planProduct,
  flops: productFlops,
};

const plainAttention = (n: Node, inputs: number): boolean => {
  const width = (i: number): number => n.inputs[i].shape[3];
  return (
    n.inputs[0].dtype === "float32" &&
    n.inputs.length === inputs && // no length, no mask
    [width(0), width(2)].every((d) => d % 4 === 0 && d > 0 && d <= WIDEST) &&
    n.inputs[1].shape[2] > 0
  );
};

/** Operand i, or an output, as [batch, head, time, width]; `swapped` if it is [batch, time, head, width]. */
function headsOf(buffer: Buffer, { offset, strides }: Omit<Strided, "source">, swapped: boolean): Heads {
  const [b, h, t, d] = strides;
  return { buffer, offset, strides: swapped ? [b, t, h, d] : [b, h, t, d] };
}

function attentionOf(n: GNode, { looks, operand }: Place): Attention {
  const [B, H, Tq, D] = n.inputs[0].shape;
  const [, Hkv, Tk] = n.inputs[1].shape;
  const [q, k, v] = [0, 1, 2].map((i) => headsOf(operand(i), looks[i], false));
  const { causal, scale } = n.attrs as { causal: boolean; scale: number };
  return { B, H, Hkv, Tq, Tk, D, Dv: n.inputs[2].shape[3], causal, scale, q, k, v };
}

/** Output k of [batch, time, head, width]. */
function outputHeads(n: GNode, place: Place, k: number): Heads {
  const { shape } = (n.outputs as NonNullable<GNode["outputs"]>)[k];
  return headsOf(place.output(k), { offset: 0, strides: contiguousStrides(shape) }, true);
}

const attentionFlops = (n: GNode, products: number): number => {
  const [B, H, Tq, D] = n.inputs[0].shape;
  return products * B * H * Tq * n.inputs[1].shape[2] * D * (n.attrs["causal"] === true ? 1 : 2);
};

export const templates: Readonly<Record<string, Template>> = {
  attention: {
    fits: (n) => plainAttention(n, 3),
    strided: () => true,
    plan: (n, place) => {
      const a = attentionOf(n, place);
      const [o, lse] = [outputHeads(n, place, 0), place.output(1)];
      return !import.meta.forGpus && fitsLanes(a, place.lanes)
        ? laneAttention(a, place.lanes, o, lse)
        : attention(a, o, lse);
    },
    flops: (n) => attentionFlops(n, 2),
  },
  attentionBackward: {
    fits: (n) => plainAttention(n, 6),
    strided: (_, i) => i !== 4,
    plan: (n, place) => {
      const a = attentionOf(n, place);
      const { looks, operand, temporary } = place;
      const gradient: AttentionGradient = {
        o: headsOf(operand(3), looks[3], true),
        lse: operand(4),
        gradient: headsOf(operand(5), looks[5], true),
        dq: outputHeads(n, place, 0),
        dk: outputHeads(n, place, 1),
        dv: outputHeads(n, place, 2),
        inner: temporary(a.B * a.H * a.Tq),
      };
      const { lanes } = place;
      return !import.meta.forGpus && fitsLanes(a, lanes)
        ? laneAttentionBackward(a, lanes, gradient)
        : attentionBackward(a, gradient);
    },
    flops: (n) => attentionFlops(n, 5),
  },
  contract: { strided: () => true, plan: planProduct, flops: productFlops },
  conv: convolution,
  convInputGradient: convolution,
  convWeightGradient: convolution,
  scatter: {
    strided: (n, i, look) => i > 0 && collapse(n.inputs[i].shape, look.strides, axisOf(n)) !== null,
    ignores: (n, i) => i === 0 && isZero(n.inputs[0]),
    plan: (n, place) => {
      const axis = axisOf(n);
      const { outer, n: size, inner } = extentOf(n.shape, axis);
      return scatter(
        {
          index: linesOf(n, 1, axis, place),
          source: linesOf(n, 2, axis, place),
          base: isZero(n.inputs[0]) ? null : place.operand(0),
          out: place.output(),
          outer,
          size,
          inner,
          count: n.inputs[1].shape[axis],
          mode: n.attrs["mode"] as "add",
          firstCheck: place.check(size),
        },
        place.temporary,
      );
    },
    flops: (n) => sizeOf(n.inputs[2].shape),
  },
  argsort: {
    strided: never,
    plan: (n, place) =>
      argsort(
        linesOf(n, 0, axisOf(n), place),
        extentOf(n.shape, axisOf(n)),
        n.attrs["descending"] === true,
        place.output(),
        () => place.temporary(sizeOf(n.shape)),
      ),
    flops: (n) => 10 * sizeOf(n.shape),
  },
  cumsum: running("add"),
  cumprod: running("mul"),
  cummax: running("max"),
};

export const hasTemplate = (name: string, node: Node): boolean =>
  name === "loop" ? canRepeat(node) : Object.hasOwn(templates, name) && (templates[name].fits?.(node) ?? false);

export const isOpaque = (n: GNode): boolean => n.op === "loop" || Object.hasOwn(templates, n.op);

export function takesStrided(n: GNode, operand: number, inMemory: (n: GNode) => boolean): boolean {
  if (n.op === "loop") return false; // its operands are copied, as they lie
  const look = strided(n.inputs[operand], inMemory);
  return look !== null && templates[n.op].strided(n, operand, look);
}

export const ignores = (n: GNode, operand: number): boolean => templates[n.op]?.ignores?.(n, operand) ?? false;

/** Types that scatter, argsort and the running sums have no text for. */
export const wider: Partial<Record<DType, DType>> = {
  float16: "float32",
  bfloat16: "float32",
  uint8: "int32",
  bool: "int32",
};

/** Whether a sum over rows is left in parts that a kernel of its own puts together. */
export const needsFinish = (n: GNode, blocks: number): boolean => blocks > 1 || partDType(n.dtype) !== n.dtype;
