/**
 * Memory of the `cpu` backend: allocations that come back when they are unreachable, and are given out again, and the
 * arena of the temporaries.
 */
import type { TypedArray } from "../../core/dtype.ts";
import { BackendError } from "../../core/errors.ts";
import { foreignOf } from "../../core/foreign.ts";
import { Collector } from "../collector.ts";
import type { NativeRuntime } from "./native.ts";

/** One native allocation, freed when no memory in it is reachable; or a part of a mapped file, which `owner` keeps. */
interface Block {
  readonly pointer: number;
  readonly bytes: number;
  readonly owner?: object;
}

/** Memory on the device: a block, or a part of one. */
export class Memory {
  readonly pointer: number;
  readonly bytes: number;
  readonly #runtime: NativeRuntime;
  readonly #block: Block;

  constructor(runtime: NativeRuntime, block: Block, offset: number, bytes: number) {
    this.pointer = block.pointer + offset;
    this.bytes = bytes;
    this.#runtime = runtime;
    this.#block = block;
  }

  /** Copies the beginning of the memory over all of `to`. */
  read(to: TypedArray): void {
    this.#runtime.read(this.pointer, to);
    void this.#block; // alive until here
  }

  /** Copies all of `from` to the beginning of the memory. */
  write(from: TypedArray): void {
    this.#runtime.write(this.pointer, from);
    void this.#block;
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

/** Bytes of freed blocks that are kept: fresh pages cost about as long to zero as a product that fills them takes. */
const KEPT_BYTES = 128 * 2 ** 20;
/** Smaller blocks are not worth keeping: they would only hold memory that a small program does not need. */
const KEPT_BLOCK = 256 * 2 ** 10;
const PAGE = 4096;

/** Freed blocks, to be had again by their size; the oldest go where they are too many. */
class Freed {
  private readonly runtime: NativeRuntime;
  /** Pointer → bytes, oldest first. */
  private readonly blocks = new Map<number, number>();
  private readonly bySize = new Map<number, number[]>();
  private bytes = 0;

  constructor(runtime: NativeRuntime) {
    this.runtime = runtime;
  }

  put(pointer: number, bytes: number): void {
    if (bytes < KEPT_BLOCK || bytes > KEPT_BYTES) {
      this.runtime.free(pointer);
      return;
    }
    let same = this.bySize.get(bytes);
    if (!same) this.bySize.set(bytes, (same = []));
    same.push(pointer);
    this.blocks.set(pointer, bytes);
    this.bytes += bytes;
    for (const [oldest, size] of this.blocks) {
      if (this.bytes <= KEPT_BYTES) break;
      const list = this.bySize.get(size) as number[];
      list.splice(list.indexOf(oldest), 1);
      if (list.length === 0) this.bySize.delete(size);
      this.forget(oldest, size);
      this.runtime.free(oldest);
    }
  }

  /** A block of exactly these bytes, or 0. */
  take(bytes: number): number {
    const same = this.bySize.get(bytes);
    if (!same) return 0;
    const pointer = same.pop() as number;
    if (same.length === 0) this.bySize.delete(bytes);
    this.forget(pointer, bytes);
    return pointer;
  }

  private forget(pointer: number, bytes: number): void {
    this.blocks.delete(pointer);
    this.bytes -= bytes;
  }
}

/**
 * A native allocation costs microseconds and whole pages, so small requests (a loss, the logits of a batch) share blocks.
 * Two pools, by size: a loss that is kept for a history must not keep logits alive with it.
 */
export class Allocator {
  private readonly runtime: NativeRuntime;
  private readonly freed: Freed;
  private readonly registry: FinalizationRegistry<Block>;
  private readonly tiny = pool(256, 16 * 1024);
  private readonly small = pool(8 * 1024, 128 * 1024);
  private readonly collector = new Collector();

  constructor(runtime: NativeRuntime) {
    this.runtime = runtime;
    this.freed = new Freed(runtime);
    this.registry = new FinalizationRegistry(({ pointer, bytes }) => this.freed.put(pointer, bytes));
  }

  /** Memory, 64-byte aligned, whatever it holds. */
  allocate(bytes: number): Memory {
    if (bytes <= this.tiny.largest) return this.take(this.tiny, bytes);
    if (bytes <= this.small.largest) return this.take(this.small, bytes);
    return new Memory(this.runtime, this.block(bytes), 0, bytes);
  }

  /** Memory where it lies, as that of a mapped file: aligned as the file has it, at least to its elements. Null where it is JavaScript's. */
  adopt(data: TypedArray): Memory | null {
    const foreign = foreignOf(data.buffer);
    if (foreign === null) return null;
    const block = { pointer: foreign.address + data.byteOffset, bytes: data.byteLength, owner: foreign.owner };
    return new Memory(this.runtime, block, 0, data.byteLength);
  }

  private take(from: Pool, bytes: number): Memory {
    const room = Math.max(64, Math.ceil(bytes / 64) * 64);
    if (from.block === null || from.used + room > from.bytes) {
      from.block = this.block(from.bytes);
      from.used = 0;
    }
    const memory = new Memory(this.runtime, from.block, from.used, bytes);
    from.used += room;
    return memory;
  }

  private block(wanted: number): Block {
    const bytes = Math.max(1, Math.ceil(wanted / PAGE)) * PAGE;
    const block = { pointer: this.freed.take(bytes) || this.runtime.alloc(bytes), bytes };
    this.registry.register(block, { ...block });
    // where small blocks are most of what is given out, the program is small: its garbage should be too
    this.collector.count(bytes < KEPT_BLOCK ? 8 * bytes : bytes);
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
