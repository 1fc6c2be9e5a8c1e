/**
 * Loops in a program: the body's dispatches, written once and repeated. A body works in memory of its own, where its carries
 * stay; elements of sequences are copied there before an iteration, what it gives is copied out behind it. Copies need
 * whole words, and no two places in one buffer: what a body works in is a segment of its own. (`cpu/loops.ts` moves
 * pointers instead, but bindings begin at multiples of 256 bytes.)
 */
import type { LiveBody } from "../../compiler/loop.ts";
import type { GNode } from "../../compiler/lower.ts";
import type { Buffer } from "../../compiler/schedule.ts";
import { dtypes } from "../../core/dtype.ts";
import { sizeOf } from "../../core/shape.ts";
import { bodyOf, elementAt, loopAttrs } from "../../graph/loop.ts";
import type { Node, Spec } from "../../graph/node.ts";
import type { Location, LoopStep, Move, Parts, Step } from "./assemble.ts";
import { storageBytes } from "./layout.ts";
import { ALIGNMENT } from "./memory.ts";

const bytesOf = ({ shape, dtype }: Spec): number => sizeOf(shape) * dtypes[dtype].bytes;

/** Whether every element of a sequence, and whatever a step gives, is a whole number of words; other loops are written out. */
export function canRepeat(node: Node): boolean {
  const attrs = loopAttrs(node);
  const { inputs, outputs } = bodyOf(attrs);
  const elements = inputs.slice(attrs.carries, attrs.carries + attrs.sequences);
  return [...elements, ...outputs].every((x) => bytesOf(x) % 4 === 0);
}

/** A loop's body as parts of a program of its own. */
export interface LoopBody extends LiveBody {
  readonly parts: Parts;
  readonly canFail: boolean;
}

/** What the program around a loop knows: where operand i and output k of the node are. */
export interface Around {
  readonly operand: (i: number) => Location;
  readonly output: (k: number) => Location;
  /** The first segment of temporaries that is the loop's, and a way to make segment i so large. */
  readonly base: number;
  readonly grow: (segment: number, bytes: number) => void;
}

/** The body's steps on the program's memory, with the copies around them. */
export function loopStep(label: string, body: LoopBody, { operand, output, base, grow }: Around): LoopStep {
  const { attrs, capture, live, stacked, parts } = body;
  const { carries, sequences, count } = attrs;
  let end = 0;
  const stage = (bytes: number): Location => {
    const offset = end;
    end += Math.max(1, Math.ceil(bytes / ALIGNMENT)) * ALIGNMENT;
    return { kind: "temporary", index: base, offset, bytes };
  };
  const storages = capture.storages.map(({ dtype, length }, i) =>
    i < carries + sequences ? stage(storageBytes(dtype, length)) : operand(i),
  );
  const roots = capture.roots.map(({ dtype, shape }) => stage(storageBytes(dtype, sizeOf(shape))));
  grow(base, end);
  for (const [i, bytes] of parts.segments.entries()) grow(base + 1 + i, bytes);

  const direction = attrs.reverse ? -1 : 1;
  /** The first iteration's element of a sequence that lies at `whole`, and the way to the next. */
  const element = (whole: Location, bytes: number) => ({
    at: { ...whole, offset: whole.offset + elementAt(attrs, 0) * bytes },
    stride: direction * bytes,
  });
  const move = (from: Location, to: Location): Move => ({ from, to, bytes: to.bytes, read: 0, write: 0 });
  const first = storages.slice(0, carries).map((to, i) => move(operand(i), to));
  const last = storages.slice(0, carries).flatMap((from, i) => (live.has(i) ? [move(from, output(i))] : []));
  const taken = storages.slice(carries, carries + sequences).map((to, i): Move => {
    const { at, stride } = element(operand(carries + i), to.bytes);
    return { from: at, to, bytes: to.bytes, read: stride, write: 0 };
  });
  const given = roots.map((from, k): Move => {
    const { at, stride } = element(output(carries + stacked[k]), from.bytes);
    return { from, to: at, bytes: from.bytes, read: 0, write: stride };
  });

  const place = (m: Location): Location => {
    if (m.kind === "temporary") return { ...m, index: m.index + base + 1 };
    const at = (m.kind === "storage" ? storages : roots)[m.index];
    return { ...at, offset: at.offset + m.offset, bytes: m.bytes };
  };
  return { label, count, first, taken, steps: parts.steps.map((s) => placed(s, place)), given, last };
}

/** A step with other memory. */
function placed(step: Step | LoopStep, place: (m: Location) => Location): Step | LoopStep {
  if (!("count" in step)) return { ...step, memory: step.memory.map(place) };
  const moved = (list: readonly Move[]): Move[] => list.map((m) => ({ ...m, from: place(m.from), to: place(m.to) }));
  return {
    ...step,
    first: moved(step.first),
    taken: moved(step.taken),
    steps: step.steps.map((s) => placed(s, place)),
    given: moved(step.given),
    last: moved(step.last),
  };
}

/** The operands that a loop reads and the outputs that it writes. */
export function loopBuffers(
  n: GNode,
  { attrs, live, stacked }: LoopBody,
  operand: (i: number) => Buffer,
  output: (k: number) => Buffer,
): { reads: Buffer[]; writes: Buffer[] } {
  return {
    reads: [...new Set(n.inputs.map((_, i) => operand(i)))],
    writes: [
      ...[...Array(attrs.carries).keys()].filter((i) => live.has(i)).map(output),
      ...stacked.map((k) => output(attrs.carries + k)),
    ],
  };
}
