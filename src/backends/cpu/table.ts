/**
 * The command table: what a program is before any runtime has it. The native runtime reads it in runtime/program.c, as the
 * words that `encodeTable` writes, the `wasm` backend makes its own records of it (wasm/records.ts). Nothing here knows of
 * the host.
 */
import { BackendError } from "../../core/errors.ts";

/** The runtime's kernels by name; the order is the encoding (runtime/builtins.c). */
export const builtins = [
  "pack_b",
  "gemm",
  "gemm_skinny",
  "gemm_small",
  "gemm_f64",
  "gemm_i32",
  "attention_fwd",
  "attention_bwd",
  "scatter",
  "argsort",
  "cumulative",
  "fill",
  "copy",
  "transpose",
  "conv_pack",
  "conv2d_fwd",
  "conv2d_dx",
  "conv2d_dw",
  "conv2d_dw_finish",
  "gemm_quantized",
  "gemm_quantized_skinny",
  "dequantize",
  "update",
  "block_quantize",
  "block_linear",
  "stored_quantize",
  "stored_linear",
  "pack_bf16",
  "gemm_bf16",
] as const;
export type BuiltinName = (typeof builtins)[number];

/** Slot and byte offset of a buffer. */
export type Ref = readonly [slot: number, byteOffset: number];

const MAGIC = 0x4e42504c;
/** Of the table, and of what a library in the cache holds: NABLA_ABI_VERSION of runtime/abi.h. */
export const ABI_VERSION = 2;

export interface Command {
  /** Index into the functions given to `createProgram`, or a builtin's name. */
  fn: number | BuiltinName;
  rows: number;
  /** Rows a tile. */
  grain: number;
  /** Slot and byte offset of each buffer, in the kernel's parameter order. */
  buffers: readonly Ref[];
  scalars?: readonly number[];
  params?: readonly number[];
  /** Commands run on this one's finished tiles or strips; they stand in no phase. */
  epilogue?: number;
  post?: number;
  /** Skipped once an earlier phase has failed. */
  writesState?: boolean;
}

/** Buffer number `buffer` of a command; of no command where that is −1. */
export interface BufferName {
  readonly command: number;
  readonly buffer: number;
}

/** A buffer that goes `stride` bytes further with each iteration; the second iteration begins at `start`, where given. */
export interface Move {
  readonly of: BufferName;
  readonly stride: number;
  readonly start?: BufferName | undefined;
}

export interface LoopRange {
  readonly first: number;
  readonly last: number;
  readonly count: number;
  readonly moves: readonly Move[];
}

/** A loop, its buffers by number; a move's `start` is −1 where there is none. */
export interface LoopRecord {
  readonly first: number;
  readonly last: number;
  readonly count: number;
  readonly moves: readonly { readonly ref: number; readonly stride: number; readonly start: number }[];
}

export interface Sizes {
  readonly numBuffers: number;
  readonly numScalars: number;
  readonly scratchBytes: number;
}

export interface Table extends Sizes {
  readonly commands: readonly Command[];
  /** In the order in which they run: commands that may run at the same time. */
  readonly phases: readonly (readonly number[])[];
  readonly loops: readonly LoopRecord[];
  /** All buffers by number: those of the commands, then those of no command. */
  readonly refs: readonly Ref[];
}

/** Puts a program's command table together. */
export class TableBuilder {
  readonly #commands: Command[] = [];
  readonly #phases: number[][] = [];
  readonly #extra: Ref[] = [];
  readonly #loops: LoopRange[] = [];

  /** Adds a command; returns its index. */
  command(command: Command): number {
    const { rows, grain, fn } = command;
    if (
      !import.meta.forBrowsers &&
      (!Number.isSafeInteger(rows) || rows < 0 || !Number.isSafeInteger(grain) || grain < 1)
    )
      throw new BackendError(
        `program: command ${this.#commands.length} (${fn}) has rows ${rows} and grain ${grain}; expected rows >= 0 and grain >= 1`,
      );
    if (!import.meta.forBrowsers && typeof fn === "string" && !builtins.includes(fn))
      throw new BackendError(`program: no builtin kernel "${fn}"; there are ${builtins.join(", ")}`);
    this.#commands.push(command);
    return this.#commands.length - 1;
  }

  /** Adds a phase: commands that may run at the same time. */
  phase(commands: readonly number[]): void {
    this.#phases.push([...commands]);
  }

  get numPhases(): number {
    return this.#phases.length;
  }

  /** A buffer of no command, from which one of a command can go on (`Move.start`). */
  buffer(slot: number, byteOffset: number): BufferName {
    this.#extra.push([slot, byteOffset]);
    return { command: -1, buffer: this.#extra.length - 1 };
  }

  /** Runs phases `first` to `last` again; loops inside others come first. */
  loop(range: LoopRange): void {
    this.#loops.push(range);
  }

  table(sizes: Sizes): Table {
    const [commands, phases] = [this.#commands, this.#phases];
    const refs: Ref[] = [];
    const first = commands.map((c) => refs.push(...c.buffers) - c.buffers.length);
    const own = refs.length;
    refs.push(...this.#extra);
    const ref = ({ command, buffer }: BufferName): number => (command < 0 ? own : first[command]) + buffer;
    const loops = this.#loops.map((l) => ({
      ...l,
      moves: l.moves.map(({ of, stride, start }) => ({ ref: ref(of), stride, start: start ? ref(start) : -1 })),
    }));
    return { ...sizes, commands, phases, loops, refs };
  }
}

/** A table as the words that are described at the top of runtime/program.c. */
export function encodeTable({
  commands,
  phases,
  loops,
  refs,
  numBuffers,
  numScalars,
  scratchBytes,
}: Table): Int32Array {
  const words: number[] = [MAGIC, ABI_VERSION, commands.length, phases.length, numBuffers, numScalars, scratchBytes];
  const wide = (value: number) => words.push(Number(BigInt.asIntN(32, BigInt(value))), Math.floor(value / 2 ** 32));
  const buffers = (list: readonly Ref[]): void => {
    words.push(list.length);
    for (const [slot, offset] of list) {
      words.push(slot);
      wide(offset);
    }
  };
  for (const phase of phases) words.push(phase.length, ...phase);
  let own = 0;
  for (const c of commands) {
    words.push(typeof c.fn === "string" ? -1 - builtins.indexOf(c.fn) : c.fn);
    wide(c.rows);
    words.push(Math.min(c.grain, 0x7fffffff), c.writesState ? 1 : 0, c.epilogue ?? -1, c.post ?? -1);
    buffers(c.buffers);
    own += c.buffers.length;
    words.push(c.scalars?.length ?? 0, ...(c.scalars ?? []), c.params?.length ?? 0);
    for (const p of c.params ?? []) wide(p);
  }
  buffers(refs.slice(own));
  words.push(loops.length);
  for (const l of loops) {
    words.push(l.first, l.last, l.count, l.moves.length);
    for (const { ref, stride, start } of l.moves) {
      words.push(ref);
      wide(stride);
      words.push(start);
    }
  }
  return Int32Array.from(words);
}
