/**
 * The `webgpu` backend: the compiler's kernels as WGSL on whatever adapter WebGPU gives, in browsers through
 * navigator.gpu, in Node through the package `webgpu`. Opens only where there is an adapter; says why where there is
 * none. No float64: WGSL has none.
 */
import { type DType, dtypes, type TypedArray } from "../../core/dtype.ts";
import type { Backend, Capture } from "../backend.ts";
import { Assembler } from "./assemble.ts";
import { Device, type OpenOptions } from "./device.ts";
import { FAILURE_BYTES } from "./layout.ts";
import { Allocator, Arena, type Memory } from "./memory.ts";
import { linkProgram, type Shared } from "./program.ts";

export interface WebGpuOptions extends OpenOptions {
  /** False: every operation is a kernel of its own. */
  readonly fuse?: boolean;
}

export interface WebGpuBackend extends Backend {
  readonly device: Device;
}

/** Opens the backend on the best adapter. Throws BackendError where there is none, or no package that finds one. */
export async function openWebGpuBackend(options: WebGpuOptions = {}): Promise<WebGpuBackend> {
  const device = await Device.open(options);
  const allocator = new Allocator(device);
  const arena = new Arena(allocator);
  const failure = allocator.buffer(FAILURE_BYTES, "the failure word");
  const shared: Shared = { device, allocator, arena, failure, ahead: 0 };
  const environment = typeof process === "object" ? process.env : undefined;
  const fuse = options.fuse ?? environment?.["NABLA_FUSE"] !== "0";
  return {
    name: "webgpu",
    device,
    dtypes: (Object.keys(dtypes) as DType[]).filter((d) => d !== "float64"),
    allocate: (bytes) => allocator.allocate(bytes),
    write: (memory, data) => allocator.write(memory as Memory, data),
    read: async (memory, dtype, length) => {
      const copy = await allocator.read(memory as Memory, length * dtypes[dtype].bytes);
      return new dtypes[dtype].array(copy, 0, length) as TypedArray;
    },
    compile: (capture: Capture) => linkProgram(shared, new Assembler(device, capture, fuse).run()),
  };
}
