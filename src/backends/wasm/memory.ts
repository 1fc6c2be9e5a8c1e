/**
 * The one WebAssembly memory of the backend, and who has which part of it. It grows up to what the engine allows; what is
 * given back joins its free neighbours and is given out again, the best fit first.
 */

import { BackendError } from "../../core/errors.ts";
import { Collector } from "../collector.ts";
import { engine, type LinearMemory } from "./engine.ts";
import { FIRST_FREE } from "./layout.ts";

const PAGE = 65536;
/** Kernels load whole vectors, beyond the last element that counts: so much is never given away at the end. */
const SLACK = 256;
const round = (bytes: number): number => Math.max(64, Math.ceil(bytes / 64) * 64);
const mib = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(0)} MiB`;

/** Memory that a tensor or a program holds; it is given back when this is no longer reachable. */
export class Memory {
  readonly pointer: number;
  readonly bytes: number;

  constructor(pointer: number, bytes: number) {
    this.pointer = pointer;
    this.bytes = bytes;
  }
}

export class Heap {
  readonly memory: LinearMemory;
  readonly shared: boolean;
  /** Most pages. */
  readonly maximum: number;
  /** Free stretches in order of their address. */
  readonly #free: { at: number; bytes: number }[] = [];
  /** What lies behind was never given away. */
  #top = FIRST_FREE;
  #inUse = 0;
  readonly #collector = new Collector();
  readonly #registry = new FinalizationRegistry<{ at: number; bytes: number }>(({ at, bytes }) => this.free(at, bytes));

  constructor(shared: boolean) {
    this.shared = shared;
    // engines differ in what they let a memory promise: 4 GiB, 2 GiB, 1 GiB
    let failure: unknown;
    for (const maximum of [65536, 32768, 16384]) {
      try {
        this.memory = new engine.Memory({ initial: 16, maximum, shared });
        this.maximum = maximum;
        return;
      } catch (error) {
        failure = error;
      }
    }
    throw new BackendError("wasm: no WebAssembly memory to be had here", { cause: failure });
  }

  get bytesInUse(): number {
    return this.#inUse;
  }

  /** The memory as bytes, anew each time: it may have grown. */
  view(at: number, bytes: number): Uint8Array {
    return new Uint8Array(this.memory.buffer, at, bytes);
  }

  /** Memory, whatever it holds, on a 64-byte boundary; given back when the result is no longer reachable. */
  allocate(bytes: number): Memory {
    this.#collector.count(round(bytes));
    const at = this.take(bytes);
    const memory = new Memory(at, bytes);
    this.#registry.register(memory, { at, bytes }, memory);
    return memory;
  }

  /** Gives back at once what `allocate` gave; nobody may use it again. */
  release(memory: Memory): void {
    this.#registry.unregister(memory);
    this.free(memory.pointer, memory.bytes);
  }

  /** Memory, whatever it holds, that is given back by `free`. Throws BackendError where there is no more. */
  take(bytes: number): number {
    const size = round(bytes);
    let best = -1;
    for (let i = 0; i < this.#free.length; i++) {
      const f = this.#free[i];
      if (f.bytes >= size && (best < 0 || f.bytes < this.#free[best].bytes)) best = i;
    }
    if (best >= 0) {
      const f = this.#free[best];
      const { at } = f;
      if (f.bytes === size) this.#free.splice(best, 1);
      else {
        f.at += size;
        f.bytes -= size;
      }
      this.#inUse += size;
      return at;
    }
    // a free stretch that ends where nothing was given away yet is the start of the new one
    const last = this.#free[this.#free.length - 1];
    const at = last && last.at + last.bytes === this.#top ? last.at : this.#top;
    this.#grow(at + size + SLACK, size);
    this.#inUse += size;
    if (at !== this.#top) this.#free.pop();
    this.#top = at + size;
    return at;
  }

  /** Makes the memory reach to `end`, for something of `size` bytes. */
  #grow(end: number, size: number): void {
    const have = this.memory.buffer.byteLength;
    if (end <= have) return;
    const most = this.maximum * PAGE;
    const fail = (limit: number, cause?: unknown): never => {
      throw new BackendError(
        `wasm: out of memory: ${mib(size)} were asked for, ${mib(this.#inUse)} are held, and the memory can't grow beyond ${mib(limit)} here; use a smaller batch, or the cpu backend, which has no such limit`,
        cause ? { cause } : undefined,
      );
    };
    if (end > most) fail(most);
    // an eighth more than asked for, so that it does not grow with every tensor
    const pages = Math.ceil(end / PAGE);
    const wanted = Math.min(this.maximum, Math.max(pages, Math.ceil((have / PAGE) * 1.125)));
    try {
      this.memory.grow(wanted - have / PAGE);
    } catch {
      try {
        this.memory.grow(pages - have / PAGE);
      } catch (error) {
        fail(have, error);
      }
    }
  }

  free(at: number, bytes: number): void {
    const size = round(bytes);
    this.#inUse -= size;
    let [low, high] = [0, this.#free.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#free[middle].at < at) low = middle + 1;
      else high = middle;
    }
    const [before, after] = [this.#free[low - 1], this.#free[low]];
    const joinsBefore = before !== undefined && before.at + before.bytes === at;
    const joinsAfter = after !== undefined && at + size === after.at;
    if (joinsBefore && joinsAfter) {
      before.bytes += size + after.bytes;
      this.#free.splice(low, 1);
    } else if (joinsBefore) before.bytes += size;
    else if (joinsAfter) {
      after.at = at;
      after.bytes += size;
    } else this.#free.splice(low, 0, { at, bytes: size });
  }
}
