/**
 * What a process that trains will have resident at its peak, beyond what it has after its imports: the sum of what the plan of a
 * step knows exactly, and of what running it takes, by constants that were measured (docs/lab-notes.md, Memory).
 */
import type { PlannedProgram } from "./planning.ts";

/**
 * The process's own, of `cpu`: the backend's modules and libraries, its threads, and the JavaScript heap through the first step.
 * Measured on the perceptron, whose tensors take next to nothing.
 */
const BASE_BYTES = 10.3e6;
/**
 * Of the heap, for each recorded node of a step: nodes, keys, command tables, sources, and the young generation, which grows with
 * what survives it: by another 13 MB in some runs, which are not planned for. A program that is compiled for the first time leaves up to 30 MB more; planning has compiled it already.
 */
const NODE_BYTES = 16.3e3;
/** Resident pages of a kernel's library. */
const LIBRARY_BYTES = 24e3;
/** The peak is of so many steps; small batches go on to gather after them, up to WAITING_BYTES. */
export const plannedSteps = 10;
/** V8 collects when so much was allocated outside of its heap, and is told of the device's memory by as much (backends/cpu/memory.ts). */
const WAITING_BYTES = 64 * 2 ** 20;

/** Arrays of the host die young: V8 clears them away when this much, or two, have gathered. */
const YOUNG_BYTES = 8 * 2 ** 20;

/**
 * Batches that were used and wait for the collector: the device's copies and the host's, both together up to where it runs,
 * in whole batches; at least both copies of two steps.
 */
function waitingBytes(batch: number): number {
  if (batch === 0) return 0;
  const host = Math.min(plannedSteps * batch, Math.max(2 * batch, YOUNG_BYTES));
  const most = Math.floor(WAITING_BYTES / batch) * batch;
  return Math.max(4 * batch, Math.min(plannedSteps * batch + host, most));
}

/** Smaller blocks are told of to V8 by eight times their size (backends/cpu/memory.ts). */
const SMALL_BLOCK = 256 * 2 ** 10;

/** The host's arrays of about so many tokens wait for the collector (measured on vocabularies of 32,000 to 152,000 tokens). */
const WAITING_TOKENS = 40;

/** Logits of `bytes` in all on the device, of `elements`, that were read at each of `steps` tokens and wait for the collector: there and on the host. */
export function waitingLogits(bytes: number, elements: number, steps: number): number {
  const device = Math.min(bytes * steps, bytes < SMALL_BLOCK ? WAITING_BYTES / 8 : WAITING_BYTES);
  return device + 4 * elements * Math.min(steps, WAITING_TOKENS) + 16 * elements; // in float32, and to draw of the last in float64
}

/** Bytes, by what they are for; their sum is the peak. */
export interface Footprint {
  readonly weights: number;
  /** Moments, running statistics, and gradients where they outlive a step. */
  readonly otherState: number;
  /** Activations, and gradients that the update reads as they are made. */
  readonly temporaries: number;
  readonly outputs: number;
  /** Batches, on the host and on the device, until they are collected. */
  readonly data: number;
  /** Kernels' scratch, of all threads. */
  readonly scratch: number;
  /** The process: heap, compiled code, libraries. 0 where nothing is known of it (not the cpu backend). */
  readonly process: number;
}

/** The footprint of a training whose steady step is `step`. */
export function footprint(step: PlannedProgram, weights: number, device: string): Footprint {
  const { arenaBytes, scratchBytes = 0, libraries = 0 } = step.program.stats;
  const native = device === "cpu";
  return {
    weights,
    otherState: step.stateBytes - weights,
    temporaries: arenaBytes,
    outputs: step.outputBytes,
    data: waitingBytes(step.inputBytes),
    scratch: scratchBytes,
    process: native ? BASE_BYTES + NODE_BYTES * step.nodes.length + LIBRARY_BYTES * libraries : 0,
  };
}

export const totalOf = (parts: Footprint): number => Object.values(parts).reduce((a: number, b: number) => a + b, 0);
