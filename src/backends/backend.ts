/**
 * What a backend is: memory, and a compiler from a captured graph to something that runs. A backend knows nothing of
 * tensors or of when to flush; `execution/` calls it. Nodes in a capture are read, never kept: a program must not hold
 * the graph it was made from.
 */
import type { DType, TypedArray } from "../core/dtype.ts";
import type { Node, Storage } from "../graph/node.ts";

/** One flush, in canonical form. Two captures with the same key run the same program. */
export interface Capture {
  /** Every node that is computed or read, inputs before users. Leaves are nodes with a storage, or of group "leaf". */
  readonly order: readonly Node[];
  /** Distinct storages read or written, in order of first use; `Run.buffers[i]` is the memory of `storages[i]`. */
  readonly storages: readonly Storage[];
  /** `scalar` leaves in order of first use; `Run.scalars[i]` is the value of `scalars[i]`. */
  readonly scalars: readonly Node[];
  /** Values to hand back, in fresh memory: `Run.outputs[i]`. Never a leaf. May be an operation with several outputs, or an `output` node. */
  readonly roots: readonly Node[];
  /** State writes: storage index and the value it gets. Every read of that storage in this capture means the old value. */
  readonly assigns: readonly { readonly storage: number; readonly value: Node }[];
}

export interface Run {
  readonly buffers: readonly unknown[];
  readonly scalars: Float64Array;
  readonly outputs: readonly unknown[];
}

export interface ProgramStats {
  readonly kernels: number;
  readonly flops: number;
  readonly bytes: number;
  readonly arenaBytes: number;
  /** What its kernels use beside temporaries, all threads together; 0 where left out. */
  readonly scratchBytes?: number;
  /** Libraries that were loaded for it. */
  readonly libraries?: number;
}

/** A compiled capture. `run` throws IndexError and kin when the error word is set; no state was then written. */
export interface Program {
  readonly stats: ProgramStats;
  run(run: Run): void | Promise<void>;
  /**
   * Lets other threads begin a run and returns at once what takes part in it until its end, and throws what `run` would
   * throw. It must be called before anything else is run or read. Null: `run` is the better way.
   */
  start?(run: Run): (() => void) | null;
  /** Frees what the garbage collector does not see. The program is never run again; a run that is under way ends first. */
  dispose?(): void;
  /** Text of every stage, for NABLA_DEBUG and `nabla graph`. */
  describe(stage: "graph" | "kernels" | "memory" | "source"): string;
}

export interface Backend {
  readonly name: string;
  readonly dtypes: readonly DType[];
  /** Memory, whatever it holds. Freed when no longer reachable. */
  allocate(bytes: number): unknown;
  /**
   * Memory that is `data`'s own, without a copy, where the backend can use that: of a mapped file (core/foreign.ts). The caller gives
   * the array up. Null: allocate and write.
   */
  adopt?(data: TypedArray): unknown;
  /** Copies raw elements (16-bit floats as bits) to the device. */
  write(memory: unknown, data: TypedArray): void;
  /** Copies `length` raw elements back, after everything that was run before. */
  read(memory: unknown, dtype: DType, length: number): TypedArray | Promise<TypedArray>;
  compile(capture: Capture): Program | Promise<Program>;
}
