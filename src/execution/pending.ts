/**
 * What the next flush of a device owes besides what is asked for: assigns recorded but not run, in program order, the
 * first values of new states, and nodes kept. Nothing runs here.
 */
import { NablaError } from "../core/errors.ts";
import { sizeOf } from "../core/shape.ts";
import { isRecordingBody } from "../graph/loop.ts";
import { make, type Node, Storage } from "../graph/node.ts";
import { leaf } from "../graph/ops.ts";
import { primitives as p } from "../graph/primitives.ts";
import { defaultDevice } from "./device.ts";

export interface Pending {
  /** First values of new states; they run as a program of their own, so that the first step equals the second. */
  inits: Node[];
  assigns: Node[];
  kept: Node[];
}

const byDevice = new Map<string, Pending>();

export function pendingOf(device: string): Pending {
  let pending = byDevice.get(device);
  if (!pending) byDevice.set(device, (pending = { inits: [], assigns: [], kept: [] }));
  return pending;
}

/** The device that computes `node`: its own, else the default. */
export const deviceOf = (node: Node): string => (node.device === "" ? defaultDevice() : node.device);

/** A chain of more recorded operations than this is cut by keeping the node where it got so long. */
export const maxDepth = 2000;

/** Makes `node` a root of its device's next flush. */
export function keep(node: Node): void {
  if (node.storage === null && !isRecordingBody()) pendingOf(deviceOf(node)).kept.push(node);
}

/** Keeps `node` if the chain of recorded operations below it has grown too long for one program. */
export function cut(node: Node): void {
  keep(node);
  node.depth = 0;
}

/** Whether `node` reads a state that `assign` can write. */
export const isState = (node: Node): boolean => node.state !== null || (node.storage?.mutable ?? false);

/**
 * A node that reads a new state whose first value is `value`; a leaf of autograd if `value` was one.
 * A value that is alone in its storage gives that storage away instead of being copied.
 */
export function toState(value: Node): Node {
  if (value.state !== null && value.storage === null) return value;
  const storage = value.storage;
  if (storage !== null && !storage.mutable) {
    storage.mutable = true;
    return value;
  }
  const device = deviceOf(value);
  const state = new Storage(device, value.dtype, sizeOf(value.shape), null);
  state.mutable = true;
  const node = write(leaf(state, value.shape), value, state);
  node.requiresGrad = value.requiresGrad;
  pendingOf(device).inits.push(node);
  return node;
}

/**
 * Records version k+1 of the state that `target` reads. As a value the node is `value`. Gradients do not flow through it: it
 * is a leaf of autograd where `target` was one. Shapes and dtypes must be equal.
 */
export function assign(target: Node, value: Node): Node {
  if (isRecordingBody())
    throw new NablaError(
      "assign: the body of a loop can't write a state (an in-place operation, batch norm in training); make what changes a carry",
    );
  const state = target.state ?? target.storage;
  if (state === null || !state.mutable) throw new NablaError(`assign: ${target} is not a state; toState() makes one`);
  const node = write(target, value, state);
  node.requiresGrad = target.requiresGrad;
  node.owner = target.owner;
  pendingOf(state.device).assigns.push(node);
  return node;
}

function write(target: Node, value: Node, state: Storage): Node {
  const node = make(p.assign, [target, value]);
  node.state = state;
  return node;
}

/** What an unflushed assign node is as a value. */
export const resolve = (node: Node): Node => {
  while (node.state !== null && node.storage === null) node = node.inputs[1];
  return node;
};
