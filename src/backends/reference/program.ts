/**
 * A lowered capture made ready to run: kernels planned, temporaries placed in a set of reusable arrays, and the
 * interpreter's loop. State and outputs are written after the last instruction, so an error leaves memory as it was.
 */
import { type DType, dtypes, isFloat, roundTo } from "../../core/dtype.ts";
import { BackendError } from "../../core/errors.ts";
import { type Shape, showShape, sizeOf } from "../../core/shape.ts";
import { elementAt, type LoopAttrs } from "../../graph/loop.ts";
import type { Capture, Program, ProgramStats, Run } from "../backend.ts";
import { elementwise } from "./elementwise.ts";
import { indexed } from "./indexed.ts";
import { type Instruction, type Lowered, lower, showInstruction } from "./lower.ts";
import { movement } from "./movement.ts";
import { random } from "./random.ts";
import { reductions } from "./reduce.ts";
import {
  fromRaw,
  type Held,
  heldAs,
  heldBytes,
  hold,
  type Kernel,
  type Row,
  rawOf,
  roundInto,
  toRaw,
  type Values,
} from "./values.ts";

/** Leaves that are computed: once, since nothing they depend on changes. */
const leaves: Readonly<Record<string, Row>> = {
  const: {
    plan: ({ attrs, dtype, exact }) => {
      const value = Number(attrs["value"]);
      return (o) => o.fill(exact && isFloat(dtype) ? value : roundTo(dtype, value));
    },
  },
  iota: {
    plan: ({ attrs, shape }) => {
      const axis = attrs["axis"] as number;
      const inner = sizeOf(shape.slice(axis + 1));
      return (o) => {
        for (let i = 0; i < o.length; i++) o[i] = Math.floor(i / inner) % shape[axis];
      };
    },
  },
};

/** What each primitive means. */
export const rows: Readonly<Record<string, Row>> = {
  ...leaves,
  ...elementwise,
  ...movement,
  ...reductions,
  ...indexed,
  ...random,
};

/** Fills all outputs of an instruction from its inputs. */
type Step = (outputs: readonly Values[], inputs: readonly Values[]) => void;

interface Command {
  readonly step: Step;
  readonly reads: readonly number[];
  readonly writes: readonly number[];
  readonly outputs: readonly Values[];
}

/** Instructions with arrays for their results: what runs once the leaves have values. */
interface Interpreter {
  /** By register; leaves' are the caller's to set before a run, the others' are set by it. */
  readonly values: Values[];
  readonly execute: () => void;
  readonly slots: readonly Slot[];
  readonly arenaBytes: number;
}

export function compile(capture: Capture, exact: boolean): Program {
  const lowered = lower(capture);
  const storages = capture.storages.map(({ dtype, length }) => ({ dtype, length }));
  const scalars = capture.scalars.map(({ dtype }) => dtype);
  return link(lowered, storages, scalars, exact);
}

function interpreter(lowered: Lowered, exact: boolean): Interpreter {
  const { registers, instructions } = lowered;
  const { slotOf, slots } = placeTemporaries(lowered, exact);
  const arena = slots.map(({ held, length }) => hold(held, length));
  const values = new Array<Values>(registers.length);
  const commands: Command[] = [];
  let scratchLength = 0;
  let innerBytes = 0;
  for (const instruction of instructions) {
    const { dtype, shape, reads, writes, loop } = instruction;
    const outputs = writes.map((register) => arena[slotOf[register]]);
    if (loop) {
      const { step, bytes } = loopStep(instruction, exact);
      innerBytes += bytes;
      commands.push({ step, reads, writes, outputs });
      continue;
    }
    const row = rows[instruction.name];
    if (!row)
      throw new BackendError(
        `reference: the primitive "${instruction.name}" has no row; add one to the tables of backends/reference`,
      );
    const kernel = row.plan({ ...instruction, exact });
    if (instruction.name in leaves) {
      values[writes[0]] = outputs[0];
      kernel(outputs[0], []);
      continue;
    }
    const rounds = !exact && dtypes[dtype].bytes === 2 && !row.moves ? dtype : null;
    if (rounds) scratchLength = Math.max(scratchLength, sizeOf(shape));
    commands.push({
      step: rounds ? rounded(kernel, rounds) : ([out], inputs) => kernel(out, inputs),
      reads,
      writes,
      outputs,
    });
  }
  const scratch = new Float64Array(scratchLength);

  /** A 16-bit float: the kernel computes in float64, the result is rounded into the slot. */
  function rounded(kernel: Kernel, dtype: DType): Step {
    return ([out], inputs) => {
      const exactly = scratch.subarray(0, out.length);
      kernel(exactly, inputs);
      roundInto(dtype, exactly, out);
    };
  }

  function execute(): void {
    for (const { step, reads, writes, outputs } of commands) {
      writes.forEach((register, i) => {
        values[register] = outputs[i];
      });
      step(
        outputs,
        reads.map((register) => values[register]),
      );
    }
  }

  const arenaBytes = slots.reduce((sum, { held, length }) => sum + length * heldBytes(held), innerBytes);
  return { values, execute, slots, arenaBytes: arenaBytes + 8 * scratchLength };
}

/** A loop: its body is interpreted once a step, over the carries of the step before and the elements of the sequences. */
function loopStep({ attrs, loop }: Instruction, exact: boolean): { step: Step; bytes: number } {
  const { body, storages } = loop as NonNullable<Instruction["loop"]>;
  const a = attrs as LoopAttrs;
  const { values, execute, arenaBytes } = interpreter(body, exact);
  const registerOf = storages.map((_, index) =>
    body.registers.findIndex(({ source }) => source.from === "storage" && source.index === index),
  );
  const set = (index: number, value: Values): void => {
    if (registerOf[index] >= 0) values[registerOf[index]] = value;
  };
  const lengths = storages.map(({ shape }) => sizeOf(shape));
  const carried = storages.slice(0, a.carries).map(({ dtype }, i) => hold(heldAs(dtype, exact), lengths[i]));
  const step: Step = (outputs, inputs) => {
    for (let i = 0; i < a.carries; i++) carried[i].set(inputs[i]);
    for (let i = 0; i < a.carries; i++) set(i, carried[i]);
    for (let i = a.carries + a.sequences; i < inputs.length; i++) set(i, inputs[i]);
    for (let t = 0; t < a.count; t++) {
      const k = elementAt(a, t);
      for (let i = a.carries; i < a.carries + a.sequences; i++)
        set(i, inputs[i].subarray(k * lengths[i], (k + 1) * lengths[i]));
      execute();
      body.roots.forEach((register, i) => {
        outputs[a.carries + i].set(values[register], k * values[register].length);
      });
      // all next values are there before the first carry is written: they may be carries themselves
      const next = body.assigns.map(({ value }) =>
        body.registers[value].source.from === "storage" ? values[value].slice() : values[value],
      );
      for (let i = 0; i < a.carries; i++) carried[i].set(next[i]);
    }
    for (let i = 0; i < a.carries; i++) outputs[i].set(carried[i]);
    for (let i = 0; i < inputs.length; i++) set(i, noValues);
  };
  return { step, bytes: arenaBytes };
}

function link(
  lowered: Lowered,
  storages: readonly { dtype: DType; length: number }[],
  scalars: readonly DType[],
  exact: boolean,
): Program {
  const { registers, instructions, roots, assigns } = lowered;
  const { values, execute, slots, arenaBytes } = interpreter(lowered, exact);
  const scalarValues = scalars.map((dtype) => hold(heldAs(dtype, exact), 1));
  const leafRegisters = [...registers.entries()].filter(([, { source }]) => source.from !== "instruction");
  const isStorage = (register: number): boolean => registers[register].source.from === "storage";

  function run({ buffers, scalars: given, outputs }: Run): void {
    scalarValues.forEach((value, i) => {
      value[0] = exact && isFloat(scalars[i]) ? given[i] : roundTo(scalars[i], given[i]);
    });
    for (const [register, { source, dtype }] of leafRegisters)
      values[register] =
        source.from === "scalar"
          ? scalarValues[source.index]
          : fromRaw(rawOf(buffers[source.index], dtype, storages[source.index].length), dtype, exact);
    execute();
    roots.forEach((register, i) => {
      const { dtype, shape } = registers[register];
      toRaw(values[register], dtype, rawOf(outputs[i], dtype, sizeOf(shape)));
    });
    // A value that is another state's old content is taken aside first: that state may be written before it is read.
    const written = assigns.map(({ value }) => (isStorage(value) ? values[value].slice() : values[value]));
    assigns.forEach(({ storage }, i) => {
      const { dtype, length } = storages[storage];
      toRaw(written[i], dtype, rawOf(buffers[storage], dtype, length));
    });
    for (const [register] of leafRegisters) values[register] = noValues; // hold no user's memory between runs
  }

  return { stats: { ...measure(instructions), arenaBytes }, run, describe };

  function describe(stage: "graph" | "kernels" | "memory" | "source"): string {
    if (stage === "memory") return slots.map(({ held, length }, i) => `slot ${i}: ${held} × ${length}`).join("\n");
    const lines: string[] = [];
    for (const [register, { source, dtype, shape }] of leafRegisters)
      lines.push(`%${register} ${dtype}${showShape(shape)} = ${source.from} ${source.index}`);
    lines.push(...instructions.map(showInstruction));
    lines.push(...roots.map((register, i) => `output ${i} = %${register}`));
    lines.push(...assigns.map(({ storage, value }) => `storage ${storage} := %${value}`));
    return lines.join("\n");
  }
}

const noValues: Values = new Uint8Array(0);

interface Slot {
  readonly held: Held;
  readonly length: number;
}

/** Gives every instruction's result an array; an array whose value is not read again serves the next of its kind. */
function placeTemporaries({ registers, instructions, roots, assigns }: Lowered, exact: boolean) {
  const lastUse = new Array<number>(registers.length).fill(-1);
  instructions.forEach(({ reads, writes }, i) => {
    for (const register of reads) lastUse[register] = i;
    for (const register of writes) lastUse[register] = Math.max(lastUse[register], i);
  });
  for (const register of [...roots, ...assigns.map(({ value }) => value)]) lastUse[register] = Number.POSITIVE_INFINITY;
  const slots: Slot[] = [];
  const slotOf = new Array<number>(registers.length).fill(-1);
  const free = new Map<string, number[]>();
  const keyOf = ({ held, length }: Slot): string => `${held} ${length}`;
  instructions.forEach(({ name, reads, writes }, i) => {
    const constant = name in leaves;
    for (const register of writes) {
      const { shape, dtype } = registers[register];
      const slot: Slot = { held: heldAs(dtype, exact), length: sizeOf(shape) };
      slotOf[register] = (constant ? undefined : free.get(keyOf(slot))?.pop()) ?? slots.push(slot) - 1;
    }
    for (const register of new Set([...reads, ...writes])) {
      const { source } = registers[register];
      if (lastUse[register] !== i || source.from !== "instruction") continue;
      if (instructions[source.index].name in leaves) continue; // computed once, so never given away
      const key = keyOf(slots[slotOf[register]]);
      const list = free.get(key);
      if (list) list.push(slotOf[register]);
      else free.set(key, [slotOf[register]]);
    }
  });
  return { slotOf, slots };
}

function measure(instructions: readonly Instruction[]): Omit<ProgramStats, "arenaBytes"> {
  let flops = 0;
  let bytes = 0;
  for (const { name, attrs, inputs, shape, dtype, loop } of instructions) {
    if (loop) {
      const step = measure(loop.body.instructions);
      flops += step.flops * (attrs as LoopAttrs).count;
      bytes += step.bytes * (attrs as LoopAttrs).count;
      continue;
    }
    flops += flopsOf(name, inputs[0]?.shape ?? [], shape);
    bytes += sizeOf(shape) * dtypes[dtype].bytes;
    for (const input of inputs) bytes += sizeOf(input.shape) * dtypes[input.dtype].bytes;
  }
  return { kernels: instructions.length, flops, bytes };
}

function flopsOf(name: string, input: Shape, output: Shape): number {
  if (name === "contract") return 2 * sizeOf(output) * input[input.length - 1];
  if (name in movement || name in leaves || name === "gather") return 0;
  return Math.max(sizeOf(input), sizeOf(output));
}
