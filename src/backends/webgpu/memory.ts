/**
 * Memory of the `webgpu` backend. Small requests are parts of shared buffers, at offsets that a binding may begin at;
 * larger ones have a buffer of their own. What is no longer reachable is taken again for a request of its size class.
 * Nothing is read back here but what somebody asks to see. Programs and pipelines are elsewhere.
 */
import { BackendError } from "../../core/errors.ts";
import { type Device, MAP_READ, outOfMemory, usage } from "./device.ts";

/** Where a binding may begin (WebGPU's largest minStorageBufferOffsetAlignment). */
export const ALIGNMENT = 256;
/** Up to here, requests share buffers of so many bytes. */
const SMALL = 32 * 1024;
const SLAB = 1024 * 1024;
/** From here on it is asked whether the memory is there. */
const WATCHED = 1024 * 1024;
/** Idle bytes beyond which buffers are given back to the driver. */
const IDLE = 512 * 1024 * 1024;

interface Place {
  readonly buffer: GPUBuffer;
  readonly offset: number;
  readonly size: number;
}

/** Memory on the device. */
export class Memory {
  readonly place: Place;
  readonly bytes: number;
  constructor(place: Place, bytes: number) {
    this.place = place;
    this.bytes = bytes;
  }
}

/** The size class of a request: four to an octave, so that at most a fifth is waste; whole alignments. */
export function sizeClass(bytes: number): number {
  if (bytes <= ALIGNMENT) return ALIGNMENT;
  const octave = 2 ** Math.floor(Math.log2(bytes));
  const step = bytes <= SMALL ? octave : Math.max(ALIGNMENT, octave / 4);
  return Math.ceil(bytes / step) * step;
}

export class Allocator {
  private readonly device: Device;
  private readonly registry: FinalizationRegistry<Place>;
  private readonly idle = new Map<number, Place[]>();
  private slab: { readonly buffer: GPUBuffer; used: number } | null = null;
  private readonly staging = new Map<number, GPUBuffer[]>();
  /** Bytes of all buffers that exist, and of those among them that nobody uses. */
  held = 0;
  private unused = 0;

  constructor(device: Device) {
    this.device = device;
    this.registry = new FinalizationRegistry((place) => this.release(place));
  }

  /** Memory, whatever it holds. Throws BackendError where no buffer can be so large. */
  allocate(bytes: number): Memory {
    this.device.check();
    const size = sizeClass(bytes);
    const again = this.idle.get(size)?.pop();
    if (again && size > SMALL) this.unused -= size;
    const place =
      again ?? (size <= SMALL ? this.part(size) : { buffer: this.buffer(size, "a tensor"), offset: 0, size });
    const memory = new Memory(place, bytes);
    this.registry.register(memory, place);
    return memory;
  }

  private part(size: number): Place {
    if (this.slab === null || this.slab.used + size > SLAB)
      this.slab = { buffer: this.buffer(SLAB, "small tensors"), used: 0 };
    const { buffer, used } = this.slab;
    this.slab.used += size;
    return { buffer, offset: used, size };
  }

  /** A buffer that kernels read and write. */
  buffer(size: number, what: string): GPUBuffer {
    const { gpu, limits } = this.device;
    if (size > limits.bufferBytes)
      throw new BackendError(
        `webgpu: ${what} needs a buffer of ${size} bytes; this adapter's largest has ${limits.bufferBytes}. Split it`,
      );
    const watched = size >= WATCHED;
    if (watched) gpu.pushErrorScope("out-of-memory");
    const buffer = gpu.createBuffer({ size, usage: usage.storage | usage.copySource | usage.copyTarget });
    const { held } = this;
    this.held += size;
    if (watched)
      void gpu.popErrorScope().then(
        (error) => error && this.device.blame(outOfMemory(what, size, held, limits.bufferBytes)),
        () => {},
      );
    return buffer;
  }

  private release(place: Place): void {
    const { size, buffer } = place;
    if (size > SMALL) {
      if (this.unused + size > IDLE) {
        this.destroy(buffer, size);
        return;
      }
      this.unused += size;
    }
    const list = this.idle.get(size);
    if (list) list.push(place);
    else this.idle.set(size, [place]);
  }

  /** Gives a buffer back; what is queued may still use it. */
  destroy(buffer: GPUBuffer, size: number): void {
    this.held -= size;
    buffer.destroy();
  }

  write(memory: Memory, data: ArrayBufferView): void {
    this.device.check();
    const { gpu } = this.device;
    const { buffer, offset } = memory.place;
    const whole = data.byteLength & ~3;
    const bytes = new Uint8Array(data.buffer as ArrayBuffer, data.byteOffset, data.byteLength);
    if (whole > 0) gpu.queue.writeBuffer(buffer, offset, bytes, 0, whole);
    if (whole === data.byteLength) return;
    const rest = new Uint8Array(4); // a queue writes whole words
    rest.set(bytes.subarray(whole));
    gpu.queue.writeBuffer(buffer, offset + whole, rest);
  }

  /** The first `bytes` of memory, after everything that was submitted before. */
  async read(memory: Memory, bytes: number): Promise<ArrayBuffer> {
    if (bytes === 0) return new ArrayBuffer(0);
    this.device.check();
    const encoder = this.device.gpu.createCommandEncoder();
    const { buffer, offset } = memory.place;
    const look = this.lookAt(encoder, buffer, offset, bytes);
    this.device.gpu.queue.submit([encoder.finish()]);
    const copy = await look();
    this.device.check();
    return copy;
  }

  /** Notes a copy of a part of a buffer; what it gives back, called once `encoder` is submitted, waits for the bytes. */
  lookAt(encoder: GPUCommandEncoder, from: GPUBuffer, offset: number, bytes: number): () => Promise<ArrayBuffer> {
    const length = Math.ceil(bytes / 4) * 4;
    const size = sizeClass(length);
    const staging =
      this.staging.get(size)?.pop() ?? this.device.gpu.createBuffer({ size, usage: usage.mapRead | usage.copyTarget });
    encoder.copyBufferToBuffer(from, offset, staging, 0, length);
    return async () => {
      try {
        await staging.mapAsync(MAP_READ, 0, length);
      } catch (error) {
        staging.destroy();
        throw await this.device.reason(error);
      }
      const copy = staging.getMappedRange(0, length).slice(0, bytes);
      staging.unmap();
      if (size > WATCHED) staging.destroy();
      else {
        const list = this.staging.get(size);
        if (list) list.push(staging);
        else this.staging.set(size, [staging]);
      }
      return copy;
    };
  }
}

/** The temporaries of whichever program runs: buffers that grow to the largest program's. */
export class Arena {
  private readonly allocator: Allocator;
  private readonly segments: { buffer: GPUBuffer; size: number }[] = [];

  constructor(allocator: Allocator) {
    this.allocator = allocator;
  }

  /** Segment `i` of at least so many bytes. What was handed out before may have been given back. */
  reserve(sizes: readonly number[]): readonly GPUBuffer[] {
    return sizes.map((bytes, i) => {
      const old = this.segments[i];
      if (old && old.size >= bytes) return old.buffer;
      if (old) this.allocator.destroy(old.buffer, old.size);
      const size = Math.max(ALIGNMENT, bytes);
      const buffer = this.allocator.buffer(size, "a program's temporaries");
      this.segments[i] = { buffer, size };
      return buffer;
    });
  }
}
