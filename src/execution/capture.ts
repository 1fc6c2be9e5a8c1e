/**
 * From what is asked for to a capture: every node that must be computed, inputs first, with the storages and scalar slots
 * that it reads. Iterative, one pass, no maps: nodes and storages carry the mark of the capture that last met them.
 * Here it is found out whether a version that some node means is gone (StaleReadError).
 */
import type { Capture } from "../backends/backend.ts";
import { BackendError, StaleReadError } from "../core/errors.ts";
import { showShape } from "../core/shape.ts";
import { Node, type Storage, setRegion } from "../graph/node.ts";
import { primitives as p } from "../graph/primitives.ts";

let epoch = 0;

// Reused between captures; empty outside of one.
const stack: Node[] = [];
let next = new Int32Array(1024);

/** Operations with several outputs that were realised (output 0), computed again for the sake of another output. */
const twins = new WeakMap<Node, Node>();

function twin(node: Node): Node {
  let copy = twins.get(node);
  if (!copy) {
    copy = new Node(
      node.operation,
      node.inputs,
      node.attrs,
      node.shape,
      node.dtype,
      node.device,
      node.requiresGrad,
      node.outputs,
    );
    twins.set(node, copy);
  }
  return copy;
}

const nameOf = (storage: Storage): string => (storage.name ? `"${storage.name}"` : "a state");

export function staleRead(leaf: Node, reader: string): StaleReadError {
  const storage = leaf.storage as Storage;
  return new StaleReadError(
    `${reader} reads version ${leaf.version} of ${nameOf(storage)} (${leaf.dtype}${showShape(leaf.shape)}), ` +
      `which has been overwritten (it is at version ${storage.version} now). ` +
      "Read the value before the step, or keep() or clone() it",
  );
}

/** Adds what `root` needs to the capture. */
function visit(root: Node, device: string, order: Node[], storages: Storage[], scalars: Node[]): void {
  if (root.mark === epoch) return;
  let top = 0;
  stack[0] = root;
  root.mark = epoch;
  next[0] = root.operation === p.assign ? 1 : 0; // as a value, an assign node is its value
  while (top >= 0) {
    const node = stack[top];
    const storage = node.storage;
    if (storage === null) {
      const inputs = node.inputs;
      const i = next[top];
      if (i < inputs.length) {
        next[top] = i + 1;
        let input = inputs[i];
        if (input.outputs !== null && input.storage !== null && node.operation === p.output) {
          input = twin(input);
          node.inputs = [input];
        }
        if (input.mark !== epoch) {
          input.mark = epoch;
          if (++top === next.length) {
            const grown = new Int32Array(next.length * 2);
            grown.set(next);
            next = grown;
          }
          stack[top] = input;
          next[top] = input.operation === p.assign ? 1 : 0;
        }
        continue;
      }
      if (node.operation === p.scalar) scalars.push(node);
      else if (node.operation === p.placeholder)
        throw new BackendError(
          `${top > 0 ? describeReader(stack[top - 1]) : "a tensor"}: a value inside a loop's body does not exist outside of it; return it as a carry or an output`,
        );
    } else {
      if (storage.version !== node.version)
        throw staleRead(node, top > 0 ? describeReader(stack[top - 1]) : "this tensor");
      if (storage.mark !== epoch) {
        if (storage.device !== device)
          throw new BackendError(
            `a value on device "${storage.device}" is read by work on "${device}"; move it with .to("${device}")`,
          );
        storage.mark = epoch;
        storage.slot = storages.length;
        storages.push(storage);
      }
    }
    node.slot = order.length;
    order.push(node);
    top--;
  }
}

const describeReader = (node: Node): string =>
  node.operation === p.assign
    ? `an assignment to ${nameOf(node.state as Storage)}`
    : `${node.operation.name} ${showShape(node.shape)}`;

/** How far the last capture came: what it was adding when it threw. */
export const captureProgress: { reached: "roots" | "kept" | "assigns" } = { reached: "roots" };

/**
 * Captures the computation of `roots` and the pending `assigns` (in program order). Of several assigns to one storage
 * only the last writes. Roots that already have a value, or will have one as an assigned state, are left out.
 * Throws StaleReadError; `captureProgress` then tells whose fault it was.
 */
export function capture(
  device: string,
  roots: readonly Node[],
  kept: readonly Node[],
  assigns: readonly Node[],
): Capture {
  epoch++;
  const order: Node[] = [];
  const storages: Storage[] = [];
  const scalars: Node[] = [];
  const outputs: Node[] = [];
  const writes: Node[] = [];
  for (let i = assigns.length - 1; i >= 0; i--) {
    const state = assigns[i].state as Storage;
    if (state.mark === epoch) continue; // a later assign overwrites it
    state.mark = epoch;
    state.slot = storages.length;
    storages.push(state);
    writes.push(assigns[i]);
  }
  const wanted = epoch;
  try {
    for (let k = 0; k < 2; k++) {
      captureProgress.reached = k === 0 ? "roots" : "kept";
      const list = k === 0 ? roots : kept;
      for (let i = 0; i < list.length; i++) {
        const root = list[i];
        if (root.storage !== null) continue;
        if (root.operation === p.assign && writes.includes(root)) continue;
        if (root.mark === wanted && outputs.includes(root)) continue;
        visit(root, device, order, storages, scalars);
        outputs.push(root);
      }
    }
    captureProgress.reached = "assigns";
    const written = new Array<{ storage: number; value: Node }>(writes.length);
    for (let i = writes.length - 1, j = 0; i >= 0; i--, j++) {
      let value = writes[i].inputs[1];
      while (value.operation === p.assign && value.storage === null) value = value.inputs[1];
      visit(value, device, order, storages, scalars);
      written[j] = { storage: (writes[i].state as Storage).slot, value };
    }
    return { order, storages, scalars, roots: outputs, assigns: written };
  } finally {
    stack.length = 0; // holds no graph between captures
  }
}

/**
 * The capture over nodes of its own. A backend may compile it while the recorded nodes are already being given values
 * (which makes leaves of them) and marked by later captures.
 */
export function copyCapture({ order, storages, scalars, roots, assigns }: Capture): Capture {
  const before = setRegion(0);
  const copies = new Array<Node>(order.length);
  for (let k = 0; k < order.length; k++) {
    const node = order[k];
    setRegion(node.region);
    let inputs: readonly Node[] = [];
    if (node.storage === null)
      inputs =
        node.state !== null
          ? [copies[node.inputs[1].slot], copies[node.inputs[1].slot]]
          : node.inputs.map((input) => copies[input.slot]);
    const copy = new Node(node.operation, inputs, node.attrs, node.shape, node.dtype, node.device, false, node.outputs);
    copy.storage = node.storage;
    copy.version = node.version;
    copy.state = node.state;
    copy.value = node.value;
    copies[k] = copy;
  }
  setRegion(before);
  return {
    order: copies,
    storages,
    scalars: scalars.map((node) => copies[node.slot]),
    roots: roots.map((node) => copies[node.slot]),
    assigns: assigns.map(({ storage, value }) => ({ storage, value: copies[value.slot] })),
  };
}
