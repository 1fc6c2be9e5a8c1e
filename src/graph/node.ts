/**
 * The node of the one graph that everything is recorded in: values, gradients and state updates alike.
 * A node is a row of an operation table, its inputs and attributes, and the shape and dtype inferred from them.
 * Nothing is computed here; `execution/` turns nodes into values and makes them leaves by giving them a storage.
 */
import type { DType, TypedArray } from "../core/dtype.ts";
import { dtypes, isFloat } from "../core/dtype.ts";
import { BackendError } from "../core/errors.ts";
import { type Shape, showShape } from "../core/shape.ts";

/** Attributes: plain data that is part of a node's identity (and so of a program's key). */
export type Attrs = Readonly<Record<string, AttrValue>>;
export type AttrValue = number | boolean | string | null | readonly AttrValue[];

export const noAttrs: Attrs = Object.freeze({});

export interface Spec {
  readonly shape: Shape;
  readonly dtype: DType;
}

export type Group =
  | "leaf"
  | "unary"
  | "binary"
  | "choice"
  | "movement"
  | "reduction"
  | "prefix"
  | "contraction"
  | "indexed"
  | "random"
  | "state"
  | "control"
  | "composite";

/** Source of a kernel for an operation of a user's own; the language is the backend's (cpu: C, see `autograd/define.ts`). */
export interface KernelSource {
  /** How many rows there are to share out among threads: any unit of work that the body can do in ranges. */
  readonly rows: number;
  /** Rows that one call gets at most, and at least but for the last; left out: chosen from `rows`. */
  readonly grain?: number;
  /** The statements that compute rows r0 … r1 − 1. */
  readonly body: string;
  /** Names that the source needs and that the backend does not see in it (`f_erf`, behind a macro). */
  readonly needs?: readonly string[];
}

/** A kernel for these shapes and dtypes, or null: then the decomposition is used. A pure function. */
export type KernelRecipe<A = Attrs> = (
  inputs: readonly Spec[],
  outputs: readonly Spec[],
  attrs: A,
) => KernelSource | null;

/** A row of an operation table. `code` numbers the rows in order of registration. */
export interface Operation {
  readonly name: string;
  readonly code: number;
  readonly group: Group;
  /** Shapes and dtypes of the outputs; throws where the inputs do not fit. Most operations have one output. */
  readonly infer: (inputs: readonly Node[], attrs: Attrs) => Spec | readonly Spec[];
  /** Composites: the same meaning in primitives (or simpler composites), one node an output. */
  readonly decompose?: (inputs: readonly Node[], attrs: Attrs) => readonly Node[];
  /** Composites of a user's own: kernels by the backend's name. The backend runs such a node whole, where the recipe fits. */
  readonly kernels?: { readonly cpu?: KernelRecipe };
}

const registry = new Map<string, Operation>();

/** Adds a row; names are unique over both tables. */
export function registerOperation(row: Omit<Operation, "code">): Operation {
  if (registry.has(row.name)) throw new BackendError(`operation "${row.name}" is already defined; choose another name`);
  const operation = { ...row, code: registry.size };
  registry.set(row.name, operation);
  return operation;
}

export const operations: ReadonlyMap<string, Operation> = registry;

/** Memory on a device that outlives a program. `memory` belongs to the backend. */
export class Storage {
  /** Counts assignments; a node that reads the storage carries the version that it means. */
  version = 0;
  readonly device: string;
  readonly dtype: DType;
  readonly length: number;
  /** null until the device is open and something needs the storage. */
  memory: unknown;
  /** Raw elements on their way to the device: written, and let go, before the first program that reads the storage. */
  upload: TypedArray | Promise<TypedArray> | null = null;
  /** Whether assigns write it: a state. Other storages never change. */
  mutable = false;
  /** What errors call the state, where it has a name ("fc1.weight"). */
  name = "";
  /** Scratch of the capture: the capture that last met this storage, and its index there. */
  mark = 0;
  slot = 0;
  constructor(device: string, dtype: DType, length: number, memory: unknown) {
    this.device = device;
    this.dtype = dtype;
    this.length = length;
    this.memory = memory;
  }
  get bytes(): number {
    return this.length * dtypes[this.dtype].bytes;
  }
}

let nextId = 1;
let gradMode = true;
let region = 0;

/** Whether new nodes take part in autograd. */
export const isGradEnabled = (): boolean => gradMode;
export function setGradEnabled(enabled: boolean): boolean {
  const before = gradMode;
  gradMode = enabled;
  return before;
}

/** The checkpoint region that new nodes belong to: equal nodes of two regions are never merged. */
export function setRegion(next: number): number {
  const before = region;
  region = next;
  return before;
}

export class Node {
  readonly id: number;
  readonly operation: Operation;
  /** Sources. Dropped when the node has a value and no gradient can flow through it. */
  inputs: readonly Node[];
  readonly attrs: Attrs;
  readonly shape: Shape;
  readonly dtype: DType;
  /** "" for nodes that are at home everywhere (constants, scalars, iota). */
  readonly device: string;
  readonly region: number;
  requiresGrad: boolean;
  /** Set by a backward pass that gave the graph up; its sources stay until the value is there. */
  released = false;
  /** All outputs' specs, where there are several; `shape` and `dtype` are those of output 0. */
  readonly outputs: readonly Spec[] | null;
  /** The value of a `scalar` leaf: a slot of the program, not part of its key. */
  value = 0;
  /** Where the value lies once there is one; the node is then a leaf. */
  storage: Storage | null = null;
  /** The storage's version that this node means. */
  version = 0;
  /** `assign` nodes: the state that they write. */
  state: Storage | null = null;
  /** Leaves of autograd: the tensor whose `.grad` collects their gradient. */
  owner: object | null = null;
  /** Recorded operations on the longest way from a value; execution cuts chains that grow too long. */
  depth: number;
  /** Scratch of the capture: the capture that last met this node, and its index there. */
  mark = 0;
  slot = 0;
  /** Scratch of autograd: the walk that last met this node, and its place there. */
  walk = 0;
  place = 0;

  constructor(
    operation: Operation,
    inputs: readonly Node[],
    attrs: Attrs,
    shape: Shape,
    dtype: DType,
    device: string,
    requiresGrad: boolean,
    outputs: readonly Spec[] | null,
  ) {
    this.id = nextId++;
    this.operation = operation;
    this.inputs = inputs;
    this.attrs = attrs;
    this.shape = shape;
    this.dtype = dtype;
    this.device = device;
    this.region = region;
    this.requiresGrad = requiresGrad;
    this.outputs = outputs;
    let depth = 0;
    for (let i = 0; i < inputs.length; i++) if (inputs[i].depth > depth) depth = inputs[i].depth;
    this.depth = depth + 1;
  }

  toString(): string {
    return `%${this.id} = ${this.operation.name} ${this.dtype}${showShape(this.shape)}`;
  }
}

/** Whether a node means what its storage holds now. */
export const isCurrent = (node: Node): boolean => node.storage !== null && node.storage.version === node.version;

/** Records an operation: infers its outputs, checks that its inputs share a device. */
export function make(operation: Operation, inputs: readonly Node[], attrs: Attrs = noAttrs): Node {
  let device = "";
  let grad = false;
  for (let i = 0; i < inputs.length; i++) {
    const input = inputs[i];
    if (input.device !== "" && input.device !== device) {
      if (device !== "")
        throw new BackendError(
          `${operation.name}: its inputs live on different devices (${device} and ${input.device}); move one with .to("${device}")`,
        );
      device = input.device;
    }
    if (input.requiresGrad) grad = true;
  }
  const spec = operation.infer(inputs, attrs);
  if (Array.isArray(spec)) {
    const outputs = spec as readonly Spec[];
    const first = outputs[0];
    return new Node(operation, inputs, attrs, first.shape, first.dtype, device, grad && gradMode, outputs);
  }
  const { shape, dtype } = spec as Spec;
  return new Node(operation, inputs, attrs, shape, dtype, device, grad && gradMode && isFloat(dtype), null);
}

/** Nodes in an order in which every node follows its inputs; stops below nodes for which `isLeaf` holds. Iterative. */
export function topologicalOrder(roots: readonly Node[], isLeaf: (node: Node) => boolean): Node[] {
  const order: Node[] = [];
  const seen = new Set<Node>();
  const stack: Node[] = [];
  const next: number[] = [];
  for (const root of roots) {
    if (seen.has(root)) continue;
    seen.add(root);
    stack.push(root);
    next.push(0);
    while (stack.length) {
      const top = stack.length - 1;
      const node = stack[top];
      const inputs = node.inputs;
      if (next[top] < inputs.length && !isLeaf(node)) {
        const input = inputs[next[top]++];
        if (!seen.has(input)) {
          seen.add(input);
          stack.push(input);
          next.push(0);
        }
      } else {
        order.push(node);
        stack.pop();
        next.pop();
      }
    }
  }
  return order;
}
