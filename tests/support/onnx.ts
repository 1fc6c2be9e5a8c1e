/** The float32 initialisers of an ONNX file by their names, for tests: as much of protobuf as that takes, and no more of ONNX. */

import type { StateDict } from "../../src/nn/index.ts";
import { tensor } from "../../src/tensor/index.ts";

/** The fields of a message: numbers, and pieces of bytes. */
function* fields(bytes: Uint8Array): Generator<{ field: number; value: number; bytes: Uint8Array }> {
  let at = 0;
  const varint = (): number => {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      const byte = bytes[at++];
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const key = varint();
    const [field, kind] = [key >> 3, key & 7];
    let [value, length] = [0, 0];
    if (kind === 0) value = varint();
    else if (kind === 2) length = varint();
    else length = kind === 5 ? 4 : 8;
    yield { field, value, bytes: bytes.subarray(at, at + length) };
    at += length;
  }
}

const [graph, initializer] = [7, 5]; // of ModelProto, and of GraphProto
const [dims, name, rawData] = [1, 8, 9]; // of TensorProto

export function onnxInitializers(file: Uint8Array): StateDict {
  const out: StateDict = {};
  for (const model of fields(file)) {
    if (model.field !== graph) continue;
    for (const part of fields(model.bytes)) {
      if (part.field !== initializer) continue;
      const shape: number[] = [];
      let [key, data] = ["", new Uint8Array(0)];
      for (const { field, value, bytes } of fields(part.bytes)) {
        if (field === dims) shape.push(value);
        if (field === name) key = new TextDecoder().decode(bytes);
        if (field === rawData) data = new Uint8Array(bytes);
      }
      if (data.length === 4 * shape.reduce((n, d) => n * d, 1))
        out[key] = tensor(new Float32Array(data.buffer), { shape });
    }
  }
  return out;
}
