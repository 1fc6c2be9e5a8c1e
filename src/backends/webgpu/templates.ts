/**
 * The operations that are texts of their own rather than kernels of the compiler: one row each, from a node to
 * dispatches. Everything else is decomposed into primitives, which become kernels. The texts are in matmul.ts,
 * attention.ts and indexed.ts, memory and order in assemble.ts.
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
import { argsort, type Lines, type PrefixOp, prefix, scatter } from "./indexed.ts";
import { laneOf, typeOf } from "./layout.ts";
import { type Product, partsOf, productText, type Sizes } from "./matmul.ts";
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
  if (lane === "m") throw new BackendError("webgpu: bool has no arithmetic of its own; it should have been widened");
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

/** Whether a product is computed in parts that are added afterwards. */
export const isInParts = (n: GNode, lanes: number): boolean => partsFor(sizesOf(n), lanes) > 1;

const partsFor = (p: Sizes, lanes: number): number => (lanes > 0 ? lanePartsOf(p, lanes) : partsOf(p));

/** A product's description, its operands bound in a shader. */
export function productOf(n: GNode, place: Place, s: Shader, finish: string): Product {
  const element = elementOf(n.dtype) as "f32" | "i32";
  const matrix = (i: number) => ({ ...place.looks[i], name: s.bind(place.operand(i), element) });
  return {
    ...sizesOf(n),
    a: matrix(0),
    b: matrix(1),
    element,
    finish,
  };
}

/** A product as one dispatch, whose text does `finish` with every sum. */
export function dispatchProduct(p: Product, parts: number, s: Shader, lanes: number, numbers: Numbers = {}): Dispatch {
  const text = lanes > 0 ? laneProductText(p, parts, lanes) : productText(p, parts);
  for (const w of text.workgroup) s.workgroup(w);
  for (const f of text.functions) s.define(f);
  return s.build(text.body, text.size, text.groups, numbers);
}

function contract(n: GNode, place: Place): Dispatch[] {
  const s = new Shader();
  const bare = productOf(n, place, s, "");
  const parts = partsFor(bare, place.lanes);
  const size = bare.M * bare.N;
  const total = sizeOf(n.shape);
  const into = parts === 1 ? place.output() : place.temporary(parts * total);
  const store = `${s.bind(into, bare.element)}[z * ${size} + row * ${bare.N} + column] = x;`;
  const main = dispatchProduct({ ...bare, finish: store }, parts, s, place.lanes);
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
      return fitsLanes(a, place.lanes) ? laneAttention(a, place.lanes, o, lse) : attention(a, o, lse);
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
      return fitsLanes(a, lanes) ? laneAttentionBackward(a, lanes, gradient) : attentionBackward(a, gradient);
    },
    flops: (n) => attentionFlops(n, 5),
  },
  contract: {
    strided: () => true,
    plan: contract,
    flops: (n) => 2 * sizeOf(n.shape) * n.inputs[0].shape[n.shape.length - 1],
  },
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
  Object.hasOwn(templates, name) && (templates[name].fits?.(node) ?? false);

export const isOpaque = (n: GNode): boolean => Object.hasOwn(templates, n.op);

export function takesStrided(n: GNode, operand: number, inMemory: (n: GNode) => boolean): boolean {
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
