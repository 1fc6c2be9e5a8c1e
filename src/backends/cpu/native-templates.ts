/**
 * The templates of the native runtime: those that `wasm` shares (templates.ts), and what a decoder's step has beside them, weights in
 * blocks or by codes and a state of which a part is written. And what the compiler asks of them.
 */
import type { GNode } from "../../compiler/lower.ts";
import { type Strided, strided } from "../../compiler/views.ts";
import { contiguousStrides, sizeOf } from "../../core/shape.ts";
import { attentionExtras } from "../../graph/composites/attention.ts";
import { type StoredFormat, storedFormats } from "../../graph/composites/stored-blocks.ts";
import { make, type Node, setRegion } from "../../graph/node.ts";
import * as ops from "../../graph/ops.ts";
import type { KernelShape } from "./native.ts";
import { planAttention, planBlockLinear, planCopy, planUpdate } from "./plans.ts";
import { planDequantize, planProduct, planStoredLinear } from "./quantized.ts";
import {
  type Commands,
  type Guest,
  type Operand,
  plainAttention,
  TEMPORARY,
  type Template,
} from "./shared-templates.ts";
import { attentionDesc, headsOut, templates as shared } from "./templates.ts";

/** A number that the command takes from the table of scalars. */
const isScalar = ({ operation: { name } }: Node): boolean => name === "scalar" || name === "const";
const scalarOf = (n: GNode): number | GNode => (n.op === "const" ? (n.attrs["value"] as number) : n);

/** Forward: also up to a runtime length, and under a mask of booleans. */
function attends(n: Node): boolean {
  const { length, mask } = attentionExtras(n.inputs, 3, n.attrs);
  return plainAttention(n) && (!length || isScalar(length)) && (!mask || mask.dtype === "bool");
}

/** Strides of a view of `look.source` where it grows to [B, H, Tq, Tk]: none along axes that it does not have, or has once. */
function grown(shape: readonly number[], strides: readonly number[]): number[] {
  const missing = 4 - shape.length;
  return Array.from({ length: 4 }, (_, i) => (i < missing || shape[i - missing] === 1 ? 0 : strides[i - missing]));
}

/** Up to so many rows of x the products with stored blocks are of integers; more are worth the floats of the weight (measured on Zen 4). */
const integerRows = (format: StoredFormat): number => (storedFormats[format].elements === 256 ? 48 : 24);

const templates: Readonly<Record<string, Template>> = {
  ...shared,
  attention: {
    fits: attends,
    strided: (_n, i, look) => i > 2 || look.strides[3] === 1,
    ignores: (n, i) => i === 3 && n.attrs["length"] === true,
    plan: (n, looks, shape) => {
      const desc = attentionDesc(n, looks);
      const o = headsOut(contiguousStrides(n.shape));
      const hasLength = n.attrs["length"] === true;
      const maskAt = n.attrs["mask"] === true ? n.inputs.length - 1 : null;
      const half = (i: number) =>
        n.inputs[i].dtype === "float32" ? {} : { [i === 1 ? "kDType" : "vDType"]: n.inputs[i].dtype };
      const { main, scratchBytes } = planAttention(shape, {
        ...desc,
        ...half(1),
        ...half(2),
        o,
        hasLength,
        isLast: hasLength && desc.causal,
        ...(maskAt !== null && { mask: grown(n.inputs[maskAt].shape, looks[maskAt].strides) }),
      });
      const operand = (i: number) => ({ of: i, offset: looks[i].offset });
      const outputs = [-1, -2].map((of) => ({ of, offset: 0 }));
      const buffers = [...[0, 1, 2].map(operand), ...outputs, ...(maskAt === null ? [] : [operand(maskAt)])];
      return {
        command: main,
        buffers,
        scalars: [n.attrs["scale"] as number, ...(hasLength ? [scalarOf(n.inputs[3])] : [])],
        scratchBytes,
        canFail: false,
        flops: 2 * desc.B * desc.H * desc.Tq * desc.Tk * desc.D * (desc.causal ? 1 : 2),
      };
    },
  },
  blockLinear: {
    fits: ({ inputs: [x, , scales] }) => x.dtype === "float32" && scales.dtype === "float16",
    strided: (_n, i, look) => i === 0 && look.strides[1] === 1,
    plan: (n, looks) => {
      const [M, K] = n.inputs[0].shape;
      const N = n.shape[1];
      const sizes = { M, N, K, bits: n.attrs["bits"] as number, rowStride: looks[0].strides[0] };
      const { main, quantize, temporaries, scratchBytes } = planBlockLinear(sizes);
      const whole = (of: number): Operand => ({ of, offset: 0 });
      const integers = temporaries.map((_, i) => whole(TEMPORARY + i));
      return {
        command: main,
        buffers: [...integers, whole(1), whole(2), whole(-1)],
        lead: { command: quantize, buffers: [{ of: 0, offset: looks[0].offset }, ...integers] },
        temporaries,
        scalars: [],
        scratchBytes,
        canFail: false,
        flops: 2 * M * N * K,
      };
    },
  },
  storedLinear: {
    fits: ({ inputs: [x] }) => x.dtype === "float32",
    strided: (_n, i, look) => i === 0 && look.strides[1] === 1,
    plan: (n, looks, shape) => {
      const [M, K] = n.inputs[0].shape;
      const sizes = { M, N: n.shape[1], K, format: n.attrs["format"] as StoredFormat };
      const common = { scalars: [], canFail: false, flops: 2 * sizeOf(n.shape) * K };
      const x: Operand = { of: 0, offset: looks[0].offset };
      const whole = (of: number): Operand => ({ of, offset: 0 });
      if (M > integerRows(sizes.format)) {
        const { main, scratchBytes } = planProduct(shape, { ...sizes, strides: looks[0].strides, transposed: true });
        return { ...common, command: main, buffers: [x, whole(1), whole(1), whole(1), whole(-1)], scratchBytes };
      }
      const { main, quantize, temporaries } = planStoredLinear({ ...sizes, rowStride: looks[0].strides[0] });
      const integers = temporaries.map((_, i) => whole(TEMPORARY + i));
      return {
        ...common,
        command: main,
        buffers: [...integers, whole(1), whole(-1)],
        lead: { command: quantize, buffers: [x, ...integers] },
        temporaries,
        scratchBytes: 0,
      };
    },
  },
  dynamicUpdate: {
    // another tensor's update joins the kernels that read it
    fits: ({ inputs: [x, update, ...offsets] }) =>
      x.storage !== null && x.dtype === update.dtype && x.shape.length > 0 && offsets.every(isScalar),
    strided: (_n, i, look) => i === 1 && look.strides[look.strides.length - 1] === 1,
    ignores: (_n, i) => i > 1,
    plan: (n, looks) => {
      const update = n.inputs[1];
      const out: Operand = { of: -1, offset: 0 };
      const strides = contiguousStrides(n.shape);
      const { main: copy } = planCopy({ shape: n.shape, dtype: n.dtype, from: looks[0].strides, to: strides });
      return {
        command: planUpdate({ shape: n.shape, update: update.shape, dtype: n.dtype, strides: looks[1].strides }),
        buffers: [{ of: 1, offset: looks[1].offset }, out],
        lead: { command: copy, buffers: [{ of: 0, offset: looks[0].offset }, out] },
        leadsInPlace: false,
        scalars: n.inputs.slice(2).map(scalarOf),
        scratchBytes: 0,
        canFail: false,
        flops: sizeOf(update.shape),
      };
    },
  },
  dequantize: {
    fits: (n) => n.dtype === "float32",
    // whole buffers, whatever their shape
    strided: (n, i, look) => look.strides.join() === contiguousStrides(n.inputs[i].shape).join(),
    plan: (n, looks) => {
      const command = planDequantize(n);
      // what a format does not have is filled with what it has
      const last = looks.length - 1;
      const of = { codes: 0, scales: Math.min(1, last), values: last, out: -1 };
      const buffers = command.buffers.map((b) => ({ of: of[b], offset: of[b] < 0 ? 0 : looks[of[b]].offset }));
      return { command, buffers, scalars: [], scratchBytes: 0, canFail: false, flops: sizeOf(n.shape) };
    },
  },
};

export const isOpaque = (n: GNode): boolean => n.op === "contract" || Object.hasOwn(templates, n.op);
export const hasTemplate = (name: string, node: Node): boolean => templates[name]?.fits?.(node) ?? false;

export function takesStrided(n: GNode, operand: number, inMemory: (n: GNode) => boolean): boolean {
  const look = strided(n.inputs[operand], inMemory);
  if (!look) return false;
  return n.op === "contract" || (templates[n.op]?.strided(n, operand, look) ?? false);
}

/** The commands of an opaque node that is no product; undefined where it has no row here. */
export const planOpaque = (
  n: GNode,
  looks: readonly Strided[],
  shape: KernelShape,
  errorOp: number,
  guest?: Guest,
): Commands | undefined => templates[n.op]?.plan(n, looks, shape, errorOp, guest);

/** Into how many equal parts an opaque node's result may be cut for a kernel behind its command's tiles, most first. */
export const partsBehind = (n: GNode): readonly number[] => templates[n.op]?.behind?.(n) ?? [];

/** Whether the runtime reads operand i of an operation in 16 bits as it reads it in 32. */
export const readsHalf = (op: string, operand: number): boolean =>
  op === "contract" || (op === "attention" && (operand === 1 || operand === 2));

export const ignores = (n: GNode, operand: number): boolean => templates[n.op]?.ignores?.(n, operand) ?? false;

/** Operations whose templates are for float32. */
const wideOnly = new Set(["attention", "attentionBackward", "conv", "convInputGradient", "convWeightGradient"]);

/**
 * An operation on 16-bit floats by the float32 operation and its template (which reads keys and values as they are stored); null
 * where there is none for it. What a backward operation widens is its own: shared with the forward pass it would lie there from then on.
 */
export function widened(n: Node): readonly Node[] | null {
  const { name } = n.operation;
  if (!wideOnly.has(name) || !n.inputs.some(isHalf)) return null;
  const outer = name === "attention" || name === "conv" ? null : setRegion(OWN_REGION);
  const wide = make(
    n.operation,
    n.inputs.map((x) => (isHalf(x) ? ops.cast(x, "float32") : x)),
    n.attrs,
  );
  if (outer !== null) setRegion(outer);
  if (!hasTemplate(name, wide)) return null;
  const { outputs = null } = n;
  return ops.outputs(wide).map((x, i) => ops.cast(x, (outputs ?? [n])[i].dtype));
}
const isHalf = ({ dtype }: Node): boolean => dtype === "bfloat16" || dtype === "float16";
/** No region of a checkpoint. */
const OWN_REGION = -1;
