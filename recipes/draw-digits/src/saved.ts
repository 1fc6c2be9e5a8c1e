/**
 * A run in a file: its weights and what the optimiser remembers as tensors, the rest as a line of JSON in the file's header.
 * The file is in the browser's private file system for this page, or in memory where there is none.
 */
import type { GeneratorState, Tensor } from "nabla";
import { load, readSafetensors, type Source, save, saveToBlob } from "nabla/formats";
import type { CurveState } from "./curve.ts";
import type { Trainer } from "./model.ts";

export interface RunState {
  readonly step: number;
  /** The random generator, which chooses the batches. */
  readonly random: GeneratorState;
  readonly loss: CurveState;
  readonly accuracy: CurveState;
  /** [10 × 10], as the last evaluation gave it. */
  readonly matrix: readonly number[] | null;
}

/** Where this page's run is kept from visit to visit. */
export const path = "draw-digits/run.safetensors";

/** "model.fc1.weight", …, "optimizer.3.expAvg", … */
function tensorsOf({ model, optimizer }: Trainer): Record<string, Tensor> {
  const out: Record<string, Tensor> = {};
  for (const [name, x] of Object.entries(model.stateDict())) out[`model.${name}`] = x;
  for (const [i, state] of Object.entries(optimizer.stateDict().state))
    for (const name of ["expAvg", "expAvgSq"]) out[`optimizer.${i}.${name}`] = state[name] as Tensor;
  return out;
}

/** Saves a run, which must not go on meanwhile. Gives where it is: the file, or a blob and the reason why there is no file. */
export async function saveRun(trainer: Trainer, state: RunState): Promise<{ source: Source; reason: Error | null }> {
  const tensors = tensorsOf(trainer);
  const options = { metadata: { run: JSON.stringify(state) } };
  try {
    await save(tensors, path, options);
    return { source: path, reason: null };
  } catch (error) {
    return { source: await saveToBlob(tensors, options), reason: error as Error };
  }
}

/** What a file says of the run in it; null where there is no file. */
export async function readRun(source: Source): Promise<RunState | null> {
  try {
    const { metadata } = await readSafetensors(source);
    return JSON.parse(metadata["run"]);
  } catch (error) {
    if ((error as { code?: string }).code === "ENOENT") return null;
    throw error;
  }
}

/** Puts the tensors of a file into a run that was made anew; they come to the device of the run. */
export async function loadRun(trainer: Trainer, source: Source, step: number): Promise<void> {
  const { model, optimizer } = trainer;
  const tensors = await load(source);
  const names = Object.keys(model.stateDict());
  model.loadStateDict(Object.fromEntries(names.map((name) => [name, tensors[`model.${name}`]])));
  const state = names.map((_, i) => ({
    step,
    expAvg: tensors[`optimizer.${i}.expAvg`],
    expAvgSq: tensors[`optimizer.${i}.expAvgSq`],
  }));
  optimizer.loadStateDict({ ...optimizer.stateDict(), state });
}
