/**
 * Loops in a program: the body's phases, written once, with buffers that move along. This file says where the buffers of a
 * body lie, in which phases its units run and what happens before and behind them; the body itself is assembled as a
 * capture of its own (assemble.ts), and the table's loops are table.ts's.
 */

import { type LiveBody, liveBody } from "../../compiler/loop.ts";
import type { GNode, Lowered } from "../../compiler/lower.ts";
import { type Buffer, planMemory, schedule, type Unit } from "../../compiler/schedule.ts";
import { type Strided, strided } from "../../compiler/views.ts";
import { contiguousStrides } from "../../core/shape.ts";
import { elementAt, loopAttrs } from "../../graph/loop.ts";
import { bytesOf } from "./shared-templates.ts";

/** A buffer as a command has it: from a byte on, and how it moves in the loops around the command. */
export type Place = readonly [buffer: Buffer, offset: number, travels?: readonly Travel[]];

export interface Travel {
  /** The loop, by its identity. */
  readonly loop: object;
  /** Bytes an iteration. */
  readonly stride: number;
  /** Where the second iteration finds it, if not a stride further. */
  readonly start?: Place | undefined;
}

/** Whether a loop reads this look as it is: contiguous, but that a sequence's elements may lie apart. */
export function takesView(n: GNode, operand: number, inMemory: (n: GNode) => boolean): boolean {
  const look = strided(n.inputs[operand], inMemory);
  if (!look) return false;
  const { shape } = n.inputs[operand];
  const { carries, sequences } = loopAttrs(n);
  const isSequence = operand >= carries && operand < carries + sequences;
  return contiguousStrides(shape).every(
    (stride, i) => shape[i] === 1 || look.strides[i] === stride || (i === 0 && isSequence),
  );
}

/** A loop's body as a program of its own, and which of its results lie where. */
export interface LoopBody extends LiveBody {
  /**
   * Carries that are a step's output as well, by the root's number: they are not kept twice, but read where the step before
   * has left them.
   */
  readonly trailing: ReadonlyMap<number, number>;
}

export function loopBody(n: GNode, lowered: Lowered): LoopBody {
  const body = liveBody(n, lowered);
  const { capture } = body;
  const trailing = new Map<number, number>();
  for (const { storage, value } of capture.assigns) {
    const root = value.storage === null ? capture.roots.indexOf(value) : -1;
    if (root >= 0) trailing.set(storage, root);
  }
  const assigns = capture.assigns.filter(({ storage }) => !trailing.has(storage));
  return { ...body, capture: { ...capture, assigns }, trailing };
}

/** What the loop's node knows of memory: its operands' looks and its outputs' buffers. */
export interface LoopMemory {
  readonly looks: readonly Strided[];
  readonly buffer: (n: GNode) => Buffer;
  readonly output: (k: number) => Buffer;
  /** The body's temporaries. */
  readonly arena: Buffer;
}

/** Where each buffer of the body lies, as a function of the body's own buffers. */
export function placesOf(n: GNode, body: LoopBody, memory: LoopMemory, loop: object): (b: Buffer) => Place {
  const { attrs, capture, stacked, trailing } = body;
  const { carries, sequences } = attrs;
  const numStorages = capture.storages.length;
  const direction = attrs.reverse ? -1 : 1;
  const operand = (i: number, travels: readonly Travel[], elements = 0): Place => {
    const { source, offset } = memory.looks[i];
    return [memory.buffer(source), offset * bytesOf([], n.inputs[i].dtype) + elements, travels];
  };
  const root = (k: number): Place => {
    const { shape, dtype } = capture.roots[k];
    const bytes = bytesOf(shape, dtype);
    return [memory.output(carries + stacked[k]), elementAt(attrs, 0) * bytes, [{ loop, stride: direction * bytes }]];
  };
  return (b) => {
    if (b.slot < 0) return [memory.arena, b.offset];
    const i = b.slot - 1;
    if (i >= numStorages) return root(i - numStorages);
    if (i < carries) {
      const k = trailing.get(i);
      if (k === undefined) return [memory.output(i), 0];
      const start = root(k);
      return operand(i, [{ loop, stride: (start[2] as readonly Travel[])[0].stride, start: [start[0], start[1]] }]);
    }
    if (i < carries + sequences) {
      const bytes = memory.looks[i].strides[0] * bytesOf([], n.inputs[i].dtype);
      return operand(i, [{ loop, stride: direction * bytes }], elementAt(attrs, 0) * bytes);
    }
    return operand(i, []);
  };
}

/** A unit of a body that is not placed yet. */
interface BodyUnit extends Unit {
  readonly after: this[];
  readonly lead: this[];
  readonly flops: number;
}

/** A body's phases and the memory of its temporaries. `flops`: of one iteration. */
interface BodyPhases<W> {
  /** Units that do the same in every iteration, in phases: they run once. */
  readonly before: W[][];
  readonly phases: W[][];
  readonly bytes: number;
  readonly flops: number;
}

/** The units of a loop's body in phases. What reads nothing but `captured` values comes before. */
export function bodyPhases<W extends BodyUnit>(works: readonly W[], captured: readonly Buffer[]): BodyPhases<W> {
  const fixed = new Set<Buffer>(captured);
  const once = new Set<W>();
  for (let found = -1; found !== once.size; ) {
    found = once.size;
    for (const w of works) {
      if (once.has(w) || !w.reads.every((b) => fixed.has(b)) || !w.writes.every((b) => b.slot < 0)) continue;
      if (![...w.lead, ...w.after].every((x) => once.has(x))) continue;
      once.add(w);
      for (const b of w.writes) fixed.add(b);
    }
  }
  const rest = works.filter((w) => !once.has(w));
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
