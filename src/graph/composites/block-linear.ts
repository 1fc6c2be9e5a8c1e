/**
 * A product with a weight that stays in 8 or 4 bits, in blocks of 32 along a row with one scale each, as GGUF's q8_0 and q4_0 store it
 * (ggml-common.h). The decomposition makes the weight floating first; a backend's template need not.
 */
import { isFloat } from "../../core/dtype.ts";
import { DTypeError, ShapeError } from "../../core/errors.ts";
import { showShape } from "../../core/shape.ts";
import { make, type Node, registerOperation, type Spec } from "../node.ts";
import {
  and,
  cast,
  concat,
  contract,
  expandTo,
  ge,
  mul,
  permute,
  reshape,
  shr,
  sub,
  unsqueeze,
  where,
} from "../ops.ts";
import { attrsOf, expectRank, expectShape } from "./check.ts";

/** Elements that share a scale. */
export const blockSize = 32;

export type BlockLinearAttrs = {
  /** 8: a byte is a number with sign; 4: the low halves of a block's 16 bytes are its first 16 numbers, plus 8. */
  readonly bits: 8 | 4;
};

function checkBlocks(name: string, codes: Node, scales: Node, { bits }: BlockLinearAttrs): readonly [number, number] {
  expectRank(name, "the codes", codes, 2, "[rows, bytes]");
  if (codes.dtype !== "uint8") throw new DTypeError(`${name}: the codes must be uint8, got ${codes.dtype}`);
  if (!isFloat(scales.dtype)) throw new DTypeError(`${name}: the scales must be floating, got ${scales.dtype}`);
  const [rows, bytes] = codes.shape;
  const width = (bytes * 8) / bits;
  if (width % blockSize !== 0)
    throw new ShapeError(`${name}: ${bytes} bytes a row of ${bits} bits are no whole blocks of ${blockSize} numbers`);
  expectShape(name, "the scales", scales, [rows, width / blockSize], "one a block");
  return [rows, width];
}

/** The weight of codes uint8 [rows, bytes] and scales [rows, width / 32] as float32 [rows, width]. */
export function dequantizeBlocks(codes: Node, scales: Node, attrs: BlockLinearAttrs): Node {
  const [rows, width] = checkBlocks("dequantizeBlocks", codes, scales, attrs);
  const shape = [rows, width / blockSize, blockSize];
  let numbers: Node;
  if (attrs.bits === 8) {
    const bytes = cast(codes, "float32");
    numbers = reshape(where(ge(bytes, 128), sub(bytes, 256), bytes), shape);
  } else {
    const bytes = cast(reshape(codes, [rows, width / blockSize, blockSize / 2]), "int32");
    numbers = cast(sub(concat([and(bytes, 15), shr(bytes, 4)], 2), 8), "float32");
  }
  return reshape(mul(numbers, expandTo(unsqueeze(cast(scales, "float32"), 2), shape)), [rows, width]);
}

/** What x · weightᵀ is, of a weight [rows, width] that is not learnt. */
export function productSpec(name: string, x: Node, [rows, width]: readonly [number, number]): Spec {
  expectRank(name, "the input", x, 2, "[rows, width]");
  if (x.dtype !== "float32" && x.dtype !== "float64")
    throw new DTypeError(`${name}: the input must be float32 or float64, got ${x.dtype}`);
  if (x.shape[1] !== width)
    throw new ShapeError(
      `${name}: the input ${showShape(x.shape)} has ${x.shape[1]} features, the weight takes ${width}`,
    );
  return { shape: [x.shape[0], rows], dtype: x.dtype };
}

const row = registerOperation({
  group: "composite",
  name: "blockLinear",
  infer: ([x, codes, scales], attrs) => {
    const name = "blockLinear";
    return productSpec(name, x, checkBlocks(name, codes, scales, attrsOf<BlockLinearAttrs>(attrs)));
  },
  decompose: ([x, codes, scales], attrs) => {
    const weight = dequantizeBlocks(codes, scales, attrsOf<BlockLinearAttrs>(attrs));
    return [contract(x, permute(cast(weight, x.dtype), [1, 0]))];
  },
});

/** A product with x, of which numbers of 16 bits are computed with in float32. */
export const inFloat32 = (x: Node, product: (x: Node) => Node): Node =>
  x.dtype === "float64" ? product(x) : cast(product(cast(x, "float32")), x.dtype);

/**
 * x · weightᵀ of x [n, width] and a weight in blocks: codes uint8 [rows, bytes], scales [rows, width / 32] → [n, rows]. 16-bit inputs
 * are computed with in float32. On `cpu` the products are of integers, with x as 16-bit numbers in blocks of 32: an error of some 1e-5 of
 * a block's largest.
 */
export function blockLinear(x: Node, codes: Node, scales: Node, attrs: BlockLinearAttrs): Node {
  return inFloat32(x, (wide) => make(row, [wide, codes, scales], attrs));
}
