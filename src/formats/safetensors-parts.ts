/**
 * A safetensors file tensor by tensor: the header is read and checked, the bytes of a tensor when they are asked for. For whoever takes a large
 * file apart without having all of it in memory; `safetensors.ts` reads whole files.
 */

import type { FormatSource } from "./random-access.ts";
import { openAccess } from "./random-access.ts";
import { headerLength, parseHeader, type SafetensorsDType } from "./safetensors.ts";
import type { StoredDType, StoredTensor } from "./stored-tensor.ts";

const names: Readonly<Record<SafetensorsDType, StoredDType>> = {
  BOOL: "bool",
  U8: "uint8",
  I8: "int8",
  I16: "int16",
  U16: "uint16",
  F16: "float16",
  BF16: "bfloat16",
  I32: "int32",
  U32: "uint32",
  F32: "float32",
  F64: "float64",
  I64: "int64",
  U64: "uint64",
};

/** The tensors of a safetensors file, in the order of its data. Throws FileError where it can't be read, SafetensorsError where its header is not valid. */
export async function readSafetensorsParts(source: FormatSource): Promise<Map<string, StoredTensor>> {
  const file = await openAccess(source, "safetensors");
  const length = headerLength(await file.read(0, Math.min(8, file.size)), file.size, file.name);
  const { located } = parseHeader(await file.read(8, length), file.size - 8 - length, file.name);
  return new Map(
    located.map(({ name, dtype, shape, begin, end }) => [
      name,
      { dtype: names[dtype], shape, byteLength: end - begin, read: () => file.read(8 + length + begin, end - begin) },
    ]),
  );
}
