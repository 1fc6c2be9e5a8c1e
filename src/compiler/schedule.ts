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

/** How early a unit should run that gives back `gain` bytes in all and needs `written` until then: of those that give back something, what needs the least. */
const urgency = (gain: number, written: number): number => (gain > 0 ? 1 / (1 + written) : gain);

/**
 * Units in phases: each after what it needs; among those ready, one that frees memory, else the oldest. With `late` a unit that waits for nothing (a
 * weight that is packed for several products) is run when the first that reads it would be, and such a one counts as ready.
 */
export function schedule<U extends Unit>(all: readonly U[], late = false): U[][] {
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
  const readers = new Map<Buffer, number>();
  const readsOf = (u: U): Set<Buffer> =>
    new Set([...u.reads, ...u.lead.flatMap((l) => l.reads)].filter((b) => b.slot < 0));
  for (const u of units) for (const b of readsOf(u)) readers.set(b, (readers.get(b) ?? 0) + 1);
  const idle = new Set<number>();
  if (late) needs.forEach((set, i) => void (set.size === 0 && followers[i].length > 0 && idle.add(i)));
  /** How many units that are not idle each waits for. */
  const waiting = needs.map((set) => [...set].filter((n) => !idle.has(n)).length);
  const ready = new Set<number>();
  waiting.forEach((n, i) => {
    if (n === 0 && !idle.has(i)) ready.add(i);
  });
  const written = (u: U): number => u.writes.reduce((n, b) => (b.slot < 0 ? n + b.bytes : n), 0);
  const gain = (u: U): number => {
    let bytes = -written(u);
    for (const b of readsOf(u)) if (readers.get(b) === 1) bytes += b.bytes;
    return Math.max(0, bytes);
  };
  const phases: U[][] = [];
  const phaseOf = new Array<number>(units.length);
  const put = (u: U, phase: number): void => {
    while (phases.length <= phase) phases.push([]);
    phases[phase].push(u);
  };
  const earliest = (set: ReadonlySet<number>): number => {
    let phase = 0;
    for (const n of set) phase = Math.max(phase, phaseOf[n] + 1);
    return phase;
  };
  const run = (i: number, least: number): void => {
    const u = units[i];
    let phase = Math.max(least, earliest(needs[i]));
    for (const l of u.lead) phase = Math.max(phase, earliest(needsOf(l, u)) + 1);
    for (const l of u.lead) put(l as U, phase - 1);
    phaseOf[i] = phase;
    put(u, phase);
    for (const b of readsOf(u)) readers.set(b, (readers.get(b) as number) - 1);
  };
  const urgencyOf = (u: U): number => (late ? urgency(gain(u), written(u)) : gain(u));
  while (ready.size) {
    let best = -1;
    let most = -1;
    for (const i of ready) {
      const g = urgencyOf(units[i]);
      if (g > most || (g === most && i < best)) {
        best = i;
        most = g;
      }
    }
    const last = Math.max(0, phases.length - 1);
    for (const n of needs[best]) if (idle.delete(n)) run(n, Math.max(0, last - 1)); // beside what runs now
    ready.delete(best);
    run(best, last);
    for (const f of followers[best]) if (--waiting[f] === 0) ready.add(f);
  }
  if (phases.reduce((n, p) => n + p.length, 0) !== all.length)
    throw new Error("compiler: the units of a program wait for one another");
  return phases;
}

/**
 * The phases of a program that runs on one device in order: cut where that saves memory, and with what waits for nothing run late where that
 * saves `worth` bytes more.
 */
export function arrange<U extends Unit>(all: readonly U[], worth = WORTH_BYTES): U[][] {
  const usual = relieve(schedule(all), worth);
  const most = mostAlive(usual);
  if (most < worth) return usual;
  const late = relieve(schedule(all, true), worth);
  return most - mostAlive(late) < worth ? usual : late;
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

/** Bytes of temporaries in each phase. */
function alive(phases: readonly (readonly Unit[])[], life: ReadonlyMap<Buffer, Life>): number[] {
  const live = new Array<number>(phases.length).fill(0);
  for (const [b, { first, last }] of life) for (let i = first; i <= last; i++) live[i] += b.bytes;
  return live;
}
const mostAlive = (phases: readonly (readonly Unit[])[]): number => Math.max(0, ...alive(phases, lifetimes(phases)));

/** Below this many bytes at once, an end of a phase more costs more than the memory is worth. */
const WORTH_BYTES = 32 * 2 ** 20;
const MOST_CUTS = 32;
/** What cuts leave is to be at most this share. */
const LESS = 63 / 64;

/**
 * Cuts the phase with the most memory in two where some of its units give back what the others would take (and it is `worth` bytes), again and
 * again: of several that need as much, all must be cut before less is needed. What is returned is in the same order, without cuts that were for nothing.
 */
export function relieve<U extends Unit>(phases: readonly U[][], worth = WORTH_BYTES): U[][] {
  const all = phases.slice();
  let [best, least] = [all.slice(), Number.POSITIVE_INFINITY];
  for (let cuts = 0; cuts <= MOST_CUTS; cuts++) {
    const life = lifetimes(all);
    const live = alive(all, life);
    const most = Math.max(...live);
    if (most < least * LESS) [best, least] = [all.slice(), most];
    const at = live.indexOf(most);
    const halves = most < worth ? null : halvesOf(all[at], at, life, most);
    if (!halves) break;
    all.splice(at, 1, ...halves);
  }
  return best;
}

/** The halves of phase `at`, which needs `live` bytes, that need the fewest; null where none need less. */
function halvesOf<U extends Unit>(
  phase: readonly U[],
  at: number,
  life: ReadonlyMap<Buffer, Life>,
  live: number,
): [U[], U[]] | null {
  const touched = (u: U): Set<Buffer> => new Set([...u.reads, ...u.writes]);
  const bytes = (list: Iterable<Buffer>, edge: "first" | "last"): number =>
    [...list].reduce((n, b) => (life.get(b)?.[edge] === at ? n + b.bytes : n), 0);
  const units = phase
    .map((u) => {
      const written = bytes(new Set(u.writes), "first");
      const gain = bytes(new Set(u.reads), "last") - written;
      return { u, first: urgency(gain, written) };
    })
    .sort((x, y) => y.first - x.first)
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
    const most = Math.max(before, behind);
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
