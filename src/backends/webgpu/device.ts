/**
 * The adapter and its device: found in a browser as navigator.gpu, in Node through the package `webgpu`, which a user
 * adds. Holds the limits that everything else asks for, compiles texts to pipelines (each once), and keeps what went
 * wrong behind the caller's back, a lost device or memory that was not there, until somebody can be told. No buffers here.
 */
import { BackendError } from "../../core/errors.ts";
import type { BindingKind } from "./layout.ts";

type WebGpuPackage = typeof import("webgpu");

/** What a device can do, as far as programs depend on it. */
export interface Limits {
  /** Storage buffers that a kernel binds. */
  readonly storageBuffers: number;
  /** Bytes of one binding, and of one buffer. */
  readonly bindingBytes: number;
  readonly bufferBytes: number;
  readonly workgroupBytes: number;
}

export interface OpenOptions {
  /** Limits to keep to although the adapter has more, so that splitting can be tested. */
  readonly limits?: Partial<Limits>;
  /** Whether to use features that the adapter has; default: yes. */
  readonly features?: { readonly f16?: boolean; readonly subgroups?: boolean };
}

export interface Pipeline {
  readonly pipeline: GPUComputePipeline;
  readonly layout: GPUBindGroupLayout;
}

/** Flags of the specification; the constants that name them are globals only in browsers. */
export const usage = { mapRead: 0x1, copySource: 0x4, copyTarget: 0x8, uniform: 0x40, storage: 0x80 } as const;
const COMPUTE_STAGE = 0x4;
export const MAP_READ = 0x1;

/** Kept for the life of the process: devices die with what made them. */
const kept: GPU[] = [];

/** The way to adapters. Throws BackendError, saying what to do, where there is none. */
async function gpu(): Promise<GPU> {
  const here = (globalThis as { navigator?: { gpu?: GPU } }).navigator?.gpu;
  if (here) return here;
  if (import.meta.forBrowsers || typeof process !== "object" || !process.versions?.node)
    throw new BackendError("webgpu: this browser has no WebGPU (navigator.gpu), or the page is not served over https");
  const name = "webgpu"; // not a literal: bundlers for browsers must not look for it
  let loaded: WebGpuPackage;
  try {
    loaded = (await import(name)) as WebGpuPackage;
  } catch (cause) {
    const missing = (cause as { code?: string }).code === "ERR_MODULE_NOT_FOUND";
    throw new BackendError(
      missing
        ? "webgpu: the package webgpu is not installed; to get it: npm install webgpu"
        : `webgpu: the package webgpu does not load here: ${(cause as Error).message}`,
      { cause },
    );
  }
  const made = loaded.create([]);
  kept.push(made);
  return made;
}

const mebibytes = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(bytes < 2 ** 20 ? 3 : 0)} MiB`;

/** Bytes asked for in vain, as words. What an adapter has left WebGPU does not tell: only what is held of it. */
export function outOfMemory(what: string, bytes: number, held: number, largest: number): BackendError {
  return new BackendError(
    `webgpu: out of memory: ${mebibytes(bytes)} for ${what} were asked for, beside ${mebibytes(held)} already held (this adapter's largest buffer: ${mebibytes(largest)}); use a smaller batch or model`,
  );
}

/** See Device.lanes. */
function vectorLanes(info: GPUAdapterInfo): number {
  const { subgroupMinSize: least = 0, subgroupMaxSize: most = 1, isFallbackAdapter, architecture, description } = info;
  const isSoftware = isFallbackAdapter || /swiftshader|llvmpipe|lavapipe/i.test(`${architecture} ${description}`);
  return isSoftware && least === most && least <= 16 ? least : 0;
}

export class Device {
  readonly gpu: GPUDevice;
  readonly limits: Limits;
  readonly f16: boolean;
  readonly subgroups: boolean;
  /**
   * The lanes of a subgroup that are one vector of a processor, on a software adapter whose subgroups are all of one
   * size; 0 on any other, and in browsers, which give pages no software adapter unless they are told to.
   */
  readonly lanes: number;
  /** The adapter's name, as it gives it. */
  readonly description: string;
  /** What has gone wrong since it was opened and nobody has been told. */
  private fault: Error | null = null;
  private lost: BackendError | null = null;
  private readonly pipelines = new Map<string, Promise<Pipeline>>();
  private readonly layouts = new Map<string, GPUBindGroupLayout>();

  private constructor(device: GPUDevice, adapter: GPUAdapter, options: OpenOptions) {
    this.gpu = device;
    const has = (f: string): boolean => device.features.has(f as GPUFeatureName);
    this.f16 = has("shader-f16") && options.features?.f16 !== false;
    this.subgroups = has("subgroups") && options.features?.subgroups !== false;
    const { limits } = device;
    this.limits = {
      storageBuffers: limits.maxStorageBuffersPerShaderStage,
      bindingBytes: limits.maxStorageBufferBindingSize,
      bufferBytes: limits.maxBufferSize,
      workgroupBytes: limits.maxComputeWorkgroupStorageSize,
      ...options.limits,
    };
    const { vendor, architecture, device: chip, description } = adapter.info;
    this.lanes = !import.meta.forGpus && this.subgroups ? vectorLanes(adapter.info) : 0;
    this.description = description || [vendor, architecture, chip].filter(Boolean).join(" ") || "an unnamed adapter";
    void device.lost.then(({ reason, message }) => {
      this.lost = new BackendError(
        `webgpu: the device was lost (${reason === "destroyed" ? "it was destroyed" : message || "no reason was given"}); what was in its memory is gone. Start the program again and go on from the last checkpoint`,
      );
    });
    device.addEventListener("uncapturederror", (event) => {
      this.blame(new BackendError(`webgpu: ${(event as GPUUncapturedErrorEvent).error.message}`));
    });
  }

  /** Opens the best adapter. Throws BackendError, saying why, where there is none. */
  static async open(options: OpenOptions = {}): Promise<Device> {
    const adapter = await (await gpu()).requestAdapter({ powerPreference: "high-performance" });
    if (!adapter)
      throw new BackendError(
        import.meta.forBrowsers
          ? "webgpu: no WebGPU adapter here"
          : "webgpu: no WebGPU adapter here; a driver is missing (VK_DRIVER_FILES may name a software one for Vulkan)",
      );
    const { limits } = adapter;
    const device = await adapter.requestDevice({
      requiredFeatures: (["shader-f16", "subgroups", "timestamp-query"] as GPUFeatureName[]).filter((f) =>
        adapter.features.has(f),
      ),
      requiredLimits: {
        maxStorageBuffersPerShaderStage: limits.maxStorageBuffersPerShaderStage,
        maxStorageBufferBindingSize: limits.maxStorageBufferBindingSize,
        maxBufferSize: limits.maxBufferSize,
        maxComputeWorkgroupStorageSize: limits.maxComputeWorkgroupStorageSize,
      },
    });
    return new Device(device, adapter, options);
  }

  /** Keeps an error for whoever uses the device next. */
  blame(error: Error): void {
    this.fault ??= error;
  }

  /** Throws what has gone wrong: a lost device every time, anything else once. */
  check(): void {
    if (this.lost) throw this.lost;
    const { fault } = this;
    this.fault = null;
    if (fault) throw fault;
  }

  /** Why something that waited for the device failed: its loss, which may be told only after it. */
  async reason(error: unknown): Promise<unknown> {
    await new Promise((resolve) => setTimeout(resolve, 0));
    return this.lost ?? this.fault ?? error;
  }

  /** The layout of a bind group of these kinds. */
  private layoutOf(kinds: readonly BindingKind[]): GPUBindGroupLayout {
    const key = kinds.join(" ");
    let layout = this.layouts.get(key);
    if (!layout) {
      layout = this.gpu.createBindGroupLayout({
        entries: kinds.map((kind, binding) => ({
          binding,
          visibility: COMPUTE_STAGE,
          buffer: { type: kind === "uniform" ? "uniform" : "storage" },
        })),
      });
      this.layouts.set(key, layout);
    }
    return layout;
  }

  /** A text's pipeline, made beside others and once. */
  pipeline(source: string, kinds: readonly BindingKind[]): Promise<Pipeline> {
    let made = this.pipelines.get(source);
    if (!made) {
      const layout = this.layoutOf(kinds);
      this.gpu.pushErrorScope("validation"); // the pipeline's own error says the same, to whoever waits for it
      const module = this.gpu.createShaderModule({ code: source });
      void this.gpu.popErrorScope().catch(() => {});
      made = this.gpu
        .createComputePipelineAsync({
          layout: this.gpu.createPipelineLayout({ bindGroupLayouts: [layout] }),
          compute: { module, entryPoint: "main" },
        })
        .then(
          (pipeline) => ({ pipeline, layout }),
          async (error) => {
            this.pipelines.delete(source);
            const why = await this.reason(error);
            if (why instanceof BackendError) throw why;
            const text = import.meta.forBrowsers ? "" : `\n${numbered(source)}`;
            throw new BackendError(`webgpu: a kernel does not compile: ${(error as Error).message}${text}`, {
              cause: error,
            });
          },
        );
      this.pipelines.set(source, made);
    }
    return made;
  }
}

/** A text with the numbers of its lines. */
export const numbered = (text: string): string =>
  text
    .split("\n")
    .map((line, i) => `${String(i + 1).padStart(4)} ${line}`)
    .join("\n");
