/**
 * Evaluates nodes on a backend without execution/ or tensors: builds a capture by hand, compiles it, runs it once.
 * For tests at the level of the graph.
 */

import type { Backend, Capture, Program } from "../../src/backends/backend.ts";
import { allocateRaw, type DType, decode, dtypes, encode, type TypedArray } from "../../src/core/dtype.ts";
import { type Shape, sizeOf } from "../../src/core/shape.ts";
import { type Node, Storage, topologicalOrder } from "../../src/graph/node.ts";
import { leaf } from "../../src/graph/ops.ts";

export interface Assign {
  /** A leaf that reads the state to overwrite. */
  readonly target: Node;
  readonly value: Node;
}

const isLeaf = (node: Node): boolean => node.storage !== null || node.operation.group === "leaf";

/** A leaf holding `values` (numbers, encoded to `dtype`). */
export function nodeFrom(backend: Backend, values: ArrayLike<number>, shape: Shape, dtype: DType): Node {
  const raw = allocateRaw(dtype, sizeOf(shape));
  if (values.length !== raw.length) throw new Error(`${values.length} values for ${raw.length} elements`);
  encode(dtype, values, raw);
  return nodeFromRaw(backend, raw, shape, dtype);
}

/** A leaf holding raw elements (16-bit floats as bits). */
export function nodeFromRaw(backend: Backend, raw: TypedArray, shape: Shape, dtype: DType): Node {
  const memory = backend.allocate(raw.byteLength);
  backend.write(memory, raw);
  return leaf(new Storage(backend.name, dtype, raw.length, memory), shape);
}

/** What execution/ would hand to a backend for these roots and state writes. */
export function captureOf(roots: readonly Node[], assigns: readonly Assign[] = []): Capture {
  const order = topologicalOrder([...roots, ...assigns.map(({ value }) => value)], isLeaf);
  const storages = [...new Set([...order, ...assigns.map(({ target }) => target)].flatMap((n) => n.storage ?? []))];
  const scalars = order.filter((node) => node.operation.name === "scalar" && !node.storage);
  return {
    order,
    storages,
    scalars,
    roots,
    assigns: assigns.map(({ target, value }) => ({ storage: storages.indexOf(target.storage as Storage), value })),
  };
}

export interface Compiled {
  readonly program: Program;
  /** Runs once with the scalars' present values; raw results, one a root. */
  run(): Promise<TypedArray[]>;
}

export async function compileNodes(
  backend: Backend,
  roots: readonly Node[],
  assigns: readonly Assign[] = [],
): Promise<Compiled> {
  const capture = captureOf(roots, assigns);
  const program = await backend.compile(capture);
  const run = async (): Promise<TypedArray[]> => {
    const outputs = roots.map((root) => backend.allocate(sizeOf(root.shape) * dtypes[root.dtype].bytes));
    await program.run({
      buffers: capture.storages.map((storage) => storage.memory),
      scalars: Float64Array.from(capture.scalars, (node) => node.value),
      outputs,
    });
    return Promise.all(roots.map((root, i) => backend.read(outputs[i], root.dtype, sizeOf(root.shape))));
  };
  return { program, run };
}

/** Values of the roots, the 16-bit floats decoded. A root that is a leaf is read as it is. */
export async function evaluate(
  backend: Backend,
  roots: readonly Node[],
  assigns: readonly Assign[] = [],
): Promise<TypedArray[]> {
  const computed = roots.filter((root) => !root.storage);
  const results = computed.length || assigns.length ? await (await compileNodes(backend, computed, assigns)).run() : [];
  const out: TypedArray[] = [];
  for (const root of roots) {
    const raw = root.storage
      ? await backend.read(root.storage.memory, root.dtype, root.storage.length)
      : results[computed.indexOf(root)];
    out.push(decode(root.dtype, raw));
  }
  return out;
}
