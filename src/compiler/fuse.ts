/**
 * The fuser: which of the nodes that lie in memory one kernel computes together (groups).
 *
 * 1. Members are the nodes that lie in memory and are no operation's that runs by itself (`members.ts`).
 * 2. A group has one domain, rows × columns. A member joins a group if it reads every other member of the group at the
 *    same row and column (or is a reduction over exactly the columns, or over exactly the rows), and no path leaves the
 *    group and comes back. Siblings that share a source join too.
 * 3. A group becomes one kernel (`kernel.ts`): stages follow from which reduction a value needs.
 */
import { sizeOf } from "../core/shape.ts";
import { type Domain, domainFor, domainOf, flatDomain, reductionParts, reductions } from "./domain.ts";
import { add, axis, delinearize, type Index, isUniform, linearize, scale, stepAlong } from "./index-expr.ts";
import {
  type ColumnReduction,
  type Kernel,
  partDType,
  type Reduction,
  reachable,
  type Stage,
  type Store,
  type Value,
} from "./kernel.ts";
import type { GNode, Lowered } from "./lower.ts";
import { LARGE, Members, type OpaqueRule } from "./members.ts";
import { Body, misaligned } from "./views.ts";

/** Where the rule names no limit; every member counts as written. */
const MAX_BUFFERS = 28;

export type MemberKind = "full" | "row" | "reduction" | "column";

export class Group {
  members: GNode[];
  /** Groups that must run before this one. */
  readonly before = new Set<Group>();
  readonly opaque: GNode | null;
  built: Built | null;
  constructor(members: GNode[], opaque: GNode | null, built: Built | null) {
    this.members = members;
    this.opaque = opaque;
    this.built = built;
  }
}

interface Built {
  readonly domain: Domain;
  readonly body: Body;
  readonly entries: readonly Entry[];
}

interface Entry {
  readonly node: GNode;
  readonly kind: MemberKind;
  readonly value: Value;
  readonly at: Index;
}

/** The kernel of a group and what its buffers and scalars are. */
export interface GroupKernel {
  readonly kernel: Kernel;
  readonly reads: readonly GNode[];
  /** Nodes written, in buffer order after the reads; `partial` ones hold one part a block of rows. */
  readonly writes: readonly { readonly node: GNode; readonly partial: Reduction["op"] | null }[];
  readonly scalars: readonly GNode[];
}

export class Fuser {
  private readonly lowered: Lowered;
  private readonly rule: OpaqueRule;
  private readonly fuse: boolean;
  readonly members: Members;
  private readonly groupOf = new Map<GNode, Group>();
  readonly groups: Group[] = [];

  constructor(lowered: Lowered, rule: OpaqueRule, fuse: boolean) {
    this.lowered = lowered;
    this.rule = rule;
    this.fuse = fuse;
    this.members = new Members(lowered, rule, fuse);
  }

  run(): void {
    if (this.rule.maxBuffers !== undefined) this.findReaders();
    for (const n of this.lowered.nodes) {
      if (this.rule.isOpaque(n)) this.addOpaque(n);
      else if (this.members.has(n)) this.place(n);
    }
  }

  private groupFor(n: GNode): Group {
    const owner = n.op === "output" ? n.inputs[0] : n;
    return this.groupOf.get(owner) as Group;
  }

  private addOpaque(n: GNode): void {
    const group = new Group([n], n, null);
    this.add(group, this.members.sources(n));
    this.groupOf.set(n, group);
  }

  private add(group: Group, sources: ReadonlySet<GNode>): void {
    this.groups.push(group);
    this.addSources(group, sources);
  }

  private addSources(group: Group, sources: ReadonlySet<GNode>): void {
    for (const s of sources) {
      const g = this.groupFor(s);
      if (g === group) continue;
      for (const b of [g, ...g.before]) group.before.add(b);
    }
    // whatever already follows the group now follows the group's sources too
    for (const g of this.groups) if (g.before.has(group)) for (const b of group.before) g.before.add(b);
  }

  private place(n: GNode): void {
    const sources = this.members.sources(n);
    const group = this.fuse ? this.join(n, sources) : null;
    if (group) {
      group.members.push(n);
      this.groupOf.set(n, group);
      this.addSources(group, sources);
      return;
    }
    const fresh = new Group([n], null, this.build([n]));
    this.groupOf.set(n, fresh);
    this.add(fresh, sources);
  }

  /** Whether a kernel of these members has few enough buffers. */
  private fits(built: Built, members: readonly GNode[]): boolean {
    const { maxBuffers } = this.rule;
    const reads = built.body.buffers.length;
    if (maxBuffers === undefined) return reads + members.length - 1 <= MAX_BUFFERS;
    const own = new Set(members);
    const isWritten = ({ node, kind }: Entry): boolean =>
      kind === "column" || this.members.requested.has(node) || (this.readers.get(node) ?? []).some((r) => !own.has(r));
    return reads + built.entries.filter(isWritten).length <= maxBuffers;
  }

  /** Who reads a member from memory, unless they share its kernel. */
  private readonly readers = new Map<GNode, GNode[]>();

  private findReaders(): void {
    for (const n of this.lowered.nodes) {
      if (!this.members.has(n) && !this.rule.isOpaque(n)) continue;
      for (const s of this.members.sources(n)) {
        const list = this.readers.get(s);
        if (list) list.push(n);
        else this.readers.set(s, [n]);
      }
    }
  }

  private join(n: GNode, sources: ReadonlySet<GNode>): Group | null {
    const tried = new Set<Group>();
    const attempt = (g: Group): Group | null => {
      if (tried.has(g) || g.opaque) return null;
      tried.add(g);
      for (const s of sources) {
        const owner = this.groupFor(s);
        if (owner !== g && owner.before.has(g)) return null;
      }
      const built = this.extend(g, n);
      if (!built || !this.fits(built, [...g.members, n])) return null;
      g.built = built;
      return g;
    };
    const producers = [...new Set([...sources].map((s) => this.groupFor(s)))].sort(
      (a, b) => this.groups.indexOf(b) - this.groups.indexOf(a),
    );
    const merged = this.merge(n, sources, producers);
    if (merged) return merged;
    for (const g of producers) {
      const found = this.addsProducts(n, sources, g) ? null : attempt(g);
      if (found) return found;
    }
    // siblings: the same size and a source in common
    const size = this.workSize(n);
    const leaves = this.members.leafReads(n);
    for (let i = this.groups.length - 1; i >= Math.max(0, this.groups.length - 64); i--) {
      const g = this.groups[i];
      if (g.opaque || !g.built || this.workSize(g.members[0]) !== size) continue;
      const shared = g.built.body.buffers.some((b) => sources.has(b) || leaves.has(b));
      if (!shared || this.apart(g, [...sources])) continue;
      const found = attempt(g);
      if (found) return found;
    }
    return null;
  }

  /**
   * Whether a group and what reads `sources` each read a large value that the other does not: together they would hold both at once, where one after
   * the other each can go as soon as it has been read.
   */
  private apart(group: Group, sources: readonly GNode[]): boolean {
    const large = (list: readonly GNode[], other: readonly GNode[]): boolean =>
      list.some((n) => n.op !== "buffer" && sizeOf(n.shape) >= LARGE && !other.includes(n));
    const own = group.built?.body.buffers ?? [];
    return large(own, sources) && large(sources, own);
  }

  /**
   * Whether `n` adds a large product to a sum of large products that a group makes (a gradient, chunk by chunk): each is to be added when it is
   * there, and gone then.
   */
  private addsProducts(n: GNode, sources: ReadonlySet<GNode>, group: Group): boolean {
    const isProduct = (s: GNode): boolean => s.op === "contract" && sizeOf(s.shape) >= LARGE;
    return n.op === "add" && [...sources].some(isProduct) && (group.built?.body.buffers.some(isProduct) ?? false);
  }

  /** Puts groups that `n` reads, of the same rows and columns, together with it in one. */
  private merge(n: GNode, sources: ReadonlySet<GNode>, producers: readonly Group[]): Group | null {
    const last = producers.find((g) => g.built && g.members.some((m) => m.op in reductions));
    if (!last) return null;
    const together = new Set(producers.filter((g) => g.built && g.built.domain.key === last.built?.domain.key));
    const outside = [...sources].map((s) => this.groupFor(s)).filter((g) => !together.has(g));
    for (const g of together) outside.push(...[...g.before].filter((b) => !together.has(b)));
    if (together.size < 2 || [...together].some((g) => g !== last && this.apart(g, last.built?.body.buffers ?? [])))
      return null;
    if (outside.some((x) => [...together].some((g) => x.before.has(g)))) return null;
    const members = [...together].flatMap((g) => g.members).sort((a, b) => a.id - b.id);
    const built = this.build([...members, n]);
    if (!built || !this.fits(built, [...members, n])) return null;
    last.members = members;
    last.built = built;
    for (const m of members) this.groupOf.set(m, last);
    for (const x of outside) last.before.add(x);
    for (const g of together) {
      last.before.delete(g);
      if (g !== last) this.groups.splice(this.groups.indexOf(g), 1);
    }
    for (const g of this.groups) {
      if (g === last || ![...together].some((t) => g.before.has(t))) continue;
      for (const t of together) g.before.delete(t);
      for (const b of [last, ...last.before]) g.before.add(b);
    }
    return last;
  }

  private workSize(n: GNode): number {
    return sizeOf(n.op in reductions ? n.inputs[0].shape : n.shape);
  }

  /** The members as one kernel body, or null where they can't be one. */
  build(members: readonly GNode[], forced?: Domain): Built | null {
    const domain = forced ?? domainFor(members);
    return domain && this.compute({ domain, body: new Body(this.members.isBoundary), entries: [] }, members);
  }

  /** What `build` gives for the group's members and `n`; where the domain stays, only `n` is computed anew. */
  private extend({ members, built }: Group, n: GNode): Built | null {
    const more = [...members, n];
    const domain = domainFor(more);
    if (!domain) return null;
    if (!built || built.domain.key !== domain.key) return this.build(more, domain);
    return this.compute({ domain: built.domain, body: built.body.fork(), entries: built.entries.slice() }, [n]);
  }

  /** `built` with these members computed in its body too, or null where they can't be. */
  private compute(built: { domain: Domain; body: Body; entries: Entry[] }, members: readonly GNode[]): Built | null {
    const { domain, body, entries } = built;
    const { rows, columns } = domain;
    const r = axis("r", rows);
    const c = axis("c", columns);
    try {
      for (const n of members) {
        if (n.op in reductions) {
          const x = n.inputs[0];
          const parts = reductionParts(n);
          const isColumn = parts.kind === "column" && parts.rows === columns && parts.columns === rows;
          const isRow = !isColumn && parts.rows === rows && parts.columns === columns;
          if (!isColumn && !isRow) return null;
          if (parts.kind === "mixed" ? domainOf(n).key !== domain.key : x.shape.join(",") === domain.own) return null;
          const value = body.at(x, domain.full(x.shape));
          if (isColumn) {
            body.declare(n, null, c);
            entries.push({ node: n, kind: "column", value, at: c });
          } else {
            const result = body.values.reduction(value, value.dtype);
            const at = linearize(delinearize(r, n.shape), n.shape);
            body.declare(n, result, at);
            entries.push({ node: n, kind: "reduction", value, at });
          }
          continue;
        }
        const size = sizeOf(n.shape);
        if (size === rows * columns) {
          const where = domain.full(n.shape);
          const value = body.compute(n, where);
          const at = linearize(where, n.shape);
          body.declare(n, value, at);
          entries.push({ node: n, kind: "full", value, at });
        } else if (size === rows) {
          const where = delinearize(r, n.shape);
          const value = body.compute(n, where);
          const at = linearize(where, n.shape);
          body.declare(n, value, at);
          entries.push({ node: n, kind: "row", value, at });
        } else return null;
      }
    } catch (error) {
      if (error === misaligned) return null;
      throw error;
    }
    return built;
  }

  /** Tries a given rows × columns for a group; used where a product's rows are the group's rows. */
  rebuild(group: Group, rows: number, columns: number): boolean {
    if (group.built?.domain.rows === rows && group.built.domain.columns === columns) return true;
    if (group.members.some((n) => n.op in reductions)) return false;
    const built = this.build(group.members, flatDomain(rows, columns));
    if (built) group.built = built;
    return built !== null;
  }

  /** Of purely elementwise groups: the split of the positions into rows and columns that reads most simply. */
  chooseSplit(group: Group): void {
    if (!group.built || group.members.some((n) => n.op in reductions)) return;
    const size = group.built.domain.columns * group.built.domain.rows;
    const candidates = new Set<number>();
    for (const n of [...group.members, ...group.built.body.buffers])
      for (let i = n.shape.length - 1, k = 1; i >= 0; i--) if (size % (k *= n.shape[i]) === 0) candidates.add(k);
    let best = score(group.built);
    for (const columns of [...candidates].sort((a, b) => b - a)) {
      if (best === 0 || columns === size || columns < 2) continue;
      const built = this.build(group.members, flatDomain(size / columns, columns));
      if (!built) continue;
      const s = score(built) + (columns < 16 ? 16 / columns : columns < 64 ? 0.1 : 0);
      if (s < best) {
        best = s;
        group.built = built;
      }
    }
  }

  /** What a group's kernel checks at run time. */
  checksOf(group: Group): ReadonlySet<string> {
    return (group.built as Built).body.checked;
  }

  groupOfNode(n: GNode): Group | undefined {
    return this.groupOf.get(n);
  }

  /** Whether `later` must run after `earlier`. */
  follows(later: Group, earlier: Group): boolean {
    return later.before.has(earlier);
  }

  /** Makes `later` run after each of `earlier`. */
  order(earlier: Iterable<Group>, later: Group): void {
    const added: Group[] = [];
    for (const e of earlier)
      for (const b of [e, ...e.before])
        if (!later.before.has(b)) {
          later.before.add(b);
          added.push(b);
        }
    if (added.length) for (const g of this.groups) if (g.before.has(later)) for (const b of added) g.before.add(b);
  }

  /** Whether a group reads `n` only where it computes: at row r, column c. */
  readsAtOwnPosition(group: Group, n: GNode): boolean {
    const { domain, body, entries } = group.built as Built;
    const own = add(scale(axis("r", domain.rows), domain.columns), axis("c", domain.columns)).key;
    const slot = body.buffers.indexOf(n);
    for (const v of reachable(entries.map((e) => e.value)))
      if (v.kind === "load" && v.slot === slot && v.index?.key !== own) return false;
    return true;
  }

  /** Members that another group, an opaque operation or the caller reads, and which therefore lie in memory. */
  storedMembers(): Set<GNode> {
    const stored = new Set<GNode>(this.members.requested);
    for (const g of this.groups) {
      if (g.opaque) for (const s of this.members.sources(g.opaque)) stored.add(s);
      else for (const b of (g.built as Built).body.buffers) stored.add(b);
    }
    return stored;
  }

  kernelOf(group: Group, stored: ReadonlySet<GNode>): GroupKernel {
    const { domain, body, entries } = group.built as Built;
    const reads = body.buffers.slice();
    const writes: { node: GNode; partial: Reduction["op"] | null }[] = [];
    const buffers = reads.map((n) => ({ dtype: n.dtype, written: false }));
    const stages: { stores: Store[]; reductions: Reduction[]; columns: ColumnReduction[]; rowStores: Store[] }[] = [];
    const stage = (i: number) => {
      while (stages.length <= i) stages.push({ stores: [], reductions: [], columns: [], rowStores: [] });
      return stages[i];
    };
    const output = (node: GNode, partial: Reduction["op"] | null): number => {
      writes.push({ node, partial });
      return buffers.push({ dtype: partial ? partDType(node.dtype) : node.dtype, written: true }) - 1;
    };
    let reduction = 0;
    let flops = 0;
    for (const { node, kind, value, at } of entries) {
      const count = value.along & 2 || kind === "full" ? domain.rows * domain.columns : domain.rows;
      flops += count * Math.min(value.cost + (kind === "reduction" || kind === "column" ? 1 : 0), 64);
      if (kind === "column") {
        const op = reductions[node.op];
        stage(value.stage).columns.push({ op, value, buffer: output(node, op) });
      } else if (kind === "reduction") {
        const slot = reduction++;
        stage(value.stage).reductions.push({ op: reductions[node.op], value, dtype: value.dtype, slot });
        if (stored.has(node)) {
          const result = body.values.make({ kind: "reduced", dtype: value.dtype, slot });
          stage(value.stage + 1).rowStores.push({ buffer: output(node, null), index: at, value: result });
        }
      } else if (stored.has(node)) {
        const store = { buffer: output(node, null), index: at, value };
        if (kind === "row") stage(value.stage).rowStores.push(store);
        else stage(value.stage).stores.push(store);
      }
    }
    const scalars = body.scalars.map((s) => s.dtype);
    const kernel: Kernel = {
      rows: domain.rows,
      columns: domain.columns,
      buffers,
      scalars,
      stages: stages as Stage[],
      canFail: body.checked.size > 0,
      flops,
    };
    return { kernel, reads, writes, scalars: body.scalars };
  }
}

/** How many reads (and writes) do not move one by one along the columns; 0 is best. */
function score(built: Built): number {
  let bad = 0;
  for (const v of reachable(built.entries.map((e) => e.value))) {
    if (v.index) {
      const step = stepAlong(v.index, "c");
      if (v.kind === "load" && step !== 0 && step !== 1) bad += step === null ? 2 : 1;
      else if (v.kind !== "load" && step === null) bad += 1;
    }
    for (const c of v.valid) if (!isUniform(c.index, c.lo, c.hi, "c")) bad += 0.25;
  }
  for (const e of built.entries) if (stepAlong(e.at, "c") !== 1) bad += 1;
  return bad;
}
