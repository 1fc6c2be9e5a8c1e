/** Memory of the `cpu` backend: allocations that free themselves when unreachable, and the arena of the temporaries. */
import { BackendError } from "../../core/errors.ts";
import type { NativeRuntime } from "./native.ts";

export interface Memory {
  readonly pointer: number;
  readonly bytes: number;
  /** The memory as JavaScript sees it. */
  readonly array: Uint8Array;
}

export class Allocator {
  private readonly runtime: NativeRuntime;
  private readonly registry: FinalizationRegistry<number>;

  constructor(runtime: NativeRuntime) {
    this.runtime = runtime;
    this.registry = new FinalizationRegistry((pointer) => runtime.free(pointer));
  }

  /** Zeroed memory, 64-byte aligned. */
  allocate(bytes: number): Memory {
    const room = Math.max(64, bytes);
    const pointer = this.runtime.alloc(room);
    const memory = { pointer, bytes, array: new Uint8Array(this.runtime.view(pointer, room), 0, bytes) };
    this.registry.register(memory, pointer);
    return memory;
  }
}

/** One block for the temporaries of whichever program runs; it grows to the largest. */
export class Arena {
  private readonly runtime: NativeRuntime;
  private pointer = 0;
  private bytes = 0;

  constructor(runtime: NativeRuntime) {
    this.runtime = runtime;
  }

  reserve(bytes: number): number {
    if (bytes > this.bytes) {
      if (this.pointer) this.runtime.free(this.pointer);
      this.pointer = this.bytes = 0;
      try {
        this.pointer = this.runtime.alloc(bytes);
      } catch (cause) {
        throw new BackendError(`cpu: no memory for ${(bytes / 2 ** 20).toFixed(0)} MiB of temporaries; use a smaller batch`, { cause });
      }
      this.bytes = bytes;
    }
    return this.pointer;
  }
}
