/**
 * From a capture to a flat list of primitive instructions over numbered registers: composites are replaced by their
 * decompositions, reshape and detach share their input's register, unused work falls away. The result holds shapes and
 * attributes, no nodes. Iterative throughout.
 */
import { bodyCapture } from "../../compiler/loop.ts";
import type { DType } from "../../core/dtype.ts";
import { BackendError } from "../../core/errors.ts";
import { type Shape, showShape } from "../../core/shape.ts";
import { loopAttrs } from "../../graph/loop.ts";
import type { Attrs, Node, Spec } from "../../graph/node.ts";
import type { Capture } from "../backend.ts";

export type Source =
  | { readonly from: "storage"; readonly index: number }
  | { readonly from: "scalar"; readonly index: number }
  | { readonly from: "instruction"; readonly index: number };

/** A value: where it comes from, and its element type and count. */
export interface Register {
  readonly source: Source;
  readonly dtype: DType;
  readonly shape: Shape;
}

export interface Instruction {
  readonly name: string;
  readonly attrs: Attrs;
  /** Registers read. */
  readonly reads: readonly number[];
  /** The inputs as this instruction sees them: a register's shape may differ (reshape shares it). */
  readonly inputs: readonly Spec[];
  readonly shape: Shape;
  readonly dtype: DType;
  /** The registers written: one, of a loop one an output. */
  readonly writes: readonly number[];
  /** A loop: what a step does. */
  readonly loop?: { readonly body: Lowered; readonly storages: readonly Spec[] };
}

export interface Lowered {
  readonly registers: readonly Register[];
  readonly instructions: readonly Instruction[];
  /** Registers of the capture's roots and of the values it assigns. */
  readonly roots: readonly number[];
  readonly assigns: readonly { readonly storage: number; readonly value: number }[];
}

/** Rows that only give another name to the register of one input. */
const aliases: Readonly<Record<string, number>> = { reshape: 0, detach: 0, assign: 1 };

export function lower(capture: Capture): Lowered {
  const registers: Register[] = [];
  const instructions: Instruction[] = [];
  const registerOf = new Map<Node, number>();
  const parts = new Map<Node, readonly Node[]>();
  const storageIndex = new Map(capture.storages.map((storage, i) => [storage, i]));
  const scalarIndex = new Map(capture.scalars.map((node, i) => [node, i]));
  const storageRegister = new Map<number, number>();

  const decomposed = (node: Node): readonly Node[] => {
    let out = parts.get(node);
    if (!out) {
      const { decompose, name } = node.operation;
      if (!decompose)
        throw new BackendError(
          `reference: the composite "${name}" ${showShape(node.shape)} has no decomposition; give its row a decompose function, or use a backend that has a template for it`,
        );
      out = decompose(node.inputs, node.attrs);
      parts.set(node, out);
    }
    return out;
  };

  const addRegister = (register: Register): number => registers.push(register) - 1;

  function lowerLeaf(node: Node): number {
    const { shape, dtype } = node;
    if (node.storage) {
      const index = storageIndex.get(node.storage);
      if (index === undefined)
        throw new BackendError(`reference: ${node} reads a storage that the capture does not list`);
      let register = storageRegister.get(index);
      if (register === undefined) {
        register = addRegister({ source: { from: "storage", index }, dtype, shape });
        storageRegister.set(index, register);
      }
      return register;
    }
    if (node.operation.name === "scalar") {
      const index = scalarIndex.get(node);
      if (index === undefined) throw new BackendError(`reference: ${node} is not among the capture's scalars`);
      return addRegister({ source: { from: "scalar", index }, dtype, shape });
    }
    if (node.operation.name === "buffer") throw new BackendError(`reference: ${node} has no storage`);
    return lowerPrimitive(node);
  }

  /** Adds the instruction of a node; gives the registers that it writes, one for each of `outputs`. */
  function addInstruction(node: Node, outputs: readonly Spec[], loop?: Instruction["loop"]): readonly number[] {
    const { shape, dtype, attrs } = node;
    const source = { from: "instruction", index: instructions.length } as const;
    const writes = outputs.map((output) => addRegister({ source, dtype: output.dtype, shape: output.shape }));
    instructions.push({
      name: node.operation.name,
      attrs,
      reads: node.inputs.map((input) => registerOf.get(input) as number),
      inputs: node.inputs.map((input) => ({ shape: input.shape, dtype: input.dtype })),
      shape,
      dtype,
      writes,
      ...(loop && { loop }),
    });
    return writes;
  }

  const lowerPrimitive = (node: Node): number => addInstruction(node, [node])[0];

  /** The registers of the loops' outputs. */
  const loops = new Map<Node, readonly number[]>();

  function lowerLoop(node: Node): number {
    const capture = bodyCapture(loopAttrs(node));
    const storages = capture.storages.map(({ dtype, length }) => ({ dtype, shape: [length] }));
    const writes = addInstruction(node, node.outputs as readonly Spec[], { body: lower(capture), storages });
    loops.set(node, writes);
    return writes[0];
  }

  const isLoop = (node: Node): boolean => node.operation.name === "loop";

  /** The nodes whose registers `node` needs before it can have its own. */
  function needs(node: Node): readonly Node[] {
    if (node.storage || node.operation.group === "leaf") return [];
    if (node.operation.group === "composite") return [decomposed(node)[0]];
    const { name } = node.operation;
    if (name === "output" && isLoop(node.inputs[0]) && !node.inputs[0].storage) return [node.inputs[0]];
    if (name === "output") return [decomposed(node.inputs[0])[node.attrs["index"] as number]];
    return name in aliases ? [node.inputs[aliases[name]]] : node.inputs;
  }

  function visit(root: Node): number {
    const stack = [root];
    while (stack.length) {
      const node = stack[stack.length - 1];
      if (registerOf.has(node)) {
        stack.pop();
        continue;
      }
      const needed = needs(node);
      const before = stack.length;
      for (let i = needed.length - 1; i >= 0; i--) if (!registerOf.has(needed[i])) stack.push(needed[i]);
      if (stack.length > before) continue;
      stack.pop();
      const { group, name } = node.operation;
      if (node.storage || group === "leaf") registerOf.set(node, lowerLeaf(node));
      else if (isLoop(node)) registerOf.set(node, lowerLoop(node));
      else if (name === "output" && loops.has(node.inputs[0]))
        registerOf.set(node, (loops.get(node.inputs[0]) as readonly number[])[node.attrs["index"] as number]);
      else if (group === "composite" || name === "output" || name in aliases)
        registerOf.set(node, registerOf.get(needed[0]) as number);
      else registerOf.set(node, lowerPrimitive(node));
    }
    return registerOf.get(root) as number;
  }

  return {
    roots: capture.roots.map(visit),
    assigns: capture.assigns.map(({ storage, value }) => ({ storage, value: visit(value) })),
    registers,
    instructions,
  };
}

/** One line: `%3 float32[2, 4] = add %1 %2`, attributes in braces. */
export function showInstruction({ name, attrs, reads, shape, dtype, writes }: Instruction): string {
  const given = Object.entries(attrs).filter(([key]) => key !== "shape" && key !== "dtype" && key !== "body");
  const text = given.map(([key, value]) => `${key}: ${JSON.stringify(value)}`).join(", ");
  const operands = reads.map((r) => ` %${r}`).join("");
  return `%${writes[0]} ${dtype}${showShape(shape)} = ${name}${operands}${text ? ` {${text}}` : ""}`;
}
