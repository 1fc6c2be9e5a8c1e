/**
 * The assembler: a capture becomes the parts of a program. Lower, fuse, attach kernels to products, place results, order,
 * plan memory, render, and write the command table. Nothing runs here (program.ts), and what stays of the capture is
 * plain data.
 */
import { readsByBlocks } from "../../compiler/blocks.ts";
import { finishKernel, resultsOver } from "../../compiler/finish.ts";
import type { Group, GroupKernel } from "../../compiler/fuse.ts";
import { BLOCK } from "../../compiler/index-expr.ts";
import { partDType, showKernel } from "../../compiler/kernel.ts";
import { type GNode, type Lowered, lower } from "../../compiler/lower.ts";
import { opaqueChecks, valueKey } from "../../compiler/place.ts";
import { arrange, type Buffer, planMemory, showPhases, type Unit } from "../../compiler/schedule.ts";
import { isView, strided } from "../../compiler/views.ts";
import { type DType, dtypes } from "../../core/dtype.ts";
import { contiguousStrides, type Shape, sizeOf } from "../../core/shape.ts";
import { elementAt } from "../../graph/loop.ts";
import { Assembly, type Failure, isEmpty, type Texts } from "../assembly.ts";
import type { Capture, ProgramStats } from "../backend.ts";
import { type Draft, draftOf, type Item, placeItem, poisonOf, showLoop, writeTable } from "./commands.ts";
import { LARGE } from "./contract.ts";
import { rowGrain } from "./kernels.ts";
import { bodyPhases, type LoopBody, loopBody, type Place, placesOf } from "./loops.ts";
import { Packs } from "./packs.ts";
import { planCopy } from "./plans.ts";
import { chooseForm, FLAT_ROW, type Form } from "./render.ts";
import { bytesOf, type Commands, type Guest, type Operand, type Step, TEMPORARY, updates } from "./shared-templates.ts";
import type { Table } from "./table.ts";
import type { Target } from "./target.ts";

interface Work extends Unit, Item {
  readonly reads: Buffer[];
  readonly writes: Buffer[];
  readonly draft: Draft;
  readonly after: Work[];
  readonly lead: Work[];
  readonly flops: number;
}

/** A program as data: what is compiled, the command table, and what a run has to bring. */
export interface Parts {
  readonly table: Table;
  readonly sources: readonly string[];
  /** The operation whose kernel of its own a source is. */
  readonly owners: readonly (string | undefined)[];
  readonly arenaBytes: number;
  readonly numStorages: number;
  readonly numOutputs: number;
  readonly constants: readonly number[];
  readonly numScalars: number;
  readonly failures: readonly Failure[];
  /** What each command is, for the profile. */
  readonly labels: readonly string[];
  readonly stats: ProgramStats;
  readonly texts: Texts;
}

export class Assembler extends Assembly<Work> {
  private readonly target: Target;
  private readonly constants: number[];
  private readonly packs = new Packs<Work>((...args) => this.work(...args));
  /** Runtime scalars of the program. */
  private readonly numScalars: number;
  private readonly bodies = new Map<GNode, { readonly body: LoopBody; readonly assembler: Assembler }>();
  private scratchBytes = 0;
  /** Known when the first operation is planned: then all that is read is settled. */
  private unread?: ReadonlySet<GNode>;
  protected readonly placing = {
    checksOf: (n: GNode) => (this.bodies.get(n)?.assembler.bodyCanFail() ? [`loop %${n.id}`] : opaqueChecks(n)),
    overwrites: (n: GNode) => n.op === "contract" && !n.shape.includes(0),
    updates,
  };

  /** `around`: the program in which this one is the body of a loop. */
  constructor(target: Target, capture: Capture, fuse: boolean, around?: Assembler) {
    const lowered = lower(capture, target.hasTemplate, target.lowerRule);
    const failures = around?.failures ?? [];
    // slot 0 is the arena
    super({ capture, fuse, lowered, rule: target.rule, failures, kernelTexts: around?.kernelTexts, firstSlot: 1 });
    this.target = target;
    this.constants = around?.constants ?? [];
    this.numScalars = around?.numScalars ?? capture.scalars.length;
    for (const n of this.lowered.nodes) {
      if (n.op !== "loop") continue;
      const body = loopBody(n, this.lowered);
      this.bodies.set(n, { body, assembler: new Assembler(target, body.capture, fuse, this) });
    }
  }

  /** The graphs of all loops' bodies. */
  get loweredBodies(): Lowered[] {
    return [...this.bodies.values()].flatMap(({ assembler }) => [assembler.lowered, ...assembler.loweredBodies]);
  }

  run(): Parts {
    this.makeWorks();
    return this.assemble();
  }

  protected override makeWorks(): void {
    for (const { assembler } of this.bodies.values()) assembler.makeWorks();
    super.makeWorks();
    this.packs.finish();
  }

  protected size(shape: Shape, dtype: DType): number {
    return bytesOf(shape, dtype);
  }

  /** The operations whose operands are read in their place, and which nobody reads. */
  private unreadOperands(): Set<GNode> {
    const { groups, members } = this.fuser;
    const unread = new Set<GNode>();
    for (const { opaque } of groups)
      opaque?.inputs.forEach((_, i) => {
        const absorbed = members.absorbed(opaque, i);
        if (absorbed) unread.add(absorbed);
      });
    for (const n of members.requested) unread.delete(n);
    for (const { opaque, built } of groups)
      for (const n of opaque ? members.operandSources(opaque) : (built?.body.buffers ?? [])) unread.delete(n);
    return unread;
  }

  private bodyCanFail(): boolean {
    return this.fuser.groups.some((g) => this.placement.canFail(g));
  }

  // ---- attaching kernels to products --------------------------------------------------------------------------------

  protected attach(host: Group): void {
    const n = host.opaque as GNode;
    if (n.op === "contract") this.attachToRows(host, n);
    else this.attachBehind(host, n, this.target.partsBehind?.(n) ?? []);
  }

  /**
   * Looks for a group that can run on the finished rows of this product while they are in cache. A tile is whole rows then, so that each reads
   * all of the right side: not where that is beyond the caches.
   */
  private attachToRows(product: Group, n: GNode): void {
    if (n.dtype !== "float32" || n.shape.length !== 2) return;
    const [rows, columns] = n.shape;
    if (rows < 16 || columns < 16 || this.fuser.members.absorbed(n, 1)) return;
    if (columns * (n.inputs[0].shape.at(-1) as number) > LARGE) return;
    for (const g of this.hosts.candidates(product)) {
      if (!this.fuser.rebuild(g, rows, columns)) continue;
      if (!this.fuser.readsAtOwnPosition(g, n)) continue;
      this.hosts.attach(product, g);
      return;
    }
  }

  /** Into how many equal parts the result is cut for the group that runs behind a command. */
  private readonly parts = new Map<Group, number>();

  /** Looks for a group that can take this operation's result by equal parts: pooling behind a convolution, say. */
  private attachBehind(host: Group, n: GNode, choices: readonly number[]): void {
    if (import.meta.forBrowsers || !choices.length) return; // wasm has no such commands
    for (const g of this.hosts.candidates(host)) {
      const columns = n.shape[n.shape.length - 1];
      const { built } = g;
      this.fuser.rebuild(g, sizeOf(n.shape) / columns, columns);
      const parts = choices.find((k) => readsByBlocks(g, n, k));
      if (!parts) {
        g.built = built;
        continue;
      }
      this.parts.set(g, parts);
      this.hosts.attach(host, g);
      return;
    }
  }

  // ---- units ----------------------------------------------------------------------------------------------------------

  /** The command of a kernel; `block` fixes the rows a tile where a product or partial sums need it. */
  private draft(
    made: GroupKernel,
    buffers: readonly Buffer[],
    writesState: boolean,
    block?: number,
    form: Form = chooseForm(made.kernel),
  ): Draft {
    const { kernel } = made;
    const { source, checks } = this.target.render(kernel, form);
    const rows = form === "flat" ? Math.ceil(kernel.columns / FLAT_ROW) : kernel.rows;
    const grain = block ?? (form === "flat" ? 16 : rowGrain(kernel));
    if (!import.meta.forBrowsers) this.kernelTexts.push(`${form} ${rows} rows by ${grain}; ${showKernel(kernel)}`);
    this.bytes += buffers.reduce((n, b) => n + b.bytes, 0);
    return {
      fn: { source },
      rows,
      grain,
      buffers: buffers.map((b) => [b, 0]),
      scalars: made.scalars.map((s) => s.slot),
      params: [kernel.columns, this.failAs("indexing", checks)],
      writesState,
    };
  }

  protected kernel(group: Group, made: GroupKernel): void {
    if (isEmpty(made.kernel) || made.writes.length === 0) return;
    if (this.transpose(group, made)) return;
    const grain = rowGrain(made.kernel);
    const { buffers, finishes } = this.kernelBuffers(made, grain);
    const draft = this.draft(
      made,
      buffers,
      this.isInPlace(group),
      chooseForm(made.kernel) === "flat" ? undefined : grain,
    );
    const work = this.work(
      `kernel ${made.writes.map((w) => `%${w.node.id}`).join(" ")}`,
      buffers.slice(0, made.reads.length),
      buffers.slice(made.reads.length),
      draft,
      made.kernel.flops,
    );
    this.workOf.set(group, work);
    for (const finish of finishes) finish();
  }

  /** A kernel that only exchanges axes, as a command of the runtime; false where it is anything else. */
  private transpose(group: Group, made: GroupKernel): boolean {
    if (import.meta.forBrowsers) return false; // nor has wasm this one
    const { members } = group;
    if (members.length !== 1 || this.isInPlace(group) || dtypes[members[0].dtype].bytes !== 4) return false;
    let n = members[0];
    const inMemory = (x: GNode): boolean => x !== members[0] && this.fuser.members.has(x);
    // a reshape does not change the order in which memory is written
    while (n.op === "reshape" && !inMemory(n.inputs[0])) n = n.inputs[0];
    const look = isView(n) ? strided(n, inMemory) : null;
    if (!look || look.source !== made.reads[0]) return false;
    const command = this.target.planTranspose?.(n.shape, look.strides);
    if (!command) return false;
    const [from, to] = [this.buffer(look.source), this.buffer(members[0])];
    const work = this.work(
      `transpose %${members[0].id}`,
      [from],
      [to],
      {
        ...command,
        buffers: [
          [from, look.offset * dtypes[n.dtype].bytes],
          [to, 0],
        ],
        scalars: [],
        writesState: false,
      },
      0,
    );
    this.bytes += from.bytes + to.bytes;
    this.workOf.set(group, work);
    return true;
  }

  /** Buffers of a kernel; a reduction over rows leaves parts, which a small kernel of its own puts together. */
  private kernelBuffers(made: GroupKernel, grain: number): { buffers: Buffer[]; finishes: (() => void)[] } {
    const finishes: (() => void)[] = [];
    const buffers = made.reads.map((n) => this.buffer(n));
    for (const { node, partial } of made.writes) {
      if (!partial) {
        buffers.push(this.buffer(node));
        continue;
      }
      const blocks = Math.ceil(made.kernel.rows / grain);
      const columns = made.kernel.columns;
      const part = this.temporary(bytesOf([blocks, columns], partDType(node.dtype)), `parts of %${node.id}`);
      buffers.push(part);
      finishes.push(() => {
        const kernel = finishKernel(node, partial, blocks, columns);
        const out = this.buffer(node);
        const draft = this.draft({ kernel, reads: [], writes: [], scalars: [] }, [part, out], false);
        this.work(`finish %${node.id}`, [part], [out], draft, kernel.flops);
      });
    }
    return { buffers, finishes };
  }

  private work(label: string, reads: readonly Buffer[], writes: readonly Buffer[], draft: Draft, flops: number): Work {
    const work: Work = { label, reads: reads.slice(), writes: writes.slice(), after: [], lead: [], draft, flops };
    this.works.push(work);
    return work;
  }

  protected opaque(group: Group, n: GNode, guest?: Group, made?: GroupKernel): void {
    this.unread ??= this.unreadOperands();
    if (this.unread.has(n) || (sizeOf(n.shape) === 0 && !n.outputs)) return;
    if (n.op === "loop") this.loop(group, n);
    else if (this.fuser.members.absorbed(n, 1)) this.quantizedContract(group, n);
    else if (n.op === "contract") this.contract(group, n, guest, made);
    else this.template(group, n, guest, made);
  }

  private contract(group: Group, n: GNode, guest: Group | undefined, made: GroupKernel | undefined): void {
    const [a, b] = [this.fuser.members.look(n, 0), this.fuser.members.look(n, 1)];
    const rank = n.shape.length;
    const K = n.inputs[0].shape[rank - 1];
    const plan = this.target.planContract({
      batch: n.shape.slice(0, rank - 2),
      M: n.shape[rank - 2],
      N: n.shape[rank - 1],
      K,
      a: { dtype: n.inputs[0].dtype, strides: a.strides },
      b: { dtype: n.inputs[1].dtype, strides: b.strides },
      ...(n.attrs["rounds"] === true && { rounds: true }),
      out: n.dtype as "float32",
      hasPost: made !== undefined,
    });
    const out = (guest && made && this.resultOver(n, guest, made)) ?? this.buffer(n);
    this.scratchBytes = Math.max(this.scratchBytes, plan.scratchBytes);
    const right: Place = [this.buffer(b.source), b.offset * dtypes[n.inputs[1].dtype].bytes];
    const pack = plan.pack && this.packs.of(plan.pack, right, plan.packed, `%${n.id}`);
    const bound: Readonly<Record<string, Place>> = {
      a: [this.buffer(a.source), a.offset * dtypes[n.inputs[0].dtype].bytes],
      b: right,
      ...(pack && { packed: [pack.packed, 0] }),
      out: [out, 0],
    };
    const main: Draft = { ...draftOf(plan.main, bound), writesState: this.isInPlace(group) };
    const reads = main.buffers.map((x) => x[0]).filter((x) => x !== out);
    const flops = 2 * sizeOf(n.shape) * K + (made?.kernel.flops ?? 0);
    const work = this.work(`contract %${n.id}`, reads, [out], main, flops);
    if (pack) this.packs.read(pack, work);
    this.workOf.set(group, work);
    if (guest && made) this.runBehind(work, n, guest, made, plan.rowBlock, "columns");
  }

  /** A product that reads its right side's codes. */
  private quantizedContract(group: Group, n: GNode): void {
    const { members } = this.fuser;
    const [a, b] = [members.look(n, 0), members.look(n, 1)];
    const plan = (this.target.planQuantized as NonNullable<Target["planQuantized"]>)(n, a, b);
    this.scratchBytes = Math.max(this.scratchBytes, plan.scratchBytes);
    const place = (x: GNode, i: number): Place => {
      const { source, offset } = members.look(x, i);
      return [this.buffer(source), offset * dtypes[x.inputs[i].dtype].bytes];
    };
    const out = this.buffer(n);
    // what a format does not have is filled with what it has
    const last = b.source.inputs.length - 1;
    const draft = draftOf(plan.main, {
      a: place(n, 0),
      codes: place(b.source, 0),
      scales: place(b.source, Math.min(1, last)),
      values: place(b.source, last),
      out: [out, 0],
    });
    draft.writesState = this.isInPlace(group);
    const reads = draft.buffers.map((x) => x[0]).filter((x) => x !== out);
    const flops = 2 * sizeOf(n.shape) * n.inputs[0].shape[1];
    this.workOf.set(group, this.work(`contract %${n.id} of codes`, reads, [out], draft, flops));
  }

  /** A result of the guest that may lie where the product lay, if the guest is all that reads it: then one memory serves both. */
  private resultOver(product: GNode, guest: Group, made: GroupKernel): Buffer | undefined {
    if (!this.hosts.isOnlyReader(guest, product)) return undefined;
    const isState = ({ slot }: Buffer): boolean => slot > 0 && slot <= this.capture.storages.length;
    const over = resultsOver(made, product)
      .map((n) => this.buffer(n))
      .find((b) => !isState(b));
    if (over) this.buffers.set(valueKey(product), over);
    return over;
  }

  private template(group: Group, n: GNode, guest?: Group, made?: GroupKernel): void {
    const looks = n.inputs.map((_, i) => this.fuser.members.look(n, i));
    const base = this.failAs(n.op, [{ kind: "index", extent: n.shape[(n.attrs["axis"] as number) ?? 0] }]);
    const behind: Guest | undefined =
      import.meta.forBrowsers || !guest || !made
        ? undefined
        : {
            parts: this.parts.get(guest) as number,
            own: this.hosts.isOnlyReader(guest, n)
              ? [made.reads.indexOf(n), made.reads.length + made.writes.length]
              : undefined,
          };
    const planned: Commands = this.target.planOpaque(n, looks, base, behind);
    const { fn, rows, grain } = planned.command;
    if (!import.meta.forBrowsers && typeof fn === "object")
      this.kernelTexts.push(`own ${rows} rows by ${grain}; ${n.op}`);
    this.scratchBytes = Math.max(this.scratchBytes, planned.scratchBytes);
    const temporaries = (planned.temporaries ?? []).map((bytes) => this.temporary(bytes, `for %${n.id}`));
    const bind = ({ of, offset }: Operand): readonly [Buffer, number] => {
      if (of >= TEMPORARY) return [temporaries[of - TEMPORARY], 0];
      return of < 0
        ? [this.output(n, -1 - of), 0]
        : [this.buffer(looks[of].source), offset * dtypes[n.inputs[of].dtype].bytes];
    };
    const scalars = planned.scalars.map((s) => (typeof s === "number" ? this.constant(s) : s.slot));
    /** A step writes the outputs it names, and the temporaries that it is the first to name. */
    const filled = new Set<Buffer>();
    const step = (label: string, { command, buffers }: Step, flops: number): Work => {
      const bound = buffers.map(bind);
      const isOutput = (i: number): boolean =>
        buffers[i].of < 0 || (buffers[i].of >= TEMPORARY && !filled.has(bound[i][0]));
      const writes = [...new Set(bound.filter((_, i) => isOutput(i)).map((b) => b[0]))];
      for (const w of writes) filled.add(w);
      const reads = bound.map((b) => b[0]).filter((b) => !writes.includes(b));
      const { fn, rows, grain, params } = command;
      return this.work(
        label,
        reads,
        writes,
        { fn, rows, grain, params, buffers: bound, scalars, writesState: this.isInPlace(group) },
        flops,
      );
    };
    const isPrepared = planned.leadsInPlace === false && this.isInPlace(group);
    const lead = planned.lead && !isPrepared && step(`pack for %${n.id}`, planned.lead, 0);
    const work = step(`${n.op} %${n.id}`, planned, planned.flops + (made?.kernel.flops ?? 0));
    if (lead) work.lead.push(lead);
    this.workOf.set(group, planned.finish ? step(`finish %${n.id}`, planned.finish, 0) : work);
    if (import.meta.forBrowsers || !guest || !made) return;
    const { kernel } = made;
    const block = (kernel.rows * (planned.blockRows as number) * n.shape[n.shape.length - 1]) / sizeOf(n.shape);
    // lanes along rows go in blocks that start at multiples of BLOCK
    const form = chooseForm(kernel) === "rows" && block % BLOCK === 0 ? "rows" : "columns";
    this.runBehind(work, n, guest, made, block, form);
  }

  /** Puts a group's kernel behind the tiles of a command that makes n, `grain` rows of the kernel each. */
  private runBehind(work: Work, n: GNode, guest: Group, made: GroupKernel, grain: number, form: Form): void {
    const { buffers, finishes } = this.kernelBuffers(made, grain);
    const { draft } = work;
    draft.writesState ||= this.isInPlace(guest);
    draft.post = this.draft(made, buffers, draft.writesState, grain, form);
    const others = (part: readonly Buffer[]): Buffer[] => part.filter((b) => b !== this.buffer(n));
    work.reads.push(...others(buffers.slice(0, made.reads.length)));
    work.writes.push(...others(buffers.slice(made.reads.length)));
    this.workOf.set(guest, work);
    for (const finish of finishes) finish();
  }

  // ---- loops --------------------------------------------------------------------------------------------------------------

  private loop(group: Group, n: GNode): void {
    const { body, assembler } = this.bodies.get(n) as { body: LoopBody; assembler: Assembler };
    const { attrs, live } = body;
    const captured = assembler.slots.slice(attrs.carries + attrs.sequences, body.capture.storages.length);
    const made = bodyPhases(assembler.works, captured);
    const arena = this.temporary(made.bytes, `loop %${n.id}`);
    const looks = n.inputs.map((_, i) => this.fuser.members.look(n, i));
    const identity = {};
    const output = (k: number): Buffer => this.output(n, k);
    const memory = { looks, output, arena, buffer: (x: GNode) => this.buffer(x) };
    const place = placesOf(n, body, memory, identity);
    const items = (list: readonly Item[]): Item[] => list.map((x) => placeItem(x, place, `loop %${n.id}: `));
    const copy = (label: string, i: number, from: Place, to: Place): Item => {
      const { main } = planCopy({ shape: [sizeOf(n.inputs[i].shape)], dtype: n.inputs[i].dtype, from: [1], to: [1] });
      return { label, draft: draftOf(main, { from, to }) };
    };
    const starts: Item[] = [];
    const ends: Item[] = [];
    const writes: Buffer[] = [arena];
    for (let i = 0; i < attrs.carries; i++) {
      const { source, offset } = looks[i];
      const first: Place = [this.buffer(source), offset * bytesOf([], n.inputs[i].dtype)];
      const root = body.trailing.get(i);
      if (root === undefined || live.has(i)) writes.push(output(i));
      if (root === undefined) starts.push(copy(`loop %${n.id}: first carry ${i}`, i, first, [output(i), 0]));
      else if (live.has(i)) {
        const last = elementAt(attrs, attrs.count - 1) * bytesOf(n.inputs[i].shape, n.inputs[i].dtype);
        const from: Place = [output(attrs.carries + body.stacked[root]), last];
        ends.push(copy(`loop %${n.id}: last carry ${i}`, i, from, [output(i), 0]));
      }
    }
    for (const k of body.stacked) writes.push(output(attrs.carries + k));
    const before = made.before.map(items);
    if (starts.length) before[0] = [...starts, ...(before[0] ?? [])];
    const nothing: Draft = { fn: "copy", rows: 0, grain: 1, buffers: [], scalars: [], params: [], writesState: false };
    const reads = [...new Set(looks.map((x) => this.buffer(x.source)))];
    const work: Work = {
      label: `loop %${n.id}`,
      reads,
      writes,
      after: [],
      lead: [],
      draft: nothing,
      flops: made.flops * attrs.count,
      loop: { identity, count: attrs.count, before, phases: made.phases.map(items), after: ends },
    };
    this.works.push(work);
    this.workOf.set(group, work);
    this.scratchBytes = Math.max(this.scratchBytes, assembler.scratchBytes);
    this.bytes += assembler.bytes * attrs.count;
  }

  /** A literal in the program's scalar table, after the runtime scalars. */
  private constant(value: number): number {
    let i = this.constants.indexOf(value);
    if (i < 0) i = this.constants.push(value) - 1;
    return this.numScalars + i;
  }

  protected copy(n: GNode, from: Buffer, to: Buffer, writesState: boolean): Work {
    const strides = contiguousStrides(n.shape);
    const { main } = planCopy({ shape: n.shape, dtype: n.dtype, from: strides, to: strides });
    const draft: Draft = { ...draftOf(main, { from: [from, 0], to: [to, 0] }), writesState };
    return this.work(`copy to ${to.label}`, [from], [to], draft, 0);
  }

  // ---- the table --------------------------------------------------------------------------------------------------------

  private assemble(): Parts {
    const phases = arrange(this.works);
    const arenaBytes = planMemory(phases);
    const numStorages = this.capture.storages.length;
    const poison =
      process.env["NABLA_POISON"] === "1" ? poisonOf(phases, this.slots.slice(numStorages), arenaBytes) : null;
    const numScalars = this.capture.scalars.length + this.constants.length;
    const sizes = { numBuffers: 1 + this.slots.length, numScalars, scratchBytes: this.scratchBytes };
    return {
      ...writeTable(phases, sizes, poison),
      arenaBytes,
      numStorages,
      numOutputs: this.capture.roots.length,
      constants: this.constants,
      numScalars: this.capture.scalars.length,
      failures: this.failures,
      stats: this.stats(this.works.length, arenaBytes),
      texts: this.texts(() => showPhases(phases, (w) => (w.loop ? showLoop(w.loop, "    ") : ""))),
    };
  }
}
