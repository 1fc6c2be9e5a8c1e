/**
 * Commands before buffers have addresses, and how phases of them become a command table. What a command does is decided
 * where it is made (assemble.ts); the words of the table are table.ts's.
 */
import type { Buffer, Unit } from "../../compiler/schedule.ts";
import type { CommandDesc } from "./contract.ts";
import type { Place } from "./loops.ts";
import { planFill } from "./plans.ts";
import { type BufferName, type Command, type Move, type Sizes, type Table, TableBuilder } from "./table.ts";

/** A command before buffers have addresses: what `TableBuilder.command` takes, with buffers as objects. */
export interface Draft {
  readonly fn: Command["fn"] | { readonly source: string; readonly operation?: string };
  readonly rows: number;
  readonly grain: number;
  readonly buffers: Place[];
  readonly scalars: readonly number[];
  readonly params: readonly number[];
  writesState: boolean;
  post?: Draft;
}

/** What stands in a phase: a command, or a loop, whose phases follow. */
export interface Item {
  readonly label: string;
  readonly draft: Draft;
  readonly loop?: Loop;
}

export interface Loop {
  /** What buffers that move in it name. */
  readonly identity: object;
  readonly count: number;
  /** What is done once, before the first iteration and behind the last. */
  readonly before: readonly (readonly Item[])[];
  readonly phases: readonly (readonly Item[])[];
  readonly after: readonly Item[];
}

/** A command of plans.ts or contract.ts with its buffers. */
export const draftOf = <B extends string>(
  { fn, rows, grain, params, buffers }: CommandDesc<B>,
  bound: Readonly<Record<B, Place>>,
): Draft => ({ fn, rows, grain, params, buffers: buffers.map((x) => bound[x]), scalars: [], writesState: false });

/** Fills of freed memory: before the first phase, and after each. */
interface Poison {
  readonly first: readonly Draft[];
  readonly after: readonly (readonly Draft[])[];
}

/** A command table, the sources that its commands name by number, and what each command is. */
interface Written {
  readonly table: Table;
  readonly sources: readonly string[];
  /** The operation whose kernel of its own a source is. */
  readonly owners: readonly (string | undefined)[];
  readonly labels: readonly string[];
}

/** Writes phases, whose buffers have been given places, as a table. */
export function writeTable(phases: readonly (readonly Item[])[], sizes: Sizes, poison: Poison | null): Written {
  const sources = new Map<string, number>();
  const owners: (string | undefined)[] = [];
  const builder = new TableBuilder();
  const fn = (f: Draft["fn"]): Command["fn"] => {
    if (typeof f !== "object") return f;
    let i = sources.get(f.source);
    if (i === undefined) {
      sources.set(f.source, (i = sources.size));
      owners.push(f.operation);
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
  if (poison?.first.length) builder.phase(poison.first.map(emit));
  phases.forEach((phase, i) => {
    emitPhase(phase);
    if (poison?.after[i].length) builder.phase(poison.after[i].map(emit));
  });
  return { table: builder.table(sizes), sources: [...sources.keys()], owners, labels };
}

/**
 * NABLA_POISON=1: NaN (ones, in integers) in all temporaries and outputs before a run, and in every temporary after the
 * phase that needs it last, so that a value read too early or too late is seen.
 */
export function poisonOf(phases: readonly (readonly Unit[])[], outputs: readonly Buffer[], arenaBytes: number): Poison {
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
  return { first: [whole, ...outputs].filter((b) => b.bytes > 0).map(fill), after };
}

/** The phases of a loop, a line each: what is done once before, in each iteration, once behind. */
export function showLoop({ before, phases, after, count }: Loop, indent: string): string {
  const line = (when: string, items: readonly Item[]): string =>
    `\n${indent}${when}: ${items.map((x) => `${x.label.replace(/^.*: /, "")}${x.loop ? showLoop(x.loop, `${indent}  `) : ""}`).join(", ")}`;
  return [
    ...before.map((p) => line("before", p)),
    ...phases.map((p) => line(`${count} times`, p)),
    ...(after.length ? [line("behind", after)] : []),
  ].join("");
}

/** A unit of a loop's body with its buffers where they lie outside. */
export function placeItem(item: Item, place: (b: Buffer) => Place, label: string): Item {
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
