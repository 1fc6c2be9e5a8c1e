/**
 * A product with a weight that stays in the blocks of a GGUF file (stored-blocks.ts). The decomposition makes the weight floating first; a
 * backend's template need not.
 */
import { make, type Node, registerOperation } from "../node.ts";
import { cast, contract, permute } from "../ops.ts";
import { inFloat32, productSpec } from "./block-linear.ts";
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
    expectRank(name, "the blocks", blocks, 2, "[rows, bytes]");
    expectDType(name, "the blocks", blocks, "uint8", "bytes");
    return productSpec(name, x, [blocks.shape[0], storedWidth(blocks.shape[1], format)]);
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
  return inFloat32(x, (wide) => make(row, [wide, blocks], attrs));
}
