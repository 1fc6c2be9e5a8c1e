/**
 * Where the results of a program go: straight into what the caller brings where that can be, over the old state where all
 * that reads it can come first, else by a copy at the end. And which groups may be the ones that fail: they precede every
 * write of state, so that a failed run changes none. Groups and orders only; memory is schedule.ts, commands a backend's.
 */
import { readsOnlyAt, storeOf } from "./finish.ts";
import type { Fuser, Group, GroupKernel } from "./fuse.ts";
import type { GNode, Lowered } from "./lower.ts";
import { checkOf, isView } from "./views.ts";

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
  private readonly hostOf: (g: Group) => Group;
  /** Each run-time check and the first group that makes it. */
  private readonly firstCheck = new Map<string, Group>();

  /** `hostOf`: the group in whose command a group runs, itself if in its own. */
  constructor(
    fuser: Fuser,
    lowered: Lowered,
    kernels: ReadonlyMap<Group, GroupKernel>,
    hostOf: (g: Group) => Group = (g) => g,
  ) {
    this.fuser = fuser;
    this.kernels = kernels;
    this.hostOf = hostOf;
    for (const g of fuser.groups)
      for (const check of this.checksOf(g)) if (!this.firstCheck.has(check)) this.firstCheck.set(check, g);
    this.copies = this.place(lowered);
  }

  private checksOf(g: Group): Iterable<string> {
    if (!g.opaque) return this.fuser.checksOf(g);
    const n = g.opaque;
    return n.op === "scatter" ? [checkOf(n.inputs[1], n.shape[n.attrs["axis"] as number])] : [];
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
      if (from.op === "buffer" || this.targets.has(valueKey(from)) || (isView(from) && !this.fuser.isMember(from)))
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

  /** Whether the kernel that makes `value` may write it over the state; then all other readers of the state go first. */
  private overState(storage: number, value: GNode): boolean {
    const { fuser, kernels } = this;
    const group = fuser.groupOfNode(value);
    if (!group || group.opaque) return false;
    const host = this.hostOf(group);
    const made = kernels.get(group) as GroupKernel;
    if (this.canFail(group) || made.writes.some((w) => w.node === value && w.partial)) return false;
    const store = storeOf(made, value);
    if (!store) return false;
    const first: Group[] = [];
    for (const g of fuser.groups) {
      const reads = g.opaque ? fuser.operandSources(g.opaque) : (kernels.get(g) as GroupKernel).reads;
      const mine = reads.filter((n) => n.op === "buffer" && n.storage === storage);
      if (!mine.length) {
        if (this.canFail(g) && g !== group) first.push(g);
      } else if (g !== group) first.push(g);
      else if (!mine.every((n) => readsOnlyAt(made, made.reads.indexOf(n), store, value))) return false;
    }
    const blocks = (g: Group): boolean => fuser.follows(g, group) || fuser.follows(g, host);
    if (first.some((g) => g === host || blocks(g) || blocks(this.hostOf(g)))) return false;
    const hosts = new Set(first.flatMap((g) => [g, this.hostOf(g)]));
    fuser.order(hosts, group);
    if (host !== group) fuser.order(hosts, host);
    this.inPlace.set(group, [...(this.inPlace.get(group) ?? []), ...first]);
    return true;
  }
}
