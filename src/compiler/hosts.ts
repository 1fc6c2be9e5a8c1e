/**
 * Which groups run in another's command: the kernel of a guest on what a host (a product, a convolution) has just computed,
 * while it is at hand. Says who could, and keeps who does; whether a kernel fits behind a command is for the backend to judge.
 */
import type { Fuser, Group } from "./fuse.ts";
import type { GNode, Lowered } from "./lower.ts";

export class Hosts {
  private readonly fuser: Fuser;
  private readonly lowered: Lowered;
  private readonly hosts = new Map<Group, Group>();
  private readonly guests = new Map<Group, Group>();

  constructor(fuser: Fuser, lowered: Lowered) {
    this.fuser = fuser;
    this.lowered = lowered;
  }

  isGuest(g: Group): boolean {
    return this.hosts.has(g);
  }

  /** The group in whose command a group runs, itself if in its own. */
  readonly hostOf = (g: Group): Group => this.hosts.get(g) ?? g;

  guestOf(host: Group): Group | undefined {
    return this.guests.get(host);
  }

  /** The groups that could run in this one's command, first come first. */
  *candidates(host: Group): Iterable<Group> {
    for (const g of this.fuser.groups) {
      if (g.opaque || this.isGuest(g) || !g.before.has(host)) continue;
      if (!g.built?.body.buffers.includes(host.opaque as GNode)) continue;
      if (![...g.before].some((b) => b !== host && b.before.has(host))) yield g;
    }
  }

  attach(host: Group, guest: Group): void {
    this.hosts.set(guest, host);
    this.guests.set(host, guest);
    const others = [...guest.before].filter((b) => b !== host);
    this.fuser.order(others, host);
  }

  /** Whether a group alone reads what an operation makes, so that it need not lie in memory. */
  isOnlyReader(guest: Group, n: GNode): boolean {
    const { roots, assigns } = this.lowered;
    if (roots.includes(n) || assigns.some((a) => a.value === n)) return false;
    return this.fuser.groups.every(
      (g) =>
        g === guest || !(g.opaque ? this.fuser.members.operandSources(g.opaque) : g.built?.body.buffers)?.includes(n),
    );
  }
}
