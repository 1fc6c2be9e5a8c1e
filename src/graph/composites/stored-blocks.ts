/**
 * Blocks of a weight as a GGUF file holds them, as floats by primitives: what backends do without kernels of their own. The layouts are ggml's
 * (formats/quants.ts). A block of 32 numbers has a scale d in half precision and maybe a minimum; a block of 256 (the K types) has
 * small integers beside them, a scale (and a minimum) for each 32 or 16 numbers.
 */
import type { Node } from "../node.ts";
import {
  add,
  and,
  bitcast,
  cast,
  concat,
  expandTo,
  ge,
  iota,
  lt,
  mul,
  narrow,
  neg,
  or,
  reshape,
  shl,
  shr,
  sub,
  where,
} from "../ops.ts";

/** Codes that lie several a byte: where, in groups of how many bytes (whose low bits all come first), of so many bits. */
type Field = readonly [at: number, groups: number, bytes: number, bits: number];

/** A number is d · scale · (code − zero) − dmin · minimum. */
interface Layout {
  readonly elements: number;
  readonly bytes: number;
  readonly low: Field;
  /** What comes above the four bits of `low`. */
  readonly high?: Field;
  readonly zero?: number;
  readonly scaleAt?: number;
  /** The half behind d is dmin. */
  readonly hasMinimum?: boolean;
  /** The small scales: 8 of 6 bits with as many minima, or 16 bytes with sign. */
  readonly small?: "6 bits" | "bytes";
}

export type StoredFormat = "q4_1" | "q5_0" | "q5_1" | "q4_k" | "q5_k" | "q6_k";

export const storedFormats: Readonly<Record<StoredFormat, Layout>> = {
  q4_1: { elements: 32, bytes: 20, low: [4, 1, 16, 4], hasMinimum: true },
  q5_0: { elements: 32, bytes: 22, low: [6, 1, 16, 4], high: [2, 4, 1, 1], zero: 16 },
  q5_1: { elements: 32, bytes: 24, low: [8, 1, 16, 4], high: [4, 4, 1, 1], hasMinimum: true },
  q4_k: { elements: 256, bytes: 144, low: [16, 4, 32, 4], hasMinimum: true, small: "6 bits" },
  q5_k: { elements: 256, bytes: 176, low: [48, 4, 32, 4], high: [16, 1, 32, 1], hasMinimum: true, small: "6 bits" },
  q6_k: {
    elements: 256,
    bytes: 210,
    low: [0, 2, 64, 4],
    high: [128, 2, 32, 2],
    zero: 32,
    scaleAt: 208,
    small: "bytes",
  },
};

/** A field of blocks [n, bytes] as int32 [n, elements]. */
function unpack(blocks: Node, [at, groups, bytes, bits]: Field): Node {
  const [n] = blocks.shape;
  const shape = [n, groups, 8 / bits, bytes];
  const packed = expandTo(reshape(narrow(blocks, 1, at, groups * bytes), [n, groups, 1, bytes]), shape);
  return reshape(and(shr(packed, mul(iota(shape, 2), bits)), 2 ** bits - 1), [n, (groups * bytes * 8) / bits]);
}

/** The half-precision number in two bytes of blocks [n, bytes], as float32 [n, 1]. */
function half(blocks: Node, at: number): Node {
  const [low, high] = [narrow(blocks, 1, at, 1), narrow(blocks, 1, at + 1, 1)];
  const magnitude = or(low, shl(and(high, 127), 8));
  const isLast = cast(ge(magnitude, 0x7c00), "int32"); // the exponent of infinity and NaN
  const bits = add(shl(magnitude, 13), mul(add(isLast, 1), 112 << 23));
  const value = where(lt(magnitude, 0x400), mul(cast(magnitude, "float32"), 2 ** -24), bitcast(bits, "float32"));
  return where(ge(high, 128), neg(value), value);
}

const signed = (bytes: Node): Node => where(ge(bytes, 128), sub(bytes, 256), bytes);

/** 8 scales (first 4) or minima (from 8 on) of 6 bits of a K block, from the 12 bytes in which they lie. */
function sixBits(blocks: Node, minima: boolean): Node {
  const own = narrow(blocks, 1, minima ? 8 : 4, 4);
  const rest = narrow(blocks, 1, 12, 4);
  return concat([and(own, 63), or(minima ? shr(rest, 4) : and(rest, 15), shl(shr(own, 6), 4))], 1);
}

/** Blocks uint8 [n, bytes] as float32 [n, elements]. */
export function storedFloats(stored: Node, format: StoredFormat): Node {
  const { elements, low, high, zero = 0, scaleAt = 0, hasMinimum, small } = storedFormats[format];
  const blocks = cast(stored, "int32");
  const parts = small === "bytes" ? 16 : small ? 8 : 1;
  const shape = [blocks.shape[0], parts, elements / parts];
  /** A number a part to one an element; `of` are small integers a part, if there are any. */
  const spread = (factor: Node, of: Node | null): Node => {
    const each = of ? mul(expandTo(factor, of.shape), cast(of, "float32")) : factor;
    return expandTo(reshape(each, [...each.shape, 1]), shape);
  };
  const codes = unpack(blocks, low);
  const whole = reshape(high ? or(codes, shl(unpack(blocks, high), 4)) : codes, shape);
  const scales = small === "bytes" ? signed(narrow(blocks, 1, 192, 16)) : small ? sixBits(blocks, false) : null;
  let values = mul(cast(sub(whole, zero), "float32"), spread(half(blocks, scaleAt), scales));
  if (hasMinimum) {
    const minima = spread(half(blocks, 2), small ? sixBits(blocks, true) : null);
    values = small ? sub(values, minima) : add(values, minima);
  }
  return reshape(values, [blocks.shape[0], elements]);
}
