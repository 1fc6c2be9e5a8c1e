/**
 * Programs carried to another processor: a cpu backend that notes what it runs and what came of it, and a target, which
 * compiles the same captures for itself, links them with the runtime into one executable, and runs that. Not a test.
 */
import { spawn, spawnSync } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Backend, Capture, Program, Run } from "../../../src/backends/backend.ts";
import { Assembler, type Parts } from "../../../src/backends/cpu/assemble.ts";
import { type ContractDesc, planContract } from "../../../src/backends/cpu/contract.ts";
import { type Lanes, lanesPrelude, splitPrelude } from "../../../src/backends/cpu/lanes.ts";
import type { Memory } from "../../../src/backends/cpu/memory.ts";
import { type BuiltinName, builtins, type KernelShape, type NativeRuntime } from "../../../src/backends/cpu/native.ts";
import { encodeTable } from "../../../src/backends/cpu/table.ts";
import { nativeTarget, SYMBOL } from "../../../src/backends/cpu/target.ts";
import { commonFlags, runtimeFolder, targetFlags } from "../../../src/backends/cpu/toolchain.ts";
import { type DType, dtypes } from "../../../src/core/dtype.ts";
import { sizeOf } from "../../../src/core/shape.ts";

/** Another processor, or other instructions of this one. */
export interface TargetSpec {
  readonly name: string;
  readonly compiler: string;
  /** Feature bits that everything is compiled for. */
  readonly bits: number;
  /** What runs the executable; null: it is only compiled. */
  readonly runner: readonly string[] | null;
}

const runtimeSources = [
  "pool",
  "program",
  "system",
  "builtins",
  "gemm",
  "gemm_bf16",
  "blocks",
  "attention",
  "indexed",
  "conv",
  "quantized",
  "stored",
];
const main = fileURLToPath(new URL("./cross.c", import.meta.url));

/** At most as many compilers at once as there are cores. */
let running = 0;
const waiting: (() => void)[] = [];
async function command(program: string, args: readonly string[], cwd: string): Promise<string> {
  if (running >= availableParallelism()) await new Promise<void>((go) => waiting.push(go));
  else running++;
  try {
    return await new Promise((resolve, reject) => {
      const child = spawn(program, args, { cwd });
      let text = "";
      child.stdout.on("data", (d) => (text += d));
      child.stderr.on("data", (d) => (text += d));
      child.on("error", reject);
      child.on("exit", (code, signal) =>
        code === 0
          ? resolve(text)
          : reject(new Error(`${program} ${args.slice(0, 30).join(" ")}: ${signal ?? code}\n${text.slice(0, 4000)}`)),
      );
    });
  } finally {
    const next = waiting.shift();
    if (next) next();
    else running--;
  }
}

export const isPresent = (program: string): boolean => spawnSync(program, ["--version"]).status === 0;

/** A compiler for a processor, with the runtime compiled for it. */
export class Target {
  readonly name: string;
  readonly shape: KernelShape;
  readonly bits: number;
  readonly #spec: TargetSpec;
  readonly #folder: string;
  readonly #kernels = new Map<string, number>();

  private constructor(spec: TargetSpec, folder: string, shape: KernelShape) {
    this.name = spec.name;
    this.bits = spec.bits;
    this.shape = shape;
    this.#spec = spec;
    this.#folder = folder;
  }

  /** Compiles the runtime in a folder of its own below `base`. */
  static async make(spec: TargetSpec, base: string): Promise<Target> {
    const folder = join(base, spec.name);
    mkdirSync(folder);
    const files = [...runtimeSources.map((s) => join(runtimeFolder, `${s}.c`)), main];
    // the micro-kernel's shape, as the compiler sees it: a target need not be run to be planned for
    writeFileSync(
      join(folder, "shape.c"),
      '#include "gemm.c"\nconst int cross_shape[5] = {MR, NR, W, SKINNY_ROWS, SKINNY_COLS};\n',
    );
    await Promise.all([
      ...files.map((file) => compile(spec, ["-c", file], folder)),
      compile(spec, ["-S", "shape.c"], folder),
    ]);
    const text = readFileSync(join(folder, "shape.s"), "utf8");
    const words = text.slice(text.indexOf("\ncross_shape:")).matchAll(/^\s*\.(?:long|word)\s+(\d+)/gm);
    const [mr, nr, lanes, skinnyRows, skinnyColumns] = [...words].slice(0, 5).map((m) => Number(m[1]));
    if (!skinnyColumns) throw new Error(`${spec.compiler}: no cross_shape in ${text.slice(-1000)}`);
    return new Target(spec, folder, { mr, nr, lanes, skinnyRows, skinnyColumns });
  }

  /** What the compiler makes of a capture for this target. */
  assemble(capture: Capture): Parts {
    const runtime = {
      shape: this.shape,
      features: this.bits,
      planContract: (desc: ContractDesc) => planContract(this.shape, desc),
    };
    return new Assembler(nativeTarget(runtime as unknown as NativeRuntime), capture, true).run();
  }

  /** Compiles recorded programs, and runs them at each number of threads: [threads][program]; nothing if it can't run. */
  async run(recordings: readonly Recording[], threads: readonly number[]): Promise<Result[][]> {
    const parts = recordings.map((r) => r.parts.get(this.name) as Parts);
    const cases: Uint8Array[] = [];
    const i64 = (...values: number[]): void => {
      cases.push(new Uint8Array(BigInt64Array.from(values, BigInt).buffer));
    };
    const bytes = (a: ArrayBufferView): void => {
      cases.push(new Uint8Array(a.buffer, a.byteOffset, a.byteLength));
    };
    i64(recordings.length);
    recordings.forEach(({ inputs, scalars, outputs }, i) => {
      const { table, sources, arenaBytes, constants } = parts[i];
      const words = encodeTable(table);
      i64(words.length);
      bytes(words);
      i64(sources.length, ...sources.map((s) => this.#kernel(s)));
      i64(scalars.length + constants.length);
      bytes(Float64Array.of(...scalars, ...constants));
      i64(1 + inputs.length + outputs.length, arenaBytes, 0);
      for (const input of inputs) {
        i64(input.bytes.length, 1);
        bytes(input.bytes);
      }
      for (const output of outputs) i64(output.bytes.length, 0);
    });
    writeFileSync(join(this.#folder, "cases"), Buffer.concat(cases));
    await this.#build();
    if (!this.#spec.runner) return [];
    const [program, ...rest] = [...this.#spec.runner, "./cross", "cases", "results", ...threads.map(String)];
    await command(program, rest, this.#folder);
    const all = new Uint8Array(readFileSync(join(this.#folder, "results")));
    let at = 0;
    const take = (n: number): Uint8Array => all.subarray(at, (at += n));
    return threads.map(() =>
      recordings.map(({ after, outputs }) => {
        const [error] = new BigInt64Array(take(8).slice().buffer);
        return {
          error,
          after: after.map((b) => ({ dtype: b.dtype, bytes: take(b.bytes.length) })),
          outputs: outputs.map((b) => ({ dtype: b.dtype, bytes: take(b.bytes.length) })),
        };
      }),
    );
  }

  #kernel(source: string): number {
    let i = this.#kernels.get(source);
    if (i === undefined) this.#kernels.set(source, (i = this.#kernels.size));
    return i;
  }

  async #build(): Promise<void> {
    const units = together([...this.#kernels.keys()]);
    const names = units.map((source, i) => {
      writeFileSync(join(this.#folder, `k${i}.c`), source);
      return `k${i}`;
    });
    const table = Array.from(this.#kernels.values(), (i) => `kernel_${i}`);
    writeFileSync(
      join(this.#folder, "table.c"),
      `#include "abi.h"\n${table.map((k) => `void ${k}(const Cmd *, nb_i64, nb_i64, int);\n`).join("")}KernelFn cross_kernels[] = {${table.join(", ")}};\n`,
    );
    const files = [...names, "table"].map((n) => `${n}.c`);
    await Promise.all(files.map((file) => compile(this.#spec, ["-c", file], this.#folder)));
    await link(this.#spec, "cross", [...names, "table"].map((n) => `${n}.o`).join("\n"), this.#folder);
  }

  get numKernels(): number {
    return this.#kernels.size;
  }
}

/** The sources of kernels kernel_0, kernel_1, …, with as many in one as start alike, up to 16: to compile each alone takes twice the time. */
function together(kernels: readonly string[]): string[] {
  const units: string[] = [];
  const alike = new Map<Lanes, { readonly needed: string[]; readonly bodies: string[] }>();
  const close = (lanes: Lanes): void => {
    const { needed, bodies } = alike.get(lanes) as { needed: string[]; bodies: string[] };
    units.push(`${lanesPrelude(lanes, needed)}\n${bodies.join("")}`);
    alike.delete(lanes);
  };
  for (const [i, source] of kernels.entries()) {
    const named = (body: string): string => `#define ${SYMBOL} kernel_${i}\n${body}\n#undef ${SYMBOL}\n`;
    const parts = splitPrelude(source);
    if (parts === null) {
      units.push(named(source));
      continue;
    }
    const { needed, bodies } = alike.get(parts.lanes) ?? { needed: [], bodies: [] };
    alike.set(parts.lanes, { needed, bodies });
    needed.push(...parts.needed);
    if (bodies.push(named(parts.body)) === 16) close(parts.lanes);
  }
  for (const lanes of [...alike.keys()]) close(lanes);
  return units;
}

const compile = (spec: TargetSpec, args: readonly string[], folder: string): Promise<string> =>
  command(spec.compiler, [...commonFlags, ...targetFlags(spec.bits), `-I${runtimeFolder}`, ...args], folder);

/** One static executable of the runtime and `objects` (a list by lines). */
function link(spec: TargetSpec, name: string, objects: string, folder: string): Promise<string> {
  writeFileSync(
    join(folder, `${name}.list`),
    `${objects}\n${[...runtimeSources, "cross"].map((s) => `${s}.o`).join("\n")}\n`,
  );
  return command(spec.compiler, ["-static", "-o", name, `@${name}.list`, "-lm", "-lpthread"], folder);
}

/** The runtime's own kernels that a command table names; the words are described in runtime/program.c. */
export function builtinsOf(table: Int32Array): BuiltinName[] {
  let at = 7;
  for (let i = 0; i < table[3]; i++) at += 1 + table[at];
  const names: BuiltinName[] = [];
  for (let i = 0; i < table[2]; i++) {
    if (table[at] < 0) names.push(builtins[-1 - table[at]]);
    at += 7;
    at += 1 + 3 * table[at];
    at += 1 + table[at];
    at += 1 + 2 * table[at];
  }
  at += 1 + 3 * table[at]; // buffers of no command
  for (let loops = table[at++]; loops > 0; loops--) at += 4 + 4 * table[at + 3];
  if (at !== table.length) throw new Error("the command table has another form than builtinsOf knows");
  return names;
}

export interface Raw {
  readonly dtype: DType;
  readonly bytes: Uint8Array;
}

export interface Result {
  /** 0, or the error word. */
  readonly error: bigint;
  /** The states and inputs after the run, in the capture's order. */
  readonly after: readonly Raw[];
  readonly outputs: readonly Raw[];
}

/** A run on this machine: what went in, what came out, and the same program for each target. */
export interface Recording extends Omit<Result, "error"> {
  readonly label: string;
  readonly failed: boolean;
  readonly inputs: readonly Raw[];
  readonly scalars: readonly number[];
  readonly parts: ReadonlyMap<string, Parts>;
}

/** A cpu backend that records the first run of every program made while `label` is not empty. */
export class Recorder {
  label = "";
  readonly recordings: Recording[] = [];

  wrap(backend: Backend, targets: readonly Target[]): Backend {
    return { ...backend, compile: (capture) => this.#compile(backend, targets, capture) };
  }

  async #compile(backend: Backend, targets: readonly Target[], capture: Capture): Promise<Program> {
    const { label } = this;
    const program = await backend.compile(capture);
    if (!label) return program;
    const parts = new Map(targets.map((t) => [t.name, t.assemble(capture)]));
    const states = capture.storages.map(({ dtype, bytes }) => ({ dtype, bytes }));
    const results = capture.roots.map(({ dtype, shape }) => ({ dtype, bytes: sizeOf(shape) * dtypes[dtype].bytes }));
    const copy = (memory: unknown, dtype: DType, size: number): Raw => {
      const bytes = new Uint8Array(size);
      (memory as Memory).read(bytes);
      return { dtype, bytes };
    };
    let done = false;
    const run = async (r: Run): Promise<void> => {
      const inputs = r.buffers.map((m, i) => copy(m, states[i].dtype, states[i].bytes));
      const scalars = [...r.scalars];
      let failure: unknown;
      try {
        await program.run(r);
      } catch (error) {
        failure = error;
      }
      this.recordings.push({
        label,
        failed: failure !== undefined,
        inputs,
        scalars,
        parts,
        after: r.buffers.map((m, i) => copy(m, states[i].dtype, states[i].bytes)),
        outputs: r.outputs.map((m, i) => copy(m, results[i].dtype, results[i].bytes)),
      });
      if (failure !== undefined) throw failure;
    };
    return {
      stats: program.stats,
      describe: (stage) => program.describe(stage),
      run: (r) => {
        if (done) return program.run(r);
        done = true;
        return run(r);
      },
    };
  }
}
