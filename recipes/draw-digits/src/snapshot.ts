/** A run's state as plain data, and where it is kept: a file in the browser's private file system for this page. */
import { type Tensor, tensor } from "nabla";
import type { CurveState } from "./curve.ts";
import type { Trainer } from "./model.ts";

export interface Values {
  readonly shape: readonly number[];
  readonly data: Float32Array<ArrayBuffer>;
}

export interface Snapshot {
  readonly step: number;
  /** The random generator, which chooses the batches. */
  readonly random: { readonly seed: readonly [number, number]; readonly counter: number };
  readonly loss: CurveState;
  readonly accuracy: CurveState;
  readonly matrix: readonly number[] | null;
  /** The weights ("model.fc1.weight") and what the optimiser remembers of each ("optimizer.3.expAvg"). */
  readonly tensors: Readonly<Record<string, Values>>;
}

/** Reads the tensors of a run as they are now, whatever steps come meanwhile. */
export async function readTensors({ model, optimizer }: Trainer): Promise<Record<string, Values>> {
  const named = Object.entries(model.stateDict()).map(([name, x]): [string, Tensor] => [`model.${name}`, x]);
  for (const [i, state] of Object.entries(optimizer.stateDict().state))
    for (const name of ["expAvg", "expAvgSq"]) named.push([`optimizer.${i}.${name}`, state[name] as Tensor]);
  const reads = named.map(async ([name, x]): Promise<[string, Values]> => {
    return [name, { shape: x.shape, data: (await x.data()) as Float32Array<ArrayBuffer> }];
  });
  return Object.fromEntries(await Promise.all(reads));
}

/** Puts tensors into a run that has made `step` steps. */
export function writeTensors({ model, optimizer }: Trainer, tensors: Snapshot["tensors"], step: number): void {
  const at = (name: string): Tensor => tensor(tensors[name].data, { shape: tensors[name].shape });
  model.loadStateDict(Object.fromEntries(Object.keys(model.stateDict()).map((name) => [name, at(`model.${name}`)])));
  const moments = (_: unknown, i: number) => ({
    step,
    expAvg: at(`optimizer.${i}.expAvg`),
    expAvgSq: at(`optimizer.${i}.expAvgSq`),
  });
  optimizer.loadStateDict({ ...optimizer.stateDict(), state: model.parameters().map(moments) });
}

const fileName = "draw-digits.run";

/** Writes a snapshot in the place of the one before: a line of JSON, then the numbers of the tensors in its order. */
export async function save({ tensors, ...rest }: Snapshot): Promise<void> {
  const shapes = Object.entries(tensors).map(([name, { shape }]) => [name, shape]);
  const folder = await navigator.storage.getDirectory();
  const file = await (await folder.getFileHandle(fileName, { create: true })).createWritable();
  // the file changes when it is closed, so a page that is left half way leaves the old one
  await file.write(`${JSON.stringify({ ...rest, shapes })}\n`);
  for (const { data } of Object.values(tensors)) await file.write(data);
  await file.close();
}

/** The snapshot that was saved, or null. */
export async function load(): Promise<Snapshot | null> {
  const folder = await navigator.storage.getDirectory();
  const handle = await folder.getFileHandle(fileName).catch(() => null);
  if (!handle) return null;
  const bytes = await (await handle.getFile()).arrayBuffer();
  const end = new Uint8Array(bytes).indexOf(10);
  if (end < 0) return null;
  const { shapes, ...rest } = JSON.parse(new TextDecoder().decode(bytes.slice(0, end)));
  const tensors: Record<string, Values> = {};
  let at = end + 1;
  for (const [name, shape] of shapes as [string, number[]][]) {
    const length = 4 * shape.reduce((n, d) => n * d, 1);
    tensors[name] = { shape, data: new Float32Array(bytes.slice(at, at + length)) };
    at += length;
  }
  return { ...rest, tensors };
}
