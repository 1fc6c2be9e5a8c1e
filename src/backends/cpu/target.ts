/**
 * What the assembler (assemble.ts) asks of the machine that its programs are for: which operations the runtime there runs
 * by itself and with which commands, and what a kernel's source is. The native runtime's is here; the `wasm` backend,
 * whose runtime has the same commands, brings its own.
 */

import type { Kernel } from "../../compiler/kernel.ts";
import type { GNode, HasTemplate, LowerRule } from "../../compiler/lower.ts";
import type { OpaqueRule } from "../../compiler/members.ts";
import type { Strided } from "../../compiler/views.ts";
import type { CommandDesc, ContractDesc, ContractPlan } from "./contract.ts";
import { lanesFor, lanesPrelude } from "./lanes.ts";
import { takesView } from "./loops.ts";
import type { NativeRuntime } from "./native.ts";
import {
  hasTemplate,
  ignores,
  isOpaque,
  partsBehind,
  planOpaque,
  readsHalf,
  takesStrided,
  widened,
} from "./native-templates.ts";
import { hasOwnKernel, isOwn, planOwn } from "./own.ts";
import { planTranspose } from "./plans.ts";
import { planQuantized, type QuantizedPlan, takesCodes } from "./quantized.ts";
import { type Check, type Form, renderKernel } from "./render.ts";
import type { Commands, Guest } from "./shared-templates.ts";

export interface Target {
  readonly rule: OpaqueRule;
  readonly hasTemplate: HasTemplate;
  readonly lowerRule?: LowerRule;
  /** The source of a kernel: equal ones are compiled once. */
  readonly render: (kernel: Kernel, form: Form) => { source: string; checks: readonly Check[] };
  readonly planContract: (desc: ContractDesc) => ContractPlan;
  /** The command of a product that reads the codes of its right side (`rule.absorbs`). */
  readonly planQuantized?: (n: GNode, a: Strided, b: Strided) => QuantizedPlan;
  /** The commands of an opaque node that is no product; `errorOp` is what it fails as. */
  readonly planOpaque: (n: GNode, looks: readonly Strided[], errorOp: number, guest?: Guest) => Commands;
  /** Into how many equal parts an opaque node's result may be cut for a kernel behind its command's tiles, most first. */
  readonly partsBehind?: (n: GNode) => readonly number[];
  /** A copy of 4-byte elements with two axes exchanged, where the runtime has it; null for another strided look. */
  readonly planTranspose?: (shape: readonly number[], from: readonly number[]) => CommandDesc<"from" | "to"> | null;
}

/** The name of the one function that a kernel's source defines. */
export const SYMBOL = "nabla_kernel";

export const nativeTarget = (runtime: NativeRuntime): Target => ({
  rule: {
    isOpaque: (n) => n.op === "loop" || isOpaque(n) || isOwn(n),
    takesStrided: (n, operand, inMemory) => (n.op === "loop" ? takesView : takesStrided)(n, operand, inMemory),
    ignores,
    absorbs: takesCodes,
  },
  lowerRule: {
    readsHalf,
    replace: widened,
    rounds: (shape) => shape.length === 2 && shape[0] > runtime.shape.skinnyRows,
  },
  hasTemplate: (name, node) => name === "loop" || hasTemplate(name, node) || hasOwnKernel(node),
  render: (kernel, form) => {
    const { body, needed, hasFloat64, checks } = renderKernel(kernel, form);
    const prelude = lanesPrelude(lanesFor(runtime.features, hasFloat64), needed);
    const head = `void ${SYMBOL}(const Cmd *c_, nb_i64 r0, nb_i64 r1, int tid)`;
    return { source: `${prelude}\n${head} {\n  (void)tid;\n${body}\n}\n`, checks };
  },
  planContract: (desc) => runtime.planContract(desc),
  planQuantized: (n, a, b) => planQuantized(runtime.shape, n, a, b),
  planOpaque: (n, looks, errorOp, guest) =>
    planOpaque(n, looks, runtime.shape, errorOp, guest) ?? planOwn(n, runtime.features),
  partsBehind,
  planTranspose,
});
