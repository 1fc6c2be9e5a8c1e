/**
 * Loops: the builder of the primitive `loop`. A body is recorded once, over placeholders, and sealed: what it reads from
 * outside becomes an input of the loop, and equal bodies are one, whose text is the loop's attribute (and so part of
 * a program's key). What running a loop means is the backends' affair, its gradient is in `autograd/rules/loop.ts`.
 */
import { isFloat } from "../core/dtype.ts";
import { DTypeError, NablaError, ShapeError } from "../core/errors.ts";
import { sameShape, showShape } from "../core/shape.ts";
import {
  type Attrs,
  type AttrValue,
  isGradEnabled,
  make,
  type Node,
  type Spec,
  setGradEnabled,
  topologicalOrder,
} from "./node.ts";
import { concat, detach, full, narrow, output, reshape } from "./ops.ts";
import { primitives as p } from "./primitives.ts";

/** A sealed body: nodes over placeholders that depend on nothing else. */
export interface Body {
  /** The canonical form: equal texts mean equal bodies. */
  readonly text: string;
  /** Placeholders: carries, elements of the sequences, what is captured. */
  readonly inputs: readonly Node[];
  /** The carries' next values. */
  readonly next: readonly Node[];
  /** What each step gives. */
  readonly outputs: readonly Node[];
  /** All nodes, inputs before users. */
  readonly order: readonly Node[];
}

/** Attributes of a `loop` node; its inputs are the carries, the sequences, what the body captures. */
export type LoopAttrs = {
  /** The body's text; `bodyOf` gives the body. */
  readonly body: string;
  readonly count: number;
  /** How many of the inputs are carries, and how many sequences. */
  readonly carries: number;
  readonly sequences: number;
  /** dtype and sizes of what a step gives. */
  readonly outputs: readonly (readonly [dtype: string, ...sizes: number[]])[];
  /** From the last element of the sequences to the first. */
  readonly reverse: boolean;
  /** The last outputs are the carries as each step found them, one each: what the gradient needs. */
  readonly saved: boolean;
};

export const loopAttrs = (node: { readonly attrs: Attrs }): LoopAttrs => node.attrs as LoopAttrs;

/** Bodies by the attributes of the nodes that have them: a body lives as long as such a node does. */
const bodies = new WeakMap<object, Body>();
/** Bodies by their text, as long as somebody has them. */
const interned = new Map<string, WeakRef<Body>>();
const forgotten = new FinalizationRegistry<string>((text) => {
  if (!interned.get(text)?.deref()) interned.delete(text);
});

/** The one body of this text. */
function intern(body: Body): Body {
  const known = interned.get(body.text)?.deref();
  if (known) return known;
  interned.set(body.text, new WeakRef(body));
  forgotten.register(body, body.text);
  return body;
}

/** The body of a loop, by the attributes of its node. */
export function bodyOf(attrs: LoopAttrs): Body {
  const found = bodies.get(attrs) as Body;
  if (!import.meta.forBrowsers && !found)
    throw new NablaError("loop: these attributes are of no recorded loop; record one with loop(…)");
  return found;
}

/** Makes `body` the body of a loop with these attributes, which came from elsewhere. */
export function bodyWith(attrs: LoopAttrs, body: Body): void {
  bodies.set(attrs, intern(body));
}

let depth = 0;

/** Whether a body is being recorded: nothing can be computed, kept or assigned then. */
export const isRecordingBody = (): boolean => depth > 0;

export interface LoopParts {
  /** The carries after the last step. */
  readonly carries: readonly Node[];
  /** What the steps gave, stacked along a new first axis. */
  readonly outputs: readonly Node[];
}

export interface LoopInputs {
  readonly carries: readonly Node[];
  /** Read along their first axis, one element a step. */
  readonly sequences?: readonly Node[];
  readonly count: number;
  readonly reverse?: boolean;
}

export type RecordBody = (carries: readonly Node[], elements: readonly Node[]) => LoopParts;

/**
 * Records a loop of `count` steps: `record` gives the carries' next values and the step's outputs from the carries and one
 * element of each sequence (jax.lax.scan). Throws ShapeError and DTypeError where a carry changes its kind.
 */
export function loop(record: RecordBody, inputs: LoopInputs): LoopParts {
  const { carries, sequences = [], count, reverse = false } = inputs;
  if (!Number.isInteger(count) || count < 0)
    throw new ShapeError(`loop: count must be a whole number ≥ 0, got ${count}`);
  sequences.forEach((s, i) => {
    if (s.shape.length === 0 || s.shape[0] !== count)
      throw new ShapeError(
        `loop: sequence ${i} is ${showShape(s.shape)}, but there are ${count} steps; its first axis must be ${count}`,
      );
  });
  const specs = [...carries, ...sequences.map(({ shape, dtype }) => ({ shape: shape.slice(1), dtype }))];
  if (count === 1) return once(record, carries, sequences);
  const sealed = recordBody(record, specs, carries.length);
  const { captures } = sealed;
  let { body } = sealed;
  const steps = body.outputs;
  if (count === 0) return { carries, outputs: steps.map(({ shape, dtype }) => full([0, ...shape], 0, dtype)) };
  const all = [...carries, ...sequences, ...captures];
  // what the gradient needs is only kept where there may be one
  const saves = isGradEnabled() && all.some((x) => x.requiresGrad);
  if (saves) body = savingBody(body, carries.length);
  const attrs: LoopAttrs = {
    body: body.text,
    count,
    carries: carries.length,
    sequences: sequences.length,
    outputs: body.outputs.map(({ dtype, shape }) => [dtype, ...shape] as const),
    reverse,
    saved: saves,
  };
  if (carries.length + body.outputs.length === 0) return { carries: [], outputs: [] };
  bodies.set(attrs, body);
  const node = make(p.loop, all, attrs as unknown as Attrs);
  // the node stands for its first output, which must not look as if it had a gradient
  if (!node.outputs?.some(({ dtype }) => isFloat(dtype))) node.requiresGrad = false;
  const first = node.requiresGrad && !isFloat(node.dtype) ? detach(node) : node;
  const out = (i: number): Node => (i === 0 ? first : output(node, i));
  return {
    carries: carries.map((_, i) => out(i)),
    outputs: steps.map((_, i) => out(carries.length + i)),
  };
}

/** One step needs no loop. */
function once(record: RecordBody, carries: readonly Node[], sequences: readonly Node[]): LoopParts {
  depth++;
  try {
    const made = record(
      carries,
      sequences.map((s) => reshape(s, s.shape.slice(1))),
    );
    checkCarries(made.carries, carries);
    return { carries: made.carries, outputs: made.outputs.map((x) => reshape(x, [1, ...x.shape])) };
  } finally {
    depth--;
  }
}

const savingBodies = new WeakMap<Body, Body>();

/** The body that also gives the carries as it finds them. */
function savingBody(body: Body, carries: number): Body {
  let saving = savingBodies.get(body);
  if (!saving) {
    const text = `${body.text}; carries`;
    saving = intern({ ...body, text, outputs: [...body.outputs, ...body.inputs.slice(0, carries)] });
    savingBodies.set(body, saving);
  }
  return saving;
}

const placeholder = (index: number, { shape, dtype }: Spec): Node => {
  const node = make(p.placeholder, [], { index, shape, dtype });
  node.requiresGrad = isFloat(dtype);
  return node;
};

/** Movements that a body does itself, so that what they move is captured, and not what they make of it. */
const moves: ReadonlySet<string> = new Set(["reshape", "expand", "permute"]);

function recordBody(record: RecordBody, specs: readonly Spec[], carries: number): { body: Body; captures: Node[] } {
  const gradients = setGradEnabled(true);
  depth++;
  try {
    const given = specs.map((spec, i) => placeholder(i, spec));
    const first = (given[0] ?? placeholder(-1, { shape: [], dtype: "bool" })).id;
    const made = record(given.slice(0, carries), given.slice(carries));
    checkCarries(made.carries, specs.slice(0, carries));
    return seal(given, first, made);
  } finally {
    depth--;
    setGradEnabled(gradients);
  }
}

function checkCarries(next: readonly Node[], specs: readonly Spec[]): void {
  if (next.length !== specs.length)
    throw new ShapeError(`loop: the body gives ${next.length} carries and gets ${specs.length}; they must be as many`);
  next.forEach((node, i) => {
    if (!sameShape(node.shape, specs[i].shape))
      throw new ShapeError(
        `loop: carry ${i} goes into the body as ${showShape(specs[i].shape)} and comes out as ${showShape(node.shape)}; a carry keeps its shape`,
      );
    if (node.dtype !== specs[i].dtype)
      throw new DTypeError(
        `loop: carry ${i} goes into the body as ${specs[i].dtype} and comes out as ${node.dtype}; cast it with .to("${specs[i].dtype}")`,
      );
  });
}

/** Rewrites what was recorded over placeholders alone, and says what else it reads. */
function seal(given: readonly Node[], first: number, made: LoopParts): { body: Body; captures: Node[] } {
  const roots = [...made.carries, ...made.outputs];
  const older = (n: Node): boolean => n.id < first || n.storage !== null;
  const order = topologicalOrder(roots, (n) => older(n) || n.operation.group === "leaf");
  /** What depends on a placeholder, and what depends on nothing at all, is the body's own. */
  const depends = new Set<Node>(given);
  const literal = new Set<Node>();
  for (const n of order) {
    if (older(n) || depends.has(n)) continue;
    if (n.state !== null) throw new NablaError("loop: the body assigns to a state; make what changes a carry");
    if (n.operation === p.random)
      throw new NablaError(
        "loop: the body draws random numbers, which would be the same at every step; draw them before, as a sequence",
      );
    if (n.operation === p.const || n.operation === p.iota) literal.add(n);
    else if (n.inputs.some((x) => depends.has(x))) depends.add(n);
    else if (n.inputs.length > 0 && n.inputs.every((x) => literal.has(x))) literal.add(n);
  }
  const inside = (n: Node): boolean =>
    depends.has(n) || literal.has(n) || (!older(n) && n.inputs.length > 0 && moves.has(n.operation.name));
  const used = new Set<Node>(roots);
  for (let i = order.length - 1; i >= 0; i--)
    if (used.has(order[i]) && inside(order[i])) for (const x of order[i].inputs) used.add(x);
  const copies = new Map<Node, Node>();
  const inputs = given.map((n, i) => placeholder(i, n));
  const nodes: Node[] = inputs.slice();
  const numbers = new Map<Node, number>(inputs.map((n, i) => [n, i]));
  for (let i = 0; i < given.length; i++) copies.set(given[i], inputs[i]);
  const captures: Node[] = [];
  const lines = given.map(showSpec);
  for (const n of order) {
    if (!used.has(n) || copies.has(n)) continue;
    let copy: Node;
    if (inside(n)) {
      const sources = n.inputs.map((x) => copies.get(x) as Node);
      const stops = !n.requiresGrad && isFloat(n.dtype) && n.inputs.some((x) => x.requiresGrad);
      copy = make(n.operation, sources, n.attrs);
      if (stops) copy.requiresGrad = false;
      lines.push(
        `${n.operation.name}(${sources.map((x) => numbers.get(x)).join(" ")})${stops ? " detached" : ""} ${showAttrs(n.attrs)}`,
      );
    } else {
      copy = placeholder(inputs.length, n);
      inputs.push(copy);
      captures.push(n);
      lines.push(showSpec(n));
    }
    numbers.set(copy, nodes.length);
    nodes.push(copy);
    copies.set(n, copy);
  }
  const at = (list: readonly Node[]): Node[] => list.map((n) => copies.get(n) as Node);
  const [next, outputs] = [at(made.carries), at(made.outputs)];
  const show = (list: readonly Node[]): string => list.map((n) => numbers.get(n)).join(" ");
  const text = `${lines.join("\n")}\n→ ${show(next)}; ${show(outputs)}`;
  return { body: intern({ text, inputs, next, outputs, order: nodes }), captures };
}

const showSpec = ({ shape, dtype }: Spec): string => `input ${dtype}${showShape(shape)}`;

/** JSON has no NaN, no infinities and no −0. */
const showAttrs = (attrs: Attrs): string =>
  JSON.stringify(attrs, (_, v: AttrValue) =>
    typeof v === "number" && (!Number.isFinite(v) || Object.is(v, -0)) ? `number ${Object.is(v, -0) ? "-0" : v}` : v,
  );

/** The body over these inputs: its carries' next values and its outputs. Records in the present mode. */
export function recordStep(body: Body, inputs: readonly Node[]): { next: Node[]; outputs: Node[] } {
  const copies = new Map<Node, Node>(body.inputs.map((n, i) => [n, inputs[i]]));
  for (const n of body.order) {
    if (copies.has(n)) continue;
    const copy = make(
      n.operation,
      n.inputs.map((x) => copies.get(x) as Node),
      n.attrs,
    );
    if (!n.requiresGrad) copy.requiresGrad = false;
    copies.set(n, copy);
  }
  const at = (list: readonly Node[]): Node[] => list.map((n) => copies.get(n) as Node);
  return { next: at(body.next), outputs: at(body.outputs) };
}

/** The number of the sequences' element that step t reads. */
export const elementAt = ({ count, reverse }: Pick<LoopAttrs, "count" | "reverse">, t: number): number =>
  reverse ? count - 1 - t : t;

/** A loop's outputs step by step, without a loop: for backends that have none of their own. */
export function unrolled(node: Node): Node[] {
  const a = loopAttrs(node);
  const body = bodyOf(a);
  const sequences = node.inputs.slice(a.carries, a.carries + a.sequences);
  const captures = node.inputs.slice(a.carries + a.sequences);
  let carries = node.inputs.slice(0, a.carries);
  const stacks: Node[][] = body.outputs.map(() => new Array<Node>(a.count));
  for (let t = 0; t < a.count; t++) {
    const k = elementAt(a, t);
    const elements = sequences.map((s) => reshape(narrow(s, 0, k, 1), s.shape.slice(1)));
    const { next, outputs } = recordStep(body, [...carries, ...elements, ...captures]);
    outputs.forEach((x, i) => {
      stacks[i][k] = reshape(x, [1, ...x.shape]);
    });
    carries = next;
  }
  return [...carries, ...stacks.map((steps) => concat(steps, 0))];
}
