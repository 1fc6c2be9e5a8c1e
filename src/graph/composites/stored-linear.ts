/**
 * A product with a weight that stays in the blocks of a GGUF file (stored-blocks.ts). The decomposition makes the weight floating first; a
 * backend's template need not.
 */
import { DTypeError, ShapeError } from "../../core/errors.ts";
import { showShape } from "../../core/shape.ts";
import { make, type Node, registerOperation } from "../node.ts";
import { cast, contract, permute } from "../ops.ts";
import { attrsOf, expectDType, expectRank } from "./check.ts";
import { dequantize } from "./dequantize.ts";
import { type StoredFormat, storedFormats } from "./stored-blocks.ts";

export type StoredLinearAttrs = { readonly format: StoredFormat };

/** Numbers in so many bytes; no whole number where these are no whole blocks. */
export const storedWidth = (bytes: number, format: StoredFormat): number =>
  (bytes / storedFormats[format].bytes) * storedFormats[format].elements;

/** The weight in blocks uint8 [rows, bytes] as float32 [rows, width]. */
export function dequantizeStored(blocks: Node, format: StoredFormat): Node {
  const [rows, bytes] = blocks.shape;
  return dequantize(blocks, null, null, { format, rows, columns: storedWidth(bytes, format) });
}

const row = registerOperation({
  group: "composite",
  name: "storedLinear",
  infer: ([x, blocks], attrs) => {
    const name = "storedLinear";
    const { format } = attrsOf<StoredLinearAttrs>(attrs);
    expectRank(name, "the input", x, 2, "[rows, width]");
    expectRank(name, "the blocks", blocks, 2, "[rows, bytes]");
    if (x.dtype !== "float32" && x.dtype !== "float64")
      throw new DTypeError(`${name}: the input must be float32 or float64, got ${x.dtype}`);
    expectDType(name, "the blocks", blocks, "uint8", "bytes");
    if (x.shape[1] !== storedWidth(blocks.shape[1], format))
      throw new ShapeError(
        `${name}: the input ${showShape(x.shape)} does not fit a weight in ${format} of ${showShape(blocks.shape)} bytes`,
      );
    return { shape: [x.shape[0], blocks.shape[0]], dtype: x.dtype };
  },
  decompose: ([x, blocks], attrs) => {
    const weight = dequantizeStored(blocks, attrsOf<StoredLinearAttrs>(attrs).format);
    return [contract(x, permute(cast(weight, x.dtype), [1, 0]))];
  },
});

/**
 * x · weightᵀ of x [n, width] and a weight in blocks, uint8 [rows, bytes] → [n, rows]. 16-bit inputs are computed with in float32. On
 * `cpu` the products of a few rows are of integers, with x as 16-bit numbers by blocks as long as the weight's: an error of some 2e-5 of a
 * block's largest.
 */
export function storedLinear(x: Node, blocks: Node, attrs: StoredLinearAttrs): Node {
  if (x.dtype === "float32" || x.dtype === "float64") return make(row, [x, blocks], attrs);
  return cast(make(row, [cast(x, "float32"), blocks], attrs), x.dtype);
}
