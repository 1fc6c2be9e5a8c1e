/** File formats: safetensors, GGUF, PyTorch's and NumPy's files, as bytes and as state dicts. */

export { FileError } from "../data/errors.ts";
export type { ReadOptions, Source } from "../data/source.ts";
export { FormatError } from "./format-error.ts";
export {
  type GgufArray,
  type GgufFile,
  type GgufTensor,
  type GgufValue,
  type GgufValueType,
  readGguf,
} from "./gguf.ts";
export { formatGguf, type GgufInput, type GgufTensorInput, writeGguf } from "./gguf-write.ts";
export { loadGguf, loadNpz, loadTorch, type StoredOptions } from "./load-stored.ts";
export {
  formatNpy,
  formatNpz,
  type NpyArray,
  type NpyInput,
  readNpy,
  readNpz,
  writeNpy,
  writeNpz,
} from "./numpy.ts";
export { dequantize, type GgufType, quantize, splitBlocks } from "./quants.ts";
export type { FormatSource, RandomAccess } from "./random-access.ts";
export {
  formatSafetensors,
  parseSafetensors,
  readSafetensors,
  type SafetensorsDType,
  type SafetensorsEntry,
  SafetensorsError,
  type SafetensorsFile,
  type SafetensorsInput,
  writeSafetensors,
} from "./safetensors.ts";
export type { StoredDType, StoredTensor } from "./stored-tensor.ts";
export { type LoadOptions, load, type SaveOptions, save, saveToBlob } from "./tensors.ts";
export { readTorch, type TorchFile, TorchTensor, type TorchValue } from "./torch-file.ts";
