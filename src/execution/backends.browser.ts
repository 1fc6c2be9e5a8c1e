/**
 * The backends that a browser can open; the browser's build puts this file in the place of `backends.ts`. Each is a chunk
 * of its own, loaded when it is needed. A page's main thread opens them in workers: it compiles nothing and runs no kernel.
 */
import type { Backend } from "../backends/backend.ts";
import { openInWorker } from "../backends/remote/page.ts";
import { isPage } from "../core/module-worker.ts";
import type { Open } from "./backends.ts";

/** The device of those who name none. */
export const usualDevice: string = "wasm";

const opened =
  (name: string, here: () => Promise<Backend>): Open =>
  () =>
    isPage() ? openInWorker(name) : here();

export const backends: Readonly<Record<string, Open>> = {
  wasm: opened("wasm", async () => {
    const { openWasmBackend } = await import("../backends/wasm/index.ts");
    return openWasmBackend();
  }),
  webgpu: opened("webgpu", async () => {
    const { openWebGpuBackend } = await import("../backends/webgpu/index.ts");
    return openWebGpuBackend();
  }),
};
