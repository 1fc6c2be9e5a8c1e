/**
 * A loop's body as a capture of its own: carries are states that it assigns, elements and captured values are storages that it
 * reads, a step's outputs are its roots. So whatever makes a program makes the body of a loop. No memory here: the
 * storages stand for places that whoever runs the loop knows.
 */
import type { Capture } from "../backends/backend.ts";
import { sizeOf } from "../core/shape.ts";
import { bodyOf, type LoopAttrs, loopAttrs, recordStep } from "../graph/loop.ts";
import { type Node, Storage, setGradEnabled, topologicalOrder } from "../graph/node.ts";
import { leaf } from "../graph/ops.ts";
import type { GNode, Lowered } from "./lower.ts";

/** The numbers of the outputs that something reads. */
function liveOutputs(n: GNode, { nodes, roots, assigns }: Lowered): Set<number> {
  const live = new Set<number>();
  const read = (x: GNode): void => {
    if (x === n) live.add(0);
    else if (x.op === "output" && x.inputs[0] === n) live.add(x.attrs["index"] as number);
  };
  for (const x of nodes) if (x.op !== "output") x.inputs.forEach(read);
  for (const x of [...roots, ...assigns.map((a) => a.value)]) read(x);
  return live;
}

/** `live`: the outputs that are wanted, by number; all if left out. Storage i is input i; root k is output live[k]. */
export function bodyCapture(attrs: LoopAttrs, live?: readonly number[]): Capture {
  const body = bodyOf(attrs);
  const gradients = setGradEnabled(false);
  try {
    const storages = body.inputs.map(({ dtype, shape }) => new Storage("", dtype, sizeOf(shape), null));
    const step = recordStep(
      body,
      storages.map((s, i) => leaf(s, body.inputs[i].shape)),
    );
    const roots = live ? live.map((k) => step.outputs[k]) : step.outputs;
    const isLeaf = (n: Node): boolean => n.storage !== null || n.operation.group === "leaf";
    return {
      order: topologicalOrder([...roots, ...step.next], isLeaf),
      storages,
      scalars: [],
      roots,
      assigns: step.next.map((value, storage) => ({ storage, value })),
    };
  } finally {
    setGradEnabled(gradients);
  }
}

/** What of a loop's body is wanted. */
export interface LiveBody {
  readonly attrs: LoopAttrs;
  readonly capture: Capture;
  /** Outputs of the node that somebody reads. */
  readonly live: ReadonlySet<number>;
  /** Root k of the capture is output `stacked[k]` of a step. */
  readonly stacked: readonly number[];
}

/** The body of a loop in a lowered graph, without the outputs that nobody reads. */
export function liveBody(n: GNode, lowered: Lowered): LiveBody {
  const attrs = loopAttrs(n);
  const live = liveOutputs(n, lowered);
  const stacked = attrs.outputs.flatMap((_, k) => (live.has(attrs.carries + k) ? [k] : []));
  return { attrs, capture: bodyCapture(attrs, stacked), live, stacked };
}
