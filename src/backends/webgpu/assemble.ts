/**
 * The assembler: a capture becomes the parts of a program. Lower, fuse, place results, write every kernel and template as
 * dispatches, order them, plan the temporaries. Nothing touches the device here (program.ts does), and what stays of the
 * capture is plain data. Sibling of cpu/assemble.ts.
 */
import { finishKernel } from "../../compiler/finish.ts";
import type { Group, GroupKernel } from "../../compiler/fuse.ts";
import { partDType, showKernel } from "../../compiler/kernel.ts";
import { liveBody } from "../../compiler/loop.ts";
import { type GNode, lower } from "../../compiler/lower.ts";
import { opaqueChecks } from "../../compiler/place.ts";
import { type Buffer, planMemory, schedule, showPhases, type Unit } from "../../compiler/schedule.ts";
import type { DType } from "../../core/dtype.ts";
import { DTypeError } from "../../core/errors.ts";
import { type Shape, sizeOf } from "../../core/shape.ts";
import { Assembly, type Failure, isEmpty, type Texts } from "../assembly.ts";
import type { Capture, ProgramStats } from "../backend.ts";
import type { Device } from "./device.ts";
import { canFollow, renderEpilogue } from "./epilogue.ts";
import { perWord, storageBytes } from "./layout.ts";
import { type LoopBody, loopBuffers, loopStep } from "./loops.ts";
import { ALIGNMENT } from "./memory.ts";
import { type RenderedWgsl, renderWgsl } from "./render.ts";
import { type Dispatch, Shader, sameMemory } from "./shader.ts";
import {
  canBeFollowed,
  dispatchProduct,
  elementOf,
  hasTemplate,
  ignores,
  isOpaque,
  needsFinish,
  type Place,
  productOf,
  takesStrided,
  templates,
  wider,
} from "./templates.ts";

interface Work extends Unit {
  readonly dispatch: Dispatch | LoopWork;
  readonly after: Work[];
  readonly flops: number;
}

/** A loop in the place of a dispatch. */
interface LoopWork {
  readonly body: LoopBody;
  readonly operand: (i: number) => Buffer;
  readonly output: (k: number) => Buffer;
}

/** Where a binding's memory is: segment i of the temporaries, storage i or output i. */
export interface Location {
  readonly kind: "temporary" | "storage" | "output";
  readonly index: number;
  readonly offset: number;
  readonly bytes: number;
}

export interface Step {
  readonly label: string;
  readonly dispatch: Dispatch;
  readonly memory: readonly Location[];
}

/** A copy of whole words; `read` and `write` are how many bytes its ends move on with every iteration. */
export interface Move {
  readonly from: Location;
  readonly to: Location;
  readonly bytes: number;
  readonly read: number;
  readonly write: number;
}

/** Steps that are repeated, with the copies before the first iteration, around each, and behind the last. */
export interface LoopStep {
  readonly label: string;
  readonly count: number;
  readonly first: readonly Move[];
  readonly taken: readonly Move[];
  readonly steps: readonly (Step | LoopStep)[];
  readonly given: readonly Move[];
  readonly last: readonly Move[];
}

export interface Parts {
  readonly steps: readonly (Step | LoopStep)[];
  /** Bytes of each segment of temporaries. */
  readonly segments: readonly number[];
  readonly failures: readonly Failure[];
  /** Whether a run can fail at all, so that its failure word has to be read. */
  readonly canFail: boolean;
  readonly stats: ProgramStats;
  readonly texts: Texts;
}

/** All dispatches, those of loops once. */
export const dispatchesOf = (steps: readonly (Step | LoopStep)[]): Step[] =>
  steps.flatMap((s) => ("count" in s ? dispatchesOf(s.steps) : [s]));

const plural = (n: number, what: string): string => `${n} ${what}${n === 1 ? "" : "s"}`;

/** Throws DTypeError where a node has a type that WGSL has not. */
function checkTypes(capture: Capture): void {
  const nodes = [...capture.order, ...capture.roots, ...capture.assigns.map((a) => a.value)];
  const wrong = nodes.find((n) => n.dtype === "float64" || n.outputs?.some((o) => o.dtype === "float64"));
  if (wrong)
    throw new DTypeError(
      `webgpu: WGSL has no float64 (${wrong.operation.name} [${wrong.shape}]); cast to float32 first, or compute this on the cpu or reference device`,
    );
}

export class Assembler extends Assembly<Work> {
  private readonly device: Device;
  private readonly bodies = new Map<GNode, LoopBody>();
  protected readonly placing = {
    checksOf: (n: GNode) => (this.bodies.get(n)?.canFail ? [`loop %${n.id}`] : opaqueChecks(n)),
  };

  /** `failures`: those of the program in which this one is the body of a loop. */
  constructor(device: Device, capture: Capture, fuse: boolean, failures: Failure[] = []) {
    checkTypes(capture);
    const maxBuffers = device.limits.storageBuffers - 1; // the failure word is one more
    const lowered = lower(capture, hasTemplate, { wider, maxParts: maxBuffers - 1 });
    const rule = { isOpaque, takesStrided, ignores, maxBuffers };
    super({ capture, fuse, lowered, rule, failures, firstSlot: 0 });
    this.device = device;
    for (const n of this.lowered.nodes) if (n.op === "loop") this.bodies.set(n, this.assembleBody(n));
  }

  private assembleBody(n: GNode): LoopBody {
    const body = liveBody(n, this.lowered);
    const before = this.failures.length;
    const parts = new Assembler(this.device, body.capture, this.fuse, this.failures).run();
    return { ...body, parts, canFail: this.failures.length > before };
  }

  run(): Parts {
    this.makeWorks();
    return this.assemble();
  }

  protected size(shape: Shape, dtype: DType): number {
    return storageBytes(dtype, sizeOf(shape));
  }

  /** Whole alignments, so that every place in the plan is one where a binding may begin. */
  protected override temporary(bytes: number, label: string): Buffer {
    return super.temporary(Math.max(1, Math.ceil(bytes / ALIGNMENT)) * ALIGNMENT, label);
  }

  // ---- kernels that follow a product -----------------------------------------------------------------------------------

  /** Looks for a group that can go on with the sums of this product while they are in registers. */
  protected attach(product: Group): void {
    const { fuser } = this;
    const n = product.opaque as GNode;
    if (!canBeFollowed(n, this.device.lanes)) return;
    const N = n.shape[n.shape.length - 1];
    for (const g of this.hosts.candidates(product)) {
      const { built } = g;
      if (fuser.rebuild(g, sizeOf(n.shape) / N, N) && fuser.readsAtOwnPosition(g, n) && this.fits(n, g)) {
        this.hosts.attach(product, g);
        return;
      }
      g.built = built;
    }
  }

  /** Whether product and group together have few enough buffers, and the group is one that can follow. */
  private fits(n: GNode, g: Group): boolean {
    const { kernel, reads, writes } = this.fuser.kernelOf(g, this.fuser.storedMembers());
    const memory = new Set([...this.fuser.members.operandSources(n), ...reads]).size + writes.length; // `reads` has n
    return writes.length > 0 && memory <= this.device.limits.storageBuffers - 1 && canFollow(kernel, this.device);
  }

  protected opaque(group: Group, n: GNode, guest?: Group, made?: GroupKernel): void {
    if (n.op === "loop") this.loop(group, n);
    else if (guest && made) this.productWith(group, n, guest, made);
    else this.template(group, n);
  }

  /** A product and the kernel that follows it, in one dispatch. */
  private productWith(host: Group, n: GNode, guest: Group, made: GroupKernel): void {
    if (sizeOf(n.shape) === 0) return;
    const writesState = this.isInPlace(guest);
    const { kernel, reads, writes } = made;
    const s = new Shader();
    const place = this.place(n);
    const bare = productOf(n, place, s, "");
    const own = this.hosts.isOnlyReader(guest, n) ? [] : [this.buffer(n)];
    const store = own.map((b) => `${s.bind(b, "f32")}[z * ${bare.M * bare.N} + row * ${bare.N} + column] = x;`).join();
    const buffers = [...reads, ...writes.map((w) => w.node)].map((x) => this.buffer(x));
    const { text, checks } = renderEpilogue(
      kernel,
      { f16: this.device.f16, subgroups: false, writesState },
      reads.indexOf(n),
      (i, dtype) => s.bind(buffers[i], perWord(dtype) > 1 ? "u32" : elementOf(dtype)),
    );
    const finish = `  ${store}\n  let r = z * ${bare.M} + row;\n  let c = column;\n${text}`;
    const firstCheck = this.failAs("indexing", checks);
    const dispatch = dispatchProduct(n, { ...bare, finish }, s, place, {
      firstCheck,
      scalars: made.scalars,
    });
    if (!import.meta.forBrowsers) this.kernelTexts.push(`after the product %${n.id}; ${showKernel(kernel)}`);
    const operands = this.fuser.members.operandSources(n).map((x) => this.buffer(x));
    const work = this.work(
      `${n.op} %${n.id} and kernel ${writes.map((w) => `%${w.node.id}`).join(" ")}`,
      [...operands, ...buffers.filter((_, i) => i < reads.length && reads[i] !== n)],
      [...own, ...buffers.slice(reads.length)],
      dispatch,
      templates[n.op].flops(n) + kernel.flops,
    );
    this.workOf.set(host, work);
    this.workOf.set(guest, work);
  }

  // ---- units ---------------------------------------------------------------------------------------------------------

  private work(
    label: string,
    reads: readonly Buffer[],
    writes: readonly Buffer[],
    dispatch: Work["dispatch"],
    flops: number,
  ): Work {
    const work: Work = { label, reads, writes, after: [], lead: [], dispatch, flops };
    this.works.push(work);
    for (const b of [...reads, ...writes]) this.bytes += b.bytes;
    return work;
  }

  /** A rendered kernel as a dispatch. */
  private dispatch(
    rendered: RenderedWgsl,
    buffers: readonly Buffer[],
    columns: number,
    scalars: readonly number[],
  ): Dispatch {
    const firstCheck = this.failAs("indexing", rendered.checks);
    return {
      source: rendered.source,
      kinds: rendered.bindings.map((b) => b.kind),
      buffers: rendered.bindings.flatMap((b) => (b.kind === "buffer" ? [buffers[b.buffers[0]]] : [])),
      uniforms: (values) => rendered.uniforms({ length: columns, firstCheck, scalars: values }),
      scalars,
      groups: rendered.dispatch({ length: columns }),
    };
  }

  protected kernel(group: Group, made: GroupKernel): void {
    const { kernel, reads, writes } = made;
    if (isEmpty(kernel) || writes.length === 0) return;
    const outer = [...reads, ...writes.map((w) => w.node)].map((n) => this.buffer(n));
    const options = {
      f16: this.device.f16,
      subgroups: this.device.subgroups,
      lanes: this.device.lanes,
      maxStorageBuffers: this.device.limits.storageBuffers,
      writesState: this.isInPlace(group),
      sharedWith: outer.map((b, i) => outer.findIndex((x, j) => j <= i && sameMemory(x, b))),
    };
    const rendered = renderWgsl(kernel, options);
    const finishes: (() => void)[] = [];
    const buffers = outer.map((b, i) => {
      const written = writes[i - reads.length];
      if (!written?.partial || !needsFinish(written.node, rendered.blocks)) return b;
      const { node, partial } = written;
      const dtype = partDType(node.dtype);
      const part = this.temporary(storageBytes(dtype, rendered.blocks * kernel.columns), `parts of %${node.id}`);
      finishes.push(() => {
        const last = finishKernel(node, partial, rendered.blocks, kernel.columns);
        const text = renderWgsl(last, { ...options, writesState: false, sharedWith: undefined });
        this.work(`finish %${node.id}`, [part], [b], this.dispatch(text, [part, b], last.columns, []), last.flops);
      });
      return part;
    });
    if (!import.meta.forBrowsers) this.kernelTexts.push(`${rendered.form}; ${showKernel(kernel)}`);
    const scalars = made.scalars.map((s) => s.slot);
    const work = this.work(
      `kernel ${writes.map((w) => `%${w.node.id}`).join(" ")}`,
      buffers.slice(0, reads.length),
      buffers.slice(reads.length),
      this.dispatch(rendered, buffers, kernel.columns, scalars),
      kernel.flops,
    );
    this.workOf.set(group, work);
    for (const finish of finishes) finish();
  }

  /** What a template writes its dispatches with. */
  private place(n: GNode): Place {
    const looks = n.inputs.map((_, i) => this.fuser.members.look(n, i));
    return {
      looks,
      lanes: this.device.lanes,
      operand: (i) => this.buffer(looks[i].source),
      output: (k = 0) => this.output(n, k),
      temporary: (count) => this.temporary(4 * count, `for %${n.id}`),
      check: (extent) => this.failAs(n.op, [{ kind: "index", extent }]),
    };
  }

  /** The dispatches of a template, each after the one before; the last makes the outputs. */
  private template(group: Group, n: GNode): void {
    if (sizeOf(n.shape) === 0 && !n.outputs?.some((o) => sizeOf(o.shape) > 0)) return;
    const template = templates[n.op];
    const dispatches = template.plan(n, this.place(n));
    const outputs = (n.outputs ?? [n]).map((_, k) => this.output(n, k));
    let before: Work | null = null;
    dispatches.forEach((dispatch, i) => {
      // what lies between the dispatches is read by all that use it: it lives from the first to the last
      const reads = dispatch.buffers.filter((b) => !outputs.includes(b));
      const writes = dispatch.buffers.filter((b) => outputs.includes(b));
      const work = this.work(`${n.op} %${n.id}`, reads, writes, dispatch, i === 0 ? template.flops(n) : 0);
      if (before) work.after.push(before);
      before = work;
    });
    if (before) this.workOf.set(group, before);
  }

  private loop(group: Group, n: GNode): void {
    if (n.outputs?.every((o) => sizeOf(o.shape) === 0)) return;
    const body = this.bodies.get(n) as LoopBody;
    const operand = (i: number): Buffer => this.buffer(this.fuser.members.look(n, i).source);
    const output = (k: number): Buffer => this.output(n, k);
    const { reads, writes } = loopBuffers(n, body, operand, output);
    const { flops, bytes } = body.parts.stats;
    const work = this.work(`loop %${n.id}`, reads, writes, { body, operand, output }, flops * body.attrs.count);
    this.workOf.set(group, work);
    this.bytes += bytes * body.attrs.count;
    if (!import.meta.forBrowsers)
      this.kernelTexts.push(`loop %${n.id}, ${body.attrs.count} times:\n${body.parts.texts.kernels}`);
  }

  protected copy(n: GNode, source: Buffer, target: Buffer, writesState: boolean): Work {
    const s = new Shader();
    const [a, b] = [s.bind(source, "u32"), s.bind(target, "u32")];
    const guard = writesState ? "    if (atomicLoad(&failure.operation) != 0u) { return; }\n" : "";
    const words = storageBytes(n.dtype, sizeOf(n.shape)) / 4;
    return this.work(`copy to ${target.label}`, [source], [target], s.flat(words, `${guard}    ${b}[e] = ${a}[e];`), 0);
  }

  // ---- the parts -------------------------------------------------------------------------------------------------------

  private assemble(): Parts {
    const phases = schedule(this.works);
    const segments = planSegments(phases, this.device.limits.bufferBytes);
    const segmentOf = (b: Buffer): number => segments.of.get(b) ?? 0;
    const { length } = this.capture.storages;
    const locate = (b: Buffer): Location => {
      const { bytes, offset, slot } = b;
      if (slot < 0) return { kind: "temporary", index: segmentOf(b), offset, bytes };
      if (slot < length) return { kind: "storage", index: slot, offset: 0, bytes };
      return { kind: "output", index: slot - length, offset: 0, bytes };
    };
    const sizes = [...segments.sizes];
    // loops follow one another: they share what they work in
    const grow = (i: number, bytes: number): void => {
      sizes[i] = Math.max(sizes[i] ?? 0, bytes);
    };
    const steps = phases.flat().flatMap(({ label, dispatch }): (Step | LoopStep)[] => {
      if ("body" in dispatch) {
        const { body, operand, output } = dispatch;
        const around = { operand: (i: number) => locate(operand(i)), output: (k: number) => locate(output(k)) };
        return [loopStep(label, body, { ...around, base: segments.sizes.length, grow })];
      }
      const { x, y, z } = dispatch.groups;
      return x * y * z > 0 ? [{ label, dispatch, memory: dispatch.buffers.map(locate) }] : [];
    });
    const arenaBytes = sizes.reduce((n, s) => n + s, 0);
    return {
      steps,
      segments: sizes,
      failures: this.failures,
      canFail: this.failures.length > 0,
      stats: this.stats(dispatchesOf(steps).length, arenaBytes),
      texts: this.texts(() => `${plural(sizes.length, "segment")} of ${sizes.join(", ")} bytes\n${showPhases(phases)}`),
    };
  }
}

/** The temporaries in one segment where a buffer can be so large, else in several. */
function planSegments(
  phases: readonly (readonly Unit[])[],
  most: number,
): { readonly sizes: readonly number[]; readonly of: ReadonlyMap<Buffer, number> } {
  const sizes: number[] = [];
  const of = new Map<Buffer, number>();
  let rest = phases;
  for (;;) {
    const size = planMemory(rest);
    const isIn = (b: Buffer): boolean => size <= most || b.offset + b.bytes <= most || b.bytes > most;
    let end = 0;
    const left = new Set<Buffer>();
    for (const u of rest.flat())
      for (const b of [...u.reads, ...u.writes]) {
        if (b.slot >= 0 || of.has(b)) continue;
        if (isIn(b)) {
          of.set(b, sizes.length);
          end = Math.max(end, b.offset + b.bytes);
        } else left.add(b);
      }
    sizes.push(end);
    if (left.size === 0) return { sizes, of };
    const keep = (list: readonly Buffer[]): Buffer[] => list.filter((b) => left.has(b));
    rest = rest.map((p) => p.map((u) => ({ ...u, reads: keep(u.reads), writes: keep(u.writes) })));
  }
}
