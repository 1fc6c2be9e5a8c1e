/** File formats: safetensors, as bytes and as state dicts. */
export { FileError } from "../data/errors.ts";
export type { ReadOptions, Source } from "../data/source.ts";
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
export { type LoadOptions, load, type SaveOptions, save, saveToBlob } from "./tensors.ts";
