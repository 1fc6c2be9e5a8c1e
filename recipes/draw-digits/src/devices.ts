/** What this browser can compute on, and why not on the rest. */

export interface Device {
  readonly name: "webgpu" | "wasm";
  readonly label: string;
  /** Why it can't be used; null where it can. */
  readonly absent: string | null;
}

interface Gpu {
  requestAdapter(): Promise<{ readonly info: { readonly vendor: string; readonly architecture: string } } | null>;
}

async function webgpu(): Promise<Device> {
  const { gpu } = navigator as { gpu?: Gpu };
  if (!isSecureContext) return { name: "webgpu", label: "WebGPU", absent: "a browser offers it only over https" };
  if (!gpu) return { name: "webgpu", label: "WebGPU", absent: "this browser does not offer it" };
  const adapter = await gpu.requestAdapter().catch(() => null);
  if (!adapter) return { name: "webgpu", label: "WebGPU", absent: "the browser finds no graphics processor for it" };
  const { vendor, architecture } = adapter.info;
  const what = [vendor, architecture].filter((part) => part !== "").join(" ");
  return { name: "webgpu", label: what === "" ? "WebGPU" : `WebGPU (${what})`, absent: null };
}

function wasm(): Device {
  // without isolation from other origins, threads can't share memory
  const threads = crossOriginIsolated ? navigator.hardwareConcurrency : 1;
  return { name: "wasm", label: `WebAssembly (${threads} ${threads === 1 ? "thread" : "threads"})`, absent: null };
}

/** All devices, the fastest first. */
export const findDevices = async (): Promise<Device[]> => [await webgpu(), wasm()];
