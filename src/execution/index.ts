/** What execution offers to the folders below: devices, flushing, states, reading. */
export { detectsAnomalies, setDetectAnomaly } from "./anomaly.ts";
export { cacheCapacity } from "./cache.ts";
export { env } from "./debug.ts";
export {
  backendOf,
  checkDevice,
  defaultDevice,
  deviceNames,
  openBackend,
  registerBackend,
  setDevice,
} from "./device.ts";
export { enqueue, flush, programCounts, read, stepsOf, synchronize } from "./flush.ts";
export { leafFrom, transfer } from "./leaves.ts";
export { assign, cut, deviceOf, isState, keep, maxDepth, resolve, toState } from "./pending.ts";
export { beginStep, canRepeat, repeatStep, type Step } from "./repeat.ts";
export { turn } from "./turn.ts";
