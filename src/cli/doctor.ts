/**
 * nabla doctor: which backends work here, what the others lack and how to get it, and how fast they are, measured. It changes
 * nothing on the machine but the kernel cache.
 */
import type { Command } from "commander";
import type { Tensor } from "../tensor/index.ts";
import { exitCodes } from "./exit.ts";
import type { Declare, Outcome } from "./main.ts";

export const declare: Declare = (parent: Command, done) => {
  parent
    .command("doctor")
    .description("which backends work here, what is missing and how to get it, and how fast they are")
    .option("--no-measure", "only look, measure nothing")
    .action((options: { measure: boolean }) => done(doctor(options.measure)));
};

/** How to get a C compiler, by platform. */
const compilerAdvice: Readonly<Record<string, string>> = {
  linux: "apt install gcc libc6-dev (Debian, Ubuntu), dnf install gcc (Fedora), apk add gcc musl-dev (Alpine)",
  darwin: "xcode-select --install",
  win32: "install zig (winget install zig.zig); Nabla uses it as a C compiler",
};

const row = (name: string, text: string) => `  ${name.padEnd(10)} ${text}`;

async function doctor(measure: boolean): Outcome {
  const os = await import("node:os");
  const { version } = await import("./main.ts");
  const { formatBytes } = await import("../train/terminal.ts");
  const cpus = os.cpus();
  console.log(`nabla ${version()}, Node ${process.version}, ${process.platform} ${process.arch}`);
  console.log(
    `${cpus[0]?.model.trim() ?? "unknown processor"}, ${os.availableParallelism()} of ${cpus.length} threads, ${formatBytes(os.totalmem())} of memory`,
  );
  console.log("\nbackends");
  const cpu = await inspectCpu();
  for (const line of cpu.lines) console.log(line);
  console.log(row("reference", "works: plain TypeScript, exact and slow; what the others are compared with"));
  const wasm = await inspectWasm();
  console.log(row("wasm", wasm.line));
  const webgpu = await inspectWebGpu();
  for (const line of webgpu.lines) console.log(line);
  if (!measure) return exitCodes.ok;
  console.log("\nmeasured");
  const works = { cpu: cpu.works, wasm: wasm.works, webgpu: webgpu.works, reference: true };
  for (const device of ["cpu", "wasm", "webgpu", "reference"] as const)
    if (works[device]) console.log(await measured(device));
  return exitCodes.ok;
}

type Device = "cpu" | "wasm" | "webgpu" | "reference";

async function measured(device: Device): Promise<string> {
  const { gflops, size, gbytes } = await measureDevice(device);
  return row(
    device,
    `${gflops.toPrecision(3)} GFLOP/s (float32 matrix product, ${size}³), ${gbytes.toPrecision(3)} GB/s (a = a·s + b)`,
  );
}

async function inspectCpu(): Promise<{ works: boolean; lines: string[] }> {
  const advice = compilerAdvice[process.platform] ?? "install gcc or clang";
  try {
    const { cacheFolder, cpuFeatures, features, findCompiler } = await import("../backends/cpu/toolchain.ts");
    const compiler = findCompiler();
    if (compiler === null) {
      const wanted = process.env["NABLA_CC"];
      const found = wanted === undefined ? "no C compiler found" : `NABLA_CC=${wanted} does not compile`;
      return { works: false, lines: [row("cpu", `does not work: ${found}`), row("", `to get it: ${advice}`)] };
    }
    const { backendOf, setDevice } = await import("../execution/index.ts");
    setDevice("cpu"); // asked for by name: a failure is an error, not the reference backend
    await backendOf("cpu");
    const bits = await cpuFeatures();
    const has = Object.entries(features).flatMap(([name, bit]) => ((bits & bit) !== 0 ? [name] : []));
    return {
      works: true,
      lines: [
        row("cpu", `works: ${compiler.command.join(" ")}, ${compiler.version}`),
        row("", `instructions: ${has.join(" ")}`),
        row("", `kernel cache: ${cacheFolder()}`),
      ],
    };
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    return { works: false, lines: [row("cpu", `does not work: ${reason}`)] };
  }
}

async function inspectWasm(): Promise<{ works: boolean; line: string }> {
  try {
    const { backendOf } = await import("../execution/index.ts");
    const { threads, largestMemory } = (await backendOf("wasm")) as import("../backends/wasm/index.ts").WasmBackend;
    const { formatBytes } = await import("../train/terminal.ts");
    const count =
      threads === 0 ? "one thread (memory can't be shared here)" : `${threads} ${threads === 1 ? "thread" : "threads"}`;
    return {
      works: true,
      line: `works: 128-bit vectors, ${count}, up to ${formatBytes(largestMemory)} of memory; computes where cpu does not work`,
    };
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    return { works: false, line: `does not work: ${reason.replace(/^wasm: /, "")}` };
  }
}

async function inspectWebGpu(): Promise<{ works: boolean; lines: string[] }> {
  try {
    const { backendOf } = await import("../execution/index.ts");
    const { formatBytes } = await import("../train/terminal.ts");
    const { device } = (await backendOf("webgpu")) as import("../backends/webgpu/index.ts").WebGpuBackend;
    const { bindingBytes, bufferBytes, storageBuffers, workgroupBytes } = device.limits;
    const features = [device.subgroups ? "subgroups" : "", device.f16 ? "shader-f16" : ""].filter(Boolean);
    return {
      works: true,
      lines: [
        row("webgpu", `works: ${device.description}${features.length > 0 ? `, with ${features.join(" and ")}` : ""}`),
        row(
          "",
          `limits: ${formatBytes(bindingBytes)} a binding, ${formatBytes(bufferBytes)} a buffer, ${storageBuffers} storage buffers a kernel, ${formatBytes(workgroupBytes)} of workgroup memory`,
        ),
      ],
    };
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    return { works: false, lines: [row("webgpu", `does not work: ${reason.replace(/^webgpu: /, "")}`)] };
  }
}

/** The best of several runs, or of as many as a second allows: the machine's ability, not its load. */
async function best(run: () => Promise<void>, repeats: number): Promise<number> {
  await run(); // compiles
  let least = Number.POSITIVE_INFINITY;
  const start = performance.now();
  for (let i = 0; i < repeats && (i === 0 || performance.now() - start < 1000); i++) {
    const began = performance.now();
    await run();
    least = Math.min(least, performance.now() - began);
  }
  return least / 1000;
}

async function measureDevice(device: Device): Promise<{ gflops: number; size: number; gbytes: number }> {
  const { asState, rand, realize } = await import("../tensor/index.ts");
  const [size, length, repeats] = device === "reference" ? [256, 1 << 20, 3] : [1024, 1 << 24, 8];
  // a graphics processor has only been asked when a run returns: an element tells that it has answered
  const done = async (...tensors: Tensor[]): Promise<void> => {
    await realize(...tensors);
    if (device === "webgpu") await tensors[0].reshape([-1]).at(0).item();
  };
  const state = (shape: number[]) => asState(rand(shape, { device }));
  const a = state([size, size]);
  const b = state([size, size]);
  const x = state([length]);
  const y = state([length]);
  await realize(a, b, x, y);
  const product = await best(() => done(a.matmul(b)), repeats);
  const triad = await best(() => done(x.mul_(0.5).add_(y)), repeats); // in place: new memory would be measured too
  return { gflops: (2 * size ** 3) / product / 1e9, size, gbytes: (3 * 4 * length) / triad / 1e9 };
}
