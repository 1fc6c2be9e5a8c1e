/**
 * The C toolchain: finding a compiler that works, asking the processor what it can do, choosing flags, and turning
 * sources into shared libraries through a cache on disk. What the libraries hold is native.ts's and the renderer's affair.
 */
import { execFile, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  closeSync,
  copyFileSync,
  existsSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { availableParallelism, homedir, tmpdir } from "node:os";
import { basename, delimiter, join } from "node:path";
import { fileURLToPath } from "node:url";
import koffi from "koffi";
import { BackendError } from "../../core/errors.ts";
import { ABI_VERSION } from "./table.ts";

/** A C compiler that failed on a source that should compile. */
export class CompilerError extends BackendError {
  override name = "CompilerError";
}

export interface Compiler {
  readonly command: readonly string[];
  readonly kind: "gcc" | "clang" | "zig";
  /** First line of `--version`; part of every cache key. */
  readonly version: string;
}

/** The bits of `nabla_features` (runtime/system.c). */
export const features = {
  x86: 1,
  arm64: 2,
  sse42: 4,
  avx: 8,
  fma: 16,
  f16c: 32,
  avx2: 64,
  bmi: 128,
  avx512: 256,
  avx512vnni: 512,
  avx512bf16: 1024,
  dotprod: 2048,
} as const;

const debug = (): number => Number(process.env["NABLA_DEBUG"] ?? 0);

/** The folder of the runtime's C sources: beside this file in `src/` and, copied by the build, in `dist/`. */
export const runtimeFolder = fileURLToPath(new URL("./runtime/", import.meta.url));

// ---- the compiler ----------------------------------------------------------------------------------------------------

const candidates = (): string[][] => {
  const own = process.env["NABLA_CC"]?.trim();
  return own ? [own.split(/\s+/)] : [["cc"], ["gcc"], ["clang"], ["zig", "cc"]];
};

let found: Compiler | null | undefined;

/** What tells a compiler's program from the next version of it without running it; null where that can't be told. */
function identityOf(command: readonly string[]): string | null {
  const [program, ...args] = command as [string, ...string[]];
  // arguments may name the program that really compiles (ccache gcc), whose versions this would not see
  if (!args.every((a) => a.startsWith("-") || (a === "cc" && program === "zig"))) return null;
  const folders = program.includes("/") ? [""] : (process.env["PATH"] ?? "").split(delimiter);
  for (const folder of folders) {
    try {
      const path = realpathSync(folder ? join(folder, program) : program);
      const { size, ino, mtimeNs, ctimeNs } = statSync(path, { bigint: true });
      return [...command, path, size, ino, mtimeNs, ctimeNs].join(" ");
    } catch {
      // not in this folder
    }
  }
  return null;
}

/** A compiler that was found to work earlier, in this process or another, is asked no more while it is the same file. */
function recall(command: readonly string[], path: string, identity: string): Compiler | null {
  try {
    const kept = JSON.parse(readFileSync(path, "utf8")) as { identity: string } & Pick<Compiler, "kind" | "version">;
    return kept.identity === identity ? { command, kind: kept.kind, version: kept.version } : null;
  } catch {
    return null;
  }
}

/** Writes a file of the cache aside and renames it, so that nobody reads half of it. One that can't be written is no failure. */
export function writeAside(path: string, data: string | Uint8Array, mode = 0o666): void {
  const aside = `${path}.${process.pid}-${serial++}`;
  try {
    writeFileSync(aside, data, { mode });
    renameSync(aside, path);
  } catch {
    rmSync(aside, { force: true });
  }
}

/** Asks a compiler for its version and whether it compiles a line that needs headers and libm. */
function tryCompiler(command: readonly string[]): Compiler | null {
  const [program, ...args] = command as [string, ...string[]];
  const version = spawnSync(program, [...args, "--version"], { encoding: "utf8" });
  if (version.error || version.status !== 0) return null;
  const folder = mkdtempSync(join(tmpdir(), "nabla-cc-"));
  try {
    const source = join(folder, "tiny.c");
    writeFileSync(
      source,
      "#include <stdint.h>\n#include <math.h>\nint32_t tiny(double x) { return (int32_t)sqrt(x); }\n",
    );
    const flags = ["-O2", "-shared", "-fPIC", "-o", join(folder, "tiny.so")];
    const built = spawnSync(program, [...args, ...flags, source, "-lm"]);
    if (built.error || built.status !== 0) return null;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
  const text = version.stdout;
  const kind = command.includes("zig") ? "zig" : /clang/i.test(text) ? "clang" : "gcc";
  return { command, kind, version: text.split("\n")[0]!.trim() };
}

/**
 * The first C compiler that really compiles: `NABLA_CC`, else cc, gcc, clang, `zig cc`; null if there is none. Looked for
 * once a process.
 */
export function findCompiler(): Compiler | null {
  if (found !== undefined) return found;
  for (const command of candidates()) {
    const identity = identityOf(command);
    const name = createHash("sha256").update(command.join(" ")).digest("hex").slice(0, 16);
    const path = identity === null ? "" : join(cacheFolder(), `compiler-${name}.json`);
    const known = identity === null ? null : recall(command, path, identity);
    const compiler = known ?? tryCompiler(command);
    if (!compiler) continue;
    if (identity !== null && !known) {
      const { kind, version } = compiler;
      writeAside(path, JSON.stringify({ identity, kind, version }));
    }
    return (found = compiler);
  }
  return (found = null);
}

/** The compiler, or an error that says what to install. */
export function requireCompiler(): Compiler {
  const compiler = findCompiler();
  if (compiler) return compiler;
  const tried = candidates()
    .map((c) => c.join(" "))
    .join(", ");
  throw new BackendError(
    `cpu: no working C compiler (tried ${tried}). Install gcc or clang, put zig on the PATH, or name a compiler in NABLA_CC; the wasm backend needs none`,
  );
}

/** Flags of every unit: numerics without surprises (no contraction, no errno, wrapping integers), never -ffast-math. */
export const commonFlags: readonly string[] = [
  "-O2",
  "-std=gnu11",
  "-fPIC",
  "-fwrapv",
  "-fno-math-errno",
  "-ffp-contract=off",
  "-fno-strict-aliasing",
  "-w",
];

/** Explicit instruction sets for `bits`, never -march=native: the same name hides different processors. */
export function targetFlags(bits: number): string[] {
  const flags: string[] = [];
  if (bits & features.x86) {
    if (bits & features.avx2) flags.push("-mavx2", "-mbmi", "-mbmi2");
    if (bits & features.fma) flags.push("-mfma");
    if (bits & features.f16c) flags.push("-mf16c");
    if (bits & features.avx512) flags.push("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl");
    if (bits & features.avx512vnni) flags.push("-mavx512vnni");
    if (bits & features.avx512bf16) flags.push("-mavx512bf16");
  }
  if (bits & features.dotprod) flags.push("-march=armv8.2-a+dotprod");
  return flags;
}

let probed: number | undefined;

/**
 * Feature bits of this processor, as far as the operating system supports them, from a probe compiled with baseline
 * flags. `NABLA_CPU=avx2` hides AVX-512.
 */
export async function cpuFeatures(): Promise<number> {
  if (probed !== undefined) return probed;
  const source = readFileSync(join(runtimeFolder, "system.c"), "utf8");
  const path = await buildLibrary({
    name: "probe",
    sources: [{ name: "system", text: source }],
    flags: ["-DNABLA_PROBE"],
    bits: 0,
  });
  let bits = koffi.load(path).func("int32_t nabla_features()")() as number;
  if (process.env["NABLA_CPU"] === "avx2") bits &= ~(features.avx512 | features.avx512vnni | features.avx512bf16);
  if (bits & features.avx512bf16 && !(await knowsBfloat16())) bits &= ~features.avx512bf16;
  return (probed = bits);
}

/** Whether the compiler and its assembler know avx512_bf16, which is younger than the rest (gcc 10, clang 9, binutils 2.34). */
async function knowsBfloat16(): Promise<boolean> {
  const text = 'void nabla_pairs(void) { __asm__("vdpbf16ps %zmm0, %zmm1, %zmm2"); }\n';
  try {
    await buildLibrary({
      name: "probe",
      sources: [{ name: "pairs", text }],
      flags: ["-fvisibility=hidden"],
      bits: features.x86 | features.avx512bf16,
    });
    return true;
  } catch (error) {
    if (error instanceof CompilerError) return false;
    throw error;
  }
}

// ---- the cache -------------------------------------------------------------------------------------------------------

let folder: string | undefined;

/** Where libraries are kept: NABLA_CACHE_DIR, else the user's cache; a private temporary folder if that can't be written. */
export function cacheFolder(): string {
  if (folder) return folder;
  const base =
    process.env["NABLA_CACHE_DIR"] || join(process.env["XDG_CACHE_HOME"] || join(homedir(), ".cache"), "nabla");
  const wanted = join(base, "kernels");
  try {
    mkdirSync(wanted, { recursive: true, mode: 0o700 });
    const test = join(wanted, `.write-${process.pid}`);
    writeFileSync(test, "");
    rmSync(test);
    folder = wanted;
  } catch (error) {
    folder = mkdtempSync(join(tmpdir(), "nabla-kernels-"));
    const temporary = folder;
    process.once("exit", () => rmSync(temporary, { recursive: true, force: true }));
    if (debug())
      console.error(
        `nabla: ${wanted} can't be written (${(error as Error).message}); kernels go to ${folder} and are not kept`,
      );
  }
  return folder;
}

/** Forgets what this process has found (compiler, features, folder); for tests that change the environment. */
export function resetToolchain(): void {
  found = undefined;
  probed = undefined;
  folder = undefined;
}

export interface LibrarySpec {
  /** A word for the file name. */
  readonly name: string;
  readonly sources: readonly { readonly name: string; readonly text: string }[];
  /** Headers that the sources include by name: part of the key, found through `include`. */
  readonly headers?: readonly string[];
  readonly include?: string;
  readonly flags?: readonly string[];
  readonly bits: number;
}

let serial = 0;
const suffix = process.platform === "darwin" ? ".dylib" : ".so";

/** A library cut short maps pages that do not exist and would end the process with SIGBUS; ELF's last table tells. */
function looksWhole(path: string): boolean {
  const size = statSync(path).size;
  if (process.platform !== "linux") return size > 0;
  const head = Buffer.alloc(64);
  const fd = openSync(path, "r");
  try {
    if (readSync(fd, head, 0, 64, 0) < 64 || head.readUInt32BE(0) !== 0x7f454c46) return false;
  } finally {
    closeSync(fd);
  }
  return Number(head.readBigUInt64LE(40)) + head.readUInt16LE(58) * head.readUInt16LE(60) <= size;
}

const loadable = new Set<string>();
/** Why the last library that could not be opened was refused. */
let refusal = "";

/** Whether the library can be opened here; one that can't is renamed, never deleted: it may be someone's evidence. */
function usable(path: string): boolean {
  if (loadable.has(path)) return true;
  if (!existsSync(path)) return false;
  try {
    if (!looksWhole(path)) throw new Error("the file is cut short or is no shared library");
    koffi.load(path);
    loadable.add(path);
    return true;
  } catch (error) {
    refusal = (error as Error).message;
    const aside = `${path}.bad-${process.pid}-${serial++}`;
    renameSync(path, aside);
    if (debug())
      console.error(
        `nabla: ${path} can't be loaded (${(error as Error).message}); moved to ${aside}, building it again`,
      );
    return false;
  }
}

function invoke(compiler: Compiler, args: string[], sourcePath: string): Promise<void> {
  const [program, ...rest] = compiler.command as [string, ...string[]];
  return new Promise((resolve, reject) => {
    execFile(program, [...rest, ...args], { maxBuffer: 1 << 24 }, (error, _stdout, stderr) => {
      if (!error) return resolve();
      const lines = stderr.split("\n").filter((l) => l.trim());
      const shown = lines.length ? lines.slice(0, 12).join("\n  ") : error.message;
      reject(
        new CompilerError(
          `cpu: ${compiler.command.join(" ")} failed (${compiler.version}). The source is kept at ${sourcePath}\n  command: ${[...compiler.command, ...args].join(" ")}\n  ${shown}`,
        ),
      );
    });
  });
}

/** At most this many compilers at once in the process. */
let running = 0;
const waiting: (() => void)[] = [];
async function withSlot<T>(work: () => Promise<T>): Promise<T> {
  if (running >= availableParallelism()) await new Promise<void>((go) => waiting.push(go));
  else running++;
  try {
    return await work();
  } finally {
    const next = waiting.shift();
    if (next) next();
    else running--;
  }
}

const inFlight = new Map<string, Promise<string>>();

/** The compiler's flags for a library, but for where its headers are. */
const flagsOf = (spec: LibrarySpec, compiler: Compiler): string[] => [
  ...commonFlags,
  ...(compiler.kind === "zig" ? ["-fno-sanitize=undefined"] : []),
  ...targetFlags(spec.bits),
  ...(spec.flags ?? []),
];

/**
 * Where a library is in the cache, or would be. The key is all of: sources, headers, compiler, flags, feature bits, ABI version.
 */
function pathOf(spec: LibrarySpec, compiler: Compiler): string {
  const hash = createHash("sha256");
  for (const part of [
    ...spec.sources.flatMap((s) => [s.name, s.text]),
    "",
    ...(spec.headers ?? []),
    "",
    compiler.command.join(" "),
    compiler.version,
    flagsOf(spec, compiler).join(" "),
    `${spec.bits} ${ABI_VERSION} ${process.platform} ${process.arch}`,
  ])
    hash.update(`${part.length}:`).update(part);
  return join(cacheFolder(), `${spec.name}-${hash.digest("hex").slice(0, 40)}${suffix}`);
}

/** The path of a shared library made of `sources`, from the cache or built now. Throws CompilerError, and keeps the source that failed. */
export function buildLibrary(spec: LibrarySpec): Promise<string> {
  const compiler = requireCompiler();
  const path = pathOf(spec, compiler);
  let build = inFlight.get(path);
  if (!build) {
    build = usable(path) ? Promise.resolve(path) : compileTo(path, spec, compiler);
    inFlight.set(path, build);
    build.then(
      () => inFlight.delete(path),
      () => inFlight.delete(path),
    );
  }
  return build;
}

/** The libraries that are not in the cache, by where they would be. */
export function missingLibraries(specs: readonly LibrarySpec[]): Map<string, LibrarySpec> {
  const compiler = requireCompiler();
  return new Map(specs.map((spec) => [pathOf(spec, compiler), spec] as const).filter(([path]) => !existsSync(path)));
}

/** What a function of the library at `path` is called in a library that holds the functions of several. */
export const nameTogether = (symbol: string, path: string): string =>
  `${symbol}_${basename(path, suffix).replace(/\W/g, "_")}`;

/**
 * Builds one library that stands for several: `spec` defines what each of `paths` should, under nameTogether's names, and all of them
 * become names of one file. Throws CompilerError.
 */
export async function buildTogether(spec: LibrarySpec, paths: readonly string[]): Promise<void> {
  const compiler = requireCompiler();
  const whole = join(cacheFolder(), `${spec.name}-together.${process.pid}-${serial++}${suffix}`);
  try {
    await compileTo(whole, spec, compiler);
    for (const path of paths) {
      const aside = `${path}.${process.pid}-${serial++}`;
      try {
        linkSync(whole, aside);
      } catch {
        copyFileSync(whole, aside); // a file system without second names
      }
      renameSync(aside, path);
    }
  } finally {
    rmSync(whole, { force: true });
  }
}

async function compileTo(path: string, spec: LibrarySpec, compiler: Compiler): Promise<string> {
  const flags = flagsOf(spec, compiler);
  const stem = `${path}.${process.pid}-${serial++}`;
  const include = spec.include ? [`-I${spec.include}`] : [];
  const sources = spec.sources.map((s) => ({
    path: `${stem}.${s.name}.c`,
    object: `${stem}.${s.name}.o`,
    text: s.text,
  }));
  const output = `${stem}${suffix}`;
  const temporary = [output];
  try {
    for (const s of sources) writeFileSync(s.path, s.text);
    if (sources.length === 1) {
      const [only] = sources as [(typeof sources)[0]];
      await withSlot(() =>
        invoke(compiler, [...flags, ...include, "-shared", "-o", output, only.path, "-lm"], only.path),
      );
    } else {
      temporary.push(...sources.map((s) => s.object));
      const objects = await Promise.allSettled(
        sources.map((s) =>
          withSlot(() => invoke(compiler, [...flags, ...include, "-c", "-o", s.object, s.path], s.path)),
        ),
      );
      for (const o of objects) if (o.status === "rejected") throw o.reason;
      await withSlot(() =>
        invoke(
          compiler,
          [...flags, "-shared", "-o", output, ...sources.map((s) => s.object), "-lm", "-lpthread"],
          sources[0]!.path,
        ),
      );
    }
    renameSync(output, path);
    if (!usable(path))
      throw new CompilerError(
        `cpu: ${compiler.command.join(" ")} built ${path}, but it can't be loaded: ${refusal}. A function that does not exist, or a compiler for another system? The source is kept at ${sources[0]!.path}`,
      );
    for (const s of sources) rmSync(s.path, { force: true });
  } finally {
    for (const t of temporary) rmSync(t, { force: true });
  }
  return path;
}
