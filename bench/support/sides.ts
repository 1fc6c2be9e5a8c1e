/**
 * The sides by name: ours, and where the peers are found. Python comes from NABLA_PYTHON (default python3), the floor
 * from NABLA_FLOOR, TensorFlow.js, jax-js and node-llama-cpp from folders NABLA_TFJS, NABLA_JAXJS and NABLA_LLAMACPP in which they are installed. What is
 * absent says why.
 */
import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { Absent, open, type Session } from "./protocol.ts";

const bench = dirname(dirname(fileURLToPath(import.meta.url)));

export interface Side {
  /** Short, for JSON: "nabla", "torch", "torch.compile", "numpy", "tfjs-wasm", "jaxjs-webgpu", "floor". */
  readonly name: string;
  /** Its work is not ours bit for bit (its own data): nothing to compare but the time. */
  readonly unchecked?: boolean;
  open(): Promise<Session>;
}

const serving = (name: string, env: NodeJS.ProcessEnv, args: readonly string[]): Side => ({
  name,
  open: () => open(process.execPath, ["--import", "tsx", join(bench, "support/child.ts"), ...args], env),
});

export const ours = (benchmark: string, ...args: string[]): Side => serving("nabla", {}, [benchmark, ...args]);

/** Our side on a certain device; its name is the device's. */
export const oursOn = (device: string, benchmark: string, ...args: string[]): Side =>
  serving(device, { NABLA_DEVICE: device }, [benchmark, ...args]);

/** A script of peers/; `name` tells what it measures. */
export const python = (name: string, script: string, ...args: string[]): Side => ({
  name,
  open: async () => {
    const command = process.env["NABLA_PYTHON"] || "python3";
    try {
      return await open(command, [join(bench, "peers", script), ...args], { PYTHONUNBUFFERED: "1" });
    } catch (error) {
      if (!(error instanceof Absent)) throw error;
      throw new Absent(`${error.message}; NABLA_PYTHON names the Python to use`);
    }
  },
});

export const torch = (script: string, ...args: string[]): readonly Side[] => [
  python("torch", script, "eager", ...args),
  python("torch.compile", script, "compile", ...args),
];

/** TensorFlow.js with its wasm backend, from NABLA_TFJS/node_modules. */
export const tfjs = (script: string, ...args: string[]): Side => ({
  name: "tfjs-wasm",
  open: async () => {
    const folder = process.env["NABLA_TFJS"];
    if (!folder)
      throw new Absent("NABLA_TFJS names no folder with @tensorflow/tfjs and @tensorflow/tfjs-backend-wasm installed");
    return open(process.execPath, [join(bench, "peers", script), resolve(folder), ...args]);
  },
});

/** jax-js on its backend "webgpu" or "wasm", from NABLA_JAXJS/node_modules. */
export const jaxjs = (device: string, script: string, ...args: string[]): Side => ({
  name: `jaxjs-${device}`,
  open: async () => {
    const folder = process.env["NABLA_JAXJS"];
    if (!folder) throw new Absent("NABLA_JAXJS names no folder with @jax-js/jax installed");
    return open(process.execPath, [join(bench, "peers", script), resolve(folder), device, ...args]);
  },
});

/** node-llama-cpp, from NABLA_LLAMACPP/node_modules, on these GGUF files. */
export const llamacpp = (threads: number, tokens: number, checked: number, files: readonly string[]): Side => ({
  name: "node-llama-cpp",
  unchecked: true,
  open: async () => {
    const folder = process.env["NABLA_LLAMACPP"];
    if (!folder) throw new Absent("NABLA_LLAMACPP names no folder with node-llama-cpp installed");
    const numbers = [threads, tokens, checked].map(String);
    return open(process.execPath, [join(bench, "peers", "llamacpp.mjs"), resolve(folder), ...numbers, ...files]);
  },
});

/**
 * The floor: the same step written by hand in C. It is run anew for every round, `steps` steps, and prints its median.
 * NABLA_FLOOR is the folder of its sources.
 */
export const floor = (source: string, args: readonly string[], steps: number): Side => ({
  name: "floor",
  unchecked: true,
  open: async () => {
    const folder = process.env["NABLA_FLOOR"] || join(dirname(dirname(bench)), "shared/floor");
    if (!existsSync(join(folder, source)))
      throw new Absent(
        `${source} is not in ${process.env["NABLA_FLOOR"] || "../shared/floor"}; NABLA_FLOOR names its folder`,
      );
    const room = mkdtempSync(join(tmpdir(), "nabla-floor-"));
    const binary = join(room, "floor");
    const wide = ["avx512f", "avx512dq", "avx512bw", "avx512vl"];
    const flags = cpuFlags();
    const isa = wide.every((f) => flags.has(f)) ? wide.map((f) => `-m${f}`) : ["-mavx2"];
    const cc = process.env["NABLA_CC"] || "cc";
    const plain = ["-O2", "-fwrapv", "-fno-math-errno", "-ffp-contract=off", ...isa, "-mfma", "-w"];
    execFileSync(cc, [...plain, join(folder, source), "-lpthread", "-lm", "-o", binary], { cwd: folder });
    const run = (): number[] => {
      const NT = String(availableParallelism());
      const text = execFileSync(binary, [...args, String(steps)], { encoding: "utf8", env: { ...process.env, NT } });
      const found = /median ([\d.]+) ms, min ([\d.]+)/.exec(text);
      if (!found) throw new Error(`the floor printed no times: ${text}`);
      return [Number(found[1]), Number(found[2])];
    };
    return {
      title: "the floor, C by hand",
      check: async () => [],
      round: async () => ({ ms: run() }),
      memory: () => Promise.reject(new Error("the floor's memory is not asked for")),
      close: async () => rmSync(room, { recursive: true, force: true }),
    };
  },
});

export function cpuFlags(): ReadonlySet<string> {
  try {
    return new Set(/^flags\s*:(.*)$/m.exec(readFileSync("/proc/cpuinfo", "utf8"))?.[1].trim().split(/\s+/));
  } catch {
    return new Set();
  }
}
