/**
 * Where the results of a program go: straight into what the caller brings where that can be, over the old state where all
 * that reads it can come first, else by a copy at the end. And which groups may be the ones that fail: they precede every
 * write of state, so that a failed run changes none. Groups and orders only; memory is schedule.ts, commands a backend's.
 */
import { readsOnlyAt, storeOf } from "./finish.ts";
import type { Fuser, Group, GroupKernel } from "./fuse.ts";
import type { GNode, Lowered } from "./lower.ts";
import type { Buffer } from "./schedule.ts";
import { checkOf, isView } from "./views.ts";

/** What the placement asks of a backend. */
export interface Commands {
  /** The group in whose command a group runs, itself if in its own. */
  readonly hostOf: (g: Group) => Group;
  /** What an operation that runs by itself checks at run time; default: `opaqueChecks`. */
  readonly checksOf?: (n: GNode) => Iterable<string>;
  /** Whether an operation that runs by itself may write over a state that it does not read; default: none. */
  readonly overwrites?: (n: GNode) => boolean;
  /** Whether it may do so with a state that is its first operand, of which it leaves in place what it does not write; default: none. */
  readonly updates?: (n: GNode) => boolean;
}

/** The checks of the operations that every backend runs by itself. */
export const opaqueChecks = (n: GNode): string[] =>
  n.op === "scatter" ? [checkOf(n.inputs[1], n.shape[n.attrs["axis"] as number])] : [];

/** Memory that the caller brings. */
export type Target = { readonly kind: "output" | "state"; readonly index: number };

export interface Copy {
  readonly from: GNode;
  readonly to: Target;
}

/** The number of a value: an operation's node and which of its outputs. */
export const valueKey = (n: GNode): string =>
  n.op === "output" ? `${n.inputs[0].id}:${n.attrs["index"]}` : `${n.id}:0`;

export class Placement {
  /** Values that are made where they are wanted. */
  readonly targets = new Map<string, Target>();
  /** Values that are copied at the end: outputs, then states. */
  readonly copies: readonly Copy[];
  /** Groups that write over a state, and the groups that must be done before each. */
  readonly inPlace = new Map<Group, Group[]>();
  private readonly fuser: Fuser;
  private readonly kernels: ReadonlyMap<Group, GroupKernel>;
  private readonly commands: Commands;
  /** Each run-time check and the first group that makes it. */
  private readonly firstCheck = new Map<string, Group>();

  constructor(fuser: Fuser, lowered: Lowered, kernels: ReadonlyMap<Group, GroupKernel>, commands: Commands) {
    this.fuser = fuser;
    this.kernels = kernels;
    this.commands = commands;
    for (const g of fuser.groups)
      for (const check of this.checksOf(g)) if (!this.firstCheck.has(check)) this.firstCheck.set(check, g);
    this.copies = this.place(lowered);
  }

  private checksOf(g: Group): Iterable<string> {
    if (!g.opaque) return this.fuser.checksOf(g);
    return (this.commands.checksOf ?? opaqueChecks)(g.opaque);
  }

  /** Whether a group may be the one that fails: what another group has checked before it can't. */
  canFail(g: Group): boolean {
    for (const check of this.checksOf(g)) if (this.firstCheck.get(check) === g) return true;
    return false;
  }

  private place({ roots, assigns }: Lowered): Copy[] {
    const copies: Copy[] = [];
    roots.forEach((from, index) => {
      const to: Target = { kind: "output", index };
      if (from.op === "buffer" || this.targets.has(valueKey(from)) || (isView(from) && !this.fuser.members.has(from)))
        copies.push({ from, to });
      else this.targets.set(valueKey(from), to);
    });
    for (const { storage, value } of assigns) {
      const to: Target = { kind: "state", index: storage };
      if (value.op !== "buffer" && !this.targets.has(valueKey(value)) && this.overState(storage, value))
        this.targets.set(valueKey(value), to);
      else if (value.op !== "buffer" || value.storage !== storage) copies.push({ from: value, to });
    }
    return copies;
  }

  /** Whether the command that makes `value` may write it over the state; then all other readers of the state go first. */
  private overState(storage: number, value: GNode): boolean {
    const { fuser, kernels } = this;
    const { hostOf, overwrites, updates } = this.commands;
    const group = fuser.groupOfNode(value);
    if (!group || this.canFail(group)) return false;
    const { opaque } = group;
    const isUpdate = opaque !== null && updates?.(opaque) === true && isState(opaque.inputs[0], storage);
    if (opaque && !isUpdate && !overwrites?.(opaque)) return false;
    const host = hostOf(group);
    const made = kernels.get(group);
    const store = made && storeOf(made, value);
    if (made && (!store || made.writes.some((w) => w.node === value && w.partial))) return false;
    const first: Group[] = [];
    for (const g of fuser.groups) {
      const reads = isUpdate && g === group ? readsOf(fuser, g, kernels).slice(1) : readsOf(fuser, g, kernels);
      const mine = reads.filter((n) => isState(n, storage));
      if (g !== group) {
        if (mine.length || this.canFail(g)) first.push(g);
        continue;
      }
      // an operation that runs by itself writes while it still reads
      if (mine.length && (!made || !store)) return false;
      if (made && store && !mine.every((n) => readsOnlyAt(made, made.reads.indexOf(n), store, value))) return false;
    }
    const blocks = (g: Group): boolean => fuser.follows(g, group) || fuser.follows(g, host);
    if (first.some((g) => g === host || blocks(g) || blocks(hostOf(g)))) return false;
    const hosts = new Set(first.flatMap((g) => [g, hostOf(g)]));
    fuser.order(hosts, group);
    if (host !== group) fuser.order(hosts, host);
    this.inPlace.set(group, [...(this.inPlace.get(group) ?? []), ...first]);
    return true;
  }
}

const isState = (n: GNode, storage: number): boolean => n.op === "buffer" && n.storage === storage;

const readsOf = (fuser: Fuser, g: Group, kernels: ReadonlyMap<Group, GroupKernel>): readonly GNode[] =>
  g.opaque ? fuser.members.operandSources(g.opaque) : (kernels.get(g) as GroupKernel).reads;

/** What the units of a backend are made with, for the copies that a placement leaves. */
export interface Copying<W> {
  /** All units so far; `copy` adds to them. */
  readonly works: readonly W[];
  readonly workOf: ReadonlyMap<Group, W>;
  readonly buffer: (n: GNode) => Buffer;
  readonly target: (to: Target) => Buffer;
  readonly temporary: (bytes: number, label: string) => Buffer;
  /** The unit that copies a value; one that writes state does nothing once a check has failed. */
  readonly copy: (n: GNode, from: Buffer, to: Buffer, writesState: boolean) => W;
}

/** Makes the units of these copies, and gives all units the order that writes of state need. */
export function orderStates<W extends { readonly after: W[] }>(
  copies: readonly Copy[],
  inPlace: ReadonlyMap<Group, readonly Group[]>,
  { assigns }: Lowered,
  { works, workOf, buffer, target, temporary, copy }: Copying<W>,
): void {
  const overwritten = new Set(assigns.map((a) => a.storage));
  const isOld = (n: GNode): boolean => n.op === "buffer" && overwritten.has(n.storage);
  /** Makes a copy of an old value come before whoever writes over it. */
  const beforeWriters = (work: W): void => {
    for (const g of inPlace.keys()) workOf.get(g)?.after.push(work);
  };
  for (const { from, to } of copies) {
    if (to.kind === "state") continue;
    const work = copy(from, buffer(from), target(to), false);
    if (isOld(from)) beforeWriters(work);
  }
  const states = copies.filter((c) => c.to.kind === "state");
  // an old value that another state takes is put aside before that value is written over
  const sources = states.map(({ from }) => {
    const source = buffer(from);
    if (!isOld(from)) return source;
    const aside = temporary(source.bytes, `old state ${from.storage}`);
    beforeWriters(copy(from, source, aside, false));
    return aside;
  });
  // a state is overwritten after everything else has read it, and only if nothing failed
  const everything = works.slice();
  states.forEach(({ from, to }, i) => {
    copy(from, sources[i], target(to), true).after.push(...everything);
  });
  for (const [group, first] of inPlace) {
    const work = workOf.get(group);
    if (!work) continue; // nothing to compute: an axis is empty
    for (const g of first) {
      const w = workOf.get(g);
      if (w && w !== work) work.after.push(w);
    }
  }
}
