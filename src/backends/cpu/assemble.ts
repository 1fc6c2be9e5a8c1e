/**
 * The assembler: a capture becomes the parts of a program. Lower, fuse, attach kernels to products, place results, order,
 * plan memory, render, and write the command table. Nothing runs here (program.ts), and what stays of the capture is
 * plain data.
 */
import { readsByBlocks } from "../../compiler/blocks.ts";
import { finishKernel, readsOnlyAt, storeOf } from "../../compiler/finish.ts";
import { Fuser, type Group, type GroupKernel, partDType } from "../../compiler/fuse.ts";
import { BLOCK } from "../../compiler/index-expr.ts";
import { showKernel } from "../../compiler/kernel.ts";
import { type GNode, type Lowered, lower } from "../../compiler/lower.ts";
import { type Buffer, planMemory, schedule, type Unit } from "../../compiler/schedule.ts";
import { checkOf, isView, strided } from "../../compiler/views.ts";
import { dtypes } from "../../core/dtype.ts";
import { contiguousStrides, sizeOf } from "../../core/shape.ts";
import { elementAt } from "../../graph/loop.ts";
import type { Capture, ProgramStats } from "../backend.ts";
import { rowGrain } from "./kernels.ts";
import { type LoopBody, loopBody, type Place, placesOf } from "./loops.ts";
import { planCopy, planFill } from "./plans.ts";
import { type Check, chooseForm, FLAT_ROW, type Form } from "./render.ts";
import { type BufferName, type Command, type Move, ProgramBuilder } from "./table.ts";
import type { Target } from "./target.ts";
import { bytesOf, type Commands, type Guest, type Operand, type Step, TEMPORARY } from "./templates.ts";

/** A command before buffers have addresses: what `ProgramBuilder.command` takes, with buffers as objects. */
interface Draft {
  readonly fn: Command["fn"] | { readonly source: string; readonly operation?: string };
  readonly rows: number;
  readonly grain: number;
  readonly buffers: readonly Place[];
  readonly scalars: readonly number[];
  readonly params: readonly number[];
  writesState: boolean;
  post?: Draft;
}

/** What stands in a phase: a command, or a loop, whose phases follow. */
interface Item {
  readonly label: string;
  readonly draft: Draft;
  readonly loop?: Loop;
}

interface Loop {
  /** What buffers that move in it name. */
  readonly identity: object;
  readonly count: number;
  /** What is done once, before the first iteration and behind the last. */
  readonly before: readonly (readonly Item[])[];
  readonly phases: readonly (readonly Item[])[];
  readonly after: readonly Item[];
}

interface Work extends Unit, Item {
  readonly reads: Buffer[];
  readonly writes: Buffer[];
  readonly draft: Draft;
  readonly after: Work[];
  readonly lead: Work[];
  readonly flops: number;
}

/** A failure's meaning: what check failed as operation n. */
export interface Failure {
  readonly operation: string;
  readonly check: Check;
}

export interface Parts {
  readonly table: Int32Array;
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
  readonly texts: { readonly graph: string; readonly kernels: string; readonly memory: string };
}

export class Assembler {
  private readonly target: Target;
  private readonly capture: Capture;
  private readonly fuse: boolean;
  readonly lowered: Lowered;
  private readonly fuser: Fuser;
  private readonly buffers = new Map<string, Buffer>();
  private readonly slots: Buffer[];
  private readonly sources = new Map<string, number>();
  private readonly owners: (string | undefined)[] = [];
  private readonly constants: number[];
  private readonly failures: Failure[];
  private readonly works: Work[] = [];
  private readonly workOf = new Map<Group, Work>();
  private readonly kernelTexts: string[];
  /** Runtime scalars of the program. */
  private readonly numScalars: number;
  private readonly bodies = new Map<GNode, { readonly body: LoopBody; readonly assembler: Assembler }>();
  /** The product whose finished rows a group's kernel runs on. */
  private readonly host = new Map<Group, Group>();
  private scratchBytes = 0;
  private bytes = 0;

  /** `around`: the program in which this one is the body of a loop. */
  constructor(target: Target, capture: Capture, fuse: boolean, around?: Assembler) {
    this.target = target;
    this.capture = capture;
    this.fuse = fuse;
    this.constants = around?.constants ?? [];
    this.failures = around?.failures ?? [];
    this.kernelTexts = around?.kernelTexts ?? [];
    this.numScalars = around?.numScalars ?? capture.scalars.length;
    this.lowered = lower(capture, target.hasTemplate);
    this.fuser = new Fuser(this.lowered, target.rule, fuse);
    // slot 0 is the arena, then the storages, then the outputs
    this.slots = [
      ...capture.storages.map((s, i) => ({ bytes: s.bytes, slot: 1 + i, offset: 0, label: `state ${i}` })),
      ...capture.roots.map((r, i) => ({
        bytes: bytesOf(r.shape, r.dtype),
        slot: 1 + capture.storages.length + i,
        offset: 0,
        label: `output ${i}`,
      })),
    ];
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

  private makeWorks(): void {
    for (const { assembler } of this.bodies.values()) assembler.makeWorks();
    this.fuser.run();
    const { groups } = this.fuser;
    if (this.fuse)
      for (const g of groups)
        if (g.opaque?.op === "contract") this.attach(g);
        else if (g.opaque) this.attachBehind(g, this.target.partsBehind?.(g.opaque) ?? []);
    for (const g of groups) if (!g.opaque && !this.host.has(g)) this.fuser.chooseSplit(g);
    const stored = this.fuser.storedMembers();
    const kernels = new Map<Group, GroupKernel>();
    for (const g of groups) if (!g.opaque) kernels.set(g, this.fuser.kernelOf(g, stored));
    this.findChecks();
    const copies = this.placeResults(kernels);
    const hosted = new Map([...this.host].map(([g, h]) => [h, g]));
    for (const g of groups) {
      if (g.opaque) this.opaque(g, hosted.get(g), kernels);
      else if (!this.host.has(g)) this.kernel(g, kernels.get(g) as GroupKernel);
    }
    this.stateOrder(copies);
  }

  // ---- buffers ----------------------------------------------------------------------------------------------------

  private buffer(n: GNode): Buffer {
    if (n.op === "buffer") return this.slots[n.storage];
    const [owner, k] = n.op === "output" ? [n.inputs[0], n.attrs["index"] as number] : [n, 0];
    return this.outputBuffer(owner, k);
  }

  private outputBuffer(n: GNode, k: number): Buffer {
    const key = `${n.id}:${k}`;
    let b = this.buffers.get(key);
    if (!b) {
      const { shape, dtype } = n.outputs ? n.outputs[k] : n;
      b = { bytes: bytesOf(shape, dtype), slot: -1, offset: 0, label: `%${n.id}` };
      this.buffers.set(key, b);
    }
    return b;
  }

  /** Results that go where the caller wants them as they are made; the rest are copied at the end. */
  private placeResults(kernels: ReadonlyMap<Group, GroupKernel>): { from: GNode; to: Buffer; state: boolean }[] {
    const copies: { from: GNode; to: Buffer; state: boolean }[] = [];
    const key = (n: GNode): string => (n.op === "output" ? `${n.inputs[0].id}:${n.attrs["index"]}` : `${n.id}:0`);
    const claimed = new Set<string>();
    this.lowered.roots.forEach((n, i) => {
      const to = this.slots[this.capture.storages.length + i];
      if (n.op === "buffer" || claimed.has(key(n)) || (isView(n) === true && !this.fuser.isMember(n)))
        copies.push({ from: n, to, state: false });
      else {
        claimed.add(key(n));
        this.buffers.set(key(n), to);
      }
    });
    for (const { storage, value } of this.lowered.assigns) {
      // the same memory as the old value, but what reads it must come after what writes it
      const to: Buffer = { ...this.slots[storage], label: `new state ${storage}` };
      if (value.op !== "buffer" && !claimed.has(key(value)) && this.inPlace(storage, value, kernels)) {
        claimed.add(key(value));
        this.buffers.set(key(value), to);
      } else if (value.op !== "buffer" || value.storage !== storage) copies.push({ from: value, to, state: true });
    }
    return copies;
  }

  private readonly inPlaceGroups = new Set<Group>();

  /** Whether the kernel that makes `value` may write it over the state: every other reader can go first. */
  private inPlace(storage: number, value: GNode, kernels: ReadonlyMap<Group, GroupKernel>): boolean {
    const group = this.fuser.groupOfNode(value);
    if (!group || (group.opaque && group.opaque.op !== "contract") || group.opaque?.shape.includes(0)) return false;
    const host = this.host.get(group) ?? group;
    const made = kernels.get(group);
    if (this.canFail(group) || made?.writes.some((w) => w.node === value && w.partial)) return false;
    const store = made && storeOf(made, value);
    if (made && !store) return false;
    const readers: Group[] = [];
    for (const g of this.fuser.groups) {
      const reads = g.opaque ? this.fuser.operandSources(g.opaque) : (kernels.get(g) as GroupKernel).reads;
      const mine = reads.filter((n) => n.op === "buffer" && n.storage === storage);
      if (!mine.length) {
        if (this.canFail(g) && g !== group) readers.push(g);
        continue;
      }
      if (g === group) {
        // a product writes while it still reads
        if (!made || !store) return false;
        if (!mine.every((n) => readsOnlyAt(made, made.reads.indexOf(n), store, value))) return false;
      } else readers.push(g);
    }
    for (const g of readers) {
      if (g === host) return false;
      for (const x of [g, this.host.get(g) ?? g])
        if (this.fuser.follows(x, group) || this.fuser.follows(x, host)) return false;
    }
    const first = new Set(readers.flatMap((g) => [g, this.host.get(g) ?? g]));
    this.fuser.order(first, group);
    if (host !== group) this.fuser.order(first, host);
    this.inPlaceGroups.add(group);
    this.extra.set(group, [...(this.extra.get(group) ?? []), ...readers]);
    return true;
  }

  private readonly extra = new Map<Group, Group[]>();

  /** Each run-time check and the first group that makes it. */
  private readonly firstCheck = new Map<string, Group>();

  private findChecks(): void {
    for (const g of this.fuser.groups)
      for (const check of this.checksOf(g)) if (!this.firstCheck.has(check)) this.firstCheck.set(check, g);
  }

  private checksOf(g: Group): Iterable<string> {
    if (!g.opaque) return this.fuser.checksOf(g);
    const n = g.opaque;
    const assembler = this.bodies.get(n)?.assembler;
    if (assembler) return assembler.fuser.groups.some((x) => assembler.canFail(x)) ? [`loop %${n.id}`] : [];
    return n.op === "scatter" ? [checkOf(n.inputs[1], n.shape[n.attrs["axis"] as number])] : [];
  }

  /** Whether a group may be the one that fails: what another group has checked before it can't. */
  private canFail(g: Group): boolean {
    for (const check of this.checksOf(g)) if (this.firstCheck.get(check) === g) return true;
    return false;
  }

  // ---- attaching kernels to products --------------------------------------------------------------------------------

  /** Looks for a group that can run on the finished rows of this product while they are in cache. */
  private attach(product: Group): void {
    const n = product.opaque as GNode;
    if (n.dtype !== "float32" || n.shape.length !== 2) return;
    const [rows, columns] = n.shape;
    if (rows < 16 || columns < 16) return;
    for (const g of this.guestsOf(product)) {
      if (!this.fuser.rebuild(g, rows, columns)) continue;
      if (!this.fuser.readsAtOwnPosition(g, n)) continue;
      this.attachTo(product, g);
      return;
    }
  }

  /** The groups that could run in this one's command, first come first. */
  private *guestsOf(host: Group): Iterable<Group> {
    for (const g of this.fuser.groups) {
      if (g.opaque || this.host.has(g) || !g.before.has(host)) continue;
      if (!g.built?.body.buffers.includes(host.opaque as GNode)) continue;
      if (![...g.before].some((b) => b !== host && b.before.has(host))) yield g;
    }
  }

  private attachTo(host: Group, guest: Group): void {
    this.host.set(guest, host);
    this.fuser.order(
      [...guest.before].filter((b) => b !== host),
      host,
    );
  }

  /** Into how many equal parts the result is cut for the group that runs behind a command. */
  private readonly parts = new Map<Group, number>();

  /** Looks for a group that can take this operation's result by equal parts: pooling behind a convolution, say. */
  private attachBehind(host: Group, choices: readonly number[]): void {
    const n = host.opaque as GNode;
    if (!choices.length) return;
    for (const g of this.guestsOf(host)) {
      const columns = n.shape[n.shape.length - 1];
      const { built } = g;
      this.fuser.rebuild(g, sizeOf(n.shape) / columns, columns);
      const parts = choices.find((k) => readsByBlocks(g, n, k));
      if (!parts) {
        g.built = built;
        continue;
      }
      this.parts.set(g, parts);
      this.attachTo(host, g);
      return;
    }
  }

  /** Whether a group alone reads what an operation makes. */
  private isOnlyReader(guest: Group, n: GNode): boolean {
    const { roots, assigns } = this.lowered;
    if (roots.includes(n) || assigns.some((a) => a.value === n)) return false;
    return this.fuser.groups.every(
      (g) => g === guest || !(g.opaque ? this.fuser.operandSources(g.opaque) : g.built?.body.buffers)?.includes(n),
    );
  }

  // ---- units ----------------------------------------------------------------------------------------------------------

  private errorBase(operation: string, checks: readonly Check[]): number {
    const base = this.failures.length + 1;
    for (const check of checks) this.failures.push({ operation, check });
    return base;
  }

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
    const size = kernel.rows * kernel.columns;
    const rows = form === "flat" ? Math.ceil(kernel.columns / FLAT_ROW) : kernel.rows;
    const grain = block ?? (form === "flat" ? 16 : rowGrain(kernel));
    this.kernelTexts.push(`${form} ${rows} rows by ${grain}; ${showKernel(kernel)}`);
    this.bytes += buffers.reduce((n, b) => n + b.bytes, 0);
    void size;
    return {
      fn: { source },
      rows,
      grain,
      buffers: buffers.map((b) => [b, 0]),
      scalars: made.scalars.map((s) => s.slot),
      params: [kernel.columns, this.errorBase("indexing", checks)],
      writesState,
    };
  }

  private kernel(group: Group, made: GroupKernel): void {
    if (
      made.kernel.rows === 0 ||
      (made.kernel.columns === 0 && chooseForm(made.kernel) === "flat") ||
      made.writes.length === 0
    )
      return;
    if (this.transpose(group, made)) return;
    const grain = rowGrain(made.kernel);
    const { buffers, finishes } = this.kernelBuffers(made, grain);
    const draft = this.draft(
      made,
      buffers,
      this.inPlaceGroups.has(group),
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
    const { members } = group;
    if (members.length !== 1 || this.inPlaceGroups.has(group) || dtypes[members[0].dtype].bytes !== 4) return false;
    let n = members[0];
    const inMemory = (x: GNode): boolean => x !== members[0] && this.fuser.isMember(x);
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
      const part: Buffer = {
        bytes: blocks * columns * dtypes[partDType(node.dtype)].bytes,
        slot: -1,
        offset: 0,
        label: `parts of %${node.id}`,
      };
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

  private opaque(group: Group, guest: Group | undefined, kernels: ReadonlyMap<Group, GroupKernel>): void {
    const n = group.opaque as GNode;
    if (sizeOf(n.shape) === 0 && !n.outputs) return;
    if (n.op === "loop") this.loop(group, n);
    else if (n.op === "contract") this.contract(group, n, guest, guest && (kernels.get(guest) as GroupKernel));
    else this.template(group, n, guest, guest && kernels.get(guest));
  }

  private contract(group: Group, n: GNode, guest: Group | undefined, made: GroupKernel | undefined): void {
    const [a, b] = [this.fuser.look(n, 0), this.fuser.look(n, 1)];
    const rank = n.shape.length;
    const K = n.inputs[0].shape[rank - 1];
    const plan = this.target.planContract({
      batch: n.shape.slice(0, rank - 2),
      M: n.shape[rank - 2],
      N: n.shape[rank - 1],
      K,
      a: { dtype: n.inputs[0].dtype, strides: a.strides },
      b: { dtype: n.inputs[1].dtype, strides: b.strides },
      out: n.dtype as "float32",
      hasPost: made !== undefined,
    });
    const out = this.buffer(n);
    this.scratchBytes = Math.max(this.scratchBytes, plan.scratchBytes);
    const packed: Buffer = { bytes: plan.packed, slot: -1, offset: 0, label: `packed for %${n.id}` };
    const bound: Readonly<Record<string, readonly [Buffer, number]>> = {
      a: [this.buffer(a.source), a.offset * dtypes[n.inputs[0].dtype].bytes],
      b: [this.buffer(b.source), b.offset * dtypes[n.inputs[1].dtype].bytes],
      packed: [packed, 0],
      out: [out, 0],
    };
    const flops = 2 * sizeOf(n.shape) * K;
    const plain = { scalars: [], writesState: false };
    const lead: Work[] = [];
    if (plan.pack) {
      const { pack } = plan;
      lead.push(
        this.work(
          `pack for %${n.id}`,
          [bound["b"][0]],
          [packed],
          {
            fn: pack.fn,
            rows: pack.rows,
            grain: pack.grain,
            params: pack.params,
            buffers: pack.buffers.map((x) => bound[x]),
            ...plain,
          },
          0,
        ),
      );
    }
    const main: Draft = {
      fn: plan.main.fn,
      rows: plan.main.rows,
      grain: plan.main.grain,
      params: plan.main.params,
      buffers: plan.main.buffers.map((x) => bound[x]),
      ...plain,
      writesState: this.inPlaceGroups.has(group),
    };
    const reads = [...main.buffers.map((x) => x[0]).filter((x) => x !== out)];
    const writes = [out];
    let finishes: (() => void)[] = [];
    let total = flops;
    if (guest && made) {
      const g = this.kernelBuffers(made, plan.rowBlock);
      finishes = g.finishes;
      const writesState = main.writesState || this.inPlaceGroups.has(guest);
      main.post = this.draft(made, g.buffers, writesState, plan.rowBlock, "columns");
      main.writesState = writesState;
      reads.push(...g.buffers.slice(0, made.reads.length).filter((x) => x !== out));
      writes.push(...g.buffers.slice(made.reads.length));
      total += made.kernel.flops;
    }
    const work = this.work(`contract %${n.id}`, reads, writes, main, total);
    work.lead.push(...lead);
    this.workOf.set(group, work);
    if (guest) this.workOf.set(guest, work);
    for (const finish of finishes) finish();
  }

  private template(group: Group, n: GNode, guest?: Group, made?: GroupKernel): void {
    const looks = n.inputs.map((_, i) => this.fuser.look(n, i));
    const base = this.errorBase(n.op, [{ kind: "index", extent: n.shape[(n.attrs["axis"] as number) ?? 0] }]);
    const behind = guest && made && this.behind(n, guest, made);
    const planned: Commands = this.target.planOpaque(n, looks, base, behind);
    const { fn, rows, grain } = planned.command;
    if (typeof fn === "object") this.kernelTexts.push(`own ${rows} rows by ${grain}; ${n.op}`);
    this.scratchBytes = Math.max(this.scratchBytes, planned.scratchBytes);
    const temporaries = (planned.temporaries ?? []).map(
      (bytes): Buffer => ({ bytes, slot: -1, offset: 0, label: `for %${n.id}` }),
    );
    const bind = ({ of, offset }: Operand): readonly [Buffer, number] => {
      if (of >= TEMPORARY) return [temporaries[of - TEMPORARY], 0];
      return of < 0
        ? [this.outputBuffer(n, -1 - of), 0]
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
        { fn, rows, grain, params, buffers: bound, scalars, writesState: false },
        flops,
      );
    };
    const lead = planned.lead && step(`pack for %${n.id}`, planned.lead, 0);
    const work = step(`${n.op} %${n.id}`, planned, planned.flops + (made?.kernel.flops ?? 0));
    if (lead) work.lead.push(lead);
    this.workOf.set(group, planned.finish ? step(`finish %${n.id}`, planned.finish, 0) : work);
    if (guest && made) this.runBehind(work, n, guest, made, planned.blockRows as number);
  }

  private behind(n: GNode, guest: Group, made: GroupKernel): Guest {
    const own: [number, number] = [made.reads.indexOf(n), made.reads.length + made.writes.length];
    return { parts: this.parts.get(guest) as number, own: this.isOnlyReader(guest, n) ? own : undefined };
  }

  /** Puts a group's kernel behind the tiles of a command, `blockRows` rows of the result each. */
  private runBehind(work: Work, n: GNode, guest: Group, made: GroupKernel, blockRows: number): void {
    const { kernel } = made;
    const grain = (kernel.rows * blockRows * n.shape[n.shape.length - 1]) / sizeOf(n.shape);
    const { buffers, finishes } = this.kernelBuffers(made, grain);
    const writesState = this.inPlaceGroups.has(guest);
    const result = this.buffer(n);
    // lanes along rows go in blocks that start at multiples of BLOCK
    const form = chooseForm(kernel) === "rows" && grain % BLOCK === 0 ? "rows" : "columns";
    work.draft.post = this.draft(made, buffers, writesState, grain, form);
    work.draft.writesState = writesState;
    work.reads.push(...buffers.slice(0, made.reads.length).filter((b) => b !== result));
    work.writes.push(...buffers.slice(made.reads.length));
    this.workOf.set(guest, work);
    for (const finish of finishes) finish();
  }

  // ---- loops --------------------------------------------------------------------------------------------------------------

  private loop(group: Group, n: GNode): void {
    const { body, assembler } = this.bodies.get(n) as { body: LoopBody; assembler: Assembler };
    const { attrs, live } = body;
    const made = assembler.bodyPhases(attrs.carries + attrs.sequences);
    const arena: Buffer = { bytes: made.bytes, slot: -1, offset: 0, label: `loop %${n.id}` };
    const looks = n.inputs.map((_, i) => this.fuser.look(n, i));
    const identity = {};
    const output = (k: number): Buffer => this.outputBuffer(n, k);
    const memory = { looks, output, arena, buffer: (x: GNode) => this.buffer(x) };
    const place = placesOf(n, body, memory, identity);
    const items = (list: readonly Item[]): Item[] => list.map((x) => placeItem(x, place, `loop %${n.id}: `));
    const copy = (label: string, i: number, from: Place, to: Place): Item => {
      const { main } = planCopy({ shape: [sizeOf(n.inputs[i].shape)], dtype: n.inputs[i].dtype, from: [1], to: [1] });
      const bound = { from, to };
      const { fn, rows, grain, params } = main;
      const buffers = main.buffers.map((x) => bound[x]);
      return { label, draft: { fn, rows, grain, params, buffers, scalars: [], writesState: false } };
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

  /**
   * The units of a loop's body in phases, `before` those that do the same in every iteration: they read nothing but captured
   * values (inputs from `firstCapture` on), so they run once.
   */
  private bodyPhases(firstCapture: number): { before: Work[][]; phases: Work[][]; bytes: number; flops: number } {
    const fixed = new Set<Buffer>(this.slots.slice(firstCapture, this.capture.storages.length));
    const once = new Set<Work>();
    for (let found = -1; found !== once.size; ) {
      found = once.size;
      for (const w of this.works) {
        if (once.has(w) || !w.reads.every((b) => fixed.has(b)) || !w.writes.every((b) => b.slot < 0)) continue;
        if (![...w.lead, ...w.after].every((x) => once.has(x))) continue;
        once.add(w);
        for (const b of w.writes) fixed.add(b);
      }
    }
    const rest = this.works.filter((w) => !once.has(w));
    for (const list of rest.flatMap((w) => [w.after, w.lead]))
      list.splice(0, list.length, ...list.filter((x) => !once.has(x)));
    const before = schedule([...once]);
    const phases = schedule(rest);
    // what is made once has to last through all iterations
    const lasting: Unit = { label: "", reads: [...once].flatMap((w) => w.writes), writes: [], after: [], lead: [] };
    const units: Unit[][] = [...before, ...phases];
    const bytes = planMemory([...units.slice(0, -1), [...(units.at(-1) ?? []), lasting]]);
    return { before, phases, bytes, flops: rest.reduce((sum, w) => sum + w.flops, 0) };
  }

  /** A literal in the program's scalar table, after the runtime scalars. */
  private constant(value: number): number {
    let i = this.constants.indexOf(value);
    if (i < 0) i = this.constants.push(value) - 1;
    return this.numScalars + i;
  }

  /** Copies to results and state, and the order that writes of state need. */
  private stateOrder(copies: readonly { from: GNode; to: Buffer; state: boolean }[]): void {
    const written = new Set(this.lowered.assigns.map((a) => a.storage));
    const isOld = (from: GNode): boolean => from.op === "buffer" && written.has(from.storage);
    /** Makes a copy of an old value come before whoever writes over it. */
    const beforeWriters = (work: Work): void => {
      for (const g of this.inPlaceGroups) this.workOf.get(g)?.after.push(work);
    };
    for (const { from, to, state } of copies) {
      if (state) continue;
      const work = this.copy(from, this.buffer(from), to, false);
      if (isOld(from)) beforeWriters(work);
    }
    const states = copies.filter((c) => c.state);
    const sources = states.map(({ from }) => {
      const source = this.buffer(from);
      if (!isOld(from)) return source;
      const aside: Buffer = { bytes: source.bytes, slot: -1, offset: 0, label: `old state ${from.storage}` };
      beforeWriters(this.copy(from, source, aside, false));
      return aside;
    });
    // a state is overwritten after everything else has read it, and only if nothing failed
    const everything = this.works.slice();
    states.forEach(({ from, to }, i) => {
      this.copy(from, sources[i], to, true).after.push(...everything);
    });
    for (const [group, readers] of this.extra) {
      const work = this.workOf.get(group);
      if (!work) continue; // nothing to compute: an axis is empty
      for (const r of readers) {
        const w = this.workOf.get(r);
        if (w && w !== work) work.after.push(w);
      }
    }
  }

  /**
   * NABLA_POISON=1: NaN (ones, in integers) in all temporaries and outputs before a run, and in every temporary after the
   * phase that needs it last, so that a value read too early or too late is seen.
   */
  private poison(phases: readonly (readonly Work[])[], arenaBytes: number): { first: Draft[]; after: Draft[][] } {
    const fill = (b: Buffer): Draft => {
      const { main } = planFill({ count: b.bytes, dtype: "uint8", bits: 255 });
      return { ...main, buffers: [[b, 0]], scalars: [], params: main.params ?? [], writesState: false };
    };
    const last = new Map<Buffer, number>();
    phases.forEach((phase, i) => {
      for (const w of phase) for (const b of [...w.reads, ...w.writes]) if (b.slot < 0) last.set(b, i);
    });
    const after = phases.map((_, i) => [...last].filter(([b, l]) => l === i && b.bytes > 0).map(([b]) => fill(b)));
    const whole: Buffer = { bytes: arenaBytes, slot: -1, offset: 0, label: "arena" };
    return {
      first: [whole, ...this.slots.slice(this.capture.storages.length)].filter((b) => b.bytes > 0).map(fill),
      after,
    };
  }

  private copy(n: GNode, from: Buffer, to: Buffer, writesState: boolean): Work {
    const strides = contiguousStrides(n.shape);
    const { main } = planCopy({ shape: n.shape, dtype: n.dtype, from: strides, to: strides });
    const bound = { from: [from, 0], to: [to, 0] } as const;
    const draft: Draft = {
      fn: main.fn,
      rows: main.rows,
      grain: main.grain,
      params: main.params,
      buffers: main.buffers.map((x) => bound[x]),
      scalars: [],
      writesState,
    };
    return this.work(`copy to ${to.label}`, [from], [to], draft, 0);
  }

  // ---- the table --------------------------------------------------------------------------------------------------------

  private assemble(): Parts {
    const phases = schedule(this.works);
    const arenaBytes = planMemory(phases);
    const builder = new ProgramBuilder();
    const fn = (f: Draft["fn"]): Command["fn"] => {
      if (typeof f !== "object") return f;
      let i = this.sources.get(f.source);
      if (i === undefined) {
        this.sources.set(f.source, (i = this.sources.size));
        this.owners.push(f.operation);
      }
      return i;
    };
    const moves = new Map<object, Move[]>();
    const where = ([b, offset]: Place): [number, number] => [Math.max(b.slot, 0), (b.slot < 0 ? b.offset : 0) + offset];
    const moving = (of: BufferName, [, , travels = []]: Place): void => {
      for (const { loop, stride, start } of travels) {
        let list = moves.get(loop);
        if (!list) moves.set(loop, (list = []));
        list.push({ of, stride, start: start && named(start) });
      }
    };
    const named = (place: Place): BufferName => {
      const name = builder.buffer(...where(place));
      moving(name, place);
      return name;
    };
    const emit = (d: Draft): number => {
      const post = d.post && emit(d.post);
      const command = builder.command({ ...d, fn: fn(d.fn), buffers: d.buffers.map(where), post });
      d.buffers.forEach((place, buffer) => {
        moving({ command, buffer }, place);
      });
      return command;
    };
    const labels: string[] = [];
    const emitPhase = (items: readonly Item[]): void => {
      const plain = items.filter((x) => !x.loop);
      if (plain.length)
        builder.phase(
          plain.map((x) => {
            const at = emit(x.draft);
            labels[at] = x.label;
            return at;
          }),
        );
      for (const { loop } of items) {
        if (!loop) continue;
        loop.before.forEach(emitPhase);
        const first = builder.numPhases;
        loop.phases.forEach(emitPhase);
        const last = builder.numPhases - 1;
        if (last >= first) builder.loop({ first, last, count: loop.count, moves: moves.get(loop.identity) ?? [] });
        emitPhase(loop.after);
      }
    };
    const poison = process.env["NABLA_POISON"] === "1" ? this.poison(phases, arenaBytes) : null;
    if (poison?.first.length) builder.phase(poison.first.map(emit));
    phases.forEach((phase, i) => {
      emitPhase(phase);
      if (poison?.after[i].length) builder.phase(poison.after[i].map(emit));
    });
    const numScalars = this.capture.scalars.length + this.constants.length;
    const table = builder.build({ numBuffers: 1 + this.slots.length, numScalars, scratchBytes: this.scratchBytes });
    const flops = this.works.reduce((n, w) => n + w.flops, 0);
    return {
      table,
      sources: [...this.sources.keys()],
      owners: this.owners,
      arenaBytes,
      numStorages: this.capture.storages.length,
      numOutputs: this.capture.roots.length,
      constants: this.constants,
      numScalars: this.capture.scalars.length,
      failures: this.failures,
      labels,
      stats: { kernels: this.works.length, flops, bytes: this.bytes, arenaBytes },
      texts: {
        graph: this.lowered.nodes.map(showNode).join("\n"),
        kernels: this.kernelTexts.join("\n\n"),
        memory: phases
          .map(
            (p, i) =>
              `phase ${i}\n${p.map((w) => `  ${w.label}: ${w.reads.map(showBuffer).join(" ")} -> ${w.writes.map(showBuffer).join(" ")}${w.loop ? showLoop(w.loop, "    ") : ""}`).join("\n")}`,
          )
          .join("\n"),
      },
    };
  }
}

/** The phases of a loop, a line each: what is done once before, in each iteration, once behind. */
function showLoop({ before, phases, after, count }: Loop, indent: string): string {
  const line = (when: string, items: readonly Item[]): string =>
    `\n${indent}${when}: ${items.map((x) => `${x.label.replace(/^.*: /, "")}${x.loop ? showLoop(x.loop, `${indent}  `) : ""}`).join(", ")}`;
  return [
    ...before.map((p) => line("before", p)),
    ...phases.map((p) => line(`${count} times`, p)),
    ...(after.length ? [line("behind", after)] : []),
  ].join("");
}

/** A unit of a loop's body with its buffers where they lie outside. */
function placeItem(item: Item, place: (b: Buffer) => Place, label: string): Item {
  const moved = ([b, offset, travels = []]: Place): Place => {
    const [to, at, own = []] = place(b);
    return [to, at + offset, [...travels.map((t) => ({ ...t, start: t.start && moved(t.start) })), ...own]];
  };
  const placed = (d: Draft): Draft => ({
    ...d,
    buffers: d.buffers.map(moved),
    ...(d.post && { post: placed(d.post) }),
  });
  const each = (list: readonly Item[]): Item[] => list.map((x) => placeItem(x, place, label));
  const { loop } = item;
  return {
    label: label + item.label,
    draft: placed(item.draft),
    ...(loop && {
      loop: { ...loop, before: loop.before.map(each), phases: loop.phases.map(each), after: each(loop.after) },
    }),
  };
}

const showNode = (n: GNode): string =>
  `%${n.id} = ${n.op} ${n.dtype}[${n.shape.join(", ")}] ${n.inputs.map((i) => `%${i.id}`).join(" ")}${Object.keys(n.attrs).length ? ` ${JSON.stringify(n.attrs)}` : ""}`;
const showBuffer = (b: Buffer): string => (b.slot < 0 ? `${b.label}@${b.offset}+${b.bytes}` : b.label);
