/**
 * What the tests of the WGSL renderer stand on: Dawn's null device, which checks every text without a GPU; a device that
 * runs, where there is one (a software Vulkan driver will do); the kernels that the fuser makes of a capture; and a plain
 * backend that runs kernels one by one and leaves opaque operations to the reference rows. Not the WebGPU backend:
 * no arena, no schedule, no queue of its own.
 */

import type { Backend, Capture, Program, Run } from "../../../src/backends/backend.ts";
import { rows as referenceRows } from "../../../src/backends/reference/program.ts";
import { fromRaw, heldAs, hold, toRaw } from "../../../src/backends/reference/values.ts";
import { numbered } from "../../../src/backends/webgpu/device.ts";
import { storageBytes, TooManyBindings } from "../../../src/backends/webgpu/layout.ts";
import { type RenderedWgsl, renderWgsl, type WgslOptions } from "../../../src/backends/webgpu/render.ts";
import { finishKernel } from "../../../src/compiler/finish.ts";
import { Fuser, type Group, type GroupKernel } from "../../../src/compiler/fuse.ts";
import { type Kernel, partDType } from "../../../src/compiler/kernel.ts";
import { type GNode, lower } from "../../../src/compiler/lower.ts";
import { allocateRaw, type DType, dtypes, type TypedArray } from "../../../src/core/dtype.ts";
import { BackendError, IndexError } from "../../../src/core/errors.ts";
import { sizeOf } from "../../../src/core/shape.ts";

type Gpu = ReturnType<typeof import("webgpu").create>;
/** Kept for the life of the process: devices die with what made them. */
const kept: Gpu[] = [];

async function open(options: string[]): Promise<GPUAdapter | string> {
  try {
    const { create, globals } = await import("webgpu");
    Object.assign(globalThis, globals);
    const gpu = create(options);
    kept.push(gpu);
    return (await gpu.requestAdapter()) ?? "no WebGPU adapter here; VK_DRIVER_FILES may name a software Vulkan driver";
  } catch (error) {
    return `the package webgpu does not load here: ${(error as Error).message}`;
  }
}

async function deviceOf(adapter: GPUAdapter): Promise<GPUDevice> {
  const requiredFeatures = (["shader-f16", "subgroups"] as GPUFeatureName[]).filter((f) => adapter.features.has(f));
  const { maxStorageBuffersPerShaderStage } = adapter.limits;
  return adapter.requestDevice({ requiredFeatures, requiredLimits: { maxStorageBuffersPerShaderStage } });
}

/** A device that only checks, or why there is none. */
export async function nullDevice(): Promise<GPUDevice | string> {
  const adapter = await open(["backend=null"]);
  return typeof adapter === "string" ? adapter : deviceOf(adapter);
}

/** A device that computes, or why there is none. */
export async function computeDevice(): Promise<GPUDevice | string> {
  const adapter = await open([]);
  return typeof adapter === "string" ? adapter : deviceOf(adapter);
}

function layoutOf(device: GPUDevice, { bindings }: RenderedWgsl): GPUBindGroupLayout {
  return device.createBindGroupLayout({
    entries: bindings.map(({ binding, kind }) => ({
      binding,
      visibility: 4, // compute
      buffer: { type: kind === "uniform" ? "uniform" : "storage" },
    })),
  });
}

/** Compiles a text with the layout that its bindings name, and with the one that the text implies. */
export async function check(device: GPUDevice, rendered: RenderedWgsl): Promise<GPUComputePipeline> {
  device.pushErrorScope("validation");
  const module = device.createShaderModule({ code: rendered.source });
  const { messages } = await module.getCompilationInfo();
  const layout = device.createPipelineLayout({ bindGroupLayouts: [layoutOf(device, rendered)] });
  const compute = { module, entryPoint: "main" };
  const pipeline = device.createComputePipeline({ layout, compute });
  device.createComputePipeline({ layout: "auto", compute });
  const error = await device.popErrorScope();
  const complaints = messages.filter((m) => m.type === "error").map((m) => `line ${m.lineNum}: ${m.message}`);
  if (error) complaints.push(error.message);
  if (complaints.length) throw new Error(`${complaints.join("\n")}\n${numbered(rendered.source)}`);
  return pipeline;
}

// ---- the kernels of a capture ------------------------------------------------------------------------------------------

const opaque = new Set(["contract", "scatter", "argsort", "cumsum", "cumprod", "cummax"]);
const rule = { isOpaque: (n: GNode) => opaque.has(n.op), takesStrided: () => false, ignores: () => false };

export interface Unit {
  /** A kernel and what its buffers are, or an opaque operation. */
  readonly made: GroupKernel | null;
  readonly opaque: GNode | null;
}

/** What a capture comes to, in an order that can be run; parts of sums over rows are put together by the caller. */
export function unitsOf(
  capture: Capture,
  fuse = true,
): { units: Unit[]; roots: readonly GNode[]; assigns: ReturnType<typeof lower>["assigns"] } {
  const lowered = lower(capture, () => false);
  const fuser = new Fuser(lowered, rule, fuse);
  fuser.run();
  for (const g of fuser.groups) if (!g.opaque) fuser.chooseSplit(g);
  const stored = fuser.storedMembers();
  const done = new Set<Group>();
  const units: Unit[] = [];
  while (done.size < fuser.groups.length) {
    const next = fuser.groups.find((g) => !done.has(g) && [...g.before].every((b) => done.has(b)));
    if (!next) throw new Error("the groups of this capture wait for each other");
    done.add(next);
    units.push({ made: next.opaque ? null : fuser.kernelOf(next, stored), opaque: next.opaque });
  }
  return { units, roots: lowered.roots, assigns: lowered.assigns };
}

/** Whether a sum over rows is left in parts that a kernel of its own puts together. */
const needsFinish = (n: GNode, blocks: number): boolean => blocks > 1 || partDType(n.dtype) !== n.dtype;

/** Every kernel of a capture, with the finishing ones. */
export function kernelsOf(
  capture: Capture,
  options: WgslOptions,
  fuse = true,
): { kernel: Kernel; rendered: RenderedWgsl }[] {
  const out: { kernel: Kernel; rendered: RenderedWgsl }[] = [];
  const push = (kernel: Kernel): RenderedWgsl => {
    const rendered = renderWgsl(kernel, options);
    out.push({ kernel, rendered });
    return rendered;
  };
  for (const { made } of unitsOf(capture, fuse).units) {
    if (!made || made.kernel.rows === 0 || made.writes.length === 0) continue;
    const { blocks } = push(made.kernel);
    for (const { node, partial } of made.writes)
      if (partial && needsFinish(node, blocks)) push(finishKernel(node, partial, blocks, made.kernel.columns));
  }
  return out;
}

// ---- running them ------------------------------------------------------------------------------------------------------

/** Runs one kernel; `buffers` in the kernel's order. Returns the failure word and index. */
export class Runner {
  readonly device: GPUDevice;
  readonly options: WgslOptions;
  private readonly pipelines = new Map<string, Promise<GPUComputePipeline>>();
  readonly failure: GPUBuffer;

  constructor(device: GPUDevice, options: Partial<WgslOptions> = {}) {
    this.device = device;
    const has = (f: string): boolean => device.features.has(f as GPUFeatureName);
    this.options = {
      f16: has("shader-f16"),
      subgroups: has("subgroups"),
      maxStorageBuffers: device.limits.maxStorageBuffersPerShaderStage,
      ...options,
    };
    this.failure = this.allocate(8);
  }

  allocate(bytes: number): GPUBuffer {
    return this.device.createBuffer({ size: Math.max(16, Math.ceil(bytes / 4) * 4), usage: 0x80 | 0x4 | 0x8 });
  }

  write(buffer: GPUBuffer, data: TypedArray): void {
    const bytes = new Uint8Array(Math.ceil(data.byteLength / 4) * 4);
    bytes.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
    this.device.queue.writeBuffer(buffer, 0, bytes);
  }

  async read<T extends TypedArray>(buffer: GPUBuffer, into: T): Promise<T> {
    const size = Math.ceil(into.byteLength / 4) * 4;
    if (size === 0) return into;
    const staging = this.device.createBuffer({ size, usage: 0x1 | 0x8 });
    const encoder = this.device.createCommandEncoder();
    encoder.copyBufferToBuffer(buffer, 0, staging, 0, size);
    this.device.queue.submit([encoder.finish()]);
    await staging.mapAsync(1);
    new Uint8Array(into.buffer, into.byteOffset, into.byteLength).set(
      new Uint8Array(staging.getMappedRange()).subarray(0, into.byteLength),
    );
    staging.destroy();
    return into;
  }

  async dispatch(
    rendered: RenderedWgsl,
    buffers: readonly GPUBuffer[],
    values: { length: number; firstCheck?: number; scalars?: ArrayLike<number> },
  ): Promise<void> {
    let pipeline = this.pipelines.get(rendered.source);
    if (!pipeline) this.pipelines.set(rendered.source, (pipeline = check(this.device, rendered)));
    const compiled = await pipeline;
    const { device } = this;
    device.pushErrorScope("validation");
    const words = rendered.uniforms({
      length: values.length,
      firstCheck: values.firstCheck ?? 1,
      scalars: values.scalars ?? [],
    });
    const uniform = device.createBuffer({ size: words.byteLength, usage: 0x40 | 0x8 });
    device.queue.writeBuffer(uniform, 0, words);
    const bound = {
      uniform: () => uniform,
      failure: () => this.failure,
      buffer: (b: readonly number[]) => buffers[b[0]],
    };
    const group = device.createBindGroup({
      layout: layoutOf(device, rendered),
      entries: rendered.bindings.map(({ binding, kind, buffers: b }) => ({
        binding,
        resource: { buffer: bound[kind](b) },
      })),
    });
    const encoder = device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    pass.setPipeline(compiled);
    pass.setBindGroup(0, group);
    const { x, y, z } = rendered.dispatch(values);
    if (x * y * z > 0) pass.dispatchWorkgroups(x, y, z);
    pass.end();
    device.queue.submit([encoder.finish()]);
    const error = await device.popErrorScope();
    uniform.destroy();
    if (error) throw new Error(`${error.message}\n${numbered(rendered.source)}`);
  }

  async failed(): Promise<{ operation: number; index: number } | null> {
    const [operation, index] = await this.read(this.failure, new Int32Array(2));
    this.write(this.failure, new Uint32Array(2));
    return operation === 0 ? null : { operation: operation >>> 0, index };
  }
}

interface Step {
  readonly rendered: RenderedWgsl;
  readonly made: GroupKernel;
  readonly finishes: readonly { node: GNode; rendered: RenderedWgsl; blocks: number; columns: number }[];
}

/** A backend for tests: what the renderer makes, run one kernel after the other. */
export class KernelBackend implements Backend {
  readonly name = "webgpu kernels";
  readonly dtypes = (Object.keys(dtypes) as DType[]).filter((d) => d !== "float64");
  readonly runner: Runner;
  constructor(runner: Runner) {
    this.runner = runner;
  }
  allocate(bytes: number): GPUBuffer {
    return this.runner.allocate(bytes);
  }
  write(memory: unknown, data: TypedArray): void {
    this.runner.write(memory as GPUBuffer, data);
  }
  read(memory: unknown, dtype: DType, length: number): Promise<TypedArray> {
    return this.runner.read(memory as GPUBuffer, allocateRaw(dtype, length));
  }
  compile(capture: Capture): Program {
    try {
      return this.compileAs(capture, true);
    } catch (error) {
      if (!(error instanceof TooManyBindings)) throw error;
      return this.compileAs(capture, false);
    }
  }

  private compileAs(capture: Capture, fuse: boolean): Program {
    const { runner } = this;
    const { units, roots, assigns } = unitsOf(capture, fuse);
    const steps = units.map(({ made, opaque: node }): Step | GNode => {
      if (!made) return node as GNode;
      const { rows, columns } = made.kernel;
      if (rows === 0 || made.writes.length === 0) return { made, rendered: null as never, finishes: [] };
      const rendered = renderWgsl(made.kernel, runner.options);
      const finishes = made.writes.flatMap(({ node: n, partial }) =>
        partial && needsFinish(n, rendered.blocks)
          ? [
              {
                node: n,
                blocks: rendered.blocks,
                columns,
                rendered: renderWgsl(finishKernel(n, partial, rendered.blocks, columns), runner.options),
              },
            ]
          : [],
      );
      return { made, rendered, finishes };
    });
    const states = capture.storages.map((s) => s.bytes);
    const run = async (r: Run): Promise<void> => {
      const memory = new Map<string, GPUBuffer>();
      const own: GPUBuffer[] = [];
      const fresh = (bytes: number): GPUBuffer => {
        const buffer = runner.allocate(bytes);
        own.push(buffer);
        return buffer;
      };
      const bufferOf = (n: GNode): GPUBuffer => {
        if (n.op === "buffer") return r.buffers[n.storage] as GPUBuffer;
        const [owner, k] = n.op === "output" ? [n.inputs[0], n.attrs["index"] as number] : [n, 0];
        const key = `${owner.id}:${k}`;
        let buffer = memory.get(key);
        if (!buffer) memory.set(key, (buffer = fresh(storageBytes(n.dtype, sizeOf(n.shape)))));
        return buffer;
      };
      for (const step of steps) {
        if ("op" in step) await this.runOpaque(step, bufferOf);
        else if (step.rendered) {
          const { made, rendered, finishes } = step;
          const parts = new Map(
            finishes.map((f) => [f.node, fresh(storageBytes(partDType(f.node.dtype), f.blocks * f.columns))]),
          );
          const buffers = [
            ...made.reads.map(bufferOf),
            ...made.writes.map((w) => (w.partial && parts.get(w.node)) || bufferOf(w.node)),
          ];
          await runner.dispatch(rendered, buffers, {
            length: made.kernel.columns,
            scalars: made.scalars.map((s) => r.scalars[s.slot]),
          });
          for (const f of finishes)
            await runner.dispatch(f.rendered, [parts.get(f.node) as GPUBuffer, bufferOf(f.node)], { length: f.blocks });
          const failure = await runner.failed();
          if (failure) throw failureOf(rendered, failure);
        }
      }
      const copies: [GPUBuffer, GPUBuffer, number][] = [];
      roots.forEach((n, i) => {
        copies.push([bufferOf(n), r.outputs[i] as GPUBuffer, storageBytes(n.dtype, sizeOf(n.shape))]);
      });
      const taken = assigns.map(({ storage, value }): [GPUBuffer, GPUBuffer, number] => {
        const bytes = Math.ceil(states[storage] / 4) * 4;
        const copy = fresh(bytes);
        this.copy([[bufferOf(value), copy, bytes]]);
        return [copy, r.buffers[storage] as GPUBuffer, bytes];
      });
      this.copy(copies);
      this.copy(taken);
      await runner.device.queue.onSubmittedWorkDone();
      for (const b of own) b.destroy();
    };
    const kernels = steps.length;
    return {
      stats: { kernels, flops: 0, bytes: 0, arenaBytes: 0 },
      run,
      describe: () => steps.map((s) => ("op" in s ? s.op : s.rendered?.source)).join("\n\n"),
    };
  }

  private copy(list: readonly [GPUBuffer, GPUBuffer, number][]): void {
    const encoder = this.runner.device.createCommandEncoder();
    for (const [from, to, bytes] of list) if (bytes > 0) encoder.copyBufferToBuffer(from, 0, to, 0, bytes);
    this.runner.device.queue.submit([encoder.finish()]);
  }

  private async runOpaque(n: GNode, bufferOf: (n: GNode) => GPUBuffer): Promise<void> {
    const row = referenceRows[n.op];
    if (!row || n.outputs) throw new BackendError(`${this.name}: no row for ${n.op}`);
    const inputs = [];
    for (const i of n.inputs)
      inputs.push(fromRaw(await this.read(bufferOf(i), i.dtype, sizeOf(i.shape)), i.dtype, false));
    const out = hold(heldAs(n.dtype, false), sizeOf(n.shape));
    row.plan({ name: n.op, attrs: n.attrs, inputs: n.inputs, shape: n.shape, dtype: n.dtype, exact: false })(
      out,
      inputs,
    );
    const raw = allocateRaw(n.dtype, sizeOf(n.shape));
    toRaw(out, n.dtype, raw);
    this.write(bufferOf(n), raw);
  }
}

function failureOf({ checks }: RenderedWgsl, { operation, index }: { operation: number; index: number }): IndexError {
  const check = checks[operation - 1];
  if (check.kind === "division") return new IndexError("integer division by zero");
  return new IndexError(
    `index ${index} is out of range for an axis of ${check.extent}; expected 0 … ${check.extent - 1}`,
  );
}
