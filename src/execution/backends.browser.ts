/**
 * The backends that a browser can open; the browser's build puts this file in the place of `backends.ts`. Each is a chunk
 * of its own, loaded when it is needed.
 */
import type { Open } from "./backends.ts";

/** The device of those who name none. */
export const usualDevice: string = "wasm";

export const backends: Readonly<Record<string, Open>> = {
  wasm: async () => {
    const { openWasmBackend } = await import("../backends/wasm/index.ts");
    return openWasmBackend();
  },
  webgpu: async () => {
    const { openWebGpuBackend } = await import("../backends/webgpu/index.ts");
    return openWebGpuBackend();
  },
};
