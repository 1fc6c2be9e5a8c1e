/**
 * The Tensor: a name for a recorded node, with the gradient collected for it. This file holds what has identity (the node
 * it means now, state, gradients, reading); the operations are functions in the files beside it, and become methods in
 * `methods.ts`.
 */
import { type DType, decode, isFloat, type TypedArray } from "../core/dtype.ts";
import { AutogradError, DTypeError, NablaError, ShapeError } from "../core/errors.ts";
import { printedByNode } from "../core/inspect.ts";
import { type Shape, showShape, sizeOf } from "../core/shape.ts";
import { assign, cut, defaultDevice, flush, keep, maxDepth, read, resolve, toState, turn } from "../execution/index.ts";
import { isGradEnabled, type Node } from "../graph/node.ts";
import { detach, expandTo, leaf } from "../graph/ops.ts";
import { type BackwardOptions, backward, pendingGradients } from "./backward.ts";
import type { TensorMethods } from "./methods.ts";
import { inspectTensor, printTensor, remember } from "./print.ts";

/** Nested arrays of numbers (of 0 and 1 for bool), as deep as the tensor has axes. */
export type NestedNumbers = number | boolean | NestedNumbers[];

export interface Tensor extends TensorMethods {}

/** A multi-dimensional array whose value is computed when it is asked for (torch.Tensor). */
// biome-ignore lint/suspicious/noUnsafeDeclarationMerging: methods.ts puts every method of TensorMethods on the prototype
export class Tensor {
  /** What the tensor means now; for `graph/` and above, not for users. */
  node: Node;
  /** The gradient that `backward()` collected, for leaves that require one. */
  grad: Tensor | null = null;
  /** Whether it is state: in-place operations then write its memory; on other tensors they only make it mean another value. */
  isState = false;
  #name = "";

  constructor(node: Node) {
    this.node = node;
    if (node.depth > maxDepth) cut(node);
  }

  get shape(): Shape {
    return this.node.shape;
  }
  get dtype(): DType {
    return this.node.dtype;
  }
  get device(): string {
    return this.node.device === "" ? defaultDevice() : this.node.device;
  }
  /** Number of axes. */
  get ndim(): number {
    return this.node.shape.length;
  }
  /** Number of elements (torch's numel). */
  get size(): number {
    return sizeOf(this.node.shape);
  }
  numel(): number {
    return this.size;
  }

  get requiresGrad(): boolean {
    return this.node.requiresGrad;
  }
  set requiresGrad(value: boolean) {
    this.requiresGrad_(value);
  }
  /** Whether gradients end here: it was made by the user, not by an operation that is recorded for differentiation. */
  get isLeaf(): boolean {
    return !this.node.requiresGrad || this.node.owner === this;
  }

  /** What errors call this tensor, if it is state. */
  get name(): string {
    return this.#name;
  }
  set name(name: string) {
    this.#name = name;
    this.nameStorage();
  }
  /** Tells the state's memory its name; for whoever gives the tensor other memory. */
  nameStorage(): void {
    const storage = this.node.state ?? (this.isState ? this.node.storage : null);
    if (storage && this.#name) storage.name = this.#name;
  }

  /** Makes this tensor a leaf that collects a gradient, or no longer. Throws AutogradError for what an operation gave. */
  requiresGrad_(value = true): this {
    const { node } = this;
    if (value === node.requiresGrad) return this;
    if (value) {
      if (!isFloat(node.dtype))
        throw new DTypeError(`requiresGrad: only floating tensors have gradients, this one is ${node.dtype}`);
      asState(this);
      this.node.requiresGrad = true;
      this.node.owner = this;
    } else {
      if (node.owner !== this)
        throw new AutogradError(
          `requiresGrad: ${node.operation.name} ${showShape(node.shape)} is the result of an operation; only a leaf can stop to require a gradient. Use detach()`,
        );
      node.requiresGrad = false;
      node.owner = null;
    }
    return this;
  }

  /** The same value, through which no gradient flows. */
  detach(): Tensor {
    return new Tensor(detach(this.node));
  }

  /** Makes the value a root of the next flush, so that it can still be read when the state it depends on has moved on. */
  keep(): this {
    keep(this.node);
    return this;
  }

  /**
   * Adds to `.grad` of every leaf that this tensor depends on (torch.Tensor.backward). `gradient`, of this tensor's shape, may
   * be left out where there is one element. Throws AutogradError where there is no graph.
   */
  backward(gradient?: Tensor | null, options?: BackwardOptions): void {
    backward(this, gradient ?? null, options);
  }

  /** The elements in row-major order, computed if need be: a copy; 16-bit floats come as Float32Array, bool as 0 and 1. */
  async data(): Promise<TypedArray> {
    const { dtype } = this.node;
    const raw = this.raw();
    if (raw instanceof Promise) return decode(dtype, await raw);
    const pause = turn();
    if (pause) await pause;
    return decode(dtype, raw);
  }

  /** The raw elements (16-bit floats as bits); at once where the device answers at once. Throws StaleReadError. */
  raw(): TypedArray | Promise<TypedArray> {
    const { node } = this;
    if (node.storage === null) {
      const done = flush(this.device, [node, ...pendingGradients(this.device)]);
      if (done) return done.then(() => this.#read(resolve(node)));
    }
    return this.#read(resolve(node));
  }

  #read(node: Node): TypedArray | Promise<TypedArray> {
    const raw = read(node);
    if (!(raw instanceof Promise)) {
      remember(node, raw);
      return raw;
    }
    return raw.then((r) => {
      remember(node, r);
      return r;
    });
  }

  /** The one element as a number. Throws ShapeError where there are more, or none. */
  async item(): Promise<number> {
    if (this.size !== 1)
      throw new ShapeError(`item: only a tensor of one element has an item, this one is ${showShape(this.shape)}`);
    return (await this.data())[0];
  }

  /** The elements as nested arrays; a number where there are no axes. Elements of bool are true and false. */
  async tolist(): Promise<NestedNumbers> {
    const data = await this.data();
    const { shape } = this;
    const bool = this.dtype === "bool";
    const nest = (axis: number, at: number): NestedNumbers => {
      if (axis === shape.length) return bool ? data[at] !== 0 : data[at];
      const step = sizeOf(shape.slice(axis + 1));
      return Array.from({ length: shape[axis] }, (_, i) => nest(axis + 1, at + i * step));
    };
    return nest(0, 0);
  }

  /** The text that PyTorch prints for the tensor. */
  async format(): Promise<string> {
    return printTensor(this, await this.data());
  }

  /** Prints what PyTorch prints. */
  async print(): Promise<void> {
    console.log(await this.format());
  }

  /** dtype, shape and device; the values too where they have been read. */
  toString(): string {
    return inspectTensor(this);
  }
}

if (!import.meta.forBrowsers) printedByNode(Tensor);

/** The result of an operation on `x`; x itself where the operation changed nothing (a view of the whole, as in PyTorch). */
export const wrap = (x: Tensor, node: Node): Tensor => (node === x.node ? x : new Tensor(node));

/**
 * Makes a tensor state: it gets memory of its own, which in-place operations write (as assigns, in program order). Parameters,
 * buffers and optimiser moments are state.
 */
export function asState<T extends Tensor>(x: T): T {
  if (x.isState) return x;
  if (x.node.requiresGrad)
    throw new AutogradError(
      `asState: ${x.node.operation.name} ${showShape(x.shape)} is the result of a recorded operation; detach() it first`,
    );
  const node = toState(x.node);
  // a node of its own: another tensor may mean the same value without being state
  x.node = node === x.node && node.storage ? leaf(node.storage, node.shape) : node;
  x.isState = true;
  x.nameStorage();
  return x;
}

/**
 * Makes `x` mean `value`, which is broadcast to its shape: an assign where x is state. Throws AutogradError for a leaf that
 * requires a gradient while gradients are recorded, DTypeError where `value` has another category than x.
 */
export function write<T extends Tensor>(operation: string, x: T, value: Node): T {
  const { node } = x;
  if (x.isState && node.requiresGrad && isGradEnabled())
    throw new AutogradError(
      `${operation}: a leaf that requires a gradient is being changed in place; do it inside noGrad(() => …)`,
    );
  if (value.dtype !== node.dtype)
    throw new DTypeError(`${operation}: a ${value.dtype} value can't be stored in a ${node.dtype} tensor`);
  const broadcast = expandTo(value, node.shape);
  x.node = x.isState ? assign(node, broadcast) : broadcast;
  return x;
}

/** Gives a state new contents that are already in memory of their own, without a copy: for loading weights. */
export function setData(x: Tensor, source: Tensor): void {
  if (source.node === x.node) return; // it has them
  if (!x.isState) {
    x.node = source.node;
    return;
  }
  if (showShape(x.shape) !== showShape(source.shape))
    throw new ShapeError(`setData: ${showShape(source.shape)} into a tensor of shape ${showShape(x.shape)}`);
  const { requiresGrad } = x;
  const fresh = asState(new Tensor(source.requiresGrad ? detach(source.node) : source.node));
  x.node = fresh.node;
  if (requiresGrad) {
    x.node.requiresGrad = true;
    x.node.owner = x;
  }
  x.nameStorage();
}

/** Computes several tensors of one device in one program, and waits for it. */
export async function realize(...tensors: readonly Tensor[]): Promise<void> {
  const byDevice = new Map<string, Node[]>();
  for (const x of tensors) {
    if (!(x instanceof Tensor)) throw new NablaError("realize: takes tensors");
    const list = byDevice.get(x.device);
    if (list) list.push(x.node);
    else byDevice.set(x.device, [x.node]);
  }
  for (const [device, nodes] of byDevice) await flush(device, nodes);
  await turn();
}
