/**
 * Order and memory: units of work into phases (the units of one phase may run side by side), and the temporaries of a
 * program into one arena. Knows nothing of what a unit does.
 */

export interface Buffer {
  readonly bytes: number;
  /** ≥ 0: memory that the caller brings; −1: a temporary of the arena. */
  readonly slot: number;
  /** Place in the arena, once planned. */
  offset: number;
  readonly label: string;
}

export interface Unit {
  readonly label: string;
  readonly reads: readonly Buffer[];
  readonly writes: readonly Buffer[];
  /** Units that must be done before, beside those that write what this one reads. */
  readonly after: readonly Unit[];
  /** Units that only prepare this one's operands; they run one phase before it, beside other work. */
  readonly lead: readonly Unit[];
}

const ALIGNMENT = 64;

/** Units in phases: each after what it needs; among those ready, one that frees memory, else the oldest. */
export function schedule<U extends Unit>(all: readonly U[]): U[][] {
  const leads = new Set<Unit>(all.flatMap((u) => u.lead));
  const units = all.filter((u) => !leads.has(u));
  const writer = new Map<Buffer, Unit>();
  const whole = new Map<Unit, U>();
  for (const u of units) {
    whole.set(u, u);
    for (const l of u.lead) whole.set(l, u);
    for (const b of u.writes) writer.set(b, u);
  }
  const index = new Map<Unit, number>(units.map((u, i) => [u, i]));
  /** The units that `u` alone waits for. */
  const needsOf = (u: Unit, self: Unit): Set<number> => {
    const set = new Set<number>();
    for (const b of u.reads) {
      const w = writer.get(b);
      if (w && w !== self) set.add(index.get(w) as number);
    }
    for (const a of u.after) {
      const w = whole.get(a) as Unit;
      if (w !== self) set.add(index.get(w) as number);
    }
    return set;
  };
  const needs = units.map((u) => new Set([u, ...u.lead].flatMap((x) => [...needsOf(x, u)])));
  const followers: number[][] = units.map(() => []);
  needs.forEach((set, i) => {
    for (const n of set) followers[n].push(i);
  });
  const waiting = needs.map((s) => s.size);
  const readers = new Map<Buffer, number>();
  const readsOf = (u: U): Set<Buffer> =>
    new Set([...u.reads, ...u.lead.flatMap((l) => l.reads)].filter((b) => b.slot < 0));
  for (const u of units) for (const b of readsOf(u)) readers.set(b, (readers.get(b) ?? 0) + 1);
  const ready = new Set<number>();
  waiting.forEach((n, i) => {
    if (n === 0) ready.add(i);
  });
  const gain = (u: U): number => {
    let bytes = 0;
    for (const b of readsOf(u)) if (readers.get(b) === 1) bytes += b.bytes;
    for (const b of u.writes) if (b.slot < 0) bytes -= b.bytes;
    return Math.max(0, bytes);
  };
  const phases: U[][] = [];
  const phaseOf = new Array<number>(units.length);
  const put = (u: U, phase: number): void => {
    while (phases.length <= phase) phases.push([]);
    phases[phase].push(u);
  };
  while (ready.size) {
    let best = -1;
    let most = -1;
    for (const i of ready) {
      const g = gain(units[i]);
      if (g > most || (g === most && i < best)) {
        best = i;
        most = g;
      }
    }
    ready.delete(best);
    const u = units[best];
    const earliest = (set: ReadonlySet<number>): number => {
      let phase = 0;
      for (const n of set) phase = Math.max(phase, phaseOf[n] + 1);
      return phase;
    };
    let phase = Math.max(0, phases.length - 1, earliest(needs[best]));
    for (const l of u.lead) {
      const own = earliest(needsOf(l, u));
      phase = Math.max(phase, own + 1);
    }
    for (const l of u.lead) put(l as U, phase - 1);
    phaseOf[best] = phase;
    put(u, phase);
    for (const b of readsOf(u)) readers.set(b, (readers.get(b) as number) - 1);
    for (const f of followers[best]) if (--waiting[f] === 0) ready.add(f);
  }
  if (phases.reduce((n, p) => n + p.length, 0) !== all.length)
    throw new Error("compiler: the units of a program wait for one another");
  return phases;
}

interface Life {
  first: number;
  last: number;
}

/** From which phase to which each temporary is needed. */
function lifetimes(phases: readonly (readonly Unit[])[]): Map<Buffer, Life> {
  const life = new Map<Buffer, Life>();
  phases.forEach((units, phase) => {
    for (const u of units)
      for (const b of [...u.reads, ...u.writes]) {
        if (b.slot >= 0) continue;
        const l = life.get(b);
        if (l) l.last = phase;
        else life.set(b, { first: phase, last: phase });
      }
  });
  return life;
}

/** Below this many bytes at once, an end of a phase more costs more than the memory is worth. */
const WORTH_BYTES = 32 * 2 ** 20;
const MOST_CUTS = 8;

/**
 * Cuts the phase with the most memory in two where some of its units give back what the others would take, again and again
 * while that makes the most less (and it is `worth` bytes). What is returned is in the same order.
 */
export function relieve<U extends Unit>(phases: readonly U[][], worth = WORTH_BYTES): U[][] {
  const all = phases.slice();
  for (let cuts = 0; cuts < MOST_CUTS; cuts++) {
    const life = lifetimes(all);
    const live = new Array<number>(all.length).fill(0);
    for (const [b, { first, last }] of life) for (let i = first; i <= last; i++) live[i] += b.bytes;
    const most = Math.max(...live);
    const at = live.indexOf(most);
    const rest = Math.max(0, ...live.slice(0, at), ...live.slice(at + 1));
    const halves = most < worth ? null : halvesOf(all[at], at, life, most, rest);
    if (!halves) break;
    all.splice(at, 1, ...halves);
  }
  return all;
}

/** The halves of phase `at`, which needs `live` bytes (no other more than `rest`), that need the fewest; null where none need less. */
function halvesOf<U extends Unit>(
  phase: readonly U[],
  at: number,
  life: ReadonlyMap<Buffer, Life>,
  live: number,
  rest: number,
): [U[], U[]] | null {
  const touched = (u: U): Set<Buffer> => new Set([...u.reads, ...u.writes]);
  const bytes = (list: Iterable<Buffer>, edge: "first" | "last"): number =>
    [...list].reduce((n, b) => (life.get(b)?.[edge] === at ? n + b.bytes : n), 0);
  const units = phase
    .map((u) => ({ u, gain: bytes(new Set(u.reads), "last") - bytes(new Set(u.writes), "first") }))
    .sort((x, y) => y.gain - x.gain)
    .map(({ u }) => u);
  const readers = new Map<Buffer, number>();
  for (const u of units) for (const b of touched(u)) readers.set(b, (readers.get(b) ?? 0) + 1);
  // the first half does without what only the second makes, the second without what only the first still reads
  let [before, behind] = [live - bytes(readers.keys(), "first"), live];
  const begun = new Set<Buffer>();
  let [cut, least] = [0, live];
  for (let k = 1; k < units.length; k++) {
    for (const b of touched(units[k - 1])) {
      if (!begun.has(b)) before += bytes([b], "first");
      begun.add(b);
      const left = (readers.get(b) as number) - 1;
      readers.set(b, left);
      if (left === 0) behind -= bytes([b], "last");
    }
    const most = Math.max(before, behind, rest);
    if (most < least) [cut, least] = [k, most];
  }
  return cut > 0 ? [units.slice(0, cut), units.slice(cut)] : null;
}

/** Gives every temporary a place; two that live in a common phase never overlap. Returns the arena's size in bytes. */
export function planMemory(phases: readonly (readonly Unit[])[]): number {
  const life = lifetimes(phases);
  const placed: { first: number; last: number; from: number; to: number }[] = [];
  let size = 0;
  for (const [b, l] of [...life].sort((x, y) => y[0].bytes - x[0].bytes || x[1].first - y[1].first)) {
    const overlapping = placed.filter((p) => p.first <= l.last && p.last >= l.first).sort((x, y) => x.from - y.from);
    const bytes = Math.ceil(Math.max(1, b.bytes) / ALIGNMENT) * ALIGNMENT; // an empty one has an address too
    let at = 0;
    let best = -1;
    let bestGap = Number.POSITIVE_INFINITY;
    for (const p of overlapping) {
      const gap = p.from - at;
      if (gap >= bytes && gap < bestGap) {
        best = at;
        bestGap = gap;
      }
      at = Math.max(at, p.to);
    }
    b.offset = best >= 0 ? best : at;
    placed.push({ ...l, from: b.offset, to: b.offset + bytes });
    size = Math.max(size, b.offset + bytes);
  }
  return size;
}

/** The memory plan as text: phases, their units, and which buffers these read and write. */
export function showPhases<U extends Unit>(
  phases: readonly (readonly U[])[],
  more: (unit: U) => string = () => "",
): string {
  const show = (list: readonly Buffer[]): string =>
    list.map((b) => (b.slot < 0 ? `${b.label}@${b.offset}+${b.bytes}` : b.label)).join(" ");
  const line = (u: U): string => `  ${u.label}: ${show(u.reads)} -> ${show(u.writes)}${more(u)}`;
  return phases.map((units, i) => `phase ${i}\n${units.map(line).join("\n")}`).join("\n");
}
