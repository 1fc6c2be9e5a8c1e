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
  /** Outgrown blocks that a run under way may still use. */
  private readonly outgrown: number[] = [];

  constructor(runtime: NativeRuntime) {
    this.runtime = runtime;
  }

  /** Memory for a run that starts now; runs follow one another, so that all may be given the same. */
  reserve(bytes: number): number {
    if (bytes > this.bytes) {
      if (this.pointer) this.outgrown.push(this.pointer);
      this.pointer = this.bytes = 0;
      this.release();
      try {
        this.pointer = this.runtime.alloc(bytes);
      } catch (cause) {
        throw new BackendError(
          `cpu: no memory for ${(bytes / 2 ** 20).toFixed(0)} MiB of temporaries; use a smaller batch`,
          { cause },
        );
      }
      this.bytes = bytes;
    } else if (this.outgrown.length) this.release();
    return this.pointer;
  }

  private release(): void {
    if (this.runtime.inFlight === 0) for (const pointer of this.outgrown.splice(0)) this.runtime.free(pointer);
  }
}
