/**
 * The binding of the native runtime (runtime/*.c): memory, threads, compiled kernels, programs. The encoding of a program
 * is table.ts's and, on the other side, program.c's. What matrix products become is contract.ts; rendering kernels is not done here.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import koffi from "koffi";
import type { TypedArray } from "../../core/dtype.ts";
import { BackendError } from "../../core/errors.ts";
import type { ContractDesc, ContractPlan } from "./contract.ts";
import { planContract } from "./contract.ts";
import { type BuiltinName, encodeTable, type Sizes, TableBuilder } from "./table.ts";
import {
  buildLibrary,
  CompilerError,
  cpuFeatures,
  features,
  type LibrarySpec,
  nameTogether,
  runtimeFolder,
} from "./toolchain.ts";

export { type BufferName, type BuiltinName, builtins, type Command, type Move } from "./table.ts";

/** Writes a table by hand, as tests of the runtime do. */
export class ProgramBuilder extends TableBuilder {
  build(sizes: Sizes): Int32Array {
    return encodeTable(this.table(sizes));
  }
}

export interface KernelUnit {
  readonly symbol: string;
  readonly source: string;
  /** The operation of a user's own that the kernel is for: what an error names. */
  readonly of?: string | undefined;
}

/** A kernel's library. */
export const librarySpec = ({ source }: KernelUnit, bits: number): LibrarySpec => ({
  name: "kernel",
  sources: [{ name: "k", text: source }],
  bits,
});

/** The micro-kernel's shape in the loaded runtime. */
export interface KernelShape {
  readonly mr: number;
  readonly nr: number;
  readonly lanes: number;
  readonly skinnyRows: number;
  readonly skinnyColumns: number;
  /** Whether the processor multiplies pairs of bfloat16 (avx512_bf16), and the runtime so has gemm_bf16. Default: false. */
  readonly bf16?: boolean;
}

const headers = ["abi.h", "simd.h", "runtime.h", "microkernel.h", "microkernel.inc", "gemm.h", "stored.h"];
/** The runtime's units; those that take longest to compile come first, so that the others fill the rest of the time. */
const sources = [
  "gemm",
  "gemm_bf16",
  "blocks",
  "attention",
  "conv",
  "quantized",
  "stored",
  "indexed",
  "pool",
  "program",
  "system",
  "builtins",
];
const texts = new Map<string, string>();
function read(file: string): string {
  let text = texts.get(file);
  if (text === undefined) texts.set(file, (text = readFileSync(join(runtimeFolder, file), "utf8")));
  return text;
}

/** Text to put before a generated kernel: the command record, and (unless turned off) the vector types; no includes. */
export function kernelPrelude(options: { simd?: boolean } = {}): string {
  return read("abi.h") + (options.simd === false ? "" : read("simd.h"));
}

type Call = ((...args: unknown[]) => unknown) & { async: (...args: unknown[]) => void };
const declarations = {
  threads: "int32_t nabla_threads()",
  setThreads: "void nabla_set_threads(int32_t n)",
  program: "uintptr_t nabla_program(const int32_t *table, int64_t words, const double *functions, int64_t n)",
  programFree: "void nabla_program_free(uintptr_t program)",
  serial: "void nabla_serial(uintptr_t program)",
  run: "int64_t nabla_run(uintptr_t program, uintptr_t bufs, uintptr_t scalars)",
  start: "int32_t nabla_start(uintptr_t program, uintptr_t bufs, uintptr_t scalars, int32_t wait)",
  finish: "int64_t nabla_finish(uintptr_t program)",
  profile: "int32_t nabla_profile(uintptr_t program, int32_t on)",
  profileRead: "void nabla_profile_read(uintptr_t program, uintptr_t out)",
  error: "const char *nabla_error()",
  alloc: "double nabla_alloc(double bytes)",
  free: "void nabla_free(double pointer)",
  read: "void nabla_read(void *to, double from, double bytes)",
  write: "void nabla_write(double to, const void *from, double bytes)",
  open: "double nabla_open(const char *path, const char *symbol)",
  openError: "const char *nabla_open_error()",
  builtin: "double nabla_builtin(const char *name)",
  features: "int32_t nabla_features()",
  shape: "void nabla_shape(uintptr_t out)",
} as const;
type Library = Record<keyof typeof declarations, Call>;

let opening: Promise<NativeRuntime> | undefined;

export type { CommandDesc, ContractDesc, ContractPlan } from "./contract.ts";

/** The runtime library, loaded: one a process. */
export class NativeRuntime {
  readonly shape: KernelShape;
  /** Feature bits that kernels are compiled for (toolchain.ts, `features`). */
  readonly features: number;
  /** Runs that are under way (or wait to be) off the JavaScript thread, of all programs. */
  inFlight = 0;
  readonly #lib: Library;

  private constructor(lib: Library, bits: number) {
    this.#lib = lib;
    this.features = bits;
    const room = this.alloc(64);
    lib.shape(room);
    const [mr, nr, lanes, skinnyRows, skinnyColumns, bf16] = new Int32Array(this.view(room, 24));
    this.shape = { mr, nr, lanes, skinnyRows, skinnyColumns, bf16: bf16 === 1 };
    this.free(room);
  }

  /** Builds or finds the runtime library and loads it. Throws BackendError where this machine or its compiler can't. */
  static open(): Promise<NativeRuntime> {
    opening ??= NativeRuntime.#load();
    opening.catch(() => (opening = undefined));
    return opening;
  }

  static async #load(): Promise<NativeRuntime> {
    if (process.platform === "win32")
      throw new BackendError(
        "cpu: the native runtime needs POSIX threads and mmap, which Windows lacks; use the wasm backend",
      );
    const bits = await cpuFeatures();
    const wanted = features.avx2 | features.fma;
    if (!(bits & features.arm64) && (bits & wanted) !== wanted)
      throw new BackendError(
        `cpu: the native runtime needs an x86-64 processor with AVX2 and FMA, or arm64 (feature bits ${bits}); use the wasm backend`,
      );
    const path = await buildLibrary({
      name: "runtime",
      sources: sources.map((name) => ({ name, text: read(`${name}.c`) })),
      headers: headers.map(read),
      include: runtimeFolder,
      flags: ["-fvisibility=hidden"],
      bits,
    });
    const library = koffi.load(path);
    const lib = Object.fromEntries(
      Object.entries(declarations).map(([name, text]) => [name, library.func(text)]),
    ) as unknown as Library;
    // opened once more and never closed: at exit koffi closes its own handle while the workers' code may still be running
    if (!lib.open(path, "nabla_run")) throw new BackendError(`cpu: ${path} can't be held open: ${lib.openError()}`);
    return new NativeRuntime(lib, bits);
  }

  /** Zeroed memory, 64-byte aligned; the pointer is a number. Throws where the system has no more. */
  alloc(bytes: number): number {
    const pointer = this.#lib.alloc(bytes) as number;
    if (!pointer) throw new BackendError(`cpu: could not allocate ${bytes} bytes`);
    return pointer;
  }

  free(pointer: number): void {
    this.#lib.free(pointer);
  }

  /** Copies the memory at `pointer` over all of `to`. */
  read(pointer: number, to: TypedArray): void {
    this.#lib.read(to, pointer, to.byteLength);
  }

  /** Copies all of `from` to the memory at `pointer`. */
  write(pointer: number, from: TypedArray): void {
    this.#lib.write(pointer, from, from.byteLength);
  }

  /** The memory at `pointer` as an ArrayBuffer; valid until it is freed. For what is used again and again: see nabla_read. */
  view(pointer: number, bytes: number): ArrayBuffer {
    return koffi.view(BigInt(pointer), bytes);
  }

  /** How many threads the next run uses, the calling one included. */
  get threads(): number {
    return this.#lib.threads() as number;
  }

  setThreads(n: number): void {
    this.#lib.setThreads(n);
  }

  /** The commands of a contraction; contract.ts. */
  planContract(desc: ContractDesc): ContractPlan {
    return planContract(this.shape, desc);
  }

  /** Address of a builtin kernel. */
  builtin(name: BuiltinName): number {
    return this.#lib.builtin(name) as number;
  }

  /**
   * Compiles kernels, each to a library of its own (from the cache where it can); returns their addresses in order. Equal
   * units are compiled once. Throws CompilerError.
   */
  async compileKernels(units: readonly KernelUnit[]): Promise<number[]> {
    const made = new Map<string, Promise<number>>();
    const results = await Promise.allSettled(
      units.map((unit) => {
        const key = `${unit.symbol}\0${unit.source}`;
        let address = made.get(key);
        if (!address) made.set(key, (address = this.#compile(unit)));
        return address;
      }),
    );
    return results.map((r) => {
      if (r.status === "rejected") throw r.reason;
      return r.value;
    });
  }

  async #compile(unit: KernelUnit): Promise<number> {
    const path = await buildLibrary(librarySpec(unit, this.features)).catch((error: unknown) => {
      if (unit.of === undefined || !(error instanceof CompilerError)) throw error;
      throw new CompilerError(`${unit.of}: its kernel (kernels.cpu) does not compile. ${error.message}`);
    });
    const address = (this.#lib.open(path, unit.symbol) ||
      this.#lib.open(path, nameTogether(unit.symbol, path))) as number;
    if (!address) throw new BackendError(`cpu: ${path} has no symbol ${unit.symbol}: ${this.#lib.openError()}`);
    return address;
  }

  /**
   * Decodes a command table; `functions` are what its non-negative fn indices mean. A `serial` program runs on the calling
   * thread alone.
   */
  createProgram(table: Int32Array, functions: readonly number[], options: { serial?: boolean } = {}): Program {
    const handle = Number(this.#lib.program(table, table.length, Float64Array.from(functions), functions.length));
    if (!handle) throw new BackendError(`cpu: the command table was refused: ${this.#lib.error()}`);
    if (options.serial) this.#lib.serial(handle);
    return new Program(this, this.#lib, handle, table);
  }
}

/** Compiles kernels in the process's runtime; see `NativeRuntime.compileKernels`. */
export async function compileKernels(units: readonly KernelUnit[]): Promise<number[]> {
  return (await NativeRuntime.open()).compileKernels(units);
}

/** Where a run failed: the operation that the failing kernel named, and its position (an element, usually). */
export interface RunFailure {
  readonly op: number;
  readonly position: number;
}

/** Native copies of a run's arguments: [bufs..., scalars...]. */
interface Slot {
  readonly pointer: number;
  readonly bufs: Float64Array;
  readonly scalars: Float64Array;
}

/** A decoded program. Runs of all programs of the process follow one another. */
export class Program {
  readonly numCommands: number;
  readonly numBuffers: number;
  readonly numScalars: number;
  /** Of each thread that runs it. */
  readonly scratchBytes: number;
  /** What the last failed run reported; null after a run that went well. */
  failure: RunFailure | null = null;
  readonly #runtime: NativeRuntime;
  readonly #lib: Library;
  #handle: number;
  #sync: Slot | undefined;
  #async: Slot | undefined;
  #tail: Promise<unknown> = Promise.resolve();

  /** @internal use NativeRuntime.createProgram */
  constructor(runtime: NativeRuntime, lib: Library, handle: number, table: Int32Array) {
    this.#runtime = runtime;
    this.#lib = lib;
    this.#handle = handle;
    this.numCommands = table[2]!;
    this.numBuffers = table[4]!;
    this.numScalars = table[5]!;
    this.scratchBytes = table[6]!;
  }

  #slot(): Slot {
    const pointer = this.#runtime.alloc(8 * (this.numBuffers + this.numScalars) || 8);
    const memory = this.#runtime.view(pointer, 8 * (this.numBuffers + this.numScalars) || 8);
    return {
      pointer,
      bufs: new Float64Array(memory, 0, this.numBuffers),
      scalars: new Float64Array(memory, 8 * this.numBuffers, this.numScalars),
    };
  }

  #fill(slot: Slot, bufs: Float64Array, scalars: Float64Array): void {
    if (!this.#handle) throw new BackendError("cpu: this program has been disposed of");
    if (bufs.length < this.numBuffers || scalars.length < this.numScalars)
      throw new BackendError(
        `cpu: the program needs ${this.numBuffers} buffers and ${this.numScalars} scalars, got ${bufs.length} and ${scalars.length}`,
      );
    for (let i = 0; i < this.numBuffers; i++) slot.bufs[i] = bufs[i]!;
    for (let i = 0; i < this.numScalars; i++) slot.scalars[i] = scalars[i]!;
  }

  #result(word: number | bigint): number {
    if (word === 0) {
      this.failure = null;
      return 0;
    }
    if (BigInt(word) === -1n) throw new BackendError("cpu: no memory for the workers' scratch");
    const w = BigInt.asUintN(64, BigInt(word));
    this.failure = w === 0n ? null : { op: Number(w >> 40n), position: Number(w & 0xffffffffffn) };
    return Number(w);
  }

  /** Runs on the calling thread and the workers; 0, or the error word (then `failure` holds its parts). */
  run(bufs: Float64Array, scalars: Float64Array): number {
    const slot = (this.#sync ??= this.#slot());
    this.#fill(slot, bufs, scalars);
    return this.#result(
      this.#lib.run(this.#handle, slot.pointer, slot.pointer + 8 * this.numBuffers) as number | bigint,
    );
  }

  /** Lets the other workers begin a run; the arguments are copied. `finish` must follow before the program's next run. */
  start(bufs: Float64Array, scalars: Float64Array): void {
    const slot = (this.#sync ??= this.#slot());
    this.#fill(slot, bufs, scalars);
    this.#lib.start(this.#handle, slot.pointer, slot.pointer + 8 * this.numBuffers, 1);
    this.#started = true;
  }

  /** Takes part in a started run until its end; what `run` returns. */
  finish(): number {
    this.#started = false;
    return this.#result(this.#lib.finish(this.#handle) as number | bigint);
  }

  /**
   * Runs off the JavaScript thread; the arguments are copied before this returns. Until the event loop turns, the calling
   * thread has work of its own (it records the next step, say), so a thread in its stead joins the workers only then.
   */
  runAsync(bufs: Float64Array, scalars: Float64Array): Promise<number> {
    const go = (): Promise<number> =>
      new Promise((resolve, reject) => {
        const slot = (this.#async ??= this.#slot());
        this.#fill(slot, bufs, scalars);
        const args = [this.#handle, slot.pointer, slot.pointer + 8 * this.numBuffers];
        const done = (error: unknown, word: number | bigint): void => {
          try {
            if (error) throw error;
            resolve(this.#result(word));
          } catch (e) {
            reject(e);
          }
        };
        const busy = this.#lib.start(...args, 0) !== 0;
        if (busy) this.#lib.run.async(...args, done);
        else setImmediate(() => this.#lib.finish.async(args[0], done));
      });
    if (this.#busy) {
      bufs = bufs.slice();
      scalars = scalars.slice();
    }
    const result = this.#busy ? this.#tail.then(go, go) : go();
    this.#busy++;
    this.#runtime.inFlight++;
    const done = () => {
      this.#busy--;
      this.#runtime.inFlight--;
    };
    this.#tail = result.then(done, done);
    return result;
  }
  #busy = 0;
  #started = false;

  /** Turns the profile on (from zero) or off. */
  profile(on: boolean): void {
    this.#lib.profile(this.#handle, on ? 1 : 0);
  }

  /** Nanoseconds of each command since `profile(true)`, summed over threads; attached commands count with their owner. */
  profileRead(): Float64Array {
    const pointer = this.#runtime.alloc(8 * this.numCommands || 8);
    this.#lib.profileRead(this.#handle, pointer);
    const result = new Float64Array(this.#runtime.view(pointer, 8 * this.numCommands).slice(0));
    this.#runtime.free(pointer);
    return result;
  }

  /** Frees the program once its runs have ended. */
  dispose(): void {
    if (this.#started) this.finish();
    const handle = this.#handle;
    this.#handle = 0;
    if (!handle) return;
    const free = () => {
      this.#lib.programFree(handle);
      for (const slot of [this.#sync, this.#async]) if (slot) this.#runtime.free(slot.pointer);
    };
    if (this.#busy) this.#tail.then(free);
    else free();
  }
}
