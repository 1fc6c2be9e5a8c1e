/**
 * NABLA_DEBUG=2: what each dispatch of a run took on the device, by timestamps, longest first. Each dispatch is then a
 * pass of its own, so that the whole takes longer than without. Devices that take no time print nothing.
 */
import { type Device, usage } from "./device.ts";
import type { Allocator } from "./memory.ts";

const QUERY_RESOLVE = 0x200;
/** Dispatches that are listed. */
const LISTED = 40;

export class Profile {
  private readonly queries: GPUQuerySet;
  private readonly times: GPUBuffer;
  private readonly allocator: Allocator;
  private readonly labels: readonly string[];

  /** Null unless asked for, and on a device that takes the time. */
  static of(device: Device, allocator: Allocator, labels: readonly string[]): Profile | null {
    const level = typeof process === "object" ? Number(process.env?.["NABLA_DEBUG"] ?? 0) : 0;
    if (!(level >= 2) || labels.length === 0 || 2 * labels.length > 4096) return null;
    return device.gpu.features.has("timestamp-query") ? new Profile(device, allocator, labels) : null;
  }

  private constructor({ gpu }: Device, allocator: Allocator, labels: readonly string[]) {
    const count = 2 * labels.length;
    this.queries = gpu.createQuerySet({ type: "timestamp", count });
    this.times = gpu.createBuffer({ size: 8 * count, usage: QUERY_RESOLVE | usage.copySource });
    this.allocator = allocator;
    this.labels = labels;
  }

  /** Where the pass of dispatch i notes its times. */
  writes(i: number): GPUComputePassTimestampWrites {
    return { querySet: this.queries, beginningOfPassWriteIndex: 2 * i, endOfPassWriteIndex: 2 * i + 1 };
  }

  /** Notes that the times are wanted; what it gives back, called once `encoder` is submitted, prints them. */
  look(encoder: GPUCommandEncoder): () => Promise<void> {
    const count = 2 * this.labels.length;
    encoder.resolveQuerySet(this.queries, 0, count, this.times, 0);
    const look = this.allocator.lookAt(encoder, this.times, 0, 8 * count);
    return async () => {
      const at = new BigUint64Array(await look());
      const rows = this.labels.map((label, i) => [Number(at[2 * i + 1] - at[2 * i]) / 1e3, label] as const);
      const total = rows.reduce((n, [us]) => n + us, 0);
      const lines = [...rows]
        .sort((a, b) => b[0] - a[0])
        .slice(0, LISTED)
        .map(([us, label]) => `  ${us.toFixed(1).padStart(10)} µs  ${label}`);
      console.error(`program of ${rows.length} dispatches, ${total.toFixed(0)} µs\n${lines.join("\n")}`);
    };
  }

  dispose(): void {
    this.queries.destroy();
    this.times.destroy();
  }
}
