/**
 * A program of the native runtime: a capture's parts (assemble.ts) compiled, loaded, and run with the buffers and scalars
 * of each run.
 */
import type { Capture, Program, ProgramStats, Run } from "../backend.ts";
import { Assembler, type Parts } from "./assemble.ts";
import { failureError } from "./failure.ts";
import { keptProgram, programKey } from "./kept.ts";
import type { Arena, Memory } from "./memory.ts";
import type { KernelUnit, Program as NativeProgram, NativeRuntime } from "./native.ts";
import { encodeTable } from "./table.ts";
import { nativeTarget, SYMBOL } from "./target.ts";
import { buildAhead } from "./together.ts";

/**
 * Programs of less work (some 30 ms on two cores) run in the calling thread, whose loop gets a turn between them: the hop to
 * another thread and back costs 0.1 ms, and cores that have a thread more than they are lose some milliseconds a step until
 * the scheduler has sorted them (a step of 10 ms took 12.5 on average).
 */
const SMALL_FLOPS = 5e9;
const SMALL_BYTES = 5e8;
/** Programs of less work than this run on one thread: a barrier a phase costs more than a second thread gives. */
const SERIAL_FLOPS = 2e5;

export async function compileProgram(
  runtime: NativeRuntime,
  arena: Arena,
  capture: Capture,
  fuse: boolean,
): Promise<CpuProgram> {
  const assembler = new Assembler(nativeTarget(runtime), capture, fuse);
  const settings = `${fuse} ${process.env["NABLA_POISON"] ?? ""}`;
  const parts = keptProgram(programKey(runtime, capture, assembler.lowered, settings, assembler.loweredBodies), () =>
    assembler.run(),
  );
  const units: KernelUnit[] = parts.sources.map((source, i) => ({ symbol: SYMBOL, source, of: parts.owners[i] }));
  await buildAhead(units, runtime.features);
  const functions = await runtime.compileKernels(units);
  const { flops, bytes } = parts.stats;
  const serial = flops < SERIAL_FLOPS && bytes < SERIAL_FLOPS;
  const program = runtime.createProgram(encodeTable(parts.table), functions, { serial });
  const stats = {
    ...parts.stats,
    scratchBytes: (serial ? 1 : runtime.threads) * program.scratchBytes,
    libraries: parts.sources.length,
  };
  return new CpuProgram(program, arena, parts, stats, serial);
}

/** A compiled capture on the native runtime. */
export class CpuProgram implements Program {
  readonly stats: ProgramStats;
  private readonly native: NativeProgram;
  private readonly arena: Arena;
  readonly parts: Parts;
  private readonly pointers: Float64Array;
  private readonly scalars: Float64Array;
  private readonly small: boolean;
  private readonly serial: boolean;
  /** NABLA_DEBUG=2: what each command of a run took is printed. */
  private readonly profiled: boolean;

  constructor(native: NativeProgram, arena: Arena, parts: Parts, stats: ProgramStats, serial: boolean) {
    this.native = native;
    this.arena = arena;
    this.parts = parts;
    this.serial = serial;
    this.stats = stats;
    this.pointers = new Float64Array(1 + parts.numStorages + parts.numOutputs);
    this.scalars = new Float64Array(parts.numScalars + parts.constants.length);
    this.scalars.set(parts.constants, parts.numScalars);
    this.profiled = Number(process.env["NABLA_DEBUG"] ?? 0) >= 2;
    if (this.profiled) native.profile(true);
    this.small = parts.stats.flops < SMALL_FLOPS && parts.stats.bytes < SMALL_BYTES;
  }

  run(run: Run): void | Promise<void> {
    this.bind(run);
    const { pointers, scalars } = this;
    if (this.small) return this.ended(this.native.run(pointers, scalars));
    // the closure keeps the run's buffers alive until it is done
    return this.native.runAsync(pointers, scalars).then((word) => {
      void run;
      this.ended(word);
    });
  }

  start(run: Run): (() => void) | null {
    if (!this.small || this.serial) return null;
    this.bind(run);
    this.native.start(this.pointers, this.scalars);
    return () => {
      void run;
      this.ended(this.native.finish());
    };
  }

  private bind(run: Run): void {
    const { pointers, scalars } = this;
    pointers[0] = this.arena.reserve(this.parts.arenaBytes);
    let k = 1;
    for (let i = 0; i < run.buffers.length; i++) pointers[k++] = (run.buffers[i] as Memory).pointer;
    for (let i = 0; i < run.outputs.length; i++) pointers[k++] = (run.outputs[i] as Memory).pointer;
    scalars.set(run.scalars);
  }

  private ended(word: number): void {
    if (word !== 0) throw this.failure();
    if (this.profiled) this.printProfile();
  }

  /** Thread time of the run's commands, longest first. */
  private printProfile(): void {
    const times = this.native.profileRead();
    this.native.profile(true);
    const { labels } = this.parts;
    const rows = labels.map((label, i) => [times[i] / 1e3, label] as const).filter(([us]) => us > 0);
    rows.sort((a, b) => b[0] - a[0]);
    const total = rows.reduce((n, [us]) => n + us, 0);
    const lines = rows.slice(0, 40).map(([us, label]) => `  ${us.toFixed(1).padStart(10)} µs  ${label}`);
    console.error(`program of ${rows.length} commands, ${total.toFixed(0)} µs over all threads\n${lines.join("\n")}`);
  }

  private failure(): Error {
    const { op, position } = this.native.failure as { op: number; position: number };
    return failureError(this.parts.failures, op, position >= 2 ** 39 ? position - 2 ** 40 : position);
  }

  dispose(): void {
    this.native.dispose();
  }

  describe(stage: "graph" | "kernels" | "memory" | "source"): string {
    if (stage === "source") return this.parts.sources.join("\n\n");
    return this.parts.texts[stage];
  }
}
