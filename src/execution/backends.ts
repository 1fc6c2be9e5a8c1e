/**
 * The backends that come with the package, in Node: how each is opened, once it is needed. What a browser gets is
 * `backends.browser.ts`, which the browser's build puts in the place of this file. Both are all that names a backend.
 */
import type { Backend } from "../backends/backend.ts";
import { referenceBackend } from "../backends/reference/index.ts";
import { BackendError } from "../core/errors.ts";
import { say } from "./debug.ts";

/** How a backend is opened; `asked` says that somebody named the device, so nothing else may compute in its stead. */
export type Open = (asked: boolean) => Backend | Promise<Backend>;

/** The device of those who name none. */
export const usualDevice: string = "cpu";

const words = (error: unknown): string => (error instanceof Error ? error.message : String(error));

/** What computes for "cpu" where nobody asked for it by name and it does not open: WebAssembly, or plain TypeScript. */
async function stead(reason: string): Promise<Backend> {
  try {
    const { openWasmBackend } = await import("../backends/wasm/index.ts");
    const backend = await openWasmBackend();
    say(`the compiled cpu backend does not open here (${reason}); "cpu" is computed by the wasm backend`);
    return backend;
  } catch (error) {
    say(
      `neither the compiled cpu backend (${reason}) nor the wasm backend (${words(error)}) opens here; "cpu" is computed by the reference backend, which is exact but slow`,
    );
    return referenceBackend();
  }
}

export const backends: Readonly<Record<string, Open>> = {
  reference: () => referenceBackend(),
  wasm: async () => {
    const { openWasmBackend } = await import("../backends/wasm/index.ts");
    return openWasmBackend();
  },
  webgpu: async () => {
    const { openWebGpuBackend } = await import("../backends/webgpu/index.ts");
    return openWebGpuBackend();
  },
  cpu: async (asked) => {
    try {
      const { openCpuBackend } = await import("../backends/cpu/index.ts");
      return await openCpuBackend();
    } catch (error) {
      const reason = words(error);
      if (!asked) return stead(reason);
      throw new BackendError(
        `device "cpu" does not open here: ${reason}. Choose another with setDevice or NABLA_DEVICE (known are ${Object.keys(backends).join(", ")})`,
        { cause: error },
      );
    }
  },
};
