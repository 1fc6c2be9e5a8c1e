/**
 * The reference backend: each primitive in a few lines of plain TypeScript, interpreted one after the other. It says
 * what a row means and is the oracle of all other backends; it also serves where nothing faster can.
 * Two modes: rounded (each node computed in float64, then rounded to its dtype) and exact (floats stay float64 until
 * they are stored; for gradient checks).
 */
import { type DType, dtypes, type TypedArray } from "../../core/dtype.ts";
import type { Backend } from "../backend.ts";
import { compile } from "./program.ts";
import { rawOf } from "./values.ts";

export interface ReferenceOptions {
  /** Keep every float as float64 between loads and stores. */
  readonly exact?: boolean;
}

/** Makes a reference backend; its memory is an ArrayBuffer of raw elements. */
export function referenceBackend({ exact = false }: ReferenceOptions = {}): Backend {
  return {
    name: "reference",
    dtypes: Object.keys(dtypes) as DType[],
    allocate: (bytes) => new ArrayBuffer(bytes),
    write(memory, data) {
      new Uint8Array(memory as ArrayBuffer).set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
    },
    read: (memory, dtype, length): TypedArray => rawOf(memory, dtype, length).slice(),
    compile: (capture) => compile(capture, exact),
  };
}
