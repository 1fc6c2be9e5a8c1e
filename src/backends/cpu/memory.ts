/** Memory of the `cpu` backend: allocations that free themselves when unreachable, and the arena of the temporaries. */
import { BackendError } from "../../core/errors.ts";
import type { NativeRuntime } from "./native.ts";

/** One native allocation; it is freed when no memory in it is reachable. */
interface Block {
  readonly pointer: number;
  readonly buffer: ArrayBuffer;
}

/** Memory on the device: a block, or a part of one. */
export class Memory {
  readonly pointer: number;
  readonly bytes: number;
  readonly #block: Block;
  #array: Uint8Array | null = null;

  constructor(block: Block, offset: number, bytes: number) {
    this.pointer = block.pointer + offset;
    this.bytes = bytes;
    this.#block = block;
  }

  /** The memory as JavaScript sees it. */
  get array(): Uint8Array {
    const { pointer, buffer } = this.#block;
    this.#array ??= new Uint8Array(buffer, this.pointer - pointer, this.bytes);
    return this.#array;
  }
}

/** Requests of up to `largest` bytes are parts of a block of `bytes`, of which `used` are taken. */
interface Pool {
  readonly largest: number;
  readonly bytes: number;
  block: Block | null;
  used: number;
}

const pool = (largest: number, bytes: number): Pool => ({ largest, bytes, block: null, used: 0 });

/**
 * A native allocation costs microseconds and whole pages, so small requests (a loss, the logits of a batch) share blocks.
 * Two pools, by size: a loss that is kept for a history must not keep logits alive with it.
 */
export class Allocator {
  private readonly runtime: NativeRuntime;
  private readonly registry: FinalizationRegistry<number>;
  private readonly tiny = pool(256, 16 * 1024);
  private readonly small = pool(8 * 1024, 128 * 1024);

  constructor(runtime: NativeRuntime) {
    this.runtime = runtime;
    this.registry = new FinalizationRegistry((pointer) => runtime.free(pointer));
  }

  /** Zeroed memory, 64-byte aligned. */
  allocate(bytes: number): Memory {
    if (bytes <= this.tiny.largest) return this.take(this.tiny, bytes);
    if (bytes <= this.small.largest) return this.take(this.small, bytes);
    return new Memory(this.block(bytes), 0, bytes);
  }

  private take(from: Pool, bytes: number): Memory {
    const room = Math.max(64, Math.ceil(bytes / 64) * 64);
    if (from.block === null || from.used + room > from.bytes) {
      from.block = this.block(from.bytes);
      from.used = 0;
    }
    const memory = new Memory(from.block, from.used, bytes);
    from.used += room;
    return memory;
  }

  private block(bytes: number): Block {
    const pointer = this.runtime.alloc(bytes);
    const block = { pointer, buffer: this.runtime.view(pointer, bytes) };
    this.registry.register(block, pointer);
    return block;
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
