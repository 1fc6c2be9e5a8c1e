/**
 * The worker's half of wire.ts: a capture as the page has written it becomes a graph again. A file of its own, so that a
 * page does not load it.
 */
import { BackendError } from "../../core/errors.ts";
import { type Body, bodyWith, type LoopAttrs } from "../../graph/loop.ts";
import { Node, operations, Storage, setRegion } from "../../graph/node.ts";
import type { Capture } from "../backend.ts";
import type { WireCapture, WireNode } from "./wire.ts";

/** The capture that was written: its graph over nodes and storages of its own, the storages without memory. */
export function readCapture(wire: WireCapture): Capture {
  const storages = wire.storages.map(({ dtype, length }) => new Storage("", dtype, length, null));
  const bodies: Body[] = [];
  for (const { text, nodes, inputs, next, outputs } of wire.bodies) {
    const order = readNodes(nodes, storages, bodies);
    const at = (list: readonly number[]): Node[] => list.map((i) => order[i]);
    bodies.push({ text, order, inputs: at(inputs), next: at(next), outputs: at(outputs) });
  }
  const order = readNodes(wire.nodes, storages, bodies);
  return {
    order,
    storages,
    scalars: wire.scalars.map((i) => order[i]),
    roots: wire.roots.map((i) => order[i]),
    assigns: wire.assigns.map(({ storage, value }) => ({ storage, value: order[value] })),
  };
}

function readNodes(list: readonly WireNode[], storages: readonly Storage[], bodies: readonly Body[]): Node[] {
  const outer = setRegion(0);
  const nodes: Node[] = [];
  for (const { op, inputs, attrs, shape, dtype, region, outputs, storage, body } of list) {
    const operation = operations.get(op);
    if (!operation) throw new BackendError(`remote: the operation "${op}" is not known here`);
    setRegion(region);
    const sources = inputs.map((i) => nodes[i]);
    const node = new Node(operation, sources, attrs, shape, dtype, "", false, outputs);
    if (storage >= 0) node.storage = storages[storage];
    if (body >= 0) bodyWith(attrs as LoopAttrs, bodies[body]);
    nodes.push(node);
  }
  setRegion(outer);
  return nodes;
}
