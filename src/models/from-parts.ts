/**
 * A model from tensors that lie in files, which are read one at a time: layers can be replaced (quantised) as soon as they have their weights, so
 * that the whole is never in memory as it is stored. Files of which kind, and which model, is `pretrained.ts`.
 */
import { isDType } from "../core/dtype.ts";
import type { ReadOptions } from "../data/source.ts";
import type { StoredTensor } from "../formats/index.ts";
import { storedTensor } from "../formats/load-stored.ts";
import type { Node } from "../graph/node.ts";
import { deferInit, type Module, type StateDict } from "../nn/index.ts";
import { realize, setData, type Tensor, zeros } from "../tensor/index.ts";

/** Gives another layer for `layer`, at this path of its model, which has its weights by now; or null, and it stays. */
export type LayerReplacer = (layer: Module, path: string) => Promise<Module | null>;

/** Every place of a module below `root`, the inner ones first. */
function* layersOf(
  root: Module,
  prefix = "",
): Generator<{ parent: Module; name: string; path: string; layer: Module }> {
  for (const [name, layer] of [...root.namedChildren()]) {
    const path = prefix + name;
    yield* layersOf(layer, `${path}.`);
    yield { parent: root, name, path, layer };
  }
}

const tensorsOf = (layer: Module): Tensor[] => [...layer.parameters(), ...layer.buffers()];

/** Replaces a model's layers; `read` is told of each layer's path before, `dropped` of each tensor that the model has no more. */
export async function replaceLayers(
  model: Module,
  replace: LayerReplacer,
  read: (path: string) => Promise<void> = async () => {},
  dropped: (tensor: Tensor) => void = () => {},
): Promise<void> {
  const others = new Map<Module, Module | null>();
  for (const { parent, name, path, layer } of layersOf(model)) {
    await read(path);
    if (!others.has(layer)) others.set(layer, await replace(layer, path));
    const other = others.get(layer);
    if (!other) continue;
    parent.replaceChild(name, other);
    const kept = new Set(tensorsOf(other));
    for (const tensor of tensorsOf(layer)) if (!kept.has(tensor)) dropped(tensor);
  }
}

export interface PartsOptions extends ReadOptions {
  readonly device?: string;
  /** What messages call the checkpoint. */
  readonly source: string;
}

/**
 * The model that `make` gives for tensors of the parts' names, shapes and dtypes, with the parts' contents, each read when its layer's turn comes.
 * `make` must take tensors as they are: what it computes of them is an error.
 */
export async function modelFromParts<M>(
  make: (tensors: StateDict) => M & Module,
  parts: Readonly<Record<string, StoredTensor>>,
  replace: LayerReplacer,
  { device, source, onProgress, signal }: PartsOptions,
): Promise<M> {
  const on = device === undefined ? {} : { device };
  // stand-ins of the same shapes and dtypes are recorded and never computed
  const partOf = new Map<Node, readonly [name: string, part: StoredTensor]>();
  const standIns: StateDict = {};
  for (const [name, part] of Object.entries(parts)) {
    standIns[name] = zeros(part.shape, { dtype: isDType(part.dtype) ? part.dtype : "int32", ...on });
    partOf.set(standIns[name].node, [name, part]);
  }
  const deferred = deferInit(() => make(standIns));
  const model = deferred.made;
  /** The part that a tensor of the model stands for, in its own dtype or another. */
  const find = ({ node }: Tensor) => partOf.get(node) ?? partOf.get(node.inputs[0]);
  const own = model.stateDict();
  const total = Object.values(own).reduce((n, x) => n + (find(x)?.[1].byteLength ?? 0), 0);
  let done = 0;
  const loaded = new Set<Tensor>();
  const load = async (keys: readonly string[]): Promise<void> => {
    for (const key of keys) {
      const tensor = own[key];
      const found = find(tensor);
      if (found === undefined || loaded.has(tensor)) continue; // what the checkpoint need not have
      loaded.add(tensor);
      signal?.throwIfAborted();
      const [name, part] = found;
      const value = (await storedTensor(`${source}: tensor "${name}"`, part, on)).to(tensor.dtype);
      setData(tensor, value);
      await realize(tensor); // in the model's dtype, so that what the file has can go
      done += part.byteLength;
      onProgress?.(done, total);
    }
  };
  const ofLayer = (path: string): string[] =>
    Object.keys(own).filter((key) => key.startsWith(`${path}.`) && !key.slice(path.length + 1).includes("."));
  await replaceLayers(
    model,
    replace,
    (path) => load(ofLayer(path)),
    (tensor) => {
      deferred.forget(tensor);
      setData(tensor, zeros(tensor.shape, { dtype: tensor.dtype, device: tensor.device })); // lets its memory go
    },
  );
  await load(Object.keys(own));
  deferred.finish();
  return model;
}
