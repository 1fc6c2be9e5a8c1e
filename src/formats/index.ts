/** File formats: safetensors, as bytes and as state dicts. */
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
export { load, save } from "./tensors.ts";
