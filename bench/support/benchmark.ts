/**
 * What a benchmark is and what it gives; and the runner that most share: our side and the peers, each in a process of its
 * own, take turns for several rounds, and what is printed is the ratio of the medians.
 */

import { difference, median } from "./numbers.ts";
import type { Served, Session } from "./protocol.ts";
import { Absent } from "./protocol.ts";
import type { Side } from "./sides.ts";

export interface Options {
  readonly rounds: number;
  /** Multiplies the time of a round: below 1 to try things out. */
  readonly scale: number;
  /** Progress, for people. */
  say(text: string): void;
}

/** Where it is better to be: a ratio at least, or at most. */
export interface Target {
  readonly atLeast?: number;
  readonly atMost?: number;
}

/** One comparison, or one figure of ours. */
export interface Result {
  readonly line: string;
  /** With whom; null for a figure of ours alone. */
  readonly peer: string | null;
  /** Why the peer is absent; then there are no figures. */
  readonly absent?: string;
  readonly unit: string;
  readonly ours?: number;
  readonly theirs?: number;
  /** Theirs by ours for times (above 1: we are faster), by medians. */
  readonly ratio?: number;
  /** The same by minima. */
  readonly ratioOfMinima?: number;
  /** The largest relative difference of losses; null where there is none to compare. */
  readonly difference?: number | null;
  readonly tolerance?: number;
  readonly target?: Target;
  readonly note?: string;
}

export interface Benchmark {
  readonly name: string;
  readonly title: string;
  /** Our side, run in a process of its own. */
  ours?(args: readonly string[]): Promise<Served>;
  run(options: Options): Promise<Result[]>;
}

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

export interface Race {
  readonly sides: readonly [Side, ...Side[]];
  /** Names of the lines that the sides serve, in order. */
  readonly lines: readonly string[];
  /** What one step is measured in; "ms". */
  readonly unit?: string;
  /** Turns a line's milliseconds into the unit (GFLOP/s, say). Default: as they are. */
  readonly convert?: (ms: number, line: number) => number;
  readonly seconds: number;
  /** How far apart losses may be, relatively. */
  readonly tolerance: number;
  /** By the peer's name. */
  readonly targets: Readonly<Record<string, Target>>;
}

/** Opens the sides that are here; ours comes first and must be. */
export async function openAll(
  sides: readonly Side[],
  say: (text: string) => void,
): Promise<{ sessions: (Session | null)[]; reasons: (string | null)[] }> {
  const sessions: (Session | null)[] = [];
  const reasons: (string | null)[] = [];
  for (const side of sides) {
    try {
      const session = await side.open();
      say(`${session.title} is ready`);
      sessions.push(session);
      reasons.push(null);
    } catch (error) {
      if (!(error instanceof Absent) || side === sides[0]) throw error;
      sessions.push(null);
      reasons.push(error.message);
    }
  }
  return { sessions, reasons };
}

export async function race(options: Options, race: Race): Promise<Result[]> {
  const { sides, lines, seconds, tolerance, targets, unit = "ms", convert = (ms) => ms } = race;
  const { sessions, reasons } = await openAll(sides, options.say);
  try {
    const values: (number[] | null)[] = [];
    for (const session of sessions) values.push(session ? await session.check() : null);
    const samples = sides.map(() => lines.map((): number[] => []));
    for (let line = 0; line < lines.length; line++)
      for (let round = 0; round < options.rounds; round++)
        for (let k = 0; k < sides.length; k++) {
          // whoever goes first in one round goes last in the next
          const side = round % 2 === 0 ? k : sides.length - 1 - k;
          const session = sessions[side];
          if (!session) continue;
          await pause(100); // idle threads of the one before may still spin
          samples[side][line].push(...(await session.round(line, seconds * options.scale)).ms);
        }
    return lines.flatMap((name, line) =>
      sides.slice(1).map((side, i): Result => {
        const peer = i + 1;
        const target = targets[side.name];
        const common = { line: name, unit, ...(target ? { target } : {}) };
        const reason = reasons[peer];
        if (reason !== null) return { ...common, peer: side.name, absent: reason };
        const [mine, theirs] = [samples[0][line], samples[peer][line]];
        return {
          ...common,
          peer: (sessions[peer] as Session).title,
          ours: convert(median(mine), line),
          theirs: convert(median(theirs), line),
          ratio: median(theirs) / median(mine),
          ratioOfMinima: Math.min(...theirs) / Math.min(...mine),
          difference: side.unchecked ? null : difference(values[0] as number[], values[peer] as number[]),
          tolerance,
        };
      }),
    );
  } finally {
    for (const session of sessions) await session?.close();
  }
}
