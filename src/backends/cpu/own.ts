/**
 * Kernels of a user's own (`defineOperation({ kernels: { cpu } })`): from an operation's recipe to the source of a kernel
 * and the command that runs it. What the body may use is told in `autograd/define.ts`; shapes are the caller's affair.
 */
import type { GNode } from "../../compiler/lower.ts";
import type { DType } from "../../core/dtype.ts";
import { BackendError } from "../../core/errors.ts";
import { sizeOf } from "../../core/shape.ts";
import { type KernelRecipe, type KernelSource, type Node, operations, type Spec } from "../../graph/node.ts";
import { lanesFor, lanesPrelude } from "./lanes.ts";
import type { CommandSource, Commands } from "./shared-templates.ts";

/** Element types in memory, by their names in lanes.h. */
const elements: Readonly<Record<DType, string>> = {
  float32: "float",
  float64: "double",
  float16: "u16",
  bfloat16: "u16",
  int32: "nb_i32",
  uint32: "u32",
  uint8: "u8",
  bool: "u8",
};

/** Tiles that a kernel without a grain of its own is cut into: enough to share out evenly. */
const TILES = 32;

const recipeOf = (name: string): KernelRecipe | undefined => operations.get(name)?.kernels?.cpu;

/** Whether a node of the compiler's graph is run by a kernel of its own: one whose recipe gave null was decomposed. */
export const isOwn = (n: GNode): boolean => recipeOf(n.op) !== undefined;

/** Whether the operation has a kernel for these shapes, dtypes and attributes. */
export const hasOwnKernel = (node: Node): boolean =>
  node.operation.kernels?.cpu !== undefined &&
  askRecipe(node.operation.name, node.operation.kernels.cpu, node) !== null;

function askRecipe(name: string, recipe: KernelRecipe, n: Node | GNode): KernelSource | null {
  const spec = ({ shape, dtype }: Spec): Spec => ({ shape, dtype });
  const kernel = recipe(n.inputs.map(spec), (n.outputs ?? [n]).map(spec), n.attrs);
  if (kernel === null) return null;
  const { rows, grain = 1, body } = kernel ?? {};
  if (typeof body !== "string" || !Number.isSafeInteger(rows) || rows < 0 || !Number.isSafeInteger(grain) || grain < 1)
    throw new BackendError(
      `${name}: kernels.cpu gave rows ${rows}, grain ${grain} and a body of type ${typeof body}; expected null, or rows >= 0, grain >= 1 and C as a string`,
    );
  return kernel;
}

/** The whole source: the lanes, the pointers, the body. */
function sourceOf(n: GNode, kernel: KernelSource, features: number): CommandSource {
  const outputs = n.outputs ?? [n];
  const wide = [...n.inputs, ...outputs].some((s) => s.dtype === "float64");
  const used = new Set(kernel.needs);
  for (const m of kernel.body.matchAll(/\b([fdiu]_\w+)\b/g)) used.add(m[1]);
  const lanes = lanesFor(features, wide || [...used].some((name) => name === "d" || /^d_|_d$/.test(name)));
  if (wide) used.add("d");
  const pointers = [
    ...n.inputs.map(
      (s, i) => `const ${elements[s.dtype]} *restrict in${i} = (const ${elements[s.dtype]} *)c_->b[${i}];`,
    ),
    ...outputs.map(
      (s, i) => `${elements[s.dtype]} *restrict out${i} = (${elements[s.dtype]} *)c_->b[${n.inputs.length + i}];`,
    ),
  ];
  const names = [...n.inputs.map((_, i) => `in${i}`), ...outputs.map((_, i) => `out${i}`), "tid_"];
  // plain loops are what most bodies are: gcc makes vectors of them only from -O3 on
  const text = `#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("O3")
#endif
${lanesPrelude(lanes, used)}
/* ${n.op.replaceAll("*/", "* /")} */
void nabla_kernel(const Cmd *c_, nb_i64 r0, nb_i64 r1, int tid_) {
  ${pointers.join("\n  ")}
  ${names.map((x) => `(void)${x};`).join(" ")}
  {
${kernel.body}
  }
}
`;
  return { source: text, operation: n.op };
}

/** The command of such a node: inputs, then outputs. */
export function planOwn(n: GNode, features: number): Commands {
  const kernel = askRecipe(n.op, recipeOf(n.op) as KernelRecipe, n);
  if (!kernel)
    throw new BackendError(`${n.op}: kernels.cpu gave a kernel, then null for the same shapes; it has to be pure`);
  const outputs = n.outputs ?? [n];
  const { rows, grain = Math.max(1, Math.ceil(rows / TILES)) } = kernel;
  return {
    command: { fn: sourceOf(n, kernel, features), rows, grain, buffers: [], params: [] },
    buffers: [...n.inputs.map((_, i) => ({ of: i, offset: 0 })), ...outputs.map((_, i) => ({ of: -1 - i, offset: 0 }))],
    scalars: [],
    scratchBytes: 0,
    canFail: false,
    flops: [...n.inputs, ...outputs].reduce((sum, s) => sum + sizeOf(s.shape), 0),
  };
}
