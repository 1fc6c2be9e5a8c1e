/**
 * The `wasm` backend as the assembler sees it (cpu/target.ts): the operations that the runtime module runs by itself, and
 * kernels emitted as they are asked for. A kernel's "source" is its key (compiler/kernel.ts); equal ones are emitted once a process.
 */
import type { Check } from "../../compiler/emission.ts";
import { type Kernel, keyOf } from "../../compiler/kernel.ts";
import type { GNode } from "../../compiler/lower.ts";
import { type Strided, strided } from "../../compiler/views.ts";
import { BackendError } from "../../core/errors.ts";
import { contiguousStrides } from "../../core/shape.ts";
import { planContract } from "../cpu/contract.ts";
import { takesView } from "../cpu/loops.ts";
import type { KernelShape } from "../cpu/native.ts";
import type { HeadStrides } from "../cpu/plans.ts";
import { FLAT_ROW } from "../cpu/render.ts";
import {
  type Commands,
  indexedTemplates,
  type Operand,
  readings,
  TEMPORARY,
  type Template,
} from "../cpu/shared-templates.ts";
import type { Target } from "../cpu/target.ts";

import { type AttentionShape, planAttention, planAttentionBackward } from "./attention.ts";
import { convShape, planConv, planConvWeight } from "./conv.ts";
import { type Form, KernelModule } from "./emit.ts";
import { MR, NR, SKINNY_COLUMNS, SKINNY_ROWS } from "./gemm.ts";
import { type MemoryImport, Module } from "./module.ts";

/** The micro-kernel's shape. */
const shape: KernelShape = { mr: MR, nr: NR, lanes: 4, skinnyRows: SKINNY_ROWS, skinnyColumns: SKINNY_COLUMNS };

/** (batch, head, time) strides of [B, H, T, D], and of [B, T, H, D]. */
const heads = ({ strides: s }: Strided): HeadStrides => [s[0], s[1], s[2]];
const headsOut = (s: readonly number[]): HeadStrides => [s[0], s[2], s[1]];
const scores = ({ B, H, Tq, Tk, causal }: AttentionShape): number => B * H * Tq * Tk * (causal ? 1 : 2);

function attentionShape(n: GNode, looks: readonly Strided[], more: readonly HeadStrides[]): AttentionShape {
  const [B, H, Tq, D] = n.inputs[0].shape;
  const [, Hkv, Tk] = n.inputs[1].shape;
  const strides = [heads(looks[0]), heads(looks[1]), heads(looks[2]), ...more];
  return { B, H, Hkv, Tq, Tk, D, causal: n.attrs["causal"] === true, strides };
}

function attentionCommands(
  n: GNode,
  looks: readonly Strided[],
  fn: "attention_fwd" | "attention_bwd",
  plan: { rows: number; params: readonly number[]; scratchBytes: number },
  outputs: readonly number[],
  flops: number,
): Commands {
  const operands = [...looks.map((l, i) => ({ of: i, offset: l.offset })), ...outputs.map((of) => ({ of, offset: 0 }))];
  return {
    command: { fn, rows: plan.rows, grain: 1, buffers: operands.map(() => ""), params: plan.params },
    buffers: operands,
    scalars: [n.attrs["scale"] as number],
    scratchBytes: plan.scratchBytes,
    canFail: false,
    flops,
  };
}

const at = (of: number, offset = 0): Operand => ({ of, offset });
const bufferNames = (operands: readonly Operand[]): string[] => operands.map(() => "");

/** A convolution or its input's gradient: the weight is packed one phase before. */
function convCommands(n: GNode, looks: readonly Strided[], backward: boolean): Commands {
  const [source, weight] = n.inputs.map((i) => i.shape);
  const [x, y] = backward ? [n.shape, source] : [source, n.shape];
  const plan = planConv(convShape(n.attrs, x, y, weight, looks[1].strides), backward);
  const operands = [at(0), at(TEMPORARY), at(-1)];
  const packing = [at(1, looks[1].offset), at(TEMPORARY)];
  const fn = backward ? "conv2d_dx" : "conv2d_fwd";
  return {
    command: { fn, grain: 1, buffers: bufferNames(operands), ...plan.main },
    buffers: operands,
    lead: { command: { fn: "conv_pack", grain: 1, buffers: bufferNames(packing), ...plan.pack }, buffers: packing },
    temporaries: [plan.packedBytes],
    scalars: [],
    scratchBytes: plan.scratchBytes,
    canFail: false,
    flops: plan.flops,
  };
}

/** The weight's gradient: parts, which are put together one phase later. */
function convWeightCommands(n: GNode): Commands {
  const [x, dy] = n.inputs.map((i) => i.shape);
  const plan = planConvWeight(convShape(n.attrs, x, dy, n.shape, contiguousStrides(n.shape)));
  const operands = [at(0), at(1), at(TEMPORARY)];
  const finishing = [at(TEMPORARY), at(-1)];
  return {
    command: { fn: "conv2d_dw", grain: 1, buffers: bufferNames(operands), ...plan.main },
    buffers: operands,
    finish: {
      command: { fn: "conv2d_dw_finish", grain: 16, buffers: bufferNames(finishing), ...plan.finish },
      buffers: finishing,
    },
    temporaries: [plan.partialBytes],
    scalars: [],
    scratchBytes: plan.scratchBytes,
    canFail: false,
    flops: plan.flops,
  };
}

/** The operations that the runtime runs by itself, beside products and loops. */
const templates: Readonly<Record<string, Template>> = {
  ...indexedTemplates,
  attention: {
    ...readings.attention,
    plan: (n, looks) => {
      const shape = attentionShape(n, looks, [headsOut(contiguousStrides(n.shape))]);
      return attentionCommands(n, looks, "attention_fwd", planAttention(shape), [-1, -2], 2 * shape.D * scores(shape));
    },
  },
  attentionBackward: {
    ...readings.attentionBackward,
    plan: (n, looks) => {
      const outs = (n.outputs as readonly { shape: readonly number[] }[]).map((s) =>
        headsOut(contiguousStrides(s.shape)),
      );
      const shape = attentionShape(n, looks, [headsOut(looks[3].strides), headsOut(looks[5].strides), ...outs]);
      const plan = planAttentionBackward(shape);
      return attentionCommands(n, looks, "attention_bwd", plan, [-1, -2, -3], 5 * shape.D * scores(shape));
    },
  },
  conv: { ...readings.conv, plan: (n, looks) => convCommands(n, looks, false) },
  convInputGradient: { ...readings.conv, plan: (n, looks) => convCommands(n, looks, true) },
  convWeightGradient: { ...readings.convWeightGradient, plan: convWeightCommands },
};
const isOpaque = (n: GNode): boolean => n.op === "contract" || n.op === "loop" || Object.hasOwn(templates, n.op);

function takesStrided(n: GNode, operand: number, inMemory: (n: GNode) => boolean): boolean {
  if (n.op === "loop") return takesView(n, operand, inMemory);
  const look = strided(n.inputs[operand], inMemory);
  if (!look) return false;
  return n.op === "contract" || templates[n.op].strided(n, operand, look);
}

interface Known {
  readonly slot: number;
  readonly checks: readonly Check[];
  /** Settles when it is in the tables of all threads. */
  ready: Promise<void>;
  /** Programs that hold it. */
  users: number;
}

/** Where kernels come from and go: the tables of all threads. */
export interface KernelTables {
  /** Puts a module's kernels into entries of the tables; settles when they are there. */
  add(bytes: Uint8Array<ArrayBuffer>, slots: readonly number[]): Promise<void>;
  /** Empties entries. */
  drop(slots: readonly number[]): void;
}

/** One program's kernels. */
export interface HeldKernels {
  slot(source: string): number;
  /** Settles when all are in the tables; rejects where one could not be compiled. */
  readonly ready: Promise<unknown>;
  /** To be called once. A kernel that no program holds leaves the tables, and its entries are given out again. */
  release(): void;
}

/** Kernels that are in the tables, by their text: programs share them. */
export class Kernels {
  readonly #memory: MemoryImport;
  readonly #tables: KernelTables;
  readonly #known = new Map<string, Known>();
  readonly #free: number[] = [];
  #next: number;

  constructor(memory: MemoryImport, firstSlot: number, tables: KernelTables) {
    this.#memory = memory;
    this.#next = firstSlot;
    this.#tables = tables;
  }

  /** Makes one program's parts with a target of its own, and compiles those kernels that no program before had. */
  collect<T>(make: (target: Target) => T): { made: T; held: HeldKernels } {
    const module = new KernelModule(new Module(this.#memory));
    const held = new Map<string, Known>();
    const fresh: Known[] = [];
    const render = (kernel: Kernel, form: Form) => {
      const source = `${form} ${keyOf(kernel)}`;
      let known = held.get(source) ?? this.#known.get(source);
      if (!known) {
        const slot = this.#free.pop() ?? this.#next++;
        known = { slot, checks: [], ready: Promise.resolve(), users: 0 };
        fresh.push(known);
        held.set(source, known);
        this.#known.set(source, known);
        Object.assign(known, { checks: module.add(kernel, form, FLAT_ROW) });
      }
      held.set(source, known);
      return { source, checks: known.checks };
    };
    try {
      const made = make(targetWith(render));
      if (fresh.length > 0) {
        const ready = this.#tables.add(
          module.module.encode(),
          fresh.map((k) => k.slot),
        );
        for (const k of fresh) k.ready = ready;
      }
      for (const k of held.values()) k.users++;
      return { made, held: this.#hold(held) };
    } catch (error) {
      // kernels of a program that can't be made are in no module
      for (const [source, known] of held) if (fresh.includes(known)) this.#known.delete(source);
      this.#free.push(...fresh.map((k) => k.slot));
      throw error;
    }
  }

  #hold(held: ReadonlyMap<string, Known>): HeldKernels {
    return {
      slot: (source) => (held.get(source) as Known).slot,
      ready: Promise.all([...held.values()].map((k) => k.ready)),
      release: () => {
        const unused: number[] = [];
        for (const [source, known] of held) {
          if (--known.users > 0) continue;
          this.#known.delete(source);
          unused.push(known.slot);
        }
        if (unused.length === 0) return;
        this.#tables.drop(unused);
        this.#free.push(...unused);
      },
    };
  }
}

/** The target whose kernels `render` emits. */
const targetWith = (render: Target["render"]): Target => ({
  rule: { isOpaque, takesStrided, ignores: (n, i) => templates[n.op]?.ignores?.(n, i) ?? false },
  hasTemplate: (name, node) =>
    name === "loop" || (Object.hasOwn(templates, name) && (templates[name].fits?.(node) ?? false)),
  render,
  planContract: (desc) => {
    if (!import.meta.forBrowsers && (desc.a.dtype !== desc.out || desc.b.dtype !== desc.out))
      throw new BackendError(`wasm: no product of ${desc.a.dtype} and ${desc.b.dtype}`);
    return planContract(shape, desc);
  },
  planOpaque: (n, looks, errorOp) => templates[n.op].plan(n, looks, shape, errorOp),
});
