/**
 * A program on the device: its pipelines, what they bind, and one submission a run. Numbers that change from run to run
 * go into one uniform buffer; where something can fail, the failure word comes back with the results. What is
 * dispatched, and on what memory, is decided in assemble.ts.
 */
import { BackendError } from "../../core/errors.ts";
import type { Program, ProgramStats, Run } from "../backend.ts";
import { failureError } from "../cpu/failure.ts";
import { dispatchesOf, type Location, type LoopStep, type Move, type Parts, type Step } from "./assemble.ts";
import { type Device, type Pipeline, usage } from "./device.ts";
import { FAILURE_BYTES } from "./layout.ts";
import { ALIGNMENT, type Allocator, type Arena, type Memory } from "./memory.ts";
import { Profile } from "./profile.ts";

/** Submissions that may be under way before a run waits for one. */
const AHEAD = 16;

/** What all programs of a device share. */
export interface Shared {
  readonly device: Device;
  readonly allocator: Allocator;
  readonly arena: Arena;
  readonly failure: GPUBuffer;
  /** Submissions that nobody has waited for. */
  ahead: number;
}

/** Compiles the texts, side by side. */
export async function linkProgram(shared: Shared, parts: Parts): Promise<WebGpuProgram> {
  const { device } = shared;
  const { limits } = device;
  const steps = dispatchesOf(parts.steps);
  for (const { label, memory } of steps)
    for (const { bytes } of memory)
      if (bytes > limits.bindingBytes)
        throw new BackendError(
          `webgpu: ${label} binds ${bytes} bytes at once; this adapter binds at most ${limits.bindingBytes}. Split the tensor`,
        );
  const pipelines = await Promise.all(steps.map(({ dispatch }) => device.pipeline(dispatch.source, dispatch.kinds)));
  device.check();
  return new WebGpuProgram(shared, parts, steps, pipelines);
}

interface Bound {
  readonly step: Step;
  readonly pipeline: Pipeline;
  /** Where its words begin in the uniform buffer. */
  readonly at: number;
  group: GPUBindGroup | null;
}

class WebGpuProgram implements Program {
  readonly stats: ProgramStats;
  private readonly shared: Shared;
  private readonly parts: Parts;
  private readonly steps: readonly Bound[];
  private readonly numbers: ReadonlyMap<Step, number>;
  private readonly words: Uint32Array<ArrayBuffer>;
  private readonly uniforms: GPUBuffer | null;
  private readonly hasFailure: boolean;
  private readonly profile: Profile | null;
  /** What the bind groups were made for. */
  private segments: readonly GPUBuffer[] = [];
  private storages: readonly unknown[] = [];
  private outputs: readonly unknown[] = [];
  private scalars: Float64Array | null = null;

  constructor(shared: Shared, parts: Parts, steps: readonly Step[], pipelines: readonly Pipeline[]) {
    this.shared = shared;
    this.parts = parts;
    this.stats = parts.stats;
    const none = new Float64Array(steps.reduce((n, s) => Math.max(n, ...s.dispatch.scalars.map((i) => i + 1)), 0));
    const words = steps.map(({ dispatch }) => dispatch.uniforms(dispatch.scalars.map(() => 0)).length);
    let end = 0;
    this.steps = steps.map((step, i) => {
      const at = end;
      end += Math.ceil((4 * words[i]) / ALIGNMENT) * ALIGNMENT;
      return { step, pipeline: pipelines[i], at, group: null };
    });
    this.numbers = new Map(steps.map((step, i) => [step, i]));
    this.words = new Uint32Array(end / 4);
    this.uniforms =
      end > 0 ? shared.device.gpu.createBuffer({ size: end, usage: usage.uniform | usage.copyTarget }) : null;
    this.hasFailure = steps.some((s) => s.dispatch.kinds.includes("failure"));
    const labels = steps.map((s) => s.label);
    this.profile = import.meta.forBrowsers ? null : Profile.of(shared.device, shared.allocator, labels);
    this.fill(none, () => true);
    this.send();
  }

  /** Writes the words of those steps that `changes` names. */
  private fill(scalars: Float64Array, changes: (step: Step) => boolean): boolean {
    let changed = false;
    for (const { step, at } of this.steps) {
      if (!changes(step)) continue;
      this.words.set(step.dispatch.uniforms(step.dispatch.scalars.map((i) => scalars[i])), at / 4);
      changed = true;
    }
    return changed;
  }

  private send(): void {
    if (this.uniforms) this.shared.device.gpu.queue.writeBuffer(this.uniforms, 0, this.words);
  }

  run(run: Run): void | Promise<void> {
    const { shared, parts } = this;
    const { device, arena } = shared;
    device.check();
    const segments = arena.reserve(parts.segments);
    this.setScalars(run.scalars);
    const encoder = device.gpu.createCommandEncoder();
    if (this.hasFailure) encoder.clearBuffer(shared.failure, 0, FAILURE_BYTES);
    this.bind(run, segments);
    this.encode(encoder, run, segments);
    const times = this.profile?.look(encoder);
    const look = parts.canFail ? shared.allocator.lookAt(encoder, shared.failure, 0, FAILURE_BYTES) : null;
    device.gpu.queue.submit([encoder.finish()]);
    if (times) return times().then(() => (look ? this.finish(look) : undefined));
    if (look) return this.finish(look);
    if (++shared.ahead < AHEAD) return;
    shared.ahead = 0;
    return device.gpu.queue.onSubmittedWorkDone().then(() => device.check());
  }

  private encode(encoder: GPUCommandEncoder, run: Run, segments: readonly GPUBuffer[]): void {
    const { profile } = this;
    let pass: GPUComputePassEncoder | null = null;
    const end = (): void => {
      pass?.end();
      pass = null;
    };
    const dispatch = (step: Step): void => {
      const i = this.numbers.get(step) as number;
      const { pipeline, group } = this.steps[i];
      const { x, y, z } = step.dispatch.groups;
      pass ??= encoder.beginComputePass(profile ? { timestampWrites: profile.writes(i) } : {});
      pass.setPipeline(pipeline.pipeline);
      pass.setBindGroup(0, group);
      pass.dispatchWorkgroups(x, y, z);
      if (profile) end();
    };
    const move = (moves: readonly Move[], iteration = 0): void => {
      end();
      for (const m of moves) {
        if (m.bytes === 0) continue;
        const [from, to] = [place(m.from, run, segments), place(m.to, run, segments)];
        const [read, write] = [from.offset as number, to.offset as number];
        encoder.copyBufferToBuffer(
          from.buffer,
          read + iteration * m.read,
          to.buffer,
          write + iteration * m.write,
          m.bytes,
        );
      }
    };
    const walk = (steps: readonly (Step | LoopStep)[]): void => {
      for (const step of steps) {
        if (!("count" in step)) {
          dispatch(step);
          continue;
        }
        move(step.first);
        for (let i = 0; i < step.count; i++) {
          move(step.taken, i);
          walk(step.steps);
          move(step.given, i);
        }
        move(step.last);
      }
    };
    walk(this.parts.steps);
    end();
  }

  private async finish(look: () => Promise<ArrayBuffer>): Promise<void> {
    const [operation, index] = new Int32Array(await look());
    this.shared.ahead = 0;
    this.shared.device.check();
    if (operation !== 0) throw failureError(this.parts.failures, operation, index, true);
  }

  private setScalars(scalars: Float64Array): void {
    const old = this.scalars;
    const same = (i: number): boolean => old !== null && Object.is(old[i], scalars[i]);
    if (this.fill(scalars, ({ dispatch }) => !dispatch.scalars.every(same))) this.send();
    this.scalars = scalars.slice();
  }

  /** Bind groups, made anew where the memory is another than in the run before. */
  private bind(run: Run, segments: readonly GPUBuffer[]): void {
    const { device, failure } = this.shared;
    const changed = {
      temporary: segments.map((b, i) => b !== this.segments[i]),
      storage: run.buffers.map((b, i) => b !== this.storages[i]),
      output: run.outputs.map((b, i) => b !== this.outputs[i]),
    };
    for (const bound of this.steps) {
      const { step, pipeline, at } = bound;
      if (bound.group && !step.memory.some((m) => changed[m.kind][m.index])) continue;
      let next = 0;
      const { dispatch, memory } = step;
      bound.group = device.gpu.createBindGroup({
        layout: pipeline.layout,
        entries: dispatch.kinds.map((kind, binding) => ({
          binding,
          resource:
            kind === "uniform"
              ? { buffer: this.uniforms as GPUBuffer, offset: at, size: 4 * uniformWords(step) }
              : kind === "failure"
                ? { buffer: failure, offset: 0, size: FAILURE_BYTES }
                : place(memory[next++], run, segments),
        })),
      });
    }
    this.segments = segments;
    this.storages = run.buffers;
    this.outputs = run.outputs;
  }

  dispose(): void {
    this.uniforms?.destroy();
    this.profile?.dispose();
  }

  describe(stage: "graph" | "kernels" | "memory" | "source"): string {
    if (stage === "source") return this.steps.map(({ step: s }) => `// ${s.label}\n${s.dispatch.source}`).join("\n\n");
    return this.parts.texts[stage];
  }
}

const uniformWords = ({ dispatch }: Step): number => Math.ceil((4 + dispatch.scalars.length) / 4) * 4;

/** What a binding names. */
function place(m: Location, run: Run, segments: readonly GPUBuffer[]): GPUBufferBinding {
  if (m.kind === "temporary") return { buffer: segments[m.index], offset: m.offset, size: m.bytes };
  const memory = (m.kind === "storage" ? run.buffers : run.outputs)[m.index] as Memory;
  return { buffer: memory.place.buffer, offset: memory.place.offset + m.offset, size: Math.max(4, m.bytes) };
}
