/**
 * What a checkpoint of `fit` holds, as files: model.safetensors (the weights, or what of them is learnt), state.json and
 * state.safetensors (all else that the next step depends on). Writing them durably is `checkpoint-folder.ts`.
 */
import { join } from "../data/path.ts";
import { readBytes } from "../data/source.ts";
import type { Chunks } from "../formats/atomic.ts";
import { load, tensorChunks } from "../formats/tensors.ts";
import type { GeneratorState } from "../tensor/random.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { putTogether, StateError, takeApart } from "./state.ts";

/** Everything beside the weights that decides how training goes on. */
export interface SavedState {
  readonly step: number;
  readonly epoch: number;
  /** Batches of the epoch already used. */
  readonly inEpoch: number;
  /** The default generator: dropout and other random operations. */
  readonly random: GeneratorState;
  /** The position in the data, as its `state()` gave it; null for data without one. */
  readonly data: unknown;
  readonly optimizer: unknown;
  readonly scheduler: unknown;
  readonly callbacks: Readonly<Record<string, unknown>>;
  /** The weights to go on from, where model.safetensors has others (the best ones, which were put back at the end). */
  readonly weights?: Readonly<Record<string, Tensor>>;
}

export type CheckpointFiles = Readonly<Record<"model.safetensors" | "state.safetensors" | "state.json", Chunks>>;

const format = 1;

/**
 * The files of a checkpoint, to be written once. The tensors are read from their device as they are written, so that a copy of all never exists:
 * it must be done before training goes on.
 */
export async function packCheckpoint(
  model: Readonly<Record<string, Tensor>>,
  state: SavedState,
): Promise<CheckpointFiles> {
  const tensors: Record<string, Tensor> = {};
  const json = { format, ...(takeApart(state, "", tensors) as object) };
  return {
    "model.safetensors": tensorChunks(model, { format: "pt" }),
    "state.safetensors": tensorChunks(tensors, { format: "pt" }),
    "state.json": [new TextEncoder().encode(`${JSON.stringify(json)}\n`)],
  };
}

/** Reads a checkpoint's folder. Throws FileError, SafetensorsError or StateError. */
export async function readCheckpoint(
  folder: string,
): Promise<{ readonly model: Record<string, Tensor>; readonly state: SavedState }> {
  const path = join(folder, "state.json");
  let json: Record<string, unknown>;
  try {
    json = JSON.parse(new TextDecoder().decode(await readBytes(path)));
  } catch (error) {
    if (error instanceof SyntaxError)
      throw new StateError(`${path}: not valid JSON (${error.message}); the checkpoint is damaged`);
    throw error;
  }
  if (json["format"] !== format)
    throw new StateError(`${path}: a checkpoint of format ${json["format"]}, this version reads format ${format}`);
  const model = await load(join(folder, "model.safetensors"));
  const state = putTogether(json, await load(join(folder, "state.safetensors"))) as SavedState;
  return { model, state };
}
