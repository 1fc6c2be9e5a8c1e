/**
 * The `cpu` backend: kernels rendered as C, compiled by the system's compiler, run by the native runtime on its own
 * threads. Opens only where a compiler works; says why where it does not.
 */
import { type DType, dtypes, type TypedArray } from "../../core/dtype.ts";
import { BackendError } from "../../core/errors.ts";
import type { Backend, Capture } from "../backend.ts";
import { Allocator, Arena, type Memory } from "./memory.ts";
import { NativeRuntime } from "./native.ts";
import { compileProgram } from "./program.ts";

/** NABLA_THREADS: obeyed even above the number of cores; null where nobody asked. */
function askedThreads(): number | null {
  const text = process.env["NABLA_THREADS"]?.trim();
  if (!text) return null;
  const n = Number(text);
  if (!Number.isInteger(n) || n < 1)
    throw new BackendError(`NABLA_THREADS must be a whole number of threads ≥ 1, got "${text}"`);
  return n;
}

/** Opens the backend; NABLA_FUSE=0 gives every operation a kernel of its own. Throws BackendError where it can't. */
export async function openCpuBackend(options: { fuse?: boolean } = {}): Promise<Backend> {
  const runtime = await NativeRuntime.open();
  const threads = askedThreads();
  if (threads !== null) runtime.setThreads(threads);
  const allocator = new Allocator(runtime);
  const arena = new Arena(runtime);
  const fuse = options.fuse ?? process.env["NABLA_FUSE"] !== "0";
  return {
    name: "cpu",
    dtypes: Object.keys(dtypes) as DType[],
    allocate: (bytes) => allocator.allocate(bytes),
    adopt: (data) => allocator.adopt(data),
    write: (memory, data) => (memory as Memory).write(data),
    read: (memory, dtype, length) => {
      const bytes = new ArrayBuffer(length * dtypes[dtype].bytes);
      const copy = new dtypes[dtype].array(bytes) as TypedArray;
      (memory as Memory).read(copy);
      return copy;
    },
    compile: (capture: Capture) => compileProgram(runtime, arena, capture, fuse),
  };
}
