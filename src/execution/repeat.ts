/**
 * Steps that are done again: what a flush found out about a recorded step (its program, the memory it reads and writes, its numbers) serves for
 * the next one, which then need not be recorded, captured and looked up. Only inputs and numbers change, and states are written in place.
 * Whether the step would be recorded again just so is for the caller to know (models/replay.ts).
 */
import type { Capture } from "../backends/backend.ts";
import { type Shape, sameShape, sizeOf } from "../core/shape.ts";
import { isCurrent, Node, noAttrs, Storage } from "../graph/node.ts";
import { leaf } from "../graph/ops.ts";
import { primitives as p } from "../graph/primitives.ts";
import { detectsAnomalies } from "./anomaly.ts";
import type { Entry } from "./cache.ts";
import { openedBackend } from "./device.ts";
import { dispatch, flushLine, type Job, type Line, leave, lineOf } from "./flush.ts";

/** A leaf that another step may have another of, and where its storage stands in the program's list; −1: it is not read. */
interface Input {
  readonly slot: number;
  readonly storage: Storage;
  readonly shape: Shape;
}

/** What is kept of a step. */
export interface Step {
  readonly device: string;
  readonly entry: Entry;
  readonly storages: readonly Storage[];
  readonly inputs: readonly Input[];
  /** The values of all scalars. */
  readonly scalars: Float64Array;
  /** Where each number that may change stands among them; −1: it is not read. */
  readonly numbers: readonly number[];
  /** Written once each. */
  readonly states: readonly Storage[];
  readonly result: Storage;
  readonly shape: Shape;
}

/** What a step is made of that another one has others of: leaves, `scalar` nodes, and nodes that mean the states it writes. */
export interface StepParts {
  readonly inputs: readonly Node[];
  readonly numbers: readonly Node[];
  readonly states: readonly Node[];
}

/** Whether a flush would do now, and without waiting for what was begun before, what it is asked for and nothing else. */
export function canRepeat(device: string): boolean {
  const { tail, failure, pending } = lineOf(device);
  return (
    tail === null &&
    failure === null &&
    pending.inits.length + pending.assigns.length + pending.kept.length === 0 &&
    openedBackend(device) !== null &&
    !detectsAnomalies()
  );
}

/**
 * Begins the step that `root` and the assigns since `canRepeat` are, as `enqueue` does; a failure is told by the next flush or read. Gives what
 * is kept of the step, or null where it is not one that can be repeated: it draws random numbers, or writes to other states.
 * `parts` are as they were before the assigns were recorded.
 */
export function beginStep(device: string, root: Node, parts: StepParts): Step | null {
  const line = lineOf(device);
  const states = parts.states.map(({ storage }) => storage);
  let step: Step | null = null;
  run(line, () =>
    flushLine(line, [root], true, (captured, job) => {
      const written = captured.assigns.map(({ storage }) => captured.storages[storage]);
      const others = written.length !== states.length || written.some((storage) => !states.includes(storage));
      const random = captured.order.some(({ operation }) => operation.group === "random");
      if (!others && !random && job.roots.length === 1) step = stepOf(device, captured, job, parts, written);
    }),
  );
  return step;
}

function stepOf(device: string, captured: Capture, job: Job, parts: StepParts, states: readonly Storage[]): Step {
  const storages = [...captured.storages];
  return {
    device,
    entry: job.entry,
    storages,
    inputs: parts.inputs.map((node) => {
      const storage = node.storage as Storage;
      return { slot: storages.indexOf(storage), storage, shape: node.shape };
    }),
    scalars: Float64Array.from(captured.scalars, ({ value }) => value),
    numbers: parts.numbers.map((node) => captured.scalars.indexOf(node)),
    states,
    result: job.outputs[0],
    shape: job.roots[0].shape,
  };
}

/** A failure is told by the next flush or read, whether the device answers at once or not. */
function run(line: Line, work: () => void | Promise<void>): void {
  try {
    const done = work();
    if (done) leave(line, done);
  } catch (error) {
    line.failure = { error };
  }
}

/**
 * Begins `step` with other inputs and numbers. Gives the node of the result, and nodes that mean the states as they are afterwards, in
 * the order of `parts.states`; null where the step has to be recorded again, since its program is gone or these inputs and states are not such
 * as it had. Only after `canRepeat`.
 */
export function repeatStep(
  step: Step,
  parts: Omit<StepParts, "numbers"> & { readonly numbers: readonly number[] },
): { readonly root: Node; readonly states: readonly Node[] } | null {
  const { device, entry, inputs } = step;
  if (entry.program === null || entry.evicted) return null;
  const storages = [...step.storages];
  for (let i = 0; i < inputs.length; i++) {
    const { slot, storage: like, shape } = inputs[i];
    const node = parts.inputs[i];
    const { storage } = node;
    if (storage === null || storage.mutable || storage.device !== device || storage.dtype !== like.dtype) return null;
    if (storage.length !== like.length || !sameShape(node.shape, shape)) return null;
    if (slot >= 0) storages[slot] = storage;
  }
  if (parts.states.length !== step.states.length) return null;
  for (const node of parts.states) if (!isCurrent(node) || !step.states.includes(node.storage as Storage)) return null;
  const line = lineOf(device);
  const job = jobOf(step, storages, parts.numbers, parts.states);
  line.cache.hit(entry);
  line.steps++;
  run(line, () => dispatch(line, job, true));
  return { root: job.roots[0], states: job.assigns };
}

function jobOf(step: Step, storages: Storage[], numbers: readonly number[], states: readonly Node[]): Job {
  const { entry } = step;
  const scalars = entry.scalars ?? new Float64Array(step.scalars.length);
  entry.scalars = null;
  scalars.set(step.scalars);
  for (let i = 0; i < numbers.length; i++) if (step.numbers[i] >= 0) scalars[step.numbers[i]] = numbers[i];
  entry.jobs++;
  const { dtype } = step.result;
  const output = new Storage(step.device, dtype, sizeOf(step.shape), null);
  const assigns = states.map((node) => {
    const state = node.storage as Storage;
    const next = new Node(p.assign, [], noAttrs, node.shape, node.dtype, node.device, false, null);
    next.state = next.storage = state;
    next.version = ++state.version;
    next.depth = 0;
    return next;
  });
  const roots = [leaf(output, step.shape)];
  return { entry, capture: null, storages, scalars, roots, outputs: [output], assigns, init: false, cancelled: null };
}
