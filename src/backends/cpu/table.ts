/**
 * The command table: what a program is before any runtime has decoded it. The native runtime reads it in runtime/program.c,
 * the `wasm` backend in its program.ts. Nothing here knows of the host.
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
] as const;
export type BuiltinName = (typeof builtins)[number];

const MAGIC = 0x4e42504c;
const VERSION = 1;

export interface Command {
  /** Index into the functions given to `createProgram`, or a builtin's name. */
  fn: number | BuiltinName;
  rows: number;
  /** Rows a tile. */
  grain: number;
  /** Slot and byte offset of each buffer, in the kernel's parameter order. */
  buffers: readonly (readonly [slot: number, byteOffset: number])[];
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

/**
 * Writes the command table of a program: commands, then phases in the order in which they run. The words are described
 * at the top of runtime/program.c.
 */
export class ProgramBuilder {
  readonly #commands: Command[] = [];
  readonly #phases: number[][] = [];
  readonly #extra: (readonly [slot: number, byteOffset: number])[] = [];
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
    if (typeof fn === "string" && !builtins.includes(fn))
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

  build(sizes: { numBuffers: number; numScalars: number; scratchBytes: number }): Int32Array {
    const words: number[] = [
      MAGIC,
      VERSION,
      this.#commands.length,
      this.#phases.length,
      sizes.numBuffers,
      sizes.numScalars,
      sizes.scratchBytes,
    ];
    const wide = (value: number) => words.push(Number(BigInt.asIntN(32, BigInt(value))), Math.floor(value / 2 ** 32));
    for (const phase of this.#phases) words.push(phase.length, ...phase);
    for (const c of this.#commands) {
      words.push(typeof c.fn === "string" ? -1 - builtins.indexOf(c.fn) : c.fn);
      wide(c.rows);
      words.push(
        Math.min(c.grain, 0x7fffffff),
        c.writesState ? 1 : 0,
        c.epilogue ?? -1,
        c.post ?? -1,
        c.buffers.length,
      );
      for (const [slot, offset] of c.buffers) {
        words.push(slot);
        wide(offset);
      }
      words.push(c.scalars?.length ?? 0, ...(c.scalars ?? []), c.params?.length ?? 0);
      for (const p of c.params ?? []) wide(p);
    }
    words.push(this.#extra.length);
    for (const [slot, offset] of this.#extra) {
      words.push(slot);
      wide(offset);
    }
    const first: number[] = [];
    let refs = 0;
    for (const c of this.#commands) {
      first.push(refs);
      refs += c.buffers.length;
    }
    const ref = ({ command, buffer }: BufferName): number => (command < 0 ? refs : first[command]) + buffer;
    words.push(this.#loops.length);
    for (const l of this.#loops) {
      words.push(l.first, l.last, l.count, l.moves.length);
      for (const m of l.moves) {
        words.push(ref(m.of));
        wide(m.stride);
        words.push(m.start ? ref(m.start) : -1);
      }
    }
    return Int32Array.from(words);
  }
}
