/**
 * What goes between a page and the worker that computes for it: messages of plain data, and captures in them. A capture
 * is written as lists of nodes that name their inputs by number and their operations by name; the bodies of its loops
 * go with it. Operations that the other side does not know (a user's own) are decomposed before.
 */
import type { DType, TypedArray } from "../../core/dtype.ts";
import { BackendError } from "../../core/errors.ts";
import type { Shape } from "../../core/shape.ts";
import { type Body, bodyOf, type LoopAttrs } from "../../graph/loop.ts";
import {
  type Attrs,
  type Node,
  type Spec,
  type Storage,
  setGradEnabled,
  setRegion,
  topologicalOrder,
} from "../../graph/node.ts";
import type { Capture, ProgramStats } from "../backend.ts";

/** From the page to the worker. `call` numbers what is answered; memory and programs are numbered by the page. */
export type Request =
  | { kind: "open"; call: number; backend: string }
  | { kind: "allocate"; memory: number; bytes: number }
  | { kind: "write"; memory: number; data: TypedArray }
  | { kind: "free"; memory: number }
  | { kind: "read"; call: number; memory: number; dtype: DType; length: number }
  | { kind: "compile"; call: number; program: number; capture: WireCapture }
  | {
      kind: "run";
      call: number;
      program: number;
      buffers: readonly number[];
      scalars: Float64Array;
      outputs: readonly number[];
    }
  | { kind: "dispose"; program: number };

/** What the worker says of the backend that it has opened. */
export interface Opened {
  readonly dtypes: readonly DType[];
  /** The operations that it knows, by name. */
  readonly operations: readonly string[];
}

/** From the worker to the page: the answer to a call, or what went wrong. */
export type Answer =
  | { call: number; value: Opened | ProgramStats | TypedArray | null }
  | { call: number; error: WireError };

export interface WireError {
  readonly name: string;
  readonly message: string;
}

export interface WireNode {
  readonly op: string;
  readonly inputs: readonly number[];
  readonly attrs: Attrs;
  readonly shape: Shape;
  readonly dtype: DType;
  readonly region: number;
  readonly outputs: readonly Spec[] | null;
  /** The storage that it reads, −1 for none. */
  readonly storage: number;
  /** The body of a loop, −1 for other operations. */
  readonly body: number;
}

interface WireBody {
  readonly text: string;
  readonly nodes: readonly WireNode[];
  readonly inputs: readonly number[];
  readonly next: readonly number[];
  readonly outputs: readonly number[];
}

export interface WireCapture {
  readonly nodes: readonly WireNode[];
  readonly storages: readonly { readonly dtype: DType; readonly length: number }[];
  readonly scalars: readonly number[];
  readonly roots: readonly number[];
  readonly assigns: readonly { readonly storage: number; readonly value: number }[];
  /** Bodies of loops, inner before outer. */
  readonly bodies: readonly WireBody[];
}

/** Writes nodes, inputs before users. */
class Writer {
  readonly nodes: WireNode[] = [];
  /** The numbers of each node's outputs: one, where it is not an unknown operation with several. */
  readonly #numbers = new Map<Node, readonly number[]>();
  readonly #known: ReadonlySet<string>;
  readonly #storages: ReadonlyMap<Storage, number>;
  readonly #bodies: Map<Body, WireBody>;

  constructor(known: ReadonlySet<string>, storages: ReadonlyMap<Storage, number>, bodies: Map<Body, WireBody>) {
    this.#known = known;
    this.#storages = storages;
    this.#bodies = bodies;
  }

  number(node: Node): number {
    const numbers = this.#numbers.get(node);
    if (!numbers) throw new BackendError(`remote: ${node} is used before it is written`);
    return numbers[0];
  }

  numbers(nodes: readonly Node[]): number[] {
    return nodes.map((node) => this.number(node));
  }

  add(node: Node): void {
    if (!this.#numbers.has(node)) this.#numbers.set(node, this.#write(node));
  }

  #write(node: Node): readonly number[] {
    const { operation, inputs, attrs, shape, dtype, region, outputs, storage } = node;
    if (storage) return this.#push(node, [], this.#storages.get(storage) as number, -1);
    if (node.state !== null) return [this.number(inputs[1])]; // as a value, an assign node is its value
    if (operation.name === "output") {
      const parts = this.#numbers.get(inputs[0]) as readonly number[];
      if (parts.length > 1) return [parts[attrs["index"] as number]];
    }
    if (!this.#known.has(operation.name)) return this.#decompose(node);
    const body = operation.name === "loop" ? this.#body(bodyOf(attrs as LoopAttrs)) : -1;
    return this.#push({ operation, attrs, shape, dtype, region, outputs }, this.numbers(inputs), -1, body);
  }

  #push(
    node: Pick<Node, "operation" | "attrs" | "shape" | "dtype" | "region" | "outputs">,
    inputs: readonly number[],
    storage: number,
    body: number,
  ): readonly number[] {
    const { operation, attrs, shape, dtype, region, outputs } = node;
    const number = this.nodes.length;
    this.nodes.push({ op: operation.name, inputs, attrs, shape, dtype, region, outputs, storage, body });
    return [number];
  }

  #decompose({ operation, inputs, attrs, region }: Node): readonly number[] {
    if (!operation.decompose)
      throw new BackendError(
        `${operation.name}: the worker does not know it, and it has no decomposition; give defineOperation a decompose`,
      );
    const gradients = setGradEnabled(false);
    const outer = setRegion(region);
    try {
      const parts = operation.decompose(inputs, attrs);
      for (const node of topologicalOrder(parts, (n) => this.#numbers.has(n) || n.storage !== null)) this.add(node);
      return this.numbers(parts);
    } finally {
      setRegion(outer);
      setGradEnabled(gradients);
    }
  }

  /** The number of a loop's body, which is written once. */
  #body(body: Body): number {
    if (!this.#bodies.has(body)) {
      const writer = new Writer(this.#known, this.#storages, this.#bodies);
      for (const node of body.order) writer.add(node);
      this.#bodies.set(body, {
        text: body.text,
        nodes: writer.nodes,
        inputs: writer.numbers(body.inputs),
        next: writer.numbers(body.next),
        outputs: writer.numbers(body.outputs),
      });
    }
    return [...this.#bodies.keys()].indexOf(body);
  }
}

/** A capture as plain data, for a backend that knows the operations `known`. */
export function writeCapture(capture: Capture, known: ReadonlySet<string>): WireCapture {
  const storages = new Map(capture.storages.map((storage, i) => [storage, i]));
  const bodies = new Map<Body, WireBody>();
  const writer = new Writer(known, storages, bodies);
  for (const node of capture.order) writer.add(node);
  return {
    nodes: writer.nodes,
    storages: capture.storages.map(({ dtype, length }) => ({ dtype, length })),
    scalars: writer.numbers(capture.scalars),
    roots: writer.numbers(capture.roots),
    assigns: capture.assigns.map(({ storage, value }) => ({ storage, value: writer.number(value) })),
    bodies: [...bodies.values()],
  };
}
