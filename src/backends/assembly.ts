/**
 * What the assemblers of the backends have in common: a capture is lowered and fused, kernels are attached to products,
 * results are placed, and groups become units of work in an order that keeps states whole. How a group becomes a unit,
 * and what units become, is each backend's own (cpu/assemble.ts, webgpu/assemble.ts).
 */
import type { Check } from "../compiler/emission.ts";
import { Fuser, type Group, type GroupKernel } from "../compiler/fuse.ts";
import { Hosts } from "../compiler/hosts.ts";
import type { Kernel } from "../compiler/kernel.ts";
import { type GNode, type Lowered, showNode } from "../compiler/lower.ts";
import type { OpaqueRule } from "../compiler/members.ts";
import { orderStates, Placement, type Commands as Placing, type Target, valueKey } from "../compiler/place.ts";
import type { Buffer, Unit } from "../compiler/schedule.ts";
import type { DType } from "../core/dtype.ts";
import { type Shape, sizeOf } from "../core/shape.ts";
import type { Capture, ProgramStats } from "./backend.ts";

/** A failure's meaning: what check failed as number n. */
export interface Failure {
  readonly operation: string;
  readonly check: Check;
}

export interface Texts {
  readonly graph: string;
  readonly kernels: string;
  readonly memory: string;
}

/** What an assembler works for, and what it shares with the one of the program around it, where this is a loop's body. */
export interface Assembled {
  readonly capture: Capture;
  readonly fuse: boolean;
  readonly lowered: Lowered;
  readonly rule: OpaqueRule;
  readonly failures: Failure[];
  readonly kernelTexts?: string[];
  /** The number of the first storage's slot. */
  readonly firstSlot: number;
}

export abstract class Assembly<W extends Unit & { readonly after: W[]; readonly flops: number }> {
  protected readonly capture: Capture;
  protected readonly fuse: boolean;
  readonly lowered: Lowered;
  protected readonly fuser: Fuser;
  /** Memory of what is computed, by `valueKey`. */
  protected readonly buffers = new Map<string, Buffer>();
  /** The storages, then the outputs. */
  protected readonly slots: Buffer[];
  protected readonly failures: Failure[];
  protected readonly works: W[] = [];
  protected readonly workOf = new Map<Group, W>();
  /** Groups whose kernels run in another's command. */
  protected readonly hosts: Hosts;
  /** Where results go; known once the groups are. */
  protected placement!: Placement;
  protected readonly kernelTexts: string[];
  protected bytes = 0;

  constructor({ capture, fuse, lowered, rule, failures, kernelTexts = [], firstSlot }: Assembled) {
    this.capture = capture;
    this.fuse = fuse;
    this.lowered = lowered;
    this.failures = failures;
    this.kernelTexts = kernelTexts;
    this.fuser = new Fuser(lowered, rule, fuse);
    this.hosts = new Hosts(this.fuser, lowered);
    const { storages, roots } = capture;
    const slot = (bytes: number, i: number, label: string): Buffer => ({
      bytes,
      slot: firstSlot + i,
      offset: 0,
      label,
    });
    this.slots = [
      ...storages.map((s, i) => slot(this.size([s.length], s.dtype), i, `state ${i}`)),
      ...roots.map((r, i) => slot(this.size(r.shape, r.dtype), storages.length + i, `output ${i}`)),
    ];
  }

  // ---- what a backend does in its own way -------------------------------------------------------------------------

  /** Bytes of memory that a value takes. Called from the constructor. */
  protected abstract size(shape: Shape, dtype: DType): number;
  /** Looks for a group that can run in the command of this one, which is an operation that runs by itself. */
  protected abstract attach(host: Group): void;
  /** What an operation that runs by itself checks at run time, and whether it may write over a state. */
  protected abstract readonly placing: Omit<Placing, "hostOf">;
  /** Makes the work of an operation that runs by itself, and of the guest whose kernel runs in its command. */
  protected abstract opaque(group: Group, n: GNode, guest?: Group, made?: GroupKernel): void;
  protected abstract kernel(group: Group, made: GroupKernel): void;
  protected abstract copy(n: GNode, from: Buffer, to: Buffer, writesState: boolean): W;

  // ---- the order of things ----------------------------------------------------------------------------------------

  protected makeWorks(): void {
    const { fuser, hosts, lowered } = this;
    fuser.run();
    const { groups } = fuser;
    if (this.fuse) for (const g of groups) if (g.opaque) this.attach(g);
    for (const g of groups) if (!g.opaque && !hosts.isGuest(g)) fuser.chooseSplit(g);
    const stored = fuser.storedMembers();
    const kernels = new Map<Group, GroupKernel>();
    for (const g of groups) if (!g.opaque) kernels.set(g, fuser.kernelOf(g, stored));
    this.placement = new Placement(fuser, lowered, kernels, { hostOf: hosts.hostOf, ...this.placing });
    const { copies, inPlace, targets } = this.placement;
    for (const [key, to] of targets) this.buffers.set(key, this.slotOf(to));
    for (const g of groups) {
      const guest = hosts.guestOf(g);
      if (g.opaque) this.opaque(g, g.opaque, guest, guest && kernels.get(guest));
      else if (!hosts.isGuest(g)) this.kernel(g, kernels.get(g) as GroupKernel);
    }
    const filled = copies.filter((c) => sizeOf(c.from.shape) > 0);
    orderStates(filled, inPlace, lowered, {
      works: this.works,
      workOf: this.workOf,
      buffer: (n) => this.buffer(n),
      target: (to) => this.slotOf(to),
      temporary: (bytes, label) => this.temporary(bytes, label),
      copy: (n, from, to, writesState) => this.copy(n, from, to, writesState),
    });
  }

  protected isInPlace(g: Group): boolean {
    return this.placement.inPlace.has(g);
  }

  // ---- memory -------------------------------------------------------------------------------------------------------

  private slotOf({ kind, index }: Target): Buffer {
    if (kind === "output") return this.slots[this.capture.storages.length + index];
    // the same memory as the old value, but what reads it must come after what writes it
    return { ...this.slots[index], label: `new state ${index}` };
  }

  protected buffer(n: GNode): Buffer {
    return n.op === "buffer" ? this.slots[n.storage] : this.made(valueKey(n), n);
  }

  /** Output k of an operation. */
  protected output(n: GNode, k: number): Buffer {
    return this.made(`${n.id}:${k}`, n.outputs ? n.outputs[k] : n);
  }

  private made(key: string, { shape, dtype }: { readonly shape: Shape; readonly dtype: DType }): Buffer {
    let b = this.buffers.get(key);
    if (!b) this.buffers.set(key, (b = this.temporary(this.size(shape, dtype), `%${key.replace(/:0$/, "")}`)));
    return b;
  }

  protected temporary(bytes: number, label: string): Buffer {
    return { bytes, slot: -1, offset: 0, label };
  }

  // ---- what is told -------------------------------------------------------------------------------------------------

  /** The number as which the first of these checks fails; the others follow. */
  protected failAs(operation: string, checks: readonly Check[]): number {
    const first = this.failures.length + 1;
    for (const check of checks) this.failures.push({ operation, check });
    return first;
  }

  protected stats(kernels: number, arenaBytes: number): ProgramStats {
    return { kernels, flops: this.works.reduce((n, w) => n + w.flops, 0), bytes: this.bytes, arenaBytes };
  }

  /** Empty in the build for browsers, where nobody can ask for them. */
  protected texts(memory: () => string): Texts {
    if (import.meta.forBrowsers) return { graph: "", kernels: "", memory: "" };
    return {
      graph: this.lowered.nodes.map(showNode).join("\n"),
      kernels: this.kernelTexts.join("\n\n"),
      memory: memory(),
    };
  }
}

/** Whether a kernel makes nothing: it has no positions, or none along c and no sums whose empty ones are numbers. */
export const isEmpty = ({ rows, columns, stages }: Kernel): boolean =>
  rows === 0 || (columns === 0 && !stages.some((s) => s.reductions.length || s.rowStores.length || s.columns.length));
