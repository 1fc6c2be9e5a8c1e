/**
 * Weights in 4 or 8 bits as floating numbers. A matrix product may take the quantised weight itself, so that its floats never lie in
 * memory (backends/cpu/quantized.ts); elsewhere it is made by a look-up and a multiplication.
 */
import { DTypeError, ShapeError } from "../../core/errors.ts";
import { showShape, sizeOf } from "../../core/shape.ts";
import { make, type Node, registerOperation, type Spec } from "../node.ts";
import { cast, div, mul, narrow, pad, reshape, sub, take, unsqueeze } from "../ops.ts";
import { attrsOf, expectDType, expectFloat } from "./check.ts";
import { type StoredFormat, storedFloats, storedFormats } from "./stored-blocks.ts";

/**
 * "nf4": two elements a byte, the first in the upper half, in row-major order; a scale a block of 64 elements. "int8": a byte an element, 128
 * for 0; a scale a row, which is the row's largest magnitude. The others: blocks as a GGUF file holds them, with all that belongs to them.
 */
export type QuantizedFormat = "nf4" | "int8" | StoredFormat;

export type DequantizeAttrs = {
  readonly format: QuantizedFormat;
  readonly rows: number;
  readonly columns: number;
};

/** Elements of "nf4" that share a scale. */
export const nf4Block = 64;

/** Whether the blocks have all that belongs to them within. */
export const isStored = (format: QuantizedFormat): format is StoredFormat => Object.hasOwn(storedFormats, format);

function infer([codes, scales, values]: readonly Node[], a: DequantizeAttrs): Spec {
  const name = "dequantize";
  const { format, rows, columns } = a;
  const elements = rows * columns;
  if (codes.dtype !== "uint8") throw new DTypeError(`${name}: the codes must be uint8, got ${codes.dtype}`);
  const expect = (what: string, x: Node, size: number): void => {
    if (sizeOf(x.shape) !== size)
      throw new ShapeError(
        `${name}: a weight [${rows}, ${columns}] in ${format} has ${size} ${what}, got ${showShape(x.shape)}`,
      );
  };
  if (isStored(format)) {
    const { elements: each, bytes } = storedFormats[format];
    expect("bytes", codes, (elements / each) * bytes);
    return { shape: [rows, columns], dtype: "float32" };
  }
  expectFloat(name, "the scales", scales);
  expect("codes", codes, format === "nf4" ? Math.ceil(elements / 2) : elements);
  expect("scales", scales, format === "nf4" ? Math.ceil(elements / nf4Block) : rows);
  if (format === "nf4") {
    expectDType(name, "the table of values", values, scales.dtype, "the scales");
    expect("values (two for each of 256 bytes)", values, 512);
  }
  return { shape: [rows, columns], dtype: scales.dtype };
}

const row = registerOperation({
  group: "composite",
  name: "dequantize",
  infer: (inputs, attrs) => infer(inputs, attrsOf<DequantizeAttrs>(attrs)),
  decompose: ([codes, scales, values], attrs) => {
    const { format, rows, columns } = attrsOf<DequantizeAttrs>(attrs);
    if (isStored(format)) {
      const { elements: each, bytes } = storedFormats[format];
      const blocks = reshape(codes, [(rows * columns) / each, bytes]);
      return [reshape(storedFloats(blocks, format), [rows, columns])];
    }
    if (format === "int8") {
      const steps = sub(cast(reshape(codes, [rows, columns]), scales.dtype), 128);
      return [mul(steps, unsqueeze(div(reshape(scales, [rows]), 127), 1))];
    }
    const elements = rows * columns;
    const blocks = Math.ceil(elements / nf4Block);
    let found = reshape(take(reshape(values, [256, 2]), 0, reshape(codes, [sizeOf(codes.shape)])), [
      2 * sizeOf(codes.shape),
    ]); // two elements a byte
    const missing = blocks * nf4Block - found.shape[0];
    if (missing > 0) found = pad(found, [0], [missing]);
    const scaled = mul(reshape(found, [blocks, nf4Block]), reshape(scales, [blocks, 1]));
    const flat = reshape(scaled, [blocks * nf4Block]);
    return [reshape(flat.shape[0] === elements ? flat : narrow(flat, 0, 0, elements), [rows, columns])];
  },
});

/**
 * The weight [rows, columns] that codes and scales stand for, in the scales' dtype, or float32 where the blocks have theirs within. `values`,
 * for "nf4": the two values of each possible byte, [256, 2].
 */
export const dequantize = (codes: Node, scales: Node | null, values: Node | null, attrs: DequantizeAttrs): Node =>
  make(
    row,
    [codes, scales, values].filter((x) => x !== null),
    attrs,
  );
