/**
 * The `wasm` backend: kernels written as WebAssembly with 128-bit vectors, run by a runtime written the same way, over one
 * shared memory, by threads of the host. Needs nothing installed.
 */
import { type DType, dtypes, type TypedArray } from "../../core/dtype.ts";
import { BackendError } from "../../core/errors.ts";
import type { Backend, Capture } from "../backend.ts";
import { Assembler } from "../cpu/assemble.ts";
import { Machine } from "./machine.ts";
import type { Memory } from "./memory.ts";
import { WasmProgram } from "./program.ts";
import { availableThreads } from "./thread.ts";

async function compileProgram(machine: Machine, capture: Capture, fuse: boolean): Promise<WasmProgram> {
  const { made: parts, held } = machine.kernels.collect((target) => new Assembler(target, capture, fuse).run());
  try {
    await held.ready;
    return new WasmProgram(machine, parts, held);
  } catch (error) {
    held.release();
    throw error;
  }
}

/** Threads to use: NABLA_THREADS, obeyed even above the number of cores, else as many as the host runs at a time. */
async function wantedThreads(): Promise<number> {
  const text = process.env["NABLA_THREADS"]?.trim();
  if (text) {
    const n = Number(text);
    if (!Number.isInteger(n) || n < 1)
      throw new BackendError(`NABLA_THREADS must be a whole number of threads ≥ 1, got "${text}"`);
    return n;
  }
  return availableThreads();
}

export interface WasmBackend extends Backend {
  /** Threads that compute; 0: the calling one. */
  readonly threads: number;
  /** Bytes to which the memory may grow. */
  readonly largestMemory: number;
  /** Bytes that tensors and programs hold now. */
  readonly heldMemory: number;
  /** Entries of each thread's table of kernels, in use or free. */
  readonly tableLength: number;
}

/**
 * Opens the backend. `threads` 0, and a page that is not cross-origin isolated, compute in the calling thread, over a memory
 * that is not shared; NABLA_FUSE=0 gives every operation a kernel of its own. Throws BackendError where it can't.
 */
export async function openWasmBackend(options: { fuse?: boolean; threads?: number } = {}): Promise<WasmBackend> {
  const { threads = await wantedThreads() } = options;
  if (threads > 0 && typeof SharedArrayBuffer !== "function")
    throw new BackendError(
      "wasm: no threads here: a browser shares memory only where the page is cross-origin isolated",
    );
  const machine = await Machine.open(threads);
  const fuse = options.fuse ?? process.env["NABLA_FUSE"] !== "0";
  return {
    name: "wasm",
    threads: machine.threads,
    largestMemory: machine.heap.maximum * 65536,
    get heldMemory() {
      return machine.heap.bytesInUse;
    },
    get tableLength() {
      return machine.tableLength;
    },
    dtypes: Object.keys(dtypes) as DType[],
    allocate: (bytes) => machine.heap.allocate(bytes),
    write: (memory, data) => {
      const { pointer, bytes } = memory as Memory;
      machine.heap.view(pointer, bytes).set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
    },
    read: (memory, dtype, length) => {
      const size = length * dtypes[dtype].bytes;
      const copy = new Uint8Array(size);
      copy.set(machine.heap.view((memory as Memory).pointer, size));
      return new dtypes[dtype].array(copy.buffer, 0, length) as TypedArray;
    },
    compile: (capture: Capture) => compileProgram(machine, capture, fuse),
  };
}
